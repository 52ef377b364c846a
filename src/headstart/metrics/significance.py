"""Whether one method is better than another, when both were run several times on the same data.

Runs are not independent: other seeds split the same images anew, or are judged on the same test
part. Each test here says which of the two it is for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import Difference, Groups, Interval, resamples, units

__all__ = [
    "Contrast",
    "corrected_resampled",
    "corrected_resampled_t",
    "hierarchical",
    "holm",
    "paired_bootstrap",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A mean, or a mean difference, with what is needed to judge it by Student's t.

    Parameters
    ----------
    value : float
    error : float
        Standard error; NaN or 0 where the data cannot tell.
    freedom : float
        Degrees of freedom.
    method : str

    Examples
    --------
    >>> print(Contrast(value=0.1, error=0.01, freedom=4, method="t").difference().interval)
    0.100 [0.072, 0.128]
    """

    value: float
    error: float
    freedom: float
    method: str

    @property
    def p_value(self) -> float:
        """Two-sided, of no difference; NaN where the data cannot tell."""
        from scipy.special import stdtr

        if not self.error > 0 or not self.freedom > 0:
            return math.nan
        return float(2 * stdtr(self.freedom, -abs(self.value) / self.error))

    def interval(self, level: float = 0.95) -> Interval:
        """The range that holds the truth; unknown where there is no spread to learn it from."""
        from scipy.special import stdtrit

        _check_level(level)
        half = math.nan
        if self.error > 0 and self.freedom > 0:
            half = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        low, high = self.value - half, self.value + half
        return Interval(value=self.value, low=low, high=high, level=level, method=self.method)

    def difference(self, level: float = 0.95) -> Difference:
        """The same as a difference; distinguishable where the interval leaves out 0."""
        found = self.interval(level)
        return Difference(interval=found, distinguishable=bool(found.low > 0 or found.high < 0))


def corrected_resampled(values: ArrayLike, *, test_share: float) -> Contrast:
    """Judge the mean over repeated splits of the same images (hold-out or k-fold).

    The variance of the mean is taken as ``(1 / r + test / train)`` times the variance between
    the splits, because their training parts overlap; the uncorrected one is far too small.

    Parameters
    ----------
    values : array, shape (r,)
        One number a split, such as the difference of two scores.
    test_share : float
        Share of all images that each split tests on, between 0 and 1; 1 / k for k folds.

    Returns
    -------
    Contrast
        With r - 1 degrees of freedom; its error is NaN for a single split.

    Raises
    ------
    UsageError
        If there is no number, or the share is none.

    References
    ----------
    Nadeau and Bengio (2003), "Inference for the generalization error", section 4.1;
    Bouckaert and Frank (2004), "Evaluating the replicability of significance tests for comparing
    learning algorithms", for repeated k-fold.

    Examples
    --------
    >>> found = corrected_resampled([0.1, 0.2, 0.1, 0.2, 0.1], test_share=0.2)
    >>> print(found.interval())
    0.140 [0.038, 0.242]
    """
    given = _finite("values", values, 1)
    if not 0 < test_share < 1:
        raise UsageError(f"Expected `test_share` to lie between 0 and 1, got {test_share}.")
    count = len(given)
    error = math.nan
    if count > 1:
        factor = 1 / count + test_share / (1 - test_share)
        error = math.sqrt(factor * _variance(given))
    return Contrast(
        value=float(given.mean()), error=error, freedom=count - 1, method="corrected-resampled-t"
    )


def corrected_resampled_t(
    differences: ArrayLike, *, test_share: float, level: float = 0.95
) -> Difference:
    """Judge differences over repeated splits; see `corrected_resampled`.

    >>> corrected_resampled_t([0.1, 0.2, 0.1, 0.2, 0.1], test_share=0.2).distinguishable
    True
    """
    return corrected_resampled(differences, test_share=test_share).difference(level)


def holm(p_values: ArrayLike) -> Floats:
    """Correct p-values for having looked at several of them.

    Parameters
    ----------
    p_values : array, shape (m,)
        NaN for what could not be tested; it stays NaN, and counts for nothing.

    Returns
    -------
    array, shape (m,)
        Reject where it is below the level: the chance of any false rejection is held to it.

    Raises
    ------
    UsageError
        If a number is not between 0 and 1.

    References
    ----------
    Holm (1979), "A simple sequentially rejective multiple test procedure".

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=np.float64)
    known = ~np.isnan(given)
    if given.ndim != 1 or (given[known] < 0).any() or (given[known] > 1).any():
        raise UsageError("Expected `p_values` to be numbers from 0 to 1, of shape (m,).")
    found = given.copy()
    order = np.flatnonzero(known)[np.argsort(given[known], kind="stable")]
    steps = given[order] * (len(order) - np.arange(len(order)))
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return found


def hierarchical(values: ArrayLike, draws: ArrayLike, *, units: int) -> Contrast:
    """Judge the mean over seeds that were all tested on the same images.

    Images were drawn anew for ``draws``; that seeds would be drawn anew too is added in closed
    form, each part with its own degrees of freedom (Satterthwaite), since a handful of seeds
    drawn again would understate how much seeds differ.

    Parameters
    ----------
    values : array, shape (s,)
        A number of every seed, such as the difference of two scores.
    draws : array, shape (s, b)
        The same on resampled images, the same resamples for all seeds; NaN where undefined.
    units : int
        How many images (or groups) there are to draw.

    Returns
    -------
    Contrast
        With one seed it speaks of that seed alone.

    Raises
    ------
    UsageError
        If the shapes do not fit.

    References
    ----------
    Bouthillier et al. (2021), "Accounting for variance in machine learning benchmarks";
    Satterthwaite (1946), "An approximate distribution of estimates of variance components".

    Examples
    --------
    >>> found = hierarchical([0.1, 0.2], [[0.0, 0.1, 0.2], [0.1, 0.2, 0.3]], units=3)
    >>> round(found.value, 2), round(found.error, 3)
    (0.15, 0.132)
    """
    given, table = _finite("values", values, 1), np.asarray(draws, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(given):
        raise UsageError(
            f"Expected `draws` of shape ({len(given)}, b), as there are seeds, got {table.shape}."
        )
    seeds = len(given)
    means = table.mean(axis=0)
    means = means[~np.isnan(means)]
    known = len(means) > 1 and 2 * len(means) >= table.shape[1] and units > 1
    # the bootstrap's variance is short by this factor (Efron and Tibshirani 1993, section 5.3)
    images = _variance(means) * units / (units - 1) if known else math.nan
    between = _variance(given) / seeds if seeds > 1 else 0.0
    total = images + between
    parts = images**2 / max(units - 1, 1) + between**2 / max(seeds - 1, 1)
    return Contrast(
        value=float(given.mean()),
        error=math.sqrt(total) if total > 0 else math.nan,
        freedom=total**2 / parts if parts > 0 else math.nan,
        method="bootstrap-seeds-and-images" if seeds > 1 else "bootstrap-images",
    )


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: Groups = None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Judge the mean difference of two methods, seeds x images, on one test part.

    Parameters
    ----------
    first, second : arrays, shape (s, n)
        What each seed's model scores on each image, such as right or wrong.
    groups : n hashables, optional
        Whole groups are drawn.
    level : float
    n_resamples : int
        At least 100.
    seed : int
        Of the resamples.

    Returns
    -------
    Difference
        See `hierarchical`. Never distinguishable where fewer than six images (or groups)
        differ: a sign test could not say so.

    Raises
    ------
    UsageError
        If the shapes do not fit.

    Examples
    --------
    >>> a = np.tile(np.arange(50) < 45, (3, 1))
    >>> b = np.tile(np.arange(50) < 30, (3, 1))
    >>> paired_bootstrap(a, b).distinguishable
    True
    """
    one, two = _finite("first", first, 2), _finite("second", second, 2)
    if one.shape != two.shape:
        raise UsageError(f"Expected `second` of shape {one.shape}, as `first`, got {two.shape}.")
    if n_resamples < 100:
        raise UsageError(f"Expected `n_resamples` of at least 100, got {n_resamples}.")
    gaps = one - two
    codes, count = units(gaps.shape[1], groups)
    rng = np.random.default_rng(seed)
    blocks = [
        weights @ gaps.T / weights.sum(axis=1, keepdims=True)
        for weights in resamples(codes, count, n_resamples, rng)
    ]
    draws = np.concatenate(blocks).T
    found = hierarchical(gaps.mean(axis=1), draws, units=count).difference(level)
    differ = int((np.bincount(codes, weights=np.abs(gaps).sum(axis=0)) > 0).sum())
    enough = 2 * 0.5**differ < 1 - level
    return Difference(
        interval=found.interval, distinguishable=bool(found.distinguishable and enough)
    )


def _variance(values: Floats) -> float:
    """With n - 1; exactly 0 for equal numbers, which rounding would hide."""
    return float(values.var(ddof=1)) if np.ptp(values) > 1e-12 else 0.0


def _finite(name: str, values: ArrayLike, ndim: int) -> Floats:
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != ndim or given.size == 0 or not np.isfinite(given).all():
        raise UsageError(
            f"Expected `{name}` to be finite numbers in {ndim} dimension(s), got shape "
            f"{given.shape}; do leave out what has no score."
        )
    return given


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(f"Expected `level` to lie between 0 and 1, got {level}; do pass 0.95.")
