"""How far an image is from what was learned from, by its features: pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import DataError, UnknownNameError, UsageError

__all__ = ["OutlierMethod", "Outliers", "nearest"]

OutlierMethod = Literal["knn", "mahalanobis", "relative_mahalanobis"]
METHODS = "knn", "mahalanobis", "relative_mahalanobis"

Floats = NDArray[np.float64]
Groups = NDArray[np.intp] | None

BLOCK = 512
"""Rows compared at once, which bounds the table of distances."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """Means that share one covariance: ``whiten`` makes distances from them Mahalanobis'."""

    means: Floats
    whiten: Floats

    @classmethod
    def of(cls, features: Floats, codes: NDArray[np.intp]) -> Self:
        """Estimate it, the covariance shrunk towards a sphere as Ledoit and Wolf do."""
        from sklearn.covariance import ledoit_wolf

        means = np.stack([features[codes == code].mean(axis=0) for code in np.unique(codes)])
        covariance, _ = ledoit_wolf(features - means[codes], assume_centered=True)
        values, vectors = np.linalg.eigh(covariance)
        floor = (float(values[-1]) or 1.0) * np.finfo(np.float64).eps
        whiten = vectors / np.sqrt(np.maximum(values, floor))
        return cls(means=means @ whiten, whiten=whiten)

    def distances(self, features: Floats) -> Floats:
        """Squared Mahalanobis distance from the nearest mean, shape (n,)."""
        return np.asarray(_squared(features @ self.whiten, self.means).min(axis=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outliers:
    """What was learned from, ready to say how far other images are from it.

    ``knn`` is the default: it needs no labels, supposes no shape of the classes, and told the
    images of other sets without fault; none told left-out classes best on both sets that were
    measured (docs/insight.md).

    Parameters
    ----------
    method : {"knn", "mahalanobis", "relative_mahalanobis"}
    known : array, shape (n, d)
        Of length one for ``knn``.
    k : int
        Which neighbour's distance counts, for ``knn``.
    typical : array, shape (n,)
        Sorted scores of the images learned from, each by the others alone; empty for the
        Mahalanobis distances, which were fitted to these images.

    Examples
    --------
    >>> known = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1]])
    >>> found = Outliers.fit(known, np.zeros(3, np.intp), k=1)
    >>> found.scores(np.array([[1.0, 0.05], [0.0, 1.0]])).round(2).tolist()
    [0.05, 1.34]
    >>> found.beyond(np.array([0.05, 1.34])).round(2).tolist()
    [0.0, 1.0]
    """

    method: OutlierMethod
    known: Floats
    k: int
    typical: Floats
    within: Gaussian | None = None
    overall: Gaussian | None = None

    @classmethod
    def fit(
        cls,
        features: ArrayLike,
        targets: ArrayLike | None = None,
        *,
        method: OutlierMethod = "knn",
        k: int = 1,
        groups: Groups = None,
    ) -> Self:
        """Take up the images that were learned from.

        Parameters
        ----------
        features : array, shape (n, d)
            At least two.
        targets : array of int, shape (n,), optional
            The Mahalanobis distances are from the nearest class; without, from the mean of all.
        method : {"knn", "mahalanobis", "relative_mahalanobis"}
            The cosine distance to the k-th neighbour; the Mahalanobis distance to the nearest
            class under a shared, shrunk covariance; that less the distance to all images'
            Gaussian, in which directions that no class differs in cancel out.
        k : int
            At least 1; fewer where there are fewer images.
        groups : array of int, shape (n,), optional
            ``typical`` leaves out whole groups.

        Raises
        ------
        UnknownNameError
            If there is no such method.
        UsageError
            If ``k`` is less than 1, or shapes do not fit each other.
        DataError
            If there are fewer than two images, or a feature is not finite.

        References
        ----------
        Sun et al. (2022), "Out-of-distribution detection with deep nearest neighbors".
        Lee et al. (2018), "A simple unified framework for detecting out-of-distribution samples
        and adversarial attacks", equation 2.
        Ren et al. (2021), "A simple fix to Mahalanobis distance for improving near-OOD
        detection", equation 3.
        """
        if method not in METHODS:
            raise UnknownNameError("method", method, list(METHODS))
        if k < 1:
            raise UsageError(f"Expected `k` to be at least 1, got {k}.")
        known = _features(features)
        if len(known) < 2:
            raise DataError(f"Expected at least two images learned from, got {len(known)}.")
        if method == "knn":
            known, k = _unit(known), min(k, len(known) - 1)
            typical = np.sort(_left_out(known, k, groups))
            return cls(method=method, known=known, k=k, typical=typical)
        codes = _codes(targets, len(known))
        relative = method == "relative_mahalanobis"
        return cls(
            method=method,
            known=known,
            k=k,
            typical=np.zeros(0),
            within=Gaussian.of(known, codes),
            overall=Gaussian.of(known, np.zeros_like(codes)) if relative else None,
        )

    def scores(self, features: ArrayLike) -> Floats:
        """How far each image is from what was learned from, shape (n,); higher is farther.

        Raises
        ------
        UsageError
            If there are not as many features as were learned from.
        DataError
            If a feature is not finite.
        """
        asked = _features(features)
        if asked.shape[1] != self.known.shape[1]:
            raise UsageError(
                f"Expected {self.known.shape[1]} features an image, got {asked.shape[1]}; do "
                "take them from the same backbone."
            )
        if self.within is None:
            return _kth(self.known, _unit(asked), self.k)
        found = self.within.distances(asked)
        return found if self.overall is None else found - self.overall.distances(asked)

    def beyond(self, scores: ArrayLike) -> Floats:
        """Share of the images learned from that are nearer to the others; NaN if not known."""
        asked = np.asarray(scores, dtype=np.float64)
        if not self.typical.size:
            return np.full(asked.shape, np.nan)
        below = np.searchsorted(self.typical, asked, side="left")
        return np.asarray(below / self.typical.size)


def nearest(known: ArrayLike, asked: ArrayLike, k: int) -> tuple[NDArray[np.intp], Floats]:
    """The most similar images learned from, by the cosine of features.

    Parameters
    ----------
    known : array, shape (n, d)
    asked : array, shape (m, d)
    k : int
        Fewer come back where there are fewer images.

    Returns
    -------
    rows : array of int, shape (m, k)
        The most similar first; of equals the first.
    cosines : array, shape (m, k)
        From -1 to 1.

    Examples
    --------
    >>> rows, cosines = nearest([[1.0, 0.0], [0.0, 1.0]], [[0.0, 3.0]], 1)
    >>> rows.tolist(), cosines.tolist()
    ([[1]], [[1.0]])
    """
    cosines = _unit(_features(asked)) @ _unit(_features(known)).T
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(cosines, rows, axis=1)


def _features(values: ArrayLike) -> Floats:
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 2:
        raise UsageError(f"Expected features of shape (n, d), got {given.shape}.")
    if not np.isfinite(given).all():
        raise DataError(
            "Expected every feature to be finite, got NaN or infinity; do check the backbone's "
            "weights, or force the fp32 engine."
        )
    return given


def _codes(targets: ArrayLike | None, n: int) -> NDArray[np.intp]:
    """Classes that occur, as numbers from 0 on."""
    if targets is None:
        return np.zeros(n, dtype=np.intp)
    given = np.asarray(targets)
    if given.shape != (n,):
        raise UsageError(f"Expected `targets` of shape ({n},), got {given.shape}.")
    return np.asarray(np.unique(given, return_inverse=True)[1], dtype=np.intp)


def _unit(features: Floats) -> Floats:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, np.finfo(np.float64).tiny))


def _squared(a: Floats, b: Floats) -> Floats:
    lengths = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return np.asarray(np.maximum(lengths - 2 * a @ b.T, 0.0))


def _kth(known: Floats, asked: Floats, k: int) -> Floats:
    """Distance on the sphere's chord to the k-th neighbour, shape (m,)."""
    found = [
        np.partition(_squared(asked[at : at + BLOCK], known), k - 1, axis=1)[:, k - 1]
        for at in range(0, len(asked), BLOCK)
    ]
    return np.sqrt(np.concatenate(found)) if found else np.zeros(0)


def _left_out(known: Floats, k: int, groups: Groups) -> Floats:
    """The same for each known image, itself and its group left out; fewer if none is left."""
    own = np.arange(len(known)) if groups is None else np.asarray(groups)
    found = []
    for at in range(0, len(known), BLOCK):
        squared = _squared(known[at : at + BLOCK], known)
        squared[own[at : at + BLOCK, None] == own] = np.inf
        found.append(np.partition(squared, k - 1, axis=1)[:, k - 1])
    distances = np.sqrt(np.concatenate(found))
    return np.asarray(distances[np.isfinite(distances)])
