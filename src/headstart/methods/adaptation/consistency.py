"""Consistency between two views of a target image: mean teacher and FixMatch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from headstart.data.transforms.augment import Augmentation
from headstart.errors import UsageError
from headstart.methods.adaptation.contract import Domains
from headstart.methods.adaptation.paired_training import (
    DomainBatch,
    GradientAdaptation,
    PairedTraining,
)
from headstart.models.transfer_model import TransferModel
from headstart.training.losses.consistency import confident_label_loss, consistency_loss, ramp_up

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.training.network import Outputs

__all__ = ["FixMatch", "MeanTeacher"]

N_VIEWS = 4
"""Strong views of each image; their activations are cached like all others."""


def _strong_views() -> Augmentation:
    """No flips: a mirrored digit or letter is another class."""
    return Augmentation(crop=0.7, policy="randaugment", views=N_VIEWS)


@dataclass(frozen=True, kw_only=True)
class MeanTeacher(GradientAdaptation):
    """Train on the source, and towards the predictions that an average of the weights makes.

    The network sees a strong view of each target image, the teacher the image itself. The teacher
    is a running average of the network's weights, and becomes the adapted model.

    Parameters
    ----------
    weight : float
        Factor of the consistency loss, after its rise.
    decay : float
        Of the running average, from above 0 to below 1.
    augmentation : Augmentation
        Of the strong views.

    Raises
    ------
    UsageError
        If a value is out of its range.

    Reference
    ---------
    Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017; French et al.,
    Self-ensembling for visual domain adaptation, ICLR 2018.

    Examples
    --------
    >>> MeanTeacher().decay
    0.99
    """

    name: ClassVar[str] = "mean-teacher"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    weight: float = 3.0
    decay: float = 0.99
    augmentation: Augmentation = field(default_factory=_strong_views)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay < 1:
            raise UsageError(f"`decay` must be between 0 and 1, got {self.decay}. Pass 0.99.")
        _require_views(self.augmentation)

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the difference to the teacher's predictions as the loss."""

        def loss(batch: DomainBatch) -> Tensor:
            student, teacher = batch.target.logits.float(), _plain(batch).logits.float()
            return self.weight * ramp_up(batch.progress) * consistency_loss(student, teacher)

        return PairedTraining(loss=loss, views=self.augmentation, teacher_decay=self.decay)


@dataclass(frozen=True, kw_only=True)
class FixMatch(GradientAdaptation):
    """Train strong views of target images with the labels that the images themselves are given.

    Parameters
    ----------
    threshold : float
        Smallest probability of a label.
    augmentation : Augmentation
        Of the strong views.

    Raises
    ------
    UsageError
        If a value is out of its range.

    Reference
    ---------
    Sohn et al., FixMatch, NeurIPS 2020, equation 4. Their weak view is flipped and shifted; here
    it is the image itself, because a mirrored digit or letter is another class.

    Examples
    --------
    >>> FixMatch().threshold
    0.95
    """

    name: ClassVar[str] = "fixmatch"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    threshold: float = 0.95
    augmentation: Augmentation = field(default_factory=_strong_views)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"`threshold` must be from 0 to 1, got {self.threshold}. Pass 0.95.")
        _require_views(self.augmentation)

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the cross-entropy with confident labels as the loss."""

        def loss(batch: DomainBatch) -> Tensor:
            plain, strong = _plain(batch).logits.float(), batch.target.logits.float()
            return self.weight * confident_label_loss(plain, strong, threshold=self.threshold)

        return PairedTraining(loss=loss, views=self.augmentation)


def _require_views(augmentation: Augmentation) -> None:
    if augmentation.is_off:
        raise UsageError(
            f"`augmentation` changes nothing: {augmentation}. Pass one that makes strong views, "
            "such as Augmentation.named('strong')."
        )


def _plain(batch: DomainBatch) -> Outputs:
    if batch.plain is None:
        raise UsageError(f"Expected outputs without augmentation, got {batch.plain}. Pass views.")
    return batch.plain
