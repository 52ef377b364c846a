"""Significance tests for methods that were run several times on the same data.

Such runs are not independent: different seeds split the same images again, or share one test set.
`corrected_resampled` is for repeated splits, `hierarchical` for one test set.
`controlled_difference` compares a method that was scored on some images with one that was scored
on all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import Difference, Groups, Interval, units

__all__ = [
    "Contrast",
    "controlled_difference",
    "corrected_resampled",
    "hierarchical",
    "holm",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Mean or mean difference with its standard error, for a t-test.

    Parameters
    ----------
    value : float
    error : float
        Standard error; NaN or 0 if the data do not allow a test.
    freedom : float
        Degrees of freedom.
    method : str
    parts : tuple of (variance, freedom)
        Parts of the squared error, if each has its own degrees of freedom. The half width of an
        interval is then the root of the sum of variance x t(freedom)^2: with two seeds that agree
        by chance, a common freedom would claim too much.

    Examples
    --------
    >>> print(Contrast(value=0.1, error=0.01, freedom=4, method="t").difference().interval)
    0.100 [0.072, 0.128]
    """

    value: float
    error: float
    freedom: float
    method: str
    parts: tuple[tuple[float, float], ...] = ()

    @property
    def p_value(self) -> float:
        """Two-sided p-value of no difference; NaN if the data do not allow a test."""
        from scipy.special import stdtr

        if not self.error > 0 or not self.freedom > 0:
            return math.nan
        if len(self.parts) > 1 and self.value:
            return self._p_value_of_parts()
        return float(2 * stdtr(self.freedom, -abs(self.value) / self.error))

    def _p_value_of_parts(self) -> float:
        """1 minus the level at which the interval ends at 0, by bisection of its logarithm."""
        low, high = -700.0, 0.0
        for _ in range(60):
            middle = (low + high) / 2
            if self._half_width(math.exp(middle)) > abs(self.value):
                low = middle
            else:
                high = middle
        return math.exp((low + high) / 2)

    def _half_width(self, p_value: float) -> float:
        """Half width of the interval of level 1 - ``p_value``."""
        from scipy.special import stdtrit

        parts = self.parts or ((self.error**2, self.freedom),)
        squares = (variance * stdtrit(freedom, p_value / 2) ** 2 for variance, freedom in parts)
        return math.sqrt(math.fsum(squares))

    def interval(self, level: float = 0.95) -> Interval:
        """Compute the confidence interval; its bounds are NaN without a standard error."""
        _check_level(level)
        half = math.nan
        if self.error > 0 and self.freedom > 0:
            half = self._half_width(1 - level)
        low, high = self.value - half, self.value + half
        return Interval(value=self.value, low=low, high=high, level=level, method=self.method)

    def difference(self, level: float = 0.95) -> Difference:
        """Return the difference, which is significant if the interval excludes 0."""
        interval = self.interval(level)
        return Difference(
            interval=interval, significant=bool(interval.low > 0 or interval.high < 0)
        )


def corrected_resampled(values: ArrayLike, *, test_share: float) -> Contrast:
    """Test the mean over repeated splits of the same images (hold-out or k-fold).

    The variance of the mean is ``(1 / r + test / train)`` times the variance between the splits,
    because the training sets overlap. The uncorrected variance is far too small.

    Parameters
    ----------
    values : array, shape (r,)
        One number for each split, such as the difference of two scores.
    test_share : float
        Share of all images that each split tests on, between 0 and 1; 1 / k for k folds.

    Returns
    -------
    Contrast
        With r - 1 degrees of freedom; its error is NaN for a single split.

    Raises
    ------
    UsageError
        If there is no number, or ``test_share`` is not between 0 and 1.

    References
    ----------
    Nadeau and Bengio (2003), "Inference for the generalization error", section 4.1;
    Bouckaert and Frank (2004), "Evaluating the replicability of significance tests for comparing
    learning algorithms", for repeated k-fold.

    Examples
    --------
    >>> contrast = corrected_resampled([0.1, 0.2, 0.1, 0.2, 0.1], test_share=0.2)
    >>> print(contrast.interval())
    0.140 [0.038, 0.242]
    """
    numbers = _check_finite("values", values, 1)
    if not 0 < test_share < 1:
        raise UsageError(
            f"`test_share` must lie between 0 and 1, got {test_share}. Pass 0.2 for 5 folds."
        )
    count = len(numbers)
    error = math.nan
    if count > 1:
        factor = 1 / count + test_share / (1 - test_share)
        error = math.sqrt(factor * _variance(numbers))
    return Contrast(
        value=float(numbers.mean()), error=error, freedom=count - 1, method="corrected-resampled-t"
    )


def holm(p_values: ArrayLike) -> Floats:
    """Correct p-values for multiple tests.

    Parameters
    ----------
    p_values : array, shape (m,)
        NaN for missing tests. They stay NaN and do not count.

    Returns
    -------
    array, shape (m,)
        Reject where it is below the level. The probability of any false rejection is then at
        most the level.

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
    p_array = np.asarray(p_values, dtype=np.float64)
    defined = ~np.isnan(p_array)
    if p_array.ndim != 1 or (p_array[defined] < 0).any() or (p_array[defined] > 1).any():
        raise UsageError(
            f"Expected `p_values` from 0 to 1, of shape (m,), got {p_array.tolist()}. Pass NaN for "
            "missing tests."
        )
    corrected = p_array.copy()
    order = np.flatnonzero(defined)[np.argsort(p_array[defined], kind="stable")]
    steps = p_array[order] * (len(order) - np.arange(len(order)))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def hierarchical(values: ArrayLike, draws: ArrayLike, *, units: int) -> Contrast:
    """Test the mean over seeds that were all tested on the same images.

    ``draws`` contain the variance between images, from resampling. The variance between seeds is
    added in closed form, because resampling a few seeds underestimates it. Each part has its own
    degrees of freedom, so that two seeds that agree by chance prove little: their variance counts
    with a t-value of 12.7 at 95 %. ``freedom`` is Satterthwaite's, for display.

    Parameters
    ----------
    values : array, shape (s,)
        One number for each seed, such as the difference of two scores.
    draws : array, shape (s, b)
        The same numbers on resampled images, with the same resamples for all seeds; NaN where
        undefined.
    units : int
        Number of images (or groups) that the resamples draw from.

    Returns
    -------
    Contrast
        With one seed it describes that seed only.

    Raises
    ------
    UsageError
        If the shapes do not fit together.

    References
    ----------
    Bouthillier et al. (2021), "Accounting for variance in machine learning benchmarks";
    Satterthwaite (1946), "An approximate distribution of estimates of variance components"; Scheffé
    (1943), "On solutions of the Behrens-Fisher problem", for intervals from two variances.

    Examples
    --------
    >>> contrast = hierarchical([0.1, 0.2], [[0.0, 0.1, 0.2], [0.1, 0.2, 0.3]], units=3)
    >>> round(contrast.value, 2), round(contrast.error, 3)
    (0.15, 0.132)
    """
    seed_values, draws_by_seed = (
        _check_finite("values", values, 1),
        np.asarray(draws, dtype=np.float64),
    )
    if draws_by_seed.ndim != 2 or len(draws_by_seed) != len(seed_values):
        raise UsageError(
            f"Expected `draws` of shape ({len(seed_values)}, b), as there are seeds, got "
            f"{draws_by_seed.shape}. Pass one row for each seed."
        )
    seeds = len(seed_values)
    means = draws_by_seed.mean(axis=0)
    means = means[~np.isnan(means)]
    has_variance = len(means) > 1 and 2 * len(means) >= draws_by_seed.shape[1] and units > 1
    # The bootstrap underestimates the variance by this factor (Efron and Tibshirani 1993,
    # section 5.3).
    image_variance = _variance(means) * units / (units - 1) if has_variance else math.nan
    seed_variance = _variance(seed_values) / seeds if seeds > 1 else 0.0
    total = image_variance + seed_variance
    denominator = image_variance**2 / max(units - 1, 1) + seed_variance**2 / max(seeds - 1, 1)
    parts = ((image_variance, max(units - 1, 1)), (seed_variance, seeds - 1))
    return Contrast(
        parts=parts if seeds > 1 and total > 0 else (),
        value=float(seed_values.mean()),
        error=math.sqrt(total) if total > 0 else math.nan,
        freedom=total**2 / denominator if denominator > 0 else math.nan,
        method="bootstrap-seeds-and-images" if seeds > 1 else "bootstrap-images",
    )


def controlled_difference(
    values: ArrayLike,
    against: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    groups: Groups = None,
) -> Contrast:
    """Estimate the gain over a method that was scored on more images: its score is a control.

    The other method may have done well or badly on the shared images by chance. Its score on the
    other images corrects that: the gain is f - b p - (1 - b) q, with the score f, the other
    method's score p on the same images and q on the others. Every b is unbiased. The best b is
    near 1 if the two are right on the same images, and smaller if they are not.

    Parameters
    ----------
    values : array, shape (n,)
        1 for correct, 0 for wrong, NaN for images that were not predicted.
    against : array, shape (n,)
        Of the other method, for all images.
    strata : array, shape (n,), optional
        Classes that count the same, as in balanced accuracy.
    groups : n hashables, optional
        Images of one group are not independent.

    Returns
    -------
    Contrast
        Value and standard error. The error counts half an image more in each cell of the table of
        the two methods, because few images may all be correct by chance.

    References
    ----------
    Cochran (1977), Sampling Techniques, sections 7.1 and 12.6 (regression estimator, double
    sampling).

    Examples
    --------
    >>> against = np.r_[np.zeros(6), np.ones(214)]  # six errors, all on the 40 shared images
    >>> values = np.r_[np.zeros(4), np.ones(36), np.full(180, np.nan)]
    >>> contrast = controlled_difference(values, against)
    >>> round(contrast.value, 3)  # +0.050 on the shared images alone
    0.004
    """
    seen = ~np.isnan(np.asarray(values, dtype=np.float64))
    f, p = np.asarray(values, np.float64)[seen], np.asarray(against, np.float64)
    labels = np.zeros(len(p), dtype=np.intp) if strata is None else np.asarray(strata)
    inside, outside = labels[seen], labels[~seen]
    present = np.unique(inside)
    tables = [_smoothed_table(f[inside == k], p[seen][inside == k]) for k in present]
    n = np.array([np.count_nonzero(inside == k) for k in present])
    m = np.array([np.count_nonzero(outside == k) for k in present])
    own, other, shared = np.array([_moments(table) for table in tables]).T
    share = 1.0
    if m.all():  # else the other images say nothing about some class
        share = float(((shared / n).sum() + (other / m).sum()) / ((other / n + other / m).sum()))
    share = min(max(share, 0.0), 1.0)
    size, count = 1 / len(present), dict(zip(present.tolist(), n.tolist(), strict=True))
    residuals = f - share * p[seen]
    terms = size * residuals / np.array([count[k] for k in inside.tolist()])
    rest = 0.0
    if share < 1:
        rest = size * sum(float(p[~seen][outside == k].mean()) for k in present)
    variance = (own - 2 * share * shared + share**2 * other) / n
    variance = variance + (1 - share) ** 2 * other / np.maximum(m, 1)
    total = float((size**2 * variance).sum())
    seen_groups = None if groups is None else np.asarray(groups)[seen]
    return Contrast(
        value=float(terms.sum()) - (1 - share) * rest,
        error=math.sqrt(total * _design_effect(terms, inside, seen_groups)),
        freedom=math.inf,
        method="control-variate",
    )


def _smoothed_table(values: Floats, against: Floats) -> Floats:
    """Shares of images by the result of one method (rows) and the other, half an image added."""
    counts = [[np.sum((values == a) & (against == b)) for b in (0, 1)] for a in (0, 1)]
    table = np.array(counts) + 0.5
    return np.asarray(table / table.sum())


def _moments(table: Floats) -> tuple[float, float, float]:
    """Variances of the two methods and their covariance, from a table of shares."""
    own, other = float(table[1].sum()), float(table[:, 1].sum())
    return own * (1 - own), other * (1 - other), float(table[1, 1]) - own * other


def _design_effect(terms: Floats, strata: NDArray[Any], groups: Groups) -> float:
    """Return how many times larger the variance of a sum is because of groups; at least 1."""
    if groups is None:
        return 1.0
    centred = terms - np.array([terms[strata == k].mean() for k in strata])
    codes, count = units(len(terms), groups)
    single = float((centred**2).sum())
    grouped = float((np.bincount(codes, centred, minlength=count) ** 2).sum())
    return max(grouped / single, 1.0) if single > 0 else max(len(terms) / count, 1.0)


def _variance(values: Floats) -> float:
    """Sample variance with n - 1; exactly 0 for numbers that differ by rounding only."""
    return float(values.var(ddof=1)) if np.ptp(values) > 1e-12 else 0.0


def _check_finite(name: str, values: ArrayLike, ndim: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0 or not np.isfinite(array).all():
        raise UsageError(
            f"Expected `{name}` to be finite numbers in {ndim} dimension(s), got shape "
            f"{array.shape}. Remove runs without a score."
        )
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(f"Expected `level` to lie between 0 and 1, got {level}. Pass 0.95.")
