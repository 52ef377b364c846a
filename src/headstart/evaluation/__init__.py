"""Evaluation: scores with intervals, baselines, explanations and errors.

Read classification.py, detection.py and segmentation.py (evaluate each task), baselines.py
(simple rules on the same images), summary.py (the result in sentences), transfer_gain.py
(fine-tuned model compared with the frozen backbone), fold_gap.py (folds compared with the test),
drift.py and forgetting.py (what fine-tuning changed), comparison.py (several methods), episodes.py
(few-shot episodes), domain_shift.py (images of another domain), domain_change.py (what an
adaptation changed), explain.py (heat maps), insight.py with embeddings.py, slices.py and
learning_curve.py (likely label errors, unusual images, weak subgroups, more data).
"""
