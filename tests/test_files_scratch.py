"""Left-overs of killed processes: the next run removes them, and nothing else."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from headstart.cache import Cache, open_cache
from headstart.files import (
    SCRATCH_LOCK,
    SCRATCH_PREFIX,
    lock_file,
    publish_scratch,
    scratch_folder,
    sweep_parts,
    write_whole,
)
from headstart.models.prediction_files import atomic_folder
from headstart.workflows.run_folder import locked, temporary_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is swept on Windows")

WORK = """
import os, sys, tempfile, time
from pathlib import Path
target = Path(sys.argv[1])
tempfile.tempdir = str(target.parent)
if sys.argv[2] == "run":
    from headstart.workflows.run_folder import temporary_folder as context
elif sys.argv[2] == "images":
    from headstart.models.prediction_files import atomic_folder as context
else:
    from headstart.cache import open_cache
    context = lambda _: open_cache(no_cache=True)
with context(target) as place:
    folder = getattr(place, "folder", place)
    (folder / "deep").mkdir()
    (folder / "deep" / "model.bin").write_bytes(b"0" * 1000)
    os.symlink(target.parent / "mine", folder / "link")
    print(folder.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start():
    """Start a process that works in a hidden folder beside a target; all are killed at the end."""
    processes = []

    def start(target, kind):
        command = [sys.executable, "-c", textwrap.dedent(WORK), str(target), kind]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, target.parent / process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def kill(process):
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_next_run_removes_what_killed_runs_left_and_nothing_else(tmp_path, start):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("mine")
    for name in (".headstart-notes", ".photos-abcdefgh", "headstart-photos", ".headstart-new-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "note.txt").write_text("mine")
    (tmp_path / ".headstart-file").write_text("mine")
    (tmp_path / ".headstart-link").symlink_to(tmp_path / "mine")
    before = names(tmp_path)
    live, its_folder = start(tmp_path / "photos", "run")
    dead = [start(tmp_path / name, kind) for name, kind in (("photos", "run"), ("out", "images"))]
    for process, _ in dead:
        kill(process)
    left = [folder.name for _, folder in dead]
    assert names(tmp_path) == sorted([*before, *left, its_folder.name])
    assert all((tmp_path / name / "deep" / "model.bin").is_file() for name in left)
    with temporary_folder(tmp_path / "another") as folder:
        assert names(tmp_path) == sorted([*before, its_folder.name, folder.name])
    assert (its_folder / "deep" / "model.bin").is_file()
    assert (tmp_path / "mine" / "photo.jpg").read_text() == "mine"  # the link was not followed
    kill(live)
    with atomic_folder(tmp_path / "drawn"):
        assert not its_folder.exists()
    assert names(tmp_path) == sorted([*before, "drawn"])


def test_a_temporary_cache_of_a_killed_run_is_removed(tmp_path, monkeypatch, start):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process, folder = start(tmp_path / "x", "cache")
    (other := tmp_path / "headstart-batch-1").mkdir()  # it is kept for the user on purpose
    with open_cache(no_cache=True):
        assert folder.is_dir()
    kill(process)
    with open_cache(no_cache=True) as cache:
        assert names(tmp_path) == sorted([other.name, cache.folder.name])
    assert names(tmp_path) == [other.name]


def test_a_folder_is_locked_before_it_has_its_name(tmp_path):
    """A process that was killed before that left an empty folder, or one with a free lock."""
    for name, is_locked in (
        ("new-aaaaaaaa", False),
        ("new-bbbbbbbb", True),
        ("new-cccccccc", True),
    ):
        (tmp_path / f"{SCRATCH_PREFIX}{name}").mkdir()
        if is_locked:
            (tmp_path / f"{SCRATCH_PREFIX}{name}" / SCRATCH_LOCK).touch()
    handle = lock_file(tmp_path / f"{SCRATCH_PREFIX}new-cccccccc" / SCRATCH_LOCK)
    with scratch_folder(tmp_path):
        assert len(names(tmp_path)) == 4  # they may be of a process that just starts
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 7200,) * 2)
    with scratch_folder(tmp_path, "x") as folder:
        assert names(tmp_path) == sorted([f"{SCRATCH_PREFIX}new-cccccccc", folder.name])
    os.close(handle)


def test_a_finished_folder_keeps_nothing_of_the_work(tmp_path):
    with scratch_folder(tmp_path, "run") as folder:
        (folder / "model.json").write_text("{}")
        assert publish_scratch(folder, tmp_path / "run") == tmp_path / "run"
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["model.json"]
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755


def test_a_forked_process_does_not_remove_its_parents_folder(tmp_path):
    import warnings

    with scratch_folder(tmp_path) as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads
            pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        assert folder.is_dir()
    with scratch_folder(tmp_path):
        pass
    assert names(tmp_path) == []


def test_what_a_failed_run_has_written_is_removed(tmp_path):
    def fail():
        with temporary_folder(tmp_path / "run") as folder:
            (folder / "a" / "b").mkdir(parents=True)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert names(tmp_path) == []


def test_parts_of_killed_writes_are_removed_and_those_of_live_ones_stay(tmp_path):
    digits = "0123456789abcdef"
    dead, live = tmp_path / f".race.json.{digits[:12]}.part", tmp_path / f".w.pth.{digits * 2}.part"
    mine = [tmp_path / name for name in (".part", "a.part", ".notes.part", ".a.0123.part")]
    for path in (dead, live, *mine):
        path.write_text("mine")
    (link := tmp_path / f".l.{digits}.part").symlink_to(mine[0])
    handle = lock_file(live)
    sweep_parts(tmp_path, least_age=60)
    assert len(names(tmp_path)) == 7
    with locked(tmp_path):
        assert not dead.exists()
    assert names(tmp_path) == sorted(path.name for path in (live, link, *mine))
    os.close(handle)
    sweep_parts(tmp_path)
    assert not live.exists()
    write_whole(tmp_path / "a.txt", "a")
    assert "a.txt" in names(tmp_path)


def test_a_cache_that_cannot_be_written_keeps_its_folder_until_it_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("headstart.cache._is_writable", lambda path: "locked" not in path.parts)
    cache = Cache(tmp_path / "locked")
    cache.put_many({b"0" * 32: b"value"}, kind="scan")
    assert cache.get_many([b"0" * 32]) == {b"0" * 32: b"value"}
    assert [name for name in names(tmp_path) if name.startswith("headstart-")]
    cache.close()
    assert [path for path in tmp_path.iterdir() if path.name != "locked"] == []
    assert isinstance(cache.folder, Path)


def test_a_young_empty_folder_for_temporary_files_stays(tmp_path, monkeypatch):
    """Another process may have just made it, and be about to write into it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    young, old = tmp_path / "headstart-tests-ab12cd34", tmp_path / "headstart-tests-ef56gh78"
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    with scratch_folder():
        pass
    assert young.is_dir()
    assert not old.exists()
