"""A run's folder: its name, how it comes into being whole, and where a training is taken up."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from headstart.data.dataset import Dataset
from headstart.errors import SetupError, UsageError
from headstart.models.saving import save
from headstart.reports.predictions import answer_files
from headstart.reports.report import Facts, render_card, render_html, render_json
from headstart.training import checkpoint
from headstart.workflows.recipe import Recipe

__all__ = [
    "alone",
    "claim",
    "forget",
    "hidden_folder",
    "is_begun",
    "resumable",
    "slug",
    "told_where",
    "wanted_folder",
    "write_files",
]

LOCK = "in-use"
"""Number of the process that trains, and its machine."""

RACE = "race.json"
"""What a race has chosen, beside the checkpoints of the training that it chose."""


def slug(source: str | Path | Dataset) -> str:
    """Name a run's folder after what it learned from.

    >>> slug("my photos/"), slug("demo:textures")
    ('my-photos', 'demo-textures')
    """
    name = source.name if isinstance(source, Dataset) else Path(source).resolve().stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


def wanted_folder(out: str | Path | None, source: str | Path | Dataset) -> Path:
    """Say where the run's folder shall be; "." and ".." are no names that one could be given.

    Raises
    ------
    UsageError
        If ``out`` names no folder of its own.
    """
    if out is None:
        return Path("runs") / slug(source)
    wanted = Path(out)
    if wanted.name in {"", ".."}:
        raise UsageError(
            f"Expected `out` to name a new folder, got {str(out)!r}; do give it a name, such as "
            f"{str(wanted / slug(source))!r}."
        )
    return wanted


@contextmanager
def hidden_folder(wanted: Path) -> Iterator[Path]:
    """Make a hidden folder beside the wanted one; a run that fails leaves nothing behind."""
    with told_where(wanted):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{wanted.name}-", dir=wanted.parent))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def told_where(wanted: Path) -> Iterator[None]:
    """A full disk, or a folder that nobody may write to, with the path and the way out."""
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"Expected to write a run's folder at {wanted}, got {error}; do make room there, or "
            "choose another --out."
        ) from error


def claim(folder: Path, wanted: Path) -> Path:
    """Give a finished folder its name, or the next free one: an older run is never touched."""
    names = itertools.chain([wanted.name], (f"{wanted.name}-{n}" for n in itertools.count(2)))
    final = next(path for path in map(wanted.with_name, names) if not path.exists())
    folder.chmod(0o755)  # mkdtemp's folders are private
    return folder.rename(final)


def write_files(folder: Path, facts: Facts, recipe: Recipe) -> None:
    """Write the model, and everything that is said of it."""
    save(facts.model, folder)
    for name, text in {
        "report.html": render_html(facts),
        "report.json": json.dumps(render_json(facts), indent=1, allow_nan=False),
        "card.md": render_card(facts),
        "resolved.yaml": yaml.safe_dump(recipe.as_dict(), sort_keys=False),
        **answer_files(facts.evaluation),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")


def resumable(wanted: Path) -> Path:
    """Folder of the checkpoints of a training whose run is not complete, beside the run's.

    >>> resumable(Path("runs/photos")).name
    'photos.partial'
    """
    return wanted.with_name(f"{wanted.name}.partial")


def is_begun(folder: Path) -> bool:
    """Whether a training, or the race that chose it, has left something to go on with."""
    return any((folder / name).exists() for name in (checkpoint.NAME, RACE))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep others from a training's checkpoints while the block runs.

    Parameters
    ----------
    folder : Path
        Made if need be, and removed if it ends empty. What a dead process left is taken over.

    Raises
    ------
    UsageError
        If another process is training there; it is named.
    SetupError
        If the folder cannot be written.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as parent, alone(Path(parent, "run.partial")):
    ...     (Path(parent, "run.partial") / LOCK).is_file()
    True
    """
    lock = folder / LOCK
    mine = f"{os.getpid()} {platform.node()}"
    with told_where(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                with lock.open("x", encoding="utf-8") as file:
                    file.write(mine)
                break
            except FileExistsError:
                _take_over(lock)
    try:
        yield
    finally:
        with suppress(OSError):  # the run is complete; a stale lock does no harm
            lock.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def _take_over(lock: Path) -> None:
    """Remove the lock of a process that is no more; refuse where it may still be there."""
    try:
        pid, _, host = lock.read_text(encoding="utf-8").partition(" ")
    except FileNotFoundError:  # it has just ended
        return
    is_here = host == platform.node()
    if pid.isdecimal() and (not is_here or _is_alive(int(pid))):
        raise UsageError(
            f"Expected to be alone in {lock.parent}, got process {pid} on {host}, which is "
            "training there; do wait until it ends, or choose another --out"
            + ("." if is_here else f", or delete {lock} if it is no more.")
        )
    lock.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    import psutil

    # A container's processes begin with the same numbers again: its own is no other's.
    return pid != os.getpid() and psutil.pid_exists(pid)


def forget(folder: Path) -> bool:
    """Delete a checkpoint, and its folder if nothing else is in it.

    Returns
    -------
    bool
        Whether there was a checkpoint.
    """
    there = (folder / checkpoint.NAME).exists()
    if folder.is_dir():
        checkpoint.remove(folder)
        (folder / RACE).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return there
