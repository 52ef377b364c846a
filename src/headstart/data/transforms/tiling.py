"""Large images in pieces: where the pieces lie, and how their answers become one."""

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
        Of the image, in pixels.
    size : int or (int, int)
        Side of the tiles, or their height and width.
    overlap : int
        Pixels that neighbours share at least, 0 to below the side.

    Returns
    -------
    tuple of (int, int)
        Top and left of every tile, row by row. The last ones are aligned to the edges, so that
        no tile reaches beyond an image that is larger than it; where the image is smaller,
        the tile begins at 0.

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
    tall, wide = (size, size) if isinstance(size, int) else size
    if min(height, width, tall, wide) < 1 or not 0 <= overlap < min(tall, wide):
        raise UsageError(
            "Expected positive sides and an overlap smaller than a tile, got an image of "
            f"{(height, width)}, tiles of {(tall, wide)} and an overlap of {overlap}."
        )
    rows, columns = _starts(height, tall, overlap), _starts(width, wide, overlap)
    return tuple((top, left) for top in rows for left in columns)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    last = max(0, length - size)
    return [*range(0, last, size - overlap), last]


def blend(
    parts: Iterable[NDArray[Any]], places: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> NDArray[Any]:
    """Put the answers for tiles together; where tiles overlap, each counts most in its middle.

    Parameters
    ----------
    parts : iterable of array, shape (..., h, w)
        Probabilities or logits of the tiles, all of one shape. One is held at a time, so a
        generator keeps memory at the image's size.
    places : sequence of (int, int)
        Top and left of each, as ``tiles`` gives them.
    shape : (int, int)
        Height and width of the image; what tiles have beyond it is left out.

    Returns
    -------
    array of float, shape (..., height, width)
        The mean of the tiles, weighted by a raised cosine. Where they agree it is their value,
        bit for bit. float64 if they are, else float32.

    Raises
    ------
    UsageError
        If parts and places differ in number or shape, or leave a pixel of the image out.

    Examples
    --------
    >>> ones = np.ones((2, 4, 4), dtype=np.float32)
    >>> blend([ones, ones], [(0, 0), (0, 2)], (4, 6)).shape
    (2, 4, 6)
    """
    found: NDArray[Any] | None = None
    weighed = np.zeros(shape)
    count = 0
    for count, part in enumerate(parts, 1):
        if count > len(places):
            break
        if found is None:
            found = np.zeros((*part.shape[:-2], *shape), dtype=_precision(part))
            window = _window(part.shape[-2]), _window(part.shape[-1])
            size = part.shape
        if part.shape != size:
            raise UsageError(f"Expected tiles of shape {size}, got one of {part.shape}.")
        _add(found, weighed, part, window, places[count - 1])
    if found is None or count != len(places):
        raise UsageError(f"Expected a part for each of {len(places)} places, got {count}.")
    if not weighed.all():
        raise UsageError(
            f"Expected tiles that cover the image of {shape}, got {int((weighed == 0).sum())} "
            "pixels outside of all; do take the places from `tiles`."
        )
    return found


def _add(
    found: NDArray[Any],
    weighed: NDArray[np.float64],
    part: NDArray[Any],
    window: tuple[NDArray[np.float64], NDArray[np.float64]],
    place: tuple[int, int],
) -> None:
    """Move a running mean towards a part by the part's share of the weight so far.

    Where both agree the move is zero, so rounding cannot touch what all tiles say.
    """
    top, left = place
    height, width = weighed.shape
    if not (0 <= top < height and 0 <= left < width):
        raise UsageError(f"Expected places inside the image of {(height, width)}, got {place}.")
    rows, columns = min(part.shape[-2], height - top), min(part.shape[-1], width - left)
    here = (..., slice(top, top + rows), slice(left, left + columns))
    weight = window[0][:rows, None] * window[1][None, :columns]
    weighed[here] += weight
    share = (weight / weighed[here]).astype(found.dtype)
    found[here] += (part[..., :rows, :columns].astype(found.dtype) - found[here]) * share


def _window(n: int) -> NDArray[np.float64]:
    """Half a wave of sine, squared, at the middles of n places: positive everywhere."""
    return np.asarray(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2)


def _precision(part: NDArray[Any]) -> type[np.floating[Any]]:
    return np.float64 if part.dtype == np.float64 else np.float32
