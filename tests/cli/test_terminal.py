"""Terminal output is short, and names are printed as text."""

import io
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import FreezePlan, StageRow
from headstart.backbones.frozen import FrozenBackbone
from headstart.cli.tables import show_evaluation, show_findings, show_predictions
from headstart.cli.terminal import Terminal, open_in_browser
from headstart.data.checks.images import Finding
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import PreparedData
from headstart.evaluation.classification import evaluate_probabilities
from headstart.evaluation.summary import summarise
from headstart.features.engines import EngineChoice
from headstart.methods.method import Outline
from headstart.metrics.confidence_intervals import Interval
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import Prediction
from headstart.selection.progress import FirstModel, NextStep
from headstart.training.interruption import StopRequested
from headstart.training.job import Epoch
from headstart.workflows.events import DataReady, EpochDone, Finished, Noted, Planned, Progressed

MANY = tuple(f"class [bold]{i}[/]" for i in range(200))


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100, force_terminal=False)


def text(console):
    return console.file.getvalue()


def findings(n):
    return tuple(
        Finding(kind="duplicate", severity="warning", message=f"[red]{i}", paths=("a", "b"))
        for i in range(n)
    )


def test_many_classes_and_findings_stay_short(console):
    samples = tuple(
        Sample(image=b"", target=name, split=split) for name in MANY for split in ("train", "test")
    )
    data = Dataset(samples=samples, classes=MANY)
    prepared = PreparedData(data=data, records=(), findings=findings(50))
    Terminal(console)(DataReady(prepared=prepared, seconds=1.0))
    shown = text(console)
    assert len(shown.splitlines()) <= 22
    assert "190 more" in shown
    assert "45 more findings" in shown
    assert "class [bold]0[/]" in shown  # markup in names is text


def test_nothing_found_is_said(console):
    show_findings(console, ())
    assert "no duplicates" in text(console)


def test_a_summary_of_many_classes_stays_short(console):
    task = ClassificationTask(classes=MANY)
    targets = np.arange(400) % 200
    probabilities = np.full((400, 200), 0.5 / 199)
    probabilities[np.arange(400), targets] = 0.5
    found = evaluate_probabilities(task, probabilities, targets, names=("x",) * 400)
    show_evaluation(console, found, summarise(found))
    assert len(text(console).splitlines()) <= 16
    assert "1.000 [0.990, 1.000]" in text(console)


def test_bars_are_for_terminals_only(console):
    terminal = Terminal(console)
    with terminal:
        terminal(Progressed(step="features", done=1, total=2))
    assert text(console) == ""
    watched = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Terminal(watched) as terminal:
        terminal(Progressed(step="features", done=1, total=2))
    assert "features" in text(watched)


def test_the_end_of_a_long_step_is_printed_on_a_pipe(console, monkeypatch):
    clock = iter([0.0, 0.0, 0.0, 3.0, 3.0, 3.5, 3.5])
    monkeypatch.setattr("headstart.cli.terminal.time.perf_counter", lambda: next(clock))
    terminal = Terminal(console)
    for step, done, total in (("loading", 0, 0), ("features", 1, 2), ("features", 2, 2)):
        terminal(Progressed(step=step, done=done, total=total))
    assert text(console) == "  features: 2 in 3.0 s\n"
    terminal(Progressed(step="short", done=1, total=1))
    assert "short" not in text(console)


def test_one_line_names_the_current_step_in_eighty_columns():
    watched = Console(file=io.StringIO(), width=80, force_terminal=True)
    step = "candidate 2 of 2: fine-tuning the last two resolutions (last:2), fold 1 of 5"
    with Terminal(watched) as terminal:
        terminal.progress("measuring the speed of this machine", 0, 0)
        terminal.progress(step, 1, 2000)
        watched.file.truncate(0)
        terminal._bars.refresh()
    assert step in text(watched)
    assert "measuring" not in text(watched)


def test_race_events_are_lines(console):
    score = Interval(value=0.84, low=0.8, high=0.87, method="test")
    terminal = Terminal(console)
    terminal(FirstModel(measure="accuracy", score=score, images=9, seconds=1.0))
    terminal(NextStep(names=("fine-tuning the last resolution (last:1)",), folds=5, seconds=40.0))
    terminal(StopRequested())
    shown = " ".join(text(console).split())
    assert "features: 0.84 [0.80, 0.87] (cross-validated on the training images), ready." in shown
    assert "Next: fine-tuning the last resolution (last:1), 5 folds, about 40 s." in shown
    assert "Stopping after this step; press Ctrl-C again to stop now." in shown


def test_the_report_is_opened_on_terminals_only(console, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    watched = Console(file=io.StringIO(), force_terminal=True)
    assert not open_in_browser(Path("run"), watched)  # not in tests
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.delenv("CI", raising=False)
    assert not open_in_browser(Path("run"), console)
    assert open_in_browser(Path("run/report.html"), watched)
    assert opened == [Path("run/report.html").resolve().as_uri()]
    monkeypatch.setenv("CI", "1")
    assert not open_in_browser(Path("run"), watched)


def test_predictions_name_the_image_and_the_label(console):
    one = Prediction(name="[b].jpg", label=("red", "round"), probability=0.9, probabilities={})
    none = Prediction(name="c.jpg", label=(), probability=0.1, probabilities={})
    show_predictions(console, [one, none], ("a", "b"))
    shown = text(console)
    assert "[b].jpg" in shown
    assert "red, round" in shown
    assert "(none)" in shown


def test_who_abstains_is_shown_beside_the_class(console):
    one = Prediction(name="b.jpg", label="red", probability=0.9, probabilities={}, abstains=True)
    two = Prediction(name="c.jpg", label="red", probability=0.99, probabilities={}, abstains=False)
    show_predictions(console, [one, two], ("red",))
    lines = text(console).splitlines()
    assert lines[0].split() == ["image", "label", "probability", "abstains"]
    assert lines[1].split() == ["b.jpg", "red", "0.900", "yes"]
    assert lines[2].split() == ["c.jpg", "red", "0.990", "no"]


def test_findings_can_be_shown_in_full(console):
    show_findings(console, findings(30), limit=100, rest_in="all in findings.csv")
    assert text(console).count("warning:") == 10  # of one kind
    shown = " ".join(text(console).split())
    kind = findings(1)[0].kind
    assert f"… and 20 more findings (20 {kind}): all in findings.csv" in shown
    assert show_findings(console, findings(30)) == 25
    assert show_findings(console, findings(3)) == 0


@pytest.mark.parametrize(
    ("counts", "limit", "shown"),
    [
        ({"leak": 3}, 5, {"leak": 3}),
        ({"leak": 30}, 5, {"leak": 5}),
        ({"leak": 30}, 200, {"leak": 10}),
        ({"leak": 10}, 200, {"leak": 10}),
        ({"leak": 11}, 200, {"leak": 10}),
        ({"leak": 30, "duplicate": 2}, 200, {"leak": 10, "duplicate": 2}),
        ({"leak": 4, "duplicate": 4}, 5, {"leak": 4, "duplicate": 1}),
        ({"duplicate": 40, "near-duplicate": 40}, 200, {"duplicate": 10, "near-duplicate": 10}),
        ({"rare-class": 500}, 200, {"rare-class": 10}),
        ({}, 5, {}),
    ],
)
def test_at_most_ten_lines_of_one_kind(console, counts, limit, shown):
    every = [
        Finding(kind=kind, severity="warning", message=f"<{kind}>")
        for kind, n in counts.items()
        for _ in range(n)
    ]
    show_findings(console, every, limit=limit)
    lines = text(console)
    assert {kind: lines.count(f"<{kind}>") for kind in counts} == shown
    n_hidden = len(every) - sum(shown.values())
    assert (f"… and {n_hidden} more findings" in " ".join(lines.split())) == bool(n_hidden)


def test_an_unknown_event_is_no_crash(console):
    Terminal(console)(SimpleNamespace())
    assert text(console) == ""


def test_the_next_command_can_be_copied_into_a_shell(console):
    task = ClassificationTask(classes=("cat", "dog"))
    evaluation = evaluate_probabilities(
        task, np.eye(2).repeat(4, axis=0), np.arange(2).repeat(4), names=("a.png",) * 8
    )
    with Terminal(console) as terminal:
        terminal(
            Finished(folder=Path("my runs/it's"), evaluation=evaluation, summary=(), seconds={})
        )
    shown = text(console).splitlines()
    predict = next(line for line in shown if line.startswith("Predict"))
    assert shlex.split(predict)[1:] == ["headstart", "predict", "my runs/it's", "IMAGE"]
    assert shlex.split(shown[-1]) == ["Next:", "open", "my runs/it's/report.html"]


def epochs(scores):
    for number, score in enumerate(scores, start=1):
        best = 1 + scores.index(max(scores[:number]))
        yield EpochDone(epoch=epoch(number, score, best), n_epochs=len(scores))


def epoch(number, score, best):
    return Epoch(number=number, loss=0.5, score=score, held_out_loss=0.25, seconds=2.0, best=best)


def test_a_short_training_is_one_line_an_epoch(console):
    terminal = Terminal(console)
    for event in epochs([0.5, 0.75, 0.625]):
        terminal(event)
    assert text(console).splitlines() == [
        "  epoch 1/3  loss 0.500, validation 0.250  macro F1 0.500  2.0 s  * best",
        "  epoch 2/3  loss 0.500, validation 0.250  macro F1 0.750  2.0 s  * best",
        "  epoch 3/3  loss 0.500, validation 0.250  macro F1 0.625  2.0 s  best: 2",
    ]


def test_after_a_resume_the_first_epoch_is_not_the_best_for_being_the_first(console):
    Terminal(console)(EpochDone(epoch=epoch(2, 0.625, best=1), n_epochs=3))
    assert text(console).endswith("2.0 s  best: 1\n")


def test_a_long_training_stays_short_and_names_the_best(console):
    terminal = Terminal(console)
    for event in epochs([0.1 + 0.5 * (number == 333) for number in range(1, 501)]):
        terminal(event)
    shown = text(console).splitlines()
    assert len(shown) <= 21
    assert shown[-1].endswith("best: 333")
    assert "epoch 500/500" in shown[-1]


def stage(name, trainable=0, **options):
    return StageRow(stage=name, parameters=1200, trainable=trainable, **options)


def test_a_plan_is_a_table_of_stages(console):
    rows = (stage("stem"), stage("[b]", 1200, learning_rate=1e-4, from_epoch=3), stage("last"))
    outline = Outline(
        title="fine-tuning",
        trains="[i] and the head",
        plan=FreezePlan(rows=rows),
        cached="to stem",
        precision="fp32",
    )
    spec = resolve("torchvision/resnet18")
    Terminal(console)(
        Planned(
            outline=outline,
            backbone=FrozenBackbone(
                spec=spec, state={}, origin={"sha256": "0" * 64, "from": "here"}
            ),
            engine=EngineChoice(engine="bf16"),
            parameters=3600,
            to_compute=1,
            images=2,
            seconds=None,
            cache_bytes=10,
        )
    )
    shown = [line.split() for line in text(console).splitlines()]
    assert ["stem", "1,200", "0", "–", "frozen", "yes"] in shown
    assert ["[b]", "1,200", "1,200", "1.0e-04", "from", "epoch", "3", "frozen", "no"] in shown
    assert ["last", "1,200", "0", "–", "frozen", "no"] in shown  # what it sees moves
    assert ["cached", "to", "stem"] in shown
    assert ["engine", "features", "bf16;", "training", "fp32"] in shown
    assert "checked by hash" not in text(console)


def test_notes_and_what_was_kept_are_shown(console):
    evaluation = evaluate_probabilities(
        ClassificationTask(classes=("a", "b")), np.eye(2), np.arange(2), names=("x", "y")
    )
    Terminal(console)(Noted(text="Begun anew: [x]"))
    Terminal(console)(
        Finished(
            folder=Path("r"),
            evaluation=evaluation,
            summary=(),
            seconds={},
            notes=("Out of memory at step 3.",),
            forgetting=("Target +0.010.", "Source -0.020."),
        )
    )
    for words in ("Begun anew: [x]", "Out of memory", "Target +0.010", "Source -0.020"):
        assert words in text(console)


def test_a_finding_names_the_class_folders_of_its_images(console):
    paths = ("photos/train/cat/1.jpg", "photos/train/cat/2.jpg", "photos/train/dog/1.jpg")
    for pair in (paths[:2], paths[1:]):
        message = f"nearly the same image 2 times: {', '.join(pair)}"
        finding = Finding(kind="near-duplicate", severity="warning", message=message, paths=pair)
        show_findings(console, [finding])
        shown = " ".join(text(console).split())
        assert ", ".join(path.removeprefix("photos/train/") for path in pair) in shown
    assert "photos" not in shown
