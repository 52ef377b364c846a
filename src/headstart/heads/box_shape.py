"""What a detector's head is built of, before there are any numbers: kinds, options, levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from headstart.errors import UnknownNameError, UsageError

__all__ = ["KINDS", "BoxShape", "resolved"]

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
