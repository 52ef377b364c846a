"""The one number that a model is compared by, and the same on resampled images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset
from headstart.evaluation.baselines import PROBE, Baseline
from headstart.evaluation.classification import AnyEvaluation, Evaluation
from headstart.evaluation.detection import BoxEvaluation, places
from headstart.evaluation.segmentation import MaskEvaluation
from headstart.metrics import classification as metrics
from headstart.metrics import detection as box_metrics
from headstart.metrics import segmentation as mask_metrics
from headstart.metrics.confidence_intervals import Interval, resamples, units

__all__ = ["MEASURES", "headline", "redrawn", "simple_rules", "verdict"]

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
    """The headline on resampled images; the draws depend on nothing but the test part."""
    codes, count = units(len(test), test.groups())
    blocks = resamples(codes, count, DRAWS, np.random.default_rng(0))
    found = np.concatenate([np.ravel(_scores(evaluation, block)) for block in blocks])
    return tuple(found.tolist())


def simple_rules(evaluation: AnyEvaluation, train: Dataset) -> dict[str, float]:
    """What rules that look at no image reach on the same test part, in the headline's measure.

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
    """The headline for weights of the images, (B, n) -> (B,)."""
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


FEW = 30
"""Held-out images with boxes or masks; below it even an interval is a rough guess."""


def verdict(evaluation: AnyEvaluation) -> tuple[str, ...]:
    """Say in words how good the model is and what can be told apart.

    Parameters
    ----------
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation

    Returns
    -------
    tuple of str
        Sentences for a person, the most important first.

    Examples
    --------
    >>> import numpy as np
    >>> from headstart.evaluation.classification import evaluate_probabilities
    >>> from headstart.models.tasks import ClassificationTask
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> chances, targets = np.full((20, 2), 0.5), np.zeros(20, dtype=int)
    >>> verdict(evaluate_probabilities(task, chances, targets, names=("a.png",) * 20))[0]
    'Accuracy 1.000 [0.839, 1.000] on 20 held-out images (95 % interval).'
    """
    if isinstance(evaluation, Evaluation):
        return _of_classes(evaluation)
    if isinstance(evaluation, BoxEvaluation):
        return _of_boxes(evaluation)
    return _of_masks(evaluation)


def _of_classes(evaluation: Evaluation) -> tuple[str, ...]:
    accuracy = evaluation.metrics["accuracy"]
    what = "All labels right" if evaluation.task.kind == "multilabel" else "Accuracy"
    return (
        f"{what} {accuracy} on {_images(evaluation)} (95 % interval).",
        *map(_against, evaluation.baselines),
        *(() if evaluation.abstention is None else (evaluation.abstention.sentence(),)),
        *_wide(accuracy),
        *_unseen([row.name for row in evaluation.per_class if row.count == 0]),
    )


def _of_boxes(evaluation: BoxEvaluation) -> tuple[str, ...]:
    headline, loose = evaluation.metrics["map"], evaluation.metrics.get("map50")
    if math.isnan(headline.value) or loose is None:
        return (f"Nothing can be said: {_images(evaluation)}, and no object that counts.",)
    right, missed, wrong, invented = (int(x) for x in evaluation.errors.sum(axis=0))
    there = right + missed + wrong
    named = (
        f"From a score of {evaluation.task.threshold:.2f} on it names {right} of {there} objects "
        f"right; {missed} it misses, {wrong} it calls something else, and {invented} of its boxes "
        "show no object."
    )
    return (
        f"mAP {headline} on {_images(evaluation)} (95 % interval; at overlap .50: {loose}).",
        named,
        *_weakest([(row.name, row.ap) for row in evaluation.per_class], "AP"),
        *_few(evaluation),
        *_wide(headline),
        *_unseen([row.name for row in evaluation.per_class if row.objects == 0]),
    )


def _of_masks(evaluation: MaskEvaluation) -> tuple[str, ...]:
    headline, right = (evaluation.metrics[name] for name in ("mean_iou", "pixel_accuracy"))
    if math.isnan(headline.value):
        return (f"Nothing can be said: {_images(evaluation)}, and no pixel that is judged.",)
    return (
        f"Mean IoU {headline} on {_images(evaluation)} (95 % interval; pixels right: {right}).",
        *_weakest([(row.name, row.iou) for row in evaluation.per_class], "IoU"),
        *map(_against, evaluation.baselines),
        *_few(evaluation),
        *_wide(headline),
        *_unseen([row.name for row in evaluation.per_class if row.pixels == 0]),
    )


def _images(evaluation: AnyEvaluation) -> str:
    groups = "" if evaluation.n_groups is None else f" in {evaluation.n_groups} groups"
    n = len(evaluation.names)
    return f"{n} held-out image{'' if n == 1 else 's'}{groups}"


def _against(baseline: Baseline) -> str:
    lead = baseline.lead.interval
    told = f"{lead.value:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}]"
    if not baseline.lead.distinguishable:
        judged = "cannot be distinguished from it on this many images"
        if lead.low > 0 or lead.high < 0:
            judged += " (their answers differ on too few of them)"
    elif lead.value > 0:
        judged = "is better"
    elif baseline.name == PROBE:
        judged = "IS WORSE: the probe wins, do use --method linear-probe"
    else:
        judged = "IS WORSE: look at the data and the labels before using it"
    name = baseline.name[:1].upper() + baseline.name[1:]
    return f"{name}: {baseline.accuracy}; the model's lead is {told}, it {judged}."


def _weakest(rows: Sequence[tuple[str, Interval]], measure: str) -> tuple[str, ...]:
    """Name the class that is found worst, if there is another."""
    known = [row for row in rows if not math.isnan(row[1].value)]
    if len(known) < 2:
        return ()
    name, number = min(known, key=lambda row: row[1].value)
    return (f"{name!r} is found worst: {measure} {number}.",)


def _few(evaluation: BoxEvaluation | MaskEvaluation) -> tuple[str, ...]:
    n = evaluation.n_groups if evaluation.n_groups is not None else len(evaluation.names)
    if n >= FEW:
        return ()
    what = "images" if evaluation.n_groups is None else "groups"
    told = f"Only {n} held-out {what}: the numbers, and how sure they are, are rough"
    return (f"{told}; label more, or hold out more.",)


def _wide(interval: Interval) -> tuple[str, ...]:
    width = interval.high - interval.low
    if not width > 0.1:
        return ()
    told = f"The interval is {100 * width:.0f} points wide: do not rank models by smaller "
    return (told + "differences unless they are compared on the same images, paired.",)


def _unseen(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
    return (f"Nothing can be said about {shown}: no held-out image shows it.",)
