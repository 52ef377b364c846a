"""Events of a run, for a terminal, a log or a notebook."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.prepare import PreparedData
from headstart.distributed.processes import is_main
from headstart.errors import UsageError
from headstart.evaluation.classification import AnyEvaluation
from headstart.features.engines import EngineChoice
from headstart.methods.method import Method, Outline
from headstart.metrics.validation import json_text
from headstart.models.heads.head import Head
from headstart.selection.progress import FirstModel, NextStep
from headstart.training.interruption import StopRequested
from headstart.training.job import Epoch

__all__ = [
    "DataReady",
    "Decided",
    "EpochDone",
    "Event",
    "Finished",
    "JsonLog",
    "Noted",
    "Observer",
    "Planned",
    "Progressed",
    "notify_both",
    "progress_of",
    "require_observer",
    "shown",
]


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """Progress of a step, in images or steps of a training.

    ``total`` is 0 where it is not known: the step has begun, and the next event ends it.
    """

    step: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Noted:
    """A message for the user."""

    text: str


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """An epoch has ended and was scored on the validation images.

    Parameters
    ----------
    epoch : Epoch
    n_epochs : int
        Largest number of epochs.
    measure : str
        Name of the score.
    """

    epoch: Epoch
    n_epochs: int
    measure: str = "macro F1"


@dataclass(frozen=True, kw_only=True)
class DataReady:
    """The images have been read, checked and split."""

    prepared: PreparedData
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Decided:
    """A race has chosen backbone and method.

    Parameters
    ----------
    record : mapping
        As ``headstart.selection.race.Decision.record``.
    backbone : str
        Its name; empty if the race was only planned.
    method : Method or None
    """

    record: Mapping[str, Any]
    backbone: str = ""
    method: Method | None = None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Plan of a run: what it will compute and train.

    Parameters
    ----------
    outline : Outline
        Of the method.
    backbone : FrozenBackbone
    engine : EngineChoice
    parameters : int
        Of the backbone.
    to_compute, images : int
        Images without cached features, and all images.
    seconds : float or None
        Estimate for the features; None if the engine was not measured.
    cache_bytes : int
        Size of the new features.
    head : Head or None
        Head for boxes or masks, which need no pooled features; None for classes.
    anchor_recall : float or None
        Share of the training boxes that some anchor overlaps by half or more.
    """

    outline: Outline
    backbone: FrozenBackbone
    engine: EngineChoice
    parameters: int
    to_compute: int
    images: int
    seconds: float | None
    cache_bytes: int
    head: Head | None = None
    anchor_recall: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """The run's folder is complete.

    Parameters
    ----------
    folder : Path
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
    summary : tuple of str
    seconds : mapping of str to float
        By step.
    notes : tuple of str
        Messages of the training, such as batches that were halved.
    forgetting : tuple of str
        Sentences about the transfer gain and the forgetting of a fine-tuned backbone.
    """

    folder: Path
    evaluation: AnyEvaluation
    summary: tuple[str, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    forgetting: tuple[str, ...] = ()


Event = (
    Progressed
    | Noted
    | DataReady
    | FirstModel
    | NextStep
    | StopRequested
    | Decided
    | Planned
    | EpochDone
    | Finished
)
Observer = Callable[[Event], None]


def progress_of(notify: Observer) -> Callable[[str, int, int], None]:
    """Make a callback that reports progress as events.

    >>> progress_of(print)("features", 1, 2)
    Progressed(step='features', done=1, total=2)
    """
    return lambda step, done, total: notify(Progressed(step=step, done=done, total=total))


def notify_both(first: Observer, second: Observer | None) -> Observer:
    """Make an observer that passes each event to the first observer, then to the second.

    >>> notify_both(print, None)(Noted(text="x"))
    Noted(text='x')
    """

    def notify(event: Event) -> None:
        first(event)
        if second is not None:
            second(event)

    return notify


def require_observer(observer: object) -> None:
    """Refuse an observer that cannot be called.

    Raises
    ------
    UsageError
        If it is neither None nor a function.

    Examples
    --------
    >>> require_observer(3)
    Traceback (most recent call last):
    headstart.errors.UsageError: `observer` must be a function of one event, got 3. Pass ...
    """
    if observer is not None and not callable(observer):
        raise UsageError(
            f"`observer` must be a function of one event, got {reprlib.repr(observer)}. Pass a "
            "function, such as observer=print."
        )


@contextmanager
def shown(progress: bool | None, observer: Observer | None) -> Iterator[Observer]:
    """Yield an observer that shows the progress of a call and passes the events on.

    Parameters
    ----------
    progress : bool, optional
        As for `headstart.show_progress`. Only the main process shows progress.
    observer : callable, optional
        Called with every event, too.

    Raises
    ------
    UsageError
        If ``progress`` is not True, False or None, or the observer is no function.

    Examples
    --------
    >>> with shown(False, print) as notify:
    ...     notify(Noted(text="x"))
    Noted(text='x')
    """
    import headstart

    require_observer(observer)
    with headstart.show_progress(progress if is_main() else False) as display:
        yield notify_both(display or (lambda _: None), observer)


class JsonLog:
    """Log with one line of JSON per event, written at once, so that a kill loses nothing."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._started_at = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __call__(self, event: Event) -> None:
        """Write an event; of progress only the end of a step."""
        if isinstance(event, Progressed) and (event.done < event.total or not event.total):
            return
        line = {"seconds_since_start": round(time.perf_counter() - self._started_at, 3)}
        self._file.write(json_text(line | _log_line(event)) + "\n")
        self._file.flush()


def _log_line(event: Event) -> dict[str, Any]:
    """Convert an event to the plain values of its line in the log."""
    match event:
        case Progressed(step=step, total=total):
            return {"event": "step", "step": step, "images": total}
        case DataReady(prepared=prepared):
            return {
                "event": "data",
                "name": prepared.data.name,
                "train": prepared.train.counts(),
                "held_out": prepared.test.counts(),
                "findings": [finding.message for finding in prepared.findings],
            }
        case Planned():
            head = {} if event.head is None else {"head": event.head.kind}
            return {
                "event": "plan",
                "method": event.outline.title,
                "backbone": event.backbone.spec.name,
                "engine": event.engine.engine,
                "to_compute": event.to_compute,
                "images": event.images,
                **(head and {**head, "anchors_reach": event.anchor_recall}),
            }
        case EpochDone(epoch=epoch, n_epochs=n_epochs, measure=measure):
            return {"event": "epoch", "most": n_epochs, "measure": measure, **asdict(epoch)}
        case Noted(text=text):
            return {"event": "note", "text": text}
        case Finished():
            seconds = dict(event.seconds)
            return {"event": "finished", "summary": event.summary, "seconds": seconds}
        case _:
            return _race_line(event)


def _race_line(event: FirstModel | NextStep | StopRequested | Decided) -> dict[str, Any]:
    match event:
        case FirstModel():
            return {"event": "first_model", **asdict(event), "score": event.score.as_dict()}
        case NextStep():
            return {"event": "next", **asdict(event)}
        case StopRequested(text=text):
            return {"event": "stop", "text": text}
        case Decided(record=record):
            return {"event": "decision", **record}
