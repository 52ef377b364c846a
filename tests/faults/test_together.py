"""Two and six processes that start at the same moment do each other no harm."""

import os
import warnings
from pathlib import Path

import pytest

from headstart.cache import Cache, key
from headstart.errors import SetupError, UsageError
from headstart.files import hold_lock, scratch_folder, write_whole
from headstart.models.writing import replace_model
from headstart.workflows.run_folder import locked, publish_folder, temporary_folder

ROUNDS = 5


def start_together(n, work):
    """Fork n processes that wait at a barrier; return their exit codes."""
    ready, go = os.pipe(), os.pipe()
    children = []
    for number in range(n):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads
            child = os.fork()
        if not child:
            code = 2
            try:
                os.close(go[1])
                os.write(ready[1], b".")
                os.read(go[0], 1)  # ends for all at once, when the parent closes its end
                code = work(number)
            finally:
                os._exit(code)
        children.append(child)
    for _ in children:
        os.read(ready[0], 1)
    os.close(go[1])
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    for end in (*ready, go[0]):
        os.close(end)
    return codes


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=[2, 6])
def n(request):
    return request.param


@pytest.fixture
def rounds(is_long):
    return 20 * ROUNDS if is_long else ROUNDS


def test_one_process_is_inside_a_lock(n, rounds, counts, tmp_path):
    for number in range(rounds):
        folder = tmp_path / str(number)
        if number % 2:  # what a dead process left
            folder.mkdir()
            (folder / "in-use").write_text("4194305 here")

        def work(_, folder=folder):
            try:
                with locked(folder):
                    os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
                    Path(folder / "inside").unlink()
            except UsageError:
                return 1
            return 0

        codes = start_together(n, work)
        assert set(codes) <= {0, 1}
        assert 0 in codes
        counts[f"{n} processes, rounds"] += 1
    assert names(tmp_path) == []


def test_a_model_that_several_save_is_one_of_theirs(n, rounds, counts, tmp_path):
    def work(number):
        try:
            replace_model(tmp_path, f"{number}".encode() * 100_000, f"{number}".encode())
        except (BlockingIOError, SetupError):
            return 1
        return 0

    for _ in range(rounds):
        codes = start_together(n, work)
        assert set(codes) <= {0, 1}
        assert 0 in codes
        assert names(tmp_path) == ["model.json", "model.safetensors"]
        digit = (tmp_path / "model.json").read_bytes()
        assert (tmp_path / "model.safetensors").read_bytes() == digit * 100_000
        counts[f"{n} processes, rounds"] += 1


def test_every_finished_run_has_a_folder_of_its_own(n, rounds, counts, tmp_path):
    """Two runs that end at the same moment see the same free name."""

    def work(number):
        with temporary_folder(target) as folder:
            write_whole(folder / "result", str(number))
            publish_folder(folder, target)
        return 0

    for number in range(rounds):
        target = tmp_path / str(number) / "run"
        assert start_together(n, work) == [0] * n
        runs = list(target.parent.iterdir())
        assert sorted((run / "result").read_text() for run in runs) == [str(i) for i in range(n)]
        assert {name for run in runs for name in names(run)} == {"result"}
        assert len(names(target.parent)) == n
        counts[f"{n} processes, rounds"] += 1


def test_a_folder_for_work_is_never_swept_while_its_process_lives(n, rounds, counts, tmp_path):
    def work(number):
        for _ in range(10):
            with scratch_folder(tmp_path, "run") as folder:
                for name in "abc":
                    (folder / name).write_text(name)
                if names(folder) != [".headstart-scratch", "a", "b", "c"]:
                    return 1
        return 0

    for _ in range(rounds):
        assert start_together(n, work) == [0] * n
        assert names(tmp_path) == []
        counts[f"{n} processes, rounds"] += 1


def test_a_new_cache_takes_the_values_of_all(n, rounds, counts, tmp_path):
    def work(number):
        with Cache(folder) as cache:
            cache.put_many(
                {key(number, i): f"{number}".encode() * 500 for i in range(20)}, kind="x"
            )
            return int(len(cache.get_many([key(number, i) for i in range(20)])) != 20)

    for turn in range(rounds):
        folder = tmp_path / str(turn)
        assert start_together(n, work) == [0] * n
        with Cache(folder) as cache:
            for number in range(n):
                found = cache.get_many([key(number, i) for i in range(20)])
                assert set(found.values()) == {f"{number}".encode() * 500}
                assert len(found) == 20
            assert cache.notes == ()
        counts[f"{n} processes, rounds"] += 1


def test_the_barrier_lets_all_start(n, tmp_path):
    """Without the lock several are inside, so the test of the lock can fail."""

    def work(number):
        (Path(tmp_path) / str(number)).touch()
        return number

    assert start_together(n, work) == list(range(n))
    assert len(names(tmp_path)) == n
    with hold_lock(tmp_path / "lock"):
        codes = start_together(n, lambda _: refused(tmp_path / "lock"))
    assert codes == [1] * n


def refused(path):
    try:
        with hold_lock(path):
            return 0
    except BlockingIOError:
        return 1
