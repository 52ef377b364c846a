"""Columns of a table that hold splits or classes in another form: yes or no for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headstart.data.formats.label_cells import is_missing
from headstart.data.formats.layouts import format_list
from headstart.data.formats.tables import Columns, Table, normalise_column, split_name
from headstart.errors import DataError

__all__ = ["unused_columns", "with_flag_columns"]

_FLAGS: Mapping[str, tuple[str, str]] = {
    "is_train": ("train", "test"),
    "is_training": ("train", "test"),
    "is_training_image": ("train", "test"),
    "train": ("train", "test"),
    "is_valid": ("val", "train"),
    "is_val": ("val", "train"),
    "is_validation": ("val", "train"),
    "is_test": ("test", "train"),
    "is_testing": ("test", "train"),
    "test": ("test", "train"),
}
"""Columns of yes and no: the split of yes, and that of no if there is no other such column."""

_YES = frozenset(("1", "true", "yes", "t", "y"))
_NO = frozenset(("0", "false", "no", "f", "n"))
_UNCERTAIN = ("valid", "val", "validation", "is_holdout", "holdout")
_FOLD_COLUMNS = ("fold", "folds", "kfold", "fold_id", "cv_fold", "usage", "dataset")
_WEIGHTS = ("weight", "weights", "sample_weight")


def with_flag_columns(table: Table, columns: Columns) -> tuple[Table, Columns, tuple[str, ...]]:
    """Read columns such as ``is_valid`` as the split, and columns of 0 and 1 as the classes.

    Parameters
    ----------
    table : Table
    columns : Columns

    Returns
    -------
    Table
        With a column of splits or labels added, if one was found.
    Columns
    tuple of str
        Notes on what was found.

    Raises
    ------
    DataError
        If the columns contradict each other, or a class column has another value than 0 and 1.

    Examples
    --------
    >>> from pathlib import Path
    >>> cells = {"image": ["1.png", "2.png"], "is_valid": ["False", "True"]}
    >>> table = Table(path=Path("a.csv"), columns=cells, lines=[2, 3])
    >>> table, columns, _ = with_flag_columns(table, Columns(image="image"))
    >>> table.columns[columns.split]
    ['train', 'val']
    """
    notes: list[str] = []
    if columns.split is None:
        table, columns = _with_split(table, columns)
    if columns.label is None and columns.image is not None:
        table, columns, notes = _with_classes(table, columns)
    return table, columns, tuple(notes)


def unused_columns(table: Table, columns: Columns) -> list[str]:
    """Columns that look like splits, classes or weights and are not used, to be named in a note.

    Examples
    --------
    >>> from pathlib import Path
    >>> cells = {"image": ["1.png"], "label": ["a"], "fold": ["3"], "age": ["71"]}
    >>> table = Table(path=Path("a.csv"), columns=cells, lines=[2])
    >>> unused_columns(table, Columns(image="image", label="label"))
    ['fold']
    """
    used = {part for name in _used(columns) if name for part in (name, *name.split(" and "))}
    return [
        name
        for name in table.columns
        if name not in used
        and (
            normalise_column(name) in _FLAGS
            or normalise_column(name) in _FOLD_COLUMNS
            or normalise_column(name) in _UNCERTAIN
            or normalise_column(name) in _WEIGHTS
            or (not name.strip() and _are_splits(table.columns[name]))
        )
    ]


def _used(columns: Columns) -> set[str | None]:
    return {columns.image, columns.label, columns.split, columns.group, columns.weight}


def _with_split(table: Table, columns: Columns) -> tuple[Table, Columns]:
    free = {normalise_column(name): name for name in table.columns if name not in _used(columns)}
    for candidate in _FOLD_COLUMNS:
        cells = table.columns[free[candidate]] if candidate in free else []
        if _are_splits(cells):
            return table, replace(columns, split=free[candidate])
    flags = {
        free[name]: values
        for name in _FLAGS
        if name in free and (values := _read_flags(table.columns[free[name]])) is not None
    }
    if not flags:
        return table, columns
    splits = [_split_of(table, flags, row) for row in range(len(table.lines))]
    title = " and ".join(flags)
    return (
        replace(table, columns={**table.columns, title: splits}),
        replace(columns, split=title),
    )


def _are_splits(cells: Sequence[Any]) -> bool:
    return bool(cells) and all(isinstance(cell, str) and split_name(cell) for cell in cells)


def _read_flags(cells: Sequence[Any]) -> list[bool] | None:
    """Values of a column of yes and no; None if it has other values, or only empty cells."""
    texts = [str(cell).strip().lower().removesuffix(".0") for cell in cells]
    if not texts or not all(text in _YES | _NO for text in texts):
        return None
    return [text in _YES for text in texts]


def _split_of(table: Table, flags: Mapping[str, list[bool]], row: int) -> str:
    chosen = {_FLAGS[normalise_column(name)][0] for name, values in flags.items() if values[row]}
    if len(chosen) > 1:
        raise DataError(
            f"Expected one split for every row of {table.where}, got "
            f"{' and '.join(sorted(chosen))} from the columns {format_list(flags)} in line "
            f"{table.lines[row]}. Correct the row."
        )
    if chosen:
        return chosen.pop()
    if len(flags) == 1:
        return _FLAGS[normalise_column(next(iter(flags)))][1]
    rest = {"train", "val", "test"} - {_FLAGS[normalise_column(name)][0] for name in flags}
    return next((split for split in ("train", "test", "val") if split in rest), "train")


def _with_classes(table: Table, columns: Columns) -> tuple[Table, Columns, list[str]]:
    """Read several columns of 0 and 1 as one column for each class."""
    free = [name for name in table.columns if name not in _used(columns) and name.strip()]
    parts = (columns.split or "").split(" and ")
    others = {*_FOLD_COLUMNS, *_FLAGS, *_UNCERTAIN}
    free = [name for name in free if name not in parts and normalise_column(name) not in others]
    marks = {name: [_mark(cell) for cell in table.columns[name]] for name in free}
    marks = {name: row for name, row in marks.items() if row and "other" not in row}
    full = {name for name, row in marks.items() if set(row) <= {"0", "1"}}
    if len(full) < 2 or len(marks) < 2:
        return table, columns, []
    for name, row in marks.items():
        if name not in full:
            position = next(i for i, mark in enumerate(row) if mark not in {"0", "1"})
            raise DataError(
                f"Expected 0 or 1 in the columns of classes of {table.where}, got "
                f"{table.columns[name][position]!r} in column {name!r}, line "
                f"{table.lines[position]}. Replace it, or name a column with --label-column."
            )
    names = list(marks)
    rows = [[name for name in names if marks[name][row] == "1"] for row in range(len(table.lines))]
    one_hot = all(len(row) == 1 for row in rows)
    title = f"columns of 0 and 1: {', '.join(names)}"
    cells: list[Any] = [row[0] for row in rows] if one_hot else list(rows)
    table = replace(table, columns={**table.columns, title: cells})
    note = f"{len(names)} columns of 0 and 1 are the classes: {format_list(names, 12)}"
    return table, replace(columns, label=title), [note]


def _mark(cell: Any) -> str:
    """Return 0, 1, - for an empty or uncertain cell, or "other"."""
    if is_missing(cell):
        return "-"
    text = str(cell).strip().lower().removesuffix(".0")
    words = {"true": "1", "false": "0", "-1": "-"}
    return words.get(text, text if text in {"0", "1"} else "other")
