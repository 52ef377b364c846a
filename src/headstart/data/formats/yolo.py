"""Reader of YOLO labels: one text file per image, and a list of class names."""

from __future__ import annotations

import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.dataset import SPLITS, Boxes, SplitName
from headstart.data.formats.annotations import (
    AnnotatedImage,
    Annotations,
    half_annotated,
    is_background,
    splits_by_folder,
)
from headstart.data.formats.layouts import Listing, format_list
from headstart.data.formats.tables import split_name
from headstart.data.outlines import Outline
from headstart.errors import DataError
from headstart.files import MOST_TEXT_BYTES, read_bounded, read_text, read_yaml

__all__ = ["read_yolo"]

_CLASS_LISTS = (
    "classes.txt",
    "obj.names",
    "_darknet.labels",
    "predefined_classes.txt",
    "labels.txt",
)
_SLACK = 0.02  # of width or height; key points may lie slightly outside their box
_MAX_FRACTION = 2.0  # of width or height; larger values are pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class _ClassNames:
    """Class names by id, the file that lists them, and the entries of data.yaml."""

    names: dict[int, str]
    source: str
    entries: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _LabelRow:
    """One line of a label file: a class id, and the numbers of a box, an outline or a pose."""

    line: int
    identity: int
    values: tuple[float, ...]

    @property
    def has_points(self) -> bool:
        """Whether the line has more than a box."""
        return len(self.values) > 4


def read_yolo(listing: Listing, *, outlines: bool = False) -> Annotations:
    """Read the labels in a folder and its subfolders.

    The label file of images/1.jpg is labels/1.txt; a text file beside the image is accepted, too.

    Parameters
    ----------
    listing : Listing
    outlines : bool
        Whether outlines are kept, as fractions.

    Returns
    -------
    Annotations
        Corners as fractions of width and height. An outline (polygon) is replaced by its bounding
        box; of a pose only the box is read. An image without a label file, or with an empty one,
        has no objects. Splits come from the names of folders, or else from data.yaml.

    Raises
    ------
    DataError
        If a line is not a label, a class id is out of range, or `nc` is not the number of names.
        The message names file, line and id.
    """
    class_names = _find_class_names(listing)
    texts = {
        name for name in listing.other_files if name.endswith(".txt") and not _is_name_list(name)
    }
    label_files = {key: _find_label_file(key, texts) for key in _find_images(listing, texts)}
    rows = {
        name: _read_label_file(listing.root / name)
        for name in label_files.values()
        if name in texts
    }
    without_image = _label_files_without_image(texts - rows.keys(), label_files)
    rows |= {name: _read_label_file(listing.root / name) for name in without_image.values()}
    label_files |= without_image
    classes = _check_class_ids(listing.root, rows, class_names)
    is_pose = _are_poses(listing.root, rows, class_names)
    splits = _find_splits(listing, label_files, class_names)
    items = tuple(
        AnnotatedImage(
            key=key,
            boxes=_rows_to_boxes(rows.get(name, ()), classes, is_pose),
            outlines=_rows_to_outlines(rows.get(name, ())) if outlines and not is_pose else (),
            split=splits[key],
        )
        for key, name in label_files.items()
    )
    source = (
        f"class names from {class_names.source!r}"
        if class_names
        else "no class names: the ids are used as names"
    )
    notes = [f"YOLO labels: {len(rows)} text files such as {next(iter(rows), '')!r}, {source}"]
    notes += _label_notes(listing, label_files, rows, is_pose, outlines)
    names = class_names.names.values() if class_names else ()
    background = [name for name in names if is_background(name)]
    if background:
        notes.append(f"{format_list(background)} means background and is not a class")
    return Annotations(
        items=items,
        names=tuple(name for _, name in sorted(classes.items())),
        notes=tuple(notes),
        warnings=half_annotated(
            _unlabelled_images(label_files, rows),
            len(label_files),
            "no label file",
            "used as images without objects",
        ),
        relative=True,
    )


def _label_notes(
    listing: Listing,
    label_files: Mapping[str, str],
    rows: Mapping[str, Sequence[_LabelRow]],
    is_pose: bool,
    outlines: bool,
) -> list[str]:
    notes = []
    unlabelled = _unlabelled_images(label_files, rows)
    if unlabelled:
        notes.append(f"{len(unlabelled)} images have no label file: {format_list(unlabelled)}")
    outside = [key for key in listing.images if key not in label_files]
    if outside:
        notes.append(
            f"{len(outside)} images outside the image folders left out: {format_list(outside)}"
        )
    n_long = sum(row.has_points for file_rows in rows.values() for row in file_rows)
    if n_long and is_pose:
        notes.append(f"{n_long} objects have key points, which are not used: only their boxes are")
    elif n_long and not outlines:
        notes.append(f"{n_long} objects are outlines, replaced by their bounding boxes")
    return notes


def _unlabelled_images(label_files: Mapping[str, str], rows: Container[str]) -> list[str]:
    return [key for key, name in label_files.items() if name not in rows]


def _is_name_list(name: str) -> bool:
    """Whether a text file lists names (classes, or images of a split) rather than boxes."""
    base = posixpath.basename(name).lower()
    return (
        base in _CLASS_LISTS
        or base.startswith(("readme", "notes"))
        or ("/" not in name and split_name(base.removesuffix(".txt")) is not None)
    )


def _find_images(listing: Listing, texts: Iterable[str]) -> list[str]:
    """Images in folders called images, or else in folders that have labels."""
    in_image_folders = [key for key in listing.images if "images" in key.lower().split("/")[:-1]]
    if in_image_folders:
        return in_image_folders
    folders = {posixpath.dirname(name) for name in texts}
    folders |= {re.sub(r"(^|/)labels(?=/|$)", "", folder).strip("/") for folder in folders}
    return [key for key in listing.images if posixpath.dirname(key) in folders]


def _find_label_file(key: str, texts: set[str]) -> str:
    """Label file of an image: the first candidate that exists, or else the usual path."""
    stem, folders = posixpath.splitext(key)[0], posixpath.dirname(key).split("/")
    base = posixpath.basename(stem)
    candidates = [f"{stem}.txt", posixpath.join("labels", f"{stem}.txt")]
    candidates.append(posixpath.join(posixpath.dirname(key), "labels", f"{base}.txt"))
    for i in reversed(range(len(folders))):
        if folders[i].lower() == "images":
            mirrored = [*folders[:i], "labels", *folders[i + 1 :], f"{base}.txt"]
            candidates.insert(0, "/".join(mirrored))
            break
    return next((name for name in candidates if name in texts), candidates[0])


def _label_files_without_image(
    texts: Iterable[str], label_files: Mapping[str, str]
) -> dict[str, str]:
    """Label files by the path that their missing image should have.

    The data checks report these images as missing.
    """
    image_folders = {
        posixpath.dirname(name): posixpath.dirname(key) for key, name in label_files.items()
    }
    suffixes = Counter(posixpath.splitext(key)[1] for key in label_files)
    suffix = suffixes.most_common(1)[0][0] if suffixes else ".jpg"
    missing = {}
    for name in sorted(texts):
        folder = image_folders.get(posixpath.dirname(name))
        if folder is not None and "labels" in name.split("/")[:-1]:
            stem = posixpath.splitext(posixpath.basename(name))[0]
            missing[posixpath.join(folder, stem + suffix)] = name
    return missing


def _yolo_error(
    path: Path, expected: str, got: str, advice: str = "Correct or remove the file"
) -> DataError:
    return DataError(f"Expected {expected} in {str(path)!r}, got {got}. {advice}.")


def _read_label_file(path: Path) -> tuple[_LabelRow, ...]:
    try:
        text = read_bounded(path, MOST_TEXT_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _yolo_error(path, "text in UTF-8", str(error)) from error
    lines = enumerate(text.splitlines(), start=1)
    return tuple(_parse_label_row(path, number, line) for number, line in lines if line.strip())


def _parse_label_row(path: Path, number: int, line: str) -> _LabelRow:
    cells = line.split()
    try:
        identity = int(float(cells[0])) if float(cells[0]).is_integer() else -1
        values = [float(cell) for cell in cells[1:]]
    except (ValueError, OverflowError):
        identity, values = -1, []
    # 4 for a box, an even number for an outline, 4 + 2 k or 4 + 3 k for a pose of k points.
    is_count = len(values) >= 4 and (len(values) % 2 == 0 or len(values) % 3 == 1)
    if identity < 0 or not is_count or not all(map(math.isfinite, values)):
        raise _yolo_error(
            path,
            f"a class id and centre x, centre y, width and height in line {number}",
            repr(line[:80]),
            "Correct or remove the line",
        )
    if max(map(abs, values)) > _MAX_FRACTION:
        raise _yolo_error(
            path,
            f"fractions of the image's width and height, 0 to 1, in line {number}",
            repr(line[:80]),
            "Divide pixels by the width and height of the image",
        )
    return _LabelRow(line=number, identity=identity, values=tuple(values))


def _corners(row: _LabelRow, is_pose: bool) -> tuple[float, float, float, float]:
    if row.has_points and not is_pose:
        xs, ys = row.values[::2], row.values[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    x, y, width, height = row.values[:4]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _are_poses(
    root: Path, rows: Mapping[str, Sequence[_LabelRow]], class_names: _ClassNames | None
) -> bool:
    """Whether lines with more than a box are a box and the key points in it, not outlines."""
    long_rows = [row for file_rows in rows.values() for row in file_rows if row.has_points]
    if not long_rows:
        return False
    shape = (class_names.entries if class_names else {}).get("kpt_shape")
    if shape is not None:
        return _require_pose_counts(root, rows, shape)
    counts = {len(row.values) for row in long_rows}
    if len(counts) == 1 and all(_is_pose(row) and not _is_rectangle(row) for row in long_rows):
        return True
    for file, file_rows in rows.items():
        for row in file_rows:
            if len(row.values) % 2:
                raise _yolo_error(
                    root / file,
                    f"a box (4 numbers) or an outline (an even count) in line {row.line}",
                    f"{len(row.values)} numbers",
                    "Add kpt_shape to data.yaml if these are key points, or correct the line",
                )
    return False


def _require_pose_counts(root: Path, rows: Mapping[str, Sequence[_LabelRow]], shape: Any) -> bool:
    """Check that each line has as many numbers as ``kpt_shape`` requires."""
    try:
        count = 4 + math.prod(int(side) for side in shape)
    except (TypeError, ValueError):
        count = -1
    for file, file_rows in rows.items():
        for row in file_rows:
            if row.has_points and len(row.values) != count:
                raise _yolo_error(
                    root / file,
                    f"a box and the key points of kpt_shape {shape} in line {row.line}",
                    f"{len(row.values)} numbers",
                    "Correct the line, or kpt_shape in data.yaml",
                )
    return True


def _is_rectangle(row: _LabelRow) -> bool:
    """Whether eight numbers are the corners of a rectangle: both diagonals have one centre."""
    if len(row.values) != 8:
        return False
    x0, y0, x1, y1, x2, y2, x3, y3 = row.values
    return abs(x0 + x2 - x1 - x3) <= _SLACK and abs(y0 + y2 - y1 - y3) <= _SLACK


def _is_pose(row: _LabelRow) -> bool:
    """Whether the first four numbers are a box in the image that contains the points after them.

    A point at 0, 0 is invisible. Triples end with the visibility 0, 1 or 2.
    """
    left, top, right, bottom = _corners(row, is_pose=True)
    if left < -_SLACK or top < -_SLACK or right > 1 + _SLACK or bottom > 1 + _SLACK:
        return False
    rest = row.values[4:]

    def are_inside(step: int) -> bool:
        if len(rest) % step or (step == 3 and not set(rest[2::3]) <= {0.0, 1.0, 2.0}):
            return False
        points = [point for point in zip(rest[::step], rest[1::step], strict=True) if any(point)]
        return all(
            left - _SLACK <= x <= right + _SLACK and top - _SLACK <= y <= bottom + _SLACK
            for x, y in points
        )

    return are_inside(2) or are_inside(3)


def _rows_to_boxes(rows: Sequence[_LabelRow], classes: Mapping[int, str], is_pose: bool) -> Boxes:
    return Boxes(
        corners=tuple(_corners(row, is_pose) for row in rows),
        labels=tuple(classes[row.identity] for row in rows),
    )


def _rows_to_outlines(rows: Sequence[_LabelRow]) -> tuple[Outline | None, ...]:
    return tuple(
        Outline(polygons=(np.asarray(row.values).reshape(-1, 2),)) if row.has_points else None
        for row in rows
    )


def _check_class_ids(
    root: Path, rows: Mapping[str, Sequence[_LabelRow]], class_names: _ClassNames | None
) -> dict[int, str]:
    """Check that every id has the name of an object class; return the names by id."""
    first_file: dict[int, str] = {}
    for file, file_rows in rows.items():
        for row in file_rows:
            first_file.setdefault(row.identity, file)
    if class_names is None:
        return {identity: str(identity) for identity in sorted(first_file)}
    names, source = class_names.names, class_names.source
    n_classes = len(names)
    unknown_ids = sorted(first_file.keys() - names.keys())
    if unknown_ids == [n_classes] and 0 not in first_file and set(names) == set(range(n_classes)):
        raise _yolo_error(
            root / first_file[n_classes],
            f"class ids 0 to {n_classes - 1} ({source!r} has {n_classes} classes)",
            f"ids 1 to {n_classes} and never 0: they seem to start at 1, with 0 for the background",
            "Subtract 1 from every id",
        )
    if unknown_ids:
        raise _yolo_error(
            root / first_file[unknown_ids[0]],
            f"ids of the {n_classes} classes of {source!r}",
            f"the class id {unknown_ids[0]}",
            f"Correct the id, or add the name of its class to {source!r}",
        )
    for identity in sorted(first_file):
        if is_background(names[identity]):
            raise _yolo_error(
                root / first_file[identity],
                "classes of objects",
                f"the class id {identity}, {names[identity]!r}, which means background",
                "Remove these boxes, or rename the class",
            )
    return {i: name for i, name in names.items() if not is_background(name)}


def _find_class_names(listing: Listing) -> _ClassNames | None:
    """Read class names from a YAML file, or else from a list, the one nearest to the root."""
    candidates = sorted(listing.other_files, key=lambda name: (name.count("/"), name))
    for name in candidates:
        if name.lower().endswith((".yaml", ".yml")):
            class_names = _read_yaml_names(listing.root / name, name)
            if class_names is not None:
                return class_names
    for name in candidates:
        if posixpath.basename(name).lower() in _CLASS_LISTS:
            path = listing.root / name
            text = read_text(path)
            lines = [line.strip() for line in text.splitlines()]
            return _to_class_names(path, dict(enumerate(filter(None, lines))), name, {})
    return None


def _read_yaml_names(path: Path, name: str) -> _ClassNames | None:
    import yaml

    try:
        value = read_yaml(path, as_text=True)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "strerror", None)
        problem = problem or type(error).__name__
        raise _yolo_error(path, "YAML", f"{problem}{line}", "Correct the file") from error
    if not isinstance(value, dict) or "names" not in value:
        return None
    value_of_names = value["names"]
    if isinstance(value_of_names, str):
        got = f"{value_of_names[:80]!r}"
        raise _yolo_error(path, "a list or table of texts as `names`", got, "Correct the file")
    pairs = (
        value_of_names.items() if isinstance(value_of_names, dict) else enumerate(value_of_names)
    )
    try:
        names = {int(key): class_name for key, class_name in pairs}
        n_classes = int(value.get("nc", len(names)))
    except ValueError as error:
        raise _yolo_error(
            path, "whole numbers as ids of `names` and as `nc`", str(error), "Correct the file"
        ) from error
    if not names or not all(isinstance(text, str) and text for text in names.values()):
        raise _yolo_error(
            path,
            "a list or table of texts as `names`",
            repr(value_of_names)[:80],
            "Correct the file",
        )
    if n_classes != len(names):
        raise _yolo_error(
            path,
            "`nc` to be the number of `names`",
            f"nc {n_classes} and {len(names)} names",
            "Correct one of them (the background is not a class)",
        )
    return _to_class_names(path, names, name, value)


def _to_class_names(
    path: Path, names: dict[int, str], source: str, entries: dict[str, Any]
) -> _ClassNames:
    duplicates = [name for name, count in Counter(names.values()).items() if count > 1]
    if duplicates:
        raise _yolo_error(
            path,
            "every class name once",
            f"{format_list(duplicates)} several times",
            "Rename or remove the duplicates",
        )
    return _ClassNames(names=names, source=source, entries=entries)


def _find_splits(
    listing: Listing, label_files: Iterable[str], class_names: _ClassNames | None
) -> Mapping[str, SplitName | None]:
    """Find splits by the names of folders, or else by the entries of data.yaml."""
    keys = list(label_files)
    by_folder = splits_by_folder(keys)
    if any(by_folder.values()) or class_names is None:
        return by_folder
    splits: dict[str, SplitName | None] = dict.fromkeys(keys)
    values = [(split, class_names.entries.get(split) or []) for split in SPLITS]
    entries = [
        (split, str(entry))
        for split, value in values
        for entry in ([value] if isinstance(value, str) else value)
    ]
    # The deepest folder first: if `val` is a subfolder of `train`, its images belong to val.
    for split, entry in sorted(entries, key=lambda pair: -pair[1].count("/")):
        is_member = _membership_test(listing, entry)
        for key in keys:
            if splits[key] is None and is_member(key):
                splits[key] = split
    return splits if len(set(splits.values()) - {None}) > 1 else dict.fromkeys(keys)


def _membership_test(listing: Listing, entry: str) -> Callable[[str], bool]:
    """Return a test for the images of an entry of data.yaml, which is a folder or a list."""
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in {"", ".", ".."}]
    # The entry may be absolute on another machine: compare from its end.
    endings = ["/".join(parts[i:]) for i in range(len(parts))]
    lists = [end for end in endings if end in listing.other_files and end.endswith(".txt")]
    if lists:
        text = read_text(listing.root / lists[0])
        lines = {posixpath.normpath(line.strip()) for line in text.splitlines() if line.strip()}
        return lambda key: key in lines or any(line.endswith(f"/{key}") for line in lines)
    folder = next((end for end in endings if end in listing.folders), None)
    return lambda key: folder is not None and key.startswith(f"{folder}/")
