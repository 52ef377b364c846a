"""Resolve the settings that a recipe leaves open: data, weights, backbone and method."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone, name_of
from headstart.backbones.spec import BackboneSpec
from headstart.backbones.weights import WeightsFile, locate
from headstart.cache import Cache
from headstart.data.dataset import DENSE, Dataset, fingerprint_of
from headstart.data.loader import digest_of
from headstart.data.prepare import PreparedData, prepare
from headstart.data.readers import READ_SETTINGS, read_dataset
from headstart.distributed.processes import world_size
from headstart.errors import UsageError
from headstart.features.extractor import Extractor, Progress
from headstart.files import write_whole
from headstart.methods.method import Method
from headstart.metrics.validation import json_text
from headstart.models.heads.pretrained import is_published, locate_head, split_options
from headstart.models.transfer_model import TransferModel
from headstart.workflows.events import Decided, Noted, Observer
from headstart.workflows.recipe import Recipe, default_method, make_recipe
from headstart.workflows.run_folder import RACE, explain_write_errors

if TYPE_CHECKING:
    from headstart.selection.object_race import ObjectRace
    from headstart.selection.progress import TimeLimit
    from headstart.selection.race import Decision

__all__ = [
    "Choice",
    "LocatedBackbone",
    "check_data",
    "choose",
    "locate_backbones",
    "object_race",
    "read_source",
    "recipe_for",
    "require_consistent",
    "require_engine",
    "resolve_recipe",
    "save_choice",
    "task_of_source",
    "time_limit",
]

SEVERAL_PROCESSES = (
    "Several processes cannot run a race, because their clocks differ. The method is {method}; "
    "pass --method to choose another."
)


class LocatedBackbone(NamedTuple):
    """A backbone whose weights file has been found, or a network of the user's own."""

    spec: BackboneSpec
    weights: WeightsFile | FrozenBackbone

    def read(self) -> FrozenBackbone:
        """Read the weights."""
        if isinstance(self.weights, FrozenBackbone):
            return self.weights
        return FrozenBackbone.read(self.spec, self.weights)


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """Backbone and method of a run, named by the user or chosen by a race.

    Parameters
    ----------
    recipe : Recipe
        With the method and the backbone's name.
    method : Method
    backbone : FrozenBackbone
    extractor : Extractor
        With the engine that computed the features.
    record : mapping
        Result of the race, for the model's record; empty without a race.
    model : TransferModel, optional
        The race's trained model, which needs no further training.
    """

    recipe: Recipe
    method: Method
    backbone: FrozenBackbone
    extractor: Extractor
    record: Mapping[str, Any] = field(default_factory=dict)
    model: TransferModel | None = None

    def trained_model(self, start: TransferModel) -> TransferModel | None:
        """Return the model that the race has trained; None if it is still to be trained."""
        if self.model is None:
            return None
        return replace(self.model, record={**start.record, **self.model.record})


def locate_backbones(recipe: Recipe) -> list[LocatedBackbone]:
    """Find the weights of the backbone, and of other backbones that a race may choose.

    Empty for ``--backbones auto``.

    Raises
    ------
    UnknownNameError
        If there is no such backbone.
    WeightsNotFoundError
        If its weights cannot be found.
    """
    if recipe.is_auto:  # found later, when the images are known (auto_backbones.py)
        return []
    backbones = (recipe.backbone, *recipe.rivals)
    known = [resolve(b, offline=recipe.offline) if isinstance(b, str) else b for b in backbones]
    return [
        LocatedBackbone(b.spec, b)
        if isinstance(b, FrozenBackbone)
        else LocatedBackbone(b, locate(b, offline=recipe.offline))
        for b in known
    ]


def choose(
    recipe: Recipe,
    backbones: Sequence[FrozenBackbone],
    prepared: PreparedData,
    *,
    extractor: Extractor,
    notify: Observer,
    resume_from: Path | None = None,
    reasons: Sequence[str] = (),
    started_at: float | None = None,
) -> Choice:
    """Take the recipe's method, or choose backbone and method by a race on the training images.

    Parameters
    ----------
    recipe : Recipe
    backbones : sequence of FrozenBackbone
    prepared : PreparedData
    extractor : Extractor
    notify : callable
    resume_from : Path, optional
        Checkpoint folder of the training to resume; its race is not run again.
    reasons : sequence of str
        Why these backbones race, for the record.
    started_at : float, optional
        Time, as of ``time.perf_counter``, when the run began: the budget counts from then.

    Raises
    ------
    UsageError
        If the folder holds no result of a race, or one for other images, another seed or other
        weights; the message names the difference.
    """
    if recipe.method is not None:
        return _choice(recipe, recipe.method, backbones[0], extractor)
    if resume_from is not None:
        return _saved_choice(recipe, backbones, prepared, extractor, resume_from)
    if world_size() > 1:
        method = default_method(recipe.task, recipe.seed)
        notify(Noted(text=SEVERAL_PROCESSES.format(method=method.name)))
        return _choice(recipe, method, backbones[0], extractor)
    limit = time_limit(recipe, prepared, started_at)
    decision = _decide(recipe, backbones, prepared, extractor, notify, limit)
    method, backbone, record = decision.method, decision.backbone, decision.record
    record["why"] = [*reasons, *record["why"]]
    notify(Decided(record=record, backbone=backbone.spec.name, method=method))
    extractor = replace(extractor, engine=decision.engine)
    recipe = replace(recipe, size=decision.size)
    chosen = _choice(recipe, method, backbone, extractor, {"decision": record})
    if decision.trained is None:
        return chosen
    model = decision.trained.calibrated_model(prepared.train, recipe.max_risk)
    # The comparison with a probe has the images at the size of the probes, whose features exist.
    return replace(chosen, backbone=decision.trained.source, model=model)


def _decide(
    recipe: Recipe,
    backbones: Sequence[FrozenBackbone],
    prepared: PreparedData,
    extractor: Extractor,
    notify: Observer,
    limit: TimeLimit,
) -> Decision:
    """Run the race of the task."""

    def on_progress(line: str) -> None:
        notify(Noted(text=line))

    if prepared.train.is_dense:
        from headstart.selection.object_race import decide_objects

        parts, race = (prepared.train, prepared.val), object_race(recipe, limit)
        return decide_objects(
            backbones,
            parts,
            race,
            extractor=extractor,
            on_progress=on_progress,
            notify=notify,
        )
    from headstart.selection.race import decide, decide_with_proof

    return (decide_with_proof if recipe.prove else decide)(
        backbones,
        prepared.train,
        prepared.val,
        extractor=extractor,
        budget=limit,
        seed=recipe.seed,
        on_progress=on_progress,
        notify=notify,
    )


def time_limit(
    recipe: Recipe, prepared: PreparedData, started_at: float | None = None
) -> TimeLimit:
    """Return the time limit of a run: its test images are computed after the race."""
    from headstart.selection.progress import TimeLimit

    return TimeLimit(
        seconds=recipe.race_seconds, started_at=started_at, later_images=len(prepared.test)
    )


def object_race(recipe: Recipe, limit: TimeLimit) -> ObjectRace:
    """Return the settings of a race for boxes or masks."""
    from headstart.selection.object_race import ObjectRace

    names = ("head", "size", "offline", "selection")
    return ObjectRace(
        budget=limit,
        seed=recipe.seed,
        prove=recipe.prove,
        options={name: getattr(recipe, name) for name in names},
    )


def _choice(
    recipe: Recipe,
    method: Method,
    backbone: FrozenBackbone,
    extractor: Extractor,
    record: Mapping[str, Any] | None = None,
) -> Choice:
    is_own = backbone.spec.source == "module"
    chosen = backbone if is_own else backbone.spec.name if record else recipe.backbone
    return Choice(
        recipe=replace(recipe, method=method, backbone=chosen, rivals=()),
        method=method,
        backbone=backbone,
        extractor=extractor,
        record=record or {},
    )


def save_choice(choice: Choice, prepared: PreparedData, folder: Path) -> None:
    """Write the result of a race beside the checkpoints, for ``--resume``; once."""
    if not choice.record or (folder / RACE).exists():
        return
    from headstart.selection.candidates import method_to_record

    text = json_text(
        {
            "method": method_to_record(choice.method),
            "backbone": name_of(choice.recipe.backbone),
            "size": choice.recipe.size,
            "engine": choice.extractor.engine,
            "identity": _race_identity(choice.recipe, choice.backbone, prepared),
            "record": choice.record,
        }
    )
    with explain_write_errors(folder):
        write_whole(folder / RACE, text)


def _race_identity(
    recipe: Recipe, backbone: FrozenBackbone, prepared: PreparedData
) -> dict[str, str]:
    """Identify a race's data, seed and weights: with other data it may have seen test images."""
    parts = (prepared.train, *(() if prepared.val is None else (prepared.val,)))
    images = [[(digest_of(s), fingerprint_of(s.target)) for s in part.samples] for part in parts]
    return {
        "data": hashlib.sha256(repr(images).encode()).hexdigest(),
        "seed": str(recipe.seed),
        "weights": backbone.identity.hex(),
    }


def _saved_choice(
    recipe: Recipe,
    backbones: Sequence[FrozenBackbone],
    prepared: PreparedData,
    extractor: Extractor,
    folder: Path,
) -> Choice:
    """Read the result of an earlier race; refuse it for other data, seed or weights."""
    from headstart.selection.candidates import method_from_record

    try:
        saved = json.loads((folder / RACE).read_text(encoding="utf-8"))
        backbone = next(b for b in backbones if b.spec.name == saved["backbone"])
        method = method_from_record(saved["method"])
        engine, record, saved_identity = saved["engine"], dict(saved["record"]), saved["identity"]
        _use_current_names(record["decision"])
        record["decision"].update(stopped=False)  # this run trains its candidate to the end
        size = int(saved.get("size", recipe.size))
        identity = _race_identity(recipe, backbone, prepared)
        different = [part for part in identity if saved_identity[part] != identity[part]]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UsageError(
            f"{folder} holds no training that a race chose for these backbones. Start without "
            "--resume, or name the method of that run, such as --method finetune."
        ) from error
    if different:
        raise UsageError(
            f"Cannot resume from {folder / RACE}: it was written for another "
            f"{', '.join(different)}. Pass the same settings as then, or start without --resume."
        )
    recipe = replace(recipe, size=size)
    return _choice(recipe, method, backbone, replace(extractor, engine=engine), record)


def _use_current_names(decision: dict[str, Any]) -> None:
    """Rename the keys of a race that an older release has saved."""
    older = {"pictures": "images", "distinguishable": "significant"}
    for values in (decision, *decision["rows"]):
        for name in older.keys() & values.keys():
            values[older[name]] = values.pop(name)


def require_consistent(recipe: Recipe, train: Dataset, resume: bool) -> None:
    """Refuse settings that exclude each other, before anything is computed.

    Raises
    ------
    UsageError
        If an engine is named for boxes or masks, a method that cannot resume is to resume, or
        weights of the images cannot be used.
    DataError
        If the method cannot learn from these images.
    """
    require_engine(recipe, train)
    method = recipe.method
    if method is not None:
        method.check(train)
    elif train.weights() is not None:
        raise UsageError(
            f"The images of {train.name!r} have weights, which a race of methods cannot use. Pass "
            "--method linear-probe, finetune or scratch."
        )
    if resume and method is not None and not method.resumes:
        raise UsageError(
            f"Method {method.name} has nothing to resume. Remove --resume, or name the method of "
            "the run that was stopped, such as --method finetune."
        )


def require_engine(recipe: Recipe, train: Dataset) -> None:
    """Refuse an engine other than fp32 for boxes and masks.

    Raises
    ------
    UsageError
        If such an engine is named.
    """
    if train.is_dense and recipe.engine not in {"auto", "fp32"}:
        raise UsageError(
            f"--engine {recipe.engine} cannot be used for {train.kind}, which runs in fp32. Remove "
            "--engine, or pass --engine fp32."
        )


def read_source(source: object, recipe: Recipe) -> Dataset:
    """Read the user's data for the recipe's task.

    Raises
    ------
    DataError
        If it cannot be read, or has no labels for that task.

    Examples
    --------
    >>> read_source("demo:boxes", Recipe()).kind
    'detection'
    """
    if isinstance(source, Dataset):
        return source
    is_demo = isinstance(source, str) and source.startswith("demo:")  # the name decides its task
    kind = next((k for k in DENSE if k == recipe.task and not is_demo), None)
    settings = {name: getattr(recipe, name) for name in READ_SETTINGS}
    return read_dataset(source, task_kind=kind, **settings)


def task_of_source(source: object, recipe: Recipe) -> str:
    """Read the user's data for its task.

    Raises
    ------
    DataError
        If it cannot be read.
    UsageError
        If the data has another task than the recipe.

    Examples
    --------
    >>> task_of_source("demo:boxes", Recipe())
    'detection'
    """
    return recipe.resolved_for(read_source(source, recipe)).task


def recipe_for(
    source: object, recipe: object, settings: Mapping[str, Any], keywords: Sequence[str] = ()
) -> Recipe:
    """Make the recipe from the settings, or take the recipe that was passed instead of them.

    ``keywords`` are the other keywords of the caller, for the message about an unknown setting.

    Raises
    ------
    UsageError
        If both are passed, or a setting is unknown or invalid.

    Examples
    --------
    >>> recipe_for("photos/", None, {"budget": "2m"}).budget
    120.0
    """
    if recipe is None:
        find_task = partial(task_of_source, source)
        return make_recipe(settings, find_task=find_task, other_names=keywords)
    if not isinstance(recipe, Recipe):
        raise UsageError(
            f"`recipe` must be a Recipe, got {reprlib.repr(recipe)}. Pass settings by name, such "
            "as backbone='resnet18'."
        )
    if settings:
        raise UsageError(
            f"`recipe` and {', '.join(f'`{name}`' for name in settings)} are both set. Put all "
            "settings into the recipe, or pass all of them by name without a recipe."
        )
    return recipe


def resolve_recipe(recipe: Recipe, data: Dataset) -> Recipe:
    """Resolve the settings that depend on the data; check that a published head can be found.

    Raises
    ------
    UsageError
        If the data has another task than the recipe.
    WeightsNotFoundError
        If the weights of a published head cannot be found; raised before anything is scanned.
    """
    recipe = recipe.resolved_for(data)
    name, _ = split_options(recipe.head)
    if is_published(name) and (data.kind == "detection" or data.kind == "segmentation"):
        locate_head(name, data.kind, offline=recipe.offline)
    return recipe


def check_data(
    data: Dataset, recipe: Recipe, cache: Cache, progress: Progress | None
) -> PreparedData:
    """Scan, check and split the data.

    Raises
    ------
    DataError
        If the images, boxes or masks cannot be used.
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
