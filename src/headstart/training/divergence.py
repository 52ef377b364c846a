"""Divergence of a training: when its loss rises far above the start's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from headstart.training.job import Epoch

__all__ = [
    "NOT_TRIED_AGAIN",
    "RETRY_SCALE",
    "TRIED_AGAIN",
    "LossTrace",
    "describe_divergence",
    "explain_divergence",
]

RETRY_SCALE = 0.1
"""Factor of all learning rates when a training that has diverged is tried once more."""

TRIED_AGAIN = "It was tried again from the start, at a tenth of its learning rates."
NOT_TRIED_AGAIN = (
    "No time was left to try it again at lower rates; the best epoch so far is kept. Lower "
    "--learning-rate."
)

DIVERGED, DIVERGED_MARGIN = 2.0, 0.1
"""A training has diverged if its validation loss exceeds this multiple of the start's and this."""

LAST_STEPS = 10
"""Number of steps whose mean loss is compared with the loss of the first step."""
STEP_RATIO, STEP_MARGIN = 3.0, 3.0
"""The mean loss of the last steps may exceed this multiple of the first loss by this margin. The
limit lies above the loss of a head that guesses (2.1 with 8 classes): high rates unlearn a fitted
head in the first epochs, and often recover."""


@dataclass
class LossTrace:
    """Training losses of the first step and of the last ones.

    Parameters
    ----------
    first : float or None
        Before any weight has changed.
    last : list of float

    Examples
    --------
    >>> trace = LossTrace()
    >>> for loss in [0.6, 0.5, 0.4, 0.6, 0.5, *[0.9] * 10]:
    ...     trace.add(loss)
    >>> trace.has_diverged
    False
    >>> for loss in [3.0, 4.0, 9.0, 19.0, 19.0]:
    ...     trace.add(loss)
    >>> trace.has_diverged, trace.sentence(7, 1)
    (True, 'The training diverged at step 7 of epoch 1: the loss rose from 0.6 to 5.85.')
    """

    first: float | None = None
    last: list[float] = field(default_factory=list)

    def add(self, loss: float) -> None:
        """Add the mean loss of a step."""
        self.first = loss if self.first is None else self.first
        self.last = [*self.last[1 - LAST_STEPS :], loss]

    @property
    def has_diverged(self) -> bool:
        """Whether a loss is not finite, or the last ones are far above the first one."""
        if not all(map(math.isfinite, self.last)):
            return True
        if self.first is None or len(self.last) < LAST_STEPS:
            return False
        highest = self.first + (STEP_RATIO - 1) * abs(self.first) + STEP_MARGIN
        return self._mean_of_last() > highest

    def sentence(self, step: int, epoch: int) -> str:
        """Describe the divergence at this step of this epoch."""
        if not all(map(math.isfinite, self.last)):
            rise = f"the loss became {self.last[-1]}"
        else:
            rise = f"the loss rose from {self.first:.3g} to {self._mean_of_last():.3g}"
        return f"The training diverged at step {step} of epoch {epoch}: {rise}."

    def _mean_of_last(self) -> float:
        return math.fsum(self.last) / len(self.last)


def describe_divergence(epochs: Sequence[Epoch], best: int) -> str:
    """Describe a training that has diverged, or return "" for any other.

    A training diverged if its last epoch is no better than the start and its loss on the
    validation images is more than twice that of the start. A training that only overfits or
    forgets improves one of the two.

    Parameters
    ----------
    epochs : sequence of Epoch
        The start first.
    best : int
        Number of the epoch whose weights are kept.

    Examples
    --------
    >>> start = Epoch(number=0, loss=None, score=0.9, held_out_loss=0.4, seconds=0, best=0)
    >>> last = Epoch(number=1, loss=70.0, score=0.5, held_out_loss=80.0, seconds=1, best=0)
    >>> describe_divergence([start, last], 0)[:56]
    'The training diverged: the start was kept, because the l'
    """
    rise = explain_divergence(epochs).removeprefix("The training diverged: ")
    kept = "the start was kept" if best == 0 else f"epoch {best} was kept"
    return f"The training diverged: {kept}, because {rise} Lower --learning-rate." if rise else ""


def explain_divergence(epochs: Sequence[Epoch]) -> str:
    """Explain how a training has diverged; "" for any other."""
    if len(epochs) < 2:
        return ""
    start, last = epochs[0], epochs[-1]
    is_bounded = last.held_out_loss <= DIVERGED * start.held_out_loss + DIVERGED_MARGIN
    if last.score > start.score or is_bounded:  # a loss of NaN is not bounded
        return ""
    return (
        "The training diverged: the loss on the validation images rose from "
        f"{start.held_out_loss:.3g} to {last.held_out_loss:.3g}."
    )
