"""Reader of Python objects: data frames, pairs, arrays, torch and Hugging Face datasets.

Every object becomes a table of columns (image, label, split, group) and is then read as a manifest.
pandas, torch and datasets are recognised by their attributes and never imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.dataset import DENSE, SPLITS, Dataset, Kind
from headstart.data.formats import tables
from headstart.data.formats.layouts import format_list
from headstart.data.formats.manifests import read_manifest
from headstart.data.formats.pixels import image_bytes, require_memory, split_stack, to_image
from headstart.data.formats.tables import Columns, Table, split_name
from headstart.data.formats.targets import is_dense_label, plain_labels, read_dense
from headstart.data.formats.weight_cells import refuse_weights
from headstart.errors import DataError, UsageError

__all__ = ["is_collection", "object_name", "read_object"]

PAIRS = ("image", "label")
COLLECTIONS = ("images", "labels")
MEASURED = 32
"""Images that are read before the memory of all of them is estimated."""


def read_object(
    source: object,
    *,
    task_kind: Kind | None = None,
    image: str | None = None,
    label: str | None = None,
    group: str | None = None,
    weight: str | None = None,
    separator: str | None = None,
    labels_required: bool = True,
) -> tuple[Dataset, tuple[str, ...], bool]:
    """Read a Python object with images and labels.

    Parameters
    ----------
    source : object
        A data frame, a dictionary or a Hugging Face dataset (columns by the names of
        `tables.find_columns`); a list of (image, label) pairs; a tuple ``(images, labels)``; a
        dataset of pairs that has a length, as torch's; or a dictionary of these with the keys
        train, val and test. An image is a path, the bytes of a file, a PIL image, or an array.
    task_kind : {"multiclass", "multilabel", "detection", "segmentation"} or None
    image, label, group, weight : str or None
        Columns, if their names are not among the usual ones.
    separator : str or None
        Text between the labels of an image, see `label_cells.split_labels`.
    labels_required : bool

    Returns
    -------
    Dataset
        In the order of the object. An image without a path is named after its position, from 0:
        ``image 0``, ``row 0`` of a data frame, ``train/image 0`` of a split.
    tuple of str
        Name of each example.
    bool
        Whether a column names the groups.

    Raises
    ------
    DataError
        If an image, a label or a split is missing or invalid.
    UsageError
        If the object has another type, or its images have another form.

    Examples
    --------
    >>> images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    >>> data, names, _ = read_object((images, ["cat", "dog", "cat", "dog"]))
    >>> data.counts(), names[0]
    ({'cat': 2, 'dog': 2}, 'image 0')
    """
    table = _to_table(source, image, label)
    columns = tables.find_columns(table, image=image, label=label, group=group, weight=weight)
    labels = table.columns[columns.label] if columns.label else []
    is_dense = any(map(is_dense_label, labels))
    if is_dense:
        refuse_weights(table, columns)
        data, keys = read_dense(table, columns, task_kind)
    elif task_kind in DENSE:
        target = "boxes" if task_kind == "detection" else "masks"
        example = '{"boxes": ..., "labels": ...}' if task_kind == "detection" else "arrays (H, W)"
        raise UsageError(
            f"Expected {target} for the task {task_kind} in {table.where}, got labels such as "
            f"{labels[0] if labels else None!r}. Pass {example} as labels, or another --task."
        )
    else:
        data, keys = read_manifest(
            table,
            columns,
            task_kind=task_kind,
            labels_required=labels_required,
            separator=separator,
        )
    if any(not isinstance(sample.image, Path) for sample in data.samples):
        first = next(s.name for s in data.samples if not isinstance(s.image, Path))
        note = f"images without a path are named by their position, from 0, such as {first!r}"
        data = replace(data, notes=(*data.notes, note))
    return data, keys, columns.group is not None


def object_name(source: object) -> str:
    """Return a short name of a Python object, for the folder of a run.

    >>> object_name([("1.jpg", "cat")]), object_name(range(3))
    ('images', 'range')
    """
    if type(source) in {list, tuple, dict}:
        return "images"
    info = getattr(_first_part(source), "info", None)
    return str(getattr(info, "dataset_name", None) or type(source).__name__)


def is_collection(source: object) -> bool:
    """Whether an object is a table or a dataset, not an image or a plain list of images.

    >>> is_collection({"images": [], "labels": []}), is_collection(["1.jpg"]), is_collection("a")
    (True, False, False)
    """
    if isinstance(source, Mapping) or _is_frame(source) or _is_hugging_face(source):
        return True
    if isinstance(source, str | bytes | bytearray | memoryview | np.ndarray | list | tuple):
        return False
    return not isinstance(source, Dataset) and _is_map_style(source)


def _first_part(source: object) -> object:
    return next(iter(source.values()), source) if isinstance(source, Mapping) else source


def _is_frame(source: object) -> bool:
    return hasattr(source, "iloc") and hasattr(source, "columns")


def _is_hugging_face(source: object) -> bool:
    return hasattr(source, "features") and hasattr(source, "cast_column")


def _is_map_style(source: object) -> bool:
    is_tensor = hasattr(source, "detach")
    return hasattr(source, "__len__") and hasattr(source, "__getitem__") and not is_tensor


def _to_table(source: Any, image: str | None, label: str | None) -> Table:
    """Convert an object to a table of images and plain labels."""
    if isinstance(source, Mapping):
        if any(split_name(str(key)) for key in source):
            return _join_splits(source, image, label)
        return _column_table(dict(source), "the dictionary", "image", image, label)
    if _is_frame(source):
        columns = {str(name): source[name].tolist() for name in source.columns}
        return _column_table(columns, "the DataFrame", "row", image, label)
    if _is_hugging_face(source):
        return _hugging_face_table(source, image, label)
    if isinstance(source, tuple) and len(source) == 2 and not isinstance(source[0], tuple):
        columns = dict(zip(COLLECTIONS, source, strict=True))
        return _column_table(columns, "the arrays", "image", image, label)
    if isinstance(source, list | tuple):
        return _pairs_table(source, "the list", image, label)
    if _is_map_style(source) and not isinstance(source, np.ndarray | bytes | str):
        return _dataset_table(source, image, label)
    raise _unsupported_error(source)


def _unsupported_error(source: object) -> UsageError:
    """Error for an object that is no source of images with labels, with advice for its type."""
    name = type(source).__name__
    if hasattr(source, "dataset") and hasattr(source, "batch_size"):
        advice = "Pass its dataset (loader.dataset) instead"
    elif isinstance(source, np.ndarray) or hasattr(source, "detach"):
        advice = "Pass the labels, too: (images, labels), two arrays of one length"
    elif isinstance(source, Iterable):
        advice = "Pass a list of (image, label) pairs, or a dataset that has a length"
    else:
        advice = "Pass a path"
    return UsageError(
        "Expected a folder, a table, a DataFrame, a list of (image, label) pairs, (images, "
        f"labels) as arrays, or a dataset of torch or Hugging Face, got {name}. {advice}."
    )


def _join_splits(parts: Mapping[Any, Any], image: str | None, label: str | None) -> Table:
    """Read a dictionary of objects by split, such as a DatasetDict, as one table."""
    unknown = [key for key in parts if split_name(str(key)) is None]
    if unknown:
        raise DataError(
            f"Expected the splits {', '.join(SPLITS)}, got {format_list(map(str, parts))}. Rename "
            f"or remove {format_list(map(str, unknown))}."
        )
    joined: dict[str, list[Any]] = {role: [] for role in (*PAIRS, "split", "group")}
    names: list[str] = []
    read = {key: _to_table(part, image, label) for key, part in parts.items()}
    roles = [tables.find_columns(table, image=image, label=label) for table in read.values()]
    used = {name for found in roles for name in (found.image, found.label, found.group)}
    shared = set.intersection(*(set(table.columns) for table in read.values()))
    rest = sorted(shared - used - joined.keys())
    joined |= {name: [] for name in rest}
    for (key, table), columns in zip(read.items(), roles, strict=True):
        if columns.image is None:
            raise _no_column_error(f"{table.where} of the split {key!r}", table.columns, "images")
        count = len(table.lines)
        joined["image"] += table.columns[columns.image]
        joined["label"] += table.columns[columns.label] if columns.label else [None] * count
        joined["group"] += table.columns[columns.group] if columns.group else [None] * count
        joined["split"] += [str(key)] * count
        for name in rest:
            joined[name] += table.columns[name]
        names += [f"{key}/{name}" for name in table.names]
    if not any(group is not None for group in joined["group"]):
        del joined["group"]
    return _make_table(joined, f"the {type(parts).__name__} of splits", names)


def _make_table(columns: dict[str, list[Any]], title: str, names: list[str]) -> Table:
    if not names:
        raise DataError(f"Expected images in {title}, got 0. Add images with labels.")
    return Table(
        path=Path(title), columns=columns, lines=[*range(len(names))], title=title, names=names
    )


def _no_column_error(where: str, columns: Iterable[str], contents: str) -> DataError:
    usual = "image or path" if contents == "images" else "label or class"
    return DataError(
        f"Expected a column of {contents} ({usual}, ...) in {where}, got the columns "
        f"{format_list(columns, 12)}. Rename the column, or pass its name to "
        f"headstart.read_dataset as {'image' if contents == 'images' else 'label'}_column."
    )


def _find_roles(names: Iterable[Any], image: str | None, label: str | None) -> Columns:
    header = Table(path=Path(), columns={str(name): [] for name in names}, lines=[])
    return tables.find_columns(header, image=image, label=label)


def _column_table(
    columns: Mapping[str, Any],
    title: str,
    noun: str,
    image: str | None,
    label: str | None,
    classes: Sequence[str] | None = None,
) -> Table:
    """Make a table from columns of one length; `noun` names the rows."""
    roles = _find_roles(columns, image, label)
    if roles.image is None:
        raise _no_column_error(title, map(str, columns), "images")
    images = split_stack(columns[roles.image], title)
    names = [f"{noun} {row}" for row in range(len(images))]
    converted: dict[str, list[Any]] = {
        roles.image: [to_image(cell, name, title) for cell, name in zip(images, names, strict=True)]
    }
    if classes is None and roles.label != "classes":
        classes = columns.get("classes")
    if roles.label is not None:
        converted[roles.label] = plain_labels(columns[roles.label], title, classes)
    # A column of groups may have any name, so all columns of plain values are kept.
    rest = [name for name in columns if name not in {roles.image, roles.label, "classes"}]
    for name in rest:
        if _is_plain_column(columns[name]):
            converted[str(name)] = [_plain_text(cell) for cell in columns[name]]
    for name, cells in converted.items():
        if len(cells) != len(images):
            raise DataError(
                f"Expected one value in {name!r} for each of the {len(images)} images in {title}, "
                f"got {len(cells)}. Pass columns of one length."
            )
    return _make_table(converted, title, names)


def _is_plain_column(cells: Any) -> bool:
    """Whether every cell is a text, a number or empty."""
    is_column = isinstance(cells, Iterable) and not isinstance(cells, str | bytes)
    return is_column and all(
        isinstance(cell, str) or not hasattr(cell, "__len__") for cell in cells
    )


def _plain_text(cell: Any) -> str | None:
    """Text of a cell; None for an empty one (None, NaN, NA)."""
    plain = cell.item() if hasattr(cell, "item") else cell
    if plain is None or type(plain).__name__ in {"NAType", "NaTType"}:
        return None
    if isinstance(plain, float):
        return None if plain != plain else str(int(plain) if plain.is_integer() else plain)
    return str(plain).strip() or None


def _pairs_table(
    items: Sequence[Any],
    title: str,
    image: str | None,
    label: str | None,
    classes: Sequence[str] | None = None,
) -> Table:
    """Make a table from (image, label) pairs, or from dictionaries with the same keys."""
    first = next(iter(items), None)
    if isinstance(first, Mapping):
        columns = {str(key): [item[key] for item in items] for key in first}
        return _column_table(columns, title, "image", image, label, classes)
    for position, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UsageError(
                f"Expected pairs (image, label) in {title}, got {_describe(item)} at position "
                f"{position}. Pass pairs such as ('1.jpg', 'cat')."
            )
    columns = {role: [item[i] for item in items] for i, role in enumerate(PAIRS)}
    return _column_table(columns, title, "image", image, label, classes)


def _describe(item: object) -> str:
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {len(item)} values"
    return f"a {type(item).__name__}"


def _dataset_table(source: Any, image: str | None, label: str | None) -> Table:
    """Read a dataset of (image, label) pairs with a length, such as a torch dataset."""
    title = f"the {type(source).__name__}"
    base, rows = _unwrap(source)
    classes = getattr(base, "classes", None)
    files = getattr(base, "samples", None)
    transforms = [getattr(base, name, None) for name in ("transform", "target_transform")]
    # An ImageFolder without transforms: read the files themselves.
    if isinstance(files, list) and transforms == [None, None] and all(map(_is_file_pair, files)):
        items: list[Any] = [files[row] for row in rows]
    else:
        items = [*_read_items((source[row] for row in range(len(source))), len(source), title)]
    is_names = isinstance(classes, Sequence) and all(isinstance(name, str) for name in classes)
    return _pairs_table(items, title, image, label, classes if is_names else None)


def _is_file_pair(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


def _unwrap(source: Any) -> tuple[Any, list[int]]:
    """Return the dataset below torch's ``Subset`` objects, and the rows of it that are used."""
    rows = list(range(len(source)))
    while hasattr(source, "dataset") and hasattr(source, "indices"):
        rows = [int(source.indices[row]) for row in rows]
        source = source.dataset
    return source, rows


def _read_items(items: Iterable[Any], total: int, title: str) -> Iterator[Any]:
    """Yield the items; refuse a dataset whose images would not fit into memory."""
    used = 0
    for position, item in enumerate(items):
        values = item.values() if isinstance(item, Mapping) else item
        used += sum(map(image_bytes, values if isinstance(values, Iterable) else ()))
        if position + 1 == MEASURED:
            require_memory(used // MEASURED * total, total, title)
        yield item


def _hugging_face_table(source: Any, image: str | None, label: str | None) -> Table:
    """Read a Hugging Face dataset: the files of its images are not decoded here."""
    if not hasattr(source, "__len__"):
        raise UsageError(
            f"Expected a dataset with a length, got the {type(source).__name__}, which is read as "
            "a stream. Load it with streaming=False."
        )
    title, features = "the Hugging Face dataset", source.features
    image = image or _only_feature(features, "Image")
    label = label or _label_feature(features)
    plain = source.with_format(None)
    if type(features.get(image)).__name__ == "Image":
        plain = plain.cast_column(image, type(features[image])(decode=False))
    roles = _find_roles(features, image, label)
    kept = {role for role in (roles.image, roles.label) if role is not None}
    kept |= {name for name, feature in features.items() if type(feature).__name__ == "Value"}
    columns: dict[str, Any] = {
        name: [*_read_column(plain[name], len(source), title)] for name in features if name in kept
    }
    feature = features.get(roles.label)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return _column_table(columns, title, "image", image, label, names)


def _read_column(cells: Iterable[Any], total: int, title: str) -> Iterator[Any]:
    return (item[0] for item in _read_items(((cell,) for cell in cells), total, title))


def _only_feature(features: Mapping[str, Any], kind: str) -> str | None:
    names = [name for name, feature in features.items() if type(feature).__name__ == kind]
    return names[0] if len(names) == 1 else None


def _label_feature(features: Mapping[str, Any]) -> str | None:
    """Return the only column of class labels, or of lists of them; None without one."""

    def is_labels(feature: Any) -> bool:
        return type(feature).__name__ == "ClassLabel"

    names = [
        name
        for name, feature in features.items()
        if is_labels(feature) or is_labels(getattr(feature, "feature", None))
    ]
    if len(names) > 1 and "label" not in names:
        raise DataError(
            f"Expected one column of labels in the Hugging Face dataset, got {format_list(names)}. "
            "Choose one: headstart.read_dataset(dataset, label_column=...), and pass the result."
        )
    return names[0] if len(names) == 1 else None
