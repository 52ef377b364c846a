"""From what the user points at to examples that can be trusted: read, scan, check, split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from headstart.cache import Cache
from headstart.data.checks import (
    Finding,
    ImageRecord,
    check,
    find_duplicates,
    require_no_leak,
    scan,
    usable,
)
from headstart.data.readers import list_images, read_dataset
from headstart.data.samples import Dataset, Sample
from headstart.data.splits import assign, blocks

__all__ = ["BadFiles", "Prepared", "gather", "inspect", "keep_together", "prepare", "select"]

BadFiles = Literal["error", "skip"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Examples that were read, decoded once, checked and split.

    Parameters
    ----------
    data : Dataset
        Every example has a digest and a split; examples that must stay together share a group.
    records : tuple of ImageRecord
        What the scan saw, example by example.
    findings : tuple of Finding
        Everything worth a person's attention, skipped files included.
    """

    data: Dataset
    records: tuple[ImageRecord, ...]
    findings: tuple[Finding, ...]

    @property
    def train(self) -> Dataset:
        """What parameters are fitted on."""
        return self.data.split("train")

    @property
    def val(self) -> Dataset | None:
        """What a method may select on; None unless there is a test part beside it."""
        has_both = len(self.data.split_indices("test")) and len(self.data.split_indices("val"))
        return self.data.split("val") if has_both else None

    @property
    def test(self) -> Dataset:
        """What the model is judged by: the test part, or the val part where there is no other."""
        test = self.data.split("test")
        return test if len(test) else self.data.split("val")


def prepare(
    source: str | Path | Dataset,
    *,
    cache: Cache,
    group_by: str | None = None,
    bad_files: BadFiles = "error",
    allow_overlap: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Prepared:
    """Read, scan, check and split.

    Parameters
    ----------
    source : str, Path or Dataset
        A folder, a manifest, ``demo:<name>``, or examples that are read already.
    cache : Cache
        Remembers what the scan saw.
    group_by : str, optional
        Column or regular expression that names each picture's group.
    bad_files : {"error", "skip"}
        What to do when a file cannot be decoded: refuse, or leave it out and say so.
    allow_overlap : bool
        Go on although the same picture lies on both sides of a split.
    test_fraction : float
        Share of the pictures to test on, where the data bring no split.
    seed : int
        Decides the split.
    progress : callable, optional

    Raises
    ------
    DataError
        If files cannot be decoded (and are not to be skipped), labels contradict each other,
        classes or parts are missing.
    LeakError
        If the same picture is on both sides of a split that the data bring.
    """
    data, seen, findings = _inspect(source, cache, group_by, progress)
    data, records = usable(data, seen, bad_files=bad_files)
    require_no_leak(findings, allow_overlap=allow_overlap)
    samples = tuple(
        replace(sample, digest=record.digest)
        for sample, record in zip(data.samples, records, strict=True)
    )
    data = keep_together(replace(data, samples=samples), find_duplicates(records))
    data = assign(data, test_fraction=test_fraction, seed=seed)
    return Prepared(data=data, records=tuple(records), findings=tuple(findings))


def inspect(
    source: str | Path | Dataset,
    *,
    cache: Cache,
    group_by: str | None = None,
    progress: Progress | None = None,
) -> tuple[Dataset, tuple[Finding, ...]]:
    """Read and decode everything and say what was found, without refusing anything."""
    data, _, findings = _inspect(source, cache, group_by, progress)
    return data, findings


def _inspect(
    source: str | Path | Dataset, cache: Cache, group_by: str | None, progress: Progress | None
) -> tuple[Dataset, tuple[ImageRecord, ...], tuple[Finding, ...]]:
    data = source if isinstance(source, Dataset) else read_dataset(source, group_by=group_by)
    report = None if progress is None else (lambda done, total: progress("scan", done, total))
    records = scan(data.samples, cache=cache, progress=report)
    return data, records, check(data, records)


def gather(pictures: object) -> tuple[Sample, ...]:
    """Make examples of whatever holds pictures.

    Parameters
    ----------
    pictures : path, bytes, PIL image, array, or a sequence of these
        A folder stands for all pictures below it; an array of shape (n, H, W, C) for n.

    Examples
    --------
    >>> import numpy as np
    >>> len(gather(np.zeros((4, 8, 8, 3), dtype=np.uint8)))
    4
    """
    if isinstance(pictures, str | Path):
        return tuple(Sample(image=path) for path in list_images(pictures))
    if isinstance(pictures, np.ndarray) and pictures.dtype.kind not in "OUS":
        stack = pictures if pictures.ndim == 4 else pictures[None]
        return tuple(Sample(image=picture) for picture in stack)
    if isinstance(pictures, Iterable) and not isinstance(pictures, bytes):
        return tuple(sample for one in pictures for sample in gather(one))
    return (Sample(image=pictures),)  # type: ignore[arg-type]  # decode() judges the type


def select(samples: Sequence[Sample], *, cache: Cache, bad_files: BadFiles) -> tuple[Sample, ...]:
    """Decode every picture once and refuse or leave out those that cannot be read."""
    data = Dataset(samples=tuple(samples), classes=())
    data, records = usable(data, scan(samples, cache=cache), bad_files=bad_files)
    pairs = zip(data.samples, records, strict=True)
    return tuple(replace(sample, digest=record.digest) for sample, record in pairs)


def keep_together(data: Dataset, duplicates: Iterable[Iterable[int]]) -> Dataset:
    """Give duplicates (and the groups they join) one group, so that no split parts them.

    Examples
    --------
    >>> from headstart.data.samples import Sample
    >>> data = Dataset(samples=tuple(Sample(image=b"") for _ in range(3)), classes=())
    >>> keep_together(data, [(0, 2)]).groups()
    array([0, 1, 0])
    """
    links = [tuple(members) for members in duplicates]
    if not links:
        return data
    linked = {index for members in links for index in members}
    together = blocks(len(data), data.groups(), links)
    samples = tuple(
        replace(s, group=f"block-{together[i]}") if i in linked or s.group is not None else s
        for i, s in enumerate(data.samples)
    )
    return replace(data, samples=samples)
