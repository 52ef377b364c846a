"""Template values of a report about a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from headstart.data.dataset import Sample
from headstart.data.images import decode
from headstart.data.prepare import PreparedData
from headstart.data.splits import evenly_spaced
from headstart.errors import HeadstartError
from headstart.evaluation.classification import TITLES, Abstention, Evaluation
from headstart.evaluation.explain import draw_heat_map, explain
from headstart.metrics.confidence_intervals import Interval, wilson_interval
from headstart.metrics.selective import risk_coverage
from headstart.models.heads.linear import LinearHead
from headstart.models.transfer_model import TransferModel
from headstart.reports import charts
from headstart.reports.first_screen import N_WORST
from headstart.reports.page import LARGE, LIMITS, examples, image_uri, thumbnails

__all__ = ["class_extras", "class_page", "class_values"]

ERRORS = ("log_loss", "brier", "ece")
"""Metrics for which lower is better."""

MAX_POINTS = 60
"""Maximum number of points of the risk-coverage curve."""

MAPS_EACH, MAP_SIDE = 3, 224
"""Number of wrong and of correct predictions with a heat map; longer side of a map in pixels."""


def class_values(evaluation: Evaluation, model: TransferModel) -> dict[str, Any]:
    """Values for both the page and the model card."""
    is_multilabel = evaluation.task.kind == "multilabel"
    return {
        "numbers": _metric_groups(evaluation),
        "head": _describe_head(model.linear_head()),
        "terms": {
            "template": "classes.html.j2",
            "class": "label" if is_multilabel else "class",
            "classes": "labels, several per image possible" if is_multilabel else "classes",
            "unit": "Images",
            "prediction_files": "predictions.csv",
        },
        "card": _card(is_multilabel),
    }


def _card(is_multilabel: bool) -> dict[str, str]:
    """Sentences of the card that depend on the task."""
    if is_multilabel:
        return {
            "model": "A multilabel image classifier",
            "output": "Any number of these labels, each with a probability:",
            "limit": "An image that shows none of these labels still gets a probability for each.",
        }
    return {
        "model": "A multiclass image classifier",
        "output": "One of these classes, with a probability for each:",
        "limit": "An image of anything else is also assigned to one of these classes. The model "
        'has no class "none of these" unless it was trained with one.',
    }


def class_page(
    evaluation: Evaluation, model: TransferModel, prepared: PreparedData
) -> dict[str, Any]:
    """Values for the page alone."""
    is_multilabel = model.task.kind == "multilabel"
    example_images, mistakes = _with_thumbnails(evaluation, prepared)
    maps = [] if is_multilabel else _heat_maps(evaluation, model, prepared)
    candidates = [(c["penalty"], c["log_loss"]) for c in model.record.get("candidates", ())]
    # The cells of one image, and the images of one group, are not independent.
    independent = not is_multilabel and evaluation.n_groups is None
    return {
        "sections": [
            *([] if is_multilabel else [("confusion", "Confusion matrix")]),
            ("classes", "Classes"),
            ("calibration", "Calibration"),
            *([] if is_multilabel else [("selective", "Abstention")]),
            *([] if is_multilabel else [("mistakes", "Mistakes")]),
            *([("heatmaps", "Heat maps")] if maps else []),
        ],
        "maps": maps,
        "examples": example_images,
        "mistakes": mistakes,
        "wrong_labels": _wrong_labels(evaluation, prepared) if is_multilabel else [],
        "n_wrong": int((~evaluation.correct).sum()),
        "counts": None if is_multilabel else evaluation.confusion,
        "per_class": _per_class(evaluation),
        "plot": charts.reliability_plot(evaluation.reliability, independent=independent),
        "selective": None if is_multilabel else _selective(evaluation, independent),
        "penalties": charts.curve(candidates) if len(candidates) > 1 else None,
    }


def _heat_maps(
    evaluation: Evaluation, model: TransferModel, prepared: PreparedData
) -> list[dict[str, Any]]:
    """Grad-CAM of the most confident mistakes and of some correct predictions, if possible."""
    samples = prepared.test.samples
    if tuple(sample.name for sample in samples) != evaluation.names:
        return []
    correct = np.flatnonzero(evaluation.correct)
    rows = evaluation.mistakes(MAPS_EACH)
    rows += [int(correct[i]) for i in evenly_spaced(len(correct), MAPS_EACH)]
    classes, chosen, maps = evaluation.task.classes, [samples[row] for row in rows], []
    try:
        for row, explanation in zip(rows, explain(model, chosen, device_name="cpu"), strict=True):
            image = decode(samples[row].image, at_least=MAP_SIDE, options=samples[row].options)
            pixels = draw_heat_map(image, explanation.heat, explanation.part, long_side=MAP_SIDE)
            maps.append(
                {
                    "image": explanation.name,
                    "prediction": explanation.label,
                    "probability": explanation.probability,
                    "truth": classes[evaluation.targets[row]],
                    "drawing": image_uri(pixels, quality=80),
                }
            )
    except (HeadstartError, RuntimeError):  # no feature maps, a deleted image, no memory
        return []
    return maps


def _selective(evaluation: Evaluation, independent: bool) -> dict[str, Any]:
    """Risk-coverage curve, scaled to the same size as the other curves."""
    n, abstention = len(evaluation.names), evaluation.abstention
    curve = risk_coverage(evaluation.probabilities.max(axis=1), evaluation.correct)
    rows = [
        {"coverage": float(coverage), "risk": float(risk), "threshold": float(threshold)}
        for coverage, risk, threshold in zip(
            curve.coverage, curve.risk, curve.thresholds, strict=True
        )
    ]
    drawn_rows = [rows[i] for i in evenly_spaced(len(rows) - 1, MAX_POINTS)] + rows[-1:]
    max_risk = None if abstention is None else abstention.selected.max_risk
    # The risk of the few most confident images is noisy and must not set the end of the axis.
    high = max([row["risk"] for row in drawn_rows if row["coverage"] >= 0.1] + [max_risk or 0.0])
    top = charts.axis_end(Interval(value=high, low=0.0, high=high * 1.2, method=""))
    top = max(top, 0.01)

    def to_point(coverage: float, risk: float) -> str:
        x, y = charts.CURVE_WIDTH * coverage, charts.CURVE_HEIGHT * (1 - min(risk / top, 1.0))
        return f"{x:.1f},{y:.1f}"

    ends = [wilson_interval(r["risk"] * n * r["coverage"], n * r["coverage"]) for r in drawn_rows]
    pairs = list(zip(drawn_rows, ends, strict=True))
    upper = [to_point(row["coverage"], end.high) for row, end in pairs]
    lower = [to_point(row["coverage"], end.low) for row, end in pairs]
    return {
        "line": " ".join(to_point(row["coverage"], row["risk"]) for row in drawn_rows),
        "band": " ".join(upper + lower[::-1]) if independent else "",
        "ticks": [(charts.CURVE_HEIGHT * (1 - i / 4), top * i / 4) for i in range(5)],
        "max_risk_y": None if max_risk is None else charts.CURVE_HEIGHT * (1 - max_risk / top),
        "chosen_point": _chosen_point(abstention, to_point),
        "aurc": curve.aurc,
        "abstention": abstention,
        "rows": _rows_by_coverage(rows),
    }


def _chosen_point(
    abstention: Abstention | None, to_point: Callable[[float, float], str]
) -> tuple[str, str] | None:
    """Coordinates of the chosen threshold; None without a threshold, or if every image abstains."""
    if abstention is None or abstention.coverage is None or abstention.risk is None:
        return None
    if math.isnan(abstention.risk.value):
        return None
    x, y = to_point(abstention.coverage.value, abstention.risk.value).split(",")
    return x, y


def _rows_by_coverage(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """For 10 %, 20 %, ... 100 %: the highest threshold with at least this coverage."""
    selected = [
        next(row for row in rows if row["coverage"] >= tenths / 10 - 1e-9)
        for tenths in range(1, 11)
    ]
    return [row for i, row in enumerate(selected) if row not in selected[:i]]


def class_extras(evaluation: Evaluation, prepared: PreparedData) -> dict[str, Any]:
    """Values of report.json in addition to the evaluation's own numbers."""
    extras: dict[str, Any] = {"reliability": asdict(evaluation.reliability)}
    task = evaluation.task
    if task.kind == "multiclass":
        extras["confusions"] = [
            {
                "truth": task.classes[pair.truth],
                "prediction": task.classes[pair.prediction],
                "images": pair.count,
            }
            for pair in charts.confused_pairs(evaluation.confusion)
        ]
        extras["mistakes"] = [
            {key: value for key, value in mistake.items() if key != "sample"}
            for mistake in _mistakes(evaluation, prepared, LIMITS["mistakes_in_json"])
        ]
    return extras


def _describe_head(head: LinearHead) -> dict[str, Any]:
    size = head.weight.size + head.bias.size
    classes, features = head.weight.shape
    return {
        "name": "one linear layer",
        "short": "the linear layer",
        "parameters": int(size),
        "description": f"{features:,} features to {classes:,} classes, {size:,} parameters",
    }


def _metric_groups(evaluation: Evaluation) -> dict[str, Any]:
    """Metrics in the order of the page; scores have an axis from 0 to 1, each error its own."""
    scores = {k: v for k, v in evaluation.metrics.items() if k not in {"accuracy", *ERRORS}}
    errors = {k: v for k, v in evaluation.metrics.items() if k in ERRORS}
    rules = {baseline.name: baseline.accuracy for baseline in evaluation.baselines}
    is_multilabel = evaluation.task.kind == "multilabel"
    title = "All labels of an image correct" if is_multilabel else "Accuracy"
    return {
        "headline": ("all labels correct" if is_multilabel else "accuracy", "accuracy"),
        "with_baselines": [(title, {"this model": evaluation.metrics["accuracy"], **rules})],
        "scores": {TITLES.get(k, k): v for k, v in scores.items()},
        "errors": {TITLES.get(k, k): (v, charts.axis_end(v)) for k, v in errors.items()},
    }


def _with_thumbnails(
    evaluation: Evaluation, prepared: PreparedData
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Examples by class, as (name, thumbnail), and mistakes with their thumbnails."""
    chosen = examples(prepared.data)
    mistakes = _mistakes(evaluation, prepared, LIMITS["mistakes"])
    # One pass for each size, so that the images are decoded in parallel.
    uris = iter(thumbnails(sample for _, of_class in chosen for sample in of_class))
    pairs = [(name, [(s.name, next(uris)) for s in of_class]) for name, of_class in chosen]
    large = iter(thumbnails((m["sample"] for m in mistakes if m["sample"]), height=LARGE))
    return pairs, [m | {"thumbnail": next(large) if m["sample"] else None} for m in mistakes]


def _per_class(evaluation: Evaluation) -> list[Any]:
    """All classes in their order; if there are many, those with the lowest recall first."""
    rows = list(evaluation.per_class)
    if len(rows) > LIMITS["classes_in_full"]:
        rows.sort(key=lambda row: math.inf if math.isnan(row.recall.value) else row.recall.value)
    return rows


def _mistakes(evaluation: Evaluation, prepared: PreparedData, limit: int) -> list[dict[str, Any]]:
    """Wrong predictions, the most confident first; none for multilabel."""
    task = evaluation.task
    if task.kind == "multilabel":
        return []
    predicted = evaluation.predicted
    samples = _test_samples(evaluation, prepared)
    return [
        {
            "image": evaluation.names[row],
            "truth": task.classes[evaluation.targets[row]],
            "prediction": task.classes[predicted[row]],
            "probability": float(evaluation.probabilities[row].max()),
            "probability_of_truth": float(evaluation.probabilities[row, evaluation.targets[row]]),
            "sample": samples[row] if samples else None,
        }
        for row in evaluation.mistakes(limit)
    ]


def _wrong_labels(evaluation: Evaluation, prepared: PreparedData) -> list[dict[str, Any]]:
    """The most confident wrong labels of a multilabel classifier, one for each image."""
    errors = np.abs(evaluation.probabilities - evaluation.targets)
    errors[evaluation.predicted == evaluation.targets] = -1.0
    wrong = np.flatnonzero(~evaluation.correct)
    rows = wrong[np.argsort(-errors[wrong].max(axis=1), kind="stable")][:N_WORST]
    samples = _test_samples(evaluation, prepared)
    uris = thumbnails((samples[row] for row in rows), height=LARGE) if samples else [None] * N_WORST
    labels = errors[rows].argmax(axis=1)
    return [
        {
            "image": evaluation.names[row],
            "thumbnail": uri,
            "label": evaluation.task.classes[label],
            "is_labelled": bool(evaluation.targets[row, label]),
            "probability": float(evaluation.probabilities[row, label]),
        }
        for row, label, uri in zip(rows, labels, uris, strict=False)
    ]


def _test_samples(evaluation: Evaluation, prepared: PreparedData) -> Sequence[Sample]:
    """Samples of the evaluated images, or none if others were evaluated."""
    samples: Sequence[Sample] = prepared.test.samples
    return samples if tuple(sample.name for sample in samples) == evaluation.names else ()
