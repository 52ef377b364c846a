"""A network on pictures: what all methods that train by gradient have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.augment import Augmentation
from headstart.data.loading import digest_of
from headstart.data.samples import Dataset
from headstart.data.splits import holdout
from headstart.distributed import world
from headstart.errors import UsageError
from headstart.heads.pooled import LinearHead
from headstart.metrics import log_loss, macro_f1_score
from headstart.runtime import versions
from headstart.tasks.classification import Classification
from headstart.training.averaging import interpolate
from headstart.training.engine import train as run_loop
from headstart.training.inputs import Inputs, Reading
from headstart.training.job import History, Job, Rows, Score, Session
from headstart.training.losses import Loss, classification_loss
from headstart.training.mixing import cutmix, mixup
from headstart.training.network import Network, Outputs
from headstart.training.optim import Training
from headstart.training.rates import Found, find_rate
from headstart.training.sampling import epoch_order
from headstart.trunk import Trunk

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TEMPERATURE_SPREAD", "Settings", "Tuned", "held_out", "record_of", "tune"]

SELECTION_SHARE = 0.15
"""Of the training part, held out for early stopping where the data bring no ``val`` part."""

TEMPERATURE_SPREAD = 0.25
"""Of the logarithm of the temperature around 0: the held-out part is often a few dozen pictures."""

Penalty = Callable[["Tensor", Outputs, Rows], "Tensor"]
Whole = tuple[dict[str, "Tensor"], LinearHead]
Start = Callable[[NDArray[np.float32]], LinearHead]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network learns, whatever the method.

    Parameters
    ----------
    training : Training
    augmentation : Augmentation
    loss : Loss
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
class Tuned:
    """What a training gives.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        Of the backbone, by the library's names.
    head : LinearHead
    history : History
    logits : array, shape (n_val, n_classes)
        Of the held-out pictures, by the final network.
    found : Found or None
        How the rates were found, if they were.
    """

    state: dict[str, Tensor]
    head: LinearHead
    history: History
    logits: NDArray[np.float64]
    found: Found | None = None


def held_out(train: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Part training pictures into those to learn from and those to stop on, by class and group."""
    learn, select = holdout(
        train.targets(), fraction=SELECTION_SHARE, blocks=train.groups(), seed=seed
    )
    return train.subset(learn), train.subset(select)


def tune(
    network: Network,
    parts: tuple[Dataset, Dataset],
    settings: Settings,
    *,
    reading: Reading,
    session: Session | None = None,
    identity: Mapping[str, Any] | None = None,
    start: Start | None = None,
    penalty: Callable[[Inputs], Penalty] | None = None,
) -> Tuned:
    """Train a network on pictures; stop on held-out ones; prove that what is constant was.

    Parameters
    ----------
    network : Network
        Changed in place.
    parts : pair of Dataset
        To learn from, and to stop on.
    settings : Settings
    reading : Reading
        Where the network's inputs come from.
    session : Session, optional
    identity : mapping, optional
        What decides the training besides settings, pictures and weights, by name.
    start : callable, optional
        Makes the first head from the pooled features of the training pictures as they are.
    penalty : callable, optional
        Makes a term of the loss from what the network reads in training.
    """
    train, val = parts
    training = settings.training.for_pictures(len(train))
    _require_possible(network, training)
    learned = reading.of(train.samples, settings.augmentation, epochs=training.epochs)
    judged = reading.of(val.samples, Augmentation(), epochs=1)
    network.adapt(lambda rows: learned.fetch(1, rows), len(train))
    if start is not None:
        plain = learned
        if not settings.augmentation.is_off:
            plain = reading.of(train.samples, Augmentation(), epochs=1)
        _, pooled = network.judge(lambda rows: plain.fetch(1, rows), len(train))
        network.load(network.state(), start(pooled))
    begin = network.state(), network.linear_head()
    task = Classification(classes=train.classes, kind=train.kind)

    def logits() -> NDArray[np.float64]:
        return network.judge(lambda rows: judged.fetch(1, rows), len(val))[0]

    job = Job(
        module=network.module,
        groups=network.groups(settings.head_learning_rate),
        n=len(train),
        order=_order(train, settings),
        fetch=learned.fetch,
        loss=_loss(network, train, settings, penalty(learned) if penalty else None),
        score=lambda: _score(task, logits(), val.targets()),
        enter=network.enter,
        identity=_identity(reading.trunk, parts, settings, identity or {}),
    )
    found = find_rate(job, training, seed=settings.seed) if settings.finds_rate else None
    if found is not None:
        for group in job.groups:
            group["lr"] *= found.scale
    history = run_loop(job, training, seed=settings.seed, session=session)
    if settings.wise_ft < 1:
        network.load(*_between(begin, (network.state(), network.linear_head()), settings.wise_ft))
    network.require_constant()
    state, head = network.state(), network.linear_head()
    return Tuned(state=state, head=head, history=history, logits=logits(), found=found)


def _require_possible(network: Network, training: Training) -> None:
    if training.precision == "fp16" and network.device == "cpu":
        raise UsageError("Expected a GPU for precision fp16, got the CPU; do use bf16 or fp32.")
    late = [row.stage for row in network.plan.rows if row.from_epoch > training.epochs]
    if late:
        raise UsageError(
            f"Expected every stage that trains to begin within {training.epochs} epochs, got "
            f"{', '.join(late)} later; do lower `unfreeze_every`, or train for longer."
        )


def record_of(history: History) -> dict[str, Any]:
    """What a model's record keeps of its training, as plain values."""
    kept = asdict(history)
    return {"best_epoch": kept.pop("best"), "temperature_from": "held-out pictures", **kept}


def _order(train: Dataset, settings: Settings) -> Callable[[int], Rows]:
    targets = train.targets()
    how = settings.loss.resolved(targets, n_classes=len(train.classes), kind=train.kind)
    return lambda epoch: epoch_order(
        len(train),
        seed=settings.seed,
        epoch=epoch,
        targets=targets if how == "sampling" else None,
        balanced=how == "sampling",
    )


def _score(task: Classification, logits: NDArray[np.float64], targets: Any) -> Score:
    chances = task.probabilities(logits)
    value = macro_f1_score(targets, task.predicted(chances))
    return Score(float(value), -float(log_loss(targets, chances)))


def _loss(
    network: Network, train: Dataset, settings: Settings, penalty: Penalty | None
) -> Callable[[Rows, NDArray[Any], int], Tensor]:
    import torch

    wanted, n_classes, observed = settings.loss, len(train.classes), train.targets()
    is_mixed = bool(settings.mixup or settings.cutmix)
    rows_of = np.eye(n_classes)[observed] if is_mixed and train.kind != "multilabel" else observed
    targets = torch.from_numpy(np.ascontiguousarray(rows_of)).to(network.device)
    targets = targets.float() if targets.ndim == 2 else targets

    def on_device(values: NDArray[Any] | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values).float().to(network.device)

    kind = train.kind
    balance = on_device(wanted.weights(observed, n_classes=n_classes, kind=kind))
    adjustment = on_device(wanted.adjustment(observed, n_classes=n_classes, kind=kind))

    def loss(rows: Rows, batch: NDArray[Any], step: int) -> Tensor:
        x, truth = network.tensor(batch), targets[torch.from_numpy(rows).to(network.device)]
        if is_mixed:
            rng = np.random.default_rng([settings.seed, step, 1])
            mix, alpha = (mixup, settings.mixup) if settings.mixup else (cutmix, settings.cutmix)
            x, truth = mix(x, truth, alpha=alpha, rng=rng)
        outputs = network.outputs(x)
        found = classification_loss(
            outputs.logits,
            truth,
            kind=kind,
            label_smoothing=wanted.label_smoothing,
            class_weights=balance,
            focal_gamma=wanted.focal,
            logit_adjustment=adjustment,
        )
        return found if penalty is None else found + penalty(x, outputs, rows)

    return loss


def _between(
    start: tuple[dict[str, Tensor], LinearHead],
    end: tuple[dict[str, Tensor], LinearHead],
    share: float,
) -> tuple[dict[str, Tensor], LinearHead]:
    """WiSE-FT: a walk from one network to another, backbone and head alike."""
    heads = [
        (1 - share) * a + share * b
        for a, b in zip(start[1].state().values(), end[1].state().values(), strict=True)
    ]
    return interpolate(start[0], end[0], share), LinearHead(weight=heads[0], bias=heads[1])


def _identity(
    trunk: Trunk, parts: tuple[Dataset, Dataset], settings: Settings, more: Mapping[str, Any]
) -> dict[str, str]:
    """Everything that decides a training, a hash for each part."""
    content = [[digest_of(s), str(s.target)] for part in parts for s in part.samples]
    found = {
        "data": content,
        "weights": trunk.identity.hex(),
        "processes": world(),
        "settings": asdict(settings),
        "versions": {k: v for k, v in versions().items() if k != "openvino"},
        **more,
    }
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
        for name, value in found.items()
    }
