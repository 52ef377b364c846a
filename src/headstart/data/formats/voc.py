"""Reader of Pascal VOC: one XML file per image, and text files that list the splits."""

from __future__ import annotations

import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

from headstart.data.dataset import SPLITS, Boxes, SplitName
from headstart.data.formats.annotations import (
    AnnotatedImage,
    Annotations,
    half_annotated,
    is_background,
    splits_by_folder,
)
from headstart.data.formats.box_patterns import require_plain_boxes
from headstart.data.formats.documents import read_xml
from headstart.data.formats.layouts import Listing, format_list, natural_key
from headstart.errors import DataError, LeakError
from headstart.files import is_file, read_text

__all__ = ["read_voc", "read_voc_file"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_MASK_FOLDERS = frozenset(("segmentationclass", "segmentationobject"))


def read_voc_file(path: Path) -> tuple[Boxes, str]:
    """Read one annotation file.

    Pascal VOC counts pixels from 1 and includes the last pixel, so 1 is subtracted from left and
    top.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Boxes
        Corners in pixels from 0; ``difficult`` objects are hard.
    str
        File name of the image as stated; empty if it is not stated.

    Raises
    ------
    DataError
        If the file is not valid XML, has a DOCTYPE, or an object has no name or no box of four
        finite numbers. The message names file and line.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "1.xml"
    >>> _ = path.write_text('''<annotation><object><name>cat</name><bndbox><xmin>1</xmin>
    ... <ymin>1</ymin><xmax>4</xmax><ymax>2</ymax></bndbox></object></annotation>''')
    >>> read_voc_file(path)[0].corners
    ((0.0, 0.0, 4.0, 2.0),)
    """
    root, content = read_xml(path, "Pascal VOC", "annotation")
    corners, labels, hard = [], [], []
    for number, element in enumerate(root.findall("object")):
        try:
            corners.append(_parse_corners(element))
            labels.append(_required_text(element, "name"))
            hard.append(element.findtext("difficult", "").strip() in {"1", "true", "True"})
        except ValueError as error:
            starts = [match.start() for match in re.finditer(rb"<object[\s/>]", content)]
            line = content.count(b"\n", 0, starts[number]) + 1 if number < len(starts) else "?"
            raise _voc_error(path, f"{error} in object {number + 1}, line {line}") from error
    boxes = Boxes(
        corners=tuple(corners),
        labels=tuple(labels),
        hard=tuple(hard) if any(hard) else (),
        size=_parse_size(root),
    )
    return boxes, root.findtext("filename", "").strip()


def _voc_error(path: Path, got: str) -> DataError:
    return DataError(
        f"Expected {str(path)!r} to be a Pascal VOC annotation, got {got}. Correct or remove the "
        "file."
    )


def _required_text(element: ElementTree.Element, tag: str) -> str:
    text = element.findtext(tag, "").strip()
    if not text:
        raise ValueError(f"no <{tag}>")
    return text


def _parse_corners(element: ElementTree.Element) -> tuple[float, float, float, float]:
    box = element.find("bndbox")
    if box is None:
        raise ValueError("no <bndbox>")
    texts = [_required_text(box, side) for side in _SIDES]
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError as error:
        raise ValueError(f"a box of {format_list(texts)}") from error
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError(f"a box of {format_list(texts)}")
    return left - 1, top - 1, right, bottom


def _parse_size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height as stated; None if they are 0, which tools write for an unknown size."""
    texts = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    if not all(text.isascii() and text.isdigit() for text in texts):
        return None
    width, height = (int(text) for text in texts)
    return (width, height) if width and height else None


def read_voc(listing: Listing) -> Annotations:
    """Read the annotations in a folder and its subfolders.

    Parameters
    ----------
    listing : Listing

    Returns
    -------
    Annotations
        Images of the annotated folders (or of the lists) without an XML file have no objects. If
        there are lists in ``ImageSets/Main``, only the images in these lists are read.

    Raises
    ------
    DataError
        If an annotation is damaged, has objects of a class "background", or belongs to an image
        that has another annotation.
    LeakError
        If an image is in two lists.
    """
    xml_files = [name for name in listing.other_files if name.lower().endswith(".xml")]
    annotations: dict[str, tuple[Boxes, str]] = {}
    other_xml = []
    for name in xml_files:
        if _is_annotation(listing.root / name):
            annotations[name] = read_voc_file(listing.root / name)
        else:
            other_xml.append(name)
    images = [
        key for key in listing.images if _MASK_FOLDERS.isdisjoint(key.lower().split("/")[:-1])
    ]
    where = f"the Pascal VOC files of {str(listing.root)!r}"
    require_plain_boxes((boxes for boxes, _ in annotations.values()), where, "corners")
    boxes_by_image = _match_images(annotations, images)
    _refuse_background(listing.root, annotations)
    folders = {posixpath.dirname(key) for key in boxes_by_image}
    in_folders = (key for key in images if posixpath.dirname(key) in folders)
    keys = dict.fromkeys((*boxes_by_image, *in_folders))
    lists = _read_split_lists(listing)
    without_annotation = [key for key in keys if key not in boxes_by_image]
    notes = [
        f"Pascal VOC annotations: {len(annotations)} XML files such as {next(iter(annotations))!r}"
    ]
    splits: Mapping[str, SplitName | None] = splits_by_folder(keys)
    if lists:
        splits, unlisted = _assign_splits(keys, lists, folders)
        notes.append("splits from the lists in ImageSets/Main")
        if unlisted:
            notes.append(f"{len(unlisted)} images in no list left out: {format_list(unlisted)}")
        without_annotation = [key for key in splits if key not in boxes_by_image]
    if without_annotation:
        notes.append(
            f"{len(without_annotation)} images have no annotation file: "
            f"{format_list(without_annotation)}"
        )
    if other_xml:
        notes.append(f"{len(other_xml)} other XML files not read: {format_list(other_xml)}")
    items = tuple(
        AnnotatedImage(key=key, boxes=boxes_by_image.get(key, Boxes()), split=split)
        for key, split in splits.items()
    )
    names = {name for boxes in boxes_by_image.values() for name in boxes.labels}
    warnings = half_annotated(
        without_annotation, len(items), "no annotation file", "used as images without objects"
    )
    return Annotations(
        items=items,
        names=tuple(sorted(names, key=natural_key)),
        notes=tuple(notes),
        warnings=warnings,
    )


def _is_annotation(path: Path) -> bool:
    """Whether an XML file is an annotation; a damaged file without a root tag counts as one."""
    if not is_file(path):  # a pipe might never end
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    first_tag = re.search(rb"<(?![?!])\s*([\w:.-]+)", start)
    return b"<annotation" in start or first_tag is None


def _refuse_background(root: Path, annotations: Mapping[str, tuple[Boxes, str]]) -> None:
    for name, (boxes, _) in annotations.items():
        for label in filter(is_background, boxes.labels):
            raise DataError(
                f"Expected classes of objects in {str(root / name)!r}, got {label!r}, which means "
                "background. Remove these boxes, or rename the class."
            )


def _match_images(
    annotations: Mapping[str, tuple[Boxes, str]], images: Iterable[str]
) -> dict[str, Boxes]:
    """Match each annotation with an image; return the boxes by image."""
    keys_by_stem: dict[str, list[str]] = defaultdict(list)
    for key in images:
        keys_by_stem[posixpath.splitext(posixpath.basename(key))[0]].append(key)
    boxes_by_image: dict[str, Boxes] = {}
    annotation_by_image: dict[str, str] = {}
    image_folder = "JPEGImages"
    for name, (boxes, stated_name) in annotations.items():
        key = _find_image(name, stated_name, keys_by_stem) or ""
        if not key:  # the path where the image should be: the data checks report it as missing
            parent = posixpath.dirname(posixpath.dirname(name))
            base = posixpath.basename(stated_name.replace("\\", "/"))
            stem = posixpath.splitext(posixpath.basename(name))[0]
            key = posixpath.join(parent, image_folder, base or f"{stem}.jpg")
        else:
            image_folder = posixpath.basename(posixpath.dirname(key))
        if key in boxes_by_image:
            raise DataError(
                f"Expected one annotation for the image {key!r}, got "
                f"{annotation_by_image[key]!r} and {name!r}. Remove one of them."
            )
        boxes_by_image[key], annotation_by_image[key] = boxes, name
    return boxes_by_image


def _find_image(name: str, stated_name: str, keys_by_stem: Mapping[str, list[str]]) -> str | None:
    """Find the image of an annotation by the name of the XML file, or else the stated name.

    Among several candidates the order is: same folder, matching folder structure, sibling folder.
    """
    stem = posixpath.splitext(posixpath.basename(name))[0]
    folder = posixpath.dirname(name)
    parent = posixpath.dirname(folder)
    candidates = keys_by_stem.get(stem, [])
    if not candidates:
        base = posixpath.basename(stated_name.replace("\\", "/"))
        candidates = [
            key
            for key in keys_by_stem.get(posixpath.splitext(base)[0], [])
            if posixpath.basename(key) == base
        ]
    same_folder = [key for key in candidates if posixpath.dirname(key) == folder]
    sibling_folder = [
        key for key in candidates if posixpath.dirname(posixpath.dirname(key)) == parent
    ]
    structure = _strip_role_folders(folder)
    same_structure = [
        key for key in candidates if _strip_role_folders(posixpath.dirname(key)) == structure
    ]
    groups = (same_folder, same_structure, sibling_folder, candidates)
    return next((keys[0] for keys in groups if len(keys) == 1), None)


def _strip_role_folders(folder: str) -> str:
    """Path of a folder without the folders that separate annotations from images."""
    roles = {"annotations", "jpegimages", "images", "labels", "xml", "xmls", "annotation"}
    return "/".join(part for part in folder.split("/") if part.lower() not in roles)


def _read_split_lists(listing: Listing) -> dict[SplitName, tuple[str, list[str]]]:
    """Read name and lines of the lists train, val and test; trainval if there are neither."""
    files = {
        posixpath.basename(name).lower(): name
        for name in listing.other_files
        if posixpath.dirname(name).lower().endswith("imagesets/main")
    }
    lists: dict[SplitName, tuple[str, list[str]]] = {}
    for split in SPLITS:
        use_trainval = split == "train" and "train.txt" not in files and "val.txt" not in files
        if name := files.get("trainval.txt" if use_trainval else f"{split}.txt"):
            text = read_text(listing.root / name)
            lists[split] = name, [line.split()[0] for line in text.splitlines() if line.strip()]
    return lists


def _assign_splits(
    keys: Iterable[str],
    lists: Mapping[SplitName, tuple[str, list[str]]],
    folders: Iterable[str],
) -> tuple[dict[str, SplitName | None], list[str]]:
    """Return the split of each listed image, and the images in no list."""
    key_by_stem = {posixpath.splitext(posixpath.basename(key))[0]: key for key in keys}
    folder = min(folders, default="JPEGImages")
    splits: dict[str, SplitName | None] = {}
    for split, (name, lines) in lists.items():
        for line in dict.fromkeys(lines):
            base = posixpath.basename(line.replace("\\", "/"))
            stem = base if base in key_by_stem else posixpath.splitext(base)[0]
            key = key_by_stem.get(stem) or posixpath.join(folder, f"{base}.jpg")
            if key in splits:
                raise LeakError(
                    f"Expected the image {key!r} in one list, got {splits[key]} and {split} "
                    f"({name!r}). Remove it from one of these lists."
                )
            splits[key] = split
    return splits, [key for key in key_by_stem.values() if key not in splits]
