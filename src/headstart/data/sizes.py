"""How large a picture is as it is shown, read off its header where that is possible."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from headstart.data.images import Source, decode, header
from headstart.errors import UnreadableImageError

__all__ = ["shown_size"]

HEAD = 65_536
"""Bytes in which nearly every header lies: a photograph is not read whole for its size."""


def shown_size(source: Source) -> tuple[int, int]:
    r"""Height and width of a picture as it is shown, after its EXIF rotation.

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
        If it is no picture.

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
