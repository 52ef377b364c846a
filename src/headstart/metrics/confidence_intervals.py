"""Resampling images: the draws and the bounds that intervals are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError

__all__ = [
    "Difference",
    "Floats",
    "Groups",
    "Interval",
    "Statistic",
    "bca_bounds",
    "bootstrap_intervals",
    "evaluate",
    "leave_outs",
    "normal_quantile",
    "paired_differences",
    "paired_proportion_difference",
    "proportion_interval",
    "resamples",
    "student_quantile",
    "units",
    "wilson_interval",
]

Floats = NDArray[np.float64]
Groups = Iterable[Hashable] | None
Statistic = Callable[[Floats], ArrayLike]
"""From weights (n,), how often each image counts, to a number or a vector of numbers."""

_NORMAL = NormalDist()
_JACKKNIFE_BLOCKS = 200


def units(n: int, groups: Groups) -> tuple[NDArray[np.intp], int]:
    """Which unit each image is drawn with, shape (n,), and how many units there are.

    >>> units(4, ["a", None, "a", None])
    (array([0, 1, 0, 2]), 3)
    """
    if groups is None:
        return np.arange(n), n
    given = list(groups)
    if len(given) != n:
        raise UsageError(
            f"Expected `groups` to have {n} entries, got {len(given)}; do pass one per image."
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number and the range that holds the truth in ``level`` of all data sets.

    Parameters
    ----------
    value, low, high : float
        NaN bounds mean that the data cannot tell.
    level : float
    method : str

    Examples
    --------
    >>> print(Interval(value=0.871, low=0.842, high=0.897, method="wilson"))
    0.871 [0.842, 0.897]
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    method: str

    def __str__(self) -> str:
        if math.isnan(self.low) or math.isnan(self.high):
            return "undefined" if math.isnan(self.value) else f"{self.value:.3f} [unknown]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float | str | None]:
        """The fields, ready for JSON: NaN becomes None.

        Examples
        --------
        >>> wilson_interval(0, 0).as_dict()["low"] is None
        True
        """
        fields: dict[str, float | str] = asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in fields.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first less the second, on the same images.

    Parameters
    ----------
    interval : Interval
    distinguishable : bool
        Whether the interval leaves out 0 and there are enough units (at 95 % six) for a sign
        test to be able to say so; False where the data cannot tell.

    Examples
    --------
    >>> a, b = np.arange(50) < 45, np.arange(50) < 44
    >>> paired_proportion_difference(a, b).distinguishable
    False
    """

    interval: Interval
    distinguishable: bool


def wilson_interval(successes: float, total: float, level: float = 0.95) -> Interval:
    """Score interval of a proportion; counts may be fractions (effective sample sizes).

    Returns
    -------
    Interval
        Within [0, 1], never of width 0; NaN if ``total`` is 0.

    Raises
    ------
    UsageError
        Unless 0 <= successes <= total and 0 < level < 1.

    References
    ----------
    Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    Examples
    --------
    >>> print(wilson_interval(10, 10))
    1.000 [0.722, 1.000]
    """
    _check_level(level)
    if not 0 <= successes <= total < math.inf:
        raise UsageError(
            f"Expected 0 <= `successes` <= `total`, got {successes} of {total}; do pass counts."
        )
    if total == 0:
        return _unknown(math.nan, level, "wilson")
    p, z = successes / total, normal_quantile(level)
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + (z / total) ** 2 / 4)
    # at the ends the exact bound is the end itself; rounding must not cut it off
    low = 0.0 if p == 0 else min(max(centre - half, 0.0), p)
    high = 1.0 if p == 1 else max(min(centre + half, 1.0), p)
    return Interval(value=p, low=low, high=high, level=level, method="wilson")


def proportion_interval(
    correct: ArrayLike, groups: Groups = None, *, level: float = 0.95
) -> Interval:
    """Interval of a share of images (accuracy, recall, precision), also when all are right.

    Wilson's interval; with groups, for the number of independent images that would know the
    share as well as these do (``n`` at most, and never less than if each group said one thing).

    Parameters
    ----------
    correct : array of bool, shape (n,)
    groups : n hashables, optional
        An image whose group is None is a group of its own.
    level : float

    Returns
    -------
    Interval
        NaN where ``correct`` is empty.

    References
    ----------
    Korn and Graubard (1998), "Confidence intervals for proportions with small expected number
    of positive counts estimated from survey data"; here the design effect is held towards its
    largest value while there are few errors to estimate it from.

    Examples
    --------
    >>> print(proportion_interval([True] * 20))
    1.000 [0.839, 1.000]
    >>> print(proportion_interval([True] * 20, groups=[0] * 10 + [1] * 10))
    1.000 [0.342, 1.000]
    """
    right = _booleans("correct", correct)
    if groups is None or right.size == 0:
        return wilson_interval(float(right.sum()), float(right.size), level)
    codes, _ = units(right.size, groups)
    mistakes = min(float(right.sum()), float((~right).sum()))
    size = _effective_size(right.astype(np.float64), codes, mistakes, level)
    found = wilson_interval(float(right.mean()) * size, size, level)
    return Interval(**{**asdict(found), "method": "wilson-clustered"})


def bootstrap_intervals(
    statistic: Statistic,
    n: int,
    *,
    groups: Groups = None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    vectorized: bool = False,
) -> tuple[Interval, ...]:
    """Intervals of a number or of a vector of numbers, all from the same resamples.

    Bias-corrected and accelerated (BCa), with the level widened for small samples by
    Hesterberg's rule. Resamples on which a number is NaN are left out for that number. Where
    resampling itself shifts a number by more than its spread (calibration error does that),
    the reflected interval is joined, and coverage is below the level; see docs/intervals.md.

    Parameters
    ----------
    statistic : callable
        Takes weights of shape (n,), how often each image counts, and gives a number or a
        vector. With ``vectorized`` it takes (B, n) and gives (B,) or (B, m), which is faster;
        the functions of `headstart.metrics` do both.
    n : int
        Number of images.
    groups : n hashables, optional
        Whole groups are drawn; an image whose group is None is a group of its own.
    level : float
    n_resamples : int
        At least 100.
    seed : int
    vectorized : bool

    Returns
    -------
    tuple of Interval
        One for each number. Bounds are NaN where more than half of the resamples have no
        number, where there are fewer than two units to draw, and where no resample differs
        from the others: a range of width 0 would claim a certainty that nobody has.

    References
    ----------
    Efron (1987), "Better bootstrap confidence intervals", eq. 2.3; Hesterberg (2015), "What
    teachers should know about the bootstrap", section 5.2.

    Examples
    --------
    >>> loss = np.arange(20.0).reshape(10, 2)
    >>> mean = lambda weights: weights @ loss / weights.sum()
    >>> [str(interval) for interval in bootstrap_intervals(mean, 10)]
    ['9.000 [4.800, 13.026]', '10.000 [5.800, 14.026]']
    """
    _check_level(level)
    if n < 1 or n_resamples < 100:
        raise UsageError(
            f"Expected `n` of at least 1 and `n_resamples` of at least 100, got {n} and "
            f"{n_resamples}; do pass more."
        )
    codes, count = units(n, groups)
    method = "bootstrap-bca" if groups is None else "bootstrap-bca-clustered"
    value = evaluate(statistic, iter([np.ones((1, n))]), vectorized)[0]
    if count < 2:
        return tuple(_unknown(float(number), level, method) for number in value)
    rng = np.random.default_rng(seed)
    drawn = evaluate(statistic, resamples(codes, count, n_resamples, rng), vectorized)
    left_out = evaluate(statistic, leave_outs(codes, count, rng), vectorized)
    found = []
    for number, draws, without in zip(value, drawn.T, left_out.T, strict=True):
        low, high = bca_bounds(float(number), draws, without, count, level)
        found.append(Interval(value=float(number), low=low, high=high, level=level, method=method))
    return tuple(found)


def paired_differences(
    statistic_a: Statistic,
    statistic_b: Statistic,
    n: int,
    *,
    groups: Groups = None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    vectorized: bool = False,
) -> tuple[Difference, ...]:
    """Numbers of A less those of B, both from the same resamples of the same images.

    Arguments and failures are those of `bootstrap_intervals`.

    Examples
    --------
    >>> a, b = np.arange(10.0), np.arange(10.0) - np.tile([1.0, 2.0], 5)
    >>> mean = lambda values: lambda weights: weights @ values / weights.sum()
    >>> paired_differences(mean(a), mean(b), 10)[0].distinguishable
    True
    """
    found = bootstrap_intervals(
        lambda weights: np.asarray(statistic_a(weights)) - np.asarray(statistic_b(weights)),
        n,
        groups=groups,
        level=level,
        n_resamples=n_resamples,
        seed=seed,
        vectorized=vectorized,
    )
    _, count = units(n, groups)
    return tuple(_difference(interval, count) for interval in found)


def paired_proportion_difference(
    correct_a: ArrayLike, correct_b: ArrayLike, groups: Groups = None, *, level: float = 0.95
) -> Difference:
    """Share of A less that of B, such as two accuracies on the same images.

    Newcombe's hybrid score interval for paired data: it uses how often the two agree, and it
    has a width even when they always agree or one is always right. Groups count as in
    `proportion_interval`.

    Parameters
    ----------
    correct_a, correct_b : array of bool, shape (n,)
    groups : n hashables, optional
    level : float

    Returns
    -------
    Difference
        Within [-1, 1]; NaN where there are no images.

    References
    ----------
    Newcombe (1998), "Improved confidence intervals for the difference between binomial
    proportions based on paired data", method 10.

    Examples
    --------
    >>> a, b = np.arange(50) < 45, np.arange(50) < 30
    >>> print(paired_proportion_difference(a, b).interval)
    0.300 [0.163, 0.430]
    """
    a, b = _booleans("correct_a", correct_a), _booleans("correct_b", correct_b)
    if a.shape != b.shape:
        raise UsageError(
            f"Expected `correct_b` to have the shape of `correct_a`, {a.shape}, got {b.shape}; do "
            "pass both models' answers to the same images."
        )
    method = "newcombe-paired" if groups is None else "newcombe-paired-clustered"
    if a.size == 0:
        return _difference(_unknown(math.nan, level, method), 0)
    size = float(a.size)
    differ = float((a != b).sum())
    if groups is not None:
        codes, _ = units(a.size, groups)
        size = _effective_size(a.astype(np.float64) - b, codes, differ, level)
    one = wilson_interval(float(a.mean()) * size, size, level)
    two = wilson_interval(float(b.mean()) * size, size, level)
    spread = math.sqrt(one.value * (1 - one.value) * two.value * (1 - two.value))
    shared = float((a & b).mean()) - one.value * two.value
    if shared > 0:  # Newcombe's correction for continuity keeps the width above 0
        shared = max(shared - 1 / (2 * size), 0.0)
    phi = shared / spread if spread > 0 else 0.0
    gap = one.value - two.value
    down = _joined(one.value - one.low, two.high - two.value, phi)
    up = _joined(one.high - one.value, two.value - two.low, phi)
    found = Interval(value=gap, low=gap - down, high=gap + up, level=level, method=method)
    return _difference(found, differ * size / a.size)


def _difference(interval: Interval, witnesses: float) -> Difference:
    """With few witnesses even unanimity is chance: a sign test gives 2 / 2**witnesses."""
    away = interval.low > 0 or interval.high < 0
    enough = 2 * 0.5**witnesses < 1 - interval.level
    return Difference(interval=interval, distinguishable=bool(away and enough))


def _joined(one: float, two: float, correlation: float) -> float:
    return math.sqrt(max(one**2 - 2 * correlation * one * two + two**2, 0.0))


def _effective_size(values: Floats, codes: NDArray[np.intp], events: float, level: float) -> float:
    """Number of independent images that would know the mean of ``values`` as well."""
    n, sizes = len(values), np.bincount(codes)
    fewest = n**2 / float((sizes**2).sum())  # as if each group said one thing (Kish)
    count, spread = len(sizes), float(values.var())
    worst = n / fewest
    design = worst
    if count > 1 and spread > 0:
        totals = np.bincount(codes, weights=values) - sizes * values.mean()
        between = count / (count - 1) * float((totals**2).sum()) / n**2
        ratio = (student_quantile(level, count - 1) / normal_quantile(level)) ** 2
        # few events say little about how they cluster: two more of the worst kind are added
        design = (events * ratio * between / (spread / n) + 2 * worst) / (events + 2)
    return n / min(max(design, 1.0), worst)


def _unknown(value: float, level: float, method: str) -> Interval:
    return Interval(value=value, low=math.nan, high=math.nan, level=level, method=method)


def _booleans(name: str, values: ArrayLike) -> NDArray[np.bool_]:
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind != "b"):
        raise UsageError(
            f"Expected `{name}` to be booleans of shape (n,), got {given.dtype} of shape "
            f"{given.shape}; do pass predicted == target."
        )
    return given.astype(np.bool_)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(
            f"Expected `level` to lie between 0 and 1, got {level}; do pass 0.95 for 95 %."
        )
