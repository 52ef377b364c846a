"""Orientation of an image, wherever its file stores it: EXIF, text chunks of PNG, and XMP.

The rules are those of `PIL.ImageOps.exif_transpose`: EXIF first, then XMP.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EXIF_TRANSFORMS",
    "info_orientation",
    "png_orientation",
    "split_jpeg",
    "without_png_text",
]

Pixels = NDArray[np.uint8]

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

ORIENTATION_TAG = 0x0112
MOST_TEXT = 2**22  # bytes of a text chunk that are decompressed: the orientation is at the start
# Number types of EXIF: their codes for `struct`. Fractions have two numbers.
_NUMBERS = {3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_RAW_PROFILE, _XMP_TEXT = "Raw profile type exif", "XML:com.adobe.xmp"
_XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"


def info_orientation(info: Mapping[Any, Any]) -> int:
    """Orientation in the `info` of a Pillow image: 1 (upright) to 8.

    Examples
    --------
    >>> info_orientation({"xmp": b'<rdf:Description tiff:Orientation="6"/>'})
    6
    """
    exif = info.get("exif")
    if exif is None and isinstance(profile := info.get(_RAW_PROFILE), str | bytes):
        exif = _decode_profile(profile)
    value = _find_in_exif(exif) if isinstance(exif, bytes) else None
    if value is None:
        value = _find_in_xmp(info.get(_XMP_TEXT) or info.get("xmp"))
    return int(value) if value in EXIF_TRANSFORMS else 1


def _decode_profile(profile: str | bytes) -> bytes:
    """Bytes of a "raw profile": after three lines, the content in hexadecimal."""
    text = profile.decode("latin-1") if isinstance(profile, bytes) else profile
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def _find_in_xmp(xmp: object) -> float | None:
    text = xmp.encode() if isinstance(xmp, str) else xmp
    match = _XMP.search(text) if isinstance(text, bytes) else None
    return int(match[1]) if match else None


def _find_in_exif(exif: bytes) -> float | None:
    """Value of the tag in an EXIF block of either byte order; None if there is none."""
    exif = re.sub(b"^(Exif\0\0){1,2}", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, n_values = struct.unpack_from(f"{order}HHI", exif, entry)
            if tag == ORIENTATION_TAG and kind in _NUMBERS and n_values:
                form = order + _NUMBERS[kind]
                inside = n_values * struct.calcsize(form) <= 4
                at = entry + 8 if inside else struct.unpack_from(f"{order}I", exif, entry + 8)[0]
                value, *divisor = struct.unpack_from(form, exif, at)
                return float(value / divisor[0] if divisor else value)
    except (struct.error, ZeroDivisionError):  # a damaged block; the image itself may be readable
        return None
    return None


def split_jpeg(data: bytes) -> tuple[bytes, int]:
    """Return a JPEG with its EXIF blocks hidden, and its orientation.

    Pillow reads the resolution from these blocks when it opens a file and warns if a block is
    damaged, as in many old photographs. Only the orientation is needed here.

    Examples
    --------
    >>> split_jpeg(b"GIF89a")
    (b'GIF89a', 1)
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return data, 1
    info: dict[str, bytes] = {}
    hidden: bytearray | None = None
    start = 2
    # Walk the JPEG segments up to the pixels: marker (2 bytes), length (2 bytes), content.
    while start + 10 <= len(data) and data[start] == 0xFF and data[start + 1] not in {0xD9, 0xDA}:
        if data[start + 1] == 0xFF:  # a byte that fills space
            start += 1
            continue
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        content = data[start + 4 : end] if data[start + 1] == 0xE1 else b""
        if content.startswith(b"Exif\0\0"):
            info["exif"] = info.get("exif", b"") + content[6:]
            hidden = bytearray(data) if hidden is None else hidden
            hidden[start + 4 : start + 8] = b"hide"
        elif content.startswith(_XMP_SEGMENT):
            info["xmp"] = content.split(b"\0", 1)[1]
        start = end
    return bytes(hidden) if hidden is not None else data, info_orientation(info)


def png_orientation(file: IO[bytes]) -> int:
    r"""Orientation of a PNG file, from chunks before or behind the pixels, which are not read.

    Examples
    --------
    >>> png_orientation(io.BytesIO(b"\x89PNG\r\n\x1a\n"))
    1
    """
    info: dict[str, bytes | str] = {}
    file.seek(8)
    while len(start := file.read(8)) == 8 and start[4:] != b"IEND":
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if kind == b"eXIf":
            info["exif"] = file.read(length)
        elif kind in _TEXT_CHUNKS:
            keyword, text = _read_text(kind, file.read(min(length, MOST_TEXT)))
            if keyword in {"exif", _RAW_PROFILE, _XMP_TEXT}:
                info[keyword] = text
            file.seek(max(0, length - MOST_TEXT), io.SEEK_CUR)
        else:
            file.seek(length, io.SEEK_CUR)
        file.seek(4, io.SEEK_CUR)  # the checksum
    return info_orientation(info)


def _read_text(kind: bytes, content: bytes) -> tuple[str, bytes]:
    """Keyword and text of a text chunk; a compressed text is read up to a limit."""
    keyword, _, text = content.partition(b"\0")
    is_compressed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"iTXt":
        text = text[2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
    elif kind == b"zTXt":
        text = text[1:]
    if is_compressed:
        try:
            text = zlib.decompressobj().decompress(text, MOST_TEXT)
        except zlib.error:
            text = b""
    return keyword.decode("latin-1"), text


def without_png_text(data: bytes) -> bytes:
    r"""Return a PNG without its text chunks, which Pillow limits in number and size.

    Examples
    --------
    >>> text = b"\0\0\0\4tEXta\0bc\0\0\0\0"
    >>> without_png_text(b"\x89PNG\r\n\x1a\n" + text)
    b'\x89PNG\r\n\x1a\n'
    """
    parts, kept, start = [], 0, 8
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] in _TEXT_CHUNKS:
            parts.append(data[kept:start])
            kept = min(end, len(data))
        start = end
    return b"".join([*parts, data[kept:]]) if parts else data
