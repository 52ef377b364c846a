"""Content-addressed store on disk: the key is a hash of everything that produced the value.

The store is one SQLite file in one folder. Writes are transactions: a process killed half-way
leaves complete values or none. Several processes may read and write at the same time.
"""

from __future__ import annotations

import errno
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Self, TypeVar

from headstart.errors import SetupError, UsageError
from headstart.files import scratch_folder

__all__ = ["Cache", "CacheStats", "key", "open_cache"]

T = TypeVar("T")
FILE_NAME = "cache-v1.sqlite"
KEYS_PER_QUERY = 500  # old versions of SQLite allow at most 999 variables
PAGE_SIZE = 16_384  # holds seven values of 2 KB; a page of 4096 would stay half empty
BUSY_SECONDS = 60.0  # how long to wait for the lock of another process
USED_STEP_SECONDS = 3600  # the time of last use is updated at most once in this time
EVICT_TO = 0.9  # share of the budget that stays, so that not every later write evicts again
# Connections of a parent process after a fork: never used, never closed.
_INHERITED: list[sqlite3.Connection | None] = []
OUTSIDE_CODES = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}
"""Codes of errors that do not come from the content of the file."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, kind TEXT NOT NULL,
    size INTEGER NOT NULL, checksum INTEGER NOT NULL, used INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS bodies (id INTEGER PRIMARY KEY, value BLOB NOT NULL);
"""  # two tables: updating "used" and counting must not touch the pages of the values


def key(*parts: str | bytes | float) -> bytes:
    """Hash a sequence of parts to a digest that no other sequence has.

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
        case bool():  # before int, because bool is a subclass of int
            return b"?", bytes([part])
        case int():
            return b"i", str(part).encode()
        case float():
            return b"f", struct.pack(">d", part)
    raise UsageError(
        "Expected the parts of a key to be str, bytes, int or float, "
        f"got {type(part).__name__}. Convert it first."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """Size of a cache on disk, its budget, and (entries, bytes) of each kind of value."""

    folder: Path
    bytes: int
    budget: int
    kinds: dict[str, tuple[int, int]]


class Cache:
    """Store of values under 32-byte keys, on disk, for several processes at once.

    Threads may share one cache. After a fork, or after pickling, it opens the file again.
    A damaged value counts as missing. A damaged file is moved aside and reported in ``notes``.
    A cache that cannot be written is read; new values then go to a temporary folder.

    Parameters
    ----------
    folder : Path or None
        None takes the environment variable HEADSTART_CACHE, or else the user's cache folder.
    budget_bytes : int or None
        Largest size of the file. The least recently used values are removed first. None takes
        HEADSTART_CACHE_BUDGET (such as ``20GB``), or else 10 GB.

    Raises
    ------
    SetupError
        On use, if the folder cannot be used or the disk is full.
    UsageError
        If the budget is not a positive size.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
    ...     cache.put_many({key("a"): b"first", key("b"): b"second"}, kind="features")
    ...     values = cache.get_many([key("a"), key("z")])
    ...     kinds = cache.stats().kinds
    >>> values == {key("a"): b"first"}
    True
    >>> kinds
    {'features': (2, 11)}
    """

    def __init__(self, folder: Path | None = None, budget_bytes: int | None = None) -> None:
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._inode = -1
        self._scratch: tuple[ExitStack, Cache] | None = None
        self.notes: tuple[str, ...] = ()
        self.folder = _default_folder() if folder is None else Path(folder).expanduser()
        self.path = self.folder / FILE_NAME
        self.budget = _default_budget() if budget_bytes is None else budget_bytes
        if self.budget <= 0:
            raise UsageError(f"Expected a positive `budget_bytes`, got {self.budget}.")

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the stored values by key. Missing and damaged values are left out."""
        query = (
            "SELECT id, key, checksum, value, CAST(used AS INT) FROM entries JOIN bodies USING (id)"
        )
        now = int(time.time())
        values: dict[bytes, bytes] = {}
        damaged: list[int] = []
        stale: list[int] = []

        def read(db: sqlite3.Connection) -> None:
            for row, name, checksum, value, used in _select(db, query, keys):
                if not isinstance(value, bytes) or checksum != _checksum(name, value):
                    damaged.append(row)
                    continue
                values[name] = value
                if used < now - USED_STEP_SECONDS:
                    stale.append(row)

        def repair(db: sqlite3.Connection) -> None:
            _delete(db, damaged)
            update = "UPDATE entries SET used = ? WHERE id IN (SELECT value FROM json_each(?))"
            db.execute(update, (now, json.dumps(stale)))

        self._run(read)
        if self._scratch is not None:
            return values | self._scratch[1].get_many([name for name in keys if name not in values])
        if damaged or stale:
            self._run(repair, write=True)
        return values

    def contains(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the keys that are stored. The values are not read."""
        query = "SELECT key FROM entries"
        stored = self._run(lambda db: {name for (name,) in _select(db, query, keys)})
        return stored if self._scratch is None else stored | self._scratch[1].contains(keys)

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the keys that are not stored, each once, in the order of ``keys``."""
        stored = self.contains(keys)
        return [name for name in dict.fromkeys(keys) if name not in stored]

    def put_many(self, items: Mapping[bytes, bytes], *, kind: str) -> None:
        """Store values in one transaction, all of them or none.

        ``kind`` describes the values for the reader of the statistics: "features", "scan",
        "choice".
        """
        if not items:
            return
        self._run(lambda db: None)  # opens the file, which shows whether it can be written
        if self._scratch is not None:
            self._scratch[1].put_many(items, kind=kind)
            return
        self._run(lambda db: _insert(db, items, kind, self.budget), write=True)
        self._run(lambda db: _shrink(db, self.budget))

    def stats(self) -> CacheStats:
        """Measure the cache: size on disk, budget, and entries and bytes of each kind."""
        query = "SELECT kind, COUNT(*), SUM(size) FROM entries GROUP BY kind ORDER BY kind"
        kinds = self._run(lambda db: {kind: (n, size) for kind, n, size in db.execute(query)})
        size = sum(path.stat().st_size for path in self.folder.glob(f"{FILE_NAME}*"))
        return CacheStats(folder=self.folder, bytes=size, budget=self.budget, kinds=kinds)

    def clear(self, kind: str | None = None) -> int:
        """Remove the values of one kind, or all, and free the disk space.

        Returns
        -------
        int
            Number of removed values.

        Raises
        ------
        SetupError
            If the cache cannot be written.
        """
        self._run(lambda db: None)
        if self._scratch is not None:
            raise _setup_error(OSError(errno.EROFS, os.strerror(errno.EROFS)), self.folder)

        def delete_kind(db: sqlite3.Connection) -> int:
            query = "SELECT id FROM entries WHERE ?1 IS NULL OR kind = ?1"
            rows = [row for (row,) in db.execute(query, (kind,))]
            _delete(db, rows)
            return len(rows)

        removed = self._run(delete_kind, write=True)
        self._run(lambda db: _shrink(db, 0))
        for path in self.folder.glob(f"{FILE_NAME}.damaged-*"):
            path.unlink(missing_ok=True)
        return removed

    def close(self) -> None:
        """Close the file. The next use opens it again."""
        if self._connection is not None and self._pid == os.getpid():
            with self._lock:
                self._connection.close()
                self._connection = None
                if self._scratch is not None:
                    self._scratch[1].close()
                    self._scratch[0].close()
                    self._scratch = None

    def _repr_html_(self) -> str:
        return f"<b>Cache</b> {escape(str(self.folder))}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[Path, int]]:
        return type(self), (self.folder, self.budget)

    def _run(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        self._reset_after_fork()
        with self._lock:
            try:
                try:
                    return _perform(work, self._open(), write)
                except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                    if not _is_damage(error, self.path):
                        raise
                    self._move_aside()
                    return _perform(work, self._open(), write)
            except (sqlite3.Error, OSError) as error:
                raise _setup_error(error, self.folder) from error

    def _reset_after_fork(self) -> None:
        if self._pid != os.getpid():
            # The parent still uses the connection, so closing it here would release the
            # parent's file locks. The lock may belong to a thread that does not exist here.
            _INHERITED.append(self._connection)
            self._connection = None
            self._lock = threading.RLock()
            self._pid = os.getpid()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                is_writable = _is_writable(self.path)
            except OSError as error:
                if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                    raise
                is_writable = False
            self._connection = self._open_to_write() if is_writable else self._open_to_read()
        return self._connection

    def _open_to_write(self) -> sqlite3.Connection:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._inode = _inode(self.path)
            try:
                _prepare(connection)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                connection.close()
                # Two processes create the file at once: SQLite does not wait by itself here.
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return connection

    def _open_to_read(self) -> sqlite3.Connection:
        """Open a file that cannot be written; its damage counts as an empty cache."""
        stack = ExitStack()
        self._scratch = stack, Cache(stack.enter_context(scratch_folder()), self.budget)
        note = f"The cache {self.folder} cannot be written. New results are kept for this run only."
        if note not in self.notes:
            self.notes += (note,)
        if self.path.exists():
            # SQLite would write index files beside it; "immutable" tells it that it need not.
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro&immutable=1",
                uri=True,
                check_same_thread=False,
            )
            try:
                connection.execute("SELECT SUM(size) FROM entries JOIN bodies USING (id)")
            except (sqlite3.Error, UnicodeDecodeError):
                connection.close()
            else:
                return connection
        empty = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        _prepare(empty)
        return empty

    def _move_aside(self) -> None:
        is_read_only = self._scratch is not None
        self.close()
        if is_read_only or _inode(self.path) != self._inode:
            return  # another process has already replaced the file
        count = 1
        while (aside := Path(f"{self.path}.damaged-{count}")).exists():
            count += 1
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        note = (
            f"The cache {self.path} was damaged and moved to {aside.name}. A new one was created."
        )
        self.notes += (note,)


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


def _select(db: sqlite3.Connection, query: str, keys: Sequence[bytes]) -> Iterator[Any]:
    for start in range(0, len(keys), KEYS_PER_QUERY):
        chunk = keys[start : start + KEYS_PER_QUERY]
        yield from db.execute(f"{query} WHERE key IN ({','.join('?' * len(chunk))})", chunk)


def _insert(db: sqlite3.Connection, items: Mapping[bytes, bytes], kind: str, budget: int) -> None:
    _delete(db, [row for (row,) in _select(db, "SELECT id FROM entries", [*items])])
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
    """Return free pages to the disk until the file is no larger than ``size``."""
    surplus = _pragma(db, "page_count") - size // _pragma(db, "page_size")
    surplus = min(surplus, _pragma(db, "freelist_count"))
    if surplus > 0:
        # As a script: execute() would free only one page.
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


def _is_writable(path: Path) -> bool:
    """Whether the file and its folder can be written; the file may be missing."""
    return os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def _is_damage(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> bool:
    """Whether the error comes from the content of the file.

    A changed byte in the schema looks like a missing column or a constraint that fails; one in the
    header like a file that is read-only.
    """
    if _code(error) == sqlite3.SQLITE_READONLY:
        with path.open("rb") as file:
            versions = file.read(20)[18:]
        return versions not in {b"\1\1", b"\2\2"}
    # Python raises an error without a code when a text in the file is not UTF-8.
    return _code(error) not in OUTSIDE_CODES


def _setup_error(error: BaseException, folder: Path) -> SetupError:
    match _code(error):
        case sqlite3.SQLITE_FULL:
            text = f"The disk is full: the cache in {folder} cannot grow. Free some disk space"
        case sqlite3.SQLITE_BUSY:
            text = f"The cache in {folder} has a lock of another process. Wait for that process"
        case _:
            text = f"The cache folder {folder} is not writable: {error}. Make it writable"
    return SetupError(f"{text}, or set HEADSTART_CACHE to another folder.")


def _default_folder() -> Path:
    if folder := os.environ.get("HEADSTART_CACHE"):
        return Path(folder).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("headstart"))


def _default_budget() -> int:
    text = os.environ.get("HEADSTART_CACHE_BUDGET") or "10GB"
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if match is None:
        raise UsageError(
            f"HEADSTART_CACHE_BUDGET must be a size, got {text!r}. Set it to, for example, 20GB."
        )
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2] or " "))


@contextmanager
def open_cache(cache: Cache | bool | None = None, *, no_cache: bool = False) -> Iterator[Cache]:
    """Open the user's cache, or an empty one that is deleted afterwards.

    Parameters
    ----------
    cache : Cache or bool, optional
        A cache that is open already; False for an empty one; None or True for the user's.
    no_cache : bool
        The same as ``cache=False``.

    Raises
    ------
    UsageError
        If the cache is another value, or a cache is passed together with ``no_cache``.

    Examples
    --------
    >>> with open_cache(no_cache=True) as cache:
    ...     len(cache.stats().kinds)
    0
    """
    if not isinstance(cache, Cache | bool | None):
        raise UsageError(
            f"`cache` must be a Cache, True or False, got {cache!r}. Pass Cache(folder)."
        )
    if isinstance(cache, Cache):
        if no_cache:
            raise UsageError(f"`no_cache` is True, but `cache` is {cache!r}. Remove one of them.")
        yield cache
    elif no_cache or cache is False:
        with scratch_folder() as folder, Cache(folder) as new:
            yield new
    else:
        yield Cache()
