"""Where judged images lie among those that were learned from, by their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.data.prepare import Prepared
from headstart.data.splits import evenly
from headstart.evaluation.classification import Evaluation
from headstart.features.extractor import Extractor
from headstart.metrics.outliers import Outliers, nearest

__all__ = [
    "KEPT",
    "MOST",
    "Known",
    "Neighbourhood",
    "Outlier",
    "Place",
    "farthest",
    "neighbourhoods",
    "placed",
]

MOST = 20_000
"""Images whose labels are looked at; evenly chosen where there are more."""
COMPARED = 4000
"""Images learned from that others are held against one by one."""
KEPT = 200
"""Doubtful labels and foreign images that are kept, the most doubtful first."""
MAPPED = 400
"""Images on the map."""
MAPPED_BY_NEIGHBOURS = 30
"""Images from which on the map keeps neighbours (t-SNE); with fewer it is a projection."""
SHOWN = 4
"""Right and wrong answers, each with as many neighbours and one more."""

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A judged image far from all that were learned from.

    ``score`` is the distance of its features, from 0 to 2; ``beyond`` the share of the images
    learned from that are nearer to each other.
    """

    row: int
    image: str
    score: float
    beyond: float
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """A judged image and the rows of the images learned from that it resembles most."""

    row: int
    image: str
    right: bool
    given: str
    said: str
    neighbours: tuple[tuple[int, str, str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An image on the map, both places from 0 to 1; ``right`` is None if it was learned from."""

    row: int
    image: str
    label: str
    right: bool | None
    x: float
    y: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """Images with their features, and which of them were learned from or judged."""

    data: Dataset
    values: NDArray[np.floating[Any]]
    train: Rows
    test: Rows

    @classmethod
    def of(
        cls,
        backbone: FrozenBackbone,
        prepared: Prepared,
        extractor: Extractor,
        *,
        most: int | None = None,
    ) -> Known:
        """Take the features from the cache, or make them.

        Parameters
        ----------
        backbone : FrozenBackbone
        prepared : Prepared
        extractor : Extractor
        most : int, optional
            Of the images learned from only so many, evenly chosen; ``train`` names them, and
            ``values`` is NaN for all that are neither learned from nor judged.
        """
        data = prepared.data
        train, test = data.split_indices("train"), data.split_indices("test")
        test = test if len(test) else data.split_indices("val")
        if most is None:
            values = extractor.features(backbone, data.samples).values
            return cls(data=data, values=values, train=train, test=test)
        train = train[evenly(len(train), most)]
        rows = np.concatenate([train, test])
        made = extractor.features(backbone, [data.samples[row] for row in rows]).values
        values = np.full((len(data), made.shape[1]), np.nan, dtype=np.float32)
        values[rows] = made
        return cls(data=data, values=values, train=train, test=test)

    def label(self, row: int) -> str:
        """What the image is labelled, in words."""
        target = self.data.samples[row].target
        return ", ".join(target) or "none" if isinstance(target, tuple) else str(target)

    def groups(self, rows: Rows) -> Rows | None:
        """Groups of some rows, None where there are none."""
        groups = self.data.groups()
        return None if groups is None else groups[rows]


def farthest(known: Known, correct: NDArray[np.bool_]) -> tuple[tuple[Outlier, ...], float]:
    """The judged images farthest from those learned from, and the share that is foreign.

    Parameters
    ----------
    known : Known
    correct : array of bool, shape (n_test,)

    Returns
    -------
    outliers : tuple of Outlier
        The farthest first, ``KEPT`` at most.
    foreign : float
        Share of the judged images farther from those learned from than 99 in 100 of these are
        from each other (their own group aside); NaN where these have no others.

    Raises
    ------
    DataError
        If fewer than two images were learned from.
    """
    rows = known.train[evenly(len(known.train), COMPARED)]
    learned = Outliers.fit(known.values[rows], groups=known.groups(rows))
    scores = learned.scores(known.values[known.test])
    beyond = learned.beyond(scores)
    order = np.argsort(-scores, kind="stable")[:KEPT]
    outliers = tuple(
        Outlier(
            row=int(known.test[i]),
            image=known.data.samples[known.test[i]].name,
            score=float(scores[i]),
            beyond=float(beyond[i]),
            right=bool(correct[i]),
        )
        for i in order
    )
    foreign = float("nan") if np.isnan(beyond).any() else float((beyond >= 0.99).mean())
    return outliers, foreign


def neighbourhoods(known: Known, evaluation: Evaluation) -> tuple[Neighbourhood, ...]:
    """The most confident mistakes, and right answers from all over the images.

    Parameters
    ----------
    known : Known
    evaluation : Evaluation
        Of ``known.test``, in that order.

    Returns
    -------
    tuple of Neighbourhood
        The wrong ones first.
    """
    right = np.flatnonzero(evaluation.correct)
    wrong = evaluation.worst(SHOWN) or np.flatnonzero(~evaluation.correct)[:SHOWN].tolist()
    chosen = [*wrong, *right[evenly(len(right), SHOWN)].tolist()]
    said = evaluation.task.labels(evaluation.probabilities[chosen]) if chosen else []
    asked = known.test[chosen]
    close, cosines = nearest(known.values[known.train], known.values[asked], SHOWN + 1)
    found = []
    for i, row in enumerate(asked):
        learned = [int(known.train[at]) for at in close[i]]
        answer = said[i]
        found.append(
            Neighbourhood(
                row=int(row),
                image=known.data.samples[row].name,
                right=bool(evaluation.correct[chosen[i]]),
                given=known.label(int(row)),
                said=answer if isinstance(answer, str) else ", ".join(answer) or "none",
                neighbours=tuple(
                    (at, known.data.samples[at].name, known.label(at), float(cosine))
                    for at, cosine in zip(learned, cosines[i], strict=True)
                ),
            )
        )
    return tuple(found)


def placed(
    known: Known, correct: NDArray[np.bool_], seed: int = 0
) -> tuple[tuple[Place, ...], str]:
    """Put judged images, then as many of those learned from as fit, on a map.

    Parameters
    ----------
    known : Known
    correct : array of bool, shape (n_test,)
    seed : int

    Returns
    -------
    places : tuple of Place
        Empty for fewer than three images, and where all features are alike.
    by : str
        How the map was made: "t-SNE", or "PCA" for few images.

    References
    ----------
    Van der Maaten and Hinton (2008), "Visualizing data using t-SNE".
    """
    judged = evenly(len(known.test), MAPPED)
    learned = evenly(len(known.train), MAPPED - len(judged))
    rows = np.concatenate([known.test[judged], known.train[learned]]).astype(np.intp)
    outcome = [*correct[judged].tolist(), *(None for _ in learned)]
    if len(rows) < 3 or not np.ptp(known.values[rows], axis=0).any():
        return (), ""
    places, by = _flat(known.values[rows], seed)
    low, high = places.min(axis=0), places.max(axis=0)
    inside = (places - low) / np.maximum(high - low, np.finfo(np.float64).tiny)
    return tuple(
        Place(
            row=int(row),
            image=known.data.samples[row].name,
            label=known.label(int(row)),
            right=right,
            x=float(x),
            y=float(y),
        )
        for row, right, (x, y) in zip(rows, outcome, inside, strict=True)
    ), by


def _flat(values: NDArray[np.floating[Any]], seed: int) -> tuple[Floats, str]:
    """Two places for every image, and by which method."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    size = min(50, *unit.shape)
    with threadpool_limits(1):  # the same places on every machine, and sooner than by many
        main = PCA(size, svd_solver="full").fit_transform(unit.astype(np.float64))
        if len(unit) < MAPPED_BY_NEIGHBOURS or size < 3:
            return np.pad(main, ((0, 0), (0, max(0, 2 - size))))[:, :2], "PCA"
        near = min(30.0, (len(unit) - 1) / 3)
        # Of 1,000 steps the last 600 move little: 0.96 of the neighbours are right after 400 too.
        model = TSNE(init="pca", perplexity=near, random_state=seed, n_jobs=1, max_iter=400)
        return np.asarray(model.fit_transform(main), dtype=np.float64), "t-SNE"
