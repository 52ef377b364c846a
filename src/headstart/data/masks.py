"""Files with a class for every pixel -> arrays of class indices.

A mask says classes by codes: grey values, indices into its own palette, or colours. A `Palette`
says which class a code stands for. Which of the three is meant follows from the palette: where it
names colours, masks are read as colours, else as numbers (of an indexed PNG the index, whatever
colour it is drawn in).

EXIF: a mask that has an orientation of its own is turned by it. One that has none (PNG writers
drop it) was drawn either on the image as stored or as shown; its size tells which, see
`mask_turn`. Where it cannot tell (square images, half turns) the image as shown is meant.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED, Code, Mask, Palette
from headstart.data.images import MAX_PIXELS, TURNS, ImageHeader, Source, header, read_bytes
from headstart.errors import DataError, UnknownNameError, UnreadableImageError

__all__ = [
    "MAX_CLASSES",
    "UNKNOWN",
    "RawMask",
    "class_counts",
    "codes_of",
    "decode_mask",
    "distinct",
    "look_up",
    "mask_turn",
    "read_raw",
]

MAX_CLASSES = 254  # what an 8-bit mask has room for beside ignored and unknown
UNKNOWN = 254
"""In what `look_up` gives: a value that the palette does not name."""


class RawMask(NamedTuple):
    """What a mask holds before any code is understood, turned by its own EXIF orientation.

    Parameters
    ----------
    values : array of int
        Shape (H, W): grey values or indices; or (H, W, 3): colours, uint8.
    colours : array or None
        Of an indexed file: the colour of each index, shape (256, 3), uint8.
    lossy : bool
        Whether it comes from a JPEG, whose values are not those that were saved.
    """

    values: NDArray[Any]
    colours: NDArray[np.uint8] | None = None
    lossy: bool = False


def decode_mask(mask: Mask, classes: Sequence[str], *, orientation: int = 1) -> NDArray[np.uint8]:
    """Say of every pixel of a mask which class it is.

    Parameters
    ----------
    mask : Mask
    classes : sequence of str
        At most 254 names; their order gives the indices.
    orientation : int
        EXIF orientation, 1 to 8, by which to turn a mask; see `mask_turn`.

    Returns
    -------
    array
        Shape (H, W), uint8: indices into ``classes``, 255 where ignored.

    Raises
    ------
    DataError
        If the mask holds values that its palette does not name.
    UnknownNameError
        If it shows a class that is not one of ``classes``.
    UnreadableImageError
        If the file cannot be decoded.

    Examples
    --------
    >>> codes = Palette(codes=((0, "ground"), (7, "leaf")))
    >>> decode_mask(Mask(source=np.array([[0, 7, 255]]), palette=codes), ["leaf", "ground"])
    array([[  1,   0, 255]], dtype=uint8)
    """
    raw = read_raw(mask.source)
    indices = look_up(raw, mask.palette)
    if (indices == UNKNOWN).any():
        raise _unknown_values(mask, raw, indices)
    indices = _reordered(indices, mask.palette.names, classes)
    return _turned(indices, orientation)


def mask_turn(mask: Mask, image: Source) -> int:
    """The orientation by which a mask turns with its image: 1 (not at all) to 8.

    A mask file without an orientation of its own, of the size that the image is stored in and
    not of the size that it is shown in, was drawn on the stored pixels: it turns as the image
    does. Every other mask is taken as it is.

    Parameters
    ----------
    mask : Mask
    image : Path, str, bytes, array or PIL image
        Only its header is read.

    Examples
    --------
    >>> mask = Mask(source=np.zeros((2, 3), int), palette=Palette(codes=((0, "sky"),)))
    >>> mask_turn(mask, np.zeros((2, 3), dtype=np.uint8))
    1
    """
    shown = _header(image)
    if shown is None or shown.exif_orientation < 5 or shown.width == shown.height:
        return 1
    if isinstance(mask.source, np.ndarray):
        height, width = mask.source.shape[:2]
    else:
        own = header(mask.source)
        height, width = own.height, own.width
        if own.exif_orientation != 1:
            return 1
    stored = (width, height) == (shown.height, shown.width)
    return shown.exif_orientation if stored else 1


def class_counts(indices: NDArray[np.uint8], n_classes: int) -> NDArray[np.intp]:
    """Pixels of each class, shape (n_classes + 1,); the last entry counts the ignored ones.

    Examples
    --------
    >>> class_counts(np.array([[0, 1, 1, 255]], dtype=np.uint8), 3)
    array([1, 2, 0, 1])
    """
    tally = np.bincount(indices.ravel(), minlength=256)
    return np.append(tally[:n_classes], tally[IGNORED])


def read_raw(source: Path | NDArray[Any]) -> RawMask:
    """Read a mask without understanding it.

    Raises
    ------
    DataError
        If an array is no mask by its shape or type.
    UnreadableImageError
        If a file cannot be decoded.

    Examples
    --------
    >>> read_raw(np.array([[True, False]])).values
    array([[1, 0]], dtype=uint8)
    """
    if isinstance(source, np.ndarray):
        return RawMask(_array(source))
    head = header(source)
    if head.width * head.height > MAX_PIXELS:
        raise _unreadable(source, f"{head.width} x {head.height} pixels, which are too many")
    if head.mode == "F":
        raise _unreadable(source, "floating-point values, which are no codes of classes")
    try:
        return _file(read_bytes(source), head)
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on damaged data
        raise _unreadable(source, f"damaged data ({error})") from error


def look_up(raw: RawMask, palette: Palette) -> NDArray[np.uint8]:
    """Indices into the palette's names, 255 where ignored, 254 where the value is not known.

    Raises
    ------
    DataError
        If there are more than 254 classes.

    Examples
    --------
    >>> look_up(RawMask(np.array([[5, 6, 255]])), Palette(codes=((5, "leaf"),)))
    array([[  0, 254, 255]], dtype=uint8)
    """
    indices = {name: i for i, name in enumerate(palette.names)}
    if len(indices) > MAX_CLASSES:
        raise DataError(
            f"Expected at most {MAX_CLASSES} classes of pixels, got {len(indices)}; do: merge some."
        )
    table: dict[Code, int] = dict.fromkeys(palette.ignored, IGNORED)
    table |= {code: indices[name] for code, name in palette.codes}
    by_colour = any(isinstance(code, tuple) for code, _ in palette.codes)
    if raw.values.ndim == 2:
        return _of_numbers(raw, table, by_colour)
    if not by_colour and _is_grey(raw.values):
        return _of_numbers(RawMask(raw.values[:, :, 0]), table, by_colour=False)
    return _of_colours(raw.values, table)


def distinct(raw: RawMask) -> RawMask:
    """The values that a mask holds, each once and ascending: shape (1, n) or (1, n, 3).

    Examples
    --------
    >>> distinct(RawMask(np.array([[3, 0], [0, 0]]))).values
    array([[0, 3]])
    """
    if raw.values.ndim == 3:
        seen = np.zeros(1 << 24, dtype=bool)  # much faster than sorting the pixels
        seen[_pack(raw.values)] = True
        codes = np.flatnonzero(seen)
        values = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
    elif raw.values.dtype == np.uint8:
        values = np.flatnonzero(np.bincount(raw.values.ravel(), minlength=256)).astype(np.uint8)
    else:
        values = np.unique(raw.values)
    return raw._replace(values=values[None])


def codes_of(raw: RawMask, *, by_colour: bool = False) -> tuple[Code, ...]:
    """What `distinct` found, as codes of a palette: numbers, or colours where there are any.

    Parameters
    ----------
    raw : RawMask
        Of shape (1, n) or (1, n, 3).
    by_colour : bool
        Give colours for numbers, too.

    Examples
    --------
    >>> codes_of(RawMask(np.array([[0, 3]]))), codes_of(RawMask(np.array([[0, 3]])), by_colour=True)
    ((0, 3), ((0, 0, 0), (3, 3, 3)))
    """
    values = raw.values[0]
    if values.ndim == 2:
        if by_colour or not _is_grey(raw.values):
            return tuple((int(r), int(g), int(b)) for r, g, b in values)
        values = values[:, 0]
    if not by_colour:
        return tuple(int(value) for value in values)
    if raw.colours is not None:
        return tuple((int(r), int(g), int(b)) for r, g, b in raw.colours[values])
    return tuple((int(value),) * 3 for value in values)


def _is_grey(values: NDArray[Any]) -> bool:
    return bool((values == values[:, :, :1]).all())


def _unreadable(source: object, why: str) -> UnreadableImageError:
    return UnreadableImageError(
        f"Expected {source} to be a readable image, got {why}; replace it or leave it out."
    )


def _header(image: Source) -> ImageHeader | None:
    """The header of a file; None for pixels, which are as they are shown."""
    return header(image) if isinstance(image, str | bytes | os.PathLike) else None


def _array(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    flat = values.ndim == 2 and values.dtype.kind in "bui"
    colours = values.ndim == 3 and values.shape[2] in {3, 4} and values.dtype == np.uint8
    if not (flat or colours) or values.size == 0:
        raise DataError(
            "Expected a mask to be an array of whole numbers of shape (H, W), or of uint8 colours "
            f"of shape (H, W, 3), got {values.dtype} of shape {values.shape}; do: convert it."
        )
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    return values if flat else values[:, :, :3]


def _file(data: bytes, head: ImageHeader) -> RawMask:
    from PIL import Image

    image = Image.open(io.BytesIO(data))
    colours = None
    if image.mode in {"P", "PA"}:
        table = np.asarray(image.getpalette("RGB") or (), dtype=np.uint8).reshape(-1, 3)
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[: len(table)] = table
    if image.mode in {"LA", "PA", "La"}:
        values = np.asarray(image)[:, :, 0]
    elif image.mode in {"1", "L", "P"} or image.mode[0] == "I":
        values = _unscaled(np.asarray(image), data)
    else:
        values = np.asarray(image.convert("RGB"))
    if head.exif_orientation != 1 and head.format != "TIFF":  # Pillow turns those
        values = _turned(values, head.exif_orientation)
    return RawMask(_array(values), colours, head.format == "JPEG")


def _turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    if orientation == 1:
        return values
    planes = values if values.ndim == 3 else values[:, :, None]
    turned = np.ascontiguousarray(TURNS[orientation](planes))
    return turned if values.ndim == 3 else turned[:, :, 0]


def _unscaled(values: NDArray[Any], data: bytes) -> NDArray[Any]:
    """Undo that Pillow stretches grey PNGs of 2 and 4 bits to the full range: codes, not light."""
    if not data.startswith(b"\x89PNG") or data[25] != 0 or data[24] not in {2, 4}:
        return values
    return values // np.uint8(255 // (2 ** data[24] - 1))


def _of_numbers(raw: RawMask, table: dict[Code, int], by_colour: bool) -> NDArray[np.uint8]:
    top = 256 if raw.values.dtype == np.uint8 else 65536
    lookup = np.full(top + 1, UNKNOWN, dtype=np.uint8)
    for code, index in table.items():
        if isinstance(code, int) and 0 <= code < top and (not by_colour or index == IGNORED):
            lookup[code] = index
    if by_colour:
        grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        colours = grey if raw.colours is None else raw.colours
        for number, colour in enumerate(colours.tolist()):
            lookup[number] = table.get(tuple(colour), lookup[number])
    if raw.values.dtype in (np.uint8, np.uint16):
        return np.asarray(lookup[raw.values])
    inside = (raw.values >= 0) & (raw.values < top)
    return np.asarray(lookup[np.where(inside, raw.values, top).astype(np.intp)])


def _of_colours(values: NDArray[np.uint8], table: dict[Code, int]) -> NDArray[np.uint8]:
    pairs = sorted((_packed(c), i) for c, i in table.items() if isinstance(c, tuple))
    if not pairs:
        return np.full(values.shape[:2], UNKNOWN, dtype=np.uint8)
    codes = np.asarray([code for code, _ in pairs], dtype=np.uint32)
    indices = np.asarray([index for _, index in pairs], dtype=np.uint8)
    seen = _pack(values)
    at = np.searchsorted(codes[:-1], seen)  # never past the end
    return np.where(codes[at] == seen, indices[at], np.uint8(UNKNOWN))


def _packed(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _pack(values: NDArray[np.uint8]) -> NDArray[np.uint32]:
    red, green, blue = (values[:, :, i].astype(np.uint32) for i in range(3))
    return red << np.uint32(16) | green << np.uint32(8) | blue


def _reordered(
    indices: NDArray[np.uint8], names: Sequence[str], classes: Sequence[str]
) -> NDArray[np.uint8]:
    if tuple(names) == tuple(classes):
        return indices
    position = {name: i for i, name in enumerate(classes)}
    absent = [i for i, name in enumerate(names) if name not in position]
    shown = next((i for i in absent if (indices == i).any()), None)
    if shown is not None:
        raise UnknownNameError("class", names[shown], classes)
    lookup = np.full(256, IGNORED, dtype=np.uint8)
    lookup[: len(names)] = [position.get(name, IGNORED) for name in names]
    return lookup[indices]


def _unknown_values(mask: Mask, raw: RawMask, indices: NDArray[np.uint8]) -> DataError:
    where = "a mask" if isinstance(mask.source, np.ndarray) else str(mask.source)
    odd = raw.values[indices == UNKNOWN]
    found, counts = np.unique(odd, axis=0 if odd.ndim == 2 else None, return_counts=True)
    order = np.argsort(-counts)[:5]
    text = ", ".join(f"{_code_text(found[i])} ({counts[i]} pixels)" for i in order)
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    known = ", ".join(f"{_code_text(code)} {name!r}" for code, name in mask.palette.codes[:8])
    advice = (
        "it is a JPEG, which alters values; save masks as PNG"
        if raw.lossy
        else "name them in classes.txt, or correct the mask"
    )
    return DataError(
        f"Expected {where} to hold values of its classes only ({known}"
        f"{', ...' if len(mask.palette.codes) > 8 else ''}), got {text}{more}; do: {advice}."
    )


def _code_text(code: Any) -> str:
    if np.ndim(code) == 0:
        return str(int(code))
    return "#{:02x}{:02x}{:02x}".format(*(int(part) for part in code))
