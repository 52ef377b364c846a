"""Gap between cross-validation and test: whether the folds are easier than the test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from headstart.evaluation.classification import AnyEvaluation, Evaluation
from headstart.metrics.class_means import mean_of_intervals
from headstart.metrics.confidence_intervals import Groups, Interval, proportion_interval

__all__ = ["explain_fold_gap"]

ADVICE = (
    "Images that belong together (one place, patient or video) must stay in one fold: pass "
    "--group-by with what names them, or with something coarser than now."
)


def explain_fold_gap(
    record: Mapping[str, Any], evaluation: AnyEvaluation, groups: Groups = None
) -> tuple[str, ...]:
    """Report that cross-validated accuracy is higher than test accuracy, beyond chance.

    Both are compared for the class frequencies of the test images. The chance of a sentence
    although nothing differs is at most 1 %.

    Parameters
    ----------
    record : mapping
        The model's record. ``cross_validation`` has the shares of correct training images by class,
        each as value, lower and upper bound (None for a class without images), their ``level``, and
        whether they are ``independent``.
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
        On the test images.
    groups : n hashables, optional
        Of the test images.

    Returns
    -------
    tuple of str
        Empty, or one sentence group.

    Examples
    --------
    >>> from headstart.evaluation.classification import evaluate_probabilities
    >>> from headstart.models.tasks import ClassificationTask
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> chances, targets = np.tile([0.9, 0.1], (100, 1)), np.arange(100) % 2
    >>> evaluation = evaluate_probabilities(task, chances, targets, names=("a.png",) * 100)
    >>> shares = {"level": 0.99, "independent": True}
    >>> shares["correct"] = [[0.9, 0.8, 0.95], [0.9, 0.8, 0.95]]
    >>> explain_fold_gap({"cross_validation": shares}, evaluation)[0][:72]
    'Cross-validation gives 90.0 %, but the test images 50.0 %: a larger diff'
    """
    shares = record.get("cross_validation")
    if shares is None or not isinstance(evaluation, Evaluation):
        return ()
    known = [k for k, values in enumerate(shares["correct"]) if values is not None]
    rows = np.flatnonzero(np.isin(evaluation.targets, known))
    if not len(rows):
        return ()
    counts = np.bincount(evaluation.targets[rows], minlength=len(shares["correct"]))
    tested = np.flatnonzero(counts)
    level = shares["level"]
    intervals = [
        Interval(value=value, low=low, high=high, level=level, method="wilson")
        for value, low, high in (shares["correct"][k] for k in tested)
    ]
    folds = mean_of_intervals(
        intervals, (counts[tested] / len(rows)).tolist(), independent=shares["independent"]
    )
    labels = None if groups is None else np.asarray(list(groups), dtype=object)[rows]
    test = proportion_interval(evaluation.correct[rows], labels, level=level)
    gap = folds.value - test.value
    if not gap > math.hypot(folds.value - folds.low, test.high - test.value):
        return ()
    sentences = (
        f"Cross-validation gives {100 * folds.value:.1f} %, but the test images "
        f"{100 * test.value:.1f} %: a larger difference than chance explains. The folds of the "
        f"training images are easier than the test. {ADVICE}"
    )
    return (sentences,)
