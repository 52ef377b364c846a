"""What the example sets are drawn with: two photographs and outlines of symbols."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["outline", "photos", "turned"]


@lru_cache(maxsize=1)
def photos() -> tuple[Image, Image]:
    """The two photographs that scikit-learn ships, 640 x 427 pixels each.

    Examples
    --------
    >>> [photo.size for photo in photos()]
    [(640, 427), (640, 427)]
    """
    from PIL import Image
    from sklearn.datasets import load_sample_image

    china, flower = (Image.fromarray(load_sample_image(f"{n}.jpg")) for n in ("china", "flower"))
    return china, flower


def turned(points: NDArray[np.float64], slant: float) -> NDArray[np.float64]:
    """Points turned about the origin by an angle in radians, shape (n, 2).

    Examples
    --------
    >>> turned(np.array([[0.0, 1.0]]), math.pi / 2).round(6)
    array([[-1.,  0.]])
    """
    turn = np.asarray([[math.cos(slant), math.sin(slant)], [-math.sin(slant), math.cos(slant)]])
    return np.asarray(points @ turn)


def outline(kind: str) -> NDArray[np.float64]:
    """Corners of a symbol of radius about 1, shape (n, 2), y downwards.

    Examples
    --------
    >>> outline("square").shape
    (4, 2)
    """
    if kind == "cross":
        quarter = np.asarray([(-0.35, -1), (0.35, -1), (0.35, -0.35)])
        turns = [np.asarray([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return np.concatenate([quarter @ turn for turn in turns])
    if kind == "arrow":
        right = [(0, -1.1), (0.8, -0.1), (0.3, -0.1), (0.3, 1)]
        return np.asarray(right + [(-x, y) for x, y in right[:0:-1]])
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
