"""The one number that a model is compared by, and the same on resampled pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart import box_metrics, mask_metrics, metrics
from headstart.box_evaluation import BoxEvaluation, places
from headstart.data.samples import Dataset
from headstart.evaluation import AnyEvaluation, Evaluation
from headstart.resampling import resamples, units

__all__ = ["MEASURES", "headline", "redrawn"]

MEASURES = {
    "multiclass": "accuracy",
    "multilabel": "mean average precision",
    "detection": "mAP",
    "segmentation": "mean IoU",
}
"""In words, by the kind of data; more is better."""

DRAWS = 400
"""Resamples of a test part that all methods share."""


def headline(evaluation: AnyEvaluation) -> str:
    """Name the metric that comes first."""
    if evaluation.task.kind == "multilabel":
        return "mean_average_precision"
    return next(iter(evaluation.metrics))


def redrawn(evaluation: AnyEvaluation, test: Dataset) -> tuple[float, ...]:
    """The headline on resampled pictures; the draws depend on nothing but the test part."""
    codes, count = units(len(test), test.groups())
    blocks = resamples(codes, count, DRAWS, np.random.default_rng(0))
    found = np.concatenate([np.ravel(_scores(evaluation, block)) for block in blocks])
    return tuple(found.tolist())


def _scores(evaluation: AnyEvaluation, weights: NDArray[np.float64]) -> Any:
    """The headline for weights of the pictures, (B, n) -> (B,)."""
    if isinstance(evaluation, Evaluation):
        if evaluation.task.kind == "multilabel":
            return metrics.mean_average_precision_score(
                evaluation.targets, evaluation.probabilities, sample_weight=weights
            )
        return weights @ evaluation.correct / weights.sum(axis=1)
    if isinstance(evaluation, BoxEvaluation):
        classes = evaluation.task.classes
        there = [(t.array(), places(t, classes), t.is_hard()) for t in evaluation.truths]
        found = [(one.boxes, one.scores, one.labels) for one in evaluation.found]
        matches = box_metrics.match_boxes(found, there, len(classes))
        return box_metrics.box_scores(matches, weights)["map"]
    return mask_metrics.mean_iou_score(evaluation.counts.confusion, weights)
