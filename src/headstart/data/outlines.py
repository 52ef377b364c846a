"""Outlines of objects, and the masks that are drawn from them.

A pixel belongs to a polygon if its centre is inside (even-odd rule). Of overlapping objects the
smaller one is on top; of equally large ones the later one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError

__all__ = ["Bitmap", "Outline", "OutlineMask", "decode_run_lengths", "fill_polygon"]

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bitmap:
    """Pixels of an object in a rectangle of the image.

    Parameters
    ----------
    left, top : int
        Column and row of the first pixel.
    bits : array of uint8
        The rows, packed by `numpy.packbits`.
    shape : (int, int)
        Height and width of the rectangle.
    """

    left: int
    top: int
    bits: NDArray[np.uint8]
    shape: tuple[int, int]

    @staticmethod
    def of(pixels: NDArray[np.bool_], left: int = 0, top: int = 0) -> Bitmap:
        """Keep the rectangle of the pixels that are set.

        Examples
        --------
        >>> bitmap = Bitmap.of(np.array([[False, False], [False, True]]))
        >>> bitmap.left, bitmap.top, bitmap.shape
        (1, 1, (1, 1))
        """
        rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return Bitmap(left=left, top=top, bits=np.zeros(0, dtype=np.uint8), shape=(0, 0))
        part = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return Bitmap(
            left=left + int(columns[0]),
            top=top + int(rows[0]),
            bits=np.packbits(part),
            shape=part.shape,
        )

    def pixels(self) -> NDArray[np.bool_]:
        """The pixels of the rectangle, shape (height, width)."""
        height, width = self.shape
        return np.unpackbits(self.bits, count=height * width).reshape(self.shape).astype(bool)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outline:
    """Region of an object: the union of polygons without holes, or a bitmap.

    Parameters
    ----------
    polygons : tuple of array of float, shape (n, 2)
        x and y in pixels, or as fractions of width and height.
    holes : tuple of array of float, shape (n, 2)
        Polygons that do not belong to the object.
    bitmap : Bitmap or None
    """

    polygons: tuple[Points, ...] = ()
    holes: tuple[Points, ...] = ()
    bitmap: Bitmap | None = None

    def corners(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the region; zeros if it is empty.

        Examples
        --------
        >>> Outline(polygons=(np.array([[1.0, 2.0], [5.0, 2.0], [3.0, 8.0]]),)).corners()
        (1.0, 2.0, 5.0, 8.0)
        """
        if self.bitmap is not None:
            height, width = self.bitmap.shape
            left, top = float(self.bitmap.left), float(self.bitmap.top)
            return left, top, left + width, top + height
        points = np.concatenate([*self.polygons, np.zeros((0, 2))])
        if not len(points):
            return 0.0, 0.0, 0.0, 0.0
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return left, top, right, bottom

    def scaled(self, width: float, height: float) -> Outline:
        """Multiply x by the width and y by the height; a bitmap is not changed."""
        factor = np.array([width, height])
        return Outline(
            polygons=tuple(points * factor for points in self.polygons),
            holes=tuple(points * factor for points in self.holes),
            bitmap=self.bitmap,
        )

    def fill(self, width: int, height: int) -> Bitmap:
        """Pixels of the region in an image."""
        if self.bitmap is not None:
            left, top = self.bitmap.left, self.bitmap.top
            first_x, first_y = max(-left, 0), max(-top, 0)
            pixels = self.bitmap.pixels()[first_y : height - top, first_x : width - left]
            return Bitmap.of(pixels, left + first_x, top + first_y)
        x0, y0, x1, y1 = self.corners()
        left, top = (min(max(math.floor(v), 0), n) for v, n in ((x0, width), (y0, height)))
        right, bottom = (min(max(math.ceil(v), 0), n) for v, n in ((x1, width), (y1, height)))
        canvas = np.zeros((max(bottom - top, 0), max(right - left, 0)), dtype=bool)
        for points in self.polygons:
            canvas |= fill_polygon(points - (left, top), canvas.shape[1], canvas.shape[0])
        for points in self.holes:
            canvas &= ~fill_polygon(points - (left, top), canvas.shape[1], canvas.shape[0])
        return Bitmap.of(canvas, left, top)


def fill_polygon(points: Points, width: int, height: int) -> NDArray[np.bool_]:
    """Pixels whose centres are inside a polygon, by the even-odd rule.

    Parameters
    ----------
    points : array, shape (n, 2)
        x and y of the corners; the corner of the first pixel is (0, 0).
    width, height : int

    Returns
    -------
    array of bool, shape (height, width)

    Examples
    --------
    >>> fill_polygon(np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]), 3, 2).astype(int)
    array([[1, 1, 0],
           [0, 0, 0]])
    """
    start, end = points, np.roll(points, -1, axis=0)
    low, high = (np.ceil(f(start[:, 1], end[:, 1]) - 0.5) for f in (np.minimum, np.maximum))
    first, last = (np.clip(rows, 0, height).astype(np.intp) for rows in (low, high))
    counts = last - first  # rows whose centres an edge crosses
    edges = np.repeat(np.arange(len(points)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
    (x0, y0), (x1, y1) = start[edges].T, end[edges].T
    crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.intp)
    toggles = np.bincount(rows * (width + 1) + columns, minlength=height * (width + 1))
    inside = np.cumsum(toggles.reshape(height, width + 1), axis=1) % 2 == 1
    return np.asarray(inside[:, :width])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutlineMask:
    """Class of every pixel, drawn from outlines when it is needed.

    Parameters
    ----------
    width, height : int
    outlines : tuple of Outline
        In pixels.
    codes : tuple of int
        Value of each outline; 0 is the background.
    ignored : int
        Value of regions such as crowds, which are below all other outlines.
    """

    width: int
    height: int
    outlines: tuple[Outline, ...]
    codes: tuple[int, ...]
    ignored: int = 255

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def draw(self) -> NDArray[np.uint8]:
        """Draw the mask: larger objects first, so that smaller ones are on top.

        Returns
        -------
        array of uint8, shape (height, width)

        Examples
        --------
        >>> square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> outlines = (Outline(polygons=(square,)), Outline(polygons=(2 * square,)))
        >>> OutlineMask(width=3, height=2, outlines=outlines, codes=(1, 2)).draw()
        array([[1, 2, 0],
               [2, 2, 0]], dtype=uint8)
        """
        regions = [outline.fill(self.width, self.height) for outline in self.outlines]
        canvas = np.zeros(self.shape, dtype=np.uint8)
        parts = [
            (region, region.pixels(), code)
            for region, code in zip(regions, self.codes, strict=True)
        ]
        parts.sort(key=lambda part: (part[2] != self.ignored, -int(part[1].sum())))
        for region, pixels, code in parts:
            height, width = region.shape
            view = canvas[region.top : region.top + height, region.left : region.left + width]
            view[pixels] = code
        return canvas

    def digest(self) -> bytes:
        """Hash of everything that decides the values."""
        state = hashlib.sha256(repr((self.width, self.height, self.codes, self.ignored)).encode())
        for outline in self.outlines:
            for kind, polygons in (("polygon", outline.polygons), ("hole", outline.holes)):
                for points in polygons:
                    state.update(f"{kind} {len(points)}".encode())
                    state.update(np.ascontiguousarray(points, dtype=np.float64).tobytes())
            if (bitmap := outline.bitmap) is not None:
                state.update(repr((bitmap.left, bitmap.top, bitmap.shape)).encode())
                state.update(bitmap.bits.tobytes())
            state.update(b"end")
        return state.digest()


def decode_run_lengths(counts: str | Sequence[int], width: int, height: int) -> NDArray[np.bool_]:
    """Decode the run lengths of a COCO mask: columns from left to right, zeros first.

    Parameters
    ----------
    counts : str or sequence of int
        A text is the compressed form: base 48 with 5 bits for each character, and differences to
        the run before the last one.
    width, height : int

    Returns
    -------
    array of bool, shape (height, width)

    Raises
    ------
    DataError
        If the runs do not fill the mask.

    References
    ----------
    pycocotools, common/maskApi.c, function rleFrString.

    Examples
    --------
    >>> decode_run_lengths([1, 2, 1], 2, 2).astype(int)
    array([[0, 1],
           [1, 0]])
    """
    runs = _unpack(counts) if isinstance(counts, str) else list(counts)
    are_runs = all(isinstance(run, int) and 0 <= run <= width * height for run in runs)
    if not are_runs or sum(runs) != width * height:
        raise DataError(
            f"Expected run lengths that add up to {width} x {height} = {width * height} pixels, "
            f"got {len(runs)} runs{f' of {sum(runs)} pixels' if are_runs else ''}. Correct the "
            "mask."
        )
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.asarray(values.reshape(width, height).T)


def _unpack(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32 and shift < 60:
            continue
        if bits & 16:
            value -= 1 << shift  # a negative difference
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs
