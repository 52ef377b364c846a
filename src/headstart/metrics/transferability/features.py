"""How well features would serve a new task, before anything is trained: pure functions.

Every score is better when higher, and compares backbones on the same images and labels only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError
from headstart.metrics.validation import Floats, centred, labelled

__all__ = ["h_score", "knn_correctness", "log_me", "shrunk_h_score", "trans_rate"]

RATIOS = tuple(range(-20, 41))
"""Logarithms of beta / alpha that LogME's maximum is first looked for at."""

LEAST_NOISE = 1e-12
"""1 / beta at least: where features tell labels without fault, the evidence has no end."""


def log_me(features: ArrayLike, targets: ArrayLike) -> float:
    """Logarithm of the evidence of a Bayesian linear model, an image and class.

    For each class's 0/1 column y the evidence p(y | F) = N(y; 0, 1/beta I + 1/alpha F F^T) is
    maximised over alpha and beta; the mean over classes is divided by n. It holds for fewer
    images than features too, where an often copied implementation does not.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)
        Any labels; two or more different ones.

    Returns
    -------
    float
        Unbounded; higher is better.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or there is one class only.

    Reference
    ---------
    You et al., LogME: practical assessment of pre-trained models for transfer learning, ICML
    2021, equations 2 to 4.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 20)
    >>> telling = np.c_[y + 0.1 * rng.normal(size=40), np.ones(40)]
    >>> log_me(telling, y) > log_me(rng.normal(size=(40, 2)), y)
    True
    """
    f, columns = _checked(features, targets)
    n = len(f)
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    squares = (s / s.max(initial=1e-300)) ** 2  # alpha takes up any unit of the features
    z = (u.T @ columns).T ** 2
    outside = np.maximum(columns.sum(axis=0) - z.sum(axis=1), 0.0)
    found = [_evidence(squares, *one, n) for one in zip(z, outside, strict=True)]
    return float(np.mean(found)) / n


def _evidence(squares: Floats, z: Floats, outside: float, n: int) -> float:
    """Log evidence at its maximum over alpha and beta.

    For a given ratio beta / alpha the best beta is known, and so the maximum is looked for along
    the ratio: on a grid first, since there can be several. MacKay's fixed point, as in the paper,
    stops at any of them, and comes near too slowly where the features tell little.

    Parameters
    ----------
    squares : array, shape (r,)
        Squared singular values of the features, the largest 1.
    z : array, shape (r,)
        Squared coordinates of the targets along the left singular vectors.
    outside : float
        What of the targets' squared length the features cannot reach.
    n : int
    """
    from scipy.optimize import minimize_scalar

    def lost(log_ratio: float) -> float:
        spread = 1 + np.exp(log_ratio) * squares
        distance = outside + float((z / spread).sum())
        noise = max(distance / n, LEAST_NOISE)
        return 0.5 * float(n * np.log(2 * np.pi * noise) + np.log(spread).sum() + distance / noise)

    at = min(RATIOS, key=lost)
    step = RATIOS[1] - RATIOS[0]
    near = minimize_scalar(
        lost, bounds=(at - step, at + step), method="bounded", options={"xatol": 1e-8}
    )
    return -min(float(near.fun), lost(at))


def h_score(features: ArrayLike, targets: ArrayLike) -> float:
    """Share of the features' variance that lies between classes: tr(cov(F)^+ cov(E[F | Y])).

    With fewer images than features it is the number of classes less one whatever the
    features are: use ``shrunk_h_score`` there.

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
    f, columns = _checked(features, targets)
    u, s, _ = np.linalg.svd(centred(f), full_matrices=False)
    held = s > 1e-10 * max(s.max(initial=0.0), 1e-300)
    return float((_class_means(u[:, held], columns) ** 2).sum())


def shrunk_h_score(features: ArrayLike, targets: ArrayLike) -> float:
    """H-score with a covariance that is shrunk as Ledoit and Wolf do: for few images.

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
    f, columns = _checked(features, targets)
    n, d = f.shape
    u, s, _ = np.linalg.svd(centred(f), full_matrices=False)
    variances = s**2 / n  # along the principal axes; 0 along all others, where no mean lies
    mean = variances.sum() / max(d, 1)
    if mean <= 0:
        return 0.0
    places = u * s
    distance = (variances**2).sum() - d * mean**2
    noise = (((places**2).sum(axis=1) ** 2).sum() / n - (variances**2).sum()) / n
    shrinkage = float(min(noise / distance, 1.0)) if distance > 0 else 0.0
    between = (_class_means(places, columns) ** 2).mean(axis=0)
    total = (1 - shrinkage) * variances + shrinkage * mean
    held = total > 1e-20 * total.max()
    return float((1 - shrinkage) * (between[held] / total[held]).sum())


def trans_rate(features: ArrayLike, targets: ArrayLike, *, distortion: float = 1e-4) -> float:
    """Mutual information of features and labels, estimated by coding rates.

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
    >>> y, other = np.repeat([0, 1, 2], 3), np.tile([0, 1, 2], 3)
    >>> trans_rate(np.eye(3)[y], y) > trans_rate(np.eye(3)[other], y)
    True
    """
    f, columns = _checked(features, targets)
    if not distortion > 0:
        raise UsageError(f"Expected `distortion` to be above 0, got {distortion}; do use 1e-4.")
    f = centred(f)
    f = f / max(np.sqrt((f**2).sum() / len(f)), np.finfo(float).tiny)
    within = [f[column == 1] for column in columns.T]
    inner = sum(len(part) / len(f) * _coding_rate(part, distortion) for part in within)
    return float(_coding_rate(f, distortion) - inner)


def knn_correctness(
    features: ArrayLike, targets: ArrayLike, *, k: int = 5, groups: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Whether the nearest other images by cosine, outside the same group, vote for the truth.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)
    k : int
        Votes, 1 or more; the nearer weigh more, so that there are no ties.
    groups : array, shape (n,), optional
        Images of one group do not vote for each other.

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
    f, columns = _checked(features, targets)
    if k < 1:
        raise UsageError(f"Expected `k` to be 1 or more, got {k}; do use 5.")
    together = np.arange(len(f)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if together.shape != (len(f),):
        raise UsageError(f"Expected a group for each of {len(f)} rows, got {together.shape}.")
    f = f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), np.finfo(float).tiny)
    found = np.zeros(len(f), dtype=bool)
    for begin in range(0, len(f), 1024):
        rows = slice(begin, begin + 1024)
        likeness = f[rows] @ f.T
        likeness[together[rows, None] == together] = -np.inf
        votes = np.argsort(-likeness, axis=1, kind="stable")[:, :k]
        near = np.take_along_axis(likeness, votes, axis=1)
        weights = np.where(np.isfinite(near), np.exp(near), 0.0)
        sums = (weights[:, :, None] * columns[votes]).sum(axis=1)
        answered = sums.argmax(axis=1) == columns[rows].argmax(axis=1)
        found[rows] = answered & (sums.max(axis=1) > 0)
    return found


def _coding_rate(z: Floats, distortion: float) -> float:
    s = np.linalg.svd(z, compute_uv=False)
    return 0.5 * float(np.log1p(s**2 / (len(z) * distortion)).sum())


def _class_means(f: Floats, columns: Floats) -> Floats:
    """Each row's class mean, shape (n, d)."""
    return np.asarray(columns @ ((columns.T @ f) / columns.sum(axis=0)[:, None]))


def _checked(features: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    """Features in float64, and one 0/1 column for each label that occurs."""
    f, codes = labelled(features, targets)
    return f, np.eye(codes.max() + 1)[codes]
