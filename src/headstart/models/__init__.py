"""A trained model: frozen backbone, head and task; built, run and saved.

Read transfer_model.py (TransferModel and predict), tasks.py (from logits to predictions), heads/,
build.py (an untrained model), torch_module.py (a classifier for torch code), inference.py (boxes
and masks in image coordinates), writing.py and saving.py (safetensors and JSON: write, read),
coco_ids.py (ids of the user's COCO file), prediction_files.py (predictions as CSV, JSON, COCO,
YOLO, PNG), graph_files.py (exported files: description and runtimes) and exported_model.py (the
model in such a file).
"""
