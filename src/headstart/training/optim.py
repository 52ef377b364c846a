"""Training settings: optimiser, learning-rate schedule, epochs and batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from headstart.data.dataset import DENSE, Kind, html_fields
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
"""Optimisers of torch by lower-case name. The others need a closure or sparse gradients."""

Schedule = Literal["cosine", "one-cycle", "step", "constant"]
SCHEDULES = get_args(Schedule)
Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS = get_args(Precision)

MIN_STEPS = 150
"""Smallest number of steps if ``epochs`` is not set: very small datasets need many epochs."""

MIN_STEPS_TO_STOP = 100
"""Smallest number of steps before a training may stop early: the first scores vary too much."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a training.

    Parameters
    ----------
    optimiser : str
        Optimiser of torch, such as ``adamw`` or ``sgd`` (with momentum 0.9 and Nesterov).
    epochs : int
        Largest number of epochs; 0 chooses by the number of images: 40 for 50, 9 for 1,000, at
        least 5.
    batch_size : int
        Largest batch over all processes; batches of an epoch differ by at most one image. 0
        chooses: 16 below 400 images, else 32.
    accumulate : int
        Number of parts in which a batch is computed, to save memory; the steps are the same.
    weight_decay : float
        Weight decay; not for biases, nor for scales and shifts of a normalisation.
    schedule : {"cosine", "one-cycle", "step", "constant"}
        Schedule after a linear warm-up; ``one-cycle`` warms up along half a cosine, ``step``
        divides the rate by 10 after each third.
    warm_up : float
        Share of all steps for the warm-up.
    clip : float
        Largest norm of the gradient; 0 for no clipping.
    patience : int
        Number of epochs without a better validation score before the training stops, and the best
        epoch is kept. 0 trains all epochs and keeps the last one, at the end of the schedule.
    precision : {"fp32", "bf16", "fp16"}
        Precision of the forward pass; parameters stay in float32. fp16 needs a GPU.
    ema : float
        Decay of an exponential moving average of the parameters. The average is scored and saved
        instead of the parameters; 0 for none.
    soup : int
        Average the weights of up to this many of the best epochs while the validation score does
        not fall (a greedy soup); 0 for the best epoch alone.

    Raises
    ------
    UsageError
        If a value is invalid.

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

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise UnknownNameError("optimiser", self.optimiser, OPTIMISERS)
        if self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)
        least = {"epochs": 0, "batch_size": 0, "accumulate": 1, "patience": 0, "soup": 0}
        least |= {"weight_decay": 0, "clip": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if not smallest <= value < math.inf:
                raise UsageError(f"`{name}` must be {smallest} or more, got {value}.")
        for name in ("warm_up", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"`{name}` must be at least 0 and below 1, got {getattr(self, name)}."
                )

    def for_images(self, n: int) -> Training:
        """Return the settings with resolved epochs and batch size, for ``n`` training images."""
        batch_size = self.batch_size or (16 if n < 400 else 32)
        per_epoch = max(1, math.ceil(n / batch_size))
        default = min(40, max(5, round(40 * math.sqrt(50 / max(n, 1)))))
        epochs = self.epochs or max(default, math.ceil(MIN_STEPS / per_epoch))
        return replace(self, epochs=epochs, batch_size=batch_size)

    def for_kind(self, kind: Kind) -> Training:
        """Return the settings for a task: 8 images per batch for detection and segmentation.

        >>> [Training().for_kind(kind).batch_size for kind in ("detection", "multiclass")]
        [8, 0]
        """
        return replace(self, batch_size=8) if kind in DENSE and not self.batch_size else self

    def steps_per_epoch(self, n: int) -> int:
        """Return the number of batches of an epoch with ``n`` images.

        >>> Training(batch_size=32).steps_per_epoch(100)
        4
        """
        return max(1, math.ceil(n / self.batch_size))


def rate_at(settings: Training, step: int, per_epoch: int) -> float:
    """Return the share of the full learning rate at a step, counted from 0.

    Reference
    ---------
    Loshchilov and Hutter, SGDR, ICLR 2017, equation 5 (one cycle); Smith and Topin,
    Super-convergence, 2018 (one-cycle).

    Examples
    --------
    >>> settings = Training(epochs=10, warm_up=0.1)
    >>> [round(rate_at(settings, step, 10), 3) for step in (0, 9, 10, 55, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    total = settings.epochs * per_epoch
    warm_up_steps = round(settings.warm_up * total)
    if settings.schedule == "one-cycle":
        return _one_cycle(step, settings.warm_up * total - 1, total - 1)
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    progress = (step - warm_up_steps) / max(1, total - warm_up_steps)
    match settings.schedule:
        case "constant":
            return 1.0
        case "step":
            return float(10.0 ** -int(3 * progress))
    return 0.5 * (1 + math.cos(math.pi * progress))


def _one_cycle(step: int, peak: float, last: int) -> float:
    """Rise from 1/25 to 1, then fall to 1/250,000, along half cosines, like torch's OneCycleLR."""

    def half_cosine(start: float, end: float, progress: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))

    if peak > 0 and step <= peak:
        return half_cosine(1 / 25, 1.0, step / peak)
    return half_cosine(1.0, 1 / 25 / 1e4, (step - peak) / max(1.0, last - peak))


def make_optimiser(settings: Training, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """Create the optimiser of torch.

    Parameters
    ----------
    settings : Training
    groups : sequence of dict
        With ``params`` and ``lr``. Vectors (biases, scales and shifts of a normalisation) get a
        separate group without weight decay. Each group stores its rate as ``base_lr``.
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
    optimiser_class = getattr(optim, OPTIMISERS[settings.optimiser])
    optimiser: Optimizer = optimiser_class([g for g in split if g["params"]], **options)
    return optimiser
