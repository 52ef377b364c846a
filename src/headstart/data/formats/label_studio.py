"""Reader of Label Studio: tasks with results, exported as JSON."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from headstart.data.dataset import brief
from headstart.data.formats.annotations import AnnotatedImage, Annotations, join_images
from headstart.data.formats.documents import read_json
from headstart.data.formats.image_names import ImageNames
from headstart.data.formats.layouts import Listing, is_image
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
from headstart.errors import DataError

__all__ = ["read_label_studio"]

_READABLE = "RectangleLabels, PolygonLabels, EllipseLabels, Choices"
_NOT_READ = ("textarea", "rating", "number", "relation", "datetime", "taxonomy", "pairwise")


def read_label_studio(listing: Listing, files: Sequence[str]) -> Annotations:
    """Read exports of Label Studio in the format JSON.

    Parameters
    ----------
    listing : Listing
        Of the folder that holds the images.
    files : sequence of str
        The JSON files, relative to that folder.

    Returns
    -------
    Annotations
        Coordinates are percents of the stated size. Choices are tags. Of a task that was annotated
        several times, the last annotation is used; predictions are not.

    Raises
    ------
    DataError
        If a file is damaged, is the format JSON-MIN, or has a region of another kind.
    """
    images = ImageNames(listing)
    items, notes = [], []
    for name in files:
        path = listing.root / name
        tasks = read_json(path, "Label Studio")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise _studio_error(path, "a list of tasks", tasks)
        n_repeated = sum(len(_completed(task)) > 1 for task in tasks)
        if n_repeated:
            notes.append(f"{n_repeated} tasks annotated several times: the last annotation is used")
        items += [
            _read_task(task, images, posixpath.dirname(name), path)
            for task in tasks
            if _completed(task)
        ]
        n_open = sum(not _completed(task) for task in tasks)
        if n_open:
            notes.append(f"{n_open} tasks without an annotation left out")
    return join_images(listing, items, "Label Studio files", notes=notes)


def _studio_error(path: Path, expected: str, got: object) -> DataError:
    return DataError(
        f"Expected {expected} in the Label Studio file {str(path)!r}, got {brief(got)}. Export the "
        "project in the format JSON (not JSON-MIN)."
    )


def _completed(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Annotations of a task that were not cancelled."""
    entries = task.get("annotations", task.get("completions", []))
    entries = entries if isinstance(entries, list) else []
    return [
        entry for entry in entries if isinstance(entry, dict) and not entry.get("was_cancelled")
    ]


def _read_task(
    task: Mapping[str, Any], images: ImageNames, folder: str, path: Path
) -> AnnotatedImage:
    data, results = task.get("data"), _completed(task)[-1].get("result")
    if not isinstance(data, dict) or not isinstance(results, list):
        raise _studio_error(path, "`data` and `annotations` of every task", task)
    stated = _image_of(data, task)
    if stated is None:
        raise _studio_error(path, "the name of an image in `data` of every task", data)
    where = f"the task of {stated!r} in {str(path)!r}"
    shapes: dict[Any, Shape] = {}
    tags: list[str] = []
    size = None
    for position, result in enumerate(results):
        if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
            if isinstance(result, dict) and result.get("type") in _NOT_READ:
                continue
            raise _studio_error(path, "`type` and `value` of every result", result)
        kind, value = str(result.get("type", "")).lower(), result["value"]
        if kind == "choices":
            tags += [str(choice) for choice in value.get("choices", [])]
        elif kind not in _NOT_READ:
            own_size = stated_size(result.get("original_width"), result.get("original_height"))
            size = own_size or size
            shape = _label_studio_shape(result, kind, value, own_size, where)
            identity = result.get("id", position)
            if shape.label or identity not in shapes:  # a region and its labels share an id
                shapes[identity] = shape
    key = images.key_of(stated, folder, where)
    return annotated_image(key, list(shapes.values()), where, size=size, tags=tags)


def _image_of(data: Mapping[str, Any], task: Mapping[str, Any]) -> str | None:
    """Name or address of the image of a task."""
    values = [value for value in (data.get("image"), *data.values()) if isinstance(value, str)]
    named = [value for value in values if is_image(unquote(value).partition("?X-")[0])]
    upload = task.get("file_upload")
    if not named and isinstance(upload, str) and is_image(upload):
        return upload
    return named[0] if named else None


def _label_studio_shape(
    result: Mapping[str, Any],
    kind: str,
    value: Mapping[str, Any],
    size: tuple[int, int] | None,
    where: str,
) -> Shape:
    labels = value.get(kind, value.get("labels"))
    labels = labels if isinstance(labels, list) else []
    label = str(labels[0]) if len(labels) == 1 else ""
    if len(labels) > 1:
        raise DataError(
            f"Expected one class for each region in {where}, got {brief(labels)}. Keep one of them."
        )
    if size is None:
        raise DataError(
            f"Expected `original_width` and `original_height` of the regions in {where}, got "
            f"{result.get('original_width')!r} and {result.get('original_height')!r}. Export the "
            "project again."
        )
    percent = np.array(size, dtype=np.float64) / 100
    region = kind.removesuffix("labels")
    if region == "rectangle" or (kind == "labels" and {"x", "width"} <= value.keys()):
        x, y, width, height, degrees = _sides(value, ("x", "y", "width", "height"), where)
        if not degrees:
            corners = np.array([[x, y], [x + width, y + height]]) * percent
            return rectangle_shape(label, corners, where)
        corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
        points = corners * percent
        return polygon_shape(label, rotated(points, points[0].tolist(), degrees), where)
    if region == "polygon" or (kind == "labels" and "points" in value):
        return polygon_shape(label, points_of(value.get("points"), where) * percent, where)
    if region == "ellipse" or (kind == "labels" and "radiusX" in value):
        x, y, *radii, degrees = _sides(value, ("x", "y", "radiusX", "radiusY"), where)
        centre, sides = np.array([x, y]) * percent, np.array(radii) * percent
        return ellipse_shape(label, centre.tolist(), sides.tolist(), where, degrees)
    raise unread_shape_error(kind, label, where, _READABLE)


def _sides(value: Mapping[str, Any], names: Sequence[str], where: str) -> list[float]:
    return numbers([*(value.get(name) for name in names), value.get("rotation") or 0], where)
