"""What a model's abstaining brought on images that it was judged on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import DENSE, Dataset
from headstart.errors import DataError
from headstart.evaluation.baselines import (
    Baseline,
    correctness,
    majority_baseline,
    nearest_neighbour_baseline,
)
from headstart.evaluation.detection import BoxEvaluation, evaluate_boxes
from headstart.evaluation.segmentation import MaskEvaluation, evaluate_masks
from headstart.features.extractor import Extractor
from headstart.metrics import classification as metrics
from headstart.metrics.classification import Reliability
from headstart.metrics.confidence_intervals import (
    Interval,
    bootstrap_intervals,
    proportion_interval,
)
from headstart.metrics.selective import Selected, risk_coverage
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel

__all__ = [
    "TITLES",
    "Abstention",
    "AnyEvaluation",
    "ClassRow",
    "Evaluation",
    "evaluate",
    "evaluate_probabilities",
    "judge_abstention",
]


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """How much was answered of the judged images, and how much of that was wrong.

    Parameters
    ----------
    selected : Selected
        The threshold, chosen on other images.
    coverage, risk : Interval or None
        None where no threshold could be chosen. The risk has NaN where nothing was answered.
    """

    selected: Selected
    coverage: Interval | None = None
    risk: Interval | None = None

    def sentence(self) -> str:
        """Say in words what it brought, and whether that is what was wanted.

        >>> from headstart.metrics.selective import threshold_for_risk
        >>> sure = np.linspace(0.5, 1, 400)
        >>> chosen = threshold_for_risk(sure, sure > 0.55, max_risk=0.05)
        >>> print(judge_abstention(chosen, sure[::20], sure[::20] > 0.55).sentence()[:88])
        Abstains below 0.540: it answers 0.900 [0.699, 0.972] of the images, and 0.000 [0.000, 0
        """
        if self.coverage is None or self.risk is None or self.selected.threshold is None:
            return self.selected.sentence()
        wanted = f"at most {self.selected.max_risk:g} was wanted"
        if np.isnan(self.risk.value):
            judged = f"none of these images, so that nothing can be said of its answers; {wanted}"
            return f"Abstains below {self.selected.threshold:.3f}: it answers {judged}."
        if self.risk.low > self.selected.max_risk:
            judged = "which is EXCEEDED: do not rely on it for images such as these"
        elif self.risk.high <= self.selected.max_risk:
            judged = "which is kept"
        else:
            judged = "which these images can neither confirm nor refute"
        least = self.selected.threshold
        where = f"Abstains below {least:.3f}" if least > 0 else "Abstains nowhere"
        return (
            f"{where}: it answers {self.coverage} of the images, and {self.risk} of these "
            f"answers are wrong; {wanted}, {judged}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Every number as plain values, for report.json."""
        return {
            "selected": self.selected.as_dict(),
            "coverage": None if self.coverage is None else self.coverage.as_dict(),
            "risk": None if self.risk is None else self.risk.as_dict(),
        }


def judge_abstention(
    selected: Selected | None,
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    groups: Groups = None,
) -> Abstention | None:
    """Hold a threshold against images that it was not chosen on.

    Parameters
    ----------
    selected : Selected or None
    confidence : array, shape (n,)
    correct : array of bool, shape (n,)
    groups : n hashables, optional
        Groups count as in ``proportion_interval``.

    Returns
    -------
    Abstention or None
        None where no risk was wanted.
    """
    if selected is None or selected.threshold is None:
        return None if selected is None else Abstention(selected=selected)
    answered = confidence >= selected.threshold
    names = None if groups is None else np.fromiter(groups, dtype=object)
    return Abstention(
        selected=selected,
        coverage=proportion_interval(answered, names),
        risk=proportion_interval(~correct[answered], None if names is None else names[answered]),
    )


AnyEvaluation: TypeAlias = "Evaluation | BoxEvaluation | MaskEvaluation"
"""What ``evaluate`` gives, by the task; all have task, names, metrics, baselines, n_groups."""

Array = NDArray[np.floating[Any]]
Targets = NDArray[np.integer[Any]]
Groups = NDArray[np.intp] | None

CALIBRATION_BINS = 10
"""Of the calibration error and of the curve that is drawn beside it."""

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
"""What each metric is called in front of a person; losses and errors are better when lower."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: its images in the evaluated part, and how often it is found and right."""

    name: str
    count: int
    precision: Interval
    recall: Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A model's answers to labelled images, and every number that follows from them.

    Parameters
    ----------
    task : Classification
    names : tuple of str
        The images.
    targets : array, shape (n,) or (n, n_classes)
    probabilities : array, shape (n, n_classes)
    metrics : dict of str to Interval
    per_class : tuple of ClassRow
    reliability : Reliability
        Points of the calibration curve.
    baselines : tuple of Baseline
    n_groups : int or None
        Groups that were resampled whole, if the images have groups.
    abstention : Abstention or None
        What answering only from a confidence on brought, where a risk was wanted.
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

    @property
    def predicted(self) -> Targets:
        """Class indices (n,), or for multilabel a 0/1 table."""
        return self.task.predicted(self.probabilities)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each image's answer is right (for multilabel: in every label)."""
        return correctness(self.targets, self.predicted)

    @property
    def confusion(self) -> NDArray[np.intp]:
        """Images by true class (rows) and predicted class (columns); multiclass only."""
        counts = metrics.confusion_matrix(self.targets, self.predicted, len(self.task.classes))
        return np.asarray(counts, dtype=np.intp)

    def mistakes(self, limit: int) -> list[int]:
        """Rows of the wrong answers, the most confident first; multiclass only."""
        wrong = np.flatnonzero(~self.correct)
        certainty = self.probabilities.max(axis=1)[wrong]
        return [int(row) for row in wrong[np.argsort(-certainty, kind="stable")][:limit]]

    def worst(self, limit: int) -> list[int]:
        """Rows to look at first; as ``mistakes``, and none for multilabel."""
        return [] if self.task.kind == "multilabel" else self.mistakes(limit)

    def as_dict(self) -> dict[str, Any]:
        """Every number as plain values, for report.json."""
        several, said = self.task.kind == "multilabel", self.abstention
        sure = self.probabilities.max(axis=1)
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
            "confusion": None if several else self.confusion.tolist(),
            "aurc": None if several else risk_coverage(sure, self.correct).aurc,
            "abstention": None if said is None else said.as_dict(),
            "baselines": [
                {
                    "name": baseline.name,
                    "accuracy": baseline.accuracy.as_dict(),
                    "lead": baseline.lead.interval.as_dict(),
                    "distinguishable": baseline.lead.distinguishable,
                }
                for baseline in self.baselines
            ],
        }


def evaluate(
    model: TransferModel,
    data: Dataset,
    *,
    extractor: Extractor,
    train: Dataset | None = None,
    seed: int = 0,
) -> AnyEvaluation:
    """Evaluate a model on labelled images.

    Classes are matched by name: the data may lack some of the model's classes and list them in
    any order.

    Parameters
    ----------
    model : TransferModel
    data : Dataset
    extractor : Extractor
    train : Dataset, optional
        What a classifier learned from, for the nearest-neighbour and majority baselines.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Evaluation, BoxEvaluation or MaskEvaluation
        By the model's task.

    Raises
    ------
    DataError
        If there is no image, or an image has no label, several labels where the model gives
        one, or a class that the model does not know; if the data are of another task.
    """
    if not len(data):
        raise DataError("Expected at least one image to evaluate on, got none.")
    _require_known(model, data)
    if model.task.kind == "detection":
        return evaluate_boxes(model, data, device=extractor.device, seed=seed)
    if model.task.kind == "segmentation":
        return evaluate_masks(model, data, device=extractor.device, seed=seed)
    return _evaluate_classes(model, data, extractor, train, seed)


def _evaluate_classes(
    model: TransferModel, data: Dataset, extractor: Extractor, train: Dataset | None, seed: int
) -> Evaluation:
    targets, groups = _targets(model, data), data.groups()
    if train is not None:
        _require_known(model, train)
    learned = None if train is None else _targets(model, train)
    values = extractor.features(model.backbone, data.samples).values
    probabilities = model.task.probabilities(model.linear_head().logits(values))
    baselines: tuple[Baseline, ...] = ()
    if train is not None and learned is not None:
        known = extractor.features(model.backbone, train.samples).values
        correct = correctness(targets, model.task.predicted(probabilities))
        baselines = (
            majority_baseline(learned, targets, correct, groups=groups),
            nearest_neighbour_baseline((known, learned), (values, targets), correct, groups=groups),
        )
    return evaluate_probabilities(
        model.task,
        probabilities,
        targets,
        names=tuple(sample.name for sample in data.samples),
        groups=groups,
        baselines=baselines,
        seed=seed,
    )


def _require_known(model: TransferModel, data: Dataset) -> None:
    """Nothing is computed for data of another task, or with classes that no answer can be."""
    kind = model.task.kind
    if data.kind != kind and DENSE.count(data.kind) + DENSE.count(kind):
        raise DataError(
            f"Expected data for {kind}, as the model answers, got {data.kind}; do evaluate it on "
            "images with such labels."
        )
    foreign = [n for n, count in data.counts().items() if count and n not in model.task.classes]
    if foreign:
        raise DataError(
            f"Expected images of the model's classes {list(model.task.classes)}, got also "
            f"{foreign}; do rename the folders or leave these images out."
        )


def _targets(model: TransferModel, data: Dataset) -> Targets:
    """Targets by the model's classes."""
    for sample in data.samples:
        several = isinstance(sample.target, tuple) and len(sample.target) != 1
        if several and model.task.kind == "multiclass":
            raise DataError(
                f"Expected one class an image, as the model gives, got {sample.target} for "
                f"{sample.name}; do give each image one class."
            )
    return model.aligned(data).targets()


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
    """Every number that follows from probabilities and targets.

    Parameters
    ----------
    task : Classification
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
        lambda weights: np.stack([f(weights) for f in statistics.values()], axis=-1),
        len(targets),
        groups=groups,
        n_resamples=_resamples(*probabilities.shape),
        seed=seed,
        vectorized=True,
    )
    correct = correctness(targets, predicted)
    return Evaluation(
        task=task,
        names=names,
        targets=targets,
        probabilities=probabilities,
        metrics={
            "accuracy": proportion_interval(correct, groups),
            **dict(zip(statistics, intervals, strict=True)),
        },
        per_class=_class_rows(task, targets, predicted, groups),
        reliability=metrics.reliability_curve(targets, probabilities, CALIBRATION_BINS),
        baselines=baselines,
        n_groups=None if groups is None else len(np.unique(groups)),
        abstention=judge_abstention(task.selected, probabilities.max(axis=1), correct, groups),
    )


def _resamples(n: int, n_classes: int) -> int:
    """1000 resamples; fewer, but at least 200, where many images of many classes take minutes.

    >>> _resamples(400, 2), _resamples(5000, 100), _resamples(50_000, 1000)
    (1000, 400, 200)
    """
    return max(200, min(1000, 200_000_000 // max(1, n * n_classes)))


def _statistics(
    task: ClassificationTask, probabilities: Array, predicted: Targets, targets: Targets
) -> dict[str, Callable[[Array], Any]]:
    """Metrics as functions of the images' weights, (n,) or (B, n)."""

    def of_labels(score: Callable[..., Any]) -> Callable[[Array], Any]:
        return lambda weights: score(targets, predicted, sample_weight=weights)

    def of_chances(score: Callable[..., Any]) -> Callable[[Array], Any]:
        return lambda weights: score(targets, probabilities, sample_weight=weights)

    found = {"macro_f1": of_labels(metrics.macro_f1_score)}
    if task.kind == "multilabel":
        found["mean_average_precision"] = of_chances(metrics.mean_average_precision_score)
    else:
        found["balanced_accuracy"] = of_labels(metrics.balanced_accuracy_score)
    return found | {
        "auroc": of_chances(metrics.macro_auroc_score),
        "log_loss": of_chances(metrics.log_loss),
        "brier": of_chances(metrics.brier_loss),
        "ece": of_chances(partial(metrics.expected_calibration_error, n_bins=CALIBRATION_BINS)),
    }


def _class_rows(
    task: ClassificationTask, targets: Targets, predicted: Targets, groups: Groups
) -> tuple[ClassRow, ...]:
    def share(rows: NDArray[np.bool_], right: NDArray[np.bool_]) -> Interval:
        return proportion_interval(right[rows], None if groups is None else groups[rows])

    rows = []
    for index, name in enumerate(task.classes):
        is_it = targets[:, index] == 1 if targets.ndim == 2 else targets == index
        said = predicted[:, index] == 1 if predicted.ndim == 2 else predicted == index
        rows.append(
            ClassRow(
                name=name,
                count=int(is_it.sum()),
                precision=share(said, is_it),
                recall=share(is_it, said),
            )
        )
    return tuple(rows)
