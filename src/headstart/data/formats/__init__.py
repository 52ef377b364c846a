"""Readers of the data formats, one file per format.

Read layouts.py (recognises the format of a folder), folders.py (images with masks, or else class
folders), unread_formats.py (formats that are recognised and refused), split_folders.py (folders
that are splits), class_folders.py (one folder per class), tables.py (CSV, TSV, JSON lines and
Parquet), table_files.py (the tables of a folder), metadata.py (metadata files of Hugging Face
image folders), parquet_images.py (images inside Parquet files), label_lists.py (lists of paths and
labels), file_names.py (classes in the names of files), label_cells.py (labels in the cells of
tables), weight_cells.py (weights in the cells), split_columns.py (columns of yes and no),
manifests.py (tables that list images and labels), box_files.py (which annotation files a folder
has), annotations.py (boxes of any format, in coordinates of the upright image), image_names.py
(names of images in annotation files), box_patterns.py (mistakes that most boxes of a file share),
box_tables.py (tables of boxes), coco.py, voc.py, yolo.py, tool_formats.py (files of annotation
tools) with labelme.py, cvat.py, via.py, label_studio.py and supervisely.py, shapes.py (shapes that
tools draw) with bitmaps.py (bitmaps inside annotation files), documents.py (safe parsing of JSON
and XML), outline_masks.py (masks drawn from outlines), masks.py (images with masks) with
mask_names.py, mask_pairs.py (which mask belongs to which image), mask_parts.py (several masks of
an image) and class_maps.py (names of the classes of masks), image_ids.py (ids of images in
tables), and objects.py (Python objects: data frames, pairs, arrays and datasets) with pixels.py
(their images) and targets.py (their labels).
"""
