"""A saved model held against labelled images that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headstart.cache import Cache
from headstart.data.checks.boxes import require_sound, settled
from headstart.data.checks.images import scan, usable
from headstart.data.checks.masks import check_masks, with_masks
from headstart.data.dataset import DENSE, Dataset, Kind, Sample
from headstart.data.loader import digest_of
from headstart.data.prepare import BadFiles
from headstart.data.readers import read_dataset
from headstart.errors import LeakError
from headstart.evaluation.classification import AnyEvaluation, evaluate
from headstart.features.engines import runnable
from headstart.features.extractor import Extractor
from headstart.models.saving import load
from headstart.models.transfer_model import TransferModel

__all__ = ["evaluate_source", "labelled_part", "short"]


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
    """Judge a saved model on labelled images; of data with a test part, on that part.

    Raises
    ------
    ModelFileError
        If the model's folder is damaged.
    DataError
        If the images cannot be used, or show classes that the model does not know.
    LeakError
        If the model has learned from some of these images.
    """
    model = load(model_folder)
    kind = model.task.kind
    data = labelled_part(source, kind, "test", cache=cache, group_by=group_by, bad_files=bad_files)
    if not allow_overlap:
        _require_unseen(model, data.samples)
    engine = runnable(model.engine, device=device)
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
    """Read images with labels of one kind: a part of them, or all where it has no images.

    Boxes are clipped to their images as where they are learned from, and masks looked at.

    Raises
    ------
    DataError
        If the images, boxes or masks cannot be used.
    """
    data = source
    if not isinstance(data, Dataset):
        is_demo = str(data).startswith("demo:")  # which brings a kind of its own
        wanted = kind if kind in DENSE and not is_demo else None
        data = read_dataset(data, group_by=group_by, min_classes=1, task_kind=wanted)
    chosen = [i for i, sample in enumerate(data.samples) if sample.split == part]
    data = data.subset(chosen or range(len(data)))
    data, records = usable(data, scan(data.samples, cache=cache), bad_files=bad_files)
    data, findings = settled(data, records)
    require_sound(findings)
    return with_masks(data, records, check_masks(data, records), bad_files=bad_files)[0]


def short(sample: Sample) -> str:
    """Enough of an image's digest to recognise it: 64 bits.

    >>> short(Sample(image=b"", digest="0123456789abcdef" * 4))
    '0123456789abcdef'
    """
    return digest_of(sample)[:16]


def _require_unseen(model: TransferModel, samples: Sequence[Sample]) -> None:
    learned = set(model.record.get("learned_from", ()))
    seen = [sample.name for sample in samples if short(sample) in learned]
    if seen:
        raise LeakError(
            f"Expected images that the model has not learned from, got {len(seen)} of "
            f"{len(samples)} that it has, such as {', '.join(seen[:3])}; do leave them out, or "
            "pass --allow-overlap if it is meant."
        )
