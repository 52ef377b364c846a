"""What holds a network near its source while it trains: the terms that its loss gains.

The formulas are in penalties.py and anchoring.py. Here they get what they read: the weights as
they start, the source's answers to the same batch, the classifier it was published with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headstart.backbones.freezing import constant, trained
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
from headstart.training.weight_averaging import wide

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.backbones.frozen import Array

__all__ = ["bind"]

FISHER_IMAGES = 64
"""At most so many are looked at for elastic weight consolidation: one backward pass each."""

Classifier = Callable[["Tensor"], "Tensor"]
Term = Callable[[Outputs, Outputs, Rows], "Tensor"]
"""From what the network gives, what the still source gives, and the images' rows. Where no
term asks the source it does not run, and the network's own outputs stand in its place."""


def bind(
    network: Network, backbone: FrozenBackbone, train: Dataset, settings: Regularisation
) -> Callable[[Inputs], Penalty] | None:
    """Make the terms of the loss that hold a network near its source.

    What is returned is called with what the network reads, right before it trains: the source is
    the network as it is at that moment, adapted statistics included. It makes the penalty, which
    is called for every batch with what the network read (mixed, where MixUp or CutMix mix), what
    it gave, and the images' places in ``train``.

    - ``l2_sp`` anchors the backbone's weights that train; ``l2_sp_head`` shrinks the new head's
      weight, not its bias.
    - ``ewc`` measures the Fisher information of at most 64 training images (always the same
      ones), with the original classifier and, as classes, its own most likely answers.
    - ``delta`` compares what every stage that moves gives; all channels count alike.
    - ``bss`` reads the features of the part of a batch that is computed at once, so ``bss_k`` may
      not exceed its size.
    - ``lwf`` and ``co_tuning`` ask the original classifier, which is constant. Co-tuning relates
      classes by the source's answers to the training images as the first epoch sees them, and
      takes a mixed image for one of its own class.

    Parameters
    ----------
    network : Network
    backbone : FrozenBackbone
        What the backbone was made of: its weights hold the original classifier.
    train : Dataset
        The images to learn from.
    settings : Regularisation

    Returns
    -------
    callable or None
        None if nothing is asked for. Penalties are scalars that can be differentiated; nothing
        flows into the source.

    Raises
    ------
    UsageError
        If a term cannot be had: no weight of the backbone trains, the original classifier is
        missing or not linear, or co-tuning is asked for images with several labels.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> from headstart.backbones.catalog import resolve
    >>> from headstart.backbones.freezing import plan
    >>> from headstart.models.heads.linear import LinearHead
    >>> spec, module = resolve("timm/test_resnet"), load("timm/test_resnet", pretrained=False)
    >>> backbone = FrozenBackbone(spec=spec, state=module.trunk.state_dict(), origin={})
    >>> head = LinearHead.random(backbone.width, 2, seed=0)
    >>> network = Network(module, head, plan(module, train_from="layer4"))
    >>> data = Dataset(samples=(), classes=("a", "b"))
    >>> bind(network, backbone, data, Regularisation()) is None
    True
    >>> callable(bind(network, backbone, data, Regularisation(l2_sp=0.1)))
    True
    """
    if settings.is_off:
        return None
    _require_possible(network, train, settings)
    wanted = [name for name in ("ewc", "lwf", "co_tuning") if getattr(settings, name)]
    original = _original(backbone, wanted[0]) if wanted else None

    def bound(inputs: Inputs) -> Penalty:
        classifier = None if original is None else _classifier(original, network.device)
        bench = _Bench(
            network=network,
            inputs=inputs,
            train=train,
            settings=settings,
            classifier=classifier,
            weights=trained(network.backbone, network.plan),
        )
        network.rest()
        return _penalty(bench, [make(bench) for names, make in _TERMS if bench.asks(*names)])

    return bound


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bench:
    """What terms are made from, at the moment when training starts."""

    network: Network
    inputs: Inputs
    train: Dataset
    settings: Regularisation
    classifier: Classifier | None
    weights: Mapping[str, nn.Parameter]

    def asks(self, *names: str) -> bool:
        return any(getattr(self.settings, name) for name in names)

    def old_logits(self, pooled: Tensor) -> Tensor:
        if self.classifier is None:  # bind has made sure that it is there
            raise UsageError("Expected an original classifier, got none.")
        return self.classifier(pooled)


def _penalty(bench: _Bench, terms: list[Term]) -> Penalty:
    import torch

    # Co-tuning needs the source's answers too, but only once, when its term is made.
    source = bench.network.source() if bench.asks("delta", "lwf") else None

    def penalty(x: Tensor, outputs: Outputs, rows: Rows) -> Tensor:
        still = outputs
        if source is not None:
            with torch.no_grad():
                still = source(x)
        first, *more = (term(outputs, still, rows) for term in terms)
        return sum(more, start=first)

    return penalty


# -------------------------------------------------------------------------------- the terms


def _near(bench: _Bench) -> Term:
    how = bench.settings
    live = bench.weights if how.l2_sp else {}
    start = anchors(live)
    head = [p for p in bench.network.layer.parameters() if p.ndim > 1]  # no bias, no norm
    return lambda outputs, still, rows: l2_sp(
        live, start, alpha=how.l2_sp, head=head, beta=how.l2_sp_head
    )


def _consolidated(bench: _Bench) -> Term:
    start, worth = anchors(bench.weights), _fisher(bench)
    return lambda outputs, still, rows: bench.settings.ewc * ewc(bench.weights, start, worth)


def _same_maps(bench: _Bench) -> Term:
    network = bench.network
    moving = {row.stage for row in network.plan.rows if not row.is_constant}
    channels = [stage.channels for stage in network.backbone.stages if stage.name in moving]

    def ordered(given: Outputs) -> list[Tensor]:
        return [_channels_second(x, n) for x, n in zip(given.maps, channels, strict=True)]

    return lambda outputs, still, rows: (
        bench.settings.delta * delta(ordered(outputs), ordered(still))
    )


def _spread(bench: _Bench) -> Term:
    how = bench.settings
    return lambda outputs, still, rows: how.bss * bss(outputs.pooled, how.bss_k)


def _remembering(bench: _Bench) -> Term:
    how, old = bench.settings, bench.old_logits

    return lambda outputs, still, rows: (
        how.lwf * lwf(old(outputs.pooled), old(still.pooled), how.temperature)
    )


def _co_tuned(bench: _Bench) -> Term:
    import torch

    fetch, weight = bench.inputs.fetch, bench.settings.co_tuning
    _, pooled = bench.network.judge(lambda rows: fetch(1, rows), len(bench.train))
    answers = bench.old_logits(torch.from_numpy(pooled).to(bench.network.device)).softmax(dim=1)
    # A class of which there is no image is related to nothing, and is never asked for.
    present, places = np.unique(bench.train.targets(), return_inverse=True)
    classes = torch.from_numpy(places).to(bench.network.device)
    related = relation(answers, classes, len(present))

    def term(outputs: Outputs, still: Outputs, rows: Rows) -> Tensor:
        wanted = related[classes[torch.from_numpy(rows).to(classes.device)]]
        return weight * co_tuning(bench.old_logits(outputs.pooled), wanted)

    return term


_TERMS: tuple[tuple[tuple[str, ...], Callable[[_Bench], Term]], ...] = (
    (("l2_sp", "l2_sp_head"), _near),
    (("ewc",), _consolidated),
    (("delta",), _same_maps),
    (("bss",), _spread),
    (("lwf",), _remembering),
    (("co_tuning",), _co_tuned),
)


# --------------------------------------------------------------------------- what they need


def _require_possible(network: Network, train: Dataset, settings: Regularisation) -> None:
    names = ("l2_sp", "delta", "bss", "co_tuning", "ewc", "lwf")
    asked = [name for name in names if getattr(settings, name)]
    if asked and not network.plan.trainable:
        raise UsageError(
            f"Expected a stage that trains for `{asked[0]}` to hold, got the head alone; do train "
            "from a stage, or leave the regularisation out."
        )
    of_classes = [name for name in ("co_tuning", "ewc", "lwf") if name in asked]
    if of_classes and train.is_dense:
        raise UsageError(
            f"Expected a regularisation that {train.kind} knows, got `{of_classes[0]}`, which asks "
            "the original classifier of whole images; do use `l2_sp`, `delta` or `bss`."
        )
    if settings.co_tuning and train.kind == "multilabel":
        raise UsageError(
            "Expected one class for each image with `co_tuning`, got several labels; do use "
            "another regularisation."
        )


def _original(backbone: FrozenBackbone, name: str) -> tuple[Array, Array]:
    found, reason = backbone.classifier()
    if found is None:
        raise UsageError(
            f"Expected the backbone's original classifier for `{name}`, got none. {reason}; do "
            "use another regularisation."
        )
    return found


def _classifier(original: tuple[Array, Array], device: str) -> Classifier:
    import torch
    from torch.nn.functional import linear

    weight, bias = (torch.from_numpy(array.copy()).to(device) for array in original)

    def classify(pooled: Tensor) -> Tensor:
        x = wide(pooled)
        return linear(x, weight.to(x), bias.to(x))

    return classify


def _channels_second(x: Tensor, channels: int) -> Tensor:
    """Tokens, and the maps of some transformers, have their channels last."""
    last = x.ndim == 3 or (x.shape[1] != channels and x.shape[-1] == channels)
    return x.movedim(-1, 1) if last else x


def _fisher(bench: _Bench) -> dict[str, Tensor]:
    """Of the weights that train, by their names in the backbone."""
    import torch

    network, n = bench.network, len(bench.train)
    drawn = np.random.default_rng(n).permutation(n)[:FISHER_IMAGES]
    x = network.tensor(bench.inputs.fetch(1, np.sort(drawn)))
    with torch.no_grad():
        answers = bench.old_logits(network.outputs(x).pooled).argmax(dim=1)
    found = fisher(_answering(bench), [(x, answers)])
    return {name: found[f"backbone.{name}"] for name in bench.weights}


def _answering(bench: _Bench) -> nn.Module:
    """The network with the original classifier for a head, sharing all its tensors."""
    from torch import nn

    class Answering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = bench.network.backbone

        def forward(self, x: Tensor) -> Tensor:
            return bench.old_logits(bench.network.outputs(x).pooled)

    # A module is born in training mode; what it shares is in inference already.
    return constant(Answering())
