"""Rungs of fine-tuning: the head, the last resolution, the last two resolutions, all stages.

Stages whose outputs have the same stride form one resolution. ``last:1`` is the last resolution:
stage6 to conv_head of an EfficientNet-Lite0, layer4 of a ResNet. The stages of a transformer all
have one stride, so each stage counts as a resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from headstart.backbones.spec import Stage
from headstart.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.backbones.backbone import Backbone
    from headstart.backbones.freezing import FreezePlan

__all__ = [
    "Rung",
    "find_rungs",
    "first_trained_index",
    "format_shares",
    "list_rungs",
    "resolutions",
    "stage_flops",
]

_FLOPS: dict[tuple[Any, ...], tuple[int, ...]] = {}
"""Of the stages of each network that was counted in this process."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One rung: the stages that train, and their shares of the backbone.

    Parameters
    ----------
    name : str
        Value of ``--train-from``.
    stages : tuple of str
    parameter_share, flop_share : float
        Shares of the backbone's parameters, and of the operations of its forward pass.
    """

    name: str
    stages: tuple[str, ...]
    parameter_share: float
    flop_share: float

    @property
    def shares(self) -> str:
        """Both shares in words."""
        return _format_shares(self.parameter_share, self.flop_share)


def resolutions(stages: Sequence[Stage]) -> tuple[tuple[str, ...], ...]:
    """Group the names of stages by the stride of their outputs, in execution order.

    Examples
    --------
    >>> from headstart.backbones.catalog import resolve
    >>> resolutions(resolve("embedded/efficientnet_lite0").stages)[-1]
    ('stage6', 'stage7', 'conv_head')
    >>> resolutions(resolve("resnet18").stages)[-2:]
    (('layer3',), ('layer4',))
    """
    groups = [
        tuple(stage.name for stage in group)
        for _, group in groupby(stages, key=lambda stage: stage.stride)
    ]
    return tuple(groups) if len(groups) > 1 else tuple((stage.name,) for stage in stages)


def list_rungs(stages: Sequence[Stage]) -> tuple[str, ...]:
    """List the rungs of a backbone by name, from the smallest to the largest.

    Examples
    --------
    >>> from headstart.backbones.catalog import resolve
    >>> list_rungs(resolve("resnet18").stages)
    ('head', 'last:1', 'last:2', 'all')
    >>> list_rungs([Stage(name="trunk", channels=8, stride=32)])
    ('head', 'all')
    """
    inner = min(2, len(resolutions(stages)) - 1)  # with two resolutions, last:2 would be all
    return ("head", *(f"last:{n}" for n in range(1, inner + 1)), "all")


def first_trained_index(train_from: str, stages: Sequence[Stage]) -> int:
    """Return the index of the first stage that trains; the number of stages for ``head``.

    Parameters
    ----------
    train_from : str
        ``head``, ``all``, ``last:N`` for the last N resolutions, or the name of a stage.
    stages : sequence of Stage

    Raises
    ------
    UnknownNameError
        If there is no such stage.
    UsageError
        If N is not a number from 1 to the number of resolutions.

    Examples
    --------
    >>> from headstart.backbones.catalog import resolve
    >>> stages = resolve("embedded/efficientnet_lite0").stages
    >>> [stages[first_trained_index(name, stages)].name for name in ("last:1", "last:2", "all")]
    ['stage6', 'stage4', 'stem']
    """
    names = [stage.name for stage in stages]
    if train_from in {"head", "all"}:
        return len(names) if train_from == "head" else 0
    if not train_from.startswith("last:"):
        if train_from not in names:
            raise UnknownNameError("train_from", train_from, [*names, *list_rungs(stages)])
        return names.index(train_from)
    groups, count = resolutions(stages), train_from.removeprefix("last:")
    if not count.isdecimal() or not 1 <= int(count) <= len(groups):
        raise UsageError(
            f"Expected `train_from` as last:N with N from 1 to {len(groups)} (the number of "
            f"resolutions of this backbone), got {train_from!r}. Pass --train-from last:1, or one "
            f"of the stages {', '.join(names)}."
        )
    return names.index(groups[-int(count)][0])


def find_rungs(backbone: Backbone) -> tuple[Rung, ...]:
    """Return the rungs of a backbone, with the shares that train.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> for rung in find_rungs(load("resnet18", pretrained=False)):
    ...     print(rung.name, f"{rung.parameter_share:.2f} {rung.flop_share:.2f}")
    head 0.00 0.00
    last:1 0.75 0.23
    last:2 0.94 0.45
    all 1.00 1.00
    """
    names = [stage.name for stage in backbone.stages]
    sizes = dict.fromkeys(names, 0)
    for name, parameter in backbone.named_parameters():
        sizes[backbone.stage_of(name)] += parameter.numel()
    flops = dict(zip(names, stage_flops(backbone), strict=True))
    rungs = []
    for rung in list_rungs(backbone.stages):
        stages = tuple(names[first_trained_index(rung, backbone.stages) :])
        rungs.append(
            Rung(
                name=rung,
                stages=stages,
                parameter_share=_share(sizes, stages),
                flop_share=_share(flops, stages),
            )
        )
    return tuple(rungs)


def _share(values: dict[str, int], stages: Sequence[str]) -> float:
    return sum(values[stage] for stage in stages) / max(sum(values.values()), 1)


def format_shares(backbone: Backbone, plan: FreezePlan) -> str:
    """Describe the shares of a backbone that train by a plan.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> from headstart.backbones.freezing import plan_freezing
    >>> backbone = load("resnet18", pretrained=False)
    >>> format_shares(backbone, plan_freezing(backbone, train_from="last:1"))
    '75 % of the parameters and 23 % of the computation of the backbone'
    """
    names = [row.stage for row in plan.rows]
    flops = dict(zip(names, stage_flops(backbone), strict=True))
    parameters = plan.trainable / max(sum(row.parameters for row in plan.rows), 1)
    computation = _share(flops, [row.stage for row in plan.rows if row.trains])
    return _format_shares(parameters, computation)


def _format_shares(parameters: float, computation: float) -> str:
    return (
        f"{_percent(parameters)} of the parameters and {_percent(computation)} of the computation "
        "of the backbone"
    )


def _percent(share: float) -> str:
    return "under 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def stage_flops(backbone: Backbone) -> tuple[int, ...]:
    """Count the floating-point operations of each stage for one image of the backbone's size.

    Matrix products and convolutions are counted, two operations for each product and sum.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> round(sum(stage_flops(load("resnet18", pretrained=False))) / 1e9, 1)  # 1.8 GMACs
    3.6
    """
    spec = backbone.spec
    key = (spec.architecture, spec.model_options, spec.until, spec.preprocess.shape)
    if key not in _FLOPS:
        _FLOPS[key] = _count_flops(backbone)
    return _FLOPS[key]


def _count_flops(backbone: Backbone) -> tuple[int, ...]:
    """Run every stage without values, or where a network creates tensors of its own, with them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counts: list[int] = []

    class _Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, x: Tensor) -> Tensor:
            for stage in self.backbone.stages:
                with FlopCounterMode(display=False) as counter:
                    x = self.backbone.run(x, start=stage.name, stop=stage.name)
                counts.append(counter.get_total_flops())
            return x

    module = _Counted()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    changes: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("meta", lambda tensor: tensor.to("meta")),
        ("cpu", lambda tensor: tensor.detach().cpu().clone()),  # BatchNorm may change its copy
    )
    for device, change in changes:
        counts.clear()
        values = {name: change(tensor) for name, tensor in tensors.items()}
        x = torch.zeros(2, 3, *backbone.spec.preprocess.shape, device=device)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.func.functional_call(module, values, (x,))
            break
        except (RuntimeError, NotImplementedError):
            if device == "cpu":
                raise
    return tuple(count // 2 for count in counts)
