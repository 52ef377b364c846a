"""Pure functions from arrays to numbers, with intervals and tests.

Read validation.py (shapes and ranges), classification.py, matching.py and detection.py,
segmentation.py, confidence_intervals.py (bootstrap and score intervals), significance.py (paired
tests), selective.py (risk and coverage), label_errors.py, outliers.py, domain_distance.py and
transferability/.
"""
