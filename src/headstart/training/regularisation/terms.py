"""Penalty terms of the training loss, bound to a network, its source and its inputs.

The formulas are in penalties.py and anchoring.py. Here they get their arguments: the weights
before training, the outputs of the source for the same batch, and the original classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headstart.backbones.freezing import freeze, trainable_parameters
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.errors import UsageError
from headstart.training.inputs import Inputs
from headstart.training.job import Rows
from headstart.training.network import Network, Outputs
from headstart.training.objectives import Penalty
from headstart.training.regularisation.anchoring import anchors, ewc, fisher, l2_sp
from headstart.training.regularisation.penalties import (
    Regularisation,
    bss,
    co_tuning,
    delta,
    lwf,
    relation,
)
from headstart.training.regularisation.teacher import Teacher, teacher_term
from headstart.training.weight_averaging import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.backbones.frozen import Array

__all__ = ["penalty_factory"]

N_FISHER_IMAGES = 64
"""Largest number of images for the Fisher information (EWC): it takes one backward pass each."""

Classifier = Callable[["Tensor"], "Tensor"]
Term = Callable[[Outputs, Outputs, Rows], "Tensor"]
"""From the outputs of the network, the outputs of the source, and the rows of the images. If no
term needs the source, it does not run; then the network's own outputs are passed twice."""


def penalty_factory(
    network: Network,
    backbone: FrozenBackbone,
    train: Dataset,
    settings: Regularisation,
    teacher: Teacher | None = None,
) -> Callable[[Inputs], Penalty] | None:
    """Make a function that creates the penalty of a training.

    Call the returned function with the inputs, right before training: the source is the network
    at that moment, including adapted statistics. It returns the penalty, which is called for
    every batch with the input of the network (after MixUp or CutMix), its outputs, and the rows
    of the images in ``train``.

    - ``l2_sp`` anchors the trainable weights of the backbone; ``l2_sp_head`` shrinks the weight of
      the new head, not its bias.
    - ``ewc`` measures the Fisher information on at most 64 training images (always the same), with
      the original classifier; its most likely predictions are the classes.
    - ``delta`` compares the outputs of every trainable stage; all channels have the same weight.
    - ``bss`` reads the features of the part of a batch that is computed at once, so ``bss_k`` must
      not be larger than this part.
    - ``lwf`` and ``co_tuning`` use the original classifier, which does not train. Co-tuning relates
      classes by the source's predictions for the training images in the first epoch. It treats
      a mixed image as an image of its own class.

    Parameters
    ----------
    network : Network
    backbone : FrozenBackbone
        The pretrained backbone: its weights include the original classifier.
    train : Dataset
        The training images.
    settings : Regularisation
    teacher : Teacher, optional
        Adds the distance to the outputs of a teacher.

    Returns
    -------
    callable or None
        None if every penalty is off and there is no teacher. Penalties are differentiable scalars;
        no gradient flows into the source.

    Raises
    ------
    UsageError
        If a term is impossible: no weight of the backbone trains, the original classifier is
        missing or not linear, or co-tuning is set for images with several labels.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> from headstart.backbones.catalog import resolve
    >>> from headstart.backbones.freezing import plan_freezing
    >>> from headstart.models.heads.linear import LinearHead
    >>> spec, module = resolve("timm/test_resnet"), load("timm/test_resnet", pretrained=False)
    >>> backbone = FrozenBackbone(spec=spec, state=module.trunk.state_dict(), origin={})
    >>> head = LinearHead.random(backbone.width, 2, seed=0)
    >>> network = Network(module, head, plan_freezing(module, train_from="layer4"))
    >>> data = Dataset(samples=(), classes=("a", "b"))
    >>> penalty_factory(network, backbone, data, Regularisation()) is None
    True
    >>> callable(penalty_factory(network, backbone, data, Regularisation(l2_sp=0.1)))
    True
    """
    if settings.is_off and teacher is None:
        return None
    _require_possible(network, train, settings)
    needing_classifier = [n for n in ("ewc", "lwf", "co_tuning") if getattr(settings, n)]
    layer = _require_classifier(backbone, needing_classifier[0]) if needing_classifier else None

    def make_penalty(inputs: Inputs) -> Penalty:
        classifier = None if layer is None else _make_classifier(layer, network.device)
        context = _TermContext(
            network=network,
            inputs=inputs,
            train=train,
            settings=settings,
            classifier=classifier,
            weights=trainable_parameters(network.backbone, network.plan),
        )
        network.set_inference()
        terms = [make_term(context) for names, make_term in _TERMS if context.uses(*names)]
        if teacher is not None:
            terms.append(teacher_term(teacher, network.device))
        return _add_terms(context, terms)

    return make_penalty


@dataclass(frozen=True, kw_only=True, eq=False)
class _TermContext:
    """Arguments of the terms, at the moment when training starts."""

    network: Network
    inputs: Inputs
    train: Dataset
    settings: Regularisation
    classifier: Classifier | None
    weights: Mapping[str, nn.Parameter]

    def uses(self, *names: str) -> bool:
        return any(getattr(self.settings, name) for name in names)

    def source_logits(self, pooled: Tensor) -> Tensor:
        if self.classifier is None:  # penalty_factory has checked that it exists
            raise UsageError(f"Expected the original classifier for {self.settings}, got none.")
        return self.classifier(pooled)


def _add_terms(context: _TermContext, terms: list[Term]) -> Penalty:
    import torch

    # Co-tuning needs the source's predictions only once, when its term is made.
    source = context.network.frozen_copy() if context.uses("delta", "lwf") else None

    def penalty(x: Tensor, outputs: Outputs, rows: Rows) -> Tensor:
        source_outputs = outputs
        if source is not None:
            with torch.no_grad():
                source_outputs = source(x)
        first, *others = (term(outputs, source_outputs, rows) for term in terms)
        return sum(others, start=first)

    return penalty


# ------------------------------------------------------------------------------------ terms


def _l2_sp_term(context: _TermContext) -> Term:
    settings = context.settings
    weights = context.weights if settings.l2_sp else {}
    start = anchors(weights)
    head = [p for p in context.network.layer.parameters() if p.ndim > 1]  # no bias, no norm
    return lambda outputs, source_outputs, rows: l2_sp(
        weights, start, alpha=settings.l2_sp, head=head, beta=settings.l2_sp_head
    )


def _ewc_term(context: _TermContext) -> Term:
    start, information = anchors(context.weights), _measure_fisher(context)
    return lambda outputs, source_outputs, rows: (
        context.settings.ewc * ewc(context.weights, start, information)
    )


def _delta_term(context: _TermContext) -> Term:
    network = context.network
    trainable = {row.stage for row in network.plan.rows if not row.is_constant}
    channels = [stage.channels for stage in network.backbone.stages if stage.name in trainable]

    def feature_maps(outputs: Outputs) -> list[Tensor]:
        return [_channels_second(x, n) for x, n in zip(outputs.maps, channels, strict=True)]

    return lambda outputs, source_outputs, rows: (
        context.settings.delta * delta(feature_maps(outputs), feature_maps(source_outputs))
    )


def _bss_term(context: _TermContext) -> Term:
    settings = context.settings
    return lambda outputs, source_outputs, rows: settings.bss * bss(outputs.pooled, settings.bss_k)


def _lwf_term(context: _TermContext) -> Term:
    settings, logits = context.settings, context.source_logits

    return lambda outputs, source_outputs, rows: (
        settings.lwf
        * lwf(logits(outputs.pooled), logits(source_outputs.pooled), settings.temperature)
    )


def _co_tuning_term(context: _TermContext) -> Term:
    import torch

    fetch, weight = context.inputs.fetch, context.settings.co_tuning
    _, pooled = context.network.predict(lambda rows: fetch(1, rows), len(context.train))
    logits = context.source_logits(torch.from_numpy(pooled).to(context.network.device))
    # Only classes with images: the others have no relation, and no batch contains them.
    present, indices = np.unique(context.train.targets(), return_inverse=True)
    classes = torch.from_numpy(indices).to(context.network.device)
    relations = relation(logits.softmax(dim=1), classes, len(present))

    def term(outputs: Outputs, source_outputs: Outputs, rows: Rows) -> Tensor:
        relation_rows = relations[classes[torch.from_numpy(rows).to(classes.device)]]
        return weight * co_tuning(context.source_logits(outputs.pooled), relation_rows)

    return term


_TERMS: tuple[tuple[tuple[str, ...], Callable[[_TermContext], Term]], ...] = (
    (("l2_sp", "l2_sp_head"), _l2_sp_term),
    (("ewc",), _ewc_term),
    (("delta",), _delta_term),
    (("bss",), _bss_term),
    (("lwf",), _lwf_term),
    (("co_tuning",), _co_tuning_term),
)


# ------------------------------------------------------------------- requirements of the terms


def _require_possible(network: Network, train: Dataset, settings: Regularisation) -> None:
    names = ("l2_sp", "delta", "bss", "co_tuning", "ewc", "lwf")
    active = [name for name in names if getattr(settings, name)]
    if active and not network.plan.trainable:
        raise UsageError(
            f"`{active[0]}` needs a trainable stage, but only the head alone trains. Pass "
            f"--train-from with a stage, or leave out {_flag(active[0])}."
        )
    of_classes = [name for name in ("co_tuning", "ewc", "lwf") if name in active]
    if of_classes and train.is_dense:
        raise UsageError(
            f"`{of_classes[0]}` needs the original classifier of whole images, which {train.kind} "
            "does not use. Pass --l2-sp, --delta or --bss instead."
        )
    if settings.co_tuning and train.kind == "multilabel":
        raise UsageError(
            f"`co_tuning` {settings.co_tuning:g} needs one class per image, but the images have "
            "several labels. Leave out --co-tuning."
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _require_classifier(backbone: FrozenBackbone, name: str) -> tuple[Array, Array]:
    """Return weight and bias of the original classifier, which the term ``name`` needs."""
    layer, reason = backbone.classifier()
    if layer is None:
        raise UsageError(
            f"`{name}` needs the original classifier of the backbone, but there is none that it "
            f"can use. {reason}. Leave out {_flag(name)}."
        )
    return layer


def _make_classifier(layer: tuple[Array, Array], device: str) -> Classifier:
    import torch
    from torch.nn.functional import linear

    weight, bias = (torch.from_numpy(array.copy()).to(device) for array in layer)

    def classify(pooled: Tensor) -> Tensor:
        x = at_least_float32(pooled)
        return linear(x, weight.to(x), bias.to(x))

    return classify


def _channels_second(x: Tensor, channels: int) -> Tensor:
    """Move channels to the second place: tokens and maps of some transformers have them last."""
    is_last = x.ndim == 3 or (x.shape[1] != channels and x.shape[-1] == channels)
    return x.movedim(-1, 1) if is_last else x


def _measure_fisher(context: _TermContext) -> dict[str, Tensor]:
    """Measure the Fisher information of the trainable weights, by their names in the backbone."""
    import torch

    network, n = context.network, len(context.train)
    rows = np.random.default_rng(n).permutation(n)[:N_FISHER_IMAGES]
    x = network.tensor(context.inputs.fetch(1, np.sort(rows)))
    with torch.no_grad():
        predictions = context.source_logits(network.outputs(x).pooled).argmax(dim=1)
    information = fisher(_source_network(context), [(x, predictions)])
    return {name: information[f"backbone.{name}"] for name in context.weights}


def _source_network(context: _TermContext) -> nn.Module:
    """Return the network with the original classifier as its head, sharing all its tensors."""
    from torch import nn

    class SourceNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = context.network.backbone

        def forward(self, x: Tensor) -> Tensor:
            return context.source_logits(context.network.outputs(x).pooled)

    # A new module is in training mode; the modules that it shares are in inference mode already.
    return freeze(SourceNetwork())
