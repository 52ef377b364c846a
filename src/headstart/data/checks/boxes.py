"""What is wrong with boxes, before anything is learned from them, and the boxes that are left.

Pure functions of a data set and of the sizes of its images, apart from reading headers where a
scan has not done so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.images import Finding, Kind
from headstart.data.checks.scan import ImageRecord, scan
from headstart.data.dataset import Boxes, Dataset, Sample
from headstart.data.formats.annotations import quick_header
from headstart.errors import DataError, UsageError

__all__ = ["LEAST_SIDE", "ROUNDING", "require_sound", "settled"]

ROUNDING = 1.5  # pixels that a box may reach out of its image without a word
LEAST_SIDE = 1.0  # pixels; VOC's xmin = xmax comes to this, and nothing can be learned from it

Rows = NDArray[np.bool_]


def settled(
    data: Dataset, records: Sequence[ImageRecord] | None = None
) -> tuple[Dataset, tuple[Finding, ...]]:
    """Clip boxes to their images, leave out those of nothing, and say so.

    Left out are boxes at most `LEAST_SIDE` wide or high, boxes outside their image, and all but
    the first of boxes that are the same and of the same class. Boxes that reach out of the image
    are clipped, without a finding up to `ROUNDING`. What has been settled stays as it is.

    Parameters
    ----------
    data : Dataset
        Of another kind than detection: returned as it is.
    records : sequence of ImageRecord, optional
        Of `scan`, one for each sample; without them the headers of the images are read.

    Returns
    -------
    Dataset
        The same examples with clean boxes; those of images that cannot be read are untouched.
    tuple of Finding
        At most one of each kind for an image, but one for all that EXIF may have turned.

    Raises
    ------
    UsageError
        If there is not one record for each sample.

    Examples
    --------
    >>> boxes = Boxes(corners=((0, 0, 9, 4), (2, 2, 2, 3)), labels=("cat", "dog"))
    >>> sample = Sample(image=np.zeros((4, 8, 3), np.uint8), target=boxes, title="a.jpg")
    >>> data = Dataset(samples=(sample,), classes=("cat", "dog"), kind="detection")
    >>> clean, findings = settled(data)
    >>> clean.samples[0].target.corners
    ((0.0, 0.0, 8.0, 4.0),)
    >>> print(findings[0].message)
    a.jpg: 1 box at most 1 pixel wide or high left out: dog at 2, 2, 2, 3
    """
    if data.kind != "detection":
        return data, ()
    if records is not None and len(records) != len(data):
        raise UsageError(
            f"Expected one record for each of {len(data)} samples, got {len(records)}; "
            "pass what `scan` gave for the same data set."
        )
    heads = [*map(_look, data.samples)] if records is None else [*map(_recorded, records)]
    samples: list[Sample] = []
    findings: list[Finding] = []
    unclear: list[str] = []
    for sample, head in zip(data.samples, heads, strict=True):
        boxes = sample.target
        if isinstance(boxes, Boxes) and head is not None:
            unclear += [sample.name] * _may_be_turned(boxes, head)
            boxes, found = _settled(boxes, (head.width, head.height), sample.name)
            findings += found
        samples.append(sample if boxes is sample.target else replace(sample, target=boxes))
    return replace(data, samples=tuple(samples)), (*findings, *_turned(unclear))


def require_sound(findings: Iterable[Finding]) -> None:
    """Refuse boxes that were drawn on images of another size.

    Raises
    ------
    DataError
        If there are findings of kind "box-size" that are errors; it names the first 20.

    Examples
    --------
    >>> require_sound([])
    """
    wrong = [f.message for f in findings if f.kind == "box-size" and f.severity == "error"]
    if wrong:
        more = [f"and {len(wrong) - 20} more"] if len(wrong) > 20 else []
        raise DataError(
            f"Expected boxes that lie in their images, got {len(wrong)} images of another size "
            "than their annotations state; do: use the images that were annotated, or scale the "
            "boxes with them:\n  " + "\n  ".join(wrong[:20] + more)
        )


class _Head(NamedTuple):
    """Size of an image as shown, and its EXIF orientation."""

    width: int
    height: int
    orientation: int


def _recorded(record: ImageRecord) -> _Head | None:
    found = _Head(record.width, record.height, record.orientation)
    return None if record.problem is not None else found


def _look(sample: Sample) -> _Head | None:
    """What a scan would find, from as little of the image as will do."""
    if isinstance(sample.image, Path):
        head = quick_header(sample.image)
        return None if head is None else _Head(head.width, head.height, head.exif_orientation)
    return _recorded(scan([sample], workers=1)[0])


def _may_be_turned(boxes: Boxes, head: _Head) -> bool:
    """Whether EXIF turns the image and no size tells if the boxes were drawn before or after."""
    clear = head.orientation > 4 and head.width != head.height and boxes.size is not None
    return bool(boxes.labels) and head.orientation > 1 and not clear


def _turned(names: Sequence[str]) -> Iterable[Finding]:
    if names:
        text = (
            f"{len(names)} images are turned by EXIF, and their annotations do not tell whether "
            f"boxes were drawn before or after; taken as drawn after, such as {names[0]}: look"
        )
        yield Finding(kind="box-turned", severity="warning", message=text, paths=tuple(names))


def _settled(boxes: Boxes, size: tuple[int, int], name: str) -> tuple[Boxes, list[Finding]]:
    corners = np.asarray(boxes.corners, dtype=np.float64).reshape(-1, 4)
    edges = np.asarray([*size, *size], dtype=np.float64)
    clipped = np.clip(corners, 0, edges)
    over = np.abs(corners - clipped).max(axis=1, initial=0.0)
    thin = _thin(corners)
    away = ~thin & _thin(clipped)
    again = ~thin & ~away & _repeated(clipped, boxes.labels)
    kept = ~(thin | away | again)
    found = [
        *_about_size(boxes.size, size, name, float(over[~thin].max(initial=0.0))),
        *_about(
            "box-empty", thin, boxes, name, f"at most {LEAST_SIDE:.0f} pixel wide or high left out"
        ),
        *_about("box-outside", away, boxes, name, f"outside the image of {_by(size)} left out"),
        *_about(
            "box-outside",
            kept & (over > ROUNDING),
            boxes,
            name,
            f"reaching out of the image of {_by(size)} clipped",
        ),
        *_about("box-repeated", again, boxes, name, "given before left out"),
        *_several_classes(
            clipped[kept], [n for n, k in zip(boxes.labels, kept, strict=True) if k], name
        ),
    ]
    if kept.all() and not over.any():
        return boxes, found
    rows = np.flatnonzero(kept)
    clean = Boxes(
        corners=tuple(map(tuple, clipped[rows].tolist())),
        labels=tuple(boxes.labels[i] for i in rows),
        hard=tuple(boxes.hard[i] for i in rows) if boxes.hard else (),
        size=boxes.size,
    )
    return clean, found


def _thin(corners: NDArray[np.float64]) -> Rows:
    sides = corners[:, 2:] - corners[:, :2]
    return np.asarray((sides <= LEAST_SIDE).any(axis=1))


def _repeated(corners: NDArray[np.float64], labels: Sequence[str]) -> Rows:
    """Boxes of which an earlier one has the same class and, to a hundredth, the same corners."""
    seen: set[tuple[object, ...]] = set()
    repeated = np.zeros(len(labels), dtype=bool)
    for i, key in enumerate(zip(labels, map(tuple, corners.round(2).tolist()), strict=True)):
        repeated[i] = key in seen
        seen.add(key)
    return repeated


def _about(kind: Kind, rows: Rows, boxes: Boxes, name: str, what: str) -> Iterable[Finding]:
    chosen = np.flatnonzero(rows)
    if len(chosen):
        places = [
            f"{boxes.labels[i]} at {', '.join(f'{side:.6g}' for side in boxes.corners[i])}"
            for i in chosen[:3]
        ]
        more = f" and {len(chosen) - 3} more" if len(chosen) > 3 else ""
        text = (
            f"{name}: {len(chosen)} box{'es' * (len(chosen) > 1)} {what}: {'; '.join(places)}{more}"
        )
        yield Finding(kind=kind, severity="warning", message=text, paths=(name,))


def _about_size(
    stated: tuple[int, int] | None, size: tuple[int, int], name: str, over: float
) -> Iterable[Finding]:
    if stated is None or stated == size:
        return
    text = f"{name}: the annotation states {_by(stated)}, the image has {_by(size)}"
    if over > ROUNDING:
        text += f", and boxes reach {over:.0f} pixels out of it"
    severity: Literal["error", "warning"] = "error" if over > ROUNDING else "warning"
    yield Finding(kind="box-size", severity=severity, message=text, paths=(name,))


def _several_classes(
    corners: NDArray[np.float64], labels: Sequence[str], name: str
) -> Iterable[Finding]:
    by_place: dict[tuple[float, ...], list[str]] = {}
    for place, label in zip(map(tuple, corners.round(2).tolist()), labels, strict=True):
        by_place.setdefault(place, []).append(label)
    clashes = [" and ".join(names) for names in by_place.values() if len(names) > 1]
    if clashes:
        text = f"{name}: the same box is labelled {'; '.join(clashes[:3])}"
        yield Finding(kind="label-conflict", severity="warning", message=text, paths=(name,))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
