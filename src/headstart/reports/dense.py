"""Template values of a report about a detector or a segmentation model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Boxes, Sample
from headstart.data.draw import draw_boxes, draw_mask, hex_colours, is_background, resize_to_fit
from headstart.data.image_sizes import upright_size
from headstart.data.images import decode
from headstart.data.prepare import PreparedData
from headstart.data.splits import evenly_spaced
from headstart.errors import DataError, HeadstartError, UnreadableImageError
from headstart.evaluation.detection import TITLES as BOX_TITLES
from headstart.evaluation.detection import BoxEvaluation, RecallCurve, class_indices
from headstart.evaluation.segmentation import TITLES as MASK_TITLES
from headstart.evaluation.segmentation import MaskEvaluation, true_mask
from headstart.models.inference import Detections, segment
from headstart.models.transfer_model import TransferModel
from headstart.reports import charts
from headstart.reports.page import LIMITS, image_uri

__all__ = [
    "RecallPlot",
    "dense_extras",
    "dense_page",
    "dense_values",
    "draw_truth",
    "recall_plot",
]

DenseEvaluation = BoxEvaluation | MaskEvaluation

IMAGE_SIDE = 480
"""Longer side in pixels of images with boxes or masks."""

AT_RECALLS = (10, 30, 50, 70, 90)
"""Percent; the table below the curves shows the precision at these recalls."""

BACKGROUND = "no object"
"""Name of the last row and column of a detector's confusion matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallPlot:
    """Precision-recall curve of one class, scaled to ``charts.CURVE_WIDTH`` and its height.

    ``at`` is the precision at the recalls of the table.
    """

    name: str
    ap: float
    line: str
    at: tuple[float, ...]


def dense_values(evaluation: DenseEvaluation, model: TransferModel) -> dict[str, Any]:
    """Values for both the page and the model card."""
    is_boxes = isinstance(evaluation, BoxEvaluation)
    return {
        "numbers": _score_groups(evaluation),
        "head": _describe_head(model),
        "terms": {
            "template": "boxes.html.j2" if is_boxes else "masks.html.j2",
            "class": "class",
            "classes": "classes of objects" if is_boxes else "classes of pixels",
            "unit": "Objects" if is_boxes else "Images",
            "is_drawn": True,
            "prediction_files": "predictions.csv and predictions.json"
            if is_boxes
            else "predictions.csv",
        },
        "card": _card(is_boxes),
    }


def dense_page(
    evaluation: DenseEvaluation, model: TransferModel, prepared: PreparedData
) -> dict[str, Any]:
    """Values for the page alone."""
    classes = evaluation.task.classes
    values: dict[str, Any] = {
        "examples": _draw_examples(prepared, classes),
        "worst": _draw_worst(evaluation, model, prepared),
        "n_worst": len(evaluation.worst(len(evaluation.names))),
        "colours": _legend(evaluation),
        "counts": evaluation.confusion,
        "per_class": _per_class(evaluation),
    }
    sections = [("confusion", "Confusion matrix"), ("classes", "Classes")]
    if isinstance(evaluation, BoxEvaluation):
        chosen = evenly_spaced(len(evaluation.curves), LIMITS["curves"])
        values["curves"] = [recall_plot(evaluation.curves[i]) for i in chosen]
        values["at_recalls"] = AT_RECALLS
        values["names"] = (*classes, BACKGROUND)
        sections += [("curves", "Precision and recall")] if values["curves"] else []
    return values | {"sections": [*sections, ("worst", "Worst images")]}


def dense_extras(evaluation: DenseEvaluation) -> dict[str, Any]:
    """Values of report.json in addition to the evaluation's own numbers: the worst images."""
    return {
        "worst": [
            {"image": evaluation.names[row], **_image_scores(evaluation, row)}
            for row in evaluation.worst(LIMITS["mistakes_in_json"])
        ]
    }


def recall_plot(curve: RecallCurve) -> RecallPlot:
    """Scale a curve; both axes go from 0 to 1.

    Examples
    --------
    >>> recalls = np.linspace(0, 1, 101)
    >>> flat = RecallCurve(name="cell", recall=recalls, precision=recalls * 0 + 1, score=recalls)
    >>> plot = recall_plot(flat)
    >>> plot.line[:9], plot.ap, plot.at
    ('0,0 3,0 6', 1.0, (1.0, 1.0, 1.0, 1.0, 1.0))
    """
    points = zip(curve.recall, curve.precision, strict=True)
    scaled = [(charts.CURVE_WIDTH * x, charts.CURVE_HEIGHT * (1 - y)) for x, y in points]
    return RecallPlot(
        name=curve.name,
        ap=float(curve.precision.mean()),
        line=" ".join(f"{round(x, 1):g},{round(y, 1):g}" for x, y in scaled),
        at=tuple(float(curve.precision[percent]) for percent in AT_RECALLS),
    )


def _legend(evaluation: DenseEvaluation) -> list[tuple[str, str]]:
    classes, is_boxes = evaluation.task.classes, isinstance(evaluation, BoxEvaluation)
    pairs = zip(classes, hex_colours(len(classes)), strict=True)
    return [(name, colour) for name, colour in pairs if is_boxes or not is_background(name)]


def _score_groups(evaluation: DenseEvaluation) -> dict[str, Any]:
    """Main score first, with its baselines if there are any; then the other scores."""
    if isinstance(evaluation, BoxEvaluation):
        (first, headline), *rest = evaluation.metrics.items()
        return {
            "headline": (BOX_TITLES[first], first),
            "with_baselines": [(BOX_TITLES[first], {"this model": headline})],
            "scores": {_box_title(evaluation, name): number for name, number in rest},
            "errors": {},
        }
    metrics = dict(evaluation.metrics)
    by_title = {baseline.name: baseline.accuracy for baseline in evaluation.baselines}
    with_baselines = []
    for name in ("mean_iou", "pixel_accuracy"):
        title, score = MASK_TITLES[name], metrics.pop(name)
        baselines = {
            baseline.removesuffix(f", {title}"): number
            for baseline, number in by_title.items()
            if baseline.endswith(f", {title}")
        }
        title = title[0].upper() + title[1:]
        with_baselines.append((title, {"this model": score, **baselines}))
    return {
        "headline": (MASK_TITLES["mean_iou"], "mean_iou"),
        "with_baselines": with_baselines,
        "scores": {MASK_TITLES[name]: number for name, number in metrics.items()},
        "errors": {},
    }


def _box_title(evaluation: BoxEvaluation, name: str) -> str:
    """Title of a metric; for objects of one size with their number."""
    count = evaluation.objects.get(name.removeprefix("map_"))
    return BOX_TITLES[name] + ("" if count is None else f" ({count:,})")


def _describe_head(model: TransferModel) -> dict[str, Any]:
    head = model.require_head()
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    size = sum(v.size for name, v in head.state().items() if not name.endswith(buffers))
    inputs = f"reads {', '.join(head.taps)}; " if head.taps else ""
    return {
        "name": f"the {head.kind} head",
        "short": f"the {head.kind} head",
        "parameters": int(size),
        "description": f"{inputs}{int(size):,} parameters",
    }


def _card(is_boxes: bool) -> dict[str, str]:
    if is_boxes:
        return {
            "model": "An object detector",
            "output": "A box, a class and a score for every object of these classes:",
            "limit": "The model finds only objects of its classes. It misses other objects, or "
            "assigns them to one of its classes.",
        }
    return {
        "model": "A segmentation model",
        "output": "One of these classes for every pixel:",
        "limit": "Every pixel is assigned to one of these classes, whatever it shows.",
    }


def _per_class(evaluation: DenseEvaluation) -> list[Any]:
    """All classes in their order; if there are many, those with the lowest score first."""
    rows: list[Any] = list(evaluation.per_class)
    field = "ap" if isinstance(evaluation, BoxEvaluation) else "iou"

    def sort_key(row: Any) -> float:
        value: float = getattr(row, field).value
        return math.inf if math.isnan(value) else value

    return sorted(rows, key=sort_key) if len(rows) > LIMITS["classes_in_full"] else rows


# ------------------------------------------------------------------------------- drawn images


def _draw_examples(prepared: PreparedData, classes: Sequence[str]) -> list[Any]:
    """Draw the annotations of some training images, to check that they were read correctly."""
    train = prepared.train.samples
    annotated = [sample for sample in train if sample.target is not None]
    chosen = [annotated[i] for i in evenly_spaced(len(annotated), LIMITS["examples_drawn"])]
    images = [(sample.name, _to_uri(draw_truth(sample, classes))) for sample in chosen]
    return [("images with their annotations", images)] if images else []


def _draw_worst(
    evaluation: DenseEvaluation, model: TransferModel, prepared: PreparedData
) -> list[dict[str, Any]]:
    """Draw ground truth and prediction of the worst images; names only if images are missing."""
    samples: Sequence[Sample] = prepared.test.samples
    classes = evaluation.task.classes
    if tuple(sample.name for sample in samples) != evaluation.names:
        samples = ()
    worst = []
    for row in evaluation.worst(LIMITS["worst"]):
        values: dict[str, Any] = {
            "image": evaluation.names[row],
            "description": _describe_scores(evaluation, row),
            "truth": None,
            "prediction": None,
        }
        if samples:
            values["truth"] = _to_uri(draw_truth(samples[row], classes))
            values["prediction"] = _to_uri(_draw_prediction(evaluation, model, samples[row], row))
        worst.append(values)
    return worst


def _image_scores(evaluation: DenseEvaluation, row: int) -> dict[str, Any]:
    if isinstance(evaluation, BoxEvaluation):
        names = ("right", "missed", "wrong_class", "no_object")
        return dict(zip(names, map(int, evaluation.errors[row]), strict=True))
    return {
        "mean_iou": float(evaluation.image_iou[row]),
        "pixel_accuracy": float(evaluation.image_accuracy[row]),
    }


def _describe_scores(evaluation: DenseEvaluation, row: int) -> str:
    scores = _image_scores(evaluation, row)
    if isinstance(evaluation, MaskEvaluation):
        accuracy = charts.percent(scores["pixel_accuracy"])
        return f"mean IoU {scores['mean_iou']:.3f}, {accuracy} of the pixels correct"
    titles = {
        "right": "correct",
        "missed": "missed",
        "wrong_class": "with a wrong class",
        "no_object": "without an object",
    }
    return ", ".join(f"{scores[name]} {title}" for name, title in titles.items() if scores[name])


def _to_uri(pixels: NDArray[np.uint8] | None) -> str | None:
    return None if pixels is None else image_uri(pixels, quality=82)


def _decode_image(sample: Sample, side: int = IMAGE_SIDE) -> NDArray[np.uint8] | None:
    """Decode an image with the longer side ``side``; None if it cannot be decoded."""
    try:
        return resize_to_fit(decode(sample.image, at_least=side, options=sample.options), side)[0]
    except (UnreadableImageError, OSError):
        return None


def draw_truth(
    sample: Sample, classes: Sequence[str], side: int = IMAGE_SIDE
) -> NDArray[np.uint8] | None:
    """Draw the annotations of an image, boxes marked as difficult included.

    Parameters
    ----------
    sample : Sample
        Its target is `Boxes` or a `Mask`.
    classes : sequence of str
        Their order gives the colours.
    side : int
        Longer side of the drawing in pixels.

    Returns
    -------
    array, uint8, shape (height, width, 3), or None
        None if the image or its mask cannot be decoded.

    Examples
    --------
    >>> boxes = Boxes(corners=((0.0, 0.0, 4.0, 2.0),), labels=("cell",))
    >>> draw_truth(Sample(image=np.zeros((4, 8, 3), np.uint8), target=boxes), ["cell"]).shape
    (240, 480, 3)
    """
    pixels, truth = _decode_image(sample, side), sample.target
    if pixels is None:
        return None
    if isinstance(truth, Boxes):
        scale = side / max(upright_size(sample.image))
        return draw_boxes(
            pixels, truth.array() * scale, class_indices(truth, classes), classes=classes
        )
    try:
        return _draw_mask(pixels, true_mask(sample, classes), classes)
    except (DataError, OSError):
        return None


def _draw_prediction(
    evaluation: DenseEvaluation, model: TransferModel, sample: Sample, row: int
) -> NDArray[np.uint8] | None:
    pixels, classes = _decode_image(sample), evaluation.task.classes
    if pixels is None:
        return None
    if isinstance(evaluation, BoxEvaluation):
        detections: Detections = evaluation.detections[row].above(evaluation.task.thresholds)
        boxes = detections.boxes * (IMAGE_SIDE / max(detections.size))
        return draw_boxes(pixels, boxes, detections.labels, detections.scores, classes=classes)
    try:
        (segmentation,) = segment(model.backbone, model.require_head(), [sample])
    except (HeadstartError, OSError):
        return None
    return _draw_mask(pixels, segmentation.mask, classes)


def _draw_mask(
    pixels: NDArray[np.uint8], mask: NDArray[np.uint8], classes: Sequence[str]
) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = pixels.shape[:2]
    small = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    return draw_mask(pixels, np.asarray(small), classes)
