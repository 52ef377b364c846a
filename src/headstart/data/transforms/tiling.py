"""Tiling of large images, and blending of the predictions for the tiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UsageError

__all__ = ["blend", "tiles"]


def tiles(
    height: int, width: int, size: int | tuple[int, int], overlap: int
) -> tuple[tuple[int, int], ...]:
    """Cover an image with tiles of one size.

    Parameters
    ----------
    height, width : int
        Size of the image, in pixels.
    size : int or (int, int)
        Side of the tiles, or their height and width.
    overlap : int
        Smallest overlap of neighbouring tiles in pixels, 0 to below the side.

    Returns
    -------
    tuple of (int, int)
        Top and left of every tile, row by row. The last tiles are aligned to the edges, so that
        no tile reaches beyond an image that is larger than a tile. In a smaller image the tile
        starts at 0.

    Raises
    ------
    UsageError
        If a side is not positive or the overlap does not fit.

    Examples
    --------
    >>> tiles(4, 10, 4, 1)
    ((0, 0), (0, 3), (0, 6))
    >>> tiles(4, 9, 4, 1)
    ((0, 0), (0, 3), (0, 5))
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if min(height, width, rows, columns) < 1 or not 0 <= overlap < min(rows, columns):
        raise UsageError(
            "Expected positive sides and an overlap smaller than a tile, got an image of "
            f"{(height, width)}, tiles of {(rows, columns)} and an overlap of {overlap}."
        )
    tops, lefts = _tile_starts(height, rows, overlap), _tile_starts(width, columns, overlap)
    return tuple((top, left) for top in tops for left in lefts)


def _tile_starts(length: int, size: int, overlap: int) -> list[int]:
    last = max(0, length - size)
    return [*range(0, last, size - overlap), last]


def blend(
    parts: Iterable[NDArray[Any]], places: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> NDArray[Any]:
    """Blend the predictions for tiles; where tiles overlap, each has most weight at its centre.

    Parameters
    ----------
    parts : iterable of array, shape (..., h, w)
        Probabilities or logits of the tiles, all of one shape. Only one is needed at a time, so
        a generator limits memory to the image's size.
    places : sequence of (int, int)
        Top and left of each, as returned by ``tiles``.
    shape : (int, int)
        Height and width of the image; parts of tiles beyond it are dropped.

    Returns
    -------
    array of float, shape (..., height, width)
        The mean of the tiles, weighted by a raised cosine. Where the tiles agree, the result is
        exactly their value. float64 if the tiles are, else float32.

    Raises
    ------
    UsageError
        If parts and places differ in number, the parts differ in shape, or a pixel of the image
        is in no tile.

    Examples
    --------
    >>> ones = np.ones((2, 4, 4), dtype=np.float32)
    >>> blend([ones, ones], [(0, 0), (0, 2)], (4, 6)).shape
    (2, 4, 6)
    """
    blended: NDArray[Any] | None = None
    total_weight = np.zeros(shape)
    count = 0
    for count, part in enumerate(parts, 1):
        if count > len(places):
            break
        if blended is None:
            blended = np.zeros((*part.shape[:-2], *shape), dtype=_float_type(part))
            window = _raised_cosine(part.shape[-2]), _raised_cosine(part.shape[-1])
            size = part.shape
        if part.shape != size:
            raise UsageError(f"Expected tiles of shape {size}, got one of {part.shape}.")
        _update_mean(blended, total_weight, part, window, places[count - 1])
    if blended is None or count != len(places):
        raise UsageError(f"Expected a part for each of {len(places)} places, got {count}.")
    if not total_weight.all():
        raise UsageError(
            f"Expected tiles that cover the image of {shape}, got {int((total_weight == 0).sum())} "
            "pixels in no tile. Pass the places that `tiles` returns."
        )
    return blended


def _update_mean(
    mean: NDArray[Any],
    total_weight: NDArray[np.float64],
    part: NDArray[Any],
    window: tuple[NDArray[np.float64], NDArray[np.float64]],
    place: tuple[int, int],
) -> None:
    """Update a running mean by a part: move it by the part's share of the weight so far.

    Where both agree the change is zero, so rounding cannot alter a value that all tiles share.
    """
    top, left = place
    height, width = total_weight.shape
    if not (0 <= top < height and 0 <= left < width):
        raise UsageError(f"Expected places inside the image of {(height, width)}, got {place}.")
    rows, columns = min(part.shape[-2], height - top), min(part.shape[-1], width - left)
    region = (..., slice(top, top + rows), slice(left, left + columns))
    weight = window[0][:rows, None] * window[1][None, :columns]
    total_weight[region] += weight
    share = (weight / total_weight[region]).astype(mean.dtype)
    mean[region] += (part[..., :rows, :columns].astype(mean.dtype) - mean[region]) * share


def _raised_cosine(n: int) -> NDArray[np.float64]:
    """Squared half wave of a sine, sampled at the centres of n pixels: positive everywhere."""
    return np.asarray(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2)


def _float_type(part: NDArray[Any]) -> type[np.floating[Any]]:
    return np.float64 if part.dtype == np.float64 else np.float32
