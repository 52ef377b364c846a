"""Values of pixels: from any type and range to 8-bit RGB, and the options of decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UsageError

__all__ = [
    "DEFAULT_OPTIONS",
    "MAX_PIXELS",
    "MOST_IMAGE_BYTES",
    "ImageOptions",
    "ImageSettings",
    "Pixels",
    "array_to_rgb",
    "blend_on_white",
    "check_array",
    "grey_to_rgb",
    "scale_to_8_bits",
]

Pixels = NDArray[np.uint8]

MAX_PIXELS = 178_956_970  # the same limit as that of Pillow for decompression bombs
MOST_IMAGE_BYTES = 2**31


class ImageSettings(TypedDict, total=False):
    """Keywords of `read_dataset` about images: the fields of `ImageOptions`."""

    max_pixels: int | None
    bits: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """How to decode images whose files do not say it.

    Parameters
    ----------
    max_pixels : int
        Largest width times height; a larger image is refused before it is decoded.
    bits : int or None
        Bits that the values of 16-bit images use, 9 to 16, such as 12 for values up to 4095.
        None: 16, unless the file states 12.

    Raises
    ------
    UsageError
        If a value is invalid.

    Examples
    --------
    >>> ImageOptions(bits=12).white
    4095
    """

    max_pixels: int = MAX_PIXELS
    bits: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("max_pixels", 1, MOST_IMAGE_BYTES), ("bits", 9, 16)):
            value = getattr(self, name)
            is_number = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (is_number and low <= value <= high):
                raise UsageError(
                    f"`{name}` must be a whole number from {low} to {high}, got {value!r}. Pass "
                    f"--{name.replace('_', '-')} with such a number."
                )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Make the options from settings, of which those that are None have their defaults.

        >>> ImageOptions.of({"bits": 12, "max_pixels": None}).as_dict()
        {'bits': 12}
        """
        return cls(**{name: value for name, value in settings.items() if value is not None})

    def with_max_pixels(self, max_pixels: int | None) -> Self:
        """Return the options with another limit of pixels; None keeps the limit."""
        return self if max_pixels is None else replace(self, max_pixels=max_pixels)

    def as_dict(self) -> dict[str, Any]:
        """Settings that differ from their defaults, as JSON values."""
        values = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    @property
    def identity(self) -> str:
        """Text of the settings that change pixels; empty if all have their defaults."""
        return "" if self.bits is None else f"bits={self.bits}"

    @property
    def white(self) -> int:
        """Value of white in 16-bit images."""
        return (1 << (self.bits or 16)) - 1


DEFAULT_OPTIONS = ImageOptions()


def array_to_rgb(array: NDArray[Any], options: ImageOptions = DEFAULT_OPTIONS) -> Pixels:
    """Turn an array of pixels into 8-bit RGB; transparency becomes white.

    Raises
    ------
    UsageError
        If the array has another shape, type or range.

    Examples
    --------
    >>> array_to_rgb(np.array([[0, 4095]], np.uint16), ImageOptions(bits=12))[0, :, 0]
    array([  0, 255], dtype=uint8)
    """
    check_array(array)
    kind = "u1" if array.dtype.itemsize == 1 and array.dtype.kind == "u" else array.dtype.kind
    white = {"b": 1, "f": 1, "u1": 255, "u": options.white}[kind]
    if kind == "u" and array.max() > white:
        raise UsageError(
            f"`bits` {options.bits} allows values up to {white}, got {array.max()} in an array. "
            "Pass a larger number of bits."
        )
    pixels = array if white == 255 else scale_to_8_bits(array, white)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return grey_to_rgb(pixels.reshape(pixels.shape[:2]))
    return blend_on_white(pixels) if pixels.shape[2] == 4 else np.array(pixels, order="C")


def check_array(array: NDArray[Any]) -> None:
    """Refuse an array that is no image.

    Raises
    ------
    UsageError
        If its shape, type or range is not supported.

    Examples
    --------
    >>> check_array(np.zeros((4, 5)))
    """
    shape = array.shape
    if (
        array.size == 0
        or len(shape) not in {2, 3}
        or (len(shape) == 3 and shape[2] not in {1, 3, 4})
    ):
        raise UsageError(
            f"Expected an array of shape (H, W) or (H, W, C) with 1, 3 or 4 channels, got {shape}. "
            "Move the channels to the last axis with numpy.transpose."
        )
    if array.dtype.kind not in "bf" and array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise UsageError(
            f"Expected an array of uint8, uint16, bool or float, got {array.dtype}. Convert it "
            "with array.astype."
        )
    if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise UsageError(
            f"Expected float pixels in [0, 1], got {array.min():.4g} to {array.max():.4g}. "
            "Divide them by their largest possible value, such as 255."
        )


def scale_to_8_bits(values: NDArray[Any], white: int) -> Pixels:
    """Scale values from 0 to ``white`` to 0 to 255.

    >>> scale_to_8_bits(np.array([0, 4095]), 4095)
    array([  0, 255], dtype=uint8)
    """
    return np.rint(values * np.float32(255 / white)).astype(np.uint8)


def grey_to_rgb(pixels: Pixels) -> Pixels:
    """Repeat grey values, shape (H, W), as three channels.

    >>> grey_to_rgb(np.array([[7]], dtype=np.uint8))
    array([[[7, 7, 7]]], dtype=uint8)
    """
    return np.repeat(pixels[:, :, None], 3, axis=2)


def blend_on_white(pixels: Pixels) -> Pixels:
    """Lay pixels of shape (H, W, 4), whose last channel is the opacity, on white.

    >>> blend_on_white(np.array([[[9, 9, 9, 0]]], dtype=np.uint8))
    array([[[255, 255, 255]]], dtype=uint8)
    """
    alpha = pixels[:, :, 3:].astype(np.uint16)
    return ((pixels[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
