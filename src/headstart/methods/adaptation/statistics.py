"""AdaBN: BatchNorm statistics of the target images instead of the source's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from headstart.backbones.freezing import plan_freezing
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

__all__ = ["AdaBN"]


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
        head = require_adaptable(model, domains, self)
        if not any(name.endswith("running_mean") for name in model.backbone.state):
            raise UsageError(
                f"Method adabn needs BatchNorm layers, but {model.backbone.spec.name} has none. "
                "Pass --method shot."
            )
        module = model.backbone.copy()
        policy = ",".join(f"{stage.name}=adapt" for stage in module.stages)
        plan = plan_freezing(module, batch_norm=policy)
        network = Network(module, head, plan, device=device(extractor.device))
        inputs = InputSource(backbone=model.backbone, extractor=extractor)
        images = inputs.of(domains.target, Augmentation(), epochs=1)
        network.adapt(lambda rows: images.fetch(1, rows), len(domains.target))
        backbone = model.backbone.with_parameters(network.state())
        adapted = replace(model, backbone=backbone, engine="fp32")
        return Adapted(model=record_adaptation(adapted, self, domains))
