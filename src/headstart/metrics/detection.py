"""Metrics of found boxes: COCO's average precision and recall, curves, confusion, threshold.

`match_boxes` looks at every image once; the metrics are functions of these matches and of
weights over images, shape (n,) or (B, n), as in `headstart.metrics`: a weight of w counts the
image w times, and with (B, n) results gain a leading axis B. A class without objects is NaN,
and averages leave it out. Nothing depends on the order of the images or on batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headstart.errors import UsageError
from headstart.metrics.matching import IOUS, MOST, SIZES, Matches, box_confusion, match_boxes
from headstart.metrics.validation import Floats, Weights, mean_defined, ratio, weights_of

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
    "match_boxes",
    "object_counts",
    "per_class_ap",
    "pr_curve",
]

_RECALLS: Floats = np.linspace(0, 1, 101)
_BLOCK = 2**17
"""Weights of boxes worked on at a time: bounds memory, fits the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRecall:
    """Precision at 101 recalls, 0 to 1, and the score from which on each recall is reached.

    Precision is the highest at this recall or a higher one, 0 where no score reaches it; the
    score is NaN there. All precisions are NaN for a class without objects.
    """

    recall: Floats
    precision: Floats
    score: Floats


def average_precisions(
    matches: Matches, weights: Weights = None, *, sizes: Sequence[str] = tuple(SIZES)
) -> Floats:
    """Average precision by object size, overlap and class.

    AP = mean over r in {0, .01, ..., 1} of max{precision(s) : recall(s) >= r}, where s are the
    scores from which on boxes count, precision = found / (found + false), recall = found /
    objects.

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
        If weights do not fit, or a size is not known.

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
    given = weights_of(weights, matches.n_images)
    rows = [_size(name) for name in sizes]
    flat = given.reshape(-1, matches.n_images)
    found = np.full((len(flat), len(rows), len(IOUS), matches.n_classes), np.nan)
    edges = np.searchsorted(matches.label, np.arange(matches.n_classes + 1))
    step = max(1, _BLOCK // max(1, int(np.diff(edges).max())))
    for start in range(0, len(flat), step):
        block = flat[start : start + step]
        for label in range(matches.n_classes):
            part = slice(edges[label], edges[label + 1])
            found[start : start + step, :, :, label] = _class_precisions(
                matches, block, part, label, rows
            )
    return found.reshape(*given.shape[:-1], *found.shape[1:])


def average_recalls(
    matches: Matches, weights: Weights = None, *, size: str = "all", most: int = MOST
) -> Floats:
    """Share of objects found, averaged over the overlaps .50:.95; one number per class.

    AR = mean over overlaps of found / objects, with the ``most`` best boxes of each class in an
    image (COCO: 1, 10 or 100).

    Returns
    -------
    array, shape (K,) or (B, K)
        0 to 1; NaN for a class without such objects.

    Raises
    ------
    UsageError
        If weights do not fit, the size is not known, or ``most`` is not from 1 to 100.

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
    if not 1 <= most <= MOST:
        raise UsageError(f"Expected `most` from 1 to {MOST}, got {most}; do pass 1, 10 or 100.")
    given, row = weights_of(weights, matches.n_images), _size(size)
    hits = (matches.outcome[row] == 1).sum(axis=0) * (matches.rank < most)
    cells = matches.label * matches.n_images + matches.image
    shape = (matches.n_classes, matches.n_images)
    per_image = np.bincount(cells, weights=hits, minlength=shape[0] * shape[1]).reshape(shape)
    objects = given @ matches.objects[row].T
    return ratio(given @ per_image.T, len(IOUS) * objects)


def box_scores(matches: Matches, weights: Weights = None) -> dict[str, Floats]:
    """The numbers of a detector, means over classes; each of shape () or (B,), 0 to 1.

    "map" (overlaps .50:.95), "map50", "map75", "map_small", "map_medium", "map_large" as
    `average_precisions`; "recall100" as `average_recalls`. NaN where no object is.

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
        scores[name] = mean_defined(table[..., 0, _overlap(iou), :])
    for row, size in enumerate(SIZES):
        if size != "all":
            scores[f"map_{size}"] = mean_defined(table[..., row, :, :].mean(axis=-2))
    return scores | {"recall100": mean_defined(average_recalls(matches, weights))}


def per_class_ap(matches: Matches, weights: Weights = None, *, iou: float | None = None) -> Floats:
    """Average precision of each class over .50:.95, or at one of these; (K,) or (B, K).

    Examples
    --------
    >>> found = [([[0, 0, 9, 10]], [0.9], [0])]
    >>> true = [([[0, 0, 10, 10]], [0], [False])]
    >>> per_class_ap(match_boxes(found, true, 2), iou=0.5).round(3)
    array([ 1., nan])
    """
    table = average_precisions(matches, weights, sizes=("all",))[..., 0, :, :]
    return np.asarray(table.mean(axis=-2) if iou is None else table[..., _overlap(iou), :])


def object_counts(matches: Matches, weights: Weights = None) -> Floats:
    """How many objects count by size (all, small, medium, large) and class, (..., 4, K).

    Examples
    --------
    >>> true = [([[0, 0, 10, 10], [0, 0, 40, 40], [0, 0, 9, 9]], [0, 0, 0], [False, False, True])]
    >>> object_counts(match_boxes([([], [], [])], true, 1)).ravel()
    array([2., 1., 1., 0.])
    """
    given = weights_of(weights, matches.n_images)
    return (
        np.moveaxis(matches.objects @ given.T, -1, 0)
        if given.ndim == 2
        else (matches.objects @ given)
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
    given = weights_of(weights, matches.n_images)
    if given.ndim != 1 or not 0 <= label < matches.n_classes:
        raise UsageError(
            f"Expected a class from 0 to {matches.n_classes - 1} and weights of shape (n,), got "
            f"{label} and {given.shape}; do pass the class's index and one weighting."
        )
    rows = np.flatnonzero((matches.label == label) & (given[matches.image] > 0))
    weight = given[matches.image[rows]]
    outcome = matches.outcome[0, _overlap(iou), rows]
    total = float(matches.objects[0, label] @ given)
    precision, score = np.full(len(_RECALLS), 0.0 if total else np.nan), np.full(101, np.nan)
    if total and len(rows):
        hit, counted = np.cumsum(weight * (outcome == 1)), np.cumsum(weight * (outcome != -1))
        best = np.maximum.accumulate((hit / (counted + np.spacing(1)))[::-1])[::-1]
        at = np.searchsorted(hit / total, _RECALLS)
        reached = at < len(rows)
        precision[reached] = best[at[reached]]
        score[reached] = matches.score[rows][at[reached]]
    return PrecisionRecall(recall=_RECALLS.copy(), precision=precision, score=score)


def best_threshold(matches: Matches, weights: Weights = None) -> float:
    """The score from which on boxes have the best F1 at an overlap of .5, all classes together.

    F1 = 2 found / (found + false + objects). Of equal ones, the highest score; 0.5 where no box
    finds anything.

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
    given = weights_of(weights, matches.n_images)
    if given.ndim != 1:
        raise UsageError(f"Expected `weights` of shape (n,), got {given.shape}; do pass one row.")
    order = np.argsort(-matches.score, kind="stable")
    score, weight = matches.score[order], given[matches.image[order]]
    outcome = matches.outcome[0, 0, order]
    hit, counted = np.cumsum(weight * (outcome == 1)), np.cumsum(weight * (outcome != -1))
    last = np.flatnonzero(np.append(score[1:] != score[:-1], len(score) > 0))
    if not len(last) or hit[-1] == 0:
        return 0.5
    f1 = 2 * hit[last] / (counted[last] + (matches.objects[0] @ given).sum())
    return float(score[last[f1.argmax()]])


def _class_precisions(
    matches: Matches, weights: Floats, part: slice, label: int, sizes: list[int]
) -> Floats:
    """Average precision of a class by size and overlap for weights (B, n), (B, sizes, 10)."""
    found = np.full((len(weights), len(sizes), len(IOUS)), np.nan)
    image, by_image = matches.image[part], np.ascontiguousarray(weights.T)
    for at, size in enumerate(sizes):
        total = weights @ matches.objects[size, label]
        known, before = total > 0, np.zeros(0, dtype=np.intp)
        seen = np.zeros((0, len(weights)))
        for row, outcome in enumerate(matches.outcome[size, :, part] if known.any() else ()):
            counts = np.flatnonzero(outcome != -1)
            if not np.array_equal(counts, before):  # often the same for every overlap
                before, seen = counts, np.cumsum(by_image[image[counts]], axis=0)
            hit = np.flatnonzero(outcome[counts] == 1)
            right = np.cumsum(by_image[image[counts[hit]]], axis=0)
            found[known, at, row] = _area(right, seen[hit], total)[known]
    return found


def _area(right: Floats, seen: Floats, total: Floats) -> Floats:
    """Area under the precision's envelope at 101 recalls, (B,), at the boxes that hit (H, B).

    Only those are looked at: between two of them recall stands and precision falls. Each
    stands for the recalls that it is the first to reach.
    """
    if not len(right):
        return np.zeros(len(total))
    precision = right / (seen + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    reached = _recalls_up_to(right / np.where(total > 0, total, 1))
    reached[1:] -= reached[:-1].copy()
    return np.asarray(np.einsum("hb,hb->b", best, reached) / len(_RECALLS))


def _recalls_up_to(recall: Floats) -> Floats:
    """How many of the 101 recalls are at most this; guessed, then held to the exact grid."""
    guess = np.floor(recall * 100)
    over = guess * 0.01 > recall  # the recalls are these products, rounding included
    guess += (guess + 1) * 0.01 <= recall
    guess -= over
    return np.asarray(guess + 1)


def _size(name: str) -> int:
    if name not in SIZES:
        raise UsageError(f"Expected a size of {', '.join(SIZES)}, got {name!r}; do pass one.")
    return list(SIZES).index(name)


def _overlap(iou: float) -> int:
    found = np.flatnonzero(np.isclose(IOUS, iou))
    if not len(found):
        raise UsageError(f"Expected `iou` of .50, .55, ..., .95, got {iou}; do pass 0.5.")
    return int(found[0])
