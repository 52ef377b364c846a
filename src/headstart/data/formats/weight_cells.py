"""Weights of the images in a column of a table."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import Any

from headstart.data.dataset import brief
from headstart.data.formats.tables import Columns, Table
from headstart.errors import DataError, UsageError

__all__ = ["read_weights", "refuse_weights", "without_zero_weights"]


def read_weights(table: Table, column: str | None) -> list[float]:
    """Return the weight of each row, 1 without a column.

    Raises
    ------
    DataError
        If a weight is not a finite number of 0 or more.

    Examples
    --------
    >>> from pathlib import Path
    >>> cells = {"image": ["1.png", "2.png"], "trust": ["2", "-1"]}
    >>> table = Table(path=Path("a.csv"), columns=cells, lines=[2, 3])
    >>> read_weights(table, None)
    [1.0, 1.0]
    >>> read_weights(table, "trust")
    Traceback (most recent call last):
    headstart.errors.DataError: ... got '-1' in line 3. Correct the row, or write 0 ...
    """
    if column is None:
        return [1.0] * len(table.lines)
    weights = [_weight(cell) for cell in table.columns[column]]
    wrong = [row for row, weight in enumerate(weights) if weight is None]
    if wrong:
        cell, noun = table.columns[column][wrong[0]], "position" if table.title else "line"
        got = "an empty cell" if cell is None else brief(cell)
        more = f" ({len(wrong)} such rows in all)" if len(wrong) > 1 else ""
        raise DataError(
            f"Expected a finite number of 0 or more in the weight column {column!r} of "
            f"{table.where}, got {got} in {noun} {table.lines[wrong[0]]}{more}. Correct the row, "
            "or write 0 to leave out its image."
        )
    return [weight for weight in weights if weight is not None]


def _weight(cell: Any) -> float | None:
    try:
        weight = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return weight if isfinite(weight) and weight >= 0 else None


def without_zero_weights(table: Table, columns: Columns) -> tuple[Table, list[str]]:
    """Return the table without the rows of weight 0, and a note on them.

    Raises
    ------
    DataError
        If a weight is invalid, or all are 0.

    Examples
    --------
    >>> from pathlib import Path
    >>> cells = {"image": ["1.png", "2.png"], "trust": ["2", "0"]}
    >>> table = Table(path=Path("a.csv"), columns=cells, lines=[2, 3])
    >>> table, notes = without_zero_weights(table, Columns(image="image", weight="trust"))
    >>> table.lines, notes
    ([2], ['1 images of weight 0 left out'])
    """
    weights = read_weights(table, columns.weight)
    rows = [row for row, weight in enumerate(weights) if weight]
    if len(rows) == len(weights):
        return table, []
    if not rows:
        raise DataError(
            f"Every weight in column {columns.weight!r} of {table.where} is 0. Write a number "
            "above 0 for the images to train on."
        )
    kept = {name: [cells[row] for row in rows] for name, cells in table.columns.items()}
    lines = [table.lines[row] for row in rows]
    names = [table.names[row] for row in rows] if table.names else []
    note = f"{len(weights) - len(rows)} images of weight 0 left out"
    return replace(table, columns=kept, lines=lines, names=names), [note]


def refuse_weights(table: Table, columns: Columns) -> None:
    """Refuse a column of weights for boxes and masks.

    Raises
    ------
    UsageError
        If there is such a column.

    Examples
    --------
    >>> from pathlib import Path
    >>> table = Table(path=Path("a.csv"), columns={"trust": []}, lines=[])
    >>> refuse_weights(table, Columns())
    """
    if columns.weight is not None:
        raise UsageError(
            f"Expected no weight column for boxes and masks, got {columns.weight!r} of "
            f"{table.where}. Weights are for classes of whole images. Remove --weight-column."
        )
