"""CSV, TSV and Parquet files -> columns of text; what they mean is for `manifests`."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unicodedata import normalize

from headstart.data.dataset import Dataset, Kind, Sample, SplitName, Target, labels_of
from headstart.data.formats.layouts import listed, natural_key
from headstart.errors import DataError, LayoutError, LeakError, MissingExtraError, UnknownNameError

__all__ = ["Columns", "Table", "find_columns", "read_manifest", "read_table", "split_name"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns by name, with the line of the file that each row stands in.

    Parameters
    ----------
    path : Path
    columns : dict of str to list
        All of one length; an empty cell is None.
    lines : list of int
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: list[int]


def read_table(path: Path) -> Table:
    r"""Read a CSV, TSV or Parquet file.

    Raises
    ------
    DataError
        If rows are damaged.
    LayoutError
        If the file is not such a table.
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
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=_delimiter(path, head), strict=True)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeError, csv.Error) as error:
        raise LayoutError(
            f"Expected {str(path)!r} to be a table in UTF-8, got: {error}; "
            "do: save it as CSV in UTF-8."
        ) from error
    if not rows:
        raise LayoutError(f"Expected {str(path)!r} to hold rows, got an empty file; do: fill it.")
    header = [name.strip() for name in rows.pop(0)[1]]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise LayoutError(
            f"Expected the columns of {str(path)!r} to have different names, got {listed(twice)} "
            "more than once; do: rename them."
        )
    ragged = [line for line, row in rows if len(row) != len(header)]
    if ragged:
        raise DataError(
            f"Expected {len(header)} cells in every row of {str(path)!r}, got another number in "
            f"{len(ragged)} rows (lines {', '.join(map(str, ragged[:5]))}); "
            "do: put quotes around cells that hold the delimiter."
        )
    lines = [line for line, _ in rows]
    cells = [[row[i].strip() or None for _, row in rows] for i in range(len(header))]
    return Table(path=path, columns=dict(zip(header, cells, strict=True)), lines=lines)


def _delimiter(path: Path, head: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(",\t;|", key=lambda mark: len(next(csv.reader([head], delimiter=mark), [])))


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", extra="data") from None
    try:
        schema = pq.read_schema(path)
        # Columns of bytes hold whole images; they are not paths and would fill the memory.
        names = [
            field.name
            for field in schema
            if not (pa.types.is_binary(field.type) or pa.types.is_struct(field.type))
        ]
        table = pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        raise LayoutError(
            f"Expected {str(path)!r} to be a Parquet file, got: {error}; do: write it again."
        ) from error
    columns = {name: [_cell(value) for value in table[name].to_pylist()] for name in names}
    return Table(path=path, columns=columns, lines=list(range(1, table.num_rows + 1)))


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, list):
        return value
    if isinstance(value, float):
        # pandas turns whole numbers into floats as soon as one is missing.
        return None if value != value else str(int(value) if value.is_integer() else value)
    return str(value).strip() or None


_IMAGE = (
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
)
_LABEL = (
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
_SPLIT = ("split", "subset", "partition", "set", "phase")
_GROUP = (
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
_SEPARATORS = re.compile(r"[|;]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column holds what; None where a table has no such column.

    Parameters
    ----------
    image, label, split, group : str or None
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None


def split_name(text: str) -> SplitName | None:
    """The part that a word stands for; None where it stands for none.

    Examples
    --------
    >>> split_name("Validation"), split_name("cats")
    ('val', None)
    """
    return _SPLIT_NAMES.get(text.strip().lower())


def find_columns(
    table: Table, *, image: str | None = None, label: str | None = None, group: str | None = None
) -> Columns:
    """Find the columns by the names given, else by the names that are usual.

    Raises
    ------
    UnknownNameError
        If ``image`` or ``label`` is given and is not the name of a column.

    Examples
    --------
    >>> table = Table(path=Path("a.csv"), columns={"File": [], "class": []}, lines=[])
    >>> find_columns(table)
    Columns(image='File', label='class', split=None, group=None)
    """
    names = {_plain(name): name for name in table.columns}
    for what, wanted in (("image_column", image), ("label_column", label)):
        if wanted is not None and _plain(wanted) not in names:
            raise UnknownNameError(what, wanted, table.columns)
    taken = {_plain(wanted) for wanted in (image, label) if wanted is not None}

    def usual(words: Sequence[str]) -> str | None:
        return next((names[w] for w in words if w in names and w not in taken), None)

    return Columns(
        image=names[_plain(image)] if image is not None else usual(_IMAGE),
        label=names[_plain(label)] if label is not None else usual(_LABEL),
        split=usual(_SPLIT),
        group=names.get(_plain(group)) if group is not None else usual(_GROUP),
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def read_manifest(
    table: Table, columns: Columns, *, task_kind: Kind | None = None, labels_required: bool = True
) -> tuple[Dataset, tuple[str, ...]]:
    """Turn a table into a data set; paths are relative to the table's folder, or absolute.

    Parameters
    ----------
    table : Table
    columns : Columns
        See `find_columns`.
    task_kind : {"multiclass", "multilabel"} or None
        None: multilabel where cells are lists or hold several labels.
    labels_required : bool
        Whether a row without a label is an error.

    Returns
    -------
    Dataset
        In the order of the table, each image once.
    tuple of str
        The path of each example as the table writes it, with forward slashes.

    Raises
    ------
    DataError
        If files are missing, labels are missing or contradict each other, or a split is unknown.
    LayoutError
        If there is no column of paths or of labels.
    LeakError
        If the same image is in two splits.
    """
    keys = _keys(table, _image_column(table, columns, labels_required))
    paths = _resolve(table, keys)
    cells = table.columns[columns.label] if columns.label else [None] * len(keys)
    kind, why = _kind(cells, task_kind)
    if columns.label and kind == "multilabel" and not any(isinstance(c, list) for c in cells):
        # Text cannot tell "none of them" from "unknown"; with several labels the first is meant.
        cells = [[] if cell is None else cell for cell in cells]
    targets = [_target(cell, kind) for cell in cells]
    if columns.label and labels_required:
        _require_labels(table, targets)
    splits = _splits(table, columns.split)
    groups = table.columns[columns.group] if columns.group else [None] * len(keys)
    samples = [
        Sample(image=path, target=target, split=split, group=None if group is None else str(group))
        for path, target, split, group in zip(paths, targets, splits, groups, strict=True)
    ]
    samples, keys, repeated = _merge(samples, keys, kind)
    names = {name for s in samples for name in _names(s.target)}
    roles = [(role, getattr(columns, role)) for role in ("image", "label", "split", "group")]
    notes = [
        f"manifest {table.path.name}: "
        + ", ".join(f"{role} = column {name!r}" for role, name in roles if name is not None),
        *([why] if names else []),
        *([f"{repeated} repeated rows of the same image merged"] if repeated else []),
    ]
    empty = sum(target == () for target in targets)
    if empty:
        notes.append(f"{empty} images carry no label at all, which means: none of the classes")
    data = Dataset(
        samples=tuple(samples),
        classes=tuple(sorted(names, key=natural_key)),
        kind=kind,
        name=table.path.stem,
        notes=tuple(notes),
    )
    return data, tuple(keys)


def _image_column(table: Table, columns: Columns, labels_required: bool) -> str:
    """The column of paths, once it is clear that all columns needed are there."""
    wanted = (("paths", columns.image, _IMAGE), ("labels", columns.label, _LABEL))
    for what, name, words in wanted:
        if name is None and (what == "paths" or labels_required):
            raise LayoutError(
                f"Expected a column of {what} ({', '.join(words[:4])}, ...) in "
                f"{str(table.path)!r}, got the columns {listed(table.columns, 12)}; "
                "do: rename one, or say which with image_column / label_column."
            )
    if not table.lines:
        raise DataError(f"Expected {str(table.path)!r} to hold rows, got none; do: fill it.")
    return str(columns.image)


def _keys(table: Table, column: str) -> list[str]:
    cells = table.columns[column]
    bad = [i for i, cell in enumerate(cells) if not isinstance(cell, str)]
    if bad:
        raise _in_rows(table, bad, f"a path in column {column!r}", "none")
    return [_posix(cell, table.path.parent) for cell in cells]


def _posix(cell: str, folder: Path) -> str:
    if "\\" in cell and not (folder / cell).exists():
        return cell.replace("\\", "/")
    return cell


def _in_rows(table: Table, rows: Sequence[int], wanted: str, got: str) -> DataError:
    lines = ", ".join(str(table.lines[row]) for row in rows[:5])
    return DataError(
        f"Expected every row of {str(table.path)!r} to have {wanted}, got {got} in {len(rows)} of "
        f"{len(table.lines)} rows (lines {lines}{', ...' if len(rows) > 5 else ''}); "
        "do: correct or remove them."
    )


def _resolve(table: Table, keys: Sequence[str]) -> list[Path]:
    folder = table.path.parent
    paths = [folder / os.path.normpath(key) for key in keys]
    gone = [key for key, path in zip(keys, paths, strict=True) if not path.is_file()]
    if not gone:
        return paths
    name = gone[0].rsplit("/", 1)[-1]
    twin = next((p for p in sorted(folder.glob("*/")) if (p / name).is_file()), None)
    hint = f" (a file of the first name lies in {twin.name + '/'!r})" if twin else ""
    raise DataError(
        f"Expected every image of {str(table.path)!r} to exist, got {len(gone)} of {len(keys)} "
        f"missing: {listed(gone)}; do: write paths relative to {str(folder)!r} or absolute{hint}."
    )


def _kind(cells: Sequence[Any], task_kind: Kind | None) -> tuple[Kind, str]:
    if task_kind is not None:
        return task_kind, f"task: {task_kind} because it was asked for"
    several = sum(isinstance(c, list) or (c is not None and "|" in c) for c in cells)
    several = several or sum(c is not None and ";" in c for c in cells)
    if several:
        return "multilabel", (
            f"task: multilabel because {several} of {len(cells)} labels are lists "
            "or hold '|' or ';'"
        )
    return "multiclass", "task: multiclass because each image has one label"


def _target(cell: Any, kind: Kind) -> Target:
    if kind == "multiclass":
        if isinstance(cell, list):
            return normalize("NFC", str(cell[0]).strip()) if len(cell) == 1 else None
        return None if cell is None else normalize("NFC", cell)
    if cell is None:
        return None
    parts = cell if isinstance(cell, list) else _SEPARATORS.split(cell)
    names = (normalize("NFC", str(part).strip()) for part in parts)
    return tuple(sorted({name for name in names if name}, key=natural_key))


def _names(target: Target) -> tuple[str, ...]:
    return labels_of(target)


def _require_labels(table: Table, targets: Sequence[Target]) -> None:
    empty = [i for i, target in enumerate(targets) if target is None]
    if empty:
        raise _in_rows(table, empty, "one label", "none or several")


def _splits(table: Table, column: str | None) -> list[SplitName | None]:
    if column is None:
        return [None] * len(table.lines)
    cells = [None if cell is None else str(cell) for cell in table.columns[column]]
    splits = [None if cell is None else split_name(cell) for cell in cells]
    unknown = Counter(c for c, s in zip(cells, splits, strict=True) if c is not None and s is None)
    if unknown:
        first = next(iter(unknown))
        near = get_close_matches(first.lower(), _SPLIT_NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "do: rename the values or the column."
        raise DataError(
            f"Expected column {column!r} of {str(table.path)!r} to say train, val or test, "
            f"got {listed(unknown)} in {unknown.total()} rows; {hint}"
        )
    return splits


def _merge(
    samples: Sequence[Sample], keys: Sequence[str], kind: Kind
) -> tuple[list[Sample], list[str], int]:
    """One example for each image; rows of one image must agree."""
    first: dict[Any, int] = {}
    merged: list[Sample] = []
    kept: list[str] = []
    clashes: list[str] = []
    for sample, key in zip(samples, keys, strict=True):
        at = first.setdefault(sample.image, len(merged))
        if at == len(merged):
            merged.append(sample)
            kept.append(key)
            continue
        before = merged[at]
        if before.split != sample.split:
            raise LeakError(
                f"Expected {key!r} to be in one split, got {before.split} and {sample.split}; "
                "do: remove one of the rows."
            )
        same = kind == "multilabel" or before.target == sample.target
        if before.group != sample.group or not same:
            clashes.append(key)
        elif kind == "multilabel":
            names = tuple(sorted({*_names(before.target), *_names(sample.target)}, key=natural_key))
            merged[at] = replace(before, target=names)
    if clashes:
        raise DataError(
            f"Expected rows of the same image to agree, got different labels or groups for "
            f"{len(clashes)} rows: {listed(clashes)}; do: correct them, or set the task kind to "
            "multilabel where images may carry several labels."
        )
    return merged, kept, len(samples) - len(merged)
