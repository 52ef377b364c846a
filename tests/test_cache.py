"""The cache: complete values or none, whatever happens to the process, the file or the disk."""

import errno
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.cache import FILE_NAME, Cache, key
from headstart.errors import SetupError, UsageError

Parts = st.lists(st.text() | st.binary() | st.integers() | st.floats(allow_nan=False), max_size=4)


def numbered(count: int, size: int = 2000, start: int = 0) -> dict[bytes, bytes]:
    """Values that can be recomputed from their number, so that any mix-up shows."""
    return {key("item", i): random.Random(i).randbytes(size) for i in range(start, start + count)}


def run_script(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path) as opened:
        yield opened


@given(Parts, Parts)
def test_keys_are_equal_only_for_equal_parts(first, second):
    same = [(type(p), repr(p)) for p in first] == [(type(p), repr(p)) for p in second]
    assert (key(*first) == key(*second)) == same


@given(st.text(), st.text(), st.text())
def test_keys_depend_on_where_a_part_ends(a, b, c):
    assert key(a, b + c) != key(a + b, c) or not b
    assert key(a, b) != key(a + b)
    assert key(a) != key(a.encode("utf-8", "surrogatepass"))


def test_keys_depend_on_types():
    assert len({key(p) for p in (1, 1.0, True, "1", b"1", b"\x01", 0, False, 0.0, -0.0, "")}) == 11
    assert len(key()) == 32
    with pytest.raises(UsageError, match="Convert it"):
        key(None)  # type: ignore[arg-type]


def test_returns_what_was_put_and_nothing_else(cache):
    items = numbered(1203, size=50)
    cache.put_many(items, kind="features")
    keys = [*items, key("absent")]
    assert cache.get_many(keys) == items
    assert cache.contains(keys) == set(items)
    assert cache.missing([key("absent"), *items, key("absent")]) == [key("absent")]
    assert cache.get_many([]) == {}
    assert cache.missing([]) == []


def test_put_again_replaces(cache):
    cache.put_many({key(1): b"old", key(2): b"two"}, kind="features")
    cache.put_many({key(1): b"new value"}, kind="choice")
    assert cache.get_many([key(1), key(2)]) == {key(1): b"new value", key(2): b"two"}
    assert cache.stats().kinds == {"choice": (1, 9), "features": (1, 3)}


def test_empty_value_and_empty_put(cache):
    cache.put_many({}, kind="scan")
    cache.put_many({key(1): b""}, kind="scan")
    assert cache.get_many([key(1)]) == {key(1): b""}


def test_second_cache_sees_it_and_it_can_be_sent_elsewhere(cache, tmp_path):
    cache.put_many(numbered(3), kind="scan")
    with pickle.loads(pickle.dumps(cache)) as sent:
        assert sent.folder == tmp_path
        assert sent.get_many(list(numbered(3))) == numbered(3)


def test_clear_gives_the_disk_space_back(cache):
    cache.put_many(numbered(500), kind="features")
    cache.put_many({key("kept"): b"kept"}, kind="choice")
    before = cache.stats().bytes
    assert before > 500 * 2000
    assert cache.clear("features") == 500
    assert cache.stats().bytes < 0.2 * before
    assert cache.get_many([key("kept")]) == {key("kept"): b"kept"}
    assert cache.clear() == 1
    assert cache.stats().kinds == {}


def test_eviction_keeps_the_most_recent(tmp_path):
    with Cache(tmp_path, budget_bytes=2_000_000) as cache:
        for start in range(0, 2000, 100):
            cache.put_many(numbered(100, start=start), kind="features")
        assert cache.stats().bytes < 2_000_000 * 1.3  # the write-ahead log is on top
        assert (tmp_path / FILE_NAME).stat().st_size <= 2_000_000 + 100 * 2500
        here = [i for i in range(2000) if cache.contains([key("item", i)])]
        assert here == list(range(here[0], 2000)), "the oldest leave first"
        assert len(here) > 600, "about 90 % of the budget is used"


def test_eviction_spares_what_was_read_lately(tmp_path, monkeypatch):
    clock = [1_000_000.0]
    monkeypatch.setattr("headstart.cache.time.time", lambda: clock[0])
    with Cache(tmp_path, budget_bytes=2_000_000) as cache:
        cache.put_many(numbered(400), kind="features")
        clock[0] += 7200
        read = [key("item", i) for i in range(50)]
        cache.get_many(read)
        clock[0] += 7200
        for start in range(400, 1000, 100):
            cache.put_many(numbered(100, start=start), kind="features")
        assert cache.contains(read) == set(read)
        assert not cache.contains([key("item", i) for i in range(50, 150)])


def test_reading_does_not_write_until_the_mark_is_old(cache):
    cache.put_many(numbered(10), kind="features")
    cache.get_many(list(numbered(10)))
    changes = cache._connection.total_changes
    cache.get_many(list(numbered(10)))
    assert cache._connection.total_changes == changes


def test_lower_budget_shrinks_the_file_at_the_next_write(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put_many(numbered(1000), kind="features")
    with Cache(tmp_path, budget_bytes=500_000) as cache:
        cache.put_many({key("last"): b"last"}, kind="features")
        assert cache.stats().bytes < 1_000_000
        assert cache.contains([key("last")])


def test_damaged_value_is_missing_and_removed(cache):
    items = numbered(20)
    cache.put_many(items, kind="features")
    with sqlite3.connect(cache.path) as other:
        other.execute("UPDATE bodies SET value = zeroblob(2000) WHERE id = 7")
        other.execute("UPDATE bodies SET value = 'text' WHERE id = 8")
    other.close()
    lost = [list(items)[6], list(items)[7]]
    intact = {name: value for name, value in items.items() if name not in lost}
    assert cache.get_many(list(items)) == intact
    assert cache.missing(list(items)) == lost
    assert cache.notes == ()


@pytest.mark.parametrize("damage", ["not a database", "header", "tail"])
def test_damaged_file_is_moved_aside(tmp_path, damage):
    with Cache(tmp_path) as cache:
        cache.put_many(numbered(300), kind="features")
    path = tmp_path / FILE_NAME
    data = path.read_bytes()
    path.write_bytes(
        {
            "not a database": b"<html>" * 9000,
            "header": b"\xff" * 100 + data[100:],
            "tail": data[: len(data) // 2],
        }[damage]
    )
    with Cache(tmp_path) as cache:
        values = cache.get_many(list(numbered(300)))
        assert values.items() <= numbered(300).items()
        cache.put_many(numbered(300), kind="features")
        assert cache.get_many(list(numbered(300))) == numbered(300)
        assert len(cache.notes) == 1
        assert "damaged-1" in cache.notes[0]
        assert (tmp_path / f"{FILE_NAME}.damaged-1").exists()
        cache.clear()
        assert not (tmp_path / f"{FILE_NAME}.damaged-1").exists()


PAGE = 16_384
OFFSETS = {
    "header": range(100),
    "pages": range(100, 124),
    "schema 1": range(PAGE - 380, PAGE - 250),
    "schema 2": range(PAGE - 250, PAGE - 120),
    "schema 3": range(PAGE - 120, PAGE),
    "values": range(PAGE, 7 * PAGE, 997),
}


@pytest.mark.parametrize("where", OFFSETS)
def test_whatever_byte_is_damaged_the_cache_goes_on(tmp_path, where):
    items = numbered(60, size=300)
    with Cache(tmp_path / "whole") as cache:
        cache.put_many(items, kind="features")
    data = (tmp_path / "whole" / FILE_NAME).read_bytes()
    assert data[PAGE - 380 : PAGE].count(b"CREATE") == 2
    for number, at in enumerate(at for at in OFFSETS[where] if at < len(data)):
        folder = tmp_path / str(number)
        folder.mkdir()
        damaged = bytearray(data)
        damaged[at] = damaged[at] ^ (1, 0xFF, 0x80)[number % 3]
        (folder / FILE_NAME).write_bytes(damaged)
        with Cache(folder) as cache:
            assert cache.get_many(list(items)).items() <= items.items(), at
            assert all(isinstance(size, int) for _, size in cache.stats().kinds.values()), at
            cache.put_many(items, kind="features")
            assert cache.get_many(list(items)) == items, at


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_never_gives_a_wrong_value(tmp_path, seed):
    items = numbered(100)
    with Cache(tmp_path) as cache:
        cache.put_many(items, kind="features")
    path, noise = tmp_path / FILE_NAME, random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(20):
        at = noise.randrange(len(data))
        data[at : at + 30] = noise.randbytes(len(data[at : at + 30]))
    path.write_bytes(data)
    with Cache(tmp_path) as cache:
        assert cache.get_many(list(items)).items() <= items.items()
        cache.stats()
        cache.put_many(items, kind="features")
        assert cache.get_many(list(items)).items() <= items.items()


def test_two_processes_write_and_read_at_once(tmp_path):
    code = """
        import random, sys
        from pathlib import Path
        from headstart.cache import Cache, key
        mine = int(sys.argv[2])
        wrong = 0
        with Cache(Path(sys.argv[1])) as cache:
            for batch in range(20):
                ids = range(batch * 20 + mine * 5, batch * 20 + mine * 5 + 15)  # they overlap
                items = {key("item", i): random.Random(i).randbytes(2000) for i in ids}
                cache.put_many(items, kind="features")
                wrong += cache.get_many(list(items)) != items
        assert "torch" not in sys.modules
        sys.exit(wrong)
    """
    workers = [run_script(code, str(tmp_path), str(i)) for i in range(2)]
    for worker in workers:
        errors = worker.communicate(timeout=60)[1]
        assert worker.returncode == 0, errors
    with Cache(tmp_path) as cache:
        items = numbered(400)
        assert cache.get_many(list(items)) == items
        assert cache.notes == ()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.12])
def test_killed_while_writing_leaves_whole_batches(tmp_path, delay):
    code = """
        import random, sys
        from pathlib import Path
        from headstart.cache import Cache, key
        cache = Cache(Path(sys.argv[1]))
        for batch in range(10**6):
            ids = range(batch * 50, batch * 50 + 50)
            items = {key("item", i): random.Random(i).randbytes(2000) for i in ids}
            cache.put_many(items, kind="features")
            print(batch, flush=True)
    """
    worker = run_script(code, str(tmp_path))
    for _ in range(3):
        worker.stdout.readline()
    time.sleep(delay)
    worker.send_signal(signal.SIGKILL)
    rest = worker.communicate()[0].split()
    confirmed = (int(rest[-1]) if rest else 2) + 1
    with Cache(tmp_path) as cache:
        values = cache.get_many([key("item", i) for i in range((confirmed + 2) * 50)])
        assert cache.notes == ()
        assert len(values) >= confirmed * 50
        assert len(values) % 50 == 0, "a batch is there whole or not at all"
        assert values == numbered(len(values))
        cache.put_many({key("after"): b"works"}, kind="f")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_child_of_a_fork_opens_its_own_connection(cache):
    cache.put_many(numbered(5), kind="features")
    connection = cache._connection
    with cache._lock:  # as if another thread were reading at the moment of the fork
        child = os.fork()
        if child == 0:
            try:
                cache.put_many(numbered(5, start=5), kind="features")
                is_complete = cache.get_many(list(numbered(10))) == numbered(10)
                os._exit(0 if is_complete and cache._connection is not connection else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
    assert cache.get_many(list(numbered(10))) == numbered(10)


def test_threads_share_a_cache(cache):
    failures = []

    def work(start):
        items = numbered(30, start=start)
        cache.put_many(items, kind="features")
        if cache.get_many(list(items)) != items:
            failures.append(start)

    threads = [threading.Thread(target=work, args=(30 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert cache.stats().kinds == {"features": (240, 480_000)}


def test_full_disk_says_so_and_keeps_what_was_there(cache):
    cache.put_many(numbered(10), kind="features")
    pages = cache._connection.execute("PRAGMA page_count").fetchone()[0]
    cache._connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
    with pytest.raises(SetupError, match=r"disk is full.*HEADSTART_CACHE"):
        cache.put_many(numbered(100, start=10), kind="features")
    assert cache.get_many(list(numbered(110))) == numbered(10)


def test_read_only_file_says_so(cache, tmp_path):
    cache.put_many(numbered(1), kind="features")
    cache._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(SetupError, match=f"{tmp_path}.*writable.*HEADSTART_CACHE"):
        cache.put_many(numbered(2), kind="features")


def test_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SetupError, match="HEADSTART_CACHE"):
        Cache(tmp_path / "file" / "cache").stats()


READ_ONLY = [errno.EACCES, errno.EPERM, errno.EROFS]


@pytest.fixture(params=["access", *READ_ONLY])
def read_only(request, tmp_path, monkeypatch):
    """Make the folder look read-only, as root may write everywhere."""

    def make():
        if request.param == "access":
            allowed = os.access
            monkeypatch.setattr(
                os,
                "access",
                lambda path, mode: (
                    allowed(path, mode)
                    and not (mode == os.W_OK and Path(path).is_relative_to(tmp_path))
                ),
            )
            return
        made = Path.mkdir

        def mkdir(path, *arguments, **options):
            if path == tmp_path:
                raise OSError(request.param, os.strerror(request.param), str(path))
            return made(path, *arguments, **options)

        monkeypatch.setattr(Path, "mkdir", mkdir)

    return make


def test_a_cache_that_cannot_be_written_is_read(tmp_path, read_only):
    with Cache(tmp_path) as cache:
        cache.put_many(numbered(5), kind="features")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    read_only()
    with Cache(tmp_path) as cache:
        assert cache.get_many(list(numbered(9))) == numbered(5)
        cache.put_many(numbered(3, start=5), kind="features")
        assert cache.get_many(list(numbered(9))) == numbered(8)
        assert cache.missing(list(numbered(9))) == list(numbered(9))[8:]
        assert cache.stats().kinds == {"features": (5, 10_000)}
        assert "cannot be written" in cache.notes[0]
        with pytest.raises(SetupError, match=r"writable.*HEADSTART_CACHE"):
            cache.clear()
        scratch = cache._scratch[1].folder
        assert scratch.is_dir()
    assert not scratch.exists()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", [None, b"", b"<html>" * 9000])
def test_no_file_or_a_damaged_one_where_nothing_can_be_written_is_an_empty_cache(
    tmp_path, read_only, content
):
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    read_only()
    with Cache(tmp_path) as cache:
        assert cache.get_many(list(numbered(2))) == {}
        cache.put_many(numbered(2), kind="features")
        assert cache.get_many(list(numbered(2))) == numbered(2)
    names = [] if content is None else [FILE_NAME]
    assert [path.name for path in tmp_path.iterdir()] == names


def test_lock_that_is_never_released_says_so(cache, monkeypatch):
    monkeypatch.setattr("headstart.cache.BUSY_SECONDS", 0.05)
    cache.put_many(numbered(1), kind="features")
    cache.close()
    other = sqlite3.connect(cache.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SetupError, match="lock of another process"):
        cache.put_many(numbered(2), kind="features")
    other.close()


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("1.5 mb", 1_500_000), ("1000", 1000), ("2k", 2000), ("", 10**10)],
)
def test_budget_and_folder_from_the_environment(monkeypatch, tmp_path, text, size):
    monkeypatch.setenv("HEADSTART_CACHE_BUDGET", text)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "deep" / "er"))
    with Cache() as cache:
        assert cache.budget == size
        assert cache.stats().folder == tmp_path / "deep" / "er"


@pytest.mark.parametrize("text", ["much", "-1", "5 bananas", "0"])
def test_budget_that_is_no_size(monkeypatch, text):
    monkeypatch.setenv("HEADSTART_CACHE_BUDGET", text)
    with pytest.raises(UsageError):
        Cache(Path("unused"))
