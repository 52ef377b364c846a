"""Evaluation of segmenters on labelled images.

The bootstrap resamples images, not pixels, because the pixels of one image are not independent.
Only pixel counts are stored per image, not the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.images import Finding, findings_text
from headstart.data.dataset import Dataset, Mask, Sample, brief, html_table
from headstart.data.masks import decode_mask, mask_orientation
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
"""Display names of the metrics; higher is better for all."""


class PixelCounts(NamedTuple):
    """Pixel counts of each image.

    Attributes
    ----------
    confusion : array of int, shape (n, n_classes, n_classes)
        Pixels by true class (rows) and predicted class (columns), without ignored pixels.
    boundary : array of int, shape (n, n_classes, 4)
        Output of ``headstart.metrics.segmentation.boundary_counts`` for each image.
    """

    confusion: Counts
    boundary: Counts


@dataclass(frozen=True, kw_only=True)
class PixelRow:
    """One class: number and share of its pixels, IoU and Dice."""

    name: str
    pixels: int
    share: float
    iou: Interval
    dice: Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskEvaluation:
    """Pixel counts of predicted and true masks, and all scores computed from them.

    Parameters
    ----------
    task : SegmentationTask
    names : tuple of str
        Image names.
    counts : PixelCounts
    metrics : dict of str to Interval
        ``mean_iou`` comes first.
    per_class : tuple of PixelRow
    baselines : tuple of Baseline
        Score of one class for all pixels, and the model's lead over it.
    n_groups : int or None
        Number of groups, if the images have groups. Whole groups are resampled.
    findings : tuple of Finding
        Warnings about the images, such as near duplicates of training images.
    """

    task: SegmentationTask
    names: tuple[str, ...]
    counts: PixelCounts
    metrics: dict[str, Interval]
    per_class: tuple[PixelRow, ...]
    baselines: tuple[Baseline, ...] = ()
    n_groups: int | None = None
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        scores = ", ".join(f"{key} {interval}" for key, interval in self.metrics.items())
        return (
            f"MaskEvaluation({len(self.names)} images, {len(self.task.classes)} classes: "
            f"{brief(self.task.classes)}\n  {scores}{findings_text(self.findings)})"
        )

    def _repr_html_(self) -> str:
        """Return the scores as a table, for a notebook."""
        title = f"{len(self.names)} test images, {len(self.task.classes)} classes"
        scores = {key: str(score) for key, score in self.metrics.items()}
        return html_table(title, scores | {f.severity: f.message for f in self.findings})

    @property
    def confusion(self) -> Counts:
        """Pixels of all images by true class (rows) and predicted class (columns)."""
        return np.asarray(self.counts.confusion.sum(axis=0))

    @cached_property
    def image_iou(self) -> Floats:
        """Mean IoU per image, over the classes in its true or predicted mask; (n,)."""
        return self._score_each_image(metrics.mean_iou_score)

    @cached_property
    def image_accuracy(self) -> Floats:
        """Pixel accuracy per image, without ignored pixels; (n,)."""
        return self._score_each_image(metrics.pixel_accuracy_score)

    @cached_property
    def image_class_iou(self) -> Floats:
        """IoU per image and class, (n, n_classes); NaN if the class is in neither mask."""
        return self._score_each_image(metrics.iou_scores)

    def _score_each_image(self, score: Callable[..., Any]) -> Floats:
        return np.asarray(
            [score(confusion[None], np.ones(1)) for confusion in self.counts.confusion]
        )

    def worst(self, limit: int) -> list[int]:
        """Return the rows of images with a mean IoU below 1, the lowest first."""
        scores = self.image_iou
        order = np.argsort(scores, kind="stable")  # images without labelled pixels (NaN) come last
        return [int(row) for row in order if scores[row] < 1][:limit]

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for report.json."""
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
                    "significant": baseline.lead.significant,
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
        Seed of the bootstrap.

    Raises
    ------
    DataError
        If an image has no mask, or a mask of another size.
    UnknownNameError
        If the model does not know a class of a mask.
    """
    task = model.require_task(SegmentationTask)
    classes, samples = task.classes, data.samples
    confusion, boundary_counts = [], []
    predictions = segment(model.backbone, model.require_head(), samples, device=device)
    for sample, prediction in zip(samples, predictions, strict=True):
        true_pixels = true_mask(sample, classes)
        if true_pixels.shape != prediction.mask.shape:
            raise DataError(
                f"The mask of {sample.name} must have the image's size {prediction.mask.shape} "
                f"(height, width), got {true_pixels.shape}. Correct the mask."
            )
        confusion.append(metrics.pixel_counts(prediction.mask, true_pixels, len(classes)))
        boundary_counts.append(metrics.boundary_counts(prediction.mask, true_pixels, len(classes)))
    return evaluate_counts(
        task,
        PixelCounts(np.stack(confusion), np.stack(boundary_counts)),
        names=tuple(sample.name for sample in samples),
        groups=data.groups(),
        seed=seed,
    )


def true_mask(sample: Sample, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Decode an image's mask in the orientation of the displayed image.

    Returns
    -------
    array, uint8, shape (height, width)
        Indices of ``classes``; 255 for ignored pixels.

    Raises
    ------
    DataError
        If the image has no mask.
    UnknownNameError
        If it shows a class that is not one of ``classes``.
    """
    if not isinstance(sample.target, Mask):
        raise DataError(f"{sample.name} has no mask. Add a mask, or remove the image.")
    return decode_mask(
        sample.target, classes, orientation=mask_orientation(sample.target, sample.image)
    )


def evaluate_counts(
    task: SegmentationTask,
    counts: PixelCounts,
    *,
    names: tuple[str, ...],
    groups: Groups = None,
    seed: int = 0,
) -> MaskEvaluation:
    """Compute all scores from the pixel counts of images.

    Parameters
    ----------
    task : SegmentationTask
    counts : PixelCounts
    names : tuple of str
    groups : array of int, shape (n,), optional
        Whole groups are resampled.
    seed : int

    Examples
    --------
    >>> truth = np.array([[0, 0, 1, 1]] * 4, dtype=np.uint8)
    >>> predicted = np.array([[0, 1, 1, 1]] * 4, dtype=np.uint8)
    >>> pairs = [(truth, truth), (predicted, truth)]
    >>> evaluation = evaluate_counts(
    ...     SegmentationTask(classes=("ground", "leaf")),
    ...     PixelCounts(
    ...         np.stack([metrics.pixel_counts(*pair, 2) for pair in pairs]),
    ...         np.stack([metrics.boundary_counts(*pair, 2) for pair in pairs]),
    ...     ),
    ...     names=("a.png", "b.png"),
    ... )
    >>> round(evaluation.metrics["pixel_accuracy"].value, 3), evaluation.worst(5)
    (0.875, [1])
    """
    n, n_classes = counts.confusion.shape[:2]
    statistics = _metric_functions(counts)
    intervals = bootstrap_intervals(
        lambda weights: np.concatenate(
            [statistic(weights) for statistic in statistics.values()], axis=-1
        ),
        n,
        groups=groups,
        n_resamples=_count_resamples(n, n_classes),
        seed=seed,
        vectorized=True,
    )
    metric_intervals, class_intervals = intervals[: len(TITLES)], intervals[len(TITLES) :]
    return MaskEvaluation(
        task=task,
        names=names,
        counts=counts,
        metrics=dict(zip(TITLES, metric_intervals, strict=True)),
        per_class=_pixel_rows(
            task, counts.confusion, class_intervals[:n_classes], class_intervals[n_classes:]
        ),
        baselines=_constant_baselines(task, counts.confusion, groups, seed),
        n_groups=None if groups is None else len(np.unique(groups)),
    )


def _count_resamples(n: int, n_classes: int) -> int:
    """Return 1000 resamples; for many images and classes fewer, but at least 200, to save time.

    >>> _count_resamples(400, 12), _count_resamples(5000, 150)
    (1000, 200)
    """
    return max(200, min(1000, 10_000_000_000 // max(1, n * n_classes**2)))


def _metric_functions(counts: PixelCounts) -> dict[str, Callable[[Floats], Floats]]:
    """Return the metrics as functions of image weights, (B, n) to (B, 1) or (B, n_classes)."""

    def per_weights(score: Callable[..., Any], values: Counts) -> Callable[[Floats], Floats]:
        return lambda weights: np.reshape(score(values, weights), (len(weights), -1))

    pixels = counts.confusion
    return {
        "mean_iou": per_weights(metrics.mean_iou_score, pixels),
        "mean_dice": per_weights(metrics.mean_dice_score, pixels),
        "pixel_accuracy": per_weights(metrics.pixel_accuracy_score, pixels),
        "mean_class_accuracy": per_weights(metrics.mean_class_accuracy_score, pixels),
        "boundary_f": per_weights(metrics.mean_boundary_f_score, counts.boundary),
        "iou": per_weights(metrics.iou_scores, pixels),
        "dice": per_weights(metrics.dice_scores, pixels),
    }


def _pixel_rows(
    task: SegmentationTask, pixels: Counts, iou: Sequence[Interval], dice: Sequence[Interval]
) -> tuple[PixelRow, ...]:
    class_pixels = pixels.sum(axis=(0, 2))
    total = max(int(class_pixels.sum()), 1)
    return tuple(
        PixelRow(
            name=name,
            pixels=int(class_pixels[i]),
            share=float(class_pixels[i] / total),
            iou=iou[i],
            dice=dice[i],
        )
        for i, name in enumerate(task.classes)
    )


def _constant_baselines(
    task: SegmentationTask, pixels: Counts, groups: Groups, seed: int
) -> tuple[Baseline, ...]:
    """Score the most frequent class of these images as the prediction for all pixels."""
    truth = pixels.sum(axis=2)
    if not truth.any():
        return ()
    best_class = int(truth.sum(axis=0).argmax())
    constant_counts = np.zeros_like(pixels)
    constant_counts[:, :, best_class] = truth
    measures = {"pixel_accuracy": metrics.pixel_accuracy_score, "mean_iou": metrics.mean_iou_score}
    n, n_classes = pixels.shape[:2]
    options: dict[str, Any] = {
        "groups": groups,
        "n_resamples": _count_resamples(n, n_classes),
        "seed": seed,
        "vectorized": True,
    }
    baselines = []
    for name, score in measures.items():
        model_score, constant_score = partial(score, pixels), partial(score, constant_counts)
        (accuracy,) = bootstrap_intervals(constant_score, n, **options)
        (lead,) = paired_differences(model_score, constant_score, n, **options)
        title = f"{task.classes[best_class]!r} everywhere, {TITLES[name]}"
        baselines.append(Baseline(name=title, accuracy=accuracy, lead=lead))
    return tuple(baselines)
