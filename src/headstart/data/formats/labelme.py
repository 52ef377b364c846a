"""Reader of LabelMe: one JSON file for each image."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headstart.data.formats.annotations import AnnotatedImage, Annotations, join_images
from headstart.data.formats.bitmaps import decode_bitmap
from headstart.data.formats.documents import read_json
from headstart.data.formats.image_names import ImageNames
from headstart.data.formats.layouts import Listing
from headstart.data.formats.shapes import (
    Shape,
    annotated_image,
    ellipse_shape,
    points_of,
    polygon_shape,
    rectangle_shape,
    stated_size,
    unread_shape_error,
)
from headstart.data.outlines import Outline
from headstart.errors import DataError

__all__ = ["read_labelme"]

_READABLE = "rectangle, polygon, circle, mask"


def read_labelme(listing: Listing, files: Sequence[str]) -> Annotations:
    """Read LabelMe files.

    Parameters
    ----------
    listing : Listing
        Of the folder that holds the images.
    files : sequence of str
        The JSON files, relative to that folder.

    Returns
    -------
    Annotations
        Polygons of one class and one ``group_id`` are one object. Images without a file beside
        annotated ones have no objects. Flags that are set are tags.

    Raises
    ------
    DataError
        If a file is damaged, or has a shape that is neither a box nor an outline.
    """
    images = ImageNames(listing)
    items = [_read_file(listing, name, images) for name in files]
    return join_images(listing, items, "LabelMe files", one_file_each=True)


def _read_file(listing: Listing, name: str, images: ImageNames) -> AnnotatedImage:
    where = repr(str(listing.root / name))
    value = read_json(listing.root / name, "LabelMe")
    shapes = value.get("shapes") if isinstance(value, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(
            f"Expected a list of objects as `shapes` in the LabelMe file {where}, got "
            f"{shapes!r:.80}. Correct or remove the file."
        )
    stated, folder = value.get("imagePath"), posixpath.dirname(name)
    stated = (
        stated if isinstance(stated, str) and stated else f"{posixpath.basename(name)[:-5]}.jpg"
    )
    key = images.key_of(stated, folder, where)
    if key not in images.images:  # the image was renamed together with its file
        stem = name[: -len(".json")]
        key = next((image for image in images.images if image.rpartition(".")[0] == stem), key)
    if key not in images.images and value.get("imageData"):
        raise DataError(
            f"The image {stated!r} of {where} is not in {str(listing.root)!r}, only a copy inside "
            "the JSON file, which is not read. Save the images as files beside the JSON files "
            "(labelme_export_json of LabelMe does it)."
        )
    flags = value.get("flags")
    tags = (
        [tag for tag, is_set in flags.items() if is_set is True] if isinstance(flags, dict) else []
    )
    return annotated_image(
        key,
        _merge_groups(shapes, [_labelme_shape(shape, where) for shape in shapes]),
        where,
        size=stated_size(value.get("imageWidth"), value.get("imageHeight")),
        tags=tags,
    )


def _labelme_shape(shape: Mapping[str, Any], where: str) -> Shape:
    label = str(shape.get("label") or "")
    kind = shape.get("shape_type") or "polygon"
    points = points_of(shape.get("points"), f"the shape {label!r} of {where}")
    if kind == "rectangle":
        return rectangle_shape(label, points, where)
    if kind in {"polygon", "oriented_rectangle"}:
        return polygon_shape(label, points, where)
    if kind == "circle" and len(points) == 2:
        radius = float(np.hypot(*(points[1] - points[0])))
        return ellipse_shape(label, points[0].tolist(), (radius, radius), where)
    if kind == "mask" and len(points) == 2 and isinstance(shape.get("mask"), str):
        left, top = points.min(axis=0).round().astype(int).tolist()
        bitmap = decode_bitmap(shape["mask"], left, top, where)
        outline = Outline(bitmap=bitmap)
        return Shape(label=label, corners=outline.corners(), outline=outline)
    raise unread_shape_error(kind, label, where, _READABLE)


def _merge_groups(entries: Sequence[Mapping[str, Any]], shapes: Sequence[Shape]) -> list[Shape]:
    """Join the polygons of one class and one group to one object."""
    merged: dict[Any, Shape] = {}
    for position, (entry, shape) in enumerate(zip(entries, shapes, strict=True)):
        group = entry.get("group_id")
        is_part = isinstance(group, int | str) and shape.outline is not None
        key = (shape.label, group) if is_part and not shape.outline.bitmap else position  # type: ignore[union-attr]
        previous = merged.get(key)
        if previous is None or previous.outline is None or shape.outline is None:
            merged[key] = shape
            continue
        outline = Outline(polygons=(*previous.outline.polygons, *shape.outline.polygons))
        merged[key] = replace(previous, outline=outline, corners=outline.corners())
    return list(merged.values())
