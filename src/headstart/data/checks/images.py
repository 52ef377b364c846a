"""What is wrong with the images, before anything is learned from them.

Pure functions of a data set and of the records that `scan` made of its images.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.checks.scan import ImageRecord, scan
from headstart.data.dataset import SPLITS, Dataset, Sample, labels_of
from headstart.errors import DataError, LeakError, UsageError

__all__ = [
    "Finding",
    "ImageRecord",
    "check",
    "find_duplicates",
    "require_no_leak",
    "scan",
    "usable",
]

Kind = Literal[
    "unreadable", "leak", "label-conflict", "duplicate", "near-duplicate",
    "empty-class", "missing-class", "rare-class", "empty-split", "16-bit-dark",
    "mask-unreadable", "mask-size", "mask-values", "mask-missing", "mask-spare", "mask-turned",
    "mask-ignored", "mask-background", "mask-binary", "mask-dominant",
    "box-size", "box-outside", "box-empty", "box-repeated", "box-turned",
]  # fmt: skip

Indices = NDArray[np.intp]

MAX_DISTANCE = 6  # of 64 bits; measured in docs/checks.md
MIN_CORRELATION = 0.985
MIN_TEXTURE = 4.0  # standard deviation of grey levels under which all images look alike
RARE = 10  # examples of a class under which neither training nor judging is possible
DARK = 26  # of 255: a 12-bit image stored in 16 bits reaches 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with the data, or worth knowing.

    ``paths`` are the images concerned; those of a leak or a duplicate are the same image.
    ``rows`` are places in the data set of images to leave out: a name may be that of many.
    """

    kind: Kind
    severity: Literal["error", "warning", "note"]
    message: str
    paths: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()


def find_duplicates(
    records: Sequence[ImageRecord], *, max_distance: int | None = MAX_DISTANCE
) -> list[tuple[int, ...]]:
    """Groups of indices whose images are the same, or nearly.

    A group is exact when its digests are equal. Near means that at most ``max_distance`` of
    the 64 bits differ and that the thumbnails correlate; images without texture are only
    ever exact duplicates. With n images about n² / 70 comparisons of 64 bits are made.

    Parameters
    ----------
    records : sequence of ImageRecord
    max_distance : int or None
        None looks for exact duplicates only.

    Returns
    -------
    list of tuple of int
        Each of at least two indices, ascending.

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
            one, other = sorted((_root(parent, i), _root(parent, j)))
            parent[other] = one
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(records)):
        groups[_root(parent, i)].append(i)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def _near_links(
    records: Sequence[ImageRecord], candidates: list[int], max_distance: int
) -> list[tuple[int, int]]:
    """Pairs that hold the groups of near duplicates together, at most one for each image."""
    drawn = [i for i in candidates if len(records[i].thumbnail) == 256]
    small = np.frombuffer(b"".join(records[i].thumbnail for i in drawn), np.uint8)
    looks = small.reshape(-1, 256).astype(np.float32)
    textured = looks.std(axis=1) >= MIN_TEXTURE
    looks = looks[textured] - looks[textured].mean(axis=1, keepdims=True)
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    index = [i for i, good in zip(drawn, textured, strict=True) if good]
    hashes = np.asarray([records[i].perceptual_hash for i in index], dtype=np.uint64)
    labels = np.arange(len(index))
    members = {i: [i] for i in range(len(index))}
    links: list[tuple[int, int]] = []
    for rows, rest in _blocks(hashes, max_distance):
        close = np.bitwise_count(hashes[rows, None] ^ hashes[rest]) <= max_distance
        close &= labels[rows, None] != labels[rest]  # or a film would cost its square
        if close.any():
            close &= looks[rows] @ looks[rest].T >= MIN_CORRELATION
        for i, j in zip(*np.nonzero(close), strict=True):
            one, other = int(labels[rows[i]]), int(labels[rest[j]])
            if one != other:
                _merge(labels, members, one, other)
                links.append((index[rows[i]], index[rest[j]]))
    return links


def _merge(labels: Indices, members: dict[int, list[int]], one: int, other: int) -> None:
    if len(members[one]) < len(members[other]):  # relabel the smaller: n log n in all
        one, other = other, one
    moved = members.pop(other)
    labels[moved] = one
    members[one] += moved


def _blocks(hashes: NDArray[np.uint64], max_distance: int) -> Iterator[tuple[Indices, Indices]]:
    """Indices to compare with each other: every pair within the distance is in some block.

    Of max_distance + 1 bands of bits at least one is equal in such a pair, so only images
    that share a band meet. Blocks are 64 rows, so that what was joined is soon left out.
    """
    edges = np.linspace(0, 64, max_distance + 2).astype(np.uint64)
    for low, high in pairwise(edges):
        band = (hashes >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for start in range(0, len(bucket) - 1, 64):
                yield bucket[start : start + 64], bucket[start:]


def check(dataset: Dataset, records: Sequence[ImageRecord]) -> tuple[Finding, ...]:
    """Everything worth telling about a data set, errors first.

    Parameters
    ----------
    dataset : Dataset
    records : sequence of ImageRecord
        Of `scan`, one for each sample.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"junk", target="cat"),), classes=("cat",))
    >>> [finding.kind for finding in check(data, scan(data.samples))]
    ['unreadable', 'empty-class']
    """
    _require_one_each(dataset, records)
    found = [
        *_unreadable(dataset, records),
        *_same_images(dataset, records),
        *_class_counts(dataset, records),
        *_empty_splits(dataset, records),
        *_dark(dataset, records),
    ]
    return tuple(sorted(found, key=lambda f: ("error", "warning", "note").index(f.severity)))


def _require_one_each(dataset: Dataset, records: Sequence[ImageRecord]) -> None:
    if len(dataset) != len(records):
        raise UsageError(
            f"Expected one record for each of {len(dataset)} samples, got {len(records)}; "
            "pass what `scan` gave for the same data set."
        )


def _unreadable(dataset: Dataset, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    for sample, record in zip(dataset.samples, records, strict=True):
        if record.problem is not None:
            text = f"{sample.name}: {record.problem}"
            yield Finding(kind="unreadable", severity="error", message=text, paths=(sample.name,))


def _same_images(dataset: Dataset, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    for group in find_duplicates(records):
        members = [dataset.samples[i] for i in group]
        paths = tuple(sample.name for sample in members)
        exact = len({records[i].digest for i in group}) == 1
        how = "the same image" if exact else "nearly the same image"
        splits = [s for s in SPLITS if any(sample.split == s for sample in members)]
        shown = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
        if len(splits) > 1:
            text = f"{how} in {' and '.join(splits)}: {shown}"
            yield Finding(kind="leak", severity="error", message=text, paths=_leak_paths(members))
        else:
            text = f"{how} {len(paths)} times: {shown}"
            kind: Kind = "duplicate" if exact else "near-duplicate"
            yield Finding(kind=kind, severity="warning", message=text, paths=paths)
        labels = {_label(sample) for sample in members if sample.target is not None}
        # Two frames of a street look alike, and one shows a pedestrian: no contradiction.
        if len(labels) > 1 and (exact or not dataset.is_dense):
            text = f"{how} labelled {' and '.join(sorted(labels))}: {shown}"
            yield Finding(kind="label-conflict", severity="warning", message=text, paths=paths)


def _leak_paths(members: Sequence[Sample]) -> tuple[str, ...]:
    """Paths of the group, beginning with one of each split."""
    heads = list({sample.split: sample for sample in reversed(members)}.values())
    heads.sort(key=lambda sample: SPLITS.index(sample.split) if sample.split else len(SPLITS))
    return tuple(dict.fromkeys(sample.name for sample in [*heads, *members]))


def _label(sample: Sample) -> str:
    return " + ".join(sorted(labels_of(sample.target))) or "nothing"


def _class_counts(dataset: Dataset, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    # A class map may name more than a data set shows; the other classes can still be learned.
    grave: Literal["error", "warning"] = "warning" if dataset.is_dense else "error"
    good = dataset.subset(i for i, record in enumerate(records) if record.problem is None)
    parts = {split: good.split(split) for split in SPLITS}
    train = parts["train"].counts() if len(parts["train"]) else good.counts()
    thing = "object" if dataset.kind == "detection" else "image"
    for name, total in good.counts().items():
        if not total:
            text = f"class {name!r} has no readable {thing}"
            yield Finding(kind="empty-class", severity=grave, message=text)
            continue
        for split, part in parts.items():
            if len(part) and not part.counts()[name]:
                text = f"class {name!r} has no {thing} in {split}"
                severity = grave if split == "train" else "warning"
                yield Finding(kind="missing-class", severity=severity, message=text)
        if 0 < train[name] < RARE:
            several = f"{thing}s" if train[name] > 1 else thing
            text = f"class {name!r} has only {train[name]} {several} to learn from"
            yield Finding(kind="rare-class", severity="warning", message=text)


def _empty_splits(dataset: Dataset, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    given = Counter(sample.split for sample in dataset.samples if sample.split is not None)
    bad = Counter(
        s.split for s, record in zip(dataset.samples, records, strict=True) if record.problem
    )
    for split in SPLITS:
        if split in given and given[split] == bad[split]:
            text = f"none of the {given[split]} images in {split} is readable"
            yield Finding(kind="empty-split", severity="error", message=text)
    if given and "train" not in given and given.total() == len(dataset):
        text = f"no image in train, only in {' and '.join(s for s in SPLITS if s in given)}"
        yield Finding(kind="empty-split", severity="error", message=text)


def _dark(dataset: Dataset, records: Sequence[ImageRecord]) -> Iterator[Finding]:
    deep = [i for i, r in enumerate(records) if r.mode.startswith("I") or r.mode == "uint16"]
    paths = tuple(dataset.samples[i].name for i in deep if max(records[i].thumbnail) < DARK)
    if paths:
        text = (
            f"{len(paths)} images of 16 bits use less than a tenth of their range and will be "
            f"nearly black, such as {paths[0]}; multiply 10-bit values by 64, 12-bit ones by 16"
        )
        yield Finding(kind="16-bit-dark", severity="warning", message=text, paths=paths)


def usable(
    dataset: Dataset, records: Sequence[ImageRecord], *, bad_files: Literal["error", "skip"]
) -> tuple[Dataset, tuple[ImageRecord, ...]]:
    """The readable part of a data set, each sample carrying its digest, and its records.

    Raises
    ------
    DataError
        With ``bad_files="error"`` if any image cannot be read, naming the first 20; with
        "skip" if none can.

    Examples
    --------
    >>> data = Dataset(samples=(Sample(image=b"junk"), Sample(image=np.eye(9))), classes=())
    >>> len(usable(data, scan(data.samples), bad_files="skip")[0])
    1
    """
    _require_one_each(dataset, records)
    bad = [finding.message for finding in _unreadable(dataset, records)]
    if bad and (bad_files == "error" or len(bad) == len(dataset)):
        more = [f"and {len(bad) - 20} more"] if len(bad) > 20 else []
        raise DataError(
            f"Expected {len(dataset)} readable images, got {len(bad)} that are not; repair or "
            "remove them, or leave them out with --bad-files skip:\n  "
            + "\n  ".join(bad[:20] + more)
        )
    kept = [i for i, record in enumerate(records) if record.problem is None]
    samples = tuple(replace(dataset.samples[i], digest=records[i].digest) for i in kept)
    return replace(dataset, samples=samples), tuple(records[i] for i in kept)


def require_no_leak(findings: Sequence[Finding], *, allow_overlap: bool) -> None:
    """Refuse data with the same image, or nearly, on both sides of a split.

    Raises
    ------
    LeakError
        Unless ``allow_overlap``; it names both paths of the first five.
    """
    leaks = [finding for finding in findings if finding.kind == "leak"]
    if leaks and not allow_overlap:
        pairs = [finding.message for finding in leaks[:5]]
        more = [f"and {len(leaks) - 5} more"] if len(leaks) > 5 else []
        raise LeakError(
            f"Expected no image in two splits, got {len(leaks)}; remove one of each, or pass "
            "--allow-overlap if it is meant:\n  " + "\n  ".join(pairs + more)
        )
