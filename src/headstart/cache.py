"""Content-addressed store: the key is a hash of everything that produced the value.

One SQLite file in one folder. Writes are transactions, so that a process killed half-way
leaves whole values or none; several processes may read and write at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from headstart.errors import SetupError, UsageError

__all__ = ["Cache", "CacheStats", "key"]

T = TypeVar("T")
FILE_NAME = "cache-v1.sqlite"
CHUNK = 500  # keys in a query; SQLite's own limit on variables was 999 for long
PAGE_SIZE = 16_384  # seven values of 2 KB in a page; with 4096 every page would be half empty
BUSY_SECONDS = 60.0
USED_STEP_SECONDS = 3600  # "last used" is renewed at most once in this time
_INHERITED: list[sqlite3.Connection | None] = []  # by a fork: never used, never closed
EVICT_TO = 0.9  # of the budget, so that not every later write evicts again

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, kind TEXT NOT NULL,
    size INTEGER NOT NULL, checksum INTEGER NOT NULL, used INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS bodies (id INTEGER PRIMARY KEY, value BLOB NOT NULL);
"""  # two tables: renewing "used" and counting must not touch the pages of the values


def key(*parts: str | bytes | float) -> bytes:
    """Digest of a sequence of parts that no other sequence of parts has.

    Type and length of each part are hashed with it (SHA-256, 32 bytes), so that ``("ab", "c")``
    and ``("a", "bc")`` differ, as do ``1``, ``1.0``, ``True`` and ``"1"``.

    Raises
    ------
    UsageError
        If a part is not str, bytes, int, float or bool.

    Examples
    --------
    >>> key("features", 224, b"image").hex()[:16]
    '9b0ca63cf9d2358c'
    """
    digest = hashlib.sha256()
    for part in parts:
        tag, body = _encode(part)
        digest.update(tag + len(body).to_bytes(8, "big"))
        digest.update(body)
    return digest.digest()


def _encode(part: object) -> tuple[bytes, bytes]:
    match part:
        case str():
            return b"s", part.encode("utf-8", "surrogatepass")
        case bytes():
            return b"b", part
        case bool():  # before int, which it is a kind of
            return b"?", bytes([part])
        case int():
            return b"i", str(part).encode()
        case float():
            return b"f", struct.pack(">d", part)
    raise UsageError(
        "Expected the parts of a key to be str, bytes, int or float, "
        f"got {type(part).__name__}; convert it first."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a cache holds: bytes on disk, and (entries, bytes) of each kind of value."""

    folder: Path
    bytes: int
    budget: int
    kinds: dict[str, tuple[int, int]]


class Cache:
    """A store of values under 32-byte keys, on disk, for several processes at once.

    Threads may share one; after a fork, or sent to another process, it opens the file anew.
    A damaged value counts as missing. A damaged file is moved aside, and ``notes`` says so.

    Parameters
    ----------
    folder : Path or None
        None takes the environment variable HEADSTART_CACHE, or else the user's cache folder.
    budget_bytes : int or None
        Size to stay under; the least recently used values leave first. None takes
        HEADSTART_CACHE_BUDGET (such as ``20GB``), or else 10 GB.

    Raises
    ------
    SetupError
        On use, if the folder cannot be written or the disk is full.
    UsageError
        If the budget is not a positive size.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
    ...     cache.put_many({key("a"): b"first", key("b"): b"second"}, kind="features")
    ...     found = cache.get_many([key("a"), key("z")])
    ...     kinds = cache.stats().kinds
    >>> found == {key("a"): b"first"}
    True
    >>> kinds
    {'features': (2, 11)}
    """

    def __init__(self, folder: Path | None = None, budget_bytes: int | None = None) -> None:
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._inode = -1
        self.notes: tuple[str, ...] = ()
        self.folder = _default_folder() if folder is None else Path(folder).expanduser()
        self.path = self.folder / FILE_NAME
        self.budget = _default_budget() if budget_bytes is None else budget_bytes
        if self.budget <= 0:
            raise UsageError(f"Expected `budget_bytes` to be positive, got {self.budget}.")

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Values of those keys that are here; missing and damaged ones are absent."""
        query = (
            "SELECT id, key, checksum, value, CAST(used AS INT) FROM entries JOIN bodies USING (id)"
        )
        now = int(time.time())
        found: dict[bytes, bytes] = {}
        damaged: list[int] = []
        stale: list[int] = []

        def read(db: sqlite3.Connection) -> None:
            for row, name, checksum, value, used in _rows(db, query, keys):
                if not isinstance(value, bytes) or checksum != _checksum(name, value):
                    damaged.append(row)
                    continue
                found[name] = value
                if used < now - USED_STEP_SECONDS:
                    stale.append(row)

        def repair(db: sqlite3.Connection) -> None:
            _delete(db, damaged)
            renew = "UPDATE entries SET used = ? WHERE id IN (SELECT value FROM json_each(?))"
            db.execute(renew, (now, json.dumps(stale)))

        self._run(read)
        if damaged or stale:
            self._run(repair, write=True)
        return found

    def contains(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of the keys that are here; the values are not read."""
        return self._run(lambda db: {row[0] for row in _rows(db, "SELECT key FROM entries", keys)})

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of the keys that are not here, each once, in the order given."""
        here = self.contains(keys)
        return [name for name in dict.fromkeys(keys) if name not in here]

    def put_many(self, items: Mapping[bytes, bytes], *, kind: str) -> None:
        """Store values in one transaction, all of them or none.

        ``kind`` says what they are, for people: "features", "scan", "choice".
        """
        if items:
            self._run(lambda db: _insert(db, items, kind, self.budget), write=True)
            self._run(lambda db: _shrink(db, self.budget))

    def stats(self) -> CacheStats:
        """What is here: size on disk, budget, and entries and bytes of each kind."""
        query = "SELECT kind, COUNT(*), SUM(size) FROM entries GROUP BY kind ORDER BY kind"
        kinds = self._run(lambda db: {kind: (n, size) for kind, n, size in db.execute(query)})
        size = sum(path.stat().st_size for path in self.folder.glob(f"{FILE_NAME}*"))
        return CacheStats(folder=self.folder, bytes=size, budget=self.budget, kinds=kinds)

    def clear(self, kind: str | None = None) -> int:
        """Remove the values of one kind, or all; give the disk space back; say how many."""

        def work(db: sqlite3.Connection) -> int:
            query = "SELECT id FROM entries WHERE ?1 IS NULL OR kind = ?1"
            rows = [row for (row,) in db.execute(query, (kind,))]
            _delete(db, rows)
            return len(rows)

        removed = self._run(work, write=True)
        self._run(lambda db: _shrink(db, 0))
        for path in self.folder.glob(f"{FILE_NAME}.damaged-*"):
            path.unlink(missing_ok=True)
        return removed

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._connection is not None and self._pid == os.getpid():
            with self._lock:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[Path, int]]:
        return type(self), (self.folder, self.budget)

    def _run(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        self._notice_fork()
        with self._lock:
            try:
                try:
                    return _perform(work, self._open(), write)
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    self._move_aside()
                    return _perform(work, self._open(), write)
            except (sqlite3.Error, OSError) as error:
                raise _explain(error, self.folder) from error

    def _notice_fork(self) -> None:
        if self._pid != os.getpid():
            # Closing a connection that the parent still uses would pull its file from under
            # it, and the lock may be held by a thread that does not exist here.
            _INHERITED.append(self._connection)
            self._connection = None
            self._lock = threading.RLock()
            self._pid = os.getpid()

    def _open(self) -> sqlite3.Connection:
        deadline = time.monotonic() + BUSY_SECONDS
        self.folder.mkdir(parents=True, exist_ok=True)
        while self._connection is None:
            connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._inode = _inode(self.path)
            try:
                _prepare(connection)
            except sqlite3.Error as error:
                connection.close()
                # Two processes that create the file at once: SQLite does not wait by itself.
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                self._connection = connection
        return self._connection

    def _move_aside(self) -> None:
        self.close()
        if _inode(self.path) != self._inode:
            return  # another process has already put a new file in its place
        count = 1
        while (aside := Path(f"{self.path}.damaged-{count}")).exists():
            count += 1
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self.notes += (f"The cache {self.path} was damaged; moved to {aside.name}, begun anew.",)


def _prepare(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA journal_size_limit = 67108864").fetchall()
    if len(db.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table'").fetchall()) < 2:
        for statement in SCHEMA.split(";"):
            db.execute(statement)


def _perform(work: Callable[[sqlite3.Connection], T], db: sqlite3.Connection, write: bool) -> T:
    if not write:
        return work(db)
    with db:  # commits, or rolls back
        db.execute("BEGIN IMMEDIATE")
        return work(db)


def _rows(db: sqlite3.Connection, query: str, keys: Sequence[bytes]) -> Iterator[Any]:
    for start in range(0, len(keys), CHUNK):
        chunk = keys[start : start + CHUNK]
        yield from db.execute(f"{query} WHERE key IN ({','.join('?' * len(chunk))})", chunk)


def _insert(db: sqlite3.Connection, items: Mapping[bytes, bytes], kind: str, budget: int) -> None:
    _delete(db, [row for (row,) in _rows(db, "SELECT id FROM entries", [*items])])
    first = db.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM entries").fetchone()[0]
    now = int(time.time())
    entries = (
        (row, name, kind, len(value), _checksum(name, value), now)
        for row, (name, value) in enumerate(items.items(), first)
    )
    db.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", entries)
    db.executemany("INSERT OR REPLACE INTO bodies VALUES (?, ?)", enumerate(items.values(), first))
    used_pages = _pragma(db, "page_count") - _pragma(db, "freelist_count")
    surplus = used_pages * _pragma(db, "page_size") - budget
    if surplus > 0:
        _delete(db, _least_recent(db, surplus + (1 - EVICT_TO) * budget))


def _least_recent(db: sqlite3.Connection, to_free: float) -> list[int]:
    rows: list[int] = []
    for row, size in db.execute("SELECT id, CAST(size AS INT) FROM entries ORDER BY used, id"):
        if to_free <= 0:
            break
        rows.append(row)
        to_free -= size
    return rows


def _delete(db: sqlite3.Connection, rows: list[int]) -> None:
    db.executemany("DELETE FROM bodies WHERE id = ?", ((row,) for row in rows))
    db.executemany("DELETE FROM entries WHERE id = ?", ((row,) for row in rows))


def _shrink(db: sqlite3.Connection, size: int) -> None:
    """Give free pages back to the disk until the file is not above ``size``."""
    surplus = _pragma(db, "page_count") - size // _pragma(db, "page_size")
    surplus = min(surplus, _pragma(db, "freelist_count"))
    if surplus > 0:
        # As a script: execute() would free a single page of all those asked for.
        db.executescript(f"PRAGMA incremental_vacuum({surplus}); PRAGMA wal_checkpoint(TRUNCATE)")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _checksum(name: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(name))


def _inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else -1


def _code(error: BaseException) -> int | None:
    extended = getattr(error, "sqlite_errorcode", None)
    return None if extended is None else int(extended) & 0xFF


def _is_damage(error: sqlite3.Error) -> bool:
    # Python itself raises, without a code, when a text in the file is not UTF-8.
    return _code(error) in {None, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _explain(error: BaseException, folder: Path) -> SetupError:
    match _code(error):
        case sqlite3.SQLITE_FULL:
            text = f"free disk space for the cache in {folder}, got a full disk; free some space,"
        case sqlite3.SQLITE_BUSY:
            text = f"the cache in {folder} to be free, got a lock of another process; wait for it,"
        case _:
            text = f"the cache folder {folder} to be writable, got: {error}; make it so,"
    return SetupError(f"Expected {text} or set HEADSTART_CACHE to another folder.")


def _default_folder() -> Path:
    if chosen := os.environ.get("HEADSTART_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("headstart"))


def _default_budget() -> int:
    text = os.environ.get("HEADSTART_CACHE_BUDGET") or "10GB"
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if match is None:
        raise UsageError(
            f"Expected HEADSTART_CACHE_BUDGET to be a size, got {text!r}; write it like 20GB."
        )
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2] or " "))
