"""The main job, from images to a run's folder; every step lives in the room of its noun."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset
from headstart.data.prepare import Prepared
from headstart.distributed import is_main, main_first, processes
from headstart.errors import UsageError
from headstart.evaluation.baselines import PROBE
from headstart.evaluation.classification import AnyEvaluation
from headstart.evaluation.forgetting import Forgetting, sentences
from headstart.evaluation.insight import Diagnostics, diagnose
from headstart.evaluation.summary import verdict
from headstart.evaluation.transfer_gain import judge
from headstart.features.engines import Choice
from headstart.features.extractor import Extractor
from headstart.methods.method import Method
from headstart.models.build import create_model
from headstart.models.transfer_model import TransferModel
from headstart.reports.report import Facts
from headstart.runtime import cores, device, timed, versions
from headstart.training.job import Session
from headstart.workflows.evaluate import short
from headstart.workflows.events import (
    DataReady,
    EpochDone,
    Event,
    Finished,
    JsonLog,
    Noted,
    Observer,
    Planned,
    progress_of,
)
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import checked, choose, keep, located, read, require_meant, settled
from headstart.workflows.run_folder import (
    alone,
    claim,
    forget,
    hidden_folder,
    is_begun,
    resumable,
    slug,
    told_where,
    wanted_folder,
    write_files,
)

__all__ = ["Run", "fit", "slug"]

MEASURES = {"detection": "mAP", "segmentation": "mean IoU"}
"""What an epoch is judged by, where it is not macro F1."""


BEGUN_ANEW = (
    "Begun anew: the checkpoint in {folder} was not asked for (--resume takes it up), and is "
    "deleted."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a run leaves.

    Parameters
    ----------
    folder : Path
    model : TransferModel
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
    prepared : Prepared
    recipe : Recipe
        With what the data have decided.
    verdict : tuple of str
    seconds : dict of str to float
        By step.
    insight : Insight, optional
        What the features tell beside the numbers; only the first process looks.
    """

    folder: Path
    model: TransferModel
    evaluation: AnyEvaluation
    prepared: Prepared
    recipe: Recipe
    verdict: tuple[str, ...]
    seconds: dict[str, float]
    insight: Diagnostics | None = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the training; the model is the best one until then."""
        return bool(self.model.record.get("interrupted"))


def fit(
    source: str | Path | Dataset,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    cache: Cache | None = None,
    observer: Observer | None = None,
    command: str = "",
    resume: bool = False,
) -> Run:
    """Learn from a folder of images, judge the result, and write a run's folder.

    Parameters
    ----------
    source : str, Path or Dataset
        Class folders, a manifest, boxes or masks beside images, ``demo:<name>``, or examples
        that are read already.
    recipe : Recipe, optional
    out : str or Path, optional
        The folder to write; by default ``runs/<name>``; an older one is never touched.
    cache : Cache, optional
        Where features are kept; by default the user's cache.
    observer : callable, optional
        Told of every event.
    command : str
        How the run was started, for the report.
    resume : bool
        Take up the training that the same call has begun and not completed: its checkpoints
        are in ``<out>.partial/``. Where there is none, begin.

    Returns
    -------
    Run

    Raises
    ------
    DataError
        If the images or labels cannot be used as they are.
    SetupError
        If weights are missing, or the folder cannot be written.
    UsageError
        If an argument cannot be meant, such as an ``out`` that names no folder of its own.

    Examples
    --------
    >>> run = fit("photos/")  # doctest: +SKIP
    >>> print(run.evaluation.metrics["accuracy"])  # doctest: +SKIP
    0.987 [0.971, 0.995]
    """
    recipe = recipe or Recipe()
    wanted, cache = wanted_folder(out, source), cache or Cache()
    with processes(recipe.device), ExitStack() as held:
        go = partial(_run, source, recipe, cache, checkpoints=resumable(wanted), resume=resume)
        if not is_main():  # it computes its share, and leaves files and words to the first
            return replace(go(lambda _: None, held), folder=wanted)
        with hidden_folder(wanted) as folder, JsonLog(folder / "log.jsonl") as log:
            run = go(_both(log, observer), held)
            begin = time.perf_counter()
            with told_where(wanted):
                write_files(folder, _facts(run, command), run.recipe)
            run.seconds["files"] = time.perf_counter() - begin
            log(_finished(run))
            log.close()
            run = replace(run, folder=claim(folder, wanted))
        if _method(run.recipe).resumes and not run.interrupted:
            forget(resumable(wanted))
    if observer is not None:
        observer(_finished(run))
    return run


def _finished(run: Run) -> Finished:
    record = run.model.record
    kept: tuple[str, ...] = ()
    if "forgetting" in record:
        gain = next((b.lead.interval for b in run.evaluation.baselines if b.name == PROBE), None)
        kept = sentences(Forgetting.from_dict(record["forgetting"]), gain)
    return Finished(
        folder=run.folder,
        evaluation=run.evaluation,
        verdict=run.verdict,
        seconds=run.seconds,
        notes=tuple(record.get("notes", ())),
        kept=kept,
    )


def _run(
    source: str | Path | Dataset,
    recipe: Recipe,
    cache: Cache,
    notify: Observer,
    held: ExitStack,
    *,
    checkpoints: Path,
    resume: bool,
) -> Run:
    clock: dict[str, float] = {}
    progress = progress_of(notify)
    # A wrong name or missing weights are said before anything is scanned.
    if recipe.device != "auto":  # which never fails, and would have to import torch
        device(recipe.device)
    weights = located(recipe)
    with timed(clock, "scan and checks"), main_first():
        data = read(source, recipe)
        recipe = settled(recipe, data)
        prepared = checked(data, recipe, cache, progress)
    notify(DataReady(prepared=prepared, seconds=clock["scan and checks"]))
    is_dense = prepared.data.is_dense
    require_meant(recipe, prepared.train, resume)
    engine = "fp32" if is_dense else recipe.engine  # maps are learned from as they are
    extractor = Extractor(cache=cache, engine=engine, device=recipe.device, progress=progress)
    with timed(clock, "race" if recipe.method is None else "weights"):
        backbones = [FrozenBackbone.read(*found) for found in weights]
        kept = checkpoints if resume and is_begun(checkpoints) else None
        recipe, backbone, extractor, more = choose(
            recipe, backbones, prepared, extractor=extractor, notify=notify, kept=kept
        )
    method = _method(recipe)
    if method.resumes and is_main():
        _take_up(checkpoints, resume, held, notify)
        keep(recipe, backbone, prepared, extractor.engine, more, checkpoints)
    with timed(clock, "backbone and head" if is_dense else "backbone and engine"):
        start = _blank(recipe, prepared, backbone, more)
        plan = _plan(method, start, prepared, extractor)
    notify(plan)
    if not is_dense:
        with timed(clock, "features"), main_first():
            extractor.features(start.backbone, prepared.data.samples)
    session = _session(notify, checkpoints, resume, MEASURES.get(start.task.kind, "macro F1"))
    parts = prepared.train, prepared.val
    with timed(clock, "head" if plan.outline.plan is None else "training"):
        model = method.fit(start, *parts, extractor=extractor, session=session)
    model, evaluation, insight = _judged(
        start, model, prepared, extractor=extractor, seed=recipe.seed, clock=clock
    )
    return Run(
        folder=Path(),
        model=model,
        evaluation=evaluation,
        prepared=prepared,
        recipe=recipe,
        verdict=(*_stopped(model), *verdict(evaluation)),
        seconds=clock,
        insight=insight,
    )


def _take_up(checkpoints: Path, resume: bool, held: ExitStack, notify: Observer) -> None:
    """Keep others from the checkpoints; begin without what an earlier training left."""
    held.enter_context(alone(checkpoints))
    if not resume and forget(checkpoints):
        notify(Noted(text=BEGUN_ANEW.format(folder=checkpoints)))


def _judged(
    start: TransferModel,
    model: TransferModel,
    prepared: Prepared,
    *,
    extractor: Extractor,
    seed: int,
    clock: dict[str, float],
) -> tuple[TransferModel, AnyEvaluation, Diagnostics | None]:
    """Hold the model against the held-out part, and look into what it has learned from."""
    with timed(clock, "evaluation"), main_first():
        parts = prepared.train, prepared.test
        model, evaluation = judge(start, model, parts, extractor=extractor, seed=seed)
    if not is_main():
        return model, evaluation, None
    with timed(clock, "insight"):
        found = diagnose(
            start.backbone, model, prepared, evaluation, extractor=extractor, seed=seed
        )
    return model, evaluation, found


def _method(recipe: Recipe) -> Method:
    if recipe.method is None:
        raise UsageError("Expected a recipe that its data have settled, got one without a method.")
    return recipe.method


def _session(notify: Observer, checkpoints: Path, resume: bool, measure: str) -> Session:
    return Session(
        told=lambda epoch, most: notify(EpochDone(epoch=epoch, most=most, measure=measure)),
        progress=progress_of(notify),
        folder=checkpoints,
        resume=resume,
    )


def _stopped(model: TransferModel) -> tuple[str, ...]:
    if not model.record.get("interrupted"):
        return ()
    done = len(model.record["epochs"]) - 1
    told = f"STOPPED BY HAND after {done} whole epochs: this is the best model until then"
    return (f"{told}; --resume goes on.",)


def _plan(
    method: Method, start: TransferModel, prepared: Prepared, extractor: Extractor
) -> Planned:
    data, backbone = prepared.data, start.backbone
    engine, missing = Choice(engine=extractor.engine), 0
    if not data.is_dense:  # whose features are a comparison, and the probe's whole input
        with main_first():  # what is measured is measured once
            engine, missing = extractor.outlook(backbone, data.samples)
    rate = engine.rates.get(engine.engine)
    return Planned(
        outline=method.outline(start, prepared.train, extractor=extractor),
        backbone=backbone,
        engine=engine,
        parameters=backbone.parameters,
        to_compute=missing,
        images=len(data),
        seconds=missing / (rate * cores()) if rate else None,
        cache_bytes=missing * backbone.width * 4 if missing else 0,
        head=start.head,
        reach=start.record.get("anchors_reach"),
    )


def _blank(
    recipe: Recipe, prepared: Prepared, backbone: FrozenBackbone, more: Mapping[str, Any]
) -> TransferModel:
    train, selected = prepared.train, prepared.train.samples[:0]
    if _method(recipe).resumes and prepared.val is not None:  # the epoch was chosen on these
        selected = prepared.val.samples
    about: dict[str, Any] = {
        "name": prepared.data.name,
        "train": train.counts(),
        "held_out": prepared.test.counts(),
        "notes": list(prepared.data.notes),
    }
    if train.is_dense:  # where counts are of objects, or of images that show a class
        about["images"] = {"train": len(train), "held_out": len(prepared.test)}
    record: Mapping[str, Any] = {
        "learned_from": [short(sample) for sample in (*train.samples, *selected)],
        "data": about,
        "seed": recipe.seed,
        "versions": versions(),
        **more,
    }
    made = create_model(
        backbone,
        train,
        head=recipe.head,
        size=recipe.size,
        seed=recipe.seed,
        record=record,
        offline=recipe.offline,
    )
    if recipe.max_risk is None:
        return made
    return replace(made, task=replace(made.task, max_risk=recipe.max_risk))


def _facts(run: Run, command: str) -> Facts:
    return Facts(
        name=run.prepared.data.name,
        prepared=run.prepared,
        model=run.model,
        evaluation=run.evaluation,
        verdict=run.verdict,
        seconds=run.seconds,
        command=command,
        insight=run.insight,
    )


def _both(first: Observer, second: Observer | None) -> Observer:
    def notify(event: Event) -> None:
        first(event)
        if second is not None:
            second(event)

    return notify
