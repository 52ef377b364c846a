"""Pascal VOC: one XML file for every image, and lists of names for the parts."""

from __future__ import annotations

import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

from headstart.data.dataset import Boxes, SplitName
from headstart.data.formats.annotations import (
    Annotated,
    Annotations,
    is_background,
    splits_by_folder,
)
from headstart.data.formats.layouts import Listing, listed, natural_key
from headstart.errors import DataError, LeakError

__all__ = ["read_voc", "read_xml"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_MASKS = frozenset(("segmentationclass", "segmentationobject"))
_LISTS: tuple[tuple[str, SplitName], ...] = (("train", "train"), ("val", "val"), ("test", "test"))


class _Builder(ElementTree.TreeBuilder):
    """Builds a tree of elements, never of entities: a few lines of them can fill the memory."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"a DOCTYPE ({name})")


def read_xml(path: Path) -> tuple[Boxes, str]:
    """Read one annotation file.

    VOC counts pixels from 1 and names the last one inside, so that 1 is taken from left and top.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Boxes
        Corners in pixels from 0; ``difficult`` objects are hard.
    str
        The image's file name as stated; empty where it is not.

    Raises
    ------
    DataError
        If the file is no XML, brings entities of its own, or an object has no name or no box of
        four finite numbers; file and line are named.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "1.xml"
    >>> _ = path.write_text('''<annotation><object><name>cat</name><bndbox><xmin>1</xmin>
    ... <ymin>1</ymin><xmax>4</xmax><ymax>2</ymax></bndbox></object></annotation>''')
    >>> read_xml(path)[0].corners
    ((0.0, 0.0, 4.0, 2.0),)
    """
    root, content = _tree(path)
    corners, labels, hard = [], [], []
    for number, thing in enumerate(root.findall("object")):
        try:
            corners.append(_corners(thing))
            labels.append(_text(thing, "name"))
            hard.append(thing.findtext("difficult", "").strip() in {"1", "true", "True"})
        except ValueError as error:
            where = [m.start() for m in re.finditer(rb"<object[\s/>]", content)]
            at = content.count(b"\n", 0, where[number]) + 1 if number < len(where) else "?"
            raise _wrong(path, f"{error} in object {number + 1}, line {at}") from error
    boxes = Boxes(
        corners=tuple(corners),
        labels=tuple(labels),
        hard=tuple(hard) if any(hard) else (),
        size=_size(root),
    )
    return boxes, root.findtext("filename", "").strip()


def _tree(path: Path) -> tuple[ElementTree.Element, bytes]:
    try:
        content = path.read_bytes()
        parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314 - refuses entities
        parser.feed(content)
        root: ElementTree.Element = parser.close()
    except ElementTree.ParseError as error:
        raise _wrong(path, f"{error.msg.split(':')[0]} in line {error.position[0]}") from error
    except (OSError, ValueError, LookupError) as error:
        raise _wrong(path, str(error)) from error
    if root.tag != "annotation":
        raise _wrong(path, f"<{root.tag}> in line 1")
    return root, content


def _wrong(path: Path, got: str) -> DataError:
    return DataError(
        f"Expected {str(path)!r} to be a Pascal VOC annotation, got {got}; "
        "do: correct or remove it."
    )


def _text(thing: ElementTree.Element, tag: str) -> str:
    text = thing.findtext(tag, "").strip()
    if not text:
        raise ValueError(f"no <{tag}>")
    return text


def _corners(thing: ElementTree.Element) -> tuple[float, float, float, float]:
    box = thing.find("bndbox")
    if box is None:
        raise ValueError("no <bndbox>")
    texts = [_text(box, side) for side in _SIDES]
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError as error:
        raise ValueError(f"a box of {listed(texts)}") from error
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError(f"a box of {listed(texts)}")
    return left - 1, top - 1, right, bottom


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height as stated; tools that do not know them write 0."""
    texts = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    if not all(text.isascii() and text.isdigit() for text in texts):
        return None
    width, height = (int(text) for text in texts)
    return (width, height) if width and height else None


def read_voc(listing: Listing) -> Annotations:
    """Read the annotations below a folder.

    Parameters
    ----------
    listing : Listing

    Returns
    -------
    Annotations
        An image of the annotated folders (or of the lists) without a file has no objects. With
        lists in ``ImageSets/Main`` only the images that they name are read.

    Raises
    ------
    DataError
        If an annotation is damaged or describes no object but the background, or two describe
        one image.
    LeakError
        If an image is in two lists.
    """
    files = [name for name in listing.others if name.lower().endswith(".xml")]
    found: dict[str, tuple[Boxes, str]] = {}
    strange = []
    for name in files:
        if _is_annotation(listing.root / name):
            found[name] = read_xml(listing.root / name)
        else:
            strange.append(name)
    images = [p for p in listing.images if _MASKS.isdisjoint(p.lower().split("/")[:-1])]
    placed = _placed(found, images)
    _require_objects(listing.root, found)
    homes = {posixpath.dirname(key) for key in placed}
    keys = dict.fromkeys((*placed, *(p for p in images if posixpath.dirname(p) in homes)))
    lists = _lists(listing)
    bare = [key for key in keys if key not in placed]
    notes = [f"Pascal VOC annotations: {len(found)} XML files such as {next(iter(found))!r}"]
    splits: Mapping[str, SplitName | None] = splits_by_folder(keys)
    if lists:
        splits, unlisted = _listed(keys, lists, homes)
        notes.append("parts as ImageSets/Main says")
        notes += [f"{len(unlisted)} images in no list left out: {listed(unlisted)}"] * bool(
            unlisted
        )
        bare = [key for key in splits if key not in placed]
    if bare:
        notes.append(f"{len(bare)} images have no annotation file: {listed(bare)}")
    if strange:
        notes.append(f"{len(strange)} other XML files not read: {listed(strange)}")
    items = tuple(
        Annotated(key=key, boxes=placed.get(key, Boxes()), split=split)
        for key, split in splits.items()
    )
    names = {name for boxes in placed.values() for name in boxes.labels}
    return Annotations(items=items, names=tuple(sorted(names, key=natural_key)), notes=tuple(notes))


def _is_annotation(path: Path) -> bool:
    """Whether a file calls itself an annotation; a damaged one beside images is one, too."""
    with path.open("rb") as file:
        head = file.read(4096)
    other = re.search(rb"<(?![?!])\s*([\w:.-]+)", head)
    return b"<annotation" in head or other is None


def _require_objects(root: Path, found: Mapping[str, tuple[Boxes, str]]) -> None:
    for name, (boxes, _) in found.items():
        for label in filter(is_background, boxes.labels):
            raise DataError(
                f"Expected {str(root / name)!r} to name classes of objects, got {label!r}, which "
                "stands for no object; do: remove these boxes, or give the class another name."
            )


def _placed(found: Mapping[str, tuple[Boxes, str]], images: Iterable[str]) -> dict[str, Boxes]:
    """The image of each annotation: beside it, in a folder next to it, or of that name."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for key in images:
        by_stem[posixpath.splitext(posixpath.basename(key))[0]].append(key)
    placed: dict[str, Boxes] = {}
    owner: dict[str, str] = {}
    home = "JPEGImages"
    for name, (boxes, stated) in found.items():
        key = _image_of(name, stated, by_stem) or ""
        if not key:  # the scan says that it is missing
            folder = posixpath.dirname(posixpath.dirname(name))
            base = posixpath.basename(stated.replace("\\", "/"))
            stem = posixpath.splitext(posixpath.basename(name))[0]
            key = posixpath.join(folder, home, base or f"{stem}.jpg")
        else:
            home = posixpath.basename(posixpath.dirname(key))
        if key in placed:
            raise DataError(
                f"Expected one annotation for the image {key!r}, got {owner[key]!r} and "
                f"{name!r}; do: remove one of them."
            )
        placed[key], owner[key] = boxes, name
    return placed


def _image_of(name: str, stated: str, by_stem: Mapping[str, list[str]]) -> str | None:
    stem = posixpath.splitext(posixpath.basename(name))[0]
    near = posixpath.dirname(name)
    around = posixpath.dirname(near)
    known = by_stem.get(stem, [])
    if not known:
        base = posixpath.basename(stated.replace("\\", "/"))
        known = [
            key
            for key in by_stem.get(posixpath.splitext(base)[0], [])
            if posixpath.basename(key) == base
        ]
    beside = [key for key in known if posixpath.dirname(key) == near]
    next_to = [key for key in known if posixpath.dirname(posixpath.dirname(key)) == around]
    twins = [key for key in known if _twin(near) == _twin(posixpath.dirname(key))]
    return next((keys[0] for keys in (beside, twins, next_to, known) if len(keys) == 1), None)


def _twin(folder: str) -> str:
    """A folder's path without the word that parts annotations from images."""
    words = {"annotations", "jpegimages", "images", "labels", "xml", "xmls", "annotation"}
    return "/".join(part for part in folder.split("/") if part.lower() not in words)


def _lists(listing: Listing) -> dict[SplitName, tuple[str, list[str]]]:
    """Name and lines of the lists train, val and test; trainval where there are neither."""
    files = {
        posixpath.basename(name).lower(): name
        for name in listing.others
        if posixpath.dirname(name).lower().endswith("imagesets/main")
    }
    lists: dict[SplitName, tuple[str, list[str]]] = {}
    for word, split in _LISTS:
        both = word == "train" and "train.txt" not in files and "val.txt" not in files
        if name := files.get("trainval.txt" if both else f"{word}.txt"):
            text = (listing.root / name).read_text(encoding="utf-8", errors="replace")
            lists[split] = name, [line.split()[0] for line in text.splitlines() if line.strip()]
    return lists


def _listed(
    keys: Iterable[str],
    lists: Mapping[SplitName, tuple[str, list[str]]],
    homes: Iterable[str],
) -> tuple[dict[str, SplitName | None], list[str]]:
    """The part of each image that a list names, and images that none does."""
    by_stem = {posixpath.splitext(posixpath.basename(key))[0]: key for key in keys}
    home = min(homes, default="JPEGImages")
    splits: dict[str, SplitName | None] = {}
    for split, (name, lines) in lists.items():
        for line in dict.fromkeys(lines):
            base = posixpath.basename(line.replace("\\", "/"))
            stem = base if base in by_stem else posixpath.splitext(base)[0]
            key = by_stem.get(stem) or posixpath.join(home, f"{base}.jpg")
            if key in splits:
                raise LeakError(
                    f"Expected {key!r} to be in one list, got {splits[key]} and {split} "
                    f"({name!r}); do: remove it from one of them."
                )
            splits[key] = split
    return splits, [key for key in by_stem.values() if key not in splits]
