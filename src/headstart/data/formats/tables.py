"""Reader of manifests: CSV, TSV and Parquet tables that list images and labels.

`read_table` reads any table as columns of text; `find_columns` assigns their meaning;
`read_manifest` turns both into a `Dataset`. Python objects become such tables in objects.py.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unicodedata import normalize

from headstart.data.dataset import Dataset, Kind, Sample, SplitName, Target, labels_of
from headstart.data.formats.layouts import format_list, natural_key
from headstart.errors import DataError, LayoutError, LeakError, MissingExtraError, UnknownNameError
from headstart.files import MOST_ANNOTATION_BYTES, is_file, read_bounded

__all__ = [
    "Columns",
    "Table",
    "find_columns",
    "read_manifest",
    "read_samples",
    "read_table",
    "split_name",
]

_IMAGE_COLUMNS = (
    "path",
    "filepath",
    "file_path",
    "filename",
    "file_name",
    "file",
    "image_path",
    "imagepath",
    "image",
    "image_file",
    "image_name",
    "img",
    "img_path",
    "image_id",
    "images",
)
_LABEL_COLUMNS = (
    "label",
    "class",
    "target",
    "category",
    "labels",
    "classes",
    "tags",
    "categories",
    "targets",
    "class_name",
    "label_name",
    "classname",
    "y",
)
_SPLIT_COLUMNS = ("split", "subset", "partition", "set", "phase")
_GROUP_COLUMNS = (
    "group",
    "group_id",
    "groupid",
    "patient",
    "patient_id",
    "patientid",
    "subject",
    "subject_id",
    "subjectid",
    "lesion_id",
    "video",
    "video_id",
    "groups",
)
_SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_LABEL_SEPARATORS = re.compile(r"[|;]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns by name, with the line number of each row in the file.

    Parameters
    ----------
    path : Path
        Relative paths in the table start from the folder of this file.
    columns : dict of str to list
        All of one length; an empty cell is None. Images are paths, or images in memory.
    lines : list of int
        For a Python object: positions, from 0.
    title : str
        Words for a table that is no file, such as ``the DataFrame``.
    names : list of str
        Names of the rows, for images that have no path.
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: list[int]
    title: str = ""
    names: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Words for the table in messages: its title, or its path in quotes."""
        return self.title or repr(str(self.path))


def read_table(path: Path) -> Table:
    r"""Read a CSV, TSV or Parquet file.

    Raises
    ------
    DataError
        If rows are damaged.
    LayoutError
        If the file is not a table of one of these formats.
    MissingExtraError
        If the file is Parquet and pyarrow is not installed.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "labels.csv")
    >>> _ = path.write_text("file;class\n1.jpg;cat\n")
    >>> read_table(path).columns
    {'file': ['1.jpg'], 'class': ['cat']}
    """
    if path.suffix.lower() in {".parquet", ".pq"}:
        return _read_parquet(path)
    return _read_csv(path)


def _read_csv(path: Path) -> Table:
    try:
        text = read_bounded(path, MOST_ANNOTATION_BYTES).decode("utf-8-sig")
        file = io.StringIO(text, newline="")
        delimiter = _find_delimiter(path, file.readline())
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeError, csv.Error) as error:
        raise LayoutError(
            f"Cannot read {str(path)!r} as a CSV table in UTF-8: {error}. Save it as CSV with the "
            "encoding UTF-8."
        ) from error
    if not rows:
        raise LayoutError(
            f"Expected rows in {str(path)!r}, got an empty file. Write a header row and one row "
            "per image."
        )
    header = [name.strip() for name in rows.pop(0)[1]]
    duplicates = [name for name, count in Counter(header).items() if count > 1]
    if duplicates:
        raise LayoutError(
            f"Expected each column name once in {str(path)!r}, got {format_list(duplicates)} "
            "several times. Rename these columns."
        )
    ragged_lines = [line for line, row in rows if len(row) != len(header)]
    if ragged_lines:
        raise DataError(
            f"Expected {len(header)} cells in every row of {str(path)!r}, got another number in "
            f"{len(ragged_lines)} rows (lines {', '.join(map(str, ragged_lines[:5]))}"
            f"{', ...' if len(ragged_lines) > 5 else ''}). Put quotes around cells that contain "
            "the delimiter."
        )
    lines = [line for line, _ in rows]
    cells = [[row[i].strip() or None for _, row in rows] for i in range(len(header))]
    return Table(path=path, columns=dict(zip(header, cells, strict=True)), lines=lines)


def _find_delimiter(path: Path, first_line: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"

    def n_columns(delimiter: str) -> int:
        return len(next(csv.reader([first_line], delimiter=delimiter), []))

    return max(",\t;|", key=n_columns)


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", extra="data") from None
    try:
        schema = pq.read_schema(path)
        # Columns of bytes contain whole images: not paths, and too large for memory.
        names = [
            column.name
            for column in schema
            if not (pa.types.is_binary(column.type) or pa.types.is_struct(column.type))
        ]
        table = pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        raise LayoutError(
            f"Cannot read {str(path)!r} as a Parquet file: {error}. Write the file again."
        ) from error
    columns = {name: [_to_text(value) for value in table[name].to_pylist()] for name in names}
    return Table(path=path, columns=columns, lines=list(range(1, table.num_rows + 1)))


def _to_text(value: Any) -> Any:
    if value is None or isinstance(value, list):
        return value
    if isinstance(value, float):
        # pandas stores whole numbers as floats if one is missing: write 3.0 as 3.
        return None if value != value else str(int(value) if value.is_integer() else value)
    return str(value).strip() or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns by role; None if the table has no such column.

    Parameters
    ----------
    image, label, split, group : str or None
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None


def split_name(text: str) -> SplitName | None:
    """Split that a word stands for; None if it stands for no split.

    Examples
    --------
    >>> split_name("Validation"), split_name("cats")
    ('val', None)
    """
    return _SPLIT_NAMES.get(text.strip().lower())


def find_columns(
    table: Table, *, image: str | None = None, label: str | None = None, group: str | None = None
) -> Columns:
    """Find the columns by the given names, or else by common names.

    Raises
    ------
    UnknownNameError
        If ``image`` or ``label`` is given and there is no such column.

    Examples
    --------
    >>> table = Table(path=Path("a.csv"), columns={"File": [], "class": []}, lines=[])
    >>> find_columns(table)
    Columns(image='File', label='class', split=None, group=None)
    """
    names = {_normalise_column(name): name for name in table.columns}
    for parameter, column in (("image_column", image), ("label_column", label)):
        if column is not None and _normalise_column(column) not in names:
            raise UnknownNameError(parameter, column, table.columns)
    assigned = {_normalise_column(column) for column in (image, label) if column is not None}

    def find_common(candidates: Sequence[str]) -> str | None:
        return next((names[c] for c in candidates if c in names and c not in assigned), None)

    return Columns(
        image=names[_normalise_column(image)] if image is not None else find_common(_IMAGE_COLUMNS),
        label=names[_normalise_column(label)] if label is not None else find_common(_LABEL_COLUMNS),
        split=find_common(_SPLIT_COLUMNS),
        group=(
            names.get(_normalise_column(group))
            if group is not None
            else find_common(_GROUP_COLUMNS)
        ),
    )


def _normalise_column(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def read_manifest(
    table: Table, columns: Columns, *, task_kind: Kind | None = None, labels_required: bool = True
) -> tuple[Dataset, tuple[str, ...]]:
    """Turn a table into a data set. Paths are relative to the table's folder, or absolute.

    Parameters
    ----------
    table : Table
    columns : Columns
        See `find_columns`.
    task_kind : {"multiclass", "multilabel"} or None
        None: multilabel if cells are lists or contain several labels.
    labels_required : bool
        Whether a row without a label is an error.

    Returns
    -------
    Dataset
        In the order of the table, each image once.
    tuple of str
        Path of each example as written in the table, with forward slashes.

    Raises
    ------
    DataError
        If files are missing, labels are missing or contradict each other, or a split is unknown.
    LayoutError
        If there is no column of paths or labels.
    LeakError
        If the same image is in two splits.
    """
    _require_columns(table, columns, labels_required)
    cells = table.columns[columns.label] if columns.label else [None] * len(table.lines)
    kind, kind_note = _infer_kind(cells, task_kind)
    if columns.label and kind == "multilabel" and not any(isinstance(c, list) for c in cells):
        # An empty text cell of a multilabel table means "none of the classes", not "unlabelled".
        cells = [[] if cell is None else cell for cell in cells]
    targets = [_parse_target(cell, kind) for cell in cells]
    if columns.label and labels_required:
        _require_labels(table, targets)
    samples, keys = read_samples(table, columns, targets)
    samples, keys, n_repeated = _merge_repeated(samples, keys, kind)
    names = {name for s in samples for name in labels_of(s.target)}
    roles = [(role, getattr(columns, role)) for role in ("image", "label", "split", "group")]
    notes = [
        f"{table.title or f'manifest {table.path.name}'}: "
        + ", ".join(f"{role} = column {name!r}" for role, name in roles if name is not None),
        *([kind_note] if names else []),
        *([f"{n_repeated} repeated rows of the same image merged"] if n_repeated else []),
    ]
    n_empty = sum(target == () for target in targets)
    if n_empty:
        notes.append(f"{n_empty} images have no label, which means: none of the classes")
    data = Dataset(
        samples=tuple(samples),
        classes=tuple(sorted(names, key=natural_key)),
        kind=kind,
        name=table.path.stem,
        notes=tuple(notes),
    )
    return data, tuple(keys)


def read_samples(
    table: Table, columns: Columns, targets: Sequence[Target]
) -> tuple[list[Sample], list[str]]:
    """Return one example for each row of a table, and the path or the name of each image.

    Raises
    ------
    DataError
        If images are missing, or a split is unknown.

    Examples
    --------
    >>> cells = {"image": [b"GIF89a"], "patient": ["p7"]}
    >>> table = Table(path=Path("a"), columns=cells, lines=[0], title="the list", names=["image 0"])
    >>> read_samples(table, find_columns(table), [None])[0]
    [Sample('image 0', group='p7')]
    """
    keys = _read_keys(table, str(columns.image))
    images = _resolve_images(table, table.columns[str(columns.image)], keys)
    splits = _read_splits(table, columns.split)
    groups = table.columns[columns.group] if columns.group else [None] * len(keys)
    samples = [
        Sample(
            image=image,
            target=target,
            split=split,
            group=None if group is None else str(group),
            title=None if isinstance(image, Path) else key,
        )
        for image, key, target, split, group in zip(
            images, keys, targets, splits, groups, strict=True
        )
    ]
    return samples, keys


def _require_columns(table: Table, columns: Columns, labels_required: bool) -> None:
    """Check that the columns of paths and labels exist, and that there are rows."""
    roles = (
        ("paths", columns.image, _IMAGE_COLUMNS, "image_column"),
        ("labels", columns.label, _LABEL_COLUMNS, "label_column"),
    )
    for contents, name, common_names, parameter in roles:
        if name is None and (contents == "paths" or labels_required):
            raise LayoutError(
                f"Expected a column of {contents} ({', '.join(common_names[:4])}, ...) in "
                f"{table.where}, got the columns {format_list(table.columns, 12)}. Rename "
                f"the column of {contents} to {common_names[0]!r}, or pass {parameter}='NAME' to "
                "read_dataset."
            )
    if not table.lines:
        raise DataError(
            f"Expected rows in {table.where}, got only a header. Write one row per image."
        )


def _read_keys(table: Table, column: str) -> list[str]:
    """Return the path of each image as written, or the name of its row."""
    cells = table.columns[column]
    invalid_rows = [i for i, cell in enumerate(cells) if cell is None]
    if invalid_rows:
        expected = "an image" if table.names else "a path"
        raise _invalid_rows_error(table, invalid_rows, f"{expected} in column {column!r}", "none")
    return [
        _to_forward_slashes(cell, table.path.parent) if isinstance(cell, str) else table.names[i]
        for i, cell in enumerate(cells)
    ]


def _to_forward_slashes(cell: str, folder: Path) -> str:
    if "\\" in cell and not is_file(folder / cell):
        return cell.replace("\\", "/")
    return cell


def _invalid_rows_error(table: Table, rows: Sequence[int], expected: str, got: str) -> DataError:
    lines = ", ".join(str(table.lines[row]) for row in rows[:5])
    return DataError(
        f"Expected {expected} in every row of {table.where}, got {got} in {len(rows)} of "
        f"{len(table.lines)} rows ({'positions' if table.title else 'lines'} {lines}"
        f"{', ...' if len(rows) > 5 else ''}). Correct or remove these rows."
    )


def _resolve_images(table: Table, cells: Sequence[Any], keys: Sequence[str]) -> list[Any]:
    """Return the path of each image that is a path, and the other images as they are."""
    folder = table.path.parent
    images = [
        folder / os.path.normpath(key) if isinstance(cell, str) else cell
        for cell, key in zip(cells, keys, strict=True)
    ]
    missing = [
        key
        for key, image in zip(keys, images, strict=True)
        if isinstance(image, Path) and not is_file(image)
    ]
    if not missing:
        return images
    name = missing[0].rsplit("/", 1)[-1]
    subfolder = next((p for p in sorted(folder.glob("*/")) if is_file(p / name)), None)
    hint = f" ({name!r} exists in {subfolder.name + '/'!r})" if subfolder else ""
    start = f"the current folder {str(Path.cwd())!r}" if table.title else repr(str(folder))
    raise DataError(
        f"{len(missing)} of the {len(keys)} images in {table.where} do not exist: "
        f"{format_list(missing)}. Write absolute paths, or paths relative to {start}{hint}."
    )


def _infer_kind(cells: Sequence[Any], task_kind: Kind | None) -> tuple[Kind, str]:
    if task_kind is not None:
        return task_kind, f"task: {task_kind} as requested"
    n_multiple = sum(isinstance(c, list) or (c is not None and "|" in c) for c in cells)
    n_multiple = n_multiple or sum(c is not None and ";" in c for c in cells)
    if n_multiple:
        return "multilabel", (
            f"task: multilabel because {n_multiple} of {len(cells)} labels are lists "
            "or contain '|' or ';'"
        )
    return "multiclass", "task: multiclass because each image has one label"


def _parse_target(cell: Any, kind: Kind) -> Target:
    if kind == "multiclass":
        if isinstance(cell, list):
            return normalize("NFC", str(cell[0]).strip()) if len(cell) == 1 else None
        return None if cell is None else normalize("NFC", cell)
    if cell is None:
        return None
    labels = cell if isinstance(cell, list) else _LABEL_SEPARATORS.split(cell)
    names = (normalize("NFC", str(label).strip()) for label in labels)
    return tuple(sorted({name for name in names if name}, key=natural_key))


def _require_labels(table: Table, targets: Sequence[Target]) -> None:
    unlabelled = [i for i, target in enumerate(targets) if target is None]
    if unlabelled:
        raise _invalid_rows_error(table, unlabelled, "one label", "none or several")


def _read_splits(table: Table, column: str | None) -> list[SplitName | None]:
    if column is None:
        return [None] * len(table.lines)
    cells = [None if cell is None else str(cell) for cell in table.columns[column]]
    splits = [None if cell is None else split_name(cell) for cell in cells]
    unknown = Counter(c for c, s in zip(cells, splits, strict=True) if c is not None and s is None)
    if unknown:
        first = next(iter(unknown))
        similar = get_close_matches(first.lower(), _SPLIT_NAMES, n=1, cutoff=0.5)
        hint = (
            f"Did you mean {similar[0]!r}?"
            if similar
            else "Correct the values, or rename the column if it does not name splits."
        )
        raise DataError(
            f"Expected train, val or test in column {column!r} of {table.where}, "
            f"got {format_list(unknown)} in {unknown.total()} rows. {hint}"
        )
    return splits


def _merge_repeated(
    samples: Sequence[Sample], keys: Sequence[str], kind: Kind
) -> tuple[list[Sample], list[str], int]:
    """Merge rows of the same image into one example; such rows must agree."""
    positions: dict[Any, int] = {}
    merged: list[Sample] = []
    merged_keys: list[str] = []
    conflicts: list[str] = []
    for sample, key in zip(samples, keys, strict=True):
        image = sample.image if isinstance(sample.image, Path) else sample.name
        position = positions.setdefault(image, len(merged))
        if position == len(merged):
            merged.append(sample)
            merged_keys.append(key)
            continue
        previous = merged[position]
        if previous.split != sample.split:
            raise LeakError(
                f"Expected the image {key!r} in one split, got {previous.split} and "
                f"{sample.split}. Remove one of its rows."
            )
        same_label = kind == "multilabel" or previous.target == sample.target
        if previous.group != sample.group or not same_label:
            conflicts.append(key)
        elif kind == "multilabel":
            names = {*labels_of(previous.target), *labels_of(sample.target)}
            merged[position] = replace(previous, target=tuple(sorted(names, key=natural_key)))
    if conflicts:
        raise DataError(
            f"Expected one label and one group per image, got {len(conflicts)} rows that "
            f"contradict an earlier row of the same image: {format_list(conflicts)}. Correct these "
            "rows. If an image can have several labels, separate them with '|' in one row."
        )
    return merged, merged_keys, len(samples) - len(merged)
