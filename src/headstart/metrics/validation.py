"""The arrays a metric takes, checked once: labels, probabilities, weights; and what 0 / 0 is.

The functions return their arguments as arrays of one type each, or raise UsageError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike as Array
from numpy.typing import NDArray

from headstart.errors import UsageError

__all__ = [
    "Floats",
    "Ints",
    "Weights",
    "centred",
    "check_width",
    "labelled",
    "mean_defined",
    "multiclass_pair",
    "pair",
    "ratio",
    "scored",
    "weights_of",
    "width",
]

Weights = Array | None
Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def pair(target: Array, predicted: Array) -> tuple[Ints, Ints]:
    """Targets and predictions of one shape, (n,) of indices or (n, K) of 0 and 1.

    >>> pair([0, 1], [1, 1])
    (array([0, 1]), array([1, 1]))
    """
    truth, guess = _labels("target", target), _labels("predicted", predicted)
    if truth.shape != guess.shape:
        raise UsageError(
            f"Expected `predicted` to have the shape of `target`, {truth.shape}, got "
            f"{guess.shape}; do pass one prediction for each image."
        )
    return truth, guess


def multiclass_pair(target: Array, predicted: Array) -> tuple[Ints, Ints]:
    """Targets and predictions as `pair`, but class indices only.

    >>> multiclass_pair([0, 1], [1, 1])
    (array([0, 1]), array([1, 1]))
    """
    truth, guess = pair(target, predicted)
    if truth.ndim == 2:
        raise UsageError(
            f"Expected `target` to be class indices of shape (n,), got a table {truth.shape}; do "
            "use a score that is defined for each label, such as macro_f1_score."
        )
    return truth, guess


def scored(target: Array, probabilities: Array) -> tuple[Ints, Floats]:
    """Targets and probabilities of shape (n, K) that fit together, within [0, 1].

    >>> scored([1], [[0.25, 0.75]])
    (array([1]), array([[0.25, 0.75]]))
    """
    truth, chance = _labels("target", target), np.asarray(probabilities, dtype=np.float64)
    fits = chance.ndim == 2 and truth.shape in {chance.shape, chance.shape[:1]}
    if not fits:
        raise UsageError(
            f"Expected `probabilities` of shape (n, K) for a `target` of shape {truth.shape}, got "
            f"{chance.shape}; do pass one row for each image and one column for each class."
        )
    low, high = chance.min(initial=1), chance.max(initial=0)
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # written so that NaN fails, too
        raise UsageError(
            f"Expected `probabilities` from 0 to 1, got {low:.3g} to {high:.3g}; do apply softmax "
            "or sigmoid to logits."
        )
    if truth.ndim == 1:
        check_width(truth, truth, chance.shape[1])
        worst = np.abs(chance.sum(axis=1) - 1).max()
        if worst > 1e-3:
            raise UsageError(
                f"Expected rows of `probabilities` to add up to 1, got one off by {worst:.3g}; do "
                "apply softmax, or pass `target` as a table of 0 and 1 for multilabel."
            )
    return truth, np.clip(chance, 0, 1)


def weights_of(sample_weight: Weights, n: int) -> Floats:
    """Weights of shape (n,) or (B, n), ones when none are given; every row has a sum above 0.

    >>> weights_of(None, 2)
    array([1., 1.])
    """
    if sample_weight is None:
        return np.ones(n)
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim not in {1, 2} or weights.shape[-1] != n or weights.size == 0:
        raise UsageError(
            f"Expected `sample_weight` of shape ({n},) or (B, {n}), got {weights.shape}; do pass "
            "one weight for each image."
        )
    low, total = weights.min(), weights.sum(axis=-1)
    if not (low >= 0 and np.isfinite(total).all() and total.min() > 0):
        raise UsageError(
            "Expected `sample_weight` to be finite and >= 0 with a sum above 0, got a least weight "
            f"of {low:.3g} and a least sum of {total.min():.3g}; do zero single images at most."
        )
    return weights


def check_width(truth: Ints, guess: Ints, n_classes: int) -> None:
    """Refuse labels that ``n_classes`` classes cannot have.

    >>> check_width(np.array([0, 1]), np.array([1, 1]), 3)
    """
    found = width(truth, guess)
    if found > n_classes or (truth.ndim == 2 and found != n_classes):
        raise UsageError(
            f"Expected labels of {n_classes} classes, got labels of {found}; do number classes "
            "from 0 to K - 1 and pass that K."
        )


def labelled(features: Array, targets: Array) -> tuple[Floats, Ints]:
    """Rows of features, and each row's class from 0 on, whatever the classes are called.

    >>> labelled([[0.5], [1.5]], ["no", "yes"])
    (array([[0.5],
           [1.5]]), array([0, 1]))
    """
    f: Any = np.asarray(features, dtype=np.float64)
    labels = np.asarray(targets)
    if f.ndim != 2 or labels.shape != (len(f),):
        raise UsageError(
            f"Expected features (n, d) and n targets, got shapes {f.shape} and {labels.shape}; do "
            "pass one row and one label an image."
        )
    if not np.isfinite(f).all():
        raise UsageError("Expected finite features, got NaN or infinity; do leave those rows out.")
    names, codes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise UsageError(f"Expected two classes or more, got {len(names)}; do add images.")
    return f, codes


def centred(features: Floats) -> Floats:
    """Columns less their means; those that do not vary are 0 and not rounding's remains.

    >>> centred(np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]]))
    array([[ 0., -1.],
           [ 0.,  0.],
           [ 0.,  1.]])
    """
    spread = features - features.mean(axis=0)
    flat = np.abs(spread).max(axis=0) <= 1e-13 * np.abs(features).max(axis=0)
    return np.asarray(np.where(flat, 0.0, spread))


def width(truth: Ints, guess: Ints) -> int:
    """Number of classes that the labels show: columns, or the highest index and one.

    >>> width(np.array([0, 1]), np.array([2, 0]))
    3
    """
    return truth.shape[1] if truth.ndim == 2 else int(max(truth.max(), guess.max())) + 1


def _labels(name: str, labels: Array) -> Ints:
    given = np.asarray(labels)
    if given.dtype.kind not in "biu" or given.ndim not in {1, 2} or given.size == 0:
        raise UsageError(
            f"Expected `{name}` to be integers of shape (n,) or (n, K), n and K at least 1, got "
            f"{given.dtype} of shape {given.shape}; do pass class indices or a table of 0 and 1."
        )
    found = given.astype(np.intp)
    if found.min() < 0 or (found.ndim == 2 and found.max() > 1):
        raise UsageError(
            f"Expected `{name}` to hold class indices from 0, or only 0 and 1 in a table, got "
            f"{found.min()} to {found.max()}; do leave out unlabelled images."
        )
    return found


def ratio(part: Floats, whole: NDArray[Any]) -> Floats:
    """Divide; what is a share of nothing is NaN.

    >>> ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    array([0.5, nan])
    """
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0))


def mean_defined(values: Floats) -> Floats:
    """Mean over the last axis of what is not NaN; NaN where all are.

    >>> mean_defined(np.array([[1.0, np.nan], [np.nan, np.nan]]))
    array([ 1., nan])
    """
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))
