"""BatchNorm statistics of the target images (AdaBN), or mixed with the source's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from headstart.backbones.freezing import plan_freezing
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.transforms.augment import Augmentation
from headstart.errors import UsageError
from headstart.features.extractor import Extractor
from headstart.methods.adaptation.contract import Adapted, Domains, require_adaptable
from headstart.methods.adaptation.paired_training import record_adaptation
from headstart.models.transfer_model import TransferModel
from headstart.runtime import device
from headstart.training.inputs import InputSource
from headstart.training.job import Session
from headstart.training.network import Network

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AdaBN", "MixedBN", "mix_statistics"]


@dataclass(frozen=True, kw_only=True)
class AdaBN:
    """Estimate the mean and variance of every BatchNorm layer on the target images.

    No parameter changes and no labels are read. It helps where contrast, brightness, colour or
    noise differ, and harms where the target has other shares of the classes.

    Reference
    ---------
    Li et al., Revisiting batch normalization for practical domain adaptation, 2016.

    Examples
    --------
    >>> AdaBN().needs_source
    False
    """

    name: ClassVar[str] = "adabn"
    needs_source: ClassVar[bool] = False
    resumes: ClassVar[bool] = False

    def adapt(
        self,
        model: TransferModel,
        domains: Domains,
        *,
        extractor: Extractor,
        session: Session | None = None,
    ) -> Adapted:
        """Return the model with statistics of the target.

        Raises
        ------
        UsageError
            If the backbone has no BatchNorm layers, or the model is no classifier.
        DataError
            If there are too few target images.
        """
        backbone = _with_target_statistics(self, model, domains, extractor)
        adapted = replace(model, backbone=backbone, engine="fp32")
        return Adapted(model=record_adaptation(adapted, self, domains))


@dataclass(frozen=True, kw_only=True)
class MixedBN:
    """Mix the statistics of every BatchNorm layer from those of the source and of the target.

    With few target images, or other shares of the classes, statistics of the target alone are
    poor. No parameter changes and no labels are read.

    Parameters
    ----------
    prior : int
        The source's statistics count like those of so many target images.

    Raises
    ------
    UsageError
        If ``prior`` is below 0.

    Reference
    ---------
    Schneider et al., Improving robustness against common corruptions by covariate shift
    adaptation, NeurIPS 2020, equation 2.

    Examples
    --------
    >>> MixedBN().prior
    128
    """

    name: ClassVar[str] = "mixed-bn"
    needs_source: ClassVar[bool] = False
    resumes: ClassVar[bool] = False

    prior: int = 128

    def __post_init__(self) -> None:
        if self.prior < 0:
            raise UsageError(f"`prior` must be 0 or more, got {self.prior}. Pass 128.")

    def adapt(
        self,
        model: TransferModel,
        domains: Domains,
        *,
        extractor: Extractor,
        session: Session | None = None,
    ) -> Adapted:
        """Return the model with mixed statistics.

        Raises
        ------
        UsageError
            If the backbone has no BatchNorm layers, or the model is no classifier.
        DataError
            If there are too few target images.
        """
        target = _with_target_statistics(self, model, domains, extractor)
        share = len(domains.target) / (self.prior + len(domains.target))
        state = mix_statistics(model.backbone.state, target.state, share)
        adapted = replace(model, backbone=model.backbone.with_parameters(state), engine="fp32")
        return Adapted(model=record_adaptation(adapted, self, domains, target_share=share))


def mix_statistics(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Mix the running means and variances of two states of one network.

    Parameters
    ----------
    source, target : mapping of str to tensor
    share : float
        Of the target, from 0 to 1.

    Returns
    -------
    dict of str to tensor
        All other tensors are those of the source.

    Reference
    ---------
    Schneider et al., NeurIPS 2020, equation 2: means and variances are averaged alike.

    Examples
    --------
    >>> import torch
    >>> first, second = ({"bn.running_var": torch.tensor([v])} for v in (1.0, 5.0))
    >>> mix_statistics(first, second, 0.25)
    {'bn.running_var': tensor([2.])}
    """
    return {
        name: (1 - share) * value + share * target[name]
        if name.endswith(("running_mean", "running_var"))
        else value
        for name, value in source.items()
    }


def _with_target_statistics(
    method: AdaBN | MixedBN, model: TransferModel, domains: Domains, extractor: Extractor
) -> FrozenBackbone:
    """Return the backbone with statistics of the target images."""
    head = require_adaptable(model, domains, method)
    if not any(name.endswith("running_mean") for name in model.backbone.state):
        raise UsageError(
            f"Method {method.name} needs BatchNorm layers, but {model.backbone.spec.name} has "
            "none. Pass --method shot."
        )
    module = model.backbone.copy()
    policy = ",".join(f"{stage.name}=adapt" for stage in module.stages)
    plan = plan_freezing(module, batch_norm=policy)
    network = Network(module, head, plan, device=device(extractor.device))
    inputs = InputSource(backbone=model.backbone, extractor=extractor)
    images = inputs.of(domains.target, Augmentation(), epochs=1)
    network.adapt(lambda rows: images.fetch(1, rows), len(domains.target))
    return model.backbone.with_parameters(network.state())
