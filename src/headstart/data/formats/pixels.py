"""Images in memory: the forms of Python objects that can be decoded, and how they are checked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError, UsageError
from headstart.runtime import available_memory

__all__ = ["image_bytes", "require_memory", "split_stack", "to_image"]

CHANNELS = (1, 3, 4)
SAFE_SHARE = 0.5
"""Largest share of the free memory that the images of an object may take."""


def split_stack(images: Any, where: str) -> list[Any]:
    """Return the images of a column one by one; an array of images is checked as a whole.

    Parameters
    ----------
    images : sequence, or array of shape (n, H, W), (n, H, W, C) or (n, C, H, W)
    where : str
        Words for the object in messages.

    Raises
    ------
    UsageError
        If the array has another shape or type, or its range of values is ambiguous.

    Examples
    --------
    >>> stack = split_stack(np.zeros((2, 3, 8, 9), dtype=np.uint8), "the arrays")
    >>> [image.shape for image in stack]
    [(8, 9, 3), (8, 9, 3)]
    """
    if hasattr(images, "detach"):
        images = images.detach().cpu().numpy()
    if not isinstance(images, np.ndarray):
        if isinstance(images, str | bytes) or not isinstance(images, Iterable):
            raise UsageError(
                f"Expected a list or an array of images in {where}, got {type(images).__name__}. "
                "Pass one image for each label."
            )
        return [*images]
    if images.dtype.kind in "OUS":  # paths, or images of different sizes
        return list(images.ravel())
    if images.ndim not in {3, 4}:
        raise UsageError(
            "Expected an array of images of shape (n, H, W), (n, H, W, C) or (n, C, H, W) in "
            f"{where}, got {images.shape}. Convert it with images.reshape."
        )
    if images.ndim == 4:
        images = _channels_last(images, where)
    _require_pixels(images, where)
    return [*images]


def _channels_last(images: NDArray[Any], where: str) -> NDArray[Any]:
    first, last = images.shape[1] in CHANNELS, images.shape[3] in CHANNELS
    if first and last:
        raise UsageError(
            f"The images in {where} have shape {images.shape}: the channels may be axis 1 or axis "
            "3. Pass a list of arrays of shape (H, W, C)."
        )
    if not first and not last:
        raise UsageError(
            f"Expected images with 1, 3 or 4 channels in {where}, got an array of shape "
            f"{images.shape}. Convert it to shape (n, H, W, 3)."
        )
    return images.transpose(0, 2, 3, 1) if first else images


def to_image(cell: Any, name: str, where: str) -> Any:
    """Convert a cell to a path (as text), bytes, a PIL image, an array (H, W[, C]), or None.

    Parameters
    ----------
    cell : object
        A path, bytes, a PIL image, an array or a tensor; or a dictionary with ``bytes`` and
        ``path``, as Hugging Face stores images.
    name, where : str
        Words for the image and for its object in messages.

    Raises
    ------
    UsageError
        If it is no image, or its pixels have another type or an ambiguous range.

    Examples
    --------
    >>> to_image({"bytes": b"GIF89a", "path": None}, "image 0", "the list")
    b'GIF89a'
    >>> to_image(np.ones((3, 8, 9)), "image 0", "the list").shape
    (8, 9, 3)
    """
    from PIL.Image import Image

    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, Mapping) and {"bytes", "path"} <= set(cell):
        cell = cell["bytes"] if cell["bytes"] is not None else cell["path"]
    if isinstance(cell, str | os.PathLike):
        return os.fsdecode(cell)
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, Image):
        return cell
    if hasattr(cell, "detach"):
        return _to_pixels(cell.detach().cpu().numpy(), f"{name} of {where}", channels_first=True)
    if isinstance(cell, np.ndarray):
        return _to_pixels(cell, f"{name} of {where}", channels_first=False)
    raise UsageError(
        f"Expected an image as a path, bytes, a PIL image or an array for {name} of {where}, got "
        f"{type(cell).__name__}. Convert it first."
    )


def _to_pixels(array: NDArray[Any], where: str, *, channels_first: bool) -> NDArray[Any]:
    """Check an array and move its channels to the last axis; floats become 8 bits."""
    if array.ndim == 3:
        first, last = array.shape[0] in CHANNELS, array.shape[2] in CHANNELS
        if first and (channels_first or not last):
            array = array.transpose(1, 2, 0)
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise UsageError(
            f"Expected shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels for {where}, "
            f"got {array.shape}. Convert it to (H, W, 3)."
        )
    _require_pixels(array, where)
    if array.dtype.kind == "f":  # the same rounding as when the array is decoded
        return np.rint(array * np.float32(255)).astype(np.uint8)
    return array


def _require_pixels(array: NDArray[Any], where: str) -> None:
    """Refuse types and ranges for which black and white are not known."""
    if array.size == 0:
        raise UsageError(f"Expected pixels in {where}, got shape {array.shape}. Remove the image.")
    if array.dtype.kind == "b" or array.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        return
    low, high = array.min(), array.max()
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return
    if low < 0:
        advice = "These are normalised pixels: pass the images before normalisation"
    elif high <= 255:
        advice = "If white is 255, pass images.astype('uint8'); if not, divide by white"
    else:
        advice = "Divide by the value of white"
    raise UsageError(
        f"Expected pixels as uint8, or as floats from 0 to 1, in {where}, got {array.dtype} from "
        f"{low:.4g} to {high:.4g}. {advice}."
    )


def image_bytes(cell: Any) -> int:
    """Return the memory of an image in bytes; 0 for a path or a label.

    >>> image_bytes(np.zeros((4, 4, 3), dtype=np.uint8)), image_bytes("1.jpg")
    (48, 0)
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes")
    if isinstance(cell, bytes | bytearray):
        return len(cell)
    if isinstance(getattr(cell, "size", None), tuple) and hasattr(cell, "getbands"):
        return int(np.prod(cell.size)) * len(cell.getbands())
    if hasattr(cell, "detach"):  # floats become 8 bits
        return int(cell.numel())
    return int(cell.nbytes) if isinstance(cell, np.ndarray) else 0


def require_memory(needed: int, total: int, title: str) -> None:
    """Refuse images in memory that need more than half of the free memory.

    Parameters
    ----------
    needed : int
        In bytes.
    total : int
        Number of images.
    title : str
        Words for the object in messages.

    Raises
    ------
    DataError
        If they need more.

    Examples
    --------
    >>> require_memory(10**18, 5, "the list")
    Traceback (most recent call last):
    headstart.errors.DataError: The 5 images of the list need about 1000000000.0 GB of memory, ...
    """
    free = available_memory()
    if needed > SAFE_SHARE * free:
        raise DataError(
            f"The {total} images of {title} need about {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free. Save them as files, one folder for each class, and "
            "pass the folder."
        )
