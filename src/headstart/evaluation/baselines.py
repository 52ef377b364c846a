"""What simple rules reach on the same images: the least a model has to beat."""

from __future__ import annotations

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

__all__ = ["PROBE", "Baseline", "correctness", "majority_baseline", "nearest_neighbour_baseline"]

PROBE = "linear probe on the frozen backbone"
"""What a model has to beat whose backbone was trained."""

Array = NDArray[np.floating[Any]]
Targets = NDArray[np.integer[Any]]
Groups = NDArray[np.intp] | None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a simpler rule reaches on the same images, and the model's lead over it.

    Parameters
    ----------
    name : str
    accuracy : Interval
    lead : Difference
        Accuracy of the model less that of the baseline, paired.
    """

    name: str
    accuracy: Interval
    lead: Difference


def majority_baseline(
    train: Targets, targets: Targets, correct: NDArray[np.bool_], *, groups: Groups = None
) -> Baseline:
    """Always answer what is most frequent in the training part.

    >>> right = np.array([True, True, True])
    >>> print(majority_baseline(np.array([0, 0, 1]), np.array([0, 1, 0]), right).accuracy)
    0.667 [0.208, 0.939]
    """
    _require_images(train)
    if train.ndim == 2:
        answer = (2 * train.sum(axis=0) > len(train)).astype(np.intp)
    else:
        answer = np.bincount(train).argmax()
    guess = np.broadcast_to(answer, targets.shape)
    return _baseline("majority class", correctness(targets, guess), correct, groups)


def nearest_neighbour_baseline(
    train: tuple[Array, Targets],
    test: tuple[Array, Targets],
    correct: NDArray[np.bool_],
    *,
    groups: Groups = None,
    k: int = 5,
) -> Baseline:
    """Let the ``k`` training images with the most similar features vote (cosine similarity).

    Parameters
    ----------
    train, test : (features (n, width), targets)
    correct : array of bool, shape (n_test,)
        Which of the model's answers are right.
    groups : array of int, shape (n_test,), optional
    k : int
        At least 1; ties of the vote go to the class with the most similar image, and of
        equally similar images the first of the training part is taken.

    Raises
    ------
    UsageError
        If ``k`` is less than 1.
    DataError
        If there is no training image.

    Examples
    --------
    >>> known = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.array([0, 0, 1])
    >>> asked = np.array([[5.0, 1.0], [0.0, 2.0]]), np.array([0, 1])
    >>> right = np.array([True, True])
    >>> nearest_neighbour_baseline(known, asked, right, k=1).accuracy.value
    1.0
    """
    if k < 1:
        raise UsageError(f"Expected `k` to be at least 1, got {k}.")
    (known, learned), (asked, targets) = train, test
    _require_images(learned)
    nearest = _nearest(_unit(known), _unit(asked), min(k, len(known)))
    votes = learned[nearest]
    if learned.ndim == 2:
        guess = (2 * votes.sum(axis=1) > votes.shape[1]).astype(np.intp)
    else:
        # How often each vote is shared; argmax takes the first, which is the most similar.
        shared = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
        guess = votes[np.arange(len(votes)), shared.argmax(axis=1)]
    return _baseline(
        f"{nearest.shape[1]}-nearest neighbours", correctness(targets, guess), correct, groups
    )


def _require_images(train: Targets) -> None:
    if not len(train):
        raise DataError(
            "Expected at least one training image for a baseline, got none; do pass the "
            "images that the model learned from."
        )


def _baseline(
    name: str, reached: NDArray[np.bool_], correct: NDArray[np.bool_], groups: Groups
) -> Baseline:
    return Baseline(
        name=name,
        accuracy=proportion_interval(reached, groups),
        lead=paired_proportion_difference(correct, reached, groups),
    )


def _unit(features: Array) -> Array:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, np.finfo(np.float32).tiny))


def _nearest(known: Array, asked: Array, k: int) -> NDArray[np.intp]:
    """Rows of ``known`` most similar to each row of ``asked``, the nearest first, (n, k)."""
    found = []
    for start in range(0, len(asked), 512):  # bounds the table of similarities
        similarity = asked[start : start + 512] @ known.T
        some = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        close = np.take_along_axis(similarity, some, axis=1)
        # Which of equals is taken must not depend on the machine: the first.
        tied = np.flatnonzero((similarity >= close.min(axis=1)[:, None]).sum(axis=1) > k)
        some[tied] = np.argsort(-similarity[tied], axis=1, kind="stable")[:, :k]
        close[tied] = np.take_along_axis(similarity[tied], some[tied], axis=1)
        found.append(np.take_along_axis(some, np.lexsort((some, -close)), axis=1))
    return np.concatenate(found)


def correctness(targets: Targets, predicted: Targets) -> NDArray[np.bool_]:
    """Whether each image's answer is right; for multilabel in every label.

    >>> correctness(np.array([0, 1]), np.array([0, 0]))
    array([ True, False])
    """
    same = targets == predicted
    return np.asarray(same.all(axis=1) if same.ndim == 2 else same)
