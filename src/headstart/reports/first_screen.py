"""First screen of a report: the result in one sentence, and the most frequent mistake."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from headstart.evaluation.classification import AnyEvaluation, Evaluation
from headstart.evaluation.detection import BoxEvaluation
from headstart.evaluation.segmentation import MaskEvaluation
from headstart.metrics.confidence_intervals import Interval
from headstart.reports import charts

__all__ = ["LINKS", "N_WORST", "headline", "worst_confusion"]

N_WORST = 3
"""Number of wrong predictions on the first screen."""

LINKS = {
    "data": "Show the findings",
    "decision": "Show the candidates",
    "insight-curve": "Show the learning curve",
    "insight-label_errors": "Show these labels",
    "insight-outliers": "Show these images",
    "insight-slices": "Show the subgroups",
    "mistakes": "Show the mistakes",
    "scores": "Show the scores",
    "training": "Show the epochs",
    "worst": "Show the worst images",
}
"""Texts of links to sections, by id."""


def headline(evaluation: AnyEvaluation) -> str:
    r"""Summarise an evaluation in one sentence with its 95 % confidence interval.

    Parameters
    ----------
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation

    Examples
    --------
    >>> from headstart.evaluation.classification import evaluate_probabilities
    >>> from headstart.models.tasks import ClassificationTask
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> chances, targets = np.tile([0.9, 0.1], (96, 1)), np.repeat([0, 1], [80, 16])
    >>> evaluation = evaluate_probabilities(task, chances, targets, names=("a.png",) * 96)
    >>> headline(evaluation).replace("\N{NO-BREAK SPACE}", " ")
    '80 of 96 test images right (83 %, likely 75 to 90 %)'
    """
    if isinstance(evaluation, Evaluation):
        return _class_headline(evaluation)
    if isinstance(evaluation, BoxEvaluation):
        return _box_headline(evaluation)
    return _mask_headline(evaluation)


def _class_headline(evaluation: Evaluation) -> str:
    accuracy = evaluation.metrics["accuracy"]
    n_right, n_images = int(evaluation.correct.sum()), len(evaluation.names)
    images = f"{n_right:,} of {_count_images(n_images)}"
    right = "right"
    if evaluation.task.kind == "multilabel":
        right = f"{'has' if n_images == 1 else 'have'} all labels right"
    bounds = "no interval"
    if not math.isnan(accuracy.low):
        low, high = (_whole_percent(end) for end in (accuracy.low, accuracy.high))
        bounds = f"likely {low} to {high}\N{NO-BREAK SPACE}%"
    return f"{images} {right} ({charts.percent(accuracy.value)}, {bounds})"


def _whole_percent(share: float) -> int:
    """Round the percentage with one decimal, which the page shows as well, half up."""
    return math.floor(round(100 * share, 1) + 0.5)


def _box_headline(evaluation: BoxEvaluation) -> str:
    right, missed, wrong, extra = (int(count) for count in evaluation.errors.sum(axis=0))
    objects = f"{right:,} of {right + missed + wrong:,} objects right"
    boxes = f"{extra:,} box{'' if extra == 1 else 'es'} without an object"
    return f"{objects}, {boxes} (mAP {_format_score(evaluation.metrics['map'])})"


def _mask_headline(evaluation: MaskEvaluation) -> str:
    pixels = charts.percent(evaluation.metrics["pixel_accuracy"].value)
    return (
        f"{pixels} of the pixels right on {_count_images(len(evaluation.names))} "
        f"(mean IoU {_format_score(evaluation.metrics['mean_iou'])})"
    )


def _count_images(number: int) -> str:
    return f"{number:,} test image{'' if number == 1 else 's'}"


def _format_score(score: Interval) -> str:
    if math.isnan(score.value):
        return "unknown"
    if math.isnan(score.low):
        return f"{score.value:.2f}, no interval"
    return f"{score.value:.2f}, likely {score.low:.2f} to {score.high:.2f}"


def worst_confusion(evaluation: AnyEvaluation) -> str:
    r"""Name the most frequent mistake; empty if there is none.

    For masks it is the confusion with the largest share of its true class, for several labels per
    image the label with the lowest recall.

    Parameters
    ----------
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation

    Examples
    --------
    >>> from headstart.evaluation.classification import evaluate_probabilities
    >>> from headstart.models.tasks import ClassificationTask
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> chances, targets = np.tile([0.9, 0.1], (6, 1)), np.array([0, 0, 0, 0, 1, 1])
    >>> evaluation = evaluate_probabilities(task, chances, targets, names=("a.png",) * 6)
    >>> worst_confusion(evaluation)
    'Most frequent mistake: 2 of 2 images of “dog” are predicted as “cat”.'
    """
    if isinstance(evaluation, Evaluation):
        if evaluation.task.kind == "multilabel":
            return _weakest_label(evaluation)
        pair, total = _most_frequent(evaluation.confusion)
        if pair is None:
            return ""
        classes = evaluation.task.classes
        objects = f"{pair.count:,} of {total:,} images of {_quote(classes[pair.truth])}"
        verb = "is" if pair.count == 1 else "are"
        prediction = _quote(classes[pair.prediction])
        return f"Most frequent mistake: {objects} {verb} predicted as {prediction}."
    if isinstance(evaluation, BoxEvaluation):
        return _box_confusion(evaluation)
    return _mask_confusion(evaluation)


def _most_frequent(confusion: Any) -> tuple[charts.Pair | None, int]:
    """Return the most frequent confusion and the number of items of its true class."""
    pairs = charts.confused_pairs(confusion, 1)
    return (pairs[0], int(confusion[pairs[0].truth].sum())) if pairs else (None, 0)


def _weakest_label(evaluation: Evaluation) -> str:
    rows = [row for row in evaluation.per_class if row.recall.value < 1]
    if not rows:
        return ""
    weakest = min(rows, key=lambda row: row.recall.value)
    share = charts.percent(weakest.recall.value)
    return f"Weakest label: {_quote(weakest.name)}, predicted for {share} of its images."


def _box_confusion(evaluation: BoxEvaluation) -> str:
    confusion = evaluation.confusion
    pair, total = _most_frequent(confusion)
    if pair is None:
        return ""
    classes, background = evaluation.task.classes, len(evaluation.task.classes)
    verb = "is" if pair.count == 1 else "are"
    if pair.truth == background:
        boxes = f"{pair.count:,} of {int(confusion[:, pair.prediction].sum()):,} boxes"
        shows = "shows" if pair.count == 1 else "show"
        text = f"{boxes} of {_quote(classes[pair.prediction])} {shows} no object"
    elif pair.prediction == background:
        text = f"{pair.count:,} of {total:,} objects of {_quote(classes[pair.truth])} {verb} missed"
    else:
        text = (
            f"{pair.count:,} of {total:,} objects of {_quote(classes[pair.truth])} {verb} "
            f"predicted as {_quote(classes[pair.prediction])}"
        )
    return f"Most frequent mistake: {text}."


def _mask_confusion(evaluation: MaskEvaluation) -> str:
    shares = charts.row_shares(evaluation.confusion)
    np.fill_diagonal(shares, 0.0)
    shares = np.nan_to_num(shares)
    truth, prediction = np.unravel_index(int(shares.argmax()), shares.shape)
    share = float(shares[truth, prediction])
    if not share:
        return ""
    classes = evaluation.task.classes
    return (
        f"Largest confusion: {charts.percent(share)} of the pixels of {_quote(classes[truth])} are "
        f"predicted as {_quote(classes[prediction])}."
    )


def _quote(name: str) -> str:
    return f"“{name}”"
