"""A class for every pixel, as the objective of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.cuts import View
from headstart.data.loading import digest_of, load_mask, view_of_mask
from headstart.data.samples import Dataset, Sample
from headstart.data.transforms import Preprocess
from headstart.data.truths import IGNORED
from headstart.mask_metrics import mean_iou_score, pixel_counts
from headstart.tasks.segmentation import Segmentation
from headstart.training.inputs import Inputs
from headstart.training.job import Rows, Score
from headstart.training.mask_losses import MaskLoss, mask_loss
from headstart.training.network import Fetch, Network
from headstart.training.objective import LossStep, Penalty, on_device
from headstart.training.sampling import epoch_order

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MaskObjective"]

Counts = tuple[NDArray[np.intp], float]


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskObjective:
    """A loss over pixels; judged by the mean intersection over union on held-out pictures.

    Parameters
    ----------
    train, val : Dataset
        To learn from, and to stop on.
    preprocess : Preprocess
        Says where a picture's pixels lie on the canvas.
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
        """Every picture once in a random order."""
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
        """Pixels by true and said class of all held-out pictures, and the mean loss."""
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

    def settled(self, task: Segmentation, answers: Counts) -> Segmentation:
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
            picture=digest_of(sample),
        )
