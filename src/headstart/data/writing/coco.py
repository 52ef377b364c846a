"""Writer of COCO files: a JSON file for each split, beside its images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED, Boxes, Dataset, Mask
from headstart.data.draw import is_background
from headstart.data.image_sizes import upright_size
from headstart.data.writing.image_files import ImageFile
from headstart.data.writing.mask_folders import decode_for_image
from headstart.files import output_path, write_whole
from headstart.metrics.validation import json_text

__all__ = ["coco_folders", "run_lengths", "write_coco"]


def coco_folders(data: Dataset) -> list[str]:
    """Folder of each image: its split, or ``images``."""
    return [sample.split or "images" for sample in data.samples]


def write_coco(folder: Path, data: Dataset, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Write ``annotations/instances_<split>.json`` for the images of each split.

    Boxes have four decimals. A mask has one annotation for each class but the background, with run
    lengths. Coordinates are those of the displayed image.

    Returns
    -------
    tuple of str
        Sentences about what was not kept.
    """
    by_split: dict[str, list[ImageFile]] = {}
    for file in files:
        by_split.setdefault(file.sample.split or "", []).append(file)
    is_mask = data.kind == "segmentation"
    names = [name for name in data.classes if not (is_mask and is_background(name))]
    ids = {name: number for number, name in enumerate(names, start=1)}
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    n_ignored = 0
    for split, members in by_split.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, file in enumerate(members, start=1):
            images.append(_image_entry(number, file))
            found, ignored = _annotate(file, data, ids)
            n_ignored += ignored
            for each in found:
                entry = {"id": len(annotations) + 1, "image_id": number, **each}
                annotations.append(entry)
        document = {"images": images, "annotations": annotations, "categories": categories}
        name = f"annotations/instances{'_' * bool(split)}{split}.json"
        write_whole(output_path(folder, name), json_text(document))
    if not n_ignored:
        return ()
    return (f"{n_ignored} ignored pixels: COCO cannot mark them, so they are background.",)


def _image_entry(number: int, file: ImageFile) -> dict[str, Any]:
    height, width = upright_size(file.sample.image)
    entry = {"id": number, "file_name": file.path.rpartition("/")[2], "width": width}
    group = {} if file.sample.group is None else {"group": file.sample.group}
    return {**entry, "height": height, **group}


def _annotate(
    file: ImageFile, data: Dataset, ids: Mapping[str, int]
) -> tuple[list[dict[str, Any]], int]:
    """Annotations of an image without ids, and its number of ignored pixels."""
    target = file.sample.target
    if isinstance(target, Boxes):
        return list(_box_entries(target, ids)), 0
    if not isinstance(target, Mask):
        return [], 0
    indices = decode_for_image(file.sample, data.classes)
    entries = [
        _mask_entry(indices == position, ids[name])
        for position, name in enumerate(data.classes)
        if name in ids and (indices == position).any()
    ]
    return entries, int((indices == IGNORED).sum())


def _box_entries(boxes: Boxes, ids: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    hard = boxes.hard or (False,) * len(boxes.labels)
    for corners, label, is_hard in zip(boxes.corners, boxes.labels, hard, strict=True):
        left, top, right, bottom = map(float, corners)
        width, height = right - left, bottom - top
        yield {
            "category_id": ids[label],
            "bbox": [round(value, 4) for value in (left, top, width, height)],
            "area": round(width * height, 4),
            "iscrowd": int(is_hard),
        }


def _mask_entry(pixels: NDArray[np.bool_], category: int) -> dict[str, Any]:
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    width, height = int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top
    return {
        "category_id": category,
        "bbox": [left, top, width, height],
        "area": int(pixels.sum()),
        "iscrowd": 0,
        "segmentation": {"counts": run_lengths(pixels), "size": list(pixels.shape)},
    }


def run_lengths(pixels: NDArray[np.bool_]) -> list[int]:
    """Return COCO's run lengths of a mask: down the columns, beginning with zeros.

    >>> run_lengths(np.array([[True, False], [True, False]]))
    [0, 2, 2]
    """
    flat = pixels.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff([0, *changes.tolist(), flat.size]).tolist()
    return [0, *runs] if flat[0] else runs
