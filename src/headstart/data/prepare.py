"""Data preparation: read, scan, check and split the user's data."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Unpack, get_args

import numpy as np

from headstart.cache import Cache
from headstart.data.checks.boxes import (
    clean_boxes,
    find_boxless,
    keep_boxed,
    require_matching_sizes,
)
from headstart.data.checks.copies import Copy, find_copies
from headstart.data.checks.images import (
    Finding,
    ImageRecord,
    check,
    find_duplicates,
    find_rare_classes,
    find_several_frames,
    is_frame,
    join_messages,
    keep_readable,
    require_no_leak,
    scan,
    sort_by_severity,
)
from headstart.data.checks.masks import check_masks, keep_usable_masks
from headstart.data.dataset import SPLITS, Dataset, Sample
from headstart.data.formats.objects import is_collection
from headstart.data.pixel_values import DEFAULT_OPTIONS, ImageOptions
from headstart.data.readers import SourceOptions, list_images, read_dataset, with_image_options
from headstart.data.splits import assign_splits, find_blocks
from headstart.errors import DataError, UnknownNameError, UsageError

__all__ = [
    "BadFiles",
    "PreparedData",
    "examine_dataset",
    "group_duplicates",
    "inspect_dataset",
    "inspect_samples",
    "prepare",
    "readable_samples",
    "to_samples",
]

BadFiles = Literal["error", "skip"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedData:
    """Examples that were read, decoded once, checked and split.

    Parameters
    ----------
    data : Dataset
        Every example has a digest and a split; examples that must stay together share a group.
    records : tuple of ImageRecord
        Result of the scan, one record per example.
    findings : tuple of Finding
        Problems and notes, skipped files and boxes included.
    """

    data: Dataset
    records: tuple[ImageRecord, ...]
    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(self.data.split_indices(name))}" for name in SPLITS)
        return f"PreparedData({self.data!r}, {sizes}, {len(self.findings)} findings)"

    @property
    def train(self) -> Dataset:
        """Part that parameters are fitted on."""
        return self.data.split("train")

    @property
    def val(self) -> Dataset | None:
        """Part that a method may select on; None if there is no test part beside it."""
        has_both = len(self.data.split_indices("test")) and len(self.data.split_indices("val"))
        return self.data.split("val") if has_both else None

    @property
    def test(self) -> Dataset:
        """Part that the model is evaluated on: the test part, or else the val part."""
        test = self.data.split("test")
        return test if len(test) else self.data.split("val")


def prepare(
    source: object,
    *,
    cache: Cache,
    group_by: str | None = None,
    bad_files: BadFiles = "error",
    allow_overlap: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> PreparedData:
    """Read, scan, check and split a data set.

    Parameters
    ----------
    source : str, Path, Dataset or object
        A folder, a manifest, ``demo:<name>``, an object with images and labels, or a data set
        that was read already.
    cache : Cache
        Stores the records of the scan.
    group_by : str, optional
        Column or regular expression that names each image's group.
    bad_files : {"error", "skip"}
        Treatment of a file that cannot be decoded: raise an error, or leave it out with a
        finding.
    allow_overlap : bool
        Continue even if the same image, or the same group, is in two splits.
    test_fraction : float
        Share of test images, if the data have no test split.
    seed : int
        Seed of the split.
    progress : callable, optional

    Raises
    ------
    DataError
        If files cannot be decoded (with ``bad_files="error"``), a class has no training images,
        a part is empty, or boxes or masks do not fit their images.
    LeakError
        If the same image or group is in two splits of the data.
    UnknownNameError
        If ``bad_files`` is no known policy.
    """
    _require_policy(bad_files)
    data, all_records, findings, copies = _read_and_check(source, cache, group_by, progress)
    pairs = _pairs_to_group(data, all_records, copies)
    data, records = keep_readable(data, all_records, bad_files=bad_files)
    # Findings refer to samples by index in the full data set.
    rows = [i for i, record in enumerate(all_records) if record.problem is None]
    data, records = keep_usable_masks(data, records, findings, bad_files=bad_files, rows=rows)
    data, records = keep_boxed(data, records, findings, rows)
    require_no_leak(findings, allow_overlap=allow_overlap)
    require_matching_sizes(findings)
    _require_learnable(findings)
    data = group_duplicates(data, [*find_duplicates(records), *_rows_of(records, pairs)])
    data = assign_splits(data, test_fraction=test_fraction, seed=seed)
    findings = _with_rare_classes(findings, data)
    return PreparedData(data=data, records=tuple(records), findings=findings)


def inspect_dataset(
    source: object,
    *,
    cache: Cache,
    group_by: str | None = None,
    progress: Progress | None = None,
    **source_options: Unpack[SourceOptions],
) -> tuple[Dataset, tuple[Finding, ...]]:
    """Read, scan and check a data set; return the findings and raise none of them.

    Rare classes are counted after the split that `prepare` makes by default.
    """
    if not isinstance(source, Dataset):
        source = read_dataset(source, group_by=group_by, **source_options)
    data, _, findings = examine_dataset(source, cache=cache, progress=progress)
    return data, findings


def examine_dataset(
    data: Dataset, *, cache: Cache, progress: Progress | None = None
) -> tuple[Dataset, tuple[ImageRecord, ...], tuple[Finding, ...]]:
    """Scan and check a data set; return it with clean boxes, its records and its findings.

    Parameters
    ----------
    data : Dataset
    cache : Cache
        Stores the records of the scan.
    progress : callable, optional

    Returns
    -------
    Dataset, tuple of ImageRecord, tuple of Finding
        One record for each example, unreadable ones included; errors come first.
    """
    data, records, findings, _ = _read_and_check(data, cache, None, progress)
    readable = data.subset(i for i, record in enumerate(records) if record.problem is None)
    with suppress(DataError):  # data that cannot be split have other findings
        findings = _with_rare_classes(findings, assign_splits(readable))
    return data, records, findings


def _with_rare_classes(findings: Iterable[Finding], data: Dataset) -> tuple[Finding, ...]:
    """Replace the findings about rare classes by those of the training images after the split."""
    others = (finding for finding in findings if finding.kind != "rare-class")
    return sort_by_severity([*others, *find_rare_classes(data.split("train"))])


def _read_and_check(
    source: object, cache: Cache, group_by: str | None, progress: Progress | None
) -> tuple[Dataset, tuple[ImageRecord, ...], tuple[Finding, ...], list[Copy]]:
    data = source if isinstance(source, Dataset) else read_dataset(source, group_by=group_by)
    on_scan = None if progress is None else (lambda done, total: progress("scan", done, total))
    records = scan(data.samples, cache=cache, progress=on_scan)
    data = _group_patients(data, records)
    unclean = data
    data, box_findings = clean_boxes(data, records)
    mask_findings = check_masks(data, records)
    copies = find_copies(records)
    findings = (
        *_find_shared_groups(data),
        *check(data, records, copies),
        *box_findings,
        *find_boxless(unclean, data),
        *mask_findings,
    )
    return data, records, tuple(sorted(findings, key=lambda f: f.severity != "error")), copies


def _group_patients(data: Dataset, records: Sequence[ImageRecord]) -> Dataset:
    """Group the DICOM images of a patient, if the user names no groups."""
    patients = dict.fromkeys(record.patient for record in records if record.patient is not None)
    if not patients or any(sample.group is not None for sample in data.samples):
        return data
    if len(patients) == 1:
        note = "groups: none, because all DICOM files have the same patient id"
        return replace(data, notes=(*data.notes, note))
    names = {patient: f"patient {number}" for number, patient in enumerate(patients, 1)}
    samples = tuple(
        sample if record.patient is None else replace(sample, group=names[record.patient])
        for sample, record in zip(data.samples, records, strict=True)
    )
    note = f"groups: {len(names)} patients, from the ids in the DICOM files"
    return replace(data, samples=samples, notes=(*data.notes, note))


def _pairs_to_group(
    data: Dataset, records: Sequence[ImageRecord], copies: Iterable[Copy]
) -> list[tuple[str, str]]:
    """Digests of the copies that must stay in one split; frames need `group_by`."""
    pairs = []
    for copy in copies:
        rows = (copy.copy, copy.original)
        if not is_frame([data.samples[i].name for i in rows], copy):
            pairs.append((records[rows[0]].digest, records[rows[1]].digest))
    return pairs


def _rows_of(
    records: Sequence[ImageRecord], pairs: Iterable[tuple[str, str]]
) -> Iterator[tuple[int, int]]:
    """Rows of the pairs of digests of which both are still in the data."""
    rows = {record.digest: row for row, record in enumerate(records)}
    for first, second in pairs:
        if first in rows and second in rows:
            yield rows[first], rows[second]


def _find_shared_groups(data: Dataset) -> Iterator[Finding]:
    """Report groups in two of the data's own splits: a leak, like a shared image."""
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
    errors = [f.message for f in findings if f.kind in kinds and f.severity == "error"]
    if errors:
        raise DataError(
            f"Expected images of every class in every part, got {len(errors)} without. Add images, "
            "or remove the class or the part:" + join_messages(errors)
        )


def to_samples(images: object) -> tuple[Sample, ...]:
    """Convert images in any of the usual forms to samples.

    Parameters
    ----------
    images : path, bytes, PIL image, array, or a sequence of these
        A folder stands for all images below it; an array of shape (n, H, W, C) for n images. A
        DataFrame or a dataset with a column of images is read without its labels.

    Raises
    ------
    LayoutError
        If a path does not exist; the message suggests the nearest name.
    UsageError
        If the images are of another type.

    Examples
    --------
    >>> import numpy as np
    >>> len(to_samples(np.zeros((4, 8, 8, 3), dtype=np.uint8)))
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
            return tuple(sample for item in images.ravel() for sample in to_samples(item))
        stack = images if images.ndim == 4 else images[None]
        return tuple(Sample(image=image) for image in stack)
    if _is_pil(images):
        return (Sample(image=images),)  # type: ignore[arg-type]  # checked above
    if is_collection(images) and not isinstance(images, Mapping):
        data = read_dataset(images, labels_required=False, min_classes=0)
        return tuple(replace(sample, target=None, split=None) for sample in data.samples)
    if isinstance(images, Iterable) and not _is_unordered(images):
        return tuple(sample for item in images for sample in to_samples(item))
    raise UsageError(
        "Expected images as paths, bytes, PIL images or NumPy arrays, or a list of these, got "
        f"{type(images).__name__}. Convert them first."
    )


def _is_pil(image: object) -> bool:
    from PIL.Image import Image

    return isinstance(image, Image)


def _is_unordered(images: Iterable[object]) -> bool:
    """Whether an iterable is no sequence of images: a tensor, an open file, a dict or a set."""
    is_tensor_or_file = hasattr(images, "detach") or hasattr(images, "read")
    return is_tensor_or_file or isinstance(images, Mapping | set | frozenset)


def readable_samples(
    samples: Sequence[Sample],
    *,
    cache: Cache,
    bad_files: BadFiles,
    options: ImageOptions = DEFAULT_OPTIONS,
) -> tuple[Sample, ...]:
    """Decode every image once; raise an error for unreadable images, or leave them out.

    ``options`` replace those of the samples, unless they have their defaults.
    """
    return inspect_samples(samples, cache=cache, bad_files=bad_files, options=options)[0]


def inspect_samples(
    samples: Sequence[Sample],
    *,
    cache: Cache,
    bad_files: BadFiles,
    options: ImageOptions = DEFAULT_OPTIONS,
) -> tuple[tuple[Sample, ...], tuple[Finding, ...]]:
    """Return the samples of `readable_samples`, and the files whose later frames are left out.

    Examples
    --------
    >>> inspect_samples((), cache=Cache(), bad_files="skip")
    ((), ())
    """
    _require_policy(bad_files)
    data = with_image_options(Dataset(samples=tuple(samples), classes=()), options)
    records = scan(data.samples, cache=cache)
    readable, records = keep_readable(data, records, bad_files=bad_files)
    return readable.samples, tuple(find_several_frames(readable, records))


def group_duplicates(data: Dataset, duplicates: Iterable[Iterable[int]]) -> Dataset:
    """Put duplicates, and the groups that they connect, into one group for splitting.

    Examples
    --------
    >>> from headstart.data.dataset import Sample
    >>> data = Dataset(samples=tuple(Sample(image=b"") for _ in range(3)), classes=())
    >>> group_duplicates(data, [(0, 2)]).groups()
    array([0, 1, 0])
    """
    duplicate_groups = [tuple(members) for members in duplicates]
    if not duplicate_groups:
        return data
    duplicated = {index for members in duplicate_groups for index in members}
    block_ids = find_blocks(len(data), data.groups(), duplicate_groups)
    samples = tuple(
        replace(s, group=f"block-{block_ids[i]}") if i in duplicated or s.group is not None else s
        for i, s in enumerate(data.samples)
    )
    return replace(data, samples=samples)
