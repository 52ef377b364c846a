"""Loss functions.

Read classification.py (cross-entropy, focal loss, logit adjustment, label smoothing) and
segmentation.py (losses over pixels and regions).
"""
