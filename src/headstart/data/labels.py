"""Labels, groups, weights and seeds in the form that scikit-learn passes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError

__all__ = ["check_weights", "encode_labels", "group_names", "seed_of"]


def encode_labels(y: ArrayLike, n: int) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the distinct labels in the order of ``np.unique``, and the index of each image's.

    Raises
    ------
    UsageError
        If there are not n labels, or they are not classes.

    Examples
    --------
    >>> encode_labels(["cat", "ant", "cat"], 3)
    (array(['ant', 'cat'], dtype='<U3'), array([1, 0, 1]))
    """
    from sklearn.utils.multiclass import check_classification_targets

    labels = np.asarray(y)
    if labels.shape != (n,):
        raise UsageError(
            f"`y` must have one label for each of the {n} images, got shape {labels.shape}. "
            "Pass a `y` of the same length as `X`."
        )
    if labels.dtype.kind in "fc" and not np.isfinite(labels).all():
        raise UsageError(
            f"`y` must contain classes, got {labels[~np.isfinite(labels)][0]} for an image. Pass "
            "whole numbers or names."
        )
    try:
        check_classification_targets(labels)
        names, codes = np.unique(labels, return_inverse=True)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"`y` must contain classes: {error} Pass whole numbers or names."
        ) from error
    return names, codes


def check_weights(
    weights: ArrayLike | None, n: int, *, has_labels: bool
) -> tuple[NDArray[np.intp], NDArray[np.float64] | None]:
    """Return the rows with a positive weight, and their weights; None if they are equal.

    Raises
    ------
    UsageError
        If there are not n weights, all are 0, or one is negative or not finite.

    Examples
    --------
    >>> check_weights([2, 0, 1], 3, has_labels=True)
    (array([0, 2]), array([2., 1.]))
    >>> check_weights([2, 2], 2, has_labels=True)
    (array([0, 1]), None)
    """
    if weights is None:
        return np.arange(n), None
    if not has_labels:
        raise UsageError("`sample_weight` needs `y`, but `y` is None. Pass both, or neither.")
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,):
        raise UsageError(
            f"`sample_weight` must have one number for each of the {n} images, got shape "
            f"{values.shape}. Pass an array of the same length as `X`."
        )
    if not np.isfinite(values).all() or values.min(initial=0) < 0 or not values.any():
        raise UsageError(
            f"`sample_weight` must be finite, at least 0 and not all 0, got a minimum of "
            f"{values.min(initial=np.inf):g} and a maximum of {values.max(initial=-np.inf):g}. "
            "Correct the weights."
        )
    rows = np.flatnonzero(values)
    kept = values[rows]
    return rows, None if (kept == kept[0]).all() else kept


def seed_of(random_state: object) -> int:
    """Return the seed of scikit-learn's ``random_state``; None and RandomState draw one.

    Raises
    ------
    UsageError
        If it is none of these.

    Examples
    --------
    >>> seed_of(7), seed_of(np.random.RandomState(0))
    (7, 209652396)
    """
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    if random_state is None:
        return int(np.random.default_rng().integers(2**31 - 1))
    if isinstance(random_state, RandomState):
        return int(random_state.randint(2**31 - 1))
    raise UsageError(
        f"`random_state` must be None, a whole number from 0 or a RandomState, got "
        f"{random_state!r}. Pass random_state=0."
    )


def group_names(groups: ArrayLike | None, n: int) -> list[str | None]:
    """Return the name of the group of each of n images, or None.

    >>> group_names([7, 7], 2), group_names(None, 1)
    (['7', '7'], [None])
    """
    if groups is None:
        return [None] * n
    names: list[str | None] = [str(group) for group in np.asarray(groups)]
    if len(names) != n:
        raise UsageError(f"Expected one group for each of {n} images, got {len(names)}.")
    return names
