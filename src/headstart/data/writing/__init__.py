"""Data sets as files of other formats; the readers in formats/ read them again.

Read plan.py (what a format can hold), image_files.py (names and copies of images), coco.py,
yolo.py, class_folders.py, mask_folders.py and parquet.py (one writer each).
"""
