"""How far and how fast parameters move: optimiser, schedule, steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from headstart.data.dataset import DENSE, Kind
from headstart.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["OPTIMISERS", "Precision", "Schedule", "Training", "make_optimiser", "rate_at"]

OPTIMISERS = {
    name.lower(): name
    for name in (
        *("Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "NAdam"),
        *("RAdam", "RMSprop", "Rprop", "SGD"),
    )
}
"""torch's, by their names in small letters; those left out need a closure, or other gradients."""

Schedule = Literal["cosine", "one-cycle", "step", "constant"]
SCHEDULES = ("cosine", "one-cycle", "step", "constant")
Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS = ("fp32", "bf16", "fp16")

FEWEST_STEPS = 150
"""Steps that a training takes at least, if nothing else is said: tiny sets need many epochs."""

PATIENCE_FROM = 100
"""Steps from which on a training may stop early: a few steps prove nothing."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a training.

    Parameters
    ----------
    optimiser : str
        Name of one of torch's, such as ``adamw`` or ``sgd`` (with momentum 0.9 and Nesterov).
    epochs : int
        At most; 0 decides by the number of images: 40 for 50, 9 for 1,000, at least 5.
    batch_size : int
        At most, over all processes; an epoch's batches differ by one image. 0 decides: 16 below
        400 images, else 32.
    accumulate : int
        Parts that a batch is computed in, to need less memory; the steps are the same.
    weight_decay : float
        Not of biases, nor of scales and shifts of a normalisation.
    schedule : {"cosine", "one-cycle", "step", "constant"}
        Behind a linear warm-up; ``one-cycle`` warms up along half a cosine, ``step`` divides the
        rate by 10 after each third.
    warm_up : float
        Share of all steps.
    clip : float
        Largest norm of the gradient; 0 for none.
    patience : int
        Epochs without a better held-out score before the training stops.
    precision : {"fp32", "bf16", "fp16"}
        Of the forward pass; parameters stay in float32. fp16 needs a GPU.
    ema : float
        Decay of an exponential moving average of the parameters, which is then what is judged
        and kept; 0 for none.
    soup : int
        Average the weights of up to so many of the best epochs as long as the held-out score
        does not fall (a greedy soup); 0 for the best epoch alone.

    Raises
    ------
    UsageError
        If a value cannot be meant.

    Examples
    --------
    >>> Training().for_images(100)  # doctest: +ELLIPSIS
    Training(optimiser='adamw', epochs=28, batch_size=16, accumulate=1, ...)
    """

    optimiser: str = "adamw"
    epochs: int = 0
    batch_size: int = 0
    accumulate: int = 1
    weight_decay: float = 0.01
    schedule: Schedule = "cosine"
    warm_up: float = 0.1
    clip: float = 1.0
    patience: int = 5
    precision: Precision = "fp32"
    ema: float = 0.0
    soup: int = 0

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise UnknownNameError("optimiser", self.optimiser, OPTIMISERS)
        if self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)
        least = {"epochs": 0, "batch_size": 0, "accumulate": 1, "patience": 1, "soup": 0}
        least |= {"weight_decay": 0, "clip": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if not smallest <= value < math.inf:
                raise UsageError(f"Expected `{name}` to be {smallest} or more, got {value}.")
        for name in ("warm_up", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"Expected `{name}` to lie in 0 <= {name} < 1, got {getattr(self, name)}."
                )

    def for_images(self, n: int) -> Training:
        """Return the settings with nothing left to decide, for ``n`` images to learn from."""
        batch_size = self.batch_size or (16 if n < 400 else 32)
        per_epoch = max(1, math.ceil(n / batch_size))
        usual = min(40, max(5, round(40 * math.sqrt(50 / max(n, 1)))))
        epochs = self.epochs or max(usual, math.ceil(FEWEST_STEPS / per_epoch))
        return replace(self, epochs=epochs, batch_size=batch_size)

    def for_kind(self, kind: Kind) -> Training:
        """Return the settings for what is learned: boxes and masks of 8 images are many.

        >>> [Training().for_kind(kind).batch_size for kind in ("detection", "multiclass")]
        [8, 0]
        """
        return replace(self, batch_size=8) if kind in DENSE and not self.batch_size else self

    def steps_per_epoch(self, n: int) -> int:
        """Batches that ``n`` images make.

        >>> Training(batch_size=32).steps_per_epoch(100)
        4
        """
        return max(1, math.ceil(n / self.batch_size))


def rate_at(settings: Training, step: int, per_epoch: int) -> float:
    """Share of the full learning rate at a step, counted from 0.

    Reference
    ---------
    Loshchilov and Hutter, SGDR, ICLR 2017, equation 5 (one cycle); Smith and Topin,
    Super-convergence, 2018 (one-cycle).

    Examples
    --------
    >>> plain = Training(epochs=10, warm_up=0.1)
    >>> [round(rate_at(plain, step, 10), 3) for step in (0, 9, 10, 55, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    total = settings.epochs * per_epoch
    warm = round(settings.warm_up * total)
    if settings.schedule == "one-cycle":
        return _one_cycle(step, settings.warm_up * total - 1, total - 1)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    match settings.schedule:
        case "constant":
            return 1.0
        case "step":
            return float(10.0 ** -int(3 * done))
    return 0.5 * (1 + math.cos(math.pi * done))


def _one_cycle(step: int, top: float, last: int) -> float:
    """From 1/25 up to 1, then down to 1/250,000, along half cosines, as torch does it."""

    def between(start: float, end: float, done: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * done))

    if top > 0 and step <= top:
        return between(1 / 25, 1.0, step / top)
    return between(1.0, 1 / 25 / 1e4, (step - top) / max(1.0, last - top))


def make_optimiser(settings: Training, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """Make torch's optimiser.

    Parameters
    ----------
    settings : Training
    groups : sequence of dict
        With ``params`` and ``lr``. Vectors (biases, scales and shifts of a normalisation) get a
        group of their own, without weight decay; each group keeps its rate as ``base_lr``.
    """
    from torch import optim

    split = [
        {
            "params": [p for p in group["params"] if (p.ndim > 1) == decays],
            "lr": group["lr"],
            "base_lr": group["lr"],
            "weight_decay": settings.weight_decay * decays,
        }
        for group in groups
        for decays in (True, False)
    ]
    options = {"momentum": 0.9, "nesterov": True} if settings.optimiser == "sgd" else {}
    make = getattr(optim, OPTIMISERS[settings.optimiser])
    made: Optimizer = make([group for group in split if group["params"]], **options)
    return made
