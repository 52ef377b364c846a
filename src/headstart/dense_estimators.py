"""scikit-learn's words for boxes and masks: fit, predict, score; no logic of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from headstart.blank import blank
from headstart.cache import Cache
from headstart.data.prepare import gather, select
from headstart.data.samples import Dataset, Kind, Target
from headstart.data.truths import IGNORED, Boxes, Mask, Palette
from headstart.errors import UnknownNameError, UsageError
from headstart.estimators import group_names
from headstart.evaluation import evaluate
from headstart.features import Extractor
from headstart.judging import labelled_part
from headstart.methods import METHODS
from headstart.methods.method import Method
from headstart.recipe import DEFAULT_BACKBONE, default_method
from headstart.trunk import Trunk

__all__ = ["ImageSegmenter", "ObjectDetector"]


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
        """Learn from pictures and what is where in them.

        Parameters
        ----------
        X : sequence of paths, bytes, PIL images or arrays; array (n, H, W, C); or a folder
            A folder with annotations brings its own truths; of one with splits only the train
            part is learned from.
        y : sequence of length n, optional
            What is where, as the class says; left out when ``X`` brings it.
        groups : sequence of length n, optional
            Pictures of one group are learned from, or judged on, together.

        Raises
        ------
        UsageError
            If the lengths differ, or truths are missing or no such.
        DataError
            If a picture cannot be decoded, or boxes or masks do not fit it.
        """
        data = self._data(X, y, "train", groups)
        trunk, seed = Trunk.open(self.backbone), int(self.random_state)
        start = blank(trunk, data, head=self.head, size=self.size, seed=seed)
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
                    "Expected `y` for these pictures, got none; do pass it, or one folder with "
                    "annotations."
                )
            return labelled_part(X, self.kind, part, cache=store)
        samples, given = gather(X), list(y)
        if len(samples) != len(given):
            raise UsageError(
                f"Expected one truth for each of {len(samples)} pictures, got {len(given)}; do "
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

    A truth is ``{"boxes": (n, 4), "labels": names}``, left, top, right, bottom in the picture's
    pixels as it is shown, or ``Boxes``; a picture without objects has none of them. Duplicates
    are not looked for: ``headstart data check`` finds them.

    Parameters
    ----------
    backbone : str
    head : {"auto", "faster-rcnn", "retinanet", "fcos", "ssdlite"}
    size : int
        Longer side, in pixels, that pictures are read at, rounded up to a multiple of 32; 0 is
        320.
    method : str or Method
        ``auto`` trains the head behind a frozen backbone; ``finetune``, ``scratch``, or one with
        settings of its own, such as ``Finetune(train_from="last")``.
    device : str
    cache_dir : str or None
        Where activations are kept; None is the user's cache.
    random_state : int
        Decides the head's start and the order of the pictures.

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
            For each picture ``boxes``, shape (n, 4), ``labels`` and ``scores``, shape (n,), the
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

    A truth is an array of whole numbers, shape (height, width) of its picture as it is shown: a
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
