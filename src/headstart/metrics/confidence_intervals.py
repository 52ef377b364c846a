"""Confidence intervals: score intervals of proportions and bootstrap intervals of any metric.

Images of one group (a patient, a video) are not independent: resampling draws whole groups, and
score intervals count an effective number of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError
from headstart.metrics.validation import to_jsonable

__all__ = [
    "Difference",
    "Floats",
    "Groups",
    "Interval",
    "Statistic",
    "apply_statistic",
    "bca_bounds",
    "bootstrap_intervals",
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
"""Function of weights (n,), how often each image counts, that returns a number or a vector."""

_NORMAL = NormalDist()
_JACKKNIFE_BLOCKS = 200


def units(n: int, groups: Groups) -> tuple[NDArray[np.intp], int]:
    """Number the units of resampling: each image's unit, shape (n,), and the number of units.

    A unit is a group of images, or one image without a group.

    >>> units(4, ["a", None, "a", None])
    (array([0, 1, 0, 2]), 3)
    """
    if groups is None:
        return np.arange(n), n
    labels = list(groups)
    if len(labels) != n:
        raise UsageError(
            f"Expected `groups` to have {n} entries, got {len(labels)}. Pass one per image."
        )
    codes: dict[Hashable, int] = {}
    # Tuples keep an image without a group apart from a group with the same name.
    names = ((None, i) if label is None else (label,) for i, label in enumerate(labels))
    return np.asarray([codes.setdefault(name, len(codes)) for name in names]), len(codes)


def resamples(
    codes: NDArray[np.intp], count: int, n_resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """Draw bootstrap resamples as blocks of weights (B, n). The block size depends on n only.

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
    """Jackknife: weights (B, n) that leave out one unit each, or one of 200 blocks of units.

    >>> next(leave_outs(np.arange(2), 2, np.random.default_rng(0))).sum(axis=1)
    array([1., 1.])
    """
    blocks = min(count, _JACKKNIFE_BLOCKS)
    block = (rng.permutation(count) % blocks)[codes]
    step = max(32, 2**17 // len(codes))
    for start in range(0, blocks, step):
        left_out = np.arange(start, min(start + step, blocks))
        yield (block != left_out[:, None]).astype(np.float64)


def apply_statistic(statistic: Statistic, blocks: Iterator[Floats], vectorized: bool) -> Floats:
    """Compute the statistic for each row of weights, shape (rows, m).

    >>> apply_statistic(lambda weights: weights.sum(), iter([np.ones((2, 3))]), False)
    array([[3.],
           [3.]])
    """
    tables = []
    for block in blocks:
        numbers = statistic(block) if vectorized else [statistic(row) for row in block]
        table = np.asarray(numbers, dtype=np.float64)
        if table.ndim not in {1, 2} or len(table) != len(block):
            raise UsageError(
                f"Expected `statistic` to give a number or a vector for each of {len(block)} "
                f"weightings, got shape {table.shape}. Return that, or omit `vectorized`."
            )
        tables.append(table.reshape(len(block), -1))
    return np.concatenate(tables)


def bca_bounds(
    value: float, draws: Floats, jackknife: Floats, count: int, level: float
) -> tuple[float, float]:
    """Bias-corrected and accelerated bounds from resampled and jackknifed values.

    >>> bca_bounds(1.0, np.ones(100), np.ones(10), 10, 0.95)
    (nan, nan)
    """
    defined = draws[~np.isnan(draws)]
    unknown = math.isnan(value) or 2 * len(defined) < len(draws)
    if unknown or np.ptp(defined) <= 1e-12 * np.abs(defined).max():
        return math.nan, math.nan
    below = float((defined < value).mean() + (defined == value).mean() / 2)
    edge = 1 / (len(defined) + 1)
    bias = _NORMAL.inv_cdf(min(max(below, edge), 1 - edge))
    influence = np.nanmean(jackknife) - jackknife[~np.isnan(jackknife)]
    scale = float((influence**2).sum()) ** 1.5
    skew = float((influence**3).sum()) / scale / 6 if scale > 0 else 0.0
    half_width = student_quantile(level, count - 1) * math.sqrt(count / (count - 1))
    shares = []
    for side in (-half_width, half_width):
        shifted = bias + side
        shares.append(_NORMAL.cdf(bias + shifted / max(1 - skew * shifted, 1e-9)))
    low, high = np.quantile(defined, shares)
    if 0.16 < below < 0.84:
        return float(low), float(high)
    return _with_reflection(value, defined, (float(low), float(high)), level)


def _with_reflection(
    value: float, draws: Floats, bounds: tuple[float, float], level: float
) -> tuple[float, float]:
    """Widen the bounds where resampling shifts a value by more than its spread.

    This happens with the calibration error. BCa then uses the far tail of the draws and can miss
    the value itself. The basic interval, which reflects the draws at the value, is added, and
    clipped to [0, 1] if all draws lie there.
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
    """Value with a confidence interval, which contains the true value in ``level`` of data sets.

    Parameters
    ----------
    value, low, high : float
        NaN bounds mean that the data do not allow an interval.
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
        """Return the fields as JSON values: NaN becomes None.

        Examples
        --------
        >>> wilson_interval(0, 0).as_dict()["low"] is None
        True
        """
        values: dict[str, float | str | None] = to_jsonable(self)
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """First value minus the second, on the same images.

    Parameters
    ----------
    interval : Interval
    significant : bool
        Whether the interval excludes 0 and enough units differ (six at 95 %) for a sign test to
        be significant. False if the data do not allow an interval.

    Examples
    --------
    >>> a, b = np.arange(50) < 45, np.arange(50) < 44
    >>> paired_proportion_difference(a, b).significant
    False
    """

    interval: Interval
    significant: bool


def wilson_interval(successes: float, total: float, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion. Counts may be fractions (effective sample sizes).

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
            f"Expected 0 <= `successes` <= `total`, got {successes} of {total}. Pass counts, not "
            "shares."
        )
    if total == 0:
        return _unknown_interval(math.nan, level, "wilson")
    p, z = successes / total, normal_quantile(level)
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + (z / total) ** 2 / 4)
    # At p = 0 and p = 1 the exact bound is p itself. Rounding must not move it.
    low = 0.0 if p == 0 else min(max(centre - half, 0.0), p)
    high = 1.0 if p == 1 else max(min(centre + half, 1.0), p)
    return Interval(value=p, low=low, high=high, level=level, method="wilson")


def proportion_interval(
    correct: ArrayLike, groups: Groups = None, *, level: float = 0.95
) -> Interval:
    """Interval of a share of images (accuracy, recall, precision), also if all are correct.

    Wilson's interval. With groups, ``n`` is replaced by the effective number of images: the
    number of independent images that would give the share with the same variance. It is ``n`` at
    most, and at least the number for images that are equal within each group.

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
    of positive counts estimated from survey data"; here the design effect is moved towards its
    largest value if there are few errors to estimate it from.

    Examples
    --------
    >>> print(proportion_interval([True] * 20))
    1.000 [0.839, 1.000]
    >>> print(proportion_interval([True] * 20, groups=[0] * 10 + [1] * 10))
    1.000 [0.342, 1.000]
    """
    right = _boolean_array("correct", correct)
    if groups is None or right.size == 0:
        return wilson_interval(float(right.sum()), float(right.size), level)
    codes, _ = units(right.size, groups)
    mistakes = min(float(right.sum()), float((~right).sum()))
    size = _effective_size(right.astype(np.float64), codes, mistakes, level)
    interval = wilson_interval(float(right.mean()) * size, size, level)
    return Interval(**{**asdict(interval), "method": "wilson-clustered"})


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
    """Bootstrap intervals of a number or of a vector of numbers, all from the same resamples.

    Bias-corrected and accelerated (BCa), widened for small samples by Hesterberg's rule. A
    resample on which a number is NaN is ignored for that number. If resampling shifts a number
    by more than its spread (as for the calibration error), the reflected interval is added, and
    the coverage is below the level; see docs/intervals.md.

    Parameters
    ----------
    statistic : callable
        Takes weights of shape (n,), how often each image counts, and returns a number or a
        vector. With ``vectorized`` it takes (B, n) and returns (B,) or (B, m), which is faster;
        the functions of `headstart.metrics` support both.
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
        One for each number. Bounds are NaN if more than half of the resamples give NaN, if there
        are fewer than two units to draw, or if all resamples give the same number: an interval
        of width 0 would claim too much certainty.

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
            f"{n_resamples}. Pass larger numbers."
        )
    codes, count = units(n, groups)
    method = "bootstrap-bca" if groups is None else "bootstrap-bca-clustered"
    value = apply_statistic(statistic, iter([np.ones((1, n))]), vectorized)[0]
    if count < 2:
        return tuple(_unknown_interval(float(number), level, method) for number in value)
    rng = np.random.default_rng(seed)
    resampled = apply_statistic(statistic, resamples(codes, count, n_resamples, rng), vectorized)
    left_out = apply_statistic(statistic, leave_outs(codes, count, rng), vectorized)
    intervals = []
    for number, draws, jackknife in zip(value, resampled.T, left_out.T, strict=True):
        low, high = bca_bounds(float(number), draws, jackknife, count, level)
        intervals.append(
            Interval(value=float(number), low=low, high=high, level=level, method=method)
        )
    return tuple(intervals)


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
    """Numbers of A minus those of B, both from the same resamples of the same images.

    Arguments and errors are those of `bootstrap_intervals`. With up to a hundred images BCa calls
    too many equal models different. The interval therefore also contains that of the jackknife
    with Student's quantile (Efron and Tibshirani 1993, section 11.5).

    Examples
    --------
    >>> a, b = np.arange(10.0), np.arange(10.0) - np.tile([1.0, 2.0], 5)
    >>> mean = lambda values: lambda weights: weights @ values / weights.sum()
    >>> paired_differences(mean(a), mean(b), 10)[0].significant
    True
    """

    def difference(weights: Floats) -> Floats:
        return np.asarray(np.asarray(statistic_a(weights)) - np.asarray(statistic_b(weights)))

    intervals = bootstrap_intervals(
        difference,
        n,
        groups=groups,
        level=level,
        n_resamples=n_resamples,
        seed=seed,
        vectorized=vectorized,
    )
    codes, count = units(n, groups)
    if count < 2:
        return tuple(_difference(interval, count) for interval in intervals)
    blocks = leave_outs(codes, count, np.random.default_rng(seed))
    left_out = apply_statistic(difference, blocks, vectorized)
    return tuple(
        _difference(_with_jackknife(interval, values), count)
        for interval, values in zip(intervals, left_out.T, strict=True)
    )


def _with_jackknife(interval: Interval, left_out: Floats) -> Interval:
    """Widen an interval until it contains the jackknife's, from values without one block each."""
    defined = left_out[~np.isnan(left_out)]
    if len(defined) < 2 or math.isnan(interval.low):
        return interval
    blocks = len(defined)
    error = math.sqrt((blocks - 1) ** 2 / blocks * float(defined.var(ddof=1)))
    half = student_quantile(interval.level, blocks - 1) * error
    low, high = min(interval.low, interval.value - half), max(interval.high, interval.value + half)
    return replace(interval, low=low, high=high)


def paired_proportion_difference(
    correct_a: ArrayLike, correct_b: ArrayLike, groups: Groups = None, *, level: float = 0.95
) -> Difference:
    """Share of A minus that of B, such as two accuracies on the same images.

    Newcombe's hybrid score interval for paired data. It uses how often A and B agree, and its
    width is never 0, even if they always agree or one is always correct. Groups count as in
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
    a, b = _boolean_array("correct_a", correct_a), _boolean_array("correct_b", correct_b)
    if a.shape != b.shape:
        raise UsageError(
            f"Expected `correct_b` to have the shape of `correct_a`, {a.shape}, got {b.shape}. "
            "Pass the predictions of both models for the same images."
        )
    method = "newcombe-paired" if groups is None else "newcombe-paired-clustered"
    if a.size == 0:
        return _difference(_unknown_interval(math.nan, level, method), 0)
    size = float(a.size)
    n_differing = float((a != b).sum())
    if groups is not None:
        codes, _ = units(a.size, groups)
        size = _effective_size(a.astype(np.float64) - b, codes, n_differing, level)
    first = wilson_interval(float(a.mean()) * size, size, level)
    second = wilson_interval(float(b.mean()) * size, size, level)
    spread = math.sqrt(first.value * (1 - first.value) * second.value * (1 - second.value))
    covariance = float((a & b).mean()) - first.value * second.value
    if covariance > 0:  # Newcombe's correction for continuity keeps the width above 0
        covariance = max(covariance - 1 / (2 * size), 0.0)
    phi = covariance / spread if spread > 0 else 0.0
    gap = first.value - second.value
    down = _combine_errors(first.value - first.low, second.high - second.value, phi)
    up = _combine_errors(first.high - first.value, second.value - second.low, phi)
    interval = Interval(value=gap, low=gap - down, high=gap + up, level=level, method=method)
    return _difference(interval, n_differing * size / a.size)


def _difference(interval: Interval, n_differing: float) -> Difference:
    """Test a difference: few images that differ are never significant.

    If all of them favour the same model, a sign test gives p = 2 / 2**n_differing.
    """
    excludes_zero = interval.low > 0 or interval.high < 0
    sign_test_passes = 2 * 0.5**n_differing < 1 - interval.level
    return Difference(interval=interval, significant=bool(excludes_zero and sign_test_passes))


def _combine_errors(first: float, second: float, correlation: float) -> float:
    return math.sqrt(max(first**2 - 2 * correlation * first * second + second**2, 0.0))


def _effective_size(values: Floats, codes: NDArray[np.intp], events: float, level: float) -> float:
    """Number of independent images that would give the mean of ``values`` the same variance."""
    n, sizes = len(values), np.bincount(codes)
    smallest = n**2 / float((sizes**2).sum())  # for values that are equal within groups (Kish)
    count, variance = len(sizes), float(values.var())
    largest_effect = n / smallest
    design_effect = largest_effect
    if count > 1 and variance > 0:
        totals = np.bincount(codes, weights=values) - sizes * values.mean()
        between = count / (count - 1) * float((totals**2).sum()) / n**2
        ratio = (student_quantile(level, count - 1) / normal_quantile(level)) ** 2
        # Few events give a poor estimate of the clustering: two events of the worst case are
        # added.
        estimate = ratio * between / (variance / n)
        design_effect = (events * estimate + 2 * largest_effect) / (events + 2)
    return n / min(max(design_effect, 1.0), largest_effect)


def _unknown_interval(value: float, level: float, method: str) -> Interval:
    return Interval(value=value, low=math.nan, high=math.nan, level=level, method=method)


def _boolean_array(name: str, values: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind != "b"):
        raise UsageError(
            f"Expected `{name}` to be booleans of shape (n,), got {array.dtype} of shape "
            f"{array.shape}. Pass predicted == target."
        )
    return array.astype(np.bool_)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(
            f"Expected `level` to lie between 0 and 1, got {level}. Pass 0.95 for 95 %."
        )
