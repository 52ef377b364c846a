"""What a run would do and what it would take, without learning anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset
from headstart.data.prepare import Prepared
from headstart.features.extractor import Extractor
from headstart.methods.method import Method
from headstart.models.build import create_model
from headstart.selection.candidates import Candidate, expected_features, expected_training
from headstart.selection.race import foretell
from headstart.selection.rules import Row
from headstart.workflows.events import DataReady, Decided, Observer, progress_of
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import checked, located, read, require_meant, settled

__all__ = ["plan"]


def plan(
    source: str | Path | Dataset,
    recipe: Recipe | None = None,
    *,
    cache: Cache | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Read and check the images, measure this machine, and say what a run would take.

    Parameters
    ----------
    source : str, Path or Dataset
        As for `headstart.run.fit`.
    recipe : Recipe, optional
        Without a method, of the race that would choose one.
    cache : Cache, optional
        Features that are kept cost nothing; measured times are remembered.
    observer : callable, optional

    Returns
    -------
    dict
        As the record of a race, with no scores: ``rows`` have what each part is expected to take
        in seconds, ``estimated`` is what all would, within the budget.

    Raises
    ------
    DataError, SetupError, UsageError
        As `headstart.run.fit`.

    Examples
    --------
    >>> plan("demo:symbols")["rows"][0]["name"]  # doctest: +SKIP
    'linear probe on the whole backbone'
    """
    recipe, cache = recipe or Recipe(), cache or Cache()
    tell: Observer = observer or (lambda _: None)
    progress = progress_of(tell)
    weights = located(recipe)
    data = read(source, recipe)
    recipe = settled(recipe, data)
    prepared = checked(data, recipe, cache, progress)
    tell(DataReady(prepared=prepared, seconds=0.0))
    require_meant(recipe, prepared.train, resume=False)
    engine = "fp32" if prepared.data.is_dense else recipe.engine
    extractor = Extractor(cache=cache, engine=engine, device=recipe.device, progress=progress)
    backbones = [FrozenBackbone.read(*found) for found in weights]
    if recipe.method is None:
        found = foretell(
            backbones,
            prepared.train,
            prepared.val,
            extractor=extractor,
            budget=recipe.budget,
            seed=recipe.seed,
        )
    else:
        found = _of_one(recipe, recipe.method, backbones[0], prepared, extractor)
    tell(Decided(record=found))
    return found


def _of_one(
    recipe: Recipe,
    method: Method,
    backbone: FrozenBackbone,
    prepared: Prepared,
    extractor: Extractor,
) -> dict[str, Any]:
    """The same for a method that is named: one training, no race."""
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
    who = Candidate(
        name=outline.title, backbone=start.backbone, whole=start.backbone, method=method
    )
    seconds = expected_training(
        who, train, prepared.val, len(prepared.test), extractor=extractor, start=start
    )
    if outline.plan is None:  # what is judged is looked at as well, and kept
        others = (*(prepared.val.samples if prepared.val else ()), *prepared.test.samples)
        seconds += expected_features(backbone, others, train, extractor=extractor)
    row = Row(
        name=outline.title,
        backbone=backbone.spec.name,
        stage=backbone.spec.until,
        method=method.name,
        estimated=seconds,
        megabytes=who.megabytes,
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
