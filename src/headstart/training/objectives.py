"""The contract of an objective: what a task asks of a training, and how it judges one."""

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
from headstart.metrics.detection import best_threshold, box_scores, match_boxes
from headstart.metrics.segmentation import mean_iou_score, pixel_counts
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask, DetectionTask, SegmentationTask
from headstart.training.inputs import Inputs
from headstart.training.job import Rows, Score
from headstart.training.losses.classification import Loss, classification_loss
from headstart.training.losses.segmentation import MaskLoss, mask_loss
from headstart.training.mixup import cutmix, mixup
from headstart.training.network import Fetch, Network, Outputs
from headstart.training.samplers import epoch_order

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "TEMPERATURE_SPREAD",
    "BoxObjective",
    "ClassObjective",
    "LossStep",
    "MaskObjective",
    "Objective",
    "Penalty",
    "Solve",
]

Penalty = Callable[["Tensor", Outputs, Rows], "Tensor"]
LossStep = Callable[[Rows, NDArray[Any], int], "Tensor"]
"""From the rows of a batch, what was fetched for them and the global step to their mean loss."""


class Objective(Protocol):
    """Knows the truth of the images to learn from and of those to stop on."""

    @property
    def train(self) -> Dataset:
        """Images to learn from."""
        ...

    @property
    def val(self) -> Dataset:
        """Images to stop on."""
        ...

    @property
    def starts(self) -> bool:
        """Whether the head is solved on the images as they are before anything moves."""
        ...

    def start(self, network: Network, read: Fetch) -> None:
        """Give the network its first head, solved on what ``read`` gives of every image."""
        ...

    def order(self, epoch: int) -> Rows:
        """Rows of the images to learn from, as an epoch goes through them."""
        ...

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a training that reads ``inputs``."""
        ...

    def answers(self, network: Network, read: Fetch) -> Any:
        """What the network says of the images to stop on, in inference."""
        ...

    def score(self, answers: Any) -> Score:
        """How good these answers are."""
        ...

    def settled(self, task: Any, answers: Any) -> Any:
        """Return the task, as certain as the final network's answers allow."""
        ...


def on_device(values: NDArray[Any], device: str) -> Tensor:
    """Return an array as a tensor of its own."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


Found = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Boxes (n, 4), scores (n,) and labels (n,) of one image."""

Answers = tuple[list[Found], float]


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxObjective:
    """The head's own loss; judged by the mean average precision on held-out images.

    Parameters
    ----------
    train, val : Dataset
        To learn from, and to stop on.
    preprocess : Preprocess
        Says where an image's boxes lie on the canvas.
    per_epoch : int
        Steps.
    seed : int
        Of the order.
    """

    train: Dataset
    val: Dataset
    preprocess: Preprocess
    per_epoch: int
    seed: int = 0
    starts: bool = False
    _plain: dict[int, BoxTruth] = field(default_factory=dict, repr=False)

    def start(self, network: Network, read: Fetch) -> None:
        """A head for boxes is never solved."""

    def order(self, epoch: int) -> Rows:
        """Every image once in a random order."""
        return epoch_order(len(self.train), seed=self.seed, epoch=epoch)

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a batch; its boxes move as its pixels did."""

        def loss(rows: Rows, batch: NDArray[Any], step: int) -> Tensor:
            x, view = network.tensor(batch), inputs.view(1 + step // self.per_epoch)
            outputs = network.outputs(x)
            truths = [self._truth(self.train.samples[row], view) for row in rows]
            found = _loss(network, outputs, truths)
            return found if penalty is None else found + penalty(x, outputs, rows)

        return loss

    def answers(self, network: Network, read: Fetch) -> Answers:
        """What is found in each held-out image, on the canvas, and the mean loss."""
        import torch

        found: list[Found] = []
        loss = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # some heads draw the regions that they judge
            for rows, outputs in network.answers(read, len(self.val)):
                with torch.inference_mode():
                    truths = [self._kept[row] for row in rows]
                    loss += float(_loss(network, outputs, truths)) * len(rows)
                    answers = network.layer.detect(outputs.logits)  # type: ignore[operator]
                for boxes, scores, labels in answers:
                    found.append((boxes.cpu().numpy(), scores.cpu().numpy(), labels.cpu().numpy()))
        return found, loss / len(self.val)

    def score(self, answers: Answers) -> Score:
        """Mean average precision at .50:.95, and the loss between equals."""
        found, loss = answers
        scores = box_scores(self._matches(found), np.ones(len(self.val)))
        return Score(float(np.nan_to_num(scores["map"])), -loss)

    def settled(self, task: DetectionTask, answers: Answers) -> DetectionTask:
        """Set the score from which on objects are named to the one with the best F1."""
        return replace(task, threshold=best_threshold(self._matches(answers[0])))

    def _matches(self, found: list[Found]) -> Any:
        return match_boxes(found, self._kept, len(self.train.classes))

    @cached_property
    def _kept(self) -> list[BoxTruth]:
        return [self._truth(sample, None) for sample in self.val.samples]

    def _truth(self, sample: Sample, view: View | None) -> BoxTruth:
        """An image's boxes as a view shows them; its file is looked at once."""
        truth = self._plain.get(id(sample))  # the data hold it, so that no other has its id
        if truth is None:
            truth = load_boxes(sample, self.preprocess, self.train.classes)
            self._plain[id(sample)] = truth
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


def _loss(network: Network, outputs: Outputs, truths: Sequence[BoxTruth]) -> Tensor:
    """The head's own terms, added; hard objects are left out, and so count as background."""
    learned = [
        tuple(on_device(part[~truth.hard], network.device) for part in truth[:2])
        for truth in truths
    ]
    terms = network.layer.loss(outputs.logits, learned)  # type: ignore[operator]
    found: Tensor = sum(terms.values())
    return found


TEMPERATURE_SPREAD = 0.25
"""Of the logarithm of the temperature around 0: the held-out part is often a few dozen images."""

Solve = Callable[[NDArray[np.float32]], LinearHead]
"""From the pooled features of the training images as they are to a head."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassObjective:
    """Cross-entropy and its relatives; judged by the macro F1 of held-out images.

    Parameters
    ----------
    train, val : Dataset
        To learn from, and to stop on.
    wanted : Loss
    mixup, cutmix : float
        Beta's parameter; 0 for none.
    seed : int
        Of the order and of what is mixed.
    solve : callable, optional
        Makes the first head.
    """

    train: Dataset
    val: Dataset
    wanted: Loss
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0
    solve: Solve | None = None

    @property
    def starts(self) -> bool:
        """Whether the head is solved before anything moves."""
        return self.solve is not None

    def start(self, network: Network, read: Fetch) -> None:
        """Solve the head on the pooled features of the training images."""
        if self.solve is not None:
            _, pooled = network.judge(read, len(self.train))
            network.load(network.state(), self.solve(pooled))

    def order(self, epoch: int) -> Rows:
        """Every image once in a random order, or by class in equal shares."""
        targets, kind = self._targets, self.train.kind
        how = self.wanted.resolved(targets, n_classes=len(self.train.classes), kind=kind)
        return epoch_order(
            len(self.train),
            seed=self.seed,
            epoch=epoch,
            targets=targets if how == "sampling" else None,
            balanced=how == "sampling",
        )

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a batch, its images mixed if that is wanted."""
        wanted, device, kind = self.wanted, network.device, self.train.kind
        n_classes, observed = len(self.train.classes), self._targets
        is_mixed = bool(self.mixup or self.cutmix)
        one_hot = is_mixed and kind != "multilabel"
        targets = on_device(np.eye(n_classes)[observed] if one_hot else observed, device)
        targets = targets.float() if targets.ndim == 2 else targets

        def known(values: NDArray[Any] | None) -> Tensor | None:
            return None if values is None else on_device(values, device).float()

        balance = known(wanted.weights(observed, n_classes=n_classes, kind=kind))
        adjustment = known(wanted.adjustment(observed, n_classes=n_classes, kind=kind))

        def loss(rows: Rows, batch: NDArray[Any], step: int) -> Tensor:
            x, truth = network.tensor(batch), targets[on_device(rows, device)]
            if is_mixed:
                rng = np.random.default_rng([self.seed, step, 1])
                mix, alpha = (mixup, self.mixup) if self.mixup else (cutmix, self.cutmix)
                x, truth = mix(x, truth, alpha=alpha, rng=rng)
            outputs = network.outputs(x)
            found = classification_loss(
                outputs.logits,
                truth,
                kind=kind,
                label_smoothing=wanted.label_smoothing,
                class_weights=balance,
                focal_gamma=wanted.focal,
                logit_adjustment=adjustment,
            )
            return found if penalty is None else found + penalty(x, outputs, rows)

        return loss

    def answers(self, network: Network, read: Fetch) -> NDArray[np.float64]:
        """Logits of the held-out images."""
        return network.judge(read, len(self.val))[0]

    def score(self, answers: NDArray[np.float64]) -> Score:
        """Macro F1, and the log-loss between equals."""
        task = ClassificationTask(classes=self.train.classes, kind=self.train.kind)
        chances, targets = task.probabilities(answers), self.val.targets()
        value = macro_f1_score(targets, task.predicted(chances))
        return Score(float(value), -float(log_loss(targets, chances)))

    def settled(self, task: ClassificationTask, answers: NDArray[np.float64]) -> ClassificationTask:
        """Fit the temperature (and thresholds) to the held-out logits."""
        blank = replace(task, temperature=1.0, thresholds=())
        return blank.calibrated(
            answers, self.val.targets(), spread=TEMPERATURE_SPREAD, groups=self.val.groups()
        )

    @cached_property
    def _targets(self) -> NDArray[np.intp]:
        return self.train.targets()


Counts = tuple[NDArray[np.intp], float]


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskObjective:
    """A loss over pixels; judged by the mean intersection over union on held-out images.

    Parameters
    ----------
    train, val : Dataset
        To learn from, and to stop on.
    preprocess : Preprocess
        Says where an image's pixels lie on the canvas.
    per_epoch : int
        Steps.
    wanted : MaskLoss
    seed : int
        Of the order.
    """

    train: Dataset
    val: Dataset
    preprocess: Preprocess
    per_epoch: int
    wanted: MaskLoss
    seed: int = 0
    starts: bool = False
    _plain: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def start(self, network: Network, read: Fetch) -> None:
        """A decoder is never solved."""

    def order(self, epoch: int) -> Rows:
        """Every image once in a random order."""
        return epoch_order(len(self.train), seed=self.seed, epoch=epoch)

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a batch; its masks move as its pixels did."""
        weights = self._weights(network.device)

        def loss(rows: Rows, batch: NDArray[Any], step: int) -> Tensor:
            x, view = network.tensor(batch), inputs.view(1 + step // self.per_epoch)
            outputs = network.outputs(x)
            masks = [self._truth(self.train.samples[row], view) for row in rows]
            truth = on_device(np.stack(masks), network.device).long()
            found = mask_loss(outputs.logits, truth, self.wanted, class_weights=weights)
            return found if penalty is None else found + penalty(x, outputs, rows)

        return loss

    def answers(self, network: Network, read: Fetch) -> Counts:
        """Pixels by true and said class of all held-out images, and the mean loss."""
        import torch

        n_classes, loss = len(self.train.classes), 0.0
        counts = np.zeros((n_classes, n_classes), dtype=np.intp)
        for rows, outputs in network.answers(read, len(self.val)):
            masks = np.stack([self._truth(self.val.samples[row], None) for row in rows])
            with torch.inference_mode():
                truth = on_device(masks, network.device).long()
                said = outputs.logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
                loss += float(mask_loss(outputs.logits, truth, self.wanted)) * len(rows)
            for one, true in zip(said, masks, strict=True):
                counts += pixel_counts(one, true, n_classes)
        return counts, loss / len(self.val)

    def score(self, answers: Counts) -> Score:
        """Mean intersection over union, and the loss between equals."""
        counts, loss = answers
        return Score(float(np.nan_to_num(mean_iou_score(counts[None], np.ones(1)))), -loss)

    def settled(self, task: SegmentationTask, answers: Counts) -> SegmentationTask:
        """Nothing of the task depends on the answers."""
        return task

    def _weights(self, device: str) -> Tensor | None:
        """Of the classes, by how many training pixels each has; None for none."""
        if self.wanted.class_weights == "none":
            return None
        n_classes = len(self.train.classes)
        counts = np.zeros(n_classes, dtype=np.intp)
        for sample in self.train.samples:
            mask = self._truth(sample, None)
            counts += np.bincount(mask[mask != IGNORED], minlength=n_classes)
        weights = self.wanted.weights(counts)
        return None if weights is None else on_device(weights, device).float()

    def _truth(self, sample: Sample, view: View | None) -> NDArray[np.uint8]:
        """A mask as a view shows it; decoded once."""
        mask = self._plain.get(id(sample))  # the data hold it, so that no other has its id
        if mask is None:
            mask = load_mask(sample, self.preprocess, self.train.classes)
            self._plain[id(sample)] = mask
        if view is None:
            return mask
        return view_of_mask(
            mask,
            view.augmentation,
            seed=view.seed,
            view=view.number,
            image=digest_of(sample),
        )
