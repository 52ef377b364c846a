"""Means over classes of shares of images, such as balanced accuracy, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import (
    Difference,
    Groups,
    Interval,
    paired_proportion_difference,
    proportion_interval,
    units,
)

__all__ = [
    "balanced_accuracy_interval",
    "groups_span_classes",
    "mean_of_intervals",
    "paired_balanced_difference",
]

Booleans = NDArray[np.bool_]
Indices = NDArray[np.integer[Any]]


def mean_of_intervals(
    intervals: Sequence[Interval], shares: Sequence[float], *, independent: bool = True
) -> Interval:
    """Interval of a weighted mean from the intervals of its terms.

    Parameters
    ----------
    intervals : sequence of Interval
        All of one level.
    shares : sequence of float
        Weights of the terms; their sum is 1.
    independent : bool
        Whether the terms come from different images (or groups). Otherwise the half widths are
        added, which is never too narrow.

    Returns
    -------
    Interval

    Raises
    ------
    UsageError
        If there is no interval, or not one share for each.

    References
    ----------
    Zou and Donner (2008), "Construction of confidence limits about effect measures: a general
    approach" (the method of variance estimates recovery).

    Examples
    --------
    >>> from headstart.metrics.confidence_intervals import wilson_interval
    >>> print(mean_of_intervals([wilson_interval(90, 100), wilson_interval(5, 10)], [0.5, 0.5]))
    0.700 [0.563, 0.834]
    """
    if not intervals or len(intervals) != len(shares):
        raise UsageError(
            f"Expected one share for each interval, got {len(shares)} for {len(intervals)}. Pass "
            "as many, at least one."
        )
    value = math.fsum(s * interval.value for s, interval in zip(shares, intervals, strict=True))
    down, up = (
        [s * abs(bound - i.value) for s, i, bound in zip(shares, intervals, bounds, strict=True)]
        for bounds in ([i.low for i in intervals], [i.high for i in intervals])
    )
    half_down, half_up = (
        (math.hypot(*down), math.hypot(*up)) if independent else (math.fsum(down), math.fsum(up))
    )
    return replace(intervals[0], value=value, low=value - half_down, high=value + half_up)


def balanced_accuracy_interval(
    correct: Booleans, targets: Indices, groups: Groups = None, *, level: float = 0.95
) -> Interval:
    """Balanced accuracy: the mean over classes of the share of correct images, with its interval.

    Parameters
    ----------
    correct : array of bool, shape (n,)
    targets : array of int, shape (n,)
    groups : n hashables, optional
        Images of one group are not independent.
    level : float

    Returns
    -------
    Interval
        Over the classes that have images; at least one image is needed.

    Examples
    --------
    >>> targets = np.array([0] * 50 + [1] * 5)
    >>> print(balanced_accuracy_interval(targets == 0, targets))
    0.500 [0.464, 0.717]
    """
    labels = None if groups is None else list(groups)
    intervals = [
        proportion_interval(np.asarray(correct)[rows], _subset(labels, rows), level=level)
        for rows in _rows_by_class(targets)
    ]
    independent = not groups_span_classes(targets, labels)
    mean = mean_of_intervals(intervals, _equal_shares(intervals), independent=independent)
    return replace(mean, low=max(mean.low, 0.0), high=min(mean.high, 1.0), method="wilson-classes")


def paired_balanced_difference(
    correct_a: Booleans,
    correct_b: Booleans,
    targets: Indices,
    groups: Groups = None,
    *,
    level: float = 0.95,
) -> Difference:
    """Balanced accuracy of A minus that of B, on the same images.

    Newcombe's paired interval of each class, combined as independent ones. It is significant if
    it excludes 0 and a sign test on the images (or groups) that differ can be.

    Parameters
    ----------
    correct_a, correct_b : array of bool, shape (n,)
    targets : array of int, shape (n,)
    groups : n hashables, optional
    level : float

    Examples
    --------
    >>> targets = np.array([0] * 100 + [1] * 20)
    >>> always_first, better = targets == 0, np.arange(120) >= 10
    >>> paired_balanced_difference(better, always_first, targets).significant
    True
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    labels = None if groups is None else list(groups)
    intervals = [
        paired_proportion_difference(a[rows], b[rows], _subset(labels, rows), level=level).interval
        for rows in _rows_by_class(targets)
    ]
    independent = not groups_span_classes(targets, labels)
    interval = mean_of_intervals(intervals, _equal_shares(intervals), independent=independent)
    codes, _ = units(len(a), labels)
    sign_test_passes = 2 * 0.5 ** len(np.unique(codes[a != b])) < 1 - level
    excludes_zero = interval.low > 0 or interval.high < 0
    return Difference(
        interval=replace(interval, method="newcombe-paired-classes"),
        significant=bool(excludes_zero and sign_test_passes),
    )


def _rows_by_class(targets: Indices) -> list[NDArray[np.intp]]:
    return [np.flatnonzero(targets == label) for label in np.unique(targets)]


def _equal_shares(intervals: Sequence[Interval]) -> list[float]:
    return [1 / len(intervals)] * len(intervals)


def _subset(labels: list[Any] | None, rows: NDArray[np.intp]) -> list[Any] | None:
    return None if labels is None else [labels[row] for row in rows]


def groups_span_classes(targets: Indices, groups: Groups) -> bool:
    """Whether a group has images of several classes: their shares are then not independent.

    >>> groups_span_classes(np.array([0, 1, 1]), ["a", "a", "b"])
    True
    """
    if groups is None:
        return False
    labels = list(groups)
    codes, count = units(len(labels), labels)
    pairs = np.unique(np.stack([codes, np.asarray(targets)]), axis=1)
    return bool(pairs.shape[1] > count)
