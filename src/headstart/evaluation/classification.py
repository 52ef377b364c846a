"""Evaluation of classifiers on labelled images: metrics, baselines and abstention.

``evaluate`` also evaluates detectors and segmenters, by calling detection.py and segmentation.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.images import Finding, findings_text
from headstart.data.dataset import DENSE, Dataset, brief
from headstart.errors import DataError
from headstart.evaluation.baselines import (
    Baseline,
    correctness,
    format_percent,
    majority_baseline,
    nearest_neighbour_baseline,
)
from headstart.evaluation.detection import BoxEvaluation, evaluate_boxes
from headstart.evaluation.segmentation import MaskEvaluation, evaluate_masks
from headstart.features.extractor import Extractor, Progress
from headstart.metrics import classification as metrics
from headstart.metrics.classification import Reliability
from headstart.metrics.confidence_intervals import (
    Interval,
    bootstrap_intervals,
    proportion_interval,
)
from headstart.metrics.selective import SelectedThreshold, risk_coverage
from headstart.models.exported_model import AnyModel, ExportedModel
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel

__all__ = [
    "TITLES",
    "Abstention",
    "AnyEvaluation",
    "ClassRow",
    "Evaluation",
    "evaluate",
    "evaluate_abstention",
    "evaluate_exported",
    "evaluate_probabilities",
]

Array = NDArray[np.floating[Any]]
Targets = NDArray[np.integer[Any]]
Groups = NDArray[np.intp] | None

CLASSES_SHOWN = 20
"""Most classes in the table of a notebook."""

MIN_POSITIVES = 10
"""Positive test images of every label from which multilabel scores have bounds."""

CALIBRATION_BINS = 10
"""Bins of the calibration error and of the reliability diagram."""

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "mean_average_precision": "mean average precision",
    "log_loss": "log-loss",
    "brier": "Brier score",
    "ece": "calibration error",
}
"""Display names of the metrics; for losses and errors, lower is better."""


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """Coverage and risk of a classifier that may abstain, on test images.

    Parameters
    ----------
    selected : SelectedThreshold
        Confidence threshold, chosen on other images.
    coverage, risk : Interval or None
        None without a threshold. The risk is NaN if the model abstains from every image.
    """

    selected: SelectedThreshold
    coverage: Interval | None = None
    risk: Interval | None = None

    def sentence(self) -> str:
        """Summarise coverage and risk, and whether the requested risk is met.

        >>> from headstart.metrics.selective import threshold_for_risk
        >>> sure = np.linspace(0.5, 1, 400)
        >>> chosen = threshold_for_risk(sure, sure > 0.55, max_risk=0.05)
        >>> print(evaluate_abstention(chosen, sure[::20], sure[::20] > 0.55).sentence()[:89])
        Confidence threshold 0.540: the model predicts 90.0 % [69.9, 97.2] of the images, and 0.0
        """
        if self.coverage is None or self.risk is None or self.selected.threshold is None:
            return self.selected.sentence()
        threshold = self.selected.threshold
        start = f"Confidence threshold {threshold:.3f}" if threshold > 0 else "No abstention"
        target = f"The requested maximum risk of {100 * self.selected.max_risk:g} %"
        if np.isnan(self.risk.value):
            return f"{start}: the model abstains from all images. {target} was not tested."
        if self.risk.low > self.selected.max_risk:
            assessment = "is EXCEEDED: do not rely on the model for images like these"
        elif self.risk.high <= self.selected.max_risk:
            assessment = "is met"
        else:
            assessment = "is neither confirmed nor refuted: there are too few test images"
        return (
            f"{start}: the model predicts {format_percent(self.coverage)} of the images, and "
            f"{format_percent(self.risk)} of these predictions are wrong. {target} {assessment}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for report.json."""
        return {
            "selected": self.selected.as_dict(),
            "coverage": None if self.coverage is None else self.coverage.as_dict(),
            "risk": None if self.risk is None else self.risk.as_dict(),
        }


def evaluate_abstention(
    selected: SelectedThreshold | None,
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    groups: Groups = None,
) -> Abstention | None:
    """Evaluate a confidence threshold on images that it was not chosen on.

    Parameters
    ----------
    selected : SelectedThreshold or None
    confidence : array, shape (n,)
    correct : array of bool, shape (n,)
    groups : n hashables, optional
        Images of one group are not independent, as in ``proportion_interval``.

    Returns
    -------
    Abstention or None
        None if no maximum risk was requested.
    """
    if selected is None or selected.threshold is None:
        return None if selected is None else Abstention(selected=selected)
    is_predicted = confidence >= selected.threshold
    names = None if groups is None else np.fromiter(groups, dtype=object)
    return Abstention(
        selected=selected,
        coverage=proportion_interval(is_predicted, names),
        risk=proportion_interval(
            ~correct[is_predicted], None if names is None else names[is_predicted]
        ),
    )


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: number of its test images, precision and recall."""

    name: str
    count: int
    precision: Interval
    recall: Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Predictions of a classifier on labelled images, and all scores computed from them.

    Parameters
    ----------
    task : ClassificationTask
    names : tuple of str
        Image names.
    targets : array, shape (n,) or (n, n_classes)
    probabilities : array, shape (n, n_classes)
    metrics : dict of str to Interval
    per_class : tuple of ClassRow
    reliability : Reliability
        Points of the reliability diagram.
    baselines : tuple of Baseline
    n_groups : int or None
        Number of groups, if the images have groups. Whole groups are resampled.
    abstention : Abstention or None
        Coverage and risk, if a maximum risk was requested.
    findings : tuple of Finding
        Warnings about the images, such as near duplicates of training images.
    """

    task: ClassificationTask
    names: tuple[str, ...]
    targets: Targets
    probabilities: NDArray[np.float64]
    metrics: dict[str, Interval]
    per_class: tuple[ClassRow, ...]
    reliability: Reliability
    baselines: tuple[Baseline, ...] = ()
    n_groups: int | None = None
    abstention: Abstention | None = None
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        scores = ", ".join(f"{key} {interval}" for key, interval in self.metrics.items())
        return (
            f"Evaluation({len(self.names)} images, {len(self.task.classes)} classes: "
            f"{brief(self.task.classes)}\n  {scores}{findings_text(self.findings)})"
        )

    def _repr_html_(self) -> str:
        """Return the scores and the classes as tables, for a notebook."""
        scores = "".join(
            f"<tr><td>{TITLES.get(name, name)}</td><td>{interval}</td></tr>"
            for name, interval in self.metrics.items()
        )
        classes = "".join(
            f"<tr><td>{escape(row.name)}</td><td>{row.count}</td><td>{row.recall}</td></tr>"
            for row in self.per_class[:CLASSES_SHOWN]
        )
        n_more = len(self.per_class) - CLASSES_SHOWN
        rest = f"<p>and {n_more} more classes</p>" if n_more > 0 else ""
        return (
            f"<b>{len(self.names)} test images</b>"
            f"<table><tr><th>score</th><th>value [95 % interval]</th></tr>{scores}</table>"
            "<table><tr><th>class</th><th>images</th><th>recall [95 % interval]</th></tr>"
            f"{classes}</table>{rest}"
            + "".join(f"<p>{escape(f.severity)}: {escape(f.message)}</p>" for f in self.findings)
        )

    @property
    def predicted(self) -> Targets:
        """Predicted class indices (n,); for multilabel a 0/1 table."""
        return self.task.predicted(self.probabilities)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct (for multilabel: in every label)."""
        return correctness(self.targets, self.predicted)

    @property
    def confusion(self) -> NDArray[np.intp]:
        """Images by true class (rows) and predicted class (columns); multiclass only."""
        counts = metrics.confusion_matrix(self.targets, self.predicted, len(self.task.classes))
        return np.asarray(counts, dtype=np.intp)

    def mistakes(self, limit: int) -> list[int]:
        """Return the rows of wrong predictions, most confident first; multiclass only."""
        wrong = np.flatnonzero(~self.correct)
        confidence = self.probabilities.max(axis=1)[wrong]
        return [int(row) for row in wrong[np.argsort(-confidence, kind="stable")][:limit]]

    def worst(self, limit: int) -> list[int]:
        """Return the rows to inspect first: ``mistakes``, or none for multilabel."""
        return [] if self.task.kind == "multilabel" else self.mistakes(limit)

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for report.json."""
        is_multilabel, abstention = self.task.kind == "multilabel", self.abstention
        confidence = self.probabilities.max(axis=1)
        return {
            "images": len(self.names),
            "groups": self.n_groups,
            "metrics": {name: interval.as_dict() for name, interval in self.metrics.items()},
            "per_class": [
                {
                    "class": row.name,
                    "images": row.count,
                    "precision": row.precision.as_dict(),
                    "recall": row.recall.as_dict(),
                }
                for row in self.per_class
            ],
            "confusion": None if is_multilabel else self.confusion.tolist(),
            "aurc": None if is_multilabel else risk_coverage(confidence, self.correct).aurc,
            "abstention": None if abstention is None else abstention.as_dict(),
            "baselines": [
                {
                    "name": baseline.name,
                    "accuracy": baseline.accuracy.as_dict(),
                    "lead": baseline.lead.interval.as_dict(),
                    "significant": baseline.lead.significant,
                }
                for baseline in self.baselines
            ],
        }


AnyEvaluation: TypeAlias = Evaluation | BoxEvaluation | MaskEvaluation
"""Result of ``evaluate``, by task; all have task, names, metrics, baselines and n_groups."""


def evaluate(
    model: TransferModel,
    data: Dataset,
    *,
    extractor: Extractor,
    train: Dataset | None = None,
    seed: int = 0,
) -> AnyEvaluation:
    """Evaluate a model on labelled images.

    Classes are matched by name, in any order. The data may lack some of the model's classes.

    Parameters
    ----------
    model : TransferModel
    data : Dataset
    extractor : Extractor
    train : Dataset, optional
        Training images of a classifier, for the nearest-neighbour and majority baselines.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    Evaluation, BoxEvaluation or MaskEvaluation
        By the model's task.

    Raises
    ------
    DataError
        If there is no image, if an image has no label, several labels for a multiclass model, or
        an unknown class, or if the data belong to another task.
    """
    _require_matching_data(model, data)
    if model.task.kind == "detection":
        return evaluate_boxes(model, data, device=extractor.device, seed=seed)
    if model.task.kind == "segmentation":
        return evaluate_masks(model, data, device=extractor.device, seed=seed)
    return _evaluate_classes(model, data, extractor, train, seed)


def evaluate_exported(
    model: ExportedModel, data: Dataset, *, seed: int = 0, progress: Progress | None = None
) -> AnyEvaluation:
    """Evaluate an exported file on labelled images, as ``evaluate`` without training images.

    Parameters
    ----------
    model : ExportedModel
    data : Dataset
    seed : int
    progress : callable, optional

    Raises
    ------
    DataError
        As ``evaluate``.
    """
    _require_matching_data(model, data)
    targets = _aligned_targets(model, data)
    return evaluate_probabilities(
        model.task,
        model.predict_probabilities(data.samples, progress=progress),
        targets,
        names=tuple(sample.name for sample in data.samples),
        groups=data.groups(),
        seed=seed,
    )


def _evaluate_classes(
    model: TransferModel, data: Dataset, extractor: Extractor, train: Dataset | None, seed: int
) -> Evaluation:
    targets, groups = _aligned_targets(model, data), data.groups()
    if train is not None:
        _require_matching_data(model, train)
    train_targets = None if train is None else _aligned_targets(model, train)
    features = extractor.features(model.backbone, data.samples).values
    task = model.require_task(ClassificationTask)
    probabilities = task.probabilities(model.linear_head().logits(features))
    baselines: tuple[Baseline, ...] = ()
    if train is not None and train_targets is not None:
        train_features = extractor.features(model.backbone, train.samples).values
        correct = correctness(targets, task.predicted(probabilities))
        baselines = (
            majority_baseline(train_targets, targets, correct, groups=groups),
            nearest_neighbour_baseline(
                (train_features, train_targets), (features, targets), correct, groups=groups
            ),
        )
    return evaluate_probabilities(
        task,
        probabilities,
        targets,
        names=tuple(sample.name for sample in data.samples),
        groups=groups,
        baselines=baselines,
        seed=seed,
    )


def _require_matching_data(model: AnyModel, data: Dataset) -> None:
    """Fail early if there is no image, or the task or the classes are not those of the model."""
    if not len(data):
        raise DataError(
            f"Evaluation needs at least one image, got {len(data)}. Pass a folder with images."
        )
    kind = model.task.kind
    if data.kind != kind and DENSE.count(data.kind) + DENSE.count(kind):
        raise DataError(
            f"The model is for {kind}, but the data are for {data.kind}. Pass images with labels "
            f"for {kind}."
        )
    unknown = [n for n, count in data.counts().items() if count and n not in model.task.classes]
    if unknown:
        raise DataError(
            f"The model does not know the classes {unknown}; it knows {list(model.task.classes)}. "
            "Rename the classes, or remove their images."
        )


def _aligned_targets(model: AnyModel, data: Dataset) -> Targets:
    """Return targets as indices of the model's classes."""
    for sample in data.samples:
        has_several_labels = isinstance(sample.target, tuple) and len(sample.target) != 1
        if has_several_labels and model.task.kind == "multiclass":
            raise DataError(
                f"The model predicts one class per image, but {sample.name} has the labels "
                f"{sample.target}. Give each image one class."
            )
    return model.align_classes(data).targets()


def evaluate_probabilities(
    task: ClassificationTask,
    probabilities: NDArray[np.float64],
    targets: Targets,
    *,
    names: tuple[str, ...],
    groups: Groups = None,
    baselines: tuple[Baseline, ...] = (),
    seed: int = 0,
) -> Evaluation:
    """Compute all scores from probabilities and targets.

    Parameters
    ----------
    task : ClassificationTask
    probabilities : array, shape (n, n_classes)
    targets : array, shape (n,) or (n, n_classes)
    names : tuple of str
    groups : array of int, shape (n,), optional
        Whole groups are resampled.
    baselines : tuple of Baseline
    seed : int

    Returns
    -------
    Evaluation

    Examples
    --------
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> chances = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> found = evaluate_probabilities(
    ...     task, chances, np.array([0, 1, 1]), names=("a.png", "b.png", "c.png")
    ... )
    >>> print(found.metrics["accuracy"])
    0.667 [0.208, 0.939]
    """
    predicted = task.predicted(probabilities)
    statistics = _statistics(task, probabilities, predicted, targets)
    intervals = bootstrap_intervals(
        lambda weights: np.stack(
            [statistic(weights) for statistic in statistics.values()], axis=-1
        ),
        len(targets),
        groups=groups,
        n_resamples=_count_resamples(*probabilities.shape),
        seed=seed,
        vectorized=True,
    )
    correct = correctness(targets, predicted)
    named = _without_false_certainty(
        dict(zip(statistics, intervals, strict=True)), task, targets, is_perfect=bool(correct.all())
    )
    return Evaluation(
        task=task,
        names=names,
        targets=targets,
        probabilities=probabilities,
        metrics={
            "accuracy": proportion_interval(correct, groups),
            **named,
        },
        per_class=_class_rows(task, targets, predicted, groups),
        reliability=metrics.reliability_curve(targets, probabilities, CALIBRATION_BINS),
        baselines=baselines,
        n_groups=None if groups is None else len(np.unique(groups)),
        abstention=evaluate_abstention(task.selected, probabilities.max(axis=1), correct, groups),
    )


def _without_false_certainty(
    intervals: dict[str, Interval], task: ClassificationTask, targets: Targets, *, is_perfect: bool
) -> dict[str, Interval]:
    """Remove bounds that resampling cannot know (docs/intervals.md has their coverage).

    If every prediction is correct, no resample has a mistake, and the losses of mistakes are
    unknown. The calibration error is biased upwards: its lower bound is 0, and it is read as "at
    most". A label with a few positive images has hardly any other values to resample.
    """
    unknown = ["log_loss", "brier"] if is_perfect else []
    if task.kind == "multilabel":
        positives = targets.sum(axis=0)
        if (positives[positives > 0] < MIN_POSITIVES).any():
            unknown += ["mean_average_precision", "macro_f1"]
    changed = {name: replace(intervals[name], low=math.nan, high=math.nan) for name in unknown}
    error = intervals["ece"]
    return (
        intervals | changed | {"ece": error if math.isnan(error.low) else replace(error, low=0.0)}
    )


def _count_resamples(n: int, n_classes: int) -> int:
    """Return 1000 resamples; for many images and classes fewer, but at least 200, to save time.

    >>> _count_resamples(400, 2), _count_resamples(5000, 100), _count_resamples(50_000, 1000)
    (1000, 400, 200)
    """
    return max(200, min(1000, 200_000_000 // max(1, n * n_classes)))


def _statistics(
    task: ClassificationTask, probabilities: Array, predicted: Targets, targets: Targets
) -> dict[str, Callable[[Array], Any]]:
    """Return the metrics as functions of image weights, (n,) or (B, n)."""

    def with_predictions(score: Callable[..., Any]) -> Callable[[Array], Any]:
        return lambda weights: score(targets, predicted, sample_weight=weights)

    def with_probabilities(score: Callable[..., Any]) -> Callable[[Array], Any]:
        return lambda weights: score(targets, probabilities, sample_weight=weights)

    statistics = {"macro_f1": with_predictions(metrics.macro_f1_score)}
    if task.kind == "multilabel":
        statistics["mean_average_precision"] = with_probabilities(
            metrics.mean_average_precision_score
        )
    else:
        statistics["balanced_accuracy"] = with_predictions(metrics.balanced_accuracy_score)
    return statistics | {
        "auroc": with_probabilities(metrics.macro_auroc_score),
        "log_loss": with_probabilities(metrics.log_loss),
        "brier": with_probabilities(metrics.brier_loss),
        "ece": with_probabilities(
            partial(metrics.expected_calibration_error, n_bins=CALIBRATION_BINS)
        ),
    }


def _class_rows(
    task: ClassificationTask, targets: Targets, predicted: Targets, groups: Groups
) -> tuple[ClassRow, ...]:
    def share(rows: NDArray[np.bool_], hits: NDArray[np.bool_]) -> Interval:
        return proportion_interval(hits[rows], None if groups is None else groups[rows])

    rows = []
    for index, name in enumerate(task.classes):
        is_class = targets[:, index] == 1 if targets.ndim == 2 else targets == index
        is_predicted = predicted[:, index] == 1 if predicted.ndim == 2 else predicted == index
        rows.append(
            ClassRow(
                name=name,
                count=int(is_class.sum()),
                precision=share(is_predicted, is_class),
                recall=share(is_class, is_predicted),
            )
        )
    return tuple(rows)
