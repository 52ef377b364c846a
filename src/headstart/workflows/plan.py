"""Plan a run: what it would do and how long it would take, without training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headstart.backbones.domains import domain_specs
from headstart.backbones.frozen import FrozenBackbone, name_of
from headstart.cache import Cache, open_cache
from headstart.data.checks.domains import find_image_domain
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
from headstart.selection.object_race import estimate_objects
from headstart.selection.race_estimate import estimate_race
from headstart.selection.rules import CandidateResult
from headstart.workflows.auto_backbones import read_backbones
from headstart.workflows.events import DataReady, Decided, Observer, progress_of, shown
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import (
    check_data,
    locate_backbones,
    object_race,
    read_source,
    recipe_for,
    require_consistent,
    resolve_recipe,
    time_limit,
)

__all__ = ["PlannedTraining", "describe_trainings", "plan", "suggest_weights"]

ESTIMATE_FROM = 5000
"""Training images of trainings without steps, from which an estimate is worth its time."""


RACE_HINT = (
    "To compare rungs and image sizes on held-out training images, set a time limit: pass "
    "`--budget 10m`."
)
"""For boxes and masks without a method and without a budget."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedTraining:
    """One training of a comparison that has not run yet.

    Parameters
    ----------
    name : tuple
        The same for trainings that take the same time.
    method : Method or None
        None for a race.
    backbone : FrozenBackbone
    parts : tuple of Dataset
        Training, validation and test images; validation images may be None.
    """

    name: tuple[Any, ...]
    method: Method | None
    backbone: FrozenBackbone
    parts: tuple[Dataset, Dataset | None, Dataset]


def plan(
    source: object,
    recipe: Recipe | None = None,
    *,
    cache: Cache | bool | None = None,
    observer: Observer | None = None,
    progress: bool | None = None,
    no_cache: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Read and check the images, measure this machine, and estimate the duration of a run.

    Parameters
    ----------
    source : str, Path, Dataset or object
        As for `headstart.fit`.
    recipe : Recipe, optional
        Without a method, the plan is for the race that would choose one.
    cache : Cache or bool, optional
        Cached features cost nothing; measured times are saved in it. False for an empty one.
    observer : callable, optional
    progress : bool, optional
        Show progress; None does so in a terminal and in a notebook only.
    no_cache : bool
        The same as ``cache=False``.
    **settings
        Instead of a recipe: the settings of `headstart.fit`.

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
    recipe = recipe_for(source, recipe, settings, ("cache", "no_cache", "observer", "progress"))
    with open_cache(cache, no_cache=no_cache) as store, shown(progress, observer) as notify:
        return _plan_run(source, recipe, store, notify)


def _plan_run(source: object, recipe: Recipe, cache: Cache, notify: Observer) -> dict[str, Any]:
    """Read and check the images, and estimate the duration of the run."""
    progress = progress_of(notify)
    located = locate_backbones(recipe)
    data = read_source(source, recipe)
    is_open, recipe = recipe.method is None, resolve_recipe(recipe, data)
    prepared = check_data(data, recipe, cache, progress)
    notify(DataReady(prepared=prepared, seconds=0.0))
    require_consistent(recipe, prepared.train, resume=False)
    engine = "fp32" if prepared.data.is_dense else recipe.engine
    extractor = Extractor(cache=cache, engine=engine, device=recipe.device, progress=progress)
    backbones, reasons = read_backbones(located, recipe, prepared.train, cache, notify)
    limit = time_limit(recipe, prepared)
    if recipe.method is not None:
        record = _plan_method(recipe, recipe.method, backbones[0], prepared, extractor)
        if is_open:
            record["why"].append(RACE_HINT)
    elif prepared.train.is_dense:
        parts = (prepared.train, prepared.val)
        record = estimate_objects(backbones, parts, object_race(recipe, limit), extractor=extractor)
    else:
        record = estimate_race(
            backbones,
            prepared.train,
            prepared.val,
            extractor=extractor,
            budget=limit,
            seed=recipe.seed,
            prove=recipe.prove,
        )
    record["why"] = [*reasons, *record["why"], *suggest_weights(prepared, recipe)]
    notify(Decided(record=record))
    return record


def suggest_weights(prepared: PreparedData, recipe: Recipe) -> tuple[str, ...]:
    """Name weights of the images' own domain, if there are any that are not chosen.

    Parameters
    ----------
    prepared : PreparedData
    recipe : Recipe

    Returns
    -------
    tuple of str
        One sentence, or none.
    """
    found = find_image_domain(prepared.records)
    chosen = [name_of(backbone) for backbone in (recipe.backbone, *recipe.rivals)]
    if found is None or any(name.startswith(found[0].prefix) for name in chosen):
        return ()
    reference, share = found
    names = [spec.name for spec in domain_specs() if spec.name.startswith(reference.prefix)]
    advice = f"Pass `--backbone {names[0]}`."
    if recipe.method is None and not prepared.train.is_dense:
        advice = f"To compare, pass `--backbones {chosen[0]},{names[0]}`."
    text = (
        f"{100 * share:.0f} % of the images look like {reference.name}. Weights trained on such "
        f"images may fit better: {', '.join(names)}. {advice}"
    )
    return (text,)


def describe_trainings(
    trainings: Sequence[PlannedTraining], recipe: Recipe, cache: Cache, *, about: str
) -> tuple[str, ...]:
    """Describe in a sentence how many trainings will run, and how long unless they are quick.

    Quick are methods without steps, such as linear probes, on few images.

    Parameters
    ----------
    trainings : sequence of PlannedTraining
    recipe : Recipe
    cache : Cache
        Of features, and of measured times.
    about : str
        How the images are split.

    Examples
    --------
    >>> describe_trainings((), Recipe(), Cache(), about="3 seeds")
    ('0 trainings will run: 3 seeds.',)
    """
    count, duration = len(trainings), ""
    has_steps = any(
        one.method.resumes if one.method else recipe.race_seconds > 0 for one in trainings
    )
    if has_steps or sum(len(one.parts[0]) for one in trainings) >= ESTIMATE_FROM:
        seconds = _estimate_trainings(trainings, recipe, cache)
        duration = f" in at most about {_format_seconds(seconds)}"
    return (f"{count} training{'s' * (count != 1)} will run{duration}: {about}.",)


def _estimate_trainings(
    trainings: Sequence[PlannedTraining], recipe: Recipe, cache: Cache
) -> float:
    """Estimate all trainings from one of each name."""
    engine = "fp32" if recipe.engine == "auto" else recipe.engine
    extractor = Extractor(cache=cache, engine=engine, device=recipe.device)
    seconds: dict[tuple[Any, ...], float] = {}
    for training in trainings:
        if training.name in seconds:
            continue
        if training.method is None:  # a race ends within its budget
            seconds[training.name] = recipe.race_seconds
            continue
        planned = _plan_training(
            recipe, training.method, training.backbone, training.parts, extractor=extractor
        )
        seconds[training.name] = planned.estimated
    return sum(seconds[training.name] for training in trainings)


def _format_seconds(seconds: float) -> str:
    """Round a duration for people.

    >>> _format_seconds(41.2), _format_seconds(500), _format_seconds(9000)
    ('42 s', '9 min', '2.5 h')
    """
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _plan_training(
    recipe: Recipe,
    method: Method,
    backbone: FrozenBackbone,
    parts: tuple[Dataset, Dataset | None, Dataset],
    *,
    extractor: Extractor,
) -> CandidateResult:
    """Estimate the seconds of one training and of its evaluation."""
    train, val, test = parts
    start = create_model(
        backbone,
        train,
        head=recipe.head,
        size=recipe.size,
        seed=recipe.seed,
        offline=recipe.offline,
        selection=recipe.selection,
    )
    outline = method.outline(start, train, extractor=extractor)
    candidate = Candidate(
        name=outline.title, backbone=start.backbone, full_backbone=start.backbone, method=method
    )
    seconds = estimate_training_seconds(
        candidate, train, val, len(test), extractor=extractor, start=start
    )
    if outline.plan is None:  # the features of validation and test images are computed, too
        held_out = (*(val.samples if val else ()), *test.samples)
        seconds += estimate_feature_seconds(backbone, held_out, train, extractor=extractor)
    return CandidateResult(
        name=outline.title,
        backbone=backbone.spec.name,
        stage=backbone.spec.until,
        method=method.name,
        estimated=seconds,
        megabytes=candidate.megabytes,
        state="chosen",
        note=outline.trains,
    )


def _plan_method(
    recipe: Recipe,
    method: Method,
    backbone: FrozenBackbone,
    prepared: PreparedData,
    extractor: Extractor,
) -> dict[str, Any]:
    """Plan the training of a named method."""
    parts = prepared.train, prepared.val, prepared.test
    row = _plan_training(recipe, method, backbone, parts, extractor=extractor)
    return {
        "measure": "one training",
        "rule": "",
        "why": [f"Trains {row.note}."],
        "budget": None,
        "estimated": row.estimated,
        "seconds": 0.0,
        "images": len(prepared.train),
        "folds": 0,
        "rows": [row.as_dict()],
    }
