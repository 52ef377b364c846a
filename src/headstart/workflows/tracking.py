"""A run's numbers for TensorBoard or MLflow, through Accelerate's trackers; off unless asked."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from headstart.backbones.weights import is_offline
from headstart.data.dataset import Dataset
from headstart.distributed import is_main
from headstart.errors import MissingExtraError, UnknownNameError, UsageError
from headstart.workflows.events import (
    DataReady,
    Decided,
    EpochDone,
    Event,
    Finished,
    Noted,
    Observer,
    Planned,
)
from headstart.workflows.recipe import Recipe
from headstart.workflows.run_folder import told_where, wanted_folder

if TYPE_CHECKING:
    from types import TracebackType

    from headstart.training.job import Epoch

__all__ = ["NAMES", "Tracker", "names_of", "tracked"]

NAMES = ("mlflow", "tensorboard")
TENSORBOARD = "tensorboard"
"""The folder inside a run's folder, and what ends the name of the one beside it."""

LOCAL = "", "file", "sqlite"
"""Schemes of MLflow's stores that are files."""


def names_of(names: str) -> tuple[str, ...]:
    """Read what ``--track`` names, separated by commas.

    Raises
    ------
    UnknownNameError
        If there is no such tracker.

    Examples
    --------
    >>> names_of("tensorboard, mlflow"), names_of("")
    (('tensorboard', 'mlflow'), ())
    """
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in found:
        if name not in NAMES:
            raise UnknownNameError("track", name, NAMES)
    return found


@contextmanager
def tracked(
    names: str,
    source: str | Path | Dataset,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    beside: Observer | None = None,
) -> Iterator[Observer]:
    """Give an observer for ``fit`` that tells trackers of a run; give it the arguments of ``fit``.

    Parameters
    ----------
    names : str
        ``tensorboard``, ``mlflow``, or both with a comma; "" for none.
    source, recipe, out
        As for `headstart.run.fit`.
    beside : callable, optional
        An observer that is told of every event as well.

    Yields
    ------
    callable
        Of several processes only the first one tracks.

    Raises
    ------
    UnknownNameError
        If there is no such tracker.
    MissingExtraError
        If its package is not installed: said before anything is computed.
    UsageError
        If MLflow's store is a server, and the run is offline.

    Examples
    --------
    >>> with tracked("tensorboard", "photos/") as tracker:  # doctest: +SKIP
    ...     fit("photos/", observer=tracker)
    """
    wanted = names_of(names)
    if not wanted or not is_main():
        yield beside or (lambda _: None)
        return
    folder = wanted_folder(out, source)
    with Tracker(wanted, recipe or Recipe(), folder=folder) as tracker:

        def notify(event: Event) -> None:
            tracker(event)
            if beside is not None:
                beside(event)

        yield notify


class Tracker:
    """Hands a run's events to trackers: hyperparameters, epochs, final numbers, the verdict.

    Parameters
    ----------
    names : sequence of str
        Of `NAMES`.
    recipe : Recipe
        Of the run; what it leaves open is filled in when the data are read.
    folder : Path
        Where the run's folder shall be. TensorBoard's files are in ``<folder>.tensorboard`` while
        the run goes, and in ``tensorboard`` inside the run's folder when it is complete.
    """

    def __init__(self, names: tuple[str, ...], recipe: Recipe, *, folder: Path) -> None:
        self._names, self._recipe, self._folder = names, recipe, folder
        self._open: dict[str, Any] = {}
        self._live: Path | None = None
        for name in names:
            if find_spec(name) is None:
                raise MissingExtraError(name, extra="track" if name == TENSORBOARD else None)
        if "mlflow" in names:
            _require_allowed(recipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        by_hand = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("FINISHED" if kind is None else "KILLED" if by_hand else "FAILED")

    def __call__(self, event: Event) -> None:
        """Track one event."""
        match event:
            case DataReady(prepared=prepared):
                self._recipe = self._recipe.settled(prepared.data)
            case Decided(backbone=backbone, method=method) if method is not None:
                self._recipe = replace(self._recipe, backbone=backbone, method=method, rivals=())
            case Planned():
                self._begin(event)
            case EpochDone(epoch=epoch, measure=measure):
                self._log(_epoch_numbers(epoch, measure), step=epoch.number)
            case Noted(text=text):
                self._say({"note": text})
            case Finished():
                self._finish(event)

    def close(self, status: str = "FINISHED") -> None:
        """Close what is open; closing twice does no harm.

        Parameters
        ----------
        status : {"FINISHED", "FAILED", "KILLED"}
            What MLflow shows of the run.
        """
        trackers, self._open = self._open, {}
        with _state():
            for name, tracker in trackers.items():
                if name == "mlflow" and status != "FINISHED":
                    import_module("mlflow").end_run(status=status)
                else:
                    tracker.finish()

    def _begin(self, plan: Planned) -> None:
        values = {
            **flat(self._recipe.as_dict()),
            "plan.method": plan.outline.title,
            "plan.engine": plan.engine.engine,
            "plan.images": plan.images,
            "plan.backbone_parameters": plan.parameters,
        }
        with told_where(self._folder), _state():
            for name in self._names:
                self._open[name] = tracker = self._made(name)
                tracker.main_process_only = False  # this is the first process: nobody is asked
                tracker.start()
                tracker.store_init_configuration(values)

    def _made(self, name: str) -> Any:
        from accelerate.tracking import MLflowTracker, TensorBoardTracker

        if name == TENSORBOARD:
            self._live = _free(self._folder.with_name(f"{self._folder.name}.{TENSORBOARD}"))
            return TensorBoardTracker(self._live.name, logging_dir=self._live.parent)
        return MLflowTracker("headstart", run_name=self._folder.name, nested_run=True)

    def _finish(self, event: Finished) -> None:
        numbers = {
            **{f"seconds/{step}": seconds for step, seconds in event.seconds.items()},
            **{
                name: value
                for measure, interval in event.evaluation.metrics.items()
                for name, value in (
                    (f"final/{measure}", interval.value),
                    (f"final/{measure}/low", interval.low),
                    (f"final/{measure}/high", interval.high),
                )
            },
        }
        self._log(numbers)
        self._say({"verdict": "\n\n".join(event.verdict), "folder": str(event.folder)})
        self.close()
        if self._live is not None and event.folder.is_dir():
            with told_where(event.folder):
                self._live.rename(event.folder / TENSORBOARD)
            self._live = None

    def _log(self, numbers: Mapping[str, float | None], step: int | None = None) -> None:
        """Log the numbers that are there: what the data cannot tell is left out."""
        known = {n: float(v) for n, v in numbers.items() if v is not None and math.isfinite(v)}
        with _state():
            for name, tracker in self._open.items():
                if name == "mlflow":
                    tracker.log({_plain(n): v for n, v in known.items()}, step=step)
                else:
                    tracker.log(known, step=step)

    def _say(self, texts: Mapping[str, str]) -> None:
        with _state():
            for name, tracker in self._open.items():
                if name == "mlflow":  # whose tracker takes numbers only
                    import_module("mlflow").set_tags(dict(texts))
                else:
                    tracker.log(dict(texts))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Flatten nested values: one level of names, joined by dots; what is no scalar as JSON.

    >>> flat({"seed": 1, "method": {"name": "scratch", "rates": [1, 2], "size": None}})
    {'seed': 1, 'method.name': 'scratch', 'method.rates': '[1, 2]', 'method.size': 'null'}
    """
    found: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float):
            found[f"{prefix}{name}"] = value
        else:
            found[f"{prefix}{name}"] = json.dumps(value)
    return found


def _epoch_numbers(epoch: Epoch, measure: str) -> dict[str, float | None]:
    return {
        "train/loss": epoch.loss,
        "held_out/loss": epoch.held_out_loss,
        f"held_out/{measure}": epoch.score,
        "epoch/seconds": epoch.seconds,
        "epoch/best": epoch.best,
    }


def _plain(name: str) -> str:
    """MLflow's names hold fewer characters than ours, such as no @."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _free(wanted: Path) -> Path:
    """Return that path or the next free one: the log of an older run is never touched."""
    names = itertools.chain([wanted.name], (f"{wanted.name}-{n}" for n in itertools.count(2)))
    return next(path for path in map(wanted.with_name, names) if not path.exists())


def _require_allowed(recipe: Recipe) -> None:
    """Keep MLflow from calling home, and an offline run from any server."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
    uri = str(import_module("mlflow").get_tracking_uri())
    scheme = uri.partition(":")[0] if "://" in uri else ""
    if is_offline(recipe.offline) and scheme not in LOCAL:
        raise UsageError(
            f"Expected MLflow to write files in an offline run, got the store {uri!r}; do unset "
            "MLFLOW_TRACKING_URI, or leave --offline out."
        )


@contextmanager
def _state() -> Iterator[None]:
    """Lend Accelerate the state that its trackers ask for.

    One that stayed would decide the device of a training that begins later.
    """
    from accelerate.state import PartialState

    if PartialState._shared_state:
        yield
        return
    PartialState(cpu=True)
    try:
        yield
    finally:
        PartialState._reset_state()
