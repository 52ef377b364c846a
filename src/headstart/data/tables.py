"""CSV, TSV and Parquet files -> columns of text; what they mean is for `manifests`."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.data.layouts import listed
from headstart.errors import DataError, LayoutError, MissingExtraError

__all__ = ["Table", "read_table"]


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
        # Columns of bytes hold whole pictures; they are not paths and would fill the memory.
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
