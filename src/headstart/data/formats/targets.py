"""Labels of Python objects: class names, several labels, boxes and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED, Boxes, Dataset, Kind, Mask, Palette, brief, labels_of
from headstart.data.formats.label_cells import indicators
from headstart.data.formats.layouts import natural_key
from headstart.data.formats.manifests import read_samples
from headstart.data.formats.tables import Columns, Table
from headstart.errors import DataError, UsageError

__all__ = ["is_dense_label", "mask_targets", "plain_labels", "read_dense", "to_boxes"]


def is_dense_label(label: object) -> bool:
    """Whether a label is boxes or a mask.

    >>> is_dense_label({"boxes": [], "labels": []}), is_dense_label("cat")
    (True, False)
    """
    if isinstance(label, Boxes | Mask):
        return True
    is_array = isinstance(label, np.ndarray) and label.ndim == 2
    return isinstance(label, Mapping) or is_array or _is_pil(label)


def plain_labels(cells: Any, where: str, classes: Sequence[str] | None = None) -> list[Any]:
    """Convert labels to class names, lists of class names, or None where there is none.

    Parameters
    ----------
    cells : sequence or array
        Names, numbers, or lists of these; 0 and 1 for every class, shape (n, n_classes).
        Dictionaries of boxes and labels become `Boxes`, arrays (height, width) become `Mask`.
    where : str
        Words for the object in messages.
    classes : sequence of str, optional
        Names of the numbers. The number -1 then means that there is no label.

    Raises
    ------
    DataError
        If a number has no name, or labels are ambiguous.

    Examples
    --------
    >>> plain_labels([0, 1, None], "the list", ["cat", "dog"])
    ['cat', 'dog', None]
    >>> plain_labels(np.array([[1, 1], [0, 1]]), "the arrays")
    [['0', '1'], ['1']]
    """
    is_table = isinstance(cells, np.ndarray) and cells.ndim == 2
    labels = [
        _plain(cell) for cell in (cells.ravel() if is_table and cells.shape[1] == 1 else cells)
    ]
    if any(map(is_dense_label, labels)):
        return _dense_targets(labels, where, classes)
    if any(isinstance(label, list) and any(map(is_dense_label, label)) for label in labels):
        raise DataError(
            f"The labels in {where} are lists of annotations, such as {brief(labels[0])}. Pass "
            '{"boxes": (n, 4), "labels": n names} for each image, or the folder with the files.'
        )
    table = indicators(labels, where, is_table=is_table)
    if table is None:
        return [_named(label, where, classes) for label in labels]
    columns = [_name_of(column, where, classes) for column in range(table.shape[1])]
    rows = [[columns[i] for i in np.flatnonzero(row)] for row in table]
    # Exactly one 1 in every row: the one-hot form of one class for each image.
    return [row[0] for row in rows] if all(len(row) == 1 for row in rows) else rows


def _plain(cell: Any) -> Any:
    """Return arrays, tensors and NumPy numbers as plain values; boxes and masks as they are."""
    if hasattr(cell, "detach"):
        cell = cell.detach().cpu().numpy()
    if isinstance(cell, np.ndarray) and cell.ndim == 2:
        return cell
    if isinstance(cell, np.ndarray | np.generic):
        cell = cell.tolist()
    if isinstance(cell, set | frozenset | tuple | list):
        return [_plain(label) for label in cell]
    if type(cell).__name__ in {"NAType", "NaTType"} or (isinstance(cell, float) and cell != cell):
        return None
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell


def _named(label: Any, where: str, classes: Sequence[str] | None) -> Any:
    if isinstance(label, list):
        return [_name_of(item, where, classes) for item in label if item is not None]
    return None if label is None else _name_of(label, where, classes)


def _name_of(label: Any, where: str, classes: Sequence[str] | None) -> str | None:
    """Return the name of a class; None for the number -1 of classes with names."""
    if classes is None or isinstance(label, str | bool) or not isinstance(label, int):
        return str(label).strip() or None
    if label == -1:
        return None
    if not 0 <= label < len(classes):
        raise DataError(
            f"Expected labels from 0 to {len(classes) - 1} in {where}, which has the names of "
            f"{len(classes)} classes, got {label}. Correct the label, or add the name of its class."
        )
    return str(classes[label])


def read_dense(
    table: Table, columns: Columns, task_kind: Kind | None
) -> tuple[Dataset, tuple[str, ...]]:
    """Turn a table with boxes or masks as labels into a data set.

    Parameters
    ----------
    table : Table
    columns : Columns
    task_kind : {"detection", "segmentation"} or None

    Returns
    -------
    Dataset
        In the order of the table.
    tuple of str
        Name of each example.

    Raises
    ------
    UsageError
        If a label has another form, or the task does not fit the labels.

    Examples
    --------
    >>> from pathlib import Path
    >>> image = np.zeros((8, 8, 3), dtype=np.uint8)
    >>> cells = {"image": [image], "label": [{"boxes": [[0, 0, 4, 4]], "labels": ["cell"]}]}
    >>> cells["label"] = plain_labels(cells["label"], "the list")
    >>> table = Table(path=Path("."), columns=cells, lines=[0], title="the list", names=["image 0"])
    >>> read_dense(table, Columns(image="image", label="label"), None)[0].counts()
    {'cell': 1}
    """
    targets = table.columns[str(columns.label)]
    kind: Kind = "detection" if any(isinstance(t, Boxes) for t in targets) else "segmentation"
    nouns = {"detection": "boxes", "segmentation": "masks"}
    expected = Boxes if kind == "detection" else Mask
    if task_kind not in {None, kind}:
        raise UsageError(
            f"The labels in {table.where} are {nouns[kind]}, which are for {kind}, not for "
            f"{task_kind}. Pass --task {kind}."
        )
    for target, name in zip(targets, table.names, strict=True):
        if not isinstance(target, expected):
            raise DataError(
                f"Expected {nouns[kind]} for every image in {table.where}, got {target!r} for "
                f"{name}. Add them, or remove the image."
            )
    samples, keys = read_samples(table, columns, targets)
    present = {name for target in targets for name in labels_of(target)}
    note = f"{table.title or table.where}: task {kind} because the labels are {nouns[kind]}"
    data = Dataset(
        samples=tuple(samples),
        classes=tuple(sorted(present, key=natural_key)),
        kind=kind,
        notes=(note,),
    )
    return data, tuple(keys)


def _dense_targets(labels: Sequence[Any], where: str, classes: Sequence[str] | None) -> list[Any]:
    """Convert dictionaries to `Boxes`, and arrays to `Mask`; other values stay as they are."""
    converted = [
        _rename_boxes(to_boxes(label, f"the label {row} in {where}"), label, classes)
        if isinstance(label, Mapping)
        else label
        for row, label in enumerate(labels)
    ]
    rows = [
        i for i, label in enumerate(converted) if isinstance(label, np.ndarray) or _is_pil(label)
    ]
    if rows:
        masks, _ = mask_targets([np.asarray(converted[i]) for i in rows], where, classes)
        for row, mask in zip(rows, masks, strict=True):
            converted[row] = mask
    return converted


def _is_pil(label: object) -> bool:
    return hasattr(label, "getbands")


def _rename_boxes(boxes: Boxes, entry: Mapping[str, Any], classes: Sequence[str] | None) -> Boxes:
    """Name the numbers of a dictionary's labels."""
    names = plain_labels(np.asarray(entry["labels"]).tolist(), "the boxes", classes)
    return replace(boxes, labels=tuple(map(str, names)))


def to_boxes(entry: Any, where: str) -> Boxes:
    """Convert ``{"boxes": (n, 4), "labels": n names}`` to boxes, or return boxes as they are.

    Parameters
    ----------
    entry : Boxes or mapping
        Corners are left, top, right, bottom, in pixels of the upright image.
    where : str
        Words for the entry in messages.

    Raises
    ------
    UsageError
        If the entry has another form.

    Examples
    --------
    >>> to_boxes({"boxes": [[0, 0, 4, 2]], "labels": ["cell"]}, "the entry 0").corners
    ((0.0, 0.0, 4.0, 2.0),)
    """
    if isinstance(entry, Boxes):
        return entry
    try:
        corners, labels = np.asarray(entry["boxes"], dtype=np.float64), list(entry["labels"])
        corners = corners.reshape(-1, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f'Expected Boxes or {{"boxes": (n, 4), "labels": n names}} for {where}, got '
            f"{type(entry).__name__} ({error!r}). Convert the entry."
        ) from error
    if not np.isfinite(corners).all() or len(corners) != len(labels):
        raise UsageError(
            f"Expected finite boxes and one label per box for {where}, got {len(corners)} "
            f"boxes and {len(labels)} labels. Correct the entry."
        )
    rows = tuple((left, top, right, bottom) for left, top, right, bottom in corners.tolist())
    return Boxes(corners=rows, labels=tuple(map(str, labels)))


def mask_targets(
    entries: Sequence[Any], where: str, classes: Sequence[str] | None = None
) -> tuple[list[Mask], tuple[str, ...]]:
    """Convert arrays of class numbers to masks with one palette.

    Parameters
    ----------
    entries : sequence of array of int, shape (height, width)
        A class for every pixel of the upright image; 255 is ignored.
    where : str
        Words for the entries in messages.
    classes : sequence of str, optional
        Names of the numbers; by default the numbers as text.

    Returns
    -------
    list of Mask
    tuple of str
        All classes.

    Raises
    ------
    UsageError
        If an entry has another type or shape.
    DataError
        If a number has no name.

    Examples
    --------
    >>> masks, names = mask_targets([np.array([[0, 7], [255, 7]])], "`y`")
    >>> masks[0].present, names
    (('0', '7'), ('0', '7'))
    """
    masks = [_to_mask(entry, where) for entry in entries]
    contents = [[int(v) for v in np.unique(mask) if v != IGNORED] for mask in masks]
    values = sorted({value for content in contents for value in content})
    names = {value: str(_name_of(value, where, classes)) for value in values}
    palette = Palette(codes=tuple(names.items()))
    targets = [
        Mask(source=mask, palette=palette, present=tuple(names[value] for value in content))
        for mask, content in zip(masks, contents, strict=True)
    ]
    return targets, palette.names


def _to_mask(entry: Any, where: str) -> NDArray[np.uint8]:
    mask = np.asarray(entry)
    is_integer_map = mask.ndim == 2 and mask.dtype.kind in "biu" and mask.size
    if not is_integer_map or mask.min() < 0 or mask.max() > IGNORED:
        raise UsageError(
            "Expected arrays of whole numbers from 0 to 255 of shape (height, width) in "
            f"{where}, got {mask.dtype} of shape {mask.shape}. Convert the entry."
        )
    return mask.astype(np.uint8)
