"""What a person sees stays short, plain and safe, whatever the data are called."""

import io
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from headstart.console import Terminal, show_evaluation, show_findings, show_predictions
from headstart.data.checks import Finding
from headstart.data.prepare import Prepared
from headstart.data.samples import Dataset, Sample
from headstart.evaluation import evaluate_probabilities
from headstart.events import DataReady, Finished, Progressed
from headstart.model import Prediction
from headstart.tasks.classification import Classification
from headstart.verdict import verdict

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
    prepared = Prepared(data=data, records=(), findings=findings(50))
    Terminal(console)(DataReady(prepared=prepared, seconds=1.0))
    shown = text(console)
    assert len(shown.splitlines()) <= 22
    assert "190 more" in shown
    assert "45 more findings" in shown
    assert "class [bold]0[/]" in shown  # markup in names is text


def test_nothing_found_is_said(console):
    show_findings(console, ())
    assert "no duplicates" in text(console)


def test_a_verdict_of_many_classes_stays_short(console):
    task = Classification(classes=MANY)
    targets = np.arange(400) % 200
    probabilities = np.full((400, 200), 0.5 / 199)
    probabilities[np.arange(400), targets] = 0.5
    found = evaluate_probabilities(task, probabilities, targets, names=("x",) * 400)
    show_evaluation(console, found, verdict(found))
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


def test_predictions_name_the_picture_and_the_label(console):
    one = Prediction(name="[b].jpg", label=("red", "round"), probability=0.9, probabilities={})
    none = Prediction(name="c.jpg", label=(), probability=0.1, probabilities={})
    show_predictions(console, [one, none])
    shown = text(console)
    assert "[b].jpg" in shown
    assert "red, round" in shown
    assert "(none)" in shown


def test_findings_can_be_shown_in_full(console):
    show_findings(console, findings(30), limit=100)
    assert text(console).count("warning:") == 30


def test_an_unknown_event_is_no_crash(console):
    Terminal(console)(SimpleNamespace())
    assert text(console) == ""


def test_the_next_command_can_be_copied_into_a_shell(console):
    task = Classification(classes=("cat", "dog"))
    evaluation = evaluate_probabilities(
        task, np.eye(2).repeat(4, axis=0), np.arange(2).repeat(4), names=("a.png",) * 8
    )
    with Terminal(console) as terminal:
        terminal(
            Finished(folder=Path("my runs/it's"), evaluation=evaluation, verdict=(), seconds={})
        )
    next_line = next(line for line in text(console).splitlines() if line.startswith("Next"))
    assert shlex.split(next_line)[1:] == ["headstart", "predict", "my runs/it's", "PICTURE"]
