"""Reader of folders without annotation files: images with masks, or else class folders."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from headstart.data.dataset import Dataset, Kind
from headstart.data.formats import class_folders, layouts, mask_pairs, masks
from headstart.data.formats.file_names import read_names
from headstart.data.formats.layouts import Listing
from headstart.data.formats.mask_names import find_twins
from headstart.data.formats.mask_pairs import MaskPairs
from headstart.data.formats.unread_formats import unread_annotations_error
from headstart.data.pixel_values import MAX_PIXELS
from headstart.errors import DataError, LayoutError, UnknownNameError, UsageError

__all__ = [
    "FolderOptions",
    "format_flags",
    "given_options",
    "mask_note",
    "read_folders",
]


class FolderOptions(TypedDict, total=False):
    """Keywords of `read_dataset` about a folder that its names do not explain.

    Attributes
    ----------
    masks, images : str or None
        Folder of the masks and folder of the images: a path inside the source, the name of several
        folders there, or a path elsewhere. One of them is enough.
    mask_threshold : int or None
        Values of masks from this on are the object, smaller ones the background.
    class_level : int or None
        Level of the folders that are classes: 1 for the folders in the source, or in its splits.
    label_from : str or None
        Regular expression that finds the class in the relative path of each image.
    """

    masks: str | None
    images: str | None
    mask_threshold: int | None
    class_level: int | None
    label_from: str | None


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
        if value is not None:
            given[name] = _checked(name, value)  # type: ignore[literal-required]  # known name
    is_path = isinstance(source, str | os.PathLike) and not str(source).startswith("demo:")
    if given and is_path and not Path(source).exists():  # type: ignore[arg-type]  # a path
        raise layouts.path_not_found_error(Path(source))  # type: ignore[arg-type]
    if given and not (isinstance(source, str | os.PathLike) and Path(source).is_dir()):
        arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UsageError(
            f"{arguments} needs a folder of images, got {source!r:.80}. Remove "
            f"{format_flags(given)}, or pass the folder that contains images and masks."
        )
    return given


def _checked(name: str, value: object) -> str | int:
    is_number = name in {"mask_threshold", "class_level"}
    if is_number and isinstance(value, int) and value >= 1:
        return value
    if not is_number and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    words, sample = ("a whole number from 1 on", 1) if is_number else ("a text", name)
    raise UsageError(
        f"`{name}` must be {words}, got {value!r}. Pass a value such as {name}={sample!r}."
    )


def format_flags(options: FolderOptions) -> str:
    """Format the names of options as flags.

    Examples
    --------
    >>> format_flags({"masks": "gt", "images": "x"})
    '--masks and --images'
    """
    return " and ".join("--" + name.replace("_", "-") for name in options)


def read_folders(
    listing: Listing,
    task_kind: Kind | None,
    labels_required: bool,
    options: FolderOptions,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Dataset, tuple[str, ...]]:
    """Read images with masks of at most ``max_pixels`` pixels, or else class folders.

    Raises
    ------
    DataError
        If the layout is neither of them, or masks cannot be paired with images.
    UsageError
        If options do not fit the task or each other, or a folder has no images.
    """
    mask_options = FolderOptions(**options)
    level = mask_options.pop("class_level", None)
    if (pattern := mask_options.pop("label_from", None)) is not None:
        if mask_options or level is not None:
            other = FolderOptions(**options)
            del other["label_from"]
            raise UsageError(
                f"--label-from {pattern!r} reads classes from paths, which does not fit "
                f"{format_flags(other)}. Remove one of the flags."
            )
        return read_names(listing, pattern, task_kind)
    if mask_options and (level is not None or task_kind not in {None, "segmentation"}):
        reason = f"the task is {task_kind}" if level is None else "--class-level is for classes"
        raise UsageError(
            f"{format_flags(mask_options)} needs data for segmentation, but {reason}. Remove "
            f"{format_flags(mask_options)}, or pass --task segmentation."
        )
    if level is None:
        pairs = _find_pairs(listing, task_kind, labels_required, mask_options)
        if pairs is not None:
            return masks.read_mask_pairs(
                listing,
                pairs,
                labels_required=labels_required,
                threshold=options.get("mask_threshold"),
                max_pixels=max_pixels,
            )
        if task_kind == "segmentation" or mask_options:
            raise layouts.no_masks_error(listing)
        if labels_required:
            other_task = layouts.other_task_error(listing) if task_kind else None
            if error := other_task or unread_annotations_error(listing):
                raise error
    # In class folders, x_mask.png beside x.png is a mask of x.png, not an image of the class.
    twins = find_twins(listing.images)
    images = tuple(name for name in listing.images if name not in twins)
    data, keys = class_folders.read_class_folders(
        replace(listing, images=images),
        task_kind=task_kind,
        labels_required=labels_required,
        class_level=level,
    )
    if twins:
        text = f"{len(twins)} masks beside their images left out: {layouts.format_list(twins)}"
        data = replace(data, notes=(*data.notes, text))
    return data, keys


def _find_pairs(
    listing: Listing, task_kind: Kind | None, labels_required: bool, options: FolderOptions
) -> MaskPairs | None:
    folder, images = options.get("masks"), options.get("images")
    if folder is not None or images is not None:
        return mask_pairs.pair_folders(listing, masks=folder, images=images)
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
    if pairs is None and labels_required and (error := mask_pairs.unpaired_masks_error(listing)):
        raise error
    return pairs


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
