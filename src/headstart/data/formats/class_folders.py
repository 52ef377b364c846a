"""Reader of class folders, with or without folders for train, val and test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from headstart.data.dataset import SPLITS, Dataset, Kind, Sample, SplitName, labels_of
from headstart.data.formats import layouts
from headstart.data.formats.layouts import Listing, format_list, natural_key
from headstart.data.formats.split_folders import (
    find_split_folders,
    innermost_folder,
    split_and_rest,
    split_class_names,
    splits_inside_classes,
    subfolder_names,
)
from headstart.data.masks import distinct_values, read_raw_mask
from headstart.errors import DataError, LayoutError

__all__ = ["ClassFolders", "group_by_class", "read_class_folders"]

_FEW_VALUES = 16
_NEAR = 32  # grey levels from 0 or 255 to which compression moves the pixels of a mask
_NEAR_ENDS = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFolders:
    """Images of a listing, grouped by class folder.

    Parameters
    ----------
    classes : dict of str to tuple of str
        Images by class; empty if the layout is not class folders.
    splits : dict of str to {"train", "val", "test"}
        Split by image; empty if there are no split folders.
    outside : tuple of str
        Images outside class folders.
    subfolders : dict of str to frozenset of str
        Names of the folders with images in each class folder.
    """

    classes: dict[str, tuple[str, ...]]
    splits: dict[str, SplitName]
    outside: tuple[str, ...]
    subfolders: dict[str, frozenset[str]]


def group_by_class(listing: Listing, class_level: int | None = None) -> ClassFolders:
    """Group the images of a listing by class folder, at a level below the data or its splits.

    Without a level, splits inside the class folders and in their names are found, too.

    Raises
    ------
    LayoutError
        If a folder repeats the class folders beside it, or only a part has splits.

    Examples
    --------
    >>> from pathlib import Path
    >>> names = ("test/dog/1.jpg", "train/cat/1.jpg", "train/dog/sub/2.jpg", "x.jpg")
    >>> folders = group_by_class(Listing(root=Path("p"), images=names, folders=("test", "train")))
    >>> folders.classes
    {'dog': ('test/dog/1.jpg', 'train/dog/sub/2.jpg'), 'cat': ('train/cat/1.jpg',)}
    >>> folders.outside
    ('x.jpg',)
    """
    level = class_level or 1
    tops = find_split_folders(listing)
    # The folders that contain the class folders, each with its split.
    roots: dict[str, SplitName | None] = (
        {innermost_folder(listing, top): split for top, split in tops.items()}
        if tops
        else {innermost_folder(listing, ""): None}
    )
    if tops and class_level is None:
        roots = _below_containers(listing, roots)
    with_other_files = {
        name[:i] for name in listing.other_files for i, char in enumerate(name) if char == "/"
    }
    classes: dict[str, list[str]] = {}
    for folder in listing.folders:
        parent, _, name = folder.rpartition("/")
        # An empty folder is a class without images yet; a folder of other files is no class.
        if level == 1 and parent in roots and folder not in with_other_files:
            classes.setdefault(normalize("NFC", name), [])
    outside = []
    inner: dict[str, list[str]] = {}
    splits: dict[str, SplitName] = {}
    subfolders: dict[str, set[str]] = {}
    for name in listing.images:
        root = _root_of(name, roots)
        parts = name[len(root) + 1 if root else 0 :].split("/") if root is not None else []
        if root is None or len(parts) < level + 1:
            outside.append(name)
            if split := tops.get(name.split("/", 1)[0]):
                splits[name] = split
            continue
        # macOS stores decomposed letters, other systems composed ones: same name, same class.
        label = normalize("NFC", parts[level - 1])
        classes.setdefault(label, []).append(name)
        inner[name] = parts[level:-1]
        subfolders.setdefault(label, set()).update(
            parts[level : level + 1] if len(parts) > level + 1 else ()
        )
        if split := roots[root]:
            splits[name] = split
    _refuse_copies(listing, subfolders)
    if class_level is None and not tops:
        labels = {name: label for label, names in classes.items() for name in names}
        splits = splits_inside_classes(inner, labels)
        subfolders = {} if splits else subfolders
        divided = split_class_names(label for label, names in classes.items() if names)
        if divided:
            classes, splits = _divide(classes, divided)
    images = {name: tuple(names) for name, names in classes.items()}
    return ClassFolders(
        classes=images if any(images.values()) else {},
        splits=splits,
        outside=tuple(outside),
        subfolders={name: frozenset(names) for name, names in subfolders.items()},
    )


def _below_containers(
    listing: Listing, roots: dict[str, SplitName | None]
) -> dict[str, SplitName | None]:
    """Step into ``train/images`` where every split has one such folder, and the classes are in it.

    The name of the folder has no meaning of its own, such as images, photos or data.
    """
    inner: dict[str, SplitName | None] = {}
    names: set[str] = set()
    for root, split in roots.items():
        children = subfolder_names(listing.images, root)
        if not children:  # an empty split folder
            inner[root] = split
            continue
        child = next(iter(children))
        path = f"{root}/{child}"
        direct = any(key.rpartition("/")[0] in {root, path} for key in listing.images)
        if len(children) != 1 or direct or split_and_rest(child) != (None, ""):
            return roots
        inner[path] = split
        names |= subfolder_names(listing.images, path)
    return inner if len(names) > 1 else roots


def _divide(
    classes: dict[str, list[str]], divided: dict[str, tuple[str, SplitName]]
) -> tuple[dict[str, list[str]], dict[str, SplitName]]:
    """Join the folders of one class, and return the split of each image."""
    joined: dict[str, list[str]] = {}
    splits: dict[str, SplitName] = {}
    for folder, (label, split) in divided.items():
        joined.setdefault(label, []).extend(classes[folder])
        splits |= dict.fromkeys(classes[folder], split)
    return joined, splits


def _root_of(name: str, roots: Iterable[str]) -> str | None:
    return next((root for root in roots if not root or name.startswith(f"{root}/")), None)


def _refuse_copies(listing: Listing, subfolders: dict[str, set[str]]) -> None:
    """Refuse a folder that contains the class folders beside it once more."""
    for name, names in subfolders.items():
        repeated = sorted((names & subfolders.keys()) - {name}, key=natural_key)
        if len(repeated) > 1 and 2 * len(repeated) > len(subfolders) - 1:
            raise LayoutError(
                f"The folder {name!r} in {str(listing.root)!r} contains the folders beside it once "
                f"more: {format_list(repeated)}. Remove one of the copies, or pass the path of "
                f"{name!r}."
            )


def read_class_folders(
    listing: Listing,
    *,
    task_kind: Kind | None = None,
    labels_required: bool = True,
    class_level: int | None = None,
) -> tuple[Dataset, tuple[str, ...]]:
    """Read class folders.

    Parameters
    ----------
    listing : Listing
    task_kind : {"multiclass", "multilabel"} or None
        Multilabel: each image has the one label of its folder.
    labels_required : bool
        False: images outside class folders are read without a label.
    class_level : int or None
        Level of the folders that are classes. None: 1, unless these contain folders of the same
        names, which is an error.

    Returns
    -------
    Dataset
        Examples sorted by relative path.
    tuple of str
        The relative path of each example.

    Raises
    ------
    LayoutError
        If the layout is not class folders.

    Examples
    --------
    >>> from pathlib import Path
    >>> listing = Listing(root=Path("p"), images=("cat/1.jpg", "dog/1.jpg"))
    >>> data, keys = read_class_folders(listing)
    >>> data.classes, keys
    (('cat', 'dog'), ('cat/1.jpg', 'dog/1.jpg'))
    """
    error = layouts.other_task_error(listing)
    if error is not None:
        raise error
    folders = group_by_class(listing, class_level if labels_required else 1)
    if labels_required and class_level is None:
        _refuse_containers(listing, folders)
        _refuse_mask_folder(listing, folders)
    if not listing.images or (labels_required and not folders.classes):
        raise layouts.unknown_layout_error(listing)
    labels = {name: label for label, names in folders.classes.items() for name in names}
    keys = tuple(sorted((*labels, *(() if labels_required else folders.outside))))
    kind: Kind = task_kind or "multiclass"
    samples = tuple(
        Sample(
            image=listing.root / key,
            target=(labels[key],) if kind == "multilabel" and key in labels else labels.get(key),
            split=folders.splits.get(key),
        )
        for key in keys
    )
    data = Dataset(
        samples=samples, classes=tuple(sorted(folders.classes, key=natural_key)), kind=kind
    )
    notes = (
        *_layout_notes(data, folders),
        *_skipped_file_notes(listing, folders, labels_required),
    )
    return Dataset(samples=samples, classes=data.classes, kind=kind, notes=notes), keys


def _layout_notes(data: Dataset, folders: ClassFolders) -> tuple[str, ...]:
    present = [split for split in SPLITS if any(s.split == split for s in data.samples)]
    notes = [f"class folders with {'/'.join(present)}" if present else "class folders, no splits"]
    if not folders.classes:
        return ("a folder of images without labels",)
    if data.kind == "multiclass":
        notes.append("task: multiclass because each image has one label")
    else:
        notes.append("task: multilabel as requested")
    counts = data.counts()
    empty = [name for name, count in counts.items() if not count]
    if empty:
        notes.append(f"{len(empty)} classes have an empty folder: {format_list(empty)}")
    for split in present:
        split_counts = Counter(_first_label(s) for s in data.samples if s.split == split)
        absent = [name for name, count in counts.items() if count and not split_counts[name]]
        if absent:
            notes.append(f"{split} has no images of {len(absent)} classes: {format_list(absent)}")
    return tuple(notes)


def _refuse_containers(listing: Listing, folders: ClassFolders) -> None:
    """Refuse top folders that contain folders of the same names: either may be the classes."""
    holders = Counter(name for names in folders.subfolders.values() for name in names)
    shared = {name for name, count in holders.items() if count > 1}
    tops = [top for top, names in folders.subfolders.items() if names & shared]
    if len(shared) < 2 or 2 * len(tops) <= len(folders.subfolders):
        return
    tops.sort(key=natural_key)
    inner = sorted(shared, key=natural_key)
    names = format_list(inner)
    raise LayoutError(
        f"The folders {format_list(tops)} in {str(listing.root)!r} contain folders of the same "
        f"names: {names}. If {names} are the classes, pass --class-level 2 (with --group-by "
        "'^([^/]+)/' if each top folder is one patient or site), or the path of one top folder. If "
        f"{format_list(tops)} are the classes, pass --class-level 1."
    )


def _refuse_mask_folder(listing: Listing, folders: ClassFolders) -> None:
    """Refuse two folders of equal file names, one of photos and one of masks."""
    if len(folders.classes) != 2 or not all(folders.classes.values()):
        return
    (first, first_names), (second, second_names) = folders.classes.items()
    stems = [{Path(name).stem for name in names} for names in (first_names, second_names)]
    both = stems[0] & stems[1]
    if len(both) < 2 or 2 * len(both) < min(map(len, stems)):
        return
    kinds = [
        {_has_few_values(listing.root / n) for n in names if Path(n).stem in sorted(both)[:3]}
        for names in (first_names, second_names)
    ]
    for mask, kind, other in ((first, kinds[0], kinds[1]), (second, kinds[1], kinds[0])):
        if kind == {True} and other == {False}:
            raise LayoutError(
                f"{first!r} and {second!r} in {str(listing.root)!r} look like images and masks: "
                f"their files have the same names, and those of {mask!r} have few values. Pass "
                f"--masks FOLDER (here --masks {mask}), or --class-level 1 if they are classes."
            )


def _has_few_values(path: Path) -> bool | None:
    """Whether an image has at most 16 values, as a mask; None for an unreadable file.

    For a JPEG, which alters values: whether 90 % of the pixels are near 0 or near 255.
    """
    try:
        raw = read_raw_mask(path)
    except DataError:
        return None
    if raw.lossy:
        grey = raw.values if raw.values.ndim == 2 else raw.values.mean(axis=2)
        dark, bright = float((grey <= _NEAR).mean()), float((grey >= 255 - _NEAR).mean())
        return min(dark, bright) > 0 and dark + bright >= _NEAR_ENDS
    return bool(distinct_values(raw).values.shape[1] <= _FEW_VALUES)


def _first_label(sample: Sample) -> str | None:
    return next(iter(labels_of(sample.target)), None)


def _skipped_file_notes(
    listing: Listing, folders: ClassFolders, labels_required: bool
) -> tuple[str, ...]:
    notes = []
    if folders.outside and labels_required:
        notes.append(
            f"{len(folders.outside)} images outside class folders left out: "
            f"{format_list(folders.outside)}"
        )
    if listing.other_files:
        notes.append(
            f"{len(listing.other_files)} files that are not images left out: "
            f"{format_list(listing.other_files)}"
        )
    if listing.skipped_links:
        notes.append(
            f"{len(listing.skipped_links)} links to folders not followed (loops, or nested too "
            f"deep): {format_list(listing.skipped_links)}"
        )
    return tuple(notes)
