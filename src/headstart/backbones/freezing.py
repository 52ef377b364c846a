"""Freezing: the only module that sets ``requires_grad`` and the mode of BatchNorm layers.

``plan_freezing`` returns a ``FreezePlan``, a value that can be printed and saved;
``start_training`` applies it. A frozen stage is constant: its parameters receive no gradient and
its BatchNorm layers are in inference mode, so its outputs can be cached. ``fingerprint`` checks
that nothing in it changed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from headstart.backbones.rungs import first_trained_index
from headstart.errors import HeadstartError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.backbones.backbone import Backbone

__all__ = [
    "BATCH_NORM_POLICIES",
    "BatchNormPolicy",
    "FreezePlan",
    "StageRow",
    "fingerprint",
    "freeze",
    "plan_freezing",
    "require_unchanged",
    "start_adapting",
    "start_training",
    "trainable_parameters",
    "unfreeze",
]

BatchNormPolicy = Literal["frozen", "train", "adapt"]
BATCH_NORM_POLICIES = ("frozen", "train", "adapt")

ModuleT = TypeVar("ModuleT", bound="nn.Module")


def freeze(module: ModuleT) -> ModuleT:
    """Freeze a module: no gradients, BatchNorm and dropout in inference mode.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place.

    Returns
    -------
    torch.nn.Module
        The same module.
    """
    return module.requires_grad_(requires_grad=False).eval()


def unfreeze(module: ModuleT) -> ModuleT:
    """Train every parameter of a module: gradients on, dropout and BatchNorm in training mode."""
    return module.requires_grad_(requires_grad=True).train()


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash every parameter and buffer, running statistics included.

    Returns
    -------
    str
        SHA-256, hexadecimal. Equal if and only if all values are equal bit for bit.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_unchanged(state: Mapping[str, Tensor], before: str) -> None:
    """Compare a frozen module's state with its earlier fingerprint.

    Raises
    ------
    HeadstartError
        If any parameter or running statistic has changed.
    """
    after = fingerprint(state)
    if after != before:
        raise HeadstartError(
            f"The frozen backbone changed during the run (fingerprint {before[:8]}, now "
            f"{after[:8]}). Nothing was saved. Report this as a bug in Headstart."
        )


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """Training plan of one stage of a backbone.

    Parameters
    ----------
    stage : str
    parameters, trainable : int
        Number of values, and how many of them are trained.
    batch_norm : {"frozen", "train", "adapt"}
        ``frozen``: inference mode, with the statistics of the pretraining. ``train``: statistics
        of the batches. ``adapt``: statistics of the training images, computed once, then constant.
    learning_rate : float
        0 for a stage that is not trained.
    from_epoch : int
        First epoch in which it is trained, from 1.
    """

    stage: str
    parameters: int
    trainable: int = 0
    batch_norm: BatchNormPolicy = "frozen"
    learning_rate: float = 0.0
    from_epoch: int = 1

    @property
    def trains(self) -> bool:
        """Whether any parameter is trained."""
        return self.trainable > 0

    @property
    def is_constant(self) -> bool:
        """Whether nothing in it changes, including the BatchNorm statistics."""
        return not self.trains and self.batch_norm == "frozen"


@dataclass(frozen=True, kw_only=True)
class FreezePlan:
    """Training plan of all stages, in execution order.

    Parameters
    ----------
    rows : tuple of StageRow
    only : str
        Which parameters of the trained stages: ``all``, ``norm``, ``bias``, ``lora``, or a
        regular expression.
    """

    rows: tuple[StageRow, ...]
    only: str = "all"

    @property
    def last_constant_stage(self) -> str | None:
        """The last stage before the first one that changes, or None.

        Its output is the same in every epoch: this is the split point.
        """
        stage = None
        for row in self.rows:
            if not row.is_constant:
                break
            stage = row.stage
        return stage

    @property
    def first_changing_stage(self) -> str | None:
        """The first stage that is trained or adapted; None when only the head is trained."""
        return next((row.stage for row in self.rows if not row.is_constant), None)

    @property
    def adapts_first(self) -> bool:
        """Whether statistics of a stage that is not trained are computed before the training."""
        return any(row.batch_norm == "adapt" and not row.trains for row in self.rows)

    def after_adapting(self) -> FreezePlan:
        """Return the plan once these statistics are computed: their stages are constant then."""
        if not self.adapts_first:
            return self
        rows = (
            replace(row, batch_norm="frozen") if row.batch_norm == "adapt" else row
            for row in self.rows
        )
        return replace(self, rows=tuple(rows))

    @property
    def trainable(self) -> int:
        """Number of trained values in the backbone."""
        return sum(row.trainable for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, for model.json."""
        rows = [{**asdict(row), "trains": row.trains} for row in self.rows]
        boundary = self.after_adapting().last_constant_stage
        return {"stages": rows, "only": self.only, "boundary": boundary}


def plan_freezing(
    backbone: Backbone,
    *,
    train_from: str = "head",
    only: str = "all",
    batch_norm: str = "frozen",
    learning_rate: float | str = 1e-4,
    layer_decay: float = 1.0,
    unfreeze_every: int = 0,
) -> FreezePlan:
    """Plan which stages and parameters are trained. The backbone is not changed.

    Parameters
    ----------
    train_from : str
        The first stage to train, by name; ``head`` for none, ``all`` for every stage,
        ``last:N`` for the last N resolutions (see ``headstart.backbones.rungs``).
    only : str
        Which parameters of these stages: ``all``; ``norm`` (scales and shifts of the
        normalisation); ``bias``; ``lora`` (see ``headstart.training.adapters``); or a regular
        expression that is searched in the parameter names, such as ``conv2|layer4.1``.
    batch_norm : str
        ``frozen``, ``train`` or ``adapt`` for the trained stages; or for named stages, such
        as ``layer3=adapt,layer4=train``. All other stages are ``frozen``.
    learning_rate : float or str
        Learning rate of the last stage; or by stage, such as ``layer3=1e-5,layer4=1e-4``.
    layer_decay : float
        Factor in (0, 1]: the learning rate of a stage is that of the next stage times this.
    unfreeze_every : int
        Epochs after which one more stage is unfrozen, from the last to the first (gradual
        unfreezing); 0 to train all from the start.

    Raises
    ------
    UnknownNameError
        If there is no such stage or policy.
    UsageError
        If a value is invalid, or no parameter would be trained.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> backbone = load("resnet18", pretrained=False)
    >>> plan = plan_freezing(backbone, train_from="last:2", layer_decay=0.5)
    >>> [(row.stage, row.learning_rate) for row in plan.rows if row.trains]
    [('layer3', 5e-05), ('layer4', 0.0001)]
    >>> plan.last_constant_stage
    'layer2'

    Reference
    ---------
    Howard and Ruder, Universal language model fine-tuning, ACL 2018, sections 3.2 and 3.3
    (layer-wise rates, gradual unfreezing).
    """
    if not 0 < layer_decay <= 1 or unfreeze_every < 0:
        raise UsageError(
            f"Expected 0 < `layer_decay` <= 1 and `unfreeze_every` >= 0, got {layer_decay} and "
            f"{unfreeze_every}. Pass --layer-decay 1.0 and --unfreeze-every 0 for the defaults."
        )
    names = [stage.name for stage in backbone.stages]
    trained_stages = names[first_trained_index(train_from, backbone.stages) :]
    policies = _parse_by_stage("batch_norm", batch_norm, names, trained_stages)
    for policy in policies.values():
        if policy not in BATCH_NORM_POLICIES:
            raise UnknownNameError("batch_norm", policy, BATCH_NORM_POLICIES)
    rates = _learning_rates(learning_rate, names, trained_stages, layer_decay)
    sizes, counts = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    selected = _select_parameters(backbone, only)
    for name, parameter in backbone.named_parameters():
        stage = backbone.stage_of(name)
        sizes[stage] += parameter.numel()
        counts[stage] += parameter.numel() * (stage in trained_stages and name in selected)
    if trained_stages and not any(counts.values()):
        raise UsageError(
            f"Expected `only` to match parameters of {', '.join(trained_stages)}, got {only!r}, "
            "which matches none. List the names with `backbone.named_parameters()`, or pass "
            "--only all."
        )
    rows = [
        StageRow(
            stage=name,
            parameters=sizes[name],
            trainable=counts[name],
            batch_norm=policies.get(name, "frozen"),  # type: ignore[arg-type]
            learning_rate=rates[name] if counts[name] else 0.0,
            # The last stage starts in epoch 1, the one before it `unfreeze_every` epochs later.
            from_epoch=1 + unfreeze_every * (len(names) - 1 - index) if counts[name] else 1,
        )
        for index, name in enumerate(names)
    ]
    return FreezePlan(rows=tuple(rows), only=only)


def start_training(backbone: Backbone, plan: FreezePlan, *, epoch: int | None = None) -> None:
    """Apply a plan to a backbone, in place. Call it again after any ``.train()``.

    Parameters
    ----------
    epoch : int, optional
        From 1; stages that a gradual unfreezing starts later stay constant. By default every
        stage of the plan has started.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    rows = {row.stage: row for row in plan.rows}
    trains_now = {
        stage: row.trains and (epoch is None or row.from_epoch <= epoch)
        for stage, row in rows.items()
    }
    freeze(backbone)
    for name, parameter in trainable_parameters(backbone, plan).items():
        parameter.requires_grad_(trains_now[backbone.stage_of(name)])
    for module, stage in _modules_by_stage(backbone):
        # Set every module by itself: `.train()` of a parent would also change its BatchNorm layers.
        if isinstance(module, _BatchNorm):
            module.training = rows[stage].batch_norm == "train" and (
                trains_now[stage] or not rows[stage].trains
            )
        else:
            module.training = trains_now[stage]


def trainable_parameters(backbone: Backbone, plan: FreezePlan) -> dict[str, nn.Parameter]:
    """Return the parameters that a plan trains in any epoch, by name; not copies."""
    stages = {row.stage for row in plan.rows if row.trains}
    selected = _select_parameters(backbone, plan.only)
    return {
        name: parameter
        for name, parameter in backbone.named_parameters()
        if name in selected and backbone.stage_of(name) in stages
    }


def start_adapting(backbone: Backbone, plan: FreezePlan) -> bool:
    """Reset the BatchNorm statistics of ``adapt`` stages to the mean over the next batches.

    Returns
    -------
    bool
        Whether there are such statistics: if so, run all training images through the backbone
        once and then call ``freeze``.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    freeze(backbone)
    adapting = {row.stage for row in plan.rows if row.batch_norm == "adapt"}
    has_statistics = False
    for module, stage in _modules_by_stage(backbone):
        if isinstance(module, _BatchNorm) and stage in adapting and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None  # a cumulative mean, in which every batch has the same weight
            module.training = has_statistics = True
    return has_statistics


def _modules_by_stage(backbone: Backbone) -> Iterator[tuple[nn.Module, str]]:
    """Yield the modules that belong to exactly one stage, each with that stage.

    A module without tensors, such as dropout, belongs to the stage of its parent.
    """
    stages_at: dict[str, set[str]] = {}
    for name in backbone.state_dict():
        if (stage := backbone.find_stage(name)) is not None:
            for path in accumulate(name.split("."), "{}.{}".format):
                stages_at.setdefault(path, set()).add(stage)
    for path, module in backbone.named_modules():  # parents come before their children
        if path and path not in stages_at:
            stages_at[path] = stages_at.get(path.rpartition(".")[0], set())
            if len(stages_at[path]) != 1 and (stage := backbone.find_stage(f"{path}.weight")):
                stages_at[path] = {stage}  # its parent spans stages, but it is itself a step of one
        if len(stages := stages_at.get(path, set())) == 1:
            yield module, next(iter(stages))


def _select_parameters(backbone: Backbone, only: str) -> set[str]:
    """Return the names of the parameters that ``only`` selects, in all stages."""
    names = [name for name, _ in backbone.named_parameters()]
    if only == "all":
        return set(names)
    if only == "bias":
        return {name for name in names if name.endswith(".bias")}
    if only == "norm":
        norms = {
            path for path, module in backbone.named_modules() if "Norm" in type(module).__name__
        }
        return {name for name in names if name.rpartition(".")[0] in norms}
    if only == "lora":
        return {
            name
            for name in names
            if ".parametrizations." in name and not name.endswith(".original")
        }
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise UsageError(
            f"Expected `only` to be all, norm, bias, lora or a regular expression, got {only!r} "
            f"({error}). Correct the expression, or pass --only all."
        ) from error
    return {name for name in names if pattern.search(name.removeprefix("trunk."))}


def _parse_by_stage(
    option: str, text: str, names: list[str], trained_stages: list[str]
) -> dict[str, str]:
    """Parse one value for all trained stages, or ``stage=value`` pairs for named stages."""
    if "=" not in text:
        return dict.fromkeys(trained_stages, text)
    pairs = [pair.partition("=") for pair in text.split(",")]
    values = {stage.strip(): value.strip() for stage, _, value in pairs}
    for stage in values:
        if stage not in names:
            raise UnknownNameError(option, stage, names)
    return values


def _learning_rates(
    learning_rate: float | str, names: list[str], trained_stages: list[str], decay: float
) -> dict[str, float]:
    """Parse the learning rate of each trained stage, and apply the layer decay."""
    texts = _parse_by_stage("learning_rate", str(learning_rate), names, trained_stages)
    try:
        rates = {stage: float(value) for stage, value in texts.items()}
    except ValueError as error:
        raise UsageError(
            "Expected `learning_rate` to be a number or stage=number pairs, got "
            f"{learning_rate!r}. Pass --learning-rate 1e-4, or --learning-rate "
            f"{names[-1]}=1e-4."
        ) from error
    missing = [stage for stage in trained_stages if stage not in rates]
    if missing or not all(0 < rate < math.inf for rate in rates.values()):
        raise UsageError(
            f"Expected a `learning_rate` above 0 for every trained stage, got {learning_rate!r}"
            + (f" without {', '.join(missing)}" if missing else "")
            + ". Pass one positive number, or stage=number for every trained stage."
        )
    if "=" in str(learning_rate):
        return rates
    distance = {name: len(names) - 1 - index for index, name in enumerate(names)}
    return {stage: rate * decay ** distance[stage] for stage, rate in rates.items()}
