"""Reader of Supervisely: ann/1.jpg.json for img/1.jpg, and meta.json with the classes."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headstart.data.formats.annotations import AnnotatedImage, Annotations, join_images
from headstart.data.formats.bitmaps import decode_bitmap
from headstart.data.formats.documents import read_json
from headstart.data.formats.image_names import ImageNames
from headstart.data.formats.layouts import Listing, is_image
from headstart.data.formats.shapes import (
    Shape,
    annotated_image,
    points_of,
    polygon_shape,
    rectangle_shape,
    stated_size,
    unread_shape_error,
)
from headstart.data.outlines import Outline
from headstart.errors import DataError

__all__ = ["read_supervisely"]

_READABLE = "rectangle, polygon, bitmap"
_IMAGE_FOLDERS = ("img", "images", "image")


def read_supervisely(listing: Listing, files: Sequence[str]) -> Annotations:
    """Read a project of Supervisely.

    Parameters
    ----------
    listing : Listing
        Of the folder of the project.
    files : sequence of str
        The JSON files of the images, relative to that folder.

    Returns
    -------
    Annotations
        Points are pixels: a rectangle from 2 to 4 is three pixels wide. Classes have the order of
        meta.json. Tags of images are tags. The names of the datasets are splits, if several are.

    Raises
    ------
    DataError
        If a file is damaged, or has an object that is neither a box nor an outline.
    """
    names: dict[str, None] = {}
    for name in listing.other_files:
        if posixpath.basename(name) == "meta.json":
            meta = read_json(listing.root / name, "Supervisely")
            classes = meta.get("classes") if isinstance(meta, dict) else None
            names |= {
                str(entry["title"]): None
                for entry in (classes if isinstance(classes, list) else [])
                if isinstance(entry, dict) and entry.get("title")
            }
    images = ImageNames(listing)
    items = [_read_file(listing, name, images) for name in files]
    return join_images(listing, items, "Supervisely files", names=list(names), one_file_each=True)


def _read_file(listing: Listing, name: str, images: ImageNames) -> AnnotatedImage:
    where = repr(str(listing.root / name))
    value = read_json(listing.root / name, "Supervisely")
    objects = value.get("objects") if isinstance(value, dict) else None
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        raise DataError(
            f"Expected a list of `objects` in the Supervisely file {where}, got {objects!r:.80}. "
            "Correct or remove the file."
        )
    size, tags = value.get("size"), value.get("tags")
    size = size if isinstance(size, dict) else {}
    return annotated_image(
        _image_key(listing, name, images),
        [_supervisely_shape(entry, where) for entry in objects],
        where,
        size=stated_size(size.get("width"), size.get("height")),
        tags=[str(tag["name"]) for tag in tags or [] if isinstance(tag, dict) and tag.get("name")],
    )


def _image_key(listing: Listing, name: str, images: ImageNames) -> str:
    """Image of an annotation: img/1.jpg of ann/1.jpg.json, or the one of this stem."""
    folder, base = posixpath.split(name.removesuffix(".json"))
    parent = posixpath.dirname(folder)
    folders = [posixpath.join(parent, image_folder) for image_folder in _IMAGE_FOLDERS]
    candidates = [posixpath.join(each, base) for each in (*folders, folder)]
    if not is_image(base):
        candidates = [
            key
            for key in listing.images
            if posixpath.dirname(key) in {*folders, folder}
            and posixpath.basename(key).rpartition(".")[0] == base
        ] or [f"{candidates[0]}.jpg"]
    key = next((key for key in candidates if key in images.images), None)
    return key or images.key_of(posixpath.basename(candidates[0]), folders[0], repr(name))


def _supervisely_shape(entry: Mapping[str, Any], where: str) -> Shape:
    label, kind = str(entry.get("classTitle") or ""), entry.get("geometryType")
    if kind == "bitmap" or (kind is None and entry.get("bitmap")):
        bitmap = entry.get("bitmap")
        origin = bitmap.get("origin") if isinstance(bitmap, dict) else None
        if not isinstance(bitmap, dict) or not isinstance(bitmap.get("data"), str):
            raise DataError(
                f"Expected `data` and `origin` of the bitmap {label!r} in {where}, got "
                f"{bitmap!r:.80}. Correct or remove the object."
            )
        left, top = points_of([origin], where).astype(int)[0].tolist()
        outline = Outline(bitmap=decode_bitmap(bitmap["data"], left, top, where))
        return Shape(label=label, corners=outline.corners(), outline=outline)
    points = entry.get("points")
    points = points if isinstance(points, dict) else {}
    exterior = points_of(points.get("exterior"), f"the object {label!r} of {where}")
    if kind == "rectangle":
        box = rectangle_shape(label, exterior, where)
        left, top, right, bottom = box.corners
        return Shape(label=label, corners=(left, top, right + 1, bottom + 1))
    if kind in {"polygon", None}:
        interior = points.get("interior")
        holes = [points_of(hole, where) + 0.5 for hole in interior or []]
        shape = polygon_shape(label, exterior + 0.5, where, holes)
        left, top = np.floor(exterior.min(axis=0)).tolist()
        right, bottom = (np.floor(exterior.max(axis=0)) + 1).tolist()
        return Shape(label=label, corners=(left, top, right, bottom), outline=shape.outline)
    raise unread_shape_error(kind, label, where, _READABLE)
