"""What a training is: what it needs, what it tells, what it gives; values without behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Epoch", "History", "Job", "Rows", "Score", "Session"]

Rows = NDArray[np.intp]


class Score(NamedTuple):
    """How good the held-out images say that the network is; compared in this order.

    ``value`` is better when higher; ``gain`` is the negative loss, which decides between equals.
    """

    value: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch gave.

    Parameters
    ----------
    number : int
        From 1; 0 is the start.
    loss : float or None
        Mean over the epoch's images; None for the start.
    score, held_out_loss : float
        Of the held-out images.
    seconds : float
    best : int
        Number of the best epoch until now, this one included.
    """

    number: int
    loss: float | None
    score: float
    held_out_loss: float
    seconds: float
    best: int

    @property
    def is_best(self) -> bool:
        """Whether none before was as good."""
        return self.best == self.number


@dataclass(kw_only=True)
class History:
    """Epochs in order, the start first, and which of them was kept.

    Parameters
    ----------
    epochs : list of Epoch
    best : int
        Number of the epoch that was kept; 0 for the start.
    soup : int
        How many epochs were averaged; 1 for the best alone.
    steps : int
    notes : list of str
        What a person has to know, such as batches that were halved.
    interrupted : bool
        Whether Ctrl-C ended it.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    soup: int = 1
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """Who is told, and where a training can be taken up again.

    Parameters
    ----------
    told : callable, optional
        Called with every finished epoch, the start as number 0, and with how many there are at
        most.
    progress : callable, optional
        Called with the name of the step, how much is done, and how much there is.
    folder : Path, optional
        For checkpoints, and for a batch whose loss is not finite.
    resume : bool
        Take up what the folder holds.
    """

    told: Callable[[Epoch, int], None] | None = None
    progress: Callable[[str, int, int], None] | None = None
    folder: Path | None = None
    resume: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What is trained, on what, and how it is judged: all that methods differ in.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place; ends as it was when it was judged best.
    groups : sequence of dict
        Parameters that may move (``params``) and their rates (``lr``).
    n : int
        Number of images to learn from.
    order : callable
        From an epoch's number to the rows of its images, in order.
    fetch : callable
        From an epoch's number and rows to what the loss reads, an array; in another thread.
    loss : callable
        From rows, the array and the global step to the mean loss of these images.
    score : callable
        Judges the module as it is; may switch modes.
    enter : callable
        Puts the module into training as its plan says for an epoch.
    identity : mapping of str to str
        Everything that decides the training, by name, for checkpoints.
    rate : callable, optional
        From the global step to the factor of the groups' rates; by default the schedule's.
    watch : callable, optional
        Told every step's number, from 0, and mean loss, finite or not; True ends the training
        there and then. Whoever watches decides what a loss that is not finite means.
    """

    module: nn.Module
    groups: Sequence[dict[str, Any]]
    n: int
    order: Callable[[int], Rows]
    fetch: Callable[[int, Rows], NDArray[Any]]
    loss: Callable[[Rows, NDArray[Any], int], Tensor]
    score: Callable[[], Score]
    enter: Callable[[int], None]
    identity: Mapping[str, str] = field(default_factory=dict)
    rate: Callable[[int], float] | None = None
    watch: Callable[[int, float], bool] | None = None
