"""Adaptation without source images: SHOT and TENT."""

from __future__ import annotations

from dataclasses import dataclass, field
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
from headstart.training.losses.alignment import entropies, information_loss
from headstart.training.optim import Training

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Shot", "Tent", "centroid_labels"]


@dataclass(frozen=True, kw_only=True)
class Shot(GradientAdaptation):
    """Train the backbone for confident and diverse predictions; the head stays as it is.

    Before every epoch each target image is labelled with the nearest class centroid.

    Parameters
    ----------
    label_weight : float
        Factor of the loss on the centroid labels.

    Reference
    ---------
    Liang et al., Do we really need to access the source data? Source hypothesis transfer for
    unsupervised domain adaptation, ICML 2020, equations 3 to 7.

    Examples
    --------
    >>> Shot().needs_source
    False
    """

    name: ClassVar[str] = "shot"
    needs_source: ClassVar[bool] = False
    resumes: ClassVar[bool] = False  # the labels of an epoch follow from the weights at its start

    label_weight: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_weight < 0:
            raise UsageError(f"`label_weight` must be 0 or more, got {self.label_weight}.")
        self.require_stages()

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the information loss and the loss on centroid labels, for the backbone alone."""
        labels = np.zeros(len(domains.target), dtype=np.int64)

        def label_targets(epoch: int, probabilities: NDArray[Any], pooled: NDArray[Any]) -> None:
            labels[:] = centroid_labels(pooled, probabilities)

        def loss(batch: DomainBatch) -> Tensor:
            import torch
            from torch.nn.functional import cross_entropy

            logits = batch.target.logits.float()
            target = torch.from_numpy(labels[batch.target_rows]).to(logits.device)
            named = self.label_weight * cross_entropy(logits, target)
            return self.weight * information_loss(logits) + named

        return PairedTraining(loss=loss, trains_head=False, before_epoch=label_targets)


@dataclass(frozen=True, kw_only=True)
class Tent(GradientAdaptation):
    """Lower the entropy of the predictions by scales and shifts of the normalisation alone.

    BatchNorm uses the statistics of each batch in training, and those of all target images in the
    saved model.

    Reference
    ---------
    Wang et al., Tent: fully test-time adaptation by entropy minimization, ICLR 2021.

    Examples
    --------
    >>> Tent().batch_norm
    'train'
    """

    name: ClassVar[str] = "tent"
    needs_source: ClassVar[bool] = False
    resumes: ClassVar[bool] = True

    train_from: str = "all"
    batch_norm: str = "train"
    training: Training = field(
        default_factory=lambda: Training(
            epochs=1, batch_size=64, patience=0, schedule="constant", warm_up=0.0, weight_decay=0.0
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_stages()

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the entropy as the loss, for scales and shifts alone."""

        def loss(batch: DomainBatch) -> Tensor:
            return self.weight * entropies(batch.target.logits.float()).mean()

        return PairedTraining(loss=loss, only="norm", trains_head=False)


def centroid_labels(pooled: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[np.intp]:
    """Label images with the nearest class centroid, in two rounds.

    Parameters
    ----------
    pooled : array, shape (m, d)
    probabilities : array, shape (m, k)
        Weights of the images in the first centroids. A class that no image is labelled with
        keeps its first centroid.

    Returns
    -------
    array, shape (m,)

    Reference
    ---------
    Liang et al., ICML 2020, equations 5 and 6, with the cosine distance.

    Examples
    --------
    >>> features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> centroid_labels(features, np.array([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9]]))
    array([0, 0, 1])
    """
    rows = np.concatenate([pooled, np.ones((len(pooled), 1))], axis=1).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    weights = probabilities
    labels = np.asarray(weights.argmax(axis=1), dtype=np.intp)
    centroids = np.zeros((weights.shape[1], rows.shape[1]))
    for _ in range(2):
        totals = weights.sum(axis=0)
        means = weights.T @ rows / np.maximum(totals, 1e-12)[:, None]
        centroids = np.where(totals[:, None] > 1e-8, means, centroids)
        lengths = np.maximum(np.linalg.norm(centroids, axis=1), 1e-12)
        labels = np.asarray((rows @ (centroids / lengths[:, None]).T).argmax(axis=1), dtype=np.intp)
        weights = np.eye(weights.shape[1])[labels]
    return labels
