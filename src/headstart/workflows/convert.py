"""Write a data set in another format: COCO, YOLO, folders or Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from headstart.data.dataset import Dataset, labels_of
from headstart.data.formats.layouts import format_list
from headstart.data.readers import READ_SETTINGS, kind_of_task, read_dataset
from headstart.data.writing.class_folders import class_folders, write_class_folders
from headstart.data.writing.coco import coco_folders, write_coco
from headstart.data.writing.image_files import ImageFile, copy_images, name_images
from headstart.data.writing.mask_folders import mask_folders, write_mask_folders
from headstart.data.writing.parquet import write_parquet
from headstart.data.writing.plan import (
    FileFormat,
    list_losses,
    require_writable,
    safe_class_names,
)
from headstart.data.writing.yolo import write_yolo, yolo_folders
from headstart.errors import DataError, HeadstartError, UnknownNameError, UsageError
from headstart.models.prediction_files import atomic_folder
from headstart.workflows.events import Noted, Observer, progress_of, shown

__all__ = ["ConvertedData", "convert_data"]


@dataclass(frozen=True, kw_only=True)
class ConvertedData:
    """A data set that was written in another format.

    Parameters
    ----------
    folder : Path
    format : {"coco", "yolo", "folders", "parquet"}
    images : int
        Number of images.
    not_kept : tuple of str
        What the format cannot hold.
    """

    folder: Path
    format: FileFormat
    images: int
    not_kept: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the values as JSON values."""
        return {
            "folder": str(self.folder),
            "format": self.format,
            "images": self.images,
            "not_kept": list(self.not_kept),
        }


class _Format(NamedTuple):
    folders: Callable[[Dataset], list[str]]
    write: Callable[[Path, Dataset, Sequence[ImageFile]], tuple[str, ...]]


def convert_data(
    source: object,
    out: str | Path,
    *,
    to: str,
    link: bool = False,
    task: str = "auto",
    observer: Observer | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> ConvertedData:
    """Write a data set in another format, as ``headstart data convert`` on the command line.

    Images are copied without change. Labels, boxes, masks, splits, groups and the order of classes
    are kept where the format can hold them; the rest is reported before anything is written.

    Parameters
    ----------
    source : str, Path, Dataset or object
        As for `headstart.fit`.
    out : str or Path
        Output folder, new or empty.
    to : {"coco", "yolo", "folders", "parquet"}
        coco holds boxes and masks, yolo boxes, folders classes and masks, parquet one or several
        labels per image.
    link : bool
        Make hard links instead of copies of the images.
    task : {"auto", "classification", "detection", "segmentation"}
        For data with several kinds of targets.
    observer : callable, optional
        Called with events: what is not kept, and the progress.
    progress : bool, optional
        Show progress; None does so in a terminal and in a notebook only.
    **settings
        ``group_by``, ``masks`` and the other settings of reading, as for `headstart.read_dataset`.

    Returns
    -------
    ConvertedData

    Raises
    ------
    DataError
        If the data cannot be read or written, or would be read as other classes.
    UsageError
        If the format does not hold the targets, or the folder is not empty.
    SetupError
        If the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp(), "boxes")
    >>> converted = convert_data("demo:boxes", out, to="yolo", progress=False)
    >>> converted.images, sorted(path.name for path in out.iterdir())
    (120, ['data.yaml', 'images', 'labels'])
    """
    target = _require_new(Path(out))
    data = _read(source, task, settings)
    file_format = require_writable(data, to)
    if link and file_format == "parquet":
        raise UsageError(f"--to {to} holds the images themselves, without links. Remove --link.")
    not_kept = list_losses(data, file_format)
    with shown(progress, observer) as notify, atomic_folder(target) as scratch:
        for sentence in not_kept:
            notify(Noted(text=f"Not kept: {sentence}"))
        form = _form(file_format, data)
        everywhere = file_format == "coco"
        files = name_images(data, form.folders(data), everywhere=everywhere)
        if file_format != "parquet":
            copy_images(scratch, files, link=link, on_progress=progress_of(notify))
        later = form.write(scratch, data, files)
        _require_same(scratch, data, file_format)
        for sentence in later:
            notify(Noted(text=f"Not kept: {sentence}"))
    return ConvertedData(
        folder=target, format=file_format, images=len(data), not_kept=(*not_kept, *later)
    )


def _require_new(folder: Path) -> Path:
    """Refuse a folder with files before anything is read."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"The output {str(folder)!r} exists and has files, and nothing is overwritten. Pass a "
            "new folder."
        )
    return folder


def _read(source: object, task: str, settings: Mapping[str, Any]) -> Dataset:
    for name in settings:
        if name not in READ_SETTINGS:
            raise UnknownNameError(
                "setting",
                name,
                (*READ_SETTINGS, "link", "observer", "out", "progress", "task", "to"),
            )
    kind = kind_of_task(task)
    if isinstance(source, Dataset):
        return source
    return read_dataset(source, task_kind=kind, min_classes=1, **settings)


def _form(file_format: FileFormat, data: Dataset) -> _Format:
    if file_format == "coco":
        return _Format(coco_folders, write_coco)
    if file_format == "yolo":
        return _Format(yolo_folders, write_yolo)
    if file_format == "parquet":
        return _Format(lambda each: [""] * len(each), write_parquet)
    if data.kind == "segmentation":
        return _Format(mask_folders, write_mask_folders)
    return _Format(class_folders, write_class_folders)


def _require_same(folder: Path, data: Dataset, file_format: FileFormat) -> None:
    """Read class folders again: a class called ``train`` or ``masks`` would become something else.

    Raises
    ------
    DataError
        If the folders are read as other classes or splits.
    """
    if file_format != "folders" or data.kind != "multiclass" or len(data.classes) < 2:
        return
    names = safe_class_names(data.classes)
    expected = Counter((s.split, names[str(s.target)]) for s in data.samples)
    try:
        again = read_dataset(folder, min_classes=0)
        found = Counter((s.split, *labels_of(s.target)) for s in again.samples)
    except HeadstartError as error:
        found, reason = Counter(), str(error).partition("\n")[0]
    else:
        reason = f"they are read as the classes {format_list(again.classes)}"
    if found != expected:
        raise DataError(
            f"The class folders {format_list(names.values())} would not be read as classes: "
            f"{reason}. Rename these classes, or pass --to parquet."
        )
