"""Shapes that annotation tools draw: their boxes and outlines in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Boxes, SplitName, brief
from headstart.data.formats.annotations import AnnotatedImage, is_background
from headstart.data.outlines import Outline
from headstart.errors import DataError

__all__ = [
    "Shape",
    "annotated_image",
    "ellipse_shape",
    "numbers",
    "points_of",
    "polygon_shape",
    "rectangle_shape",
    "rotated",
    "stated_size",
    "unread_shape_error",
]

Points = NDArray[np.float64]
_MAX_COORDINATE = 1e9  # pixels; no image is as large
_ELLIPSE_CORNERS = 128


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """One object: its class, its box and (unless the box is the object) its outline.

    Parameters
    ----------
    label : str
    corners : (float, float, float, float)
        Left, top, right, bottom.
    outline : Outline or None
    """

    label: str
    corners: tuple[float, float, float, float]
    outline: Outline | None = None


def numbers(values: Iterable[Any], where: str) -> list[float]:
    """Convert values to finite numbers.

    Raises
    ------
    DataError
        If a value is no number, or is larger than any image.

    Examples
    --------
    >>> numbers(["1.5", 2], "the shape")
    [1.5, 2.0]
    """
    items = list(values)
    try:
        result = [float(value) for value in items if not isinstance(value, bool)]
    except (TypeError, ValueError, OverflowError):
        result = []
    if len(result) != len(items) or not all(abs(value) < _MAX_COORDINATE for value in result):
        raise DataError(
            f"Expected finite numbers of pixels in {where}, got {brief(items)}. Correct the shape."
        )
    return result


def points_of(value: Any, where: str) -> Points:
    """Convert a list of pairs to points, shape (n, 2).

    Raises
    ------
    DataError
        If it is no list of pairs of finite numbers.

    Examples
    --------
    >>> points_of([[1, 2], [3, 4]], "the shape").tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    pairs = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise DataError(
            f"Expected a list of points (x, y) in {where}, got {brief(value)}. Correct the shape."
        )
    flat = numbers([side for pair in pairs for side in pair], where)
    return np.asarray(flat, dtype=np.float64).reshape(-1, 2)


def polygon_shape(label: str, points: Points, where: str, holes: Sequence[Points] = ()) -> Shape:
    """Shape of a polygon of at least three points.

    Raises
    ------
    DataError
        If it has fewer points.

    Examples
    --------
    >>> polygon_shape("leaf", np.array([[0, 0], [4, 0], [2, 3]]), "the shape").corners
    (0.0, 0.0, 4.0, 3.0)
    """
    if len(points) < 3:
        raise DataError(
            f"Expected a polygon of at least 3 points in {where}, got {len(points)} (class "
            f"{label!r}). Remove the shape, or draw it again."
        )
    outline = Outline(polygons=(np.asarray(points, dtype=np.float64),), holes=tuple(holes))
    return Shape(label=label, corners=outline.corners(), outline=outline)


def rectangle_shape(label: str, points: Points, where: str) -> Shape:
    """Shape of a rectangle by two opposite corners, in any order.

    Raises
    ------
    DataError
        If there are not two points.

    Examples
    --------
    >>> rectangle_shape("leaf", np.array([[4.0, 0.0], [2.0, 3.0]]), "the shape").corners
    (2.0, 0.0, 4.0, 3.0)
    """
    if len(points) != 2:
        raise DataError(
            f"Expected two corners of a rectangle in {where}, got {len(points)} points (class "
            f"{label!r}). Correct the shape."
        )
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return Shape(label=label, corners=(left, top, right, bottom))


def rotated(points: Points, centre: Sequence[float], degrees: float) -> Points:
    """Rotate points clockwise, as seen on the screen.

    Examples
    --------
    >>> rotated(np.array([[2.0, 0.0]]), (0, 0), 90).round(3).tolist()
    [[0.0, 2.0]]
    """
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.asarray((points - centre) @ turn + centre)


def ellipse_shape(
    label: str, centre: Sequence[float], radii: Sequence[float], where: str, degrees: float = 0.0
) -> Shape:
    """Shape of an ellipse, as a polygon of 128 corners; the box is exact without rotation.

    Raises
    ------
    DataError
        If a radius is negative.

    Examples
    --------
    >>> ellipse_shape("cell", (5, 4), (2, 1), "the shape").corners
    (3.0, 3.0, 7.0, 5.0)
    """
    if min(radii) < 0:
        raise DataError(
            f"Expected radii of 0 or more in {where}, got {brief(list(radii))} (class {label!r}). "
            "Correct the shape."
        )
    angles = np.arange(_ELLIPSE_CORNERS) * (2 * np.pi / _ELLIPSE_CORNERS)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).round(12)
    return polygon_shape(label, rotated(circle * radii + centre, centre, degrees), where)


def unread_shape_error(kind: object, label: object, where: str, readable: str) -> DataError:
    """Error for a kind of shape that is neither a box nor an outline.

    Examples
    --------
    >>> str(unread_shape_error("line", "road", "'1.json'", "polygon"))
    "Expected shapes that are read (polygon) in '1.json', got 'line' of class 'road'. Remove ..."
    """
    return DataError(
        f"Expected shapes that are read ({readable}) in {where}, got {kind!r:.40} of class "
        f"{label!r:.80}. Remove these shapes, or export them as polygons."
    )


def stated_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Width and height of an image as a file states them; None if it does not.

    Examples
    --------
    >>> stated_size("640", 480), stated_size(0, 480), stated_size(None, "x")
    ((640, 480), None, None)
    """
    try:
        size = int(float(width)), int(float(height))
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 and max(size) < _MAX_COORDINATE else None


def annotated_image(
    key: str,
    shapes: Sequence[Shape],
    where: str,
    *,
    size: tuple[int, int] | None = None,
    split: SplitName | None = None,
    tags: Sequence[str] = (),
) -> AnnotatedImage:
    """Join the shapes of an image.

    Raises
    ------
    DataError
        If a shape has no class, or one that means background.

    Examples
    --------
    >>> shape = rectangle_shape("leaf", np.array([[0.0, 0.0], [2.0, 3.0]]), "the shape")
    >>> annotated_image("1.jpg", [shape], "'1.json'").boxes.labels
    ('leaf',)
    """
    for shape in shapes:
        if not shape.label.strip() or is_background(shape.label):
            raise DataError(
                f"Expected the class of every object in {where}, got {shape.label!r}. Remove these "
                "shapes, or name their class."
            )
    boxes = Boxes(
        corners=tuple(shape.corners for shape in shapes),
        labels=tuple(shape.label.strip() for shape in shapes),
        size=size,
    )
    outlines = tuple(shape.outline for shape in shapes)
    return AnnotatedImage(key=key, boxes=boxes, split=split, outlines=outlines, tags=tuple(tags))
