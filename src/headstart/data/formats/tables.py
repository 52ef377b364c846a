"""CSV, TSV, JSON lines and Parquet tables, and the meaning of their columns.

`read_table` reads any table as columns of text; `find_columns` assigns their meaning.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headstart.data.dataset import SplitName
from headstart.data.formats.layouts import format_list
from headstart.errors import DataError, LayoutError, MissingExtraError, UnknownNameError
from headstart.files import MOST_ANNOTATION_BYTES, read_bounded

__all__ = [
    "IMAGE_COLUMNS",
    "LABEL_COLUMNS",
    "SPLIT_NAMES",
    "Columns",
    "Table",
    "find_columns",
    "normalise_column",
    "read_table",
    "split_name",
    "to_text",
]

IMAGE_COLUMNS = (
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
    "id",
)
LABEL_COLUMNS = (
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
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns by name, with the line number of each row in the file.

    Parameters
    ----------
    path : Path
        Relative paths in the table start from the folder of this file.
    columns : dict of str to list
        All of one length; an empty cell is None. Images are paths, or images in memory.
    lines : sequence of int or str
        For a Python object: positions, from 0.
    title : str
        Words for a table that is no file, such as ``the DataFrame``.
    names : list of str
        Names of the rows, for images that have no path.
    place : str
        Words for several files that were joined, such as ``the metadata files``.
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: Sequence[int | str]
    title: str = ""
    names: list[str] = field(default_factory=list)
    place: str = ""

    @property
    def where(self) -> str:
        """Words for the table in messages: its title, or its path in quotes."""
        return self.title or self.place or repr(str(self.path))


def read_table(path: Path) -> Table:
    r"""Read a CSV, TSV, JSON lines or Parquet file.

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
    return _read_json_lines(path) if path.suffix.lower() == ".jsonl" else _read_csv(path)


def _read_json_lines(path: Path) -> Table:
    """Read one JSON object per line; their keys are the columns."""
    try:
        text = read_bounded(path, MOST_ANNOTATION_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise LayoutError(
            f"Cannot read {str(path)!r} as JSON lines in UTF-8: {error}. Write one JSON object per "
            "line, in the encoding UTF-8."
        ) from error
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row, problem = None, f"{type(error).__name__}: {error}"
        else:
            problem = f"a {type(row).__name__}"
        if not isinstance(row, Mapping):
            raise DataError(
                f"Expected a JSON object in line {number} of {str(path)!r}, got {problem:.120}. "
                "Correct or remove the line."
            )
        rows.append((number, row))
    if not rows:
        raise LayoutError(
            f"Expected lines in {str(path)!r}, got an empty file. Write one JSON object per image."
        )
    names = dict.fromkeys(name for _, row in rows for name in row)
    columns = {name: [to_text(row.get(name)) for _, row in rows] for name in names}
    return Table(path=path, columns=columns, lines=[number for number, _ in rows])


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
    while header and not header[-1] and not any(any(row[len(header) - 1 :]) for _, row in rows):
        header.pop()  # delimiters at the end of each line
        rows = [(line, row[: len(header)]) for line, row in rows]
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
    columns = {name: [to_text(value) for value in table[name].to_pylist()] for name in names}
    return Table(path=path, columns=columns, lines=list(range(1, table.num_rows + 1)))


def to_text(value: Any) -> Any:
    """Text of a value in a table; None for an empty one, lists and objects as they are.

    Examples
    --------
    >>> to_text(3.0), to_text(" cat "), to_text(float("nan"))
    ('3', 'cat', None)
    """
    if value is None or isinstance(value, list | Mapping):
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
    image, label, split, group, weight : str or None
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    weight: str | None = None


def split_name(text: str) -> SplitName | None:
    """Split that a word stands for; None if it stands for no split.

    Examples
    --------
    >>> split_name("Validation"), split_name("cats")
    ('val', None)
    """
    return SPLIT_NAMES.get(text.strip().lower())


def find_columns(
    table: Table,
    *,
    image: str | None = None,
    label: str | None = None,
    group: str | None = None,
    weight: str | None = None,
) -> Columns:
    """Find the columns by the given names, or else by common names.

    Raises
    ------
    UnknownNameError
        If ``image``, ``label`` or ``weight`` is given and there is no such column.

    Examples
    --------
    >>> table = Table(path=Path("a.csv"), columns={"File": [], "class": []}, lines=[])
    >>> find_columns(table)
    Columns(image='File', label='class', split=None, group=None, weight=None)
    """
    names = {normalise_column(name): name for name in table.columns}
    given = {"image_column": image, "label_column": label, "weight_column": weight}
    for parameter, column in given.items():
        if column is not None and normalise_column(column) not in names:
            raise UnknownNameError(parameter, column, table.columns)
    assigned = {normalise_column(column) for column in given.values() if column is not None}

    def find_common(candidates: Sequence[str]) -> str | None:
        return next((names[c] for c in candidates if c in names and c not in assigned), None)

    return Columns(
        image=names[normalise_column(image)] if image is not None else find_common(IMAGE_COLUMNS),
        label=names[normalise_column(label)] if label is not None else find_common(LABEL_COLUMNS),
        split=find_common(_SPLIT_COLUMNS),
        group=(
            names.get(normalise_column(group)) if group is not None else find_common(_GROUP_COLUMNS)
        ),
        weight=None if weight is None else names[normalise_column(weight)],
    )


def normalise_column(name: str) -> str:
    """Name of a column in lower case, with one underscore for blanks and hyphens.

    >>> normalise_column(" Is-Valid")
    'is_valid'
    """
    return re.sub(r"[\s-]+", "_", name.strip().lower())
