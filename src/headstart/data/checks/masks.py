"""Checks of segmentation masks before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.images import Finding, FindingKind, join_messages, sort_by_severity
from headstart.data.checks.scan import ImageRecord
from headstart.data.dataset import IGNORED, Dataset, Mask, Sample
from headstart.data.formats.layouts import is_image, natural_key
from headstart.data.formats.mask_pairs import is_other_rendering
from headstart.data.masks import class_counts, decode_mask, read_raw_mask
from headstart.errors import DataError, UnreadableImageError
from headstart.runtime import cores

__all__ = ["check_masks", "keep_usable_masks"]

DOMINANT = 0.99  # share of the pixels of one class above which the pixel accuracy is meaningless
_BACKGROUND = frozenset(("background", "bg", "none", "nothing", "other", "0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _MaskStatistics:
    """Pixels of a mask by class (last entry: ignored), its width and height, and its problem."""

    counts: NDArray[np.intp]
    size: tuple[int, int] = (0, 0)
    kind: FindingKind | None = None
    problem: str = ""


def check_masks(dataset: Dataset, records: Sequence[ImageRecord]) -> tuple[Finding, ...]:
    """Check the masks of a segmentation set; errors come first.

    Parameters
    ----------
    dataset : Dataset
        Data of another kind than "segmentation" have no findings. Every mask is decoded once, in
        threads.
    records : sequence of ImageRecord
        Result of `headstart.data.checks.scan.scan`, one for each sample.

    Returns
    -------
    tuple of Finding
        Errors are masks that cannot be used for training: missing, unreadable, of another size
        than the image, or with values that have no class. ``paths`` of an error begins with the
        image, and ``rows`` holds the index of the sample.

    Examples
    --------
    >>> from headstart.data.dataset import Palette
    >>> mask = Mask(source=np.array([[0, 3]]), palette=Palette(codes=((0, "sky"),)))
    >>> sample = Sample(image=b"", target=mask, title="street.jpg")
    >>> data = Dataset(samples=(sample,), classes=("sky",), kind="segmentation")
    >>> check_masks(data, [ImageRecord(digest="", width=2, height=1)])[0].kind
    'mask-values'
    """
    if dataset.kind != "segmentation":
        return ()
    with ThreadPoolExecutor(cores()) as pool:
        statistics = list(pool.map(lambda s: _measure(s, dataset.classes), dataset.samples))
    measured = list(zip(dataset.samples, statistics, strict=True))
    return sort_by_severity(
        [
            *_find_broken_masks(measured),
            *_find_wrong_sizes(measured, records),
            *_find_scaled_masks(measured, records),
            *_find_masks_without_image(dataset),
            *_find_empty_masks(measured, dataset.classes),
            *_find_binary_masks(dataset, statistics),
            *_find_dominant_class(statistics, dataset.classes),
        ]
    )


def keep_usable_masks(
    dataset: Dataset,
    records: Sequence[ImageRecord],
    findings: Sequence[Finding],
    *,
    bad_files: Literal["error", "skip"],
    rows: Sequence[int] | None = None,
) -> tuple[Dataset, tuple[ImageRecord, ...]]:
    """Leave out samples with unusable masks; return the others and their records.

    Parameters
    ----------
    dataset : Dataset
    records : sequence of ImageRecord
    findings : sequence of Finding
        Result of `check_masks`; findings of other checks are ignored.
    bad_files : {"error", "skip"}
    rows : sequence of int, optional
        Index of every sample in the data set that was checked; by default the data sets are the
        same.

    Raises
    ------
    DataError
        With ``bad_files="error"`` if a mask is an error (the message lists the first 20); with
        "skip" if all are.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"", title="a"), Sample(image=b"")), classes=())
    >>> bad = Finding(kind="mask-missing", severity="error", message="a: no mask", rows=(0,))
    >>> len(keep_usable_masks(data, [ImageRecord(digest="")] * 2, [bad], bad_files="skip")[0])
    1
    """
    dataset = _with_scaled_masks(dataset, records, findings, rows)
    errors = [f for f in findings if f.severity == "error" and f.kind.startswith("mask-")]
    # By index, not by name: arrays without a title share one name.
    unusable = {row for finding in errors for row in finding.rows}
    checked_rows = range(len(dataset)) if rows is None else rows
    usable = [i for i, row in enumerate(checked_rows) if row not in unusable]
    if errors and (bad_files == "error" or not usable):
        raise DataError(
            f"Expected a mask for every image, got {len(errors)} that cannot be used. Repair or "
            "remove them, or pass --bad-files skip to leave them out:"
            + join_messages([finding.message for finding in errors])
        )
    return dataset.subset(usable), tuple(records[i] for i in usable)


def _with_scaled_masks(
    dataset: Dataset,
    records: Sequence[ImageRecord],
    findings: Sequence[Finding],
    rows: Sequence[int] | None,
) -> Dataset:
    """Give the masks that are to be scaled the size of their image."""
    scaled = {row for finding in findings if finding.kind == "mask-scaled" for row in finding.rows}
    samples = list(dataset.samples)
    for i, row in enumerate(range(len(samples)) if rows is None else rows):
        target = samples[i].target
        if row in scaled and isinstance(target, Mask):
            size = (records[i].width, records[i].height)
            samples[i] = replace(samples[i], target=replace(target, size=size))
    return replace(dataset, samples=tuple(samples)) if scaled else dataset


_Measured = Sequence[tuple[Sample, _MaskStatistics]]


def _measure(sample: Sample, classes: Sequence[str]) -> _MaskStatistics:
    zeros = np.zeros(len(classes) + 1, dtype=np.intp)
    if not isinstance(sample.target, Mask):
        return _MaskStatistics(counts=zeros, kind="mask-missing", problem="an image without a mask")
    try:
        indices = decode_mask(sample.target, classes)
    except UnreadableImageError as error:
        return _MaskStatistics(counts=zeros, kind="mask-unreadable", problem=str(error))
    except DataError as error:
        height, width = read_raw_mask(sample.target.source, sample.target.max_pixels).values.shape[
            :2
        ]
        size = (width, height)
        return _MaskStatistics(counts=zeros, size=size, kind="mask-values", problem=str(error))
    height, width = indices.shape
    return _MaskStatistics(counts=class_counts(indices, len(classes)), size=(width, height))


def _image_and_mask_paths(sample: Sample) -> tuple[str, ...]:
    source = sample.target.source if isinstance(sample.target, Mask) else None
    return (sample.name, str(source)) if isinstance(source, Path) else (sample.name,)


def _find_broken_masks(measured: _Measured) -> Iterator[Finding]:
    for i, (sample, mask) in enumerate(measured):
        if mask.kind is not None:
            text, paths = f"{sample.name}: {mask.problem}", _image_and_mask_paths(sample)
            yield Finding(kind=mask.kind, severity="error", message=text, paths=paths, rows=(i,))


def _find_wrong_sizes(measured: _Measured, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    for i, ((sample, mask), record) in enumerate(zip(measured, records, strict=True)):
        if record.problem is not None or mask.size == (0, 0):
            continue
        paths = _image_and_mask_paths(sample)
        displayed = (record.width, record.height)
        # Orientations above 4 swap width and height.
        stored = displayed[::-1] if record.orientation > 4 else displayed
        if _is_scaled(sample, mask, record):
            continue
        if mask.size not in {displayed, stored}:
            text = (
                f"{sample.name}: {displayed[0]} x {displayed[1]} pixels, its mask "
                f"{mask.size[0]} x {mask.size[1]}. Export both at the same size."
            )
            yield Finding(kind="mask-size", severity="error", message=text, paths=paths, rows=(i,))
        elif record.orientation > 1 and stored == displayed and not _has_own_orientation(sample):
            text = (
                f"{sample.name}: rotated by EXIF, and the size of its mask does not show whether "
                "the mask was drawn before or after the rotation. The mask is read as drawn on "
                "the displayed image. Check that it fits."
            )
            yield Finding(kind="mask-turned", severity="warning", message=text, paths=paths)


def _is_scaled(sample: Sample, mask: _MaskStatistics, record: ImageRecord) -> bool:
    """Whether a mask has another size than its upright image, and the same aspect."""
    (width, height), (mask_width, mask_height) = (record.width, record.height), mask.size
    if record.orientation > 1 or not min(width, height):
        return False
    if width == mask_width or height == mask_height:  # the same size, or a part is missing
        return False
    # One pixel of rounding on the shorter side of the smaller one.
    scale = max(mask_width / width, mask_height / height)
    differs = max(abs(mask_width - width * scale), abs(mask_height - height * scale))
    return differs <= max(1.0, scale) and not _has_own_orientation(sample)


def _find_scaled_masks(measured: _Measured, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    """Report masks that have the aspect of their image and another size; they are scaled."""
    rows = [
        i
        for i, ((sample, mask), record) in enumerate(zip(measured, records, strict=True))
        if record.problem is None and mask.size != (0, 0) and _is_scaled(sample, mask, record)
    ]
    if rows:
        (sample, mask), record = measured[rows[0]], records[rows[0]]
        text = (
            f"{len(rows)} of {len(measured)} masks have the aspect of their image and another "
            f"size, such as that of {sample.name}: {mask.size[0]} x {mask.size[1]} for "
            f"{record.width} x {record.height} pixels. They are scaled by nearest neighbour. "
            "Export both at the same size for exact borders"
        )
        paths = tuple(measured[row][0].name for row in rows)
        yield Finding(
            kind="mask-scaled", severity="warning", message=text, paths=paths, rows=tuple(rows)
        )


def _has_own_orientation(sample: Sample) -> bool:
    """Whether the mask's file has an EXIF orientation, which then decides."""
    from headstart.data.images import read_header

    source = sample.target.source if isinstance(sample.target, Mask) else None
    return isinstance(source, Path) and read_header(source).exif_orientation != 1


def _find_masks_without_image(dataset: Dataset) -> Iterator[Finding]:
    """Report files in the mask folders that belong to no image of the set."""
    used = {
        sample.target.source
        for sample in dataset.samples
        if isinstance(sample.target, Mask) and isinstance(sample.target.source, Path)
    }
    for folder in sorted({path.parent for path in used}):
        names = [
            str(path)
            for path in folder.iterdir()
            if is_image(path.name)
            and path.name[0] != "."
            and path not in used
            and not is_other_rendering(path.name)
        ]
        if names:
            names.sort(key=natural_key)
            text = f"{_format_count(len(names))} without an image, such as {names[0]}"
            yield Finding(kind="mask-spare", severity="warning", message=text, paths=tuple(names))


def _format_count(count: int) -> str:
    return f"{count} mask{'s' if count > 1 else ''}"


def _find_empty_masks(measured: _Measured, classes: Sequence[str]) -> Iterator[Finding]:
    """Report masks with ignored pixels only, and masks with background only."""
    readable = [(sample.name, mask.counts) for sample, mask in measured if mask.kind is None]
    ignored = [name for name, counts in readable if not counts[:-1].any()]
    if ignored:
        text = (
            f"{_format_count(len(ignored))} with ignored pixels only, such as that of "
            f"{ignored[0]}; training cannot use them. The value 255 is ignored: if it stands for "
            "a class, name it in the class map"
        )
        yield Finding(kind="mask-ignored", severity="warning", message=text, paths=tuple(ignored))
    if len(classes) < 2 or classes[0].casefold() not in _BACKGROUND:
        return
    empty = [name for name, counts in readable if counts[0] and not counts[1:-1].any()]
    if empty:
        text = f"{_format_count(len(empty))} of {classes[0]} only, such as that of {empty[0]}"
        is_most = 2 * len(empty) > len(readable)
        severity: Literal["warning", "note"] = "warning" if is_most else "note"
        yield Finding(kind="mask-background", severity=severity, message=text, paths=tuple(empty))


def _find_binary_masks(
    dataset: Dataset, statistics: Sequence[_MaskStatistics]
) -> Iterator[Finding]:
    """Report masks of 0 and 255: some tools write an object as 255, others an ignored region."""
    palettes = {s.target.palette for s in dataset.samples if isinstance(s.target, Mask)}
    codes = {code: name for palette in palettes for code, name in palette.codes}
    if codes.keys() == {0, IGNORED}:
        text = f"0/255 read as {codes[0]} and {codes[IGNORED]}"
        yield Finding(kind="mask-binary", severity="note", message=text)
        return
    totals = np.sum([mask.counts for mask in statistics], axis=0)
    present = [name for name, count in zip(dataset.classes, totals, strict=False) if count]
    if len(dataset.classes) > 1 and len(present) == 1 and totals[-1]:
        text = (
            f"masks contain only {present[0]!r} and ignored pixels: 255 is read as ignored, "
            f"although {len(dataset.classes)} classes are named. If it stands for a class, name "
            "it in the class map, as a line '255 name'"
        )
        yield Finding(kind="mask-binary", severity="warning", message=text)


def _find_dominant_class(
    statistics: Sequence[_MaskStatistics], classes: Sequence[str]
) -> Iterator[Finding]:
    totals = np.sum([mask.counts for mask in statistics], axis=0)[: len(classes)]
    if not totals.sum():
        return
    shares = totals / totals.sum()
    largest = int(shares.argmax())
    if shares[largest] > DOMINANT and len(classes) > 1:
        text = (
            f"class {classes[largest]!r} covers {shares[largest]:.1%} of the pixels: predicting "
            "it everywhere is nearly always right. Evaluate by the IoU of the other classes"
        )
        yield Finding(kind="mask-dominant", severity="warning", message=text)
