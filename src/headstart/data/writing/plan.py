"""What a file format can hold of a data set, and what it cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from headstart.data.dataset import Boxes, Dataset, Kind, labels_of
from headstart.data.formats.layouts import format_list, natural_key
from headstart.data.pixel_values import DEFAULT_OPTIONS
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.files import is_file, safe_part

__all__ = ["FileFormat", "list_losses", "require_writable", "safe_class_names"]

FileFormat = Literal["coco", "yolo", "folders", "parquet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Capacity:
    """Kinds of data that a format holds, and which of their properties."""

    title: str
    kinds: tuple[Kind, ...]
    groups: bool = False
    weights: bool = False
    hard: bool = False
    single_split: bool = False
    class_order: bool = False


_CAPACITIES: dict[FileFormat, _Capacity] = {
    "coco": _Capacity(
        title="COCO",
        kinds=("detection", "segmentation"),
        groups=True,
        hard=True,
        class_order=True,
    ),
    "yolo": _Capacity(title="YOLO", kinds=("detection",), class_order=True),
    "folders": _Capacity(
        title="A folder for each class", kinds=("multiclass", "segmentation"), single_split=True
    ),
    "parquet": _Capacity(
        title="Parquet",
        kinds=("multiclass", "multilabel"),
        groups=True,
        weights=True,
        single_split=True,
    ),
}
_KIND_TITLES = {
    "multiclass": "one class per image",
    "multilabel": "several labels per image",
    "detection": "boxes",
    "segmentation": "masks",
}


def require_writable(data: Dataset, to: str) -> FileFormat:
    """Check that a format can hold the targets of a data set, and that its images exist.

    Raises
    ------
    DataError
        If images are missing or have no label, or only some have a split.
    UnknownNameError
        If there is no such format.
    UsageError
        If the format does not hold targets of this kind.

    Examples
    --------
    >>> require_writable(Dataset(samples=(), classes=(), kind="detection"), "folders")
    Traceback (most recent call last):
    headstart.errors.UsageError: --to 'folders' cannot hold boxes. Pass --to coco or --to yolo.
    """
    formats = get_args(FileFormat)
    file_format: FileFormat | None = next((name for name in formats if name == to), None)
    if file_format is None:
        raise UnknownNameError("format for --to", to, formats)
    if data.kind not in _CAPACITIES[file_format].kinds:
        others = [name for name, each in _CAPACITIES.items() if data.kind in each.kinds]
        advice = " or ".join(f"--to {name}" for name in others)
        raise UsageError(f"--to {to!r} cannot hold {_KIND_TITLES[data.kind]}. Pass {advice}.")
    _require_images(data)
    return file_format


def _require_images(data: Dataset) -> None:
    missing = [s.name for s in data.samples if isinstance(s.image, Path) and not is_file(s.image)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(data)} images do not exist: {format_list(missing)}. Add the "
            "files, or remove their annotations."
        )
    unlabelled = [sample.name for sample in data.samples if sample.target is None]
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} of {len(data)} images have no label: {format_list(unlabelled)}. "
            "Label them, or remove the images."
        )
    unsplit = sum(sample.split is None for sample in data.samples)
    if 0 < unsplit < len(data):
        raise DataError(
            f"{unsplit} of {len(data)} images have no split, and the others have one. Name the "
            "split of every image, or of none."
        )


def list_losses(data: Dataset, to: FileFormat) -> tuple[str, ...]:
    """Sentences about what a format cannot hold of a data set; empty if it holds everything.

    Examples
    --------
    >>> from headstart.data.dataset import Sample
    >>> boxes = Boxes(corners=((0, 0, 4, 2),), labels=("cell",), hard=(True,))
    >>> data = Dataset(
    ...     samples=(Sample(image=b"", target=boxes),), classes=("cell",), kind="detection"
    ... )
    >>> list_losses(data, "coco"), list_losses(data, "yolo")
    ((), ('1 difficult or crowd object: YOLO cannot mark it, so it is left out.',))
    """
    return tuple(_losses(data, _CAPACITIES[to], to))


def _losses(data: Dataset, capacity: _Capacity, to: FileFormat) -> Iterator[str]:
    title = "A mask folder" if (to, data.kind) == ("folders", "segmentation") else capacity.title
    groups = {sample.group for sample in data.samples} - {None}
    if groups and not capacity.groups:
        yield (
            f"{_count(len(groups), 'group')}: {title} has no place for groups. Pass --group-by "
            "when you train."
        )
    weighted = sum(sample.weight != 1 for sample in data.samples)
    if weighted and not capacity.weights:
        yield f"weights of {_count(weighted, 'image')}: {title} has no place for weights."
    boxes = [sample.target for sample in data.samples if isinstance(sample.target, Boxes)]
    n_hard = sum(sum(each.hard) for each in boxes)
    if n_hard and not capacity.hard:
        them = "it, so it is" if n_hard == 1 else "them, so they are"
        yield f"{_count(n_hard, 'difficult or crowd object')}: {title} cannot mark {them} left out."
    splits = {sample.split for sample in data.samples} - {None}
    if len(splits) == 1 and not capacity.single_split:
        yield (
            f"the split {splits.pop()!r} of all images: {title} files of one split are read as "
            "data without splits."
        )
    yield from _class_losses(data, capacity, title)
    options = next((s.options for s in data.samples if s.options != DEFAULT_OPTIONS), None)
    if options is not None and options.bits is not None:
        yield f"--bits {options.bits}: images are copied as they are. Pass --bits again."


def _class_losses(data: Dataset, capacity: _Capacity, title: str) -> Iterator[str]:
    in_order = list(data.classes) == sorted(data.classes, key=natural_key)
    if not in_order and not capacity.class_order and data.kind != "segmentation":
        yield f"the order of the classes: {title} is read in the natural order of the names."
    if data.kind == "multiclass" and capacity.title.startswith("A folder"):
        names = safe_class_names(data.classes)
        renamed = [f"{old!r} as {new!r}" for old, new in names.items() if old != new]
        if renamed:
            yield f"names of {_count(len(renamed), 'class')}: written {', '.join(renamed[:5])}."
    if data.kind == "detection":
        used = {label for sample in data.samples for label in labels_of(sample.target)}
        empty = [name for name in data.classes if name not in used]
        if empty:
            yield f"classes without an object are not read again: {format_list(empty)}."


def safe_class_names(classes: tuple[str, ...]) -> dict[str, str]:
    """Name a folder for each class; no two differ only in upper and lower case.

    >>> safe_class_names(("a/b", "a_b", "cat"))
    {'a/b': 'a_b', 'a_b': 'a_b-2', 'cat': 'cat'}
    """
    used: Counter[str] = Counter()
    names = {}
    for name in classes:
        part = safe_part(name)
        used[part.casefold()] += 1
        count = used[part.casefold()]
        names[name] = part if count == 1 else f"{part}-{count}"
    return names


def _count(number: int, unit: str) -> str:
    plural = "es" if unit.endswith("s") else "s"
    return f"{number} {unit}{'' if number == 1 else plural}"
