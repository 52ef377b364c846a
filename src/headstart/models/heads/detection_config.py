"""Architecture of detection heads: kinds, options, and anchors fitted to the boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UnknownNameError, UsageError

__all__ = [
    "DETECTION_HEADS",
    "SELECTION_SETTINGS",
    "BoxSelection",
    "BoxShape",
    "anchor_recall",
    "fit_anchors",
    "lists_to_tuples",
    "resolve_options",
    "tuples_to_lists",
]

SIDE_QUANTILES = (0.05, 0.95)
MAX_RATIO = 3.0
MIN_CELLS, MAX_CELLS = 2.0, 16.0
"""Range of an anchor's side, in cells of its level. With fewer cells most objects fall between two
anchors; with more, one cell's receptive field does not cover the object."""

MAX_RECALL_BOXES = 10_000
"""Maximum number of boxes for the anchor recall: it is then estimated to a percent in seconds."""
PAIRS_AT_ONCE = 65_536
"""Pairs of a box and an anchor that are compared at once; they fit into a processor's cache."""

RATIOS = (0.5, 1.0, 2.0)
DETECTION_HEADS: dict[str, dict[str, Any]] = {
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
"""Kinds of detection heads, with the options of each and their defaults."""
CHOICES = {
    "first_stride": (4, 8, 16),
    "extra": ("pool", "p6p7", "p6p7-of-map"),
    "norm": ("none", "group", "batch"),
    "box_loss": ("l1", "giou"),
}
NORMS = {"faster-rcnn": ("none", "batch"), "retinanet": ("none", "group")}
MAY_BE_ZERO = {"box_convs", "extra_levels", "convs"}
MAX_VALUE = 8192
"""Largest number in the description of a head or a network: a larger one, in a file from an
untrusted source, could exhaust the memory."""
LAST_STRIDE = 32

SELECTION_SETTINGS = ("nms", "class_agnostic_nms", "max_boxes")
"""Settings of a `BoxSelection`, as flags and keywords name them."""

MAX_BOXES_LIMIT = 10_000
"""Largest ``max_boxes``: a head never has more candidates that are worth showing."""


@dataclass(frozen=True, kw_only=True)
class BoxSelection:
    """Choice of a detector's boxes: non-maximum suppression, and the largest number of boxes.

    Parameters
    ----------
    nms : float or None
        Of two boxes that overlap by more than this intersection over union, above 0 and up to 1,
        the one with the lower score is removed. None is the head's own: 0.5 for Faster R-CNN and
        RetinaNet, 0.55 for SSDLite, 0.6 for FCOS. 1 removes no box.
    class_agnostic_nms : bool
        Compare boxes of different classes, too; by default only those of the same class.
    max_boxes : int
        Largest number of boxes for an image, those with the best scores.

    Raises
    ------
    UsageError
        If a value is out of its range.

    Examples
    --------
    >>> BoxSelection(nms=0.3, max_boxes=300)
    BoxSelection(nms=0.3, class_agnostic_nms=False, max_boxes=300)
    """

    nms: float | None = None
    class_agnostic_nms: bool = False
    max_boxes: int = 100

    def __post_init__(self) -> None:
        is_number = isinstance(self.nms, int | float) and not isinstance(self.nms, bool)
        if self.nms is not None and not (is_number and 0 < self.nms <= 1):
            raise UsageError(
                f"`nms` must be an overlap above 0 and up to 1, got {self.nms!r}. Pass a value "
                "such as --nms 0.5."
            )
        if not isinstance(self.class_agnostic_nms, bool):
            raise UsageError(
                f"`class_agnostic_nms` must be True or False, got {self.class_agnostic_nms!r}. "
                "Pass --class-agnostic-nms, or leave it out."
            )
        if type(self.max_boxes) is not int or not 1 <= self.max_boxes <= MAX_BOXES_LIMIT:
            raise UsageError(
                f"`max_boxes` must be a whole number from 1 to {MAX_BOXES_LIMIT}, got "
                f"{self.max_boxes!r}. Pass a value such as --max-boxes 300."
            )


def fit_anchors(
    boxes: NDArray[np.floating[Any]], strides: Sequence[int], *, per_level: int = 1
) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
    """Choose sides and aspect ratios of anchors from the training boxes.

    Sides are spaced evenly in their logarithm from the 5 % to the 95 % quantile of the square
    root of the boxes' areas, small sides on fine levels. Each is clipped to 2 to 16 cells of its
    level; the finest level has no lower limit. The three aspect ratios are the 10 %, 50 % and
    90 % quantiles of height over width, clipped to 1/3 to 3.

    Parameters
    ----------
    boxes : array, shape (n, 4)
        Of the training images on the canvas: left, top, right, bottom.
    strides : sequence of int
        Pixels for one cell of every level, from fine to coarse.
    per_level : int
        Number of sides for each level.

    Returns
    -------
    sizes : tuple of tuple of float
        In pixels, ``per_level`` for each stride.
    ratios : tuple of float
        Height over width; fewer than three if they are within 10 % of each other.

    Raises
    ------
    UsageError
        If there are no boxes, or one without an area.

    Examples
    --------
    >>> squares = np.array([[0, 0, side, side] for side in (16, 32, 64, 128)])
    >>> sizes, ratios = fit_anchors(squares, (4, 8, 16))
    >>> [round(level[0]) for level in sizes], ratios
    ([18, 45, 115], (1.0,))
    """
    widths, heights = _widths_and_heights(boxes)
    low, high = np.quantile(np.log(widths * heights) / 2, SIDE_QUANTILES)
    levels = len(strides)
    spaced = np.exp(np.linspace(low, high, levels * per_level)).reshape(levels, per_level)
    cells = np.array(strides, dtype=np.float64)[:, None]
    least = MIN_CELLS * cells
    least[0] = 0  # no finer level exists for objects that are too small for this one
    sides = np.clip(spaced, least, MAX_CELLS * cells)
    sizes = tuple(tuple(float(side) for side in level) for level in sides)
    limit = np.log(MAX_RATIO)
    log_ratios = np.quantile(np.log(heights / widths), (0.1, 0.5, 0.9))
    ratios: list[float] = []
    for ratio in np.exp(np.clip(log_ratios, -limit, limit)):
        if not ratios or ratio > 1.1 * ratios[-1]:
            ratios.append(round(float(ratio), 4))
    return sizes, tuple(ratios)


def anchor_recall(
    boxes: NDArray[np.floating[Any]], anchors: NDArray[np.floating[Any]], *, iou: float = 0.5
) -> float:
    """Share of the boxes that some anchor overlaps enough to be trained on them.

    Parameters
    ----------
    boxes : array, shape (n, 4)
        On the canvas. Of more than 10 000 boxes, 10 000 evenly spaced ones are used.
    anchors : array, shape (m, 4)
        All anchors, such as ``BoxHead.anchors()``.
    iou : float
        Least intersection over union, from 0 to 1.

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
    _widths_and_heights(boxes)
    sample = np.asarray(boxes, dtype=np.float64)
    if len(sample) > MAX_RECALL_BOXES:
        sample = sample[np.linspace(0, len(sample) - 1, MAX_RECALL_BOXES).astype(np.intp)]
    left, top, right, bottom = np.ascontiguousarray(np.asarray(anchors, dtype=np.float64).T)
    areas = (right - left) * (bottom - top)
    n_matched, step = 0, max(1, PAIRS_AT_ONCE // max(1, len(areas)))
    for start in range(0, len(sample), step):
        x0, y0, x1, y1 = sample[start : start + step].T[:, :, None]
        overlap_width = np.maximum(np.minimum(right, x1) - np.maximum(left, x0), 0)
        overlap_height = np.maximum(np.minimum(bottom, y1) - np.maximum(top, y0), 0)
        intersection = overlap_width * overlap_height
        union = areas + (x1 - x0) * (y1 - y0) - intersection
        n_matched += int((intersection >= iou * union).any(axis=1).sum())
    return n_matched / len(sample)


def _widths_and_heights(
    boxes: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1:] != (4,) or not len(boxes):
        raise UsageError(
            f"Expected boxes of shape (n, 4), at least one, got shape {boxes.shape}. Pass the "
            "boxes of the training images."
        )
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    has_area = (widths > 0) & (heights > 0)
    if not has_area.all():
        raise UsageError(
            f"Expected boxes with an area, got {boxes[~has_area][0].tolist()}. Remove this box."
        )
    return widths, heights


@dataclass(frozen=True, kw_only=True)
class BoxShape:
    """Architecture of a detection head: everything but its tensors.

    Parameters
    ----------
    kind : str
        A key of ``DETECTION_HEADS``.
    widths, strides : tuple of int
        Channels, and pixels of the canvas for one cell, of every map that the head reads.
    n_classes : int
        Without a background.
    canvas : (int, int)
        Height and width of the backbone's input, in pixels.
    options : mapping
        All of ``DETECTION_HEADS[kind]``, from ``resolve_options``.

    Examples
    --------
    >>> shape = BoxShape(
    ...     kind="fcos",
    ...     widths=(128, 256, 512),
    ...     strides=(8, 16, 32),
    ...     n_classes=3,
    ...     canvas=(64, 90),
    ...     options=resolve_options("fcos", (8, 16, 32), (64, 90), {}),
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
        """Pixels for one cell of every level of the pyramid, extra levels included."""
        return _level_strides(self.strides, self.options)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the canvas, padded to a multiple of the last stride."""
        last = self.strides[-1]
        height, width = (-(-side // last) * last for side in self.canvas)
        return height, width

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every level; each extra level has half, rounded up."""
        height, width = self.padded
        grids = [(height // stride, width // stride) for stride in self.strides]
        while len(grids) < len(self.levels):
            rows, columns = grids[-1]
            grids.append(((rows + 1) // 2, (columns + 1) // 2))
        return tuple(grids)

    @property
    def sizes(self) -> tuple[tuple[float, ...], ...]:
        """Sides of the anchors of every level; for FCOS, which has none, the side of a cell."""
        if self.kind == "fcos":
            return tuple((float(stride),) for stride in self.levels)
        return tuple(tuple(level) for level in self.options["sizes"])

    @property
    def ratios(self) -> tuple[float, ...]:
        """Height over width of the anchors."""
        return (1.0,) if self.kind == "fcos" else tuple(self.options["ratios"])


def resolve_options(
    kind: str, strides: Sequence[int], canvas: tuple[int, int], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Check the options of a head and add the defaults.

    Parameters
    ----------
    kind : str
    strides : sequence of int
        Of the maps that the head reads.
    canvas : (int, int)
        Height and width.
    options : mapping
        Some of ``DETECTION_HEADS[kind]``.

    Returns
    -------
    dict
        All of ``DETECTION_HEADS[kind]``; lists become tuples.

    Raises
    ------
    UnknownNameError
        If there is no such kind or option.
    UsageError
        If a value is invalid.
    """
    if kind not in DETECTION_HEADS:
        raise UnknownNameError("kind of head", kind, DETECTION_HEADS)
    for name in options:
        if name not in DETECTION_HEADS[kind]:
            raise UnknownNameError(f"option of {kind}", name, DETECTION_HEADS[kind])
    complete = DETECTION_HEADS[kind] | {
        name: lists_to_tuples(value) for name, value in options.items()
    }
    for name, value in complete.items():
        _require_option(kind, name, value)
    levels = _level_strides(strides, complete)
    if "sizes" in complete:
        sizes = complete["sizes"] or _default_sizes(kind, levels, canvas)
        complete["sizes"] = sizes
        counts = {len(level) for level in sizes}
        if len(sizes) != len(levels) or len(counts) != 1:
            raise UsageError(
                f"Expected `sizes` to have the same number of anchor sides for each of "
                f"{len(levels)} levels (strides {levels}), got {sizes}. Pass one tuple for each "
                "level."
            )
    return complete


def _level_strides(strides: Sequence[int], options: Mapping[str, Any]) -> tuple[int, ...]:
    n_extra = 1 if options.get("extra", "pool") == "pool" else 2
    n_extra = int(options.get("extra_levels", n_extra))
    return (*strides, *(strides[-1] * 2**i for i in range(1, n_extra + 1)))


def _default_sizes(
    kind: str, levels: Sequence[int], canvas: tuple[int, int]
) -> tuple[tuple[float, ...], ...]:
    if kind == "faster-rcnn":
        return tuple((4.0 * stride,) for stride in levels)
    if kind == "retinanet":
        return tuple((4.0 * stride, 4.0 * stride * math.sqrt(2)) for stride in levels)
    # Liu et al. 2016, SSD, section 2.2, with shares of the canvas from 0.2 to 0.95, as in
    # torchvision.
    last = len(levels) - 1
    shares = [0.2 + 0.75 * k / max(last, 1) for k in range(last + 1)] + [1.0]
    sides = [share * min(canvas) for share in shares]
    return tuple((a, math.sqrt(a * b)) for a, b in pairwise(sides))


def lists_to_tuples(value: Any) -> Any:
    """Convert lists, as read from JSON, to tuples, at every depth."""
    if isinstance(value, list | tuple):
        return tuple(lists_to_tuples(item) for item in value)
    return value


def tuples_to_lists(value: Any) -> Any:
    """Convert tuples to lists, for JSON, at every depth."""
    return [tuples_to_lists(item) for item in value] if isinstance(value, tuple) else value


def _require_option(kind: str, name: str, value: Any) -> None:
    default = DETECTION_HEADS[kind][name]
    choices = NORMS[kind] if name == "norm" else CHOICES.get(name)
    if choices is not None:
        is_valid, expected = value in choices, f"one of {choices}"
    elif name == "sizes":
        is_valid, expected = _are_sizes(value), "positive numbers"
    elif name == "ratios":
        is_valid, expected = _are_positive(value), "positive numbers"
    elif isinstance(default, tuple):
        is_valid = (
            isinstance(value, tuple) and len(value) == len(default) and all(map(_is_count, value))
        )
        expected = f"{len(default)} whole numbers from 1 to {MAX_VALUE}"
    else:
        is_valid = _is_count(value) or (name in MAY_BE_ZERO and value == 0 and type(value) is int)
        expected = f"a whole number up to {MAX_VALUE}"
    if is_valid and name == "channels":
        # Group normalisation makes 32 groups; each needs at least two channels.
        is_valid, expected = value % 64 == 0, "a multiple of 64"
    if is_valid and name in {"convs", "box_convs", "rpn_convs", "extra_levels"}:
        is_valid, expected = value <= 8, "at most 8"
    if not is_valid:
        raise UsageError(f"Expected `{name}` of {kind} to be {expected}, got {value!r}.")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_VALUE


def _are_sizes(value: Any) -> bool:
    """Whether a value is a tuple, maybe empty, of non-empty tuples of positive numbers."""
    return isinstance(value, tuple) and len(value) <= 16 and all(map(_are_positive, value))


def _are_positive(value: Any) -> bool:
    if not isinstance(value, tuple) or not 1 <= len(value) <= 16:
        return False
    return all(type(number) in {int, float} and 0 < number <= MAX_VALUE for number in value)
