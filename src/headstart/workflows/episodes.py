"""Few-shot accuracy of a model's backbone on classes that the model does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headstart.cache import Cache, open_cache
from headstart.data.dataset import Dataset
from headstart.data.readers import READ_SETTINGS, with_image_options
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.evaluation import episodes as drawn
from headstart.features.engines import runnable_engine
from headstart.features.extractor import Extractor, Progress
from headstart.metrics.confidence_intervals import Interval
from headstart.models.saving import load
from headstart.models.transfer_model import TransferModel
from headstart.training.few_shot_heads import HEADS
from headstart.workflows.evaluate import labelled_part

__all__ = ["evaluate_episodes"]


def evaluate_episodes(  # noqa: PLR0913 - one argument a flag
    model: TransferModel | str | Path,
    data: object,
    *,
    episodes: int = 600,
    ways: int = 5,
    shots: int = 1,
    seed: int = 0,
    device: str = "auto",
    cache: Cache | bool | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Interval]:
    """Evaluate few-shot heads on a model's frozen features, over drawn episodes.

    All images of the data are used, whatever their split, because none of them trained the model.

    Parameters
    ----------
    model : TransferModel, str or Path
        A classifier, or its folder.
    data : str, Path, Dataset or object
        As for `headstart.fit`, with one class for each image. No class may be one of the model's.
    episodes : int
    ways : int
        Classes of an episode.
    shots : int
        Training images of each class of an episode; 15 other images of it are predicted.
    seed : int
        Decides the episodes. All heads are evaluated on the same ones.
    device, cache
        As for `headstart.evaluate`.
    on_progress : callable, optional
        Called with the step, and the images that are done and in total.
    **settings
        As for `headstart.read_dataset`.

    Returns
    -------
    dict of str to Interval
        Mean accuracy over the episodes of each head, with its 95 % interval.

    Raises
    ------
    DataError
        If a class of the data is a class of the model, or too few classes have enough images.
    UsageError
        If a number is too small, or the model does not classify.

    Reference
    ---------
    Snell et al., Prototypical networks for few-shot learning, NeurIPS 2017, section 3.2.

    Examples
    --------
    >>> evaluate_episodes("runs/photos", "new_classes/", shots=5)  # doctest: +SKIP
    """
    for name in settings:
        if name not in READ_SETTINGS:
            known = (*READ_SETTINGS, "cache", "device", "episodes", "seed", "shots", "ways")
            raise UnknownNameError("setting", name, known)
    loaded = model if isinstance(model, TransferModel) else load(model)
    if loaded.task.kind != "multiclass":
        raise UsageError(
            f"Episodes need a classifier with one class for each image, got a model for "
            f"{loaded.task.kind}. Use `headstart evaluate` without --episodes."
        )
    with open_cache(cache) as store:
        images = _novel_images(loaded, data, store, settings)
        engine = runnable_engine(loaded.engine, device=device)
        extractor = Extractor(cache=store, engine=engine, device=device, progress=on_progress)
        features = extractor.features(loaded.backbone, images.samples).values
    counts = {"ways": ways, "shots": shots, "episodes": episodes, "seed": seed}
    targets = images.targets()
    return {head: drawn.evaluate_episodes(head, features, targets, **counts) for head in HEADS}


def _novel_images(
    model: TransferModel, data: object, cache: Cache, settings: dict[str, Any]
) -> Dataset:
    """Read the images, and refuse classes that the model was trained on."""
    if isinstance(data, Dataset):
        data = with_image_options(data, model.image_options)
    else:
        given = {name: value for name, value in settings.items() if value is not None}
        settings = {**model.image_options.as_dict(), **given}
    images = labelled_part(data, "multiclass", "", cache=cache, **settings)
    present = [name for name, count in images.counts().items() if count]
    seen = sorted(set(present) & set(model.task.classes))
    if seen:
        raise DataError(
            f"The model was trained on {len(seen)} of these {len(present)} classes "
            f"({', '.join(map(repr, seen[:3]))}). Pass images of other classes for --episodes, or "
            "evaluate without it."
        )
    return images
