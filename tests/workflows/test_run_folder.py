"""Two trainings never share checkpoints."""

import os
import platform
import subprocess
import sys

import pytest

from headstart.errors import UsageError
from headstart.workflows.run_folder import LOCK, locked


@pytest.fixture
def other():
    """Another process, alive."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def make_lock(folder, pid, host=None):
    folder.mkdir()
    (folder / LOCK).write_text(f"{pid} {host or platform.node()}")
    return folder


def test_the_folder_is_ours_within_the_block_and_gone_behind_it(tmp_path):
    folder = tmp_path / "deep" / "run.partial"
    with locked(folder):
        assert (folder / LOCK).read_text().split() == [str(os.getpid()), platform.node()]
    assert not folder.exists()


def test_what_else_is_in_the_folder_stays(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError((tmp_path / "checkpoint").write_text("mine"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_training_that_lives_is_named(tmp_path, other):
    folder = make_lock(tmp_path / "run.partial", other.pid)
    with (
        pytest.raises(UsageError, match=rf"Process {other.pid} on .*another folder with --out"),
        locked(folder),
    ):
        pass
    assert (folder / LOCK).exists()


def test_a_dead_one_is_taken_over(tmp_path, other):
    other.kill()
    other.wait()
    folder = make_lock(tmp_path / "run.partial", other.pid)
    with locked(folder):
        assert (folder / LOCK).read_text().startswith(f"{os.getpid()} ")


def test_of_another_machine_nothing_is_known(tmp_path, other):
    other.kill()
    other.wait()
    folder = make_lock(tmp_path / "run.partial", other.pid, "elsewhere")
    with pytest.raises(UsageError, match=r"on elsewhere.*delete"), locked(folder):
        pass


def test_a_lock_that_was_cut_short_is_taken_over(tmp_path):
    (tmp_path / LOCK).write_text("")
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text()
