"""Drawing tools of the example sets: photographs, and outlines of symbols."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Target

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "OVERSAMPLING",
    "SYMBOL_KINDS",
    "DemoImage",
    "coverage",
    "outline",
    "photos",
    "rotate_points",
]

SYMBOL_KINDS = ("arrow", "cross", "disc", "gear", "heart", "square", "star", "triangle")
OVERSAMPLING = 4
"""Outlines are drawn this much larger and then reduced, which smooths their edges."""

DemoImage = tuple["Image", Target, str | None]
"""Image, target and group of an example."""


@lru_cache(maxsize=1)
def photos() -> tuple[Image, Image]:
    """Two photographs that are part of scikit-learn, 640 x 427 pixels each.

    Examples
    --------
    >>> [photo.size for photo in photos()]
    [(640, 427), (640, 427)]
    """
    from PIL import Image
    from sklearn.datasets import load_sample_image

    china, flower = (Image.fromarray(load_sample_image(f"{n}.jpg")) for n in ("china", "flower"))
    return china, flower


def rotate_points(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Rotate points, shape (n, 2), about the origin by an angle in radians.

    Examples
    --------
    >>> rotate_points(np.array([[0.0, 1.0]]), math.pi / 2).round(6)
    array([[-1.,  0.]])
    """
    rotation = np.asarray([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.asarray(points @ rotation)


def coverage(size: tuple[int, int], points: NDArray[np.float64], value: int = 255) -> Image:
    """Fill a polygon with a value; pixels at its edge have a share of it.

    Parameters
    ----------
    size : (int, int)
        Width and height.
    points : array, shape (n, 2)
        Corners, in pixels.
    value : int

    Examples
    --------
    >>> square = np.array([[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0]])
    >>> coverage((4, 4), square).getpixel((1, 1))
    255
    """
    from PIL import Image, ImageDraw

    large = Image.new("L", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING))
    corners = [tuple(point) for point in (points * OVERSAMPLING).tolist()]
    ImageDraw.Draw(large).polygon(corners, fill=value)
    return large.resize(size, Image.Resampling.BOX)


def outline(kind: str) -> NDArray[np.float64]:
    """Corners of a symbol with a radius of about 1, shape (n, 2), y downwards.

    Examples
    --------
    >>> outline("square").shape
    (4, 2)
    """
    if kind == "cross":
        quarter = np.asarray([(-0.35, -1), (0.35, -1), (0.35, -0.35)])
        rotations = [np.asarray([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return np.concatenate([quarter @ rotation for rotation in rotations])
    if kind == "arrow":
        right_half = [(0, -1.1), (0.8, -0.1), (0.3, -0.1), (0.3, 1)]
        return np.asarray(right_half + [(-x, y) for x, y in right_half[:0:-1]])
    if kind == "heart":
        t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([np.sin(t) ** 3, -y / 16], axis=1)
    radii, corners, start = {
        "disc": ([1.0], 64, 0.0),
        "square": ([1.1], 4, math.pi / 4),
        "triangle": ([1.15], 3, 0.0),
        "star": ([1.15, 0.45], 10, 0.0),
        "gear": ([1.05, 1.05, 0.75, 0.75], 32, 0.0),
    }[kind]
    angle = 2 * math.pi * np.arange(corners) / corners + start
    ring = np.stack([np.sin(angle), -np.cos(angle)], axis=1)
    return np.asarray(np.resize(radii, corners)[:, None] * ring)
