"""Class folders, with or without folders for train, val and test -> `Dataset`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from unicodedata import normalize

from headstart.data.dataset import SPLITS, Dataset, Kind, Sample, SplitName, labels_of
from headstart.data.formats import layouts
from headstart.data.formats.layouts import Listing, listed, natural_key
from headstart.data.formats.tables import split_name

__all__ = ["ByClass", "by_class", "read_folders"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByClass:
    """A listing sorted into classes.

    Parameters
    ----------
    classes : dict of str to tuple of str
        Images by class; empty where the layout is not class folders.
    splits : dict of str to {"train", "val", "test"}
        The folders that are parts; empty where there are none.
    outside : tuple of str
        Images in no class folder.
    """

    classes: dict[str, tuple[str, ...]]
    splits: dict[str, SplitName]
    outside: tuple[str, ...]


def _split_folders(listing: Listing) -> dict[str, SplitName]:
    """Folders that are parts rather than classes: named so, and with folders inside."""
    named = {top: split for top in listing.tops if (split := split_name(top))}
    holders = {name.split("/", 1)[0] for name in listing.images if "/" in name}
    deep = {name.split("/", 1)[0] for name in listing.images if name.count("/") > 1}
    if holders <= named.keys() and (deep or len(holders) > 1):
        return named
    # One folder of that name among others may well be a class: train, car, bus.
    return named if len(set(named.values())) > 1 else {}


def by_class(listing: Listing) -> ByClass:
    """Sort a listing into classes by the names of folders.

    Examples
    --------
    >>> from pathlib import Path
    >>> names = ("test/dog/1.jpg", "train/cat/1.jpg", "train/dog/sub/2.jpg", "x.jpg")
    >>> sorted_in = by_class(Listing(root=Path("p"), images=names, folders=("test", "train")))
    >>> sorted_in.classes
    {'dog': ('test/dog/1.jpg', 'train/dog/sub/2.jpg'), 'cat': ('train/cat/1.jpg',)}
    >>> sorted_in.outside
    ('x.jpg',)
    """
    splits = _split_folders(listing)
    at = 1 if splits else 0
    holding = {name[:i] for name in listing.others for i, c in enumerate(name) if c == "/"}
    classes: dict[str, list[str]] = {}
    outside = []
    for folder in listing.folders:
        parts = folder.split("/")
        inside = not splits or parts[0] in splits
        # An empty folder is a class that waits for images; one of other files is not.
        if inside and len(parts) == at + 1 and folder not in holding:
            classes.setdefault(normalize("NFC", parts[at]), [])
    for name in listing.images:
        parts = name.split("/")
        if len(parts) < at + 2 or (splits and parts[0] not in splits):
            outside.append(name)
        else:
            # macOS writes decomposed letters, others composed ones: one name, one class.
            classes.setdefault(normalize("NFC", parts[at]), []).append(name)
    found = {name: tuple(names) for name, names in classes.items()}
    return ByClass(
        classes=found if any(found.values()) else {}, splits=splits, outside=tuple(outside)
    )


def read_folders(
    listing: Listing, *, task_kind: Kind | None = None, labels_required: bool = True
) -> tuple[Dataset, tuple[str, ...]]:
    """Read class folders.

    Parameters
    ----------
    listing : Listing
    task_kind : {"multiclass", "multilabel"} or None
        Multilabel: each image carries the one label of its folder.
    labels_required : bool
        False: images outside class folders are read without a label.

    Returns
    -------
    Dataset
        Examples sorted by relative path.
    tuple of str
        The relative path of each example.

    Raises
    ------
    LayoutError
        If these are not class folders.

    Examples
    --------
    >>> from pathlib import Path
    >>> listing = Listing(root=Path("p"), images=("cat/1.jpg", "dog/1.jpg"))
    >>> data, keys = read_folders(listing)
    >>> data.classes, keys
    (('cat', 'dog'), ('cat/1.jpg', 'dog/1.jpg'))
    """
    error = layouts.foreign(listing)
    if error is not None:
        raise error
    found = by_class(listing)
    if not listing.images or (labels_required and not found.classes):
        raise layouts.unrecognised(listing)
    label = {name: label for label, names in found.classes.items() for name in names}
    keys = tuple(label) + (() if labels_required else found.outside)
    keys = tuple(sorted(keys))
    kind: Kind = task_kind or "multiclass"
    samples = tuple(
        Sample(
            image=listing.root / key,
            target=(label[key],) if kind == "multilabel" and key in label else label.get(key),
            split=found.splits.get(key.split("/", 1)[0]),
        )
        for key in keys
    )
    data = Dataset(
        samples=samples, classes=tuple(sorted(found.classes, key=natural_key)), kind=kind
    )
    notes = (
        *_recognised(data, found),
        *_deeper(found),
        *_left_out(listing, found, labels_required),
    )
    return Dataset(samples=samples, classes=data.classes, kind=kind, notes=notes), keys


def _recognised(data: Dataset, found: ByClass) -> tuple[str, ...]:
    present = [split for split in SPLITS if any(s.split == split for s in data.samples)]
    notes = [f"class folders with {'/'.join(present)}" if present else "class folders, no splits"]
    if not found.classes:
        return ("a folder of images without labels",)
    if data.kind == "multiclass":
        notes.append("task: multiclass because each image has one label")
    else:
        notes.append("task: multilabel because it was asked for")
    counts = data.counts()
    empty = [name for name, count in counts.items() if not count]
    if empty:
        notes.append(f"{len(empty)} classes have an empty folder: {listed(empty)}")
    for split in present:
        tally = Counter(_label(s) for s in data.samples if s.split == split)
        absent = [name for name, count in counts.items() if count and not tally[name]]
        if absent:
            notes.append(f"{split} has no images of {len(absent)} classes: {listed(absent)}")
    return tuple(notes)


def _deeper(found: ByClass) -> tuple[str, ...]:
    """Folders of the same names in every class may be the classes that were meant."""
    at = 2 if found.splits else 1
    inner = [
        {name.split("/")[at] for name in names if name.count("/") > at}
        for names in found.classes.values()
        if names
    ]
    common = sorted(set.intersection(*inner), key=natural_key) if len(inner) > 1 else []
    if len(common) < 2:
        return ()
    return (
        (
            f"every class holds the folders {listed(common)}; if these are the classes, "
            "name a folder one step deeper"
        ),
    )


def _label(sample: Sample) -> str | None:
    return next(iter(labels_of(sample.target)), None)


def _left_out(listing: Listing, found: ByClass, labels_required: bool) -> tuple[str, ...]:
    notes = []
    if found.outside and labels_required:
        notes.append(
            f"{len(found.outside)} images outside class folders left out: {listed(found.outside)}"
        )
    if listing.others:
        notes.append(
            f"{len(listing.others)} files that are no images left out: {listed(listing.others)}"
        )
    if listing.links:
        notes.append(
            f"{len(listing.links)} links to folders not followed, as they lead back or too deep: "
            f"{listed(listing.links)}"
        )
    return tuple(notes)
