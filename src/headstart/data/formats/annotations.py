"""Boxes of annotation files, and their conversion to coordinates of the upright image.

The readers of box formats (coco.py, labelme.py, ...) return `Annotations`; none opens an image.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.data.dataset import Boxes, SplitName
from headstart.data.formats.layouts import Listing, format_list, natural_key
from headstart.data.formats.tables import split_name
from headstart.data.image_sizes import read_header_from_start
from headstart.data.images import ImageHeader
from headstart.data.outlines import Outline
from headstart.errors import DataError, UnreadableImageError

__all__ = [
    "AnnotatedImage",
    "Annotations",
    "half_annotated",
    "is_background",
    "join_images",
    "orient_boxes",
    "quick_header",
    "split_from_path",
    "splits_by_folder",
    "to_upright",
]

MAX_UNANNOTATED = (
    0.05  # share of images without annotations from which a set counts as half-annotated
)
_BACKGROUND_NAMES = frozenset(("background", "__background__", "_background_", "bg", "__bg__"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedImage:
    """One image and its boxes, as stored in an annotation file.

    Parameters
    ----------
    key : str
        The image's posix path relative to the folder.
    boxes : Boxes
        In the coordinates of the file, with the image size if the file states it.
    split : {"train", "val", "test"} or None
    group : str or None
    outlines : tuple of Outline or None
        Of each box; None where the box is all that is known. Empty if no outline was read.
    tags : tuple of str
        Classes of the image as a whole.
    """

    key: str
    boxes: Boxes
    split: SplitName | None = None
    group: str | None = None
    outlines: tuple[Outline | None, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """Contents of the annotation files of a folder.

    Parameters
    ----------
    items : tuple of AnnotatedImage
    names : tuple of str
        Classes in the order of the files; empty if the files declare none.
    notes : tuple of str
        What was recognised and what was left out, for the user.
    warnings : tuple of str
        What the user should check.
    relative : bool
        Whether corners are fractions of the width and height of the upright image.
    boxes_are_regions : bool
        Whether an object without an outline is its box, because a tool drew a rectangle.
    """

    items: tuple[AnnotatedImage, ...]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    relative: bool = False
    boxes_are_regions: bool = False


def is_background(name: str) -> bool:
    """Whether a class name stands for the background, which detectors add themselves.

    Examples
    --------
    >>> is_background("__background__"), is_background("backpack")
    (True, False)
    """
    return name.strip().lower() in _BACKGROUND_NAMES


def half_annotated(missing: Sequence[str], total: int, lack: str, use: str) -> tuple[str, ...]:
    """Warn of images without annotations, if they are more than 5 % of the images.

    Parameters
    ----------
    missing : sequence of str
        Images without annotations.
    total : int
        All images.
    lack, use : str
        What they do not have, and what happens with them.

    Examples
    --------
    >>> half_annotated(["b.jpg"], 4, "no annotation file", "left out")[0][:59]
    '1 of 4 images (25 %) has no annotation file: left out, such'
    >>> half_annotated(["b.jpg"], 20, "no annotation file", "left out")
    ()
    """
    if len(missing) <= MAX_UNANNOTATED * total:
        return ()
    verb = "has" if len(missing) == 1 else "have"
    share = f"{len(missing)} of {total} images ({100 * len(missing) / total:.0f} %)"
    text = (
        f"{share} {verb} {lack}: {use}, such as {missing[0]}. If objects are visible in them, "
        "annotate them or remove the images."
    )
    return (text,)


def split_from_path(path: str) -> SplitName | None:
    """Find the split that a word of the path names; the file name has precedence over folders.

    Examples
    --------
    >>> split_from_path("annotations/instances_val2017.json"), split_from_path("valid/images")
    ('val', 'val')
    >>> split_from_path("images/trained.json") is None
    True
    """
    for part in reversed(path.split("/")):
        for word in re.findall(r"[a-z]+", part.lower()):
            if split := split_name(word):
                return split
    return None


def splits_by_folder(keys: Iterable[str]) -> dict[str, SplitName | None]:
    """Find the split of each image by its folders; None for all if they name only one split.

    Examples
    --------
    >>> splits_by_folder(["train/images/1.jpg", "valid/images/1.jpg"])
    {'train/images/1.jpg': 'train', 'valid/images/1.jpg': 'val'}
    """
    splits = {key: split_from_path(posixpath.dirname(key)) for key in keys}
    return splits if len(set(splits.values()) - {None}) > 1 else dict.fromkeys(splits)


def orient_boxes(
    boxes: ArrayLike, orientation: int, width: int, height: int
) -> NDArray[np.float64]:
    """Rotate and mirror boxes as an EXIF orientation does with the image.

    Parameters
    ----------
    boxes : array, shape (n, 4)
        Left, top, right, bottom in pixels of the stored image.
    orientation : int
        1 (upright) to 8, as EXIF 2.32 (CIPA DC-008, section 4.6.4) numbers them.
    width, height : int
        Of the stored image.

    Returns
    -------
    array, shape (n, 4)
        In pixels of the upright image, whose width and height are swapped for 5 to 8.

    Examples
    --------
    >>> orient_boxes([[0, 0, 2, 1]], 6, width=10, height=5).tolist()
    [[4.0, 0.0, 5.0, 2.0]]
    """
    x0, y0, x1, y1 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    x, y = (x0, x1), (y0, y1)
    mirrored_x, mirrored_y = (width - x1, width - x0), (height - y1, height - y0)
    horizontal, vertical = {
        1: (x, y),
        2: (mirrored_x, y),
        3: (mirrored_x, mirrored_y),
        4: (x, mirrored_y),
        5: (y, x),
        6: (mirrored_y, x),
        7: (mirrored_y, mirrored_x),
        8: (y, mirrored_x),
    }[orientation]
    return np.stack([horizontal[0], vertical[0], horizontal[1], vertical[1]], axis=1)


def to_upright(
    boxes: Boxes, head: ImageHeader | None, *, relative: bool = False
) -> tuple[Boxes, bool]:
    """Convert boxes to pixels of the upright image.

    Some annotation tools use the stored image, some the upright image (after its EXIF rotation).
    If the stated size is that of the stored image only, the boxes are rotated with the image.

    Parameters
    ----------
    boxes : Boxes
    head : ImageHeader or None
        None for an unreadable image: its boxes are not changed.
    relative : bool
        Whether corners are fractions of width and height.

    Returns
    -------
    Boxes
        Corners in pixels of the upright image.
    bool
        Whether the boxes were rotated.

    Examples
    --------
    >>> head = ImageHeader(format="JPEG", width=5, height=10, mode="RGB", exif_orientation=6,
    ...     n_frames=1)
    >>> to_upright(Boxes(corners=((0, 0, 2, 1),), labels=("cat",), size=(10, 5)), head)[0].corners
    ((4.0, 0.0, 5.0, 2.0),)
    """
    if head is None:
        return boxes, False
    upright_size = (head.width, head.height)
    stored_size = upright_size[::-1] if head.exif_orientation > 4 else upright_size
    if relative:
        corners = np.asarray(boxes.corners, dtype=np.float64).reshape(-1, 4) * (upright_size * 2)
        return replace(boxes, corners=tuple(map(tuple, corners.tolist()))), False
    if boxes.size != stored_size or boxes.size == upright_size:
        return boxes, False
    corners = orient_boxes(boxes.corners, head.exif_orientation, *stored_size)
    return replace(boxes, corners=tuple(map(tuple, corners.tolist())), size=upright_size), True


def quick_header(path: Path) -> ImageHeader | None:
    """Read the header of an image file; None if the file is not a readable image.

    The data checks (`headstart.data.checks.scan`) report the reason.

    Examples
    --------
    >>> quick_header(Path("no-such.jpg")) is None
    True
    """
    try:
        return read_header_from_start(path)
    except UnreadableImageError:
        return None


def join_images(
    listing: Listing,
    items: Sequence[AnnotatedImage],
    source: str,
    *,
    names: Sequence[str] = (),
    notes: Sequence[str] = (),
    one_file_each: bool = False,
) -> Annotations:
    """Join the images of an annotation tool; folders name the splits, if they name several.

    Parameters
    ----------
    listing : Listing
    items : sequence of AnnotatedImage
    source : str
        Words for the files, such as ``LabelMe files``.
    names : sequence of str
        Classes in the order of the files; empty: by name.
    notes : sequence of str
    one_file_each : bool
        Images in the same folders without a file have no objects; else they are left out.

    Raises
    ------
    DataError
        If an image occurs twice.
    """
    by_key: dict[str, AnnotatedImage] = {}
    for item in items:
        if item.key in by_key:
            raise DataError(
                f"Expected every image once in the {source} of {str(listing.root)!r}, got "
                f"{item.key!r} twice. Remove one of its annotations."
            )
        by_key[item.key] = item
    if by_key.keys().isdisjoint(listing.images):
        raise DataError(
            f"None of the {len(by_key)} images in the {source} (such as "
            f"{next(iter(by_key), '')!r}) exists in {str(listing.root)!r}. Pass the folder that "
            "contains both the images and the annotations."
        )
    rest = [key for key in listing.images if key not in by_key]
    all_notes = [f"{source}: {len(items)} annotated images", *notes]
    lack, use = f"no entry in the {source}", "left out"
    if one_file_each:
        folders = {posixpath.dirname(key) for key in by_key}
        rest = [key for key in rest if posixpath.dirname(key) in folders]
        by_key |= {key: AnnotatedImage(key=key, boxes=Boxes()) for key in rest}
        lack, use = "no annotation file", "used as images without objects"
    if rest:
        all_notes.append(f"{len(rest)} images with {lack}, {use}: {format_list(rest)}")
    splits = splits_by_folder(by_key)
    labels = {label for item in by_key.values() for label in item.boxes.labels}
    return Annotations(
        items=tuple(replace(item, split=item.split or splits[key]) for key, item in by_key.items()),
        names=tuple(dict.fromkeys([*names, *sorted(labels, key=natural_key)])),
        notes=tuple(all_notes),
        warnings=half_annotated(rest, len(rest) + len(items), lack, use),
        boxes_are_regions=True,
    )
