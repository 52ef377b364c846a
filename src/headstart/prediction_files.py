"""What a model answered, as text or as files in a folder of their own: whole or not there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from headstart.data.images import decode
from headstart.data.samples import Sample
from headstart.dense import Detections, Segmented
from headstart.dense_output import (
    coco_images,
    coco_results,
    mask_png,
    masks_csv,
    masks_json,
    objects_csv,
    objects_json,
    png,
    stems,
    yolo_names,
    yolo_text,
)
from headstart.errors import SetupError, UnknownNameError, UsageError
from headstart.model import Answer, predictions_csv, predictions_json

__all__ = [
    "FORMATS",
    "as_csv",
    "as_json",
    "new_folder",
    "require_format",
    "write_found",
    "write_pictures",
]

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
    """Give answers of one task as plain values, one for each picture.

    >>> from headstart.model import Prediction
    >>> one = Prediction(name="a.jpg", label="cat", probability=0.9, probabilities={"cat": 0.9})
    >>> as_json([one], ["cat"])[0]["label"]
    'cat'
    """
    plain: list[dict[str, Any]] = []
    for one in found:
        if isinstance(one, Detections):
            plain += objects_json([one], classes)
        elif isinstance(one, Segmented):
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
    if isinstance(first[0], Segmented):
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
    >>> one = Segmented(name="a.png", mask=np.zeros((2, 2), np.uint8))
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
    write_pictures(folder / "masks", found, lambda sample, one: mask_png(one.mask, len(classes)))
    _put(folder / "classes.txt", "".join(f"{name}\n" for name in classes))


def _write_overlays(folder: Path, found: Pairs, classes: Sequence[str]) -> None:
    write_pictures(folder, found, partial(_overlay, classes=classes))


def write_pictures(folder: Path, found: Pairs, make: Callable[[Sample, Any], bytes]) -> None:
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

    from headstart.overlays import draw_boxes, draw_mask

    picture = decode(sample.image)
    if isinstance(one, Segmented):
        return png(Image.fromarray(draw_mask(picture, one.mask, classes)))
    drawn = draw_boxes(picture, one.boxes, one.labels, one.scores, classes=classes)
    return png(Image.fromarray(drawn))


def _answers(found: Pairs) -> Iterator[Answer]:
    for _, one in found:
        yield one


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
