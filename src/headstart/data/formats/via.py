"""Reader of VGG Image Annotator (VIA): projects, exported JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.dataset import brief
from headstart.data.formats.annotations import Annotations, join_images
from headstart.data.formats.documents import read_json
from headstart.data.formats.image_names import ImageNames
from headstart.data.formats.layouts import Listing, format_list
from headstart.data.formats.shapes import (
    Shape,
    annotated_image,
    ellipse_shape,
    numbers,
    polygon_shape,
    rectangle_shape,
    unread_shape_error,
)
from headstart.errors import DataError
from headstart.files import MOST_TEXT_BYTES, read_bounded

__all__ = ["read_via"]

_READABLE = "rect, polygon, circle, ellipse"
_CLASS_ATTRIBUTES = ("label", "class", "type", "name", "category", "object")
_ONLY_CLASS = "object"

Region = tuple[Mapping[str, Any], Mapping[str, Any]]


def read_via(listing: Listing, files: Sequence[str]) -> Annotations:
    """Read VIA files of version 1 and 2.

    Parameters
    ----------
    listing : Listing
        Of the folder that holds the images.
    files : sequence of str
        The JSON or CSV files, relative to that folder.

    Returns
    -------
    Annotations
        The class is the only attribute of the regions, or the one called label, class, type, name,
        category or object. Regions without attributes are of one class, ``object``.

    Raises
    ------
    DataError
        If a file is damaged, the class is not certain, or a region is neither a box nor an outline.
    """
    images = ImageNames(listing)
    items = []
    notes = []
    for name in files:
        path, folder = listing.root / name, posixpath.dirname(name)
        entries = _read_csv(path) if name.lower().endswith(".csv") else _read_json(path)
        attribute = _class_attribute(entries, path)
        if attribute is None:
            notes.append(f"the regions of {name!r} have no attribute: one class, {_ONLY_CLASS!r}")
        for file, regions in entries.items():
            where = f"the image {file!r} of {str(path)!r}"
            shapes = [_via_shape(region, attribute, where) for region in regions]
            items.append(annotated_image(images.key_of(file, folder, where), shapes, where))
    return join_images(listing, items, "VIA files", notes=notes)


def _via_error(path: Path, expected: str, got: object) -> DataError:
    return DataError(
        f"Expected {expected} in the VIA file {str(path)!r}, got {brief(got)}. Correct the file, "
        "or export the annotations of VIA 2 again."
    )


def _read_json(path: Path) -> dict[str, list[Region]]:
    """Regions by file name."""
    value = read_json(path, "VIA")
    if isinstance(value, dict) and "_via_img_metadata" in value:
        value = value["_via_img_metadata"]
    if isinstance(value, dict) and {"project", "metadata"} <= value.keys():
        raise _via_error(path, "VIA 1 or 2", "a project of VIA 3")
    if not isinstance(value, dict):
        raise _via_error(path, "an object of images", value)
    entries: dict[str, list[Region]] = {}
    for entry in value.values():
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            raise _via_error(path, "`filename` and `regions` of every image", entry)
        regions = entry.get("regions", [])
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        if not isinstance(regions, list):
            raise _via_error(path, "a list of `regions`", regions)
        entries.setdefault(entry["filename"], []).extend(
            _to_region(region, path) for region in regions
        )
    return entries


def _to_region(region: Any, path: Path) -> Region:
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    attributes = region.get("region_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict):
        raise _via_error(path, "`shape_attributes` of every region", region)
    return shape, attributes if isinstance(attributes, dict) else {}


def _read_csv(path: Path) -> dict[str, list[Region]]:
    """Regions by file name, from one row for each region."""
    entries: dict[str, list[Region]] = {}
    try:
        text = read_bounded(path, MOST_TEXT_BYTES).decode("utf-8-sig")
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith("#")]
        rows = list(csv.DictReader(io.StringIO("".join(lines), newline=""), strict=True))
        for row in rows:
            regions = entries.setdefault(str(row.get("filename") or ""), [])
            shape = json.loads(row.get("region_shape_attributes") or "{}")
            attributes = json.loads(row.get("region_attributes") or "{}")
            if shape:
                regions.append(
                    _to_region({"shape_attributes": shape, "region_attributes": attributes}, path)
                )
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise _via_error(
            path, "a CSV table with JSON cells", f"{type(error).__name__}: {error}"
        ) from error
    return entries


def _class_attribute(entries: Mapping[str, Sequence[Region]], path: Path) -> str | None:
    """Attribute of the regions that is the class; None if they have none."""
    names = dict.fromkeys(
        name for regions in entries.values() for _, attributes in regions for name in attributes
    )
    usual = [name for name in names if name.strip().lower() in _CLASS_ATTRIBUTES]
    if len(names) <= 1:
        return next(iter(names), None)
    if len(usual) != 1:
        raise _via_error(
            path,
            "one attribute that is the class (label, class, type, name, category or object)",
            f"the attributes {format_list(names)}",
        )
    return usual[0]


def _via_shape(region: Region, attribute: str | None, where: str) -> Shape:
    shape, attributes = region
    value = _ONLY_CLASS if attribute is None else attributes.get(attribute)
    if isinstance(value, Mapping):  # a checkbox
        chosen = [name for name, is_set in value.items() if is_set]
        value = chosen[0] if len(chosen) == 1 else None
    label = value if isinstance(value, str) else ""
    kind = shape.get("name")
    if kind == "rect":
        left, top, width, height = _sides(shape, ("x", "y", "width", "height"), where)
        corners = np.array([[left, top], [left + width, top + height]])
        return rectangle_shape(label, corners, where)
    if kind == "polygon":
        xs, ys = (shape.get(f"all_points_{axis}") for axis in "xy")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise DataError(
                f"Expected as many x as y in a polygon of {where}, got {brief(xs)} and "
                f"{brief(ys)}. Correct the region."
            )
        points = np.stack([numbers(xs, where), numbers(ys, where)], axis=1)
        return polygon_shape(label, points, where)
    if kind == "circle":
        x, y, radius = _sides(shape, ("cx", "cy", "r"), where)
        return ellipse_shape(label, (x, y), (radius, radius), where)
    if kind == "ellipse":
        x, y, *radii = _sides(shape, ("cx", "cy", "rx", "ry"), where)
        angle = np.degrees(numbers([shape.get("theta", 0)], where)[0])
        return ellipse_shape(label, (x, y), radii, where, float(angle))
    raise unread_shape_error(kind, label, where, _READABLE)


def _sides(shape: Mapping[str, Any], names: Sequence[str], where: str) -> list[float]:
    return numbers([shape.get(name) for name in names], where)
