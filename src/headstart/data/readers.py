"""Reader of data sets: recognise the format at a path and return a `Dataset`.

`read_dataset` reads class folders, manifests, images with boxes or masks, and the example sets.
Images are not decoded; for boxes the image header is read, which has size and EXIF orientation.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Unpack

from headstart.data.dataset import Dataset, Kind, Mask
from headstart.data.demo import classification as demo
from headstart.data.formats import (
    box_tables,
    folders,
    layouts,
    manifests,
    mask_pairs,
    metadata,
    objects,
    table_files,
    tables,
)
from headstart.data.formats.box_files import (
    BoxAnnotationFiles,
    find_box_annotations,
    no_boxes_error,
    read_boxes,
    to_detection,
)
from headstart.data.formats.folders import FolderOptions
from headstart.data.formats.layouts import Listing, format_list
from headstart.data.formats.manifests import ReadOptions
from headstart.data.formats.tool_formats import find_tool_files
from headstart.data.formats.weight_cells import refuse_weights
from headstart.data.pixel_values import DEFAULT_OPTIONS, ImageOptions, ImageSettings
from headstart.errors import DataError, LayoutError, UnknownNameError, UsageError

__all__ = [
    "READ_SETTINGS",
    "SourceOptions",
    "kind_of_task",
    "list_images",
    "read_dataset",
    "with_image_options",
]


TASK_NAMES = ("auto", "classification", "detection", "segmentation")


class SourceOptions(FolderOptions, ImageSettings, total=False):
    """Keywords of `read_dataset` about folders, images and weights."""

    weight_column: str | None


READ_SETTINGS = (
    "group_by",
    "image_column",
    "label_column",
    "label_separator",
    "weight_column",
    "masks",
    "images",
    "mask_threshold",
    "class_level",
    "label_from",
    "max_pixels",
    "bits",
    "window",
    "bands",
    "band_range",
    "no_data",
)
"""Arguments of `read_dataset` that a user sets: flags of commands and fields of a recipe."""


def kind_of_task(task: str) -> Kind | None:
    """Return what ``task_kind`` of `read_dataset` is for a task of the command line.

    Parameters
    ----------
    task : {"auto", "classification", "detection", "segmentation"}

    Returns
    -------
    str or None
        None where the data decide, also between one label and several labels of an image.

    Raises
    ------
    UnknownNameError
        If there is no such task.

    Examples
    --------
    >>> kind_of_task("segmentation"), kind_of_task("auto")
    ('segmentation', None)
    """
    if task not in TASK_NAMES:
        raise UnknownNameError("task", task, TASK_NAMES)
    return task if task in {"detection", "segmentation"} else None  # type: ignore[return-value]


def read_dataset(
    source: object,
    *,
    task_kind: Kind | None = None,
    group_by: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    labels_required: bool = True,
    min_classes: int = 2,
    **source_options: Unpack[SourceOptions],
) -> Dataset:
    """Read class folders, a manifest, images with boxes or masks, ``demo:<name>``, or an object.

    Parameters
    ----------
    source : str, Path or object
        A folder ``<class>/...`` or ``<train|val|test>/<class>/...``; a CSV, TSV or Parquet file,
        or the folder with exactly one of them; a folder with ``images/`` and ``masks/``, see
        `mask_pairs.find_mask_pairs`; a folder with boxes (COCO, Pascal VOC, YOLO, LabelMe, CVAT,
        VIA, Label Studio, Supervisely), or the annotation file; lists of paths and labels;
        ``demo:<name>``. An object: a pandas DataFrame, a list of (image, label) pairs, arrays, a
        dataset of torch or Hugging Face; see `headstart.data.formats.objects.read_object`.
    task_kind : {"multiclass", "multilabel", "detection", "segmentation"} or None
        None: inferred from the data.
    group_by : str or None
        Name of a column of the manifest, or a regular expression that is searched in each relative
        path with forward slashes. Its first group, or else the whole match, is the group.
    image_column, label_column : str or None
        Columns of a manifest or object, if their names are not among the usual ones.
    label_separator : str or None
        Text between several labels of one cell, such as ``","``; ``"none"`` keeps each cell as one
        label. By default ``|``, ``;`` and lists are recognised.
    labels_required : bool
        False: images without labels are read, too (target None).
    min_classes : int
        Fewer classes are an error; multilabel and detection data need only one.
    **source_options
        ``masks``, ``images``, ``mask_threshold``, ``class_level`` and ``label_from`` of
        `FolderOptions`; the fields of `ImageOptions`; ``weight_column``, the column of the images'
        weights in the loss (images of weight 0 are left out).

    Returns
    -------
    Dataset
        Classes in natural order by name (over all splits); examples sorted by relative path
        (class folders) or in the order of the manifest. ``notes`` lists what was recognised and
        what was left out.

    Raises
    ------
    LayoutError
        If ``source`` does not exist, or its layout is not supported.
    DataError
        If labels, splits or files of a manifest are missing or contradictory, or there are too
        few classes.
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
    weight_column = source_options.pop("weight_column", None)
    image_options, folder_options = _split_options(source_options)
    named = folders.given_options(folder_options, source)
    options = ReadOptions(
        image_column=image_column,
        label_column=label_column,
        label_separator=label_separator,
        weight_column=weight_column,
        group_by=group_by,
    )
    if isinstance(source, str) and source.startswith("demo:"):
        return _load_demo(source, task_kind=task_kind, **asdict(options))
    if isinstance(source, Dataset):
        raise UsageError(
            f"{source!r} was read already. Use it as it is; pass its `group_by` when it is read."
        )
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        listing = _list_source(path)
        data, keys, has_groups = _read_path(
            path,
            listing,
            task_kind,
            options=options,
            labels_required=labels_required,
            named=named,
            max_pixels=image_options.max_pixels,
        )
        name, where = path.absolute().name or data.name, repr(str(path))
    else:
        data, keys, has_groups = objects.read_object(
            source,
            task_kind=task_kind,
            image=image_column,
            label=label_column,
            group=group_by,
            weight=weight_column,
            separator=label_separator,
            labels_required=labels_required,
        )
        name, listing = objects.object_name(source), Listing(root=Path())
        where = f"the {type(source).__name__}"
    if group_by is not None and not has_groups:
        data = _add_groups_from_paths(data, keys, group_by)
    data = replace(data, name=name, notes=(*data.notes, *_class_notes(data)))
    data = with_image_options(data, image_options)
    _require_classes(data, where, min_classes, labels_required, listing)
    return data


def _list_source(path: Path) -> Listing:
    """List a folder, or a file alone."""
    if not path.exists():
        raise layouts.path_not_found_error(path)
    if path.is_dir():
        return layouts.list_folder(path)
    return Listing(root=path.parent, other_files=(path.name,))


def _split_options(options: SourceOptions) -> tuple[ImageOptions, FolderOptions]:
    rest = {name: v for name, v in options.items() if name not in ImageSettings.__annotations__}
    settings = {name: v for name, v in options.items() if name in ImageSettings.__annotations__}
    return ImageOptions.of(settings), FolderOptions(**rest)  # type: ignore[typeddict-item]


def with_image_options(data: Dataset, options: ImageOptions) -> Dataset:
    """Return the data set with other options for decoding its images.

    Examples
    --------
    >>> from headstart.data.dataset import Sample
    >>> data = Dataset(samples=(Sample(image=b"", target=0),), classes=("leaf",))
    >>> with_image_options(data, ImageOptions(bits=12)).samples[0].options.bits
    12
    """
    if options == DEFAULT_OPTIONS:
        return data
    samples = (
        replace(sample, target=replace(sample.target, max_pixels=options.max_pixels))
        if isinstance(sample.target, Mask)
        else sample
        for sample in data.samples
    )
    return replace(data, samples=tuple(replace(sample, options=options) for sample in samples))


def _read_path(
    path: Path,
    listing: Listing,
    task_kind: Kind | None,
    *,
    options: ReadOptions,
    labels_required: bool,
    named: FolderOptions,
    max_pixels: int,
) -> tuple[Dataset, tuple[str, ...], bool]:
    """Read a folder or a file.

    Returns the data, the relative path of each example, and whether a column names the groups.
    """
    if named:
        data, keys = folders.read_folders(listing, task_kind, labels_required, named, max_pixels)
        return data, keys, False
    box_files = _box_files_for(path, listing, task_kind, options)
    table: tables.Table | None = None
    unread_notes: tuple[str, ...] = ()
    if box_files is None and task_kind != "segmentation":
        if path.is_dir():
            table, unread_notes = table_files.find_manifest(listing, options, labels_required)
        else:
            table = table_files.read_manifest_file(path, options)
    if table is not None:
        data, keys, has_groups = _read_table(table, task_kind, options, labels_required)
    elif task_kind == "detection" and box_files is None:
        raise no_boxes_error(path)
    elif box_files is not None:
        data, keys = read_boxes(box_files, task_kind)
        has_groups = False
        unread_notes = () if task_kind == "segmentation" else folders.mask_note(listing)
    else:
        if options.names_columns:
            arguments = _format_arguments(**asdict(replace(options, group_by=None)))
            raise UsageError(
                f"Expected a manifest for {arguments}, got {str(path)!r} without one. Remove "
                "the argument, or pass the path of the manifest."
            )
        data, keys = folders.read_folders(listing, task_kind, labels_required, named, max_pixels)
        has_groups = False
    return replace(data, notes=(*data.notes, *unread_notes)), keys, has_groups


def _read_table(
    table: tables.Table, task_kind: Kind | None, options: ReadOptions, labels_required: bool
) -> tuple[Dataset, tuple[str, ...], bool]:
    """Read a table of boxes, or else of labels."""
    columns = options.columns_of(table)
    has_groups = columns.group is not None
    if task_kind in {None, "detection"}:
        if metadata.object_column(table):
            refuse_weights(table, columns)
            return *metadata.read_objects(table, columns, task_kind), has_groups
        if box_tables.box_columns(table):
            refuse_weights(table, columns)
            annotations = box_tables.read_box_table(table, columns)
            return *to_detection(table.path.parent, annotations), has_groups
        if task_kind == "detection":
            raise no_boxes_error(table.path)
    data, keys = manifests.read_manifest(
        table,
        columns,
        task_kind=task_kind,
        labels_required=labels_required,
        separator=options.label_separator,
    )
    return data, keys, has_groups


def _load_demo(source: str, **arguments: str | None) -> Dataset:
    unsupported = _format_arguments(**arguments)
    if unsupported:
        raise UsageError(
            f"The example set {source!r} has its own task, groups and labels, got {unsupported}. "
            "Remove these arguments (on the command line: --task, --group-by, ...)."
        )
    return demo.load(source.removeprefix("demo:"))


def _format_arguments(**arguments: str | None) -> str:
    """Format the arguments that are given, for example ``group_by='patient'``."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items() if value is not None)


def list_images(paths: Sequence[str | Path] | str | Path) -> tuple[Path, ...]:
    """List the images at paths: files as they are, folders with their subfolders, sorted.

    Parameters
    ----------
    paths : path or sequence of paths
        Their order is kept, so that results can be matched with the paths.

    Returns
    -------
    tuple of Path

    Raises
    ------
    LayoutError
        If a path does not exist, a folder has no image, or a file has no image suffix.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("b.png", "a.JPG", "notes.txt"):
    ...     (root / name).touch()
    >>> [path.name for path in list_images([root])]
    ['a.JPG', 'b.png']
    """
    path_list = [paths] if isinstance(paths, str | Path) else list(paths)
    return tuple(image for path in path_list for image in _list_images_at(Path(path)))


def _list_images_at(path: Path) -> Iterable[Path]:
    if path.is_dir():
        listing = layouts.list_folder(path)
        if not listing.images:
            raise LayoutError(
                f"Expected images in the folder {str(path)!r}, got none among its "
                f"{len(listing.other_files)} files. Pass a folder with images, or image files."
            )
        return [path / name for name in listing.images]
    if not path.exists():
        raise layouts.path_not_found_error(path)
    if path.suffix and not (layouts.is_image(path.name) or layouts.is_dicom_file(path)):
        raise LayoutError(
            f"Expected an image, got {str(path)!r}. Pass files with an image suffix (.jpg, .png, "
            "...) or a folder."
        )
    return [path]


def _box_files_for(
    path: Path, listing: Listing, task_kind: Kind | None, options: ReadOptions
) -> BoxAnnotationFiles | None:
    """Find annotated boxes, unless another task or columns of a manifest are requested."""
    if options.names_columns:
        return None
    if task_kind == "segmentation":
        has_masks = path.is_dir() and mask_pairs.find_mask_pairs(listing) is not None
        return None if has_masks else find_box_annotations(path, listing)
    if task_kind not in {None, "detection"} and not find_tool_files(listing):
        return None
    box_files = find_box_annotations(path, listing)
    is_table = bool(table_files.tables_in(listing)) or Path(path).suffix.lower() == ".txt"
    if box_files is None and task_kind == "detection" and not is_table:
        raise no_boxes_error(path)
    return box_files


def _add_groups_from_paths(data: Dataset, keys: Sequence[str], group_by: str) -> Dataset:
    """Set the group of each example from its path; a path without a match is its own group."""
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UsageError(
            f"Expected a column or a regular expression for --group-by, got {group_by!r}: {error}. "
            "Correct the expression."
        ) from error
    groups = [_matched_group(pattern.search(key)) for key in keys]
    n_unmatched = sum(group is None for group in groups)
    if n_unmatched == len(groups):
        raise UsageError(
            f"Expected a column or a regular expression that matches paths such as {keys[0]!r} for "
            f"--group-by, got {group_by!r}, which matches none of {len(keys)} paths. Correct the "
            "expression."
        )
    samples = (
        replace(sample, group=group) for sample, group in zip(data.samples, groups, strict=True)
    )
    notes = [*data.notes, f"groups: from paths by {group_by!r}"]
    if n_unmatched:
        notes.append(f"{n_unmatched} paths do not match {group_by!r}; each is its own group")
    return replace(data, samples=tuple(samples), notes=tuple(notes))


def _matched_group(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    return match.group(1) if match.re.groups else match.group(0)


def _class_notes(data: Dataset) -> tuple[str, ...]:
    """Notes on classes and groups that apply to every layout."""
    notes = []
    spellings = defaultdict(list)
    for name in data.classes:
        spellings[name.casefold()].append(name)
    notes += [
        f"classes that differ only in upper and lower case: {format_list(names)}"
        for names in spellings.values()
        if len(names) > 1
    ]
    if len(data) >= 20 and data.kind == "multiclass" and 2 * len(data.classes) > len(data):
        notes.append(f"{len(data.classes)} classes for {len(data)} images: are these class names?")
    sizes = Counter(sample.group for sample in data.samples if sample.group is not None)
    if sizes:
        largest, count = max(sizes.items(), key=lambda item: item[1])
        notes.append(f"groups: {len(sizes)}, the largest ({largest!r}) of {count} images")
    return tuple(notes)


def _require_classes(
    data: Dataset, where: str, min_classes: int, labels_required: bool, listing: Listing
) -> None:
    names = [name for name, count in data.counts().items() if count]
    n_required = min_classes if data.kind == "multiclass" else min(min_classes, 1)
    if len(names) >= n_required or not labels_required:
        return
    subfolders = sorted({key.split("/")[1] for key in listing.images if key.count("/") > 1})
    if len(listing.top_folders) == 1 and len(subfolders) > 1:
        top_folder = str(listing.root / listing.top_folders[0])
        hint = f"Did you mean {top_folder!r}, which contains {format_list(subfolders)}?"
    elif data.kind == "multiclass":
        hint = (
            "Add images of another class. If these are images with masks, arrange them as "
            "images/1.jpg and masks/1.png."
        )
    else:
        hint = "Add images with labels."
    raise DataError(
        f"Expected at least {n_required} {'class' if n_required == 1 else 'classes'} with images "
        f"in {where}, got {len(names)} ({format_list(names) or 'none'}). {hint}"
    )
