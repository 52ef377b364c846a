"""What a run tells while it goes: values that a terminal, a log or a notebook may show."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.prepare import Prepared
from headstart.evaluation.classification import AnyEvaluation
from headstart.features.engines import Choice
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
    "progress_of",
]


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """So many images of a step are done."""

    step: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Noted:
    """Something that a person has to know."""

    text: str


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """An epoch of a training has been judged on held-out images.

    Parameters
    ----------
    epoch : Epoch
    most : int
        How many there are at most.
    measure : str
        What its score is.
    """

    epoch: Epoch
    most: int
    measure: str = "macro F1"


@dataclass(frozen=True, kw_only=True)
class DataReady:
    """The images have been read, checked and split."""

    prepared: Prepared
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Decided:
    """A race has chosen backbone and method.

    Parameters
    ----------
    record : mapping
        As ``headstart.advice.Decision.record``.
    backbone : str
        Its name; empty where a race was only planned.
    method : Method or None
    """

    record: Mapping[str, Any]
    backbone: str = ""
    method: Method | None = None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is about to happen, before it costs anything.

    Parameters
    ----------
    outline : Outline
        What the method is about to do.
    backbone : FrozenBackbone
    engine : Choice
    parameters : int
        Of the backbone.
    to_compute, images : int
        Images whose features are not kept yet, of all.
    seconds : float or None
        Estimate for the features; None when the engine was not measured.
    cache_bytes : int
        That the new features will take.
    head : Head or None
        What boxes or masks are learned with; None for classes. Where there is one, no pooled
        features are made.
    reach : float or None
        Share of the boxes to learn from that some anchor overlaps by half or more.
    """

    outline: Outline
    backbone: FrozenBackbone
    engine: Choice
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
    verdict : tuple of str
    seconds : mapping of str to float
        By step.
    notes : tuple of str
        What happened in training, such as batches that were halved.
    kept : tuple of str
        What a backbone that was trained has gained and forgotten.
    """

    folder: Path
    evaluation: AnyEvaluation
    verdict: tuple[str, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


Event = Progressed | Noted | DataReady | Decided | Planned | EpochDone | Finished
Observer = Callable[[Event], None]


def progress_of(notify: Observer) -> Callable[[str, int, int], None]:
    """Make a step's progress an event.

    >>> progress_of(print)("features", 1, 2)
    Progressed(step='features', done=1, total=2)
    """
    return lambda step, done, total: notify(Progressed(step=step, done=done, total=total))


class JsonLog:
    """One line of JSON for every step of a run, written at once: a kill loses nothing."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._begin = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._file.close()

    def __call__(self, event: Event) -> None:
        """Write what the event says; of progress only the last line of a step."""
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
            case EpochDone(epoch=epoch, most=most, measure=measure):
                line = {"event": "epoch", "most": most, "measure": measure, **asdict(epoch)}
            case Noted(text=text):
                line = {"event": "note", "text": text}
            case Finished():
                line = {
                    "event": "finished",
                    "verdict": event.verdict,
                    "seconds": dict(event.seconds),
                }
        line = {"seconds_since_start": round(time.perf_counter() - self._begin, 3), **line}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
