"""The folder of a run: its name, its creation in one step, and its checkpoints."""

from __future__ import annotations

import errno
import itertools
import os
import re
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import yaml

from headstart.data.dataset import Dataset
from headstart.data.formats.objects import object_name
from headstart.errors import SetupError, UsageError
from headstart.files import (
    hold_lock,
    output_path,
    publish_scratch,
    safe_part,
    scratch_folder,
    sweep_parts,
    write_whole,
)
from headstart.metrics.validation import json_text
from headstart.models.writing import save
from headstart.reports.predictions import render_predictions
from headstart.reports.report import Facts, render_card, render_html, render_json
from headstart.training import checkpoint
from headstart.workflows.recipe import Recipe

__all__ = [
    "checkpoint_folder",
    "choose_folder",
    "delete_checkpoint",
    "explain_write_errors",
    "free_folder",
    "has_checkpoint",
    "locked",
    "publish_folder",
    "slug",
    "temporary_folder",
    "write_evaluation",
    "write_files",
]

LOCK = "in-use"
"""File that the training process has locked, with its number and its machine."""

LEAST_SPACE = 50_000_000
"""Bytes that must be free before a run begins; a model of the embedded backbone has 20 MB."""

RACE = "race.json"
"""Result of a race, beside the checkpoints of the training that it chose."""


def slug(source: object) -> str:
    """Name a run's folder after its data.

    >>> slug("my photos/"), slug("demo:textures"), slug([("1.jpg", "cat")])
    ('my-photos', 'demo-textures', 'images')
    """
    if isinstance(source, str | os.PathLike):
        name = Path(source).resolve().stem
    else:
        name = source.name if isinstance(source, Dataset) else object_name(source)
    return safe_part(re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run")


def choose_folder(out: str | Path | None, source: object) -> Path:
    """Return the path of the run's folder; by default ``runs/<name of the data>``.

    Raises
    ------
    UsageError
        If ``out`` is no path, or does not end with a name, as "." and "..".
    """
    if out is None:
        return Path("runs") / slug(source)
    if not isinstance(out, str | Path):
        raise UsageError(f"`out` must be a path, got {reprlib.repr(out)}. Pass out='runs/photos'.")
    path = Path(out)
    if path.name in {"", ".."}:
        raise UsageError(
            f"--out {str(out)!r} does not name a new folder. Pass a name, such as "
            f"--out {str(path / slug(source))!r}."
        )
    return path


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside the target; a run that fails leaves nothing behind.

    What killed runs left beside the target is removed first.
    """
    with ExitStack() as stack:
        with explain_write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _require_space(target.parent)
            folder = stack.enter_context(scratch_folder(target.parent, target.name))
        yield folder


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


def _require_space(folder: Path) -> None:
    """Fail early: a full disk would fail the run at its end, when the model is written."""
    free = shutil.disk_usage(folder).free
    if free < LEAST_SPACE:
        raise SetupError(
            f"Only {free / 1e6:.0f} MB are free in {folder}; a run needs at least "
            f"{LEAST_SPACE / 1e6:.0f} MB. Free disk space there, or choose another folder "
            "with --out."
        )


def free_folder(target: Path) -> Path:
    """Return the target, or the next free name if it exists: an older run is never touched.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     Path(parent, "run").mkdir()
    ...     free_folder(Path(parent, "run")).name
    'run-2'
    """
    names = itertools.chain([target.name], (f"{target.name}-{n}" for n in itertools.count(2)))
    # A link that leads nowhere is a name that is taken, too.
    return next(p for p in map(target.with_name, names) if not (p.exists() or p.is_symlink()))


def publish_folder(folder: Path, target: Path) -> Path:
    """Rename a finished folder to the target or the next free name; never touch an older run."""
    while True:
        free = free_folder(target)
        try:
            return publish_scratch(folder, free)
        except OSError as error:
            # Another run that ended at this moment has taken the name.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST} or not free.exists():
                raise


def write_files(folder: Path, facts: Facts, recipe: Recipe) -> None:
    """Write the model, the reports, the predictions and the recipe."""
    save(facts.model, folder)
    for name, text in {
        "report.html": render_html(facts),
        "report.json": json_text(render_json(facts), indent=1),
        "card.md": render_card(facts),
        "resolved.yaml": yaml.safe_dump(recipe.as_dict(), sort_keys=False),
        **render_predictions(facts.evaluation),
    }.items():
        write_whole(output_path(folder, name), text)


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
                "report.json": json_text(render_json(facts), indent=1),
                **render_predictions(facts.evaluation),
            }.items():
                write_whole(output_path(folder, name), text)
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
        Created if missing, and removed if it is empty at the end.

    Raises
    ------
    UsageError
        If another process is training there; its number is named.
    SetupError
        If the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent, locked(Path(parent, "run.partial")):
    ...     (Path(parent, "run.partial") / LOCK).is_file()
    True
    """
    with ExitStack() as held:
        with explain_write_errors(folder):
            try:
                held.enter_context(hold_lock(folder / LOCK))
            except BlockingIOError as error:
                raise UsageError(
                    f"{error} is training in {folder}. Wait until it ends, or choose another "
                    "folder with --out."
                ) from error
            sweep_parts(folder)
        try:
            yield
        finally:
            held.close()
            with suppress(OSError):  # the run is complete; a folder that stays does no harm
                folder.rmdir()  # only if it is empty


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
