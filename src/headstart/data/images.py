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
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UnreadableImageError, UsageError
from headstart.files import is_file, read_bounded

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

__all__ = [
    "EXIF_TRANSFORMS",
    "MAX_PIXELS",
    "ImageHeader",
    "Pixels",
    "Source",
    "decode",
    "decode_file",
    "digest",
    "read_bytes",
    "read_header",
    "read_header_from_start",
    "unreadable_reason",
    "upright_size",
]

Pixels = NDArray[np.uint8]
Source: TypeAlias = "str | Path | bytes | NDArray[Any] | Image"

MAX_PIXELS = 178_956_970  # the same limit as that of Pillow for decompression bombs

# Formats of photographs. Left out on purpose: EPS (runs Ghostscript), TGA (has no signature, so
# any text may be taken for it), ICO (does not state the size of the image in it).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "QOI")
_ORIENTATION_TAG = 0x0112
MOST_IMAGE_BYTES = 2**31
_HEADER_BYTES = 65_536  # contain nearly every header, so that the rest need not be read
# Transformation from the stored to the upright image, by EXIF orientation; 1 is upright.
EXIF_TRANSFORMS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels[::-1].transpose(1, 0, 2),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}

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


def digest(source: Source) -> str:
    """Content identity of an image, independent of the path of the file.

    SHA-256 in hexadecimal: of the bytes of the file, or, for arrays and PIL images, of shape,
    type and pixels.

    Examples
    --------
    >>> digest(b"bytes of a file")[:12]
    'f875b6c3a4f8'
    """
    from PIL.Image import Image

    if isinstance(source, np.ndarray):
        _check_array(source)
        content = np.ascontiguousarray(source).tobytes()
        return hashlib.sha256(
            f"array {source.dtype.str} {source.shape} ".encode() + content
        ).hexdigest()
    if isinstance(source, Image):
        image = source.convert("RGBA") if source.mode in {"P", "PA"} else source
        extra = (source.mode, source.size, source.info.get("transparency"), _orientation(source))
        return hashlib.sha256(f"PIL {extra} ".encode() + image.tobytes()).hexdigest()
    return hashlib.sha256(read_bytes(source)).hexdigest()


def decode(source: Source, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Pixels:
    """Decode an image to upright 8-bit RGB.

    The EXIF rotation is applied. Grey becomes three equal channels, transparency becomes white,
    16-bit grey is scaled from its full range and never clipped. Of several frames the first is
    used.

    Parameters
    ----------
    source : Path, str, bytes, array or PIL image
        A file, its content, or pixels: uint8, bool, uint16, or float in [0, 1], of shape
        (H, W) or (H, W, C) with 1, 3 or 4 channels.
    max_pixels : int
        Largest width times height; a larger image is refused before it is decoded.
    at_least : int or None
        Decode a JPEG at 1/2, 1/4 or 1/8 of its size, as long as the shorter side keeps at least
        twice this many pixels: much faster for large photographs. The result is deterministic
        but differs slightly from a full decode, so training and inference must pass the same
        number.

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

    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image):
        return _decode_pixels(source, source, max_pixels, None, _orientation(source))
    return decode_file(source, max_pixels=max_pixels, at_least=at_least)[1]


def decode_file(
    source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> tuple[ImageHeader, Pixels]:
    """Decode a file and return header and pixels; ``n_frames`` of the header is always 1."""
    image, orientation = _open(read_bytes(source), source)
    image_header = _to_header(image, orientation)  # first: decoding may reduce the size
    return image_header, _decode_pixels(image, source, max_pixels, at_least, orientation)


def read_header(source: str | Path | bytes) -> ImageHeader:
    r"""Read the header of an image file without decoding the pixels.

    Examples
    --------
    >>> read_header(b"P5 2 1 255 \x00\xff")  # doctest: +NORMALIZE_WHITESPACE
    ImageHeader(format='PPM', width=2, height=1, mode='L', exif_orientation=1, n_frames=1)
    """
    image, orientation = _open(read_bytes(source), source)
    try:
        return _to_header(image, orientation, int(getattr(image, "n_frames", 1)))
    except Exception:  # noqa: BLE001 - a damaged later frame does not matter, it is not used
        return _to_header(image, orientation)


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


def _open(data: bytes, source: object) -> tuple[ImageFile, int]:
    """Open an image without Pillow's size check, which depends on global warning filters."""
    data, exif = _hide_exif(data)
    for name, open_image, accepts in _plugins():
        accepted = accepts(data[:16])
        if isinstance(accepted, str):
            raise _unreadable_error(source, f"{name}, which this build of Pillow does not support")
        if accepted:
            try:
                image = open_image(io.BytesIO(data), "")
            except Exception as error:  # decoders raise anything on damaged headers
                raise _unreadable_error(
                    source, f"a damaged {name} header{_error_text(error)}"
                ) from error
            return image, _parse_orientation(exif) if exif else _orientation(image)
    raise _unreadable_error(source, _describe_content(data))


def _hide_exif(data: bytes) -> tuple[bytes, bytes]:
    """Return the JPEG with its EXIF block hidden, and that block.

    Pillow reads the resolution from this block when it opens a file and warns if the block is
    damaged, as in many old photographs. Only the orientation is needed here.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return data, b""
    block, start = b"", 2
    hidden = bytearray(data)
    # Walk the JPEG segments up to the pixels: marker (2 bytes), length (2 bytes), content.
    while start + 10 <= len(data) and data[start] == 0xFF and data[start + 1] not in {0xD9, 0xDA}:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if data[start + 1] == 0xE1 and data[start + 4 : start + 10] == b"Exif\0\0":
            block = block or data[start + 10 : end]
            hidden[start + 4 : start + 8] = b"hide"
        start = end
    return (bytes(hidden), block) if block else (data, b"")


def _orientation(image: Image) -> int:
    tags = getattr(image, "tag_v2", None)  # a TIFF stores the orientation among its own tags
    if tags is not None:
        value = tags.get(_ORIENTATION_TAG, 1)
        return value if value in EXIF_TRANSFORMS else 1
    return _parse_orientation(image.info.get("exif", b""))


def _parse_orientation(exif: bytes) -> int:
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == _ORIENTATION_TAG:
                return int(value) if kind == 3 and value in EXIF_TRANSFORMS else 1
    except struct.error:  # a damaged block; the image itself may be readable
        return 1
    return 1


def _to_header(image: ImageFile, orientation: int, frames: int = 1) -> ImageHeader:
    is_sideways = orientation > 4 and image.format != "TIFF"  # Pillow rotates the size of a TIFF
    width, height = image.size[::-1] if is_sideways else image.size
    return ImageHeader(
        format="JPEG" if image.format == "MPO" else str(image.format),
        width=width,
        height=height,
        mode=image.mode,
        exif_orientation=orientation,
        n_frames=frames,
    )


def _decode_pixels(
    image: Image, source: object, max_pixels: int, at_least: int | None, orientation: int
) -> Pixels:
    width, height = image.size
    if width * height > max_pixels:
        raise _unreadable_error(
            source,
            f"{width} x {height} pixels, which is above the limit of {max_pixels}",
            "Make it smaller, or pass a larger `max_pixels`",
        )
    try:
        if at_least is not None and image.format in {"JPEG", "MPO"}:
            scale = 2 * at_least / min(width, height)
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        image.load()
        pixels = _to_rgb(image)
    except UnreadableImageError as error:
        raise _unreadable_error(source, str(error)) from None
    except Exception as error:  # decoders raise anything on damaged data
        raise _unreadable_error(source, f"damaged data{_error_text(error)}") from error
    if image.format == "TIFF" or orientation not in EXIF_TRANSFORMS:  # Pillow rotates TIFFs itself
        return pixels
    return np.ascontiguousarray(EXIF_TRANSFORMS[orientation](pixels))


def _to_rgb(image: Image) -> Pixels:
    if image.mode[0] in "IF":  # 16 bits, 32 bits, floating point
        values, white = np.asarray(image), 1 if image.mode == "F" else 65535
        if not (values.min() >= 0 and values.max() <= white):  # false for NaN, too
            raise UnreadableImageError(f"grey values outside 0 to {white} (rescale them)")
        return _grey_to_rgb(_scale_to_8_bits(values, white))
    if image.has_transparency_data:
        return _blend_on_white(np.asarray(image.convert("RGBA")))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(array: NDArray[Any]) -> Pixels:
    _check_array(array)
    white = {"b": 1, "f": 1, "u": 255 if array.dtype.itemsize == 1 else 65535}[array.dtype.kind]
    pixels = array if white == 255 else _scale_to_8_bits(array, white)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return _grey_to_rgb(pixels.reshape(pixels.shape[:2]))
    return _blend_on_white(pixels) if pixels.shape[2] == 4 else np.array(pixels, order="C")


def _check_array(array: NDArray[Any]) -> None:
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


def _scale_to_8_bits(values: NDArray[Any], white: int) -> Pixels:
    return np.rint(values * np.float32(255 / white)).astype(np.uint8)


def _grey_to_rgb(pixels: Pixels) -> Pixels:
    return np.repeat(pixels[:, :, None], 3, axis=2)


def _blend_on_white(pixels: Pixels) -> Pixels:
    alpha = pixels[:, :, 3:].astype(np.uint16)
    return ((pixels[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


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


def upright_size(source: Source) -> tuple[int, int]:
    r"""Height and width of the upright image, after its EXIF rotation.

    Parameters
    ----------
    source : Path, str, bytes, array or PIL image
        Of a file only the header is read.

    Returns
    -------
    (int, int)
        In pixels.

    Raises
    ------
    UnreadableImageError
        If the source is not a readable image.

    Examples
    --------
    >>> upright_size(b"P5 2 1 255 \x00\xff"), upright_size(np.zeros((3, 4, 3)))
    ((1, 2), (3, 4))
    """
    if isinstance(source, bytes):
        image_header = read_header(source)
        return image_header.height, image_header.width
    if isinstance(source, str | os.PathLike):
        image_header = read_header_from_start(source)
        return image_header.height, image_header.width
    if isinstance(source, np.ndarray):
        return source.shape[0], source.shape[1]
    height, width = decode(source).shape[:2]
    return height, width


def read_header_from_start(source: str | os.PathLike[str]) -> ImageHeader:
    """Read the header of an image file from its first 64 KB, or else from the whole file.

    Raises
    ------
    UnreadableImageError
        If the file is not a readable image.

    Examples
    --------
    >>> read_header_from_start("no-such.jpg")
    Traceback (most recent call last):
    headstart.errors.UnreadableImageError: Expected no-such.jpg to be a readable image, got \
no such file. Replace it or remove it.
    """
    path = Path(source)
    start = _read_start(path)
    if start is not None:
        try:
            return read_header(start)
        except UnreadableImageError:  # the header of a TIFF may be at the end of the file
            pass
    return read_header(path)


def _read_start(path: Path) -> bytes | None:
    """Read the first bytes of a file; None if the file is not longer, or cannot be read."""
    if not is_file(path):  # a pipe might never end
        return None
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
    except (OSError, ValueError):  # `read_header` raises the error with the reason
        return None
    return start if len(start) == _HEADER_BYTES else None
