"""Readers of one data format each.

Read layouts.py (which format a folder has), class_folders.py (one folder a class), tables.py (CSV
and Parquet), annotations.py (boxes of any format, placed on the upright image), coco.py, voc.py,
yolo.py and masks.py (images beside masks).
"""
