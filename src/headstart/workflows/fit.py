"""Fit: from images to the folder of a run, one step after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headstart.cache import Cache, open_cache
from headstart.data.checks.copies import pack_descriptors
from headstart.data.prepare import PreparedData
from headstart.distributed.processes import is_main, main_first, processes
from headstart.distributed.ray import cluster
from headstart.errors import HeadstartError
from headstart.evaluation.baselines import PROBE
from headstart.evaluation.domain_shift import REFERENCE, make_reference
from headstart.evaluation.embeddings import EmbeddedDataset
from headstart.evaluation.fold_gap import explain_fold_gap
from headstart.evaluation.forgetting import Forgetting, summarise_forgetting
from headstart.evaluation.insight import MAX_RECOMPUTED_IMAGES, diagnose
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
from headstart.training.interruption import StopRequest, stop_sentences
from headstart.training.job import Epoch, Session
from headstart.workflows.auto_backbones import read_backbones
from headstart.workflows.callbacks import Callbacks
from headstart.workflows.evaluate import short_digest
from headstart.workflows.events import (
    DataReady,
    EpochDone,
    Finished,
    JsonLog,
    Noted,
    Observer,
    Planned,
    Progressed,
    notify_both,
    progress_of,
    shown,
)
from headstart.workflows.lead import check_lead
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import (
    Choice,
    LocatedBackbone,
    check_data,
    choose,
    locate_backbones,
    read_source,
    recipe_for,
    require_consistent,
    resolve_recipe,
    save_choice,
)
from headstart.workflows.run import Run
from headstart.workflows.run_folder import (
    checkpoint_folder,
    choose_folder,
    delete_checkpoint,
    explain_write_errors,
    free_folder,
    has_checkpoint,
    locked,
    publish_folder,
    slug,
    temporary_folder,
    write_files,
)
from headstart.workflows.tracking import tracked

__all__ = ["Run", "fit", "slug"]

KEYWORDS = (
    *("cache", "callbacks", "no_cache", "observer", "out", "progress", "require_lead"),
    *("resume", "track", "on"),
)
"""Keywords of `fit` beside the settings, for the message about an unknown one."""

CHECKPOINT_DELETED = (
    "Deleted the checkpoint in {folder}, and started again. Pass --resume to continue from it."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Context:
    """State that the steps of a run share."""

    cache: Cache
    notify: Observer
    checkpoints: Path
    resume: bool
    stop: StopRequest
    started_at: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Output:
    """Hidden folder and log of a run; the other processes have neither."""

    notify: Observer
    folder: Path | None = None
    log: JsonLog | None = None


def fit(  # noqa: PLR0913 - one argument a flag
    source: object,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    cache: Cache | bool | None = None,
    observer: Observer | None = None,
    callbacks: Sequence[Any] = (),
    progress: bool | None = None,
    command: str = "",
    resume: bool = False,
    track: str = "",
    on: str = "",
    no_cache: bool = False,
    require_lead: bool = False,
    **settings: Any,
) -> Run:
    """Learn from a folder of images, evaluate the result, and write the run's folder.

    Every setting of ``headstart fit`` on the command line is a keyword of the same name, with
    underscores for dashes: ``--train-from layer4`` is ``train_from="layer4"``. The most used are
    ``backbone``, ``method``, ``epochs``, ``learning_rate``, ``train_from``, ``augment``,
    ``budget``, ``task``, ``head``, ``size``, ``group_by``, ``max_risk``, ``device`` and ``seed``.

    Parameters
    ----------
    source : str, Path, Dataset or object
        Class folders, a manifest, images with boxes or masks, ``demo:<name>``; a pandas
        DataFrame, a list of (image, label) pairs, arrays, a dataset of torch or Hugging Face; or
        a dataset that was read already.
    recipe : Recipe, optional
        All settings as one value, instead of keywords.
    out : str or Path, optional
        The folder to write; by default ``runs/<name>``. An existing folder is never changed.
    cache : Cache or bool, optional
        Cache of features; by default the user's cache. False is the same as ``no_cache``.
    observer : callable, optional
        Called with every event (``headstart.workflows.events``).
    callbacks : sequence
        Functions that get every event, or objects with ``on_epoch`` or ``on_event``. One that
        returns ``headstart.STOP`` or True stops the run as Ctrl-C does: the best model so far is
        evaluated and saved.
    progress : bool, optional
        Show progress; None does so in a terminal and in a notebook only.
    command : str
        The command line, for the report.
    resume : bool
        Continue the unfinished training of the same call. Its checkpoints are in
        ``<out>.partial/``; without any, the training starts from the beginning.
    track : str
        Log to ``tensorboard``, ``mlflow``, or both with a comma.
    on : str
        ``ray`` or ``ray:ADDRESS``: compute features on a Ray cluster.
    no_cache : bool
        Use an empty cache, which is deleted at the end.
    require_lead : bool
        Raise an error, after the folder was written, unless the model is significantly better
        than every baseline.
    **settings
        Fields of `Recipe`, and the fields of the methods by the names of their flags.
        ``method`` is a name, a method such as ``Finetune(train_from="layer4")``, or None for a
        race; ``backbones`` is a list of names, or one text with commas; ``budget`` is in seconds,
        or a text such as ``"2m"``. ``headstart fit --help`` explains all settings.

    Returns
    -------
    Run

    Raises
    ------
    DataError
        If the images or labels cannot be used.
    LeadError
        If ``require_lead`` is True, and the model is not better than the baselines.
    SetupError
        If weights are missing, or the folder cannot be written.
    UnknownNameError
        If there is no such setting; the message suggests the nearest name.
    UsageError
        If an argument is invalid, such as an ``out`` that does not name a folder.

    Examples
    --------
    >>> run = fit("photos/", method="finetune", epochs=5)  # doctest: +SKIP
    >>> print(run.evaluation.metrics["accuracy"])  # doctest: +SKIP
    0.987 [0.971, 0.995]
    """
    recipe = recipe_for(source, recipe, settings, KEYWORDS)
    target, listeners = choose_folder(out, source), Callbacks(callbacks, observer)
    with (
        processes(recipe.device),
        open_cache(cache, no_cache=no_cache) as store,
        shown(progress, listeners) as shown_events,
        cluster(on, progress_of(shown_events)),
        tracked(track, source, recipe, out=out, beside=shown_events) as notify,
    ):
        listeners.require_one_process()
        with _open_output(target, notify) as output, StopRequest(output.notify) as stop:
            context = _Context(
                cache=store,
                notify=output.notify,
                checkpoints=checkpoint_folder(target),
                resume=resume,
                stop=stop,
            )
            listeners.stop = stop
            located = _locate(recipe)
            recipe, prepared = _prepare_data(source, recipe, context)
            choice = _choose(recipe, located, prepared, context)
            with _locked_checkpoints(choice, prepared, context):
                start = _create_start(choice, prepared, context)
                output.notify(plan := _plan(choice, start, prepared, context))
                _extract_features(choice, start, prepared, context)
                with _fitting(plan, context):
                    model = choice.trained_model(start) or choice.method.fit(
                        start,
                        prepared.train,
                        prepared.val,
                        extractor=choice.extractor,
                        session=_session(choice, start, context),
                    )
                stop.keep_model()
                run = _evaluate(choice, start, model, prepared, context)
                run = _write(run, output, target, command)
                _delete_used_checkpoint(run, choice, context)
        if is_main():
            notify(_finished(run))
    if require_lead:
        check_lead(run.evaluation)
    return run


@contextmanager
def _open_output(target: Path, observer: Observer) -> Iterator[_Output]:
    """Open the run's hidden folder and its log; only the main process writes."""
    if not is_main():
        yield _Output(notify=lambda _: None)
        return
    with temporary_folder(target) as folder, JsonLog(folder / "log.jsonl") as log:
        output = _Output(notify=notify_both(log, observer), folder=folder, log=log)
        if (free := free_folder(target)) != target:
            text = f"{target} exists and is not changed. This run is written to {free}."
            output.notify(Noted(text=text))
        yield output


def _locate(recipe: Recipe) -> list[LocatedBackbone]:
    """Fail early: check the device's name and find the weights before scanning the images."""
    if recipe.device != "auto":  # auto cannot fail, and checking it would import torch
        device(recipe.device)
    return locate_backbones(recipe)


def _prepare_data(source: object, recipe: Recipe, context: _Context) -> tuple[Recipe, PreparedData]:
    """Read, scan, check and split the data; resolve the settings that depend on it."""
    with timed(context.seconds, "scan and checks"), main_first():
        data = read_source(source, recipe)
        recipe = resolve_recipe(recipe, data)
        prepared = check_data(data, recipe, context.cache, progress_of(context.notify))
    context.notify(DataReady(prepared=prepared, seconds=context.seconds["scan and checks"]))
    require_consistent(recipe, prepared.train, context.resume)
    own_loss = getattr(getattr(recipe.method, "loss", None), "function", None)
    if own_loss is not None:
        context.notify(Noted(text=own_loss.note))
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
    _begin(context, "reading the weights of the backbone")
    backbones, reasons = read_backbones(
        located, recipe, prepared.train, context.cache, context.notify, resumes=resumes
    )
    for note in filter(None, (backbone.note for backbone in backbones)):
        context.notify(Noted(text=note))
    with timed(context.seconds, "race" if recipe.method is None else "weights"):
        return choose(
            recipe,
            backbones,
            prepared,
            extractor=extractor,
            notify=context.notify,
            resume_from=context.checkpoints if resumes else None,
            reasons=reasons,
            started_at=context.started_at,
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


def _delete_used_checkpoint(run: Run, choice: Choice, context: _Context) -> None:
    """Delete the checkpoint of a training that is complete."""
    if choice.method.resumes and not run.model.record.get("interrupted") and is_main():
        delete_checkpoint(context.checkpoints)


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
                "learned_from": _used_images(prepared),
                "training_descriptors": _training_descriptors(prepared),
                "data": _data_record(prepared),
                "seed": recipe.seed,
                "versions": versions(),
                **_image_options(prepared),
                **choice.record,
            },
            offline=recipe.offline,
            selection=recipe.selection,
        )
    if recipe.max_risk is None:
        return model
    task = replace(model.require_task(ClassificationTask), max_risk=recipe.max_risk)
    return replace(model, task=task)


def _image_options(prepared: PreparedData) -> dict[str, Any]:
    """How the images were decoded, so that prediction decodes them in the same way."""
    settings = prepared.train.samples[0].options.as_dict()
    return {"image_options": settings} if settings else {}


def _used_images(prepared: PreparedData) -> list[str]:
    """Digests of the training images, and of the validation images that made choices."""
    parts = [part for part in (prepared.train, prepared.val) if part is not None]
    return [short_digest(sample) for part in parts for sample in part.samples]


def _training_descriptors(prepared: PreparedData) -> str:
    """What `evaluate` needs to recognise copies of the same images as `_used_images`."""
    used = {"train"} if prepared.val is None else {"train", "val"}
    if len(prepared.records) != len(prepared.data):
        return ""
    pairs = zip(prepared.data.samples, prepared.records, strict=True)
    return pack_descriptors([record for sample, record in pairs if sample.split in used])


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
        anchor_recall=start.record.get("anchors_reach"),
    )


def _extract_features(
    choice: Choice, start: TransferModel, prepared: PreparedData, context: _Context
) -> None:
    """Compute the pooled features: input of the probe, or of the comparison with a probe."""
    if not prepared.data.is_dense:
        with timed(context.seconds, "features"), main_first():
            choice.extractor.features(start.backbone, prepared.data.samples)


def _begin(context: _Context, step: str) -> None:
    """Say what is being done, for a step whose length is not known."""
    context.notify(Progressed(step=step, done=0, total=0))


def _session(choice: Choice, start: TransferModel, context: _Context) -> Session:
    measure = SELECTION_METRICS[start.task.kind]
    decision = choice.record.get("decision")
    # The budget of a race includes the training of its winner.
    left = None
    if decision is not None:  # a training that is resumed has a budget of its own
        left = decision.get("left", decision["budget"] - decision["seconds"])
        left = decision["budget"] if context.resume else max(left, 0.0)

    def on_epoch(epoch: Epoch, n_epochs: int) -> None:
        context.stop.keep_model()  # its weights are the best so far, or an older epoch's are
        context.notify(EpochDone(epoch=epoch, n_epochs=n_epochs, measure=measure))

    return Session(
        on_epoch=on_epoch,
        progress=progress_of(context.notify),
        folder=context.checkpoints,
        resume=context.resume,
        deadline=None if left is None else time.perf_counter() + left,
        stop=context.stop,
    )


@contextmanager
def _fitting(plan: Planned, context: _Context) -> Iterator[None]:
    """Name the step that makes the model, and measure its time."""
    _begin(context, f"fitting the model: {plan.outline.title}")
    with timed(context.seconds, "head" if plan.outline.plan is None else "training"):
        yield


def _evaluate(
    choice: Choice,
    start: TransferModel,
    model: TransferModel,
    prepared: PreparedData,
    context: _Context,
) -> Run:
    """Evaluate the model on the test part; compute the diagnostics on the training images."""
    extractor, seed, seconds = choice.extractor, choice.recipe.seed, context.seconds
    _begin(context, "evaluating the model on the test images")
    with timed(seconds, "evaluation"), main_first():
        parts = prepared.train, prepared.test
        model, evaluation = evaluate_with_transfer_gain(
            start, model, parts, extractor=extractor, seed=seed
        )
    diagnostics = None
    if is_main() and not context.stop.is_requested:
        _begin(context, "looking for label errors and weak subgroups")
        with timed(seconds, "insight"):
            diagnostics = diagnose(
                start.backbone, model, prepared, evaluation, extractor=extractor, seed=seed
            )
            model = _with_reference(model, prepared, extractor)
    return Run(
        folder=Path(),
        model=model,
        evaluation=evaluation,
        prepared=prepared,
        recipe=choice.recipe,
        summary=(
            *stop_sentences(context.stop, model.record),
            *summarise(evaluation),
            *explain_fold_gap(model.record, evaluation, prepared.test.groups()),
        ),
        seconds=seconds,
        diagnostics=diagnostics,
        interrupted=bool(stop_sentences(context.stop, model.record)),
    )


def _with_reference(
    model: TransferModel, prepared: PreparedData, extractor: Extractor
) -> TransferModel:
    """Return a classifier with what `evaluate` needs to recognise images of another domain."""
    if model.task.kind != "multiclass":
        return model
    own = replace(extractor, engine=model.engine)  # its features of these images are cached
    try:
        embedded = EmbeddedDataset.of(
            model.backbone, prepared, own, max_train=MAX_RECOMPUTED_IMAGES
        )
        reference = make_reference(embedded, model.backbone)
    except HeadstartError:  # such as features that are not finite; the model is complete without
        reference = {}
    return replace(model, record={**model.record, REFERENCE: reference}) if reference else model


def _write(run: Run, output: _Output, target: Path, command: str) -> Run:
    """Write the files, close the log, and give the folder its name."""
    if output.folder is None or output.log is None:
        return replace(run, folder=target)
    started_at = time.perf_counter()
    output.notify(Progressed(step="writing the report", done=0, total=0))
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
