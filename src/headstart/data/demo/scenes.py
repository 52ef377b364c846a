"""Example set of photographs: crops of two photographs, split by place.

The rectangles of `PLACES` are cut into square tiles with a gap between neighbours. One tile is one
group, and every crop stays inside its tile. So no pixel is in two groups, and a split that keeps
groups together has no leak.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from headstart.data.demo.drawings import DemoImage, photos

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["GAP", "PLACES", "find_tiles", "scenes"]

GAP = 8
"""Pixels between two tiles of a photograph."""

PLACES = {
    "lake": ((0, 358, 226, 550, 258), (0, 358, 266, 486, 298)),
    "leaves": ((1, 0, 0, 165, 427), (1, 465, 0, 640, 360)),
    "petals": ((1, 222, 120, 406, 160), (1, 190, 168, 422, 256), (1, 222, 264, 390, 352)),
    "roof": ((0, 128, 76, 290, 116), (0, 80, 250, 336, 280), (0, 205, 352, 300, 388)),
    "sky": ((0, 330, 0, 565, 190), (0, 573, 0, 640, 130), (0, 0, 0, 95, 125)),
    "trees": ((0, 0, 345, 190, 427), (0, 360, 325, 560, 427), (0, 574, 170, 640, 427)),
    "wall": ((0, 122, 124, 296, 156), (0, 104, 195, 318, 236), (0, 84, 288, 336, 336)),
}
"""Areas of each class: index of the photograph, left, top, right, bottom."""

_TILE = 40
_COUNT = 48  # images of each class
_SIZE = 128
_SHIFT = 4  # pixels; crops that differ by less are near duplicates

Tile = tuple[int, int, int, int]
"""Index of the photograph, left, top, side."""


def scenes(rng: np.random.Generator) -> list[DemoImage]:
    """Cut 48 crops of each class, enlarged to 128 pixels; the group is the tile.

    Examples
    --------
    >>> image, label, group = scenes(np.random.default_rng(0))[0]
    >>> image.size, label, group
    ((128, 128), 'lake', 'place000')
    """
    images: list[DemoImage] = []
    first_group = 0
    for label in PLACES:
        tiles = rng.permutation(find_tiles(label)).tolist()[:_COUNT]
        cut: list[Tile] = []
        while len(cut) < _COUNT:
            index = len(cut) % len(tiles)
            square = _draw_square(tiles[index], rng)
            if all(_distance(square, other) >= _SHIFT for other in cut):
                cut.append(square)
                images.append((_cut_crop(square, rng), label, f"place{first_group + index:03d}"))
        first_group += len(tiles)
    return images


def find_tiles(label: str) -> list[Tile]:
    """Tiles of a class; two tiles of any classes are at least `GAP` pixels apart.

    Examples
    --------
    >>> find_tiles("lake")[:2]
    [(0, 358, 226, 32), (0, 398, 226, 32)]
    """
    tiles = []
    for photo, left, top, right, bottom in PLACES[label]:
        side = min(_TILE, right - left, bottom - top)
        tiles += [
            (photo, x, y, side)
            for x in range(left, right - side + 1, side + GAP)
            for y in range(top, bottom - side + 1, side + GAP)
        ]
    return tiles


def _draw_square(tile: Tile, rng: np.random.Generator) -> Tile:
    """Draw a square inside a tile; its side is at least 0.4 of the tile's."""
    photo, x, y, side = tile
    size = int(rng.integers(round(0.4 * side), side + 1))
    left, top = (np.asarray([x, y]) + rng.integers(0, side - size + 1, size=2)).tolist()
    return photo, left, top, size


def _distance(first: Tile, second: Tile) -> float:
    """Sum of the differences in position and size; infinite between photographs."""
    if first[0] != second[0]:
        return math.inf
    return sum(abs(a - b) for a, b in zip(first[1:], second[1:], strict=True))


def _cut_crop(square: Tile, rng: np.random.Generator) -> Image:
    """Cut a square, enlarge it, and mirror half of them."""
    from PIL import Image, ImageOps

    photo, left, top, size = square
    crop = photos()[photo].crop((left, top, left + size, top + size))
    crop = crop.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop
