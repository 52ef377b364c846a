"""The folder of a run: its name, its creation in one step, and its checkpoints."""

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
from headstart.reports.predictions import render_predictions
from headstart.reports.report import Facts, render_card, render_html, render_json
from headstart.training import checkpoint
from headstart.workflows.recipe import Recipe

__all__ = [
    "checkpoint_folder",
    "choose_folder",
    "delete_checkpoint",
    "explain_write_errors",
    "has_checkpoint",
    "locked",
    "publish_folder",
    "slug",
    "temporary_folder",
    "write_evaluation",
    "write_files",
]

LOCK = "in-use"
"""File with the number of the process that trains, and its machine."""

RACE = "race.json"
"""Result of a race, beside the checkpoints of the training that it chose."""


def slug(source: str | Path | Dataset) -> str:
    """Name a run's folder after its data.

    >>> slug("my photos/"), slug("demo:textures")
    ('my-photos', 'demo-textures')
    """
    name = source.name if isinstance(source, Dataset) else Path(source).resolve().stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


def choose_folder(out: str | Path | None, source: str | Path | Dataset) -> Path:
    """Return the path of the run's folder; by default ``runs/<name of the data>``.

    Raises
    ------
    UsageError
        If ``out`` does not end with a name, as "." and "..".
    """
    if out is None:
        return Path("runs") / slug(source)
    path = Path(out)
    if path.name in {"", ".."}:
        raise UsageError(
            f"--out {str(out)!r} does not name a new folder. Pass a name, such as "
            f"--out {str(path / slug(source))!r}."
        )
    return path


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside the target; a run that fails leaves nothing behind."""
    with explain_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def explain_write_errors(target: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into an error with the path and advice."""
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"Cannot write to {target}: {error}. Free disk space there, or choose another folder "
            "with --out."
        ) from error


def publish_folder(folder: Path, target: Path) -> Path:
    """Rename a finished folder to the target or the next free name; never touch an older run."""
    names = itertools.chain([target.name], (f"{target.name}-{n}" for n in itertools.count(2)))
    final = next(path for path in map(target.with_name, names) if not path.exists())
    folder.chmod(0o755)  # mkdtemp's folders are private
    return folder.rename(final)


def write_files(folder: Path, facts: Facts, recipe: Recipe) -> None:
    """Write the model, the reports, the predictions and the recipe."""
    save(facts.model, folder)
    for name, text in {
        "report.html": render_html(facts),
        "report.json": json.dumps(render_json(facts), indent=1, allow_nan=False),
        "card.md": render_card(facts),
        "resolved.yaml": yaml.safe_dump(recipe.as_dict(), sort_keys=False),
        **render_predictions(facts.evaluation),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")


def write_evaluation(target: Path, facts: Facts) -> Path:
    """Write the page, the numbers and the predictions of a saved model on other images.

    Parameters
    ----------
    target : Path
        The folder to write; an existing folder is never changed.
    facts : Facts

    Returns
    -------
    Path
        The folder, with a number if there was one of that name.
    """
    with temporary_folder(target) as folder:
        with explain_write_errors(target):
            for name, text in {
                "report.html": render_html(facts),
                "report.json": json.dumps(render_json(facts), indent=1, allow_nan=False),
                **render_predictions(facts.evaluation),
            }.items():
                (folder / name).write_text(text, encoding="utf-8")
        return publish_folder(folder, target)


def checkpoint_folder(target: Path) -> Path:
    """Return the folder of an unfinished run's checkpoints, beside the run's folder.

    >>> checkpoint_folder(Path("runs/photos")).name
    'photos.partial'
    """
    return target.with_name(f"{target.name}.partial")


def has_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a checkpoint, or the result of a race."""
    return any((folder / name).exists() for name in (checkpoint.NAME, RACE))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder of checkpoints against other processes while the block runs.

    Parameters
    ----------
    folder : Path
        Created if missing, and removed if it is empty at the end. The lock of a process that has
        died is replaced.

    Raises
    ------
    UsageError
        If another process is training there; its number is named.
    SetupError
        If the folder cannot be written.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as parent, locked(Path(parent, "run.partial")):
    ...     (Path(parent, "run.partial") / LOCK).is_file()
    True
    """
    lock = folder / LOCK
    owner = f"{os.getpid()} {platform.node()}"
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                with lock.open("x", encoding="utf-8") as file:
                    file.write(owner)
                break
            except FileExistsError:
                _remove_stale_lock(lock)
    try:
        yield
    finally:
        with suppress(OSError):  # the run is complete; a stale lock does no harm
            lock.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def _remove_stale_lock(lock: Path) -> None:
    """Remove the lock of a process that has ended; refuse if it may still run."""
    try:
        pid, _, host = lock.read_text(encoding="utf-8").partition(" ")
    except FileNotFoundError:  # the process has just ended
        return
    is_here = host == platform.node()
    if pid.isdecimal() and (not is_here or _is_alive(int(pid))):
        raise UsageError(
            f"Process {pid} on {host} is training in {lock.parent}. Wait until it ends, or choose "
            "another folder with --out"
            + ("." if is_here else f", or delete {lock} if the process has ended.")
        )
    lock.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    import psutil

    # In containers process numbers repeat: a lock with our own number is an earlier process's.
    return pid != os.getpid() and psutil.pid_exists(pid)


def delete_checkpoint(folder: Path) -> bool:
    """Delete a checkpoint, and its folder if nothing else is in it.

    Returns
    -------
    bool
        Whether there was a checkpoint.
    """
    existed = (folder / checkpoint.NAME).exists()
    if folder.is_dir():
        checkpoint.remove(folder)
        (folder / RACE).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return existed
