"""Reader of COCO annotations: JSON files with images, classes and boxes."""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.dataset import Boxes, SplitName
from headstart.data.formats.annotations import (
    AnnotatedImage,
    Annotations,
    half_annotated,
    is_background,
    split_from_path,
    splits_by_folder,
)
from headstart.data.formats.box_patterns import require_plain_boxes
from headstart.data.formats.image_names import InsideFolder
from headstart.data.formats.layouts import Listing, format_list
from headstart.data.formats.shapes import numbers
from headstart.data.images import MAX_PIXELS
from headstart.data.outlines import Bitmap, Outline, decode_run_lengths
from headstart.errors import DataError, LeakError
from headstart.files import MOST_ANNOTATION_BYTES, read_bounded

__all__ = ["read_coco"]

_GROUP_FIELDS = ("group", "group_id", "patient_id", "patient", "subject_id", "video_id")
_MAX_COORDINATE = 1e9  # pixels; no image is as large
_MAX_STRAY = 0.02  # share of annotations without an image above which the file is refused
_MAX_VOTES = 200  # images per file that decide in which folder its images are


@dataclass(frozen=True, slots=True, kw_only=True)
class _CocoFile:
    """One JSON file: images by id, class names by id, annotations by image id."""

    name: str
    images: dict[Any, dict[str, Any]]
    names: dict[Any, str]
    annotations: dict[Any, list[dict[str, Any]]]
    n_unlisted: int  # annotations of images that the file does not list


def read_coco(listing: Listing, files: Sequence[str], *, outlines: bool = False) -> Annotations:
    """Read COCO files.

    Parameters
    ----------
    listing : Listing
        Of the folder that holds the images.
    files : sequence of str
        The JSON files, relative to that folder. Files without boxes are left out.
    outlines : bool
        Whether polygons and run lengths (``segmentation``) are read, too.

    Returns
    -------
    Annotations
        ``iscrowd`` boxes are hard. Images with the same ``video_id``, ``patient_id`` or ``group``
        are a group. The path of a file names its split, if the files name several splits.

    Raises
    ------
    DataError
        If a file is damaged, lists images outside the folder or none inside it, uses ids that
        it does not declare, or has objects of a class "background".
    LeakError
        If files of two splits list the same image.
    """
    chosen, notes = _choose_files(listing, files)
    splits = splits_by_folder(_as_folders([file.name for file in chosen]))
    is_inside = InsideFolder(listing.root)
    items: dict[str, AnnotatedImage] = {}
    for file in chosen:
        notes += _file_notes(file)
        split = splits[f"{file.name}/"]
        folder = _find_image_folder(file, listing)
        own_items = tuple(_iterate_images(file, folder, split, is_inside, outlines))
        where = f"the COCO file {str(listing.root / file.name)!r}"
        require_plain_boxes((item.boxes for item in own_items), where, "width and height")
        for item in own_items:
            if item.key in items:
                raise _duplicate_image_error(listing.root, item, items[item.key])
            items[item.key] = item
    if not items.keys() & set(listing.images):
        raise DataError(
            f"None of the {len(items)} images in the COCO files (such as "
            f"{next(iter(items), '')!r}) exists in {str(listing.root)!r}. Pass the folder that "
            "contains both the images and the annotations."
        )
    unlisted = [key for key in listing.images if key not in items]
    if unlisted:
        notes.append(f"{len(unlisted)} images that no file lists left out: {format_list(unlisted)}")
    names = dict.fromkeys(
        name for file in chosen for name in file.names.values() if not is_background(name)
    )
    empty = [key for key, item in items.items() if not item.boxes.labels]
    warnings = (
        *half_annotated(
            empty, len(items), "no annotation in the files", "used as images without objects"
        ),
        *half_annotated(
            unlisted, len(items) + len(unlisted), "no entry in the COCO files", "left out"
        ),
    )
    return Annotations(
        items=tuple(items.values()), names=tuple(names), notes=tuple(notes), warnings=warnings
    )


def _as_folders(names: Iterable[str]) -> list[str]:
    return [f"{name}/" for name in names]


def _choose_files(listing: Listing, files: Sequence[str]) -> tuple[list[_CocoFile], list[str]]:
    """Choose the files with boxes; of a COCO download instances, not captions or key points."""
    instances = [name for name in files if posixpath.basename(name).startswith("instances")]
    candidates = [_read_file(listing.root, name) for name in instances or files]
    chosen = [file for file in candidates if file is not None]
    if not chosen:
        raise DataError(
            f"Expected the lists `images`, `annotations` and `categories` in a COCO file of "
            f"{str(listing.root)!r}, got none of them complete in {format_list(files)}. Add the "
            "missing lists, or remove the files."
        )
    names = [file.name for file in chosen]
    notes = [f"COCO annotations: {format_list(names)}"]
    rest = [name for name in files if name not in names]
    if rest:
        notes.append(
            f"{len(rest)} JSON files without boxes of objects left out: {format_list(rest)}"
        )
    return chosen, notes


def _coco_error(path: Path, expected: str, got: str, advice: str = "Correct the file") -> DataError:
    return DataError(f"Expected {expected} in the COCO file {str(path)!r}, got {got}. {advice}.")


def _read_file(root: Path, name: str) -> _CocoFile | None:
    path = root / name
    try:
        value = json.loads(read_bounded(path, MOST_ANNOTATION_BYTES))
    except json.JSONDecodeError as error:
        raise _coco_error(path, "JSON", f"{error.msg} in line {error.lineno}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _coco_error(path, "JSON", f"{type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise _coco_error(path, "an object of lists", f"a {type(value).__name__}")
    if not value.keys() >= {"images", "annotations", "categories"}:
        return None
    images = _index_by_id(path, value, "images", "file_name")
    categories = _index_by_id(path, value, "categories", "name")
    names = {identity: category["name"] for identity, category in categories.items()}
    annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in _require_objects(path, value, "annotations"):
        category = _category_id(annotation, names)
        annotations[_to_id(annotation.get("image_id"))].append(
            {**annotation, "category_id": category}
        )
    file = _CocoFile(
        name=name,
        images=images,
        names=names,
        annotations=annotations,
        n_unlisted=sum(len(group) for key, group in annotations.items() if key not in images),
    )
    _require_listed(path, file)
    _require_categories(path, file)
    return file


def _to_id(value: Any) -> Any:
    """Return an id as a dictionary key, numbers and their texts alike; None if it is no id."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"0|[1-9]\d{0,18}", value.strip()) else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | float) else None


def _category_id(annotation: Mapping[str, Any], names: Mapping[Any, str]) -> Any:
    """Id of the class of an annotation, which may be written as the name of the class."""
    value = annotation.get("category_id", annotation.get("category_name"))
    identity = _to_id(value)
    if identity in names or not isinstance(value, str):
        return identity
    matches = [key for key, name in names.items() if name == value]
    return matches[0] if len(matches) == 1 else identity


def _require_listed(path: Path, file: _CocoFile) -> None:
    total = sum(map(len, file.annotations.values()))
    if file.n_unlisted > _MAX_STRAY * total:
        stray = [key for key in file.annotations if key not in file.images]
        raise _coco_error(
            path,
            "annotations of listed images",
            f"{file.n_unlisted} of {total} annotations with other ids ({format_list(stray)})",
            "Correct `image_id`, add the images to `images`, or remove these annotations",
        )


def _require_objects(path: Path, value: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    entries = value[section]
    if not isinstance(entries, list):
        raise _coco_error(path, f"a list of objects as `{section}`", f"a {type(entries).__name__}")
    invalid = [entry for entry in entries if not isinstance(entry, dict)]
    if invalid:
        raise _coco_error(
            path, f"a list of objects as `{section}`", f"{invalid[0]!r:.80} in the list"
        )
    return entries


def _index_by_id(
    path: Path, value: Mapping[str, Any], section: str, field: str
) -> dict[Any, dict[str, Any]]:
    by_id: dict[Any, dict[str, Any]] = {}
    for number, entry in enumerate(_require_objects(path, value, section)):
        identity, text = _to_id(entry.get("id")), entry.get(field)
        if identity is None or not isinstance(text, str) or not text:
            raise _coco_error(path, f"`id` and `{field}` in {section}[{number}]", repr(entry)[:80])
        if identity in by_id:
            raise _coco_error(path, f"every id of `{section}` once", f"id {identity} twice")
        by_id[identity] = entry
    return by_id


def _require_categories(path: Path, file: _CocoFile) -> None:
    """Check that the class of every box is declared and is a class of objects."""
    counts = Counter(
        _to_id(annotation.get("category_id"))
        for annotations in file.annotations.values()
        for annotation in annotations
    )
    for identity, count in counts.items():
        if identity not in file.names:
            first = next(
                file.images.get(key, {}).get("file_name", "no image")
                for key, annotations in file.annotations.items()
                for annotation in annotations
                if _to_id(annotation.get("category_id")) == identity
            )
            raise _coco_error(
                path,
                f"category ids of the {len(file.names)} classes ({format_list(file.names)})",
                f"id {identity} in {count} annotations, first for {first!r}",
            )
        if is_background(file.names[identity]):
            raise _coco_error(
                path,
                "classes of objects",
                f"{count} annotations of id {identity}, {file.names[identity]!r}, which means "
                "background (are the ids one too low?)",
            )


def _file_notes(file: _CocoFile) -> list[str]:
    notes = []
    if file.n_unlisted:
        notes.append(
            f"{file.n_unlisted} annotations of images that {file.name!r} does not list left out"
        )
    background = [f"{name} (id {key})" for key, name in file.names.items() if is_background(name)]
    if background:
        notes.append(f"{format_list(background)} means background and is not a class")
    return notes


def _find_image_folder(file: _CocoFile, listing: Listing) -> str:
    """Find the folder to which most file names of a COCO file are relative.

    If several folders contain the same names, prefer the one of the same split, then the nearest.
    """
    names = [_normalise_path(image["file_name"]) for image in file.images.values()][:_MAX_VOTES]
    keys_by_basename: dict[str, list[str]] = defaultdict(list)
    for key in listing.images:
        keys_by_basename[posixpath.basename(key)].append(key)
    votes: Counter[str] = Counter()
    for name in names:
        for key in keys_by_basename[posixpath.basename(name)]:
            if f"/{key}".endswith(f"/{name}"):
                votes[key[: len(key) - len(name)]] += 1
    json_folder, split = posixpath.dirname(file.name), split_from_path(file.name)

    def rank(folder: str) -> tuple[int, bool, int, str]:
        n_shared = len(posixpath.commonprefix([f"{json_folder}/", folder]))
        return -votes[folder], split_from_path(folder) != split, -n_shared, folder

    return min(votes, key=rank, default="")


def _normalise_path(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


def _iterate_images(
    file: _CocoFile,
    image_folder: str,
    split: SplitName | None,
    is_inside: InsideFolder,
    outlines: bool,
) -> Iterable[AnnotatedImage]:
    path = is_inside.root / file.name
    for identity, image in file.images.items():
        name = _normalise_path(image["file_name"])
        if (own := is_inside.relative(name)) is not None:
            key = own
        elif name.startswith("../"):  # relative to the folder of the JSON file
            key = posixpath.normpath(posixpath.join(posixpath.dirname(file.name), name))
        else:
            key = name if name.startswith("/") else f"{image_folder}{name}"
        if not is_inside(key):
            raise _coco_error(
                path,
                f"images inside {str(is_inside.root)!r}",
                f"{image['file_name']!r}, which is outside that folder",
            )
        group = next(
            (image[field] for field in _GROUP_FIELDS if image.get(field) is not None), None
        )
        entries = file.annotations.get(identity, [])
        yield AnnotatedImage(
            key=key,
            boxes=_to_boxes(path, image, entries, file.names),
            outlines=tuple(_to_outline(path, image, entry) for entry in entries)
            if outlines
            else (),
            split=split,
            group=None if group is None else str(group),
        )


def _to_boxes(
    path: Path,
    image: Mapping[str, Any],
    annotations: Iterable[Mapping[str, Any]],
    names: Mapping[Any, str],
) -> Boxes:
    corners, labels, hard = [], [], []
    for annotation in annotations:
        box = annotation.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_coordinate, box))):
            raise _coco_error(
                path,
                "a `bbox` of x, y, width and height for every annotation",
                f"{box!r} in annotation {annotation.get('id')} of {image['file_name']!r}",
            )
        x, y, width, height = (float(value) for value in box)
        corners.append((x, y, x + width, y + height))
        labels.append(names[annotation["category_id"]])
        hard.append(_is_set(annotation, "iscrowd") or _is_set(annotation, "ignore"))
    size = (image.get("width"), image.get("height"))
    has_size = all(isinstance(side, int) and side > 0 for side in size)
    return Boxes(
        corners=tuple(corners),
        labels=tuple(labels),
        hard=tuple(hard) if any(hard) else (),
        size=(int(size[0] or 0), int(size[1] or 0)) if has_size else None,
    )


def _to_outline(
    path: Path, image: Mapping[str, Any], annotation: Mapping[str, Any]
) -> Outline | None:
    """Polygons or run lengths of an annotation; None if it has only a box."""
    value = annotation.get("segmentation")
    where = f"annotation {annotation.get('id')} of {image['file_name']!r} in {str(path)!r}"
    if not value:
        return None
    if isinstance(value, dict):
        counts, size = value.get("counts"), value.get("size")
        sides = size if isinstance(size, list) and len(size) == 2 else [None, None]
        height, width = (side if isinstance(side, int) else 0 for side in sides)
        if not isinstance(counts, str | list) or not 0 < height * width <= MAX_PIXELS:
            raise _coco_error(path, "`counts` and `size` of a mask", f"{size!r:.80} in {where}")
        return Outline(bitmap=Bitmap.of(decode_run_lengths(counts, width, height)))
    parts = value if isinstance(value, list) and isinstance(value[0], list) else [value]
    polygons = []
    for part in parts:
        if not isinstance(part, list) or len(part) % 2 or len(part) < 4:
            raise _coco_error(path, "polygons of x, y, x, y, ...", f"{part!r:.80} in {where}")
        polygons.append(np.asarray(numbers(part, where)).reshape(-1, 2))
    return Outline(polygons=tuple(polygons))


def _is_set(annotation: Mapping[str, Any], field: str) -> bool:
    """Whether a mark is set; tools write it as a number, a text or a truth value."""
    return str(annotation.get(field) or 0).strip().lower() not in {"", "0", "0.0", "false", "no"}


def _is_coordinate(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < _MAX_COORDINATE  # false for NaN, too


def _duplicate_image_error(root: Path, item: AnnotatedImage, previous: AnnotatedImage) -> DataError:
    same_split = item.split == previous.split
    splits = "" if same_split else f" ({previous.split} and {item.split})"
    return (DataError if same_split else LeakError)(
        f"Expected every image once in the COCO files of {str(root)!r}, got {item.key!r} "
        f"twice{splits}. Remove one of its entries."
    )
