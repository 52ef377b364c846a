"""What a recipe leaves open is settled by a race: backbone and method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.spec import BackboneSpec
from headstart.backbones.weights import WeightsFile, locate
from headstart.cache import Cache
from headstart.data.dataset import DENSE, Dataset, fingerprint_of
from headstart.data.loader import digest_of
from headstart.data.prepare import Prepared, prepare
from headstart.data.readers import read_dataset
from headstart.distributed import world
from headstart.errors import UsageError
from headstart.features.extractor import Extractor, Progress
from headstart.models.heads.pretrained import is_published, locate_head, split
from headstart.workflows.events import Decided, Noted, Observer
from headstart.workflows.recipe import Recipe, default_method
from headstart.workflows.run_folder import RACE, told_where

__all__ = ["checked", "choose", "keep", "located", "read", "require_meant", "settled"]

TOGETHER = (
    "Several processes cannot race, for their clocks differ: a linear probe is taken. Name the "
    "method to train otherwise."
)


def located(recipe: Recipe) -> list[tuple[BackboneSpec, WeightsFile]]:
    """Find the weights of the backbone, and of others that a race may choose.

    Raises
    ------
    UnknownNameError
        If there is no such backbone.
    WeightsNotFoundError
        If its weights are nowhere to be had.
    """
    names = (recipe.backbone, *recipe.rivals)
    specs = [resolve(name, offline=recipe.offline) for name in names]
    return [(spec, locate(spec, offline=recipe.offline)) for spec in specs]


def choose(
    recipe: Recipe,
    backbones: Sequence[FrozenBackbone],
    prepared: Prepared,
    *,
    extractor: Extractor,
    notify: Observer,
    kept: Path | None = None,
) -> tuple[Recipe, FrozenBackbone, Extractor, dict[str, Any]]:
    """Let the training images choose what the recipe leaves open.

    Parameters
    ----------
    recipe : Recipe
    backbones : sequence of FrozenBackbone
    prepared : Prepared
    extractor : Extractor
    notify : callable
    kept : Path, optional
        Folder of a training that shall go on: what was chosen for it is not raced for again.

    Returns
    -------
    Recipe
        With the method and the backbone's name.
    FrozenBackbone
    Extractor
        With the engine that made the features.
    dict
        What belongs in the model's record.

    Raises
    ------
    UsageError
        If nothing was chosen for the training that shall go on, or on other images, with
        another seed or other weights; it says which.
    """
    if recipe.method is not None:
        return recipe, backbones[0], extractor, {}
    if kept is not None:
        return _recalled(recipe, backbones, prepared, extractor, kept)
    if world() > 1:
        notify(Noted(text=TOGETHER))
        method = default_method(recipe.task, recipe.seed)
        return replace(recipe, method=method, rivals=()), backbones[0], extractor, {}
    from headstart.selection.race import decide

    found = decide(
        backbones,
        prepared.train,
        prepared.val,
        extractor=extractor,
        budget=recipe.budget,
        seed=recipe.seed,
        told=lambda line: notify(Noted(text=line)),
    )
    notify(Decided(record=found.record, backbone=found.backbone.spec.name, method=found.method))
    settled = replace(recipe, method=found.method, backbone=found.backbone.spec.name, rivals=())
    record = {"decision": found.record}
    return settled, found.backbone, replace(extractor, engine=found.engine), record


def keep(
    recipe: Recipe,
    backbone: FrozenBackbone,
    prepared: Prepared,
    engine: str,
    record: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write what a race has chosen beside the checkpoints, for ``--resume``; once."""
    if not record or recipe.method is None or (folder / RACE).exists():
        return
    from headstart.selection.candidates import in_short

    text = json.dumps(
        {
            "method": in_short(recipe.method),
            "backbone": recipe.backbone,
            "engine": engine,
            "identity": _identity(recipe, backbone, prepared),
            "record": record,
        }
    )
    with told_where(folder):
        (folder / RACE).write_text(text, encoding="utf-8")


def _identity(recipe: Recipe, backbone: FrozenBackbone, prepared: Prepared) -> dict[str, str]:
    """What a choice rests on: chosen on other images, it may have seen those to test on."""
    parts = (prepared.train, *(() if prepared.val is None else (prepared.val,)))
    seen = [[(digest_of(s), fingerprint_of(s.target)) for s in part.samples] for part in parts]
    return {
        "data": hashlib.sha256(repr(seen).encode()).hexdigest(),
        "seed": str(recipe.seed),
        "weights": backbone.identity.hex(),
    }


def _recalled(
    recipe: Recipe,
    backbones: Sequence[FrozenBackbone],
    prepared: Prepared,
    extractor: Extractor,
    folder: Path,
) -> tuple[Recipe, FrozenBackbone, Extractor, dict[str, Any]]:
    from headstart.selection.candidates import remade

    try:
        chosen = json.loads((folder / RACE).read_text(encoding="utf-8"))
        backbone = next(one for one in backbones if one.spec.name == chosen["backbone"])
        method = remade(chosen["method"])
        engine, record, identity = chosen["engine"], dict(chosen["record"]), chosen["identity"]
        found = _identity(recipe, backbone, prepared)
        different = [part for part in found if identity[part] != found[part]]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UsageError(
            f"Expected a training that was stopped in {folder}, got none that a race had chosen "
            "for these backbones; do begin without --resume, or name the method of that run, such "
            "as --method finetune."
        ) from error
    if different:
        raise UsageError(
            f"Expected to resume the same run from {folder / RACE}, got one with another "
            f"{', '.join(different)}; do give what that run was given, or begin without --resume."
        )
    settled = replace(recipe, method=method, backbone=backbone.spec.name, rivals=())
    return settled, backbone, replace(extractor, engine=engine), record


def require_meant(recipe: Recipe, train: Dataset, resume: bool) -> None:
    """Refuse what does not go together before anything is computed.

    Raises
    ------
    UsageError
        If an engine is named for boxes or masks, or what cannot be resumed shall be.
    DataError
        If the method cannot learn from these images.
    """
    if train.is_dense and recipe.engine not in {"auto", "fp32"}:
        raise UsageError(
            f"Expected --engine fp32 for {train.kind}, got {recipe.engine}; do leave it out."
        )
    method = recipe.method
    if method is not None:
        method.check(train)
    if resume and method is not None and not method.resumes:
        raise UsageError(
            f"Expected a method that can be resumed, got {method.name}; do name the method of the "
            "run that was stopped, such as --method finetune."
        )


def read(source: str | Path | Dataset, recipe: Recipe) -> Dataset:
    """Read what the user points at, as the task that the recipe names needs it.

    Raises
    ------
    DataError
        If it cannot be read, or holds nothing for that task.

    Examples
    --------
    >>> read("demo:boxes", Recipe()).kind
    'detection'
    """
    if isinstance(source, Dataset):
        return source
    is_demo = str(source).startswith("demo:")  # which brings a kind of its own
    kind = next((k for k in DENSE if k == recipe.task and not is_demo), None)
    return read_dataset(source, task_kind=kind, group_by=recipe.group_by)


def settled(recipe: Recipe, data: Dataset) -> Recipe:
    """Decide by the data what a recipe leaves open; a published head has to be there.

    Raises
    ------
    UsageError
        If the data are of another task than was asked for.
    WeightsNotFoundError
        If a published head is in no place: said before anything is scanned.
    """
    recipe = recipe.settled(data)
    name, _ = split(recipe.head)
    if is_published(name) and (data.kind == "detection" or data.kind == "segmentation"):
        locate_head(name, data.kind, offline=recipe.offline)
    return recipe


def checked(data: Dataset, recipe: Recipe, cache: Cache, progress: Progress | None) -> Prepared:
    """Scan, check and split what was read, as the recipe says.

    Raises
    ------
    DataError
        If the images, boxes or masks cannot be used as they are.
    """
    return prepare(
        data,
        cache=cache,
        bad_files=recipe.bad_files,
        allow_overlap=recipe.allow_overlap,
        test_fraction=recipe.test_fraction,
        seed=recipe.seed,
        progress=progress,
    )
