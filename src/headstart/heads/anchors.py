"""Anchors that fit the objects: their sides and shapes from the boxes, and what they reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UsageError

__all__ = ["anchor_recall", "anchors_for"]

ENDS = (0.05, 0.95)
MOST_RATIO = 3.0
LEAST_PLACES, MOST_PLACES = 2.0, 16.0
"""Sides of an anchor in places of its level: fewer places and most objects fall between two
anchors, more and a place does not see the object."""

MOST_JUDGED = 10_000
"""Boxes that tell the reach to a percent, within seconds."""
AT_ONCE = 65_536
"""Pairs of a box and an anchor, few enough for a processor's cache."""


def anchors_for(
    boxes: NDArray[np.floating[Any]], strides: Sequence[int], *, per_level: int = 1
) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
    """Choose sides and shapes of anchors from the objects to be found.

    Sides are spaced evenly in their logarithm from the 5 % to the 95 % quantile of the square
    root of the boxes' areas, small ones on fine levels; each is brought between 2 and 16 places
    of its level, on the finest without the lower limit. Shapes are three: the middle one, and
    the quantiles of 10 % and 90 % of height over width, between 1/3 and 3.

    Parameters
    ----------
    boxes : array, shape (n, 4)
        Of the training pictures on the canvas: left, top, right, bottom.
    strides : sequence of int
        Pixels for one place of every level, fine ones first.
    per_level : int
        Sides of each level.

    Returns
    -------
    sizes : tuple of tuple of float
        In pixels, ``per_level`` for each stride.
    ratios : tuple of float
        Height over width; fewer than three where they are within 10 % of each other.

    Raises
    ------
    UsageError
        If there are no boxes, or one without an area.

    Examples
    --------
    >>> squares = np.array([[0, 0, side, side] for side in (16, 32, 64, 128)])
    >>> sizes, ratios = anchors_for(squares, (4, 8, 16))
    >>> [round(level[0]) for level in sizes], ratios
    ([18, 45, 115], (1.0,))
    """
    wide, high = _sides(boxes)
    low, top = np.quantile(np.log(wide * high) / 2, ENDS)
    levels = len(strides)
    spaced = np.exp(np.linspace(low, top, levels * per_level)).reshape(levels, per_level)
    places = np.array(strides, dtype=np.float64)[:, None]
    least = LEAST_PLACES * places
    least[0] = 0  # what is too small for this level, no level sees better
    kept = np.clip(spaced, least, MOST_PLACES * places)
    sizes = tuple(tuple(float(side) for side in level) for level in kept)
    logs = np.log(MOST_RATIO)
    shapes = np.clip(np.quantile(np.log(high / wide), (0.1, 0.5, 0.9)), -logs, logs)
    ratios: list[float] = []
    for ratio in np.exp(shapes):
        if not ratios or ratio > 1.1 * ratios[-1]:
            ratios.append(round(float(ratio), 4))
    return sizes, tuple(ratios)


def anchor_recall(
    boxes: NDArray[np.floating[Any]], anchors: NDArray[np.floating[Any]], *, iou: float = 0.5
) -> float:
    """Share of the boxes that some anchor overlaps enough to be taught by it.

    Parameters
    ----------
    boxes : array, shape (n, 4)
        On the canvas. Of more than 10 000, as many are judged, evenly spaced among them.
    anchors : array, shape (m, 4)
        All of them, such as ``BoxHead.anchors()``.
    iou : float
        Intersection over union that is enough, from 0 to 1.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    UsageError
        If there are no boxes, or one without an area.

    Examples
    --------
    >>> anchor = np.array([[0.0, 0.0, 8.0, 8.0]])
    >>> anchor_recall(np.array([[0, 0, 8, 4], [0, 0, 8, 3], [0, 4, 8, 12]]), anchor)
    0.3333333333333333
    """
    _sides(boxes)
    judged = np.asarray(boxes, dtype=np.float64)
    if len(judged) > MOST_JUDGED:
        judged = judged[np.linspace(0, len(judged) - 1, MOST_JUDGED).astype(np.intp)]
    left, top, right, bottom = np.ascontiguousarray(np.asarray(anchors, dtype=np.float64).T)
    areas = (right - left) * (bottom - top)
    reached, step = 0, max(1, AT_ONCE // max(1, len(areas)))
    for start in range(0, len(judged), step):
        x0, y0, x1, y1 = judged[start : start + step].T[:, :, None]
        wide = np.maximum(np.minimum(right, x1) - np.maximum(left, x0), 0)
        shared = wide * np.maximum(np.minimum(bottom, y1) - np.maximum(top, y0), 0)
        union = areas + (x1 - x0) * (y1 - y0) - shared
        reached += int((shared >= iou * union).any(axis=1).sum())
    return reached / len(judged)


def _sides(boxes: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    given = np.asarray(boxes, dtype=np.float64)
    if given.ndim != 2 or given.shape[1:] != (4,) or not len(given):
        raise UsageError(
            f"Expected boxes of shape (n, 4), at least one, got {given.shape}; do give the boxes "
            "of the training pictures."
        )
    wide, high = given[:, 2] - given[:, 0], given[:, 3] - given[:, 1]
    if not ((wide > 0) & (high > 0)).all():
        raise UsageError("Expected boxes with an area, got one without; do leave it out.")
    return wide, high
