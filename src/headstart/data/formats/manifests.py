"""Manifests: tables that list images and labels.

`read_manifest` turns a table and its columns into a `Dataset`. table_files.py chooses the table
of a folder; Python objects become such tables in objects.py.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unicodedata import normalize

from headstart.data.dataset import Dataset, Kind, Sample, SplitName, Target, labels_of
from headstart.data.formats import tables
from headstart.data.formats.image_ids import find_by_id
from headstart.data.formats.label_cells import WHOLE, is_missing, split_labels
from headstart.data.formats.layouts import format_list, natural_key
from headstart.data.formats.split_columns import unused_columns, with_flag_columns
from headstart.data.formats.tables import Columns, Table, split_name
from headstart.data.formats.weight_cells import read_weights, without_zero_weights
from headstart.errors import DataError, LayoutError, LeakError
from headstart.files import is_file

__all__ = ["ReadOptions", "read_manifest", "read_samples"]


COLUMN_ROLES = ("image", "label", "split", "group", "weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What the columns of a table mean, where their names or contents do not show it.

    Parameters
    ----------
    image_column, label_column, weight_column : str or None
        Names of the columns.
    label_separator : str or None
        Text between the labels of a cell; ``none`` keeps each cell as one label.
    group_by : str or None
        Column, or regular expression for paths, that gives the group of an image.
    """

    image_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    weight_column: str | None = None
    group_by: str | None = None

    @property
    def names_columns(self) -> bool:
        """Whether a table is required, because its columns or cells are described."""
        columns = (self.image_column, self.label_column, self.weight_column)
        return any((*columns, self.label_separator))

    def columns_of(self, table: Table) -> Columns:
        """Find the columns of a table, see `tables.find_columns`."""
        return tables.find_columns(
            table,
            image=self.image_column,
            label=self.label_column,
            group=self.group_by,
            weight=self.weight_column,
        )


def read_manifest(
    table: Table,
    columns: Columns,
    *,
    task_kind: Kind | None = None,
    labels_required: bool = True,
    separator: str | None = None,
) -> tuple[Dataset, tuple[str, ...]]:
    """Turn a table into a data set. Paths are relative to the table's folder, or absolute.

    Parameters
    ----------
    table : Table
    columns : Columns
        See `tables.find_columns`.
    task_kind : {"multiclass", "multilabel"} or None
        None: multilabel if cells are lists or contain several labels.
    labels_required : bool
        Whether a row without a label is an error.
    separator : str or None
        Text between the labels of a cell, see `label_cells.split_labels`.

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
    table, columns, flag_notes = with_flag_columns(table, columns)
    _require_columns(table, columns, labels_required)
    table, weight_notes = without_zero_weights(table, columns)
    cells = table.columns[columns.label] if columns.label else [None] * len(table.lines)
    labels: list[Any] = [None] * len(cells)
    if columns.label:
        whole = task_kind == "multiclass" and not any(isinstance(c, list) for c in cells)
        labels = split_labels(
            cells,
            table.where,
            columns.label,
            separator or (WHOLE if whole else None),
            hint=not table.title,
        )
    kind, kind_note = _infer_kind(labels, task_kind, separator)
    if columns.label and kind == "multilabel" and not any(isinstance(c, list) for c in cells):
        # An empty text cell of a multilabel table means "none of the classes", not "unlabelled".
        labels = [[] if label is None else label for label in labels]
    targets = [_parse_target(label, kind) for label in labels]
    if columns.label and labels_required:
        _require_labels(table, targets, cells)
    samples, keys = read_samples(table, columns, targets)
    samples, keys, n_repeated = _merge_repeated(samples, keys, kind)
    names = {name for s in samples for name in labels_of(s.target)}
    roles = [(role, getattr(columns, role)) for role in COLUMN_ROLES]
    notes = [
        f"{table.title or table.place or f'manifest {table.path.name}'}: "
        + ", ".join(f"{role} = column {name!r}" for role, name in roles if name is not None),
        *flag_notes,
        *weight_notes,
        *_unused_note(table, columns),
        *([kind_note] if names else []),
        *([f"{n_repeated} repeated rows of the same image merged"] if n_repeated else []),
        *_subfolder_note(table, samples, keys),
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


def _subfolder_note(table: Table, samples: Sequence[Sample], keys: Sequence[str]) -> list[str]:
    """Name an image that was found in a subfolder by its file name."""
    found = [
        (key, sample.image)
        for sample, key in zip(samples, keys, strict=True)
        if isinstance(sample.image, Path)
        and sample.image.name == key  # of an id, the suffix is missing, too
        and sample.image.parent != table.path.parent
    ]
    if not found or table.title:
        return []
    key, path = found[0]
    shown = path.relative_to(table.path.parent).as_posix()
    return [f"{len(found)} images found by name in subfolders, such as {shown!r} for {key!r}"]


def _unused_note(table: Table, columns: Columns) -> list[str]:
    names = unused_columns(table, columns)
    return [f"columns not used: {format_list(names, 12)}"] if names else []


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
    >>> read_samples(table, tables.find_columns(table), [None])[0]
    [Sample('image 0', group='p7')]
    """
    keys = _read_keys(table, str(columns.image))
    images = _resolve_images(table, table.columns[str(columns.image)], keys)
    splits = _read_splits(table, columns.split)
    groups = table.columns[columns.group] if columns.group else [None] * len(keys)
    groups = [None if is_missing(group) else group for group in groups]
    weights = read_weights(table, columns.weight)
    samples = [
        Sample(
            image=image,
            target=target,
            split=split,
            group=None if group is None else str(group),
            title=None if isinstance(image, Path) else key,
            weight=weight,
        )
        for image, key, target, split, group, weight in zip(
            images, keys, targets, splits, groups, weights, strict=True
        )
    ]
    return samples, keys


def _require_columns(table: Table, columns: Columns, labels_required: bool) -> None:
    """Check that the columns of paths and labels exist, and that there are rows."""
    roles = (
        ("paths", columns.image, tables.IMAGE_COLUMNS, "image-column"),
        ("labels", columns.label, tables.LABEL_COLUMNS, "label-column"),
    )
    for contents, name, common_names, parameter in roles:
        if name is None and (contents == "paths" or labels_required):
            raise LayoutError(
                f"Expected a column of {contents} ({', '.join(common_names[:4])}, ...) in "
                f"{table.where}, got the columns {format_list(table.columns, 12)}. Rename "
                f"the column of {contents} to {common_names[0]!r}, or pass --{parameter} NAME."
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
    by_id = {} if table.title else find_by_id(folder, table.path.name, missing)
    missing = [key for key in missing if key not in by_id]
    if not missing:
        return [by_id.get(key, image) for key, image in zip(keys, images, strict=True)]
    name = missing[0].rsplit("/", 1)[-1]
    subfolder = next((p for p in sorted(folder.glob("*/")) if is_file(p / name)), None)
    hint = f" ({name!r} exists in {subfolder.name + '/'!r})" if subfolder else ""
    start = f"the current folder {str(Path.cwd())!r}" if table.title else repr(str(folder))
    raise DataError(
        f"{len(missing)} of the {len(keys)} images in {table.where} do not exist: "
        f"{format_list(missing)}. Write absolute paths, or paths relative to {start}{hint}."
    )


def _infer_kind(
    labels: Sequence[Any], task_kind: Kind | None, separator: str | None
) -> tuple[Kind, str]:
    if task_kind is not None:
        return task_kind, f"task: {task_kind} as requested"
    if any(isinstance(label, list) for label in labels):
        signs = "'|' or ';'" if separator is None else repr(separator)
        lists = [label for label in labels if isinstance(label, list)]
        n_multiple = sum(len(label) > 1 for label in lists) or len(lists)
        return "multilabel", (
            f"task: multilabel because {n_multiple} of {len(labels)} labels are lists or contain "
            f"{signs}"
        )
    return "multiclass", "task: multiclass because each image has one label"


def _parse_target(cell: Any, kind: Kind) -> Target:
    if kind == "multiclass":
        if isinstance(cell, list):
            return normalize("NFC", str(cell[0]).strip()) if len(cell) == 1 else None
        return None if cell is None else normalize("NFC", str(cell))
    if cell is None:
        return None
    labels = cell if isinstance(cell, list) else [cell]
    names = (normalize("NFC", str(label).strip()) for label in labels)
    return tuple(sorted({name for name in names if name}, key=natural_key))


def _require_labels(table: Table, targets: Sequence[Target], cells: Sequence[Any]) -> None:
    unlabelled = [i for i, target in enumerate(targets) if target is None]
    if unlabelled:
        words = {cells[i] for i in unlabelled if isinstance(cells[i], str) and is_missing(cells[i])}
        got = "none or several"
        if words:
            got += f" ({format_list(sorted(words))} means that a label is missing)"
        raise _invalid_rows_error(table, unlabelled, "one label", got)


def _read_splits(table: Table, column: str | None) -> list[SplitName | None]:
    if column is None:
        return [None] * len(table.lines)
    cells = [None if is_missing(cell) else str(cell) for cell in table.columns[column]]
    splits = [None if cell is None else split_name(cell) for cell in cells]
    unknown = Counter(c for c, s in zip(cells, splits, strict=True) if c is not None and s is None)
    if unknown:
        first = next(iter(unknown))
        similar = get_close_matches(first.lower(), tables.SPLIT_NAMES, n=1, cutoff=0.5)
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
        if (previous.group, previous.weight) != (sample.group, sample.weight) or not same_label:
            conflicts.append(key)
        elif kind == "multilabel":
            names = {*labels_of(previous.target), *labels_of(sample.target)}
            merged[position] = replace(previous, target=tuple(sorted(names, key=natural_key)))
    if conflicts:
        raise DataError(
            f"Expected one label, group and weight per image, got {len(conflicts)} rows that "
            f"contradict an earlier row of the same image: {format_list(conflicts)}. Correct these "
            "rows. If an image can have several labels, separate them with '|' in one row."
        )
    return merged, merged_keys, len(samples) - len(merged)
