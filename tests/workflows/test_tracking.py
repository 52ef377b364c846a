"""Tracked runs, read back with TensorBoard's own reader and a small MLflow."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import PreparedData
from headstart.errors import MissingExtraError, UnknownNameError, UsageError
from headstart.evaluation.classification import evaluate_probabilities
from headstart.features.engines import EngineChoice
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.method import Outline
from headstart.metrics.confidence_intervals import Interval
from headstart.models.tasks import ClassificationTask
from headstart.training.job import Epoch
from headstart.workflows import tracking
from headstart.workflows.events import DataReady, Decided, EpochDone, Finished, Noted, Planned
from headstart.workflows.recipe import Recipe
from headstart.workflows.tracking import Tracker, flat, tracked, tracker_names

FAKE = '''
"""As much of MLflow as Accelerate's tracker asks for; every call is one line of a file."""
import json
from types import SimpleNamespace

utils = SimpleNamespace(
    validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
)

def say(*call):
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps(call) + "\\n")

def get_tracking_uri(): return "URI"
def search_experiments(filter_string): return []
def create_experiment(name, **rest): return "1"
def start_run(run_name, **rest): say("start", run_name)
def log_params(values): say("params", values)
def log_metrics(values, step): say("metrics", values, step)
def set_tags(values): say("tags", values)
def end_run(status="FINISHED"): say("end", status)
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Install a small MLflow whose store has that address, work in an empty folder."""

    def install(uri="sqlite:///mlflow.db"):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "mlflow.py").write_text(FAKE.replace("URI", uri))
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.delitem(sys.modules, "mlflow", raising=False)
        monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
        monkeypatch.chdir(tmp_path)

    yield install
    sys.modules.pop("mlflow", None)
    os.environ.pop("MLFLOW_DISABLE_TELEMETRY", None)


def calls(folder):
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def events(folder):
    """Everything that a run tells, the folder complete at the end."""
    samples = tuple(
        Sample(image=b"", target=target, split=split)
        for target, split in [("a", "train"), ("b", "train"), ("a", "test")]
    )
    data = Dataset(samples=samples, classes=("a", "b"), name="pets")
    evaluation = evaluate_probabilities(
        ClassificationTask(classes=("a", "b")),
        np.full((3, 2), 0.5),
        np.array([0, 0, 1]),
        names=("a", "b", "c"),
    )
    unknown = Interval(value=0.5, low=np.nan, high=np.nan, method="bootstrap")
    evaluation = replace(evaluation, metrics={**evaluation.metrics, "map@50": unknown})
    first = Epoch(number=0, loss=None, score=0.5, held_out_loss=0.7, seconds=0.1, best=0)
    second = Epoch(number=1, loss=0.6, score=0.75, held_out_loss=0.625, seconds=2.0, best=1)
    yield DataReady(prepared=PreparedData(data=data, records=(), findings=()), seconds=0.5)
    yield Decided(record={}, backbone="resnet18", method=LinearProbe(seed=5))
    yield Planned(
        outline=Outline(title="linear probe", trains="a layer"),
        backbone=FrozenBackbone(spec=resolve("torchvision/resnet18"), state={}, origin={}),
        engine=EngineChoice(engine="bf16"),
        parameters=11,
        to_compute=2,
        images=3,
        seconds=None,
        cache_bytes=10,
    )
    yield Noted(text="Batches were halved.")
    yield EpochDone(epoch=first, n_epochs=2)
    yield EpochDone(epoch=second, n_epochs=2)
    folder.mkdir(parents=True)
    yield Finished(
        folder=folder,
        evaluation=evaluation,
        summary=("It is so.", "Or not."),
        seconds={"features": 1.5},
    )


def read(folder):
    """Scalars as (step, value) and texts of a folder of event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder)).Reload()
    scalars = {
        tag: [(point.step, round(point.value, 4)) for point in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
    texts = {
        tag: accumulator.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in accumulator.Tags()["tensors"]
    }
    return scalars, texts


def test_tensorboard_reads_back_what_the_run_told(tmp_path) -> None:
    folder, final = tmp_path / "runs" / "pets", tmp_path / "runs" / "pets-2"
    with Tracker(("tensorboard",), Recipe(seed=5), folder=folder) as tracker:
        for event in events(final):
            tracker(event)
    scalars, texts = read(final / "tensorboard")
    assert scalars["train/loss"] == [(1, 0.6)]  # the start has none
    assert scalars["held_out/macro F1"] == [(0, 0.5), (1, 0.75)]
    assert scalars["held_out/loss"] == [(0, 0.7), (1, 0.625)]
    assert scalars["seconds/features"] == [(0, 1.5)]
    bounds = [scalars[f"final/accuracy{end}"][0][1] for end in ("/low", "", "/high")]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[1] < bounds[2]
    assert "final/map@50" in scalars
    assert "final/map@50/low" not in scalars  # the data cannot tell
    assert texts["summary/text_summary"] == "It is so.\n\nOr not."
    assert texts["note/text_summary"] == "Batches were halved."
    assert texts["folder/text_summary"] == str(final)
    assert not folder.with_name("pets.tensorboard").exists()
    (settings_file,) = (final / "tensorboard").rglob("hparams.yml")
    settings = settings_file.read_text()
    assert "method.name: linear-probe" in settings  # which the recipe left open
    assert "seed: 5" in settings


def test_mlflow_is_told_parameters_numbers_and_texts(fake, tmp_path) -> None:
    fake()
    with Tracker(("mlflow",), Recipe(seed=5), folder=tmp_path / "pets") as tracker:
        for event in events(tmp_path / "pets"):
            tracker(event)
    recorded = calls(tmp_path)
    assert recorded[0] == ["start", "pets"]
    assert recorded[1][1]["method.name"] == "linear-probe"
    assert recorded[1][1]["seed"] == 5
    assert ["tags", {"note": "Batches were halved."}] in recorded
    numbers = [call for call in recorded if call[0] == "metrics"]
    assert numbers[1][1]["train/loss"] == 0.6
    assert numbers[1][2] == 1
    assert numbers[2][1]["final/map_50"] == 0.5  # MLflow allows no @ in names
    assert "final/accuracy/low" in numbers[2][1]
    assert recorded[-2][1]["summary"] == "It is so.\n\nOr not."
    assert recorded[-1] == ["end", "FINISHED"]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")]
)
def test_what_ends_a_run_closes_the_trackers(fake, tmp_path, error, status) -> None:
    fake()

    def run():
        with tracked("tensorboard,mlflow", "x", out=tmp_path / "pets") as tracker:
            for event in events(tmp_path / "pets"):
                tracker(event)
                if isinstance(event, EpochDone) and event.epoch.number == 1:
                    raise error

    with pytest.raises(error):
        run()
    assert calls(tmp_path)[-1] == ["end", status]
    scalars, _ = read(tmp_path / "pets.tensorboard")  # what was told until then
    assert scalars["train/loss"] == [(1, 0.6)]


def test_the_log_of_a_run_that_failed_is_not_written_into(tmp_path) -> None:
    (tmp_path / "pets.tensorboard").mkdir()
    tracker = Tracker(("tensorboard",), Recipe(), folder=tmp_path / "pets")
    for event in list(events(tmp_path / "pets"))[:3]:
        tracker(event)
    tracker.close()
    tracker.close()
    assert list((tmp_path / "pets.tensorboard").iterdir()) == []
    assert any((tmp_path / "pets.tensorboard-2").iterdir())


def test_accelerate_decides_no_device_for_the_training_that_follows(tmp_path) -> None:
    from accelerate.state import PartialState

    PartialState._reset_state()
    tracker = Tracker(("tensorboard",), Recipe(), folder=tmp_path / "pets")
    for event in events(tmp_path / "pets"):
        tracker(event)
        assert not PartialState._shared_state


def test_nothing_is_tracked_unless_asked(tmp_path, monkeypatch) -> None:
    forwarded = []
    with tracked("", "photos", out=tmp_path / "run", beside=forwarded.append) as observer:
        observer(Noted(text="x"))
    assert forwarded == [Noted(text="x")]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tracking, "is_main", lambda: False)  # nor by any process but the first
    with tracked(
        "tensorboard", "photos", out=tmp_path / "run", beside=forwarded.append
    ) as observer:
        for event in events(tmp_path / "run"):
            observer(event)
    assert len(forwarded) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_missing_package_is_said_before_anything_runs(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'headstart\[track\]'"):
        Tracker(("tensorboard",), Recipe(), folder=tmp_path / "run")
    with pytest.raises(MissingExtraError, match=r"pip install mlflow$"):
        Tracker(("mlflow",), Recipe(), folder=tmp_path / "run")


def test_names_are_checked() -> None:
    assert tracker_names("mlflow,mlflow") == ("mlflow",)
    with pytest.raises(UnknownNameError, match="Did you mean 'tensorboard'"):
        tracker_names("tensorbord")


def test_an_offline_run_tells_no_server(fake, tmp_path) -> None:
    fake("http://127.0.0.1:1")
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI"):
        Tracker(("mlflow",), Recipe(offline=True), folder=tmp_path / "run")
    Tracker(("mlflow",), Recipe(offline=False), folder=tmp_path / "run")  # it is the user's


def test_flat_leaves_nothing_out() -> None:
    nested = {"a": {"b": {"c": 1.5}}, "d": [1], "e": None, "f": True}
    assert flat(nested) == {"a.b.c": 1.5, "d": "[1]", "e": "null", "f": True}


def test_the_command_tracks_and_opens_no_socket(tmp_path, monkeypatch) -> None:
    from headstart.cli import app as cli

    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(sys, "argv", ["headstart"])
    monkeypatch.chdir(tmp_path)
    write = ["demo", "images", "--name", "textures"]
    cli.app(write, standalone_mode=False)
    for path in sorted((tmp_path / "images").rglob("*.png")):
        if int("".join(filter(str.isdigit, path.stem)) or 0) % 7:
            path.unlink()
    words = ["fit", "images", "--offline", "--track", "tensorboard", "--out", "run", "--json"]
    cli.app([*words, "--method", "linear-probe", "--engine", "fp32"], standalone_mode=False)
    scalars, texts = read(tmp_path / "run" / "tensorboard")
    assert "summary/text_summary" in texts
    assert "final/accuracy" in scalars
    assert "seconds/features" in scalars
    assert (tmp_path / "run" / "log.jsonl").is_file()


def test_tracking_loads_neither_torch_nor_tensorboard_until_asked() -> None:
    code = (
        "import sys, headstart.workflows.tracking; "
        "print([m for m in ('torch', 'tensorboard', 'mlflow', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
