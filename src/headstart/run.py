"""The main job, from pictures to a run's folder; every step lives in the room of its noun."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from headstart.backbones.catalog import resolve
from headstart.backbones.weights import locate
from headstart.baselines import PROBE
from headstart.cache import Cache
from headstart.data.loading import digest_of
from headstart.data.prepare import BadFiles, Prepared, prepare, select
from headstart.data.readers import read_dataset
from headstart.data.samples import Dataset, Sample
from headstart.distributed import is_main, main_first, start, stop
from headstart.engines import runnable
from headstart.errors import LeakError, UsageError
from headstart.evaluation import Evaluation, evaluate
from headstart.events import (
    DataReady,
    EpochDone,
    Event,
    Finished,
    JsonLog,
    Noted,
    Observer,
    Planned,
    Progressed,
)
from headstart.features import Extractor, Progress
from headstart.forgetting import Forgetting, sentences
from headstart.gains import judge
from headstart.model import TransferModel
from headstart.model_folder import load
from headstart.recipe import Recipe
from headstart.report import Facts
from headstart.run_folder import (
    claim,
    forget,
    hidden_folder,
    resumable,
    slug,
    told_where,
    wanted_folder,
    write_files,
)
from headstart.runtime import cores, device, versions
from headstart.tasks.classification import Classification
from headstart.training.job import Session
from headstart.trunk import Trunk
from headstart.verdict import verdict

__all__ = ["Run", "evaluate_source", "fit", "processes", "slug"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a run leaves.

    Parameters
    ----------
    folder : Path
    model : TransferModel
    evaluation : Evaluation
    prepared : Prepared
    verdict : tuple of str
    seconds : dict of str to float
        By step.
    """

    folder: Path
    model: TransferModel
    evaluation: Evaluation
    prepared: Prepared
    verdict: tuple[str, ...]
    seconds: dict[str, float]

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
    """Learn from a folder of pictures, judge the result, and write a run's folder.

    Parameters
    ----------
    source : str, Path or Dataset
        Class folders, a manifest, ``demo:<name>``, or examples that are read already.
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
        If the pictures or labels cannot be used as they are.
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
    with processes(recipe.device):
        if not is_main():  # it computes its share, and leaves files and words to the first
            run = _run(source, recipe, cache, lambda _: None, resumable(wanted), resume)
            return replace(run, folder=wanted)
        with hidden_folder(wanted) as folder, JsonLog(folder / "log.jsonl") as log:
            run = _run(source, recipe, cache, _both(log, observer), resumable(wanted), resume)
            begin = time.perf_counter()
            with told_where(wanted):
                write_files(folder, _facts(run, command), recipe)
            run.seconds["files"] = time.perf_counter() - begin
            log(_finished(run))
            log.close()
            run = replace(run, folder=claim(folder, wanted))
    if recipe.method.resumes and not run.interrupted:
        forget(resumable(wanted))
    if observer is not None:
        observer(_finished(run))
    return run


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the processes of a launcher, if there is one, and leave them behind the block."""
    joined = start("cpu" if device == "mps" else device)
    try:
        yield
    finally:
        if joined:
            stop()


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
    checkpoints: Path,
    resume: bool,
) -> Run:
    clock: dict[str, float] = {}

    def progress(step: str, done: int, total: int) -> None:
        notify(Progressed(step=step, done=done, total=total))

    # A wrong name or missing weights are said before anything is scanned.
    if recipe.device != "auto":  # which never fails, and would have to import torch
        device(recipe.device)
    spec = resolve(recipe.backbone, offline=recipe.offline)
    weights = locate(spec, offline=recipe.offline)
    extractor = Extractor(
        cache=cache, engine=recipe.engine, device=recipe.device, progress=progress
    )
    with _timed(clock, "scan and checks"), main_first():
        prepared = _prepared(source, recipe, cache, progress)
    notify(DataReady(prepared=prepared, seconds=clock["scan and checks"]))
    recipe.method.check(prepared.train)
    if resume and not recipe.method.resumes:
        raise UsageError(
            f"Expected a method that can be resumed, got {recipe.method.name}; do name the method "
            "of the run that was stopped, such as --method finetune."
        )
    if recipe.method.resumes and is_main() and not resume and forget(checkpoints):
        notify(
            Noted(
                text=f"Begun anew: the checkpoint in {checkpoints} was not asked for "
                "(--resume takes it up), and is deleted."
            )
        )
    with _timed(clock, "backbone and engine"):
        trunk = Trunk.read(spec, weights)
        blank = _blank(recipe, prepared, trunk)
        plan = _plan(recipe, blank, prepared, extractor)
    notify(plan)
    with _timed(clock, "features"), main_first():
        extractor.features(trunk, prepared.data.samples)
    session = _session(notify, checkpoints, resume)
    with _timed(clock, "head" if plan.outline.plan is None else "training"):
        model = recipe.method.fit(
            blank, prepared.train, prepared.val, extractor=extractor, session=session
        )
    with _timed(clock, "evaluation"), main_first():
        parts = prepared.train, prepared.test
        model, evaluation = judge(blank, model, parts, extractor=extractor, seed=recipe.seed)
    return Run(
        folder=Path(),
        model=model,
        evaluation=evaluation,
        prepared=prepared,
        verdict=(*_stopped(model), *verdict(evaluation)),
        seconds=clock,
    )


def _prepared(
    source: str | Path | Dataset, recipe: Recipe, cache: Cache, progress: Progress
) -> Prepared:
    return prepare(
        source,
        cache=cache,
        group_by=recipe.group_by,
        bad_files=recipe.bad_files,
        allow_overlap=recipe.allow_overlap,
        test_fraction=recipe.test_fraction,
        seed=recipe.seed,
        progress=progress,
    )


def _session(notify: Observer, checkpoints: Path, resume: bool) -> Session:
    return Session(
        told=lambda epoch, most: notify(EpochDone(epoch=epoch, most=most)),
        progress=lambda step, done, total: notify(Progressed(step=step, done=done, total=total)),
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
    recipe: Recipe, blank: TransferModel, prepared: Prepared, extractor: Extractor
) -> Planned:
    data, trunk = prepared.data, blank.trunk
    with main_first():  # what is measured is measured once
        engine, missing = extractor.outlook(trunk, data.samples)
    rate = engine.rates.get(engine.engine)
    return Planned(
        outline=recipe.method.outline(blank, prepared.train, extractor=extractor),
        trunk=trunk,
        engine=engine,
        parameters=trunk.parameters,
        to_compute=missing,
        pictures=len(data),
        seconds=missing / (rate * cores()) if rate else None,
        cache_bytes=missing * trunk.width * 4,
    )


def _blank(recipe: Recipe, prepared: Prepared, trunk: Trunk) -> TransferModel:
    train, selected = prepared.train, prepared.train.samples[:0]
    if recipe.method.resumes and prepared.val is not None:  # the epoch was chosen on these
        selected = prepared.val.samples
    return TransferModel(
        trunk=trunk,
        task=Classification(classes=train.classes, kind=train.kind),
        record={
            "learned_from": [short(sample) for sample in (*train.samples, *selected)],
            "data": {
                "name": prepared.data.name,
                "train": train.counts(),
                "held_out": prepared.test.counts(),
                "notes": list(prepared.data.notes),
            },
            "seed": recipe.seed,
            "versions": versions(),
        },
    )


def _facts(run: Run, command: str) -> Facts:
    return Facts(
        name=run.prepared.data.name,
        prepared=run.prepared,
        model=run.model,
        evaluation=run.evaluation,
        verdict=run.verdict,
        seconds=run.seconds,
        command=command,
    )


@contextmanager
def _timed(clock: dict[str, float], step: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    clock[step] = time.perf_counter() - begin


def _both(first: Observer, second: Observer | None) -> Observer:
    def notify(event: Event) -> None:
        first(event)
        if second is not None:
            second(event)

    return notify


def evaluate_source(
    model_folder: str | Path,
    source: str | Path | Dataset,
    *,
    cache: Cache,
    group_by: str | None = None,
    bad_files: BadFiles = "error",
    allow_overlap: bool = False,
    device: str = "auto",
    seed: int = 0,
) -> Evaluation:
    """Judge a saved model on labelled pictures; of data with a test part, on that part.

    Raises
    ------
    ModelFileError
        If the model's folder is damaged.
    DataError
        If the pictures cannot be used, or show classes that the model does not know.
    LeakError
        If the model has learned from some of these pictures.
    """
    model = load(model_folder)
    data = source
    if not isinstance(data, Dataset):
        data = read_dataset(data, group_by=group_by, min_classes=1)
    test = data.split("test")
    samples = (test if len(test) else data).samples
    kept = select(samples, cache=cache, bad_files=bad_files)
    if not allow_overlap:
        _require_unseen(model, kept)
    engine = runnable(model.engine, device=device)
    extractor = Extractor(cache=cache, engine=engine, device=device)
    return evaluate(model, replace(data, samples=kept), extractor=extractor, seed=seed)


def short(sample: Sample) -> str:
    """Enough of a picture's digest to recognise it: 64 bits.

    >>> short(Sample(image=b"", digest="0123456789abcdef" * 4))
    '0123456789abcdef'
    """
    return digest_of(sample)[:16]


def _require_unseen(model: TransferModel, samples: Sequence[Sample]) -> None:
    learned = set(model.record.get("learned_from", ()))
    seen = [sample.name for sample in samples if short(sample) in learned]
    if seen:
        raise LeakError(
            f"Expected pictures that the model has not learned from, got {len(seen)} of "
            f"{len(samples)} that it has, such as {', '.join(seen[:3])}; do leave them out, or "
            "pass --allow-overlap if it is meant."
        )
