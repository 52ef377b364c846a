"""Summary of an evaluation: its sentences, its primary metric, and scores for comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset
from headstart.evaluation.baselines import PROBE, Baseline, format_points
from headstart.evaluation.classification import AnyEvaluation, Evaluation
from headstart.evaluation.detection import BoxEvaluation, class_indices
from headstart.evaluation.segmentation import MaskEvaluation
from headstart.metrics import classification as metrics
from headstart.metrics import detection as box_metrics
from headstart.metrics import segmentation as mask_metrics
from headstart.metrics.confidence_intervals import Interval, resamples, units

__all__ = ["primary_metric", "resampled_scores", "rule_scores", "summarise"]

N_RESAMPLES = 400
"""Resamples of a test set, shared by all methods of a comparison."""

MIN_TEST_IMAGES = 30
"""Minimum number of test images with boxes or masks; with fewer, intervals are rough."""
_BASELINE_PHRASES = {
    "majority class": "always predicting the most frequent class",
    PROBE: f"a {PROBE}",
}


def primary_metric(evaluation: AnyEvaluation) -> str:
    """Return the name of the metric that models are compared by."""
    if evaluation.task.kind == "multilabel":
        return "mean_average_precision"
    return next(iter(evaluation.metrics))


def resampled_scores(evaluation: AnyEvaluation, test: Dataset) -> tuple[float, ...]:
    """Compute the primary metric on resampled images; equal test sets give equal resamples."""
    codes, count = units(len(test), test.groups())
    blocks = resamples(codes, count, N_RESAMPLES, np.random.default_rng(0))
    scores = np.concatenate([np.ravel(_primary_scores(evaluation, block)) for block in blocks])
    return tuple(scores.tolist())


def rule_scores(evaluation: AnyEvaluation, train: Dataset) -> dict[str, float]:
    """Score rules that do not look at the images, by the primary metric on the same test set.

    Parameters
    ----------
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
        Evaluation on the test set.
    train : Dataset
        Training images, for the most frequent class.

    Returns
    -------
    dict of str to float
        Multiclass: majority class and random guess. Multilabel: chance. Masks: the best score
        of one class everywhere. Boxes: empty.
    """
    if isinstance(evaluation, BoxEvaluation):
        return {}
    if not isinstance(evaluation, Evaluation):
        class_pixels = evaluation.counts.confusion.sum(axis=(0, 2))
        constant_confusions = [
            np.outer(class_pixels, column) for column in np.eye(len(class_pixels))
        ]
        best_score = max(
            float(mask_metrics.mean_iou_score(confusion[None])) for confusion in constant_confusions
        )
        return {"one class everywhere": best_score}
    if evaluation.task.kind == "multilabel":
        constant_scores = np.full(evaluation.probabilities.shape, 0.5)
        chance = metrics.mean_average_precision_score(evaluation.targets, constant_scores)
        return {"chance": float(chance)}
    classes = evaluation.task.classes
    counts = train.counts()
    majority = max(range(len(classes)), key=lambda k: counts.get(classes[k], 0))
    return {
        "majority class": float((evaluation.targets == majority).mean()),
        "random guess": 1 / len(classes),
    }


def _primary_scores(evaluation: AnyEvaluation, weights: NDArray[np.float64]) -> Any:
    """Compute the primary metric for image weights, (B, n) -> (B,)."""
    if isinstance(evaluation, Evaluation):
        if evaluation.task.kind == "multilabel":
            return metrics.mean_average_precision_score(
                evaluation.targets, evaluation.probabilities, sample_weight=weights
            )
        return weights @ evaluation.correct / weights.sum(axis=1)
    if isinstance(evaluation, BoxEvaluation):
        classes = evaluation.task.classes
        truths = [
            (truth.array(), class_indices(truth, classes), truth.is_hard())
            for truth in evaluation.truths
        ]
        detections = [(image.boxes, image.scores, image.labels) for image in evaluation.detections]
        matches = box_metrics.match_boxes(detections, truths, len(classes))
        return box_metrics.box_scores(matches, weights)["map"]
    return mask_metrics.mean_iou_score(evaluation.counts.confusion, weights)


def summarise(evaluation: AnyEvaluation) -> tuple[str, ...]:
    """Summarise an evaluation in sentences.

    Parameters
    ----------
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation

    Returns
    -------
    tuple of str
        The most important sentence first.

    Examples
    --------
    >>> import numpy as np
    >>> from headstart.evaluation.classification import evaluate_probabilities
    >>> from headstart.models.tasks import ClassificationTask
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> chances, targets = np.full((20, 2), 0.5), np.zeros(20, dtype=int)
    >>> summarise(evaluate_probabilities(task, chances, targets, names=("a.png",) * 20))[0]
    'Test accuracy: 100.0 % (20 of 20 images). 95 % confidence interval: 83.9 % to 100.0 %.'
    """
    if isinstance(evaluation, Evaluation):
        return _summarise_classes(evaluation)
    if isinstance(evaluation, BoxEvaluation):
        return _summarise_boxes(evaluation)
    return _summarise_masks(evaluation)


def _summarise_classes(evaluation: Evaluation) -> tuple[str, ...]:
    accuracy = evaluation.metrics["accuracy"]
    title = "All labels correct" if evaluation.task.kind == "multilabel" else "Test accuracy"
    n_correct, n_images = int(evaluation.correct.sum()), len(evaluation.names)
    bounds = "unknown"
    if not math.isnan(accuracy.low):
        bounds = f"{100 * accuracy.low:.1f} % to {100 * accuracy.high:.1f} %"
    headline = (
        f"{title}: {100 * accuracy.value:.1f} % ({n_correct} of {n_images} images"
        f"{_format_groups(evaluation)}). 95 % confidence interval: {bounds}."
    )
    return (
        headline,
        *(_compare_with_baseline(baseline, n_images) for baseline in evaluation.baselines),
        *(() if evaluation.abstention is None else (evaluation.abstention.sentence(),)),
        *_wide_interval_warning(accuracy),
        *_missing_classes_warning([row.name for row in evaluation.per_class if row.count == 0]),
    )


def _summarise_boxes(evaluation: BoxEvaluation) -> tuple[str, ...]:
    score, score50 = evaluation.metrics["map"], evaluation.metrics.get("map50")
    if math.isnan(score.value) or score50 is None:
        return (f"No score: {_format_test_images(evaluation)} without any object that counts.",)
    correct, missed, wrong, extra = (int(count) for count in evaluation.errors.sum(axis=0))
    counts = (
        f"At {_format_thresholds(evaluation)}: {correct} of "
        f"{correct + missed + wrong} objects are correct, {missed} are missed, {wrong} have the "
        f"wrong class, and {extra} boxes show no object."
    )
    return (
        f"mAP: {_format_score(score, evaluation)} mAP at IoU 0.50: {score50}.",
        counts,
        *_weakest_class([(row.name, row.ap) for row in evaluation.per_class], "AP"),
        *_small_test_set_warning(evaluation),
        *_wide_interval_warning(score),
        *_missing_classes_warning([row.name for row in evaluation.per_class if row.objects == 0]),
    )


def _format_thresholds(evaluation: BoxEvaluation) -> str:
    """Report the score threshold, or the range of those of the classes, and its spread."""
    task = evaluation.task
    low, high = min(task.thresholds), max(task.thresholds)
    if low < high:
        return f"score thresholds of {low:.2f} to {high:.2f}, one for each class"
    spread = ""
    if task.threshold_range:
        spread = " ({:.2f} to {:.2f} on resampled validation images)".format(*task.threshold_range)
    return f"a score threshold of {task.threshold:.2f}{spread}"


def _summarise_masks(evaluation: MaskEvaluation) -> tuple[str, ...]:
    score, accuracy = (evaluation.metrics[name] for name in ("mean_iou", "pixel_accuracy"))
    if math.isnan(score.value):
        return (f"No score: {_format_test_images(evaluation)} without any labelled pixel.",)
    n_images = len(evaluation.names)
    return (
        f"Mean IoU: {_format_score(score, evaluation)} Pixel accuracy: {accuracy}.",
        *_weakest_class([(row.name, row.iou) for row in evaluation.per_class], "IoU"),
        *(_compare_mask_baseline(baseline, n_images) for baseline in evaluation.baselines),
        *_small_test_set_warning(evaluation),
        *_wide_interval_warning(score),
        *_missing_classes_warning([row.name for row in evaluation.per_class if row.pixels == 0]),
    )


def _format_groups(evaluation: AnyEvaluation) -> str:
    return "" if evaluation.n_groups is None else f" in {evaluation.n_groups} groups"


def _format_test_images(evaluation: AnyEvaluation) -> str:
    n = len(evaluation.names)
    return f"{n} test image{'' if n == 1 else 's'}{_format_groups(evaluation)}"


def _format_score(score: Interval, evaluation: AnyEvaluation) -> str:
    bounds = "unknown" if math.isnan(score.low) else f"{score.low:.3f} to {score.high:.3f}"
    return (
        f"{score.value:.3f} on {_format_test_images(evaluation)}. "
        f"95 % confidence interval: {bounds}."
    )


def _compare_with_baseline(baseline: Baseline, n_images: int) -> str:
    """Compare a classifier with a baseline, in percentage points."""
    lead = baseline.lead.interval
    name = _BASELINE_PHRASES.get(baseline.name, baseline.name)
    start = f"{name} ({100 * baseline.accuracy.value:.1f} %): {format_points(lead)}"
    return _comparison_sentence(baseline, start, n_images)


def _compare_mask_baseline(baseline: Baseline, n_images: int) -> str:
    """Compare a segmenter with one class everywhere, in the measure of the baseline."""
    lead = baseline.lead.interval
    bounds = "[unknown]" if math.isnan(lead.low) else f"[{lead.low:+.3f}, {lead.high:+.3f}]"
    name, _, measure = baseline.name.rpartition(", ")
    start = (
        f"predicting {name} ({measure} {baseline.accuracy.value:.3f}): {lead.value:+.3f} {bounds}"
    )
    return _comparison_sentence(baseline, start, n_images)


def _comparison_sentence(baseline: Baseline, start: str, n_images: int) -> str:
    lead = baseline.lead.interval
    if not baseline.lead.significant:
        images = f"{n_images} test image{'' if n_images == 1 else 's'}"
        # The interval may exclude 0 although too few images decide it.
        reason = (
            " (the predictions differ on too few of them)" if lead.low > 0 or lead.high < 0 else ""
        )
        return f"Compared with {start}: no significant difference with {images}{reason}."
    if lead.value > 0:
        return f"Better than {start}."
    if baseline.name == PROBE:
        return f"WORSE than {start}. Use --method linear-probe."
    return f"WORSE than {start}. Check the images and the labels before you use the model."


def _weakest_class(rows: Sequence[tuple[str, Interval]], measure: str) -> tuple[str, ...]:
    """Report the class with the lowest score, if several classes have one."""
    scored = [row for row in rows if not math.isnan(row[1].value)]
    if len(scored) < 2:
        return ()
    name, score = min(scored, key=lambda row: row[1].value)
    return (f"Weakest class: {name!r} ({measure} {score}).",)


def _small_test_set_warning(evaluation: BoxEvaluation | MaskEvaluation) -> tuple[str, ...]:
    n = evaluation.n_groups if evaluation.n_groups is not None else len(evaluation.names)
    if n >= MIN_TEST_IMAGES:
        return ()
    unit = "image" if evaluation.n_groups is None else "group"
    warning = (
        f"Only {n} test {unit}{'' if n == 1 else 's'}: scores and confidence intervals are rough. "
        "Label more images, or use a larger test set."
    )
    return (warning,)


def _wide_interval_warning(interval: Interval) -> tuple[str, ...]:
    width = interval.high - interval.low
    if not width > 0.1:
        return ()
    warning = (
        f"The confidence interval is {100 * width:.0f} points wide. To compare models, use "
        "`headstart compare`, which tests them on the same images."
    )
    return (warning,)


def _missing_classes_warning(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    shortened = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
    return (f"Not evaluated: {shortened} (no test image).",)
