"""Classification: one class an image, or any number of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Kind
from headstart.errors import ModelFileError, UsageError
from headstart.metrics.confidence_intervals import Groups
from headstart.metrics.selective import Selected, threshold_for_risk

__all__ = ["ClassificationTask", "DetectionTask", "SegmentationTask", "Task"]

Array = NDArray[np.floating[Any]]

MIN_POSITIVES_FOR_A_THRESHOLD = 10
"""With fewer positive images the best F1 threshold is mostly luck; 0.5 is kept."""


@dataclass(frozen=True, kw_only=True)
class ClassificationTask:
    """Which class an image shows (multiclass), or which labels hold (multilabel).

    Parameters
    ----------
    classes : tuple of str
        In the order of the head's outputs.
    kind : {"multiclass", "multilabel"}
    temperature : float
        Logits are divided by it before they become probabilities.
    thresholds : tuple of float
        Multilabel only: a label is given from this probability on; empty means 0.5.
    max_risk : float or None
        Multiclass only: share of the answers that may be wrong; what is less sure is left to
        somebody else.
    selected : Selected or None
        The confidence that answers begin at, chosen for ``max_risk`` when the task is calibrated.

    Raises
    ------
    UsageError
        If ``max_risk`` is no share, or is asked of several labels.

    Examples
    --------
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> task.labels(task.probabilities(np.array([[0.0, 2.0]])))
    ['dog']
    """

    classes: tuple[str, ...]
    kind: Kind = "multiclass"
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    max_risk: float | None = None
    selected: Selected | None = None

    def __post_init__(self) -> None:
        if self.max_risk is not None and self.kind == "multilabel":
            raise UsageError(
                "Expected `max_risk` for one class an image, got it for any number of labels, "
                "where no one confidence answers for all; do leave it out: a label is given from "
                "a probability of its own on."
            )
        if self.max_risk is not None and not 0 < self.max_risk < 1:
            raise UsageError(
                f"Expected `max_risk` to lie between 0 and 1, got {self.max_risk}; do give a share "
                "such as 0.02."
            )

    @property
    def name(self) -> str:
        """The task's name in files and on the command line."""
        return "classification"

    def probabilities(self, logits: Array) -> NDArray[np.float64]:
        """Probabilities of shape (n, n_classes): softmax, or a sigmoid for each label."""
        scaled = np.asarray(logits, dtype=np.float64) / self.temperature
        if self.kind == "multilabel":
            return np.exp(-np.logaddexp(0.0, -scaled))
        scaled -= scaled.max(axis=1, keepdims=True)
        exponential = np.exp(scaled)
        return np.asarray(exponential / exponential.sum(axis=1, keepdims=True))

    def predicted(self, probabilities: Array) -> NDArray[np.intp]:
        """Class indices (n,), or for multilabel a 0/1 table (n, n_classes)."""
        if self.kind == "multilabel":
            return (probabilities >= np.asarray(self.thresholds or 0.5)).astype(np.intp)
        return np.asarray(probabilities.argmax(axis=1), dtype=np.intp)

    def labels(self, probabilities: Array) -> list[str | tuple[str, ...]]:
        """Predictions by name: a string for each image, or for multilabel a tuple."""
        predicted = self.predicted(probabilities)
        if self.kind == "multilabel":
            names = np.asarray(self.classes, dtype=object)
            return [tuple(names[row.astype(bool)]) for row in predicted]
        return [self.classes[index] for index in predicted]

    def abstains(self, probabilities: Array) -> NDArray[np.bool_] | None:
        """Whether each image's answer is too unsure to count, shape (n,).

        None where no confidence was chosen: nothing is known of what a threshold would do.
        """
        if self.selected is None or self.selected.threshold is None:
            return None
        return np.asarray(probabilities.max(axis=1) < self.selected.threshold)

    def calibrated(
        self,
        logits: Array,
        targets: NDArray[np.integer[Any]],
        *,
        spread: float = math.inf,
        groups: Groups = None,
    ) -> ClassificationTask:
        """Return the same task with temperature (and thresholds) fitted on held-out logits.

        With ``max_risk`` the confidence that answers begin at is chosen on them as well.

        Parameters
        ----------
        logits : array, shape (n, n_classes)
            Of images that the head was not trained on, such as out-of-fold logits; never of
            the test part.
        targets : array, shape (n,) or (n, n_classes)
        spread : float
            How far the logarithm of the temperature is likely to be from 0 (the standard
            deviation of a normal prior). A few dozen images that are all answered right would
            otherwise ask for any confidence; many images outweigh it.
        groups : n hashables, optional
            Images that are not independent of each other, for ``max_risk``.

        Returns
        -------
        Classification

        Reference
        ---------
        Guo et al., On calibration of modern neural networks, ICML 2017, section 4.2: the
        temperature minimises the log-loss.
        """
        fitted = replace(self, temperature=_best_temperature(self, logits, targets, spread))
        if self.kind == "multiclass":
            return fitted._selecting(logits, targets, groups)
        probabilities = fitted.probabilities(logits)
        columns = zip(targets.T, probabilities.T, strict=True)
        return replace(fitted, thresholds=tuple(_best_threshold(*pair) for pair in columns))

    def _selecting(
        self, logits: Array, targets: NDArray[np.integer[Any]], groups: Groups
    ) -> ClassificationTask:
        if self.max_risk is None:
            return replace(self, selected=None)
        chances = self.probabilities(logits)
        correct = self.predicted(chances) == targets
        sure = chances.max(axis=1)
        found = threshold_for_risk(sure, correct, max_risk=self.max_risk, groups=groups)
        return replace(self, selected=found)

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        selected = None if self.selected is None else self.selected.as_dict()
        return {"name": self.name, **asdict(self), "selected": selected}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassificationTask:
        """Build the task from the plain values of ``as_dict``.

        Raises
        ------
        ModelFileError
            If a value is missing or makes no sense.
        """
        risk, selected = values.get("max_risk"), values.get("selected")  # older files have none
        try:
            task = cls(
                classes=tuple(str(name) for name in values["classes"]),
                kind=values["kind"],
                temperature=float(values["temperature"]),
                thresholds=tuple(float(t) for t in values["thresholds"]),
                max_risk=None if risk is None else float(risk),
                selected=None if selected is None else Selected.from_dict(selected),
            )
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise ModelFileError(f"Expected a classification task, got {error!r}.") from error
        if (
            task.kind not in {"multiclass", "multilabel"}
            or not task.classes
            or not (np.isfinite(task.temperature) and task.temperature > 0)
            or len(task.thresholds) not in {0, len(task.classes)}
        ):
            raise ModelFileError(f"Expected a classification task that makes sense, got {values}.")
        return task


def _best_temperature(
    task: ClassificationTask, logits: Array, targets: NDArray[np.integer[Any]], spread: float
) -> float:
    from scipy.optimize import minimize_scalar

    from headstart.metrics.classification import log_loss

    def loss(log_temperature: float) -> float:
        scaled = replace(task, temperature=float(np.exp(log_temperature)))
        prior = (log_temperature / spread) ** 2 / 2 / len(targets)
        return float(log_loss(targets, scaled.probabilities(logits))) + prior

    # The log-loss is convex in 1/T, so one bounded search finds the minimum; the bounds keep
    # perfectly separated folds from asking for infinite confidence.
    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def _best_threshold(target: NDArray[np.integer[Any]], probability: Array) -> float:
    """Probability from which on a label is given, with the largest F1; 0.5 if data are few."""
    positives = int(target.sum())
    if min(positives, len(target) - positives) < MIN_POSITIVES_FOR_A_THRESHOLD:
        return 0.5
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    hits = np.cumsum(target[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + positives)
    # A cut lies between two different probabilities only.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


@dataclass(frozen=True, kw_only=True)
class DetectionTask:
    """A box, a class and a score for every object.

    Parameters
    ----------
    classes : tuple of str
        Of objects; the background is none of them.
    threshold : float
        Objects are named from this score on. Metrics read all scores.

    Examples
    --------
    >>> DetectionTask(classes=("cell",)).threshold
    0.5
    """

    classes: tuple[str, ...]
    threshold: float = 0.5

    name: ClassVar[str] = "detection"
    kind: ClassVar[Kind] = "detection"

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetectionTask:
        """Build the task from the plain values of ``as_dict``.

        Raises
        ------
        ModelFileError
            If a value is missing or makes no sense.
        """
        try:
            classes, threshold = tuple(map(str, values["classes"])), float(values["threshold"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"Expected a detection task, got {error!r}.") from error
        if not classes or not 0 <= threshold <= 1:
            raise ModelFileError(f"Expected a detection task that makes sense, got {values}.")
        return cls(classes=classes, threshold=threshold)


@dataclass(frozen=True, kw_only=True)
class SegmentationTask:
    """One class for every pixel.

    Parameters
    ----------
    classes : tuple of str
        In the order of the head's outputs; the background, if there is one, is one of them.

    Examples
    --------
    >>> SegmentationTask(classes=("background", "leaf")).name
    'segmentation'
    """

    classes: tuple[str, ...]

    name: ClassVar[str] = "segmentation"
    kind: ClassVar[Kind] = "segmentation"

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SegmentationTask:
        """Build the task from the plain values of ``as_dict``.

        Raises
        ------
        ModelFileError
            If a value is missing or makes no sense.
        """
        try:
            classes = tuple(map(str, values["classes"]))
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"Expected a segmentation task, got {error!r}.") from error
        if not 1 < len(classes) < 255:
            raise ModelFileError(f"Expected from 2 to 254 classes, got {len(classes)}.")
        return cls(classes=classes)


class Task(Protocol):
    """What is asked of an image.

    A task is a value: it knows the names of its classes and how sure it may be, and holds no
    parameters that are trained by gradient.
    """

    @property
    def name(self) -> str:
        """The task's name in files and on the command line."""
        ...

    @property
    def kind(self) -> Kind:
        """The kind of labels that it learns from."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the head's outputs."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        ...
