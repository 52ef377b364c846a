"""`python -m headstart` is `headstart`."""

import importlib
import subprocess
import sys


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "headstart", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_module_is_the_command():
    done = run("--help")
    assert done.returncode == 0
    assert "fit" in done.stdout


def test_its_exit_code_is_the_commands():
    done = run("fit", "a-folder-that-is-not-there")
    assert done.returncode == 2
    assert done.stderr.startswith("headstart: 'a-folder-that-is-not-there' does not exist.")


def test_importing_it_runs_nothing(monkeypatch):
    """With words that would end the process if they were read."""
    monkeypatch.setattr(sys, "argv", ["headstart", "--not-an-option"])
    monkeypatch.delitem(sys.modules, "headstart.__main__", raising=False)
    module = importlib.import_module("headstart.__main__")
    assert module.__name__ == "headstart.__main__"
