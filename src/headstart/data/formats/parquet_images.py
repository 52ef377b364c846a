"""Images inside Parquet files, as the library datasets writes them: one table of several shards."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.data.formats.annotations import splits_by_folder
from headstart.data.formats.image_names import InsideFolder
from headstart.data.formats.layouts import Listing, format_list
from headstart.data.formats.metadata import class_key
from headstart.data.formats.pixels import require_memory, to_image
from headstart.data.formats.tables import (
    IMAGE_COLUMNS,
    Table,
    find_columns,
    normalise_column,
    to_text,
)
from headstart.data.formats.targets import plain_labels
from headstart.errors import DataError, LayoutError, UnknownNameError
from headstart.files import is_file

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["find_image_parquet", "has_images", "read_image_parquet"]

_SUFFIXES = (".parquet", ".pq")
_SHARD = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})")


def find_image_parquet(listing: Listing) -> tuple[str, ...]:
    """Find the Parquet files of a folder that contain images.

    Examples
    --------
    >>> find_image_parquet(Listing(root=Path(), other_files=("labels.csv",)))
    ()
    """
    names = [name for name in listing.other_files if name.lower().endswith(_SUFFIXES)]
    return tuple(name for name in names if has_images(listing.root / name))


def has_images(path: Path) -> bool:
    """Whether a Parquet file has a column of images; False if it cannot be read.

    Examples
    --------
    >>> has_images(Path("no-such.parquet"))
    False
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:  # reading the table reports it
        return False
    if not is_file(path):  # a pipe might never end
        return False
    try:
        return bool(_image_columns(pq.read_schema(path)))
    except (pa.ArrowException, OSError):
        return False


def _image_columns(schema: pa.Schema) -> list[str]:
    """Columns with a structure of bytes and path, or with bytes under a usual name of images."""
    import pyarrow as pa

    names = []
    for column in schema:
        is_image = pa.types.is_struct(column.type) and {"bytes", "path"} <= {
            column.type.field(i).name for i in range(column.type.num_fields)
        }
        is_bytes = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
        if is_image or (is_bytes and normalise_column(column.name) in IMAGE_COLUMNS):
            names.append(column.name)
    return names


def read_image_parquet(
    root: Path, names: Sequence[str], image: str | None = None, label: str | None = None
) -> Table:
    """Read Parquet files with images to one table. The images are not decoded.

    Parameters
    ----------
    root : Path
    names : sequence of str
        The files, relative to that folder. Their names give the splits, if they name several.
    image, label : str or None
        Columns, if several are possible.

    Returns
    -------
    Table
        Images as bytes, or as paths inside the folder. Numbers of classes have the names that
        datasets stores in the file.

    Raises
    ------
    DataError
        If shards are missing, the files have other columns, a number has no name, or the images
        need too much memory.
    LayoutError
        If a file is damaged, or several columns may be images or labels.
    UnknownNameError
        If there is no column ``image`` or ``label``.
    """
    title = f"the Parquet images {format_list(names)} in {str(root)!r}"
    _require_all_shards(root, names)
    parts = _read_files(root, names, title)
    schema = parts[0].schema
    image_name = _choose_image(image, _image_columns(schema), schema.names, title)
    features = _features(schema)
    label_name = _label_column(label, features, schema.names, title)
    rows = [
        f"{name} row {row}"
        for name, part in zip(names, parts, strict=True)
        for row in range(part.num_rows)
    ]
    columns: dict[str, list[Any]] = {}
    for name in schema.names:
        is_other = name in _image_columns(schema) or normalise_column(name) in IMAGE_COLUMNS
        if is_other and name != image_name:
            continue
        cells = [cell for part in parts for cell in part[name].to_pylist()]
        classes = _class_names(features.get(name))
        if name == image_name:
            is_usual = image is not None or normalise_column(name) in IMAGE_COLUMNS
            columns[name if is_usual else "image"], rows = _images(cells, rows, root, title)
        elif name == label_name:
            columns[name] = plain_labels(cells, title, classes)
        else:
            columns[name] = [_plain_cell(cell, title, classes) for cell in cells]
    splits = splits_by_folder(f"{name}/" for name in names)
    if any(splits.values()) and "split" not in columns:
        columns["split"] = [
            splits[f"{name}/"]
            for name, part in zip(names, parts, strict=True)
            for _ in range(part.num_rows)
        ]
    lines = range(len(rows))
    return Table(path=root / "images", columns=columns, lines=lines, title=title, names=rows)


def _require_all_shards(root: Path, names: Sequence[str]) -> None:
    """Check that all files of train-00000-of-00003.parquet and so on are there."""
    numbers: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if match := _SHARD.search(name):
            numbers.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, total), present in numbers.items():
        missing = [number for number in range(min(total, 100_000)) if number not in present]
        if missing and len(names) > 1:
            raise DataError(
                f"Expected {total} shards of {stem!r} in {str(root)!r}, got {len(present)}: number "
                f"{missing[0]} is missing. Add the file, or pass the path of one shard to read it "
                "alone."
            )


def _read_files(root: Path, names: Sequence[str], title: str) -> list[pa.Table]:
    """Read all columns of the files; refuse more than the memory holds before they are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        heads = [pq.read_metadata(root / name) for name in names]
        n_bytes = sum(head.row_group(i).total_byte_size for head in heads for i in _groups(head))
        require_memory(n_bytes, sum(head.num_rows for head in heads), title)
        schema = pq.read_schema(root / names[0])
        for name in names:
            other = pq.read_schema(root / name).names
            if other != schema.names:
                raise DataError(
                    f"Expected the columns {format_list(schema.names, 12)} of {names[0]!r} in "
                    f"every file of {title}, got {format_list(other, 12)} in {name!r}. Pass the "
                    "path of one of the files."
                )
        return [pq.read_table(root / name) for name in names]
    except (pa.ArrowException, OSError) as error:
        raise LayoutError(f"Cannot read {title}: {error}. Write the files again.") from error


def _groups(head: Any) -> range:
    return range(head.num_row_groups)


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """Features that datasets stores in the schema: types and names of classes by column."""
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = content["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> list[str] | None:
    """Names of the classes in a feature, in a list of it, or in one of its fields."""
    if isinstance(feature, list):
        return next((names for item in feature if (names := _class_names(item))), None)
    if not isinstance(feature, dict):
        return None
    names = feature.get("names")
    if feature.get("_type") == "ClassLabel" and isinstance(names, list):
        return [str(name) for name in names]
    return next((names for item in feature.values() if (names := _class_names(item))), None)


def _choose_image(
    requested: str | None, candidates: Sequence[str], columns: Sequence[str], title: str
) -> str:
    if requested is not None:
        if requested not in columns:
            raise UnknownNameError("image_column", requested, columns)
        return requested
    if len(candidates) > 1 and "image" not in candidates:
        raise LayoutError(
            f"Expected one column of images in {title}, got {format_list(candidates)}. Choose one "
            "with --image-column NAME."
        )
    return "image" if "image" in candidates else candidates[0]


def _label_column(
    requested: str | None, features: Mapping[str, Any], columns: Sequence[str], title: str
) -> str | None:
    """Return the requested column, the only column of class labels, or one with a usual name."""
    if requested is not None:
        if requested not in columns:
            raise UnknownNameError("label_column", requested, columns)
        return requested
    is_object = {name for name in columns if "bbox" in str(features.get(name))}
    names = [n for n in columns if n not in is_object and _class_names(features.get(n))]
    if len(names) > 1 and "label" not in names:
        raise DataError(
            f"Expected one column of labels in {title}, got {format_list(names)}. Choose one with "
            "--label-column NAME."
        )
    if names:
        return "label" if "label" in names else names[0]
    header = Table(path=Path(), columns={name: [] for name in columns}, lines=[])
    label = find_columns(header).label
    return None if label in is_object else label


def _images(
    cells: Iterable[Any], rows: Sequence[str], root: Path, title: str
) -> tuple[list[Any], list[str]]:
    """Return the images as bytes or paths, and names that contain the stored file names."""
    is_inside = InsideFolder(root)
    images, names = [], []
    for cell, row in zip(cells, rows, strict=True):
        is_empty = isinstance(cell, Mapping) and not any(cell.values())
        image = None if is_empty else to_image(cell, row, title)
        if isinstance(image, str) and not is_inside(posixpath.normpath(image)):
            raise DataError(
                f"Expected images inside {str(root)!r}, got the path {image!r} in {row}. Store "
                "the content of the images in the file."
            )
        path = cell.get("path") if isinstance(cell, Mapping) else None
        images.append(image)
        names.append(f"{row} ({path})" if path else row)
    return images, names


def _plain_cell(cell: Any, title: str, classes: Sequence[str] | None) -> Any:
    """Text of a value; of objects, the numbers of their classes replaced by names."""
    if isinstance(cell, list) and not any(isinstance(entry, Mapping) for entry in cell):
        return cell
    entries = cell if isinstance(cell, list) else [cell]
    if not all(isinstance(entry, Mapping) for entry in entries):
        return to_text(cell)
    named = []
    for entry in entries:
        key = class_key(entry)
        value = entry[key] if key is not None else None
        if key is None or classes is None or value is None:
            named.append(entry)
            continue
        labels = plain_labels(value if isinstance(value, list) else [value], title, classes)
        named.append({**entry, key: labels if isinstance(value, list) else labels[0]})
    return named if isinstance(cell, list) else named[0]
