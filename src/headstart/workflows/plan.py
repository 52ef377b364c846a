"""Plan a run: what it would do and how long it would take, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset
from headstart.data.prepare import PreparedData
from headstart.features.extractor import Extractor
from headstart.methods.method import Method
from headstart.models.build import create_model
from headstart.selection.candidates import (
    Candidate,
    estimate_feature_seconds,
    estimate_training_seconds,
)
from headstart.selection.race import estimate_race
from headstart.selection.rules import CandidateResult
from headstart.workflows.events import DataReady, Decided, Observer, progress_of
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import (
    check_data,
    locate_backbones,
    read_source,
    require_consistent,
    resolve_recipe,
)

__all__ = ["plan"]


def plan(
    source: str | Path | Dataset,
    recipe: Recipe | None = None,
    *,
    cache: Cache | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Read and check the images, measure this machine, and estimate the duration of a run.

    Parameters
    ----------
    source : str, Path or Dataset
        As for `headstart.fit`.
    recipe : Recipe, optional
        Without a method, the plan is for the race that would choose one.
    cache : Cache, optional
        Cached features cost nothing; measured times are saved in it.
    observer : callable, optional

    Returns
    -------
    dict
        Like the record of a race, without scores: ``rows`` have the estimated seconds of each
        part, ``estimated`` is the total within the budget.

    Raises
    ------
    DataError, SetupError, UsageError
        As `headstart.fit`.

    Examples
    --------
    >>> plan("demo:symbols")["rows"][0]["name"]  # doctest: +SKIP
    'linear probe on the whole backbone'
    """
    recipe, cache = recipe or Recipe(), cache or Cache()
    notify: Observer = observer or (lambda _: None)
    progress = progress_of(notify)
    located = locate_backbones(recipe)
    data = read_source(source, recipe)
    recipe = resolve_recipe(recipe, data)
    prepared = check_data(data, recipe, cache, progress)
    notify(DataReady(prepared=prepared, seconds=0.0))
    require_consistent(recipe, prepared.train, resume=False)
    engine = "fp32" if prepared.data.is_dense else recipe.engine
    extractor = Extractor(cache=cache, engine=engine, device=recipe.device, progress=progress)
    backbones = [FrozenBackbone.read(*backbone) for backbone in located]
    if recipe.method is None:
        record = estimate_race(
            backbones,
            prepared.train,
            prepared.val,
            extractor=extractor,
            budget=recipe.budget,
            seed=recipe.seed,
        )
    else:
        record = _plan_method(recipe, recipe.method, backbones[0], prepared, extractor)
    notify(Decided(record=record))
    return record


def _plan_method(
    recipe: Recipe,
    method: Method,
    backbone: FrozenBackbone,
    prepared: PreparedData,
    extractor: Extractor,
) -> dict[str, Any]:
    """Plan the training of a named method."""
    train = prepared.train
    start = create_model(
        backbone,
        train,
        head=recipe.head,
        size=recipe.size,
        seed=recipe.seed,
        offline=recipe.offline,
    )
    outline = method.outline(start, train, extractor=extractor)
    candidate = Candidate(
        name=outline.title, backbone=start.backbone, full_backbone=start.backbone, method=method
    )
    seconds = estimate_training_seconds(
        candidate, train, prepared.val, len(prepared.test), extractor=extractor, start=start
    )
    if outline.plan is None:  # the features of validation and test images are computed, too
        held_out = (*(prepared.val.samples if prepared.val else ()), *prepared.test.samples)
        seconds += estimate_feature_seconds(backbone, held_out, train, extractor=extractor)
    row = CandidateResult(
        name=outline.title,
        backbone=backbone.spec.name,
        stage=backbone.spec.until,
        method=method.name,
        estimated=seconds,
        megabytes=candidate.megabytes,
        state="chosen",
        note=outline.trains,
    )
    return {
        "measure": "one training",
        "rule": "",
        "why": [f"Trains {outline.trains}."],
        "budget": None,
        "estimated": seconds,
        "seconds": 0.0,
        "images": len(train),
        "folds": 0,
        "rows": [row.as_dict()],
    }
