"""scikit-learn's words for the same work: fit, predict, predict_proba, score."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from headstart.cache import Cache
from headstart.data.prepare import gather, select
from headstart.data.readers import read_dataset
from headstart.data.samples import Dataset, Sample
from headstart.errors import UsageError
from headstart.features import Extractor, Trunk
from headstart.methods.linear_probe import Imbalance, LinearProbe
from headstart.model import TransferModel
from headstart.recipe import DEFAULT_BACKBONE
from headstart.tasks.classification import Classification

__all__ = ["ImageClassifier"]


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear probe on a frozen backbone, as a scikit-learn classifier.

    Works in ``cross_val_score`` and ``GridSearchCV``: pictures are paths or arrays, and each is
    seen by the backbone once, however many folds and candidates there are.

    Parameters
    ----------
    backbone : str
    folds : int
        Of the cross-validation that chooses the penalty.
    imbalance : {"auto", "none", "balanced"}
    engine, device : str
    cache_dir : str or None
        Where features are kept; None is the user's cache.
    random_state : int
        Decides the folds.

    Attributes
    ----------
    classes_ : array of str
        Names in the order of the probabilities' columns.
    model_ : TransferModel

    Examples
    --------
    >>> from headstart import ImageClassifier
    >>> pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    >>> pictures[::2, :, :16] = 0
    >>> labels = ["half", "full"] * 4
    >>> classifier = ImageClassifier(folds=2).fit(pictures, labels)
    >>> classifier.predict(pictures[:2])
    array(['half', 'full'], dtype='<U4')
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        folds: int = 5,
        imbalance: Imbalance = "auto",
        engine: str = "auto",
        device: str = "auto",
        cache_dir: str | None = None,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.folds = folds
        self.imbalance = imbalance
        self.engine = engine
        self.device = device
        self.cache_dir = cache_dir
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None) -> Self:
        """Learn from pictures and their labels.

        Parameters
        ----------
        X : sequence of paths, bytes, PIL images or arrays; array (n, H, W, C); or a folder
            A folder of class folders (or a manifest) brings its own labels.
        y : sequence of length n, optional
            Class of each picture; left out when ``X`` is a folder.
        groups : sequence of length n, optional
            Pictures of one group stay in one fold of the inner cross-validation.

        Raises
        ------
        UsageError
            If the lengths differ, or labels are missing.
        DataError
            If a picture cannot be decoded.
        """
        data, names = _labelled(X, y, groups)
        store = self._cache()
        samples = select(data.samples, cache=store, bad_files="error")
        trunk = Trunk.open(self.backbone)
        blank = TransferModel(trunk=trunk, task=Classification(classes=data.classes))
        method = LinearProbe(
            folds=self.folds, imbalance=self.imbalance, seed=int(self.random_state)
        )
        whole = Dataset(samples=samples, classes=data.classes, name=data.name)
        self.model_ = method.fit(blank, whole, extractor=self._extractor(store))
        self.classes_ = names
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each picture, as it was given to ``fit``, shape (n,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (n, n_classes), columns as in ``classes_``."""
        check_is_fitted(self, "model_")
        store = self._cache()
        samples = select(gather(X), cache=store, bad_files="error")
        return self.model_.predict_probabilities(samples, extractor=self._extractor(store))

    def _cache(self) -> Cache:
        return Cache(None if self.cache_dir is None else Path(self.cache_dir))

    def _extractor(self, store: Cache) -> Extractor:
        return Extractor(cache=store, engine=self.engine, device=self.device)


def _labelled(
    X: Any, y: ArrayLike | None, groups: ArrayLike | None
) -> tuple[Dataset, NDArray[Any]]:
    """Examples with labels, and the classes as the user wrote them, in the same order."""
    if y is None:
        if not isinstance(X, str | Path):
            raise UsageError("Expected labels `y` for these pictures, got none; do pass them.")
        data = read_dataset(X)
        return data, np.asarray(data.classes)
    samples, labels = gather(X), np.asarray(y)
    if labels.shape != (len(samples),):
        raise UsageError(
            f"Expected one label for each of {len(samples)} pictures, got {labels.shape}; "
            "do pass `y` of the same length."
        )
    names, codes = np.unique(labels, return_inverse=True)
    classes = tuple(str(name) for name in names)
    together = _group_names(groups, len(samples))
    labelled = tuple(
        Sample(image=sample.image, target=classes[code], group=group)
        for sample, code, group in zip(samples, codes, together, strict=True)
    )
    return Dataset(samples=labelled, classes=classes), names


def _group_names(groups: ArrayLike | None, n: int) -> list[str | None]:
    if groups is None:
        return [None] * n
    given = [str(group) for group in np.asarray(groups)]
    if len(given) != n:
        raise UsageError(f"Expected one group for each of {n} pictures, got {len(given)}.")
    return list(given)
