"""Detection of out-of-distribution images by the distance of features from training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import DataError, UnknownNameError, UsageError

__all__ = ["OutlierDetector", "OutlierMethod", "excess_p_value", "nearest_neighbours"]

OutlierMethod = Literal["knn", "mahalanobis", "relative_mahalanobis"]
METHODS = "knn", "mahalanobis", "relative_mahalanobis"

Floats = NDArray[np.float64]
Groups = NDArray[np.intp] | None

BLOCK = 512
"""Rows compared at once. It bounds the memory of the distance table."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """Class means with a shared covariance. ``whiten`` maps Mahalanobis to Euclidean distance."""

    means: Floats
    whiten: Floats

    @classmethod
    def of(cls, features: Floats, codes: NDArray[np.intp]) -> Self:
        """Estimate means and the covariance, with the shrinkage of Ledoit and Wolf."""
        from sklearn.covariance import ledoit_wolf

        means = np.stack([features[codes == code].mean(axis=0) for code in np.unique(codes)])
        covariance, _ = ledoit_wolf(features - means[codes], assume_centered=True)
        values, vectors = np.linalg.eigh(covariance)
        floor = (float(values[-1]) or 1.0) * np.finfo(np.float64).eps
        whiten = vectors / np.sqrt(np.maximum(values, floor))
        return cls(means=means @ whiten, whiten=whiten)

    def distances(self, features: Floats) -> Floats:
        """Squared Mahalanobis distance to the nearest mean, shape (n,)."""
        return np.asarray(_squared_distances(features @ self.whiten, self.means).min(axis=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class OutlierDetector:
    """Distance of images from the training images.

    ``knn`` is the default. It needs no labels and no assumption on the shape of the classes, and
    it separated images of other datasets perfectly. For left-out classes no method was the best
    on both datasets measured (docs/insight.md).

    Parameters
    ----------
    method : {"knn", "mahalanobis", "relative_mahalanobis"}
    train_features : array, shape (n, d)
        Features of the training images; normalised to length one for ``knn``.
    k : int
        Number of the neighbour whose distance counts, for ``knn``.
    train_scores : array, shape (n,)
        Sorted scores of the training images, each against the others. Empty for the Mahalanobis
        distances, because these images were used to fit them.

    Examples
    --------
    >>> train_features = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1]])
    >>> detector = OutlierDetector.fit(train_features, np.zeros(3, np.intp), k=1)
    >>> detector.scores(np.array([[1.0, 0.05], [0.0, 1.0]])).round(2).tolist()
    [0.05, 1.34]
    >>> detector.share_below(np.array([0.05, 1.34])).round(2).tolist()
    [0.0, 1.0]
    """

    method: OutlierMethod
    train_features: Floats
    k: int
    train_scores: Floats
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
        """Fit the detector to the training images.

        Parameters
        ----------
        features : array, shape (n, d)
            At least two rows.
        targets : array of int, shape (n,), optional
            Classes for the Mahalanobis distances. None takes one class of all images.
        method : {"knn", "mahalanobis", "relative_mahalanobis"}
            The distance to the k-th neighbour on the unit sphere; the Mahalanobis distance to
            the nearest class with a shared, shrunk covariance; the same minus the distance to
            one Gaussian of all images, which cancels directions in which no classes differ.
        k : int
            At least 1; reduced if there are fewer images.
        groups : array of int, shape (n,), optional
            ``train_scores`` compares an image with images of other groups only.

        Raises
        ------
        UnknownNameError
            If the method is unknown.
        UsageError
            If ``k`` is less than 1, or shapes do not fit together.
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
            raise UsageError(f"`k` must be at least 1, got {k}. Pass 1.")
        train_features = _check_features(features)
        if len(train_features) < 2:
            raise DataError(
                f"Expected at least two images to fit to, got {len(train_features)}. Add images."
            )
        if method == "knn":
            train_features, k = _normalise_rows(train_features), min(k, len(train_features) - 1)
            train_scores = np.sort(_leave_one_out_distances(train_features, k, groups))
            return cls(method=method, train_features=train_features, k=k, train_scores=train_scores)
        codes = _class_codes(targets, len(train_features))
        relative = method == "relative_mahalanobis"
        return cls(
            method=method,
            train_features=train_features,
            k=k,
            train_scores=np.zeros(0),
            within=Gaussian.of(train_features, codes),
            overall=Gaussian.of(train_features, np.zeros_like(codes)) if relative else None,
        )

    def scores(self, features: ArrayLike) -> Floats:
        """Compute the distance of each image from the training images, shape (n,).

        Raises
        ------
        UsageError
            If the number of features differs from that of the training images.
        DataError
            If a feature is not finite.
        """
        queries = _check_features(features)
        if queries.shape[1] != self.train_features.shape[1]:
            raise UsageError(
                f"Expected {self.train_features.shape[1]} features for each image, got "
                f"{queries.shape[1]}. Compute them with the same backbone."
            )
        if self.within is None:
            return _kth_neighbour_distances(self.train_features, _normalise_rows(queries), self.k)
        distances = self.within.distances(queries)
        return distances if self.overall is None else distances - self.overall.distances(queries)

    def share_below(self, scores: ArrayLike) -> Floats:
        """Share of the training images with a lower score; NaN without ``train_scores``."""
        queries = np.asarray(scores, dtype=np.float64)
        if not self.train_scores.size:
            return np.full(queries.shape, np.nan)
        n_below = np.searchsorted(self.train_scores, queries, side="left")
        return np.asarray(n_below / self.train_scores.size)


def nearest_neighbours(
    train_features: ArrayLike, queries: ArrayLike, k: int
) -> tuple[NDArray[np.intp], Floats]:
    """Find the most similar training images by the cosine of the features.

    Parameters
    ----------
    train_features : array, shape (n, d)
    queries : array, shape (m, d)
    k : int
        Reduced if there are fewer images.

    Returns
    -------
    rows : array of int, shape (m, k)
        The most similar first; ties in the order of ``train_features``.
    cosines : array, shape (m, k)
        From -1 to 1.

    Examples
    --------
    >>> rows, cosines = nearest_neighbours([[1.0, 0.0], [0.0, 1.0]], [[0.0, 3.0]], 1)
    >>> rows.tolist(), cosines.tolist()
    ([[1]], [[1.0]])
    """
    unit_queries = _normalise_rows(_check_features(queries))
    cosines = unit_queries @ _normalise_rows(_check_features(train_features)).T
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(cosines, rows, axis=1)


def excess_p_value(above: int, n_new: int, rank: int, n_known: int) -> float:
    """Probability that so many new scores exceed a known score, if all have one distribution.

    The number of new scores above the ``rank``-th smallest of the known scores has a beta-binomial
    distribution, whatever the distribution of the scores is.

    Parameters
    ----------
    above : int
        Number of new scores above the known score of that rank.
    n_new : int
    rank : int
        From 1 to ``n_known``.
    n_known : int

    Returns
    -------
    float
        The probability of ``above`` or more.

    Raises
    ------
    UsageError
        If ``rank`` is not from 1 to ``n_known``, or ``above`` not from 0 to ``n_new``.

    Reference
    ---------
    Wilks, Statistical prediction with special reference to the problem of tolerance limits,
    Annals of Mathematical Statistics 1942, section 4.

    Examples
    --------
    >>> excess_p_value(1, 1, 1, 1)  # one new score is above one known score
    0.5
    """
    from scipy.stats import betabinom

    if not 1 <= rank <= n_known or not 0 <= above <= n_new:
        raise UsageError(
            f"Expected `rank` from 1 to {n_known} and `above` from 0 to {n_new}, got {rank} and "
            f"{above}. Pass counts of the same scores."
        )
    return float(betabinom.sf(above - 1, n_new, n_known - rank + 1, rank))


def _check_features(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise UsageError(
            f"Expected features of shape (n, d), got {array.shape}. Pass one row for each image."
        )
    if not np.isfinite(array).all():
        raise DataError(
            "Expected every feature to be finite, got NaN or infinity. Check the backbone's "
            "weights, or use `--engine fp32`."
        )
    return array


def _class_codes(targets: ArrayLike | None, n: int) -> NDArray[np.intp]:
    """Number the classes that occur, from 0."""
    if targets is None:
        return np.zeros(n, dtype=np.intp)
    labels = np.asarray(targets)
    if labels.shape != (n,):
        raise UsageError(
            f"Expected `targets` of shape ({n},), got {labels.shape}. Pass one class a row."
        )
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.intp)


def _normalise_rows(features: Floats) -> Floats:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, np.finfo(np.float64).tiny))


def _squared_distances(a: Floats, b: Floats) -> Floats:
    lengths = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return np.asarray(np.maximum(lengths - 2 * a @ b.T, 0.0))


def _kth_neighbour_distances(train_features: Floats, queries: Floats, k: int) -> Floats:
    """Euclidean distance of unit vectors to the k-th neighbour, shape (m,)."""
    distances = [
        np.partition(
            _squared_distances(queries[start : start + BLOCK], train_features), k - 1, axis=1
        )[:, k - 1]
        for start in range(0, len(queries), BLOCK)
    ]
    return np.sqrt(np.concatenate(distances)) if distances else np.zeros(0)


def _leave_one_out_distances(train_features: Floats, k: int, groups: Groups) -> Floats:
    """Distances of training images to others, without their own group; none if none is left."""
    group_of = np.arange(len(train_features)) if groups is None else np.asarray(groups)
    blocks = []
    for start in range(0, len(train_features), BLOCK):
        squared = _squared_distances(train_features[start : start + BLOCK], train_features)
        squared[group_of[start : start + BLOCK, None] == group_of] = np.inf
        blocks.append(np.partition(squared, k - 1, axis=1)[:, k - 1])
    distances = np.sqrt(np.concatenate(blocks))
    return np.asarray(distances[np.isfinite(distances)])
