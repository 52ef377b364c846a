"""Reader of folders without annotation files: images with masks, or else class folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

from headstart.data.dataset import Dataset, Kind
from headstart.data.formats import class_folders, layouts, mask_pairs, masks
from headstart.data.formats.layouts import Listing
from headstart.errors import DataError, LayoutError, UnknownNameError, UsageError

__all__ = [
    "FolderOptions",
    "format_flags",
    "given_options",
    "mask_note",
    "read_folders",
    "read_named_masks",
]


class FolderOptions(TypedDict, total=False):
    """Keywords of `read_dataset` about a folder that its names do not explain.

    Attributes
    ----------
    masks, images : str or None
        Folder of the masks and folder of the images: a path inside the source, the name of several
        folders there, or a path elsewhere. One of them is enough.
    """

    masks: str | None
    images: str | None


def given_options(options: FolderOptions, source: object) -> FolderOptions:
    """Leave out the options that are None.

    Raises
    ------
    UsageError
        If a name is unknown, a value has another type, or the source is no folder.

    Examples
    --------
    >>> given_options({"masks": "gt", "images": None}, ".")
    {'masks': 'gt'}
    """
    given = FolderOptions()
    for name, value in options.items():
        if name not in FolderOptions.__annotations__:
            raise UnknownNameError("setting", name, tuple(FolderOptions.__annotations__))
        if not isinstance(value, str | os.PathLike | None):
            raise UsageError(
                f"`{name}` must be a text, got {value!r}. Pass a value such as {name}='{name}'."
            )
        if value is not None:
            given[name] = os.fspath(value)  # type: ignore[literal-required]  # checked above
    if given and not (isinstance(source, str | os.PathLike) and Path(source).is_dir()):
        arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UsageError(
            f"{arguments} needs a folder of images, got {source!r:.80}. Remove "
            f"{format_flags(given)}, or pass the folder that contains images and masks."
        )
    return given


def format_flags(options: FolderOptions) -> str:
    """Format the names of options as flags.

    Examples
    --------
    >>> format_flags({"masks": "gt", "images": "x"})
    '--masks and --images'
    """
    return " and ".join("--" + name.replace("_", "-") for name in options)


def read_named_masks(
    listing: Listing, task_kind: Kind | None, labels_required: bool, options: FolderOptions
) -> tuple[Dataset, tuple[str, ...]]:
    """Read the images and masks of the folders that the user names.

    Raises
    ------
    UsageError
        If the task is not segmentation, or a folder has no images.
    DataError
        If images and masks cannot be paired, or masks cannot be read.
    """
    if task_kind not in {None, "segmentation"}:
        raise UsageError(
            f"{format_flags(options)} needs data for segmentation, but the task is {task_kind}. "
            f"Remove {format_flags(options)}, or pass --task segmentation."
        )
    pairs = mask_pairs.pair_folders(
        listing, masks=options.get("masks"), images=options.get("images")
    )
    return masks.read_mask_pairs(listing, pairs, labels_required=labels_required)


def read_folders(
    listing: Listing, task_kind: Kind | None, labels_required: bool
) -> tuple[Dataset, tuple[str, ...]]:
    """Read images with masks, or else class folders.

    Raises
    ------
    DataError
        If the layout is neither of them, or masks cannot be paired with images.
    """
    pairs = mask_pairs.find_mask_pairs(listing)
    if pairs is not None and task_kind not in {None, "segmentation"}:
        if error := layouts.other_task_error(listing):
            raise error
        image, mask = next(iter(pairs.masks.items()))
        raise LayoutError(
            f"Expected images for classification in {str(listing.root)!r}, got segmentation data "
            f"({image!r} with the mask {mask!r}). Remove --task, or move the masks to another "
            "folder."
        )
    if pairs is not None:
        return masks.read_mask_pairs(listing, pairs, labels_required=labels_required)
    if labels_required and (error := mask_pairs.unpaired_masks_error(listing)):
        raise error
    if task_kind == "segmentation":
        raise layouts.no_masks_error(listing)
    return class_folders.read_class_folders(
        listing, task_kind=task_kind, labels_required=labels_required
    )


def mask_note(listing: Listing) -> tuple[str, ...]:
    """Note that a folder read for its boxes also has masks, as Pascal VOC does.

    Examples
    --------
    >>> mask_note(Listing(root=Path("p"), images=("images/1.jpg", "masks/1.png")))
    ('there are masks, too; pass --task segmentation to use them',)
    """
    try:
        pairs = mask_pairs.find_mask_pairs(listing)
    except DataError:  # the masks are not read, so their errors do not matter
        return ()
    if pairs is None:
        return ()
    return ("there are masks, too; pass --task segmentation to use them",)
