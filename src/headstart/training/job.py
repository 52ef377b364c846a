"""Inputs and results of a training, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.training.interruption import StopRequest

__all__ = ["STOP", "Epoch", "History", "Job", "Rows", "Score", "Session", "Stop"]

Rows = NDArray[np.intp]


class Stop(Enum):
    """What a callback returns to stop a run; ``headstart.STOP`` is its only value."""

    STOP = "stop"


STOP = Stop.STOP
"""Returned by a callback to stop the run, as Ctrl-C does: the best model so far is kept."""


class Score(NamedTuple):
    """Score of a network on the validation images; compared in the order of the fields.

    ``value`` is better when higher. ``gain`` is the negative loss; it decides between equal values.
    """

    value: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Result of one epoch.

    Parameters
    ----------
    number : int
        From 1; 0 is the start.
    loss : float or None
        Mean over the epoch's training images; None for the start.
    score, held_out_loss : float
        On the validation images.
    seconds : float
    best : int
        Number of the best epoch so far, this one included.
    """

    number: int
    loss: float | None
    score: float
    held_out_loss: float
    seconds: float
    best: int

    @property
    def is_best(self) -> bool:
        """Whether no earlier epoch was as good."""
        return self.best == self.number


@dataclass(kw_only=True)
class History:
    """All epochs in order, the start first, and the epoch whose weights were kept.

    Parameters
    ----------
    epochs : list of Epoch
    best : int
        Number of the epoch whose weights were kept; 0 for the start.
    soup : int
        Number of epochs whose weights were averaged; 1 for the best alone.
    steps : int
    notes : list of str
        Messages for the user, such as batches that were halved.
    interrupted : bool
        Whether Ctrl-C ended the training.
    rate_scale : float
        Factor of all learning rates; below 1 if the training had diverged and was tried again.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    soup: int = 1
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False
    rate_scale: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """Callbacks of a training, and the folder of its checkpoints.

    Parameters
    ----------
    on_epoch : callable, optional
        Called with every finished epoch, the start as number 0, and with the largest number of
        epochs.
    progress : callable, optional
        Called with the name of the step, the amount done, and the total.
    folder : Path, optional
        For checkpoints, and for a batch whose loss is not finite.
    resume : bool
        Continue from the checkpoint in the folder.
    deadline : float, optional
        Time, as of ``time.perf_counter``, after which no further epoch begins.
    stop : StopRequest, optional
        After Ctrl-C the training ends after the current step.
    """

    on_epoch: Callable[[Epoch, int], None] | None = None
    progress: Callable[[str, int, int], None] | None = None
    folder: Path | None = None
    resume: bool = False
    deadline: float | None = None
    stop: StopRequest | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A module, its data and its loss: everything in which methods differ.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place; holds the weights of the best epoch at the end.
    groups : sequence of dict
        Trainable parameters (``params``) and their learning rates (``lr``).
    n : int
        Number of training images.
    order : callable
        From an epoch's number to the rows of its images, in order.
    fetch : callable
        From an epoch's number and rows to the array that the loss reads; runs in another thread.
    loss : callable
        From rows, the array and the global step to the mean loss of these images.
    score : callable
        Scores the module as it is; may switch between training and inference mode.
    start_epoch : callable
        Puts the module into training mode for an epoch, as its freezing plan says.
    identity : mapping of str to str
        Everything that decides the training, by name, for checkpoints.
    rate : callable, optional
        From the global step to the factor of the learning rates; by default the schedule's.
    watch : callable, optional
        Called with every step's number, from 0, and mean loss, finite or not. The training ends
        when it returns True. With ``watch``, a loss that is not finite raises no error.
    """

    module: nn.Module
    groups: Sequence[dict[str, Any]]
    n: int
    order: Callable[[int], Rows]
    fetch: Callable[[int, Rows], NDArray[Any]]
    loss: Callable[[Rows, NDArray[Any], int], Tensor]
    score: Callable[[], Score]
    start_epoch: Callable[[int], None]
    identity: Mapping[str, str] = field(default_factory=dict)
    rate: Callable[[int], float] | None = None
    watch: Callable[[int, float], bool] | None = None
