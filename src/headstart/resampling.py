"""Resampling pictures: the draws and the bounds that intervals are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError

__all__ = [
    "Floats",
    "Groups",
    "Statistic",
    "bca_bounds",
    "evaluate",
    "leave_outs",
    "normal_quantile",
    "resamples",
    "student_quantile",
    "units",
]

Floats = NDArray[np.float64]
Groups = Iterable[Hashable] | None
Statistic = Callable[[Floats], ArrayLike]
"""From weights (n,), how often each picture counts, to a number or a vector of numbers."""

_NORMAL = NormalDist()
_JACKKNIFE_BLOCKS = 200


def units(n: int, groups: Groups) -> tuple[NDArray[np.intp], int]:
    """Which unit each picture is drawn with, shape (n,), and how many units there are.

    >>> units(4, ["a", None, "a", None])
    (array([0, 1, 0, 2]), 3)
    """
    if groups is None:
        return np.arange(n), n
    given = list(groups)
    if len(given) != n:
        raise UsageError(
            f"Expected `groups` to have {n} entries, got {len(given)}; do pass one per picture."
        )
    number: dict[Hashable, int] = {}
    names = ((None, i) if name is None else (name,) for i, name in enumerate(given))
    return np.asarray([number.setdefault(name, len(number)) for name in names]), len(number)


def resamples(
    codes: NDArray[np.intp], count: int, n_resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """Blocks of weights (B, n); the block size bounds memory and depends on nothing but n.

    >>> codes, count = units(3, ["a", "a", "b"])
    >>> next(resamples(codes, count, 2, np.random.default_rng(0)))
    array([[0., 0., 2.],
           [1., 1., 1.]])
    """
    step = max(32, 2**17 // len(codes))
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        picks = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(picks.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, codes].astype(np.float64)


def leave_outs(codes: NDArray[np.intp], count: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Weights (B, n) that leave out one unit each, or one of 200 random blocks of units.

    >>> next(leave_outs(np.arange(2), 2, np.random.default_rng(0))).sum(axis=1)
    array([1., 1.])
    """
    blocks = min(count, _JACKKNIFE_BLOCKS)
    block = (rng.permutation(count) % blocks)[codes]
    step = max(32, 2**17 // len(codes))
    for start in range(0, blocks, step):
        out = np.arange(start, min(start + step, blocks))
        yield (block != out[:, None]).astype(np.float64)


def evaluate(statistic: Statistic, blocks: Iterator[Floats], vectorized: bool) -> Floats:
    """The numbers of every row of weights, shape (rows, m).

    >>> evaluate(lambda weights: weights.sum(), iter([np.ones((2, 3))]), False)
    array([[3.],
           [3.]])
    """
    found = []
    for block in blocks:
        numbers = statistic(block) if vectorized else [statistic(row) for row in block]
        table = np.asarray(numbers, dtype=np.float64)
        if table.ndim not in {1, 2} or len(table) != len(block):
            raise UsageError(
                f"Expected `statistic` to give a number or a vector for each of {len(block)} "
                f"weightings, got shape {table.shape}; do reduce it, or leave `vectorized` out."
            )
        found.append(table.reshape(len(block), -1))
    return np.concatenate(found)


def bca_bounds(
    value: float, draws: Floats, without: Floats, count: int, level: float
) -> tuple[float, float]:
    """Bias-corrected and accelerated bounds from resampled and jackknifed numbers.

    >>> bca_bounds(1.0, np.ones(100), np.ones(10), 10, 0.95)
    (nan, nan)
    """
    kept = draws[~np.isnan(draws)]
    unknown = math.isnan(value) or 2 * len(kept) < len(draws)
    if unknown or np.ptp(kept) <= 1e-12 * np.abs(kept).max():
        return math.nan, math.nan
    below = float((kept < value).mean() + (kept == value).mean() / 2)
    edge = 1 / (len(kept) + 1)
    bias = _NORMAL.inv_cdf(min(max(below, edge), 1 - edge))
    influence = np.nanmean(without) - without[~np.isnan(without)]
    scale = float((influence**2).sum()) ** 1.5
    skew = float((influence**3).sum()) / scale / 6 if scale > 0 else 0.0
    wide = student_quantile(level, count - 1) * math.sqrt(count / (count - 1))
    at = []
    for side in (-wide, wide):
        shifted = bias + side
        at.append(_NORMAL.cdf(bias + shifted / max(1 - skew * shifted, 1e-9)))
    low, high = np.quantile(kept, at)
    if 0.16 < below < 0.84:
        return float(low), float(high)
    return _with_reflection(value, kept, (float(low), float(high)), level)


def _with_reflection(
    value: float, draws: Floats, bounds: tuple[float, float], level: float
) -> tuple[float, float]:
    """Bounds where resampling shifts a number by more than its spread, as with calibration error.

    BCa then looks in the far tail of the draws and can miss even the value itself; the basic
    interval, which reflects the draws at the value, is joined to it and held to [0, 1] if the
    draws are.
    """
    first, last = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    low, high = min(bounds[0], value, 2 * value - last), max(bounds[1], value, 2 * value - first)
    if draws.min() >= 0 and draws.max() <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return float(low), float(high)


def normal_quantile(level: float) -> float:
    """Two-sided quantile of the normal distribution.

    >>> round(normal_quantile(0.95), 4)
    1.96
    """
    return _NORMAL.inv_cdf((1 + level) / 2)


def student_quantile(level: float, freedom: float) -> float:
    """Two-sided quantile of Student's t.

    >>> round(student_quantile(0.95, 10), 3)
    2.228
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))
