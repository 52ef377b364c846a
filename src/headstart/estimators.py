"""scikit-learn's words for the same work: fit, predict, predict_proba, score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import IGNORED, Boxes, Dataset, Kind, Mask, Palette, Target
from headstart.data.prepare import gather, select
from headstart.data.readers import read_dataset
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.evaluation.classification import evaluate
from headstart.features.engines import runnable
from headstart.features.extractor import Extractor
from headstart.methods import METHODS
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.method import Method
from headstart.models.build import create_model
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.logistic_regression import Imbalance
from headstart.training.losses.classification import Loss
from headstart.workflows.evaluate import labelled_part
from headstart.workflows.recipe import DEFAULT_BACKBONE, default_method

__all__ = ["ImageClassifier", "ImageSegmenter", "ObjectDetector", "group_names"]


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A method of learning on a pretrained backbone, as a scikit-learn classifier.

    Works in ``cross_val_score`` and ``GridSearchCV``: images are paths or arrays, and each is
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
        Share of the answers that may be wrong; ``abstains`` says which images are too unsure
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
    >>> images = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    >>> images[::2, :, :16] = 0
    >>> labels = ["half", "full"] * 4
    >>> classifier = ImageClassifier(folds=2, engine="fp32").fit(images, labels)
    >>> classifier.predict(images[:2])
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
        """Learn from images and their labels.

        Parameters
        ----------
        X : sequence of paths, bytes, PIL images or arrays; array (n, H, W, C); or a folder
            A folder of class folders (or a manifest) brings its own labels, and maybe groups;
            of one with splits only the train part is learned from.
        y : sequence of length n, optional
            Class of each image; left out when ``X`` brings its own labels.
        groups : sequence of length n, optional
            Images of one group stay in one fold of the inner cross-validation.

        Raises
        ------
        UsageError
            If the lengths differ, or labels are missing or no classes.
        DataError
            If an image cannot be decoded, or there are too few of a class.
        """
        data, names = _labelled(X, y, groups)
        store = self._cache()
        samples = select(data.samples, cache=store, bad_files="error")
        method = self._method()
        backbone = FrozenBackbone.open(self.backbone)
        task = ClassificationTask(classes=data.classes, max_risk=self.max_risk)
        untrained = TransferModel(backbone=backbone, task=task)
        extractor = Extractor(cache=store, engine=self.engine, device=self.device)
        self.model_ = method.fit(untrained, replace(data, samples=samples), extractor=extractor)
        self.classes_ = names
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each image, as it was given to ``fit``, shape (n,)."""
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
        """Say which images' answers are too unsure for ``max_risk``, shape (n,).

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
            If the folder has images of a class that is not among ``classes_``.
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
        raise UsageError("Expected labels `y` for these images, got none; do pass them.")
    data = read_dataset(X, min_classes=min_classes)
    if data.kind != "multiclass":
        raise UsageError(
            f"Expected one class for each image of {data.name!r}, got several labels; do use "
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
            f"Expected images of every class to learn from in {data.name!r}, got none of "
            f"{missing}; do add some, or leave the class out."
        )
    return data


def _classes(y: ArrayLike, n: int) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Different labels in their own type and np.unique's order, and each image's place."""
    labels = np.asarray(y)
    if labels.shape != (n,):
        raise UsageError(
            f"Expected one label for each of {n} images, got {labels.shape}; "
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
    """Give each of n images the name of its group, or None.

    >>> group_names([7, 7], 2), group_names(None, 1)
    (['7', '7'], [None])
    """
    if groups is None:
        return [None] * n
    given = [str(group) for group in np.asarray(groups)]
    if len(given) != n:
        raise UsageError(f"Expected one group for each of {n} images, got {len(given)}.")
    return list(given)


class _DenseEstimator(BaseEstimator):  # type: ignore[misc]
    """What boxes and masks have in common: everything but how truths and answers are written."""

    kind: ClassVar[Kind]
    headline: ClassVar[str]

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        head: str = "auto",
        size: int = 0,
        method: str | Method = "auto",
        device: str = "auto",
        cache_dir: str | None = None,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.size = size
        self.method = method
        self.device = device
        self.cache_dir = cache_dir
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, groups: ArrayLike | None = None) -> Self:
        """Learn from images and what is where in them.

        Parameters
        ----------
        X : sequence of paths, bytes, PIL images or arrays; array (n, H, W, C); or a folder
            A folder with annotations brings its own truths; of one with splits only the train
            part is learned from.
        y : sequence of length n, optional
            What is where, as the class says; left out when ``X`` brings it.
        groups : sequence of length n, optional
            Images of one group are learned from, or judged on, together.

        Raises
        ------
        UsageError
            If the lengths differ, or truths are missing or no such.
        DataError
            If an image cannot be decoded, or boxes or masks do not fit it.
        """
        data = self._data(X, y, "train", groups)
        backbone, seed = FrozenBackbone.open(self.backbone), int(self.random_state)
        start = create_model(backbone, data, head=self.head, size=self.size, seed=seed)
        self.model_ = self._method(seed).fit(start, data, extractor=self._extractor())
        self.classes_ = np.asarray(data.classes)
        return self

    def score(self, X: Any, y: Any = None) -> float:
        """Mean average precision (.50:.95) of boxes, or mean IoU of masks, in 0..1.

        Parameters
        ----------
        X, y : as for ``fit``
            Of a folder with a test part that part counts.
        """
        check_is_fitted(self, "model_")
        found = evaluate(self.model_, self._data(X, y, "test"), extractor=self._extractor())
        return float(found.metrics[self.headline].value)

    @abstractmethod
    def _targets(self, y: Sequence[Any]) -> tuple[list[Target], tuple[str, ...]]:
        """What was passed as ``y`` in our own types, and all classes."""

    def _data(self, X: Any, y: Any, part: str, groups: ArrayLike | None = None) -> Dataset:
        store = Cache(None if self.cache_dir is None else Path(self.cache_dir))
        if y is None:
            if groups is not None or not isinstance(X, str | Path):
                raise UsageError(
                    "Expected `y` for these images, got none; do pass it, or one folder with "
                    "annotations."
                )
            return labelled_part(X, self.kind, part, cache=store)
        samples, given = gather(X), list(y)
        if len(samples) != len(given):
            raise UsageError(
                f"Expected one truth for each of {len(samples)} images, got {len(given)}; do "
                "pass `y` of the same length."
            )
        targets, classes = self._targets(given)
        together = group_names(groups, len(samples))
        labelled = tuple(
            replace(sample, target=target, group=group)
            for sample, target, group in zip(samples, targets, together, strict=True)
        )
        data = Dataset(samples=labelled, classes=classes, kind=self.kind)
        return labelled_part(data, self.kind, part, cache=store)

    def _answers(self, X: Any) -> list[Any]:
        check_is_fitted(self, "model_")
        extractor = self._extractor()
        samples = select(gather(X), cache=extractor.cache, bad_files="error")
        found: list[Any] = list(
            self.model_.answers(samples, cache=extractor.cache, device=self.device)
        )
        return found

    def _extractor(self) -> Extractor:
        store = Cache(None if self.cache_dir is None else Path(self.cache_dir))
        return Extractor(cache=store, engine="fp32", device=self.device)

    def _method(self, seed: int) -> Method:
        if not isinstance(self.method, str):
            return self.method
        if self.method == "auto":
            return default_method(self.kind, seed)
        if self.method not in METHODS:
            raise UnknownNameError("method", self.method, ["auto", *METHODS])
        kind: Any = METHODS[self.method]
        made: Method = kind(seed=seed)
        return made


class ObjectDetector(_DenseEstimator):
    """A method of learning boxes on a pretrained backbone, as a scikit-learn estimator.

    A truth is ``{"boxes": (n, 4), "labels": names}``, left, top, right, bottom in the image's
    pixels as it is shown, or ``Boxes``; an image without objects has none of them. Duplicates
    are not looked for: ``headstart data check`` finds them.

    Parameters
    ----------
    backbone : str
    head : {"auto", "faster-rcnn", "retinanet", "fcos", "ssdlite"}
    size : int
        Longer side, in pixels, that images are read at, rounded up to a multiple of 32; 0 is
        320.
    method : str or Method
        ``auto`` trains the head behind a frozen backbone; ``finetune``, ``scratch``, or one with
        settings of its own, such as ``Finetune(train_from="last")``.
    device : str
    cache_dir : str or None
        Where activations are kept; None is the user's cache.
    random_state : int
        Decides the head's start and the order of the images.

    Attributes
    ----------
    classes_ : array of str
    model_ : TransferModel

    Examples
    --------
    >>> from headstart import ObjectDetector
    >>> detector = ObjectDetector(head="ssdlite", size=128).fit("demo:boxes")  # doctest: +SKIP
    >>> detector.predict("photo.jpg")[0]["labels"]  # doctest: +SKIP
    array(['disc'], dtype='<U8')
    """

    kind: ClassVar[Kind] = "detection"
    headline: ClassVar[str] = "map"

    def predict(self, X: Any) -> list[dict[str, NDArray[Any]]]:
        """Find objects.

        Returns
        -------
        list of dict
            For each image ``boxes``, shape (n, 4), ``labels`` and ``scores``, shape (n,), the
            most certain first, from the model's threshold on.
        """
        return [
            {"boxes": one.boxes, "labels": self.classes_[one.labels], "scores": one.scores}
            for one in self._answers(X)
        ]

    def _targets(self, y: Sequence[Any]) -> tuple[list[Target], tuple[str, ...]]:
        found: list[Target] = [_boxes(one) for one in y]
        names = {name for one in found if isinstance(one, Boxes) for name in one.labels}
        return found, tuple(sorted(names))


class ImageSegmenter(_DenseEstimator):
    """A method of learning masks on a pretrained backbone, as a scikit-learn estimator.

    A truth is an array of whole numbers, shape (height, width) of its image as it is shown: a
    class for every pixel; 255 is neither learned nor judged. Duplicates are not looked for:
    ``headstart data check`` finds them.

    Parameters
    ----------
    backbone : str
    head : {"auto", "unet", "unetplusplus", "deeplabv3plus", "fpn", "deeplabv3"}
    size, method, device, cache_dir, random_state
        As for ``ObjectDetector``.

    Attributes
    ----------
    classes_ : array of str
        Names of the classes; the numbers as text where ``y`` was given.
    model_ : TransferModel

    Examples
    --------
    >>> from headstart import ImageSegmenter
    >>> segmenter = ImageSegmenter(size=128).fit("demo:masks")  # doctest: +SKIP
    >>> segmenter.predict("photo.jpg")[0].shape  # doctest: +SKIP
    (480, 640)
    """

    kind: ClassVar[Kind] = "segmentation"
    headline: ClassVar[str] = "mean_iou"

    def fit(self, X: Any, y: Any = None, groups: ArrayLike | None = None) -> Self:
        """As ``ObjectDetector.fit``; ``y`` are masks."""
        super().fit(X, y, groups)
        numbers = range(len(self.classes_)) if y is None else map(int, self.classes_)
        self.values_ = np.asarray([*numbers], dtype=np.uint8)
        return self

    def predict(self, X: Any) -> list[NDArray[np.uint8]]:
        """Give every pixel a class.

        Returns
        -------
        list of array, uint8, shape (height, width)
            Numbers as in ``y``; where a folder was learned from, places in ``classes_``.
        """
        return [self.values_[one.mask] for one in self._answers(X)]

    def _targets(self, y: Sequence[Any]) -> tuple[list[Target], tuple[str, ...]]:
        masks = [_mask(one) for one in y]
        seen = sorted({int(value) for mask in masks for value in np.unique(mask)} - {IGNORED})
        palette = Palette(codes=tuple((value, str(value)) for value in seen))
        found: list[Target] = [
            Mask(source=mask, palette=palette, present=_present(mask)) for mask in masks
        ]
        return found, palette.names


def _boxes(one: Any) -> Boxes:
    if isinstance(one, Boxes):
        return one
    try:
        corners, labels = np.asarray(one["boxes"], dtype=np.float64), list(one["labels"])
        corners = corners.reshape(-1, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            'Expected each of `y` to be Boxes or {"boxes": (n, 4), "labels": n names}, got '
            f"{type(one).__name__} ({error!r}); do convert it."
        ) from error
    if not np.isfinite(corners).all() or len(corners) != len(labels):
        raise UsageError(
            f"Expected finite boxes and one label for each, got {len(corners)} boxes and "
            f"{len(labels)} labels; do correct `y`."
        )
    rows = tuple((left, top, right, bottom) for left, top, right, bottom in corners.tolist())
    return Boxes(corners=rows, labels=tuple(map(str, labels)))


def _mask(one: Any) -> NDArray[np.uint8]:
    mask = np.asarray(one)
    whole = mask.ndim == 2 and mask.dtype.kind in "biu" and mask.size
    if not whole or mask.min() < 0 or mask.max() > IGNORED:
        raise UsageError(
            "Expected each of `y` to be an array of whole numbers from 0 to 255, shape (height, "
            f"width), got {mask.dtype} of shape {mask.shape}; do convert it."
        )
    return mask.astype(np.uint8)


def _present(mask: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(str(value) for value in np.unique(mask) if value != IGNORED)
