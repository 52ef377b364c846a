"""Readers of the data formats, one file per format.

Read layouts.py (recognises the format of a folder), split_folders.py (folders that are splits),
class_folders.py (one folder per class), tables.py (CSV, TSV and Parquet), annotations.py (boxes of
any format, in coordinates of the upright image), coco.py, voc.py, yolo.py, masks.py (images with
masks) and objects.py (Python objects: data frames, pairs, arrays and datasets) with pixels.py
(their images) and targets.py (their labels).
"""
