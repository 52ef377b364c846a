"""Tasks: classification, detection and segmentation.

A task turns logits into predictions and has the names of the classes. The three tasks share the
contract ``Task``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Kind, brief
from headstart.errors import ModelFileError, UsageError
from headstart.metrics.confidence_intervals import Groups
from headstart.metrics.selective import SelectedThreshold, threshold_for_risk
from headstart.models.heads.detection_config import BoxSelection

__all__ = [
    "TEMPERATURE_SPREAD",
    "ClassificationTask",
    "DetectionTask",
    "SegmentationTask",
    "Task",
]

Array = NDArray[np.floating[Any]]

TEMPERATURE_SPREAD = 0.25
"""Prior standard deviation of the log temperature, for a few dozen held-out images."""

MIN_POSITIVES_FOR_THRESHOLD = 10
"""With fewer positive images the best F1 threshold is mostly luck; 0.5 is used instead."""


class Task(Protocol):
    """The contract of a task.

    A task is a value: it has the names of its classes and its thresholds, but no parameters that
    are trained by gradient.
    """

    @property
    def name(self) -> str:
        """The task's name in files and on the command line."""
        ...

    @property
    def kind(self) -> Kind:
        """The kind of labels that the task is trained on."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the head's outputs."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClassificationTask:
    """One class for each image (multiclass), or any number of labels (multilabel).

    Parameters
    ----------
    classes : tuple of str
        In the order of the head's outputs.
    kind : {"multiclass", "multilabel"}
    temperature : float
        Logits are divided by it before they become probabilities.
    thresholds : tuple of float
        Multilabel only: least probability of each label; empty means 0.5 for all.
    max_risk : float or None
        Multiclass only: share of the predictions that may be wrong. The model abstains from
        less confident predictions.
    selected : SelectedThreshold or None
        The least confidence of a prediction, chosen for ``max_risk`` when the task is calibrated.

    Raises
    ------
    UsageError
        If ``max_risk`` is not between 0 and 1, or the task is multilabel.

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
    selected: SelectedThreshold | None = None

    def __repr__(self) -> str:
        return (
            f"ClassificationTask({self.kind}, {len(self.classes)} classes: {brief(self.classes)})"
        )

    def __post_init__(self) -> None:
        if self.max_risk is not None and self.kind == "multilabel":
            raise UsageError(
                f"`max_risk` is {self.max_risk}, but the task is multilabel, where each label has "
                "its own threshold and no single confidence exists. Leave `max_risk` out."
            )
        if self.max_risk is not None and not 0 < self.max_risk < 1:
            raise UsageError(
                f"`max_risk` must be between 0 and 1, got {self.max_risk}. Pass a share such as "
                "0.02."
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
        """Whether the model abstains from each prediction, shape (n,).

        None if no threshold was chosen.
        """
        if self.selected is None or self.selected.threshold is None:
            return None
        return np.asarray(probabilities.max(axis=1) < self.selected.threshold)

    def calibrated(
        self,
        logits: Array,
        targets: NDArray[np.integer[Any]],
        *,
        spread: float = TEMPERATURE_SPREAD,
        groups: Groups = None,
    ) -> ClassificationTask:
        """Return the same task with temperature (and thresholds) fitted on held-out logits.

        With ``max_risk`` the confidence threshold is chosen on them as well.

        Parameters
        ----------
        logits : array, shape (n, n_classes)
            Of images that the head was not trained on, such as out-of-fold logits. Never of test
            images.
        targets : array, shape (n,) or (n, n_classes)
        spread : float
            Standard deviation of a normal prior on the logarithm of the temperature, around 0.
            Without it, a few dozen images that are all classified correctly would give an
            unbounded confidence. With many images the prior has no effect. `math.inf` is no prior.
        groups : n hashables, optional
            Images of one group are not independent; used for ``max_risk``.

        Returns
        -------
        ClassificationTask

        Reference
        ---------
        Guo et al., On calibration of modern neural networks, ICML 2017, section 4.2: the
        temperature minimises the log-loss.
        """
        fitted = replace(self, temperature=_best_temperature(self, logits, targets, spread))
        if self.kind == "multiclass":
            return fitted._with_risk_threshold(logits, targets, groups)
        probabilities = fitted.probabilities(logits)
        columns = zip(targets.T, probabilities.T, strict=True)
        return replace(fitted, thresholds=tuple(_best_threshold(*pair) for pair in columns))

    def _with_risk_threshold(
        self, logits: Array, targets: NDArray[np.integer[Any]], groups: Groups
    ) -> ClassificationTask:
        if self.max_risk is None:
            return replace(self, selected=None)
        probabilities = self.probabilities(logits)
        correct = self.predicted(probabilities) == targets
        confidence = probabilities.max(axis=1)
        selected = threshold_for_risk(confidence, correct, max_risk=self.max_risk, groups=groups)
        return replace(self, selected=selected)

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
            If a value is missing or invalid.
        """
        risk, selected = values.get("max_risk"), values.get("selected")  # older files have none
        try:
            task = cls(
                classes=tuple(str(name) for name in values["classes"]),
                kind=values["kind"],
                temperature=float(values["temperature"]),
                thresholds=tuple(float(t) for t in values["thresholds"]),
                max_risk=None if risk is None else float(risk),
                selected=None if selected is None else SelectedThreshold.from_dict(selected),
            )
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise ModelFileError(_damaged_task("classification", repr(error))) from error
        if (
            task.kind not in {"multiclass", "multilabel"}
            or not task.classes
            or not (np.isfinite(task.temperature) and task.temperature > 0)
            or len(task.thresholds) not in {0, len(task.classes)}
        ):
            raise ModelFileError(_damaged_task("classification", str(values)))
        return task


def _damaged_task(name: str, value: str) -> str:
    return (
        f"model.json: the {name} task is invalid: {value}. The model folder is damaged: copy it "
        "again."
    )


def _best_temperature(
    task: ClassificationTask, logits: Array, targets: NDArray[np.integer[Any]], spread: float
) -> float:
    from scipy.optimize import minimize_scalar

    from headstart.metrics.classification import log_loss

    def loss(log_temperature: float) -> float:
        scaled = replace(task, temperature=float(np.exp(log_temperature)))
        prior = (log_temperature / spread) ** 2 / 2 / len(targets)
        return float(log_loss(targets, scaled.probabilities(logits))) + prior

    # The log-loss is convex in 1/T, so one bounded search finds the minimum. Without the bounds,
    # perfectly separated folds would give an infinite confidence.
    minimum = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(minimum.x)) if minimum.fun < loss(0.0) else 1.0


def _best_threshold(target: NDArray[np.integer[Any]], probability: Array) -> float:
    """Threshold with the largest F1 score, or 0.5 if there are too few images."""
    positives = int(target.sum())
    if min(positives, len(target) - positives) < MIN_POSITIVES_FOR_THRESHOLD:
        return 0.5
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    hits = np.cumsum(target[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + positives)
    # Equal probabilities cannot be separated: allow a threshold between different ones only.
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
        Classes of objects, without a background.
    threshold : float
        Least score of a predicted object, for all classes together. Metrics use all scores.
    class_thresholds : tuple of float
        One for each class, from the validation images; empty if they are all ``threshold``.
    threshold_range : tuple of float
        Where ``threshold`` lies in 90 % of the resamples of the validation images: low and high.
        Empty if it was not chosen on images.
    selection : BoxSelection
        Non-maximum suppression and the largest number of boxes for an image.

    Examples
    --------
    >>> DetectionTask(classes=("cell", "dust"), class_thresholds=(0.4, 0.6)).thresholds
    (0.4, 0.6)
    """

    classes: tuple[str, ...]
    threshold: float = 0.5
    class_thresholds: tuple[float, ...] = ()
    threshold_range: tuple[float, ...] = ()
    selection: BoxSelection = field(default_factory=BoxSelection)

    name: ClassVar[str] = "detection"
    kind: ClassVar[Kind] = "detection"

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Least score of a predicted object of each class."""
        return self.class_thresholds or (self.threshold,) * len(self.classes)

    def __repr__(self) -> str:
        return f"DetectionTask({len(self.classes)} classes: {brief(self.classes)})"

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetectionTask:
        """Build the task from the plain values of ``as_dict``.

        Raises
        ------
        ModelFileError
            If a value is missing or invalid.
        """
        try:
            classes, threshold = tuple(map(str, values["classes"])), float(values["threshold"])
            class_thresholds = tuple(map(float, values.get("class_thresholds", ())))
            threshold_range = tuple(map(float, values.get("threshold_range", ())))
            selection = BoxSelection(**values.get("selection", {}))  # older files have none
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise ModelFileError(_damaged_task("detection", repr(error))) from error
        scores = (threshold, *class_thresholds, *threshold_range)
        is_complete = len(class_thresholds) in {0, len(classes)} and len(threshold_range) in {0, 2}
        if not classes or not is_complete or not all(0 <= score <= 1 for score in scores):
            raise ModelFileError(_damaged_task("detection", str(values)))
        return cls(
            classes=classes,
            threshold=threshold,
            class_thresholds=class_thresholds,
            threshold_range=threshold_range,
            selection=selection,
        )


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

    def __repr__(self) -> str:
        return f"SegmentationTask({len(self.classes)} classes: {brief(self.classes)})"

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SegmentationTask:
        """Build the task from the plain values of ``as_dict``.

        Raises
        ------
        ModelFileError
            If a value is missing or invalid.
        """
        try:
            classes = tuple(map(str, values["classes"]))
        except (KeyError, TypeError) as error:
            raise ModelFileError(_damaged_task("segmentation", repr(error))) from error
        if not 1 < len(classes) < 255:
            raise ModelFileError(
                _damaged_task("segmentation", f"expected from 2 to 254 classes, got {len(classes)}")
            )
        return cls(classes=classes)
