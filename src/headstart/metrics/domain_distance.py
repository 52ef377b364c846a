"""How far two sets of images are from each other, by their features: pure functions.

All take features of the same backbone, (n, d) and (m, d), and are the same for either order of the
two sets. They compare sets by one backbone, not backbones: each has a unit of its own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import Interval, proportion_interval
from headstart.metrics.validation import Floats

__all__ = ["coral_distance", "frechet_distance", "mmd", "mmd_p_value", "proxy_a_distance"]

PENALTY = 1e-3
"""Of the classifier that tells the sets apart, for features of total variance one."""


def proxy_a_distance(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: tuple[ArrayLike, ArrayLike] | None = None,
    folds: int = 5,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """How well a linear classifier tells the sets apart: 2 (1 - 2 e), e its held-out error.

    A logistic regression is cross-validated; both sets weigh alike whatever their sizes. The
    interval is that of the held-out answers, not of other images to learn from.

    Parameters
    ----------
    a, b : array, shape (n, d) and (m, d)
        An image in both sets is held against itself: leave such ones out.
    groups : pair of arrays, shape (n,) and (m,), optional
        Images of one group are in the same fold, and count less than independent ones.
    folds : int
        2 or more; fewer where a set has fewer images or groups.
    seed : int
        Of the folds.
    level : float
        Of the interval.

    Returns
    -------
    Interval
        From 0, where nothing tells the sets apart, to 2.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or a set has fewer than two images or groups.

    Reference
    ---------
    Ben-David et al., Analysis of representations for domain adaptation, NIPS 2006, section 4.1;
    the error of a linear classifier stands for the least one.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> near = proxy_a_distance(rng.normal(size=(40, 3)), rng.normal(size=(40, 3)))
    >>> far = proxy_a_distance(rng.normal(size=(40, 3)), rng.normal(size=(40, 3)) + 9)
    >>> near.high < far.low
    True
    """
    one, two = _pair(a, b)
    if folds < 2:
        raise UsageError(f"Expected `folds` to be 2 or more, got {folds}; do use 5.")
    side = np.repeat([0, 1], [len(one), len(two)])
    codes = _codes(groups, len(one), len(two))
    counts = [len(np.unique(codes[side == s])) for s in (0, 1)]
    if min(counts) < 2:
        raise UsageError(
            f"Expected two groups or more in each set, got {counts}; do add some, or leave "
            "`groups` out."
        )
    right = _told_apart(np.concatenate([one, two]), side, codes, min(folds, *counts), seed)
    wrong = [proportion_interval(~right[side == s], codes[side == s], level=level) for s in (0, 1)]
    error = sum(part.value for part in wrong) / 2
    down = math.hypot(*(part.value - part.low for part in wrong)) / 2
    up = math.hypot(*(part.high - part.value for part in wrong)) / 2
    value, low, high = (
        min(max(2 * (1 - 2 * e), 0.0), 2.0) for e in (error, error + up, error - down)
    )
    return Interval(value=value, low=low, high=high, level=level, method="cross-validated error")


def _told_apart(
    f: Floats, side: NDArray[np.intp], codes: NDArray[np.intp], folds: int, seed: int
) -> NDArray[np.bool_]:
    """Whether the classifier of the other folds names the right set, shape (n + m,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    spread = f - f.mean(axis=0)
    spread /= max(float(np.sqrt((spread**2).sum() / len(f))), 1e-300)
    right = np.zeros(len(f), dtype=bool)
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in cut.split(spread, side, codes):
        if len(np.unique(side[train])) < 2:  # large groups can fill the other folds
            continue
        model = LogisticRegression(
            C=1 / (PENALTY * len(train)), class_weight="balanced", max_iter=1000
        )
        right[test] = model.fit(spread[train], side[train]).predict(spread[test]) == side[test]
    return right


def mmd(a: ArrayLike, b: ArrayLike) -> float:
    """Squared maximum mean discrepancy, unbiased, by a Gaussian kernel of the median width.

    Parameters
    ----------
    a, b : array, shape (n, d) and (m, d)
        Compared pair by pair: meant for some thousand images.

    Returns
    -------
    float
        At most 2; around 0, and below it as often as above, for sets that are alike.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or a set has fewer than two images.

    Reference
    ---------
    Gretton et al., A kernel two-sample test, JMLR 2012, equation 3; the width is the median of
    all images' distances, as in its section 8.

    Examples
    --------
    >>> round(mmd([[0.0], [0.0], [0.0]], [[5.0], [5.0], [5.0]]), 6)
    0.786939
    """
    one, two = _pair(a, b)
    kernel = _kernel(np.concatenate([one, two]))
    return float(_discrepancy(kernel, np.arange(len(kernel)) < len(one)))


def mmd_p_value(a: ArrayLike, b: ArrayLike, *, permutations: int = 500, seed: int = 0) -> float:
    """How often sets drawn at random from all these images are as far apart by ``mmd``.

    Parameters
    ----------
    a, b : array, shape (n, d) and (m, d)
        Of independent images: pass one of each group.
    permutations : int
        1 or more.
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
    Gretton et al., A kernel two-sample test, JMLR 2012, section 6; with the drawn sets' own
    value among them, so that it is a valid test (Phipson and Smyth, 2010).

    Examples
    --------
    >>> mmd_p_value([[0.0], [0.1], [0.2]], [[5.0], [5.1], [5.2]], permutations=99) < 0.3
    True
    """
    one, two = _pair(a, b)
    if permutations < 1:
        raise UsageError(f"Expected `permutations` to be 1 or more, got {permutations}; use 500.")
    kernel = _kernel(np.concatenate([one, two]))
    first = np.arange(len(kernel)) < len(one)
    found, rng = _discrepancy(kernel, first), np.random.default_rng(seed)
    edge = found - 1e-12 * max(abs(found), 1.0)
    as_far = sum(_discrepancy(kernel, rng.permutation(first)) >= edge for _ in range(permutations))
    return float((as_far + 1) / (permutations + 1))


def _kernel(f: Floats) -> Floats:
    """Likeness of every two rows, shape (n, n)."""
    from scipy.spatial.distance import pdist, squareform

    squares = pdist(f, "sqeuclidean")
    # half of all pairs may be copies: then the mean is the width, and 1 where all are
    width = float(np.median(squares)) or float(squares.mean()) or 1.0
    return np.asarray(np.exp(-squareform(squares) / (2 * width)))


def _discrepancy(kernel: Floats, first: NDArray[np.bool_]) -> float:
    """Return the unbiased squared discrepancy of the rows that are first from the others."""
    x, y = first.astype(np.float64), (~first).astype(np.float64)
    n, m = x.sum(), y.sum()
    kx, ky = kernel @ x, kernel @ y
    within = (x @ kx - n) / (n * (n - 1)) + (y @ ky - m) / (m * (m - 1))  # k(x, x) is 1
    return float(within - 2 * (x @ ky) / (n * m))


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Frechet distance of the normal distributions that have the sets' moments.

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)) of the covariances A and B. The last trace
    is the sum of the singular values of the product of the centred sets, so that it is exact
    for fewer images than features, where the root of A B is not. Few images make it
    larger: compare sets of equal sizes only.

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
    one, two = _pair(a, b)
    x, y = _root(one), _root(two)
    gap = float(((one.mean(axis=0) - two.mean(axis=0)) ** 2).sum())
    shared = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    return max(gap + float((x**2).sum() + (y**2).sum()) - 2 * shared, 0.0)


def coral_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Frobenius distance of the sets' covariances, over 4 d^2.

    Parameters
    ----------
    a, b : array, shape (n, d) and (m, d)

    Returns
    -------
    float
        At least 0; it does not see a shift of the mean.

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
    one, two = _pair(a, b)
    x, y = _root(one), _root(two)
    return float(((x.T @ x - y.T @ y) ** 2).sum() / (4 * one.shape[1] ** 2))


def _root(f: Floats) -> Floats:
    """A matrix R of d rows at most with R^T R the covariance of the rows."""
    spread = (f - f.mean(axis=0)) / math.sqrt(len(f) - 1)
    return spread if len(f) <= f.shape[1] else np.asarray(np.linalg.qr(spread, mode="r"))


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    one: Any = np.asarray(a, dtype=np.float64)
    two: Any = np.asarray(b, dtype=np.float64)
    if one.ndim != 2 or two.ndim != 2 or one.shape[1:] != two.shape[1:] or not one.shape[1]:
        raise UsageError(
            f"Expected features (n, d) and (m, d), got shapes {one.shape} and {two.shape}; do "
            "compute both with the same backbone."
        )
    if min(len(one), len(two)) < 2:
        raise UsageError(
            f"Expected two images or more in each set, got {len(one)} and {len(two)}; do add some."
        )
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise UsageError("Expected finite features, got NaN or infinity; do leave those rows out.")
    return one, two


def _codes(groups: tuple[ArrayLike, ArrayLike] | None, n: int, m: int) -> NDArray[np.intp]:
    """A number for each image's group, shape (n + m,); one of its own without groups."""
    if groups is None:
        return np.arange(n + m)
    one, two = (np.asarray(part) for part in groups)
    if one.shape != (n,) or two.shape != (m,):
        raise UsageError(
            f"Expected a group for each of {n} and {m} images, got shapes {one.shape} and "
            f"{two.shape}; do pass one a row."
        )
    return np.unique(np.concatenate([one, two]), return_inverse=True)[1]
