"""What a report says of a model that finds objects or masks: the values of its templates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Boxes, Sample
from headstart.data.draw import draw_boxes, draw_mask, fitted, hex_colours, is_background
from headstart.data.images import decode, shown_size
from headstart.data.prepare import Prepared
from headstart.data.splits import evenly
from headstart.errors import DataError, HeadstartError, UnreadableImageError
from headstart.evaluation.detection import TITLES as BOX_TITLES
from headstart.evaluation.detection import BoxEvaluation, RecallCurve, places
from headstart.evaluation.segmentation import TITLES as MASK_TITLES
from headstart.evaluation.segmentation import MaskEvaluation, true_mask
from headstart.models.inference import Detections, segment
from headstart.models.transfer_model import TransferModel
from headstart.reports import charts
from headstart.reports.page import LIMITS, jpeg_uri

__all__ = ["RecallPlot", "dense_extras", "dense_page", "dense_values", "recall_plot"]

DenseEvaluation = BoxEvaluation | MaskEvaluation

DRAWN = 480
"""Longer side in pixels of images with boxes or masks on them."""

AT_RECALLS = (10, 30, 50, 70, 90)
"""Percent; where the table below the curves tells the precision."""

BACKGROUND = "no object"
"""What the last row and column of a detector's confusions are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallPlot:
    """Precision by recall of one class, placed in a box of ``charts.CURVE_WIDTH`` by its height.

    ``at`` has the precision at the recalls of the table.
    """

    name: str
    ap: float
    line: str
    at: tuple[float, ...]


def dense_values(evaluation: DenseEvaluation, model: TransferModel) -> dict[str, Any]:
    """What both the page and the card say of it."""
    is_boxes = isinstance(evaluation, BoxEvaluation)
    return {
        "numbers": _numbers(evaluation),
        "head": _head(model),
        "words": {
            "parts": "boxes.html.j2" if is_boxes else "masks.html.j2",
            "class": "class",
            "classes": "classes of objects" if is_boxes else "classes of pixels",
            "counted": "Objects" if is_boxes else "Images",
            "drawn": True,
            "answers": "predictions.csv and predictions.json" if is_boxes else "predictions.csv",
        },
        "card": _card(is_boxes),
    }


def dense_page(
    evaluation: DenseEvaluation, model: TransferModel, prepared: Prepared
) -> dict[str, Any]:
    """What only the page says."""
    classes = evaluation.task.classes
    found: dict[str, Any] = {
        "examples": _examples(prepared, classes),
        "worst": _worst(evaluation, model, prepared),
        "n_worst": len(evaluation.worst(len(evaluation.names))),
        "colours": _legend(evaluation),
        "counts": evaluation.confusion,
        "per_class": _per_class(evaluation),
    }
    sections = [("confusion", "Confusions"), ("classes", "Classes")]
    if isinstance(evaluation, BoxEvaluation):
        chosen = evenly(len(evaluation.curves), LIMITS["curves"])
        found["curves"] = [recall_plot(evaluation.curves[i]) for i in chosen]
        found["at_recalls"] = AT_RECALLS
        found["names"] = (*classes, BACKGROUND)
        sections += [("curves", "Precision and recall")] if found["curves"] else []
    return found | {"sections": [*sections, ("worst", "Worst images")]}


def dense_extras(evaluation: DenseEvaluation) -> dict[str, Any]:
    """What report.json has beside the evaluation's own numbers: the images to look at."""
    return {
        "worst": [
            {"image": evaluation.names[row], **_scores(evaluation, row)}
            for row in evaluation.worst(LIMITS["mistakes_in_json"])
        ]
    }


def recall_plot(curve: RecallCurve) -> RecallPlot:
    """Place a curve; both axes go from 0 to 1.

    Examples
    --------
    >>> recalls = np.linspace(0, 1, 101)
    >>> flat = RecallCurve(name="cell", recall=recalls, precision=recalls * 0 + 1, score=recalls)
    >>> placed = recall_plot(flat)
    >>> placed.line[:9], placed.ap, placed.at
    ('0,0 3,0 6', 1.0, (1.0, 1.0, 1.0, 1.0, 1.0))
    """
    points = zip(curve.recall, curve.precision, strict=True)
    placed = [(charts.CURVE_WIDTH * x, charts.CURVE_HEIGHT * (1 - y)) for x, y in points]
    return RecallPlot(
        name=curve.name,
        ap=float(curve.precision.mean()),
        line=" ".join(f"{round(x, 1):g},{round(y, 1):g}" for x, y in placed),
        at=tuple(float(curve.precision[percent]) for percent in AT_RECALLS),
    )


def _legend(evaluation: DenseEvaluation) -> list[tuple[str, str]]:
    classes, is_boxes = evaluation.task.classes, isinstance(evaluation, BoxEvaluation)
    pairs = zip(classes, hex_colours(len(classes)), strict=True)
    return [(name, colour) for name, colour in pairs if is_boxes or not is_background(name)]


def _numbers(evaluation: DenseEvaluation) -> dict[str, Any]:
    """The headline first, beside what one class everywhere reaches; then the other scores."""
    if isinstance(evaluation, BoxEvaluation):
        (first, headline), *rest = evaluation.metrics.items()
        return {
            "headline": (BOX_TITLES[first], first),
            "against": [(BOX_TITLES[first], {"this model": headline})],
            "scores": {_box_title(evaluation, name): number for name, number in rest},
            "errors": {},
        }
    told = dict(evaluation.metrics)
    by_title = {baseline.name: baseline.accuracy for baseline in evaluation.baselines}
    against = []
    for name in ("mean_iou", "pixel_accuracy"):
        title, own = MASK_TITLES[name], told.pop(name)
        rules = {
            rule.removesuffix(f", {title}"): number
            for rule, number in by_title.items()
            if rule.endswith(f", {title}")
        }
        against.append((title[0].upper() + title[1:], {"this model": own, **rules}))
    return {
        "headline": (MASK_TITLES["mean_iou"], "mean_iou"),
        "against": against,
        "scores": {MASK_TITLES[name]: number for name, number in told.items()},
        "errors": {},
    }


def _box_title(evaluation: BoxEvaluation, name: str) -> str:
    """What a metric is called; of one size also how many objects it is from."""
    count = evaluation.objects.get(name.removeprefix("map_"))
    return BOX_TITLES[name] + ("" if count is None else f" ({count:,})")


def _head(model: TransferModel) -> dict[str, Any]:
    head = model.require_head()
    passive = ("running_mean", "running_var", "num_batches_tracked")
    size = sum(v.size for name, v in head.state().items() if not name.endswith(passive))
    reads = f"reads {', '.join(head.taps)}; " if head.taps else ""
    return {
        "name": f"the {head.kind} head",
        "short": f"the {head.kind} head",
        "parameters": int(size),
        "told": f"{reads}{int(size):,} parameters",
    }


def _card(is_boxes: bool) -> dict[str, str]:
    if is_boxes:
        return {
            "what": "An object detector",
            "asked": "A box, a class and a score for every object of these classes:",
            "limit": "It finds only what it has a class for; a thing of another kind is passed "
            "over, or called one of these.",
        }
    return {
        "what": "A segmenter",
        "asked": "One of these classes for every pixel:",
        "limit": "Every pixel gets one of these classes, whatever it shows.",
    }


def _per_class(evaluation: DenseEvaluation) -> list[Any]:
    """All classes in their order, or, when there are many, those found worst first."""
    rows: list[Any] = list(evaluation.per_class)
    field = "ap" if isinstance(evaluation, BoxEvaluation) else "iou"

    def number(row: Any) -> float:
        value: float = getattr(row, field).value
        return math.inf if math.isnan(value) else value

    return sorted(rows, key=number) if len(rows) > LIMITS["classes_in_full"] else rows


# ------------------------------------------------------------------------------- drawn images


def _examples(prepared: Prepared, classes: Sequence[str]) -> list[Any]:
    """Some images with what the data say of them, so that a person sees whether it is read."""
    train = prepared.train.samples
    shown = [sample for sample in train if sample.target is not None]
    chosen = [shown[i] for i in evenly(len(shown), LIMITS["examples_drawn"])]
    images = [(sample.name, _uri(_truth_drawn(sample, classes))) for sample in chosen]
    return [("as the data describe them", images)] if images else []


def _worst(
    evaluation: DenseEvaluation, model: TransferModel, prepared: Prepared
) -> list[dict[str, Any]]:
    """The worst images, truth beside answer; only names where images are not at hand."""
    samples: Sequence[Sample] = prepared.test.samples
    classes = evaluation.task.classes
    if tuple(sample.name for sample in samples) != evaluation.names:
        samples = ()
    found = []
    for row in evaluation.worst(LIMITS["worst"]):
        one: dict[str, Any] = {
            "image": evaluation.names[row],
            "told": _told(evaluation, row),
            "truth": None,
            "answer": None,
        }
        if samples:
            one["truth"] = _uri(_truth_drawn(samples[row], classes))
            one["answer"] = _uri(_answer_drawn(evaluation, model, samples[row], row))
        found.append(one)
    return found


def _scores(evaluation: DenseEvaluation, row: int) -> dict[str, Any]:
    if isinstance(evaluation, BoxEvaluation):
        names = ("right", "missed", "wrong_class", "no_object")
        return dict(zip(names, map(int, evaluation.errors[row]), strict=True))
    return {
        "mean_iou": float(evaluation.image_iou[row]),
        "pixel_accuracy": float(evaluation.image_accuracy[row]),
    }


def _told(evaluation: DenseEvaluation, row: int) -> str:
    scores = _scores(evaluation, row)
    if isinstance(evaluation, MaskEvaluation):
        right = charts.percent(scores["pixel_accuracy"])
        return f"mean IoU {scores['mean_iou']:.3f}, {right} of the pixels right"
    words = {
        "right": "found",
        "missed": "missed",
        "wrong_class": "called something else",
        "no_object": "not there",
    }
    return ", ".join(f"{scores[name]} {word}" for name, word in words.items() if scores[name])


def _uri(pixels: NDArray[np.uint8] | None) -> str | None:
    return None if pixels is None else jpeg_uri(pixels, quality=82)


def _pixels(sample: Sample) -> NDArray[np.uint8] | None:
    """An image, its longer side ``DRAWN``; None if it cannot be decoded any more."""
    try:
        return fitted(decode(sample.image, at_least=DRAWN), DRAWN)[0]
    except (UnreadableImageError, OSError):
        return None


def _truth_drawn(sample: Sample, classes: Sequence[str]) -> NDArray[np.uint8] | None:
    """An image with what the data say of it; boxes that are hard are drawn, too."""
    pixels, truth = _pixels(sample), sample.target
    if pixels is None:
        return None
    if isinstance(truth, Boxes):
        scale = DRAWN / max(shown_size(sample.image))
        return draw_boxes(pixels, truth.array() * scale, places(truth, classes), classes=classes)
    try:
        return _tinted(pixels, true_mask(sample, classes), classes)
    except (DataError, OSError):
        return None


def _answer_drawn(
    evaluation: DenseEvaluation, model: TransferModel, sample: Sample, row: int
) -> NDArray[np.uint8] | None:
    pixels, classes = _pixels(sample), evaluation.task.classes
    if pixels is None:
        return None
    if isinstance(evaluation, BoxEvaluation):
        found: Detections = evaluation.found[row].above(evaluation.task.threshold)
        boxes = found.boxes * (DRAWN / max(found.size))
        return draw_boxes(pixels, boxes, found.labels, found.scores, classes=classes)
    try:
        (answer,) = segment(model.backbone, model.require_head(), [sample])
    except (HeadstartError, OSError):
        return None
    return _tinted(pixels, answer.mask, classes)


def _tinted(
    pixels: NDArray[np.uint8], mask: NDArray[np.uint8], classes: Sequence[str]
) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = pixels.shape[:2]
    small = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    return draw_mask(pixels, np.asarray(small), classes)
