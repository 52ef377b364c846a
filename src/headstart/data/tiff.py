"""Header of a TIFF file: its tags, and a description of its kind."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

__all__ = [
    "TiffTags",
    "count_pages",
    "describe_tiff",
    "is_unsupported",
    "minimum_is_black",
    "parse_no_data",
    "read_tags",
    "upright_size",
]

MOST_BANDS = 4  # of which it is clear which are red, green and blue
NO_DATA = 42113  # GDAL_NODATA
_INKS = 5  # photometric kind of CMYK, which may have transparency as its fifth band
MOST_PAGES = 10_000
MOST_VALUES = 64  # of a tag; longer ones, such as the offsets of strips, are not read
PHOTOMETRIC = 262
ORIENTATION = 274
_KINDS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_COMPRESSIONS = {
    1: "none", 2: "CCITT", 3: "CCITT G3", 4: "CCITT G4", 5: "LZW", 6: "old JPEG", 7: "JPEG",
    8: "deflate", 32773: "PackBits", 32946: "deflate", 33003: "JPEG 2000", 33005: "JPEG 2000",
    34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP",
    50002: "JPEG XL",
}  # fmt: skip
_FORMATS = {
    1: "whole numbers",
    2: "signed numbers",
    3: "floating-point numbers",
    5: "complex numbers",
    6: "complex numbers",
}


class TiffTags(NamedTuple):
    """Numbers of the tags of one page, their positions, and the start of the next page (or 0)."""

    values: dict[int, tuple[int, ...]]
    positions: dict[int, int]
    order: str
    next_page: int

    def first(self, tag: int, default: int) -> int:
        """Return the first number of a tag.

        >>> TiffTags({256: (9,)}, {}, "<", 0).first(256, 1)
        9
        """
        return self.values.get(tag, (default,))[0]


def read_tags(data: bytes, start: int | None = None) -> TiffTags | None:
    r"""Read the numeric tags of a page of a TIFF or BigTIFF; None if the header is damaged.

    Examples
    --------
    >>> entry = b"\x00\x01\x03\x00\x01\x00\x00\x00\x09\x00\x00\x00"
    >>> read_tags(b"II*\0\x08\0\0\0" + b"\1\0" + entry + b"\0\0\0\0").first(256, 0)
    9
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    try:
        is_big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
        word, count, size = ("Q", "Q", 20) if is_big else ("I", "H", 12)
        if start is None:
            (start,) = struct.unpack_from(f"{order}{word}", data, 8 if is_big else 4)
        (n_entries,) = struct.unpack_from(f"{order}{count}", data, start)
        first = start + struct.calcsize(f"={count}")
        values, positions = {}, {}
        for entry in range(first, first + size * min(n_entries, 4096), size):
            tag, kind, n_values = struct.unpack_from(f"{order}HH{word}", data, entry)
            if kind not in _KINDS or not 0 < n_values <= MOST_VALUES:
                continue
            form = f"{order}{n_values}{_KINDS[kind]}"
            at = entry + (12 if is_big else 8)
            if struct.calcsize(form) > (8 if is_big else 4):
                (at,) = struct.unpack_from(f"{order}{word}", data, at)
            values[tag], positions[tag] = struct.unpack_from(form, data, at), at
        (next_page,) = struct.unpack_from(f"{order}{word}", data, first + size * n_entries)
    except (struct.error, OverflowError):
        return None
    return TiffTags(values, positions, order, next_page)


def count_pages(data: bytes) -> int:
    r"""Count the pages of a TIFF; smaller copies of a page do not count.

    Examples
    --------
    >>> count_pages(b"no TIFF")
    1
    """
    count, seen, start = 0, set[int](), None
    while len(seen) < MOST_PAGES:
        tags = read_tags(data, start)
        if tags is None:
            break
        # 254: kind of page, with bit 0 for a smaller copy and bit 2 for a mask of transparency.
        count += not tags.first(254, 0) & 5
        start = tags.next_page
        if start == 0 or start in seen:
            break
        seen.add(start)
    return max(1, count)


def minimum_is_black(data: bytes) -> tuple[bytes, bool]:
    r"""Mark a TIFF whose smallest value is white as black, for 16 bits and floats.

    Pillow does not invert these kinds, and reads them only in one of the byte orders.

    Returns
    -------
    bytes
        The file, with the changed mark.
    bool
        Whether the values must be inverted.

    Examples
    --------
    >>> minimum_is_black(b"no TIFF")
    (b'no TIFF', False)
    """
    tags = read_tags(data)
    if tags is None or tags.first(PHOTOMETRIC, 1) != 0 or tags.first(258, 1) < 16:
        return data, False
    changed = bytearray(data)
    struct.pack_into(f"{tags.order}H", changed, tags.positions[PHOTOMETRIC], 1)
    return bytes(changed), True


def is_unsupported(data: bytes) -> bool:
    """Whether Pillow would decode a TIFF wrongly, or write to the terminal.

    >>> is_unsupported(b"no TIFF")
    False
    """
    tags = read_tags(data)
    if tags is None:
        return False
    if data[:4] == b"MM\0+":  # BigTIFF of this byte order
        return True
    n_bands = tags.first(277, 1)
    in_planes = n_bands > 1 and tags.first(284, 1) == 2
    is_raw = tags.first(259, 1) == 1
    most = MOST_BANDS + (tags.first(PHOTOMETRIC, 1) == _INKS)
    return n_bands > most or (in_planes and is_raw and tags.first(258, 1) > 8)


def upright_size(data: bytes) -> tuple[int, int] | None:
    r"""Width and height of the first page after its rotation; None if the header is damaged.

    >>> upright_size(b"no TIFF") is None
    True
    """
    tags = read_tags(data)
    if tags is None or not (tags.first(256, 0) and tags.first(257, 0)):
        return None
    size = tags.first(256, 0), tags.first(257, 0)
    return size[::-1] if tags.first(ORIENTATION, 1) in range(5, 9) else size


def parse_no_data(text: object) -> float | None:
    """Value of the tag GDAL_NODATA; None if it is missing or no number.

    >>> parse_no_data("-9999 "), parse_no_data("none")
    (-9999.0, None)
    """
    try:
        return None if text is None else float(str(text).strip(" \0"))
    except ValueError:
        return None


def describe_tiff(data: bytes) -> str | None:
    r"""Describe a TIFF by its bands, bits and compression; None if its header is damaged.

    Examples
    --------
    >>> describe_tiff(b"II*\0junk") is None
    True
    """
    tags = read_tags(data)
    if tags is None or not {256, 257} <= tags.values.keys():
        return None
    bits = tags.values.get(258, (1,))
    n_bands = tags.first(277, len(bits))
    compression: Any = tags.first(259, 1)
    depth = "/".join(map(str, sorted(set(bits))))
    numbers = _FORMATS.get(tags.first(339, 1), "numbers of unknown type")
    bands = f"{n_bands} band{'s' if n_bands > 1 else ''} of {depth} bits"
    kind = "BigTIFF, " if data[2:3] == b"+" or data[3:4] == b"+" else ""
    kind += "one plane per band, " if n_bands > 1 and tags.first(284, 1) == 2 else ""
    return f"{bands}, {numbers}, {kind}compression {_COMPRESSIONS.get(compression, compression)}"
