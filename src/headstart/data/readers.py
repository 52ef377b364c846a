"""Folders, manifests, annotations and example sets -> `Dataset`; no picture is decoded here."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from headstart.data import box_layouts, demo, folders, layouts, manifests, mask_pairs, tables
from headstart.data.layouts import Listing, listed
from headstart.data.samples import Dataset, Kind
from headstart.errors import DataError, HeadstartError, LayoutError, UsageError

__all__ = ["list_images", "read_dataset"]


def read_dataset(
    source: str | Path,
    *,
    task_kind: Kind | None = None,
    group_by: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    labels_required: bool = True,
    min_classes: int = 2,
) -> Dataset:
    """Read class folders, a manifest, pictures with boxes or masks, or ``demo:<name>``.

    Parameters
    ----------
    source : str or Path
        A folder ``<class>/...`` or ``<train|val|test>/<class>/...``; a CSV, TSV or Parquet file
        (or the folder with exactly one of them); a folder with ``images/`` and ``masks/``, see
        `mask_pairs.find_pairs`; one with boxes (COCO, Pascal VOC, YOLO), or a COCO file;
        ``demo:<name>``.
    task_kind : {"multiclass", "multilabel", "detection", "segmentation"} or None
        None: as the data say.
    group_by : str or None
        Name of a manifest's column, or a regular expression that is searched in each relative
        path with forward slashes: its first group, else the whole match, names the group.
    image_column, label_column : str or None
        Columns of a manifest, where they do not have a usual name.
    labels_required : bool
        False: pictures without labels are read too (target None).
    min_classes : int
        Fewer classes than this are an error; a multilabel or detection set needs one at least.

    Returns
    -------
    Dataset
        Classes in natural order by name (over all splits); examples sorted by relative path
        (class folders) or in the manifest's order. ``notes`` says what was recognised and what
        was left out.

    Raises
    ------
    LayoutError
        If nothing is at ``source``, or its layout is not recognised.
    DataError
        If labels, splits or files of a manifest are missing or contradict each other, or there
        are too few classes.
    UsageError
        If arguments do not fit the source, or ``group_by`` matches nothing.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg"):
    ...     (root / name).parent.mkdir(exist_ok=True)
    ...     (root / name).touch()
    >>> data = read_dataset(root)
    >>> data.counts()
    {'cat': 2, 'dog': 1}
    >>> data.notes[0]
    'class folders, no splits'
    """
    if isinstance(source, str) and source.startswith("demo:"):
        if (task_kind, group_by, image_column, label_column) != (None,) * 4:
            raise UsageError(
                f"Expected no task kind, group or column for {source!r}, which brings its own, "
                "got one; do: leave it out."
            )
        return demo.load(source.removeprefix("demo:"))
    path = Path(source)
    if not path.exists():
        raise layouts.missing(path)
    listing = (
        layouts.walk(path) if path.is_dir() else Listing(root=path.parent, others=(path.name,))
    )
    boxes = _boxes_at(path, listing, task_kind, image_column or label_column)
    table: tables.Table | None = None
    why_not: tuple[str, ...] = ()
    if boxes is None and task_kind != "segmentation":
        if path.is_dir():
            table, why_not = _manifest_in(listing, image_column, label_column, labels_required)
        else:
            table = _manifest_at(path)
    if table is not None:
        columns = manifests.find_columns(
            table, image=image_column, label=label_column, group=group_by
        )
        data, keys = manifests.read_manifest(
            table, columns, task_kind=task_kind, labels_required=labels_required
        )
        grouped = columns.group is not None
    elif boxes is not None:
        (data, keys), grouped = box_layouts.read_boxes(boxes), False
        why_not = _masks_too(listing)
    else:
        if image_column or label_column:
            raise UsageError(
                f"Expected a manifest for image_column and label_column, got {str(path)!r} "
                "without one; do: leave them out, or name the file."
            )
        data, keys = _read_folders(listing, task_kind, labels_required)
        grouped = False
    if group_by is not None and not grouped:
        data = _with_groups(data, keys, group_by)
    notes = (*data.notes, *why_not, *_remarks(data))
    data = replace(data, name=path.absolute().name or data.name, notes=notes)
    _require_classes(data, min_classes, labels_required, listing)
    return data


def list_images(paths: Sequence[str | Path] | str | Path) -> tuple[Path, ...]:
    """List the pictures at paths: files as given, folders with everything below, sorted.

    Parameters
    ----------
    paths : path or sequence of paths
        Their order is kept, so that results can be matched with what was asked for.

    Returns
    -------
    tuple of Path

    Raises
    ------
    LayoutError
        If a path does not exist, a folder holds no picture, or a file is none by its name.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("b.png", "a.JPG", "notes.txt"):
    ...     (root / name).touch()
    >>> [path.name for path in list_images([root])]
    ['a.JPG', 'b.png']
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    return tuple(picture for path in given for picture in _pictures_at(Path(path)))


def _pictures_at(path: Path) -> Iterable[Path]:
    if path.is_dir():
        listing = layouts.walk(path)
        if not listing.pictures:
            raise LayoutError(
                f"Expected pictures in the folder {str(path)!r}, got none among "
                f"{len(listing.others)} files; do: name a folder or files with pictures."
            )
        return [path / name for name in listing.pictures]
    if not path.exists():
        raise layouts.missing(path)
    if path.suffix and not layouts.is_picture(path.name):
        raise LayoutError(
            f"Expected a picture, got {str(path)!r}; do: name files with a picture's suffix "
            "(.jpg, .png, ...) or a folder."
        )
    return [path]


def _read_folders(
    listing: Listing, task_kind: Kind | None, labels_required: bool
) -> tuple[Dataset, tuple[str, ...]]:
    """What the names of folders say: masks beside pictures, or classes."""
    pairs = mask_pairs.find_pairs(listing) if task_kind in {None, "segmentation"} else None
    if pairs is not None:
        return mask_pairs.read_mask_pairs(listing, pairs, labels_required=labels_required)
    if task_kind == "segmentation":
        raise layouts.no_masks(listing)
    return folders.read_folders(listing, task_kind=task_kind, labels_required=labels_required)


def _masks_too(listing: Listing) -> tuple[str, ...]:
    """Pascal VOC has both: boxes are what the folder is read for unless masks are asked for."""
    try:
        pairs = mask_pairs.find_pairs(listing)
    except DataError:  # wrong with the masks, which are not what is read
        return ()
    if pairs is None:
        return ()
    return ("masks lie beside the pictures, too; the task segmentation reads them",)


def _boxes_at(
    path: Path, listing: Listing, task_kind: Kind | None, column: str | None
) -> box_layouts.BoxFiles | None:
    """Annotated boxes, unless another task or a manifest's columns were asked for."""
    if task_kind not in {None, "detection"} or column:
        return None
    found = box_layouts.find_boxes(path, listing)
    if found is None and task_kind == "detection":
        raise box_layouts.no_boxes(path)
    return found


def _manifest_at(path: Path) -> tables.Table:
    if path.suffix.lower() in layouts.MANIFEST_SUFFIXES | {".txt"}:
        return tables.read_table(path)
    listing = Listing(root=path.parent, others=(path.name,))
    if path.suffix.lower() in {".json", ".xml"} and (error := layouts.foreign(listing)):
        raise error
    advice = (
        "unpack it and name the folder"
        if path.suffix.lower() in {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"}
        else "name a folder of class folders, or a CSV, TSV or Parquet file"
    )
    raise LayoutError(f"Expected a folder or a manifest, got the file {str(path)!r}; do: {advice}.")


def _manifest_in(
    listing: Listing, image: str | None, label: str | None, labels_required: bool
) -> tuple[tables.Table | None, tuple[str, ...]]:
    """The one manifest beside the pictures that has the columns needed, or why there is none."""
    names = [
        name
        for name in listing.others
        if "/" not in name and Path(name).suffix.lower() in layouts.MANIFEST_SUFFIXES
    ]
    if not names:
        return None, ()
    by_class = bool(folders.by_class(listing).classes)
    if len(names) > 1:
        if by_class and not (image or label):
            return None, (f"several tables beside the class folders not read: {listed(names)}",)
        raise LayoutError(
            f"Expected one manifest in {str(listing.root)!r}, got {len(names)}: {listed(names)}; "
            f"do: name the one that is meant, such as {str(listing.root / names[0])!r}."
        )
    try:
        table = tables.read_table(listing.root / names[0])
        columns = manifests.find_columns(table, image=image, label=label)
    except HeadstartError as error:
        if not by_class or image or label:
            raise
        return None, (f"table {names[0]!r} not read: {error}",)
    if columns.image and (columns.label or not labels_required):
        return table, ()
    if by_class and not (image or label):
        return None, (f"table {names[0]!r} not read: it has no columns of paths and labels",)
    return table, ()


def _with_groups(data: Dataset, keys: Sequence[str], group_by: str) -> Dataset:
    """Set each example's group from its path; a path that does not match is a group of its own."""
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UsageError(
            f"Expected `group_by` to be a column or a regular expression, got {group_by!r}: "
            f"{error}; do: correct it."
        ) from error
    groups = [_group(pattern.search(key)) for key in keys]
    alone = sum(group is None for group in groups)
    if alone == len(groups):
        raise UsageError(
            f"Expected `group_by` to be a column or to match paths such as {keys[0]!r}, "
            f"got {group_by!r}, which matches none of {len(keys)}; do: correct the expression."
        )
    samples = (replace(s, group=g) for s, g in zip(data.samples, groups, strict=True))
    notes = [*data.notes, f"groups: from paths by {group_by!r}"]
    if alone:
        notes.append(f"{alone} paths do not match {group_by!r}; each is a group of its own")
    return replace(data, samples=tuple(samples), notes=tuple(notes))


def _group(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    return match.group(1) if match.re.groups else match.group(0)


def _remarks(data: Dataset) -> tuple[str, ...]:
    """What a person should know about classes and groups, whatever the layout."""
    notes = []
    spelled = defaultdict(list)
    for name in data.classes:
        spelled[name.casefold()].append(name)
    notes += [
        f"classes that differ only in case are kept apart: {listed(names)}"
        for names in spelled.values()
        if len(names) > 1
    ]
    if len(data) >= 20 and data.kind == "multiclass" and 2 * len(data.classes) > len(data):
        notes.append(
            f"{len(data.classes)} classes for {len(data)} pictures: are these names of classes?"
        )
    sizes = Counter(sample.group for sample in data.samples if sample.group is not None)
    if sizes:
        largest, count = max(sizes.items(), key=lambda item: item[1])
        notes.append(f"groups: {len(sizes)}, the largest ({largest!r}) of {count} pictures")
    return tuple(notes)


def _require_classes(data: Dataset, least: int, labels_required: bool, listing: Listing) -> None:
    held = sum(count > 0 for count in data.counts().values())
    least = least if data.kind == "multiclass" else min(least, 1)
    if held >= least or not labels_required:
        return
    names = [name for name, count in data.counts().items() if count]
    inner = sorted({n.split("/")[1] for n in listing.pictures if n.count("/") > 1})
    hint = (
        f"did you mean {str(listing.root / listing.tops[0])!r}, which holds {listed(inner)}?"
        if len(listing.tops) == 1 and len(inner) > 1
        else "do: add pictures of another class."
    )
    raise DataError(
        f"Expected at least {least} classes with pictures in {data.name!r}, got {held} "
        f"({listed(names) or 'none'}); {hint}"
    )
