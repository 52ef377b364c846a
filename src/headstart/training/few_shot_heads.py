"""Linear heads from very few images of each class, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UnknownNameError
from headstart.metrics.confidence_intervals import Floats, Groups, units

__all__ = [
    "HEADS",
    "fit_few_shot_head",
    "held_out_logits",
    "lda",
    "nearest_cosine",
    "nearest_prototype",
    "shrunken_centroids",
    "simple_shot",
]

Targets = NDArray[np.integer[Any]]
Affine = tuple[Floats, Floats]
"""Weight, shape (n_classes, d), and bias, shape (n_classes,)."""

ABSENT_BIAS = -1e4
"""Bias of a class without images, which is then never predicted."""

LOGIT_SPREAD = 2.0
"""Mean standard deviation of an image's logits over the classes, before the temperature."""

SHRINKAGE = 0.5
"""Share of the identity in the covariance of ``lda``."""

THRESHOLD = 0.5
"""Standard errors by which ``shrunken_centroids`` moves each coordinate of a centroid."""

MAX_LEFT_OUT = 100
"""Most parts for leaving out; with more images or groups, several are left out together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Classes:
    """Features in float64 with the mean of each present class."""

    rows: Floats
    codes: NDArray[np.intp]
    present: NDArray[np.intp]
    means: Floats
    counts: NDArray[np.intp]

    @classmethod
    def of(cls, features: NDArray[np.floating[Any]], targets: Targets) -> _Classes:
        rows = np.asarray(features, dtype=np.float64)
        present, codes, counts = np.unique(targets, return_inverse=True, return_counts=True)
        sums = np.zeros((len(present), rows.shape[1]))
        np.add.at(sums, codes, rows)
        return cls(
            rows=rows,
            codes=codes,
            present=present.astype(np.intp),
            means=sums / counts[:, None],
            counts=counts,
        )

    def within(self) -> Floats:
        """Features minus the mean of their class."""
        return np.asarray(self.rows - self.means[self.codes])


def _unit(rows: Floats) -> Floats:
    """Rows of length one; a row of zeros stays as it is."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms == 0, 1.0, norms))


def _from_centres(centres: Floats) -> Affine:
    """The affine part of minus half the squared distance to each centre."""
    return centres, -0.5 * (centres**2).sum(axis=1)


def nearest_prototype(features: NDArray[np.floating[Any]], targets: Targets) -> Affine:
    """Nearest class mean by squared Euclidean distance.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of int, shape (n,)
        Class of each image. The rows of the result are the sorted classes that occur.

    Returns
    -------
    weight, bias : arrays, shapes (k, d) and (k,)
        Minus half the squared distance to the mean, up to a term that all classes share.

    Reference
    ---------
    Snell et al., Prototypical networks for few-shot learning, NeurIPS 2017, equations 1 and 8.

    Examples
    --------
    >>> nearest_prototype(np.array([[0.0, 2.0], [4.0, 0.0]]), np.array([0, 1]))[1]
    array([-2., -8.])
    """
    return _from_centres(_Classes.of(features, targets).means)


def nearest_cosine(features: NDArray[np.floating[Any]], targets: Targets) -> Affine:
    """Nearest class by the cosine to the mean of the normalised features.

    The length of an image's own features divides all its cosines, so leaving it out changes no
    prediction, and the head is linear.

    Parameters
    ----------
    features, targets
        As for `nearest_prototype`.

    Returns
    -------
    weight, bias : arrays, shapes (k, d) and (k,)

    Reference
    ---------
    Chen et al., Meta-Baseline, ICCV 2021, equation 2.

    Examples
    --------
    >>> nearest_cosine(np.array([[0.0, 2.0], [4.0, 0.0]]), np.array([0, 1]))[0].tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    rows = _unit(np.asarray(features, dtype=np.float64))
    weight = _unit(_Classes.of(rows, targets).means)
    return weight, np.zeros(len(weight))


def simple_shot(features: NDArray[np.floating[Any]], targets: Targets) -> Affine:
    """Nearest class by the cosine of features that are centred and normalised (CL2N).

    SimpleShot centres on the mean of its base classes; here it is the mean of the class means of
    the given images. The prototypes are normalised, too, so that the head is linear.

    Parameters
    ----------
    features, targets
        As for `nearest_prototype`.

    Returns
    -------
    weight, bias : arrays, shapes (k, d) and (k,)

    Reference
    ---------
    Wang et al., SimpleShot, arXiv:1911.04623, section 3 (CL2N).

    Examples
    --------
    >>> simple_shot(np.array([[0.0, 0.0], [4.0, 0.0]]), np.array([0, 1]))
    (array([[-1.,  0.],
           [ 1.,  0.]]), array([ 2., -2.]))
    """
    centre = _Classes.of(features, targets).means.mean(axis=0)
    weight, _ = nearest_cosine(np.asarray(features, dtype=np.float64) - centre, targets)
    return weight, -weight @ centre


def shrunken_centroids(
    features: NDArray[np.floating[Any]], targets: Targets, *, threshold: float = THRESHOLD
) -> Affine:
    """Nearest centroid, with centroids moved towards the overall mean.

    With one image of each class, nothing is known about the spread, and nothing moves.

    Parameters
    ----------
    features, targets
        As for `nearest_prototype`.
    threshold : float
        Standard errors by which each coordinate of a centroid moves; 0 moves nothing.

    Returns
    -------
    weight, bias : arrays, shapes (k, d) and (k,)

    Reference
    ---------
    Tibshirani et al., Diagnosis of multiple cancer types by shrunken centroids of gene
    expression, PNAS 2002, equations 1 to 4.

    Examples
    --------
    >>> x, y = np.array([[0.0], [2.0], [6.0], [8.0]]), np.array([0, 0, 1, 1])
    >>> shrunken_centroids(x, y, threshold=0.0)[0].tolist()
    [[1.0], [7.0]]
    """
    classes = _Classes.of(features, targets)
    n, k = len(classes.rows), len(classes.means)
    if n == k:
        return _from_centres(classes.means)
    overall = classes.rows.mean(axis=0)
    deviation = np.sqrt((classes.within() ** 2).sum(axis=0) / (n - k))
    deviation += np.median(deviation)
    error = np.sqrt(1 / classes.counts - 1 / n)[:, None] * deviation
    shift = classes.means - overall
    kept = np.sign(shift) * np.maximum(np.abs(shift) - threshold * error, 0.0)
    return _from_centres(overall + kept)


def lda(
    features: NDArray[np.floating[Any]], targets: Targets, *, shrinkage: float = SHRINKAGE
) -> Affine:
    """Linear discriminant analysis with a shrunk covariance and equally frequent classes.

    Parameters
    ----------
    features, targets
        As for `nearest_prototype`.
    shrinkage : float
        Above 0, at most 1: share of the identity, times the mean variance, in the pooled
        covariance within the classes. 1 predicts like `nearest_prototype`.

    Returns
    -------
    weight, bias : arrays, shapes (k, d) and (k,)

    Reference
    ---------
    Friedman, Regularized discriminant analysis, JASA 1989, equation 18, with lambda = 1.

    Examples
    --------
    >>> x, y = np.array([[0.0], [2.0], [6.0], [8.0]]), np.array([0, 0, 1, 1])
    >>> lda(x, y)
    (array([[-3.],
           [ 3.]]), array([  7.5, -16.5]))
    """
    classes = _Classes.of(features, targets)
    # Centred at the mean of the class means: the same decisions, with smaller rounding errors.
    centre = classes.means.mean(axis=0)
    means, within = classes.means - centre, classes.within()
    variance = float((within**2).mean())
    if variance == 0:  # one image of each class, or equal images
        return _from_centres(classes.means)
    weight = _solve(within * np.sqrt((1 - shrinkage) / len(within)), means, shrinkage * variance)
    bias = -0.5 * (weight * means).sum(axis=1)
    return weight, bias - weight @ centre


def _solve(factor: Floats, rows: Floats, ridge: float) -> Floats:
    """Solve (factor' factor + ridge I) x = row for every row."""
    n, width = factor.shape
    if width <= n:
        covariance = factor.T @ factor + ridge * np.eye(width)
        return np.asarray(np.linalg.solve(covariance, rows.T).T, dtype=np.float64)
    # The inverse of n by n instead of d by d, by Woodbury's identity.
    small = np.linalg.solve(factor @ factor.T + ridge * np.eye(n), factor @ rows.T)
    return np.asarray((rows - small.T @ factor) / ridge)


HEADS: Mapping[str, Callable[[NDArray[np.floating[Any]], Targets], Affine]] = {
    "cosine": nearest_cosine,
    "simple-shot": simple_shot,
    "euclidean": nearest_prototype,
    "shrunken-centroids": shrunken_centroids,
    "lda": lda,
}
"""Few-shot heads by name. The first is used where no image can be left out."""


def fit_few_shot_head(
    name: str, features: NDArray[np.floating[Any]], targets: Targets, *, n_classes: int
) -> Affine:
    """Fit a few-shot head with a row for every class.

    Parameters
    ----------
    name : str
        One of ``HEADS``.
    features : array, shape (n, d)
    targets : array of int, shape (n,)
        A class without images is never predicted.
    n_classes : int

    Returns
    -------
    weight, bias : arrays, shapes (n_classes, d) and (n_classes,)
        Scaled so that the logits of an image have a standard deviation of ``LOGIT_SPREAD`` on the
        average of ``features``.

    Raises
    ------
    UnknownNameError
        If there is no such head.

    Examples
    --------
    >>> x, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 2])
    >>> fit_few_shot_head("cosine", x, y, n_classes=3)[0].tolist()
    [[4.0, 0.0], [0.0, 0.0], [0.0, 4.0]]
    """
    if name not in HEADS:
        raise UnknownNameError("few-shot head", name, HEADS)
    weight, bias = HEADS[name](features, targets)
    logits = np.asarray(features, dtype=np.float64) @ weight.T + bias
    spread = float(logits.std(axis=1).mean())
    scale = LOGIT_SPREAD / spread if spread > 0 else 1.0
    every_weight = np.zeros((n_classes, weight.shape[1]))
    every_bias = np.full(n_classes, ABSENT_BIAS)
    present = np.unique(targets)
    every_weight[present], every_bias[present] = weight * scale, bias * scale
    return every_weight, every_bias


def held_out_logits(
    name: str,
    features: NDArray[np.floating[Any]],
    targets: Targets,
    *,
    n_classes: int,
    groups: Groups = None,
) -> Floats:
    """Logits of every image, from a head that was fitted without it and without its group.

    Parameters
    ----------
    name, features, targets, n_classes
        As for `fit_few_shot_head`.
    groups : n hashables, optional
        Images of one group are left out together.

    Returns
    -------
    array, shape (n, n_classes)
        NaN in the rows of a class that has one image, or one group, only.

    Examples
    --------
    >>> x, y = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), np.array([0, 0, 1])
    >>> held_out_logits("cosine", x, y, n_classes=2).argmax(axis=1)[:2]
    array([0, 0])
    """
    logits = np.full((len(targets), n_classes), np.nan)
    for part in _left_out(targets, groups):
        kept = np.setdiff1d(np.arange(len(targets)), part)
        rows = part[np.isin(targets[part], targets[kept])]
        if len(rows):
            weight, bias = fit_few_shot_head(
                name, features[kept], targets[kept], n_classes=n_classes
            )
            logits[rows] = np.asarray(features[rows], dtype=np.float64) @ weight.T + bias
    return logits


def _left_out(targets: Targets, groups: Groups) -> Iterator[NDArray[np.intp]]:
    """Rows to leave out together: one image or group, several of them in large data."""
    codes, count = units(len(targets), groups)
    parts = min(count, MAX_LEFT_OUT)
    firsts = np.unique(codes, return_index=True)[1]
    # In the order of the classes: the images of a small class are then in different parts.
    part_of = np.empty(count, dtype=np.intp)
    part_of[np.argsort(targets[firsts], kind="stable")] = np.arange(count) % parts
    for part in range(parts):
        yield np.flatnonzero(part_of[codes] == part)
