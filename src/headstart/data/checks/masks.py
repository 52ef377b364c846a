"""What is wrong with the masks of a data set, before anything is learned from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.images import Finding, Kind
from headstart.data.checks.scan import ImageRecord
from headstart.data.dataset import IGNORED, Dataset, Mask, Sample
from headstart.data.formats.layouts import is_image, natural_key
from headstart.data.formats.masks import is_other_rendering
from headstart.data.masks import class_counts, decode_mask, read_raw
from headstart.errors import DataError, UnreadableImageError
from headstart.runtime import cores

__all__ = ["check_masks", "with_masks"]

DOMINANT = 0.99  # of the pixels, above which the pixel accuracy says nothing any more
_BACKGROUND = frozenset(("background", "bg", "none", "nothing", "other", "0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One mask: pixels by class (the last entry: ignored), its size, what is wrong with it."""

    counts: NDArray[np.intp]
    size: tuple[int, int] = (0, 0)
    kind: Kind | None = None
    problem: str = ""


def check_masks(dataset: Dataset, records: Sequence[ImageRecord]) -> tuple[Finding, ...]:
    """Everything worth telling about the masks of a segmentation set, errors first.

    Parameters
    ----------
    dataset : Dataset
        Of kind "segmentation", or there is nothing to tell; every mask is decoded once, in threads.
    records : sequence of ImageRecord
        Of `headstart.data.scan.scan`, one for each sample.

    Returns
    -------
    tuple of Finding
        Errors are what cannot be learned from: a mask that is missing, unreadable, of another
        size than its image, or with values that no class is named for. ``paths`` of an error
        begins with the image, and ``rows`` is its place in the data set.

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
        looks = list(pool.map(lambda s: _look(s, dataset.classes), dataset.samples))
    rows = list(zip(dataset.samples, records, looks, strict=True))
    found = [
        *_broken(rows),
        *(finding for i, row in enumerate(rows) for finding in _sizes(i, *row)),
        *_spare(dataset),
        *_unhelpful(rows, dataset.classes),
        *_binary(dataset, looks),
        *_dominant(looks, dataset.classes),
    ]
    return tuple(sorted(found, key=lambda f: ("error", "warning", "note").index(f.severity)))


def with_masks(
    dataset: Dataset,
    records: Sequence[ImageRecord],
    findings: Sequence[Finding],
    *,
    bad_files: Literal["error", "skip"],
    rows: Sequence[int] | None = None,
) -> tuple[Dataset, tuple[ImageRecord, ...]]:
    """The part of a data set whose masks can be learned from, and its records.

    Parameters
    ----------
    dataset : Dataset
    records : sequence of ImageRecord
    findings : sequence of Finding
        Of `check_masks`; those of other checks do no harm.
    bad_files : {"error", "skip"}
    rows : sequence of int, optional
        Place of every sample in the data set that was checked; by default it is this one.

    Raises
    ------
    DataError
        With ``bad_files="error"`` if any mask is an error, naming the first 20; with "skip" if
        all are.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"", title="a"), Sample(image=b"")), classes=())
    >>> bad = Finding(kind="mask-missing", severity="error", message="a: no mask", rows=(0,))
    >>> len(with_masks(data, [ImageRecord(digest="")] * 2, [bad], bad_files="skip")[0])
    1
    """
    wrong = [f for f in findings if f.severity == "error" and f.kind.startswith("mask-")]
    bad = {row for finding in wrong for row in finding.rows}  # many arrays share one name
    places = range(len(dataset)) if rows is None else rows
    kept = [i for i, row in enumerate(places) if row not in bad]
    if wrong and (bad_files == "error" or not kept):
        more = [f"and {len(wrong) - 20} more"] if len(wrong) > 20 else []
        raise DataError(
            f"Expected a mask for every image, got {len(wrong)} that cannot be used; repair or "
            "remove them, or leave them out with --bad-files skip:\n  "
            + "\n  ".join([finding.message for finding in wrong[:20]] + more)
        )
    return dataset.subset(kept), tuple(records[i] for i in kept)


_Rows = Sequence[tuple[Sample, ImageRecord, _Look]]


def _look(sample: Sample, classes: Sequence[str]) -> _Look:
    nothing = np.zeros(len(classes) + 1, dtype=np.intp)
    if not isinstance(sample.target, Mask):
        return _Look(counts=nothing, kind="mask-missing", problem="an image without a mask")
    try:
        indices = decode_mask(sample.target, classes)
    except UnreadableImageError as error:
        return _Look(counts=nothing, kind="mask-unreadable", problem=str(error))
    except DataError as error:
        height, width = read_raw(sample.target.source).values.shape[:2]
        return _Look(counts=nothing, size=(width, height), kind="mask-values", problem=str(error))
    height, width = indices.shape
    return _Look(counts=class_counts(indices, len(classes)), size=(width, height))


def _paths(sample: Sample) -> tuple[str, ...]:
    source = sample.target.source if isinstance(sample.target, Mask) else None
    return (sample.name, str(source)) if isinstance(source, Path) else (sample.name,)


def _broken(rows: _Rows) -> Iterator[Finding]:
    for i, (sample, _, look) in enumerate(rows):
        if look.kind is not None:
            text, paths = f"{sample.name}: {look.problem}", _paths(sample)
            yield Finding(kind=look.kind, severity="error", message=text, paths=paths, rows=(i,))


def _sizes(row: int, sample: Sample, record: ImageRecord, look: _Look) -> Iterator[Finding]:
    shown = (record.width, record.height)
    if record.problem is not None or look.size == (0, 0):
        return
    turned = shown[::-1] if record.orientation > 4 else shown
    if look.size not in {shown, turned}:
        text = (
            f"{sample.name}: {shown[0]} x {shown[1]} pixels, its mask {look.size[0]} x "
            f"{look.size[1]}; export both in one size"
        )
        paths = _paths(sample)
        yield Finding(kind="mask-size", severity="error", message=text, paths=paths, rows=(row,))
    elif record.orientation > 1 and turned == shown and not _turns_itself(sample):
        text = (
            f"{sample.name}: turned by EXIF, and the size of its mask cannot tell whether the "
            "mask was drawn before or after; it is taken as drawn on the image as shown"
        )
        yield Finding(kind="mask-turned", severity="warning", message=text, paths=_paths(sample))


def _turns_itself(sample: Sample) -> bool:
    from headstart.data.images import header

    source = sample.target.source if isinstance(sample.target, Mask) else None
    return isinstance(source, Path) and header(source).exif_orientation != 1


def _spare(dataset: Dataset) -> Iterator[Finding]:
    """Masks in the same folders that no image of the set belongs to."""
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
            text = f"{_masks(len(names))} without an image, such as {names[0]}"
            yield Finding(kind="mask-spare", severity="warning", message=text, paths=tuple(names))


def _masks(count: int) -> str:
    return f"{count} mask{'s' if count > 1 else ''}"


def _unhelpful(rows: _Rows, classes: Sequence[str]) -> Iterator[Finding]:
    """Masks of nothing but ignored pixels, and of nothing but background."""
    whole = [(sample, look.counts) for sample, _, look in rows if look.kind is None]
    void = [sample.name for sample, counts in whole if not counts[:-1].any()]
    if void:
        text = f"{_masks(len(void))} ignored as a whole, such as that of {void[0]}: nothing is "
        text += "learned there; 255 is ignored unless the class map names it"
        yield Finding(kind="mask-ignored", severity="warning", message=text, paths=tuple(void))
    if len(classes) < 2 or classes[0].casefold() not in _BACKGROUND:
        return
    bare = [s.name for s, counts in whole if counts[0] and not counts[1:-1].any()]
    if bare:
        text = f"{_masks(len(bare))} of {classes[0]} only, such as that of {bare[0]}"
        severity: Literal["warning", "note"] = "warning" if 2 * len(bare) > len(whole) else "note"
        yield Finding(kind="mask-background", severity=severity, message=text, paths=tuple(bare))


def _binary(dataset: Dataset, looks: Sequence[_Look]) -> Iterator[Finding]:
    """Masks of 0 and 255: an object to some tools, an ignored region to others."""
    palettes = {s.target.palette for s in dataset.samples if isinstance(s.target, Mask)}
    codes = {code: name for palette in palettes for code, name in palette.codes}
    if codes.keys() == {0, IGNORED}:
        text = f"0/255 read as {codes[0]} and {codes[IGNORED]}"
        yield Finding(kind="mask-binary", severity="note", message=text)
        return
    totals = np.sum([look.counts for look in looks], axis=0)
    shown = [name for name, count in zip(dataset.classes, totals, strict=False) if count]
    if len(dataset.classes) > 1 and len(shown) == 1 and totals[-1]:
        text = (
            f"masks show {shown[0]!r} and ignored pixels only: 255 is read as ignored, although "
            f"{len(dataset.classes)} classes are named; if it stands for one, say so in the "
            "class map, as a line '255 name'"
        )
        yield Finding(kind="mask-binary", severity="warning", message=text)


def _dominant(looks: Sequence[_Look], classes: Sequence[str]) -> Iterator[Finding]:
    totals = np.sum([look.counts for look in looks], axis=0)[: len(classes)]
    if not totals.sum():
        return
    share = totals / totals.sum()
    first = int(share.argmax())
    if share[first] > DOMINANT and len(classes) > 1:
        text = (
            f"class {classes[first]!r} covers {share[first]:.1%} of the pixels: answering it "
            "everywhere is nearly always right, so judge by the IoU of the other classes"
        )
        yield Finding(kind="mask-dominant", severity="warning", message=text)
