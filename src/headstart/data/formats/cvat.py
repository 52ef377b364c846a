"""Reader of CVAT for images 1.1: one XML file for a task."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from xml.etree.ElementTree import Element

import numpy as np

from headstart.data.formats.annotations import AnnotatedImage, Annotations, join_images
from headstart.data.formats.documents import read_xml
from headstart.data.formats.image_names import ImageNames
from headstart.data.formats.layouts import Listing
from headstart.data.formats.shapes import (
    Shape,
    annotated_image,
    ellipse_shape,
    numbers,
    points_of,
    polygon_shape,
    rectangle_shape,
    rotated,
    stated_size,
    unread_shape_error,
)
from headstart.data.formats.tables import split_name
from headstart.data.images import MAX_PIXELS
from headstart.data.outlines import Bitmap, Outline, decode_run_lengths
from headstart.errors import DataError

__all__ = ["read_cvat"]

_READABLE = "box, polygon, ellipse, mask"


def read_cvat(listing: Listing, files: Sequence[str]) -> Annotations:
    """Read files of the format CVAT for images 1.1.

    Parameters
    ----------
    listing : Listing
        Of the folder that holds the images.
    files : sequence of str
        The XML files, relative to that folder.

    Returns
    -------
    Annotations
        Classes in the order of the labels of the task. The attribute ``subset`` names the split.
        Tags of images are tags.

    Raises
    ------
    DataError
        If a file is damaged, is the format for videos, or has a shape that is neither a box nor an
        outline.
    """
    images = ImageNames(listing)
    items: list[AnnotatedImage] = []
    names: dict[str, None] = {}
    for name in files:
        path = listing.root / name
        root, _ = read_xml(path, "CVAT", "annotations")
        if root.find("track") is not None:
            raise DataError(
                f"Expected CVAT for images 1.1 in {str(path)!r}, got tracks of a video (CVAT for "
                "video). Export the task as CVAT for images 1.1, with its images."
            )
        names |= dict.fromkeys(
            text for label in root.iter("label") if (text := label.findtext("name", "").strip())
        )
        where, folder = repr(str(path)), posixpath.dirname(name)
        items += [_read_image(element, images, folder, where) for element in root.findall("image")]
    splits = {item.split for item in items}
    if None in splits or len(splits) == 1:
        items = [_without_split(item) for item in items]
    return join_images(listing, items, "CVAT files", names=list(names))


def _without_split(item: AnnotatedImage) -> AnnotatedImage:
    return AnnotatedImage(key=item.key, boxes=item.boxes, outlines=item.outlines, tags=item.tags)


def _read_image(element: Element, images: ImageNames, folder: str, where: str) -> AnnotatedImage:
    name = element.get("name", "")
    where = f"the image {name!r} of {where}"
    shapes = [
        _cvat_shape(child, where) for child in element if child.tag not in {"tag", "attribute"}
    ]
    return annotated_image(
        images.key_of(name, folder, where),
        shapes,
        where,
        size=stated_size(element.get("width"), element.get("height")),
        split=split_name(element.get("subset", "")),
        tags=[tag.get("label", "") for tag in element.findall("tag")],
    )


def _cvat_shape(element: Element, where: str) -> Shape:
    label = element.get("label", "")
    degrees = numbers([element.get("rotation", "0")], where)[0]
    if element.tag == "box":
        sides = numbers([element.get(side, "") for side in ("xtl", "ytl", "xbr", "ybr")], where)
        left, top, right, bottom = sides
        if not degrees:
            return rectangle_shape(label, np.array([[left, top], [right, bottom]]), where)
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        centre = ((left + right) / 2, (top + bottom) / 2)
        return polygon_shape(label, rotated(corners, centre, degrees), where)
    if element.tag == "polygon":
        pairs = [pair.split(",") for pair in element.get("points", "").split(";") if pair.strip()]
        return polygon_shape(label, points_of(pairs, where), where)
    if element.tag == "ellipse":
        x, y, *radii = numbers([element.get(name, "") for name in ("cx", "cy", "rx", "ry")], where)
        return ellipse_shape(label, (x, y), radii, where, degrees)
    if element.tag == "mask":
        outline = Outline(bitmap=_read_bitmap(element, where))
        return Shape(label=label, corners=outline.corners(), outline=outline)
    raise unread_shape_error(element.tag, label, where, _READABLE)


def _read_bitmap(element: Element, where: str) -> Bitmap:
    """Run lengths by rows in a rectangle of the image, zeros first."""
    sides = numbers([element.get(side, "") for side in ("left", "top", "width", "height")], where)
    left, top, width, height = (int(side) for side in sides)
    runs = [int(n) for n in numbers(element.get("rle", "").replace(",", " ").split(), where)]
    if not 0 < width * height <= MAX_PIXELS or width < 0:
        raise DataError(
            f"Expected a mask of 1 to {MAX_PIXELS} pixels in {where}, got {width} x {height}. "
            "Correct or remove the mask."
        )
    pixels = decode_run_lengths(runs, height, width).T  # by rows instead of columns
    return Bitmap.of(np.ascontiguousarray(pixels), left, top)
