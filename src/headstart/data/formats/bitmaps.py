"""Bitmaps of objects inside annotation files: PNG images as base64 text."""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.images import MAX_PIXELS, open_image
from headstart.data.outlines import Bitmap
from headstart.errors import DataError, UnreadableImageError

__all__ = ["decode_bitmap"]

_MAX_BYTES = 100_000_000


def decode_bitmap(text: str, left: int, top: int, where: str) -> Bitmap:
    """Decode a PNG in base64, which may be compressed by zlib, as Supervisely does.

    Parameters
    ----------
    text : str
    left, top : int
        Column and row of its first pixel in the image.
    where : str
        Words for the file in messages.

    Returns
    -------
    Bitmap
        Of the pixels whose alpha (without alpha: whose value) is not 0.

    Raises
    ------
    DataError
        If the text is no image.

    Examples
    --------
    >>> decode_bitmap("no image", 0, 0, "'1.json'")
    Traceback (most recent call last):
    headstart.errors.DataError: Expected a bitmap as base64 text in '1.json', got ...
    """
    try:
        data = base64.b64decode(text, validate=True)
        if data[:1] == b"\x78":  # zlib
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, _MAX_BYTES)
            if unpacker.unconsumed_tail:
                raise ValueError(f"more than {_MAX_BYTES:,} bytes")  # noqa: TRY301 - one message
        image = open_image(data, where)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")  # noqa: TRY301
        values: NDArray[Any] = np.asarray(image)
    except (binascii.Error, ValueError, zlib.error, OSError, UnreadableImageError) as error:
        raise DataError(
            f"Expected a bitmap as base64 text in {where}, got {error!s:.120}. Correct or remove "
            "the object."
        ) from error
    if values.ndim == 3 and values.shape[2] == 4:
        values = values[:, :, 3]
    pixels = np.asarray(values > 0, dtype=bool)
    return Bitmap.of(np.asarray(pixels if pixels.ndim == 2 else pixels.any(axis=2)), left, top)
