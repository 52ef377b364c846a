"""Fit: from images to the folder of a run, one step after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset
from headstart.data.prepare import PreparedData
from headstart.distributed import is_main, main_first, processes
from headstart.evaluation.baselines import PROBE
from headstart.evaluation.classification import AnyEvaluation
from headstart.evaluation.forgetting import Forgetting, summarise_forgetting
from headstart.evaluation.insight import Diagnostics, diagnose
from headstart.evaluation.summary import summarise
from headstart.evaluation.transfer_gain import evaluate_with_transfer_gain
from headstart.features.engines import EngineChoice
from headstart.features.extractor import Extractor
from headstart.metrics import SELECTION_METRICS
from headstart.models.build import create_model
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.reports.report import Facts
from headstart.runtime import cores, device, timed, versions
from headstart.training.job import Session
from headstart.workflows.evaluate import short_digest
from headstart.workflows.events import (
    DataReady,
    EpochDone,
    Finished,
    JsonLog,
    Noted,
    Observer,
    Planned,
    notify_both,
    progress_of,
)
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import (
    Choice,
    LocatedBackbone,
    check_data,
    choose,
    locate_backbones,
    read_source,
    require_consistent,
    resolve_recipe,
    save_choice,
)
from headstart.workflows.run_folder import (
    checkpoint_folder,
    choose_folder,
    delete_checkpoint,
    explain_write_errors,
    has_checkpoint,
    locked,
    publish_folder,
    slug,
    temporary_folder,
    write_files,
)

__all__ = ["Run", "fit", "slug"]

CHECKPOINT_DELETED = (
    "Deleted the checkpoint in {folder}, and started again. Pass --resume to continue from it."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Result of a run.

    Parameters
    ----------
    folder : Path
    model : TransferModel
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
    prepared : PreparedData
    recipe : Recipe
        With the settings that the data decided.
    summary : tuple of str
        Sentences about the evaluation, the most important first.
    seconds : dict of str to float
        By step.
    diagnostics : Diagnostics, optional
        Likely label errors, unusual images and weak subgroups; only the main process has them.
    """

    folder: Path
    model: TransferModel
    evaluation: AnyEvaluation
    prepared: PreparedData
    recipe: Recipe
    summary: tuple[str, ...]
    seconds: dict[str, float]
    diagnostics: Diagnostics | None = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the training; the model is the best one until then."""
        return bool(self.model.record.get("interrupted"))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Context:
    """What the steps of a run share."""

    cache: Cache
    notify: Observer
    checkpoints: Path
    resume: bool
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Output:
    """Hidden folder and log of a run; the other processes have neither."""

    notify: Observer
    folder: Path | None = None
    log: JsonLog | None = None


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
    """Learn from a folder of images, evaluate the result, and write the run's folder.

    Parameters
    ----------
    source : str, Path or Dataset
        Class folders, a manifest, images with boxes or masks, ``demo:<name>``, or a dataset that
        was read already.
    recipe : Recipe, optional
    out : str or Path, optional
        The folder to write; by default ``runs/<name>``. An existing folder is never changed.
    cache : Cache, optional
        Cache of features; by default the user's cache.
    observer : callable, optional
        Called with every event.
    command : str
        The command line, for the report.
    resume : bool
        Continue the unfinished training of the same call. Its checkpoints are in
        ``<out>.partial/``; without any, the training starts from the beginning.

    Returns
    -------
    Run

    Raises
    ------
    DataError
        If the images or labels cannot be used.
    SetupError
        If weights are missing, or the folder cannot be written.
    UsageError
        If an argument is invalid, such as an ``out`` that does not name a folder.

    Examples
    --------
    >>> run = fit("photos/")  # doctest: +SKIP
    >>> print(run.evaluation.metrics["accuracy"])  # doctest: +SKIP
    0.987 [0.971, 0.995]
    """
    recipe, target = recipe or Recipe(), choose_folder(out, source)
    with processes(recipe.device), ExitStack() as stack:
        output = stack.enter_context(_open_output(target, observer))
        context = _Context(
            cache=cache or Cache(),
            notify=output.notify,
            checkpoints=checkpoint_folder(target),
            resume=resume,
        )
        located = _locate(recipe)
        recipe, prepared = _prepare_data(source, recipe, context)
        choice = _choose(recipe, located, prepared, context)
        stack.enter_context(_locked_checkpoints(choice, prepared, context))
        start = _create_start(choice, prepared, context)
        plan = _plan(choice, start, prepared, context)
        output.notify(plan)
        _extract_features(choice, start, prepared, context)
        session = _session(start, context)
        with timed(context.seconds, "head" if plan.outline.plan is None else "training"):
            model = choice.method.fit(
                start, prepared.train, prepared.val, extractor=choice.extractor, session=session
            )
        run = _evaluate(choice, start, model, prepared, context)
        run = _write(run, output, target, command)
        if choice.method.resumes and not run.interrupted and is_main():
            delete_checkpoint(context.checkpoints)
    if observer is not None and is_main():
        observer(_finished(run))
    return run


@contextmanager
def _open_output(target: Path, observer: Observer | None) -> Iterator[_Output]:
    """Open the run's hidden folder and its log; only the main process writes."""
    if not is_main():
        yield _Output(notify=lambda _: None)
        return
    with temporary_folder(target) as folder, JsonLog(folder / "log.jsonl") as log:
        yield _Output(notify=notify_both(log, observer), folder=folder, log=log)


def _locate(recipe: Recipe) -> list[LocatedBackbone]:
    """Fail early: check the device's name and find the weights before scanning the images."""
    if recipe.device != "auto":  # auto cannot fail, and checking it would import torch
        device(recipe.device)
    return locate_backbones(recipe)


def _prepare_data(
    source: str | Path | Dataset, recipe: Recipe, context: _Context
) -> tuple[Recipe, PreparedData]:
    """Read, scan, check and split the data; resolve the settings that depend on it."""
    with timed(context.seconds, "scan and checks"), main_first():
        data = read_source(source, recipe)
        recipe = resolve_recipe(recipe, data)
        prepared = check_data(data, recipe, context.cache, progress_of(context.notify))
    context.notify(DataReady(prepared=prepared, seconds=context.seconds["scan and checks"]))
    require_consistent(recipe, prepared.train, context.resume)
    return recipe, prepared


def _choose(
    recipe: Recipe, located: list[LocatedBackbone], prepared: PreparedData, context: _Context
) -> Choice:
    """Read the weights; take the recipe's method, or run a race."""
    extractor = Extractor(
        cache=context.cache,
        # Boxes and masks train on the maps themselves, which must not be rounded.
        engine="fp32" if prepared.data.is_dense else recipe.engine,
        device=recipe.device,
        progress=progress_of(context.notify),
    )
    resumes = context.resume and has_checkpoint(context.checkpoints)
    with timed(context.seconds, "race" if recipe.method is None else "weights"):
        return choose(
            recipe,
            [FrozenBackbone.read(*backbone) for backbone in located],
            prepared,
            extractor=extractor,
            notify=context.notify,
            resume_from=context.checkpoints if resumes else None,
        )


@contextmanager
def _locked_checkpoints(
    choice: Choice, prepared: PreparedData, context: _Context
) -> Iterator[None]:
    """Lock the checkpoint folder during the run; without --resume delete an older checkpoint."""
    if not choice.method.resumes or not is_main():
        yield
        return
    with locked(context.checkpoints):
        if not context.resume and delete_checkpoint(context.checkpoints):
            context.notify(Noted(text=CHECKPOINT_DELETED.format(folder=context.checkpoints)))
        save_choice(choice, prepared, context.checkpoints)
        yield


def _create_start(choice: Choice, prepared: PreparedData, context: _Context) -> TransferModel:
    """Create the untrained model, with everything that its record says about the run."""
    recipe, train = choice.recipe, prepared.train
    with timed(context.seconds, _engine_step(prepared)):
        model = create_model(
            choice.backbone,
            train,
            head=recipe.head,
            size=recipe.size,
            seed=recipe.seed,
            record={
                "learned_from": _used_images(choice, prepared),
                "data": _data_record(prepared),
                "seed": recipe.seed,
                "versions": versions(),
                **choice.record,
            },
            offline=recipe.offline,
        )
    if recipe.max_risk is None:
        return model
    task = replace(model.require_task(ClassificationTask), max_risk=recipe.max_risk)
    return replace(model, task=task)


def _used_images(choice: Choice, prepared: PreparedData) -> list[str]:
    """Digests of the training images, and of validation images that chose the epoch."""
    parts = [prepared.train]
    if choice.method.resumes and prepared.val is not None:
        parts.append(prepared.val)
    return [short_digest(sample) for part in parts for sample in part.samples]


def _data_record(prepared: PreparedData) -> dict[str, Any]:
    train, test = prepared.train, prepared.test
    record: dict[str, Any] = {
        "name": prepared.data.name,
        "train": train.counts(),
        "held_out": test.counts(),
        "notes": list(prepared.data.notes),
    }
    if train.is_dense:  # its counts are of objects, or of images that show a class
        record["images"] = {"train": len(train), "held_out": len(test)}
    return record


def _engine_step(prepared: PreparedData) -> str:
    return "backbone and head" if prepared.data.is_dense else "backbone and engine"


def _plan(
    choice: Choice, start: TransferModel, prepared: PreparedData, context: _Context
) -> Planned:
    """Measure the engine, and describe what will be computed and trained."""
    data, backbone, extractor = prepared.data, start.backbone, choice.extractor
    engine, missing = EngineChoice(engine=extractor.engine), 0
    with timed(context.seconds, _engine_step(prepared)):
        if not data.is_dense:
            with main_first():  # the other processes then find the measured times in the cache
                engine, missing = extractor.plan_extraction(backbone, data.samples)
        outline = choice.method.outline(start, prepared.train, extractor=extractor)
    rate = engine.rates.get(engine.engine)
    return Planned(
        outline=outline,
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


def _extract_features(
    choice: Choice, start: TransferModel, prepared: PreparedData, context: _Context
) -> None:
    """Compute the pooled features: input of the probe, or of the comparison with a probe."""
    if not prepared.data.is_dense:
        with timed(context.seconds, "features"), main_first():
            choice.extractor.features(start.backbone, prepared.data.samples)


def _session(start: TransferModel, context: _Context) -> Session:
    measure = SELECTION_METRICS[start.task.kind]
    return Session(
        on_epoch=lambda epoch, n_epochs: context.notify(
            EpochDone(epoch=epoch, n_epochs=n_epochs, measure=measure)
        ),
        progress=progress_of(context.notify),
        folder=context.checkpoints,
        resume=context.resume,
    )


def _evaluate(
    choice: Choice,
    start: TransferModel,
    model: TransferModel,
    prepared: PreparedData,
    context: _Context,
) -> Run:
    """Evaluate the model on the test part; compute the diagnostics on the training images."""
    extractor, seed, seconds = choice.extractor, choice.recipe.seed, context.seconds
    with timed(seconds, "evaluation"), main_first():
        parts = prepared.train, prepared.test
        model, evaluation = evaluate_with_transfer_gain(
            start, model, parts, extractor=extractor, seed=seed
        )
    diagnostics = None
    if is_main():
        with timed(seconds, "insight"):
            diagnostics = diagnose(
                start.backbone, model, prepared, evaluation, extractor=extractor, seed=seed
            )
    return Run(
        folder=Path(),
        model=model,
        evaluation=evaluation,
        prepared=prepared,
        recipe=choice.recipe,
        summary=(*_interruption(model), *summarise(evaluation)),
        seconds=seconds,
        diagnostics=diagnostics,
    )


def _interruption(model: TransferModel) -> tuple[str, ...]:
    if not model.record.get("interrupted"):
        return ()
    n_epochs = len(model.record["epochs"]) - 1
    sentence = (
        f"STOPPED BY HAND after {n_epochs} complete epochs. This is the best model so far. Pass "
        "--resume to continue."
    )
    return (sentence,)


def _write(run: Run, output: _Output, target: Path, command: str) -> Run:
    """Write the files, close the log, and give the folder its name."""
    if output.folder is None or output.log is None:
        return replace(run, folder=target)
    started_at = time.perf_counter()
    facts = Facts(
        name=run.prepared.data.name,
        prepared=run.prepared,
        model=run.model,
        evaluation=run.evaluation,
        summary=run.summary,
        seconds=run.seconds,
        command=command,
        diagnostics=run.diagnostics,
    )
    with explain_write_errors(target):
        write_files(output.folder, facts, run.recipe)
    run.seconds["files"] = time.perf_counter() - started_at
    output.log(_finished(run))
    output.log.close()
    return replace(run, folder=publish_folder(output.folder, target))


def _finished(run: Run) -> Finished:
    record = run.model.record
    forgetting: tuple[str, ...] = ()
    if "forgetting" in record:
        gains = (b.lead.interval for b in run.evaluation.baselines if b.name == PROBE)
        values = Forgetting.from_dict(record["forgetting"])
        forgetting = summarise_forgetting(values, next(gains, None))
    return Finished(
        folder=run.folder,
        evaluation=run.evaluation,
        summary=run.summary,
        seconds=run.seconds,
        notes=tuple(record.get("notes", ())),
        forgetting=forgetting,
    )
