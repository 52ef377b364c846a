"""The main job, from pictures to a run's folder; every step lives in the room of its noun."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from headstart.backbones.catalog import resolve
from headstart.backbones.weights import locate
from headstart.cache import Cache
from headstart.data.loading import digest_of
from headstart.data.prepare import BadFiles, Prepared, prepare, select
from headstart.data.readers import read_dataset
from headstart.data.samples import Dataset, Sample
from headstart.engines import runnable
from headstart.errors import LeakError, SetupError, UsageError
from headstart.evaluation import Evaluation, evaluate, predictions_csv
from headstart.events import (
    DataReady,
    Event,
    Finished,
    JsonLog,
    Observer,
    Planned,
    Progressed,
)
from headstart.features import Extractor
from headstart.model import TransferModel
from headstart.model_folder import load, save
from headstart.recipe import Recipe
from headstart.report import Facts, render_card, render_html, render_json
from headstart.runtime import cores, device, versions
from headstart.tasks.classification import Classification
from headstart.trunk import Trunk
from headstart.verdict import verdict

__all__ = ["Run", "evaluate_source", "fit", "slug"]


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


def fit(
    source: str | Path | Dataset,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    cache: Cache | None = None,
    observer: Observer | None = None,
    command: str = "",
) -> Run:
    """Learn from a folder of pictures, judge the result, and write a run's folder.

    Parameters
    ----------
    source : str, Path or Dataset
        Class folders, a manifest, ``demo:<name>``, or examples that are read already.
    recipe : Recipe, optional
    out : str or Path, optional
        The folder to write; by default ``runs/<name>``. An existing folder is never touched:
        a number is added to the name.
    cache : Cache, optional
        Where features are kept; by default the user's cache.
    observer : callable, optional
        Told of every event.
    command : str
        How the run was started, for the report.

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
    wanted = _wanted(out, source)
    with _partial_folder(wanted) as folder, JsonLog(folder / "log.jsonl") as log:
        watched = _both(log, observer)
        run = _run(source, recipe, cache or Cache(), watched)
        begin = time.perf_counter()
        with _told_where(wanted):
            _write(folder, run, recipe, command)
        run.seconds["files"] = time.perf_counter() - begin
        log(_finished(run))
        log.close()
        run = replace(run, folder=_claim(folder, wanted))
    if observer is not None:
        observer(_finished(run))
    return run


def _wanted(out: str | Path | None, source: str | Path | Dataset) -> Path:
    """Where the run's folder shall be; "." and ".." are no names that one could be given."""
    if out is None:
        return Path("runs") / slug(source)
    wanted = Path(out)
    if wanted.name in {"", ".."}:
        raise UsageError(
            f"Expected `out` to name a new folder, got {str(out)!r}; do give it a name, such as "
            f"{str(wanted / slug(source))!r}."
        )
    return wanted


def _finished(run: Run) -> Finished:
    return Finished(
        folder=run.folder, evaluation=run.evaluation, verdict=run.verdict, seconds=run.seconds
    )


def _run(source: str | Path | Dataset, recipe: Recipe, cache: Cache, notify: Observer) -> Run:
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
    with _timed(clock, "scan and checks"):
        prepared = prepare(
            source,
            cache=cache,
            group_by=recipe.group_by,
            bad_files=recipe.bad_files,
            allow_overlap=recipe.allow_overlap,
            test_fraction=recipe.test_fraction,
            seed=recipe.seed,
            progress=progress,
        )
    notify(DataReady(prepared=prepared, seconds=clock["scan and checks"]))
    recipe.method.check(prepared.train)
    with _timed(clock, "backbone and engine"):
        trunk = Trunk.read(spec, weights)
        plan = _plan(trunk, prepared.data, extractor)
    notify(plan)
    with _timed(clock, "features"):
        extractor.features(trunk, prepared.data.samples)
    with _timed(clock, "head"):
        model = _learn(recipe, prepared, trunk, extractor)
    with _timed(clock, "evaluation"):
        evaluation = evaluate(
            model, prepared.test, extractor=extractor, train=prepared.train, seed=recipe.seed
        )
    return Run(
        folder=Path(),
        model=model,
        evaluation=evaluation,
        prepared=prepared,
        verdict=verdict(evaluation),
        seconds=clock,
    )


def _plan(trunk: Trunk, data: Dataset, extractor: Extractor) -> Planned:
    engine, missing = extractor.outlook(trunk, data.samples)
    rate = engine.rates.get(engine.engine)
    return Planned(
        trunk=trunk,
        engine=engine,
        parameters=trunk.parameters,
        to_compute=missing,
        pictures=len(data),
        seconds=missing / (rate * cores()) if rate else None,
        cache_bytes=missing * trunk.width * 4,
    )


def _learn(recipe: Recipe, prepared: Prepared, trunk: Trunk, extractor: Extractor) -> TransferModel:
    train = prepared.train
    blank = TransferModel(
        trunk=trunk,
        task=Classification(classes=train.classes, kind=train.kind),
        record={
            "learned_from": [short(sample) for sample in train.samples],
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
    return recipe.method.fit(blank, train, prepared.val, extractor=extractor)


def _write(folder: Path, run: Run, recipe: Recipe, command: str) -> None:
    save(run.model, folder)
    facts = Facts(
        name=run.prepared.data.name,
        prepared=run.prepared,
        model=run.model,
        evaluation=run.evaluation,
        verdict=run.verdict,
        seconds=run.seconds,
        command=command,
    )
    resolved = yaml.safe_dump(recipe.as_dict(), sort_keys=False)
    numbers = json.dumps(render_json(facts), indent=1, allow_nan=False)
    for name, text in {
        "report.html": render_html(facts),
        "report.json": numbers,
        "card.md": render_card(facts),
        "resolved.yaml": resolved,
        "predictions.csv": predictions_csv(run.evaluation),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")


def slug(source: str | Path | Dataset) -> str:
    """Name a run's folder after what it learned from.

    >>> slug("my photos/"), slug("demo:textures")
    ('my-photos', 'demo-textures')
    """
    name = source.name if isinstance(source, Dataset) else Path(source).resolve().stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


@contextmanager
def _timed(clock: dict[str, float], step: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    clock[step] = time.perf_counter() - begin


@contextmanager
def _partial_folder(wanted: Path) -> Iterator[Path]:
    """Make a hidden folder beside the wanted one; a run that fails leaves nothing behind."""
    with _told_where(wanted):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{wanted.name}-", dir=wanted.parent))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _told_where(wanted: Path) -> Iterator[None]:
    """A full disk, or a folder that nobody may write to, with the path and the way out."""
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"Expected to write a run's folder at {wanted}, got {error}; do make room there, or "
            "choose another --out."
        ) from error


def _claim(folder: Path, wanted: Path) -> Path:
    """Give a finished folder its name, or the next free one: an older run is never touched."""
    names = itertools.chain([wanted.name], (f"{wanted.name}-{n}" for n in itertools.count(2)))
    final = next(path for path in map(wanted.with_name, names) if not path.exists())
    folder.chmod(0o755)  # mkdtemp's folders are private
    return folder.rename(final)


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
