"""Files: safe output paths, whole writes, CSV text, locks, folders for work, bounded reading.

Input comes from anywhere: a pipe, a device, a sparse file or nested YAML must end in a sentence.
Names of images and classes come from users' folders, archives and tables. None of them may lead a
file outside the output folder, and no write may leave half a file under the final name. What a
killed process left is removed by the next one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EFBIG, EINVAL, ENOLCK, ENOSYS, ENOTSUP
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from headstart.errors import DataError, UsageError

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = [
    "csv_text",
    "file_stems",
    "hold_lock",
    "is_file",
    "lock_file",
    "output_path",
    "printable",
    "publish_scratch",
    "read_bounded",
    "read_text",
    "read_yaml",
    "safe_part",
    "scratch_folder",
    "sweep_parts",
    "write_whole",
]

LONGEST_PART = 160
"""Bytes of one cleaned part of a path; most file systems allow 255, and a suffix is added."""
LONGEST_STEM = 1_000
"""Bytes of a cleaned path; Linux allows 4,096 with the output folder, macOS 1,024."""
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", re.IGNORECASE)
"""Names of devices on Windows, with any suffix."""
WRITTEN_SUFFIX = re.compile(r"\.(?:png|txt|json|csv|html|jpg)$", re.IGNORECASE)
# Control characters but tab and line end, and marks that change the direction of the text.
CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]|\r(?!\n)"
)
MOST_YAML_BYTES = 1_000_000
MOST_TEXT_BYTES = 100_000_000
"""Largest list of names or labels; a million lines have about 50 MB."""
MOST_ANNOTATION_BYTES = 2_000_000_000
"""Largest COCO file or table; that of COCO itself has 470 MB."""
LOCK_SECONDS = 0.2
"""Wait for a process that is just ending."""
MAX_ATTEMPTS = 20
SCRATCH_LOCK = ".headstart-scratch"
"""Locked file in a folder for work: only folders that have it are ever removed."""
SCRATCH_PREFIX = ".headstart-"
"""First characters of a hidden folder for work beside an output."""
SCRATCH_NAME = re.compile(r"-[a-z0-9_]{8}$")
"""Last characters of the name of a folder for work."""
NEW_SECONDS = 3600
"""Age from which a folder that is not locked yet counts as left by a killed process."""
PART = re.compile(r"\..+\.[0-9a-f]{12,32}\.part")
"""Names of the files of ``write_whole`` and of downloads before they are renamed."""
FORMULA = ("=", "+", "-", "@", "\t")
"""First characters that make a spreadsheet read a cell as a formula."""


def safe_part(part: str) -> str:
    r"""Clean one part of a path: the result is one file name on every system, never "." or "..".

    Characters that a file system or a terminal could obey are removed or replaced by ``_``. A long
    name is cut and gets a hash of the whole name.

    >>> safe_part("leaf 1"), safe_part("<.."), safe_part("a\x1b[2Jb"), safe_part("NUL")
    ('leaf 1', '_', 'a_[2Jb', 'NUL_')
    >>> len(safe_part("7" * 5000))
    160
    """
    text = re.sub(r'[<>:"|?*]', "", part)
    text = "".join("_" if unicodedata.category(c) in {"Cc", "Cs"} else c for c in text)
    text = re.sub(r"[/\\]", "_", text).strip()
    text = re.sub(r"^\.+|[. ]+$", "", text) or "_"
    text = RESERVED.sub(r"\1_", text, count=1) if RESERVED.match(text) else text
    encoded = text.encode()
    if len(encoded) <= LONGEST_PART:
        return text
    digest = hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{encoded[: LONGEST_PART - 13].decode(errors='ignore').rstrip('. ')}-{digest}"


def file_stems(names: Sequence[str]) -> tuple[str, ...]:
    """Name a file for each image: its path below their common folder, cleaned, without a suffix.

    Two stems never differ only in upper and lower case, and no folder has the name of a file that
    is written beside it.

    >>> file_stems(["a/x/1.jpg", "a/y/1.jpg", "a/y/1.png"])
    ('x/1', 'y/1', 'y/1-2')
    >>> file_stems(["<ndarray>", "<ndarray>"])
    ('ndarray', 'ndarray-2')
    """
    # abspath and not resolve: a link keeps its own name.
    paths = [Path(os.path.abspath(name.replace("\0", "_"))) for name in names]  # noqa: PTH100
    try:
        root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
        relative = [path.relative_to(root) for path in paths]
    except ValueError:  # on several drives of Windows
        relative = [path.relative_to(path.anchor) for path in paths]
    used: set[str] = set()
    copies: Counter[str] = Counter()
    unique = []
    for path in relative:
        stem = name = _clean_stem(path)
        while name.casefold() in used:
            copies[stem.casefold()] += 1
            name = f"{stem}-{copies[stem.casefold()] + 1}"
        used.add(name.casefold())
        unique.append(name)
    return tuple(unique)


def _clean_stem(path: Path) -> str:
    # The name "/" leaves an empty path.
    named = path.with_suffix("").parts if path.name else ("_",)
    parts = [safe_part(part) for part in named]
    # A folder "1.png" would be in the way of the file "1.png" of an image "1".
    folders = [WRITTEN_SUFFIX.sub(lambda m: m.group().replace(".", "_"), p) for p in parts[:-1]]
    stem = "/".join([*folders, *parts[-1:]])
    if len(stem.encode()) <= LONGEST_STEM:
        return stem
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return f"{digest}-{parts[-1]}"


def output_path(folder: Path, relative: str) -> Path:
    """Return the path of a file to write in a folder, with its parent folder made.

    Parameters
    ----------
    folder : Path
        The output folder.
    relative : str
        Path below it, made of cleaned parts (``file_stems``, ``safe_part``) and a suffix.

    Raises
    ------
    UsageError
        If the path leads out of the folder, also through a link.

    Examples
    --------
    >>> output_path(Path("out"), "../model.json")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    headstart.errors.UsageError: The output path '../model.json' leads out of out. Rename ...
    """
    parts = PurePosixPath(relative).parts
    path = folder.joinpath(*parts)
    inside = bool(parts) and ".." not in parts and not PurePosixPath(relative).is_absolute()
    if not inside or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"The output path {relative[:200]!r} leads out of {folder}. Rename the image or class "
            "that it was made from."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_whole(path: Path, content: str | bytes) -> None:
    r"""Write a file in one step: at every moment the path holds the old content or the new one.

    Text is UTF-8. A character that is not valid in UTF-8, as from a file name of another encoding,
    is written as an escape such as ``\udcff``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder, "a.txt"), "caf\xe9 \udcff")
    ...     Path(folder, "a.txt").read_text(encoding="utf-8"), len(list(Path(folder).iterdir()))
    ('café \\udcff', 1)
    """
    encoded = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    part = path.with_name(f".{path.name[:100]}.{uuid4().hex[:12]}.part")
    try:
        with part.open("wb") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# ------------------------------------------------------------------------------- folders for work


@contextmanager
def scratch_folder(parent: Path | None = None, name: str = "work") -> Iterator[Path]:
    """Make a folder for work in progress; first remove those that killed processes left.

    A process holds a lock on a file in its folder as long as it lives. Removed are only folders of
    this user with the prefix and the file of Headstart, whose lock is free. On Windows nothing is
    removed.

    Parameters
    ----------
    parent : Path, optional
        An existing folder, where the result will be; by default the system's temporary folder.
    name : str
        Part of the folder's name.

    Examples
    --------
    >>> with scratch_folder() as folder:
    ...     folder.is_dir()
    True
    >>> folder.exists()
    False
    """
    prefix = "headstart-" if parent is None else SCRATCH_PREFIX
    parent, owner = Path(tempfile.gettempdir()) if parent is None else parent, os.getpid()
    _sweep_scratch(parent, prefix)
    new = Path(tempfile.mkdtemp(prefix=f"{prefix}new-", dir=parent))
    folder, lock = new.with_name(f"{prefix}{name}-{new.name[-8:]}"), None
    try:
        # Locked before it has its name: no other process takes it for one that was left.
        lock = lock_file(new / SCRATCH_LOCK)
        new.rename(folder)
        yield folder
    finally:
        if os.getpid() == owner:  # a forked process must not remove its parent's folder
            for path in (new, folder):
                _remove_scratch(path)
        if lock is not None:
            os.close(lock)


def publish_scratch(folder: Path, target: Path) -> Path:
    """Give a finished folder of ``scratch_folder`` its final name."""
    folder.chmod(0o755)  # mkdtemp's folders are private
    published = folder.rename(target)
    with suppress(OSError):  # a file that stays does no harm, and the next run removes it
        (published / SCRATCH_LOCK).unlink(missing_ok=True)
    return published


def sweep_parts(folder: Path, *, least_age: float = 0.0) -> None:
    """Remove files that killed processes left of ``write_whole`` and of downloads.

    Parameters
    ----------
    folder : Path
        Locked by the caller, unless each writer locks its file (``lock_file``).
    least_age : float
        Seconds since the last write; a younger file stays.
    """
    for path in folder.iterdir():
        with suppress(OSError):
            is_old = time.time() - path.lstat().st_mtime >= least_age
            if is_old and PART.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                handle = lock_file(path)  # fails if its process is alive
                path.unlink()
                if handle is not None:
                    os.close(handle)


def lock_file(path: Path) -> int | None:
    """Open and lock a file until its handle is closed; None where the system has no such locks.

    Raises
    ------
    OSError
        If another process has locked it, or it cannot be opened.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in {ENOSYS, ENOTSUP, ENOLCK}:  # as on some network drives
            path.unlink(missing_ok=True)  # without the file, the folder is never swept
            return None
        raise
    return handle


def _sweep_scratch(parent: Path, prefix: str) -> None:
    if sys.platform == "win32":
        return
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.name.startswith(prefix):
                    _sweep_one(entry, is_new=entry.name.startswith(f"{prefix}new-"))
                elif prefix == SCRATCH_PREFIX and not entry.name.startswith("."):
                    _unlock_published(Path(entry.path, SCRATCH_LOCK))


def _sweep_one(entry: os.DirEntry[str], *, is_new: bool) -> None:
    """Remove a folder if it is Headstart's and this user's, and no process has locked it."""
    if sys.platform == "win32" or not entry.is_dir(follow_symlinks=False):
        return
    facts = entry.stat(follow_symlinks=False)
    if facts.st_uid != os.getuid() or (is_new and time.time() - facts.st_mtime < NEW_SECONDS):
        return
    folder = Path(entry.path)
    if SCRATCH_NAME.search(folder.name) and not any(folder.iterdir()):
        # Its process was killed before it was locked, or while it was removed. In the folder for
        # temporary files, a young one may be of a process that has just made it.
        if folder.name.startswith(".") or time.time() - facts.st_mtime >= NEW_SECONDS:
            folder.rmdir()
        return
    path = folder / SCRATCH_LOCK
    if path.is_symlink() or not path.is_file():
        return
    handle = lock_file(path)  # fails if its process is alive
    if handle is not None:
        _remove_scratch(folder)
        os.close(handle)


def _unlock_published(path: Path) -> None:
    """Remove the lock file of a process that was killed right after ``publish_scratch``."""
    if path.is_file() and not path.is_symlink() and not path.stat().st_size:
        handle = lock_file(path)
        path.unlink()
        if handle is not None:
            os.close(handle)


def _remove_scratch(folder: Path) -> None:
    """Remove a folder, its lock file last: if this process is killed, the next one goes on."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != SCRATCH_LOCK:
                path.unlink(missing_ok=True)
        (folder / SCRATCH_LOCK).unlink(missing_ok=True)
        folder.rmdir()


def printable(text: str) -> str:
    r"""Show control characters as escapes, so that a terminal does not obey them.

    Examples
    --------
    >>> printable("cat\x1b[2J")
    'cat\\x1b[2J'
    """
    return CONTROL.sub(lambda match: _as_escape(match.group()), text)


def _as_escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def csv_text(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV. Text that a spreadsheet would run as a formula gets an apostrophe.

    Numbers are written as they are.

    >>> csv_text(["image", "score"], [("=1+1.png", -0.5)]).splitlines()
    ['image,score', "'=1+1.png,-0.5"]
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    for row in chain([titles], rows):
        writer.writerow([_as_text_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return table.getvalue()


def _as_text_cell(text: str) -> str:
    text = text.replace("\r", "\\r")  # the csv module writes it without quotes
    if not text.startswith(FORMULA):
        return text
    with suppress(ValueError):
        float(text)  # a formatted number
        return text
    return f"'{text}"


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Keep other processes out while the block runs.

    The operating system holds the lock on an open file and frees it when the process ends, however
    it ends. The number of the process in the file is only for messages.

    Parameters
    ----------
    path : Path
        The file to lock. It is made, with its folder, and removed at the end.

    Raises
    ------
    BlockingIOError
        If another process holds the lock. Its message names that process.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, hold_lock(Path(folder, "in-use")):
    ...     Path(folder, "in-use").is_file()
    True
    """
    from filelock import Timeout

    try:
        lock = _acquire(path)
    except Timeout as error:
        raise BlockingIOError(_name_owner(path)) from error
    try:
        yield
    finally:
        # Removed while it is locked: who waits for it sees that the file is gone, and retries.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


def _acquire(path: Path) -> BaseFileLock:
    from filelock import FileLock

    for attempt in range(MAX_ATTEMPTS):
        lock = FileLock(path, timeout=LOCK_SECONDS)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(poll_interval=0.02)
            path.write_text(f"{os.getpid()} {platform.node()}", encoding="utf-8")
        except (FileNotFoundError, FileExistsError):
            # The process that ended has just removed the folder; mkdir raises FileExistsError if
            # that happens after it met the folder and before it looks at its type.
            if attempt == MAX_ATTEMPTS - 1:
                raise
        else:
            return lock
    raise AssertionError  # not reached: the last attempt returns or raises


def _name_owner(path: Path) -> str:
    try:
        pid, _, host = path.read_text(encoding="utf-8", errors="replace")[:200].partition(" ")
    except OSError:
        return "Another process"
    return f"Process {pid} on {host}" if pid.isdecimal() and host else "Another process"


# -------------------------------------------------------------------------------- bounded reading


def is_file(path: Path) -> bool:
    """Whether a path is a regular file; False also for a path that no file can have.

    >>> is_file(Path("a" * 5000))
    False
    """
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_bounded(path: Path, most_bytes: int, *, n_bytes: int = -1) -> bytes:
    """Read a regular file of limited size, or its first ``n_bytes``.

    Raises
    ------
    OSError
        If it cannot be read, is a pipe or a device, which might never end, or is too large.
    """
    if path.exists() and not path.is_dir() and not path.is_file():
        raise OSError(EINVAL, "a pipe or a device, not a regular file")
    with path.open("rb") as file:
        # A sparse file of gigabytes is refused before it is read; a file may also grow.
        size = os.fstat(file.fileno()).st_size
        wanted = most_bytes + 1 if n_bytes < 0 else n_bytes
        content = file.read(wanted) if size <= most_bytes else b""
    if max(size, len(content)) > most_bytes:
        raise OSError(EFBIG, f"more than {most_bytes:,} bytes")
    return content


def read_text(path: Path, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """Read a list of names or labels in UTF-8; wrong bytes are replaced.

    Raises
    ------
    DataError
        If it cannot be read (``read_bounded``).
    """
    try:
        return read_bounded(path, most_bytes).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(
            f"Cannot read {str(path)!r:.300}: {error.strerror or error}. Replace it by a text file."
        ) from error


def read_yaml(path: Path, *, as_text: bool = False) -> Any:
    """Read a YAML file without code, without aliases, and of at most a megabyte.

    A few lines of aliases can stand for gigabytes, so a file with aliases is refused.

    Parameters
    ----------
    path : Path
    as_text : bool
        Return all values as text: `no` and `1` are names of classes.

    Raises
    ------
    OSError
        As ``read_bounded``.
    yaml.YAMLError, ValueError, RecursionError
        If the content is not YAML, is nested too deeply, or has aliases.
    """
    import yaml

    base: Any = yaml.BaseLoader if as_text else yaml.SafeLoader

    class Loader(base):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(
                    problem="an alias (*name)", problem_mark=self.peek_event().start_mark
                )
            return super().compose_node(parent, index)

    return yaml.load(read_bounded(path, MOST_YAML_BYTES), Loader=Loader)  # noqa: S506 - subclass
