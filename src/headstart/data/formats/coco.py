"""COCO annotations: JSON files of images, classes and boxes."""

from __future__ import annotations

import json
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.data.dataset import Boxes, SplitName
from headstart.data.formats.annotations import (
    Annotated,
    Annotations,
    is_background,
    split_in,
    splits_by_folder,
)
from headstart.data.formats.layouts import Listing, listed
from headstart.errors import DataError, LeakError

__all__ = ["read_coco"]

_GROUPS = ("group", "group_id", "patient_id", "patient", "subject_id", "video_id")
_FAR = 1e9  # pixels; no image is as large
_VOTES = 200  # images by which the folder of a file's images is found


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One JSON file: its images by id, its class names by id, its annotations by image id."""

    name: str
    images: dict[Any, dict[str, Any]]
    names: dict[Any, str]
    boxes: dict[Any, list[dict[str, Any]]]
    stray: int  # annotations of images that the file does not list


def read_coco(listing: Listing, files: Sequence[str]) -> Annotations:
    """Read COCO files.

    Parameters
    ----------
    listing : Listing
        Of the folder that holds the images.
    files : sequence of str
        The JSON files, relative to it. Those that hold no boxes are left out.

    Returns
    -------
    Annotations
        ``iscrowd`` boxes are hard. Images of one ``video_id``, ``patient_id`` or ``group`` are
        a group. The part is what the words of the file's path say, where the files name several.

    Raises
    ------
    DataError
        If a file is damaged, names images outside the folder or none inside it, uses ids that
        it does not declare, or names objects "background".
    LeakError
        If files of two parts name the same image.
    """
    chosen, notes = _chosen(listing, files)
    splits = splits_by_folder(_as_folders([file.name for file in chosen]))
    inside = _Inside(listing.root)
    items: dict[str, Annotated] = {}
    for file in chosen:
        notes += _remarks(file)
        split = splits[f"{file.name}/"]
        for item in _items(file, _base(file, listing), split, inside):
            if item.key in items:
                raise _twice(listing.root, item, items[item.key])
            items[item.key] = item
    if not items.keys() & set(listing.images):
        raise DataError(
            f"Expected images such as {next(iter(items), '')!r} in {str(listing.root)!r}, got "
            f"none of the {len(items)} that are named; do: name the folder that holds both them "
            "and the annotations."
        )
    unnamed = [key for key in listing.images if key not in items]
    if unnamed:
        notes.append(f"{len(unnamed)} images that no file names left out: {listed(unnamed)}")
    names = dict.fromkeys(n for f in chosen for n in f.names.values() if not is_background(n))
    return Annotations(items=tuple(items.values()), names=tuple(names), notes=tuple(notes))


def _as_folders(names: Iterable[str]) -> list[str]:
    return [f"{name}/" for name in names]


def _chosen(listing: Listing, files: Sequence[str]) -> tuple[list[_File], list[str]]:
    """The files that hold boxes: of a COCO download, instances, not captions or key points."""
    instances = [f for f in files if posixpath.basename(f).startswith("instances")]
    read = [_read(listing.root, name) for name in instances or files]
    chosen = [file for file in read if file is not None]
    if not chosen:
        raise DataError(
            f"Expected boxes (`images`, `annotations` and `categories`) in {listed(files)} of "
            f"{str(listing.root)!r}, got none; do: add them, or remove the files."
        )
    names = [file.name for file in chosen]
    notes = [f"COCO annotations: {listed(names)}"]
    rest = [name for name in files if name not in names]
    if rest:
        notes.append(
            f"{len(rest)} JSON files that hold no boxes of objects left out: {listed(rest)}"
        )
    return chosen, notes


def _wrong(path: Path, what: str, got: str) -> DataError:
    return DataError(
        f"Expected {what} in the COCO file {str(path)!r}, got {got}; do: correct the file."
    )


def _read(root: Path, name: str) -> _File | None:
    path = root / name
    try:
        value = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise _wrong(path, "JSON", f"{error.msg} in line {error.lineno}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(path, "JSON", f"{type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise _wrong(path, "an object of lists", f"a {type(value).__name__}")
    if not value.keys() >= {"images", "annotations", "categories"}:
        return None
    images = _by_id(path, value, "images", "file_name")
    names = {key: one["name"] for key, one in _by_id(path, value, "categories", "name").items()}
    boxes: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for one in _entries(path, value, "annotations"):
        boxes[_plain(one.get("image_id"))].append(one)
    stray = sum(len(ones) for key, ones in boxes.items() if key not in images)
    file = _File(name=name, images=images, names=names, boxes=boxes, stray=stray)
    _require_categories(path, file)
    return file


def _plain(value: Any) -> Any:
    """An id that can be looked up; ids that are lists or objects are no ids."""
    return value if isinstance(value, str | int | float) else None


def _entries(path: Path, value: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    entries = value[part]
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise _wrong(path, f"a list of objects as `{part}`", "something else")
    return entries


def _by_id(path: Path, value: Mapping[str, Any], part: str, word: str) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for number, one in enumerate(_entries(path, value, part)):
        identity, text = _plain(one.get("id")), one.get(word)
        if identity is None or not isinstance(text, str) or not text:
            raise _wrong(path, f"`id` and `{word}` in {part}[{number}]", repr(one)[:80])
        if identity in found:
            raise _wrong(path, f"every id of `{part}` once", f"id {identity} twice")
        found[identity] = one
    return found


def _require_categories(path: Path, file: _File) -> None:
    """Every box's class is declared, and is a class of objects."""
    used = Counter(_plain(one.get("category_id")) for ones in file.boxes.values() for one in ones)
    for identity, count in used.items():
        if identity not in file.names:
            first = next(
                file.images.get(key, {}).get("file_name", "no image")
                for key, ones in file.boxes.items()
                for one in ones
                if _plain(one.get("category_id")) == identity
            )
            raise _wrong(
                path,
                f"category ids of the {len(file.names)} classes ({listed(file.names)})",
                f"id {identity} in {count} annotations, the first of {first!r}",
            )
        if is_background(file.names[identity]):
            raise _wrong(
                path,
                "classes of objects",
                f"{count} annotations of id {identity}, {file.names[identity]!r}, which stands for "
                "no object (are the ids one too low?)",
            )


def _remarks(file: _File) -> list[str]:
    notes = []
    if file.stray:
        notes.append(
            f"{file.stray} annotations of images that {file.name!r} does not list left out"
        )
    empty = [f"{name} (id {key})" for key, name in file.names.items() if is_background(name)]
    if empty:
        notes.append(f"{listed(empty)} stands for no object and is no class")
    return notes


def _base(file: _File, listing: Listing) -> str:
    """The folder that most of the file's images lie in as they are named.

    Where folders hold images of the same names, the one of the same part, then the nearest.
    """
    wanted = [_tidy(one["file_name"]) for one in file.images.values()][:_VOTES]
    ends: dict[str, list[str]] = defaultdict(list)
    for key in listing.images:
        ends[posixpath.basename(key)].append(key)
    votes: Counter[str] = Counter()
    for name in wanted:
        for key in ends[posixpath.basename(name)]:
            if f"/{key}".endswith(f"/{name}"):
                votes[key[: len(key) - len(name)]] += 1
    home, split = posixpath.dirname(file.name), split_in(file.name)

    def rank(base: str) -> tuple[int, bool, int, str]:
        shared = len(posixpath.commonprefix([f"{home}/", base]))
        return -votes[base], split_in(base) != split, -shared, base

    return min(votes, key=rank, default="")


def _tidy(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


class _Inside:
    """Whether a file is below a folder once links are followed; asked once for each folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real = os.path.realpath(root)
        self.known: dict[str, bool] = {}

    def __call__(self, key: str) -> bool:
        if key.startswith(("/", "../")) or key[1:3] == ":/" or "\0" in key:
            return False
        folder = posixpath.dirname(key)
        if folder not in self.known:
            self.known[folder] = self._holds(self.root / folder)
        path = self.root / key
        is_link = os.path.islink(path)  # noqa: PTH114 - false, not an error, for impossible names
        return self.known[folder] and (not is_link or self._holds(path))

    def _holds(self, path: Path) -> bool:
        return f"{os.path.realpath(path)}{os.sep}".startswith(f"{self.real.rstrip(os.sep)}{os.sep}")


def _items(file: _File, base: str, split: SplitName | None, inside: _Inside) -> Iterable[Annotated]:
    path = inside.root / file.name
    for identity, image in file.images.items():
        name = _tidy(image["file_name"])
        if name.startswith("../"):  # as written from the folder of the JSON file
            key = posixpath.normpath(posixpath.join(posixpath.dirname(file.name), name))
        else:
            key = name if name.startswith("/") else f"{base}{name}"
        if not inside(key):
            raise _wrong(
                path,
                f"images inside {str(inside.root)!r}",
                f"{image['file_name']!r}, which leads out of it",
            )
        group = next((image[word] for word in _GROUPS if image.get(word) is not None), None)
        yield Annotated(
            key=key,
            boxes=_boxes(path, image, file.boxes.get(identity, []), file.names),
            split=split,
            group=None if group is None else str(group),
        )


def _boxes(
    path: Path,
    image: Mapping[str, Any],
    ones: Iterable[Mapping[str, Any]],
    names: Mapping[Any, str],
) -> Boxes:
    corners, labels, hard = [], [], []
    for one in ones:
        box = one.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise _wrong(
                path,
                "a `bbox` of x, y, width and height for every annotation",
                f"{box!r} in annotation {one.get('id')} of {image['file_name']!r}",
            )
        x, y, width, height = (float(value) for value in box)
        corners.append((x, y, x + width, y + height))
        labels.append(names[one["category_id"]])
        hard.append(bool(one.get("iscrowd")))
    size = (image.get("width"), image.get("height"))
    stated = all(isinstance(side, int) and side > 0 for side in size)
    return Boxes(
        corners=tuple(corners),
        labels=tuple(labels),
        hard=tuple(hard) if any(hard) else (),
        size=(int(size[0] or 0), int(size[1] or 0)) if stated else None,
    )


def _is_number(value: Any) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) < _FAR  # not so for NaN either


def _twice(root: Path, item: Annotated, before: Annotated) -> DataError:
    kind = DataError if item.split == before.split else LeakError
    parts = "" if item.split == before.split else f" ({before.split} and {item.split})"
    return kind(
        f"Expected every image once in the COCO files of {str(root)!r}, got {item.key!r} "
        f"twice{parts}; do: remove one of its entries."
    )
