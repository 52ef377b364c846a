"""Tables in the folders of the images: metadata of Hugging Face, and the CSV files of Roboflow."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headstart.data.dataset import Boxes, Dataset, Kind, brief
from headstart.data.formats.annotations import is_background, splits_by_folder
from headstart.data.formats.box_patterns import require_plain_boxes
from headstart.data.formats.image_names import InsideFolder
from headstart.data.formats.layouts import Listing, format_list
from headstart.data.formats.tables import Columns, Table, normalise_column, read_table
from headstart.data.formats.targets import plain_labels, read_dense
from headstart.errors import DataError, HeadstartError, LayoutError
from headstart.files import is_file

__all__ = [
    "METADATA_NAMES",
    "class_key",
    "find_metadata",
    "object_column",
    "read_metadata",
    "read_objects",
]

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_ROBOFLOW_NAMES = ("_annotations.csv", "_classes.csv")
_IMAGE = "file_name"
_IMAGE_COLUMNS = (_IMAGE, "filename")
_BOXES = ("bbox", "bboxes", "boxes", "box")
_CLASSES = ("categories", "category", "labels", "label", "classes", "class", "category_id", "name")
_START = 65536  # bytes that hold the header of a table
_MAX_COORDINATE = 1e9  # pixels; no image is as large


def find_metadata(listing: Listing) -> tuple[str, ...]:
    """Find the metadata files of a folder: tables called metadata with a column file_name.

    Roboflow calls them _annotations.csv (boxes) and _classes.csv (a column of 0 and 1 for each
    class), with a column filename.

    Raises
    ------
    LayoutError
        If a folder has two of them.

    Examples
    --------
    >>> from pathlib import Path
    >>> find_metadata(Listing(root=Path(), other_files=("labels.csv",)))
    ()
    """
    usual = (*METADATA_NAMES, *_ROBOFLOW_NAMES)
    names = [name for name in listing.other_files if posixpath.basename(name).lower() in usual]
    chosen = [name for name in names if _has_file_names(listing, name)]
    folders: dict[str, str] = {}
    for name in chosen:
        other = folders.setdefault(posixpath.dirname(name), name)
        if other != name:
            raise LayoutError(
                f"Expected one metadata file in each folder of {str(listing.root)!r}, got "
                f"{other!r} and {name!r}. Remove one of them."
            )
    return tuple(chosen)


def _has_file_names(listing: Listing, name: str) -> bool:
    path = listing.root / name
    if name.lower().endswith(".jsonl"):
        return True
    if name.lower().endswith(".csv"):  # the whole table is read once, later
        if not is_file(path):  # a pipe might never end
            return False
        with path.open("rb") as file:
            header = file.read(_START).decode("utf-8-sig", errors="replace").partition("\n")[0]
        columns = [cell.strip().strip('"') for cell in re.split(r"[,;\t|]", header)]
    else:
        try:
            columns = list(read_table(path).columns)
        except HeadstartError:  # another kind of table: the search for a manifest reports it
            return False
    return not set(_IMAGE_COLUMNS).isdisjoint(map(normalise_column, columns))


def read_metadata(listing: Listing, names: Sequence[str]) -> Table:
    """Join metadata files to one table, whose paths start from the root of the listing.

    Parameters
    ----------
    listing : Listing
    names : sequence of str
        See `find_metadata`. The folders name the splits, if they name several.

    Raises
    ------
    DataError
        If a row is damaged or names an image outside the folder.
    """
    tables = [read_table(listing.root / name) for name in names]
    splits = splits_by_folder(names)
    is_inside = InsideFolder(listing.root)
    columns: dict[str, list[Any]] = {_IMAGE: []}
    lines: list[int | str] = []
    for name, table in zip(names, tables, strict=True):
        keys = _image_keys(table, posixpath.dirname(name), is_inside)
        own = {
            column: cells
            for column, cells in table.columns.items()
            if normalise_column(column) not in _IMAGE_COLUMNS
        }
        if splits[name] is not None:
            own.setdefault("split", [splits[name]] * len(keys))
        for column in [column for column in own if column not in columns]:
            columns[column] = [None] * len(lines)
        own[_IMAGE] = keys
        for column in columns:
            columns[column] += own.get(column, [None] * len(keys))
        lines += [line if len(names) == 1 else f"{name}:{line}" for line in table.lines]
    place = f"the metadata {format_list(names)} of {str(listing.root)!r}"
    return Table(path=listing.root / "metadata", columns=columns, lines=lines, place=place)


def _image_keys(table: Table, folder: str, is_inside: InsideFolder) -> list[str]:
    """Path of each image, relative to the root of the listing."""
    names = {normalise_column(name): name for name in table.columns}
    column = next((names[name] for name in _IMAGE_COLUMNS if name in names), None)
    cells = table.columns[column] if column is not None else [None] * len(table.lines)
    keys = []
    for cell, line in zip(cells, table.lines, strict=True):
        name = cell.replace("\\", "/") if isinstance(cell, str) else ""
        key = posixpath.normpath(posixpath.join(folder, name))
        if not name or not is_inside(key):
            raise DataError(
                f"Expected `file_name` to be the path of an image in {str(is_inside.root)!r}, got "
                f"{cell!r} in line {line} of {table.where}. Correct the line."
            )
        keys.append(key)
    return keys


def object_column(table: Table) -> str | None:
    """Find the column of objects: dictionaries, or lists of them, with boxes.

    Examples
    --------
    >>> from pathlib import Path
    >>> cells = [{"bbox": [[0, 0, 4, 2]], "categories": ["cell"]}]
    >>> object_column(Table(path=Path("a"), columns={"objects": cells}, lines=[1]))
    'objects'
    """
    for name, cells in table.columns.items():
        entries = (cell[0] if isinstance(cell, list) and cell else cell for cell in cells)
        if any(isinstance(entry, Mapping) and _key(entry, _BOXES) for entry in entries):
            return name
    return None


def class_key(entry: Mapping[str, Any]) -> str | None:
    """Key of the classes in a dictionary of objects; None without one.

    Examples
    --------
    >>> class_key({"bbox": [], "category": []})
    'category'
    """
    return _key(entry, _CLASSES)


def _key(entry: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in entry), None)


def read_objects(
    table: Table,
    columns: Columns,
    task_kind: Kind | None,
) -> tuple[Dataset, tuple[str, ...]]:
    """Read a table with a column of objects: boxes as x, y, width and height in pixels.

    Parameters
    ----------
    table : Table
        With an `object_column`.
    columns : Columns
    task_kind : {"detection"} or None

    Returns
    -------
    Dataset
        An empty cell is an image without objects.
    tuple of str
        Name of each image.

    Raises
    ------
    DataError
        If an object has no box of four finite numbers or no class, or most boxes share a mistake.
    LayoutError
        If there is no column of images.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "1.jpg").touch()
    >>> cells = {"file_name": ["1.jpg"], "objects": [{"bbox": [[1, 2, 4, 2]], "category": ["a"]}]}
    >>> table = Table(path=root / "metadata", columns=cells, lines=[1])
    >>> read_objects(table, Columns(image="file_name"), None)[0].samples[0].target.corners
    ((1.0, 2.0, 5.0, 4.0),)
    """
    name = str(object_column(table))
    if columns.image is None:
        raise LayoutError(
            f"Expected a column of images for the objects in {table.where}, got the columns "
            f"{format_list(table.columns, 12)}. Pass --image-column NAME."
        )
    targets = [
        _to_boxes(cell, f"column {name!r} in line {line} of {table.where}")
        for cell, line in zip(table.columns[name], table.lines, strict=True)
    ]
    require_plain_boxes(targets, table.where, "width and height")
    names = table.names or [str(key) for key in table.columns[columns.image]]
    with_boxes = replace(table, columns={**table.columns, name: targets}, names=names)
    return read_dense(with_boxes, replace(columns, label=name), task_kind)


def _to_boxes(cell: Any, where: str) -> Boxes:
    """Convert a dictionary of lists, or a list of dictionaries."""
    entries = cell if isinstance(cell, list) else [cell]
    corners: list[tuple[float, float, float, float]] = []
    labels: list[str] = []
    for entry in [] if cell is None else entries:
        boxes_key = _key(entry, _BOXES) if isinstance(entry, Mapping) else None
        classes_key = _key(entry, _CLASSES) if isinstance(entry, Mapping) else None
        if boxes_key is None or classes_key is None:
            raise DataError(
                f"Expected objects with `bbox` and `categories` in {where}, got {brief(entry)}. "
                "Correct the row."
            )
        boxes, names = entry[boxes_key], entry[classes_key]
        if not isinstance(names, list):  # a list of dictionaries, one for each object
            boxes, names = [boxes], [names]
        if not isinstance(boxes, list) or len(boxes) != len(names):
            raise DataError(
                f"Expected one box for each of the {len(names)} classes in {where}, got "
                f"{brief(boxes)}. Correct the row."
            )
        corners += [_to_corners(box, where) for box in boxes]
        labels += [str(name) for name in plain_labels(names, where)]
    for label in labels:
        if label in {"", "None"} or is_background(label):
            raise DataError(
                f"Expected classes of objects in {where}, got {label!r}. Correct the row."
            )
    return Boxes(corners=tuple(corners), labels=tuple(labels))


def _to_corners(box: Any, where: str) -> tuple[float, float, float, float]:
    is_box = isinstance(box, list) and len(box) == 4
    if not is_box or not all(
        isinstance(side, int | float) and abs(side) < _MAX_COORDINATE for side in box
    ):
        raise DataError(
            f"Expected a box of x, y, width and height in {where}, got {brief(box)}. Correct the "
            "row."
        )
    x, y, width, height = (float(side) for side in box)
    return x, y, x + width, y + height
