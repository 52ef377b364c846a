"""What a picture shows beyond a class: boxes around objects, or a class for every pixel.

Coordinates are pixels of the picture as it is shown, after its EXIF rotation: x to the right, y
downwards, the corner of the first pixel is (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError

__all__ = ["IGNORED", "Boxes", "Code", "Mask", "Palette"]

IGNORED = 255
"""In a decoded mask: a pixel that no class is claimed for; it is neither learned nor judged."""

Code = int | tuple[int, int, int]
"""How a mask file writes a class: a grey value (or palette index), or a colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Objects in a picture; none is a valid answer.

    Parameters
    ----------
    corners : tuple of (float, float, float, float)
        Left, top, right, bottom of every object.
    labels : tuple of str
        Its class, one for each.
    hard : tuple of bool
        Whether an object is difficult (VOC) or a crowd (COCO): in training it is left out, so
        that its place counts as background; in the judgement neither finding nor missing it
        counts. Empty for none.
    size : (int, int) or None
        Width and height of the picture that the annotation states, if it does.

    Raises
    ------
    DataError
        If the lengths differ.

    Examples
    --------
    >>> one = Boxes(corners=((0.0, 0.0, 4.0, 2.0),), labels=("cell",))
    >>> one.array().shape, one.is_hard()
    ((1, 4), array([False]))
    """

    corners: tuple[tuple[float, float, float, float], ...] = ()
    labels: tuple[str, ...] = ()
    hard: tuple[bool, ...] = ()
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.corners) != len(self.labels) or len(self.hard) not in {0, len(self.labels)}:
            raise DataError(
                "Expected one label (and one mark, if any) for every box, got "
                f"{len(self.corners)} boxes, {len(self.labels)} labels, {len(self.hard)} marks."
            )

    def array(self) -> NDArray[np.float32]:
        """Corners as an array, shape (n, 4)."""
        return np.asarray(self.corners, dtype=np.float32).reshape(-1, 4)

    def is_hard(self) -> NDArray[np.bool_]:
        """The marks as an array, shape (n,)."""
        return np.asarray(self.hard or (False,) * len(self.labels), dtype=bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """How the masks of a data set write its classes.

    Parameters
    ----------
    codes : tuple of (code, str)
        A grey value, palette index or colour, and the class it stands for.
    ignored : tuple of codes
        Pixels of these are neither learned nor judged.

    Examples
    --------
    >>> Palette(codes=((0, "background"), (1, "leaf"))).names
    ('background', 'leaf')
    """

    codes: tuple[tuple[Code, str], ...]
    ignored: tuple[Code, ...] = (IGNORED,)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, each once, in the order of the codes."""
        return tuple(dict.fromkeys(name for _, name in self.codes))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """A class for every pixel, in a file beside the picture or in memory.

    Parameters
    ----------
    source : Path or array of int, shape (H, W) or (H, W, 3)
        A file is opened only when it is needed.
    palette : Palette
    present : tuple of str
        Classes that the mask shows, as far as it has been looked at.
    """

    source: Path | NDArray[Any]
    palette: Palette
    present: tuple[str, ...] = ()
