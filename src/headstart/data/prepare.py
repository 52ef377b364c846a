"""From what the user points at to examples that can be trusted: read, scan, check, split."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from headstart.cache import Cache
from headstart.data.checks.boxes import require_sound, settled
from headstart.data.checks.images import (
    Finding,
    ImageRecord,
    check,
    find_duplicates,
    require_no_leak,
    scan,
    usable,
)
from headstart.data.checks.masks import check_masks, with_masks
from headstart.data.dataset import SPLITS, Dataset, Sample
from headstart.data.readers import list_images, read_dataset
from headstart.data.splits import assign, blocks
from headstart.errors import DataError, UnknownNameError, UsageError

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
        Everything worth a person's attention, skipped files and boxes included.
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
        Column or regular expression that names each image's group.
    bad_files : {"error", "skip"}
        What to do when a file cannot be decoded: refuse, or leave it out and say so.
    allow_overlap : bool
        Go on although the same image, or the same group, lies on both sides of a split.
    test_fraction : float
        Share of the images to test on, where the data bring no split.
    seed : int
        Decides the split.
    progress : callable, optional

    Raises
    ------
    DataError
        If files cannot be decoded (and are not to be skipped), or if there is nothing to learn
        a class from, or a part is empty, or boxes or masks do not fit their
        images.
    LeakError
        If the same image or group is on both sides of a split that the data bring.
    UnknownNameError
        If ``bad_files`` is no known policy.
    """
    _require_policy(bad_files)
    data, seen, findings = _inspect(source, cache, group_by, progress)
    data, records = usable(data, seen, bad_files=bad_files)
    rows = [i for i, record in enumerate(seen) if record.problem is None]
    data, records = with_masks(data, records, findings, bad_files=bad_files, rows=rows)
    require_no_leak(findings, allow_overlap=allow_overlap)
    require_sound(findings)
    _require_learnable(findings)
    data = keep_together(data, find_duplicates(records))
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
    data, about_boxes = settled(data, records)
    about_masks = check_masks(data, records)
    findings = (*_shared_groups(data), *check(data, records), *about_boxes, *about_masks)
    return data, records, tuple(sorted(findings, key=lambda f: f.severity != "error"))


def _shared_groups(data: Dataset) -> Iterator[Finding]:
    """Groups that the data's author put on both sides: as much a leak as a shared image."""
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample in data.samples:
        if sample.group is not None and sample.split is not None:
            members[sample.group].append(sample)
    for group, samples in members.items():
        firsts = {sample.split: sample.name for sample in reversed(samples)}
        if len(firsts) > 1:
            splits = [split for split in SPLITS if split in firsts]
            paths = tuple(firsts[split] for split in splits)
            text = f"group {group!r} in {' and '.join(splits)}: {', '.join(paths)}"
            yield Finding(kind="leak", severity="error", message=text, paths=paths)


def _require_policy(bad_files: str) -> None:
    if bad_files not in get_args(BadFiles):
        raise UnknownNameError("bad_files", bad_files, get_args(BadFiles))


def _require_learnable(findings: Iterable[Finding]) -> None:
    kinds = {"empty-class", "missing-class", "empty-split"}
    wrong = [f.message for f in findings if f.kind in kinds and f.severity == "error"]
    if wrong:
        raise DataError(
            "Expected images of every class to learn from, got none; do add some, or leave the "
            "class or part out:\n  " + "\n  ".join(wrong[:20])
        )


def gather(images: object) -> tuple[Sample, ...]:
    """Make examples of whatever holds images.

    Parameters
    ----------
    images : path, bytes, PIL image, array, or a sequence of these
        A folder stands for all images below it; an array of shape (n, H, W, C) for n.

    Raises
    ------
    LayoutError
        If nothing is at a path; the nearest name is named.
    UsageError
        If it is none of these.

    Examples
    --------
    >>> import numpy as np
    >>> len(gather(np.zeros((4, 8, 8, 3), dtype=np.uint8)))
    4
    """
    if isinstance(images, Sample):
        return (images,)
    if isinstance(images, str | os.PathLike):
        return tuple(Sample(image=path) for path in list_images(Path(images)))
    if isinstance(images, bytes | bytearray | memoryview):
        return (Sample(image=bytes(images)),)
    if isinstance(images, np.ndarray):
        if images.dtype.kind in "OUS":  # names, or images of different sizes
            return tuple(sample for one in images.ravel() for sample in gather(one))
        stack = images if images.ndim == 4 else images[None]
        return tuple(Sample(image=image) for image in stack)
    if _is_pil(images):
        return (Sample(image=images),)  # type: ignore[arg-type]  # just looked at
    if isinstance(images, Iterable) and not _is_unordered(images):
        return tuple(sample for one in images for sample in gather(one))
    raise UsageError(
        "Expected images as paths, bytes, PIL images or NumPy arrays, or a list of these, got "
        f"{type(images).__name__}; do convert them first."
    )


def _is_pil(image: object) -> bool:
    from PIL.Image import Image

    return isinstance(image, Image)


def _is_unordered(images: Iterable[object]) -> bool:
    """What can be gone through but is no sequence of images: tensors, open files, dicts, sets."""
    is_tensor_or_file = hasattr(images, "detach") or hasattr(images, "read")
    return is_tensor_or_file or isinstance(images, Mapping | set | frozenset)


def select(samples: Sequence[Sample], *, cache: Cache, bad_files: BadFiles) -> tuple[Sample, ...]:
    """Decode every image once and refuse or leave out those that cannot be read."""
    _require_policy(bad_files)
    data = Dataset(samples=tuple(samples), classes=())
    return usable(data, scan(samples, cache=cache), bad_files=bad_files)[0].samples


def keep_together(data: Dataset, duplicates: Iterable[Iterable[int]]) -> Dataset:
    """Give duplicates (and the groups they join) one group, so that no split parts them.

    Examples
    --------
    >>> from headstart.data.dataset import Sample
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
