"""Transferability scores of features: LogME, H-score, TransRate and nearest neighbours.

A higher score is better. Compare scores of backbones on the same images and labels only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError
from headstart.metrics.validation import Floats, centre_columns, check_features

__all__ = ["h_score", "knn_correctness", "log_me", "shrunk_h_score", "trans_rate"]

RATIOS = tuple(range(-20, 41))
"""Grid of log(beta / alpha) on which the search for LogME's maximum starts."""

MIN_NOISE = 1e-12
"""Lower limit of 1 / beta, because the evidence of perfectly separated classes is unbounded."""


def log_me(features: ArrayLike, targets: ArrayLike) -> float:
    """LogME: logarithm of the evidence of a Bayesian linear model, per image and class.

    For each class's 0/1 column y the evidence p(y | F) = N(y; 0, 1/beta I + 1/alpha F F^T) is
    maximised over alpha and beta; the mean over classes is divided by n. It is correct for fewer
    images than features too, unlike an often copied implementation.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)
        Any labels, at least two different ones.

    Returns
    -------
    float
        Unbounded; higher is better.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or there is only one class.

    Reference
    ---------
    You et al., LogME: practical assessment of pre-trained models for transfer learning, ICML
    2021, equations 2 to 4.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 20)
    >>> informative = np.c_[y + 0.1 * rng.normal(size=40), np.ones(40)]
    >>> log_me(informative, y) > log_me(rng.normal(size=(40, 2)), y)
    True
    """
    f, columns = _one_hot_columns(features, targets)
    n = len(f)
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    squares = (s / s.max(initial=1e-300)) ** 2  # alpha absorbs the scale of the features
    projections = (u.T @ columns).T ** 2
    residuals = np.maximum(columns.sum(axis=0) - projections.sum(axis=1), 0.0)
    evidences = [
        _maximal_log_evidence(squares, projection, residual, n)
        for projection, residual in zip(projections, residuals, strict=True)
    ]
    return float(np.mean(evidences)) / n


def _maximal_log_evidence(squares: Floats, z: Floats, outside: float, n: int) -> float:
    """Log evidence at its maximum over alpha and beta.

    For a given ratio beta / alpha the best beta has a closed form, so that only the ratio is
    searched: first on a grid, because there can be several maxima. MacKay's fixed-point iteration
    of the paper stops at any maximum and converges slowly for uninformative features.

    Parameters
    ----------
    squares : array, shape (r,)
        Squared singular values of the features, the largest 1.
    z : array, shape (r,)
        Squared coordinates of the targets along the left singular vectors.
    outside : float
        Squared length of the targets outside the span of the features.
    n : int
    """
    from scipy.optimize import minimize_scalar

    def negative_log_evidence(log_ratio: float) -> float:
        spread = 1 + np.exp(log_ratio) * squares
        distance = outside + float((z / spread).sum())
        noise = max(distance / n, MIN_NOISE)
        return 0.5 * float(n * np.log(2 * np.pi * noise) + np.log(spread).sum() + distance / noise)

    best = min(RATIOS, key=negative_log_evidence)
    step = RATIOS[1] - RATIOS[0]
    refined = minimize_scalar(
        negative_log_evidence,
        bounds=(best - step, best + step),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return -min(float(refined.fun), negative_log_evidence(best))


def h_score(features: ArrayLike, targets: ArrayLike) -> float:
    """H-score: variance of the features between classes, tr(cov(F)^+ cov(E[F | Y])).

    With fewer images than features it is always the number of classes minus one: use
    ``shrunk_h_score`` then.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)

    Returns
    -------
    float
        From 0 to the number of classes less one.

    Raises
    ------
    UsageError
        As for ``log_me``.

    Reference
    ---------
    Bao et al., An information-theoretic approach to transferability in task transfer learning,
    ICIP 2019, definition 2.

    Examples
    --------
    >>> round(h_score([[0.0], [0.0], [1.0], [1.0]], [0, 0, 1, 1]), 6)
    1.0
    """
    f, columns = _one_hot_columns(features, targets)
    u, s, _ = np.linalg.svd(centre_columns(f), full_matrices=False)
    has_variance = s > 1e-10 * max(s.max(initial=0.0), 1e-300)
    return float((_own_class_means(u[:, has_variance], columns) ** 2).sum())


def shrunk_h_score(features: ArrayLike, targets: ArrayLike) -> float:
    """H-score with the covariance shrinkage of Ledoit and Wolf, for few images.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)

    Returns
    -------
    float
        From 0 to the number of classes less one.

    Raises
    ------
    UsageError
        As for ``log_me``.

    Reference
    ---------
    Ibrahim, Ponomareva and Mazumder, Newer is not always better: rethinking transferability
    metrics, their peculiarities, stability and performance, ECML 2022, section 3.

    Examples
    --------
    >>> rng, y = np.random.default_rng(0), np.repeat([0, 1], 5)
    >>> noise = rng.normal(size=(10, 50))
    >>> shrunk_h_score(noise, y) < h_score(noise, y)
    True
    """
    f, columns = _one_hot_columns(features, targets)
    n, d = f.shape
    u, s, _ = np.linalg.svd(centre_columns(f), full_matrices=False)
    variances = s**2 / n  # along the principal axes; the class means have no other component
    mean = variances.sum() / max(d, 1)
    if mean <= 0:
        return 0.0
    coordinates = u * s
    distance = (variances**2).sum() - d * mean**2
    noise = (((coordinates**2).sum(axis=1) ** 2).sum() / n - (variances**2).sum()) / n
    shrinkage = float(min(noise / distance, 1.0)) if distance > 0 else 0.0
    between = (_own_class_means(coordinates, columns) ** 2).mean(axis=0)
    total = (1 - shrinkage) * variances + shrinkage * mean
    is_positive = total > 1e-20 * total.max()
    return float((1 - shrinkage) * (between[is_positive] / total[is_positive]).sum())


def trans_rate(features: ArrayLike, targets: ArrayLike, *, distortion: float = 1e-4) -> float:
    """TransRate: mutual information of features and labels, estimated by coding rates.

    R(Z) - sum over classes of (n_c / n) R(Z_c), with R(Z) = 1/2 log det(I + Z^T Z / (n eps)) of
    features that are centred and scaled to a total variance of one.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)
    distortion : float
        eps, above 0.

    Returns
    -------
    float
        At least 0.

    Raises
    ------
    UsageError
        As for ``log_me``.

    Reference
    ---------
    Huang et al., Frustratingly easy transferability estimation, ICML 2022, equation 3.

    Examples
    --------
    >>> y, unrelated = np.repeat([0, 1, 2], 3), np.tile([0, 1, 2], 3)
    >>> trans_rate(np.eye(3)[y], y) > trans_rate(np.eye(3)[unrelated], y)
    True
    """
    f, columns = _one_hot_columns(features, targets)
    if not distortion > 0:
        raise UsageError(f"`distortion` must be above 0, got {distortion}. Pass 1e-4.")
    f = centre_columns(f)
    f = f / max(np.sqrt((f**2).sum() / len(f)), np.finfo(float).tiny)
    class_features = [f[column == 1] for column in columns.T]
    within_rate = sum(
        len(part) / len(f) * _coding_rate(part, distortion) for part in class_features
    )
    return float(_coding_rate(f, distortion) - within_rate)


def knn_correctness(
    features: ArrayLike, targets: ArrayLike, *, k: int = 5, groups: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Whether the nearest images of other groups, by cosine, predict the label of each image.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)
    k : int
        Number of neighbours, at least 1. Nearer ones have larger weights, which avoids ties.
    groups : array, shape (n,), optional
        Images of the same group are not used as neighbours.

    Returns
    -------
    array of bool, shape (n,)

    Raises
    ------
    UsageError
        As for ``log_me``, or if ``k`` is below 1.

    Examples
    --------
    >>> knn_correctness([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], ["a", "a", "b", "b"], k=1)
    array([ True,  True,  True,  True])
    """
    f, columns = _one_hot_columns(features, targets)
    if k < 1:
        raise UsageError(f"`k` must be at least 1, got {k}. Pass 5.")
    group_codes = np.arange(len(f)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if group_codes.shape != (len(f),):
        raise UsageError(
            f"Expected a group for each of {len(f)} rows, got {group_codes.shape}. Pass one a row."
        )
    f = f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), np.finfo(float).tiny)
    is_correct = np.zeros(len(f), dtype=bool)
    for start in range(0, len(f), 1024):
        rows = slice(start, start + 1024)
        similarity = f[rows] @ f.T
        similarity[group_codes[rows, None] == group_codes] = -np.inf
        neighbours = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        neighbour_similarity = np.take_along_axis(similarity, neighbours, axis=1)
        weights = np.where(np.isfinite(neighbour_similarity), np.exp(neighbour_similarity), 0.0)
        sums = (weights[:, :, None] * columns[neighbours]).sum(axis=1)
        is_vote_correct = sums.argmax(axis=1) == columns[rows].argmax(axis=1)
        is_correct[rows] = is_vote_correct & (sums.max(axis=1) > 0)
    return is_correct


def _coding_rate(z: Floats, distortion: float) -> float:
    s = np.linalg.svd(z, compute_uv=False)
    return 0.5 * float(np.log1p(s**2 / (len(z) * distortion)).sum())


def _own_class_means(f: Floats, columns: Floats) -> Floats:
    """Mean of each row's class, shape (n, d)."""
    return np.asarray(columns @ ((columns.T @ f) / columns.sum(axis=0)[:, None]))


def _one_hot_columns(features: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    """Check the arrays; return the features and one 0/1 column for each class."""
    f, codes = check_features(features, targets)
    return f, np.eye(codes.max() + 1)[codes]
