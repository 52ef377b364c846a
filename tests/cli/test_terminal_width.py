"""Every kind of event with long values: at most 80 columns, and no word is broken."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cli.terminal import Terminal
from headstart.data.checks.images import Finding
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import PreparedData
from headstart.evaluation.classification import evaluate_probabilities
from headstart.features.engines import EngineChoice
from headstart.methods.method import Outline
from headstart.metrics.confidence_intervals import Interval
from headstart.models.tasks import ClassificationTask
from headstart.selection.progress import FirstModel, NextStep
from headstart.training.interruption import StopRequested
from headstart.training.job import Epoch
from headstart.workflows.events import (
    DataReady,
    Decided,
    EpochDone,
    Finished,
    Noted,
    Planned,
    Progressed,
)

CLASSES = tuple(f"a class with a rather long name {number}" for number in range(12))
PATH = (
    "/data/a/folder/with/a/long/path/that/is/one/word/and/longer/than/eighty/columns/images/1.png"
)
SCORE = Interval(value=0.98765, low=0.97654, high=0.99876, method="wilson")
SENTENCE = (
    "Skipped: fine-tuning all stages (needs about 14 min; 40 s of the 2 min budget left). Try "
    "`--budget 15m`, or look at `headstart compare`, which tests them on the same images."
)


def epoch(number, n_epochs, *, best, loss=12.3456, measure="macro F1"):
    done = Epoch(
        number=number,
        loss=loss,
        score=0.98765,
        held_out_loss=loss or 1.0,
        seconds=123.45,
        best=best,
    )
    return EpochDone(epoch=done, n_epochs=n_epochs, measure=measure)


def data():
    parts = ("train", "val", "test")
    samples = tuple(Sample(image=b"", target=c, split=p) for c in CLASSES for p in parts)
    notes = (f"Read {PATH} with a separator that was found in the first line of the table.",)
    found = Dataset(samples=samples, classes=CLASSES, name="a-name-" * 6, notes=notes)
    message = f"The image {PATH} has the same pixels as 17 other images of the test part."
    finding = Finding(kind="duplicate", severity="warning", message=message, paths=(PATH,))
    return DataReady(prepared=PreparedData(data=found, records=(), findings=(finding,)), seconds=9)


def decided():
    value = {"value": 0.98765, "low": 0.97654, "high": 0.99876, "method": "x", "level": 0.95}
    row = {"score": value, "gain": value, "images": 12_345, "seconds": 1234.5, "estimated": 99.0}
    names = ("linear probe at layer3 on embedded/efficientnet_lite0", "fine-tuning all stages")
    rows = [{**row, "name": name, "state": "promoted", "note": SENTENCE} for name in names]
    record = {"measure": "mean average precision", "images": 54_321, "folds": 5, "seconds": 1234.5}
    record |= {"budget": 1200.0, "estimated": 999.9, "measured": 1.0, "why": [SENTENCE] * 3}
    return Decided(record={**record, "rows": rows, "probing": 9.0, "stopped": False}, backbone="b")


def planned():
    spec = resolve("embedded/efficientnet_lite0")
    origin = {"sha256": "0" * 64, "from": PATH}
    return Planned(
        outline=Outline(
            title="fine-tuning the last two resolutions of the backbone, with a new head",
            trains="stage6, stage7, conv_head and the head with 1,280 inputs and 12 outputs",
            cached="activations up to stage5, 1,234.5 MB on disk, for 20 epochs and two views",
            precision="bf16",
        ),
        backbone=FrozenBackbone(spec=spec, state={}, origin=origin),
        engine=EngineChoice(engine="bf16"),
        parameters=123_456_789,
        to_compute=123_456,
        images=1_234_567,
        seconds=12_345.6,
        cache_bytes=12_345_678_901,
    )


def finished():
    probabilities = np.full((24, 12), 0.01)
    probabilities[np.arange(24), (np.arange(24) + np.arange(24) // 12) % 12] = 0.89
    evaluation = evaluate_probabilities(
        ClassificationTask(classes=CLASSES), probabilities, np.arange(24) % 12, names=(PATH,) * 24
    )
    return Finished(
        folder=Path("runs/photos"),
        evaluation=evaluation,
        summary=(SENTENCE, SENTENCE),
        seconds={"scan and checks": 1234.5, "race": 2345.6, "backbone and engine": 3456.7},
        notes=(SENTENCE,),
        forgetting=(SENTENCE,),
    )


EVENTS = {
    "data": data(),
    "first model": FirstModel(
        measure="mean average precision", score=SCORE, images=123_456, seconds=1234.5
    ),
    "next": NextStep(
        names=("fine-tuning the last two resolutions (last:2)", "fine-tuning all stages"),
        folds=5,
        seconds=12_345.6,
    ),
    "stop": StopRequested(),
    "decision": decided(),
    "plan": planned(),
    "epoch": epoch(10, 20, best=10),
    "epoch that is not the best": epoch(100, 200, best=99),
    "start": epoch(0, 20, best=0, loss=None),
    "long epoch": epoch(1000, 1000, best=999, measure="mean average precision"),
    "note": Noted(text=f"{SENTENCE} The file is {PATH}."),
    "long step": Progressed(step="candidate 2 of 2: " + SENTENCE, done=3, total=3),
    "finished": finished(),
}
WITH_TABLES = {"data", "decision", "finished"}


def rendered(event, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    Terminal(console, "verbose")(event)
    return console.file.getvalue()


@pytest.mark.parametrize("name", EVENTS)
def test_no_line_is_longer_than_eighty_columns(name):
    for line in rendered(EVENTS[name], 80).splitlines():
        words = line.split()
        is_one_word = max(map(len, words), default=0) > 60  # a path stays whole
        assert len(line) <= 80 or is_one_word, line


@pytest.mark.parametrize("name", EVENTS)
def test_no_word_is_broken(name):
    narrow, wide = (rendered(EVENTS[name], width).split() for width in (80, 400))
    if name in WITH_TABLES:  # their cells wrap side by side
        assert set(narrow) <= set(wide) | {word for line in wide for word in line.split()}
    else:
        assert narrow == wide


def test_an_epoch_of_three_digits_is_one_line():
    for event in (epoch(10, 20, best=10), epoch(100, 200, best=99, loss=1.25)):
        assert len(rendered(event, 80).splitlines()) == 1
