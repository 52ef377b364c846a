"""Progress of a call from Python: in a terminal, in a notebook, and elsewhere."""

import io
import itertools
import re
import sys
import time
import types
from contextvars import ContextVar

import numpy as np
import pytest

import headstart
from headstart.cli.progress import (
    NOTEBOOK_LINES,
    NotebookDisplay,
    event_lines,
    is_notebook,
    show_progress,
)
from headstart.data.checks.images import Finding
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import PreparedData
from headstart.errors import UsageError
from headstart.selection.progress import NextStep
from headstart.training.job import Epoch
from headstart.workflows.events import DataReady, Decided, EpochDone, Noted, Progressed, shown

PROBE = headstart.Recipe(engine="fp32", device="cpu", method=headstart.LinearProbe(folds=2))
SCRIPT = "<script>alert('x')</script>\x1b[2J"


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self):
        return True


class Notebook:
    """What a kernel of Jupyter shows below a cell."""

    def __init__(self):
        self.contents = []

    def display(self, content, *, raw, display_id):
        assert raw
        assert display_id is True
        self.contents.append(content)
        return types.SimpleNamespace(update=self.update)

    def update(self, content, *, raw):
        assert raw
        self.contents.append(content)


@pytest.fixture
def terminal(monkeypatch):
    """Make standard error a terminal; called in the test, since pytest replaces it before."""

    def open_terminal():
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("TERM", "xterm")
        return sys.stderr

    return open_terminal


@pytest.fixture
def notebook(monkeypatch):
    found = Notebook()
    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.version_info = (9, 0)  # Matplotlib reads it
    part = types.ModuleType("IPython.display")
    part.display = found.display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", part)
    return found


def epoch(number):
    return EpochDone(
        epoch=Epoch(
            number=number,
            loss=0.5,
            held_out_loss=0.25,
            score=0.75,
            seconds=1.5,
            best=1,
        ),
        n_epochs=100,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with headstart.Cache(tmp_path_factory.mktemp("cache")) as found:
        yield found


def images():
    """Images of two colours, as arrays."""
    rng = np.random.default_rng(0)
    colours = {"red": (200, 40, 40), "blue": (40, 40, 200)}
    return [
        ((colour + rng.normal(0, 60, (32, 32, 3))).clip(0, 255).astype(np.uint8), name)
        for name, colour in colours.items()
        for _ in range(10)
    ]


def run_probe(folder, cache, **settings):
    return headstart.fit(images(), PROBE, out=folder / "run", cache=cache, **settings)


def test_a_script_without_a_terminal_prints_nothing(tmp_path, cache, capfd):
    run = run_probe(tmp_path, cache)
    headstart.evaluate(run.model, images(), cache=cache, allow_overlap=True)
    assert capfd.readouterr() == ("", "")


def test_progress_is_forced_with_true(tmp_path, cache, capfd):
    run_probe(tmp_path, cache, progress=True)
    shown_lines = capfd.readouterr()
    assert shown_lines.out == ""
    assert "Plan: linear probe" in shown_lines.err
    assert "Report: " in shown_lines.err


def test_a_terminal_shows_the_steps_on_standard_error(tmp_path, cache, terminal, capsys):
    screen = terminal()
    run_probe(tmp_path, cache)
    text = screen.getvalue()
    assert "fitting the model" in text
    assert "Test accuracy" in text
    assert capsys.readouterr().out == ""


def test_false_is_silent_in_a_terminal_and_in_a_notebook(tmp_path, cache, terminal, notebook):
    screen = terminal()
    run_probe(tmp_path, cache, progress=False)
    assert screen.getvalue() == ""
    assert notebook.contents == []


def test_a_notebook_shows_one_display_that_is_updated(tmp_path, cache, notebook, capfd):
    run = run_probe(tmp_path, cache)
    first, *_, last = notebook.contents
    assert "<progress" in first["text/html"]
    assert "<progress" not in last["text/html"]
    assert run.summary[0] in last["text/plain"]
    assert f"Report: {run.report}" in last["text/plain"]
    assert "Done after " in last["text/plain"].splitlines()[-1]
    assert capfd.readouterr() == ("", "")


def test_the_other_verbs_show_progress_in_a_notebook(tmp_path, cache, notebook):
    from headstart.workflows.compare import compare
    from headstart.workflows.comparison_recipe import ComparisonRecipe
    from headstart.workflows.plan import plan
    from headstart.workflows.rank import rank

    data, model = images(), run_probe(tmp_path, cache, progress=False).model
    assert notebook.contents == []
    trials = ComparisonRecipe(methods=("probe",), seeds=1, folds=0)
    calls = {
        "evaluating 20 images": lambda: model.evaluate(data, cache=cache, allow_overlap=True),
        "Data: ": lambda: plan(data, PROBE, cache=cache),
        "Note: ": lambda: rank(data, [PROBE.backbone], recipe=PROBE, cache=cache, measure=("knn",)),
        "training 1 of 1: ": lambda: compare(
            data, trials, recipe=PROBE, out=tmp_path / "compared", cache=cache
        ),
    }
    for words, call in calls.items():
        notebook.contents.clear()
        call()
        assert words in "".join(content["text/plain"] for content in notebook.contents)
        assert "Done after " in notebook.contents[-1]["text/plain"]


def test_an_observer_gets_the_events_beside_the_display(notebook):
    events = []
    with shown(None, events.append) as notify:
        notify(Noted(text="x"))
    assert events == [Noted(text="x")]
    assert "Note: x" in notebook.contents[-1]["text/plain"]


@pytest.mark.parametrize("value", ["yes", 1, 0, "", [True]])
def test_another_value_is_refused_by_name(value, tmp_path, cache):
    with pytest.raises(UsageError, match="`progress` must be True, False or None, got "):
        run_probe(tmp_path, cache, progress=value)
    assert not (tmp_path / "run").exists()


def test_without_standard_error_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with show_progress() as observer:
        assert observer is None


def test_ipython_in_a_terminal_is_no_notebook(monkeypatch):
    ipython = types.ModuleType("IPython")
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    for shell in (None, types.SimpleNamespace()):
        ipython.get_ipython = lambda shell=shell: shell
        assert not is_notebook()


def test_names_are_escaped(notebook):
    with show_progress() as observer:
        observer(Noted(text=SCRIPT))
        observer(Progressed(step=SCRIPT, done=1, total=2))
    for content in notebook.contents:
        assert "<script" not in content["text/html"]
        assert "\x1b" not in content["text/html"] + content["text/plain"]
    assert "&lt;script&gt;" in notebook.contents[-1]["text/html"]
    assert 'value="1" max="2"' in notebook.contents[1]["text/html"]


def test_terminal_escapes_are_shown(terminal):
    screen = terminal()
    with show_progress() as observer:
        observer(Noted(text=SCRIPT))
    assert "\\x1b[2J" in screen.getvalue()


def test_a_long_step_is_not_drawn_for_every_image(notebook):
    with show_progress() as observer:
        for done in range(5000):
            observer(Progressed(step="features", done=done, total=5000))
    assert 2 <= len(notebook.contents) < 100


def test_a_notebook_never_stands_still(notebook):
    """A step without an event for 3 s: its line moves, from a thread in the context of the cell."""
    cell = ContextVar("cell")
    cell.set("the cell")
    seen, update = [], notebook.update

    def note(content, *, raw):
        seen.append((time.monotonic(), cell.get("another")))
        update(content, raw=raw)

    notebook.update = note
    with show_progress() as observer:
        observer(Progressed(step="features", done=3, total=8))
        started_at = time.monotonic()
        time.sleep(3.5)
        ended_at = time.monotonic()
        observer(NextStep(names=("fine-tuning all",), seconds=9.0))
    times = [started_at, *(at for at, _ in seen if started_at < at < ended_at), ended_at]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 2
    assert {where for _, where in seen} == {"the cell"}
    texts = [content["text/plain"] for content in notebook.contents]
    assert texts[0] == "features: 3/8"
    assert any(re.fullmatch(r"features: 3/8, [23] s so far", text) for text in texts)
    assert texts[-2].endswith("fine-tuning all, about 9 s …")
    assert "so far" not in texts[-1]


def test_many_lines_stay_few(notebook):
    with show_progress() as observer:
        for number in range(1000):
            observer(Noted(text=str(number)))
    lines = notebook.contents[-1]["text/plain"].splitlines()
    assert len(lines) == NOTEBOOK_LINES + 1
    assert lines[0] == "… 961 lines before"


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyboardInterrupt, "Interrupted after "), (ValueError, "Stopped by an error after ")],
)
def test_the_last_line_tells_how_the_call_ended(notebook, error, words):
    def call():
        with show_progress() as observer:
            observer(Progressed(step="features", done=1, total=2))
            raise error

    with pytest.raises(error):
        call()
    assert notebook.contents[-1]["text/plain"].startswith(words)
    assert "<progress" not in notebook.contents[-1]["text/html"]


def test_only_some_epochs_of_a_long_training_have_a_line():
    lines = [line for number in range(1, 101) for line in event_lines(epoch(number))]
    assert len(lines) == 20
    assert lines[-1].startswith("epoch 100/100: loss 0.500, validation 0.250  macro F1 0.750")


def test_findings_stay_few_and_notes_are_left_out():
    def finding(severity):
        return Finding(kind="duplicate", severity=severity, message=severity * 2, paths=())

    samples = tuple(Sample(image=b"", target=name, split="train") for name in "ab")
    findings = tuple(finding("note") for _ in range(9)) + tuple(
        finding("warning") for _ in range(7)
    )
    prepared = PreparedData(
        data=Dataset(samples=samples, classes=("a", "b"), name="pets"),
        records=(),
        findings=(*findings, finding("error")),
    )
    first, *lines = event_lines(DataReady(prepared=prepared, seconds=1.0))
    assert first == "Data: pets, 2 images of 2 classes: 2 for training, 0 for the test."
    assert lines[:2] == ["error: errorerror", "warning: warningwarning"]
    assert lines[-1] == "… and 3 more findings"
    assert len(lines) == 6


def test_of_a_decision_the_choice_is_shown():
    record = {"why": ["Skipped: a.", "Chosen: linear probe."]}
    assert event_lines(Decided(record=record)) == ["Chosen: linear probe."]


def test_a_display_without_events_shows_only_the_time(notebook):
    with NotebookDisplay().running():
        pass
    assert notebook.contents[-1]["text/plain"].startswith("Done after ")
