"""Matching of predicted boxes to objects, done once for each image before any metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UsageError

__all__ = ["IOUS", "MAX_BOXES", "SIZES", "Matches", "box_confusion", "box_overlaps", "match_boxes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]
Image = tuple[Floats, Floats, Ints]
Truth = tuple[Floats, Ints, Bools]

IOUS: Floats = np.linspace(0.5, 0.95, 10)
"""Thresholds of the overlap at which a box matches an object, .50 to .95."""

SIZES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
"""Areas of objects in square pixels, both ends included (so 32 x 32 counts in two sizes)."""

MAX_BOXES = 100
"""Number of boxes with the highest scores that count for each class in an image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches:
    """D predicted boxes with their outcomes, sorted by class and then by score, highest first.

    Parameters
    ----------
    n_images, n_classes : int
    label, image, rank : array of int, shape (D,)
        Class, image, and rank among the boxes of this class in this image, from 0.
    score : array of float, shape (D,)
    outcome : array of int8, shape (4, 10, D)
        By object size (`SIZES`) and overlap (`IOUS`): 1 for a box that matches an object, 0 for
        one that does not, -1 for one that is ignored (it matches a hard object or one of another
        size, or matches nothing and has another size itself).
    objects : array of int, shape (4, K, n)
        Number of objects that count in each image, by size and class.

    Notes
    -----
    Equal scores within an image keep their order in the matching. Between images they are sorted
    by rank, corners and outcomes, so that the order of the images does not change a bit; the
    metrics give boxes of equal scores one threshold.
    """

    n_images: int
    n_classes: int
    label: Ints
    image: Ints
    rank: Ints
    score: Floats
    outcome: NDArray[np.int8]
    objects: Ints


def match_boxes(
    predictions: Sequence[tuple[Any, Any, Any]],
    truths: Sequence[tuple[Any, Any, Any]],
    n_classes: int,
) -> Matches:
    """Match predicted boxes to true ones as COCO does: greedily, the highest score first.

    In each image and class, a box matches the object with the largest overlap among those not
    matched yet, if IoU = |A and B| / |A or B| reaches the threshold. Objects that count come
    before ignored ones; of equal overlaps, the last object is matched. A hard object may be
    matched by several boxes, and its overlap is |A and B| / |A|, A being the predicted box.

    Parameters
    ----------
    predictions : n tuples (boxes (k, 4), scores (k,), labels (k,))
        Boxes are left, top, right, bottom in pixels; labels are class indices from 0. k may be 0.
    truths : n tuples (boxes (k, 4), labels (k,), hard (k,))
        In pixels of the same image, in which the sizes of objects are measured.
    n_classes : int

    Returns
    -------
    Matches

    Raises
    ------
    UsageError
        If numbers, shapes or labels do not fit, or boxes are not finite or end before they start.

    References
    ----------
    Lin et al. (2014), "Microsoft COCO: Common objects in context", and its evaluation server's
    definition; Everingham et al. (2010), "The PASCAL visual object classes challenge", 4.2.

    Examples
    --------
    >>> found = [([[0, 0, 9, 10], [0, 0, 10, 10]], [0.9, 0.8], [0, 0])]
    >>> true = [([[0, 0, 10, 10]], [0], [False])]
    >>> match_boxes(found, true, 1).outcome[0, [0, -1]]
    array([[1, 0],
           [0, 1]], dtype=int8)
    """
    checked = _check_boxes(predictions, truths, n_classes)
    objects = np.zeros((len(SIZES), n_classes, len(checked[0])), dtype=np.intp)
    columns: list[tuple[Any, ...]] = []
    for image, (prediction, truth) in enumerate(zip(*checked, strict=True)):
        boxes, scores, labels = prediction
        true_boxes, true_labels, hard = truth
        for label in np.union1d(labels, true_labels).tolist():
            own, own_true = labels == label, true_labels == label
            order = np.flatnonzero(own)[np.argsort(-scores[own], kind="stable")[:MAX_BOXES]]
            outcome, counts = _outcomes(boxes[order], true_boxes[own_true], hard[own_true])
            objects[:, label, image] = counts
            rank = np.arange(len(order))
            ids = np.full_like(rank, label), np.full_like(rank, image), rank
            columns.append((*ids, scores[order], boxes[order], outcome))
    return _sort_matches(columns, objects)


def _check_boxes(
    predictions: Sequence[tuple[Any, Any, Any]],
    truths: Sequence[tuple[Any, Any, Any]],
    n_classes: int,
) -> tuple[list[Image], list[Truth]]:
    """Check predictions and truths; return them as arrays of one type each."""
    if len(predictions) != len(truths) or not len(truths) or n_classes < 1:
        raise UsageError(
            f"Expected as many predictions as truths and at least one class, got "
            f"{len(predictions)}, {len(truths)} and {n_classes}. Pass one of each per image."
        )
    checked_predictions, checked_truths = [], []
    for index, (boxes, scores, labels) in enumerate(predictions):
        score_array = np.asarray(scores, dtype=np.float64).reshape(-1)
        box_array, classes = _box_arrays(boxes, labels, n_classes, f"predictions[{index}]")
        if len(score_array) != len(classes) or not np.isfinite(score_array).all():
            raise UsageError(
                f"Expected {len(classes)} finite scores in predictions[{index}], got "
                f"{len(score_array)}, {np.isfinite(score_array).sum()} of them finite. Pass one "
                "for each box."
            )
        checked_predictions.append((box_array, score_array, classes))
    for index, (boxes, labels, hard) in enumerate(truths):
        is_hard = np.asarray(hard, dtype=bool).reshape(-1)
        box_array, classes = _box_arrays(boxes, labels, n_classes, f"truths[{index}]")
        if len(is_hard) != len(classes):
            raise UsageError(
                f"Expected {len(classes)} flags of hard objects in truths[{index}], got "
                f"{len(is_hard)}. Pass one for each box."
            )
        checked_truths.append((box_array, classes, is_hard))
    return checked_predictions, checked_truths


def box_overlaps(boxes: Floats, others: Floats, hard: Bools) -> Floats:
    """IoU of each box with each other box, 0 to 1; for hard ones the covered share of the box.

    Shapes (k, 4), (m, 4) and (m,) give (k, m).

    >>> boxes, others = np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2], [1, 0, 3, 2]])
    >>> box_overlaps(boxes, others, np.array([False, True])).round(3)
    array([[0.333, 0.5  ]])
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = np.prod(np.maximum(high - low, 0), axis=-1)
    area = _areas(boxes)[:, None]
    union = np.where(hard, area, area + _areas(others) - intersection)
    zeros = np.zeros_like(intersection)
    return np.asarray(np.divide(intersection, union, out=zeros, where=intersection > 0))


def box_confusion(
    predictions: Sequence[tuple[Any, Any, Any]],
    truths: Sequence[tuple[Any, Any, Any]],
    n_classes: int,
    score: float,
    iou: float = 0.5,
) -> NDArray[np.intp]:
    """Confusion matrix of objects: true class in rows, predicted class in columns.

    The last row and column stand for the background. Boxes with at least this score and objects
    of any class are paired, the pair with the largest overlap first (of equal ones, a pair of
    one class, then the higher score), until none reaches ``iou``. The rest are misses (last
    column) and false alarms (last row). Hard objects are in no row; unpaired boxes that have at
    least ``iou`` of their area on one are ignored.

    Parameters
    ----------
    predictions, truths, n_classes
        As of `match_boxes`.
    score : float
    iou : float
        Above 0, at most 1.

    Returns
    -------
    array of int, shape (K + 1, K + 1)

    Raises
    ------
    UsageError
        As `match_boxes`, and if ``iou`` is out of range.

    Examples
    --------
    >>> found = [([[0, 0, 9, 10], [50, 0, 60, 10]], [0.9, 0.8], [1, 0])]
    >>> true = [([[0, 0, 10, 10]], [0], [False])]
    >>> box_confusion(found, true, 2, score=0.5)
    array([[0, 1, 0],
           [0, 0, 0],
           [1, 0, 0]])
    """
    if not 0 < iou <= 1:
        raise UsageError(f"Expected `iou` above 0 and at most 1, got {iou}. Pass 0.5.")
    table = np.zeros((n_classes + 1, n_classes + 1), dtype=np.intp)
    checked_predictions, checked_truths = _check_boxes(predictions, truths, n_classes)
    for (boxes, scores, labels), (objects, object_labels, hard) in zip(
        checked_predictions, checked_truths, strict=True
    ):
        selected = np.flatnonzero(scores >= score)
        selected = selected[np.argsort(-scores[selected], kind="stable")]
        predicted, actual = labels[selected], object_labels[~hard]
        overlaps = box_overlaps(boxes[selected], objects, hard)
        pairs = _pair_greedily(overlaps[:, ~hard], predicted[:, None] == actual, iou)
        unmatched: Bools = np.asarray((overlaps[:, hard] < iou).all(axis=1))
        predicted_as = np.full(len(actual), n_classes)
        matched_to = np.full(len(predicted), n_classes)
        for row, column in pairs:
            predicted_as[column], matched_to[row] = predicted[row], actual[column]
            unmatched[row] = False
        np.add.at(table, (actual, predicted_as), 1)
        np.add.at(table, (matched_to[unmatched], predicted[unmatched]), 1)
    return table


def _pair_greedily(
    overlaps: Floats, same: NDArray[np.bool_], iou: float
) -> Iterator[tuple[int, int]]:
    """Pair rows and columns, each used once, from the largest overlap down."""
    rows, columns = np.nonzero(overlaps >= iou)
    order = np.lexsort((columns, rows, ~same[rows, columns], -overlaps[rows, columns]))
    free_rows, free_columns = set(rows.tolist()), set(columns.tolist())
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row in free_rows and column in free_columns:
            free_rows.remove(row)
            free_columns.remove(column)
            yield row, column


def _outcomes(boxes: Floats, objects: Floats, hard: Bools) -> tuple[NDArray[np.int8], Ints]:
    """Outcomes (4, 10, k) of boxes of one class, best first, and the counts of objects (4,)."""
    limits = np.array(list(SIZES.values()))[:, :, None]
    is_ignored: Bools = _outside(objects, limits) | hard
    is_other_size = _outside(boxes, limits)
    outcome = np.where(is_other_size, np.int8(-1), np.int8(0))[:, None].repeat(len(IOUS), axis=1)
    if len(boxes) and len(objects):
        overlaps, thresholds = box_overlaps(boxes, objects, hard), np.minimum(IOUS, 1 - 1e-10)
        is_taken = np.zeros((len(SIZES), len(IOUS), len(objects)), dtype=bool)
        for row in np.flatnonzero(overlaps.max(axis=1) >= thresholds[0]).tolist():
            candidates = (overlaps[row] >= thresholds[:, None]) & (~is_taken | hard)
            # An ignored object is matched only if no object that counts can be.
            has_counted = (candidates & ~is_ignored[:, None]).any(axis=2, keepdims=True)
            allowed = candidates & (is_ignored[:, None] != has_counted)
            # Reversed, because the last of equal overlaps wins and argmax returns the first.
            best = np.where(allowed, overlaps[row], -1.0)[..., ::-1].argmax(axis=2)
            best = len(objects) - 1 - best
            is_match = allowed.any(axis=2)
            size, iou = np.nonzero(is_match)
            is_taken[size, iou, best[is_match]] = True
            outcome[size, iou, row] = np.where(is_ignored[size, best[is_match]], -1, 1)
    return outcome, (~is_ignored).sum(axis=1)


def _sort_matches(columns: list[tuple[Any, ...]], objects: Ints) -> Matches:
    """Sort all boxes by class, then score, then values that ignore the order of the images."""
    no_indices = np.zeros(0, dtype=np.intp)
    empty = np.zeros((len(SIZES), len(IOUS), 0), dtype=np.int8)
    columns = [*columns, (no_indices, no_indices, no_indices, np.zeros(0), np.zeros((0, 4)), empty)]
    label, image, rank, score = (np.concatenate([c[i] for c in columns]) for i in range(4))
    boxes = np.concatenate([column[4] for column in columns])
    outcome = np.concatenate([column[5] for column in columns], axis=2)
    outcome_keys = outcome.reshape(len(SIZES) * len(IOUS), len(label))
    order = np.lexsort((*outcome_keys, *boxes.T[::-1], rank, -score, label))
    return Matches(
        n_images=objects.shape[2],
        n_classes=objects.shape[1],
        label=label[order],
        image=image[order],
        rank=rank[order],
        score=score[order],
        outcome=np.ascontiguousarray(outcome[:, :, order]),
        objects=objects,
    )


def _box_arrays(boxes: Any, labels: Any, n_classes: int, source: str) -> tuple[Floats, Ints]:
    box_array = np.asarray(boxes, dtype=np.float64)
    classes = np.asarray(labels)
    if box_array.size == 0 and classes.size == 0:
        return np.zeros((0, 4)), np.zeros(0, dtype=np.intp)
    if classes.ndim != 1 or classes.dtype.kind not in "iu" or box_array.shape != (len(classes), 4):
        raise UsageError(
            f"Expected boxes of shape (k, 4) and k class indices in {source}, got "
            f"{box_array.shape} and {classes.dtype} of shape {classes.shape}. Pass one label for "
            "each box."
        )
    if classes.min() < 0 or classes.max() >= n_classes:
        raise UsageError(
            f"Expected labels from 0 to {n_classes - 1} in {source}, got {classes.min()} to "
            f"{classes.max()}. Number classes from 0, without a background."
        )
    is_ordered = (box_array[:, 2:] >= box_array[:, :2]).all(axis=1)
    is_valid = is_ordered & np.isfinite(box_array).all(axis=1)
    if not is_valid.all():
        raise UsageError(
            f"Expected boxes in {source} to be finite with left <= right and top <= bottom, got "
            f"{box_array[~is_valid][0].tolist()}. Pass left, top, right, bottom in pixels."
        )
    return box_array, classes.astype(np.intp)


def _outside(boxes: Floats, limits: Floats) -> Bools:
    area = _areas(boxes)
    return np.asarray((area < limits[:, 0]) | (area > limits[:, 1]))


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
