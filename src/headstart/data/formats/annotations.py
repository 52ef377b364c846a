"""Boxes as an annotation file writes them, and how they come to lie on the image as shown.

The readers of the formats (coco.py, voc.py, yolo.py) give these; none of them opens an image.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.data.dataset import Boxes, SplitName
from headstart.data.formats.tables import split_name
from headstart.data.images import ImageHeader, header
from headstart.errors import UnreadableImageError

__all__ = [
    "Annotated",
    "Annotations",
    "as_shown",
    "is_background",
    "quick_header",
    "split_in",
    "splits_by_folder",
    "turned",
]

_BACKGROUND = frozenset(("background", "__background__", "_background_", "bg", "__bg__"))
_HEAD = 65536  # bytes in which nearly every image states its size


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """One image and the boxes that a file states for it.

    Parameters
    ----------
    key : str
        The image's posix path relative to the folder.
    boxes : Boxes
        In the file's own coordinates, with the size that it states.
    split : {"train", "val", "test"} or None
    group : str or None
    """

    key: str
    boxes: Boxes
    split: SplitName | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """What the annotation files of a folder say.

    Parameters
    ----------
    items : tuple of Annotated
    names : tuple of str
        Classes in the order that the files declare; empty where they declare none.
    notes : tuple of str
        What was recognised and what was left out.
    relative : bool
        Whether corners are shares of the width and height of the image as shown.
    """

    items: tuple[Annotated, ...]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    relative: bool = False


def is_background(name: str) -> bool:
    """Whether a class is a name for "nothing", which detectors count for themselves.

    Examples
    --------
    >>> is_background("__background__"), is_background("backpack")
    (True, False)
    """
    return name.strip().lower() in _BACKGROUND


def split_in(path: str) -> SplitName | None:
    """The part that the words of a path name, the file's own name first.

    Examples
    --------
    >>> split_in("annotations/instances_val2017.json"), split_in("valid/images")
    ('val', 'val')
    >>> split_in("images/trained.json") is None
    True
    """
    for part in reversed(path.split("/")):
        for word in re.findall(r"[a-z]+", part.lower()):
            if found := split_name(word):
                return found
    return None


def splits_by_folder(keys: Iterable[str]) -> dict[str, SplitName | None]:
    """The part of each image as its folders name it; none where they name only one.

    Examples
    --------
    >>> splits_by_folder(["train/images/1.jpg", "valid/images/1.jpg"])
    {'train/images/1.jpg': 'train', 'valid/images/1.jpg': 'val'}
    """
    found = {key: split_in(posixpath.dirname(key)) for key in keys}
    return found if len(set(found.values()) - {None}) > 1 else dict.fromkeys(found)


def turned(boxes: ArrayLike, orientation: int, width: int, height: int) -> NDArray[np.float64]:
    """Turn boxes as an EXIF orientation turns the image.

    Parameters
    ----------
    boxes : array, shape (n, 4)
        Left, top, right, bottom in pixels of the image as stored.
    orientation : int
        1 (upright) to 8, as EXIF 2.32 (CIPA DC-008, section 4.6.4) numbers them.
    width, height : int
        Of the image as stored.

    Returns
    -------
    array, shape (n, 4)
        In pixels of the image as shown, whose sides are swapped for 5 to 8.

    Examples
    --------
    >>> turned([[0, 0, 2, 1]], 6, width=10, height=5).tolist()
    [[4.0, 0.0, 5.0, 2.0]]
    """
    x0, y0, x1, y1 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    left, up = (width - x1, width - x0), (height - y1, height - y0)
    across, down = {
        1: ((x0, x1), (y0, y1)),
        2: (left, (y0, y1)),
        3: (left, up),
        4: ((x0, x1), up),
        5: ((y0, y1), (x0, x1)),
        6: (up, (x0, x1)),
        7: (up, left),
        8: ((y0, y1), left),
    }[orientation]
    return np.stack([across[0], down[0], across[1], down[1]], axis=1)


def as_shown(
    boxes: Boxes, head: ImageHeader | None, *, relative: bool = False
) -> tuple[Boxes, bool]:
    """Put boxes on the image as it is shown.

    Some tools draw on the image as stored, some as EXIF turns it. The size that the file states
    tells which: where it is that of the stored image only, the boxes turn with it.

    Parameters
    ----------
    boxes : Boxes
    head : ImageHeader or None
        None for an image that cannot be read: its boxes stay as they are.
    relative : bool
        Whether corners are shares of width and height.

    Returns
    -------
    Boxes
        Corners in pixels of the image as shown.
    bool
        Whether they were turned.

    Examples
    --------
    >>> head = ImageHeader(format="JPEG", width=5, height=10, mode="RGB", exif_orientation=6,
    ...     n_frames=1)
    >>> as_shown(Boxes(corners=((0, 0, 2, 1),), labels=("cat",), size=(10, 5)), head)[0].corners
    ((4.0, 0.0, 5.0, 2.0),)
    """
    if head is None:
        return boxes, False
    shown = (head.width, head.height)
    stored = shown[::-1] if head.exif_orientation > 4 else shown
    if relative:
        corners = np.asarray(boxes.corners, dtype=np.float64).reshape(-1, 4) * (shown * 2)
        return replace(boxes, corners=tuple(map(tuple, corners.tolist()))), False
    if boxes.size != stored or boxes.size == shown:
        return boxes, False
    corners = turned(boxes.corners, head.exif_orientation, *stored)
    return replace(boxes, corners=tuple(map(tuple, corners.tolist())), size=shown), True


def quick_header(path: Path) -> ImageHeader | None:
    """Read an image's header from the first 64 KB of its file; None if it has none that is sound.

    What is wrong with it is for `headstart.data.scan` to say.

    Examples
    --------
    >>> quick_header(Path("no-such.jpg")) is None
    True
    """
    try:
        with path.open("rb") as file:
            start = file.read(_HEAD)
    except (OSError, ValueError):
        return None
    try:
        return header(start)
    except UnreadableImageError:  # a TIFF's header may be its end
        pass
    try:
        return header(path) if len(start) == _HEAD else None
    except UnreadableImageError:
        return None
