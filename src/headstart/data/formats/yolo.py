"""YOLO labels: one text file for every image, and a list of class names."""

from __future__ import annotations

import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.data.dataset import SPLITS, Boxes, SplitName
from headstart.data.formats.annotations import (
    Annotated,
    Annotations,
    is_background,
    splits_by_folder,
)
from headstart.data.formats.layouts import Listing, listed
from headstart.data.formats.tables import split_name
from headstart.errors import DataError

__all__ = ["read_yolo"]

_LISTS = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt", "labels.txt")
_FAR = 2.0  # shares of a side; beyond, they are pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """Class names by id, and the file that says so."""

    names: dict[int, str]
    source: str
    parts: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One line of a label file."""

    identity: int
    corners: tuple[float, float, float, float]
    outline: bool


def read_yolo(listing: Listing) -> Annotations:
    """Read the labels below a folder.

    An image's labels lie in the folder of its name with ``labels`` for ``images``, or beside it.

    Parameters
    ----------
    listing : Listing

    Returns
    -------
    Annotations
        Corners as shares of width and height; an outline (more than one point) gives the box
        around it. An image without a label file, or with an empty one, has no objects. Parts are
        those that the words of the folders name, else those of data.yaml.

    Raises
    ------
    DataError
        If a line is no label, a class id is out of range, or the names do not fit their number;
        file, line and id are named.
    """
    names = _names(listing)
    texts = {n for n in listing.others if n.endswith(".txt") and not _is_list(n)}
    labels = {key: _label_file(key, texts) for key in _images(listing, texts)}
    rows = {name: _rows(listing.root / name) for name in labels.values() if name in texts}
    stray = _stray(listing, texts - rows.keys(), labels)
    rows |= {name: _rows(listing.root / name) for name in stray.values()}
    labels |= stray
    classes = _classes(listing.root, rows, names)
    splits = _splits(listing, labels, names)
    items = tuple(
        Annotated(key=key, boxes=_boxes(rows.get(name, ()), classes), split=splits[key])
        for key, name in labels.items()
    )
    source = f"names of classes from {names.source!r}" if names else "no names: ids name classes"
    notes = [f"YOLO labels: {len(rows)} text files such as {next(iter(rows), '')!r}, {source}"]
    notes += _remarks(listing, labels, rows)
    empty = [name for name in (names.names.values() if names else ()) if is_background(name)]
    if empty:
        notes.append(f"{listed(empty)} stands for no object and is no class")
    return Annotations(
        items=items,
        names=tuple(name for _, name in sorted(classes.items())),
        notes=tuple(notes),
        relative=True,
    )


def _remarks(
    listing: Listing, labels: Mapping[str, str], rows: Mapping[str, Sequence[_Row]]
) -> list[str]:
    notes = []
    bare = [key for key, name in labels.items() if name not in rows]
    if bare:
        notes.append(f"{len(bare)} images have no label file: {listed(bare)}")
    rest = [key for key in listing.images if key not in labels]
    if rest:
        notes.append(f"{len(rest)} images outside the folders of images left out: {listed(rest)}")
    outlines = sum(row.outline for ones in rows.values() for row in ones)
    if outlines:
        notes.append(f"{outlines} objects are outlines, of which the box around them is used")
    return notes


def _is_list(name: str) -> bool:
    """Whether a text file lists names rather than boxes: classes, or images of a part."""
    base = posixpath.basename(name).lower()
    return (
        base in _LISTS
        or base.startswith(("readme", "notes"))
        or ("/" not in name and split_name(base.removesuffix(".txt")) is not None)
    )


def _images(listing: Listing, texts: Iterable[str]) -> list[str]:
    """Images in folders called images; without any, those in folders with labels."""
    inside = [key for key in listing.images if "images" in key.lower().split("/")[:-1]]
    if inside:
        return inside
    homes = {posixpath.dirname(name) for name in texts}
    homes |= {re.sub(r"(^|/)labels(?=/|$)", "", home).strip("/") for home in homes}
    return [key for key in listing.images if posixpath.dirname(key) in homes]


def _label_file(key: str, texts: set[str]) -> str:
    """The label file of an image: the first place where there is one, else the usual place."""
    stem, folders = posixpath.splitext(key)[0], posixpath.dirname(key).split("/")
    base = posixpath.basename(stem)
    places = [f"{stem}.txt", posixpath.join("labels", f"{stem}.txt")]
    places.append(posixpath.join(posixpath.dirname(key), "labels", f"{base}.txt"))
    for i in reversed(range(len(folders))):
        if folders[i].lower() == "images":
            mirrored = [*folders[:i], "labels", *folders[i + 1 :], f"{base}.txt"]
            places.insert(0, "/".join(mirrored))
            break
    return next((place for place in places if place in texts), places[0])


def _stray(listing: Listing, texts: Iterable[str], labels: Mapping[str, str]) -> dict[str, str]:
    """Labels without an image, by the image's path as it would be: the scan says it is gone."""
    homes = {posixpath.dirname(name): posixpath.dirname(key) for key, name in labels.items()}
    endings = Counter(posixpath.splitext(key)[1] for key in labels)
    ending = endings.most_common(1)[0][0] if endings else ".jpg"
    missing = {}
    for name in sorted(texts):
        home = homes.get(posixpath.dirname(name))
        if home is not None and "labels" in name.split("/")[:-1]:
            stem = posixpath.splitext(posixpath.basename(name))[0]
            missing[posixpath.join(home, stem + ending)] = name
    return missing


def _wrong(path: Path, wanted: str, got: str, advice: str = "correct or remove it") -> DataError:
    return DataError(f"Expected {wanted} in {str(path)!r}, got {got}; do: {advice}.")


def _rows(path: Path) -> tuple[_Row, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(path, "lines of labels", str(error)) from error
    lines = enumerate(text.splitlines(), start=1)
    return tuple(_row(path, number, line) for number, line in lines if line.strip())


def _row(path: Path, number: int, line: str) -> _Row:
    cells = line.split()
    try:
        identity = int(float(cells[0])) if float(cells[0]).is_integer() else -1
        values = [float(cell) for cell in cells[1:]]
    except (ValueError, OverflowError):
        identity, values = -1, []
    outline = len(values) >= 6 and len(values) % 2 == 0
    if identity < 0 or not (len(values) == 4 or outline) or not all(map(math.isfinite, values)):
        raise _wrong(
            path,
            f"a class id and centre x, centre y, width and height in line {number}",
            repr(line[:80]),
        )
    if max(map(abs, values)) > _FAR:
        raise _wrong(
            path,
            f"shares of the image's width and height, 0 to 1, in line {number}",
            repr(line[:80]),
            "divide pixels by the image's width and height",
        )
    if outline:
        across, down = values[::2], values[1::2]
        corners = (min(across), min(down), max(across), max(down))
    else:
        x, y, width, height = values
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return _Row(identity=identity, corners=corners, outline=outline)


def _boxes(rows: Iterable[_Row], classes: Mapping[int, str]) -> Boxes:
    ones = tuple(rows)
    return Boxes(
        corners=tuple(row.corners for row in ones),
        labels=tuple(classes[row.identity] for row in ones),
    )


def _classes(
    root: Path, rows: Mapping[str, Sequence[_Row]], names: _Names | None
) -> dict[int, str]:
    """The name of every id, once it is clear that the ids fit the names."""
    first: dict[int, str] = {}
    for name, ones in rows.items():
        for row in ones:
            first.setdefault(row.identity, name)
    if names is None:
        return {identity: str(identity) for identity in sorted(first)}
    beyond = sorted(first.keys() - names.names.keys())
    count, source = len(names.names), names.source
    if beyond == [count] and 0 not in first and set(names.names) == set(range(count)):
        raise _wrong(
            root / first[count],
            f"class ids 0 to {count - 1}, as {source!r} names {count} classes,",
            f"ids 1 to {count} and never 0: they seem to begin at 1, as if 0 were the background",
            "take 1 from every id",
        )
    if beyond:
        raise _wrong(
            root / first[beyond[0]],
            f"ids of the {count} classes of {source!r}",
            f"the class id {beyond[0]}",
            "correct the id, or add the class's name",
        )
    for identity in sorted(first):
        if is_background(names.names[identity]):
            raise _wrong(
                root / first[identity],
                "classes of objects",
                f"the class id {identity}, {names.names[identity]!r}, which stands for no object",
                "remove these boxes, or give the class another name",
            )
    return {i: name for i, name in names.names.items() if not is_background(name)}


def _names(listing: Listing) -> _Names | None:
    """Names from a YAML file, else from a list; the one nearest to the top."""
    others = sorted(listing.others, key=lambda name: (name.count("/"), name))
    for name in others:
        if name.lower().endswith((".yaml", ".yml")):
            found = _from_yaml(listing.root / name, name)
            if found is not None:
                return found
    for name in others:
        if posixpath.basename(name).lower() in _LISTS:
            path = listing.root / name
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            lines = [line.strip() for line in text.splitlines()]
            return _checked(path, dict(enumerate(filter(None, lines))), name, {})
    return None


def _from_yaml(path: Path, name: str) -> _Names | None:
    import yaml

    try:  # every value as text: class names such as `no` and `1` are names
        value = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        got = getattr(error, "problem", None) or type(error).__name__
        raise _wrong(path, "YAML", f"{got}{where}") from error
    if not isinstance(value, dict) or "names" not in value:
        return None
    given = value["names"]
    pairs = given.items() if isinstance(given, dict) else enumerate(given)
    try:
        names = {int(key): one for key, one in pairs}
        count = int(value.get("nc", len(names)))
    except ValueError as error:
        raise _wrong(path, "whole numbers as ids of `names` and as `nc`", str(error)) from error
    if not names or not all(isinstance(one, str) and one for one in names.values()):
        raise _wrong(path, "a list or table of texts as `names`", repr(given)[:80])
    if count != len(names):
        raise _wrong(
            path,
            "`nc` to be the number of `names`",
            f"nc {count} and {len(names)} names",
            "correct one of them (the background is no class)",
        )
    return _checked(path, names, name, value)


def _checked(path: Path, names: dict[int, str], source: str, parts: dict[str, Any]) -> _Names:
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise _wrong(path, "every class name once", f"{listed(twice)} several times")
    return _Names(names=names, source=source, parts=parts)


def _splits(
    listing: Listing, labels: Iterable[str], names: _Names | None
) -> Mapping[str, SplitName | None]:
    """Parts by the words of folders; where these name none, by the folders that data.yaml names."""
    keys = list(labels)
    by_folder = splits_by_folder(keys)
    if any(by_folder.values()) or names is None:
        return by_folder
    found: dict[str, SplitName | None] = dict.fromkeys(keys)
    given = [(word, names.parts.get(word) or []) for word in SPLITS]
    entries = [(w, str(e)) for w, v in given for e in ([v] if isinstance(v, str) else v)]
    # The deepest folder first: where `train` is all of it and `val` a part, that is val's.
    for split, entry in sorted(entries, key=lambda pair: -pair[1].count("/")):
        members = _members(listing, entry)
        for key in keys:
            if found[key] is None and members(key):
                found[key] = split
    return found if len(set(found.values()) - {None}) > 1 else dict.fromkeys(keys)


def _members(listing: Listing, entry: str) -> Callable[[str], bool]:
    """Which images an entry of data.yaml names: those below a folder, or those of a list."""
    tail = [part for part in entry.replace("\\", "/").split("/") if part not in {"", ".", ".."}]
    ends = ["/".join(tail[i:]) for i in range(len(tail))]
    lists = [end for end in ends if end in listing.others and end.endswith(".txt")]
    if lists:
        text = (listing.root / lists[0]).read_text(encoding="utf-8", errors="replace")
        lines = {posixpath.normpath(line.strip()) for line in text.splitlines() if line.strip()}
        return lambda key: key in lines or any(one.endswith(f"/{key}") for one in lines)
    folder = next((end for end in ends if end in listing.folders), None)
    return lambda key: folder is not None and key.startswith(f"{folder}/")
