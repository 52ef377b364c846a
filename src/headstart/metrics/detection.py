"""Metrics of object detection: COCO's average precision and recall, curves, best threshold.

`match_boxes` processes each image once. The metrics are functions of these matches and of
weights over images, shape (n,) or (B, n), as in metrics/classification.py: a weight of w counts
the image w times, and with (B, n) results gain a leading axis B. The result of a class without
objects is NaN, and averages leave it out. No result depends on the order of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UsageError
from headstart.metrics.matching import IOUS, MAX_BOXES, SIZES, Matches, box_confusion, match_boxes
from headstart.metrics.validation import Floats, Weights, check_weights, divide, mean_defined

__all__ = [
    "IOUS",
    "SIZES",
    "Matches",
    "PrecisionRecall",
    "average_precisions",
    "average_recalls",
    "best_threshold",
    "box_confusion",
    "box_scores",
    "f1_curve",
    "match_boxes",
    "object_counts",
    "per_class_ap",
    "pr_curve",
]

_RECALLS: Floats = np.linspace(0, 1, 101)
_BLOCK = 2**17
"""Number of box weights processed at once: bounds memory and fits the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRecall:
    """Precision at 101 recalls, 0 to 1, and the lowest score that reaches each recall.

    Precision is the highest at this recall or a higher one. Where no score reaches the recall,
    precision is 0 and the score NaN. All precisions are NaN for a class without objects.
    """

    recall: Floats
    precision: Floats
    score: Floats


def average_precisions(
    matches: Matches, weights: Weights = None, *, sizes: Sequence[str] = tuple(SIZES)
) -> Floats:
    """Average precision by object size, overlap and class.

    AP = mean over r in {0, .01, ..., 1} of max{precision(s) : recall(s) >= r}, where s is the
    lowest score of the boxes that count, precision = correct / (correct + false), recall =
    correct / objects. Boxes of equal scores share a threshold, as in classification; COCO's
    server counts them one by one, in the order of the file.

    Parameters
    ----------
    matches : Matches
    weights : array, shape (n,) or (B, n), optional
    sizes : some of "all", "small", "medium", "large"

    Returns
    -------
    array, shape (..., sizes, 10, K)
        0 to 1; NaN for a class without such objects.

    Raises
    ------
    UsageError
        If weights have another shape, or a size is unknown.

    References
    ----------
    Lin et al. (2014), "Microsoft COCO: Common objects in context"; Everingham et al. (2010),
    "The PASCAL visual object classes challenge", section 4.2 (there with 11 recalls).

    Examples
    --------
    >>> found = [([[0, 0, 9, 10]], [0.9], [0])]
    >>> true = [([[0, 0, 10, 10]], [0], [False])]
    >>> average_precisions(match_boxes(found, true, 1))[0, [0, 8, 9], 0].round(3)
    array([1., 1., 0.])
    """
    image_weights = check_weights(weights, matches.n_images)
    size_rows = [_size_index(name) for name in sizes]
    flat = image_weights.reshape(-1, matches.n_images)
    precisions = np.full((len(flat), len(size_rows), len(IOUS), matches.n_classes), np.nan)
    edges = np.searchsorted(matches.label, np.arange(matches.n_classes + 1))
    step = max(1, _BLOCK // max(1, int(np.diff(edges).max())))
    for start in range(0, len(flat), step):
        block = flat[start : start + step]
        for label in range(matches.n_classes):
            part = slice(edges[label], edges[label + 1])
            precisions[start : start + step, :, :, label] = _class_precisions(
                matches, block, part, label, size_rows
            )
    return precisions.reshape(*image_weights.shape[:-1], *precisions.shape[1:])


def average_recalls(
    matches: Matches, weights: Weights = None, *, size: str = "all", max_boxes: int = MAX_BOXES
) -> Floats:
    """Share of objects detected, averaged over the overlaps .50:.95; one number per class.

    AR = mean over overlaps of detected / objects, with the ``max_boxes`` best boxes of each
    class in an image (COCO: 1, 10 or 100).

    Returns
    -------
    array, shape (K,) or (B, K)
        0 to 1; NaN for a class without such objects.

    Raises
    ------
    UsageError
        If weights have another shape, the size is unknown, or ``max_boxes`` is not from 1 to 100.

    References
    ----------
    Hosang et al. (2016), "What makes for effective detection proposals?", section 4.

    Examples
    --------
    >>> found = [([[0, 0, 9, 10]], [0.9], [0])]
    >>> true = [([[0, 0, 10, 10]], [0], [False])]
    >>> average_recalls(match_boxes(found, true, 1)).round(3)
    array([0.9])
    """
    if not 1 <= max_boxes <= MAX_BOXES:
        raise UsageError(
            f"Expected `max_boxes` from 1 to {MAX_BOXES}, got {max_boxes}. Pass 1, 10 or 100."
        )
    image_weights, row = check_weights(weights, matches.n_images), _size_index(size)
    hits = (matches.outcome[row] == 1).sum(axis=0) * (matches.rank < max_boxes)
    cells = matches.label * matches.n_images + matches.image
    shape = (matches.n_classes, matches.n_images)
    per_image = np.bincount(cells, weights=hits, minlength=shape[0] * shape[1]).reshape(shape)
    objects = image_weights @ matches.objects[row].T
    return divide(image_weights @ per_image.T, len(IOUS) * objects)


def box_scores(matches: Matches, weights: Weights = None) -> dict[str, Floats]:
    """COCO's metrics of a detector, means over classes; each of shape () or (B,), 0 to 1.

    "map" (overlaps .50:.95), "map50", "map75", "map_small", "map_medium", "map_large" as
    `average_precisions`; "recall100" as `average_recalls`. NaN where there is no object.

    Examples
    --------
    >>> found = [([[0, 0, 9, 10]], [0.9], [0])]
    >>> true = [([[0, 0, 10, 10]], [0], [False])]
    >>> scores = box_scores(match_boxes(found, true, 1))
    >>> {name: round(float(score), 3) for name, score in scores.items() if name[-1] != "e"}
    {'map': 0.9, 'map50': 1.0, 'map75': 1.0, 'map_small': 0.9, 'map_medium': nan, 'recall100': 0.9}
    """
    table = average_precisions(matches, weights)
    scores = {"map": mean_defined(table[..., 0, :, :].mean(axis=-2))}
    for name, iou in (("map50", 0.5), ("map75", 0.75)):
        scores[name] = mean_defined(table[..., 0, _threshold_index(iou), :])
    for row, size in enumerate(SIZES):
        if size != "all":
            scores[f"map_{size}"] = mean_defined(table[..., row, :, :].mean(axis=-2))
    return scores | {"recall100": mean_defined(average_recalls(matches, weights))}


def per_class_ap(matches: Matches, weights: Weights = None, *, iou: float | None = None) -> Floats:
    """Average precision of each class over .50:.95, or at one overlap; (K,) or (B, K).

    Examples
    --------
    >>> found = [([[0, 0, 9, 10]], [0.9], [0])]
    >>> true = [([[0, 0, 10, 10]], [0], [False])]
    >>> per_class_ap(match_boxes(found, true, 2), iou=0.5).round(3)
    array([ 1., nan])
    """
    table = average_precisions(matches, weights, sizes=("all",))[..., 0, :, :]
    return np.asarray(table.mean(axis=-2) if iou is None else table[..., _threshold_index(iou), :])


def object_counts(matches: Matches, weights: Weights = None) -> Floats:
    """Count the objects by size (all, small, medium, large) and class, (..., 4, K).

    Examples
    --------
    >>> true = [([[0, 0, 10, 10], [0, 0, 40, 40], [0, 0, 9, 9]], [0, 0, 0], [False, False, True])]
    >>> object_counts(match_boxes([([], [], [])], true, 1)).ravel()
    array([2., 1., 1., 0.])
    """
    image_weights = check_weights(weights, matches.n_images)
    return (
        np.moveaxis(matches.objects @ image_weights.T, -1, 0)
        if image_weights.ndim == 2
        else (matches.objects @ image_weights)
    )


def pr_curve(
    matches: Matches, label: int, iou: float = 0.5, weights: Weights = None
) -> PrecisionRecall:
    """Precision against recall of a class at one overlap, for weights of shape (n,).

    Its mean precision is the class's average precision.

    Raises
    ------
    UsageError
        If there is no such class or overlap (.50, .55, ..., .95), or weights are not (n,).

    Examples
    --------
    >>> found = [([[0, 0, 9, 10]], [0.9], [0])]
    >>> true = [([[0, 0, 10, 10], [20, 0, 30, 10]], [0, 0], [False, False])]
    >>> curve = pr_curve(match_boxes(found, true, 1), 0)
    >>> curve.precision[[0, 50, 51]].round(3), curve.score[[0, 50, 51]]
    (array([1., 1., 0.]), array([0.9, 0.9, nan]))
    """
    image_weights = check_weights(weights, matches.n_images)
    if image_weights.ndim != 1 or not 0 <= label < matches.n_classes:
        raise UsageError(
            f"Expected a class from 0 to {matches.n_classes - 1} and weights of shape (n,), got "
            f"{label} and {image_weights.shape}. Pass the index of the class and one row of "
            "weights."
        )
    rows = np.flatnonzero((matches.label == label) & (image_weights[matches.image] > 0))
    box_weights = image_weights[matches.image[rows]]
    outcome = matches.outcome[0, _threshold_index(iou), rows]
    total = float(matches.objects[0, label] @ image_weights)
    precision, score = np.full(len(_RECALLS), 0.0 if total else np.nan), np.full(101, np.nan)
    if total and len(rows):
        ends = _last_of_equal(matches.score[rows])
        hit = np.cumsum(box_weights * (outcome == 1))[ends]
        counted = np.cumsum(box_weights * (outcome != -1))[ends]
        envelope = np.maximum.accumulate((hit / (counted + np.spacing(1)))[::-1])[::-1]
        positions = np.searchsorted(hit / total, _RECALLS)
        reached = positions < len(rows)
        precision[reached] = envelope[positions[reached]]
        score[reached] = matches.score[rows][positions[reached]]
    return PrecisionRecall(recall=_RECALLS.copy(), precision=precision, score=score)


def best_threshold(matches: Matches, weights: Weights = None) -> float:
    """Score threshold with the best F1 at an overlap of .5, for all classes together.

    F1 = 2 correct / (correct + false + objects). Of equal ones, the highest threshold; 0.5 if no
    box matches an object.

    Raises
    ------
    UsageError
        If weights are not of shape (n,).

    References
    ----------
    van Rijsbergen (1979), "Information retrieval", chapter 7 (F with equal weights).

    Examples
    --------
    >>> found = [([[0, 0, 9, 10], [50, 0, 60, 10]], [0.9, 0.2], [0, 0])]
    >>> true = [([[0, 0, 10, 10]], [0], [False])]
    >>> best_threshold(match_boxes(found, true, 1))
    0.9
    """
    image_weights = check_weights(weights, matches.n_images)
    if image_weights.ndim != 1:
        raise UsageError(
            f"Expected `weights` of shape (n,), got {image_weights.shape}. Pass one row."
        )
    n_objects = float((matches.objects[0] @ image_weights).sum())
    score, f1 = f1_curve(matches, np.arange(len(matches.score)), n_objects, image_weights)
    return float(score[f1.argmax()]) if f1.any() else 0.5


def f1_curve(
    matches: Matches, rows: NDArray[np.intp], n_objects: float, image_weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute F1 at an overlap of .5 for every threshold, from the highest score on.

    Parameters
    ----------
    matches : Matches
    rows : array of int
        The boxes to count.
    n_objects : float
        Weighted number of the objects to find.
    image_weights : array, shape (n,)

    Returns
    -------
    array, array
        The distinct scores in falling order, and the F1 of the boxes with at least that score.

    Examples
    --------
    >>> found = [([[0, 0, 9, 10], [50, 0, 60, 10]], [0.9, 0.2], [0, 0])]
    >>> matches = match_boxes(found, [([[0, 0, 10, 10]], [0], [False])], 1)
    >>> score, f1 = f1_curve(matches, np.arange(2), 1.0, np.ones(1))
    >>> score.tolist(), f1.round(2).tolist()
    ([0.9, 0.2], [1.0, 0.67])
    """
    order = rows[np.argsort(-matches.score[rows], kind="stable")]
    score, box_weights = matches.score[order], image_weights[matches.image[order]]
    outcome = matches.outcome[0, 0, order]
    hit = np.cumsum(box_weights * (outcome == 1))
    counted = np.cumsum(box_weights * (outcome != -1))
    # A threshold can only lie after the last of several boxes with equal scores.
    last = np.flatnonzero(np.append(score[1:] != score[:-1], len(score) > 0))
    found = counted[last] + n_objects
    return score[last], 2 * hit[last] / np.where(found > 0, found, 1.0)


def _class_precisions(
    matches: Matches, weights: Floats, part: slice, label: int, sizes: list[int]
) -> Floats:
    """Average precision of a class by size and overlap for weights (B, n), (B, sizes, 10)."""
    precisions = np.full((len(weights), len(sizes), len(IOUS)), np.nan)
    image, by_image = matches.image[part], np.ascontiguousarray(weights.T)
    scores = matches.score[part]
    for column, size in enumerate(sizes):
        total = weights @ matches.objects[size, label]
        has_objects, previous = total > 0, np.zeros(0, dtype=np.intp)
        predicted = np.zeros((0, len(weights)))
        if not has_objects.any():
            continue
        for threshold, outcome in enumerate(matches.outcome[size, :, part]):
            counts = np.flatnonzero(outcome != -1)
            if not np.array_equal(counts, previous):  # often the same for every overlap
                previous, predicted = counts, np.cumsum(by_image[image[counts]], axis=0)
                predicted = predicted[_last_of_equal(scores[counts])]
            hit = np.flatnonzero(outcome[counts] == 1)
            correct = np.cumsum(by_image[image[counts[hit]]], axis=0)
            correct = correct[_last_of_equal(scores[counts[hit]])]
            areas = _area_under_envelope(correct, predicted[hit], total)
            precisions[has_objects, column, threshold] = areas[has_objects]
    return precisions


def _last_of_equal(scores: Floats) -> NDArray[np.intp]:
    """Position of the last equal score of each, for scores from high to low.

    Boxes of equal scores share a threshold: no detector has one without the other, and their
    order would depend on where the objects lie.

    >>> _last_of_equal(np.array([0.9, 0.5, 0.5, 0.1]))
    array([0, 2, 2, 3])
    """
    return np.asarray(np.searchsorted(-scores, -scores, side="right") - 1)


def _area_under_envelope(correct: Floats, predicted: Floats, total: Floats) -> Floats:
    """Area under the precision's envelope at 101 recalls, (B,), from the correct boxes (H, B).

    Other boxes do not matter: between two correct boxes recall is constant and precision falls.
    Each correct box counts for the recalls that it is the first to reach.
    """
    if not len(correct):
        return np.zeros(len(total))
    precision = correct / (predicted + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    n_recalls = _recalls_up_to(correct / np.where(total > 0, total, 1))
    n_recalls[1:] -= n_recalls[:-1].copy()
    return np.asarray(np.einsum("hb,hb->b", envelope, n_recalls) / len(_RECALLS))


def _recalls_up_to(recall: Floats) -> Floats:
    """Count those of the 101 recalls that are not larger: estimate, then correct for rounding."""
    counts = np.floor(recall * 100)
    too_high = counts * 0.01 > recall  # the recalls are these products, rounding included
    counts += (counts + 1) * 0.01 <= recall
    counts -= too_high
    return np.asarray(counts + 1)


def _size_index(name: str) -> int:
    if name not in SIZES:
        raise UsageError(f"Expected a size of {', '.join(SIZES)}, got {name!r}. Pass one of them.")
    return list(SIZES).index(name)


def _threshold_index(iou: float) -> int:
    rows = np.flatnonzero(np.isclose(IOUS, iou))
    if not len(rows):
        raise UsageError(f"Expected `iou` of .50, .55, ..., .95, got {iou}. Pass 0.5.")
    return int(rows[0])
