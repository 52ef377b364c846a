"""Compare test images with training images by their features: outliers, neighbours and a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.data.prepare import PreparedData
from headstart.data.splits import evenly_spaced
from headstart.evaluation.classification import Evaluation
from headstart.features.extractor import Extractor
from headstart.metrics.outliers import OutlierDetector, nearest_neighbours

__all__ = [
    "MAX_IMAGES",
    "MAX_REPORTED",
    "EmbeddedDataset",
    "MapPoint",
    "NearestImages",
    "Outlier",
    "find_nearest_images",
    "find_outliers",
    "map_images",
    "project_to_plane",
]

MAX_IMAGES = 20_000
"""Maximum number of images whose labels are checked; evenly selected if there are more."""
MAX_REFERENCE_IMAGES = 4000
"""Maximum number of training images for outlier distances."""
MAX_REPORTED = 200
"""Maximum number of label errors and of outliers in the result."""
MAX_MAP_IMAGES = 400
"""Maximum number of images on the map."""
MIN_TSNE_IMAGES = 30
"""Minimum number of images for t-SNE; with fewer, the map is a PCA projection."""
N_EXAMPLES = 4
"""Number of correct and of wrong predictions that are shown, each with one more neighbour."""

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A test image far from all training images.

    ``score`` is the distance of its features to the nearest training image, 0 to 2. ``beyond`` is
    the share of training images with a smaller distance to each other. ``right`` shows whether
    the prediction is correct.
    """

    row: int
    image: str
    score: float
    beyond: float
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestImages:
    """A test image and its nearest training images as (row, name, label, cosine)."""

    row: int
    image: str
    right: bool
    label: str
    predicted: str
    neighbours: tuple[tuple[int, str, str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPoint:
    """An image on the map, with coordinates from 0 to 1; ``right`` is None for training images."""

    row: int
    image: str
    label: str
    right: bool | None
    x: float
    y: float


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedDataset:
    """A dataset with features, and the rows of its training and test images."""

    data: Dataset
    values: NDArray[np.floating[Any]]
    train: Rows
    test: Rows

    @classmethod
    def of(
        cls,
        backbone: FrozenBackbone,
        prepared: PreparedData,
        extractor: Extractor,
        *,
        max_train: int | None = None,
    ) -> EmbeddedDataset:
        """Read the features from the cache, or compute them.

        Parameters
        ----------
        backbone : FrozenBackbone
        prepared : PreparedData
        extractor : Extractor
        max_train : int, optional
            Maximum number of training images, evenly selected. ``values`` is NaN for all images
            that are neither selected nor test images.
        """
        data = prepared.data
        train, test = data.split_indices("train"), data.split_indices("test")
        test = test if len(test) else data.split_indices("val")
        if max_train is None:
            values = extractor.features(backbone, data.samples).values
            return cls(data=data, values=values, train=train, test=test)
        train = train[evenly_spaced(len(train), max_train)]
        rows = np.concatenate([train, test])
        computed = extractor.features(backbone, [data.samples[row] for row in rows]).values
        values = np.full((len(data), computed.shape[1]), np.nan, dtype=np.float32)
        values[rows] = computed
        return cls(data=data, values=values, train=train, test=test)

    def label(self, row: int) -> str:
        """Return the label of an image as text."""
        target = self.data.samples[row].target
        return ", ".join(target) or "none" if isinstance(target, tuple) else str(target)

    def groups(self, rows: Rows) -> Rows | None:
        """Return the groups of some rows; None without groups."""
        groups = self.data.groups()
        return None if groups is None else groups[rows]


def find_outliers(
    embedded: EmbeddedDataset, correct: NDArray[np.bool_]
) -> tuple[tuple[Outlier, ...], float]:
    """Find the test images farthest from the training images.

    Parameters
    ----------
    embedded : EmbeddedDataset
    correct : array of bool, shape (n_test,)

    Returns
    -------
    outliers : tuple of Outlier
        The farthest first, ``MAX_REPORTED`` at most.
    out_of_distribution : float
        Share of test images that are farther from the training images than 99 % of the training
        images are from each other (without their own group). NaN if it is unknown.

    Raises
    ------
    DataError
        If there are fewer than two training images.
    """
    rows = embedded.train[evenly_spaced(len(embedded.train), MAX_REFERENCE_IMAGES)]
    train_distances = OutlierDetector.fit(embedded.values[rows], groups=embedded.groups(rows))
    scores = train_distances.scores(embedded.values[embedded.test])
    beyond = train_distances.share_below(scores)
    order = np.argsort(-scores, kind="stable")[:MAX_REPORTED]
    outliers = tuple(
        Outlier(
            row=int(embedded.test[index]),
            image=embedded.data.samples[embedded.test[index]].name,
            score=float(scores[index]),
            beyond=float(beyond[index]),
            right=bool(correct[index]),
        )
        for index in order
    )
    out_of_distribution = float("nan") if np.isnan(beyond).any() else float((beyond >= 0.99).mean())
    return outliers, out_of_distribution


def find_nearest_images(
    embedded: EmbeddedDataset, evaluation: Evaluation
) -> tuple[NearestImages, ...]:
    """Find the nearest training images of confident mistakes and of some correct predictions.

    Parameters
    ----------
    embedded : EmbeddedDataset
    evaluation : Evaluation
        Evaluation of ``embedded.test``, in the same order.

    Returns
    -------
    tuple of NearestImages
        Wrong predictions first.
    """
    correct_rows = np.flatnonzero(evaluation.correct)
    wrong_rows = (
        evaluation.worst(N_EXAMPLES) or np.flatnonzero(~evaluation.correct)[:N_EXAMPLES].tolist()
    )
    selected = [*wrong_rows, *correct_rows[evenly_spaced(len(correct_rows), N_EXAMPLES)].tolist()]
    predictions = evaluation.task.labels(evaluation.probabilities[selected]) if selected else []
    test_rows = embedded.test[selected]
    nearest_rows, cosines = nearest_neighbours(
        embedded.values[embedded.train], embedded.values[test_rows], N_EXAMPLES + 1
    )
    examples = []
    for i, row in enumerate(test_rows):
        train_rows = [int(embedded.train[train_row]) for train_row in nearest_rows[i]]
        prediction = predictions[i]
        examples.append(
            NearestImages(
                row=int(row),
                image=embedded.data.samples[row].name,
                right=bool(evaluation.correct[selected[i]]),
                label=embedded.label(int(row)),
                predicted=prediction
                if isinstance(prediction, str)
                else ", ".join(prediction) or "none",
                neighbours=tuple(
                    (
                        train_row,
                        embedded.data.samples[train_row].name,
                        embedded.label(train_row),
                        float(cosine),
                    )
                    for train_row, cosine in zip(train_rows, cosines[i], strict=True)
                ),
            )
        )
    return tuple(examples)


def map_images(
    embedded: EmbeddedDataset, correct: NDArray[np.bool_], seed: int = 0
) -> tuple[tuple[MapPoint, ...], str]:
    """Map test images, and as many training images as fit, to two dimensions.

    Parameters
    ----------
    embedded : EmbeddedDataset
    correct : array of bool, shape (n_test,)
    seed : int

    Returns
    -------
    positions : tuple of MapPoint
        Empty for fewer than three images, or if all features are equal.
    method : str
        "t-SNE", or "PCA" for few images.

    References
    ----------
    Van der Maaten and Hinton (2008), "Visualizing data using t-SNE".
    """
    test_rows = evenly_spaced(len(embedded.test), MAX_MAP_IMAGES)
    train_rows = evenly_spaced(len(embedded.train), MAX_MAP_IMAGES - len(test_rows))
    rows = np.concatenate([embedded.test[test_rows], embedded.train[train_rows]]).astype(np.intp)
    is_correct = [*correct[test_rows].tolist(), *(None for _ in train_rows)]
    if len(rows) < 3 or not np.ptp(embedded.values[rows], axis=0).any():
        return (), ""
    positions, method = project_to_plane(embedded.values[rows], seed)
    low, high = positions.min(axis=0), positions.max(axis=0)
    scaled = (positions - low) / np.maximum(high - low, np.finfo(np.float64).tiny)
    return tuple(
        MapPoint(
            row=int(row),
            image=embedded.data.samples[row].name,
            label=embedded.label(int(row)),
            right=right,
            x=float(x),
            y=float(y),
        )
        for row, right, (x, y) in zip(rows, is_correct, scaled, strict=True)
    ), method


def project_to_plane(values: NDArray[np.floating[Any]], seed: int) -> tuple[Floats, str]:
    """Map features to two dimensions.

    Parameters
    ----------
    values : array, shape (n, d)
        At least three rows that differ.
    seed : int

    Returns
    -------
    positions : array, shape (n, 2)
    method : str
        "t-SNE", or "PCA" for fewer than 30 images.

    Examples
    --------
    >>> positions, method = project_to_plane(np.eye(4), 0)
    >>> positions.shape, method
    ((4, 2), 'PCA')
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    normalised = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    n_components = min(50, *normalised.shape)
    with threadpool_limits(1):  # reproducible, and faster than many threads here
        principal = PCA(n_components, svd_solver="full").fit_transform(
            normalised.astype(np.float64)
        )
        if len(normalised) < MIN_TSNE_IMAGES or n_components < 3:
            return np.pad(principal, ((0, 0), (0, max(0, 2 - n_components))))[:, :2], "PCA"
        perplexity = min(30.0, (len(normalised) - 1) / 3)
        # 400 steps are enough: they give 96 % of the neighbours of 1,000 steps.
        model = TSNE(init="pca", perplexity=perplexity, random_state=seed, n_jobs=1, max_iter=400)
        return np.asarray(model.fit_transform(principal), dtype=np.float64), "t-SNE"
