"""Heat laid over the picture that it belongs to: pure functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.transforms import LONGEST_SIDE, Preprocess
from headstart.overlays import fitted

__all__ = ["LONG_SIDE", "Part", "draw_heat", "seen_part"]

LONG_SIDE = 480
"""Pixels of the longer side of a drawn picture."""

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Part = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, in shares of its sides."""

# From black over violet and orange to pale yellow: its lightness rises all the way, so that it is
# read without colour vision, too.
RAMP = np.array(
    [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64
)


def seen_part(height: int, width: int, preprocess: Preprocess) -> Part:
    """What of a picture the network reads, in shares of its sides.

    Parameters
    ----------
    height, width : int
        Of the picture as it is shown.
    preprocess : Preprocess
        Without a canvas.

    Returns
    -------
    (left, top, right, bottom)
        0 to 1.

    Examples
    --------
    >>> rgb = (0.5, 0.5, 0.5)
    >>> expects = Preprocess(resize=100, crop=80, interpolation="bilinear", mean=rgb, std=rgb)
    >>> seen_part(200, 400, expects)
    (0.3, 0.1, 0.7, 0.9)
    """
    short, ends = min(height, width), []
    for length in (width, height):
        far, resized = 0, preprocess.resize
        if preprocess.fit == "crop":
            far = max(0, (length - LONGEST_SIDE * short) // 2)
            resized = int(preprocess.resize * (length - 2 * far) / short)
        first = round((resized - preprocess.crop) / 2)  # as ``central_square`` cuts
        scale = (length - 2 * far) / resized
        ends.append([(far + x * scale) / length for x in (first, first + preprocess.crop)])
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def draw_heat(
    picture: Pixels, heat: NDArray[np.floating[Any]], part: Part, *, long_side: int = LONG_SIDE
) -> Pixels:
    """Draw a picture, and beside it the same one, grey, under what speaks for a class.

    What the network does not read is dark. The lightest place is the map's own highest; maps of
    two pictures cannot be compared by their colours.

    Parameters
    ----------
    picture : array, uint8, shape (H, W, 3)
        As it is shown.
    heat : array, shape (rows, columns)
        What is below 0 is drawn as 0.
    part : (left, top, right, bottom)
        Where the heat lies on the picture, in shares of its sides.
    long_side : int
        Of the drawn picture, in pixels.

    Returns
    -------
    array, uint8, shape (rows, 2 * columns + 8, 3)

    Examples
    --------
    >>> draw_heat(np.zeros((20, 40, 3), np.uint8), np.eye(7), (0.25, 0, 0.75, 1)).shape
    (240, 968, 3)
    """
    picture, _ = fitted(picture, long_side)
    height, width = picture.shape[:2]
    left, right = round(part[0] * width), round(part[2] * width)
    top, bottom = round(part[1] * height), round(part[3] * height)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2)
    drawn = 0.35 * grey
    warm = _enlarged(_relative(heat), bottom - top, right - left)
    steps = np.linspace(0, 1, len(RAMP))
    colour = np.stack([np.interp(warm, steps, channel) for channel in RAMP.T], axis=-1)
    share = 0.25 + 0.5 * warm[..., None]
    drawn[top:bottom, left:right] = (1 - share) * grey[top:bottom, left:right] + share * colour
    gap = np.full((height, 8, 3), 255, dtype=np.uint8)
    return np.concatenate([picture, gap, drawn.round().astype(np.uint8)], axis=1)


def _relative(heat: NDArray[np.floating[Any]]) -> Floats:
    """From 0 to 1; what speaks against the class is 0."""
    most = float(heat.max(initial=0.0))
    return np.clip(heat / most, 0, 1) if most > 0 and math.isfinite(most) else np.zeros_like(heat)


def _enlarged(heat: Floats, height: int, width: int) -> Floats:
    from PIL import Image

    values = Image.fromarray(heat.astype(np.float32))
    large = values.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(large, dtype=np.float64)
