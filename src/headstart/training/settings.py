"""Settings that every training by gradient shares."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from headstart.data.dataset import Kind
from headstart.data.transforms.augment import Augmentation
from headstart.errors import UsageError
from headstart.training.losses.classification import Loss
from headstart.training.losses.own_loss import OwnLoss
from headstart.training.losses.segmentation import MaskLoss
from headstart.training.optim import Training

__all__ = ["Settings", "SharedSettings"]


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """Settings of every method that trains by gradient.

    Parameters
    ----------
    training : Training
        Optimiser, epochs, schedule and the rest.
    augmentation : Augmentation
    loss : Loss, or callable
        A function from logits and targets stands for ``Loss(function=...)``.
    mask_loss : MaskLoss
        Loss of segmentation.
    mixup, cutmix : float
        Parameter of the Beta distribution of MixUp or CutMix; 0 turns it off. After a split
        point the activations are mixed instead of the pixels.
    seed : int
        Decides validation images, order, augmented views and dropout.

    Raises
    ------
    UsageError
        If a value is out of its range.
    """

    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: Loss = field(default_factory=Loss)
    mask_loss: MaskLoss = field(default_factory=MaskLoss)
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        loss: Any = self.loss
        if not isinstance(loss, Loss):
            object.__setattr__(self, "loss", Loss(function=OwnLoss.of(loss)))
        if min(self.mixup, self.cutmix) < 0 or (self.mixup and self.cutmix):
            raise UsageError(
                f"`mixup` is {self.mixup} and `cutmix` is {self.cutmix}. Set at most one of them, "
                "to a positive number."
            )


@dataclass(frozen=True, kw_only=True)
class Settings(SharedSettings):
    """Settings of one training, with everything decided.

    Parameters
    ----------
    head_learning_rate : float
    wise_ft : float
        Share of the fine-tuned network in the final weights; the rest is the start. 1 for all.
    finds_rate : bool
        Search good learning rates first; the ratios between stages stay.
    """

    head_learning_rate: float = 1e-3
    wise_ft: float = 1.0
    finds_rate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.head_learning_rate > 0:
            raise UsageError(
                f"`head_learning_rate` must be above 0, got {self.head_learning_rate}."
            )
        if not 0 <= self.wise_ft <= 1:
            raise UsageError(f"`wise_ft` must be from 0 to 1, got {self.wise_ft}.")

    @classmethod
    def of(cls, method: SharedSettings, kind: Kind, **decided: Any) -> Settings:
        """Take the shared settings from a method, with the defaults for a kind of data."""
        shared = {f.name: getattr(method, f.name) for f in fields(SharedSettings)}
        return cls(**{**shared, "training": method.training.for_kind(kind)}, **decided)
