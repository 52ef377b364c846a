"""Predictions as files: CSV, JSON, COCO, YOLO, mask PNG and overlays.

First functions from predictions to values and texts, then functions that write them to a folder.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Sample
from headstart.data.images import decode
from headstart.errors import SetupError, UnknownNameError, UsageError
from headstart.files import (
    csv_text,
    file_stems,
    output_path,
    publish_scratch,
    scratch_folder,
    write_whole,
)
from headstart.metrics.validation import json_text
from headstart.models.coco_ids import CocoIds, to_stated_size
from headstart.models.inference import Detections, Segmentation
from headstart.models.transfer_model import AnyPrediction, predictions_csv, predictions_json

__all__ = [
    "FORMATS",
    "as_csv",
    "as_json",
    "atomic_folder",
    "coco_images",
    "coco_results",
    "encode_png",
    "mask_png",
    "masks_csv",
    "masks_json",
    "objects_csv",
    "objects_json",
    "require_format",
    "write_images",
    "write_predictions",
    "yolo_names",
    "yolo_text",
]

FORMATS = {
    "classification": ("table", "json", "csv"),
    "detection": ("table", "json", "csv", "coco", "yolo", "overlay"),
    "segmentation": ("table", "json", "csv", "masks", "overlay"),
}
"""Output formats by task. All but the first three are files in a folder."""
Pairs = Iterable[tuple[Sample, Any]]
"""Samples with their predictions, all of one task."""
Writer = Callable[[Path, Pairs, Sequence[str]], None]


def objects_json(predictions: Iterable[Detections], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Objects as JSON values, boxes as left, top, right, bottom in the image's pixels.

    Examples
    --------
    >>> detections = Detections(
    ...     name="a.jpg",
    ...     size=(20, 10),
    ...     boxes=np.array([[1, 2, 5, 8]], np.float32),
    ...     scores=np.array([0.75], np.float32),
    ...     labels=np.array([0]),
    ... )
    >>> objects_json([detections], ["cell"])[0]["objects"]
    [{'label': 'cell', 'score': 0.75, 'box': [1.0, 2.0, 5.0, 8.0]}]
    """
    return [
        {
            "image": detections.name,
            "width": detections.size[0],
            "height": detections.size[1],
            "objects": [
                {"label": label, "score": score, "box": box}
                for label, score, box in _rounded_objects(detections, classes)
            ],
        }
        for detections in predictions
    ]


def objects_csv(predictions: Iterable[Detections], classes: Sequence[str]) -> str:
    """Objects as the text of a CSV file, one line each; an image without objects has none."""
    rows = (
        [detections.name, label, f"{score:.9g}", *(f"{side:.2f}" for side in box)]
        for detections in predictions
        for label, score, box in _rounded_objects(detections, classes)
    )
    return csv_text(["image", "label", "score", "left", "top", "right", "bottom"], rows)


def coco_results(
    predictions: Sequence[Detections],
    classes: Sequence[str],
    document: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """COCO's format of results: ``bbox`` is left, top, width, height.

    Parameters
    ----------
    predictions : sequence of Detections
    classes : sequence of str
    document : mapping, optional
        Its ``images`` and ``categories``, one for each prediction and class, have the ids. By
        default those of ``coco_images``, which start at 1.

    Returns
    -------
    list of dict
        Each also has the ``file_name`` and the name of the ``category``.
    """
    document = document or coco_images(predictions, classes)
    categories = document["categories"]
    results = []
    for image, detections in zip(document["images"], predictions, strict=True):
        for label, score, box in _objects(detections):
            left, top, right, bottom = (round(side, 4) for side in box)
            results.append(
                {
                    "image_id": image["id"],
                    "file_name": image["file_name"],
                    "category_id": categories[int(label)]["id"],
                    "category": categories[int(label)]["name"],
                    "bbox": [left, top, round(right - left, 4), round(bottom - top, 4)],
                    "score": round(float(score), 6),
                }
            )
    return results


def coco_images(predictions: Iterable[Detections], classes: Sequence[str]) -> dict[str, Any]:
    """Images and classes by the ids of ``coco_results``, as in COCO's annotations.

    >>> coco_images([], ["cell"])["categories"]
    [{'id': 1, 'name': 'cell'}]
    """
    return {
        "images": [
            {
                "id": image_id,
                "file_name": detections.name,
                "width": detections.size[0],
                "height": detections.size[1],
            }
            for image_id, detections in enumerate(predictions, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }


def yolo_text(detections: Detections, *, scores: bool = False) -> str:
    """Objects of one image as YOLO's lines: class, centre x, centre y, width, height.

    Coordinates are fractions of the image's width and height; classes start at 0.

    Parameters
    ----------
    detections : Detections
    scores : bool
        Write the score at the end of each line, as YOLO's programs do on request. Training
        labels have no scores.
    """
    lines = []
    width, height = detections.size
    for label, score, box in _objects(detections):
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


def masks_json(predictions: Iterable[Segmentation], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Share of the pixels of each class in a mask, in the order of the classes.

    >>> leaf = Segmentation(name="a.png", mask=np.array([[0, 1], [1, 1]], np.uint8))
    >>> masks_json([leaf], ["background", "leaf"])[0]["classes"]
    {'background': 0.25, 'leaf': 0.75}
    """
    return [
        {
            "image": segmentation.name,
            "width": segmentation.mask.shape[1],
            "height": segmentation.mask.shape[0],
            "classes": {classes[i]: share for i, share in _class_shares(segmentation.mask)},
        }
        for segmentation in predictions
    ]


def masks_csv(predictions: Iterable[Segmentation], classes: Sequence[str]) -> str:
    """Shares of classes as the text of a CSV file, one line for each class in a mask."""
    rows = (
        [segmentation.name, classes[i], f"{share:.6f}"]
        for segmentation in predictions
        for i, share in _class_shares(segmentation.mask)
    )
    return csv_text(["image", "class", "share"], rows)


def mask_png(mask: NDArray[np.uint8], n_classes: int) -> bytes:
    """Encode a mask as an indexed PNG: a pixel's value is its class index, with a palette.

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
    return encode_png(image)


def _objects(detections: Detections) -> Iterator[tuple[int, float, list[float]]]:
    """Class index, score and box of every object."""
    boxes = detections.boxes.tolist()
    yield from zip(detections.labels, detections.scores, boxes, strict=True)


def _rounded_objects(
    detections: Detections, classes: Sequence[str]
) -> Iterator[tuple[str, float, list[float]]]:
    for label, score, box in _objects(detections):
        yield classes[int(label)], round(float(score), 6), [round(side, 2) for side in box]


def _class_shares(mask: NDArray[np.uint8]) -> list[tuple[int, float]]:
    indices, counts = np.unique(mask, return_counts=True)
    return [(int(i), round(int(n) / mask.size, 6)) for i, n in zip(indices, counts, strict=True)]


def encode_png(image: Any) -> bytes:
    """Encode a PIL image as PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def require_format(output_format: str, task: str) -> None:
    """Refuse a format that a task does not have.

    Raises
    ------
    UnknownNameError
        If the format is not among the task's ``FORMATS``.
    """
    if output_format not in FORMATS[task]:
        raise UnknownNameError(f"format for {task}", output_format, FORMATS[task])


def as_json(predictions: Iterable[AnyPrediction], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Predictions of one task as JSON values, one for each image.

    >>> from headstart.models.transfer_model import Prediction
    >>> cat = Prediction(name="a.jpg", label="cat", probability=0.9, probabilities={"cat": 0.9})
    >>> as_json([cat], ["cat"])[0]["label"]
    'cat'
    """
    values: list[dict[str, Any]] = []
    for prediction in predictions:
        if isinstance(prediction, Detections):
            values += objects_json([prediction], classes)
        elif isinstance(prediction, Segmentation):
            values += masks_json([prediction], classes)
        else:
            values += predictions_json([prediction])
    return values


def as_csv(predictions: Iterable[AnyPrediction], classes: Sequence[str]) -> str:
    """Predictions of one task as the text of a CSV file; empty if there are none."""
    rest = iter(predictions)
    # The first prediction decides the format; the others are read one by one.
    first = list(islice(rest, 1))
    if not first:
        return ""
    everything: Any = chain(first, rest)
    if isinstance(first[0], Detections):
        return objects_csv(everything, classes)
    if isinstance(first[0], Segmentation):
        return masks_csv(everything, classes)
    return predictions_csv(list(everything))


def write_predictions(
    folder: Path,
    output_format: str,
    pairs: Iterable[tuple[Sample, AnyPrediction]],
    classes: Sequence[str],
    ids: CocoIds | None = None,
) -> Path:
    """Write predictions as files into a new folder, completely or not at all.

    Parameters
    ----------
    folder : Path
        New or empty.
    output_format : str
        One of the task's ``FORMATS`` but ``table``; ``json`` and ``csv`` write one file.
    pairs : iterable of (Sample, Prediction, Detections or Segmentation)
        Iterated once.
    classes : sequence of str
        Of the model's task.
    ids : CocoIds, optional
        Ids of images and classes for the format ``coco``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UsageError
        If the folder has files.
    DataError
        If an image or class has no id.
    SetupError
        If it cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> pairs = [(Sample(image=b""), Segmentation(name="a.png", mask=np.zeros((2, 2), np.uint8)))]
    >>> written = write_predictions(folder, "masks", pairs, ["background", "leaf"])
    >>> sorted(path.name for path in written.rglob("*"))
    ['a.png', 'classes.txt', 'masks']
    """
    if output_format not in _WRITERS:
        raise UnknownNameError("format", output_format, list(_WRITERS))
    with atomic_folder(folder) as scratch:
        if output_format == "coco":
            _write_coco(scratch, pairs, classes, ids)
        else:
            _WRITERS[output_format](scratch, pairs, classes)
    return folder


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the final one: it replaces the final one, or is removed on failure.

    Raises
    ------
    UsageError
        If the final folder has files.
    SetupError
        If it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"Expected {folder} to be new or empty, got one with files. Pass another --out."
        )
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(folder.parent, folder.name))
        except OSError as error:
            raise SetupError(f"Cannot write to {folder}: {error}. Pass another --out.") from error
        try:
            yield scratch
            publish_scratch(scratch, folder)
        except OSError as error:
            raise SetupError(
                f"Cannot write to {folder}: {error}. Free disk space, or pass another --out."
            ) from error


def _write_json(folder: Path, pairs: Pairs, classes: Sequence[str]) -> None:
    values = as_json((prediction for _, prediction in pairs), classes)
    write_whole(output_path(folder, "predictions.json"), json_text(values, indent=1))


def _write_csv(folder: Path, pairs: Pairs, classes: Sequence[str]) -> None:
    text = as_csv((prediction for _, prediction in pairs), classes)
    write_whole(output_path(folder, "predictions.csv"), text)


def _write_coco(
    folder: Path, pairs: Pairs, classes: Sequence[str], ids: CocoIds | None = None
) -> None:
    own = list(pairs)
    predictions = [prediction for _, prediction in own]
    document = coco_images(predictions, classes)
    if ids is not None:
        document = ids.document([prediction.name for prediction in predictions], classes)
        predictions = [
            to_stated_size(sample, prediction, entry)
            for (sample, prediction), entry in zip(own, document["images"], strict=True)
        ]
    results = coco_results(predictions, classes, document)
    write_whole(output_path(folder, "results.json"), json_text(results, indent=1))
    write_whole(output_path(folder, "images.json"), json_text(document, indent=1))


def _write_yolo(folder: Path, pairs: Pairs, classes: Sequence[str]) -> None:
    predictions = [prediction for _, prediction in pairs]
    stems = file_stems([prediction.name for prediction in predictions])
    for stem, prediction in zip(stems, predictions, strict=True):
        write_whole(output_path(folder, f"labels/{stem}.txt"), yolo_text(prediction))
    write_whole(output_path(folder, "data.yaml"), yolo_names(classes))


def _write_masks(folder: Path, pairs: Pairs, classes: Sequence[str]) -> None:
    write_images(folder / "masks", pairs, lambda _, mask: mask_png(mask.mask, len(classes)))
    write_whole(output_path(folder, "classes.txt"), "".join(f"{name}\n" for name in classes))


def _write_overlays(folder: Path, pairs: Pairs, classes: Sequence[str]) -> None:
    write_images(folder, pairs, partial(_draw_overlay, classes=classes))


def write_images(folder: Path, pairs: Pairs, draw: Callable[[Sample, Any], bytes]) -> None:
    """Write one PNG for each prediction; the names are those of ``file_stems``.

    Images are written one by one under temporary names: the final names depend on all names.
    """
    names = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, (sample, prediction) in enumerate(pairs):
        (folder / f".{number}").write_bytes(draw(sample, prediction))
        names.append(prediction.name)
    for number, stem in enumerate(file_stems(names)):
        (folder / f".{number}").rename(output_path(folder, f"{stem}.png"))


_WRITERS: dict[str, Writer] = {
    "json": _write_json,
    "csv": _write_csv,
    "coco": _write_coco,
    "yolo": _write_yolo,
    "masks": _write_masks,
    "overlay": _write_overlays,
}


def _draw_overlay(
    sample: Sample, prediction: Detections | Segmentation, classes: Sequence[str]
) -> bytes:
    from PIL import Image

    from headstart.data.draw import draw_boxes, draw_mask

    image = decode(sample.image, options=sample.options)
    if isinstance(prediction, Segmentation):
        return encode_png(Image.fromarray(draw_mask(image, prediction.mask, classes)))
    overlay = draw_boxes(
        image, prediction.boxes, prediction.labels, prediction.scores, classes=classes
    )
    return encode_png(Image.fromarray(overlay))
