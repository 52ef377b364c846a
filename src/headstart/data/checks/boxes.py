"""Checks and clean-up of boxes before training.

The functions take a data set and the records of its scan. Without records, they read the image
headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.images import (
    Finding,
    FindingKind,
    join_messages,
    require_record_per_sample,
)
from headstart.data.checks.scan import ImageRecord, scan
from headstart.data.dataset import Boxes, Dataset, Sample
from headstart.data.formats.annotations import quick_header
from headstart.data.formats.layouts import format_list
from headstart.errors import DataError

__all__ = [
    "MAX_OVERHANG",
    "MIN_SIDE",
    "clean_boxes",
    "find_boxless",
    "keep_boxed",
    "require_matching_sizes",
]

MAX_OVERHANG = 1.5  # pixels that a box may reach out of its image without a finding
MIN_SIDE = 1.0  # pixels; a VOC box with xmin = xmax has this width and is useless for training

BoxSelection = NDArray[np.bool_]


def clean_boxes(
    data: Dataset, records: Sequence[ImageRecord] | None = None
) -> tuple[Dataset, tuple[Finding, ...]]:
    """Clip boxes to their images and drop unusable ones; report each change as a finding.

    Dropped are boxes at most `MIN_SIDE` wide or high, boxes outside their image, and repetitions
    of a box of the same class. Boxes that reach out of the image are clipped, without a finding
    up to `MAX_OVERHANG`. Cleaning clean boxes changes nothing.

    Parameters
    ----------
    data : Dataset
        Returned unchanged if its kind is not "detection".
    records : sequence of ImageRecord, optional
        Result of `scan`, one for each sample; by default the headers of the images are read.

    Returns
    -------
    Dataset
        The same examples with clean boxes. Boxes of unreadable images are unchanged.
    tuple of Finding
        At most one of each kind per image; a single one for all images with an ambiguous EXIF
        orientation.

    Raises
    ------
    UsageError
        If the number of records is not the number of samples.

    Examples
    --------
    >>> boxes = Boxes(corners=((0, 0, 9, 4), (2, 2, 2, 3)), labels=("cat", "dog"))
    >>> sample = Sample(image=np.zeros((4, 8, 3), np.uint8), target=boxes, title="a.jpg")
    >>> data = Dataset(samples=(sample,), classes=("cat", "dog"), kind="detection")
    >>> clean, findings = clean_boxes(data)
    >>> clean.samples[0].target.corners
    ((0.0, 0.0, 8.0, 4.0),)
    >>> print(findings[0].message)
    a.jpg: 1 box left out (at most 1 pixel wide or high): dog at 2, 2, 2, 3
    """
    if data.kind != "detection":
        return data, ()
    if records is None:
        infos = [_read_info(sample) for sample in data.samples]
    else:
        require_record_per_sample(data, records)
        infos = [_info_of(record) for record in records]
    samples: list[Sample] = []
    findings: list[Finding] = []
    ambiguous: list[str] = []
    for sample, info in zip(data.samples, infos, strict=True):
        boxes = sample.target
        if isinstance(boxes, Boxes) and info is not None:
            if _is_rotation_ambiguous(boxes, info):
                ambiguous.append(sample.name)
            boxes, sample_findings = _clean(boxes, (info.width, info.height), sample.name)
            findings += sample_findings
        samples.append(sample if boxes is sample.target else replace(sample, target=boxes))
    return replace(data, samples=tuple(samples)), (*findings, *_rotation_findings(ambiguous))


def require_matching_sizes(findings: Iterable[Finding]) -> None:
    """Refuse images whose size differs from the annotated size so that boxes do not fit.

    Raises
    ------
    DataError
        If there are findings of kind "box-size" that are errors; the message lists the first 20.

    Examples
    --------
    >>> require_matching_sizes([])
    """
    errors = [f.message for f in findings if f.kind == "box-size" and f.severity == "error"]
    if errors:
        raise DataError(
            f"Expected boxes that lie in their images, got {len(errors)} images of another size "
            "than their annotations state. Use the images that were annotated, or scale the "
            f"boxes with the images:{join_messages(errors)}"
        )


def find_boxless(before: Dataset, after: Dataset) -> tuple[Finding, ...]:
    """Report the images whose boxes are all invalid; as images without objects they would mislead.

    Parameters
    ----------
    before, after : Dataset
        What `clean_boxes` got and returned.

    Returns
    -------
    tuple of Finding
        At most one, of kind "box-none", with the rows of these images.

    Examples
    --------
    >>> thin = Boxes(corners=((2, 2, 2, 3),), labels=("dog",))
    >>> sample = Sample(image=np.zeros((4, 8, 3), np.uint8), target=thin, title="a.jpg")
    >>> data = Dataset(samples=(sample,), classes=("dog",), kind="detection")
    >>> print(find_boxless(data, clean_boxes(data)[0])[0].message)
    1 image left out, because none of its boxes is valid: 'a.jpg'. Correct these boxes.
    """
    rows = tuple(
        row
        for row, (old, new) in enumerate(zip(before.samples, after.samples, strict=True))
        if isinstance(old.target, Boxes)
        and isinstance(new.target, Boxes)
        and old.target.labels
        and not new.target.labels
    )
    if not rows:
        return ()
    names = tuple(before.samples[row].name for row in rows)
    many = len(rows) > 1
    text = (
        f"{len(rows)} image{'s' * many} left out, because none of {'their' if many else 'its'} "
        f"boxes is valid: {format_list(names)}. Correct these boxes."
    )
    return (Finding(kind="box-none", severity="warning", message=text, paths=names, rows=rows),)


def keep_boxed(
    dataset: Dataset,
    records: Sequence[ImageRecord],
    findings: Iterable[Finding],
    rows: Sequence[int] | None = None,
) -> tuple[Dataset, tuple[ImageRecord, ...]]:
    """Leave out the images that `find_boxless` reports; return the others and their records.

    Parameters
    ----------
    dataset : Dataset
    records : sequence of ImageRecord
    findings : iterable of Finding
        Findings of other kinds are ignored.
    rows : sequence of int, optional
        Index of every sample in the data set that was checked; by default the data sets are the
        same.

    Raises
    ------
    DataError
        If no image is left.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"", title="a"), Sample(image=b"")), classes=())
    >>> invalid = Finding(kind="box-none", severity="warning", message="", rows=(0,))
    >>> len(keep_boxed(data, [ImageRecord(digest="")] * 2, [invalid])[0])
    1
    """
    left_out = {row for finding in findings if finding.kind == "box-none" for row in finding.rows}
    if not left_out:
        return dataset, tuple(records)
    checked_rows = range(len(dataset)) if rows is None else rows
    kept = [i for i, row in enumerate(checked_rows) if row not in left_out]
    if not kept:
        raise DataError(
            f"Expected images with valid boxes, got {len(left_out)} images without one. Correct "
            "the boxes."
        )
    return dataset.subset(kept), tuple(records[i] for i in kept)


class _ImageInfo(NamedTuple):
    """Size of an image as displayed, and its EXIF orientation."""

    width: int
    height: int
    orientation: int


def _info_of(record: ImageRecord) -> _ImageInfo | None:
    if record.problem is not None:
        return None
    return _ImageInfo(record.width, record.height, record.orientation)


def _read_info(sample: Sample) -> _ImageInfo | None:
    """Read size and orientation as a scan does, but from the file's header where there is one."""
    if isinstance(sample.image, Path):
        header = quick_header(sample.image)
        if header is None:
            return None
        return _ImageInfo(header.width, header.height, header.exif_orientation)
    return _info_of(scan([sample], workers=1)[0])


def _is_rotation_ambiguous(boxes: Boxes, info: _ImageInfo) -> bool:
    """Whether EXIF rotates the image and boxes may refer to the image before or after that."""
    # Orientations above 4 swap width and height, so a stated size shows which image it belongs to.
    is_clear = info.orientation > 4 and info.width != info.height and boxes.size is not None
    return bool(boxes.labels) and info.orientation > 1 and not is_clear


def _rotation_findings(names: Sequence[str]) -> Iterable[Finding]:
    if names:
        text = (
            f"{len(names)} images are rotated by EXIF, such as {names[0]}, and their annotations "
            "do not state whether boxes were drawn before or after the rotation. The boxes are "
            "read as drawn after it. Check that they fit the displayed images."
        )
        yield Finding(kind="box-turned", severity="warning", message=text, paths=tuple(names))


def _clean(boxes: Boxes, size: tuple[int, int], name: str) -> tuple[Boxes, list[Finding]]:
    corners = np.asarray(boxes.corners, dtype=np.float64).reshape(-1, 4)
    edges = np.asarray([*size, *size], dtype=np.float64)
    clipped = np.clip(corners, 0, edges)
    overhang = np.abs(corners - clipped).max(axis=1, initial=0.0)
    # Each unusable box has one reason, so that no box is reported twice.
    thin = _is_thin(corners)
    outside = ~thin & _is_thin(clipped)
    repeated = ~thin & ~outside & _is_repeated(clipped, boxes.labels)
    valid = ~(thin | outside | repeated)
    overhanging = valid & (overhang > MAX_OVERHANG)
    image = f"the image of {_format_size(size)}"
    rows = np.flatnonzero(valid)
    labels = tuple(boxes.labels[i] for i in rows)
    findings = [
        *_size_findings(boxes.size, size, name, float(overhang[~thin].max(initial=0.0))),
        *_box_findings(
            "box-empty", thin, boxes, name, f"left out (at most {MIN_SIDE:.0f} pixel wide or high)"
        ),
        *_box_findings("box-outside", outside, boxes, name, f"left out (outside {image})"),
        *_box_findings(
            "box-outside", overhanging, boxes, name, f"clipped (reaching out of {image})"
        ),
        *_box_findings("box-repeated", repeated, boxes, name, "left out (repeated)"),
        *_class_conflicts(clipped[rows], labels, name),
    ]
    if valid.all() and not overhang.any():
        return boxes, findings
    clean = Boxes(
        corners=tuple(map(tuple, clipped[rows].tolist())),
        labels=labels,
        hard=tuple(boxes.hard[i] for i in rows) if boxes.hard else (),
        size=boxes.size,
    )
    return clean, findings


def _is_thin(corners: NDArray[np.float64]) -> BoxSelection:
    sides = corners[:, 2:] - corners[:, :2]
    return np.asarray((sides <= MIN_SIDE).any(axis=1))


def _is_repeated(corners: NDArray[np.float64], labels: Sequence[str]) -> BoxSelection:
    """Mark boxes with the class and, to a hundredth, the corners of an earlier box."""
    earlier: set[tuple[object, ...]] = set()
    repeated = np.zeros(len(labels), dtype=bool)
    for i, key in enumerate(zip(labels, map(tuple, corners.round(2).tolist()), strict=True)):
        repeated[i] = key in earlier
        earlier.add(key)
    return repeated


def _box_findings(
    kind: FindingKind, selection: BoxSelection, boxes: Boxes, name: str, action: str
) -> Iterable[Finding]:
    """Report the selected boxes of an image in one finding; the first three with corners."""
    rows = np.flatnonzero(selection)
    if len(rows):
        examples = [
            f"{boxes.labels[i]} at {', '.join(f'{side:.6g}' for side in boxes.corners[i])}"
            for i in rows[:3]
        ]
        rest = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        text = f"{name}: {len(rows)} box{'es' * (len(rows) > 1)} {action}: "
        text += "; ".join(examples) + rest
        yield Finding(kind=kind, severity="warning", message=text, paths=(name,))


def _size_findings(
    stated: tuple[int, int] | None, size: tuple[int, int], name: str, overhang: float
) -> Iterable[Finding]:
    if stated is None or stated == size:
        return
    text = (
        f"{name}: the annotation states {_format_size(stated)}, the image has {_format_size(size)}"
    )
    if overhang > MAX_OVERHANG:
        text += f", and boxes reach {overhang:.0f} pixels out of it"
    severity: Literal["error", "warning"] = "error" if overhang > MAX_OVERHANG else "warning"
    yield Finding(kind="box-size", severity=severity, message=text, paths=(name,))


def _class_conflicts(
    corners: NDArray[np.float64], labels: Sequence[str], name: str
) -> Iterable[Finding]:
    """Report boxes with the same corners and different classes."""
    labels_by_corners: dict[tuple[float, ...], list[str]] = {}
    for box, label in zip(map(tuple, corners.round(2).tolist()), labels, strict=True):
        labels_by_corners.setdefault(box, []).append(label)
    clashes = [" and ".join(names) for names in labels_by_corners.values() if len(names) > 1]
    if clashes:
        text = f"{name}: the same box is labelled {'; '.join(clashes[:3])}"
        yield Finding(kind="label-conflict", severity="warning", message=text, paths=(name,))


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
