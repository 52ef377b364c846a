"""What a report says of a model that answers whole images: the values of its templates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from headstart.data.dataset import Sample
from headstart.data.images import decode
from headstart.data.prepare import Prepared
from headstart.data.splits import evenly
from headstart.errors import HeadstartError
from headstart.evaluation.classification import TITLES, Abstention, Evaluation
from headstart.evaluation.explain import draw_heat, explain
from headstart.metrics.confidence_intervals import Interval, wilson_interval
from headstart.metrics.selective import risk_coverage
from headstart.models.heads.linear import LinearHead
from headstart.models.transfer_model import TransferModel
from headstart.reports import charts
from headstart.reports.page import LIMITS, examples, jpeg_uri, thumbnails

__all__ = ["class_extras", "class_page", "class_values"]

ERRORS = ("log_loss", "brier", "ece")
"""Metrics that are better when lower."""

MOST_POINTS = 60
"""Of the curve of risk by coverage."""

MAPS_EACH, MAP_SIDE = 3, 224
"""Wrong and right answers whose maps are drawn, and the longer side of such an image."""


def class_values(evaluation: Evaluation, model: TransferModel) -> dict[str, Any]:
    """What both the page and the card say of it."""
    is_multilabel = evaluation.task.kind == "multilabel"
    return {
        "numbers": _numbers(evaluation),
        "head": _head(model.linear_head()),
        "words": {
            "parts": "classes.html.j2",
            "class": "label" if is_multilabel else "class",
            "classes": "labels, any number of them in an image" if is_multilabel else "classes",
            "counted": "Images",
            "answers": "predictions.csv",
        },
        "card": _card(is_multilabel),
    }


def _card(is_multilabel: bool) -> dict[str, str]:
    """The card's words that depend on the task."""
    kind, each, what = "multiclass", "One of these classes, with a probability for each:", "classes"
    if is_multilabel:
        kind, each = "multilabel", "Any number of these labels, each with a probability:"
        what = "labels' probabilities"
    return {
        "what": f"A {kind} image classifier",
        "asked": each,
        "limit": f"An image of something else still gets one of these {what}; the model cannot "
        'say "none of them" unless that is a class.',
    }


def class_page(evaluation: Evaluation, model: TransferModel, prepared: Prepared) -> dict[str, Any]:
    """What only the page says."""
    is_multilabel = model.task.kind == "multilabel"
    shown, mistakes = _illustrated(evaluation, prepared)
    maps = [] if is_multilabel else _maps(evaluation, model, prepared)
    candidates = [(c["penalty"], c["log_loss"]) for c in model.record.get("candidates", ())]
    # The cells of one image, and the images of one group, are not independent.
    independent = not is_multilabel and evaluation.n_groups is None
    return {
        "sections": [
            *([] if is_multilabel else [("confusion", "Confusions")]),
            ("classes", "Classes"),
            ("calibration", "Calibration"),
            *([] if is_multilabel else [("selective", "Abstaining")]),
            *([] if is_multilabel else [("mistakes", "Mistakes")]),
            *([("looks", "Where it looks")] if maps else []),
        ],
        "maps": maps,
        "examples": shown,
        "mistakes": mistakes,
        "n_wrong": int((~evaluation.correct).sum()),
        "counts": None if is_multilabel else evaluation.confusion,
        "per_class": _per_class(evaluation),
        "plot": charts.reliability_plot(evaluation.reliability, independent=independent),
        "selective": None if is_multilabel else _selective(evaluation, independent),
        "penalties": charts.curve(candidates) if len(candidates) > 1 else None,
    }


def _maps(evaluation: Evaluation, model: TransferModel, prepared: Prepared) -> list[dict[str, Any]]:
    """Grad-CAM of the surest mistakes and some right answers; none where it cannot be made."""
    samples = prepared.test.samples
    if tuple(sample.name for sample in samples) != evaluation.names:
        return []
    right = np.flatnonzero(evaluation.correct)
    rows = evaluation.mistakes(MAPS_EACH)
    rows += [int(right[i]) for i in evenly(len(right), MAPS_EACH)]
    classes, chosen, maps = evaluation.task.classes, [samples[row] for row in rows], []
    try:
        for row, one in zip(rows, explain(model, chosen, wanted_device="cpu"), strict=True):
            image = decode(samples[row].image, at_least=MAP_SIDE)
            drawn = draw_heat(image, one.heat, one.part, long_side=MAP_SIDE)
            maps.append(
                {
                    "image": one.name,
                    "answer": one.label,
                    "probability": one.probability,
                    "truth": classes[evaluation.targets[row]],
                    "drawing": jpeg_uri(drawn, quality=80),
                }
            )
    except (HeadstartError, RuntimeError):  # no maps, an image that is gone, memory
        return []
    return maps


def _selective(evaluation: Evaluation, independent: bool) -> dict[str, Any]:
    """Risk by coverage, placed in the box of the other curves; shares run from 0 to 1."""
    n, said = len(evaluation.names), evaluation.abstention
    curve = risk_coverage(evaluation.probabilities.max(axis=1), evaluation.correct)
    rows = [
        {"coverage": float(coverage), "risk": float(risk), "threshold": float(threshold)}
        for coverage, risk, threshold in zip(
            curve.coverage, curve.risk, curve.thresholds, strict=True
        )
    ]
    shown = [rows[i] for i in evenly(len(rows) - 1, MOST_POINTS)] + rows[-1:]
    wanted = None if said is None else said.selected.max_risk
    # The surest few images say little, and would decide the axis.
    high = max([row["risk"] for row in shown if row["coverage"] >= 0.1] + [wanted or 0.0])
    top = charts.axis_end(Interval(value=high, low=0.0, high=high * 1.2, method=""))
    top = max(top, 0.01)

    def at(coverage: float, risk: float) -> str:
        x, y = charts.CURVE_WIDTH * coverage, charts.CURVE_HEIGHT * (1 - min(risk / top, 1.0))
        return f"{x:.1f},{y:.1f}"

    ends = [wilson_interval(r["risk"] * n * r["coverage"], n * r["coverage"]) for r in shown]
    upper = [at(row["coverage"], end.high) for row, end in zip(shown, ends, strict=True)]
    lower = [at(row["coverage"], end.low) for row, end in zip(shown, ends, strict=True)]
    return {
        "line": " ".join(at(row["coverage"], row["risk"]) for row in shown),
        "band": " ".join(upper + lower[::-1]) if independent else "",
        "ticks": [(charts.CURVE_HEIGHT * (1 - i / 4), top * i / 4) for i in range(5)],
        "wanted": None if wanted is None else charts.CURVE_HEIGHT * (1 - wanted / top),
        "mark": _mark(said, at),
        "aurc": curve.aurc,
        "said": said,
        "rows": _at_coverages(rows),
    }


def _mark(said: Abstention | None, at: Callable[[float, float], str]) -> tuple[str, str] | None:
    """Where the chosen threshold lies; None where there is none, or nothing was answered."""
    if said is None or said.coverage is None or said.risk is None or math.isnan(said.risk.value):
        return None
    x, y = at(said.coverage.value, said.risk.value).split(",")
    return x, y


def _at_coverages(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The strictest threshold that answers at least so many tenths of the images."""
    found = [
        next(row for row in rows if row["coverage"] >= tenths / 10 - 1e-9)
        for tenths in range(1, 11)
    ]
    return [row for i, row in enumerate(found) if row not in found[:i]]


def class_extras(evaluation: Evaluation, prepared: Prepared) -> dict[str, Any]:
    """What report.json has beside the evaluation's own numbers."""
    found: dict[str, Any] = {"reliability": asdict(evaluation.reliability)}
    task = evaluation.task
    if task.kind == "multiclass":
        found["confusions"] = [
            {"truth": task.classes[p.truth], "answer": task.classes[p.answer], "images": p.count}
            for p in charts.confused_pairs(evaluation.confusion)
        ]
        found["mistakes"] = [
            {key: value for key, value in mistake.items() if key != "sample"}
            for mistake in _mistakes(evaluation, prepared, LIMITS["mistakes_in_json"])
        ]
    return found


def _head(head: LinearHead) -> dict[str, Any]:
    size = head.weight.size + head.bias.size
    classes, features = head.weight.shape
    return {
        "name": "one linear layer",
        "short": "the layer",
        "parameters": int(size),
        "told": f"{features:,} features to {classes:,} classes, {size:,} parameters",
    }


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    """Metrics in the order shown: scores on an axis to 1, errors on an axis of their own."""
    scores = {k: v for k, v in evaluation.metrics.items() if k not in {"accuracy", *ERRORS}}
    errors = {k: v for k, v in evaluation.metrics.items() if k in ERRORS}
    rules = {baseline.name: baseline.accuracy for baseline in evaluation.baselines}
    is_multilabel = evaluation.task.kind == "multilabel"
    title = "All labels of an image right" if is_multilabel else "Accuracy"
    return {
        "headline": ("all labels right" if is_multilabel else "accuracy", "accuracy"),
        "against": [(title, {"this model": evaluation.metrics["accuracy"], **rules})],
        "scores": {TITLES.get(k, k): v for k, v in scores.items()},
        "errors": {TITLES.get(k, k): (v, charts.axis_end(v)) for k, v in errors.items()},
    }


def _illustrated(
    evaluation: Evaluation, prepared: Prepared
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Examples by class, as (name, image), and mistakes, with a small image each."""
    chosen = examples(prepared.data)
    mistakes = _mistakes(evaluation, prepared, LIMITS["mistakes"])
    wanted = [sample for _, samples in chosen for sample in samples]
    wanted += [mistake["sample"] for mistake in mistakes if mistake["sample"]]
    made = iter(thumbnails(wanted))
    shown = [(name, [(s.name, next(made)) for s in samples]) for name, samples in chosen]
    return shown, [m | {"thumbnail": next(made) if m["sample"] else None} for m in mistakes]


def _per_class(evaluation: Evaluation) -> list[Any]:
    """All classes in their order, or, when there are many, those found least often first."""
    rows = list(evaluation.per_class)
    if len(rows) > LIMITS["classes_in_full"]:
        rows.sort(key=lambda row: math.inf if math.isnan(row.recall.value) else row.recall.value)
    return rows


def _mistakes(evaluation: Evaluation, prepared: Prepared, limit: int) -> list[dict[str, Any]]:
    """Wrong answers, the most confident first; multilabel has no one answer to be wrong."""
    task = evaluation.task
    if task.kind == "multilabel":
        return []
    predicted = evaluation.predicted
    samples: Sequence[Sample] = prepared.test.samples
    if tuple(sample.name for sample in samples) != evaluation.names:
        samples = ()
    return [
        {
            "image": evaluation.names[row],
            "truth": task.classes[evaluation.targets[row]],
            "answer": task.classes[predicted[row]],
            "probability": float(evaluation.probabilities[row].max()),
            "probability_of_truth": float(evaluation.probabilities[row, evaluation.targets[row]]),
            "sample": samples[row] if samples else None,
        }
        for row in evaluation.mistakes(limit)
    ]
