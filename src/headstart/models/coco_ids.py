"""Ids of the user's own COCO file, for results that its tools can score."""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headstart.data.dataset import Sample
from headstart.data.formats.annotations import orient_boxes, quick_header
from headstart.errors import DataError, UsageError
from headstart.files import MOST_ANNOTATION_BYTES, read_bounded
from headstart.models.inference import Detections

__all__ = ["CocoIds", "read_coco_ids", "to_stated_size"]

REVERSE = {6: 8, 8: 6}
"""EXIF orientations that another one reverses; every other one reverses itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoIds:
    """Images and categories of a COCO file; ``read_coco_ids`` reads one.

    Parameters
    ----------
    path : Path
    images : sequence of dict
        Each with ``id`` and ``file_name``, as the file has them.
    categories : sequence of dict
        Each with ``id`` and ``name``.

    Examples
    --------
    >>> entries = [{"id": 7, "file_name": "val/a.jpg"}, {"id": 9, "file_name": "old/a.jpg"}]
    >>> ids = CocoIds(path=Path("v.json"), images=entries, categories=[{"id": 3, "name": "Cell"}])
    >>> ids.image("photos/val/a.jpg")["id"], ids.categories_of(["cell"])
    (7, [{'id': 3, 'name': 'Cell'}])
    """

    path: Path
    images: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]
    _by_base: dict[str, list[Mapping[str, Any]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_base: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for entry in self.images:
            by_base[posixpath.basename(_posix(entry["file_name"]))].append(entry)
        object.__setattr__(self, "_by_base", dict(by_base))

    def __repr__(self) -> str:
        return (
            f"CocoIds({str(self.path)!r}, {len(self.images)} images, "
            f"{len(self.categories)} categories)"
        )

    def image(self, name: str) -> Mapping[str, Any]:
        """Entry of an image: its path ends with the file name, or no other has its last part.

        Raises
        ------
        DataError
            If the file has no such image, or several.
        """
        path = _posix(name)
        entries = self._by_base.get(posixpath.basename(path), [])
        ends = [e for e in entries if f"/{path}".endswith(f"/{_posix(e['file_name'])}")]
        matches = ends or entries
        longest = max((len(_posix(e["file_name"])) for e in matches), default=0)
        matches = [e for e in matches if not ends or len(_posix(e["file_name"])) == longest]
        if len(matches) == 1:
            return matches[0]
        if not matches:
            raise DataError(
                f"{str(self.path)!r} has no image {posixpath.basename(path)!r} for {name!r}. Pass "
                "only the images of this file, or another file to --ids."
            )
        raise DataError(
            f"{str(self.path)!r} has {len(matches)} images {posixpath.basename(path)!r}, and none "
            f"of their paths ends {name!r}. Pass the folder that contains their folders."
        )

    def document(self, names: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
        """Images in the order of the names, and categories in the order of the classes.

        Raises
        ------
        DataError
            If an image or class is not in the file, or two images are the same one of it.
        """
        images = [self.image(name) for name in names]
        first: dict[Any, str] = {}
        for name, entry in zip(names, images, strict=True):
            if (other := first.setdefault(entry["id"], name)) != name:
                raise DataError(
                    f"{other!r} and {name!r} are both image {entry['id']!r} of {str(self.path)!r}. "
                    "Pass each image of the file once."
                )
        return {"images": images, "categories": self.categories_of(classes)}

    def categories_of(self, classes: Sequence[str]) -> list[Mapping[str, Any]]:
        """Categories of the classes, in their order; by name, or else without case.

        Raises
        ------
        DataError
            If a class has no category, or several.
        """
        exact = _by_name(self.categories, str)
        folded = _by_name(self.categories, str.casefold)
        chosen = []
        for name in classes:
            matches = exact.get(name) or folded.get(name.casefold(), [])
            if len(matches) != 1:
                raise DataError(
                    f"{str(self.path)!r} has {len(matches) or 'no'} categories {name!r}, a class "
                    f"of the model; its categories are {', '.join(exact)}. Pass the file with "
                    "the classes of the training to --ids."
                )
            chosen.append(matches[0])
        return chosen


def read_coco_ids(path: Path, output_format: str = "coco") -> CocoIds:
    """Read the images and categories of a COCO file; annotations may be missing.

    Parameters
    ----------
    path : Path
    output_format : str
        Of the predictions.

    Raises
    ------
    UsageError
        If the format is another one: it has no ids.
    DataError
        If the file is damaged, or has no images or categories with ids and names.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "instances_val.json"
    >>> image, category = {"id": 4, "file_name": "a.jpg"}, {"id": 1, "name": "cell"}
    >>> _ = path.write_text(json.dumps({"images": [image], "categories": [category]}))
    >>> read_coco_ids(path).image("photos/a.jpg")["id"]
    4
    """
    if output_format != "coco":
        raise UsageError(
            f"--ids needs the format coco, got {output_format!r}. Pass --format coco, or remove "
            "--ids."
        )
    try:
        value = json.loads(read_bounded(path, MOST_ANNOTATION_BYTES))
        lists = [value["images"], value["categories"]]
        for entries, name in zip(lists, ("file_name", "name"), strict=True):
            for entry in entries:
                _require_id(entry, name)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"Expected a COCO file with `images` (id, file_name) and `categories` (id, name) for "
            f"--ids, got {str(path)!r} ({type(error).__name__}: {error}). Pass the file with the "
            "annotations of these images, such as instances_val.json."
        ) from error
    return CocoIds(path=path, images=lists[0], categories=lists[1])


def _require_id(entry: Mapping[str, Any], name: str) -> None:
    if not isinstance(entry[name], str) or not isinstance(entry["id"], int | str):
        raise TypeError(f"{entry!r:.80}")


def to_stated_size(sample: Sample, detections: Detections, entry: Mapping[str, Any]) -> Detections:
    """Rotate boxes back to the stored image, if only its size is the one that the file states.

    The reader of COCO files rotates such boxes with their images (EXIF).

    Parameters
    ----------
    sample : Sample
    detections : Detections
        In pixels of the upright image.
    entry : mapping
        Of the image in the COCO file.
    """
    stated, stored = (entry.get("width"), entry.get("height")), detections.size[::-1]
    header = quick_header(sample.image) if isinstance(sample.image, Path) else None
    orientation = 1 if header is None else header.exif_orientation
    # Of a square image, the reader takes the boxes as drawn upright.
    if orientation <= 4 or stated != stored or stored == detections.size:
        return detections
    boxes = orient_boxes(detections.boxes, REVERSE.get(orientation, orientation), *detections.size)
    return replace(detections, size=stored, boxes=boxes.astype("float32"))


def _by_name(
    categories: Sequence[Mapping[str, Any]], key: Any
) -> dict[str, list[Mapping[str, Any]]]:
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for category in categories:
        by_name[key(category["name"])].append(category)
    return dict(by_name)


def _posix(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))
