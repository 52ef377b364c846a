"""Write the page of a data set: classes, samples, findings, sizes and similar images."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from headstart.cache import Cache, open_cache
from headstart.data.dataset import Dataset
from headstart.data.prepare import Progress, examine_dataset
from headstart.data.readers import READ_SETTINGS, kind_of_task, read_dataset
from headstart.errors import UnknownNameError, UsageError
from headstart.files import write_whole
from headstart.reports.data_page import render_data_page
from headstart.workflows.events import progress_of, shown
from headstart.workflows.run_folder import explain_write_errors, slug

__all__ = ["new_page_path", "view_data", "write_page"]


def view_data(
    source: object,
    out: str | Path | None = None,
    *,
    task: str = "auto",
    cache: Cache | bool | None = None,
    no_cache: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Path:
    """Write a page about a data set, as ``headstart data view`` on the command line.

    The page shows the images of each class and split, samples with their boxes and masks, all
    findings of the checks, sizes, and similar images side by side. Nothing is trained.

    Parameters
    ----------
    source : str, Path, Dataset or object
        As for `headstart.fit`.
    out : str or Path, optional
        HTML file, which must be new; by default ``runs/data-<name>.html``, or the next free name.
    task : {"auto", "classification", "detection", "segmentation"}
        Read the labels for this task, where they serve for several.
    cache : Cache or bool, optional
        Stores the scan of the images; by default the user's cache, False for an empty one.
    no_cache : bool
        The same as ``cache=False``.
    progress : bool, optional
        Show progress; None does so in a terminal and in a notebook only.
    **settings
        ``group_by``, ``masks`` and the other settings of reading, as for `headstart.read_dataset`.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    DataError
        If the data cannot be read.
    UsageError
        If a setting is unknown, or the file is not new.
    SetupError
        If the file cannot be written.

    Examples
    --------
    >>> view_data("photos/", "photos.html")  # doctest: +SKIP
    PosixPath('photos.html')
    """
    for name in settings:
        if name not in READ_SETTINGS:
            known = (*READ_SETTINGS, "cache", "no_cache", "out", "progress", "task")
            raise UnknownNameError("setting", name, known)
    target, kind = new_page_path(out, source), kind_of_task(task)
    if isinstance(source, Dataset):
        data = source
    else:
        data = read_dataset(source, task_kind=kind, **settings)
    with open_cache(cache, no_cache=no_cache) as store, shown(progress, None) as notify:
        write_page(data, target, cache=store, on_progress=progress_of(notify))
    return target


def write_page(
    data: Dataset,
    target: Path,
    *,
    cache: Cache,
    on_progress: Progress | None = None,
    command: str = "",
) -> None:
    """Scan and check a data set, and write its page.

    Parameters
    ----------
    data : Dataset
    target : Path
        HTML file; its folder is made.
    cache : Cache
    on_progress : callable, optional
        Called with the step, and the images that are done and in total.
    command : str
        The command line, for the page.

    Raises
    ------
    SetupError
        If the file cannot be written.
    """
    data, records, findings = examine_dataset(data, cache=cache, progress=on_progress)
    if on_progress is not None:
        on_progress("drawing samples", 0, 0)
    page = render_data_page(data, records, findings, command=command)
    with explain_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, page)


def new_page_path(out: str | Path | None, source: object) -> Path:
    """Return the path of a new page.

    Parameters
    ----------
    out : str or Path or None
        The path; None for ``runs/data-<name>.html``, with a number if this exists.
    source : object
        The data.

    Raises
    ------
    UsageError
        If ``out`` exists, or is no HTML file.

    Examples
    --------
    >>> new_page_path(None, "my photos/").as_posix()
    'runs/data-my-photos.html'
    """
    if out is None:
        stem = f"data-{slug(source)}"
        names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
        paths = (Path("runs", f"{name}.html") for name in names)
        return next(path for path in paths if not path.exists())
    path = Path(out)
    if path.suffix.lower() not in {".html", ".htm"}:
        example = str(path / f"{slug(source)}.html")
        raise UsageError(
            f"--out {str(out)!r} is no HTML file. Pass a file name, such as --out {example!r}."
        )
    if path.exists():
        raise UsageError(
            f"--out {str(out)!r} exists already, and nothing is overwritten. Pass another --out."
        )
    return path
