"""Estimators for scikit-learn: ImageClassifier, ObjectDetector and ImageSegmenter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Kind, Target
from headstart.data.formats.objects import is_collection
from headstart.data.formats.targets import mask_targets, to_boxes
from headstart.data.labels import check_weights, encode_labels, group_names, seed_of
from headstart.data.prepare import readable_samples, to_samples
from headstart.data.readers import read_dataset
from headstart.errors import DataError, UsageError
from headstart.evaluation.classification import AnyEvaluation, evaluate
from headstart.features.engines import runnable_engine
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.method import Method
from headstart.methods.plugin_methods import find_method
from headstart.models.build import create_model
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.selection.race import decide
from headstart.selection.rules import BUDGET
from headstart.training.losses.classification import Loss
from headstart.training.penalty_search import Imbalance
from headstart.workflows.evaluate import evaluate as evaluate_labelled
from headstart.workflows.evaluate import labelled_part
from headstart.workflows.recipe import DEFAULT_BACKBONE, default_method, parse_duration

__all__ = ["ImageClassifier", "ImageSegmenter", "ObjectDetector"]


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Image classifier on a pretrained backbone, as a scikit-learn classifier.

    Works in ``cross_val_score`` and ``GridSearchCV``. Images are paths or arrays. The backbone runs
    once per image, for any number of folds and candidates. Duplicates are not detected; use
    ``headstart data check``.

    Parameters
    ----------
    backbone : str
    method : str or Method
        ``linear-probe``, ``finetune``, ``scratch``, or a method object such as
        ``Finetune(train_from="layer4")``. A method given by name uses ``folds``, ``imbalance``
        and ``random_state`` of the estimator. ``auto`` compares linear probes and fine-tuning on
        held-out training images, as ``headstart fit`` does.
    folds : int
        Folds of the cross-validation that chooses the penalty.
    imbalance : {"auto", "none", "balanced"}
    max_risk : float or None
        Maximum share of wrong predictions. ``abstains`` shows for which images the model is not
        confident enough.
    engine, device : str
    cache_dir : str or None
        Folder of the feature cache; None for the user's cache.
    random_state : int, RandomState or None
        Seed of the folds and of the training. None draws another seed for each fit.
    budget : float or str
        With ``method="auto"``: seconds, or a duration such as ``"2m"``, for comparing candidates
        and training the chosen one. 0 compares linear probes only.

    Attributes
    ----------
    classes_ : array of str
        Class names in the order of the columns of ``predict_proba``.
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

    def __init__(  # noqa: PLR0913 - scikit-learn requires one argument per setting
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
        random_state: RandomState | int | None = 0,
        budget: float | str = BUDGET,
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
        self.budget = budget

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train on images and their labels.

        Parameters
        ----------
        X : sequence of paths, bytes, PIL images or arrays; array (n, H, W, C); or a folder
            A folder with one subfolder per class (or another source of `headstart.fit`)
            contains the labels. If it has splits, only the train split is used.
        y : sequence of length n, optional
            Class of each image; omit it if ``X`` contains the labels.
        groups : sequence of length n, optional
            Images of one group stay in one fold of the inner cross-validation.
        sample_weight : array of length n, optional
            Weights of the images in the loss; scores and temperature are computed without them.
            An image of weight 0 is left out. A race (method "auto") takes only equal weights.

        Raises
        ------
        UsageError
            If the lengths differ, labels are missing or not classes, or a race cannot weight the
            images.
        DataError
            If an image cannot be decoded, or a class has too few images.
        """
        data, names = _read_labelled(X, y, groups)
        rows, weights = check_weights(sample_weight, len(data), has_labels=y is not None)
        cache, seed = self._open_cache(), seed_of(self.random_state)
        samples = readable_samples([data.samples[i] for i in rows], cache=cache, bad_files="error")
        if weights is not None:
            pairs = zip(samples, weights, strict=True)
            samples = tuple(replace(sample, weight=float(weight)) for sample, weight in pairs)
        train = replace(data, samples=samples)
        extractor = Extractor(cache=cache, engine=self.engine, device=self.device)
        backbone = FrozenBackbone.open(self.backbone)
        method = None if self.method == "auto" else self._create_method(seed)
        if weights is not None and method is None:
            raise UsageError(
                f"`sample_weight` has different weights, but method={self.method!r} runs a race, "
                "which cannot weight images. Pass method='linear-probe', 'finetune' or 'scratch'."
            )
        start = self._start(backbone, data.classes)
        if method is None:
            self.model_ = self._race(backbone, train, extractor, seed)
        else:
            self.model_ = method.fit(start, train, extractor=extractor)
        self.classes_ = names
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each image, in the type of ``y``, shape (n,)."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(axis=1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (n, n_classes), columns as in ``classes_``."""
        check_is_fitted(self, "model_")
        cache = self._open_cache()
        options = self.model_.image_options
        samples = readable_samples(to_samples(X), cache=cache, bad_files="error", options=options)
        # Use the engine of the training features, if this machine has it.
        engine = runnable_engine(self.model_.engine, device=self.device)
        extractor = Extractor(cache=cache, engine=engine, device=self.device)
        return self.model_.predict_probabilities(samples, extractor=extractor)

    def abstains(self, X: Any) -> NDArray[np.bool_]:
        """Return for which images the model is not confident enough for ``max_risk``, shape (n,).

        Raises
        ------
        UsageError
            If ``max_risk`` is None, or no threshold was found for it.
        """
        probabilities = self.predict_proba(X)
        task = self.model_.require_task(ClassificationTask)
        abstains = task.abstains(probabilities)
        if abstains is not None:
            return np.asarray(abstains)
        if task.selected is not None:
            raise UsageError(f"The model has no threshold to abstain. {task.selected.sentence()}")
        raise UsageError(
            f"The model has no threshold to abstain: it was fitted with `max_risk` {task.max_risk}."
            " Set `max_risk`, for example to 0.02, and fit again."
        )

    def score(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Accuracy, in 0..1.

        Parameters
        ----------
        X : as for ``fit``
            A folder with one subfolder per class (or another source of `headstart.fit`)
            contains the labels. If it has a test split, only that is used.
        y : sequence of length n, optional
        sample_weight : array, shape (n,), optional

        Raises
        ------
        UnknownNameError
            If the folder has images of a class that is not among ``classes_``.
        """
        if y is None:
            check_is_fitted(self, "model_")
            data = _read_folder(X, min_classes=1)
            data = data.split("test") if len(data.split_indices("test")) else data
            X, y = data.samples, self.classes_[self.model_.align_classes(data).targets()]
        return float(super().score(X, y, sample_weight))

    def evaluate(self, source: Any, **settings: Any) -> AnyEvaluation:
        """Evaluate the fitted model on labelled images, as `headstart.evaluate`."""
        check_is_fitted(self, "model_")
        settings.setdefault("cache", self._open_cache())
        settings.setdefault("device", self.device)
        return evaluate_labelled(self.model_, source, **settings)

    def save(self, folder: str | Path) -> None:
        """Write the fitted model into a folder, for `headstart.load`."""
        check_is_fitted(self, "model_")
        self.model_.save(folder)

    def _race(
        self, backbone: FrozenBackbone, train: Dataset, extractor: Extractor, seed: int
    ) -> TransferModel:
        """Run the race on the training images; return its trained model, or fit the probe."""
        budget = parse_duration(self.budget)
        decision = decide([backbone], train, extractor=extractor, budget=budget, seed=seed)
        record = {"decision": decision.record}
        if decision.trained is not None:
            model = decision.trained.calibrated_model(train, self.max_risk)
            return replace(model, record={**record, **model.record})
        start = replace(self._start(decision.backbone, train.classes), record=record)
        extractor = replace(extractor, engine=decision.engine)
        return decision.method.fit(start, train, extractor=extractor)

    def _start(self, backbone: FrozenBackbone, classes: tuple[str, ...]) -> TransferModel:
        """Create the untrained model."""
        task = ClassificationTask(classes=classes, max_risk=self.max_risk)
        return TransferModel(backbone=backbone, task=task)

    def _create_method(self, seed: int) -> Method:
        if not isinstance(self.method, str):
            return self.method
        kind = find_method(self.method, other_names=["auto"])
        if kind is LinearProbe:
            return LinearProbe(folds=self.folds, imbalance=self.imbalance, seed=seed)
        loss = {"loss": Loss(imbalance=self.imbalance)} if hasattr(kind(), "loss") else {}
        kind = Finetune.measured if kind is Finetune else kind
        return kind(seed=seed, **loss)

    def _open_cache(self) -> Cache:
        return Cache(None if self.cache_dir is None else Path(self.cache_dir))


def _read_labelled(
    X: Any, y: ArrayLike | None, groups: ArrayLike | None
) -> tuple[Dataset, NDArray[Any]]:
    """Return the examples, and the classes in the type of ``y`` and in the same order."""
    if y is None:
        if groups is not None:
            raise UsageError("`groups` needs `y`, but `y` is None. Pass both, or neither.")
        data = _train_split(_read_folder(X, min_classes=2))
        return data, np.asarray(data.classes)
    samples = to_samples(X)
    names, codes = encode_labels(y, len(samples))
    classes = tuple(str(name) for name in names)
    names_of_groups = group_names(groups, len(samples))
    labelled = tuple(
        replace(sample, target=classes[code], group=group)
        for sample, code, group in zip(samples, codes, names_of_groups, strict=True)
    )
    return Dataset(samples=labelled, classes=classes), names


def _read_folder(X: Any, *, min_classes: int) -> Dataset:
    """Read a folder or table with one class per image."""
    _require_labels_inside(X, "Pass the labels as `y`")
    data = read_dataset(X, min_classes=min_classes)
    if data.kind != "multiclass":
        raise UsageError(
            f"ImageClassifier needs one class per image, but {data.name!r} has several labels per "
            f"image ({data.kind}). Use `headstart.fit`."
        )
    return data


def _require_labels_inside(X: Any, advice: str) -> None:
    """Refuse images without labels: only paths, tables, datasets and pairs contain them."""
    is_pairs = isinstance(X, list | tuple) and len(X) and isinstance(X[0], tuple)
    is_columns = isinstance(X, tuple) and len(X) == 2
    if not (isinstance(X, str | Path) or is_collection(X) or is_pairs or is_columns):
        raise UsageError(f"`X` is a {type(X).__name__} of images, but `y` is None. {advice}.")


def _train_split(data: Dataset) -> Dataset:
    """Return the train split if the data have splits, else everything."""
    if len(data.split_indices(None)) != len(data):
        data = data.split("train")
    missing = [name for name, count in data.counts().items() if not count]
    if missing:
        raise DataError(
            f"{data.name!r} has no training images of {missing}. Add images, or remove these "
            "classes."
        )
    return data


class _DenseEstimator(BaseEstimator):  # type: ignore[misc]
    """Base of the estimators for boxes and masks; they differ in the format of ``y``."""

    kind: ClassVar[Kind]
    score_name: ClassVar[str]

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        head: str = "auto",
        size: int = 0,
        method: str | Method = "auto",
        device: str = "auto",
        cache_dir: str | None = None,
        random_state: RandomState | int | None = 0,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.size = size
        self.method = method
        self.device = device
        self.cache_dir = cache_dir
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, groups: ArrayLike | None = None) -> Self:
        """Train on images with boxes or masks.

        Parameters
        ----------
        X : sequence of paths, bytes, PIL images or arrays; array (n, H, W, C); or a folder
            A folder with annotations (or another source of `headstart.fit`) contains the ground
            truth. If it has splits, only the train split is used.
        y : sequence of length n, optional
            Ground truth in the format of the class; omit it if ``X`` contains it.
        groups : sequence of length n, optional
            Images of one group stay in one split.

        Raises
        ------
        UsageError
            If the lengths differ, or the ground truth is missing or has a wrong format.
        DataError
            If an image cannot be decoded, or boxes or masks do not fit it.
        """
        data = self._data(X, y, "train", groups)
        backbone, seed = FrozenBackbone.open(self.backbone), seed_of(self.random_state)
        start = create_model(backbone, data, head=self.head, size=self.size, seed=seed)
        self.model_ = self._create_method(seed).fit(start, data, extractor=self._extractor())
        self.classes_ = np.asarray(data.classes)
        return self

    def score(self, X: Any, y: Any = None) -> float:
        """Mean average precision (.50:.95) of boxes, or mean IoU of masks, in 0..1.

        Parameters
        ----------
        X, y : as for ``fit``
            If the folder has a test split, only that is used.
        """
        check_is_fitted(self, "model_")
        evaluation = evaluate(self.model_, self._data(X, y, "test"), extractor=self._extractor())
        return float(evaluation.metrics[self.score_name].value)

    def evaluate(self, source: Any, **settings: Any) -> AnyEvaluation:
        """Evaluate the fitted model on labelled images, as `headstart.evaluate`."""
        check_is_fitted(self, "model_")
        settings.setdefault("cache", self._extractor().cache)
        settings.setdefault("device", self.device)
        return evaluate_labelled(self.model_, source, **settings)

    def save(self, folder: str | Path) -> None:
        """Write the fitted model into a folder, for `headstart.load`."""
        check_is_fitted(self, "model_")
        self.model_.save(folder)

    @abstractmethod
    def _targets(self, y: Sequence[Any]) -> tuple[list[Target], tuple[str, ...]]:
        """Convert ``y`` to targets, and return all classes."""

    def _data(self, X: Any, y: Any, part: str, groups: ArrayLike | None = None) -> Dataset:
        cache = Cache(None if self.cache_dir is None else Path(self.cache_dir))
        if y is None:
            if groups is not None:
                raise UsageError("`groups` needs `y`, but `y` is None. Pass both, or neither.")
            _require_labels_inside(X, "Pass `y`, or a folder with annotations as `X`")
            return labelled_part(X, self.kind, part, cache=cache)
        samples, truths = to_samples(X), list(y)
        if len(samples) != len(truths):
            raise UsageError(
                f"`y` must have one entry for each of the {len(samples)} images, got {len(truths)}."
                " Pass a `y` of the same length as `X`."
            )
        targets, classes = self._targets(truths)
        names_of_groups = group_names(groups, len(samples))
        labelled = tuple(
            replace(sample, target=target, group=group)
            for sample, target, group in zip(samples, targets, names_of_groups, strict=True)
        )
        data = Dataset(samples=labelled, classes=classes, kind=self.kind)
        return labelled_part(data, self.kind, part, cache=cache)

    def _predictions(self, X: Any) -> list[Any]:
        check_is_fitted(self, "model_")
        extractor = self._extractor()
        options, cache = self.model_.image_options, extractor.cache
        samples = readable_samples(to_samples(X), cache=cache, bad_files="error", options=options)
        return list(self.model_.predict_samples(samples, cache=extractor.cache, device=self.device))

    def _extractor(self) -> Extractor:
        cache = Cache(None if self.cache_dir is None else Path(self.cache_dir))
        return Extractor(cache=cache, engine="fp32", device=self.device)

    def _create_method(self, seed: int) -> Method:
        if not isinstance(self.method, str):
            return self.method
        if self.method == "auto":
            return default_method(self.kind, seed)
        method: Method = find_method(self.method, other_names=["auto"])(seed=seed)
        return method


class ObjectDetector(_DenseEstimator):
    """Object detector on a pretrained backbone, as a scikit-learn estimator.

    An entry of ``y`` is ``{"boxes": (n, 4), "labels": names}`` or ``Boxes``; a box is left, top,
    right, bottom in pixels of the upright image. An image without objects has no boxes. Duplicates
    are not detected; use ``headstart data check``.

    Parameters
    ----------
    backbone : str
    head : {"auto", "faster-rcnn", "retinanet", "fcos", "ssdlite"}
    size : int
        Longer side of the input in pixels, rounded up to a multiple of 32; 0 means 320.
    method : str or Method
        ``auto``, the default method of the task; ``finetune``, ``scratch``, or a method object such
        as ``Finetune(train_from="last")``.
    device : str
    cache_dir : str or None
        Folder of the activation cache; None for the user's cache.
    random_state : int, RandomState or None
        Seed of the head's initial weights and of the order of the images. None draws another seed
        for each fit.

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
    score_name: ClassVar[str] = "map"

    def predict(self, X: Any) -> list[dict[str, NDArray[Any]]]:
        """Detect objects.

        Returns
        -------
        list of dict
            For each image ``boxes``, shape (n, 4), ``labels`` and ``scores``, shape (n,), sorted by
            score, with at least the model's threshold.
        """
        return [
            {"boxes": image.boxes, "labels": self.classes_[image.labels], "scores": image.scores}
            for image in self._predictions(X)
        ]

    def _targets(self, y: Sequence[Any]) -> tuple[list[Target], tuple[str, ...]]:
        targets = [to_boxes(entry, f"entry {i} of `y`") for i, entry in enumerate(y)]
        names = {name for boxes in targets for name in boxes.labels}
        return list(targets), tuple(sorted(names))


class ImageSegmenter(_DenseEstimator):
    """Segmentation model on a pretrained backbone, as a scikit-learn estimator.

    An entry of ``y`` is an array of whole numbers with the shape (height, width) of the upright
    image: a class for every pixel; 255 is ignored. Duplicates are not detected; use
    ``headstart data check``.

    Parameters
    ----------
    backbone : str
    head : {"auto", "unet", "unetplusplus", "deeplabv3plus", "fpn", "deeplabv3"}
    size, method, device, cache_dir, random_state
        As for ``ObjectDetector``.

    Attributes
    ----------
    classes_ : array of str
        Names of the classes; if ``y`` was passed, the numbers as text.
    model_ : TransferModel

    Examples
    --------
    >>> from headstart import ImageSegmenter
    >>> segmenter = ImageSegmenter(size=128).fit("demo:masks")  # doctest: +SKIP
    >>> segmenter.predict("photo.jpg")[0].shape  # doctest: +SKIP
    (480, 640)
    """

    kind: ClassVar[Kind] = "segmentation"
    score_name: ClassVar[str] = "mean_iou"

    def fit(self, X: Any, y: Any = None, groups: ArrayLike | None = None) -> Self:
        """Same as ``ObjectDetector.fit``, with masks as ``y``."""
        super().fit(X, y, groups)
        numbers = range(len(self.classes_)) if y is None else map(int, self.classes_)
        self.values_ = np.asarray([*numbers], dtype=np.uint8)
        return self

    def predict(self, X: Any) -> list[NDArray[np.uint8]]:
        """Predict a class for every pixel.

        Returns
        -------
        list of array, uint8, shape (height, width)
            Numbers as in ``y``; if a folder was passed to ``fit``, indices into ``classes_``.
        """
        return [self.values_[segmentation.mask] for segmentation in self._predictions(X)]

    def _targets(self, y: Sequence[Any]) -> tuple[list[Target], tuple[str, ...]]:
        masks, classes = mask_targets(y, "`y`")
        return list(masks), classes
