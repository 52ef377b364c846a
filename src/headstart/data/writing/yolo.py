"""Writer of YOLO labels: a text file for each image, and data.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.data.dataset import SPLITS, Boxes, Dataset
from headstart.data.image_sizes import upright_size
from headstart.data.writing.image_files import ImageFile
from headstart.files import output_path, write_whole

__all__ = ["label_text", "write_yolo", "yolo_folders"]


def yolo_folders(data: Dataset) -> list[str]:
    """Folder of each image: ``images/<split>``, or ``images``."""
    return [f"images/{sample.split}" if sample.split else "images" for sample in data.samples]


def write_yolo(folder: Path, data: Dataset, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Write ``labels/`` for ``images/``, and data.yaml with names and splits.

    Objects that are difficult or crowds are left out. An image without objects has an empty file.

    Returns
    -------
    tuple of str
        Sentences about what was not kept.
    """
    import yaml

    ids = {name: number for number, name in enumerate(data.classes)}
    n_outside = 0
    for file in files:
        if isinstance(file.sample.target, Boxes):
            size = upright_size(file.sample.image)[::-1]
            text, clipped = label_text(file.sample.target, ids, size)
            n_outside += clipped
            name = f"labels{file.stem.removeprefix('images')}.txt"
            output_path(folder, name).write_text(text, "utf-8")
    present = {sample.split for sample in data.samples}
    parts: dict[str, Any] = {name: f"images/{name}" for name in SPLITS if name in present}
    entries = {"path": ".", **(parts or {"train": "images", "val": "images"})}
    content = {**entries, "nc": len(data.classes), "names": list(data.classes)}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_whole(output_path(folder, "data.yaml"), text)
    if not n_outside:
        return ()
    return (f"parts of {n_outside} boxes outside their image: they are clipped to the image.",)


def label_text(boxes: Boxes, ids: Mapping[str, int], size: tuple[int, int]) -> tuple[str, int]:
    r"""Write the lines of an image: class, centre x, centre y, width and height as fractions.

    Parameters
    ----------
    boxes : Boxes
    ids : mapping of str to int
        Number of each class, from 0.
    size : (int, int)
        Width and height of the displayed image.

    Returns
    -------
    str
        Ten decimals; boxes are clipped to the image.
    int
        Number of boxes that were clipped.

    Examples
    --------
    >>> label_text(Boxes(corners=((0, 0, 4, 2),), labels=("cell",)), {"cell": 0}, (8, 4))
    ('0 0.25 0.25 0.5 0.5\n', 0)
    """
    (width, height), lines, n_clipped = size, [], 0
    for corners, label, is_hard in zip(boxes.corners, boxes.labels, boxes.is_hard(), strict=True):
        if is_hard:
            continue
        left, right = (min(max(x, 0.0), width) / width for x in corners[::2])
        top, bottom = (min(max(y, 0.0), height) / height for y in corners[1::2])
        n_clipped += min(corners) < 0 or corners[2] > width or corners[3] > height
        values = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        cells = (f"{value:.10f}".rstrip("0").rstrip(".") for value in values)
        lines.append(f"{ids[label]} {' '.join(cells)}\n")
    return "".join(lines), n_clipped
