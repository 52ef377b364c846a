"""Reader of boxes in tables: one row for each object, several rows for an image."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from headstart.data.dataset import Boxes
from headstart.data.formats.annotations import AnnotatedImage, Annotations, is_background
from headstart.data.formats.box_patterns import require_plain_boxes
from headstart.data.formats.label_cells import is_missing
from headstart.data.formats.layouts import format_list, natural_key
from headstart.data.formats.manifests import read_samples
from headstart.data.formats.split_columns import with_flag_columns
from headstart.data.formats.tables import Columns, Table, normalise_column
from headstart.errors import DataError, LayoutError

__all__ = ["box_columns", "read_box_table"]

_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
    ("bbox_xmin", "bbox_ymin", "bbox_xmax", "bbox_ymax"),
    ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"),
)
_SIZES = (
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("x_min", "y_min", "width", "height"),
    ("xmin", "ymin", "w", "h"),
    ("left", "top", "width", "height"),
)
_SINGLE = ("bbox", "box", "bounding_box", "boxes", "bboxes")


def box_columns(table: Table) -> tuple[str, str, str, str] | str | None:
    """Find the columns of boxes: four columns, or one that holds whole boxes; None without boxes.

    Examples
    --------
    >>> from pathlib import Path
    >>> names = ("image", "xmin", "ymin", "xmax", "ymax")
    >>> box_columns(Table(path=Path("a.csv"), columns={name: [] for name in names}, lines=[]))
    ('xmin', 'ymin', 'xmax', 'ymax')
    """
    names = {normalise_column(name): name for name in table.columns}
    for candidate in (*_CORNERS, *_SIZES):
        if all(name in names for name in candidate):
            left, top, right, bottom = (names[name] for name in candidate)
            return left, top, right, bottom
    single = next((names[name] for name in _SINGLE if name in names), None)
    texts = (str(cell) for cell in table.columns.get(single or "", []) if not is_missing(cell))
    return single if len(re.findall(r"\d+(?:\.\d+)?", next(texts, ""))) == 4 else None


def read_box_table(table: Table, columns: Columns) -> Annotations:
    """Read a table with one box in each row; a row without a box is an image without objects.

    Parameters
    ----------
    table : Table
    columns : Columns
        Image and label are required.

    Returns
    -------
    Annotations
        If all coordinates are from 0 to 1, they are fractions of width and height.

    Raises
    ------
    DataError
        If a box is not four finite numbers, a label is missing, or most boxes share a mistake.
    LayoutError
        If a column is missing, or one column holds whole boxes.
    """
    sides = box_columns(table)
    if isinstance(sides, str) or sides is None:
        raise LayoutError(
            f"Expected four columns of boxes (xmin, ymin, xmax, ymax) in {table.where}, got the "
            f"column {sides!r}, whose four numbers may be corners or width and height. Write the "
            "corners as four columns xmin, ymin, xmax, ymax."
        )
    for role, name in (("image", columns.image), ("label", columns.label)):
        if name is None:
            raise LayoutError(
                f"Expected a column of {role}s for the boxes in {table.where}, got the columns "
                f"{format_list(table.columns, 12)}. Pass --{role}-column NAME."
            )
    table, columns, _ = with_flag_columns(table, columns)
    has_sizes = tuple(normalise_column(side) for side in sides) in _SIZES
    rows = [_read_row(table, sides, row, has_sizes=has_sizes) for row in range(len(table.lines))]
    present = [row for row in rows if row is not None]
    relative = bool(present) and all(0 <= value <= 1 for row in present for value in row)
    relative = relative and any(value % 1 for row in present for value in row)
    items = _join_rows(table, columns, rows)
    if not relative:
        form = "width and height" if has_sizes else "corners"
        require_plain_boxes((item.boxes for item in items), table.where, form)  # type: ignore[arg-type]
    names = sorted({name for item in items for name in item.boxes.labels}, key=natural_key)
    kind = "fractions of the image" if relative else "pixels"
    note = f"boxes from the columns {format_list(sides)} of {table.path.name}, in {kind}"
    return Annotations(items=tuple(items), names=tuple(names), notes=(note,), relative=relative)


def _read_row(
    table: Table, sides: Sequence[str], row: int, *, has_sizes: bool
) -> tuple[float, float, float, float] | None:
    """Corners of the box of a row; None for a row without a box."""
    cells = [table.columns[side][row] for side in sides]
    if all(map(is_missing, cells)):
        return None
    try:
        left, top, right, bottom = (float(cell) for cell in cells)
        is_finite = all(map(math.isfinite, (left, top, right, bottom)))
    except (TypeError, ValueError):
        is_finite = False
    if not is_finite:
        raise DataError(
            f"Expected four finite numbers in the columns {format_list(sides)} of {table.where}, "
            f"got {format_list(cells)} in line {table.lines[row]}. Correct the row, or leave all "
            "four cells empty for an image without objects."
        )
    return (left, top, left + right, top + bottom) if has_sizes else (left, top, right, bottom)


def _join_rows(
    table: Table, columns: Columns, rows: Sequence[tuple[float, float, float, float] | None]
) -> list[AnnotatedImage]:
    """Join the boxes of each image."""
    samples, _ = read_samples(table, columns, [None] * len(rows))
    labels = table.columns[str(columns.label)]
    size_columns = _size_columns(table)
    members: dict[str, list[int]] = {}
    root = table.path.parent
    for row, sample in enumerate(samples):
        key = sample.image.relative_to(root).as_posix()  # type: ignore[union-attr]
        members.setdefault(key, []).append(row)
    items = []
    for key, positions in members.items():
        first = samples[positions[0]]
        parts = (first.split, first.group)
        differing = [i for i in positions if (samples[i].split, samples[i].group) != parts]
        if differing:
            raise DataError(
                f"Expected one split and one group for the image {key!r} in {table.where}, got "
                f"another in line {table.lines[differing[0]]}. Correct the row."
            )
        with_box = [i for i in positions if rows[i] is not None]
        for i in with_box:
            if is_missing(labels[i]) or is_background(str(labels[i])):
                raise DataError(
                    f"Expected the class of an object in line {table.lines[i]} of {table.where}, "
                    f"got {labels[i]!r}. Correct or remove the row."
                )
        boxes = Boxes(
            corners=tuple(corner for i in with_box if (corner := rows[i]) is not None),
            labels=tuple(str(labels[i]).strip() for i in with_box),
            size=_stated_size(size_columns, table.columns, positions[0]),
        )
        items.append(AnnotatedImage(key=key, boxes=boxes, split=first.split, group=first.group))
    return items


def _size_columns(table: Table) -> tuple[str, str] | None:
    names = {normalise_column(name): name for name in table.columns}
    sides = box_columns(table) or ()
    for width, height in (("width", "height"), ("image_width", "image_height"), ("w", "h")):
        if width in names and height in names and names[width] not in sides:
            return names[width], names[height]
    return None


def _stated_size(
    names: tuple[str, str] | None, columns: Mapping[str, Sequence[Any]], row: int
) -> tuple[int, int] | None:
    if names is None:
        return None
    try:
        width, height = (int(float(columns[name][row])) for name in names)
    except (TypeError, ValueError):
        return None
    return (width, height) if width > 0 and height > 0 else None
