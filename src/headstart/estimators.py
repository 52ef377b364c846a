"""scikit-learn's words for the same work: fit, predict, predict_proba, score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from headstart.cache import Cache
from headstart.data.prepare import gather, select
from headstart.data.readers import read_dataset
from headstart.data.samples import Dataset
from headstart.engines import runnable
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.features import Extractor
from headstart.methods import METHODS
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.method import Method
from headstart.model import TransferModel
from headstart.recipe import DEFAULT_BACKBONE
from headstart.tasks.classification import Classification
from headstart.training.losses import Loss
from headstart.training.probe import Imbalance
from headstart.trunk import Trunk

__all__ = ["ImageClassifier", "group_names"]


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A method of learning on a pretrained backbone, as a scikit-learn classifier.

    Works in ``cross_val_score`` and ``GridSearchCV``: pictures are paths or arrays, and each is
    seen by the backbone once, however many folds and candidates there are. Duplicates are not
    looked for: ``headstart data check`` finds them.

    Parameters
    ----------
    backbone : str
    method : str or Method
        ``linear-probe``, ``finetune``, ``scratch``, or one with settings of its own, such as
        ``Finetune(train_from="layer4")``; given by name, it takes ``folds``, ``imbalance`` and
        ``random_state`` from here, as far as it has them.
    folds : int
        Of the cross-validation that chooses the penalty.
    imbalance : {"auto", "none", "balanced"}
    max_risk : float or None
        Share of the answers that may be wrong; ``abstains`` says which pictures are too unsure
        for it.
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
    >>> classifier = ImageClassifier(folds=2, engine="fp32").fit(pictures, labels)
    >>> classifier.predict(pictures[:2])
    array(['half', 'full'], dtype='<U4')
    """

    def __init__(  # noqa: PLR0913 - scikit-learn's contract: an argument a setting
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        method: str | Method = "linear-probe",
        folds: int = 5,
        imbalance: Imbalance = "auto",
        max_risk: float | None = None,
        engine: str = "auto",
        device: str = "auto",
        cache_dir: str | None = None,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.folds = folds
        self.imbalance = imbalance
        self.max_risk = max_risk
        self.engine = engine
        self.device = device
        self.cache_dir = cache_dir
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None) -> Self:
        """Learn from pictures and their labels.

        Parameters
        ----------
        X : sequence of paths, bytes, PIL images or arrays; array (n, H, W, C); or a folder
            A folder of class folders (or a manifest) brings its own labels, and maybe groups;
            of one with splits only the train part is learned from.
        y : sequence of length n, optional
            Class of each picture; left out when ``X`` brings its own labels.
        groups : sequence of length n, optional
            Pictures of one group stay in one fold of the inner cross-validation.

        Raises
        ------
        UsageError
            If the lengths differ, or labels are missing or no classes.
        DataError
            If a picture cannot be decoded, or there are too few of a class.
        """
        data, names = _labelled(X, y, groups)
        store = self._cache()
        samples = select(data.samples, cache=store, bad_files="error")
        method = self._method()
        trunk = Trunk.open(self.backbone)
        task = Classification(classes=data.classes, max_risk=self.max_risk)
        blank = TransferModel(trunk=trunk, task=task)
        extractor = Extractor(cache=store, engine=self.engine, device=self.device)
        self.model_ = method.fit(blank, replace(data, samples=samples), extractor=extractor)
        self.classes_ = names
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each picture, as it was given to ``fit``, shape (n,)."""
        chances = self.predict_proba(X)
        return np.asarray(self.classes_[chances.argmax(axis=1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (n, n_classes), columns as in ``classes_``."""
        check_is_fitted(self, "model_")
        store = self._cache()
        samples = select(gather(X), cache=store, bad_files="error")
        # The arithmetic that the head learned from, where this machine has it.
        engine = runnable(self.model_.engine, device=self.device)
        extractor = Extractor(cache=store, engine=engine, device=self.device)
        return self.model_.predict_probabilities(samples, extractor=extractor)

    def abstains(self, X: Any) -> NDArray[np.bool_]:
        """Say which pictures' answers are too unsure for ``max_risk``, shape (n,).

        Raises
        ------
        UsageError
            If no risk was wanted, or no threshold could be shown to reach it; it says why.
        """
        found = self.predict_proba(X)
        unsure = self.model_.task.abstains(found)
        if unsure is None:
            chosen = self.model_.task.selected
            why = "got none wanted; do set `max_risk`." if chosen is None else chosen.sentence()
            raise UsageError(f"Expected a threshold for a wanted risk, {why}")
        return np.asarray(unsure)

    def score(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Accuracy, in 0..1.

        Parameters
        ----------
        X : as for ``fit``
            A folder of class folders (or a manifest) brings its own labels; of one with a test
            part that part counts.
        y : sequence of length n, optional
        sample_weight : array, shape (n,), optional

        Raises
        ------
        UnknownNameError
            If the folder has pictures of a class that is not among ``classes_``.
        """
        if y is None:
            check_is_fitted(self, "model_")
            data = _read(X, min_classes=1)
            data = data.split("test") if len(data.split_indices("test")) else data
            X, y = data.samples, self.classes_[self.model_.aligned(data).targets()]
        return float(super().score(X, y, sample_weight))

    def _method(self) -> Method:
        if not isinstance(self.method, str):
            return self.method
        if self.method not in METHODS:
            raise UnknownNameError("method", self.method, METHODS)
        seed = int(self.random_state)
        if self.method == LinearProbe.name:
            return LinearProbe(folds=self.folds, imbalance=self.imbalance, seed=seed)
        kind: Any = METHODS[self.method]
        return kind(seed=seed, loss=Loss(imbalance=self.imbalance))  # type: ignore[no-any-return]

    def _cache(self) -> Cache:
        return Cache(None if self.cache_dir is None else Path(self.cache_dir))


def _labelled(
    X: Any, y: ArrayLike | None, groups: ArrayLike | None
) -> tuple[Dataset, NDArray[Any]]:
    """Examples with labels, and the classes as the user wrote them, in the same order."""
    if y is None:
        if groups is not None:
            raise UsageError("Expected no `groups` without `y`, got some; do pass both.")
        data = _train_part(_read(X, min_classes=2))
        return data, np.asarray(data.classes)
    samples = gather(X)
    names, codes = _classes(y, len(samples))
    classes = tuple(str(name) for name in names)
    together = group_names(groups, len(samples))
    labelled = tuple(
        replace(sample, target=classes[code], group=group)
        for sample, code, group in zip(samples, codes, together, strict=True)
    )
    return Dataset(samples=labelled, classes=classes), names


def _read(X: Any, *, min_classes: int) -> Dataset:
    """What a folder or manifest brings."""
    if not isinstance(X, str | Path):
        raise UsageError("Expected labels `y` for these pictures, got none; do pass them.")
    data = read_dataset(X, min_classes=min_classes)
    if data.kind != "multiclass":
        raise UsageError(
            f"Expected one class for each picture of {data.name!r}, got several labels; do use "
            "`headstart.fit`, which learns them."
        )
    return data


def _train_part(data: Dataset) -> Dataset:
    """Leave out what the data's author has set aside for judging."""
    if len(data.split_indices(None)) != len(data):
        data = data.split("train")
    missing = [name for name, count in data.counts().items() if not count]
    if missing:
        raise DataError(
            f"Expected pictures of every class to learn from in {data.name!r}, got none of "
            f"{missing}; do add some, or leave the class out."
        )
    return data


def _classes(y: ArrayLike, n: int) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Different labels in their own type and np.unique's order, and each picture's place."""
    labels = np.asarray(y)
    if labels.shape != (n,):
        raise UsageError(
            f"Expected one label for each of {n} pictures, got {labels.shape}; "
            "do pass `y` of the same length."
        )
    if labels.dtype.kind in "fc" and not np.isfinite(labels).all():
        raise UsageError("Expected `y` to hold classes, got NaN or infinity; do name them.")
    try:
        check_classification_targets(labels)
        names, codes = np.unique(labels, return_inverse=True)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Expected `y` to hold classes, got {error}; do name them.") from error
    return names, codes


def group_names(groups: ArrayLike | None, n: int) -> list[str | None]:
    """Give each of n pictures the name of its group, or None.

    >>> group_names([7, 7], 2), group_names(None, 1)
    (['7', '7'], [None])
    """
    if groups is None:
        return [None] * n
    given = [str(group) for group in np.asarray(groups)]
    if len(given) != n:
        raise UsageError(f"Expected one group for each of {n} pictures, got {len(given)}.")
    return list(given)
