"""Several masks for one image, each of one object: which they are, and their union."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED
from headstart.data.formats.mask_names import folder_role, pairing_name
from headstart.data.masks import read_raw_mask
from headstart.data.pixel_values import MAX_PIXELS
from headstart.errors import DataError

__all__ = ["MAX_BYTES", "are_numbered", "merge_masks", "parts_by_place"]

MAX_BYTES = 2 * 2**30  # of merged masks, which stay in memory
_NUMBER = re.compile(r"[ _.-]?\(?\d+\)?$")
_COUNTER = re.compile(
    r"[a-z]|(?:masks?|instances?|inst|objects?|obj|seg|cells?|nucle(?:us|i)|roi)?[ _.-]*\(?\d*\)?",
    re.IGNORECASE,
)


def are_numbered(masks: Sequence[str]) -> bool:
    """Whether masks of one image differ only by a number at the end, or its absence.

    Examples
    --------
    >>> are_numbered(["a/1_mask.png", "a/1_mask_1.png"]), are_numbered(["1_mask.png", "1_gt.png"])
    (True, False)
    """
    return len({_NUMBER.sub("", name.rpartition(".")[0]) for name in masks}) == 1


def parts_by_place(names: Iterable[str]) -> dict[str, list[str]]:
    """Masks by image, where the folders or numbers say to which image each mask belongs.

    These are masks in a folder beside a single image (``7/images/7.png``, ``7/masks/a.png``), in a
    folder with the name of the image (``masks/7/a.png``), or with its name and a number
    (``masks/7_1.png``).

    Parameters
    ----------
    names : iterable of str
        Images and masks as posix paths.

    Returns
    -------
    dict
        Empty unless every mask belongs to one image, and several to one. Also empty if the masks
        of different images share names such as ``liver.png``: they may be classes.

    Examples
    --------
    >>> parts_by_place(["1/images/1.png", "1/masks/a.png", "1/masks/b.png", "2/images/2.png"])
    {'1/images/1.png': ['1/masks/a.png', '1/masks/b.png']}
    """
    every = list(names)
    masks = [name for name in every if _mask_index(name) is not None]
    images = [name for name in every if _mask_index(name) is None]
    by_folder: dict[tuple[str, ...], list[str]] = defaultdict(list)
    by_stem: dict[tuple[tuple[str, ...], str], list[str]] = defaultdict(list)
    for image in images:
        file = pairing_name(image, keep_words=True)
        by_folder[file.folders].append(image)
        by_stem[file.folders, file.stem].append(image)
    parts: dict[str, list[str]] = defaultdict(list)
    for mask in masks:
        owner = _image_of(mask, by_folder, by_stem)
        if owner is None:
            return {}
        parts[owner].append(mask)
    has_several = len(images) > 1 and any(len(group) > 1 for group in parts.values())
    return dict(parts) if has_several and not _may_be_classes(parts) else {}


def _mask_index(name: str) -> int | None:
    """Index of the last folder for masks in a path."""
    folders = name.split("/")[:-1]
    roles = [folder_role(folder)[0] for folder in folders]
    return len(roles) - 1 - roles[::-1].index("mask") if "mask" in roles else None


def _image_of(
    mask: str,
    by_folder: Mapping[tuple[str, ...], Sequence[str]],
    by_stem: Mapping[tuple[tuple[str, ...], str], Sequence[str]],
) -> str | None:
    """The only image to which a mask may belong."""
    *folders, file = mask.split("/")
    index = _mask_index(mask) or 0
    inner = folders[index + 1 :]
    place = pairing_name("/".join([*folders[: index + 1], file]), keep_words=True)
    if inner:
        outer = pairing_name("/".join([*folders[: index + 1], *inner[:-1], file]), keep_words=True)
        candidates = by_stem.get((outer.folders, inner[-1]), ())
    else:
        candidates = by_folder.get(place.folders, ())
        if len(candidates) != 1:
            stems = (place.stem, _NUMBER.sub("", place.stem))
            found = (by_stem.get((place.folders, stem), ()) for stem in stems)
            candidates = next((images for images in found if images), ())
    return candidates[0] if len(candidates) == 1 else None


def _may_be_classes(parts: Mapping[str, Sequence[str]]) -> bool:
    """Whether words that are no counters name masks of several images."""
    images: dict[str, set[str]] = defaultdict(set)
    for image, masks in parts.items():
        for mask in masks:
            stem = mask.rpartition("/")[2].rpartition(".")[0]
            if not _COUNTER.fullmatch(stem):
                images[stem].add(image)
    return any(len(names) > 1 for names in images.values())


def merge_masks(
    paths: Sequence[Path], threshold: int | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Unite the masks of the objects of an image.

    Parameters
    ----------
    paths : sequence of Path
    threshold : int or None
        Values of this and above are the object; by default all but 0.
    max_pixels : int
        Largest width times height of a mask.

    Returns
    -------
    array, uint8, shape (H, W)
        0 for the background, 255 for the objects.

    Raises
    ------
    DataError
        If a mask has more than two values, or another size than the first.
    UnreadableImageError
        If a file cannot be decoded.
    """
    merged: NDArray[np.bool_] | None = None
    for path in paths:
        values = read_raw_mask(path, max_pixels).values
        grey = values.max(axis=2) if values.ndim == 3 else values
        n_values = len(np.unique(grey))
        if threshold is None and n_values > 2:
            raise DataError(
                f"Expected one object in each of {len(paths)} masks of an image, got {n_values} "
                f"values in {str(path)!r}. Merge the masks into one file per image, or pass "
                "--mask-threshold 128 if all values but two come from compression."
            )
        inside = grey >= threshold if threshold is not None else grey > 0
        if merged is not None and merged.shape != inside.shape:
            raise DataError(
                f"Expected masks of one size, got {inside.shape[1]} x {inside.shape[0]} for "
                f"{str(path)!r} and {merged.shape[1]} x {merged.shape[0]} for {str(paths[0])!r}. "
                "Save the masks of an image in one size."
            )
        merged = inside if merged is None else merged | inside
    if merged is None:
        raise DataError("Expected the masks of an image, got none. Pass at least one.")
    return np.where(merged, IGNORED, 0).astype(np.uint8)
