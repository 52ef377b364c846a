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

__all__ = ["MEASURES", "headline", "redrawn", "simple_rules"]

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


def simple_rules(evaluation: AnyEvaluation, train: Dataset) -> dict[str, float]:
    """What rules that look at no picture reach on the same test part, in the headline's measure.

    Parameters
    ----------
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
        Of the test part.
    train : Dataset
        Says which class is the most frequent.

    Returns
    -------
    dict of str to float
        The majority class and a random guess; for labels chance; for masks the best that one
        class everywhere reaches; nothing for boxes.
    """
    if isinstance(evaluation, BoxEvaluation):
        return {}
    if not isinstance(evaluation, Evaluation):
        held = evaluation.counts.confusion.sum(axis=(0, 2))
        everywhere = [np.outer(held, column) for column in np.eye(len(held))]
        best = max(float(mask_metrics.mean_iou_score(table[None])) for table in everywhere)
        return {"one class everywhere": best}
    if evaluation.task.kind == "multilabel":
        alike = np.full(evaluation.probabilities.shape, 0.5)
        chance = metrics.mean_average_precision_score(evaluation.targets, alike)
        return {"chance": float(chance)}
    classes = evaluation.task.classes
    counts = train.counts()
    majority = max(range(len(classes)), key=lambda k: counts.get(classes[k], 0))
    return {
        "majority class": float((evaluation.targets == majority).mean()),
        "random guess": 1 / len(classes),
    }


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
