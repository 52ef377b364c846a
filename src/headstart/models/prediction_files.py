"""Boxes and masks in formats that other programs, and Headstart itself, read; pure functions."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Sample
from headstart.data.images import decode
from headstart.errors import SetupError, UnknownNameError, UsageError
from headstart.models.inference import Detections, Segmentation
from headstart.models.transfer_model import Answer, predictions_csv, predictions_json

__all__ = [
    "FORMATS",
    "as_csv",
    "as_json",
    "coco_images",
    "coco_results",
    "mask_png",
    "masks_csv",
    "masks_json",
    "new_folder",
    "objects_csv",
    "objects_json",
    "png",
    "require_format",
    "stems",
    "write_found",
    "write_images",
    "yolo_names",
    "yolo_text",
]


def stems(names: Sequence[str]) -> tuple[str, ...]:
    """Name a file for each image: its path below the folder that all share, without a suffix.

    >>> stems(["a/x/1.jpg", "a/y/1.jpg", "a/y/1.png", "<ndarray>"][:3])
    ('x/1', 'y/1', 'y/1-2')
    >>> stems(["<ndarray>", "<ndarray>"])
    ('ndarray', 'ndarray-2')
    """
    paths = [Path(os.path.abspath(name)) for name in names]  # noqa: PTH100 - links stay links
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    plain = [
        re.sub(r'[<>:"|?*\0]', "", p.relative_to(root).with_suffix("").as_posix()) for p in paths
    ]
    taken: set[str] = set()
    seen: Counter[str] = Counter()
    found = []
    for stem in plain:
        name = stem
        while name in taken:
            seen[stem] += 1
            name = f"{stem}-{seen[stem] + 1}"
        taken.add(name)
        found.append(name)
    return tuple(found)


def objects_json(found: Iterable[Detections], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Objects as plain values, boxes as left, top, right, bottom in the image's pixels.

    Examples
    --------
    >>> one = Detections(
    ...     name="a.jpg",
    ...     size=(20, 10),
    ...     boxes=np.array([[1, 2, 5, 8]], np.float32),
    ...     scores=np.array([0.75], np.float32),
    ...     labels=np.array([0]),
    ... )
    >>> objects_json([one], ["cell"])[0]["objects"]
    [{'label': 'cell', 'score': 0.75, 'box': [1.0, 2.0, 5.0, 8.0]}]
    """
    return [
        {
            "image": one.name,
            "width": one.size[0],
            "height": one.size[1],
            "objects": [
                {"label": label, "score": score, "box": box}
                for label, score, box in _rows(one, classes)
            ],
        }
        for one in found
    ]


def objects_csv(found: Iterable[Detections], classes: Sequence[str]) -> str:
    """Objects as the text of a CSV file, one line each; an image without objects has none."""
    rows = (
        [one.name, label, f"{score:.6f}", *(f"{side:.2f}" for side in box)]
        for one in found
        for label, score, box in _rows(one, classes)
    )
    return _table(["image", "label", "score", "left", "top", "right", "bottom"], rows)


def coco_results(found: Iterable[Detections]) -> list[dict[str, Any]]:
    """COCO's format of results: ``bbox`` is left, top, width, height; ids count from 1.

    Which image and class an id is says ``coco_images``.
    """
    results = []
    for number, one in enumerate(found, start=1):
        for label, score, box in zip(one.labels, one.scores, one.boxes.tolist(), strict=True):
            left, top, right, bottom = (round(side, 4) for side in box)
            results.append(
                {
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [left, top, round(right - left, 4), round(bottom - top, 4)],
                    "score": round(float(score), 6),
                }
            )
    return results


def coco_images(found: Iterable[Detections], classes: Sequence[str]) -> dict[str, Any]:
    """Images and classes that the ids of ``coco_results`` mean, as in COCO's annotations.

    >>> coco_images([], ["cell"])["categories"]
    [{'id': 1, 'name': 'cell'}]
    """
    return {
        "images": [
            {"id": i, "file_name": one.name, "width": one.size[0], "height": one.size[1]}
            for i, one in enumerate(found, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }


def yolo_text(one: Detections, *, scores: bool = False) -> str:
    """Objects of one image as YOLO's lines: class, centre x, centre y, width, height.

    Shares of the image's width and height, classes from 0.

    Parameters
    ----------
    one : Detections
    scores : bool
        Write the score behind each line, as YOLO's programs do on request; labels to learn
        from have none.
    """
    lines = []
    width, height = one.size
    for label, score, box in zip(one.labels, one.scores, one.boxes.tolist(), strict=True):
        left, top, right, bottom = box
        centre = (left + right) / 2 / width, (top + bottom) / 2 / height
        values = *centre, (right - left) / width, (bottom - top) / height
        cells = [str(int(label)), *(f"{value:.8f}" for value in values)]
        lines.append(" ".join(cells + [f"{score:.6f}"] * scores) + "\n")
    return "".join(lines)


def yolo_names(classes: Sequence[str]) -> str:
    """Write YOLO's data.yaml: the number of classes and their names.

    >>> print(yolo_names(["cell", "no"]))
    nc: 2
    names:
    - cell
    - 'no'
    <BLANKLINE>
    """
    import yaml

    text: str = yaml.safe_dump(
        {"nc": len(classes), "names": list(classes)}, sort_keys=False, allow_unicode=True
    )
    return text


def masks_json(found: Iterable[Segmentation], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Share of each class that a mask shows, in the order of the classes.

    >>> one = Segmentation(name="a.png", mask=np.array([[0, 1], [1, 1]], np.uint8))
    >>> masks_json([one], ["background", "leaf"])[0]["classes"]
    {'background': 0.25, 'leaf': 0.75}
    """
    return [
        {
            "image": one.name,
            "width": one.mask.shape[1],
            "height": one.mask.shape[0],
            "classes": {classes[i]: share for i, share in _shares(one.mask)},
        }
        for one in found
    ]


def masks_csv(found: Iterable[Segmentation], classes: Sequence[str]) -> str:
    """Shares of classes as the text of a CSV file, one line for each class that is shown."""
    rows = (
        [one.name, classes[i], f"{share:.6f}"] for one in found for i, share in _shares(one.mask)
    )
    return _table(["image", "class", "share"], rows)


def mask_png(mask: NDArray[np.uint8], n_classes: int) -> bytes:
    """Write a mask as an indexed PNG: a pixel is its class's place, shown in its colour.

    Parameters
    ----------
    mask : array, uint8, shape (height, width)
    n_classes : int

    Examples
    --------
    >>> from PIL import Image
    >>> png = mask_png(np.array([[0, 1, 1]], np.uint8), 2)
    >>> np.asarray(Image.open(io.BytesIO(png))).tolist()
    [[0, 1, 1]]
    """
    from PIL import Image

    from headstart.data.draw import class_colours

    image = Image.fromarray(mask)
    image.putpalette(class_colours(n_classes).tobytes())
    return png(image)


def _rows(one: Detections, classes: Sequence[str]) -> Iterator[tuple[str, float, list[float]]]:
    for label, score, box in zip(one.labels, one.scores, one.boxes.tolist(), strict=True):
        yield classes[int(label)], round(float(score), 6), [round(side, 2) for side in box]


def _shares(mask: NDArray[np.uint8]) -> list[tuple[int, float]]:
    places, counts = np.unique(mask, return_counts=True)
    return [(int(i), round(int(n) / mask.size, 6)) for i, n in zip(places, counts, strict=True)]


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    return table.getvalue()


def png(image: Any) -> bytes:
    """Encode a PIL image as PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


FORMATS = {
    "classification": ("table", "json", "csv"),
    "detection": ("table", "json", "csv", "coco", "yolo", "overlay"),
    "segmentation": ("table", "json", "csv", "masks", "overlay"),
}
"""What can be made of a task's answers; but for the first three, files in a folder."""


def require_format(form: str, task: str) -> None:
    """Refuse a format that a task's answers cannot have.

    Raises
    ------
    UnknownNameError
        By the formats that they can have.
    """
    if form not in FORMATS[task]:
        raise UnknownNameError(f"format for {task}", form, FORMATS[task])


def as_json(found: Iterable[Answer], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Give answers of one task as plain values, one for each image.

    >>> from headstart.models.transfer_model import Prediction
    >>> one = Prediction(name="a.jpg", label="cat", probability=0.9, probabilities={"cat": 0.9})
    >>> as_json([one], ["cat"])[0]["label"]
    'cat'
    """
    plain: list[dict[str, Any]] = []
    for one in found:
        if isinstance(one, Detections):
            plain += objects_json([one], classes)
        elif isinstance(one, Segmentation):
            plain += masks_json([one], classes)
        else:
            plain += predictions_json([one])
    return plain


def as_csv(found: Iterable[Answer], classes: Sequence[str]) -> str:
    """Give answers of one task as the text of a CSV file; empty for no answer."""
    left = iter(found)
    whole: Any = chain(first := list(islice(left, 1)), left)
    if not first:
        return ""
    if isinstance(first[0], Detections):
        return objects_csv(whole, classes)
    if isinstance(first[0], Segmentation):
        return masks_csv(whole, classes)
    return predictions_csv(list(whole))


def write_found(
    folder: Path,
    form: str,
    found: Iterable[tuple[Sample, Answer]],
    classes: Sequence[str],
) -> Path:
    """Write answers as files into a new folder, whole or not at all.

    Parameters
    ----------
    folder : Path
        Not there yet, or empty.
    form : str
        One of the task's ``FORMATS`` but ``table``; with ``json`` and ``csv`` one file is written.
    found : iterable of (Sample, Prediction, Detections or Segmented)
        Gone through once.
    classes : sequence of str
        Of the model's task.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UsageError
        If there is something in the folder.
    SetupError
        If it cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> folder = Path(tempfile.mkdtemp())
    >>> one = Segmentation(name="a.png", mask=np.zeros((2, 2), np.uint8))
    >>> found = write_found(folder, "masks", [(Sample(image=b""), one)], ["background", "leaf"])
    >>> sorted(path.name for path in found.rglob("*"))
    ['a.png', 'classes.txt', 'masks']
    """
    if form not in _WRITERS:
        raise UnknownNameError("format", form, list(_WRITERS))
    with new_folder(folder) as made:
        _WRITERS[form](made, found, classes)
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the wanted one, which becomes it at the end, or is gone.

    Raises
    ------
    UsageError
        If there is something in the wanted one.
    SetupError
        If it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"Expected {folder} to be new or empty, got one with files; do name another --out."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise SetupError(
            f"Expected to write to {folder}, got {error}; do choose another --out."
        ) from error
    try:
        yield made
        made.chmod(0o755)  # mkdtemp's folders are private
        made.replace(folder)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise SetupError(
            f"Expected to write to {folder}, got {error}; do make room, or choose another --out."
        ) from error
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


Pairs = Iterable[tuple[Sample, Answer]]
Writer = Callable[[Path, Pairs, Sequence[str]], None]


def _write_json(folder: Path, found: Pairs, classes: Sequence[str]) -> None:
    _put(folder / "predictions.json", json.dumps(as_json(_answers(found), classes), indent=1))


def _write_csv(folder: Path, found: Pairs, classes: Sequence[str]) -> None:
    _put(folder / "predictions.csv", as_csv(_answers(found), classes))


def _write_coco(folder: Path, found: Pairs, classes: Sequence[str]) -> None:
    answers: Any = list(_answers(found))
    _put(folder / "results.json", json.dumps(coco_results(answers), indent=1))
    _put(folder / "images.json", json.dumps(coco_images(answers, classes), indent=1))


def _write_yolo(folder: Path, found: Pairs, classes: Sequence[str]) -> None:
    answers: Any = list(_answers(found))
    for stem, one in zip(stems([a.name for a in answers]), answers, strict=True):
        _put(folder / "labels" / f"{stem}.txt", yolo_text(one))
    _put(folder / "data.yaml", yolo_names(classes))


def _write_masks(folder: Path, found: Pairs, classes: Sequence[str]) -> None:
    write_images(folder / "masks", found, lambda sample, one: mask_png(one.mask, len(classes)))
    _put(folder / "classes.txt", "".join(f"{name}\n" for name in classes))


def _write_overlays(folder: Path, found: Pairs, classes: Sequence[str]) -> None:
    write_images(folder, found, partial(_overlay, classes=classes))


def write_images(folder: Path, found: Pairs, make: Callable[[Sample, Any], bytes]) -> None:
    """Write one PNG an answer at once, and name them at the end, when all names are known.

    Names are those of ``dense_output.stems``, in the order of the answers.
    """
    names = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (sample, one) in enumerate(found):
        (folder / f".{number}").write_bytes(make(sample, one))
        names.append(one.name)
    for number, stem in enumerate(stems(names)):
        path = folder / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (folder / f".{number}").rename(path)


_WRITERS: dict[str, Writer] = {
    "json": _write_json,
    "csv": _write_csv,
    "coco": _write_coco,
    "yolo": _write_yolo,
    "masks": _write_masks,
    "overlay": _write_overlays,
}


def _overlay(sample: Sample, one: Any, classes: Sequence[str]) -> bytes:
    from PIL import Image

    from headstart.data.draw import draw_boxes, draw_mask

    image = decode(sample.image)
    if isinstance(one, Segmentation):
        return png(Image.fromarray(draw_mask(image, one.mask, classes)))
    drawn = draw_boxes(image, one.boxes, one.labels, one.scores, classes=classes)
    return png(Image.fromarray(drawn))


def _answers(found: Pairs) -> Iterator[Answer]:
    for _, one in found:
        yield one


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
