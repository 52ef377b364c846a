"""Where a whole picture lies on the canvas that a network reads, and the way back.

Coordinates are those of `headstart.data.truths`: corners of pixels, x to the right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from headstart.data.truths import IGNORED
from headstart.errors import UsageError

__all__ = ["Placement", "canvas_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A picture, resized with its aspect kept, at the top left of a canvas.

    Parameters
    ----------
    height, width : int
        Of the picture as it is shown, in pixels.
    rows, columns : int
        Of the picture on the canvas, in pixels; what is below and to the right is filling.
    canvas : (int, int)
        Height and width of the canvas.

    Examples
    --------
    >>> place = Placement.of(100, 200, canvas=(64, 64))
    >>> place.rows, place.columns
    (32, 64)
    >>> place.boxes_to_canvas(np.array([[100, 50, 200, 100]]))
    array([[32., 16., 64., 32.]], dtype=float32)
    """

    height: int
    width: int
    rows: int
    columns: int
    canvas: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int, *, canvas: tuple[int, int]) -> Self:
        """Place a picture: as large as the canvas lets it be, whole, enlarged if need be.

        Raises
        ------
        UsageError
            If a side is less than a pixel.
        """
        if min(height, width, *canvas) < 1:
            raise UsageError(
                "Expected a picture and a canvas of 1 pixel or more, got "
                f"{height} x {width} on {canvas[0]} x {canvas[1]}."
            )
        scale = min(canvas[0] / height, canvas[1] / width)
        # A strip may come out thinner than a pixel; rounding may reach past the canvas.
        rows = min(canvas[0], max(1, round(height * scale)))
        columns = min(canvas[1], max(1, round(width * scale)))
        return cls(height=height, width=width, rows=rows, columns=columns, canvas=canvas)

    def boxes_to_canvas(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes of the picture, as they lie on the canvas.

        Parameters
        ----------
        boxes : array, shape (n, 4)
            Left, top, right, bottom in pixels of the picture.

        Returns
        -------
        array, float32, shape (n, 4)
            In pixels of the canvas; not clipped.
        """
        return (_boxes(boxes) * self._scale()).astype(np.float32)

    def boxes_to_picture(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes on the canvas, in the picture's own pixels and clipped to the picture.

        Parameters
        ----------
        boxes : array, shape (n, 4)
            Left, top, right, bottom in pixels of the canvas.

        Returns
        -------
        array, float32, shape (n, 4)
            Of no area where a box lies wholly in the filling.
        """
        ends = np.array([self.width, self.height] * 2)
        return np.clip(_boxes(boxes) / self._scale(), 0, ends).astype(np.float32)

    def mask_to_canvas(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Put a mask of the picture on the canvas; the filling is 255, ignored.

        Parameters
        ----------
        mask : array, uint8, shape (height, width)

        Returns
        -------
        array, uint8, shape of ``canvas``
            Of each pixel the value that its centre lies on.

        Raises
        ------
        UsageError
            If the mask has another size than the picture.
        """
        _require_shape(mask, (self.height, self.width), "picture")
        found = np.full(self.canvas, IGNORED, dtype=np.uint8)
        found[: self.rows, : self.columns] = _nearest(mask, self.rows, self.columns)
        return found

    def mask_to_picture(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Take the picture's part of a mask on the canvas, at the picture's own size.

        Parameters
        ----------
        mask : array, uint8, shape of ``canvas``

        Returns
        -------
        array, uint8, shape (height, width)

        Raises
        ------
        UsageError
            If the mask has another size than the canvas.
        """
        _require_shape(mask, self.canvas, "canvas")
        return _nearest(mask[: self.rows, : self.columns], self.height, self.width)

    def _scale(self) -> NDArray[np.float64]:
        return np.array([self.columns / self.width, self.rows / self.height] * 2)


def canvas_for(
    sizes: Iterable[tuple[int, int]], long_side: int, multiple: int = 32
) -> tuple[int, int]:
    """Return the smallest canvas that holds every picture with its long side at a length.

    Parameters
    ----------
    sizes : iterable of (int, int)
        Height and width of every picture as it is shown.
    long_side : int
        In pixels, 1 or more.
    multiple : int
        Of which height and width of the canvas are multiples, 1 or more.

    Raises
    ------
    UsageError
        If there is no picture, or a number is less than 1.

    Examples
    --------
    >>> canvas_for([(480, 640), (200, 400)], 320)
    (256, 320)
    """
    known = list(sizes)
    if not known or min(long_side, multiple, *(min(size) for size in known)) < 1:
        raise UsageError(
            "Expected one picture or more, and sizes, `long_side` and `multiple` of 1 or more, "
            f"got {len(known)} pictures, {long_side} and {multiple}."
        )
    scaled = [tuple(max(1, round(side * long_side / max(size))) for side in size) for size in known]
    height, width = (
        multiple * math.ceil(max(size[axis] for size in scaled) / multiple) for axis in (0, 1)
    )
    return height, width


def _boxes(boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    found = np.asarray(boxes, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != 4:
        raise UsageError(f"Expected boxes of shape (n, 4), got {found.shape}.")
    return found


def _require_shape(mask: NDArray[np.uint8], shape: tuple[int, int], whose: str) -> None:
    if mask.shape != shape or mask.dtype != np.uint8:
        raise UsageError(
            f"Expected a mask of uint8 of the {whose}'s size, {shape[0]} x {shape[1]}, got "
            f"{mask.dtype} of shape {mask.shape}."
        )


def _nearest(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize without blending; centres are looked up, so that nothing shifts by half a pixel."""
    rows, columns = (
        ((2 * np.arange(length) + 1) * size) // (2 * length)
        for length, size in zip((height, width), mask.shape, strict=True)
    )
    found: NDArray[np.uint8] = mask[rows[:, None], columns]
    return found
