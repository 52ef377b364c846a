"""Alignment of the two domains' features: Deep CORAL, DAN, JAN, MCC and AFN."""

from __future__ import annotations

import math
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
from headstart.models.transfer_model import TransferModel
from headstart.training.losses.alignment import (
    class_confusion,
    deep_coral,
    joint_mmd,
    multi_kernel_mmd,
    stepwise_feature_norm,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Afn", "Dan", "DeepCoral", "Jan", "Mcc"]


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
            source = require_source(batch)
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
            source, target = require_source(batch), batch.target
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
class Jan(GradientAdaptation):
    """Align the joint distribution of features and predictions, by one discrepancy.

    Reference
    ---------
    Long et al., Deep transfer learning with joint adaptation networks, ICML 2017.

    Examples
    --------
    >>> Jan().name
    'jan'
    """

    name: ClassVar[str] = "jan"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the discrepancy of features and probabilities together as the loss."""

        def loss(batch: DomainBatch) -> Tensor:
            source, target = (
                [outputs.pooled.float(), outputs.logits.float().softmax(dim=1)]
                for outputs in (require_source(batch), batch.target)
            )
            return self.weight * joint_mmd(source, target)

        return PairedTraining(loss=loss)


@dataclass(frozen=True, kw_only=True)
class Afn(GradientAdaptation):
    """Enlarge the norms of the features of both domains, step by step.

    Parameters
    ----------
    weight : float
        Factor of the term, as in the paper.
    step : float
        How much larger every norm becomes.

    Raises
    ------
    UsageError
        If ``step`` is not positive.

    Reference
    ---------
    Xu et al., Larger norm more transferable, ICCV 2019 (SAFN).

    Examples
    --------
    >>> Afn().step
    1.0
    """

    name: ClassVar[str] = "afn"
    needs_source: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    weight: float = 0.05
    step: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.step < math.inf:
            raise UsageError(f"`step` must be a positive number, got {self.step}. Pass 1.")

    def describe_training(self, model: TransferModel, domains: Domains) -> PairedTraining:
        """Return the gap of the norms of both domains as the loss."""

        def loss(batch: DomainBatch) -> Tensor:
            norms = [
                stepwise_feature_norm(outputs.pooled.float(), step=self.step)
                for outputs in (require_source(batch), batch.target)
            ]
            return self.weight * (norms[0] + norms[1])

        return PairedTraining(loss=loss)
