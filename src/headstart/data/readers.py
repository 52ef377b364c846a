"""Detection data in one of three formats -> `Dataset` of boxes on the images as shown.

Of an image only the header is read: it says how large it is and how EXIF turns it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from headstart.data.dataset import Boxes, Dataset, Kind, Sample
from headstart.data.demo import classification as demo
from headstart.data.formats import class_folders as folders
from headstart.data.formats import layouts, tables
from headstart.data.formats import masks as mask_pairs
from headstart.data.formats import tables as manifests
from headstart.data.formats.annotations import Annotated, Annotations, as_shown, quick_header
from headstart.data.formats.coco import read_coco
from headstart.data.formats.layouts import Listing, listed
from headstart.data.formats.voc import read_voc
from headstart.data.formats.yolo import read_yolo
from headstart.errors import DataError, HeadstartError, LayoutError, UsageError

__all__ = [
    "BoxFiles",
    "Format",
    "find_boxes",
    "list_images",
    "no_boxes",
    "read_boxes",
    "read_dataset",
]

Format = Literal["coco", "voc", "yolo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxFiles:
    """Detection data that was recognised.

    Parameters
    ----------
    listing : Listing
        Of the folder that holds images and annotations.
    format : {"coco", "voc", "yolo"}
    files : tuple of str
        Of COCO: the JSON files to read.
    """

    listing: Listing
    format: Format
    files: tuple[str, ...] = ()


def find_boxes(path: Path, listing: Listing) -> BoxFiles | None:
    """Recognise detection data by the beginnings of its files; None where it is not that.

    Parameters
    ----------
    path : Path
        What the person pointed at: a folder, or a COCO file.
    listing : Listing
        Of the folder, or of the file alone.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name, text in (("1.jpg", ""), ("1.txt", "0 0.5 0.5 0.1 0.1")):
    ...     _ = (root / name).write_text(text)
    >>> find_boxes(root, layouts.walk(root)).format
    'yolo'
    """
    files = layouts.coco_files(listing)
    if files and not path.is_dir():
        around = layouts.walk(path.parent)
        if not around.images:  # annotations/train.json beside train/
            around = layouts.walk(path.absolute().parent.parent)
        files = (path.absolute().relative_to(around.root.absolute()).as_posix(),)
        return BoxFiles(listing=around, format="coco", files=files)
    if files:
        return BoxFiles(listing=listing, format="coco", files=files)
    if layouts.voc_file(listing):
        return BoxFiles(listing=listing, format="voc")
    return BoxFiles(listing=listing, format="yolo") if layouts.yolo_file(listing) else None


def no_boxes(path: Path) -> LayoutError:
    """The error for data that are said to be for detection, and hold no boxes.

    Examples
    --------
    >>> "COCO" in str(no_boxes(Path("photos")))
    True
    """
    return LayoutError(
        f"Expected {str(path)!r} to hold boxes for detection, got none; do: add COCO annotations "
        "(a JSON file with images, annotations and categories), Pascal VOC annotations (an XML "
        "file for each image) or YOLO labels (labels/ beside images/, a text file for each)."
    )


def read_boxes(found: BoxFiles) -> tuple[Dataset, tuple[str, ...]]:
    """Read detection data.

    Parameters
    ----------
    found : BoxFiles

    Returns
    -------
    Dataset
        Examples sorted by relative path, each with `Boxes` in pixels of the image as shown;
        classes in the order that the files declare, those without any object left out.
    tuple of str
        The relative path of each example.

    Raises
    ------
    DataError
        If an annotation is damaged or contradicts another.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> head = "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    >>> tail = "<xmax>4</xmax><ymax>2</ymax></bndbox></object></annotation>"
    >>> for name, text in (("1.jpg", ""), ("1.xml", head + tail)):
    ...     _ = (root / name).write_text(text)
    >>> data, _ = read_boxes(find_boxes(root, layouts.walk(root)))
    >>> data.kind, data.samples[0].target.corners
    ('detection', ((0.0, 0.0, 4.0, 2.0),))
    """
    annotations = _read(found)
    items = sorted(annotations.items, key=lambda item: item.key)
    root = found.listing.root
    shown = [_shown(root, item, annotations.relative) for item in items]
    samples = tuple(
        Sample(image=root / item.key, target=boxes, split=item.split, group=item.group)
        for item, (boxes, _) in zip(items, shown, strict=True)
    )
    used = {name for boxes, _ in shown for name in boxes.labels}
    classes = tuple(name for name in annotations.names if name in used)
    notes = (
        *annotations.notes,
        "task: detection because the files hold boxes",
        *_box_notes([boxes for boxes, _ in shown], sum(moved for _, moved in shown)),
        *_unused([name for name in annotations.names if name not in used]),
        *_tables(found.listing),
    )
    data = Dataset(samples=samples, classes=classes, kind="detection", notes=notes)
    return data, tuple(item.key for item in items)


def _read(found: BoxFiles) -> Annotations:
    if found.format == "coco":
        return read_coco(found.listing, found.files)
    return read_voc(found.listing) if found.format == "voc" else read_yolo(found.listing)


def _shown(root: Path, item: Annotated, relative: bool) -> tuple[Boxes, bool]:
    if not (item.boxes.labels if relative else item.boxes.size):
        return item.boxes, False
    return as_shown(item.boxes, quick_header(root / item.key), relative=relative)


def _box_notes(boxes: Sequence[Boxes], turned: int) -> list[str]:
    objects, hard = sum(len(b.labels) for b in boxes), sum(sum(b.hard) for b in boxes)
    empty = sum(not b.labels for b in boxes)
    notes = [f"{objects} objects in {len(boxes)} images"]
    if empty:
        notes.append(f"{empty} images without objects: learned from as negatives")
    if hard:
        notes.append(f"{hard} objects are difficult or crowds: left out of training and judgement")
    if turned:
        notes.append(
            f"boxes of {turned} images turned as EXIF turns the image, since the files state "
            "the size before"
        )
    return notes


def _unused(names: Sequence[str]) -> list[str]:
    return [f"{len(names)} classes without any object left out: {listed(names)}"] if names else []


def _tables(listing: Listing) -> list[str]:
    tables = [
        name
        for name in listing.others
        if "/" not in name and Path(name).suffix.lower() in layouts.MANIFEST_SUFFIXES
    ]
    return [f"tables beside the boxes not read: {listed(tables)}"] if tables else []


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
    """Read class folders, a manifest, images with boxes or masks, or ``demo:<name>``.

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
        False: images without labels are read too (target None).
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
        (data, keys), grouped = read_boxes(boxes), False
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
    notes = (*data.notes, *why_not, *_class_notes(data))
    data = replace(data, name=path.absolute().name or data.name, notes=notes)
    _require_classes(data, min_classes, labels_required, listing)
    return data


def list_images(paths: Sequence[str | Path] | str | Path) -> tuple[Path, ...]:
    """List the images at paths: files as given, folders with everything below, sorted.

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
        If a path does not exist, a folder holds no image, or a file is none by its name.

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
    return tuple(image for path in given for image in _images_at(Path(path)))


def _images_at(path: Path) -> Iterable[Path]:
    if path.is_dir():
        listing = layouts.walk(path)
        if not listing.images:
            raise LayoutError(
                f"Expected images in the folder {str(path)!r}, got none among "
                f"{len(listing.others)} files; do: name a folder or files with images."
            )
        return [path / name for name in listing.images]
    if not path.exists():
        raise layouts.missing(path)
    if path.suffix and not layouts.is_image(path.name):
        raise LayoutError(
            f"Expected an image, got {str(path)!r}; do: name files with an image's suffix "
            "(.jpg, .png, ...) or a folder."
        )
    return [path]


def _read_folders(
    listing: Listing, task_kind: Kind | None, labels_required: bool
) -> tuple[Dataset, tuple[str, ...]]:
    """What the names of folders say: masks beside images, or classes."""
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
    return ("masks lie beside the images, too; the task segmentation reads them",)


def _boxes_at(
    path: Path, listing: Listing, task_kind: Kind | None, column: str | None
) -> BoxFiles | None:
    """Annotated boxes, unless another task or a manifest's columns were asked for."""
    if task_kind not in {None, "detection"} or column:
        return None
    found = find_boxes(path, listing)
    if found is None and task_kind == "detection":
        raise no_boxes(path)
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
    """The one manifest beside the images that has the columns needed, or why there is none."""
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


def _class_notes(data: Dataset) -> tuple[str, ...]:
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
            f"{len(data.classes)} classes for {len(data)} images: are these names of classes?"
        )
    sizes = Counter(sample.group for sample in data.samples if sample.group is not None)
    if sizes:
        largest, count = max(sizes.items(), key=lambda item: item[1])
        notes.append(f"groups: {len(sizes)}, the largest ({largest!r}) of {count} images")
    return tuple(notes)


def _require_classes(data: Dataset, least: int, labels_required: bool, listing: Listing) -> None:
    held = sum(count > 0 for count in data.counts().values())
    least = least if data.kind == "multiclass" else min(least, 1)
    if held >= least or not labels_required:
        return
    names = [name for name, count in data.counts().items() if count]
    inner = sorted({n.split("/")[1] for n in listing.images if n.count("/") > 1})
    hint = (
        f"did you mean {str(listing.root / listing.tops[0])!r}, which holds {listed(inner)}?"
        if len(listing.tops) == 1 and len(inner) > 1
        else "do: add images of another class."
    )
    raise DataError(
        f"Expected at least {least} classes with images in {data.name!r}, got {held} "
        f"({listed(names) or 'none'}); {hint}"
    )
