"""Values of pixels: from any type and range to 8-bit RGB, and the options of decoding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UnreadableImageError, UsageError

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
    window: str | None
    bands: str | None
    band_range: str | None
    no_data: float | None


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
    window : str or None
        Center and width of the values of DICOM images that are shown, such as ``"40,400"``. None:
        the window in the file.
    bands : str or None
        Bands of TIFF images, and channels of arrays, that become red, green and blue, counted
        from 1, such as ``"4,3,2"``; one number is grey. None: the channels of the image.
    band_range : str or None
        Values of black and white in every band, such as ``"0,3000"``, or percentiles of each band
        of an image, such as ``"2%,98%"``, which is the default.
    no_data : float or None
        Value of pixels without data. None: the one in the file, if there is one.

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
    window: str | None = None
    bands: str | None = None
    band_range: str | None = None
    no_data: float | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("max_pixels", 1, MOST_IMAGE_BYTES), ("bits", 9, 16)):
            value = getattr(self, name)
            is_number = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (is_number and low <= value <= high):
                raise UsageError(
                    f"`{name}` must be a whole number from {low} to {high}, got {value!r}. Pass "
                    f"--{name.replace('_', '-')} with such a number."
                )
        _ = self.window_numbers, self.band_numbers, self.band_ends  # fail on an invalid value
        is_number = isinstance(self.no_data, int | float) and not isinstance(self.no_data, bool)
        if self.no_data is not None and not (is_number and math.isfinite(self.no_data)):
            raise UsageError(
                f"`no_data` must be a number, got {self.no_data!r}. Pass --no-data VALUE; NaN and "
                "infinity never count as data."
            )
        if self.bands is None and (self.band_range, self.no_data) != (None, None):
            raise UsageError(
                f"`band_range` {self.band_range!r} and `no_data` {self.no_data!r} need bands. Pass "
                "--bands, such as --bands 3,2,1, or remove them."
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
        names = ("bits", "window", "bands", "band_range", "no_data")
        texts = {name: getattr(self, name) for name in names}
        return " ".join(f"{name}={value}" for name, value in texts.items() if value is not None)

    @property
    def window_numbers(self) -> tuple[float, float] | None:
        """Center and width of the window of DICOM images.

        >>> ImageOptions(window="40,400").window_numbers
        (40.0, 400.0)
        """
        if self.window is None:
            return None
        numbers = _numbers_in(self.window)
        if len(numbers) != 2 or numbers[1] < 1:
            raise UsageError(
                "`window` must be a center and a width of at least 1, such as '40,400', got "
                f"{self.window!r}. Pass --window CENTER,WIDTH."
            )
        return numbers[0], numbers[1]

    @property
    def band_numbers(self) -> tuple[int, ...]:
        """Numbers of the bands that are shown, one or three; empty if none are named.

        >>> ImageOptions(bands="4,3,2").band_numbers
        (4, 3, 2)
        """
        if self.bands is None:
            return ()
        numbers = _numbers_in(self.bands)
        if len(numbers) not in {1, 3} or not all(n >= 1 and n == int(n) for n in numbers):
            raise UsageError(
                "`bands` must be one or three numbers from 1, such as '4,3,2', got "
                f"{self.bands!r}. Pass --bands RED,GREEN,BLUE or --bands GREY."
            )
        return tuple(map(int, numbers))

    @property
    def band_ends(self) -> tuple[float, float, bool]:
        """Values of black and white, and whether they are percentiles.

        >>> ImageOptions(bands="1", band_range="2%,98%").band_ends
        (2.0, 98.0, True)
        """
        text = "2%,98%" if self.band_range is None else self.band_range
        numbers = _numbers_in(text.replace("%", "") if isinstance(text, str) else text)
        are_percentiles = isinstance(text, str) and text.count("%") == 2
        is_valid = len(numbers) == 2 and numbers[0] < numbers[1] and str(text).count("%") in {0, 2}
        if not is_valid or (are_percentiles and not 0 <= numbers[0] < numbers[1] <= 100):
            raise UsageError(
                "`band_range` must be two values, such as '0,3000', or two percentiles, such as "
                f"'2%,98%', got {self.band_range!r}. Pass --band-range BLACK,WHITE."
            )
        return numbers[0], numbers[1], are_percentiles

    def require_pixels(self, width: int, height: int) -> None:
        """Refuse an image above the limit of pixels.

        Raises
        ------
        UnreadableImageError
            If it is larger; the message is the reason.
        """
        if width * height > self.max_pixels:
            raise UnreadableImageError(
                f"{width} x {height} pixels, which is above the limit of {self.max_pixels} "
                f"(--max-pixels {width * height} allows it, or use a smaller image)"
            )

    @property
    def white(self) -> int:
        """Value of white in 16-bit images."""
        return (1 << (self.bits or 16)) - 1


def _numbers_in(text: object) -> list[float]:
    """Finite numbers of a text such as ``"40,400"``; none if one of them is no number."""
    try:
        numbers = [float(part) for part in str(text).split(",")]
    except ValueError:
        return []
    return numbers if isinstance(text, str) and all(map(math.isfinite, numbers)) else []


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
