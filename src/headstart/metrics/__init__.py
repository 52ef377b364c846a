"""Pure functions from arrays to numbers, with intervals and tests.

This file names the primary metric of each kind of data. Read validation.py (checks of arrays,
conversion to JSON), classification.py, matching.py, detection.py and score_thresholds.py,
segmentation.py, confidence_intervals.py (bootstrap and score intervals), class_means.py (balanced
accuracy), significance.py (tests of repeated runs),
selective.py (risk and coverage), label_errors.py, outliers.py, domain_distance.py,
target_free.py (scores without labels) and transferability/.
"""

from __future__ import annotations

__all__ = ["PRIMARY_METRICS", "SELECTION_METRICS"]

PRIMARY_METRICS = {
    "multiclass": "accuracy",
    "multilabel": "mean average precision",
    "detection": "mAP",
    "segmentation": "mean IoU",
}
"""Metric that models are compared by, for each kind of data. Higher is better."""

SELECTION_METRICS = {
    "multiclass": "macro F1",
    "multilabel": "macro F1",
    "detection": "mAP",
    "segmentation": "mean IoU",
}
"""Metric on the validation images that selects the best epoch, for each kind of data."""
