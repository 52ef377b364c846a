"""Checks of images, boxes and masks before training.

Read scan.py (decode and hash every image once), copies.py (crops and other views of an image),
images.py (unreadable files, duplicates, leaks between splits, label conflicts), boxes.py,
masks.py and domains.py (images like chest X-rays).
"""
