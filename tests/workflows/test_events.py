"""The log of a run: one valid line a step, on disk before the next step begins."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.checks.images import Finding
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import PreparedData
from headstart.evaluation.classification import evaluate_probabilities
from headstart.features.engines import EngineChoice
from headstart.methods.method import Outline
from headstart.models.tasks import ClassificationTask
from headstart.training.job import Epoch
from headstart.workflows.events import DataReady, EpochDone, Finished, JsonLog, Planned, Progressed


def data_ready():
    samples = tuple(
        Sample(image=b"", target=target, split=split)
        for target, split in [("ä", "train"), ("b", "train"), ("ä", "test")]
    )
    finding = Finding(
        kind="unreadable", severity="warning", message='line one\n"two" \udcff', paths=()
    )
    data = Dataset(samples=samples, classes=("ä", "b"), name="pets")
    return DataReady(prepared=PreparedData(data=data, records=(), findings=(finding,)), seconds=0.5)


def planned():
    return Planned(
        outline=Outline(title="linear probe", trains="a layer"),
        backbone=FrozenBackbone(spec=resolve("torchvision/resnet18"), state={}, origin={}),
        engine=EngineChoice(engine="bf16"),
        parameters=11,
        to_compute=2,
        images=3,
        seconds=None,
        cache_bytes=10,
    )


def finished():
    evaluation = evaluate_probabilities(
        ClassificationTask(classes=("ä", "b")),
        np.full((3, 2), 0.5),
        np.array([0, 0, 0]),
        names=("a", "b", "c"),
    )
    return Finished(
        folder=Path("run"),
        evaluation=evaluation,
        summary=("It is so.", "Or not."),
        seconds={"features": 1.5},
    )


def progressed(done):
    return Progressed(step="features", done=done, total=3)


def lines(path):
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_every_step_is_one_valid_line_readable_at_once(tmp_path):
    path = tmp_path / "log.jsonl"
    with JsonLog(path) as log:
        for n, event in enumerate([data_ready(), planned(), progressed(3), finished()], start=1):
            log(event)
            assert len(lines(path)) == n  # read while the log is open
    entries = lines(path)
    assert [line["event"] for line in entries] == ["data", "plan", "step", "finished"]
    times = [line.pop("seconds_since_start") for line in entries]
    assert times == sorted(times)
    assert times[0] >= 0
    assert entries == [
        {
            "event": "data",
            "name": "pets",
            "train": {"ä": 1, "b": 1},
            "held_out": {"ä": 1, "b": 0},
            "findings": ['line one\n"two" \udcff'],
        },
        {
            "event": "plan",
            "method": "linear probe",
            "backbone": "torchvision/resnet18",
            "engine": "bf16",
            "to_compute": 2,
            "images": 3,
        },
        {"event": "step", "step": "features", "images": 3},
        {
            "event": "finished",
            "summary": ["It is so.", "Or not."],
            "seconds": {"features": 1.5},
        },
    ]


def test_of_progress_only_the_end_is_kept(tmp_path):
    with JsonLog(tmp_path / "log.jsonl") as log:
        for done in (0, 1, 2):
            log(progressed(done))
        assert lines(tmp_path / "log.jsonl") == []
        log(progressed(3))
        log(replace(progressed(0), total=0))
    assert [line["images"] for line in lines(tmp_path / "log.jsonl")] == [3]


def test_a_failure_leaves_the_lines_before_it(tmp_path):
    path = tmp_path / "log.jsonl"

    def fail():
        with JsonLog(path) as log:
            log(planned())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [line["event"] for line in lines(path)] == ["plan"]


def test_closing_twice_does_no_harm_and_a_closed_log_says_so(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl")
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log(planned())


def test_a_score_that_is_no_number_is_null_in_the_log(tmp_path):
    epoch = Epoch(
        number=1, loss=float("nan"), score=0.5, held_out_loss=float("inf"), seconds=1.0, best=0
    )
    with JsonLog(tmp_path / "log.jsonl") as log:
        log(EpochDone(epoch=epoch, n_epochs=2))
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert (line["loss"], line["score"], line["held_out_loss"]) == (None, 0.5, None)
