"""Distances between two sets of images, computed from their features: pure functions.

All functions take features of one backbone, (n, d) and (m, d), and are symmetric in the two sets.
Do not compare distances of different backbones: each backbone has its own scale.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import Interval, proportion_interval
from headstart.metrics.validation import Floats

__all__ = [
    "coral_distance",
    "covariance_gap",
    "frechet_distance",
    "mmd",
    "mmd_p_value",
    "proxy_a_distance",
    "unbiased_discrepancy",
]

PENALTY = 1e-3
"""L2 penalty of the classifier between the sets, for features of total variance one."""


def proxy_a_distance(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: tuple[ArrayLike, ArrayLike] | None = None,
    folds: int = 5,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Proxy A-distance: 2 (1 - 2 e), where e is the error of a classifier between the sets.

    A logistic regression is cross-validated. Both sets have the same weight, whatever their
    sizes. The interval describes the test predictions, not other training images.

    Parameters
    ----------
    a, b : array, shape (n, d) and (m, d)
        Remove images that are in both sets: the classifier would be trained on its test images.
    groups : pair of arrays, shape (n,) and (m,), optional
        Images of one group are in the same fold, and count less than independent ones.
    folds : int
        At least 2. Reduced if a set has fewer images or groups.
    seed : int
        Seed of the folds.
    level : float
        Confidence level of the interval.

    Returns
    -------
    Interval
        From 0, if the classifier is no better than chance, to 2.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or a set has fewer than two images or groups.

    Reference
    ---------
    Ben-David et al., Analysis of representations for domain adaptation, NIPS 2006, section 4.1;
    the error of a linear classifier approximates the smallest one.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> near = proxy_a_distance(rng.normal(size=(40, 3)), rng.normal(size=(40, 3)))
    >>> far = proxy_a_distance(rng.normal(size=(40, 3)), rng.normal(size=(40, 3)) + 9)
    >>> near.high < far.low
    True
    """
    first, second = _check_sets(a, b)
    if folds < 2:
        raise UsageError(f"Expected `folds` of at least 2, got {folds}. Pass 5.")
    side = np.repeat([0, 1], [len(first), len(second)])
    codes = _number_groups(groups, len(first), len(second))
    counts = [len(np.unique(codes[side == s])) for s in (0, 1)]
    if min(counts) < 2:
        raise UsageError(
            f"Expected at least two groups in each set, got {counts}. Add groups, or omit `groups`."
        )
    features = np.concatenate([first, second])
    correct = _classify_sets(features, side, codes, min(folds, *counts), seed)
    errors = [
        proportion_interval(~correct[side == s], codes[side == s], level=level) for s in (0, 1)
    ]
    error = sum(interval.value for interval in errors) / 2
    down = math.hypot(*(interval.value - interval.low for interval in errors)) / 2
    up = math.hypot(*(interval.high - interval.value for interval in errors)) / 2
    value, low, high = (
        min(max(2 * (1 - 2 * e), 0.0), 2.0) for e in (error, error + up, error - down)
    )
    return Interval(value=value, low=low, high=high, level=level, method="cross-validated error")


def _classify_sets(
    f: Floats, side: NDArray[np.intp], codes: NDArray[np.intp], folds: int, seed: int
) -> NDArray[np.bool_]:
    """Whether the classifier of the other folds predicts the correct set, shape (n + m,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    scaled = f - f.mean(axis=0)
    scaled /= max(float(np.sqrt((scaled**2).sum() / len(f))), 1e-300)
    correct = np.zeros(len(f), dtype=bool)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(scaled, side, codes):
        if (
            len(np.unique(side[train])) < 2
        ):  # one large group can leave a set without training images
            continue
        model = LogisticRegression(
            C=1 / (PENALTY * len(train)), class_weight="balanced", max_iter=1000
        )
        predicted = model.fit(scaled[train], side[train]).predict(scaled[test])
        correct[test] = predicted == side[test]
    return correct


def mmd(a: ArrayLike, b: ArrayLike) -> float:
    """Squared maximum mean discrepancy, unbiased, with a Gaussian kernel of the median width.

    Parameters
    ----------
    a, b : array, shape (n, d) and (m, d)
        All pairs are compared: use at most some thousand images.

    Returns
    -------
    float
        At most 2. For sets with equal distributions it is around 0, and negative as often as not.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or a set has fewer than two images.

    Reference
    ---------
    Gretton et al., A kernel two-sample test, JMLR 2012, equation 3; the width is the median of
    the distances of all images, as in its section 8.

    Examples
    --------
    >>> round(mmd([[0.0], [0.0], [0.0]], [[5.0], [5.0], [5.0]]), 6)
    0.786939
    """
    first, second = _check_sets(a, b)
    kernel = _kernel(np.concatenate([first, second]))
    return _discrepancy(kernel, np.arange(len(kernel)) < len(first))


def mmd_p_value(a: ArrayLike, b: ArrayLike, *, permutations: int = 500, seed: int = 0) -> float:
    """Permutation test of ``mmd``: the share of random splits with a value at least as large.

    Parameters
    ----------
    a, b : array, shape (n, d) and (m, d)
        Features of independent images: pass one image of each group.
    permutations : int
        At least 1.
    seed : int

    Returns
    -------
    float
        From 1 / (permutations + 1) to 1.

    Raises
    ------
    UsageError
        As for ``mmd``, or if ``permutations`` is below 1.

    Reference
    ---------
    Gretton et al., A kernel two-sample test, JMLR 2012, section 6. The value of
    the given sets counts as one permutation, so that the test is valid (Phipson and Smyth, 2010).

    Examples
    --------
    >>> mmd_p_value([[0.0], [0.1], [0.2]], [[5.0], [5.1], [5.2]], permutations=99) < 0.3
    True
    """
    first, second = _check_sets(a, b)
    if permutations < 1:
        raise UsageError(f"`permutations` must be at least 1, got {permutations}. Pass 500.")
    kernel = _kernel(np.concatenate([first, second]))
    in_first = np.arange(len(kernel)) < len(first)
    value, rng = _discrepancy(kernel, in_first), np.random.default_rng(seed)
    threshold = value - 1e-12 * max(abs(value), 1.0)  # rounding must not hide a tie
    permuted = (_discrepancy(kernel, rng.permutation(in_first)) for _ in range(permutations))
    as_large = sum(other >= threshold for other in permuted)
    return float((as_large + 1) / (permutations + 1))


def _kernel(f: Floats) -> Floats:
    """Gaussian kernel of all pairs of rows, shape (n, n)."""
    from scipy.spatial.distance import pdist, squareform

    squares = pdist(f, "sqeuclidean")
    # The median is 0 if half of the pairs are copies: then use the mean, or 1 if all are copies.
    width = float(np.median(squares)) or float(squares.mean()) or 1.0
    return np.asarray(np.exp(-squareform(squares) / (2 * width)))


def _discrepancy(kernel: Floats, first: NDArray[np.bool_]) -> float:
    """Unbiased squared discrepancy between the rows of the first set and the others."""
    x, y = first.astype(np.float64), (~first).astype(np.float64)
    return float(unbiased_discrepancy(kernel, x, y))


def unbiased_discrepancy(kernel: Any, in_first: Any, in_second: Any) -> Any:
    """Unbiased squared maximum mean discrepancy of two sets, from their kernel matrix.

    The same formula serves arrays, to measure, and tensors, to train (``training/losses``).

    Parameters
    ----------
    kernel : array or tensor, shape (n + m, n + m)
        Of all pairs, with 1 on the diagonal.
    in_first, in_second : array or tensor, shape (n + m,)
        1 for the rows of that set, 0 for the others.

    Returns
    -------
    array or tensor, scalar

    Reference
    ---------
    Gretton et al., A kernel two-sample test, JMLR 2012, equation 3.

    Examples
    --------
    >>> float(unbiased_discrepancy(np.eye(4), np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1])))
    0.0
    """
    x, y = in_first, in_second
    n, m = x.sum(), y.sum()
    kx, ky = kernel @ x, kernel @ y
    within = (x @ kx - n) / (n * (n - 1)) + (y @ ky - m) / (m * (m - 1))  # k(x, x) is 1
    return within - 2 * (x @ ky) / (n * m)


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Frechet distance between normal distributions fitted to the two sets.

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)) of the covariances A and B. The last trace
    is computed as the sum of the singular values of the product of the centred sets. This is
    exact for fewer images than features too, where a matrix root of A B is not. The distance
    grows with fewer images: compare sets of equal sizes only.

    Parameters
    ----------
    a, b : array, shape (n, d) and (m, d)

    Returns
    -------
    float
        At least 0, in squared units of the features.

    Raises
    ------
    UsageError
        As for ``mmd``.

    Reference
    ---------
    Dowson and Landau, The Frechet distance between multivariate normal distributions, Journal
    of Multivariate Analysis 1982, equation 4.

    Examples
    --------
    >>> round(frechet_distance([[0.0], [2.0]], [[3.0], [5.0]]), 6)
    9.0
    """
    first, second = _check_sets(a, b)
    x, y = _covariance_root(first), _covariance_root(second)
    mean_term = float(((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum())
    root_trace = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    return max(mean_term + float((x**2).sum() + (y**2).sum()) - 2 * root_trace, 0.0)


def coral_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Frobenius distance between the covariances of the sets, divided by 4 d^2.

    Parameters
    ----------
    a, b : array, shape (n, d) and (m, d)

    Returns
    -------
    float
        At least 0. A shift of the mean does not change it.

    Raises
    ------
    UsageError
        As for ``mmd``.

    Reference
    ---------
    Sun and Saenko, Deep CORAL: correlation alignment for deep domain adaptation, ECCV
    workshops 2016, equations 1 to 3.

    Examples
    --------
    >>> round(coral_distance([[0.0], [2.0]], [[0.0], [4.0]]), 6)
    9.0
    """
    first, second = _check_sets(a, b)
    return float(covariance_gap(first, second))


def covariance_gap(a: Any, b: Any) -> Any:
    """Squared Frobenius distance between two covariances, divided by 4 d^2.

    The same formula serves arrays, to measure, and tensors, to train (``training/losses``).

    Parameters
    ----------
    a, b : array or tensor, shape (n, d) and (m, d)
        At least two rows each.

    Returns
    -------
    array or tensor, scalar

    Reference
    ---------
    Sun and Saenko, Deep CORAL, ECCV workshops 2016, equations 1 to 3.

    Examples
    --------
    >>> float(covariance_gap(np.array([[0.0], [2.0]]), np.array([[0.0], [4.0]])))
    9.0
    """
    first, second = a - a.mean(0), b - b.mean(0)
    gap = first.T @ first / (len(a) - 1) - second.T @ second / (len(b) - 1)
    return (gap**2).sum() / (4 * a.shape[1] ** 2)


def _covariance_root(f: Floats) -> Floats:
    """Matrix R with at most d rows, where R^T R is the covariance of the rows of ``f``."""
    scaled = (f - f.mean(axis=0)) / math.sqrt(len(f) - 1)
    return scaled if len(f) <= f.shape[1] else np.asarray(np.linalg.qr(scaled, mode="r"))


def _check_sets(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    first: Any = np.asarray(a, dtype=np.float64)
    second: Any = np.asarray(b, dtype=np.float64)
    if (
        first.ndim != 2
        or second.ndim != 2
        or first.shape[1:] != second.shape[1:]
        or not first.shape[1]
    ):
        raise UsageError(
            f"Expected features (n, d) and (m, d), got shapes {first.shape} and {second.shape}. "
            "Compute both with the same backbone."
        )
    if min(len(first), len(second)) < 2:
        raise UsageError(
            f"Expected at least two images in each set, got {len(first)} and {len(second)}. Add "
            "images."
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UsageError("Expected finite features, got NaN or infinity. Remove those rows.")
    return first, second


def _number_groups(groups: tuple[ArrayLike, ArrayLike] | None, n: int, m: int) -> NDArray[np.intp]:
    """Number the groups, shape (n + m,). Without groups each image has its own number."""
    if groups is None:
        return np.arange(n + m)
    first, second = (np.asarray(part) for part in groups)
    if first.shape != (n,) or second.shape != (m,):
        raise UsageError(
            f"Expected a group for each of {n} and {m} images, got shapes {first.shape} and "
            f"{second.shape}. Pass one group for each row."
        )
    return np.unique(np.concatenate([first, second]), return_inverse=True)[1]
