"""How well a model finds objects in images it was not trained on.

Images are what is drawn again for the intervals, not boxes: the objects of one image are not
independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Boxes, Dataset
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
    "evaluate_boxes",
    "evaluate_detections",
    "places",
]

Floats = NDArray[np.floating[Any]]
Groups = NDArray[np.intp] | None

HEADLINE = "map"

ENOUGH = 10
"""Objects of a class or size from which on its average precision has an interval; with fewer the
number itself is too high as a rule, and simulated intervals held the truth once in ten times."""

MATCHED = 0.5
"""Overlap (IoU) from which on a box is said to show an object, in curves and confusions."""

TITLES = {
    "map": "mAP (.50:.95)",
    "map50": "mAP at .50",
    "map75": "mAP at .75",
    "map_small": "mAP, small objects",
    "map_medium": "mAP, medium objects",
    "map_large": "mAP, large objects",
    "recall100": "recall, 100 boxes an image",
}
"""What each metric is called in front of a person; all are better when higher."""


@dataclass(frozen=True, kw_only=True)
class ObjectRow:
    """One class: its objects in the evaluated part, and how well they are found."""

    name: str
    objects: int
    ap: Interval
    ap50: Interval


class RecallCurve(NamedTuple):
    """Precision and score at 101 recalls of one class, at an IoU of .5."""

    name: str
    recall: Floats
    precision: Floats
    score: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxEvaluation:
    """What a model found, what there is, and every number that follows.

    Parameters
    ----------
    task : Detection
    names : tuple of str
        The images.
    truths : tuple of Boxes
        In the images' own coordinates.
    found : tuple of Detections
        All of them, whatever the score.
    metrics : dict of str to Interval
        ``map`` comes first; sizes of which there is no object are left out.
    per_class : tuple of ObjectRow
    curves : tuple of RecallCurve
        Of classes that have objects.
    confusions : array of int, shape (n, n_classes + 1, n_classes + 1)
        Objects of each image by true class (rows) and said class (columns), from the task's
        threshold on and at an IoU of .5; last is the background: missed, or nothing there.
    objects : dict of str to int
        How many count, by size: ``all``, ``small``, ``medium``, ``large``.
    n_groups : int or None
        Groups that were resampled whole, if the images have groups.
    baselines : tuple of Baseline
        None: no simple rule finds objects.
    """

    task: DetectionTask
    names: tuple[str, ...]
    truths: tuple[Boxes, ...]
    found: tuple[Detections, ...]
    metrics: dict[str, Interval]
    per_class: tuple[ObjectRow, ...]
    curves: tuple[RecallCurve, ...]
    confusions: NDArray[np.intp]
    objects: dict[str, int]
    n_groups: int | None = None
    baselines: tuple[Baseline, ...] = ()

    @property
    def confusion(self) -> NDArray[np.intp]:
        """Objects of all images by true and said class; last is the background."""
        return np.asarray(self.confusions.sum(axis=0))

    @property
    def errors(self) -> NDArray[np.intp]:
        """Of each image: objects found and right, missed, of a wrong class, not there; (n, 4)."""
        right = np.trace(self.confusions[:, :-1, :-1], axis1=1, axis2=2)
        missed = self.confusions[:, :-1, -1].sum(axis=1)
        wrong = self.confusions[:, :-1, :-1].sum(axis=(1, 2)) - right
        return np.stack([right, missed, wrong, self.confusions[:, -1, :-1].sum(axis=1)], axis=1)

    def worst(self, limit: int) -> list[int]:
        """Rows of images with something wrong: the smallest share right first, then the most."""
        right, wrong = self.errors[:, 0], self.errors[:, 1:].sum(axis=1)
        share = right / np.maximum(right + wrong, 1)
        return [int(row) for row in np.lexsort((-wrong, share)) if wrong[row]][:limit]

    def as_dict(self) -> dict[str, Any]:
        """Every number as plain values, for report.json."""
        return {
            "images": len(self.names),
            "groups": self.n_groups,
            "threshold": self.task.threshold,
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
        Of the bootstrap.

    Raises
    ------
    DataError
        If an image has no boxes; an empty ``Boxes`` says that it shows no object.
    UnknownNameError
        If an object is of a class that the model does not know.
    """
    truths = [_boxes(sample.name, sample.target, model.task.classes) for sample in data.samples]
    found = detect(model.backbone, model.require_head(), data.samples, device=device)
    return evaluate_detections(model.task, found, truths, groups=data.groups(), seed=seed)


def _boxes(name: str, target: object, classes: Sequence[str]) -> Boxes:
    if not isinstance(target, Boxes):
        raise DataError(
            f"Expected every image to have boxes, got none for {name}; do give it an empty "
            "`Boxes()` if it shows no object."
        )
    places(target, classes)  # nothing is computed for what the model does not know
    return target


def places(truth: Boxes, classes: Sequence[str]) -> NDArray[np.intp]:
    """Place of every object's class among ``classes``, shape (n,).

    Raises
    ------
    UnknownNameError
        If there is none.

    Examples
    --------
    >>> places(Boxes(corners=((0, 0, 1, 1),), labels=("dog",)), ["cat", "dog"])
    array([1])
    """
    position = {name: i for i, name in enumerate(classes)}
    for label in truth.labels:
        if label not in position:
            raise UnknownNameError("class", label, position)
    return np.asarray([position[label] for label in truth.labels], dtype=np.intp)


def evaluate_detections(
    task: DetectionTask,
    found: Sequence[Detections],
    truths: Sequence[Boxes],
    *,
    groups: Groups = None,
    seed: int = 0,
) -> BoxEvaluation:
    """Every number that follows from what was found and what there is.

    Parameters
    ----------
    task : Detection
    found : sequence of Detections
    truths : sequence of Boxes
        Of the same images.
    groups : array of int, shape (n,), optional
        Whole groups are resampled.
    seed : int

    Examples
    --------
    >>> truth = Boxes(corners=((0, 0, 10, 10),), labels=("cell",))
    >>> found = [
    ...     Detections(
    ...         name=name,
    ...         size=(20, 20),
    ...         boxes=truth.array(),
    ...         scores=np.array([0.9], np.float32),
    ...         labels=np.array([0]),
    ...     )
    ...     for name in ("a.png", "b.png")
    ... ]
    >>> one = evaluate_detections(DetectionTask(classes=("cell",)), found, [truth, truth])
    >>> one.metrics["map"].value, one.confusion.tolist(), one.worst(3)
    (1.0, [[2, 0], [0, 0]], [])
    """
    n_classes = len(task.classes)
    there = [(t.array(), places(t, task.classes), t.is_hard()) for t in truths]
    matches = metrics.match_boxes([_plain(one) for one in found], there, n_classes)
    numbers, ap, ap50 = _intervals(matches, groups, seed)
    return BoxEvaluation(
        task=task,
        names=tuple(one.name for one in found),
        truths=tuple(truths),
        found=tuple(found),
        metrics=numbers,
        per_class=_rows(task, matches, ap, ap50),
        curves=_curves(task, matches),
        confusions=np.stack(
            [
                metrics.box_confusion([_plain(one)], [truth], n_classes, task.threshold, MATCHED)
                for one, truth in zip(found, there, strict=True)
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


def _plain(found: Detections) -> tuple[Floats, Floats, NDArray[np.intp]]:
    return found.boxes, found.scores, found.labels


def _intervals(
    matches: metrics.Matches, groups: Groups, seed: int
) -> tuple[dict[str, Interval], tuple[Interval, ...], tuple[Interval, ...]]:
    """Metrics by name, and the two numbers of every class, all from the same resamples."""

    def statistic(weights: Floats) -> Floats:
        scores = metrics.box_scores(matches, weights)
        each = metrics.average_precisions(matches, weights, sizes=("all",))[:, 0]
        single = np.stack([scores[name] for name in TITLES], axis=-1)
        return np.concatenate([single, each.mean(axis=1), each[:, 0]], axis=-1)

    found = bootstrap_intervals(
        statistic,
        matches.n_images,
        groups=groups,
        n_resamples=_resamples(len(matches.score)),
        seed=seed,
        vectorized=True,
    )
    counts = metrics.object_counts(matches)
    of_size = {f"map_{size}": n for size, n in zip(metrics.SIZES, counts.sum(axis=1), strict=True)}
    numbers = {
        name: _bounded(interval, of_size.get(name, ENOUGH))
        for name, interval in zip(TITLES, found, strict=False)
        if name == HEADLINE or not np.isnan(interval.value)
    }
    each = found[len(TITLES) :]
    ap, ap50 = each[: matches.n_classes], each[matches.n_classes :]
    of_class = counts[0]
    return (
        numbers,
        tuple(_bounded(one, n) for one, n in zip(ap, of_class, strict=True)),
        tuple(_bounded(one, n) for one, n in zip(ap50, of_class, strict=True)),
    )


def _bounded(interval: Interval, n_objects: float) -> Interval:
    """Leave bounds out that would hold the truth far too seldom."""
    if n_objects >= ENOUGH:
        return interval
    return replace(interval, low=float("nan"), high=float("nan"))


def _resamples(n_boxes: int) -> int:
    """1000 resamples; fewer, but at least 200, where there are so many boxes that it takes minutes.

    >>> _resamples(7_000), _resamples(500_000)
    (1000, 200)
    """
    return max(200, min(1000, 20_000_000 // max(1, n_boxes)))


def _rows(
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


def _curves(task: DetectionTask, matches: metrics.Matches) -> tuple[RecallCurve, ...]:
    objects = metrics.object_counts(matches)[0]
    found = []
    for i in np.flatnonzero(objects):
        curve = metrics.pr_curve(matches, int(i), MATCHED)
        found.append(
            RecallCurve(
                name=task.classes[i],
                recall=curve.recall,
                precision=curve.precision,
                score=curve.score,
            )
        )
    return tuple(found)
