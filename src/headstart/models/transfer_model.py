"""The model: a frozen backbone, a head and a task, with predictions and their text formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import CLASSES_SHOWN, Dataset, Sample, brief, html_table
from headstart.data.pixel_values import ImageOptions
from headstart.data.prepare import BadFiles, readable_samples, to_samples
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.features.engines import runnable_engine
from headstart.features.extractor import Extractor
from headstart.files import csv_text
from headstart.models.heads.detection_config import SELECTION_SETTINGS
from headstart.models.heads.head import Head
from headstart.models.heads.linear import LinearHead
from headstart.models.inference import Detections, Network, Segmentation, detect, segment
from headstart.models.tasks import ClassificationTask, DetectionTask, Task
from headstart.models.writing import save

if TYPE_CHECKING:
    from headstart.models.torch_module import ClassifierModule

__all__ = [
    "AnyPrediction",
    "Prediction",
    "TransferModel",
    "align_classes",
    "class_predictions",
    "predictions_csv",
    "predictions_json",
]

TaskT = TypeVar("TaskT", bound=Task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Prediction of a classifier for one image.

    Parameters
    ----------
    name : str
        The image's path, or its kind when it came from memory.
    label : str or tuple of str
        Name of the class; for multilabel all predicted labels.
    probability : float
        Calibrated probability of ``label``; for multilabel the largest of any label.
    probabilities : dict of str to float
        Of every class, by name.
    abstains : bool or None
        Whether the model is not confident enough for the requested risk; None if no threshold
        was chosen.
    """

    name: str
    label: str | tuple[str, ...]
    probability: float
    probabilities: dict[str, float]
    abstains: bool | None = None

    def __repr__(self) -> str:
        largest = sorted(self.probabilities.items(), key=lambda item: -item[1])[:3]
        texts = ", ".join(f"{brief(name)}: {value:.4g}" for name, value in largest)
        rest = ", ..." if len(self.probabilities) > len(largest) else ""
        abstains = "" if self.abstains is None else f", abstains={self.abstains}"
        return (
            f"Prediction(name={brief(self.name)}, label={brief(self.label)}, "
            f"probability={self.probability:.4g}, probabilities={{{texts}{rest}}}{abstains})"
        )

    def _repr_html_(self) -> str:
        largest = sorted(self.probabilities.items(), key=lambda item: -item[1])
        rows = {name: f"{value:.4g}" for name, value in largest[:CLASSES_SHOWN]}
        abstains = " (abstains)" if self.abstains else ""
        label = self.label if isinstance(self.label, str) else brief(self.label)
        return html_table(f"{brief(self.name)}: {label}{abstains}", rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferModel:
    """A backbone with a head for a task, and the record of its training.

    Parameters
    ----------
    backbone : FrozenBackbone
        The backbone with its weights and preprocessing.
    task : ClassificationTask, DetectionTask or SegmentationTask
    head : Head or None
        None until a method has fitted one.
    engine : str
        Engine of the features that the head was trained on; predictions use the same one if
        this machine has it.
    record : mapping
        Method, data, versions: JSON values, stored with the model.
    """

    backbone: FrozenBackbone
    task: Task
    head: Head | None = None
    engine: str = "auto"
    record: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        head = "no head (not fitted)" if self.head is None else f"head {self.head.kind}"
        return (
            f"TransferModel({self.task.kind}, {brief(self.backbone.spec.name)}, {head}, "
            f"{len(self.task.classes)} classes: {brief(self.task.classes)})"
        )

    def _repr_html_(self) -> str:
        rows = {
            "backbone": self.backbone.spec.name,
            "head": "none (not fitted)" if self.head is None else self.head.kind,
            "classes": f"{len(self.task.classes)}: {brief(self.task.classes)}",
            "engine": self.engine,
            "training images": len(self.record.get("learned_from", ())),
        }
        return html_table(f"TransferModel, {self.task.kind}", rows)

    @property
    def image_options(self) -> ImageOptions:
        """How images are decoded, as in training."""
        return ImageOptions.of(self.record.get("image_options", {}))

    def require_head(self) -> Head:
        """Return the head.

        Raises
        ------
        UsageError
            If the model has not been fitted.
        """
        if self.head is None:
            raise UsageError(
                f"The model is not fitted: it has no head for {self.task.name}. Fit it first."
            )
        return self.head

    def linear_head(self) -> LinearHead:
        """Return the head of a classifier.

        Raises
        ------
        UsageError
            If the model has not been fitted, or does not classify.
        """
        head = self.require_head()
        if not isinstance(head, LinearHead):
            raise UsageError(
                f"Expected a classifier, got a model with the head {head.kind!r} for "
                f"{self.task.name}. Pass a model that was trained on classes."
            )
        return head

    def require_task(self, task_type: type[TaskT]) -> TaskT:
        """Return the task, if it is of this type.

        Raises
        ------
        UsageError
            If the model has another task.
        """
        if not isinstance(self.task, task_type):
            expected = task_type.__name__.removesuffix("Task").lower()
            raise UsageError(
                f"Expected a model for {expected}, got one for {self.task.name}. Pass a model "
                f"that was trained for {expected}."
            )
        return self.task

    def with_selection(self, **selection: Any) -> TransferModel:
        """Return the same detector with another choice of boxes.

        Parameters
        ----------
        **selection
            ``nms``, ``class_agnostic_nms`` and ``max_boxes`` of `BoxSelection`. One that is None
            stays as it is in the model.

        Raises
        ------
        UnknownNameError
            If there is no such setting.
        UsageError
            If a value is out of its range, or the model has no boxes.
        """
        for name in selection:
            if name not in SELECTION_SETTINGS:
                raise UnknownNameError("setting", name, SELECTION_SETTINGS)
        given = {name: value for name, value in selection.items() if value is not None}
        if not given:
            return self
        if not isinstance(self.task, DetectionTask):
            names = ", ".join(f"`{name}`={value!r}" for name, value in given.items())
            raise UsageError(
                f"{names} cannot be used with a {self.task.kind} model, which has no boxes. Leave "
                "it out."
            )
        chosen = replace(self.task.selection, **given)
        return replace(self, task=replace(self.task, selection=chosen))

    def initial_head(self, train: Dataset, *, seed: int) -> Head:
        """Return the head that training starts from: the model's, or a random linear head.

        Raises
        ------
        UsageError
            If the model has no head and the data have boxes or masks.
        """
        if self.head is not None and (train.is_dense or self.head.taps):
            return self.head
        if train.is_dense:
            raise UsageError(
                f"Expected a model with a head for {train.kind}, got one without a head. Build it "
                "with `headstart.models.build.create_model`."
            )
        return LinearHead.random(self.backbone.width, len(train.classes), seed=seed)

    def align_classes(self, data: Dataset) -> Dataset:
        """Return the same images with this model's classes, as the function `align_classes`."""
        return align_classes(self.task, data)

    def predict_probabilities(
        self, samples: Sequence[Sample], *, extractor: Extractor
    ) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (n, n_classes), in the order of ``task.classes``."""
        head, task = self.linear_head(), self.require_task(ClassificationTask)
        values = extractor.features(self.backbone, samples).values
        if not len(samples):
            return np.zeros((0, len(task.classes)))
        return np.asarray(task.probabilities(head.logits(values)))

    def predict(
        self,
        images: object,
        *,
        bad_files: BadFiles = "error",
        engine: str | None = None,
        device: str = "auto",
        cache: Cache | None = None,
        threshold: float | None = None,
        tile: int = 0,
        max_pixels: int | None = None,
        **settings: Any,
    ) -> list[Any]:
        """Predict the class, the objects or the mask of every image, in order.

        Parameters
        ----------
        images : path, bytes, PIL image, array, or a sequence of these
            A folder stands for all images below it.
        bad_files : {"error", "skip"}
            Stop at images that cannot be decoded, or leave them out of the result.
        engine : str, optional
            By default the engine that the head was trained with, if this machine has it.
            Detection and segmentation always run in fp32.
        device : str
        cache : Cache, optional
            By default the user's.
        threshold : float, optional
            Detection only: least score of a box, 0 to 1; by default the task's.
        tile : int
            Segmentation only: longer side, in the image's pixels, of the overlapping windows that
            a larger image is split into; 0 reads every image at once.
        max_pixels : int, optional
            Largest width times height; by default that of the training.
        **settings
            ``format``, ``out`` and ``ids`` to write files, as `headstart.predict`. Detection only:
            ``nms``, ``class_agnostic_nms`` and ``max_boxes``, as `with_selection`.

        Returns
        -------
        list of Prediction, Detections or Segmentation
            By the task; boxes and masks are in the image's own coordinates.

        Raises
        ------
        DataError
            If an image cannot be decoded and ``bad_files`` is "error". The message names it.
        UsageError
            If an argument is not for this task.
        """
        import headstart  # the public function, as a user would call it: ARCHITECTURE.md, section 2

        settings |= {"bad_files": bad_files, "engine": engine, "device": device}
        settings |= {"threshold": threshold, "tile": tile, "max_pixels": max_pixels}
        return headstart.predict(self, images, cache=cache, **settings)

    def embed(
        self,
        images: object,
        *,
        bad_files: BadFiles = "error",
        engine: str | None = None,
        device: str = "auto",
        cache: Cache | None = None,
    ) -> NDArray[np.float32]:
        """Compute the pooled features of images, in order.

        Parameters
        ----------
        images, bad_files, engine, device, cache
            As in ``predict``.

        Returns
        -------
        array, float32, shape (n, width)

        Raises
        ------
        DataError
            If an image cannot be decoded and ``bad_files`` is "error". The message names it.
        UsageError
            If an argument is not for this task.
        """
        self._require_task_arguments(engine, None, 0)
        cache = cache or Cache()
        samples = readable_samples(
            to_samples(images), cache=cache, bad_files=bad_files, options=self.image_options
        )
        if not samples:
            return np.zeros((0, self.backbone.width), dtype=np.float32)
        extractor = Extractor(cache=cache, engine=self._engine(engine, device), device=device)
        return extractor.features(self.backbone, samples).values

    def evaluate(self, data: object, **settings: Any) -> Any:
        """Evaluate the model on labelled images, as `headstart.evaluate`.

        Parameters
        ----------
        data : str, Path, Dataset or object
            Class folders, a table, or another source of `headstart.fit`.
        **settings
            ``group_by``, ``bad_files``, ``allow_overlap``, ``device``, ``seed`` and ``cache``; for
            boxes ``nms``, ``class_agnostic_nms`` and ``max_boxes``.

        Returns
        -------
        Evaluation, BoxEvaluation or MaskEvaluation

        Raises
        ------
        DataError, LeakError, UsageError
            As `headstart.evaluate`.
        """
        import headstart  # the public function, as a user would call it: ARCHITECTURE.md, section 2

        return headstart.evaluate(self, data, **settings)

    def export(self, to: str = "onnx", **settings: Any) -> Any:
        """Export the model as a file for another runtime, as `headstart.export`.

        Parameters
        ----------
        to : {"onnx", "openvino", "pt2"}
        **settings
            ``out``, ``input``, ``images``, ``int8`` and ``allow_loss``.

        Returns
        -------
        Export

        Raises
        ------
        UsageError, ExportError, SetupError
            As `headstart.export`.
        """
        import headstart  # as `evaluate`

        return headstart.export(self, to, **settings)

    def save(self, folder: str | Path) -> None:
        """Write the model into a folder: model.json and model.safetensors.

        Parameters
        ----------
        folder : str or Path
            Created if necessary. A model in the folder is replaced.

        Raises
        ------
        UsageError
            If the model has not been fitted.
        SetupError
            If the folder cannot be written.
        """
        save(self, folder)

    def torch(self, *, resize: bool = True) -> ClassifierModule:
        """Return a torch module from pixels to probabilities, for your own torch code.

        Preprocessing and calibration are inside.

        Parameters
        ----------
        resize : bool
            Take images of any size. Without it, images have the model's input size already.

        Raises
        ------
        UsageError
            If the model has not been fitted, or does not classify.
        """
        head, task = self.linear_head(), self.require_task(ClassificationTask)
        from headstart.models.torch_module import ClassifierModule

        return ClassifierModule(self.backbone, head, task, resize=resize)

    def _engine(self, engine: str | None, device: str) -> str:
        return engine or runnable_engine(self.engine, device=device)

    def predict_samples(
        self,
        samples: Sequence[Sample],
        *,
        cache: Cache,
        engine: str | None = None,
        device: str = "auto",
        threshold: float | None = None,
        tile: int = 0,
        network: Network | None = None,
    ) -> Iterator[AnyPrediction]:
        """Predict as ``predict``, for samples that were read already; masks one at a time.

        For boxes and masks, ``network`` is what `build_network` returns, for many calls.
        """
        self._require_task_arguments(engine, threshold, tile)
        if self.task.kind == "segmentation":
            yield from segment(
                self.backbone,
                self.require_head(),
                samples,
                tile=tile,
                device=device,
                network=network,
            )
        elif isinstance(self.task, DetectionTask):
            least = self.task.thresholds if threshold is None else threshold
            detections = detect(
                self.backbone,
                self.require_head(),
                samples,
                selection=self.task.selection,
                device=device,
                network=network,
            )
            yield from (detection.above(least) for detection in detections)
        else:
            engine = self._engine(engine, device)
            extractor = Extractor(cache=cache, engine=engine, device=device)
            probabilities = self.predict_probabilities(samples, extractor=extractor)
            task = self.require_task(ClassificationTask)
            yield from class_predictions(task, samples, probabilities)

    def _require_task_arguments(
        self, engine: str | None, threshold: float | None, tile: int
    ) -> None:
        """Refuse arguments that this task would ignore."""
        kind = self.task.kind
        wrong = [
            argument
            for argument, is_set, is_allowed in (
                (f"threshold={threshold}", threshold is not None, kind == "detection"),
                (f"tile={tile}", tile != 0, kind == "segmentation"),
                (f"engine={engine}", engine not in {None, "fp32"}, "multi" in kind),
            )
            if is_set and not is_allowed
        ]
        if wrong:
            raise UsageError(
                f"{' and '.join(wrong)} cannot be used with a {kind} model: a threshold is for "
                "detection, a tile for segmentation, an engine for classification. Leave it out."
            )
        if threshold is not None and not 0 <= threshold <= 1:
            raise UsageError(
                f"Expected a threshold from 0 to 1, got {threshold}. Pass a score such as 0.5."
            )


AnyPrediction = Prediction | Detections | Segmentation
"""Prediction of a model for one image, by its task."""


def align_classes(task: Task, data: Dataset) -> Dataset:
    """Return the same images with a task's classes, so that class indices agree.

    Raises
    ------
    DataError
        If the task has one class for each image, and an image has several labels or none.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"", target="dog"),), classes=("dog",))
    >>> align_classes(ClassificationTask(classes=("cat", "dog")), data).targets()
    array([1])
    """
    if task.kind == "multiclass":
        for sample in data.samples:
            if isinstance(sample.target, tuple) and len(sample.target) != 1:
                raise DataError(
                    f"Expected one class for each image, got {list(sample.target)} for "
                    f"{sample.name}. Use a model that was trained on several labels."
                )
    return replace(data, classes=task.classes, kind=task.kind)


def class_predictions(
    task: ClassificationTask, samples: Sequence[Sample], probabilities: NDArray[np.float64]
) -> Iterator[Prediction]:
    """Name the rows of probabilities: the label of each image, and whether the model abstains.

    Parameters
    ----------
    task : ClassificationTask
    samples : n samples
    probabilities : array, shape (n, n_classes)

    Examples
    --------
    >>> task = ClassificationTask(classes=("cat", "dog"))
    >>> rows = class_predictions(task, [Sample(image=Path("a.jpg"))], np.array([[0.1, 0.9]]))
    >>> [prediction.label for prediction in rows]
    ['dog']
    """
    abstains = task.abstains(probabilities)
    flags = [None] * len(probabilities) if abstains is None else abstains.tolist()
    rows = zip(samples, task.labels(probabilities), probabilities, flags, strict=True)
    for sample, label, row, flag in rows:
        yield Prediction(
            name=sample.name,
            label=label,
            probability=float(row.max()),
            probabilities=dict(zip(task.classes, map(float, row), strict=True)),
            abstains=flag,
        )


def predictions_json(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions as JSON values; ``abstains`` only if the model has a threshold for it."""
    rows = [asdict(prediction) for prediction in predictions]
    return [{k: v for k, v in row.items() if k != "abstains" or v is not None} for row in rows]


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """Predictions as the text of a CSV file: image, label, probability, every class.

    If the model can abstain, a column ``abstains`` of 0 and 1 follows the probability.

    >>> cat = Prediction(name="a.jpg", label="cat", probability=0.9, probabilities={"cat": 0.9})
    >>> predictions_csv([cat]).splitlines()
    ['image,label,probability,cat', 'a.jpg,cat,0.900000,0.900000']
    """
    classes = list(predictions[0].probabilities) if predictions else []
    can_abstain = any(prediction.abstains is not None for prediction in predictions)
    rows = []
    for prediction in predictions:
        label = prediction.label
        text = label if isinstance(label, str) else "|".join(label)
        numbers = (prediction.probability, *prediction.probabilities.values())
        first, *others = (f"{number:.6f}" for number in numbers)
        abstains = [int(bool(prediction.abstains))] * can_abstain
        rows.append([prediction.name, text, first, *abstains, *others])
    return csv_text(["image", "label", "probability", *["abstains"] * can_abstain, *classes], rows)
