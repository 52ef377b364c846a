"""Callbacks get the events of a run, and stop it as Ctrl-C does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

import headstart
from headstart.errors import UsageError
from headstart.training.interruption import StopRequest
from headstart.training.job import Epoch
from headstart.workflows import callbacks as callbacks_module
from headstart.workflows.callbacks import Callbacks
from headstart.workflows.events import (
    DataReady,
    EpochDone,
    Event,
    Finished,
    FirstModel,
    Noted,
    Planned,
    Progressed,
    shown,
)
from headstart.workflows.run_folder import checkpoint_folder

ROOT = Path(__file__).parents[2]


class Counter:
    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.numbers = stop_at, []

    def on_epoch(self, event):
        assert isinstance(event, EpochDone)
        self.numbers.append(event.epoch.number)
        return headstart.STOP if event.epoch.number == self.stop_at else None


def train(folder, callbacks, **settings):
    values = {"method": "finetune", "epochs": 6, "train_from": "head", "device": "cpu"} | settings
    return headstart.fit("demo:symbols", out=folder / "run", callbacks=callbacks, **values)


@pytest.mark.parametrize("result", [headstart.STOP, True])
def test_a_stop_signal_keeps_the_best_epoch_so_far(tmp_path, result) -> None:
    counter, events = Counter(), []

    def stop(event):
        events.append(event)
        return result if isinstance(event, EpochDone) and event.epoch.number == 2 else None

    run = train(tmp_path, [counter, stop])
    assert counter.numbers == [0, 1, 2]
    assert run.interrupted
    assert run.summary[0].startswith("STOPPED BY A CALLBACK after 2 complete epochs.")
    assert any("Stopped by a callback" in note for note in run.model.record["notes"])
    kinds = [type(event) for event in events]
    assert kinds.index(DataReady) < kinds.index(Planned) < kinds.index(EpochDone)
    assert kinds[-1] is Finished
    assert run.report.is_file()


def test_a_stopped_training_can_be_resumed(tmp_path) -> None:
    train(tmp_path, [Counter(stop_at=2)])
    again = tmp_path / "again"
    again.mkdir()
    checkpoint_folder(tmp_path / "run").rename(checkpoint_folder(again / "run"))
    rest = Counter()
    run = train(again, [rest], resume=True)
    assert rest.numbers[0] == 3
    assert not run.interrupted


def test_a_stop_during_a_step_ends_after_it(tmp_path) -> None:
    def stop(event):
        return isinstance(event, Progressed) and event.step == "training" and event.done == 3

    run = train(tmp_path, [stop])
    assert run.model.record["steps"] == 3
    assert len(run.model.record["epochs"]) == 1  # only the start


def test_a_stop_before_the_training_ends_it_before_its_first_step(tmp_path) -> None:
    run = train(tmp_path, [lambda event: isinstance(event, DataReady)])
    assert run.model.record["steps"] == 0
    assert run.interrupted
    assert run.report.is_file()


@pytest.mark.parametrize("kind", [DataReady, FirstModel])
def test_a_stop_ends_the_race_with_its_first_model(tmp_path, kind) -> None:
    events = []

    def stop(event):
        events.append(event)
        return isinstance(event, kind)

    run = headstart.fit("demo:symbols", out=tmp_path / "run", callbacks=[stop], budget=600)
    assert run.interrupted
    assert run.summary[0].startswith("STOPPED BY A CALLBACK during the race")
    assert [type(event).__name__ for event in events].count("StopRequested") == 1
    assert not [event for event in events if isinstance(event, EpochDone)]
    reasons = " ".join(run.model.record["decision"]["why"])
    assert "The race was stopped by a callback." in reasons
    assert run.report.is_file()


def test_an_exception_propagates_and_the_training_can_be_resumed(tmp_path) -> None:
    def fail(event):
        if isinstance(event, EpochDone) and event.epoch.number == 2:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        train(tmp_path, [fail])
    assert not (tmp_path / "run").exists()
    counter = Counter()
    run = train(tmp_path, [counter], resume=True)
    assert counter.numbers[0] == 3
    assert not run.interrupted


@pytest.mark.parametrize("kind", [DataReady, Planned, Progressed])
def test_an_exception_in_any_phase_is_the_callers_own(tmp_path, kind) -> None:
    def fail(event):
        if isinstance(event, kind):
            raise ZeroDivisionError(kind.__name__)

    with pytest.raises(ZeroDivisionError, match=kind.__name__):
        headstart.fit("demo:symbols", out=tmp_path / "run", callbacks=[fail], budget=5)
    assert not (tmp_path / "run").exists()


def test_an_exception_at_a_note_is_the_callers_own(tmp_path) -> None:
    def fail(event):
        if isinstance(event, Noted):
            raise ZeroDivisionError(event.text)

    (tmp_path / "run").mkdir()  # the run says that it takes another name
    with pytest.raises(ZeroDivisionError, match="exists and is not changed"):
        headstart.fit("demo:symbols", out=tmp_path / "run", callbacks=[fail], budget=5)
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


def test_an_object_may_have_both_methods() -> None:
    calls = []

    class Both:
        def on_event(self, event):
            calls.append("event")

        def on_epoch(self, event):
            calls.append("epoch")

    epoch = Epoch(number=1, loss=0.1, score=0.5, held_out_loss=0.2, seconds=1.0, best=1)
    callbacks = Callbacks([Both()])
    callbacks(Noted(text="x"))
    callbacks(EpochDone(epoch=epoch, n_epochs=3))
    assert calls == ["event", "event", "epoch"]


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([3], "must be a function or have a method `on_epoch` or `on_event`, got 3"),
        ([Counter], "must be an object, got the class Counter. Pass Counter()"),
        (print, "`callbacks` must be a list, got <built-in function print>"),
        ("text", "`callbacks` must be a list, got 'text'"),
    ],
)
def test_other_values_are_refused_before_anything_is_read(callbacks, message) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        headstart.fit("no/such/folder", callbacks=callbacks)


@pytest.mark.parametrize("result", [3, "stop", 0])
def test_a_result_that_is_no_signal_is_refused(result) -> None:
    callbacks = Callbacks([lambda event: result])
    sentence = re.escape(f"returned {result!r}. Make it return headstart.STOP")
    with pytest.raises(UsageError, match=sentence):
        callbacks(Noted(text="x"))


def test_the_observer_cannot_stop_a_run_and_comes_first() -> None:
    order = []

    def observe(event):
        order.append("observer")
        return True

    callbacks = Callbacks([lambda event: order.append("callback")], observe)
    callbacks.stop = StopRequest(print)
    callbacks.stop.keep_model()
    callbacks(Noted(text="x"))
    assert order == ["observer", "callback"]
    assert not callbacks.stop.is_requested


def test_several_processes_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(callbacks_module, "world_size", lambda: 2)
    Callbacks([], print).require_one_process()
    with pytest.raises(UsageError, match="cannot be used in 2 processes"):
        Callbacks([print]).require_one_process()


def test_events_are_frozen_and_on_the_page() -> None:
    page = (ROOT / "docs" / "callbacks.md").read_text(encoding="utf-8")
    for event in get_args(Event):
        assert event.__dataclass_params__.frozen
        row = re.search(rf"^\| `{event.__name__}` \|.*$", page, re.MULTILINE)
        assert row is not None
        missing = [f.name for f in dataclasses.fields(event) if f"`{f.name}`" not in row[0]]
        assert not missing or "..." in row[0]


def test_a_detector_resumes_only_with_the_same_choice_of_boxes(tmp_path) -> None:
    def fit(**settings):
        return headstart.fit(
            "demo:boxes",
            out=tmp_path / "run",
            method="finetune",
            train_from="head",
            size=64,
            epochs=2,
            device="cpu",
            callbacks=[lambda event: isinstance(event, EpochDone) and event.epoch.number == 1],
            **settings,
        )

    fit()
    for changed in ({"nms": 0.3}, {"max_boxes": 7}, {"class_agnostic_nms": True}):
        with pytest.raises(UsageError, match="different box selection"):
            fit(resume=True, **changed)


def test_an_observer_that_is_no_function_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`observer` must be a function of one event, got 3"):
        Callbacks((), 3)
    with pytest.raises(UsageError, match="observer=print"), shown(False, "print"):
        pass
