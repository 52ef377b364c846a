"""Anchors that fit the objects: their sides and shapes from the boxes, and what they reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UnknownNameError, UsageError

__all__ = ["KINDS", "BoxShape", "anchor_recall", "anchors_for", "resolved"]

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
        Of the training images on the canvas: left, top, right, bottom.
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
            "of the training images."
        )
    wide, high = given[:, 2] - given[:, 0], given[:, 3] - given[:, 1]
    if not ((wide > 0) & (high > 0)).all():
        raise UsageError("Expected boxes with an area, got one without; do leave it out.")
    return wide, high


RATIOS = (0.5, 1.0, 2.0)
KINDS: dict[str, dict[str, Any]] = {
    "faster-rcnn": {
        "first_stride": 4,
        "channels": 128,
        "sizes": (),
        "ratios": RATIOS,
        "norm": "none",
        "rpn_convs": 1,
        "box_convs": 0,
        "width": 256,
        "pooled": 7,
        "regions": 64,
        "training_proposals": (500, 200),
        "proposals": (300, 100),
    },
    "retinanet": {
        "first_stride": 8,
        "channels": 128,
        "sizes": (),
        "ratios": RATIOS,
        "extra": "pool",
        "convs": 2,
        "norm": "group",
        "box_loss": "giou",
        "candidates": 300,
    },
    "fcos": {
        "first_stride": 8,
        "channels": 128,
        "extra": "pool",
        "convs": 2,
        "candidates": 300,
    },
    "ssdlite": {
        "first_stride": 8,
        "sizes": (),
        "ratios": RATIOS,
        "extra_levels": 2,
        "candidates": 300,
    },
}
"""The kinds, with what each can be told and what it does when it is not told."""
CHOICES = {
    "first_stride": (4, 8, 16),
    "extra": ("pool", "p6p7", "p6p7-of-map"),
    "norm": ("none", "group", "batch"),
    "box_loss": ("l1", "giou"),
}
NORMS = {"faster-rcnn": ("none", "batch"), "retinanet": ("none", "group")}
MAY_BE_ZERO = {"box_convs", "extra_levels", "convs"}
MOST = 8192
"""Largest number among the options: a larger one, in a file, is a way to take memory."""
LAST_STRIDE = 32


@dataclass(frozen=True, kw_only=True)
class BoxShape:
    """Everything of a head but its numbers.

    Parameters
    ----------
    kind : str
        A key of ``KINDS``.
    widths, strides : tuple of int
        Channels, and pixels of the canvas for one place, of every map that is read.
    n_classes : int
        Without a background.
    canvas : (int, int)
        Height and width of what the backbone reads, in pixels.
    options : mapping
        All of ``KINDS[kind]``; ``resolved`` makes it.

    Examples
    --------
    >>> shape = BoxShape(
    ...     kind="fcos",
    ...     widths=(128, 256, 512),
    ...     strides=(8, 16, 32),
    ...     n_classes=3,
    ...     canvas=(64, 90),
    ...     options=resolved("fcos", (8, 16, 32), (64, 90), {}),
    ... )
    >>> shape.levels, shape.padded, shape.grids
    ((8, 16, 32, 64), (64, 96), ((8, 12), (4, 6), (2, 3), (1, 2)))
    """

    kind: str
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    n_classes: int
    canvas: tuple[int, int]
    options: Mapping[str, Any]

    @property
    def levels(self) -> tuple[int, ...]:
        """Pixels for one place of every level of the pyramid, those made from others included."""
        return _levels(self.kind, self.strides, self.options)

    @property
    def padded(self) -> tuple[int, int]:
        """The canvas, filled up so that every map has a whole number of places."""
        last = self.strides[-1]
        height, width = (-(-side // last) * last for side in self.canvas)
        return height, width

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every level; those made from others have half, rounded up."""
        found = [(self.padded[0] // s, self.padded[1] // s) for s in self.strides]
        while len(found) < len(self.levels):
            found.append(((found[-1][0] + 1) // 2, (found[-1][1] + 1) // 2))
        return tuple(found)

    @property
    def sizes(self) -> tuple[tuple[float, ...], ...]:
        """Sides of the anchors of every level; points, which have none, stand for a place."""
        if self.kind == "fcos":
            return tuple((float(stride),) for stride in self.levels)
        return tuple(tuple(level) for level in self.options["sizes"])

    @property
    def ratios(self) -> tuple[float, ...]:
        """Height over width of the anchors."""
        return (1.0,) if self.kind == "fcos" else tuple(self.options["ratios"])


def resolved(
    kind: str, strides: Sequence[int], canvas: tuple[int, int], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Check what a head is told, and say the rest.

    Parameters
    ----------
    kind : str
    strides : sequence of int
        Of the maps that are read.
    canvas : (int, int)
        Height and width.
    options : mapping
        Some of ``KINDS[kind]``.

    Returns
    -------
    dict
        All of ``KINDS[kind]``, as plain values and tuples.

    Raises
    ------
    UnknownNameError
        If there is no such kind or option.
    UsageError
        If a value cannot be meant.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of head", kind, KINDS)
    for name in options:
        if name not in KINDS[kind]:
            raise UnknownNameError(f"option of {kind}", name, KINDS[kind])
    found = KINDS[kind] | {name: _frozen(value) for name, value in options.items()}
    for name, value in found.items():
        _require_option(kind, name, value)
    levels = _levels(kind, strides, found)
    if "sizes" in found:
        found["sizes"] = found["sizes"] or _usual_sizes(kind, levels, canvas)
        counts = {len(level) for level in found["sizes"]}
        if len(found["sizes"]) != len(levels) or len(counts) != 1:
            raise UsageError(
                f"Expected `sizes` to hold as many sides of anchors for each of {len(levels)} "
                f"levels (strides {levels}), got {found['sizes']}; do give one tuple a level."
            )
    return found


def _levels(kind: str, strides: Sequence[int], options: Mapping[str, Any]) -> tuple[int, ...]:
    extra = 1 if options.get("extra", "pool") == "pool" else 2
    extra = int(options.get("extra_levels", extra))
    return (*strides, *(strides[-1] * 2**i for i in range(1, extra + 1)))


def _usual_sizes(
    kind: str, levels: Sequence[int], canvas: tuple[int, int]
) -> tuple[tuple[float, ...], ...]:
    if kind == "faster-rcnn":
        return tuple((4.0 * stride,) for stride in levels)
    if kind == "retinanet":
        return tuple((4.0 * stride, 4.0 * stride * math.sqrt(2)) for stride in levels)
    # Liu et al. 2016, SSD, section 2.2, from 0.2 to 0.95 as torchvision does it.
    last = len(levels) - 1
    shares = [0.2 + 0.75 * k / max(last, 1) for k in range(last + 1)] + [1.0]
    sides = [share * min(canvas) for share in shares]
    return tuple((a, math.sqrt(a * b)) for a, b in pairwise(sides))


def _frozen(value: Any) -> Any:
    """Lists, as JSON has them, become tuples."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def _require_option(kind: str, name: str, value: Any) -> None:
    usual = KINDS[kind][name]
    choices = NORMS[kind] if name == "norm" else CHOICES.get(name)
    if choices is not None:
        good, meant = value in choices, f"one of {choices}"
    elif name in {"sizes", "ratios"}:
        good, meant = _are_sides(name, value), "positive numbers"
    elif isinstance(usual, tuple):
        good = isinstance(value, tuple) and len(value) == len(usual) and all(map(_is_count, value))
        meant = f"{len(usual)} whole numbers from 1 to {MOST}"
    else:
        good = _is_count(value) or (name in MAY_BE_ZERO and value == 0 and type(value) is int)
        meant = f"a whole number up to {MOST}"
    if good and name == "channels":
        good, meant = value % 64 == 0, "a multiple of 64"  # normalised in 32 groups, none of one
    if good and name in {"convs", "box_convs", "rpn_convs", "extra_levels"}:
        good, meant = value <= 8, "at most 8"
    if not good:
        raise UsageError(f"Expected `{name}` of {kind} to be {meant}, got {value!r}.")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST


def _are_sides(name: str, value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) > 16 or (name == "ratios" and not value):
        return False
    if name == "sizes":
        return all(isinstance(v, tuple) and _are_sides("ratios", v) for v in value)
    return all(type(v) in {int, float} and 0 < v <= MOST for v in value)
