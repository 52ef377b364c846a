"""Alignment of the two domains' features: Deep CORAL, DAN, MCC and DANN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from headstart.errors import UsageError
from headstart.methods.adaptation.contract import Domains
from headstart.methods.adaptation.paired_training import (
    DomainBatch,
    GradientAdaptation,
    PairedTraining,
)
from headstart.models.transfer_model import TransferModel
from headstart.training.losses.alignment import (
    class_confusion,
    deep_coral,
    domain_loss,
    multi_kernel_mmd,
    reversal_factor,
    reverse_gradient,
)
from headstart.training.network import Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Dan", "Dann", "DeepCoral", "Mcc"]

PERFECT, CHECKED_STEPS = 0.01, 50
"""A discriminator whose loss stays below this for so many steps has no gradient left to reverse."""


@dataclass(frozen=True, kw_only=True)
class DeepCoral(GradientAdaptation):
    """Align the covariances of the logits of both domains.

    Reference
    ---------
    Sun and Saenko, Deep CORAL, ECCV workshops 2016: the loss is on the last layer.

    Examples
    --------
    >>> DeepCoral(weight=10).name
    'coral'
    """

    name: ClassVar[str] = "coral"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the gap of the covariances as the loss."""

        def loss(batch: DomainBatch) -> Tensor:
            source = _require_source(batch)
            return self.weight * deep_coral(source.logits, batch.target.logits)

        return PairedTraining(loss=loss)


@dataclass(frozen=True, kw_only=True)
class Dan(GradientAdaptation):
    """Align the distributions of features and logits, by multi-kernel discrepancies.

    Reference
    ---------
    Long et al., Learning transferable features with deep adaptation networks, ICML 2015.

    Examples
    --------
    >>> Dan().name
    'dan'
    """

    name: ClassVar[str] = "dan"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the discrepancies of features and logits as the loss."""

        def loss(batch: DomainBatch) -> Tensor:
            source, target = _require_source(batch), batch.target
            features = multi_kernel_mmd(source.pooled, target.pooled)
            return self.weight * (features + multi_kernel_mmd(source.logits, target.logits))

        return PairedTraining(loss=loss)


@dataclass(frozen=True, kw_only=True)
class Mcc(GradientAdaptation):
    """Lower the confusion between classes on the target.

    Parameters
    ----------
    temperature : float
        The logits of the target are divided by it.

    Reference
    ---------
    Jin et al., Minimum class confusion for versatile domain adaptation, ECCV 2020.

    Examples
    --------
    >>> Mcc().temperature
    2.5
    """

    name: ClassVar[str] = "mcc"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    temperature: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise UsageError(f"`temperature` must be above 0, got {self.temperature}.")

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the confusion on the target as the loss."""

        def loss(batch: DomainBatch) -> Tensor:
            logits = batch.target.logits
            return self.weight * class_confusion(logits, temperature=self.temperature)

        return PairedTraining(loss=loss)


@dataclass(frozen=True, kw_only=True)
class Dann(GradientAdaptation):
    """Train features from which a discriminator cannot separate the domains.

    The discriminator has two layers and no BatchNorm: in a mix of both domains, BatchNorm would
    show it the domain of a batch, and on small networks prevent the adaptation.

    Parameters
    ----------
    hidden : int
        Width of the discriminator's hidden layer.

    Reference
    ---------
    Ganin et al., Domain-adversarial training of neural networks, JMLR 2016.

    Examples
    --------
    >>> Dann().hidden
    256
    """

    name: ClassVar[str] = "dann"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1:
            raise UsageError(f"`hidden` must be 1 or more, got {self.hidden}.")

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the loss of a discriminator whose gradient is reversed, and the discriminator."""
        discriminator = self._discriminator(model.backbone.width)
        losses: list[float] = []

        def loss(batch: DomainBatch) -> Tensor:
            factor = reversal_factor(batch.progress)
            logits = [
                discriminator(reverse_gradient(outputs.pooled, factor))
                for outputs in (_require_source(batch), batch.target)
            ]
            value = domain_loss(*logits)
            losses.append(float(value.detach()))
            return self.weight * value

        return PairedTraining(
            loss=loss, discriminator=discriminator, problem=_describe_discriminator(losses)
        )

    def _discriminator(self, width: int) -> nn.Module:
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return nn.Sequential(
                nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1)
            )


def _require_source(batch: DomainBatch) -> Outputs:
    if batch.source is None:
        raise UsageError(f"Expected outputs of source images, got {batch.source}. Pass a source.")
    return batch.source


def _describe_discriminator(losses: list[float]) -> Callable[[], str]:
    """Make the function that notices a discriminator that separates the domains perfectly."""

    def problem() -> str:
        recent = losses[-CHECKED_STEPS:]
        if len(recent) < CHECKED_STEPS or max(recent) >= PERFECT:
            return ""
        return (
            f"The discriminator separates the domains without error (loss below {PERFECT} for "
            f"{CHECKED_STEPS} steps), so its gradient aligns nothing."
        )

    return problem
