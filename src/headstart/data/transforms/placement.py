"""Placement of a whole image on a canvas, for boxes and masks.

Coordinates are those of `headstart.data.dataset`: corners of pixels, x to the right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED
from headstart.errors import UsageError

__all__ = ["Placement", "canvas_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Position and size of a whole image, resized with its aspect ratio, on a canvas.

    The image lies at the top left; the rest of the canvas is padding.

    Parameters
    ----------
    height, width : int
        Size of the displayed image, in pixels.
    rows, columns : int
        Size of the image on the canvas, in pixels.
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
        """Place a whole image on a canvas, as large as possible; small images are enlarged.

        Raises
        ------
        UsageError
            If a side is less than a pixel.
        """
        if min(height, width, *canvas) < 1:
            raise UsageError(
                "Expected an image and a canvas of 1 pixel or more, got "
                f"{height} x {width} on {canvas[0]} x {canvas[1]}."
            )
        scale = min(canvas[0] / height, canvas[1] / width)
        # A strip may come out thinner than a pixel; rounding may reach past the canvas.
        rows = min(canvas[0], max(1, round(height * scale)))
        columns = min(canvas[1], max(1, round(width * scale)))
        return cls(height=height, width=width, rows=rows, columns=columns, canvas=canvas)

    def boxes_to_canvas(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Convert boxes from pixels of the image to pixels of the canvas.

        Parameters
        ----------
        boxes : array, shape (n, 4)
            Left, top, right, bottom in pixels of the image.

        Returns
        -------
        array, float32, shape (n, 4)
            In pixels of the canvas; not clipped.
        """
        return (_as_box_array(boxes) * self._scale_factors()).astype(np.float32)

    def boxes_to_image(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Convert boxes from pixels of the canvas to pixels of the image, and clip them.

        Parameters
        ----------
        boxes : array, shape (n, 4)
            Left, top, right, bottom in pixels of the canvas.

        Returns
        -------
        array, float32, shape (n, 4)
            A box that lies in the padding has no area.
        """
        limits = np.array([self.width, self.height] * 2)
        return np.clip(_as_box_array(boxes) / self._scale_factors(), 0, limits).astype(np.float32)

    def mask_to_canvas(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Put a mask of the image on the canvas; the padding is 255, ignored.

        Parameters
        ----------
        mask : array, uint8, shape (height, width)

        Returns
        -------
        array, uint8, shape of ``canvas``
            Nearest neighbour: each pixel has the value at its centre.

        Raises
        ------
        UsageError
            If the mask has another size than the image.
        """
        _require_shape(mask, (self.height, self.width), "image")
        on_canvas = np.full(self.canvas, IGNORED, dtype=np.uint8)
        on_canvas[: self.rows, : self.columns] = _resize_nearest(mask, self.rows, self.columns)
        return on_canvas

    def mask_to_image(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut the image's part out of a mask on the canvas and resize it to the image's size.

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
        return _resize_nearest(mask[: self.rows, : self.columns], self.height, self.width)

    def _scale_factors(self) -> NDArray[np.float64]:
        return np.array([self.columns / self.width, self.rows / self.height] * 2)


def canvas_for(
    sizes: Iterable[tuple[int, int]], long_side: int, multiple: int = 32
) -> tuple[int, int]:
    """Return the smallest canvas for images whose longer side is resized to ``long_side``.

    Parameters
    ----------
    sizes : iterable of (int, int)
        Height and width of every displayed image.
    long_side : int
        Pixels, 1 or more.
    multiple : int
        Height and width of the canvas are multiples of it; 1 or more.

    Raises
    ------
    UsageError
        If there is no image, or a number is less than 1.

    Examples
    --------
    >>> canvas_for([(480, 640), (200, 400)], 320)
    (256, 320)
    """
    image_sizes = list(sizes)
    if not image_sizes or min(long_side, multiple, *(min(size) for size in image_sizes)) < 1:
        raise UsageError(
            "Expected one image or more, and sizes, `long_side` and `multiple` of 1 or more, "
            f"got {len(image_sizes)} images, {long_side} and {multiple}."
        )
    scaled = [
        tuple(max(1, round(side * long_side / max(size))) for side in size) for size in image_sizes
    ]
    height, width = (
        multiple * math.ceil(max(size[axis] for size in scaled) / multiple) for axis in (0, 1)
    )
    return height, width


def _as_box_array(boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    array = np.asarray(boxes, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 4:
        raise UsageError(f"Expected boxes of shape (n, 4), got {array.shape}.")
    return array


def _require_shape(mask: NDArray[np.uint8], shape: tuple[int, int], owner: str) -> None:
    if mask.shape != shape or mask.dtype != np.uint8:
        raise UsageError(
            f"Expected a mask of uint8 of the {owner}'s size, {shape[0]} x {shape[1]}, got "
            f"{mask.dtype} of shape {mask.shape}."
        )


def _resize_nearest(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize by nearest neighbour, looked up at pixel centres: no shift by half a pixel."""
    rows, columns = (
        ((2 * np.arange(length) + 1) * size) // (2 * length)
        for length, size in zip((height, width), mask.shape, strict=True)
    )
    resized: NDArray[np.uint8] = mask[rows[:, None], columns]
    return resized
