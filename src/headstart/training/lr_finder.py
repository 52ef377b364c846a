"""Which learning rate: raise it step by step, and see where the loss stops falling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from headstart.errors import TrainingError, UsageError
from headstart.training.engine import train
from headstart.training.job import Job, Score
from headstart.training.optim import Training

__all__ = ["Found", "find_rate", "suggest"]

EXPLODED = 4.0
"""Times the smallest smoothed loss: from there on nothing is learned about rates."""
SMOOTHING = 0.9
MARGIN = 10.0
"""The minimum lies at the edge of divergence; a training of many steps needs to stay below."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a sweep over learning rates saw.

    Parameters
    ----------
    rates : tuple of float
        Of the group that learns fastest, step by step.
    losses : tuple of float
        At these rates, one batch each; the last may not be finite.
    suggested : float
        For the group that learns fastest.
    scale : float
        What every group's rate is to be multiplied by to get there.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggested: float
    scale: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: a loss that is not finite is None."""
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]
        return {**asdict(self), "losses": losses}


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Take a tenth of the rate at which the smoothed loss is smallest.

    Raises
    ------
    TrainingError
        If the loss fell at no rate.

    Reference
    ---------
    Smith, Cyclical learning rates for training neural networks, WACV 2017, section 3.3 (the
    range test); a tenth of the minimum: Howard and Gugger, fastai, Information 2020, 11(2).

    Examples
    --------
    >>> f"{suggest([0.001, 0.01, 0.1, 1.0], [2.0, 1.0, 0.2, 90.0]):.2g}"
    '0.01'
    """
    smooth = _smoothed([loss for loss in losses if math.isfinite(loss)])
    best = int(np.argmin(smooth)) if smooth else 0
    if best == 0:
        raise TrainingError(
            f"Expected a learning rate from {rates[0]:.1e} to {rates[-1]:.1e} at which the loss "
            "falls, got none; do give `learning_rate` as a number."
        )
    return rates[best] / MARGIN


def find_rate(
    job: Job,
    settings: Training,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    seed: int = 0,
) -> Found:
    """Run the one loop at growing rates, leave the module's state as it was, suggest a rate.

    Parameters
    ----------
    job : Job
        All groups keep their ratios; all that ever trains does so from the first step. Its
        images are not judged.
    settings : Training
        With batch size decided; epochs, averages and the schedule have no say.
    lowest, highest : float
        Rates of the group that learns fastest, between which there are equal factors.
    steps : int
        At most; fewer once the loss is 4 times the smallest one, or not finite.
    seed : int

    Raises
    ------
    UsageError
        If the range or the number of steps cannot be meant.
    TrainingError
        If the loss fell at no rate.
    """
    if not 0 < lowest < highest < math.inf or steps < 2:
        raise UsageError(
            "Expected 0 < `lowest` < `highest` and `steps` of 2 or more, got "
            f"{lowest}, {highest} and {steps}."
        )
    rates = np.geomspace(lowest, highest, steps)
    fastest = max(float(group["lr"]) for group in job.groups)
    losses: list[float] = []

    def watch(step: int, loss: float) -> bool:
        losses.append(loss)
        if not math.isfinite(loss) or len(losses) == steps:
            return True
        smooth = _smoothed(losses)
        return smooth[-1] > EXPLODED * min(smooth)

    sweep = replace(
        job,
        rate=lambda step: float(rates[step]) / fastest,
        watch=watch,
        score=lambda: Score(0.0, 0.0),  # only more is better: the loop ends with the start
        enter=lambda _: job.enter(max(1, settings.epochs)),
    )
    epochs = math.ceil(steps / settings.steps_per_epoch(job.n))
    plain = replace(settings, epochs=epochs, patience=epochs + 1, ema=0.0, soup=0)
    if train(sweep, plain, seed=seed).interrupted:
        raise KeyboardInterrupt
    seen = tuple(float(rate) for rate in rates[: len(losses)])
    suggested = suggest(seen, losses)
    return Found(rates=seen, losses=tuple(losses), suggested=suggested, scale=suggested / fastest)


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential mean of what came so far, without the pull of its start."""
    found, mean = [], 0.0
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**count))
    return found
