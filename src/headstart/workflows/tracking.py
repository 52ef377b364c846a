"""Tracking of a run in TensorBoard or MLflow through Accelerate's trackers; off by default."""

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
from headstart.distributed.processes import is_main
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
    notify_both,
)
from headstart.workflows.recipe import Recipe
from headstart.workflows.run_folder import choose_folder, explain_write_errors

if TYPE_CHECKING:
    from types import TracebackType

    from headstart.training.job import Epoch

__all__ = ["NAMES", "Tracker", "tracked", "tracker_names"]

NAMES = ("mlflow", "tensorboard")
TENSORBOARD = "tensorboard"
"""Name of the folder inside a run's folder, and suffix of the folder beside it during the run."""

LOCAL = "", "file", "sqlite"
"""URL schemes of MLflow stores that are local files."""


def tracker_names(names: str) -> tuple[str, ...]:
    """Split the value of ``--track`` at commas.

    Raises
    ------
    UnknownNameError
        If there is no such tracker.

    Examples
    --------
    >>> tracker_names("tensorboard, mlflow"), tracker_names("")
    (('tensorboard', 'mlflow'), ())
    """
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in chosen:
        if name not in NAMES:
            raise UnknownNameError("track", name, NAMES)
    return chosen


@contextmanager
def tracked(
    names: str,
    source: object,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    beside: Observer | None = None,
) -> Iterator[Observer]:
    """Yield an observer for ``fit`` that tracks the run; takes the arguments of ``fit``.

    Parameters
    ----------
    names : str
        ``tensorboard``, ``mlflow``, or both with a comma; "" for none.
    source, recipe, out
        As for `headstart.fit`.
    beside : callable, optional
        Another observer of the same events.

    Yields
    ------
    callable
        The observer for ``fit``. Only the main process tracks.

    Raises
    ------
    UnknownNameError
        If there is no such tracker.
    MissingExtraError
        If its package is not installed; raised before anything is computed.
    UsageError
        If the run is offline and MLflow's store is a server.

    Examples
    --------
    >>> with tracked("tensorboard", "photos/") as tracker:  # doctest: +SKIP
    ...     fit("photos/", observer=tracker)
    """
    chosen = tracker_names(names)
    if not chosen or not is_main():
        yield beside or (lambda _: None)
        return
    folder = choose_folder(out, source)
    with Tracker(chosen, recipe or Recipe(), folder=folder) as tracker:
        yield notify_both(tracker, beside)


class Tracker:
    """Log a run's events with trackers: hyperparameters, epochs, final numbers, the summary.

    Parameters
    ----------
    names : sequence of str
        Of `NAMES`.
    recipe : Recipe
        Of the run; settings that the data decide are filled in later.
    folder : Path
        The run's folder. TensorBoard's files are in ``<folder>.tensorboard`` during the run, and
        in ``tensorboard`` inside the run's folder afterwards.
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
        is_interrupt = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("FINISHED" if kind is None else "KILLED" if is_interrupt else "FAILED")

    def __call__(self, event: Event) -> None:
        """Track one event."""
        match event:
            case DataReady(prepared=prepared):
                self._recipe = self._recipe.resolved_for(prepared.data)
            case Decided(backbone=backbone, method=method) if method is not None:
                self._recipe = replace(self._recipe, backbone=backbone, method=method, rivals=())
            case Planned():
                self._start(event)
            case EpochDone(epoch=epoch, measure=measure):
                self._log(_epoch_numbers(epoch, measure), step=epoch.number)
            case Noted(text=text):
                self._log_texts({"note": text})
            case Finished():
                self._finish(event)

    def close(self, status: str = "FINISHED") -> None:
        """Close all trackers; a second call does nothing.

        Parameters
        ----------
        status : {"FINISHED", "FAILED", "KILLED"}
            Status of the run in MLflow.
        """
        trackers, self._open = self._open, {}
        with _accelerate_state():
            for name, tracker in trackers.items():
                if name == "mlflow" and status != "FINISHED":
                    import_module("mlflow").end_run(status=status)
                else:
                    tracker.finish()

    def _start(self, plan: Planned) -> None:
        values = {
            **flat(self._recipe.as_dict()),
            "plan.method": plan.outline.title,
            "plan.engine": plan.engine.engine,
            "plan.images": plan.images,
            "plan.backbone_parameters": plan.parameters,
        }
        with explain_write_errors(self._folder), _accelerate_state():
            for name in self._names:
                self._open[name] = tracker = self._create_tracker(name)
                tracker.main_process_only = False  # only the main process gets here
                tracker.start()
                tracker.store_init_configuration(values)

    def _create_tracker(self, name: str) -> Any:
        from accelerate.tracking import MLflowTracker, TensorBoardTracker

        if name == TENSORBOARD:
            self._live = _free_path(self._folder.with_name(f"{self._folder.name}.{TENSORBOARD}"))
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
        self._log_texts({"summary": "\n\n".join(event.summary), "folder": str(event.folder)})
        self.close()
        if self._live is not None and event.folder.is_dir():
            with explain_write_errors(event.folder):
                self._live.rename(event.folder / TENSORBOARD)
            self._live = None

    def _log(self, numbers: Mapping[str, float | None], step: int | None = None) -> None:
        """Log the numbers that are defined and finite."""
        finite = {n: float(v) for n, v in numbers.items() if v is not None and math.isfinite(v)}
        with _accelerate_state():
            for name, tracker in self._open.items():
                if name == "mlflow":
                    tracker.log({_mlflow_name(n): v for n, v in finite.items()}, step=step)
                else:
                    tracker.log(finite, step=step)

    def _log_texts(self, texts: Mapping[str, str]) -> None:
        with _accelerate_state():
            for name, tracker in self._open.items():
                if name == "mlflow":  # its tracker takes numbers only
                    import_module("mlflow").set_tags(dict(texts))
                else:
                    tracker.log(dict(texts))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Flatten nested values to one level of names, joined by dots; lists become JSON.

    >>> flat({"seed": 1, "method": {"name": "scratch", "rates": [1, 2], "size": None}})
    {'seed': 1, 'method.name': 'scratch', 'method.rates': '[1, 2]', 'method.size': 'null'}
    """
    flattened: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float):
            flattened[f"{prefix}{name}"] = value
        else:
            flattened[f"{prefix}{name}"] = json.dumps(value)
    return flattened


def _epoch_numbers(epoch: Epoch, measure: str) -> dict[str, float | None]:
    return {
        "train/loss": epoch.loss,
        "held_out/loss": epoch.held_out_loss,
        f"held_out/{measure}": epoch.score,
        "epoch/seconds": epoch.seconds,
        "epoch/best": epoch.best,
    }


def _mlflow_name(name: str) -> str:
    """Replace the characters that MLflow does not allow in names, such as @."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _free_path(path: Path) -> Path:
    """Return the path or the next free one; never touch the log of an older run."""
    names = itertools.chain([path.name], (f"{path.name}-{n}" for n in itertools.count(2)))
    return next(p for p in map(path.with_name, names) if not p.exists())


def _require_allowed(recipe: Recipe) -> None:
    """Turn MLflow's telemetry off; refuse a server as store in an offline run."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it at import
    uri = str(import_module("mlflow").get_tracking_uri())
    scheme = uri.partition(":")[0] if "://" in uri else ""
    if is_offline(recipe.offline) and scheme not in LOCAL:
        raise UsageError(
            f"An offline run cannot use the MLflow server {uri!r}. Unset MLFLOW_TRACKING_URI, or "
            "remove --offline."
        )


@contextmanager
def _accelerate_state() -> Iterator[None]:
    """Create the state that Accelerate's trackers need, and remove it afterwards.

    If it stayed, it would decide the device of a later training.
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
