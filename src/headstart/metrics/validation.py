"""Checks of the arrays that a metric takes, safe division, and conversion to JSON.

The checks return labels, probabilities and weights as arrays of one type each, or raise
UsageError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike as Array
from numpy.typing import NDArray

from headstart.errors import UsageError

__all__ = [
    "Floats",
    "Ints",
    "Weights",
    "centre_columns",
    "check_class_indices",
    "check_features",
    "check_labels",
    "check_n_classes",
    "check_probabilities",
    "check_weights",
    "count_classes",
    "divide",
    "json_text",
    "mean_defined",
    "to_jsonable",
]

Weights = Array | None
Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def check_labels(target: Array, predicted: Array) -> tuple[Ints, Ints]:
    """Check targets and predictions: of one shape, (n,) of indices or (n, K) of 0 and 1.

    >>> check_labels([0, 1], [1, 1])
    (array([0, 1]), array([1, 1]))
    """
    truth, guess = _label_array("target", target), _label_array("predicted", predicted)
    if truth.shape != guess.shape:
        raise UsageError(
            f"Expected `predicted` to have the shape of `target`, {truth.shape}, got "
            f"{guess.shape}. Pass one prediction for each image."
        )
    return truth, guess


def check_class_indices(target: Array, predicted: Array) -> tuple[Ints, Ints]:
    """Check targets and predictions as `check_labels` does, but allow class indices only.

    >>> check_class_indices([0, 1], [1, 1])
    (array([0, 1]), array([1, 1]))
    """
    truth, guess = check_labels(target, predicted)
    if truth.ndim == 2:
        raise UsageError(
            f"Expected `target` to be class indices of shape (n,), got a table {truth.shape}. "
            "Use a score that is defined for multilabel, such as macro_f1_score."
        )
    return truth, guess


def check_probabilities(target: Array, probabilities: Array) -> tuple[Ints, Floats]:
    """Check that targets and probabilities of shape (n, K), within [0, 1], fit together.

    >>> check_probabilities([1], [[0.25, 0.75]])
    (array([1]), array([[0.25, 0.75]]))
    """
    truth, chance = _label_array("target", target), np.asarray(probabilities, dtype=np.float64)
    fits = chance.ndim == 2 and truth.shape in {chance.shape, chance.shape[:1]}
    if not fits:
        raise UsageError(
            f"Expected `probabilities` of shape (n, K) for a `target` of shape {truth.shape}, got "
            f"{chance.shape}. Pass one row for each image and one column for each class."
        )
    low, high = chance.min(initial=1), chance.max(initial=0)
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # written so that NaN fails, too
        raise UsageError(
            f"Expected `probabilities` from 0 to 1, got {low:.3g} to {high:.3g}. Apply softmax "
            "or sigmoid to logits."
        )
    if truth.ndim == 1:
        check_n_classes(truth, truth, chance.shape[1])
        worst = np.abs(chance.sum(axis=1) - 1).max()
        if worst > 1e-3:
            raise UsageError(
                f"Expected rows of `probabilities` to add up to 1, got one off by {worst:.3g}. "
                "Apply softmax, or pass `target` as a table of 0 and 1 for multilabel."
            )
    return truth, np.clip(chance, 0, 1)


def check_weights(sample_weight: Weights, n: int) -> Floats:
    """Check weights of shape (n,) or (B, n), each row with a sum above 0. None gives ones.

    >>> check_weights(None, 2)
    array([1., 1.])
    """
    if sample_weight is None:
        return np.ones(n)
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim not in {1, 2} or weights.shape[-1] != n or weights.size == 0:
        raise UsageError(
            f"Expected `sample_weight` of shape ({n},) or (B, {n}), got {weights.shape}. Pass "
            "one weight for each image."
        )
    low, total = weights.min(), weights.sum(axis=-1)
    if not (low >= 0 and np.isfinite(total).all() and total.min() > 0):
        raise UsageError(
            "Expected `sample_weight` to be finite and >= 0 with a sum above 0, got a minimum "
            f"of {low:.3g} and a smallest sum of {total.min():.3g}. Pass finite weights, with at "
            "least one above 0."
        )
    return weights


def check_n_classes(truth: Ints, guess: Ints, n_classes: int) -> None:
    """Raise UsageError for labels outside ``n_classes`` classes.

    >>> check_n_classes(np.array([0, 1]), np.array([1, 1]), 3)
    """
    count = count_classes(truth, guess)
    if count > n_classes or (truth.ndim == 2 and count != n_classes):
        raise UsageError(
            f"Expected labels of {n_classes} classes, got labels of {count}. Number classes "
            "from 0 to K - 1 and pass that K."
        )


def check_features(features: Array, targets: Array) -> tuple[Floats, Ints]:
    """Check features and labels; return the features and each row's class index from 0.

    >>> check_features([[0.5], [1.5]], ["no", "yes"])
    (array([[0.5],
           [1.5]]), array([0, 1]))
    """
    f: Any = np.asarray(features, dtype=np.float64)
    labels = np.asarray(targets)
    if f.ndim != 2 or labels.shape != (len(f),):
        raise UsageError(
            f"Expected features (n, d) and n targets, got shapes {f.shape} and {labels.shape}. "
            "Pass one row and one label for each image."
        )
    if not np.isfinite(f).all():
        raise UsageError("Expected finite features, got NaN or infinity. Remove those rows.")
    names, codes = np.unique(labels, return_inverse=True)
    if labels.dtype.kind in "fc" and (names != np.rint(names.real)).any():
        real = names[names != np.rint(names.real)][0]
        raise UsageError(
            f"Expected targets to be classes, got the real number {real}. These scores are not "
            "for regression: pass class names or indices."
        )
    if len(names) < 2:
        raise UsageError(f"Expected at least two classes, got {len(names)}. Add another class.")
    return f, codes


def centre_columns(features: Floats) -> Floats:
    """Subtract the mean of each column. Constant columns become exactly 0.

    >>> centre_columns(np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]]))
    array([[ 0., -1.],
           [ 0.,  0.],
           [ 0.,  1.]])
    """
    centred = features - features.mean(axis=0)
    # Rounding leaves tiny values in constant columns, which a later scaling would blow up.
    constant = np.abs(centred).max(axis=0) <= 1e-13 * np.abs(features).max(axis=0)
    return np.asarray(np.where(constant, 0.0, centred))


def count_classes(truth: Ints, guess: Ints) -> int:
    """Count the classes in the labels: the columns, or the highest index plus one.

    >>> count_classes(np.array([0, 1]), np.array([2, 0]))
    3
    """
    return truth.shape[1] if truth.ndim == 2 else int(max(truth.max(), guess.max())) + 1


def _label_array(name: str, labels: Array) -> Ints:
    array = np.asarray(labels)
    if array.dtype.kind not in "biu" or array.ndim not in {1, 2} or array.size == 0:
        raise UsageError(
            f"Expected `{name}` to be integers of shape (n,) or (n, K), n and K at least 1, got "
            f"{array.dtype} of shape {array.shape}. Pass class indices or a table of 0 and 1."
        )
    indices = array.astype(np.intp)
    if indices.min() < 0 or (indices.ndim == 2 and indices.max() > 1):
        raise UsageError(
            f"Expected `{name}` to hold class indices from 0, or only 0 and 1 in a table, got "
            f"{indices.min()} to {indices.max()}. Remove images without a label."
        )
    return indices


def divide(part: Floats, total: NDArray[Any]) -> Floats:
    """Divide; NaN where the total is 0.

    >>> divide(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    array([0.5, nan])
    """
    return np.asarray(np.divide(part, total, out=np.full(np.shape(part), np.nan), where=total > 0))


def mean_defined(values: Floats) -> Floats:
    """Average over the last axis without the NaNs; NaN where all values are NaN.

    >>> mean_defined(np.array([[1.0, np.nan], [np.nan, np.nan]]))
    array([ 1., nan])
    """
    defined = ~np.isnan(values)
    return divide(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))


def to_jsonable(value: Any) -> Any:
    """Convert a value to the types of strict JSON.

    Dataclasses become dicts of their fields, mappings dicts with string keys; tuples, sets and
    arrays become lists; NaN and infinities become None; other types become strings.

    >>> to_jsonable({"score": np.float64(0.5), "low": float("nan"), "shape": (2, 3)})
    {'score': 0.5, 'low': None, 'shape': [2, 3]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return to_jsonable(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as strict JSON, converted by `to_jsonable`: every file of a run uses it.

    >>> json_text({"score": float("nan"), "bounds": (0.5, float("inf"))})
    '{"score": null, "bounds": [0.5, null]}'
    """
    return json.dumps(to_jsonable(value), indent=indent, allow_nan=False)
