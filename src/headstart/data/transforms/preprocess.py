"""Preprocessing: resize, crop or place an image on a canvas, and normalise it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from headstart.data.transforms.placement import Placement
from headstart.errors import UsageError
from headstart.metrics.validation import to_jsonable

if TYPE_CHECKING:
    import torch

__all__ = [
    "Interpolation",
    "Preprocess",
    "central_square",
    "to_channels_first",
]

Interpolation = Literal["bilinear", "bicubic"]
Fit = Literal["crop", "squash"]
RESIZE_VERSION = 2
"""Increased when the same settings produce other pixels, so that cached features are not mixed."""
LONGEST_SIDE = 8
"""Largest ratio of the sides that is resized: a strip one pixel high must not take gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocessing that the weights expect: size, crop, interpolation, mean and deviation.

    Parameters
    ----------
    resize : int
        Shorter side in pixels, at least ``crop``; smaller images are enlarged.
    crop : int
        Side of the central square in pixels.
    interpolation : {"bilinear", "bicubic"}
        Always antialiased.
    mean, std : tuple of three floats
        Of red, green and blue, for values in 0..1.
    fit : {"crop", "squash"}
        ``squash`` resizes both sides to ``resize`` and ignores the aspect ratio (some SigLIP
        models).
    canvas : (int, int), optional
        Height and width of the network's input for detection and segmentation: the whole image
        is resized to fit, with its aspect ratio, and put at the top left; the rest is filled with
        the mean colour. ``resize``, ``crop`` and ``fit`` are then ignored.

    Raises
    ------
    UsageError
        If a value is invalid.

    Examples
    --------
    >>> expects = Preprocess(
    ...     resize=256, crop=224, interpolation="bilinear", mean=(0.5,) * 3, std=(1.0,) * 3
    ... )
    >>> expects.resize_and_crop(np.zeros((375, 500, 3), dtype=np.uint8)).shape
    (224, 224, 3)
    >>> Preprocess.from_dict(expects.as_dict()) == expects
    True
    """

    resize: int
    crop: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "crop"
    canvas: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize:
            raise UsageError(
                f"Expected 0 < `crop` <= `resize`, got crop {self.crop} and resize {self.resize}. "
                "Pass sizes in pixels."
            )
        for name, value, allowed in (
            ("interpolation", self.interpolation, ("bilinear", "bicubic")),
            ("fit", self.fit, ("crop", "squash")),
        ):
            if value not in allowed:
                raise UsageError(f"Expected `{name}` to be one of {allowed}, got {value!r}.")
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise UsageError(
                "Expected `mean` and `std` to be three numbers each, std above zero, "
                f"got {self.mean} and {self.std}."
            )
        if self.canvas is not None and not _is_size(self.canvas):
            raise UsageError(
                "Expected `canvas` to be height and width in whole pixels above zero, "
                f"got {self.canvas!r}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the network's input: the canvas, or the square."""
        return (self.crop, self.crop) if self.canvas is None else self.canvas

    @property
    def fill(self) -> tuple[int, int, int]:
        """Mean colour, 0 to 255; it fills the canvas around the image."""
        red, green, blue = (min(255, max(0, round(255 * value))) for value in self.mean)
        return red, green, blue

    def placement(self, height: int, width: int) -> Placement:
        """Return the position of an image of this size on the canvas.

        Parameters
        ----------
        height, width : int
            Size of the displayed image.

        Raises
        ------
        UsageError
            If no canvas is set: after a central crop some boxes would lie outside.

        Examples
        --------
        >>> rgb = (0.5, 0.5, 0.5)
        >>> expects = Preprocess(
        ...     resize=8, crop=8, interpolation="bilinear", mean=rgb, std=rgb, canvas=(32, 64)
        ... )
        >>> place = expects.placement(200, 100)
        >>> place.rows, place.columns
        (32, 16)
        """
        if self.canvas is None:
            raise UsageError(
                "Expected `canvas` to be set for detection and segmentation, got None. "
                "Set it to the height and width of the network's input."
            )
        return Placement.of(height, width, canvas=self.canvas)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings for JSON; ``canvas`` only if it is set, as in older model files."""
        values: dict[str, Any] = to_jsonable(self)
        if self.canvas is None:
            del values["canvas"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``as_dict`` wrote.

        Raises
        ------
        UsageError
            If a value is missing, unknown or invalid.
        """
        names = {field.name for field in fields(cls)}
        if not names - {"fit", "canvas"} <= set(values) <= names:
            raise UsageError(
                f"Expected preprocessing to have {sorted(names)}, got {sorted(values)}."
            )
        arguments: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
        }
        return cls(**arguments)

    def fingerprint(self) -> str:
        """Hash of the settings and of the code's version: equal hashes mean equal pixels.

        >>> rgb = (0.5, 0.5, 0.5)
        >>> Preprocess(
        ...     resize=256, crop=224, interpolation="bicubic", mean=rgb, std=rgb
        ... ).fingerprint()[:8]
        '648d6083'
        """
        text = json.dumps([RESIZE_VERSION, self.as_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def resize_and_crop(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an image, antialiased, and cut the central square.

        With ``canvas`` nothing is cut: the result is that of ``resize_only``, in its own memory.

        Parameters
        ----------
        pixels : array, uint8, shape (H, W, 3)

        Returns
        -------
        array, uint8, shape (*shape, 3)
            Own memory. Without ``canvas``, only the central part of images longer than 8 to 1
            is used.

        Raises
        ------
        UsageError
            If the array is not of that type and shape, or is empty.

        Examples
        --------
        >>> rgb = (0.5, 0.5, 0.5)
        >>> expects = Preprocess(resize=2, crop=2, interpolation="bilinear", mean=rgb, std=rgb)
        >>> expects.resize_and_crop(np.full((4, 8, 3), 7, dtype=np.uint8))[..., 0]
        array([[7, 7],
               [7, 7]], dtype=uint8)
        """
        if self.canvas is not None:
            return self.resize_only(pixels)
        return central_square(self.resize_only(pixels), self.crop).copy()

    def resize_only(
        self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        """Resize a whole image: the first step of ``resize_and_crop``.

        Parameters
        ----------
        pixels : array, uint8, shape (H, W, 3)
        size : (int, int), optional
            Height and width of the displayed image, if it was decoded smaller: it determines
            the position on the canvas, so that boxes and pixels agree.

        Returns
        -------
        array, uint8, shape (height, width, 3)
            Shorter side ``resize``, longer side at most 9 times that; both sides ``resize``
            with ``fit="squash"``. May be a view of ``pixels``. With ``canvas``: of its shape,
            filled around the image, in its own memory.

        Raises
        ------
        UsageError
            If the array is not of that type and shape, or is empty.

        Examples
        --------
        >>> rgb = (0.5, 0.5, 0.5)
        >>> expects = Preprocess(resize=4, crop=2, interpolation="bilinear", mean=rgb, std=rgb)
        >>> expects.resize_only(np.zeros((8, 12, 3), dtype=np.uint8)).shape
        (4, 6, 3)
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise UsageError(
                "Expected `pixels` to be uint8 of shape (H, W, 3), "
                f"got {pixels.dtype} of shape {pixels.shape}."
            )
        if self.canvas is not None:
            return self._paste_on_canvas(pixels, self.placement(*(size or pixels.shape[:2])))
        if self.fit == "crop":
            pixels = pixels[_central_part(*pixels.shape[:2])]
        height, width = self._resized_shape(pixels.shape[0], pixels.shape[1])
        if pixels.shape[:2] != (height, width):
            pixels = _resize(pixels, height, width, self.interpolation)
        return pixels

    def resize_and_crop_batch(self, batch: torch.Tensor) -> torch.Tensor:
        """Resize images of one size and cut their central squares: `resize_and_crop` on tensors.

        Parameters
        ----------
        batch : tensor, shape (n, 3, H, W)
            uint8, or floating point of any range.

        Returns
        -------
        tensor, shape (n, 3, *shape), of the type of ``batch``
            Equal to `resize_and_crop` for uint8 on the CPU. Floating point is not rounded: it
            differs by up to 1 of 255 levels.

        Raises
        ------
        UsageError
            If the images are placed on a canvas.

        Examples
        --------
        >>> import torch
        >>> rgb = (0.5, 0.5, 0.5)
        >>> expects = Preprocess(resize=2, crop=2, interpolation="bilinear", mean=rgb, std=rgb)
        >>> expects.resize_and_crop_batch(torch.full((1, 3, 4, 8), 0.5))[0, 0].tolist()
        [[0.5, 0.5], [0.5, 0.5]]
        """
        if self.canvas is not None:
            raise UsageError(
                f"Expected a preprocessing without a canvas, got canvas {self.canvas}. Resize each "
                "image with `resize_and_crop`."
            )
        if self.fit == "crop":
            rows, columns = _central_part(batch.shape[2], batch.shape[3])
            batch = batch[:, :, rows, columns]
        height, width = self._resized_shape(batch.shape[2], batch.shape[3])
        if tuple(batch.shape[2:]) != (height, width):
            batch = _resize_batch(batch, height, width, self.interpolation)
        rows, columns = _central_slices(height, width, self.crop)
        return batch[:, :, rows, columns]

    def normalise(self, batch: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normalise pixels for the first layer.

        Parameters
        ----------
        batch : tensor, uint8, shape (n, 3, H, W)
        dtype : torch.dtype, optional
            Of the result; float32 by default. The arithmetic is always in float32.

        Returns
        -------
        tensor, shape (n, 3, H, W)
            ``(batch / 255 - mean) / std``, in the memory format and on the device of ``batch``.
        """
        import torch

        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            raise UsageError(
                "Expected `batch` to be uint8 of shape (n, 3, H, W), "
                f"got {batch.dtype} of shape {tuple(batch.shape)}."
            )
        mean = torch.tensor(self.mean, device=batch.device).mul_(255)
        std = torch.tensor(self.std, device=batch.device).mul_(255)
        pixels = batch.permute(0, 2, 3, 1)
        if not pixels.is_contiguous():
            shape = (1, 3, 1, 1)
            normalised = batch.to(torch.float32).sub_(mean.view(shape)).div_(std.view(shape))
            return normalised.to(dtype or torch.float32)
        # Channels last: broadcast over whole rows, since broadcasting over 3 values is slow.
        n, height, width, _ = pixels.shape
        rows = pixels.reshape(n * height, width * 3).to(torch.float32)
        rows = rows.sub_(mean.repeat(width)).div_(std.repeat(width)).to(dtype or torch.float32)
        return rows.view(n, height, width, 3).permute(0, 3, 1, 2)

    def _paste_on_canvas(self, pixels: NDArray[np.uint8], place: Placement) -> NDArray[np.uint8]:
        canvas = np.empty((*place.canvas, 3), dtype=np.uint8)
        canvas[...] = self.fill
        if pixels.shape[:2] != (place.rows, place.columns):
            pixels = _resize(pixels, place.rows, place.columns, self.interpolation)
        canvas[: place.rows, : place.columns] = pixels
        return canvas

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing; the longer side is rounded down."""
        if self.fit == "squash":
            return self.resize, self.resize
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize


def _is_size(value: object) -> bool:
    """Whether a value is a height and a width in pixels."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(type(side) is int and side > 0 for side in value)
    )


def central_square(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the central square of an image, as a view.

    Parameters
    ----------
    pixels : array, uint8, shape (H, W, 3)
    side : int
        In pixels, at most H and W.

    Examples
    --------
    >>> central_square(np.arange(36, dtype=np.uint8).reshape(3, 4, 3), 1)[0, 0].tolist()
    [18, 19, 20]
    """
    rows, columns = _central_slices(pixels.shape[0], pixels.shape[1], side)
    return pixels[rows, columns]


def _central_slices(height: int, width: int, side: int) -> tuple[slice, slice]:
    # Python rounds halves to even, as the pretraining recipes do.
    top, left = (round((length - side) / 2) for length in (height, width))
    return slice(top, top + side), slice(left, left + side)


def to_channels_first(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return an image (H, W, C) as a tensor (C, H, W), without a copy if the array is writeable."""
    import torch

    # torch warns of read-only arrays, such as those that Pillow returns.
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)


def _central_part(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns without both ends of an image longer than 8 to 1."""
    longest = LONGEST_SIDE * min(height, width)
    top, left = (max(0, (side - longest) // 2) for side in (height, width))
    return slice(top, height - top), slice(left, width - left)


def _resize(
    pixels: NDArray[np.uint8], height: int, width: int, interpolation: Interpolation
) -> NDArray[np.uint8]:
    resized = _resize_batch(to_channels_first(pixels)[None], height, width, interpolation)
    return resized[0].permute(1, 2, 0).numpy()


def _resize_batch(
    batch: torch.Tensor, height: int, width: int, interpolation: Interpolation
) -> torch.Tensor:
    # torch's uint8 kernel on interleaved colours, which torchvision calls too: 3 to 5 times as
    # fast as Pillow, within 1 grey level of it (2 bicubic), and it releases the GIL.
    import torch
    from torch.nn.functional import interpolate

    size = (height, width)
    if batch.dtype == torch.uint8 and batch.device.type != "cpu":  # the kernel is for the CPU
        resized = interpolate(batch.float(), size=size, mode=interpolation, antialias=True)
        return resized.round().clamp(0, 255).to(torch.uint8)
    return interpolate(batch, size=size, mode=interpolation, antialias=True)
