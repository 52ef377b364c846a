"""A kill, a failed call or a signal at any call leaves the old content or the new one."""

import errno
import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.cache import Cache, key
from headstart.data.dataset import Sample
from headstart.files import write_whole
from headstart.metrics.confidence_intervals import Interval
from headstart.models.inference import Segmentation
from headstart.models.prediction_files import write_predictions
from headstart.models.writing import DESCRIPTION, TENSORS, fitting_tensors, replace_model
from headstart.training import checkpoint
from headstart.workflows import compare, compare_files
from headstart.workflows.run_folder import (
    RACE,
    delete_checkpoint,
    locked,
    publish_folder,
    temporary_folder,
)

FAILURES = ("ENOSPC", "EROFS", "EACCES", "EIO", "EMFILE")
N_CALLS = 150
"""More than any action has."""


def model_content(seed):
    tensors = f"tensors of {seed}".encode() * 100
    digest = hashlib.sha256(tensors).hexdigest()
    return tensors, json.dumps({"seed": seed, "files": {TENSORS: digest}}).encode()


def save(folder, seed):
    replace_model(folder, *model_content(seed))


def saved(folder):
    """The seed of the whole model in the folder; it fails if the model is not whole."""
    if not (folder / DESCRIPTION).exists():
        return None
    description = json.loads((folder / DESCRIPTION).read_bytes())
    tensors = fitting_tensors(folder).read_bytes()
    assert hashlib.sha256(tensors).hexdigest() == description["files"][TENSORS]
    return description["seed"]


def write_checkpoint(folder, seed):
    tensors = {"w": torch.full((5000,), float(seed))}
    state = checkpoint.Checkpoint(identity={}, epoch=seed, step=0, tensors=tensors)
    checkpoint.write(folder, state)


def read_checkpoint(folder):
    found = checkpoint.read(folder, identity={})
    assert found is None or bool((found.tensors["w"] == found.epoch).all())
    return None if found is None else found.epoch


def write_race(folder, seed):
    with locked(folder):
        write_whole(folder / RACE, json.dumps({"seed": seed, "record": "x" * 5000}))


def read_race(folder):
    path = folder / RACE
    return json.loads(path.read_text())["seed"] if path.exists() else None


RESULT = compare.TrainingResult(
    backbone="b",
    method="probe",
    seed=0,
    fraction=1.0,
    images=10,
    tested=5,
    score=Interval(value=0.5, low=0.4, high=0.6, method="wilson"),
    seconds=1.0,
)


def append_result(folder, seed):
    path = folder / compare.RESULTS_FILE
    results = dict(compare_files.read_results(path))
    for number in range(seed + 1):
        if str(number) not in results:
            compare_files.append_result(path, str(number), replace(RESULT, seed=number))


def read_results(folder):
    results = dict(compare_files.read_results(folder / compare.RESULTS_FILE))
    assert [result.seed for result in results.values()] == list(range(len(results)))
    return len(results) - 1 if results else None


def publish(folder, seed):
    """Write a run's folder and give it its name; an older run is never changed."""
    for number in range(len([path for path in folder.iterdir() if path.name[0] != "."]), seed + 1):
        with temporary_folder(folder / "run") as scratch:
            for name in "abc":
                write_whole(scratch / name, f"{number}" * 1000)
            publish_folder(scratch, folder / "run")


def published(folder):
    runs = [path for path in folder.glob("run*") if not path.name.endswith(".partial")]
    for run in runs:
        whole = sorted(path.name for path in run.iterdir() if path.name != ".headstart-scratch")
        assert whole == ["a", "b", "c"]
        assert len({(run / name).read_bytes() for name in "abc"}) == 1
    return len(runs) - 1 if runs else None


def predict(folder, seed):
    """Write predictions of masks into new folders, as ``predict --out``."""
    for number in range(seed + 1):
        if not (folder / f"out-{number}").exists():
            mask = Segmentation(name="a.png", mask=np.full((4, 4), number, np.uint8))
            sample = Sample(image=np.zeros((4, 4, 3), np.uint8), target=None)
            write_predictions(folder / f"out-{number}", "masks", [(sample, mask)], ("a", "b", "c"))


def predicted(folder):
    found = sorted(path for path in folder.glob("out-*"))
    for path in found:
        whole = [p for p in path.rglob("*") if p.is_file() and p.name != ".headstart-scratch"]
        assert sorted(p.suffix for p in whole) == [".png", ".txt"]
    return len(found) - 1 if found else None


def fill_cache(folder, seed):
    with Cache(folder) as cache:
        cache.put_many({key(seed, i): f"{seed}".encode() * 500 for i in range(20)}, kind="scan")


def cached(folder):
    if not (folder / "cache-v1.sqlite").exists():
        return None
    with Cache(folder) as cache:
        assert cache.notes == ()
        counts = []
        for seed in (0, 1, 2):
            values = cache.get_many([key(seed, i) for i in range(20)])
            assert set(values.values()) <= {f"{seed}".encode() * 500}
            counts.append(len(values))
        assert set(counts) <= {0, 20}
        return max((seed for seed in (0, 1, 2) if counts[seed]), default=None)


def claim(folder, seed):
    """Lock the folder of a training, write its checkpoint, and delete that of the one before."""
    with locked(folder / "run.partial"):
        write_checkpoint(folder / "run.partial", seed)
        write_whole(folder / "run.partial" / "done", str(seed))
        delete_checkpoint(folder / "run.partial")


def claimed(folder):
    read_checkpoint(folder / "run.partial")
    path = folder / "run.partial" / "done"
    return int(path.read_text()) if path.exists() else None


@dataclass(frozen=True)
class Action:
    """A write with a number, the number that a folder holds, and the fewest calls it can have."""

    write: Any
    read: Any
    least_calls: int


ACTIONS = {
    "save": Action(save, saved, 9),
    "checkpoint": Action(write_checkpoint, read_checkpoint, 5),
    "race.json": Action(write_race, read_race, 5),
    "trainings.jsonl": Action(append_result, read_results, 2),
    "run folder": Action(publish, published, 10),
    "predictions": Action(predict, predicted, 8),
    "cache": Action(fill_cache, cached, 2),
    "claim": Action(claim, claimed, 10),
}


@pytest.fixture(params=ACTIONS)
def action(request):
    """An action that has been run once, so that everything that it imports is loaded."""
    action = ACTIONS[request.param]
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0, 1, 2):
            action.write(Path(folder), seed)
            assert action.read(Path(folder)) == seed
    return action


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def prepared(action, folder):
    """Write number 0 in a new folder; return the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    action.write(folder, 0)
    assert action.read(folder) == 0
    return folder


def require_next_write(action, folder, expected):
    """The next write works on what a fault left, and leaves nothing but its own files."""
    for path in folder.glob(".headstart-new-*"):  # killed before it was locked: kept for an hour
        os.utime(path, (time.time() - 7200,) * 2)
    action.write(folder, 2)
    assert action.read(folder) == 2
    assert names(folder) == expected


def expected_names(action, folder):
    prepared(action, folder)
    for seed in (1, 2):
        action.write(folder, seed)
    return names(folder)


def kill_at(number):
    return lambda count: os._exit(9) if count == number else None


def test_a_killed_write_leaves_the_old_content_or_the_new_one(action, fork, counts, tmp_path):
    folder, expected = tmp_path / "kept", expected_names(action, tmp_path / "kept")
    found = []
    for number in range(1, N_CALLS):
        prepared(action, folder)
        code = fork(lambda: action.write(folder, 1), kill_at(number))
        assert code in {0, 9}
        found.append(action.read(folder))
        require_next_write(action, folder, expected)
        if code == 0:
            break
        counts["kills at a call"] += 1
    assert len(found) > action.least_calls
    assert found == sorted(found)  # first the old content, then the new one
    assert set(found) <= {0, 1}
    assert found[-1] == 1


def test_a_write_that_is_killed_again_and_again_goes_on(action, fork, counts, tmp_path):
    folder, expected = tmp_path / "kept", expected_names(action, tmp_path / "kept")
    prepared(action, folder)
    for number in range(1, N_CALLS):
        codes = [fork(lambda: action.write(folder, 1), kill_at(number)) for _ in range(3)]
        counts["kills at a call"] += codes.count(9)
        assert action.read(folder) in {0, 1}
        if 0 in codes:
            break
    require_next_write(action, folder, expected)


def test_the_first_write_that_is_killed_leaves_nothing_or_a_whole(action, fork, counts, tmp_path):
    for number in range(1, N_CALLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        code = fork(lambda folder=folder: action.write(folder, 1), kill_at(number))
        counts["kills at a call"] += code == 9
        assert action.read(folder) in {None, 0, 1}
        action.write(folder, 2)
        assert action.read(folder) == 2
        if code == 0:
            return
    raise AssertionError("more calls than N_CALLS")


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_call_is_reported_and_leaves_a_whole(action, name, fork, counts, tmp_path):
    failure, outcomes = getattr(errno, name), []
    folder, expected = tmp_path / "kept", expected_names(action, tmp_path / "kept")
    n_calls = number_of_calls(action, prepared(action, folder), fork)
    assert n_calls >= action.least_calls
    for number in range(1, n_calls + 2):

        def fail(count, number=number):
            if count == number:
                raise OSError(failure, os.strerror(failure))

        prepared(action, folder)
        outcomes.append(fork(lambda: action.write(folder, 1), fail))
        assert outcomes[-1] in {0, 1}, (number, outcomes)
        assert action.read(folder) in ({0, 1} if outcomes[-1] else {1}), number
        require_next_write(action, folder, expected)
        counts[f"failing calls, {name}"] += 1
    assert outcomes[-1] == 0


def number_of_calls(action, folder, fork):
    """Number of calls of a write that nothing disturbs, by trying."""
    read, write = os.pipe()

    def note(count):
        os.write(write, b".")

    assert fork(lambda: action.write(folder, 1), note) == 0
    os.close(write)
    with os.fdopen(read, "rb") as file:
        return len(file.read())


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_while_writing_leaves_a_whole(action, times, fork, counts, tmp_path):
    folder, expected = tmp_path / "kept", expected_names(action, tmp_path / "kept")
    for number in range(1, N_CALLS):

        def interrupt(count, number=number):
            if number <= count < number + times:
                os.kill(os.getpid(), signal.SIGINT)

        prepared(action, folder)
        code = fork(lambda: action.write(folder, 1), interrupt)
        assert code in {0, 3}, (number, code)
        assert action.read(folder) in {0, 1}
        require_next_write(action, folder, expected)
        counts[f"signals while writing, {times} in a row"] += 1
        if code == 0 and number > action.least_calls:
            return
    raise AssertionError("more calls than N_CALLS")


def test_a_signal_that_is_ignored_does_not_disturb_a_write(action, fork, counts, tmp_path):
    folder = prepared(action, tmp_path / "kept")

    def interrupt(count):
        os.kill(os.getpid(), signal.SIGINT)

    def write():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        action.write(folder, 1)

    assert fork(write, interrupt) == 0
    assert action.read(folder) == 1
    counts["signals that are ignored"] += 1


def test_without_hard_links_a_copy_is_made(fork, counts, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_a_killed_write_leaves_the_old_content_or_the_new_one(
        ACTIONS["save"], fork, counts, tmp_path
    )


@pytest.mark.parametrize("step", [1, 3, 10, 30, 100, 300, 1000])
def test_a_kill_within_sqlite_leaves_whole_batches(step, fork, counts, tmp_path):
    """SQLite's own calls have no audit events: its progress handler kills at the n-th step."""
    action = ACTIONS["cache"]
    action.write(tmp_path, 0)

    def write():
        with Cache(tmp_path) as cache:
            cache.put_many({key("first"): b"opened"}, kind="scan")
            cache._connection.set_progress_handler(lambda: os._exit(9), step)
            for number in range(50):
                values = {key(1, i): b"1" * 500 for i in range(20)}
                cache.put_many(values | {key("n", number): b"n"}, kind="scan")

    assert fork(write) == 9
    counts["kills within SQLite"] += 1
    assert action.read(tmp_path) in {0, 1}
    action.write(tmp_path, 2)
    assert action.read(tmp_path) == 2
