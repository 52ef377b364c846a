"""The one decoder: any image in, upright 8-bit RGB out, or an error that says why not.

Training and inference must see the same pixels, so this is the only place that decodes.
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

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

__all__ = [
    "MAX_PIXELS",
    "TURNS",
    "ImageHeader",
    "Pixels",
    "Source",
    "decode",
    "decode_file",
    "digest",
    "header",
    "read_bytes",
    "reason",
    "shown_size",
]

Pixels = NDArray[np.uint8]
Source: TypeAlias = "str | Path | bytes | NDArray[Any] | Image"

MAX_PIXELS = 178_956_970  # where Pillow, too, calls an image a decompression bomb

# Those that photographs come in. Left out on purpose: EPS (runs Ghostscript), TGA (has no
# signature, so that any text may pass for it), ICO (hides the size of what it contains).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "QOI")
_ORIENTATION_TAG = 0x0112
TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What an image's file says about itself.

    ``width`` and ``height`` are those of the upright image; ``exif_orientation`` is how it
    is stored, 1 (upright) to 8; of ``n_frames`` only the first is ever decoded.
    """

    format: str
    width: int
    height: int
    mode: str
    exif_orientation: int
    n_frames: int


def read_bytes(source: str | Path | bytes) -> bytes:
    """The bytes of an image's file.

    Raises
    ------
    UnreadableImageError
        If the file is missing, empty, a folder, or may not be read.

    Examples
    --------
    >>> read_bytes(Path("no-such.jpg"))
    Traceback (most recent call last):
    headstart.errors.UnreadableImageError: Expected no-such.jpg to be a readable image, got \
no such file; replace it or leave it out.
    """
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except FileNotFoundError:
        raise _refuse(source, "no such file") from None
    except (OSError, ValueError) as error:
        folder = isinstance(error, OSError) and Path(str(source)).is_dir()
        why = "a folder" if folder else f"a file that cannot be read{_said(error)}"
        raise _refuse(source, why) from error
    if not data:
        raise _refuse(source, "an empty file")
    return data


def digest(source: Source) -> str:
    """Identity of an image's content, the same wherever the file lies.

    SHA-256 in hexadecimal: of the file's bytes, or, for arrays and PIL images, of shape,
    type and pixels.

    Examples
    --------
    >>> digest(b"bytes of a file")[:12]
    'f875b6c3a4f8'
    """
    from PIL.Image import Image

    if isinstance(source, np.ndarray):
        _check_array(source)
        body = np.ascontiguousarray(source).tobytes()
        return hashlib.sha256(
            f"array {source.dtype.str} {source.shape} ".encode() + body
        ).hexdigest()
    if isinstance(source, Image):
        plain = source.convert("RGBA") if source.mode in {"P", "PA"} else source
        extra = (source.mode, source.size, source.info.get("transparency"), _orientation(source))
        return hashlib.sha256(f"PIL {extra} ".encode() + plain.tobytes()).hexdigest()
    return hashlib.sha256(read_bytes(source)).hexdigest()


def decode(source: Source, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Pixels:
    """Decode an image to upright 8-bit RGB.

    Turned as EXIF says; grey as three equal channels; transparency on white; 16-bit grey
    scaled from its full range, never clipped; of several frames the first.

    Parameters
    ----------
    source : Path, str, bytes, array or PIL image
        A file, its content, or pixels: uint8, bool, uint16, or float in [0, 1], of shape
        (H, W) or (H, W, C) with 1, 3 or 4 channels.
    max_pixels : int
        Width times height above which the image is refused before it is decoded.
    at_least : int or None
        Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size as long as the shorter side
        stays at least twice this many pixels: much faster for large photographs. The
        result is deterministic but differs slightly from a full decode, so training and
        inference must pass the same number.

    Returns
    -------
    array
        Shape (H, W, 3), uint8, contiguous and writable.

    Raises
    ------
    UnreadableImageError
        If the file cannot be decoded; the message says why.
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
        return _pixels(source, source, max_pixels, None, _orientation(source))
    return decode_file(source, max_pixels=max_pixels, at_least=at_least)[1]


def decode_file(
    source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> tuple[ImageHeader, Pixels]:
    """Header and pixels of a file at once, as `decode`; ``n_frames`` is not counted and 1."""
    image, orientation = _open(read_bytes(source), source)
    found = _header(image, orientation)
    return found, _pixels(image, source, max_pixels, at_least, orientation)


def header(source: str | Path | bytes) -> ImageHeader:
    r"""What the file of an image says about itself, without decoding it.

    Examples
    --------
    >>> header(b"P5 2 1 255 \x00\xff")  # doctest: +NORMALIZE_WHITESPACE
    ImageHeader(format='PPM', width=2, height=1, mode='L', exif_orientation=1, n_frames=1)
    """
    image, orientation = _open(read_bytes(source), source)
    try:
        return _header(image, orientation, int(getattr(image, "n_frames", 1)))
    except Exception:  # noqa: BLE001 - whatever is wrong with a later frame, it is not used
        return _header(image, orientation)


def reason(error: UnreadableImageError) -> str:
    """The reason alone of an error raised here, without the file's name and the advice.

    Examples
    --------
    >>> try: decode(b"<html>not found</html>")
    ... except UnreadableImageError as error: reason(error)
    'an HTML page'
    """
    return str(error).rpartition(" to be a readable image, got ")[2].rpartition("; ")[0]


def _refuse(source: object, why: str, advice: str = "") -> UnreadableImageError:
    name = str(source) if isinstance(source, str | os.PathLike) else "the data"
    return UnreadableImageError(
        f"Expected {name} to be a readable image, got {why.replace('; ', ', ')}; "
        f"{advice or 'replace it or leave it out'}."
    )


@cache
def _plugins() -> tuple[tuple[str, Callable[..., ImageFile], Callable[[bytes], Any]], ...]:
    from PIL import Image

    Image.init()
    found = ((name, *Image.OPEN[name]) for name in FORMATS if name in Image.OPEN)
    return tuple((name, opens, accepts) for name, opens, accepts in found if accepts is not None)


def _open(data: bytes, source: object) -> tuple[ImageFile, int]:
    """Open without Pillow's check for bombs, which can only warn through global state."""
    data, exif = _take_exif(data)
    for name, opens, accepts in _plugins():
        accepted = accepts(data[:16])
        if isinstance(accepted, str):
            raise _refuse(source, f"{name}, which this Pillow was built without")
        if accepted:
            try:
                image = opens(io.BytesIO(data), "")
            except Exception as error:  # decoders raise anything on damaged headers
                raise _refuse(source, f"a damaged {name} header{_said(error)}") from error
            return image, _parse_orientation(exif) if exif else _orientation(image)
    raise _refuse(source, _describe(data))


def _take_exif(data: bytes) -> tuple[bytes, bytes]:
    """The JPEG with its EXIF block hidden, and that block.

    Pillow reads the resolution from it when it opens the file, and warns where the block is
    damaged, as it often is in old photographs; only the orientation matters here.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return data, b""
    block, at = b"", 2
    hidden = bytearray(data)
    while at + 10 <= len(data) and data[at] == 0xFF and data[at + 1] not in {0xD9, 0xDA}:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            block = block or data[at + 10 : end]
            hidden[at + 4 : at + 8] = b"hide"
        at = end
    return (bytes(hidden), block) if block else (data, b"")


def _orientation(image: Image) -> int:
    tags = getattr(image, "tag_v2", None)  # TIFF keeps it among its own tags
    if tags is not None:
        value = tags.get(_ORIENTATION_TAG, 1)
        return value if value in TURNS else 1
    return _parse_orientation(image.info.get("exif", b""))


def _parse_orientation(exif: bytes) -> int:
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == _ORIENTATION_TAG:
                return int(value) if kind == 3 and value in TURNS else 1
    except struct.error:  # a damaged block says nothing; the image itself may be whole
        return 1
    return 1


def _header(image: ImageFile, orientation: int, frames: int = 1) -> ImageHeader:
    turned = orientation > 4 and image.format != "TIFF"  # a TIFF's size is turned already
    width, height = image.size[::-1] if turned else image.size
    return ImageHeader(
        format="JPEG" if image.format == "MPO" else str(image.format),
        width=width,
        height=height,
        mode=image.mode,
        exif_orientation=orientation,
        n_frames=frames,
    )


def _pixels(
    image: Image, source: object, max_pixels: int, at_least: int | None, orientation: int
) -> Pixels:
    width, height = image.size
    if width * height > max_pixels:
        raise _refuse(
            source,
            f"{width} x {height} pixels, which is above the limit of {max_pixels}",
            "make it smaller, or raise `max_pixels` if it is meant",
        )
    try:
        if at_least is not None and image.format in {"JPEG", "MPO"}:
            scale = 2 * at_least / min(width, height)
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        image.load()
        pixels = _to_rgb(image)
    except UnreadableImageError as error:
        raise _refuse(source, str(error)) from None
    except Exception as error:  # decoders raise anything on damaged data
        raise _refuse(source, f"damaged data{_said(error)}") from error
    turn = TURNS.get(orientation) if image.format != "TIFF" else None  # Pillow turns those
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _to_rgb(image: Image) -> Pixels:
    if image.mode[0] in "IF":  # 16 bits, 32 bits, floating point
        values, top = np.asarray(image), 1 if image.mode == "F" else 65535
        if not (values.min() >= 0 and values.max() <= top):  # false for NaN, too
            raise UnreadableImageError(f"grey values outside 0 to {top} (rescale them)")
        return _grey(_scale(values, top))
    if image.has_transparency_data:
        return _on_white(np.asarray(image.convert("RGBA")))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(array: NDArray[Any]) -> Pixels:
    _check_array(array)
    top = {"b": 1, "f": 1, "u": 255 if array.dtype.itemsize == 1 else 65535}[array.dtype.kind]
    pixels = array if top == 255 else _scale(array, top)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return _grey(pixels.reshape(pixels.shape[:2]))
    return _on_white(pixels) if pixels.shape[2] == 4 else np.array(pixels, order="C")


def _check_array(array: NDArray[Any]) -> None:
    shape = array.shape
    if (
        array.size == 0
        or len(shape) not in {2, 3}
        or (len(shape) == 3 and shape[2] not in {1, 3, 4})
    ):
        raise UsageError(
            f"Expected an array of shape (H, W) or (H, W, C) with 1, 3 or 4 channels, got {shape}; "
            "move the channels last with numpy.transpose."
        )
    if array.dtype.kind not in "bf" and array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise UsageError(
            f"Expected an array of uint8, uint16, bool or float, got {array.dtype}; convert it."
        )
    if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise UsageError(
            f"Expected float pixels in [0, 1], got {array.min():.4g} to {array.max():.4g}; "
            "divide them by their largest possible value."
        )


def _scale(values: NDArray[Any], top: int) -> Pixels:
    return np.rint(values * np.float32(255 / top)).astype(np.uint8)


def _grey(pixels: Pixels) -> Pixels:
    return np.repeat(pixels[:, :, None], 3, axis=2)


def _on_white(pixels: Pixels) -> Pixels:
    alpha = pixels[:, :, 3:].astype(np.uint16)
    return ((pixels[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _said(error: Exception) -> str:
    text = "not enough memory" if isinstance(error, MemoryError) else " ".join(str(error).split())
    return f" ({text})" if text else ""


_KINDS = {
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing, which has no pixels",
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript drawing",
    b"pk\x03\x04": "a ZIP archive",
}


def _describe(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if kind := next((name for prefix, name in _KINDS.items() if start.startswith(prefix)), None):
        return kind
    if data[4:12] in {b"ftypheic", b"ftypheix", b"ftypmif1"}:
        return "a HEIC image (convert it to JPEG)"
    if not start.strip(b"\0"):
        return "a file of zeros"
    readable = data[:512].isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in data[:512])
    return "a text file" if readable else "a file of an unknown format"


HEAD = 65_536
"""Bytes in which nearly every header lies: a photograph is not read whole for its size."""


def shown_size(source: Source) -> tuple[int, int]:
    r"""Height and width of an image as it is shown, after its EXIF rotation.

    Parameters
    ----------
    source : Path, str, bytes, array or PIL image
        Of a file only the header is decoded.

    Returns
    -------
    (int, int)
        In pixels.

    Raises
    ------
    UnreadableImageError
        If it is no image.

    Examples
    --------
    >>> shown_size(b"P5 2 1 255 \x00\xff"), shown_size(np.zeros((3, 4, 3)))
    ((1, 2), (3, 4))
    """
    if isinstance(source, str | bytes | os.PathLike):
        path = Path(source) if isinstance(source, os.PathLike) else source
        start = _start(path)
        try:
            found = header(path if start is None else start)
        except UnreadableImageError:
            if start is None:
                raise
            found = header(path)  # a TIFF's header may be its end; else it says what is wrong
        return found.height, found.width
    if isinstance(source, np.ndarray):
        return source.shape[0], source.shape[1]
    height, width = decode(source).shape[:2]
    return height, width


def _start(source: Path | str | bytes) -> bytes | None:
    """The first bytes of a file that has more of them."""
    if isinstance(source, bytes):
        return None
    try:
        with Path(source).open("rb") as file:
            start = file.read(HEAD)
    except (OSError, ValueError):  # the decoder says it in words
        return None
    return start if len(start) == HEAD else None
