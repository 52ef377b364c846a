"""Mask decoder: files with a class for every pixel to arrays of class indices.

A mask stores classes as codes: grey values, palette indices or colours. A `Palette` assigns a class
to each code. If the palette has colours, masks are read as colours, otherwise as numbers (for an
indexed PNG the index, regardless of its colour).

EXIF: a mask with its own orientation is rotated by it. A mask without one (PNG writers drop it)
belongs either to the stored or to the upright image; its size decides, see `mask_orientation`. If
both have the same size (square images, half turns), the upright image is assumed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED, Code, Mask, Palette
from headstart.data.images import (
    MAX_PIXELS,
    ImageHeader,
    ImageOptions,
    Source,
    open_image,
    read_bytes,
    read_header,
)
from headstart.data.orientation import EXIF_TRANSFORMS
from headstart.data.outlines import OutlineMask
from headstart.errors import DataError, UnknownNameError, UnreadableImageError

__all__ = [
    "MAX_CLASSES",
    "UNKNOWN",
    "RawMask",
    "class_counts",
    "codes_to_indices",
    "decode_mask",
    "distinct_values",
    "mask_orientation",
    "palette_codes",
    "read_raw_mask",
]

MAX_CLASSES = 254  # an 8-bit mask also needs a value for ignored and one for unknown pixels
UNKNOWN = 254
"""In the result of `codes_to_indices`: a code that is not in the palette."""


class RawMask(NamedTuple):
    """Codes of a mask before the palette is applied, rotated by its own EXIF orientation.

    Attributes
    ----------
    values : array of int
        Shape (H, W): grey values or indices; or (H, W, 3): colours, uint8.
    colours : array or None
        For an indexed file: the colour of each index, shape (256, 3), uint8.
    lossy : bool
        Whether the file is a JPEG, which alters values.
    """

    values: NDArray[Any]
    colours: NDArray[np.uint8] | None = None
    lossy: bool = False


def decode_mask(mask: Mask, classes: Sequence[str], *, orientation: int = 1) -> NDArray[np.uint8]:
    """Decode a mask to the class index of every pixel.

    Parameters
    ----------
    mask : Mask
    classes : sequence of str
        At most 254 names; their order gives the indices.
    orientation : int
        EXIF orientation, 1 to 8, by which to rotate the mask; see `mask_orientation`.

    Returns
    -------
    array
        Shape (H, W), uint8: indices into ``classes``, 255 where ignored.

    Raises
    ------
    DataError
        If the mask has values that are not in its palette.
    UnknownNameError
        If the mask has a class that is not in ``classes``.
    UnreadableImageError
        If the file cannot be decoded.

    Examples
    --------
    >>> codes = Palette(codes=((0, "ground"), (7, "leaf")))
    >>> decode_mask(Mask(source=np.array([[0, 7, 255]]), palette=codes), ["leaf", "ground"])
    array([[  1,   0, 255]], dtype=uint8)
    """
    raw = read_raw_mask(mask.source, mask.max_pixels)
    indices = codes_to_indices(raw, mask.palette)
    if (indices == UNKNOWN).any():
        raise _unknown_values_error(mask, raw, indices)
    indices = _map_to_classes(indices, mask.palette.names, classes)
    return _scale(_orient(indices, orientation), mask.size)


def _scale(indices: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Scale to a width and height by nearest neighbour: the value at the centre of each pixel."""
    height, width = indices.shape
    if size is None or size == (width, height):
        return indices
    columns = (np.arange(size[0]) * 2 + 1) * width // (2 * size[0])
    rows = (np.arange(size[1]) * 2 + 1) * height // (2 * size[1])
    return np.ascontiguousarray(indices[rows[:, None], columns])


def mask_orientation(mask: Mask, image: Source) -> int:
    """EXIF orientation by which a mask must be rotated with its image: 1 (not at all) to 8.

    A mask file without its own orientation that has the size of the stored image, but not that of
    the upright image, belongs to the stored image: it is rotated as the image is. Every other mask
    is used as it is.

    Parameters
    ----------
    mask : Mask
    image : Path, str, bytes, array or PIL image
        Only its header is read.

    Examples
    --------
    >>> mask = Mask(source=np.zeros((2, 3), int), palette=Palette(codes=((0, "sky"),)))
    >>> mask_orientation(mask, np.zeros((2, 3), dtype=np.uint8))
    1
    """
    image_header = _file_header(image)
    if (
        image_header is None
        or image_header.exif_orientation < 5
        or image_header.width == image_header.height
    ):
        return 1
    if isinstance(mask.source, np.ndarray | OutlineMask):
        height, width = mask.source.shape[:2]
    else:
        mask_header = read_header(mask.source)
        height, width = mask_header.height, mask_header.width
        if mask_header.exif_orientation != 1:
            return 1
    has_stored_size = (width, height) == (image_header.height, image_header.width)
    return image_header.exif_orientation if has_stored_size else 1


def class_counts(indices: NDArray[np.uint8], n_classes: int) -> NDArray[np.intp]:
    """Count the pixels of each class, shape (n_classes + 1,); the last count is of ignored pixels.

    Examples
    --------
    >>> class_counts(np.array([[0, 1, 1, 255]], dtype=np.uint8), 3)
    array([1, 2, 0, 1])
    """
    counts = np.bincount(indices.ravel(), minlength=256)
    return np.append(counts[:n_classes], counts[IGNORED])


def read_raw_mask(
    source: Path | NDArray[Any] | OutlineMask, max_pixels: int = MAX_PIXELS
) -> RawMask:
    """Read the codes of a mask without applying a palette.

    Parameters
    ----------
    source : Path or array
    max_pixels : int
        Largest width times height of a file.

    Raises
    ------
    DataError
        If an array does not have the shape or type of a mask.
    UnreadableImageError
        If a file cannot be decoded.

    Examples
    --------
    >>> read_raw_mask(np.array([[True, False]])).values
    array([[1, 0]], dtype=uint8)
    """
    if isinstance(source, np.ndarray):
        return RawMask(_require_mask_array(source))
    if isinstance(source, OutlineMask):
        return RawMask(source.draw())
    file_header = read_header(source)
    try:
        ImageOptions(max_pixels=max_pixels).require_pixels(file_header.width, file_header.height)
    except UnreadableImageError as error:
        raise _unreadable_mask_error(source, str(error)) from None
    if file_header.mode == "F":
        raise _unreadable_mask_error(
            source, "floating-point values, which cannot be codes of classes"
        )
    try:
        return _decode_codes(read_bytes(source), file_header, source)
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on damaged data
        raise _unreadable_mask_error(source, f"damaged data ({error})") from error


def codes_to_indices(raw: RawMask, palette: Palette) -> NDArray[np.uint8]:
    """Convert codes to indices into the palette's names; 255 is ignored, 254 an unknown code.

    Raises
    ------
    DataError
        If there are more than 254 classes.

    Examples
    --------
    >>> codes_to_indices(RawMask(np.array([[5, 6, 255]])), Palette(codes=((5, "leaf"),)))
    array([[  0, 254, 255]], dtype=uint8)
    """
    if palette.threshold is not None:
        grey = raw.values if raw.values.ndim == 2 else raw.values.mean(axis=2)
        raw = RawMask(np.where(grey >= palette.threshold, IGNORED, 0).astype(np.uint8))
    indices = {name: i for i, name in enumerate(palette.names)}
    if len(indices) > MAX_CLASSES:
        raise DataError(
            f"Expected at most {MAX_CLASSES} classes in masks, got {len(indices)}. Merge some "
            "classes."
        )
    table: dict[Code, int] = dict.fromkeys(palette.ignored, IGNORED)
    table |= {code: indices[name] for code, name in palette.codes}
    by_colour = any(isinstance(code, tuple) for code, _ in palette.codes)
    if raw.values.ndim == 2:
        return _look_up_numbers(raw, table, by_colour)
    if not by_colour and _is_grey(raw.values):
        return _look_up_numbers(RawMask(raw.values[:, :, 0]), table, by_colour=False)
    return _look_up_colours(raw.values, table)


def distinct_values(raw: RawMask) -> RawMask:
    """Distinct codes of a mask in ascending order: shape (1, n) or (1, n, 3).

    Examples
    --------
    >>> distinct_values(RawMask(np.array([[3, 0], [0, 0]]))).values
    array([[0, 3]])
    """
    if raw.values.ndim == 3:
        is_present = np.zeros(1 << 24, dtype=bool)  # much faster than sorting the pixels
        is_present[_pack_pixels(raw.values)] = True
        codes = np.flatnonzero(is_present)
        values = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
    elif raw.values.dtype == np.uint8:
        values = np.flatnonzero(np.bincount(raw.values.ravel(), minlength=256)).astype(np.uint8)
    else:
        values = np.unique(raw.values)
    return raw._replace(values=values[None])


def palette_codes(raw: RawMask, *, by_colour: bool = False) -> tuple[Code, ...]:
    """Convert the result of `distinct_values` to palette codes: numbers, or colours if it has them.

    Parameters
    ----------
    raw : RawMask
        Of shape (1, n) or (1, n, 3).
    by_colour : bool
        Return colours for numbers, too.

    Examples
    --------
    >>> raw = RawMask(np.array([[0, 3]]))
    >>> palette_codes(raw), palette_codes(raw, by_colour=True)
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


def _unreadable_mask_error(source: object, reason: str) -> UnreadableImageError:
    """Error in the form of `images`, so that `unreadable_reason` can extract the reason."""
    return UnreadableImageError(
        f"Expected {source} to be a readable image, got {reason}. Replace it or remove it."
    )


def _file_header(image: Source) -> ImageHeader | None:
    """Header of a file; None for pixels in memory, which are upright."""
    return read_header(image) if isinstance(image, str | bytes | os.PathLike) else None


def _require_mask_array(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    is_numbers = values.ndim == 2 and values.dtype.kind in "bui"
    is_colours = values.ndim == 3 and values.shape[2] in {3, 4} and values.dtype == np.uint8
    if not (is_numbers or is_colours) or values.size == 0:
        raise DataError(
            "Expected a mask to be an array of whole numbers of shape (H, W), or of uint8 colours "
            f"of shape (H, W, 3), got {values.dtype} of shape {values.shape}. Convert the array."
        )
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    return values if is_numbers else values[:, :, :3]


def _decode_codes(data: bytes, file_header: ImageHeader, source: Path) -> RawMask:
    image = open_image(data, source)
    colours = None
    if image.mode in {"P", "PA"}:
        table = np.asarray(image.getpalette("RGB") or (), dtype=np.uint8).reshape(-1, 3)
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[: len(table)] = table
    _refuse_classes_in_alpha(image, source)
    if image.mode in {"LA", "PA", "La"}:
        values = np.asarray(image)[:, :, 0]
    elif image.mode in {"1", "L", "P"} or image.mode[0] == "I":
        values = _unscaled(np.asarray(image), data)
    else:
        values = np.asarray(image.convert("RGB"))
    if file_header.exif_orientation != 1 and file_header.format != "TIFF":  # Pillow rotates TIFFs
        values = _orient(values, file_header.exif_orientation)
    return RawMask(_require_mask_array(values), colours, file_header.format == "JPEG")


def _refuse_classes_in_alpha(image: Any, source: Path) -> None:
    """Refuse an image of one colour whose transparency varies: its alpha is the mask."""
    if image.mode not in {"RGBA", "LA"}:
        return
    low, high = image.getextrema()[-1]
    if low < high and all(first == last for first, last in image.getextrema()[:-1]):
        n_values = len(set(image.getchannel("A").tobytes()))
        raise DataError(
            f"Expected the classes of the mask {source} in its colours, got one colour everywhere "
            f"and {n_values} values of alpha (transparency). Save the alpha channel as a grey PNG."
        )


def _orient(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    if orientation == 1:
        return values
    planes = values if values.ndim == 3 else values[:, :, None]
    upright = np.ascontiguousarray(EXIF_TRANSFORMS[orientation](planes))
    return upright if values.ndim == 3 else upright[:, :, 0]


def _unscaled(values: NDArray[Any], data: bytes) -> NDArray[Any]:
    """Restore the codes of grey PNGs with 2 or 4 bits, which Pillow scales to 0 to 255."""
    if not data.startswith(b"\x89PNG") or data[25] != 0 or data[24] not in {2, 4}:
        return values
    return values // np.uint8(255 // (2 ** data[24] - 1))


def _look_up_numbers(raw: RawMask, table: dict[Code, int], by_colour: bool) -> NDArray[np.uint8]:
    n_codes = 256 if raw.values.dtype == np.uint8 else 65536
    lookup = np.full(n_codes + 1, UNKNOWN, dtype=np.uint8)  # the last entry is for other values
    for code, index in table.items():
        if isinstance(code, int) and 0 <= code < n_codes and (not by_colour or index == IGNORED):
            lookup[code] = index
    if by_colour:
        grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        colours = grey if raw.colours is None else raw.colours
        for number, colour in enumerate(colours.tolist()):
            lookup[number] = table.get(tuple(colour), lookup[number])
    if raw.values.dtype in (np.uint8, np.uint16):
        return np.asarray(lookup[raw.values])
    in_range = (raw.values >= 0) & (raw.values < n_codes)
    return np.asarray(lookup[np.where(in_range, raw.values, n_codes).astype(np.intp)])


def _look_up_colours(values: NDArray[np.uint8], table: dict[Code, int]) -> NDArray[np.uint8]:
    pairs = sorted(
        (_pack_colour(code), index) for code, index in table.items() if isinstance(code, tuple)
    )
    if not pairs:
        return np.full(values.shape[:2], UNKNOWN, dtype=np.uint8)
    codes = np.asarray([code for code, _ in pairs], dtype=np.uint32)
    indices = np.asarray([index for _, index in pairs], dtype=np.uint8)
    pixels = _pack_pixels(values)
    position = np.searchsorted(codes[:-1], pixels)  # [:-1]: the result never exceeds the last index
    return np.where(codes[position] == pixels, indices[position], np.uint8(UNKNOWN))


def _pack_colour(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _pack_pixels(values: NDArray[np.uint8]) -> NDArray[np.uint32]:
    red, green, blue = (values[:, :, i].astype(np.uint32) for i in range(3))
    return red << np.uint32(16) | green << np.uint32(8) | blue


def _map_to_classes(
    indices: NDArray[np.uint8], names: Sequence[str], classes: Sequence[str]
) -> NDArray[np.uint8]:
    if tuple(names) == tuple(classes):
        return indices
    position = {name: i for i, name in enumerate(classes)}
    absent = [i for i, name in enumerate(names) if name not in position]
    unknown = next((i for i in absent if (indices == i).any()), None)
    if unknown is not None:
        raise UnknownNameError("class", names[unknown], classes)
    lookup = np.full(256, IGNORED, dtype=np.uint8)
    lookup[: len(names)] = [position.get(name, IGNORED) for name in names]
    return lookup[indices]


def _unknown_values_error(mask: Mask, raw: RawMask, indices: NDArray[np.uint8]) -> DataError:
    name = str(mask.source) if isinstance(mask.source, Path) else "a mask array"
    pixels = raw.values[indices == UNKNOWN]
    codes, counts = np.unique(pixels, axis=0 if pixels.ndim == 2 else None, return_counts=True)
    most_frequent = np.argsort(-counts)[:5]
    unknown = ", ".join(f"{_format_code(codes[i])} ({counts[i]} pixels)" for i in most_frequent)
    remaining = f" and {len(codes) - 5} more values" if len(codes) > 5 else ""
    expected = ", ".join(f"{_format_code(code)} {name!r}" for code, name in mask.palette.codes[:8])
    advice = (
        "This is a JPEG, which alters values: save masks as PNG."
        if raw.lossy
        else "Add these values to classes.txt, or correct the mask."
    )
    return DataError(
        f"Expected only values of its classes in {name} ({expected}"
        f"{', ...' if len(mask.palette.codes) > 8 else ''}), got {unknown}{remaining}. {advice}"
    )


def _format_code(code: Any) -> str:
    if np.ndim(code) == 0:
        return str(int(code))
    return "#{:02x}{:02x}{:02x}".format(*(int(channel) for channel in code))
