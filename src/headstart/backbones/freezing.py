"""What trains and what does not: the only place where parameters and BatchNorm are told.

What trains is a value, made by ``plan``, which a person can read and a file can keep. A frozen
part is constant: its parameters receive no gradient and its BatchNorm layers are in inference
mode, so that what it gives is worth keeping; ``fingerprint`` proves it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from headstart.errors import HeadstartError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.backbones.backbone import Backbone

__all__ = [
    "BATCH_NORM_POLICIES",
    "BatchNormPolicy",
    "FreezePlan",
    "StageRow",
    "constant",
    "fingerprint",
    "learning",
    "plan",
    "require_constant",
    "start_adapting",
    "start_training",
    "trained",
]

BatchNormPolicy = Literal["frozen", "train", "adapt"]
BATCH_NORM_POLICIES = ("frozen", "train", "adapt")

ModuleT = TypeVar("ModuleT", bound="nn.Module")


def constant(module: ModuleT) -> ModuleT:
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


def learning(module: ModuleT) -> ModuleT:
    """Put a head into training, whole: every parameter learns, dropout and BatchNorm are alive."""
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


def require_constant(state: Mapping[str, Tensor], before: str) -> None:
    """Hold a frozen module's state against its earlier fingerprint.

    Raises
    ------
    HeadstartError
        If any parameter or running statistic has moved.
    """
    if fingerprint(state) != before:
        raise HeadstartError(
            "Expected the frozen backbone to be what it was before the run, got other values; "
            "nothing was saved. Do report this: it is a defect of Headstart."
        )


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """What happens to one stage of a backbone.

    Parameters
    ----------
    stage : str
    parameters, trainable : int
        Number of values, and of those that train.
    batch_norm : {"frozen", "train", "adapt"}
        ``frozen``: inference mode, the pretraining's statistics. ``train``: statistics of the
        batches. ``adapt``: statistics of the training images, taken once, then constant.
    learning_rate : float
        0 for a stage that does not train.
    from_epoch : int
        First epoch in which it trains, from 1.
    """

    stage: str
    parameters: int
    trainable: int = 0
    batch_norm: BatchNormPolicy = "frozen"
    learning_rate: float = 0.0
    from_epoch: int = 1

    @property
    def trains(self) -> bool:
        """Whether any parameter moves by gradient."""
        return self.trainable > 0

    @property
    def is_constant(self) -> bool:
        """Whether nothing in it moves, statistics included."""
        return not self.trains and self.batch_norm == "frozen"


@dataclass(frozen=True, kw_only=True)
class FreezePlan:
    """What trains, stage by stage, in the order in which the stages run.

    Parameters
    ----------
    rows : tuple of StageRow
    only : str
        Which parameters of the stages that train: ``all``, ``norm``, ``bias``, ``lora``, or a
        regular expression.
    """

    rows: tuple[StageRow, ...]
    only: str = "all"

    @property
    def boundary(self) -> str | None:
        """The last stage up to which nothing moves: the same output in every epoch; or None."""
        found = None
        for row in self.rows:
            if not row.is_constant:
                break
            found = row.stage
        return found

    @property
    def first_moving(self) -> str | None:
        """The first stage behind the boundary; None when nothing but the head moves."""
        return next((row.stage for row in self.rows if not row.is_constant), None)

    @property
    def trainable(self) -> int:
        """Values in the backbone that train."""
        return sum(row.trainable for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, for model.json."""
        rows = [{**asdict(row), "trains": row.trains} for row in self.rows]
        return {"stages": rows, "only": self.only, "boundary": self.boundary}


def plan(
    backbone: Backbone,
    *,
    train_from: str = "head",
    only: str = "all",
    batch_norm: str = "frozen",
    learning_rate: float | str = 1e-4,
    layer_decay: float = 1.0,
    unfreeze_every: int = 0,
) -> FreezePlan:
    """Decide what trains, as a value; nothing is changed.

    Parameters
    ----------
    train_from : str
        The first stage that trains, by name; ``head`` for none, ``all`` for every stage,
        ``last:N`` for the last N.
    only : str
        Which parameters of these stages: ``all``; ``norm`` (scales and shifts of the
        normalisation); ``bias``; ``lora`` (see ``headstart.training.adapters``); or a regular
        expression that is searched in their names, such as ``conv2|layer4.1``.
    batch_norm : str
        ``frozen``, ``train`` or ``adapt`` for the stages that train; or for named stages, such
        as ``layer3=adapt,layer4=train``. Everywhere else it is frozen.
    learning_rate : float or str
        Of the last stage; or by stage, such as ``layer3=1e-5,layer4=1e-4``.
    layer_decay : float
        Each stage before the last learns at this share of the rate of the one behind it, (0, 1].
    unfreeze_every : int
        Epochs after which one more stage begins to train, from the last to the first (gradual
        unfreezing); 0 for all at once.

    Raises
    ------
    UnknownNameError
        If there is no such stage or policy.
    UsageError
        If a value cannot be meant, or no parameter would train.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> found = plan(load("resnet18", pretrained=False), train_from="last:2", layer_decay=0.5)
    >>> [(row.stage, row.learning_rate) for row in found.rows if row.trains]
    [('layer3', 5e-05), ('layer4', 0.0001)]
    >>> found.boundary
    'layer2'

    Reference
    ---------
    Howard and Ruder, Universal language model fine-tuning, ACL 2018, sections 3.2 and 3.3
    (layer-wise rates, gradual unfreezing).
    """
    if not 0 < layer_decay <= 1 or unfreeze_every < 0:
        raise UsageError(
            f"Expected 0 < `layer_decay` <= 1 and `unfreeze_every` >= 0, got {layer_decay} and "
            f"{unfreeze_every}."
        )
    names = [stage.name for stage in backbone.stages]
    first = _first_trained(train_from, names)
    training = names[first:]
    policies = _by_stage("batch_norm", batch_norm, names, training)
    for policy in policies.values():
        if policy not in BATCH_NORM_POLICIES:
            raise UnknownNameError("batch_norm", policy, BATCH_NORM_POLICIES)
    rates = _rates(learning_rate, names, training, layer_decay)
    sizes, counts = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    chosen = _chosen(backbone, only)
    for name, parameter in backbone.named_parameters():
        stage = backbone.stage_of(name)
        sizes[stage] += parameter.numel()
        counts[stage] += parameter.numel() * (stage in training and name in chosen)
    if training and not any(counts.values()):
        raise UsageError(
            f"Expected `only` to choose parameters of {', '.join(training)}, got {only!r}, which "
            "matches none; do look at the names with `backbone.named_parameters()`."
        )
    rows = [
        StageRow(
            stage=name,
            parameters=sizes[name],
            trainable=counts[name],
            batch_norm=policies.get(name, "frozen"),  # type: ignore[arg-type]
            learning_rate=rates[name] if counts[name] else 0.0,
            from_epoch=1 + unfreeze_every * (len(names) - 1 - place) if counts[name] else 1,
        )
        for place, name in enumerate(names)
    ]
    return FreezePlan(rows=tuple(rows), only=only)


def start_training(backbone: Backbone, what: FreezePlan, *, epoch: int | None = None) -> None:
    """Put a backbone, in place, into a plan's state; call again after any ``.train()``.

    Parameters
    ----------
    epoch : int, optional
        From 1; stages whose turn comes later are constant. By default all turns have come.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    rows = {row.stage: row for row in what.rows}
    now = {s: r.trains and (epoch is None or r.from_epoch <= epoch) for s, r in rows.items()}
    constant(backbone)
    for name, parameter in trained(backbone, what).items():
        parameter.requires_grad_(now[backbone.stage_of(name)])
    for module, stage in _modules_by_stage(backbone):
        # One by one: a BatchNorm may hold layers of its own, and a parent decides nothing.
        if isinstance(module, _BatchNorm):
            module.training = rows[stage].batch_norm == "train" and (
                now[stage] or not rows[stage].trains
            )
        else:
            module.training = now[stage]


def trained(backbone: Backbone, what: FreezePlan) -> dict[str, nn.Parameter]:
    """Parameters that a plan lets train, sooner or later, by name; live, not copies."""
    stages, chosen = {row.stage for row in what.rows if row.trains}, _chosen(backbone, what.only)
    named = backbone.named_parameters()
    return {n: p for n, p in named if n in chosen and backbone.stage_of(n) in stages}


def start_adapting(backbone: Backbone, what: FreezePlan) -> bool:
    """Let the statistics of ``adapt`` stages gather anew, every batch weighing the same.

    Returns
    -------
    bool
        Whether there is anything to gather: if so, run all training images through the
        backbone once and end with ``constant``.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    constant(backbone)
    adapting = {row.stage for row in what.rows if row.batch_norm == "adapt"}
    found = False
    for module, stage in _modules_by_stage(backbone):
        if isinstance(module, _BatchNorm) and stage in adapting and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None  # a cumulative mean
            module.training = found = True
    return found


def _modules_by_stage(backbone: Backbone) -> Iterator[tuple[nn.Module, str]]:
    """Modules that lie in one stage: by what they hold, or, as dropout, by what is around them."""
    holds: dict[str, set[str]] = {}
    for name in backbone.state_dict():
        if (stage := backbone.find_stage(name)) is not None:
            for path in accumulate(name.split("."), "{}.{}".format):
                holds.setdefault(path, set()).add(stage)
    for path, module in backbone.named_modules():  # the outer one before its inner ones
        if path and path not in holds:
            holds[path] = holds.get(path.rpartition(".")[0], set())
            if len(holds[path]) != 1 and (stage := backbone.find_stage(f"{path}.weight")):
                holds[path] = {stage}  # a step of its own
        if len(stages := holds.get(path, set())) == 1:
            yield module, next(iter(stages))


def _chosen(backbone: Backbone, only: str) -> set[str]:
    """Names of the parameters that a selection means, in whatever stage."""
    names = [name for name, _ in backbone.named_parameters()]
    if only == "all":
        return set(names)
    if only == "bias":
        return {name for name in names if name.endswith(".bias")}
    if only == "norm":
        norms = {path for path, m in backbone.named_modules() if "Norm" in type(m).__name__}
        return {name for name in names if name.rpartition(".")[0] in norms}
    if only == "lora":
        return {n for n in names if ".parametrizations." in n and not n.endswith(".original")}
    try:
        wanted = re.compile(only)
    except re.error as error:
        raise UsageError(
            f"Expected `only` to be all, norm, bias, lora or a regular expression, got {only!r}: "
            f"{error}."
        ) from error
    return {name for name in names if wanted.search(name.removeprefix("trunk."))}


def _first_trained(train_from: str, names: list[str]) -> int:
    if train_from in {"head", "all"}:
        return len(names) if train_from == "head" else 0
    if train_from.startswith("last:"):
        count = train_from.removeprefix("last:")
        if not count.isdigit() or not 1 <= int(count) <= len(names):
            raise UsageError(
                f"Expected `train_from` as last:N with N from 1 to {len(names)}, got "
                f"{train_from!r}; the stages are {', '.join(names)}."
            )
        return len(names) - int(count)
    if train_from not in names:
        raise UnknownNameError("train_from", train_from, [*names, "head", "all", "last:1"])
    return names.index(train_from)


def _by_stage(argument: str, text: str, names: list[str], trained: list[str]) -> dict[str, str]:
    """One value for all stages that train, or ``stage=value`` pairs for named ones."""
    if "=" not in text:
        return dict.fromkeys(trained, text)
    pairs = [pair.partition("=") for pair in text.split(",")]
    found = {stage.strip(): value.strip() for stage, _, value in pairs}
    for stage in found:
        if stage not in names:
            raise UnknownNameError(argument, stage, names)
    return found


def _rates(
    learning_rate: float | str, names: list[str], trained: list[str], decay: float
) -> dict[str, float]:
    pairs = _by_stage("learning_rate", str(learning_rate), names, trained)
    try:
        given = {stage: float(value) for stage, value in pairs.items()}
    except ValueError as error:
        raise UsageError(
            f"Expected `learning_rate` to be a number or stage=number pairs, got {learning_rate!r}."
        ) from error
    missing = [stage for stage in trained if stage not in given]
    if missing or not all(0 < rate < math.inf for rate in given.values()):
        raise UsageError(
            f"Expected a `learning_rate` above 0 for every stage that trains, got {learning_rate!r}"
            + (f" without {', '.join(missing)}" if missing else "")
            + "."
        )
    if "=" in str(learning_rate):
        return given
    return {n: given[n] * decay ** (len(names) - 1 - names.index(n)) for n in given}
