"""Heads: modules on top of a backbone, one contract in head.py.

Read head.py, linear.py (classes), detection_config.py, ignored_boxes.py, detection_modules.py and
detection.py (boxes), segmentation_config.py, segmentation_modules.py and segmentation.py (masks),
and pretrained.py (published detectors and DeepLabs).
"""
