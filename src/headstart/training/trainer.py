"""A network on images: what all methods that train by gradient have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from headstart.backbones.freezing import FreezePlan, fingerprint
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset, fingerprint_of
from headstart.data.loader import digest_of
from headstart.data.splits import holdout
from headstart.data.transforms.augment import Augmentation
from headstart.distributed import world
from headstart.errors import UsageError
from headstart.models.heads.head import Head
from headstart.models.transfer_model import TransferModel
from headstart.runtime import threads, versions
from headstart.training.engine import train as run_loop
from headstart.training.inputs import Inputs, Reading
from headstart.training.job import History, Job, Score, Session
from headstart.training.losses.classification import Loss
from headstart.training.losses.segmentation import MaskLoss
from headstart.training.lr_finder import Found, find_rate
from headstart.training.network import Network
from headstart.training.objectives import ClassObjective, Objective, Penalty, Solve
from headstart.training.optim import Training
from headstart.training.weight_averaging import interpolate

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Settings", "TrainingOutput", "composed", "held_out", "objective_for", "tune"]

SELECTION_SHARE = 0.15
"""Of the training part, held out for early stopping where the data bring no ``val`` part."""

Whole = tuple[dict[str, "Tensor"], Head]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network learns, whatever the method.

    Parameters
    ----------
    training : Training
    augmentation : Augmentation
    loss : Loss
    mask_loss : MaskLoss
        Of segmentation.
    mixup, cutmix : float
        Beta's parameter; 0 for none. Behind a stage boundary what crosses it is mixed.
    head_learning_rate : float
    wise_ft : float
        Share of the fine-tuned network in the final weights; the rest is the start. 1 for all.
    finds_rate : bool
        Raise the rates first to find good ones; they keep their ratios.
    seed : int

    Raises
    ------
    UsageError
        If a value cannot be meant.
    """

    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: Loss = field(default_factory=Loss)
    mask_loss: MaskLoss = field(default_factory=MaskLoss)
    mixup: float = 0.0
    cutmix: float = 0.0
    head_learning_rate: float = 1e-3
    wise_ft: float = 1.0
    finds_rate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.head_learning_rate > 0 or not 0 <= self.wise_ft <= 1:
            raise UsageError(
                "Expected `head_learning_rate` > 0 and `wise_ft` from 0 to 1, got "
                f"{self.head_learning_rate} and {self.wise_ft}."
            )
        if min(self.mixup, self.cutmix) < 0 or (self.mixup and self.cutmix):
            raise UsageError(
                "Expected `mixup` and `cutmix` of 0 or more, and one of them at most, got "
                f"{self.mixup} and {self.cutmix}."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingOutput:
    """What a training gives.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        Of the backbone, by the library's names.
    head : Head
    history : History
    answers : object
        Of the held-out images, by the final network, as the objective judges them.
    found : Found or None
        How the rates were found, if they were.
    """

    state: dict[str, Tensor]
    head: Head
    history: History
    answers: Any
    found: Found | None = None


def held_out(train: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Part training images into those to learn from and those to stop on, by class and group."""
    learn, select = holdout(
        train.targets(), fraction=SELECTION_SHARE, blocks=train.groups(), seed=seed
    )
    return train.subset(learn), train.subset(select)


def objective_for(
    parts: tuple[Dataset, Dataset],
    settings: Settings,
    *,
    backbone: FrozenBackbone,
    solve: Solve | None = None,
) -> Objective:
    """Choose what a training is for by what the images are labelled with.

    Parameters
    ----------
    parts : pair of Dataset
        To learn from, and to stop on.
    settings : Settings
    backbone : FrozenBackbone
        Its preprocessing says where boxes and masks lie in what the network reads.
    solve : callable, optional
        Makes the first head of a classifier.
    """
    train, val = parts
    if not train.is_dense:
        return _of_classes(train, val, settings, solve)
    per_epoch = settings.training.for_images(len(train)).steps_per_epoch(len(train))
    common: dict[str, Any] = {
        "train": train,
        "val": val,
        "preprocess": backbone.spec.preprocess,
        "per_epoch": per_epoch,
        "seed": settings.seed,
    }
    if train.kind == "detection":
        from headstart.training.objectives import BoxObjective

        return BoxObjective(**common)
    from headstart.training.objectives import MaskObjective

    return MaskObjective(wanted=settings.mask_loss, **common)


def _of_classes(
    train: Dataset, val: Dataset, settings: Settings, solve: Solve | None
) -> ClassObjective:
    return ClassObjective(
        train=train,
        val=val,
        wanted=settings.loss,
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        seed=settings.seed,
        solve=solve,
    )


def tune(
    network: Network,
    objective: Objective,
    settings: Settings,
    *,
    reading: Reading,
    session: Session | None = None,
    identity: Mapping[str, Any] | None = None,
    penalty: Callable[[Inputs], Penalty] | None = None,
) -> TrainingOutput:
    """Train a network on images; stop on held-out ones; prove that what is constant was.

    Parameters
    ----------
    network : Network
        Changed in place.
    objective : Objective
        Of the images to learn from and those to stop on.
    settings : Settings
    reading : Reading
        Where the network's inputs come from.
    session : Session, optional
    identity : mapping, optional
        What decides the training besides settings, images and weights, by name.
    penalty : callable, optional
        Makes a term of the loss from what the network reads in training.
    """
    train, val = objective.train, objective.val
    training = settings.training.for_images(len(train))
    _require_possible(network, training)
    learned = reading.of(train.samples, settings.augmentation, epochs=training.epochs)
    judged = reading.of(val.samples, Augmentation(), epochs=1)
    born = network.head
    network.adapt(lambda rows: learned.fetch(1, rows), len(train))
    if objective.starts:
        plain = learned
        if not settings.augmentation.is_off:
            plain = reading.of(train.samples, Augmentation(), epochs=1)
        objective.start(network, lambda rows: plain.fetch(1, rows))
    begin = network.state(), network.head

    def answers() -> Any:
        return objective.answers(network, lambda rows: judged.fetch(1, rows))

    def score() -> Score:
        return objective.score(answers())

    job = Job(
        module=network.module,
        groups=network.groups(settings.head_learning_rate),
        n=len(train),
        order=objective.order,
        fetch=learned.fetch,
        loss=objective.loss(network, learned, penalty(learned) if penalty else None),
        score=score,
        enter=network.enter,
        identity=_identity(reading.backbone, born, (train, val), settings, identity or {}),
    )
    found = find_rate(job, training, seed=settings.seed) if settings.finds_rate else None
    if found is not None:
        for group in job.groups:
            group["lr"] *= found.scale
    history = run_loop(job, training, seed=settings.seed, session=session)
    if settings.wise_ft < 1:
        network.load(*_between(begin, (network.state(), network.head), settings.wise_ft))
    network.require_constant()
    return TrainingOutput(
        state=network.state(), head=network.head, history=history, answers=answers(), found=found
    )


def _require_possible(network: Network, training: Training) -> None:
    if training.precision == "fp16" and network.device == "cpu":
        raise UsageError("Expected a GPU for precision fp16, got the CPU; do use bf16 or fp32.")
    late = [row.stage for row in network.plan.rows if row.from_epoch > training.epochs]
    if late:
        raise UsageError(
            f"Expected every stage that trains to begin within {training.epochs} epochs, got "
            f"{', '.join(late)} later; do lower `unfreeze_every`, or train for longer."
        )


def composed(
    model: TransferModel,
    tuned: TrainingOutput,
    objective: Objective,
    *,
    backbone: FrozenBackbone,
    plan: FreezePlan,
    method: Mapping[str, Any],
) -> TransferModel:
    """Put together what was trained: certain as the held-out images allow, and on the record.

    Parameters
    ----------
    model : TransferModel
        Before.
    tuned : Tuned
    objective : Objective
    backbone : FrozenBackbone
        With the trained values.
    plan : FreezePlan
        As it was asked for; rates that were found are put in.
    method : mapping
        The method's fields, for the record.
    """
    found, history = tuned.found, asdict(tuned.history)
    if found is not None:
        rows = (replace(r, learning_rate=r.learning_rate * found.scale) for r in plan.rows)
        plan = replace(plan, rows=tuple(rows))
    return replace(
        model,
        backbone=backbone,
        head=tuned.head,
        task=objective.settled(model.task, tuned.answers),
        engine="fp32",
        record={
            **model.record,
            "method": dict(method),
            "plan": plan.as_dict(),
            "best_epoch": history.pop("best"),
            "temperature_from": "held-out images",
            **history,
            **({} if found is None else {"learning_rate_found": found.as_dict()}),
        },
    )


def _between(start: Whole, end: Whole, share: float) -> Whole:
    """WiSE-FT: a walk from one network to another, backbone and head alike."""
    import torch

    first, last = (
        {name: torch.from_numpy(value) for name, value in head.state().items()}
        for head in (start[1], end[1])
    )
    mixed = {name: value.numpy() for name, value in interpolate(first, last, share).items()}
    return interpolate(start[0], end[0], share), end[1].with_state(mixed)


def _identity(
    backbone: FrozenBackbone,
    head: Head,
    parts: tuple[Dataset, Dataset],
    settings: Settings,
    more: Mapping[str, Any],
) -> dict[str, str]:
    """Everything that decides a training, a hash for each part."""
    import torch

    start = {name: torch.from_numpy(value) for name, value in head.state().items()}
    found = {
        "data": [[digest_of(s), fingerprint_of(s.target)] for part in parts for s in part.samples],
        "head": [head.as_dict(), fingerprint(start)],
        "weights": backbone.identity.hex(),
        "processes": world(),
        "threads": threads(),
        "settings": asdict(settings),
        "versions": {k: v for k, v in versions().items() if k != "openvino"},
        **more,
    }
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
        for name, value in found.items()
    }
