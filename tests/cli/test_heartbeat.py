"""Nothing stands still: a real fit with a slow stage, on a terminal and on a pipe."""

import itertools
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from headstart.cli import terminal
from headstart.cli.heartbeat import Heartbeat

pty = pytest.importorskip("pty")  # not on Windows

DELAY = 7.0
SLOW_FIT = f"""
import sys, time
import headstart.cli.terminal as terminal
import headstart.workflows.fit as fit

terminal.PIPE_SECONDS = 2.0
evaluate = fit._evaluate

def slow(*arguments):
    print("the delay begins", flush=True)
    time.sleep({DELAY})
    print("the delay ends", flush=True)
    return evaluate(*arguments)

fit._evaluate = slow
from headstart.cli.app import main
main()
"""


def read_output(folder: Path, *, on_terminal: bool) -> list[tuple[float, str]]:
    """Run a fit, and return its output in pieces, with the time of each."""
    read, write = pty.openpty() if on_terminal else os.pipe()
    words = ["fit", "demo:symbols", "--budget", "0", "--engine", "fp32", "--out", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_FIT, *words], stdout=write, stderr=write, close_fds=True
    )
    os.close(write)
    pieces = []
    while True:
        try:
            piece = os.read(read, 65536)
        except OSError:  # the end of a pseudo-terminal
            break
        if not piece:
            break
        pieces.append((time.perf_counter(), piece.decode(errors="replace")))
    os.close(read)
    assert process.wait() == 0, "".join(text for _, text in pieces)[-2000:]
    return pieces


def longest_gap(pieces: list[tuple[float, str]], begin: str = "", end: str = "") -> float:
    """Longest time without output, between two texts."""
    texts = [text for _, text in pieces]
    first = next((i for i, text in enumerate(texts) if begin in text), 0)
    last = next((i for i, text in enumerate(texts) if end and end in text), len(texts) - 1)
    times = [at for at, _ in pieces[first : last + 1]]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def test_the_times_are_those_of_the_documentation() -> None:
    assert terminal.IDLE_SECONDS < 2
    assert terminal.PIPE_SECONDS == 10
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert "every 10 s" in page
    assert "2 s" in page


def test_a_terminal_never_stands_still(tmp_path: Path) -> None:
    pieces = read_output(tmp_path / "run", on_terminal=True)
    assert longest_gap(pieces, "the delay begins", "the delay ends") < 2
    assert longest_gap(pieces) < 5  # imports hold the interpreter, longest on a busy machine


def test_a_pipe_gets_a_line_at_regular_times(tmp_path: Path) -> None:
    pieces = read_output(tmp_path / "run", on_terminal=False)
    assert longest_gap(pieces, "the delay begins", "the delay ends") < 2 * 2
    text = "".join(text for _, text in pieces)
    during = text.split("the delay begins")[1].split("the delay ends")[0]
    lines = [line for line in during.splitlines() if line.strip()]
    assert len(lines) >= 2
    assert all(re.fullmatch(r"  \S.*: \d+ s so far", line) for line in lines), lines
    assert "\x1b" not in text


def test_the_thread_ends_with_the_block_and_with_an_error() -> None:
    def running() -> bool:
        return "headstart progress" in {thread.name for thread in threading.enumerate()}

    def fail() -> None:
        with terminal.Terminal(Console()):
            assert running()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not running()


def test_no_call_comes_after_the_stop() -> None:
    beats: list[int] = []
    heartbeat = Heartbeat(lambda: beats.append(1), seconds=0.01)
    heartbeat.start()
    time.sleep(0.1)
    heartbeat.stop()
    n_beats = len(beats)
    assert n_beats
    time.sleep(0.1)
    assert len(beats) == n_beats
