"""Adaptation against an adversary: DANN, CDAN, CDAN+E, BSP, MDD, ADDA and MCD."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from headstart.errors import UsageError
from headstart.methods.adaptation.contract import Domains
from headstart.methods.adaptation.paired_training import (
    DomainBatch,
    GradientAdaptation,
    PairedTraining,
    require_source,
)
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.losses.adversarial import (
    adversary_of_margins,
    classifier_discrepancy,
    conditional_features,
    domain_loss,
    entropy_weights,
    inverted_domain_loss,
    reversal_factor,
    reverse_gradient,
)
from headstart.training.losses.alignment import batch_spectral_penalty
from headstart.training.network import Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Adda", "Bsp", "Cdan", "CdanE", "Dann", "Mcd", "Mdd"]

PERFECT, CHECKED_STEPS = 0.01, 50
"""A discriminator whose loss stays below this for so many steps has no gradient left to reverse."""

WIDEST = 2**17
"""Largest number of inputs of a discriminator; more need gigabytes of optimiser state."""


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
        _require_hidden(self.hidden)

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the loss of a discriminator whose gradient is reversed, and the discriminator."""
        return _against_discriminator(self, model.backbone.width)


@dataclass(frozen=True, kw_only=True)
class Cdan(GradientAdaptation):
    """Train against a discriminator that sees the features together with the predictions.

    Its inputs are the products of features and probabilities, so that a class of the target is
    matched to the same class of the source.

    Parameters
    ----------
    hidden : int
        Width of the adversary's hidden layer.

    Reference
    ---------
    Long et al., Conditional adversarial domain adaptation, NeurIPS 2018.

    Examples
    --------
    >>> Cdan().name
    'cdan'
    """

    name: ClassVar[str] = "cdan"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_hidden(self.hidden)

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the loss of the discriminator of features and predictions, and itself."""
        return _against_discriminator(
            self,
            _conditional_width(self.name, model),
            inputs=_conditional_inputs,
        )


@dataclass(frozen=True, kw_only=True)
class CdanE(GradientAdaptation):
    """CDAN in which images with a confident prediction count more (CDAN+E).

    Parameters
    ----------
    hidden : int
        Width of the adversary's hidden layer.

    Reference
    ---------
    Long et al., Conditional adversarial domain adaptation, NeurIPS 2018, equation 10.

    Examples
    --------
    >>> CdanE().name
    'cdan-e'
    """

    name: ClassVar[str] = "cdan-e"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_hidden(self.hidden)

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the loss of the weighted discriminator, and itself."""
        return _against_discriminator(
            self,
            _conditional_width(self.name, model),
            inputs=_conditional_inputs,
            weights=lambda outputs: entropy_weights(outputs.logits.float()),
        )


@dataclass(frozen=True, kw_only=True)
class Bsp(GradientAdaptation):
    """DANN with a penalty on the largest singular values of the features.

    Parameters
    ----------
    hidden : int
        Width of the adversary's hidden layer.
    spectral_weight : float
        Factor of the penalty.

    Raises
    ------
    UsageError
        If ``spectral_weight`` is negative.

    Reference
    ---------
    Chen et al., Transferability vs. discriminability: batch spectral penalization for adversarial
    domain adaptation, ICML 2019.

    Examples
    --------
    >>> Bsp().spectral_weight
    0.0001
    """

    name: ClassVar[str] = "bsp"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    hidden: int = 256
    spectral_weight: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_hidden(self.hidden)
        if not self.spectral_weight >= 0:
            raise UsageError(
                f"`spectral_weight` must be 0 or more, got {self.spectral_weight}. Pass 1e-4."
            )

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the loss of the discriminator and the penalty, and the discriminator."""

        def penalty(source: Outputs, target: Outputs) -> Tensor:
            pooled = source.pooled.float(), target.pooled.float()
            return self.spectral_weight * batch_spectral_penalty(*pooled)

        return _against_discriminator(self, model.backbone.width, penalty=penalty)


@dataclass(frozen=True, kw_only=True)
class Mdd(GradientAdaptation):
    """Train against a second classifier that disagrees with the first on the target alone.

    Parameters
    ----------
    hidden : int
        Width of the adversary's hidden layer.
    margin : float
        Weight of the source in the loss of the second classifier.
    strength : float
        Largest factor of the reversed gradient.

    Raises
    ------
    UsageError
        If a value is not positive.

    Reference
    ---------
    Zhang et al., Bridging theory and algorithm for domain adaptation, ICML 2019.

    Examples
    --------
    >>> Mdd().margin
    4.0
    """

    name: ClassVar[str] = "mdd"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    hidden: int = 256
    margin: float = 4.0
    strength: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_hidden(self.hidden)
        for name in ("margin", "strength"):
            if not getattr(self, name) > 0:
                value = getattr(self, name)
                raise UsageError(f"`{name}` must be above 0, got {value}. Leave it out.")

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the loss of the second classifier, whose gradient is reversed, and itself."""
        classes = len(model.require_task(ClassificationTask).classes)
        adversary = _make_adversary(model.backbone.width, self.hidden, classes, seed=self.seed)

        def loss(batch: DomainBatch) -> Tensor:
            factor = reversal_factor(batch.progress, highest=self.strength)
            source, target = (
                (o.logits.float(), adversary(reverse_gradient(o.pooled, factor)))
                for o in (require_source(batch), batch.target)
            )
            return self.weight * adversary_of_margins(source, target, margin=self.margin)

        return PairedTraining(loss=loss, discriminator=adversary)


@dataclass(frozen=True, kw_only=True)
class Adda(GradientAdaptation):
    """Train a target backbone whose features a discriminator takes for those of the source model.

    The source images pass through the source model, which stays as it is, and so does the head.

    Parameters
    ----------
    hidden : int
        Width of the discriminator's hidden layer.

    Reference
    ---------
    Tzeng et al., Adversarial discriminative domain adaptation, CVPR 2017, equation 9.

    Examples
    --------
    >>> Adda().name
    'adda'
    """

    name: ClassVar[str] = "adda"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_hidden(self.hidden)
        self.require_stages()

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the losses of the discriminator and of the target backbone, and the former."""
        discriminator = _make_adversary(model.backbone.width, self.hidden, 1, seed=self.seed)
        losses: list[float] = []

        def loss(batch: DomainBatch) -> Tensor:
            from torch.func import functional_call

            source, target = (o.pooled.float() for o in (require_source(batch), batch.target))
            value = domain_loss(discriminator(source.detach()), discriminator(target.detach()))
            losses.append(float(value.detach()))
            constant = {k: v.detach() for k, v in discriminator.named_parameters()}
            logits = functional_call(discriminator, constant, (target,))
            return value + self.weight * inverted_domain_loss(logits)

        return PairedTraining(
            loss=loss,
            trains_head=False,
            discriminator=discriminator,
            problem=_describe_discriminator(losses),
            is_source_constant=True,
        )


@dataclass(frozen=True, kw_only=True)
class Mcd(GradientAdaptation):
    """Train two classifiers to disagree on the target, and the backbone to make them agree.

    Both train on the labels of the source. The paper takes three steps in turn; here a reversed
    gradient does the same in one.

    Parameters
    ----------
    noise : float
        The second classifier starts as the head with normal noise, this share of the standard
        deviation of its weights.

    Raises
    ------
    UsageError
        If ``noise`` is not positive.

    Reference
    ---------
    Saito et al., Maximum classifier discrepancy for unsupervised domain adaptation, CVPR 2018,
    equations 4 to 9.

    Examples
    --------
    >>> Mcd().noise
    0.5
    """

    name: ClassVar[str] = "mcd"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    noise: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise < math.inf:
            raise UsageError(f"`noise` must be a positive number, got {self.noise}. Pass 0.5.")

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the discrepancy with a reversed gradient, and the second classifier."""
        second = _make_noisy(model.linear_head().module(), self.noise, seed=self.seed)

        def loss(batch: DomainBatch) -> Tensor:
            from torch.nn.functional import cross_entropy

            if batch.classify is None or batch.labels is None:
                raise UsageError("Expected labels and a head, got None. Pass a source.")
            pooled = reverse_gradient(batch.target.pooled.float(), reversal_factor(batch.progress))
            gap = classifier_discrepancy(batch.classify(pooled), second(pooled))
            logits = second(require_source(batch).pooled.float())
            return cross_entropy(logits, batch.labels) - self.weight * gap

        return PairedTraining(loss=loss, discriminator=second)


def _make_noisy(layer: nn.Module, noise: float, *, seed: int) -> nn.Module:
    """Add normal noise to the weights of a layer, in place."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in layer.parameters():
            scale = float(value.std()) if value.numel() > 1 else 0.0
            value.add_(noise * scale * torch.randn(value.shape, generator=draw))
    return layer


def _require_hidden(hidden: int) -> None:
    if hidden < 1:
        raise UsageError(f"`hidden` must be 1 or more, got {hidden}. Pass 256.")


def _make_adversary(width: int, hidden: int, n_outputs: int, *, seed: int) -> nn.Module:
    """Two layers without BatchNorm, which would show the domain of a batch."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, n_outputs))


def _against_discriminator(
    method: Dann | Cdan | CdanE | Bsp,
    width: int,
    *,
    inputs: Callable[[Outputs], Tensor] = lambda outputs: outputs.pooled,
    weights: Callable[[Outputs], Tensor | None] = lambda outputs: None,
    penalty: Callable[[Outputs, Outputs], Tensor | float] = lambda source, target: 0.0,
) -> PairedTraining:
    """Describe a training against a discriminator of ``width`` inputs with a reversed gradient."""
    discriminator = _make_adversary(width, method.hidden, 1, seed=method.seed)
    losses: list[float] = []

    def loss(batch: DomainBatch) -> Tensor:
        factor = reversal_factor(batch.progress)
        both = require_source(batch), batch.target
        logits = [discriminator(reverse_gradient(inputs(outputs), factor)) for outputs in both]
        first, second = (weights(outputs) for outputs in both)
        value = domain_loss(*logits, source_weights=first, target_weights=second)
        losses.append(float(value.detach()))
        return method.weight * value + penalty(*both)

    return PairedTraining(
        loss=loss, discriminator=discriminator, problem=_describe_discriminator(losses)
    )


def _conditional_width(name: str, model: TransferModel) -> int:
    """Return the number of products of features and classes."""
    width = model.backbone.width * len(model.require_task(ClassificationTask).classes)
    if width > WIDEST:
        raise UsageError(
            f"Method {name} needs a discriminator with {width} inputs (features x classes), but "
            f"at most {WIDEST} are possible. Pass --method dann."
        )
    return width


def _conditional_inputs(outputs: Outputs) -> Tensor:
    return conditional_features(outputs.pooled.float(), outputs.logits.float().softmax(dim=1))


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
