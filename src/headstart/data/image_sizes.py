"""Sizes of images, from their headers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from headstart.data.images import ImageHeader, Source, decode, read_header
from headstart.data.orientation import png_orientation
from headstart.errors import UnreadableImageError
from headstart.files import is_file

__all__ = ["read_header_from_start", "upright_size"]

_HEADER_BYTES = 65_536  # contain nearly every header, so that the rest need not be read


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
            image_header = read_header(start)
        except UnreadableImageError:  # the header of a TIFF may be at the end of the file
            return read_header(path)
        if image_header.format == "PNG":  # the orientation may be behind the pixels
            return _with_png_orientation(image_header, path)
        return image_header
    return read_header(path)


def _with_png_orientation(image_header: ImageHeader, path: Path) -> ImageHeader:
    with path.open("rb") as file:
        orientation = png_orientation(file)
    sides = image_header.width, image_header.height
    if (orientation > 4) != (image_header.exif_orientation > 4):
        sides = sides[::-1]
    return replace(image_header, width=sides[0], height=sides[1], exif_orientation=orientation)


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
