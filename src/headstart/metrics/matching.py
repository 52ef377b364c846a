"""Which predicted box found which true one: done once for each image, before any metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UsageError

__all__ = ["IOUS", "MOST", "SIZES", "Matches", "box_confusion", "box_overlaps", "match_boxes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]
Image = tuple[Floats, Floats, Ints]
Truth = tuple[Floats, Ints, Bools]

IOUS: Floats = np.linspace(0.5, 0.95, 10)
"""Overlaps from which on a box counts as found, .50 to .95."""

SIZES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
"""Areas of objects in square pixels, both ends included (so that 32 x 32 is in two)."""

MOST = 100
"""Only so many boxes with the highest scores count for each class in an image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches:
    """D predicted boxes and what they found, sorted by class and from the highest score down.

    Parameters
    ----------
    n_images, n_classes : int
    label, image, rank : array of int, shape (D,)
        Class, image, and place among the boxes of this class in this image, from 0.
    score : array of float, shape (D,)
    outcome : array of int8, shape (4, 10, D)
        By object size (`SIZES`) and overlap (`IOUS`): 1 found an object, 0 found none, -1 does
        not count (it lies on a hard object, or it and what it found are of another size).
    objects : array of int, shape (4, K, n)
        By size and class, how many objects each image has to be found.

    Notes
    -----
    Equal scores within an image keep their order. Between images they are sorted by rank,
    corners and outcomes (a miss first), which are the same in whatever order images come.
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

    In each image and class, a box takes the object it overlaps most among those not taken
    yet, if IoU = |A and B| / |A or B| reaches the threshold. Objects that count come before
    those that do not; of equal overlaps, the last object is taken. A hard object may be taken
    by several boxes, and its overlap is |A and B| / |A|, A being the predicted box.

    Parameters
    ----------
    predictions : n tuples (boxes (k, 4), scores (k,), labels (k,))
        Boxes are left, top, right, bottom in pixels; labels are class indices from 0. k may be 0.
    truths : n tuples (boxes (k, 4), labels (k,), hard (k,))
        In pixels of the same image: sizes of objects are measured there.
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
    given, wanted = _checked(predictions, truths, n_classes)
    objects = np.zeros((len(SIZES), n_classes, len(given)), dtype=np.intp)
    columns: list[tuple[Any, ...]] = []
    for at, (one, true) in enumerate(zip(given, wanted, strict=True)):
        for label in np.union1d(one[2], true[1]).tolist():
            mine, theirs = one[2] == label, true[1] == label
            order = np.flatnonzero(mine)[np.argsort(-one[1][mine], kind="stable")[:MOST]]
            boxes, aims, hard = one[0][order], true[0][theirs], true[2][theirs]
            outcome, counts = _outcomes(boxes, aims, hard)
            objects[:, label, at] = counts
            rank = np.arange(len(order))
            place = np.full_like(rank, label), np.full_like(rank, at), rank
            columns.append((*place, one[1][order], boxes, outcome))
    return _sorted(columns, objects)


def _checked(
    predictions: Sequence[tuple[Any, Any, Any]],
    truths: Sequence[tuple[Any, Any, Any]],
    n_classes: int,
) -> tuple[list[Image], list[Truth]]:
    """Predictions and truths as arrays of one type each that fit together."""
    if len(predictions) != len(truths) or not len(truths) or n_classes < 1:
        raise UsageError(
            f"Expected as many predictions as truths and at least one class, got "
            f"{len(predictions)}, {len(truths)} and {n_classes}; do pass one of both per image."
        )
    given, wanted = [], []
    for at, (boxes, scores, labels) in enumerate(predictions):
        score = np.asarray(scores, dtype=np.float64).reshape(-1)
        corners, names = _boxes(boxes, labels, n_classes, f"predictions[{at}]")
        if len(score) != len(names) or not np.isfinite(score).all():
            raise UsageError(
                f"Expected {len(names)} finite scores in predictions[{at}], got {len(score)}, "
                f"{np.isfinite(score).sum()} of them finite; do pass one for each box."
            )
        given.append((corners, score, names))
    for at, (boxes, labels, hard) in enumerate(truths):
        marks = np.asarray(hard, dtype=bool).reshape(-1)
        corners, names = _boxes(boxes, labels, n_classes, f"truths[{at}]")
        if len(marks) != len(names):
            raise UsageError(
                f"Expected {len(names)} marks of hard objects in truths[{at}], got {len(marks)}; "
                "do pass one for each box."
            )
        wanted.append((corners, names, marks))
    return given, wanted


def box_overlaps(boxes: Floats, others: Floats, hard: Bools) -> Floats:
    """IoU of every box with every other, 0 to 1; share of the box where the other is hard.

    Shapes (k, 4), (m, 4) and (m,) give (k, m).

    >>> one, two = np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2], [1, 0, 3, 2]])
    >>> box_overlaps(one, two, np.array([False, True])).round(3)
    array([[0.333, 0.5  ]])
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    area = _areas(boxes)[:, None]
    union = np.where(hard, area, area + _areas(others) - shared)
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0))


def box_confusion(
    predictions: Sequence[tuple[Any, Any, Any]],
    truths: Sequence[tuple[Any, Any, Any]],
    n_classes: int,
    score: float,
    iou: float = 0.5,
) -> NDArray[np.intp]:
    """How often objects of class i (row) were called j (column); the last of both is background.

    Boxes with at least this score and objects of any class are paired, the pair with the
    largest overlap first (of equal ones, that of one class, then the higher score), until none
    reaches ``iou``. The rest are misses (last column) and false alarms (last row). Hard objects
    are in no row; boxes left over that lie on one by at least ``iou`` of their area are dropped.

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
        raise UsageError(f"Expected `iou` above 0 and at most 1, got {iou}; do pass 0.5.")
    table = np.zeros((n_classes + 1, n_classes + 1), dtype=np.intp)
    given, wanted = _checked(predictions, truths, n_classes)
    for (boxes, scores, labels), (aims, names, hard) in zip(given, wanted, strict=True):
        kept = np.flatnonzero(scores >= score)
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        said, true = labels[kept], names[~hard]
        overlaps = box_overlaps(boxes[kept], aims, hard)
        pairs = _paired(overlaps[:, ~hard], said[:, None] == true, iou)
        left: Bools = np.asarray((overlaps[:, hard] < iou).all(axis=1))
        calls, sights = np.full(len(true), n_classes), np.full(len(said), n_classes)
        for box, aim in pairs:
            calls[aim], sights[box], left[box] = said[box], true[aim], False
        np.add.at(table, (true, calls), 1)
        np.add.at(table, (sights[left], said[left]), 1)
    return table


def _paired(overlaps: Floats, same: NDArray[np.bool_], iou: float) -> Iterator[tuple[int, int]]:
    """Pairs of row and column, each used once, from the largest overlap down."""
    rows, columns = np.nonzero(overlaps >= iou)
    order = np.lexsort((columns, rows, ~same[rows, columns], -overlaps[rows, columns]))
    free_rows, free_columns = set(rows.tolist()), set(columns.tolist())
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row in free_rows and column in free_columns:
            free_rows.remove(row)
            free_columns.remove(column)
            yield row, column


def _outcomes(boxes: Floats, aims: Floats, hard: Bools) -> tuple[NDArray[np.int8], Ints]:
    """Outcomes (4, 10, k) of boxes of one class, best first, and how many objects count (4,)."""
    limits = np.array(list(SIZES.values()))[:, :, None]
    unasked: Bools = _outside(aims, limits) | hard
    elsewhere = _outside(boxes, limits)
    outcome = np.where(elsewhere, np.int8(-1), np.int8(0))[:, None].repeat(len(IOUS), axis=1)
    if len(boxes) and len(aims):
        overlaps, floor = box_overlaps(boxes, aims, hard), np.minimum(IOUS, 1 - 1e-10)
        taken = np.zeros((len(SIZES), len(IOUS), len(aims)), dtype=bool)
        for row in np.flatnonzero(overlaps.max(axis=1) >= floor[0]).tolist():
            free = (overlaps[row] >= floor[:, None]) & (~taken | hard)
            counts = (free & ~unasked[:, None]).any(axis=2, keepdims=True)
            open_ = free & (unasked[:, None] != counts)
            best = np.where(open_, overlaps[row], -1.0)[..., ::-1].argmax(axis=2)
            best = len(aims) - 1 - best
            found = open_.any(axis=2)
            size, iou = np.nonzero(found)
            taken[size, iou, best[found]] = True
            outcome[size, iou, row] = np.where(unasked[size, best[found]], -1, 1)
    return outcome, (~unasked).sum(axis=1)


def _sorted(columns: list[tuple[Any, ...]], objects: Ints) -> Matches:
    """All boxes by class, then score, then what does not depend on the order of images."""
    nothing = np.zeros(0, dtype=np.intp)
    empty = np.zeros((len(SIZES), len(IOUS), 0), dtype=np.int8)
    columns = [*columns, (nothing, nothing, nothing, np.zeros(0), np.zeros((0, 4)), empty)]
    label, image, rank, score = (np.concatenate([c[i] for c in columns]) for i in range(4))
    boxes = np.concatenate([column[4] for column in columns])
    outcome = np.concatenate([column[5] for column in columns], axis=2)
    told = outcome.reshape(len(SIZES) * len(IOUS), len(label))
    order = np.lexsort((*told, *boxes.T[::-1], rank, -score, label))
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


def _boxes(boxes: Any, labels: Any, n_classes: int, where: str) -> tuple[Floats, Ints]:
    corners = np.asarray(boxes, dtype=np.float64)
    names = np.asarray(labels)
    if corners.size == 0 and names.size == 0:
        return np.zeros((0, 4)), np.zeros(0, dtype=np.intp)
    if names.ndim != 1 or names.dtype.kind not in "iu" or corners.shape != (len(names), 4):
        raise UsageError(
            f"Expected boxes of shape (k, 4) and k class indices in {where}, got {corners.shape} "
            f"and {names.dtype} of shape {names.shape}; do pass one label for each box."
        )
    if names.min() < 0 or names.max() >= n_classes:
        raise UsageError(
            f"Expected labels from 0 to {n_classes - 1} in {where}, got {names.min()} to "
            f"{names.max()}; do number classes from 0, without a background."
        )
    if not (np.isfinite(corners).all() and (corners[:, 2:] >= corners[:, :2]).all()):
        raise UsageError(
            f"Expected boxes in {where} to be finite with left <= right and top <= bottom, got "
            "one that is not; do pass left, top, right, bottom."
        )
    return corners, names.astype(np.intp)


def _outside(boxes: Floats, limits: Floats) -> Bools:
    area = _areas(boxes)
    return np.asarray((area < limits[:, 0]) | (area > limits[:, 1]))


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
