"""What a recipe leaves open is settled by a race: backbone and method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headstart.backbones.catalog import resolve
from headstart.backbones.spec import BackboneSpec
from headstart.backbones.weights import WeightsFile, locate
from headstart.data.prepare import Prepared
from headstart.data.samples import Dataset
from headstart.distributed import world
from headstart.errors import UsageError
from headstart.events import Decided, Noted, Observer
from headstart.features import Extractor
from headstart.recipe import Recipe, default_method
from headstart.trunk import Trunk

__all__ = ["choose", "located", "require_meant"]

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
    trunks: Sequence[Trunk],
    prepared: Prepared,
    *,
    extractor: Extractor,
    notify: Observer,
) -> tuple[Recipe, Trunk, Extractor, dict[str, Any]]:
    """Let the training pictures choose what the recipe leaves open.

    Returns
    -------
    Recipe
        With the method and the backbone's name.
    Trunk
    Extractor
        With the engine that made the features.
    dict
        What belongs in the model's record.
    """
    if recipe.method is not None:
        return recipe, trunks[0], extractor, {}
    if world() > 1:
        notify(Noted(text=TOGETHER))
        method = default_method(recipe.task, recipe.seed)
        return replace(recipe, method=method, rivals=()), trunks[0], extractor, {}
    from headstart.advice import decide

    found = decide(
        trunks,
        prepared.train,
        prepared.val,
        extractor=extractor,
        budget=recipe.budget,
        seed=recipe.seed,
        told=lambda line: notify(Noted(text=line)),
    )
    notify(Decided(record=found.record, backbone=found.trunk.spec.name, method=found.method))
    settled = replace(recipe, method=found.method, backbone=found.trunk.spec.name, rivals=())
    record = {"decision": found.record}
    return settled, found.trunk, replace(extractor, engine=found.engine), record


def require_meant(recipe: Recipe, train: Dataset, resume: bool) -> None:
    """Refuse what does not go together before anything is computed.

    Raises
    ------
    UsageError
        If an engine is named for boxes or masks, or what cannot be resumed shall be.
    DataError
        If the method cannot learn from these pictures.
    """
    if train.is_dense and recipe.engine not in {"auto", "fp32"}:
        raise UsageError(
            f"Expected --engine fp32 for {train.kind}, got {recipe.engine}; do leave it out."
        )
    method = recipe.method
    if method is not None:
        method.check(train)
    if resume and (method is None or not method.resumes):
        raise UsageError(
            f"Expected a method that can be resumed, got {method.name if method else 'none'}; do "
            "name the method of the run that was stopped, such as --method finetune."
        )
