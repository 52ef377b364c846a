"""Mistakes that most boxes of a file share: fractions, swapped corners, corners as sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Boxes
from headstart.errors import DataError

__all__ = ["require_plain_boxes"]

_MIN_BOXES = 3  # fewer boxes are single mistakes, which the checks report
_MOST = 0.5
_NEARLY_ALL = 0.95
_TOLERANCE = 1.5  # pixels
_LARGEST = 10**9  # pixels; a damaged file may state a size that no float can hold


def require_plain_boxes(
    boxes: Iterable[Boxes], where: str, form: Literal["corners", "width and height"]
) -> None:
    """Refuse a file if most of its boxes share one mistake.

    Parameters
    ----------
    boxes : iterable of Boxes
        Of all images of the file, in pixels; some patterns need the stated sizes.
    where : str
        Words for the file.
    form : {"corners", "width and height"}
        The last two numbers of a box in the file.

    Raises
    ------
    DataError
        If more than half of the boxes, and at least three, have coordinates from 0 to 1, swapped
        corners, or corners where width and height belong (or the reverse).

    Examples
    --------
    >>> fractions = Boxes(corners=((0.1, 0.1, 0.4, 0.5),) * 3, labels=("cat",) * 3)
    >>> require_plain_boxes([fractions], "'a.json'", "corners")
    Traceback (most recent call last):
    headstart.errors.DataError: ...fractions of the image's size in 3 of 3 boxes...
    """
    corners, sizes = _stack(boxes)
    if len(corners) < _MIN_BOXES:
        return
    for pattern, selection, advice in _patterns(corners, sizes, form):
        count = int(selection.sum())
        if count >= _MIN_BOXES and count > _MOST * len(corners):
            first = ", ".join(f"{side:g}" for side in corners[int(np.argmax(selection))])
            raise DataError(
                f"Expected boxes in pixels with {form} in {where}, got {pattern} in {count} of "
                f"{len(corners)} boxes (the first is read as left, top, right, bottom {first}). "
                f"{advice}."
            )


def _stack(boxes: Iterable[Boxes]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners of all boxes (n, 4), and the stated sizes of their images (n, 2), NaN if unknown."""
    unknown = (float("nan"), float("nan"))
    rows = [
        (box, unknown if each.size is None else [min(side, _LARGEST) for side in each.size])
        for each in boxes
        for box in each.corners
    ]
    corners = np.asarray([row[0] for row in rows], dtype=np.float64).reshape(-1, 4)
    return corners, np.asarray([row[1] for row in rows], dtype=np.float64).reshape(-1, 2)


def _patterns(
    corners: NDArray[np.float64], sizes: NDArray[np.float64], form: str
) -> Iterable[tuple[str, NDArray[np.bool_], str]]:
    """Yield each pattern, the boxes that have it, and its remedy."""
    start, end = corners[:, :2], corners[:, 2:]
    has_decimals = (corners != np.round(corners)).any(axis=1)
    yield (
        "fractions of the image's size",
        np.asarray((end <= 1).all(axis=1) & has_decimals),
        "Multiply x and width by the width of the image, and y and height by its height",
    )
    swapped = np.asarray((end < start).any(axis=1))
    if form == "corners":
        fits = np.asarray((start + end <= sizes + _TOLERANCE).all(axis=1))
        if len(fits) and fits.mean() >= _NEARLY_ALL:
            advice = "Add x to the width, and y to the height"
            yield "width and height in place of xmax and ymax", swapped, advice
        yield "swapped corners", swapped, "Write the smaller x and y first"
        return
    yield "a negative width or height", swapped, "Write x and y of the top left corner"
    stated = end - start  # the last two numbers in the file
    outside = (end > sizes + _TOLERANCE).any(axis=1)
    as_corners = np.asarray(((stated > start) & (stated <= sizes + _TOLERANCE)).all(axis=1))
    if as_corners[outside].size and as_corners[outside].mean() >= _NEARLY_ALL:
        advice = "Subtract x from the third number and y from the fourth"
        yield "x2 and y2 in place of width and height", np.asarray(outside), advice
