"""Image decoder: any image to upright 8-bit RGB, or an error with the reason.

Training and inference must use the same pixels, so this is the only module that decodes images.
It also reads headers, sizes and content digests of images.
Embedded colour profiles are not applied; a wide-gamut image looks slightly paler.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headstart.data import tiff
from headstart.data.bands import bands_to_rgb, decode_bands
from headstart.data.dicom import DicomHeader, decode_dicom, is_dicom, read_dicom_header
from headstart.data.orientation import (
    EXIF_TRANSFORMS,
    info_orientation,
    png_orientation,
    split_jpeg,
    without_png_text,
)
from headstart.data.pixel_values import (
    DEFAULT_OPTIONS,
    MAX_PIXELS,
    MOST_IMAGE_BYTES,
    ImageOptions,
    Pixels,
    array_to_rgb,
    blend_on_white,
    check_array,
    grey_to_rgb,
    scale_to_8_bits,
)
from headstart.errors import UnreadableImageError, UsageError
from headstart.files import read_bounded

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

__all__ = [
    "DEFAULT_OPTIONS",
    "MAX_PIXELS",
    "ImageHeader",
    "ImageOptions",
    "Pixels",
    "Source",
    "decode",
    "decode_file",
    "digest",
    "open_image",
    "read_bytes",
    "read_header",
    "unreadable_reason",
]

Source: TypeAlias = "str | Path | bytes | NDArray[Any] | Image"


# Formats of photographs. Left out on purpose: EPS (runs Ghostscript), TGA (has no signature, so
# any text may be taken for it), ICO (does not state the size of the image in it).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "QOI")

# Texts of Pillow's errors for TIFFs that are whole, but of a kind that it does not read.
_UNSUPPORTED_TIFF = (
    "unknown pixel mode",
    "unknown data organization",
    "Invalid value for samples per pixel",
    "not yet supported",
    "Missing dimensions",
    "string index out of range",
    "not identified by this driver",
)

_NO_BANDS: dict[str, Any] = {"band_range": None, "no_data": None}

_KNOWN_SIGNATURES = {
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing, which has no pixels",
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript drawing",
    b"pk\x03\x04": "a ZIP archive",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """Header of an image file.

    ``width`` and ``height`` are those of the upright image. ``exif_orientation`` is 1 (stored
    upright) to 8. Of ``n_frames`` frames only the first is decoded.
    """

    format: str
    width: int
    height: int
    mode: str
    exif_orientation: int
    n_frames: int


class _Opened(NamedTuple):
    """An image whose header was read, and what the decoder must do with its pixels."""

    image: Image
    orientation: int
    is_inverted: bool = False
    data: bytes = b""


def read_bytes(source: str | Path | bytes) -> bytes:
    """Read the bytes of an image file.

    Raises
    ------
    UnreadableImageError
        If the file is missing, empty, a folder, or not readable.

    Examples
    --------
    >>> read_bytes(Path("no-such.jpg"))
    Traceback (most recent call last):
    headstart.errors.UnreadableImageError: Expected no-such.jpg to be a readable image, got \
no such file. Replace it or remove it.
    """
    try:
        data = source if isinstance(source, bytes) else read_bounded(Path(source), MOST_IMAGE_BYTES)
    except FileNotFoundError:
        raise _unreadable_error(source, "no such file") from None
    except (OSError, ValueError) as error:
        is_folder = isinstance(error, IsADirectoryError)
        reason = "a folder" if is_folder else f"a file that cannot be read{_error_text(error)}"
        raise _unreadable_error(source, reason) from error
    if not data:
        raise _unreadable_error(source, "an empty file")
    return data


def digest(source: Source, options: ImageOptions = DEFAULT_OPTIONS) -> str:
    """Content identity of an image, independent of the path of the file.

    SHA-256 in hexadecimal: of the bytes of the file, or, for arrays and PIL images, of shape,
    type and pixels; and of the options that change the pixels, if there are any.

    Examples
    --------
    >>> digest(b"bytes of a file")[:12]
    'f875b6c3a4f8'
    """
    identity = _content_digest(source, options)
    if not options.identity:
        return identity
    return hashlib.sha256(f"{identity} {options.identity}".encode()).hexdigest()


def _content_digest(source: Source, options: ImageOptions) -> str:
    from PIL.Image import Image

    if isinstance(source, np.ndarray):
        if options.bands is None:
            check_array(source)
        content = np.ascontiguousarray(source).tobytes()
        return hashlib.sha256(
            f"array {source.dtype.str} {source.shape} ".encode() + content
        ).hexdigest()
    if isinstance(source, Image):
        image = source.convert("RGBA") if source.mode in {"P", "PA"} else source
        extra = (source.mode, source.size, source.info.get("transparency"), _orientation(source))
        return hashlib.sha256(f"PIL {extra} ".encode() + image.tobytes()).hexdigest()
    return hashlib.sha256(read_bytes(source)).hexdigest()


def decode(
    source: Source, *, at_least: int | None = None, options: ImageOptions = DEFAULT_OPTIONS
) -> Pixels:
    """Decode an image to upright 8-bit RGB.

    The rotation by EXIF or XMP is applied. Grey becomes three equal channels, transparency becomes
    white, 16 bits are scaled from their full range and never clipped. Of several frames the first
    is used.

    Parameters
    ----------
    source : Path, str, bytes, array or PIL image
        A file, its content, or pixels: uint8, bool, uint16, or float in [0, 1], of shape
        (H, W) or (H, W, C) with 1, 3 or 4 channels.
    at_least : int or None
        Decode a JPEG at 1/2, 1/4 or 1/8 of its size, as long as the shorter side keeps at least
        twice this many pixels: much faster for large photographs. The result is deterministic
        but differs slightly from a full decode, so a network must not see it: an array of the
        same photograph would get other predictions.
    options : ImageOptions

    Returns
    -------
    array
        Shape (H, W, 3), uint8, contiguous and writable.

    Raises
    ------
    UnreadableImageError
        If the file cannot be decoded; the message has the reason.
    UsageError
        If an array has another shape, type or range.

    Examples
    --------
    >>> decode(np.array([[0.0, 1.0]]))
    array([[[  0,   0,   0],
            [255, 255, 255]]], dtype=uint8)
    """
    from PIL.Image import Image

    if isinstance(source, np.ndarray | Image) and options.bands is not None:
        return _decode_array_bands(source, options)
    if isinstance(source, np.ndarray):
        return array_to_rgb(source, options)
    if isinstance(source, Image):
        return _decode_opened(_reopen(source), source, None, options)
    return decode_file(source, at_least=at_least, options=options)[1]


def decode_file(
    source: str | Path | bytes,
    *,
    at_least: int | None = None,
    options: ImageOptions = DEFAULT_OPTIONS,
    count_frames: bool = False,
) -> tuple[ImageHeader, Pixels]:
    """Decode a file and return header and pixels; ``n_frames`` is 1 unless frames are counted."""
    data = read_bytes(source)
    if options.bands is not None:
        return _decode_file_bands(data, source, options)
    if is_dicom(data):
        return _decode_dicom(data, source, options)
    opened = _open(data, source)
    image_header = _to_header(opened)  # first: decoding may reduce the size
    pixels = _decode_opened(opened, source, at_least, options)
    if count_frames:
        image_header = replace(image_header, n_frames=_count_frames(opened))
    return image_header, pixels


def read_header(source: str | Path | bytes) -> ImageHeader:
    r"""Read the header of an image file without decoding the pixels.

    Examples
    --------
    >>> read_header(b"P5 2 1 255 \x00\xff")  # doctest: +NORMALIZE_WHITESPACE
    ImageHeader(format='PPM', width=2, height=1, mode='L', exif_orientation=1, n_frames=1)
    """
    data = read_bytes(source)
    if is_dicom(data):
        try:
            return _from_dicom(read_dicom_header(data))
        except UnreadableImageError as error:
            raise _unreadable_error(source, str(error)) from None
    if tiff.is_unsupported(data) and (size := tiff.upright_size(data)):
        return _header_of_bands(data, size)  # decoding says why, if no bands are named
    opened = _open(data, source)
    return replace(_to_header(opened), n_frames=_count_frames(opened))


def _decode_dicom(data: bytes, source: object, options: ImageOptions) -> tuple[ImageHeader, Pixels]:
    try:
        header, pixels = decode_dicom(data, options)
    except UnreadableImageError as error:
        raise _unreadable_error(source, str(error)) from None
    return _from_dicom(header), pixels


def _from_dicom(header: DicomHeader) -> ImageHeader:
    return ImageHeader(format="DICOM", exif_orientation=1, **header._asdict())


def _decode_file_bands(
    data: bytes, source: object, options: ImageOptions
) -> tuple[ImageHeader, Pixels]:
    """Decode the bands that the options name; the channels of other files are their bands."""
    if not data.startswith((b"II", b"MM")):
        header, pixels = decode_file(data, options=replace(options, bands=None, **_NO_BANDS))
        try:
            return header, bands_to_rgb(pixels, options)
        except UnreadableImageError as error:
            raise _unreadable_error(source, str(error)) from None
    try:
        pixels = decode_bands(data, options)
    except UnreadableImageError as error:
        raise _unreadable_error(source, str(error)) from None
    height, width = pixels.shape[:2]
    image_header = _header_of_bands(data, (width, height))
    are_pages = max(options.band_numbers) > 1 and image_header.mode.startswith("1 band ")
    return (replace(image_header, n_frames=1) if are_pages else image_header), pixels


def _header_of_bands(data: bytes, size: tuple[int, int]) -> ImageHeader:
    return ImageHeader(
        format="TIFF",
        width=size[0],
        height=size[1],
        mode=str(tiff.describe_tiff(data)).split(",")[0],
        exif_orientation=1,
        n_frames=tiff.count_pages(data),
    )


def _decode_array_bands(source: NDArray[Any] | Image, options: ImageOptions) -> Pixels:
    no_data = None if isinstance(source, np.ndarray) else _tiff_tag(source, tiff.NO_DATA)
    try:
        return bands_to_rgb(np.asarray(source), options, no_data=tiff.parse_no_data(no_data))
    except UnreadableImageError as error:
        raise UsageError(f"The image has {error}. Pass an image of the bands.") from None


def open_image(data: bytes, source: object) -> Image:
    """Open the content of an image file with Pillow, without decoding its pixels.

    Raises
    ------
    UnreadableImageError
        If the header cannot be read; the message names ``source``.
    """
    return _open(data, source).image


def _count_frames(opened: _Opened) -> int:
    if opened.image.format == "TIFF":
        return tiff.count_pages(opened.data)
    try:
        return int(getattr(opened.image, "n_frames", 1))
    except Exception:  # noqa: BLE001 - a damaged later frame does not matter, it is not used
        return 1


def unreadable_reason(error: UnreadableImageError) -> str:
    """Extract the reason from an error of this module, without file name and advice.

    Examples
    --------
    >>> try: decode(b"<html>not found</html>")
    ... except UnreadableImageError as error: unreadable_reason(error)
    'an HTML page'
    """
    return str(error).rpartition(" to be a readable image, got ")[2].rpartition(". ")[0]


def _unreadable_error(
    source: object, reason: str, advice: str = "Replace it or remove it"
) -> UnreadableImageError:
    """Error with one sentence of advice; `unreadable_reason` relies on this form."""
    name = str(source) if isinstance(source, str | os.PathLike) else "the data"
    return UnreadableImageError(
        f"Expected {name} to be a readable image, got {reason.replace('; ', ', ')}. {advice}."
    )


@cache
def _plugins() -> tuple[tuple[str, Callable[..., ImageFile], Callable[[bytes], Any]], ...]:
    from PIL import Image

    Image.init()
    plugins = ((name, *Image.OPEN[name]) for name in FORMATS if name in Image.OPEN)
    return tuple(
        (name, open_image, accepts) for name, open_image, accepts in plugins if accepts is not None
    )


def _open(data: bytes, source: object) -> _Opened:
    """Open an image without Pillow's size check, which depends on global warning filters."""
    data, jpeg_orientation = split_jpeg(data)
    for name, open_image, accepts in _plugins():
        accepted = accepts(data[:16])
        if isinstance(accepted, str):
            raise _unreadable_error(source, f"{name}, which this build of Pillow does not support")
        if not accepted:
            continue
        plain, is_inverted = without_png_text(data) if name == "PNG" else data, False
        if name == "TIFF":
            if tiff.is_unsupported(data) and (kind := tiff.describe_tiff(data)):
                raise _unsupported_tiff_error(source, kind)
            plain, is_inverted = tiff.minimum_is_black(data)
        try:
            image = open_image(io.BytesIO(plain), "")
        except Exception as error:  # decoders raise anything on damaged headers
            raise _header_error(source, name, data, error) from error
        if name == "JPEG":
            orientation = jpeg_orientation
        else:
            orientation = (
                png_orientation(io.BytesIO(data)) if name == "PNG" else _orientation(image)
            )
        return _Opened(image, orientation, is_inverted, plain)
    raise _unreadable_error(source, _describe_content(data))


def _header_error(source: object, name: str, data: bytes, error: Exception) -> UnreadableImageError:
    text = _error_text(error)
    is_known = any(words in text for words in _UNSUPPORTED_TIFF) or isinstance(error, OSError)
    kind = tiff.describe_tiff(data) if name == "TIFF" and is_known else None
    if kind is None:
        return _unreadable_error(source, f"a damaged {name} header{text}")
    return _unsupported_tiff_error(source, kind)


def _unsupported_tiff_error(source: object, kind: str) -> UnreadableImageError:
    flag = "" if "complex" in kind else f"--bands {'1' if kind[:2] in {'1 ', '2 '} else '3,2,1'}"
    return _unreadable_error(
        source,
        f"a TIFF of a kind that is not supported {f'without {flag} ' if flag else ''}({kind})",
        f"{f'Pass {flag} to choose the bands, or convert' if flag else 'Convert'} it to 8-bit RGB "
        "or grey",
    )


def _reopen(image: Image) -> _Opened:
    """Return a Pillow image as `_open` does; one that is not loaded is read from its file."""
    if _deep_rawmode(image) is not None and not image.info.get("transparency"):
        file: Any = getattr(image, "fp", None)
        with suppress(AttributeError, OSError, ValueError):  # the file was closed or is no file
            file.seek(0)
            return _open(file.read(), image)
    is_inverted = image.mode[0] in "IF" and _tiff_tag(image, tiff.PHOTOMETRIC) == 0
    if image.format == "PNG":
        image.load()  # the orientation may be behind the pixels
    return _Opened(image, _orientation(image), is_inverted)


def _tiff_tag(image: Image, tag: int) -> Any:
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else tags.get(tag)


def _orientation(image: Image) -> int:
    value = _tiff_tag(image, 0x0112)  # a TIFF stores the orientation among its own tags
    if value is not None:
        return int(value) if value in EXIF_TRANSFORMS else 1
    return info_orientation(image.info)


def _to_header(opened: _Opened) -> ImageHeader:
    image, orientation = opened.image, opened.orientation
    # Pillow has rotated the size of a TIFF already, unless its orientation is in XMP.
    is_rotated = image.format == "TIFF" and _tiff_tag(image, 0x0112) is not None
    width, height = image.size[::-1] if orientation > 4 and not is_rotated else image.size
    return ImageHeader(
        format="JPEG" if image.format == "MPO" else str(image.format),
        width=width,
        height=height,
        mode=image.mode if _deep_rawmode(image) is None else f"{image.mode};16",
        exif_orientation=orientation,
        n_frames=1,
    )


def _deep_rawmode(image: Image) -> str | None:
    """Layout of a colour image with 16 bits, of which Pillow keeps 8; None for other images."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0].args if tiles else ""
    rawmode = arguments if isinstance(arguments, str) else arguments[0]
    is_deep = isinstance(rawmode, str) and re.fullmatch(r"RGB[AX]?;16[BLN]", rawmode)
    # Of a TIFF with one plane per band, Pillow gives the upper bytes in any case.
    return rawmode if is_deep and _tiff_tag(image, 284) != 2 else None


def _decode_opened(
    opened: _Opened, source: object, at_least: int | None, options: ImageOptions
) -> Pixels:
    image, orientation = opened.image, opened.orientation
    width, height = image.size
    try:
        options.require_pixels(width, height)
    except UnreadableImageError as error:
        advice = "Pass the flag, or make the image smaller"
        raise _unreadable_error(source, str(error), advice) from None
    try:
        if at_least is not None and image.format in {"JPEG", "MPO"}:
            scale = 2 * at_least / min(width, height)
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        pixels = _to_rgb(opened, options)
    except UnreadableImageError as error:
        raise _unreadable_error(source, str(error)) from None
    except Exception as error:  # decoders raise anything on damaged data
        raise _unreadable_error(source, f"damaged data{_error_text(error)}") from error
    if image.format == "TIFF" or orientation not in EXIF_TRANSFORMS:  # Pillow rotates TIFFs itself
        return pixels
    return np.ascontiguousarray(EXIF_TRANSFORMS[orientation](pixels))


def _to_rgb(opened: _Opened, options: ImageOptions) -> Pixels:
    image, rawmode = opened.image, _deep_rawmode(opened.image)
    is_packed = bool(getattr(image, "tile", ())) and "I;12" in str(image.tile[0].args)  # type: ignore[attr-defined]
    image.load()
    if image.mode[0] in "IF":  # 16 bits, 32 bits, floating point
        white = 1 if image.mode == "F" else 4095 if is_packed else options.white
        values = _within_range(np.asarray(image), white, is_tiff=image.format == "TIFF")
        return grey_to_rgb(scale_to_8_bits(white - values if opened.is_inverted else values, white))
    if rawmode is not None and opened.data and "transparency" not in image.info:
        values = _within_range(_deep_values(opened, rawmode), options.white)
        pixels = scale_to_8_bits(values, options.white)
        return blend_on_white(pixels) if pixels.shape[2] == 4 else pixels
    if options.bits is not None and _tiff_tag(image, 284) == 2 and 16 in _tiff_tag(image, 258):
        raise UnreadableImageError(
            f"16 bits in one plane per band and `bits` {options.bits} (save the bands together)"
        )
    if image.has_transparency_data:
        return blend_on_white(np.asarray(image.convert("RGBA")))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _within_range(values: NDArray[Any], white: int, *, is_tiff: bool = False) -> NDArray[Any]:
    if not (values.min() >= 0 and values.max() <= white):  # false for NaN, too
        flag = ", or pass --bands 1" if is_tiff else ""
        raise UnreadableImageError(f"values outside 0 to {white} (rescale them{flag})")
    return values


def _deep_values(opened: _Opened, rawmode: str) -> NDArray[np.uint16]:
    """All 16 bits of a colour image: Pillow keeps the upper byte, and with bytes swapped the lower.

    The upper bytes are loaded already.
    """
    upper = np.asarray(opened.image).astype(np.uint16)
    swapped = _open(opened.data, "").image
    little = rawmode[-1] == "L" or (rawmode[-1] == "N" and sys.byteorder == "little")
    other = rawmode[:-1] + ("B" if little else "L")
    swapped.tile = [  # type: ignore[attr-defined]
        tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:]))
        for tile in swapped.tile  # type: ignore[attr-defined]
    ]
    swapped.load()
    values: NDArray[np.uint16] = upper << np.uint16(8) | np.asarray(swapped)
    return values


def _error_text(error: Exception) -> str:
    text = "not enough memory" if isinstance(error, MemoryError) else " ".join(str(error).split())
    return f" ({text})" if text else ""


def _describe_content(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    for signature, description in _KNOWN_SIGNATURES.items():
        if start.startswith(signature):
            return description
    if data[4:12] in {b"ftypheic", b"ftypheix", b"ftypmif1"}:
        return "a HEIC image (convert it to JPEG)"
    if not start.strip(b"\0"):
        return "a file of zeros"
    readable = data[:512].isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in data[:512])
    return "a text file" if readable else "a file of an unknown format"
