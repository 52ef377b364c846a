"""Progress of a race: its events, and how Ctrl-C or the end of the budget stops it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headstart.training.interruption import StopRequest, StopRequested
from headstart.training.job import Epoch, Session

if TYPE_CHECKING:
    from headstart.features.extractor import Progress
    from headstart.metrics.confidence_intervals import Interval

__all__ = [
    "BudgetUsedUpError",
    "FirstModel",
    "FoldWatch",
    "NextStep",
    "RaceEvent",
    "RaceStoppedError",
    "TimeLimit",
    "capitalise",
    "check_stop",
    "first_sentence",
    "format_folds",
    "format_seconds",
]


@dataclass(frozen=True, kw_only=True)
class FirstModel:
    """The linear probe on the full backbone has a cross-validated score: a first model.

    Parameters
    ----------
    measure : str
        Name of the score.
    score : Interval
    images : int
        Number of training images.
    seconds : float
        Since the start of the race.
    name : str
        Of the model.
    source : str
        Images of the score.

    Examples
    --------
    >>> from headstart.metrics.confidence_intervals import Interval
    >>> score = Interval(value=0.84, low=0.8, high=0.87, method="wilson")
    >>> FirstModel(measure="accuracy", score=score, images=400, seconds=5.0).sentence()
    'Linear classifier on frozen features: 0.84 [0.80, 0.87] (cross-validated on the training \
images), ready.'
    """

    measure: str
    score: Interval
    images: int
    seconds: float
    name: str = "Linear classifier on frozen features"
    source: str = "cross-validated on the training images"

    def sentence(self) -> str:
        """Describe the first model in one line; name the measure unless it is the accuracy."""
        measure = "" if self.measure == "accuracy" else f"{self.measure} "
        score = f"{self.score.value:.2f} [{self.score.low:.2f}, {self.score.high:.2f}]"
        return f"{self.name}: {measure}{score} ({self.source}), ready."


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """What the race tries next.

    Parameters
    ----------
    names : tuple of str
        Of the candidates.
    folds : int
        Number of folds that each of them trains on at most; 0 if nothing is trained.
    seconds : float
        Estimate for all of them; 0 if it is not known.

    Examples
    --------
    >>> NextStep(names=("fine-tuning all stages",), folds=5, seconds=40.2).sentence()
    'Next: fine-tuning all stages, 5 folds, about 40 s.'
    """

    names: tuple[str, ...]
    folds: int = 0
    seconds: float = 0.0

    def sentence(self) -> str:
        """Describe the step in one line."""
        folds = f", {self.folds} folds" + " each" * (len(self.names) > 1) if self.folds else ""
        about = f", about {format_seconds(max(self.seconds, 1.0))}" if self.seconds else ""
        return f"Next: {' and '.join(self.names)}{folds}{about}."


@dataclass(frozen=True, kw_only=True)
class TimeLimit:
    """Time budget of a run, of which a race is a part.

    Parameters
    ----------
    seconds : float
    started_at : float, optional
        Time, as of ``time.perf_counter``, when the run began; None if it begins with the race.
    later_images : int
        Test images, which are computed after the race.
    """

    seconds: float
    started_at: float | None = None
    later_images: int = 0


RaceEvent = FirstModel | NextStep | StopRequested


class RaceStoppedError(Exception):
    """Raised inside a step of the race after Ctrl-C; never leaves the race."""


def check_stop(stop: StopRequest) -> None:
    """Stop the current step of a race after Ctrl-C.

    Raises
    ------
    RaceStoppedError
        If Ctrl-C was pressed.
    """
    if stop.is_requested:
        raise RaceStoppedError


class BudgetUsedUpError(Exception):
    """Raised inside a step of the race when the budget is used up; never leaves the race."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldWatch:
    """Watch over the trainings of one fold: reports progress, and stops them.

    Parameters
    ----------
    step : str
        Name of the step, such as ``candidate 1 of 2: fine-tuning all stages, fold 1 of 5``.
    n_trainings : int
        Number of learning rates.
    progress : callable
    stop : StopRequest
    seconds_left : callable
        Seconds of the budget that are left for this fold.
    keeps_partial : bool
        Whether a training that Ctrl-C has stopped counts with its best epoch.
    """

    step: str
    n_trainings: int
    progress: Progress
    stop: StopRequest
    seconds_left: Callable[[], float]
    keeps_partial: bool = False

    def session(self, number: int) -> Session:
        """Make the callbacks of the training with this number, from 0.

        The training ends after the step in which Ctrl-C was pressed (``RaceStoppedError``), or
        after the epoch in which the budget was used up (``BudgetUsedUpError``).
        """

        def report_step(_: str, done: int, total: int) -> None:
            check_stop(self.stop)
            self.progress(self.step, number * total + done, self.n_trainings * total)

        return Session(progress=report_step, on_epoch=self._check_epoch)

    def report_scoring(self, n_images: int) -> None:
        """Report that the held-out images are predicted.

        Raises
        ------
        RaceStoppedError
            After Ctrl-C.
        """
        check_stop(self.stop)
        self.progress(f"{self.step}, scoring {n_images} images", 0, 0)

    def _check_epoch(self, epoch: Epoch, n_epochs: int) -> None:
        check_stop(self.stop)
        if epoch.number < n_epochs and self.seconds_left() <= 0:
            raise BudgetUsedUpError


def format_seconds(seconds: float) -> str:
    """Format a duration for a sentence.

    >>> format_seconds(40.2), format_seconds(300)
    ('40 s', '5 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def first_sentence(message: str) -> str:
    """Return an error message without its advice, and without the dots of a shortened list.

    >>> first_sentence("Found too few images of 'a', 'b', .... Add images.")
    "Found too few images of 'a', 'b'"
    """
    return re.split(r"[.;] ", message)[0].rstrip(" .,")


def format_folds(number: int) -> str:
    """Format a number of folds.

    >>> format_folds(1), format_folds(3)
    ('1 fold', '3 folds')
    """
    return f"{number} fold{'s' * (number != 1)}"


def capitalise(text: str) -> str:
    """Begin a sentence with a capital; the other letters stay.

    >>> capitalise("linear probe at layer3")
    'Linear probe at layer3'
    """
    return text[:1].upper() + text[1:]
