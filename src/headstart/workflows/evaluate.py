"""Evaluate a saved model on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headstart.cache import Cache
from headstart.data.checks.boxes import clean_boxes, require_matching_sizes
from headstart.data.checks.images import keep_readable, scan
from headstart.data.checks.masks import check_masks, keep_usable_masks
from headstart.data.dataset import DENSE, Dataset, Kind, Sample
from headstart.data.loader import digest_of
from headstart.data.prepare import BadFiles
from headstart.data.readers import read_dataset
from headstart.errors import LeakError
from headstart.evaluation.classification import AnyEvaluation, evaluate
from headstart.features.engines import runnable_engine
from headstart.features.extractor import Extractor
from headstart.models.saving import load
from headstart.models.transfer_model import TransferModel

__all__ = ["evaluate_source", "labelled_part", "short_digest"]


def evaluate_source(
    model_folder: str | Path,
    source: str | Path | Dataset,
    *,
    cache: Cache,
    group_by: str | None = None,
    bad_files: BadFiles = "error",
    allow_overlap: bool = False,
    device: str = "auto",
    seed: int = 0,
) -> AnyEvaluation:
    """Evaluate a saved model on labelled images; with a test part, on that part only.

    Raises
    ------
    ModelFileError
        If the model's folder is damaged.
    DataError
        If the images cannot be used, or have classes that the model does not know.
    LeakError
        If the model was trained on some of these images.
    """
    model = load(model_folder)
    kind = model.task.kind
    data = labelled_part(source, kind, "test", cache=cache, group_by=group_by, bad_files=bad_files)
    if not allow_overlap:
        _require_unseen(model, data.samples)
    engine = runnable_engine(model.engine, device=device)
    extractor = Extractor(cache=cache, engine=engine, device=device)
    return evaluate(model, data, extractor=extractor, seed=seed)


def labelled_part(
    source: str | Path | Dataset,
    kind: Kind,
    part: str,
    *,
    cache: Cache,
    group_by: str | None = None,
    bad_files: BadFiles = "error",
) -> Dataset:
    """Read images with labels of one kind: a part of them, or all if the part is empty.

    Boxes and masks are checked and clipped as in training.

    Raises
    ------
    DataError
        If the images, boxes or masks cannot be used.
    """
    data = source
    if not isinstance(data, Dataset):
        is_demo = str(data).startswith("demo:")  # the name decides its task
        task_kind = kind if kind in DENSE and not is_demo else None
        data = read_dataset(data, group_by=group_by, min_classes=1, task_kind=task_kind)
    rows = [i for i, sample in enumerate(data.samples) if sample.split == part]
    data = data.subset(rows or range(len(data)))
    data, records = keep_readable(data, scan(data.samples, cache=cache), bad_files=bad_files)
    data, findings = clean_boxes(data, records)
    require_matching_sizes(findings)
    return keep_usable_masks(data, records, check_masks(data, records), bad_files=bad_files)[0]


def short_digest(sample: Sample) -> str:
    """First 64 bits of an image's digest, enough to recognise it.

    >>> short_digest(Sample(image=b"", digest="0123456789abcdef" * 4))
    '0123456789abcdef'
    """
    return digest_of(sample)[:16]


def _require_unseen(model: TransferModel, samples: Sequence[Sample]) -> None:
    training_digests = set(model.record.get("learned_from", ()))
    overlap = [sample.name for sample in samples if short_digest(sample) in training_digests]
    if overlap:
        raise LeakError(
            f"The model was trained on {len(overlap)} of these {len(samples)} images, such as "
            f"{', '.join(overlap[:3])}. Remove them, or pass --allow-overlap to evaluate anyway."
        )
