"""Learning-rate finder: raise the rate step by step and find where the loss stops falling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headstart.errors import TrainingError, UsageError
from headstart.metrics.validation import to_jsonable
from headstart.training.engine import train
from headstart.training.job import Job, Score
from headstart.training.optim import Training

__all__ = ["FoundRate", "find_learning_rate", "suggest_rate"]

DIVERGENCE_FACTOR = 4.0
"""The search stops once the smoothed loss is this many times the smallest one: it diverges."""
SMOOTHING = 0.9
SAFETY_FACTOR = 10.0
"""Divisor of the rate with the smallest loss. That rate is close to divergence, and a training of
many steps must stay below it."""


@dataclass(frozen=True, kw_only=True)
class FoundRate:
    """Result of a search for the learning rate.

    Parameters
    ----------
    rates : tuple of float
        Rate of each step, for the parameter group with the highest rate.
    losses : tuple of float
        Losses at these rates, one batch each; the last may not be finite.
    suggested : float
        Suggested rate of the parameter group with the highest rate.
    scale : float
        Factor for the rates of all groups that gives the suggested rate.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggested: float
    scale: float

    def as_dict(self) -> dict[str, Any]:
        """Return a dict of JSON values; a loss that is not finite becomes None."""
        values: dict[str, Any] = to_jsonable(self)
        return values


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Return a tenth of the rate at which the smoothed loss is smallest.

    Raises
    ------
    TrainingError
        If the loss does not fall at any rate.

    Reference
    ---------
    Smith, Cyclical learning rates for training neural networks, WACV 2017, section 3.3 (the
    range test); a tenth of the minimum: Howard and Gugger, fastai, Information 2020, 11(2).

    Examples
    --------
    >>> f"{suggest_rate([0.001, 0.01, 0.1, 1.0], [2.0, 1.0, 0.2, 90.0]):.2g}"
    '0.01'
    """
    smooth = _smooth_losses([loss for loss in losses if math.isfinite(loss)])
    best = int(np.argmin(smooth)) if smooth else 0
    if best == 0:
        raise TrainingError(
            f"The loss did not fall at any learning rate from {rates[0]:.1e} to {rates[-1]:.1e}. "
            "Pass a number, such as --learning-rate 1e-4."
        )
    return rates[best] / SAFETY_FACTOR


def find_learning_rate(
    job: Job,
    settings: Training,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    seed: int = 0,
) -> FoundRate:
    """Train at rising learning rates, restore the network, and suggest a rate.

    Parameters
    ----------
    job : Job
        The ratios between the rates of its groups stay. All parameters that train in any epoch
        train from the first step. Validation images are not scored.
    settings : Training
        With a resolved batch size. Epochs, averages and the schedule are ignored.
    lowest, highest : float
        Range of rates for the parameter group with the highest rate; rates rise by a constant
        factor.
    steps : int
        Largest number of steps. The search stops earlier if the loss is 4 times the smallest one,
        or not finite.
    seed : int

    Raises
    ------
    UsageError
        If the range or the number of steps is invalid.
    TrainingError
        If the loss does not fall at any rate.
    """
    if not 0 < lowest < highest < math.inf or steps < 2:
        raise UsageError(
            "Expected 0 < `lowest` < `highest` and `steps` of at least 2, got "
            f"{lowest}, {highest} and {steps}."
        )
    rates = np.geomspace(lowest, highest, steps)
    fastest = max(float(group["lr"]) for group in job.groups)
    losses: list[float] = []

    def watch(step: int, loss: float) -> bool:
        losses.append(loss)
        if not math.isfinite(loss) or len(losses) == steps:
            return True
        smooth = _smooth_losses(losses)
        return smooth[-1] > DIVERGENCE_FACTOR * min(smooth)

    sweep = replace(
        job,
        rate=lambda step: float(rates[step]) / fastest,
        watch=watch,
        # A constant score: no epoch is better than the start, so the loop restores the start.
        score=lambda: Score(0.0, 0.0),
        start_epoch=lambda _: job.start_epoch(max(1, settings.epochs)),
    )
    epochs = math.ceil(steps / settings.steps_per_epoch(job.n))
    sweep_settings = replace(settings, epochs=epochs, patience=epochs + 1, ema=0.0, soup=0)
    if train(sweep, sweep_settings, seed=seed).interrupted:
        raise KeyboardInterrupt
    tried = tuple(float(rate) for rate in rates[: len(losses)])
    suggested = suggest_rate(tried, losses)
    return FoundRate(
        rates=tried, losses=tuple(losses), suggested=suggested, scale=suggested / fastest
    )


def _smooth_losses(losses: Sequence[float]) -> list[float]:
    """Exponential moving average of the losses, corrected for its start at 0."""
    smoothed, mean = [], 0.0
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING**count))
    return smoothed
