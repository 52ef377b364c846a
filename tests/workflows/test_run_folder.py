"""Two trainings never share checkpoints."""

import os
import platform
import shutil
import subprocess
import sys
import textwrap

import pytest

from headstart.errors import DataError, SetupError, UsageError
from headstart.workflows import run_folder
from headstart.workflows.fit import fit
from headstart.workflows.run_folder import LOCK, locked, publish_folder, temporary_folder

HOLD = """
import sys, time
from pathlib import Path
from headstart.workflows.run_folder import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""
COMPETE = """
import os, sys, time
from pathlib import Path
from headstart.errors import UsageError
from headstart.workflows.run_folder import locked
folder, start, rounds = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
for number in range(rounds):
    time.sleep(max(0.0, start + number * 0.05 - time.time()))
    try:
        with locked(folder / str(number)):
            mark = os.open(folder / f"inside-{number}", os.O_CREAT | os.O_EXCL)  # alone inside
            time.sleep(0.01)
            os.close(mark)
            os.unlink(folder / f"inside-{number}")
    except FileExistsError:
        print("two inside", number)
    except UsageError:
        pass
"""


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def other(tmp_path):
    """Another process, which trains in run.partial."""
    process = start(HOLD, tmp_path / "run.partial")
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


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
    folder = tmp_path / "run.partial"
    with (
        pytest.raises(UsageError, match=rf"Process {other.pid} on .*another folder with --out"),
        locked(folder),
    ):
        pass
    assert (folder / LOCK).read_text().startswith(f"{other.pid} ")


def test_the_lock_of_a_killed_process_is_free(tmp_path, other):
    other.kill()
    other.wait()
    folder = tmp_path / "run.partial"
    assert (folder / LOCK).is_file()  # it could not clean up
    with locked(folder):
        assert (folder / LOCK).read_text().startswith(f"{os.getpid()} ")
    assert not folder.exists()


@pytest.mark.parametrize("text", ["", "1 here", f"{os.getppid()} {platform.node()}", "9 elsewhere"])
def test_the_text_of_a_file_that_nobody_locks_locks_nobody_out(tmp_path, text):
    """A process number is used again after a restart; only the system's lock counts."""
    (tmp_path / LOCK).write_text(text)
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"{os.getpid()} ")


def test_of_several_starters_one_is_inside(tmp_path):
    import time

    rounds = 40
    for number in range(rounds):  # each round begins with what a dead process left
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / LOCK).write_text("4194305 here")
    begin = time.time() + 1.5
    processes = [start(COMPETE, tmp_path, begin, rounds) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert "".join(outputs) == ""
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_a_full_disk_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    events = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_000_000))
    with pytest.raises(SetupError, match=r"Only 3 MB are free.*--out"):
        fit("demo:symbols", out=tmp_path / "run", observer=events.append)
    assert events == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 250, "x" * 256])
def test_an_output_that_cannot_be_named_is_refused_before_anything_is_computed(tmp_path, name):
    events = []
    with pytest.raises(SetupError, match=r"too long.*--out"):
        fit("demo:symbols", out=tmp_path / name, observer=events.append)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SetupError, match="--out"):
        fit("demo:symbols", out=tmp_path / "file" / "run", observer=events.append)
    assert events == []


def test_a_taken_name_is_reported_before_the_images_are_read(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").symlink_to(tmp_path / "nowhere")
    events = []
    with pytest.raises(DataError):
        fit(tmp_path / "run", out=tmp_path / "run", observer=events.append)
    taken, free = tmp_path / "run", tmp_path / "run-3"
    told = f"{taken} exists and is not changed. This run is written to {free}."
    assert [event.text for event in events] == [told]


def test_a_name_that_another_run_takes_at_the_last_moment_costs_no_run(tmp_path, monkeypatch):
    free = run_folder.free_folder

    def take_first(target):
        """Return the free name after another run has taken it."""
        if (found := free(target)).name == "run":
            found.mkdir()
            (found / "model.json").write_text("theirs")
        return found

    monkeypatch.setattr(run_folder, "free_folder", take_first)
    with temporary_folder(tmp_path / "run") as folder:
        (folder / "model.json").write_text("ours")
        published = publish_folder(folder, tmp_path / "run")
    assert published == tmp_path / "run-2"
    assert (published / "model.json").read_text() == "ours"
    assert (tmp_path / "run" / "model.json").read_text() == "theirs"


def test_a_folder_that_is_no_path_is_refused():
    with pytest.raises(UsageError, match=r"`out` must be a path, got 5. Pass out='runs/photos'"):
        run_folder.choose_folder(5, "photos")
