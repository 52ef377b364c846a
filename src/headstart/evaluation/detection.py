"""Evaluation of detectors on labelled images.

The bootstrap resamples images, not boxes, because the objects of one image are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.images import Finding, findings_text
from headstart.data.dataset import Boxes, Dataset, brief, html_table
from headstart.errors import DataError, UnknownNameError
from headstart.evaluation.baselines import Baseline
from headstart.metrics import detection as metrics
from headstart.metrics.confidence_intervals import Interval, bootstrap_intervals
from headstart.models.inference import Detections, detect
from headstart.models.tasks import DetectionTask
from headstart.models.transfer_model import TransferModel

__all__ = [
    "TITLES",
    "BoxEvaluation",
    "ObjectRow",
    "RecallCurve",
    "class_indices",
    "evaluate_boxes",
    "evaluate_detections",
]

Floats = NDArray[np.floating[Any]]
Groups = NDArray[np.intp] | None

PRIMARY_METRIC = "map"

MIN_OBJECTS = 10
"""Minimum number of objects of a class or size for an interval. With fewer, the average precision
is usually too high, and simulated intervals contained the true value in one of ten cases."""

MATCH_IOU = 0.5
"""Minimum overlap (IoU) of a box and its object, in curves and confusion matrices."""

TITLES = {
    "map": "mAP (.50:.95)",
    "map50": "mAP at .50",
    "map75": "mAP at .75",
    "map_small": "mAP, small objects",
    "map_medium": "mAP, medium objects",
    "map_large": "mAP, large objects",
    "recall100": "recall, 100 boxes per image",
}
"""Display names of the metrics; higher is better for all."""


@dataclass(frozen=True, kw_only=True)
class ObjectRow:
    """One class: number of its objects and average precision."""

    name: str
    objects: int
    ap: Interval
    ap50: Interval


class RecallCurve(NamedTuple):
    """Precision and score at 101 recall values of one class, at an IoU of 0.5."""

    name: str
    recall: Floats
    precision: Floats
    score: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxEvaluation:
    """Detections of a model, true boxes, and all scores computed from them.

    Parameters
    ----------
    task : DetectionTask
    names : tuple of str
        Image names.
    truths : tuple of Boxes
        In the images' own coordinates.
    detections : tuple of Detections
        All detections, with any score.
    metrics : dict of str to Interval
        ``map`` comes first. Sizes without objects are omitted.
    per_class : tuple of ObjectRow
    curves : tuple of RecallCurve
        Curves of the classes that have objects.
    confusions : array of int, shape (n, n_classes + 1, n_classes + 1)
        Objects of each image by true class (rows) and predicted class (columns), for scores above
        the task's threshold and an IoU of 0.5. The last row and column are the background.
    objects : dict of str to int
        Number of objects that count, by size: ``all``, ``small``, ``medium``, ``large``.
    n_groups : int or None
        Number of groups, if the images have groups. Whole groups are resampled.
    baselines : tuple of Baseline
        Empty: there is no simple rule for detection.
    findings : tuple of Finding
        Warnings about the images, such as near duplicates of training images.
    """

    task: DetectionTask
    names: tuple[str, ...]
    truths: tuple[Boxes, ...]
    detections: tuple[Detections, ...]
    metrics: dict[str, Interval]
    per_class: tuple[ObjectRow, ...]
    curves: tuple[RecallCurve, ...]
    confusions: NDArray[np.intp]
    objects: dict[str, int]
    n_groups: int | None = None
    baselines: tuple[Baseline, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        scores = ", ".join(f"{key} {interval}" for key, interval in self.metrics.items())
        return (
            f"BoxEvaluation({len(self.names)} images, {len(self.task.classes)} classes: "
            f"{brief(self.task.classes)}\n  {scores}{findings_text(self.findings)})"
        )

    def _repr_html_(self) -> str:
        """Return the scores as a table, for a notebook."""
        title = f"{len(self.names)} test images, {len(self.task.classes)} classes"
        scores = {key: str(score) for key, score in self.metrics.items()}
        return html_table(title, scores | {f.severity: f.message for f in self.findings})

    @property
    def confusion(self) -> NDArray[np.intp]:
        """Objects of all images by true and predicted class; the last one is the background."""
        return np.asarray(self.confusions.sum(axis=0))

    @property
    def errors(self) -> NDArray[np.intp]:
        """Per image: correct, missed and wrong-class objects, and boxes without object; (n, 4)."""
        right = np.trace(self.confusions[:, :-1, :-1], axis1=1, axis2=2)
        missed = self.confusions[:, :-1, -1].sum(axis=1)
        wrong = self.confusions[:, :-1, :-1].sum(axis=(1, 2)) - right
        return np.stack([right, missed, wrong, self.confusions[:, -1, :-1].sum(axis=1)], axis=1)

    def worst(self, limit: int) -> list[int]:
        """Return the rows of images with errors: lowest share correct first, then most errors."""
        right, wrong = self.errors[:, 0], self.errors[:, 1:].sum(axis=1)
        share = right / np.maximum(right + wrong, 1)
        return [int(row) for row in np.lexsort((-wrong, share)) if wrong[row]][:limit]

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for report.json."""
        return {
            "images": len(self.names),
            "groups": self.n_groups,
            "threshold": self.task.threshold,
            "class_thresholds": dict(zip(self.task.classes, self.task.thresholds, strict=True)),
            "threshold_range": list(self.task.threshold_range),
            "selection": asdict(self.task.selection),
            "objects": self.objects,
            "metrics": {name: interval.as_dict() for name, interval in self.metrics.items()},
            "per_class": [
                {
                    "class": row.name,
                    "objects": row.objects,
                    "ap": row.ap.as_dict(),
                    "ap50": row.ap50.as_dict(),
                }
                for row in self.per_class
            ],
            "curves": [
                {
                    "class": curve.name,
                    "recall": curve.recall.tolist(),
                    "precision": curve.precision.tolist(),
                    "score": [None if np.isnan(x) else float(x) for x in curve.score],
                }
                for curve in self.curves
            ],
            "confusion": self.confusion.tolist(),
            "baselines": [],
        }


def evaluate_boxes(
    model: TransferModel, data: Dataset, *, device: str = "auto", seed: int = 0
) -> BoxEvaluation:
    """Evaluate a model on images with boxes, in the images' own coordinates.

    Parameters
    ----------
    model : TransferModel
    data : Dataset
        Classes are matched by name.
    device : str
    seed : int
        Seed of the bootstrap.

    Raises
    ------
    DataError
        If an image has no label. An image without objects has an empty ``Boxes``.
    UnknownNameError
        If the model does not know the class of an object.
    """
    task = model.require_task(DetectionTask)
    truths = [_require_boxes(sample.name, sample.target, task.classes) for sample in data.samples]
    detections = detect(
        model.backbone,
        model.require_head(),
        data.samples,
        selection=task.selection,
        device=device,
    )
    return evaluate_detections(task, detections, truths, groups=data.groups(), seed=seed)


def _require_boxes(name: str, target: object, classes: Sequence[str]) -> Boxes:
    if not isinstance(target, Boxes):
        raise DataError(f"{name} has no boxes. Give it an empty `Boxes()` if it shows no object.")
    class_indices(target, classes)  # fail on unknown classes before the model runs
    return target


def class_indices(truth: Boxes, classes: Sequence[str]) -> NDArray[np.intp]:
    """Return the index of every object's class in ``classes``, shape (n,).

    Raises
    ------
    UnknownNameError
        If a class is not in ``classes``.

    Examples
    --------
    >>> class_indices(Boxes(corners=((0, 0, 1, 1),), labels=("dog",)), ["cat", "dog"])
    array([1])
    """
    position = {name: i for i, name in enumerate(classes)}
    for label in truth.labels:
        if label not in position:
            raise UnknownNameError("class", label, position)
    return np.asarray([position[label] for label in truth.labels], dtype=np.intp)


def evaluate_detections(
    task: DetectionTask,
    detections: Sequence[Detections],
    truths: Sequence[Boxes],
    *,
    groups: Groups = None,
    seed: int = 0,
) -> BoxEvaluation:
    """Compute all scores from detections and true boxes.

    Parameters
    ----------
    task : DetectionTask
    detections : sequence of Detections
    truths : sequence of Boxes
        True boxes of the same images.
    groups : array of int, shape (n,), optional
        Whole groups are resampled.
    seed : int

    Examples
    --------
    >>> truth = Boxes(corners=((0, 0, 10, 10),), labels=("cell",))
    >>> detections = [
    ...     Detections(
    ...         name=name,
    ...         size=(20, 20),
    ...         boxes=truth.array(),
    ...         scores=np.array([0.9], np.float32),
    ...         labels=np.array([0]),
    ...     )
    ...     for name in ("a.png", "b.png")
    ... ]
    >>> task = DetectionTask(classes=("cell",))
    >>> evaluation = evaluate_detections(task, detections, [truth, truth])
    >>> evaluation.metrics["map"].value, evaluation.confusion.tolist(), evaluation.worst(3)
    (1.0, [[2, 0], [0, 0]], [])
    """
    n_classes = len(task.classes)
    true_arrays = [
        (truth.array(), class_indices(truth, task.classes), truth.is_hard()) for truth in truths
    ]
    matches = metrics.match_boxes(
        [_match_arrays(predicted) for predicted in detections], true_arrays, n_classes
    )
    scores, ap, ap50 = _score_intervals(matches, groups, seed)
    return BoxEvaluation(
        task=task,
        names=tuple(predicted.name for predicted in detections),
        truths=tuple(truths),
        detections=tuple(detections),
        metrics=scores,
        per_class=_object_rows(task, matches, ap, ap50),
        curves=_recall_curves(task, matches),
        confusions=np.stack(
            [
                metrics.box_confusion(
                    [_match_arrays(predicted.above(task.thresholds))],
                    [truth],
                    n_classes,
                    0.0,
                    MATCH_IOU,
                )
                for predicted, truth in zip(detections, true_arrays, strict=True)
            ]
        ),
        objects={
            size: int(count)
            for size, count in zip(
                metrics.SIZES, metrics.object_counts(matches).sum(axis=1), strict=True
            )
        },
        n_groups=None if groups is None else len(np.unique(groups)),
    )


def _match_arrays(detections: Detections) -> tuple[Floats, Floats, NDArray[np.intp]]:
    return detections.boxes, detections.scores, detections.labels


def _score_intervals(
    matches: metrics.Matches, groups: Groups, seed: int
) -> tuple[dict[str, Interval], tuple[Interval, ...], tuple[Interval, ...]]:
    """Return metrics by name, and AP and AP50 of every class, all from the same resamples."""

    def statistic(weights: Floats) -> Floats:
        scores = metrics.box_scores(matches, weights)
        class_ap = metrics.average_precisions(matches, weights, sizes=("all",))[:, 0]
        single = np.stack([scores[name] for name in TITLES], axis=-1)
        return np.concatenate([single, class_ap.mean(axis=1), class_ap[:, 0]], axis=-1)

    intervals = bootstrap_intervals(
        statistic,
        matches.n_images,
        groups=groups,
        n_resamples=_count_resamples(len(matches.score)),
        seed=seed,
        vectorized=True,
    )
    counts = metrics.object_counts(matches)
    objects_of_size = {
        f"map_{size}": n for size, n in zip(metrics.SIZES, counts.sum(axis=1), strict=True)
    }
    named = {
        name: _drop_unreliable_bounds(interval, objects_of_size.get(name, MIN_OBJECTS))
        for name, interval in zip(TITLES, intervals, strict=False)
        if name == PRIMARY_METRIC or not np.isnan(interval.value)
    }
    class_ap = intervals[len(TITLES) :]
    ap, ap50 = class_ap[: matches.n_classes], class_ap[matches.n_classes :]
    objects_of_class = counts[0]
    return (
        named,
        tuple(
            _drop_unreliable_bounds(interval, n)
            for interval, n in zip(ap, objects_of_class, strict=True)
        ),
        tuple(
            _drop_unreliable_bounds(interval, n)
            for interval, n in zip(ap50, objects_of_class, strict=True)
        ),
    )


def _drop_unreliable_bounds(interval: Interval, n_objects: float) -> Interval:
    """Remove bounds that are unreliable because there are too few objects."""
    if n_objects >= MIN_OBJECTS:
        return interval
    return replace(interval, low=float("nan"), high=float("nan"))


def _count_resamples(n_boxes: int) -> int:
    """Return 1000 resamples; for many boxes fewer, but at least 200, to save time.

    >>> _count_resamples(7_000), _count_resamples(500_000)
    (1000, 200)
    """
    return max(200, min(1000, 20_000_000 // max(1, n_boxes)))


def _object_rows(
    task: DetectionTask,
    matches: metrics.Matches,
    ap: Sequence[Interval],
    ap50: Sequence[Interval],
) -> tuple[ObjectRow, ...]:
    objects = metrics.object_counts(matches)[0]
    return tuple(
        ObjectRow(name=name, objects=int(objects[i]), ap=ap[i], ap50=ap50[i])
        for i, name in enumerate(task.classes)
    )


def _recall_curves(task: DetectionTask, matches: metrics.Matches) -> tuple[RecallCurve, ...]:
    objects = metrics.object_counts(matches)[0]
    curves = []
    for i in np.flatnonzero(objects):
        curve = metrics.pr_curve(matches, int(i), MATCH_IOU)
        curves.append(
            RecallCurve(
                name=task.classes[i],
                recall=curve.recall,
                precision=curve.precision,
                score=curve.score,
            )
        )
    return tuple(curves)
