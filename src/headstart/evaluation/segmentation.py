"""How good a model's masks are on images it was not trained on, pixel by pixel.

Images are what is drawn again for the intervals, not pixels: the pixels of one image are not
independent. Only counts are kept of an image, never its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset, Mask, Sample
from headstart.data.masks import decode_mask, mask_turn
from headstart.errors import DataError
from headstart.evaluation.baselines import Baseline
from headstart.metrics import segmentation as metrics
from headstart.metrics.confidence_intervals import Interval, bootstrap_intervals, paired_differences
from headstart.models.inference import segment
from headstart.models.tasks import SegmentationTask
from headstart.models.transfer_model import TransferModel

__all__ = [
    "TITLES",
    "MaskEvaluation",
    "PixelCounts",
    "PixelRow",
    "evaluate_counts",
    "evaluate_masks",
    "true_mask",
]

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.integer[Any]]
Groups = NDArray[np.intp] | None

TITLES = {
    "mean_iou": "mean IoU",
    "mean_dice": "mean Dice",
    "pixel_accuracy": "pixel accuracy",
    "mean_class_accuracy": "mean class accuracy",
    "boundary_f": "boundary F",
}
"""What each metric is called in front of a person; all are better when higher."""


class PixelCounts(NamedTuple):
    """What is kept of images.

    Parameters
    ----------
    confusion : array of int, shape (n, n_classes, n_classes)
        Pixels by true class (rows) and said class (columns), without ignored ones.
    boundary : array of int, shape (n, n_classes, 4)
        What ``headstart.mask_metrics.boundary_counts`` gives of each.
    """

    confusion: Counts
    boundary: Counts


@dataclass(frozen=True, kw_only=True)
class PixelRow:
    """One class: its pixels in the evaluated part, their share, and how well it is found."""

    name: str
    pixels: int
    share: float
    iou: Interval
    dice: Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskEvaluation:
    """How a model's masks compare with the true ones, and every number that follows.

    Parameters
    ----------
    task : Segmentation
    names : tuple of str
        The images.
    counts : PixelCounts
    metrics : dict of str to Interval
        ``mean_iou`` comes first.
    per_class : tuple of PixelRow
    baselines : tuple of Baseline
        What one class for all pixels reaches; its lead is the model's over it.
    n_groups : int or None
        Groups that were resampled whole, if the images have groups.
    """

    task: SegmentationTask
    names: tuple[str, ...]
    counts: PixelCounts
    metrics: dict[str, Interval]
    per_class: tuple[PixelRow, ...]
    baselines: tuple[Baseline, ...] = ()
    n_groups: int | None = None

    @property
    def confusion(self) -> Counts:
        """Pixels by true class (rows) and said class (columns)."""
        return np.asarray(self.counts.confusion.sum(axis=0))

    @cached_property
    def image_iou(self) -> Floats:
        """Mean IoU of each image alone, over the classes in its truth or its answer; (n,)."""
        return self._alone(metrics.mean_iou_score)

    @cached_property
    def image_accuracy(self) -> Floats:
        """Share of each image's judged pixels that is right, (n,)."""
        return self._alone(metrics.pixel_accuracy_score)

    @cached_property
    def image_class_iou(self) -> Floats:
        """IoU of each class in each image, (n, n_classes); NaN where it is in neither."""
        return self._alone(metrics.iou_scores)

    def _alone(self, score: Callable[..., Any]) -> Floats:
        return np.asarray([score(one[None], np.ones(1)) for one in self.counts.confusion])

    def worst(self, limit: int) -> list[int]:
        """Rows of the images with the lowest mean IoU below 1, the lowest first."""
        scores = self.image_iou
        order = np.argsort(scores, kind="stable")  # images without a judged pixel come last
        return [int(row) for row in order if scores[row] < 1][:limit]

    def as_dict(self) -> dict[str, Any]:
        """Every number as plain values, for report.json."""
        return {
            "images": len(self.names),
            "groups": self.n_groups,
            "metrics": {name: interval.as_dict() for name, interval in self.metrics.items()},
            "per_class": [
                {
                    "class": row.name,
                    "pixels": row.pixels,
                    "share": row.share,
                    "iou": row.iou.as_dict(),
                    "dice": row.dice.as_dict(),
                }
                for row in self.per_class
            ],
            "confusion": self.confusion.tolist(),
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


def evaluate_masks(
    model: TransferModel, data: Dataset, *, device: str = "auto", seed: int = 0
) -> MaskEvaluation:
    """Evaluate a model on images with masks, in the images' own sizes.

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
        If an image has no mask, or one of another size.
    UnknownNameError
        If a mask shows a class that the model does not know.
    """
    classes, samples = model.task.classes, data.samples
    confusion, boundary = [], []
    answers = segment(model.backbone, model.require_head(), samples, device=device)
    for sample, answer in zip(samples, answers, strict=True):
        truth = true_mask(sample, classes)
        if truth.shape != answer.mask.shape:
            raise DataError(
                f"Expected the mask of {sample.name} to be of the image's size, "
                f"{answer.mask.shape} (height, width), got {truth.shape}; do correct the mask."
            )
        confusion.append(metrics.pixel_counts(answer.mask, truth, len(classes)))
        boundary.append(metrics.boundary_counts(answer.mask, truth, len(classes)))
    return evaluate_counts(
        model.task,
        PixelCounts(np.stack(confusion), np.stack(boundary)),
        names=tuple(sample.name for sample in samples),
        groups=data.groups(),
        seed=seed,
    )


def true_mask(sample: Sample, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Decode an image's mask as the image is shown.

    Returns
    -------
    array, uint8, shape (height, width)
        Places among ``classes``; 255 where ignored.

    Raises
    ------
    DataError
        If the image has no mask.
    UnknownNameError
        If it shows a class that is not one of ``classes``.
    """
    if not isinstance(sample.target, Mask):
        raise DataError(f"Expected every image to have a mask, got none for {sample.name}.")
    return decode_mask(sample.target, classes, orientation=mask_turn(sample.target, sample.image))


def evaluate_counts(
    task: SegmentationTask,
    counts: PixelCounts,
    *,
    names: tuple[str, ...],
    groups: Groups = None,
    seed: int = 0,
) -> MaskEvaluation:
    """Every number that follows from the counts of images.

    Parameters
    ----------
    task : Segmentation
    counts : PixelCounts
    names : tuple of str
    groups : array of int, shape (n,), optional
        Whole groups are resampled.
    seed : int

    Examples
    --------
    >>> truth = np.array([[0, 0, 1, 1]] * 4, dtype=np.uint8)
    >>> said = np.array([[0, 1, 1, 1]] * 4, dtype=np.uint8)
    >>> both = [(truth, truth), (said, truth)]
    >>> found = evaluate_counts(
    ...     SegmentationTask(classes=("ground", "leaf")),
    ...     PixelCounts(
    ...         np.stack([metrics.pixel_counts(*one, 2) for one in both]),
    ...         np.stack([metrics.boundary_counts(*one, 2) for one in both]),
    ...     ),
    ...     names=("a.png", "b.png"),
    ... )
    >>> round(found.metrics["pixel_accuracy"].value, 3), found.worst(5)
    (0.875, [1])
    """
    n, n_classes = counts.confusion.shape[:2]
    statistics = _statistics(counts)
    intervals = bootstrap_intervals(
        lambda weights: np.concatenate([f(weights) for f in statistics.values()], axis=-1),
        n,
        groups=groups,
        n_resamples=_resamples(n, n_classes),
        seed=seed,
        vectorized=True,
    )
    single, each = intervals[: len(TITLES)], intervals[len(TITLES) :]
    return MaskEvaluation(
        task=task,
        names=names,
        counts=counts,
        metrics=dict(zip(TITLES, single, strict=True)),
        per_class=_rows(task, counts.confusion, each[:n_classes], each[n_classes:]),
        baselines=_constant(task, counts.confusion, groups, seed),
        n_groups=None if groups is None else len(np.unique(groups)),
    )


def _resamples(n: int, n_classes: int) -> int:
    """1000 resamples; fewer, but at least 200, where many images of many classes take minutes.

    >>> _resamples(400, 12), _resamples(5000, 150)
    (1000, 200)
    """
    return max(200, min(1000, 10_000_000_000 // max(1, n * n_classes**2)))


def _statistics(counts: PixelCounts) -> dict[str, Callable[[Floats], Floats]]:
    """Metrics as functions of the images' weights (B, n), each to (B, 1) or (B, n_classes)."""

    def of(score: Callable[..., Any], what: Counts) -> Callable[[Floats], Floats]:
        return lambda weights: np.reshape(score(what, weights), (len(weights), -1))

    pixels = counts.confusion
    return {
        "mean_iou": of(metrics.mean_iou_score, pixels),
        "mean_dice": of(metrics.mean_dice_score, pixels),
        "pixel_accuracy": of(metrics.pixel_accuracy_score, pixels),
        "mean_class_accuracy": of(metrics.mean_class_accuracy_score, pixels),
        "boundary_f": of(metrics.mean_boundary_f_score, counts.boundary),
        "iou": of(metrics.iou_scores, pixels),
        "dice": of(metrics.dice_scores, pixels),
    }


def _rows(
    task: SegmentationTask, pixels: Counts, iou: Sequence[Interval], dice: Sequence[Interval]
) -> tuple[PixelRow, ...]:
    each = pixels.sum(axis=(0, 2))
    total = max(int(each.sum()), 1)
    return tuple(
        PixelRow(
            name=name,
            pixels=int(each[i]),
            share=float(each[i] / total),
            iou=iou[i],
            dice=dice[i],
        )
        for i, name in enumerate(task.classes)
    )


def _constant(
    task: SegmentationTask, pixels: Counts, groups: Groups, seed: int
) -> tuple[Baseline, ...]:
    """What the one best class for all pixels of these very images reaches."""
    truth = pixels.sum(axis=2)
    if not truth.any():
        return ()
    answer = int(truth.sum(axis=0).argmax())
    same = np.zeros_like(pixels)
    same[:, :, answer] = truth
    rules = {"pixel_accuracy": metrics.pixel_accuracy_score, "mean_iou": metrics.mean_iou_score}
    n, n_classes = pixels.shape[:2]
    how: dict[str, Any] = {
        "groups": groups,
        "n_resamples": _resamples(n, n_classes),
        "seed": seed,
        "vectorized": True,
    }
    found = []
    for name, score in rules.items():
        mine, constant = partial(score, pixels), partial(score, same)
        (alone,) = bootstrap_intervals(constant, n, **how)
        (lead,) = paired_differences(mine, constant, n, **how)
        title = f"{task.classes[answer]!r} everywhere, {TITLES[name]}"
        found.append(Baseline(name=title, accuracy=alone, lead=lead))
    return tuple(found)
