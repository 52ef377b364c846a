"""A crash or a failed call at any moment of a save leaves a whole model."""

import errno
import hashlib
import json
import os
import sys
import warnings

import pytest

from headstart.models.writing import DESCRIPTION, TENSORS, fitting_tensors, replace_model

CALLS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate", "shutil.copyfile")
"""Audit events of the calls that change a folder; "open" also of those that only read."""
FAILURES = ("ENOSPC", "EROFS", "EACCES", "EIO", "EMFILE")
N_CALLS = 40
"""More than a save has."""


def contents(seed):
    tensors = f"tensors of {seed}".encode() * 100
    digest = hashlib.sha256(tensors).hexdigest()
    return tensors, json.dumps({"seed": seed, "files": {TENSORS: digest}}).encode()


def in_child(action, at_call):
    """Run an action in a forked process; ``at_call`` is called with the number of each call.

    Returns the exit code: 0 if the action ended, 1 if it raised, 9 if it was killed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = 0

    def hook(event, _):
        nonlocal count
        if event in CALLS:
            count += 1
            at_call(count)

    try:
        sys.addaudithook(hook)
        action()
    except OSError:
        os._exit(1)
    except BaseException:  # noqa: BLE001 - a forked test must not go on
        os._exit(2)
    os._exit(0)


def seed_in(folder):
    """The seed of the whole model in the folder; it fails if the model is not whole."""
    description = json.loads((folder / DESCRIPTION).read_bytes())
    tensors = fitting_tensors(folder).read_bytes()
    assert hashlib.sha256(tensors).hexdigest() == description["files"][TENSORS]
    assert tensors == contents(description["seed"])[0]
    return description["seed"]


@pytest.fixture
def folder(tmp_path):
    replace_model(tmp_path, *contents(0))
    assert files(tmp_path) == [DESCRIPTION, TENSORS]
    return tmp_path


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def killed_saves(folder):
    """Kill a save of model 1 at each of its calls in turn; yield the number of the call."""
    for number in range(1, N_CALLS):
        code = in_child(
            lambda: replace_model(folder, *contents(1)),
            lambda count, number=number: os._exit(9) if count == number else None,
        )
        if code == 0:
            return
        assert code == 9
        yield number
    raise AssertionError("a save has more calls than N_CALLS")


def test_a_killed_save_leaves_the_old_model_or_the_new_one(folder):
    seeds = []
    for _ in killed_saves(folder):
        seeds.append(seed_in(folder))
        replace_model(folder, *contents(0))  # the next save works, and sweeps
        assert (seed_in(folder), files(folder)) == (0, [DESCRIPTION, TENSORS])
    assert len(seeds) > 8
    assert seeds == sorted(seeds)  # first the old one, then the new one
    assert set(seeds) == {0, 1}


def test_a_save_that_is_killed_again_and_again_leaves_a_model(folder):
    for number in killed_saves(folder):
        for _ in range(2):  # twice more at the same call, on what the first left
            in_child(
                lambda: replace_model(folder, *contents(2)),
                lambda count, number=number: os._exit(9) if count == number else None,
            )
            assert seed_in(folder) in {0, 1, 2}
        replace_model(folder, *contents(0))
    assert seed_in(folder) == 1


def test_the_first_save_that_is_killed_leaves_no_model_or_a_whole_one(tmp_path):
    for number in range(1, N_CALLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        code = in_child(
            lambda folder=folder: replace_model(folder, *contents(1)),
            lambda count, number=number: os._exit(9) if count == number else None,
        )
        if (folder / DESCRIPTION).exists():
            assert seed_in(folder) == 1
        replace_model(folder, *contents(2))
        assert (seed_in(folder), files(folder)) == (2, [DESCRIPTION, TENSORS])
        if code == 0:
            return
    raise AssertionError("a save has more calls than N_CALLS")


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_call_leaves_a_whole_model(folder, name):
    code = getattr(errno, name)
    outcomes = []
    for number in range(1, N_CALLS):

        def fail(count, number=number):
            if count == number:
                raise OSError(code, os.strerror(code))

        outcomes.append(in_child(lambda: replace_model(folder, *contents(1)), fail))
        assert seed_in(folder) == (1 if outcomes[-1] == 0 else 0)
        replace_model(folder, *contents(0))
        assert files(folder) == [DESCRIPTION, TENSORS]
    assert {0, 1} == set(outcomes)


def test_without_hard_links_a_copy_is_made(folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for _ in killed_saves(folder):
        assert seed_in(folder) in {0, 1}
        replace_model(folder, *contents(0))
    assert (seed_in(folder), files(folder)) == (1, [DESCRIPTION, TENSORS])


def test_a_second_process_that_saves_is_refused(folder):
    from filelock import FileLock

    with FileLock(folder / ".saving"), pytest.raises(BlockingIOError):
        replace_model(folder, *contents(1))
    assert seed_in(folder) == 0
