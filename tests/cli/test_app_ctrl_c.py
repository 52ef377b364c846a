"""Ctrl-C in real processes: acknowledged at once, and the model so far is kept.

One process loads the libraries and forks a child for every case, which takes seconds in all.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

FORKS = """
import json, os, signal, sys, threading, time, traceback
from pathlib import Path
import headstart.workflows.compare, headstart.workflows.fit, headstart.workflows.rank
import torch, torchvision, accelerate, matplotlib.pyplot
from headstart.cli import app, terminal

torch.set_num_threads(1)
# A background job of a shell is born with both ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
show = terminal.Terminal.__call__

def child(folder, case):
    os.chdir(folder)
    os.environ["HEADSTART_CACHE"] = str(folder / "cache")
    for name in ("stdout", "stderr"):
        sys.__dict__[name].flush()
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), getattr(sys, name).fileno())
    for name in case["ignored"]:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    pressed = []

    def press():
        for name in case["keys"]:
            pressed.append(time.monotonic())
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(0.05)

    def call(self, event):
        show(self, event)
        name = f"{type(event).__name__}:{getattr(event, 'step', '')}"
        if name == "StopRequested:":
            Path("acknowledged").write_text(str(time.monotonic() - pressed[0]))
        if case["at"] in name and not pressed:
            pressed.append(time.monotonic())
            pressed.clear()
            keys = threading.Thread(target=press)
            keys.start()
            while not pressed:
                time.sleep(0.001)

    terminal.Terminal.__call__ = call
    sys.argv[1:] = case["arguments"]
    app.main()

for name, case in json.loads(sys.argv[1]).items():
    folder = Path(name)
    folder.mkdir()
    if (number := os.fork()) == 0:
        code = 1
        try:
            child(folder, case)
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    (folder / "code").write_text(str(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])))
"""

FIT = ("fit", "../photos", "--engine", "fp32", "--device", "cpu", "--out", "run")
PROBE = (*FIT, "--budget", "0")
TUNE = (*FIT, "--method", "finetune", "--epochs", "2", "--train-from", "last:1")
TUNE = (*TUNE, "--activation-cache", "off")
COMPARE = ("compare", "../photos", "--methods", "probe,finetune", "--seeds", "3", "--out", "run")
RANK = ("rank", "../photos", "--backbones", "embedded/efficientnet_lite0", "--device", "cpu")
CASES = {
    "reading": ("reading the weights", FIT),
    "features": (":features", FIT),
    "tune-features": (":features", TUNE),
    "first-model": ("FirstModel", PROBE),
    "training": (":training", TUNE),
    "evaluation": ("evaluating the model", TUNE),
    "diagnostics": ("looking for label errors", PROBE),
    "files": ("writing the report", (*FIT, "--method", "linear-probe", "--quiet")),
    "compare": ("Noted", COMPARE),
    "rank": (":features", RANK),
}
WITHOUT_MODEL = ["reading", "features", "tune-features"]
WITH_MODEL = ["first-model", "training", "evaluation", "diagnostics"]
OTHERS = {
    "twice": ("EpochDone", TUNE, ["SIGINT", "SIGINT"], []),
    "nohup": (":training", TUNE, ["SIGHUP", "SIGINT"], ["SIGHUP", "SIGINT"]),
    "hangup": (":features", FIT, ["SIGHUP"], []),
}
RUN_FILES = {
    "model.safetensors",
    "model.json",
    "report.html",
    "report.json",
    "predictions.csv",
    "card.md",
    "resolved.yaml",
    "log.jsonl",
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Run all cases; return the folder with one folder for each."""
    root = tmp_path_factory.mktemp("keys")
    rng = np.random.default_rng(0)
    for kind, bright in (("dark", 60), ("bright", 180)):
        (root / "photos" / kind).mkdir(parents=True)
        for number in range(14):
            pixels = rng.integers(bright - 60, bright + 60, (48, 48, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "photos" / kind / f"{number}.png")
    listed = {name: (*case, ["SIGINT"], []) for name, case in CASES.items()} | OTHERS
    fields = ("at", "arguments", "keys", "ignored")
    text = json.dumps({name: dict(zip(fields, case, strict=True)) for name, case in listed.items()})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", FORKS, text]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return root


def told(folder):
    texts = [(folder / name).read_text() for name in ("stdout", "stderr")]
    assert "Traceback" not in texts[1], texts[1]
    return " ".join(" ".join(texts).split())


def code(folder):
    return int((folder / "code").read_text())


def seconds_to_acknowledge(folder):
    return float((folder / "acknowledged").read_text())


@pytest.mark.parametrize("name", WITH_MODEL)
def test_ctrl_c_after_the_first_model_leaves_a_complete_run(cases, name):
    folder = cases / name
    assert code(folder) == 130
    assert "Stopping after this step; press Ctrl-C again to stop now." in told(folder)
    assert {path.name for path in (folder / "run").iterdir()} == RUN_FILES
    assert seconds_to_acknowledge(folder) < 2
    assert "STOPPED BY HAND" in json.loads((folder / "run/report.json").read_text())["summary"][0]


def test_ctrl_c_while_the_files_are_written_changes_nothing(cases):
    folder = cases / "files"
    assert code(folder) == 0
    assert "Stopping after this step" in told(folder)
    assert {path.name for path in (folder / "run").iterdir()} == RUN_FILES
    assert "STOPPED" not in (folder / "run" / "report.json").read_text()


@pytest.mark.parametrize("name", WITHOUT_MODEL)
def test_ctrl_c_before_the_first_model_says_that_there_is_none(cases, name):
    folder = cases / name
    assert code(folder) == 130
    assert "there is no model yet" in told(folder)
    assert not (folder / "run").exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".run")]
    assert seconds_to_acknowledge(folder) < 2


def test_a_second_ctrl_c_ends_the_run_and_leaves_no_half_model(cases):
    assert code(cases / "twice") == 130
    assert "Stopping after this step" in told(cases / "twice")
    assert not (cases / "twice" / "run").exists()


def test_a_signal_that_is_ignored_stays_ignored(cases):
    folder = cases / "nohup"
    assert code(folder) == 0
    assert "Stopp" not in told(folder)
    assert {path.name for path in (folder / "run").iterdir()} == RUN_FILES


def test_a_hangup_without_nohup_ends_the_run_cleanly(cases):
    assert code(cases / "hangup") == 130
    assert told(cases / "hangup").endswith("to continue a training or a comparison.")
    assert not (cases / "hangup" / "run").exists()


def test_ctrl_c_in_a_comparison_says_how_to_go_on(cases):
    assert code(cases / "compare") == 130
    assert "Finished trainings are kept; pass --resume to continue." in told(cases / "compare")
    assert not (cases / "compare" / "run").exists()


def test_ctrl_c_in_a_ranking_is_acknowledged(cases):
    assert code(cases / "rank") == 130
    assert "Stopping. Features in the cache are kept." in told(cases / "rank")
