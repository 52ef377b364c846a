"""Events of a run, for a terminal, a log or a notebook."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.prepare import PreparedData
from headstart.evaluation.classification import AnyEvaluation
from headstart.features.engines import EngineChoice
from headstart.methods.method import Method, Outline
from headstart.models.heads.head import Head
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
]


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """Progress of a step, in images."""

    step: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Noted:
    """A message for a person."""

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
    """What the run is about to do.

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
    reach : float or None
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
    reach: float | None = None


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
        Sentences about what a fine-tuned backbone has gained and forgotten.
    """

    folder: Path
    evaluation: AnyEvaluation
    summary: tuple[str, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    forgetting: tuple[str, ...] = ()


Event = Progressed | Noted | DataReady | Decided | Planned | EpochDone | Finished
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
        match event:
            case Progressed(done=done, total=total) if done < total:
                return
            case Progressed(step=step, total=total):
                line: dict[str, Any] = {"event": "step", "step": step, "images": total}
            case DataReady(prepared=prepared):
                line = {
                    "event": "data",
                    "name": prepared.data.name,
                    "train": prepared.train.counts(),
                    "held_out": prepared.test.counts(),
                    "findings": [finding.message for finding in prepared.findings],
                }
            case Decided(record=record):
                line = {"event": "decision", **record}
            case Planned():
                line = {
                    "event": "plan",
                    "method": event.outline.title,
                    "backbone": event.backbone.spec.name,
                    "engine": event.engine.engine,
                    "to_compute": event.to_compute,
                    "images": event.images,
                }
                if event.head is not None:
                    line |= {"head": event.head.kind, "anchors_reach": event.reach}
            case EpochDone(epoch=epoch, n_epochs=n_epochs, measure=measure):
                line = {"event": "epoch", "most": n_epochs, "measure": measure, **asdict(epoch)}
            case Noted(text=text):
                line = {"event": "note", "text": text}
            case Finished():
                line = {
                    "event": "finished",
                    "summary": event.summary,
                    "seconds": dict(event.seconds),
                }
        line = {"seconds_since_start": round(time.perf_counter() - self._started_at, 3), **line}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
