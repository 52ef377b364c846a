"""Self-training: confident predictions of target images become their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UsageError
from headstart.methods.adaptation.contract import Domains
from headstart.methods.adaptation.paired_training import (
    DomainBatch,
    GradientAdaptation,
    PairedTraining,
)
from headstart.models.transfer_model import TransferModel

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SelfTraining", "pseudo_labels"]

NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class SelfTraining(GradientAdaptation):
    """Train on the source and on pseudo-labels of the target, chosen anew before every epoch.

    Each class has its own threshold: the same share of each predicted class is used, so that
    difficult classes are labelled too. The share grows during the training.

    Parameters
    ----------
    first_share, last_share : float
        Share of each predicted class that is labelled in the first and in the last epoch.

    Reference
    ---------
    Zou et al., Unsupervised domain adaptation for semantic segmentation via class-balanced
    self-training, ECCV 2018, section 4.2 (thresholds for each class).

    Examples
    --------
    >>> SelfTraining(first_share=0.3).last_share
    0.8
    """

    name: ClassVar[str] = "self-training"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = False  # the labels of an epoch follow from the weights at its start

    first_share: float = 0.2
    last_share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.first_share <= self.last_share <= 1:
            raise UsageError(
                "Expected 0 < `first_share` <= `last_share` <= 1, got "
                f"{self.first_share} and {self.last_share}. Pass 0.2 and 0.8."
            )

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the loss on pseudo-labels, which are chosen before each epoch."""
        n_epochs = self.training.for_images(
            max(len(domains.target), len(domains.source or ()))
        ).epochs
        labels = np.full(len(domains.target), NO_LABEL)

        def label_targets(epoch: int, probabilities: NDArray[Any], _: NDArray[Any]) -> None:
            grown = (epoch - 1) / max(1, n_epochs - 1)
            share = self.first_share + grown * (self.last_share - self.first_share)
            labels[:] = pseudo_labels(probabilities, share)

        def loss(batch: DomainBatch) -> Tensor:
            return self.weight * _labelled_loss(batch, labels)

        return PairedTraining(loss=loss, before_epoch=label_targets)


def pseudo_labels(probabilities: NDArray[Any], share: float) -> NDArray[np.intp]:
    """Label the most confident share of each predicted class; -1 for the other images.

    Parameters
    ----------
    probabilities : array, shape (m, k)
    share : float
        From above 0 to 1. At least one image of every predicted class is labelled.

    Examples
    --------
    >>> pseudo_labels(np.array([[0.9, 0.1], [0.6, 0.4], [0.45, 0.55]]), 0.5)
    array([ 0, -1,  1])
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    labels = np.full(len(probabilities), NO_LABEL)
    for label in np.unique(predicted):
        rows = np.flatnonzero(predicted == label)
        count = max(1, round(share * len(rows)))
        labels[rows[np.argsort(-confidence[rows], kind="stable")[:count]]] = label
    return labels


def _labelled_loss(batch: DomainBatch, labels: NDArray[np.intp]) -> Tensor:
    """Sum of the cross-entropies of labelled images, divided by the size of the batch."""
    import torch
    from torch.nn.functional import cross_entropy

    logits = batch.target.logits.float()
    target = torch.from_numpy(labels[batch.target_rows]).to(logits.device)
    total = cross_entropy(logits, target, ignore_index=NO_LABEL, reduction="sum")
    return total / len(logits)
