"""Classes in the names of files, which a regular expression finds."""

from __future__ import annotations

import re
from unicodedata import normalize

from headstart.data.dataset import Dataset, Kind, Sample
from headstart.data.formats.annotations import splits_by_folder
from headstart.data.formats.layouts import Listing, format_list, natural_key
from headstart.errors import DataError, UsageError

__all__ = ["read_names"]


def read_names(
    listing: Listing, pattern: str, task_kind: Kind | None
) -> tuple[Dataset, tuple[str, ...]]:
    r"""Read images whose relative path contains the class.

    Parameters
    ----------
    listing : Listing
    pattern : str
        Regular expression that is searched in each path, with forward slashes. The class is the
        group called label, or else the first group.
    task_kind : {"multiclass"} or None

    Returns
    -------
    Dataset
        Sorted by path. Folders named after splits are splits, if there are several.
    tuple of str
        The relative path of each image.

    Raises
    ------
    DataError
        If there are no images, or the expression does not match all of them.
    UsageError
        If the expression is damaged or has no group, or the task is not for classes.

    Examples
    --------
    >>> from pathlib import Path
    >>> listing = Listing(root=Path("pets"), images=("beagle_1.jpg", "pug_2.jpg"))
    >>> read_names(listing, r"([a-z]+)_\d+", None)[0].counts()
    {'beagle': 1, 'pug': 1}
    """
    expression = _compile(pattern)
    if task_kind not in {None, "multiclass"}:
        raise UsageError(
            f"--label-from {pattern!r} reads one class for each image, but the task is "
            f"{task_kind}. Remove --label-from, or pass --task multiclass."
        )
    if not listing.images:
        raise DataError(
            f"Expected images in {str(listing.root)!r} for --label-from {pattern!r}, got none. "
            "Pass the folder of the images."
        )
    labels = {key: _label_of(expression, key) for key in listing.images}
    unmatched = [key for key, label in labels.items() if not label]
    if unmatched:
        raise DataError(
            f"--label-from {pattern!r} finds no class in {len(unmatched)} of the {len(labels)} "
            f"images: {format_list(unmatched, 3)}. Correct the expression, or move these images to "
            "another folder."
        )
    splits = splits_by_folder(labels)
    samples = tuple(
        Sample(image=listing.root / key, target=label, split=splits[key])
        for key, label in labels.items()
    )
    split_note = "splits by folders" if any(splits.values()) else "no splits"
    notes = (
        f"classes from the paths by {pattern!r}, {split_note}",
        "task: multiclass because each image has one label",
    )
    classes = tuple(sorted({str(label) for label in labels.values()}, key=natural_key))
    return Dataset(samples=samples, classes=classes, notes=notes), tuple(labels)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"Expected a regular expression for --label-from, got {pattern!r}: {error}. Correct "
            "the expression."
        ) from error
    if not expression.groups:
        raise UsageError(
            f"Expected a group around the class in --label-from, got {pattern!r} without one. Put "
            "parentheses around the part that is the class, such as '([a-z]+)_'."
        )
    return expression


def _label_of(expression: re.Pattern[str], key: str) -> str | None:
    match = expression.search(key)
    if match is None:
        return None
    label = match["label"] if "label" in expression.groupindex else match[1]
    return normalize("NFC", label.strip()) if label else None
