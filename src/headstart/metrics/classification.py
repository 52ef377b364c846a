"""Metrics of classifiers: pure functions from arrays to numbers.

A higher ``*_score`` is better, a lower ``*_loss`` or error. Conventions of all functions:

target
    Class indices of shape (n,) for multiclass, or a table of 0 and 1 of shape (n, K) for
    multilabel. ``predicted`` has the same form.
probabilities
    Shape (n, K), from 0 to 1; rows of multiclass add up to 1.
sample_weight
    None, or weights >= 0 of shape (n,) or (B, n). A weight of w counts the image w times.
    With (B, n) each row is a separate weighting and the results gain a leading axis B. The
    bootstrap evaluates many resamples in this way with one sort and a few matrix products.

Results are float64; one number has the shape () or (B,), one per class (K,) or (B, K).
An undefined number (the recall of a class that is absent) is NaN, and averages leave it out.
Every function raises UsageError for invalid shapes, types or ranges. No result depends on the
order of the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike as Array
from numpy.typing import NDArray

from headstart.errors import UsageError
from headstart.metrics.validation import (
    Floats,
    Ints,
    Weights,
    check_class_indices,
    check_labels,
    check_n_classes,
    check_probabilities,
    check_weights,
    count_classes,
    divide,
    mean_defined,
)

__all__ = [
    "Reliability",
    "accuracy_score",
    "auroc_scores",
    "average_precision_scores",
    "balanced_accuracy_score",
    "brier_loss",
    "confusion_matrix",
    "expected_calibration_error",
    "f1_scores",
    "log_loss",
    "macro_auroc_score",
    "macro_f1_score",
    "mean_average_precision_score",
    "precision_scores",
    "recall_scores",
    "reliability_curve",
]


def accuracy_score(target: Array, predicted: Array, *, sample_weight: Weights = None) -> Floats:
    """Share of images classified correctly, from 0 to 1; for multilabel, with all labels correct.

    >>> float(accuracy_score([0, 1, 1, 2], [0, 1, 2, 2]))
    0.75
    """
    truth, guess = check_labels(target, predicted)
    hit = (truth == guess).reshape(len(truth), -1).all(axis=1)
    return _average(hit, check_weights(sample_weight, len(hit)))


def balanced_accuracy_score(
    target: Array, predicted: Array, *, sample_weight: Weights = None
) -> Floats:
    """Mean recall over the classes present in ``target``, from 0 to 1; multiclass only.

    Reference: Brodersen et al. (2010), "The balanced accuracy and its posterior distribution".

    >>> float(balanced_accuracy_score([0, 0, 0, 1], [0, 0, 0, 0]))
    0.5
    """
    truth, guess = check_class_indices(target, predicted)
    return mean_defined(
        recall_scores(truth, guess, count_classes(truth, guess), sample_weight=sample_weight)
    )


def macro_f1_score(target: Array, predicted: Array, *, sample_weight: Weights = None) -> Floats:
    """Mean F1 over the classes (or labels) present in ``target`` or ``predicted``, 0 to 1.

    NaN where no label is present anywhere (multilabel).

    >>> float(macro_f1_score([0, 0, 1, 1], [0, 0, 0, 0]))
    0.3333333333333333
    """
    truth, guess = check_labels(target, predicted)
    n_classes = count_classes(truth, guess)
    return mean_defined(f1_scores(truth, guess, n_classes, sample_weight=sample_weight))


def confusion_matrix(
    target: Array, predicted: Array, n_classes: int, *, sample_weight: Weights = None
) -> Floats:
    """Weight of images of class i (row) that were classified as j (column); multiclass only.

    Shape (K, K) or (B, K, K).

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2)
    array([[1., 1.],
           [0., 1.]])
    """
    truth, guess = check_class_indices(target, predicted)
    check_n_classes(truth, guess, n_classes)
    weights = check_weights(sample_weight, len(truth))
    cells = _sum_per_cell(weights, truth * n_classes + guess, n_classes**2)
    return cells.reshape(*weights.shape[:-1], n_classes, n_classes)


def precision_scores(
    target: Array, predicted: Array, n_classes: int, *, sample_weight: Weights = None
) -> Floats:
    """Share of the images classified as k that are k, from 0 to 1.

    Shape (K,) or (B, K); NaN for a class that was never predicted.

    >>> precision_scores([0, 1, 1], [0, 0, 1], 3)
    array([0.5, 1. , nan])
    """
    correct, _, predicted_as = _count_per_class(target, predicted, n_classes, sample_weight)
    return divide(correct, predicted_as)


def recall_scores(
    target: Array, predicted: Array, n_classes: int, *, sample_weight: Weights = None
) -> Floats:
    """Share of the images of class k that were classified as k, from 0 to 1.

    Shape (K,) or (B, K); NaN for a class that is absent from ``target``.

    >>> recall_scores([0, 1, 1], [0, 0, 1], 3)
    array([1. , 0.5, nan])
    """
    correct, in_target, _ = _count_per_class(target, predicted, n_classes, sample_weight)
    return divide(correct, in_target)


def f1_scores(
    target: Array, predicted: Array, n_classes: int, *, sample_weight: Weights = None
) -> Floats:
    """Harmonic mean of precision and recall per class, from 0 to 1.

    Shape (K,) or (B, K); NaN for a class in neither ``target`` nor ``predicted``; 0 for one that
    is in only one of them.

    >>> f1_scores([0, 1, 1], [0, 1, 1], 3)
    array([ 1.,  1., nan])
    """
    correct, in_target, predicted_as = _count_per_class(target, predicted, n_classes, sample_weight)
    return divide(2 * correct, in_target + predicted_as)


def auroc_scores(target: Array, probabilities: Array, *, sample_weight: Weights = None) -> Floats:
    """Area under the ROC curve of each class against the rest.

    The probability that an image of class k gets a higher p of k than an image of another class
    (a tie counts half). Shape (K,) or (B, K), from 0 to 1; NaN for a class with no image or
    with all images.

    Reference: Hanley and McNeil (1982), "The meaning and use of the area under a ROC curve".

    >>> auroc_scores([[0], [0], [1], [1]], [[0.1], [0.4], [0.4], [0.8]])
    array([0.875])
    """
    return _score_per_class(_area_under_roc, target, probabilities, sample_weight)


def macro_auroc_score(
    target: Array, probabilities: Array, *, sample_weight: Weights = None
) -> Floats:
    """Mean of `auroc_scores` over the classes where it is defined; of two classes, that of class 1.

    >>> float(macro_auroc_score([0, 1, 1], [[0.9, 0.1], [0.3, 0.7], [0.95, 0.05]]))
    0.5
    """
    truth, chance = check_probabilities(target, probabilities)
    if truth.ndim == 1 and chance.shape[1] == 2:
        weights = check_weights(sample_weight, len(chance))
        return _area_under_roc(_one_hot(truth, 2)[:, 1], chance[:, 1], weights)
    return mean_defined(auroc_scores(truth, chance, sample_weight=sample_weight))


def average_precision_scores(
    target: Array, probabilities: Array, *, sample_weight: Weights = None
) -> Floats:
    """Average precision of each class: the precision at each image of k, averaged over them.

    Shape (K,) or (B, K): the step-wise sum of precision times gain in recall, not interpolated,
    from 0 to 1; equal probabilities share one threshold. NaN for a class without an image.

    >>> average_precision_scores([[1], [0], [1]], [[0.9], [0.8], [0.1]]).round(4)
    array([0.8333])
    """
    return _score_per_class(_average_precision, target, probabilities, sample_weight)


def mean_average_precision_score(
    target: Array, probabilities: Array, *, sample_weight: Weights = None
) -> Floats:
    """Mean of `average_precision_scores` over the classes that have an image, from 0 to 1.

    >>> float(mean_average_precision_score([[1, 0], [0, 0]], [[0.9, 0.2], [0.1, 0.3]]))
    1.0
    """
    return mean_defined(
        average_precision_scores(target, probabilities, sample_weight=sample_weight)
    )


def log_loss(target: Array, probabilities: Array, *, sample_weight: Weights = None) -> Floats:
    """Mean -ln(probability of the target) in nats, over images, or over cells for multilabel.

    Probabilities are clipped to 2.2e-16 from 0 and 1: a certain wrong prediction costs 36, not
    infinity.

    >>> float(log_loss([0, 1], [[0.5, 0.5], [0.5, 0.5]]).round(4))
    0.6931
    """
    truth, chance = check_probabilities(target, probabilities)
    epsilon = np.finfo(np.float64).eps
    chance = np.clip(chance, epsilon, 1 - epsilon)
    if truth.ndim == 1:
        loss = -np.log(chance[np.arange(len(truth)), truth])
    else:
        loss = -np.log(np.where(truth == 1, chance, 1 - chance)).mean(axis=1)
    return _average(loss, check_weights(sample_weight, len(loss)))


def brier_loss(target: Array, probabilities: Array, *, sample_weight: Weights = None) -> Floats:
    """Squared distance of the probabilities from the targets.

    Multiclass: summed over classes, averaged over images, 0 to 2 (Brier's own definition;
    for two classes twice the one-sided one). Multilabel: averaged over all cells, 0 to 1.

    Reference: Brier (1950), "Verification of forecasts in terms of probability", eq. 2.

    >>> float(brier_loss([0, 1], [[1.0, 0.0], [0.5, 0.5]]))
    0.25
    """
    truth, chance = check_probabilities(target, probabilities)
    square = (chance - _one_hot(truth, chance.shape[1])) ** 2
    loss = square.sum(axis=1) if truth.ndim == 1 else square.mean(axis=1)
    return _average(loss, check_weights(sample_weight, len(loss)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Mean confidence, accuracy and weight of each bin; NaN where a bin is empty."""

    confidence: Floats
    accuracy: Floats
    weight: Floats


def reliability_curve(
    target: Array, probabilities: Array, n_bins: int = 15, *, sample_weight: Weights = None
) -> Reliability:
    """Accuracy against confidence, in bins of equal width.

    Multiclass: the predicted class (the first of a tie) and its probability. Multilabel: every
    cell, its probability against whether the label is present. Bins are open below and closed
    above; 0 belongs to the first.

    Arrays of shape (n_bins,) or (B, n_bins).

    >>> reliability_curve([0, 1], [[0.8, 0.2], [0.6, 0.4]], n_bins=2).accuracy
    array([nan, 0.5])
    """
    weight, confidences, correct = _sum_per_bin(target, probabilities, n_bins, sample_weight)
    confidence, accuracy = divide(confidences, weight), divide(correct, weight)
    return Reliability(confidence=confidence, accuracy=accuracy, weight=weight)


def expected_calibration_error(
    target: Array, probabilities: Array, n_bins: int = 15, *, sample_weight: Weights = None
) -> Floats:
    """Mean distance between confidence and accuracy over the bins of `reliability_curve`, 0 to 1.

    Reference: Guo et al. (2017), "On calibration of modern neural networks", eq. 3.

    >>> float(expected_calibration_error([0, 1], [[0.8, 0.2], [0.6, 0.4]], n_bins=2).round(4))
    0.2
    """
    weight, confidences, correct = _sum_per_bin(target, probabilities, n_bins, sample_weight)
    return divide(np.abs(correct - confidences).sum(axis=-1), weight.sum(axis=-1))


def _sum_per_bin(
    target: Array, probabilities: Array, n_bins: int, sample_weight: Weights
) -> tuple[Floats, Floats, Floats]:
    """Sum weights, confidences and correct predictions per bin, each (..., n_bins)."""
    truth, chance = check_probabilities(target, probabilities)
    if n_bins < 1:
        raise UsageError(f"Expected `n_bins` to be at least 1, got {n_bins}. Pass 15.")
    if truth.ndim == 1:
        top = chance.argmax(axis=1)
        correct, chance = (top == truth)[:, None], chance.max(axis=1, keepdims=True)
    else:
        correct = truth == 1
    n = len(chance)
    edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    cell = (np.searchsorted(edges, chance) + np.arange(n)[:, None] * n_bins).ravel()
    weights = check_weights(sample_weight, n)

    def per_bin(values: NDArray[Any]) -> Floats:
        rows = np.bincount(cell, weights=values.ravel(), minlength=n * n_bins)
        return np.asarray(weights @ rows.reshape(n, n_bins))

    return per_bin(np.ones_like(chance)), per_bin(chance), per_bin(correct)


def _count_per_class(
    target: Array, predicted: Array, n_classes: int, sample_weight: Weights
) -> tuple[Floats, Floats, Floats]:
    """Weight of each class that is correct, in the target, predicted; each (..., K)."""
    truth, guess = check_labels(target, predicted)
    check_n_classes(truth, guess, n_classes)
    weights = check_weights(sample_weight, len(truth))
    if truth.ndim == 2:
        return weights @ (truth * guess), weights @ truth, weights @ guess
    correct = _sum_per_cell(weights * (truth == guess), truth, n_classes)
    in_target = _sum_per_cell(weights, truth, n_classes)
    return correct, in_target, _sum_per_cell(weights, guess, n_classes)


def _sum_per_cell(weights: Floats, cell: Ints, n_cells: int) -> Floats:
    rows = weights.reshape(-1, len(cell))
    # Counting is faster than a product with a wide one-hot table.
    flat = cell + np.arange(len(rows))[:, None] * n_cells
    total = np.bincount(flat.ravel(), weights=rows.ravel(), minlength=len(rows) * n_cells)
    return total.reshape(*weights.shape[:-1], n_cells).astype(np.float64, copy=False)


def _score_per_class(
    score: Callable[[Floats, Floats, Floats], Floats],
    target: Array,
    probabilities: Array,
    sample_weight: Weights,
) -> Floats:
    truth, chance = check_probabilities(target, probabilities)
    weights, labels = check_weights(sample_weight, len(chance)), _one_hot(truth, chance.shape[1])
    columns = zip(labels.T, chance.T, strict=True)
    return np.stack([score(label, column, weights) for label, column in columns], axis=-1)


def _area_under_roc(label: Floats, score: Floats, weights: Floats) -> Floats:
    order, first, last = _tie_groups(score)
    positions = np.flatnonzero(label[order])
    ranked = np.take(weights, order, axis=-1)
    positive = ranked[..., positions]
    ranked[..., positions] = 0
    negative = _running_sum(ranked)  # weight of the negatives below each position
    # Negatives with the same score count half.
    below = (negative[..., first[positions]] + negative[..., last[positions]]) / 2
    return divide((positive * below).sum(axis=-1), positive.sum(axis=-1) * negative[..., -1])


def _average_precision(label: Floats, score: Floats, weights: Floats) -> Floats:
    order, _, last = _tie_groups(-score)
    positions = np.flatnonzero(label[order])
    ranked = np.take(weights, order, axis=-1)
    positive = ranked[..., positions]
    predicted = _running_sum(ranked)[..., last[positions]]  # weight from this score up
    hits = _running_sum(positive)[..., np.searchsorted(positions, last[positions])]
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    return divide((positive * precision).sum(axis=-1), positive.sum(axis=-1))


def _tie_groups(score: Floats) -> tuple[Ints, Ints, Ints]:
    """Ascending order and, for each position, the start and the end of its ties."""
    order = np.argsort(score)
    ranked = score[order]
    return order, np.searchsorted(ranked, ranked), np.searchsorted(ranked, ranked, side="right")


def _running_sum(values: Floats) -> Floats:
    total = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, out=total[..., 1:])
    return total


def _average(values: NDArray[Any], weights: Floats) -> Floats:
    return divide(weights @ values.astype(np.float64), weights.sum(axis=-1))


def _one_hot(labels: Ints, n_classes: int) -> Floats:
    table = labels if labels.ndim == 2 else labels[:, None] == np.arange(n_classes)
    return np.asarray(table, dtype=np.float64)
