"""Checks of images: unreadable files, duplicates, leaks between splits, label conflicts.

Pure functions of a data set and of the records that `scan` makes of its images.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.copies import Copy, find_copies
from headstart.data.checks.scan import ImageRecord, scan
from headstart.data.dataset import SPLITS, Dataset, Sample, labels_of
from headstart.data.splits import find_root
from headstart.errors import DataError, LeakError, UsageError

__all__ = [
    "Finding",
    "ImageRecord",
    "check",
    "find_duplicates",
    "find_rare_classes",
    "find_several_frames",
    "findings_text",
    "is_frame",
    "join_messages",
    "keep_readable",
    "require_no_leak",
    "require_record_per_sample",
    "scan",
    "sort_by_severity",
]

FindingKind = Literal[
    "unreadable", "leak", "label-conflict", "duplicate", "near-duplicate", "same-subject",
    "empty-class", "missing-class", "rare-class", "empty-split", "16-bit-dark", "several-frames",
    "mask-unreadable", "mask-size", "mask-scaled", "mask-values", "mask-missing", "mask-spare",
    "mask-turned",
    "mask-ignored", "mask-background", "mask-binary", "mask-dominant",
    "box-size", "box-outside", "box-empty", "box-repeated", "box-turned", "box-none",
    "half-annotated", "other-domain",
]  # fmt: skip

Indices = NDArray[np.intp]

MAX_DISTANCE = 6  # of 64 bits; measured in docs/checks.md
MIN_CORRELATION = 0.985
MIN_TEXTURE = 4.0  # standard deviation of grey levels; below it all images look alike
SAME_MATCH = 0.985  # below it, images with numbered names are rather frames than copies
MAX_STEP = 30  # between the numbers of neighbouring frames
RARE = 10  # examples; with fewer, a class can neither be trained on nor evaluated
_SIXTEEN_BITS = re.compile("I.*|uint16|RGB[AX]?;16")
DARK = 26  # grey level of 255; a 12-bit image stored in 16 bits reaches only 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem of the data, or a note about them.

    ``paths`` are the images concerned; those of a leak or a duplicate show the same image.
    ``rows`` are the indices of samples to leave out, since several samples may share a name.
    """

    kind: FindingKind
    severity: Literal["error", "warning", "note"]
    message: str
    paths: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()


def find_duplicates(
    records: Sequence[ImageRecord], *, max_distance: int | None = MAX_DISTANCE
) -> list[tuple[int, ...]]:
    """Group the indices of identical and nearly identical images.

    Identical images have equal digests. Nearly identical images differ in at most
    ``max_distance`` of 64 bits, and their thumbnails correlate; images without texture can only
    be identical. With n images about n² / 70 comparisons of 64 bits are made.

    Parameters
    ----------
    records : sequence of ImageRecord
    max_distance : int or None
        None: find identical images only.

    Returns
    -------
    list of tuple of int
        Groups of at least two indices each, ascending.

    Examples
    --------
    >>> find_duplicates([ImageRecord(digest=name) for name in "abca"])
    [(0, 3)]
    """
    parent = list(range(len(records)))
    first: dict[str, int] = {}
    for i, record in enumerate(records):
        if record.problem is None:
            parent[i] = first.setdefault(record.digest, i)
    if max_distance is not None:
        for i, j in _near_links(records, list(first.values()), max_distance):
            low, high = sorted((find_root(parent, i), find_root(parent, j)))
            parent[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(records)):
        groups[find_root(parent, i)].append(i)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _near_links(
    records: Sequence[ImageRecord], candidates: list[int], max_distance: int
) -> list[tuple[int, int]]:
    """Pairs that connect the groups of near duplicates, at most one pair per image."""
    comparable = [i for i in candidates if len(records[i].thumbnail) == 256]
    small = np.frombuffer(b"".join(records[i].thumbnail for i in comparable), np.uint8)
    thumbnails = small.reshape(-1, 256).astype(np.float32)
    textured = thumbnails.std(axis=1) >= MIN_TEXTURE
    thumbnails = thumbnails[textured] - thumbnails[textured].mean(axis=1, keepdims=True)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    index = [i for i, has_texture in zip(comparable, textured, strict=True) if has_texture]
    hashes = np.asarray([records[i].perceptual_hash for i in index], dtype=np.uint64)
    labels = np.arange(len(index))
    members = {i: [i] for i in range(len(index))}
    links: list[tuple[int, int]] = []
    for rows, rest in _comparison_blocks(hashes, max_distance):
        close = np.bitwise_count(hashes[rows, None] ^ hashes[rest]) <= max_distance
        close &= (
            labels[rows, None] != labels[rest]
        )  # joined already; else the frames of a film cost n²
        if close.any():
            close &= thumbnails[rows] @ thumbnails[rest].T >= MIN_CORRELATION
        for i, j in zip(*np.nonzero(close), strict=True):
            first, second = int(labels[rows[i]]), int(labels[rest[j]])
            if first != second:
                _merge(labels, members, first, second)
                links.append((index[rows[i]], index[rest[j]]))
    return links


def _merge(labels: Indices, members: dict[int, list[int]], larger: int, smaller: int) -> None:
    if len(members[larger]) < len(members[smaller]):  # relabel the smaller: n log n in total
        larger, smaller = smaller, larger
    moved = members.pop(smaller)
    labels[moved] = larger
    members[larger] += moved


def _comparison_blocks(
    hashes: NDArray[np.uint64], max_distance: int
) -> Iterator[tuple[Indices, Indices]]:
    """Indices to compare with each other: every pair within the distance is in some block.

    The bits are divided into max_distance + 1 bands. A pair within the distance has at least one
    band in common, so only images that share a band are compared. A block has 64 rows, so that
    the caller can soon skip images that it has joined.
    """
    edges = np.linspace(0, 64, max_distance + 2).astype(np.uint64)
    for low, high in pairwise(edges):
        band = (hashes >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for start in range(0, len(bucket) - 1, 64):
                yield bucket[start : start + 64], bucket[start:]


def check(
    dataset: Dataset, records: Sequence[ImageRecord], copies: Sequence[Copy] | None = None
) -> tuple[Finding, ...]:
    """Check the images, classes and splits of a data set; errors come first.

    Parameters
    ----------
    dataset : Dataset
    records : sequence of ImageRecord
        Result of `scan`, one for each sample.
    copies : sequence of Copy, optional
        Result of `find_copies`, which is called if they are not passed.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"junk", target="cat"),), classes=("cat",))
    >>> [finding.kind for finding in check(data, scan(data.samples))]
    ['unreadable', 'empty-class']
    """
    require_record_per_sample(dataset, records)
    return sort_by_severity(
        [
            *_find_unreadable(dataset, records),
            *(
                Finding(kind="half-annotated", severity="warning", message=text)
                for text in dataset.warnings
            ),
            *_find_same_images(
                dataset, records, find_copies(records) if copies is None else copies
            ),
            *_find_missing_classes(dataset, records),
            *_find_empty_splits(dataset, records),
            *_find_dark_images(dataset, records),
            *find_several_frames(dataset, records),
        ]
    )


def sort_by_severity(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort findings: errors, warnings, notes; otherwise in the order given."""
    return tuple(sorted(findings, key=lambda f: ("error", "warning", "note").index(f.severity)))


def join_messages(messages: Sequence[str], limit: int = 20) -> str:
    r"""List the first messages on indented lines, and count the others.

    Examples
    --------
    >>> join_messages(["a", "b", "c"], limit=2)
    '\n  a\n  b\n  and 1 more'
    """
    rest = [f"and {len(messages) - limit} more"] if len(messages) > limit else []
    return "".join(f"\n  {line}" for line in [*messages[:limit], *rest])


def require_record_per_sample(dataset: Dataset, records: Sequence[ImageRecord]) -> None:
    """Refuse records that were made for another data set.

    Raises
    ------
    UsageError
        If the number of records is not the number of samples.
    """
    if len(dataset) != len(records):
        raise UsageError(
            f"Expected one record for each of {len(dataset)} samples, got {len(records)}. "
            "Pass the result of `scan` for the same data set."
        )


def _find_unreadable(dataset: Dataset, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    for sample, record in zip(dataset.samples, records, strict=True):
        if record.problem is not None:
            text = f"{sample.name}: {record.problem}"
            yield Finding(kind="unreadable", severity="error", message=text, paths=(sample.name,))


def _find_same_images(
    dataset: Dataset, records: Sequence[ImageRecord], copies: Sequence[Copy]
) -> Iterator[Finding]:
    matches = {frozenset((copy.copy, copy.original)): copy.match for copy in copies}
    series: list[tuple[str, ...]] = []
    groups = find_duplicates(records)
    for group in groups:
        members = [dataset.samples[i] for i in group]
        paths = tuple(sample.name for sample in members)
        exact = len({records[i].digest for i in group}) == 1
        relation = "the same image" if exact else "nearly the same image"
        least = min((matches.get(frozenset(pair), 1.0) for pair in pairwise(group)), default=1.0)
        if not exact and least < SAME_MATCH and _is_series(paths):
            relation = "neighbouring frames or slices of one subject"
        splits = [s for s in SPLITS if any(sample.split == s for sample in members)]
        rest = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
        names = ", ".join(paths[:4]) + rest
        if len(splits) > 1:
            text = f"{relation} in {' and '.join(splits)}: {names}"
            yield Finding(kind="leak", severity="error", message=text, paths=_leak_paths(members))
        elif relation.startswith("neighbouring"):
            series.append(paths)
        else:
            text = f"{relation} {len(paths)} times: {names}"
            kind: FindingKind = "duplicate" if exact else "near-duplicate"
            yield Finding(kind=kind, severity="warning", message=text, paths=paths)
        labels = {_label_text(sample) for sample in members if sample.target is not None}
        # Dense tasks: of two similar frames of a street, only one may show a person.
        if len(labels) > 1 and (exact or not dataset.is_dense):
            text = f"{relation} labelled {' and '.join(sorted(labels))}: {names}"
            yield Finding(kind="label-conflict", severity="warning", message=text, paths=paths)
    yield from _find_changed_copies(dataset, copies, groups, series)


def _find_changed_copies(
    dataset: Dataset,
    copies: Sequence[Copy],
    groups: Sequence[Sequence[int]],
    series: list[tuple[str, ...]],
) -> Iterator[Finding]:
    """Report copies that are in no group of duplicates; frames of one subject in one finding."""
    group_of = {i: number for number, group in enumerate(groups) for i in group}
    for copy in copies:
        pair = [dataset.samples[i] for i in (copy.copy, copy.original)]
        names = (pair[0].name, pair[1].name)
        if group_of.get(copy.copy, -1) == group_of.get(copy.original, -2):
            continue
        if pair[0].group is not None and pair[0].group == pair[1].group:
            continue
        if is_frame(names, copy):
            series.append(names)
            continue
        first, second = names
        relation = {"cropped": f"{first} is a crop of {second}"}.get(
            copy.change,
            f"{first} is {second}, {copy.change}"
            if copy.change
            else f"{first} is nearly the same image as {second}",
        )
        splits = [split for split in SPLITS if split in {sample.split for sample in pair}]
        where = f" (in {' and '.join(splits)})" if len(splits) > 1 else ""
        yield Finding(
            kind="near-duplicate", severity="warning", message=relation + where, paths=names
        )
    if series:
        text = (
            f"{len(series)} groups of images look like neighbouring frames or slices of one "
            f"subject, such as {', '.join(series[0][:3])}. Pass --group-by with the part of their "
            "paths that names the subject, such as --group-by '([^/]+)_[0-9]+', to keep them in "
            "one split."
        )
        paths = tuple(dict.fromkeys(name for names in series for name in names))
        yield Finding(kind="same-subject", severity="warning", message=text, paths=paths)


def is_frame(names: Sequence[str], copy: Copy) -> bool:
    """Whether two images are rather frames of one subject than copies of one image.

    Examples
    --------
    >>> copy = Copy(copy=0, original=1, change="", match=0.95)
    >>> is_frame(("scan/p1_004.png", "scan/p1_005.png"), copy)
    True
    >>> is_frame(("scan/p1_004.png", "scan/p2_004.png"), copy)
    False
    """
    is_upright = copy.change in {"", "cropped"}
    return is_upright and copy.match < SAME_MATCH and _is_series(names)


def _is_series(names: Sequence[str]) -> bool:
    """Whether names differ only in their last number, each by little from the next."""
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", name, re.DOTALL) for name in names]
    if not all(parts) or len({(part[1], part[3]) for part in parts if part}) > 1:
        return False
    numbers = sorted(Decimal(part[2]) for part in parts if part)  # int() has a limit
    return all(after - before <= MAX_STEP for before, after in pairwise(numbers))


def _leak_paths(members: Sequence[Sample]) -> tuple[str, ...]:
    """Paths of the group; the first image of each split comes first."""
    firsts = list({sample.split: sample for sample in reversed(members)}.values())
    firsts.sort(key=lambda sample: SPLITS.index(sample.split) if sample.split else len(SPLITS))
    return tuple(dict.fromkeys(sample.name for sample in [*firsts, *members]))


def _label_text(sample: Sample) -> str:
    return " + ".join(sorted(labels_of(sample.target))) or "nothing"


def _find_missing_classes(dataset: Dataset, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    # A class map may name more than a data set shows; the other classes can still be learned.
    severity_in_train: Literal["error", "warning"] = "warning" if dataset.is_dense else "error"
    readable = dataset.subset(i for i, record in enumerate(records) if record.problem is None)
    parts = {split: readable.split(split) for split in SPLITS}
    unit = "object" if dataset.kind == "detection" else "image"
    for name, total in readable.counts().items():
        if not total:
            text = f"class {name!r} has no readable {unit}"
            yield Finding(kind="empty-class", severity=severity_in_train, message=text)
            continue
        for split, part in parts.items():
            if len(part) and not part.counts()[name]:
                text = f"class {name!r} has no {unit} in {split}"
                severity = severity_in_train if split == "train" else "warning"
                yield Finding(kind="missing-class", severity=severity, message=text)
    yield from find_rare_classes(parts["train"] if len(parts["train"]) else readable)


def find_rare_classes(train: Dataset) -> Iterator[Finding]:
    """Report the classes with fewer than 10 training images or objects.

    Parameters
    ----------
    train : Dataset
        The training images.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"", target="cat"),), classes=("cat", "dog"))
    >>> [finding.message for finding in find_rare_classes(data)]
    ["class 'cat' has only 1 image to learn from"]
    """
    unit = "object" if train.kind == "detection" else "image"
    for name, n in train.counts().items():
        if 0 < n < RARE:
            text = f"class {name!r} has only {n} {unit}{'s' * (n > 1)} to learn from"
            yield Finding(kind="rare-class", severity="warning", message=text)


def _find_empty_splits(dataset: Dataset, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    n_images = Counter(sample.split for sample in dataset.samples if sample.split is not None)
    n_unreadable = Counter(
        s.split for s, record in zip(dataset.samples, records, strict=True) if record.problem
    )
    for split in SPLITS:
        if split in n_images and n_images[split] == n_unreadable[split]:
            text = f"none of the {n_images[split]} images in {split} is readable"
            yield Finding(kind="empty-split", severity="error", message=text)
    if n_images and "train" not in n_images and n_images.total() == len(dataset):
        text = f"no image in train, only in {' and '.join(s for s in SPLITS if s in n_images)}"
        yield Finding(kind="empty-split", severity="error", message=text)


def _find_dark_images(dataset: Dataset, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    sixteen_bit = [i for i, record in enumerate(records) if _SIXTEEN_BITS.fullmatch(record.mode)]
    paths = tuple(dataset.samples[i].name for i in sixteen_bit if max(records[i].thumbnail) < DARK)
    if paths:
        text = (
            f"{len(paths)} images of 16 bits use less than a tenth of their range and will be "
            f"nearly black, such as {paths[0]}. If the values have 12 bits, pass --bits 12 (10: "
            "--bits 10)"
        )
        yield Finding(kind="16-bit-dark", severity="warning", message=text, paths=paths)


def findings_text(findings: Sequence[Finding]) -> str:
    r"""Lines of text for the first findings, each after a line break; empty if there are none.

    Examples
    --------
    >>> findings_text([Finding(kind="leak", severity="error", message="a leak")])
    '\n  error: a leak'
    """
    lines = [f"\n  {finding.severity}: {finding.message}" for finding in findings[:3]]
    more = [f"\n  and {len(findings) - 3} more"] if len(findings) > 3 else []
    return "".join([*lines, *more])


def find_several_frames(dataset: Dataset, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    """Report files of which pages or frames are left out.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"", title="a.gif"),), classes=())
    >>> record = ImageRecord(digest="", n_frames=3)
    >>> [finding.kind for finding in find_several_frames(data, [record])]
    ['several-frames']
    """
    rows = [i for i, record in enumerate(records) if record.n_frames > 1]
    if rows:
        paths = tuple(dataset.samples[i].name for i in rows)
        left_out = sum(records[i].n_frames - 1 for i in rows)
        text = (
            f"{len(rows)} files have several pages or frames: the first of each is used, "
            f"{left_out} are left out, such as {paths[0]} ({records[rows[0]].n_frames} pages or "
            "frames). Save the pages as single files to use them all"
        )
        yield Finding(kind="several-frames", severity="warning", message=text, paths=paths)


def keep_readable(
    dataset: Dataset, records: Sequence[ImageRecord], *, bad_files: Literal["error", "skip"]
) -> tuple[Dataset, tuple[ImageRecord, ...]]:
    """Leave out unreadable images; return the other samples, with digests, and their records.

    Raises
    ------
    DataError
        With ``bad_files="error"`` if an image is unreadable (the message lists the first 20);
        with "skip" if all are.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"junk"), Sample(image=np.eye(9))), classes=())
    >>> len(keep_readable(data, scan(data.samples), bad_files="skip")[0])
    1
    """
    require_record_per_sample(dataset, records)
    unreadable = [finding.message for finding in _find_unreadable(dataset, records)]
    if unreadable and (bad_files == "error" or len(unreadable) == len(dataset)):
        raise DataError(
            f"Expected {len(dataset)} readable images, got {len(unreadable)} that are not. Repair "
            "or remove them, or pass --bad-files skip to leave them out:"
            + join_messages(unreadable)
        )
    readable = [i for i, record in enumerate(records) if record.problem is None]
    samples = tuple(replace(dataset.samples[i], digest=records[i].digest) for i in readable)
    return replace(dataset, samples=samples), tuple(records[i] for i in readable)


def require_no_leak(findings: Sequence[Finding], *, allow_overlap: bool) -> None:
    """Refuse data with identical or nearly identical images in two splits.

    Raises
    ------
    LeakError
        Unless ``allow_overlap``; the message lists the first five, with their paths.
    """
    leaks = [finding for finding in findings if finding.kind == "leak"]
    if leaks and not allow_overlap:
        messages = [finding.message for finding in leaks]
        raise LeakError(
            f"Expected no image in two splits, got {len(leaks)}. Remove the copies from one "
            "split, or pass --allow-overlap if they are intended:" + join_messages(messages, 5)
        )
