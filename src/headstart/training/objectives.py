"""Objectives: loss, score and calibration of a training, one class per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED, Dataset, Sample
from headstart.data.loader import (
    BoxTruth,
    digest_of,
    load_boxes,
    load_mask,
    view_of_boxes,
    view_of_mask,
)
from headstart.data.transforms.preprocess import Preprocess
from headstart.features.extractor import View
from headstart.metrics.classification import log_loss, macro_f1_score
from headstart.metrics.detection import box_scores, match_boxes
from headstart.metrics.score_thresholds import choose_thresholds
from headstart.metrics.segmentation import mean_iou_score, pixel_counts
from headstart.models.heads.detection_config import BoxSelection
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask, DetectionTask, SegmentationTask, Task
from headstart.models.transfer_model import TransferModel
from headstart.training.inputs import Inputs
from headstart.training.job import Rows, Score
from headstart.training.losses.classification import classification_loss
from headstart.training.losses.segmentation import mask_loss
from headstart.training.mixup import cutmix, mixup
from headstart.training.network import Fetch, Network, Outputs
from headstart.training.samplers import epoch_order
from headstart.training.settings import SharedSettings

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BoxObjective",
    "ClassObjective",
    "FitHead",
    "LossStep",
    "MaskObjective",
    "Objective",
    "Penalty",
]

Penalty = Callable[["Tensor", Outputs, Rows], "Tensor"]
LossStep = Callable[[Rows, NDArray[Any], int], "Tensor"]
"""From the rows of a batch, their fetched array and the global step to their mean loss."""

DetectedBoxes = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Boxes (n, 4), scores (n,) and labels (n,) of one image."""
BoxPredictions = tuple[list[DetectedBoxes], float]
"""Of all validation images, and their mean loss."""
FitHead = Callable[[NDArray[np.float32]], LinearHead]
"""From the pooled features of the plain training images to a head."""
PixelPredictions = tuple[NDArray[np.intp], float]
"""Pixels of all validation images by true and predicted class, and their mean loss."""


class Objective(Protocol):
    """Loss and score of a training, from the labels of its training and validation images."""

    @property
    def train(self) -> Dataset:
        """Training images."""
        ...

    @property
    def val(self) -> Dataset:
        """Validation images, for early stopping."""
        ...

    @property
    def fits_head(self) -> bool:
        """Whether the head is fitted on the plain images before the training."""
        ...

    def fit_head(self, network: Network, read: Fetch) -> None:
        """Fit the network's first head on the inputs that ``read`` gives for every image."""
        ...

    def order(self, epoch: int) -> Rows:
        """Rows of the training images in the order of an epoch."""
        ...

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a training that reads ``inputs``."""
        ...

    def predict(self, network: Network, read: Fetch) -> Any:
        """Predict the validation images in inference mode."""
        ...

    def score(self, predictions: Any) -> Score:
        """Score predictions of the validation images."""
        ...

    def calibrate_task(self, model: TransferModel, predictions: Any) -> Task:
        """Return the model's task, calibrated on the final predictions."""
        ...


def _steps_per_epoch(settings: SharedSettings, train: Dataset) -> int:
    return settings.training.for_images(len(train)).steps_per_epoch(len(train))


def on_device(values: NDArray[Any], device: str) -> Tensor:
    """Return an array as a tensor of its own."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxObjective:
    """The detector's own loss; scored by mean average precision on the validation images.

    Parameters
    ----------
    train, val : Dataset
        Training and validation images.
    preprocess : Preprocess
        Says where an image's boxes lie on the canvas.
    settings : SharedSettings
    selection : BoxSelection
        Of the model: scores and thresholds are those of the boxes that it keeps.
    """

    train: Dataset
    val: Dataset
    preprocess: Preprocess
    settings: SharedSettings
    selection: BoxSelection = field(default_factory=BoxSelection)
    fits_head: bool = False
    _loaded: dict[int, BoxTruth] = field(default_factory=dict, repr=False)

    def fit_head(self, network: Network, read: Fetch) -> None:
        """Do nothing: a detection head is never fitted first."""

    def order(self, epoch: int) -> Rows:
        """Every image once in a random order."""
        return epoch_order(len(self.train), seed=self.settings.seed, epoch=epoch)

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a batch; augmentation moves boxes and pixels alike."""
        steps_per_epoch = _steps_per_epoch(self.settings, self.train)

        def loss(rows: Rows, batch: NDArray[Any], step: int) -> Tensor:
            x, view = network.tensor(batch), inputs.view(1 + step // steps_per_epoch)
            outputs = network.outputs(x)
            truths = [self._truth(self.train.samples[row], view) for row in rows]
            value = _detector_loss(network, outputs, truths)
            return value if penalty is None else value + penalty(x, outputs, rows)

        return loss

    def predict(self, network: Network, read: Fetch) -> BoxPredictions:
        """Detect objects in every validation image, on the canvas; with the mean loss."""
        import torch

        detected: list[DetectedBoxes] = []
        loss = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)  # some detectors sample regions for their loss
            for rows, outputs in network.predict_batches(read, len(self.val)):
                with torch.inference_mode():
                    truths = [self._val_truths[row] for row in rows]
                    loss += float(_detector_loss(network, outputs, truths)) * len(rows)
                    batch = network.layer.detect(  # type: ignore[operator]
                        outputs.logits, self.selection
                    )
                detected += [tuple(part.cpu().numpy() for part in image) for image in batch]
        return detected, loss / len(self.val)

    def score(self, predictions: BoxPredictions) -> Score:
        """Mean average precision at .50:.95; the loss decides between equal values."""
        detected, loss = predictions
        scores = box_scores(self._matches(detected), np.ones(len(self.val)))
        return Score(float(np.nan_to_num(scores["map"])), -loss)

    def calibrate_task(self, model: TransferModel, predictions: BoxPredictions) -> DetectionTask:
        """Choose the score thresholds by F1: one for each class with enough objects."""
        task = model.require_task(DetectionTask)
        chosen = choose_thresholds(self._matches(predictions[0]), seed=self.settings.seed)
        return replace(
            task,
            threshold=chosen.value,
            class_thresholds=chosen.by_class if set(chosen.by_class) != {chosen.value} else (),
            threshold_range=(chosen.low, chosen.high),
        )

    def _matches(self, detected: list[DetectedBoxes]) -> Any:
        return match_boxes(detected, self._val_truths, len(self.train.classes))

    @cached_property
    def _val_truths(self) -> list[BoxTruth]:
        return [self._truth(sample, None) for sample in self.val.samples]

    def _truth(self, sample: Sample, view: View | None) -> BoxTruth:
        """An image's boxes in an augmented view; its file is read once."""
        truth = self._loaded.get(id(sample))  # unique: the dataset keeps samples alive
        if truth is None:
            truth = load_boxes(sample, self.preprocess, self.train.classes)
            self._loaded[id(sample)] = truth
        if view is None:
            return truth
        return view_of_boxes(
            truth,
            self.preprocess.shape,
            view.augmentation,
            seed=view.seed,
            view=view.number,
            image=digest_of(sample),
        )


def _detector_loss(network: Network, outputs: Outputs, truths: Sequence[BoxTruth]) -> Tensor:
    """Sum of the detector's own loss terms; hard objects are neither objects nor background."""
    targets = [
        tuple(on_device(part[~truth.hard], network.device) for part in truth[:2])
        for truth in truths
    ]
    ignored = [on_device(truth.boxes[truth.hard], network.device) for truth in truths]
    terms = network.layer.loss(outputs.logits, targets, ignored)  # type: ignore[operator]
    total: Tensor = sum(terms.values())
    return total


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassObjective:
    """Cross-entropy and its variants; scored by macro F1 on the validation images.

    Parameters
    ----------
    train, val : Dataset
        Training and validation images.
    settings : SharedSettings
    fit_pooled_head : callable, optional
        Makes the first head.
    """

    train: Dataset
    val: Dataset
    settings: SharedSettings
    fit_pooled_head: FitHead | None = None

    @property
    def fits_head(self) -> bool:
        """Whether the head is fitted before the training."""
        return self.fit_pooled_head is not None

    def fit_head(self, network: Network, read: Fetch) -> None:
        """Fit the head on the pooled features of the training images."""
        if self.fit_pooled_head is not None:
            _, pooled = network.predict(read, len(self.train))
            network.load(network.state(), self.fit_pooled_head(pooled))

    def order(self, epoch: int) -> Rows:
        """Every image once in a random order, or by class in equal shares."""
        targets, kind = self._targets, self.train.kind
        imbalance = self.settings.loss.resolved(
            targets, n_classes=len(self.train.classes), kind=kind
        )
        return epoch_order(
            len(self.train),
            seed=self.settings.seed,
            epoch=epoch,
            targets=targets if imbalance == "sampling" else None,
            balanced=imbalance == "sampling",
        )

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a batch, with MixUp or CutMix if they are on."""
        settings, device, kind = self.settings, network.device, self.train.kind
        loss_settings = settings.loss
        n_classes, observed = len(self.train.classes), self._targets
        is_mixed = bool(settings.mixup or settings.cutmix)
        one_hot = is_mixed and kind != "multilabel"
        targets = on_device(np.eye(n_classes)[observed] if one_hot else observed, device)
        targets = targets.float() if targets.ndim == 2 else targets

        def to_device(values: NDArray[Any] | None) -> Tensor | None:
            return None if values is None else on_device(values, device).float()

        balance = to_device(loss_settings.weights(observed, n_classes=n_classes, kind=kind))
        adjustment = to_device(loss_settings.adjustment(observed, n_classes=n_classes, kind=kind))
        weights = to_device(self.train.weights())

        def loss(rows: Rows, batch: NDArray[Any], step: int) -> Tensor:
            x, truth = network.tensor(batch), targets[on_device(rows, device)]
            if is_mixed:
                rng = np.random.default_rng([settings.seed, step, 1])
                mix, alpha = (
                    (mixup, settings.mixup) if settings.mixup else (cutmix, settings.cutmix)
                )
                x, truth = mix(x, truth, alpha=alpha, rng=rng)
            outputs = network.outputs(x)
            of_rows = None if weights is None else weights[on_device(rows, device)]
            if loss_settings.function is not None:
                value = loss_settings.function.mean(outputs.logits.float(), truth, balance, of_rows)
                return value if penalty is None else value + penalty(x, outputs, rows)
            value = classification_loss(
                outputs.logits,
                truth,
                kind=kind,
                label_smoothing=loss_settings.label_smoothing,
                class_weights=balance,
                row_weights=of_rows,
                focal_gamma=loss_settings.focal,
                logit_adjustment=adjustment,
            )
            return value if penalty is None else value + penalty(x, outputs, rows)

        return loss

    def predict(self, network: Network, read: Fetch) -> NDArray[np.float64]:
        """Logits of the validation images."""
        return network.predict(read, len(self.val))[0]

    def score(self, logits: NDArray[np.float64]) -> Score:
        """Macro F1; the log-loss decides between equal values."""
        task = ClassificationTask(classes=self.train.classes, kind=self.train.kind)
        probabilities, targets = task.probabilities(logits), self.val.targets()
        value = macro_f1_score(targets, task.predicted(probabilities))
        return Score(float(value), -float(log_loss(targets, probabilities)))

    def calibrate_task(
        self, model: TransferModel, logits: NDArray[np.float64]
    ) -> ClassificationTask:
        """Fit the temperature (and thresholds) to the validation logits."""
        task = model.require_task(ClassificationTask)
        uncalibrated = replace(task, temperature=1.0, thresholds=())
        return uncalibrated.calibrated(logits, self.val.targets(), groups=self.val.groups())

    @cached_property
    def _targets(self) -> NDArray[np.intp]:
        return self.train.targets()


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskObjective:
    """A loss over pixels; scored by mean intersection over union on the validation images.

    Parameters
    ----------
    train, val : Dataset
        Training and validation images.
    preprocess : Preprocess
        Says where an image's pixels lie on the canvas.
    settings : SharedSettings
    """

    train: Dataset
    val: Dataset
    preprocess: Preprocess
    settings: SharedSettings
    fits_head: bool = False
    _loaded: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def fit_head(self, network: Network, read: Fetch) -> None:
        """Do nothing: a decoder is never fitted first."""

    def order(self, epoch: int) -> Rows:
        """Every image once in a random order."""
        return epoch_order(len(self.train), seed=self.settings.seed, epoch=epoch)

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a batch; augmentation moves masks and pixels alike."""
        steps_per_epoch = _steps_per_epoch(self.settings, self.train)
        weights = self._weights(network.device)

        def loss(rows: Rows, batch: NDArray[Any], step: int) -> Tensor:
            x, view = network.tensor(batch), inputs.view(1 + step // steps_per_epoch)
            outputs = network.outputs(x)
            masks = [self._truth(self.train.samples[row], view) for row in rows]
            truth = on_device(np.stack(masks), network.device).long()
            value = mask_loss(outputs.logits, truth, self.settings.mask_loss, class_weights=weights)
            return value if penalty is None else value + penalty(x, outputs, rows)

        return loss

    def predict(self, network: Network, read: Fetch) -> PixelPredictions:
        """Count the validation pixels by true and predicted class; with the mean loss."""
        import torch

        n_classes, loss = len(self.train.classes), 0.0
        counts = np.zeros((n_classes, n_classes), dtype=np.intp)
        for rows, outputs in network.predict_batches(read, len(self.val)):
            masks = np.stack([self._truth(self.val.samples[row], None) for row in rows])
            with torch.inference_mode():
                truth = on_device(masks, network.device).long()
                predicted = outputs.logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
                value = mask_loss(outputs.logits, truth, self.settings.mask_loss)
                loss += float(value) * len(rows)
            for mask, true in zip(predicted, masks, strict=True):
                counts += pixel_counts(mask, true, n_classes)
        return counts, loss / len(self.val)

    def score(self, predictions: PixelPredictions) -> Score:
        """Mean intersection over union; the loss decides between equal values."""
        counts, loss = predictions
        return Score(float(np.nan_to_num(mean_iou_score(counts[None], np.ones(1)))), -loss)

    def calibrate_task(
        self, model: TransferModel, predictions: PixelPredictions
    ) -> SegmentationTask:
        """Return the task: segmentation has nothing to calibrate."""
        return model.require_task(SegmentationTask)

    def _weights(self, device: str) -> Tensor | None:
        """Class weights from the number of training pixels; None without weights."""
        if self.settings.mask_loss.class_weights == "none":
            return None
        n_classes = len(self.train.classes)
        counts = np.zeros(n_classes, dtype=np.intp)
        for sample in self.train.samples:
            mask = self._truth(sample, None)
            counts += np.bincount(mask[mask != IGNORED], minlength=n_classes)
        weights = self.settings.mask_loss.weights(counts)
        return None if weights is None else on_device(weights, device).float()

    def _truth(self, sample: Sample, view: View | None) -> NDArray[np.uint8]:
        """A mask in an augmented view; decoded once."""
        mask = self._loaded.get(id(sample))  # unique: the dataset keeps samples alive
        if mask is None:
            mask = load_mask(sample, self.preprocess, self.train.classes)
            self._loaded[id(sample)] = mask
        if view is None:
            return mask
        return view_of_mask(
            mask,
            view.augmentation,
            seed=view.seed,
            view=view.number,
            image=digest_of(sample),
        )
