"""Baselines: simple rules on the same test images that a model should beat.

Also formats shares and differences for sentences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError, UsageError
from headstart.metrics.confidence_intervals import (
    Difference,
    Interval,
    paired_proportion_difference,
    proportion_interval,
)

__all__ = [
    "PROBE",
    "Baseline",
    "correctness",
    "format_percent",
    "format_points",
    "majority_baseline",
    "nearest_neighbour_baseline",
]

PROBE = "linear probe on the frozen backbone"
"""Name of the baseline for a fine-tuned model."""

Array = NDArray[np.floating[Any]]
Targets = NDArray[np.integer[Any]]
Groups = NDArray[np.intp] | None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Accuracy of a baseline on the same images, and the model's lead over it.

    Parameters
    ----------
    name : str
    accuracy : Interval
    lead : Difference
        Accuracy of the model minus accuracy of the baseline, paired by image.
    """

    name: str
    accuracy: Interval
    lead: Difference


def majority_baseline(
    train_targets: Targets, targets: Targets, correct: NDArray[np.bool_], *, groups: Groups = None
) -> Baseline:
    """Always predict the most frequent class of the training images.

    >>> right = np.array([True, True, True])
    >>> print(majority_baseline(np.array([0, 0, 1]), np.array([0, 1, 0]), right).accuracy)
    0.667 [0.208, 0.939]
    """
    _require_images(train_targets)
    if train_targets.ndim == 2:
        prediction = (2 * train_targets.sum(axis=0) > len(train_targets)).astype(np.intp)
    else:
        prediction = np.bincount(train_targets).argmax()
    predictions = np.broadcast_to(prediction, targets.shape)
    return _paired_baseline("majority class", correctness(targets, predictions), correct, groups)


def nearest_neighbour_baseline(
    train: tuple[Array, Targets],
    test: tuple[Array, Targets],
    correct: NDArray[np.bool_],
    *,
    groups: Groups = None,
    k: int = 5,
) -> Baseline:
    """Predict by a vote of the ``k`` most similar training images (cosine similarity).

    Parameters
    ----------
    train, test : (features (n, width), targets)
    correct : array of bool, shape (n_test,)
        Whether each of the model's predictions is correct.
    groups : array of int, shape (n_test,), optional
    k : int
        At least 1. If the vote is tied, the class with the most similar image wins. Of equally
        similar images, the first training image counts.

    Raises
    ------
    UsageError
        If ``k`` is less than 1.
    DataError
        If there is no training image.

    Examples
    --------
    >>> train = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.array([0, 0, 1])
    >>> test = np.array([[5.0, 1.0], [0.0, 2.0]]), np.array([0, 1])
    >>> right = np.array([True, True])
    >>> nearest_neighbour_baseline(train, test, right, k=1).accuracy.value
    1.0
    """
    if k < 1:
        raise UsageError(f"`k` must be at least 1, got {k}. Use 5.")
    (train_features, train_targets), (test_features, targets) = train, test
    _require_images(train_targets)
    nearest_rows = _nearest_rows(
        _normalise_rows(train_features), _normalise_rows(test_features), min(k, len(train_features))
    )
    votes = train_targets[nearest_rows]
    if train_targets.ndim == 2:
        predictions = (2 * votes.sum(axis=1) > votes.shape[1]).astype(np.intp)
    else:
        # Count equal votes; argmax returns the first maximum, which is the most similar image.
        n_same_votes = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
        predictions = votes[np.arange(len(votes)), n_same_votes.argmax(axis=1)]
    return _paired_baseline(
        f"{nearest_rows.shape[1]}-nearest neighbours",
        correctness(targets, predictions),
        correct,
        groups,
    )


def _require_images(train_targets: Targets) -> None:
    if not len(train_targets):
        raise DataError(
            f"A baseline needs at least one training image, got {len(train_targets)}. Pass the "
            "images that the model was trained on."
        )


def _paired_baseline(
    name: str, baseline_correct: NDArray[np.bool_], correct: NDArray[np.bool_], groups: Groups
) -> Baseline:
    return Baseline(
        name=name,
        accuracy=proportion_interval(baseline_correct, groups),
        lead=paired_proportion_difference(correct, baseline_correct, groups),
    )


def _normalise_rows(features: Array) -> Array:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, np.finfo(np.float32).tiny))


def _nearest_rows(train: Array, test: Array, k: int) -> NDArray[np.intp]:
    """Return the rows of ``train`` most similar to each row of ``test``, nearest first, (n, k)."""
    blocks = []
    for start in range(0, len(test), 512):  # limits the memory for similarities
        similarity = test[start : start + 512] @ train.T
        rows = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        similarities = np.take_along_axis(similarity, rows, axis=1)
        # Ties: take the first row, so that the result is the same on every machine.
        tied = np.flatnonzero((similarity >= similarities.min(axis=1)[:, None]).sum(axis=1) > k)
        rows[tied] = np.argsort(-similarity[tied], axis=1, kind="stable")[:, :k]
        similarities[tied] = np.take_along_axis(similarity[tied], rows[tied], axis=1)
        blocks.append(np.take_along_axis(rows, np.lexsort((rows, -similarities)), axis=1))
    return np.concatenate(blocks)


def correctness(targets: Targets, predicted: Targets) -> NDArray[np.bool_]:
    """Return whether each prediction is correct; for multilabel, in every label.

    >>> correctness(np.array([0, 1]), np.array([0, 0]))
    array([ True, False])
    """
    is_equal = targets == predicted
    return np.asarray(is_equal.all(axis=1) if is_equal.ndim == 2 else is_equal)


def format_percent(interval: Interval) -> str:
    """Format a share and its interval in percent.

    >>> format_percent(Interval(value=0.9, low=0.699, high=0.972, method="wilson"))
    '90.0 % [69.9, 97.2]'
    """
    bounds = "unknown"
    if not math.isnan(interval.low):
        bounds = f"{100 * interval.low:.1f}, {100 * interval.high:.1f}"
    return f"{100 * interval.value:.1f} % [{bounds}]"


def format_points(difference: Interval) -> str:
    """Format a difference of shares and its interval in percentage points.

    >>> format_points(Interval(value=0.021, low=0.003, high=0.04, method="newcombe"))
    '+2.1 points [0.3, 4.0]'
    """
    bounds = "unknown"
    if not math.isnan(difference.low):
        bounds = f"{100 * difference.low:.1f}, {100 * difference.high:.1f}"
    return f"{100 * difference.value:+.1f} points [{bounds}]"
