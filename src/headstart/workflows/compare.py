"""Compare methods: train each on the same images, over seeds and fractions."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headstart.backbones.frozen import FrozenBackbone, name_of
from headstart.cache import Cache, open_cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.splits import nested_fractions, repeated_splits
from headstart.distributed.ray import cluster, is_on, map_tasks
from headstart.errors import DataError
from headstart.evaluation.classification import evaluate
from headstart.evaluation.comparison import (
    Comparison,
    ScoringPlan,
    TrainingResult,
    build_curves,
    compare_with_reference,
    summarise_comparison,
)
from headstart.evaluation.summary import primary_metric, resampled_scores, rule_scores
from headstart.features.extractor import Extractor
from headstart.files import write_whole
from headstart.methods.method import Method, described
from headstart.metrics import PRIMARY_METRICS
from headstart.metrics.confidence_intervals import units
from headstart.models.build import create_model
from headstart.models.transfer_model import TransferModel
from headstart.reports.comparison import draw_comparison, render_page
from headstart.runtime import device, threads, use_threads
from headstart.selection.race import decide
from headstart.training.interruption import StopRequest
from headstart.training.job import Session
from headstart.training.trainer import held_out
from headstart.workflows.compare_files import append_result, read_results, write_tables
from headstart.workflows.comparison_recipe import ComparisonRecipe
from headstart.workflows.events import (
    DataReady,
    JsonLog,
    Noted,
    Observer,
    Progressed,
    notify_both,
    progress_of,
    shown,
)
from headstart.workflows.plan import PlannedTraining, describe_trainings
from headstart.workflows.recipe import Recipe, parse_method, with_steps
from headstart.workflows.resolve import check_data, read_source, resolve_recipe
from headstart.workflows.run_folder import (
    checkpoint_folder,
    choose_folder,
    explain_write_errors,
    locked,
    publish_folder,
    temporary_folder,
)
from headstart.workflows.verb_settings import comparison_settings

__all__ = ["Split", "compare", "n_gradient_images", "train_on_split"]

SMALL_DATASET = 200
"""Number of images below which a single split depends too much on chance."""

RESULTS_FILE = "trainings.jsonl"
"""Finished trainings of a comparison that is not complete, one JSON line each."""
STOPPING = "Stopping. Finished trainings are kept; pass --resume to continue."
RESULTS_DELETED = (
    "Deleted the finished trainings in {folder} ({count}), and started again. Pass --resume to "
    "keep them."
)
RESULTS_REUSED = "Reused {reused} of {total} trainings from {path}."

FEW_SEEDS = 3
"""Number of seeds below which the differences between trainings are hardly known."""
TOO_FEW_SEEDS = (
    "Too few seeds: {seeds}. The intervals do not show how much a result changes from seed to "
    "seed. Pass --seeds 3 or more."
)

REPORTED_LINES = 40
"""Largest number of trainings that are reported one by one; of more, every n-th."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Training, validation and test images that all methods share.

    Parameters
    ----------
    seed, fold : int
    fraction : float
        Share of the training images that ``train`` holds.
    train, test : Dataset
    val : Dataset or None
    fixed : bool
        Whether every seed is tested on the same images.
    """

    seed: int
    fold: int
    fraction: float
    train: Dataset
    val: Dataset | None
    test: Dataset
    fixed: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """One training of a comparison; method None is a race."""

    split: Split
    backbone: str
    method_name: str
    method: Method | None
    key: str

    def title(self, folds: int) -> str:
        """Name the training for people: backbone, method, seed, fold and share of the images."""
        split = self.split
        part = f"seed {split.seed}, fold {split.fold + 1}" if folds else f"seed {split.seed}"
        return f"{self.backbone} {self.method_name}, {part}, {split.fraction:.0%}"


def compare(  # noqa: PLR0913 - one argument a setting
    source: object,
    trials: ComparisonRecipe | None = None,
    *,
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    cache: Cache | bool | None = None,
    observer: Observer | None = None,
    progress: bool | None = None,
    command: str = "",
    resume: bool = False,
    no_cache: bool = False,
    on: str = "",
    **settings: Any,
) -> tuple[Comparison, Path]:
    """Train every method on every backbone, seed and fraction, and report the differences.

    Every flag of ``headstart compare`` is a keyword of the same name, with underscores for dashes:
    ``methods``, ``backbones``, ``seeds``, ``fractions``, ``epochs``, ``group_by`` and the others.

    In a seed, fold and fraction all methods have the same training and test images. The test
    part is the one of the data, if there is one; otherwise every seed has a split of its own.

    Parameters
    ----------
    source : str, Path, Dataset or object
        As for `headstart.fit`.
    trials : ComparisonRecipe, optional
        Instead of its settings by name.
    recipe : Recipe, optional
        Instead of all other settings by name; its backbone and method are ignored.
    out : str or Path, optional
        By default ``runs/compare-<name>``.
    cache, observer, progress, no_cache
        As for `headstart.fit`.
    command : str
    resume : bool
        Reuse the finished trainings in ``<out>.partial/``.
    on : str
        ``ray`` or ``ray:ADDRESS``: run the trainings as tasks on a Ray cluster.
    **settings
        Lists may be texts with commas, as on the command line: ``fractions="0.5,1"``.

    Returns
    -------
    comparison : Comparison
    folder : Path
        With compare.html, compare.png, compare.json, table.csv and log.jsonl.

    Raises
    ------
    DataError
        If the images cannot be used, or are too few.
    UsageError
        If an argument is invalid.

    Examples
    --------
    >>> comparison, folder = compare("photos/", methods=["scratch", "probe"])  # doctest: +SKIP
    """
    (trials, recipe), started_at = (
        comparison_settings(trials, recipe, settings),
        time.perf_counter(),
    )
    target = choose_folder(out, source)
    if out is None:
        target = target.with_name(f"compare-{target.name}")
    checkpoints = checkpoint_folder(target)
    results_path = checkpoints / RESULTS_FILE
    with ExitStack() as stack:
        store = stack.enter_context(open_cache(cache, no_cache=no_cache))
        stack.enter_context(locked(checkpoints))
        folder = stack.enter_context(temporary_folder(target))
        log = stack.enter_context(JsonLog(folder / "log.jsonl"))
        notify = notify_both(log, stack.enter_context(shown(progress, observer)))
        stack.enter_context(StopRequest(notify, always_ends=STOPPING))
        stack.enter_context(cluster(on, progress_of(notify)))
        trainings = _Trainings(source, trials, recipe, store, notify)
        if not resume and (count := len(dict(read_results(results_path)))):
            notify(Noted(text=RESULTS_DELETED.format(count=count, folder=checkpoints)))
            results_path.unlink()
        results, reused_seconds = trainings.run(results_path, resume)
        seconds = reused_seconds + time.perf_counter() - started_at
        comparison = trainings.summarise(results, seconds, command)
        log.close()
        with explain_write_errors(target):
            write_tables(comparison, folder)
            draw_comparison(comparison, folder / "compare.png")
            write_whole(folder / "compare.html", render_page(comparison))
            final = publish_folder(folder, target)
            results_path.unlink(missing_ok=True)
    return comparison, final


def n_gradient_images(split: Split) -> int:
    """Number of images that gradients are computed for: without those for early stopping."""
    if split.val is not None:
        return len(split.train)
    return len(held_out(split.train, split.seed)[0])


def train_on_split(
    split: Split, method: Method | None, *, backbone: FrozenBackbone, recipe: Recipe, cache: Cache
) -> TrainingResult:
    """Train on a split and evaluate on its test part.

    Parameters
    ----------
    split : Split
    method : Method or None
        None runs a race on the training images; its time counts.
    backbone : FrozenBackbone
    recipe : Recipe
        All other settings.
    cache : Cache

    Raises
    ------
    DataError
        If the method cannot learn from these images.
    KeyboardInterrupt
        If the training was interrupted: half a training is no result.

    Examples
    --------
    >>> train_on_split(split, method, backbone=b, recipe=recipe, cache=cache)  # doctest: +SKIP
    """
    engine = "fp32" if recipe.engine == "auto" else recipe.engine
    extractor = Extractor(cache=cache, engine=engine, device=recipe.device)
    is_cached = False
    if not split.train.is_dense and (method is None or method.uses_weights):
        is_cached = extractor.plan_extraction(backbone, split.train.samples)[1] == 0
    started_at, cpu_started_at = time.perf_counter(), time.process_time()
    name, trained, parts = "auto" if method is None else method.name, None, (split.train, split.val)
    if method is None:
        decision = decide(
            [backbone], *parts, extractor=extractor, budget=recipe.race_seconds, seed=split.seed
        )
        method, backbone, trained = decision.method, decision.backbone, decision.trained
    method.check(split.train)
    start = create_model(
        backbone,
        split.train,
        head=recipe.head,
        size=recipe.size,
        seed=split.seed,
        offline=recipe.offline,
        selection=recipe.selection,
    )
    model = (
        trained.model
        if trained
        else method.fit(start, *parts, extractor=extractor, session=Session())
    )
    seconds = time.perf_counter() - started_at
    cpu_seconds = time.process_time() - cpu_started_at
    if model.record.get("interrupted"):
        raise KeyboardInterrupt
    evaluation = evaluate(model, split.test, extractor=extractor, seed=recipe.seed)
    return TrainingResult(
        backbone=backbone.spec.name,
        method=name,
        seed=split.seed,
        fold=split.fold,
        fraction=split.fraction,
        images=len(split.train),
        tested=len(split.test),
        score=evaluation.metrics[primary_metric(evaluation)],
        seconds=seconds,
        cached=is_cached,
        cpu_seconds=cpu_seconds,
        gpu_seconds=seconds if device(recipe.device) == "cuda" else 0.0,
        rules=rule_scores(evaluation, split.train),
        draws=resampled_scores(evaluation, split.test) if split.fixed else (),
        notes=tuple(model.record.get("notes", ())),
        **_trained_part(model),
    )


def _trained_part(model: TransferModel) -> dict[str, Any]:
    """Fields of a result: what was trained, its number of parameters, and the steps."""
    state = {} if model.head is None else model.head.state()
    head = sum(int(values.size) for values in state.values())
    stages = model.record.get("plan", {}).get("stages")
    if stages is None:
        return {"trains": "head, fitted", "parameters": head, "steps": 0}
    return {
        "trains": _describe_stages(stages),
        "parameters": head + sum(row["trainable"] for row in stages),
        "steps": int(model.record.get("steps", 0)),
    }


def _describe_stages(stages: list[Mapping[str, Any]]) -> str:
    """Name the stages that train with the head.

    >>> _describe_stages([{"stage": "stem", "trains": False}, {"stage": "layer1", "trains": True}])
    'layer1 and head'
    """
    names = [row["stage"] for row in stages if row["trains"]]
    if not names:
        return "head"
    if len(names) == len(stages):
        return "everything"
    return f"{names[0]} and head" if len(names) == 1 else f"{names[0]} to {names[-1]} and head"


class _Trainings:
    """The images and backbones that all trainings share; runs the trainings in order."""

    def __init__(
        self,
        source: object,
        trials: ComparisonRecipe,
        recipe: Recipe,
        cache: Cache,
        notify: Observer,
    ) -> None:
        data = read_source(source, recipe)
        self.recipe = resolve_recipe(recipe, data)
        self.trials, self.cache, self.notify = trials, cache, notify
        for name in trials.methods:  # fail early on a wrong name
            self._parse_method(name, 0)
        offline = recipe.offline
        opened = [FrozenBackbone.open(b, offline=offline) for b in trials.backbones]
        self.backbones = dict(zip(map(name_of, trials.backbones), opened, strict=True))
        for note in filter(None, (backbone.note for backbone in opened)):
            notify(Noted(text=note))
        started_at = time.perf_counter()
        self.prepared = check_data(data, self.recipe, cache, progress_of(notify))
        notify(DataReady(prepared=self.prepared, seconds=time.perf_counter() - started_at))
        parts = {sample.split for sample in data.samples}
        self.has_fixed_test = "train" in parts and len(parts) > 1
        is_small = len(data) < SMALL_DATASET and not data.is_dense
        folds = 5 * is_small if trials.folds is None else trials.folds
        self.folds = 0 if self.has_fixed_test else folds

    def _parse_method(self, name: str, seed: int) -> Method:
        epochs = self.trials.epochs if self.trials.steps is None else 0  # `with_steps` chooses them
        return parse_method(name, self.recipe.task, seed=seed, epochs=epochs)

    def _method(self, name: str, split: Split) -> Method | None:
        """Make a split's method; None for a race, which is part of the training."""
        if name == "auto" and not split.train.is_dense:
            return None
        method, steps = self._parse_method(name, split.seed), self.trials.steps
        n_images, kind = n_gradient_images(split), split.train.kind
        return method if steps is None else with_steps(method, steps, n_images, kind)

    def splits(self) -> list[Split]:
        """List the splits: seeds, folds and fractions in order."""
        seeds = range(self.recipe.seed, self.recipe.seed + self.trials.seeds)
        data = self.prepared.data
        if self.has_fixed_test:
            parts = [(seed, 0, self.prepared.train, self.prepared.test) for seed in seeds]
        else:
            repeats = repeated_splits(
                data.targets(),
                seeds=list(seeds),
                folds=self.folds,
                fraction=self.recipe.test_fraction,
                blocks=data.groups(),
            )
            parts = [
                (repeat.seed, repeat.fold, data.subset(repeat.train), data.subset(repeat.test))
                for repeat in repeats
            ]
        return [split for part in parts for split in self._fractions(*part)]

    def _fractions(self, seed: int, fold: int, train: Dataset, test: Dataset) -> list[Split]:
        rows_by_share = nested_fractions(
            train.targets(), self.trials.fractions, blocks=train.groups(), seed=seed
        )
        return [
            Split(
                seed=seed,
                fold=fold,
                fraction=share,
                train=train.subset(rows),
                val=self.prepared.val if self.has_fixed_test else None,
                test=test,
                fixed=self.has_fixed_test,
            )
            for share, rows in rows_by_share.items()
        ]

    def _jobs(self) -> list[_Job]:
        """List all trainings in order; fail if a method cannot learn from its images."""
        jobs = []
        for split in self.splits():
            for backbone in self.backbones:
                for name in self.trials.methods:
                    self._require_enough_images(name, split)
                    method = self._method(name, split)
                    key = self._key(split, backbone, method)
                    jobs.append(
                        _Job(
                            split=split,
                            backbone=backbone,
                            method_name=name,
                            method=method,
                            key=key,
                        )
                    )
        return jobs

    def run(self, path: Path, resume: bool) -> tuple[tuple[TrainingResult, ...], float]:
        """Run all trainings, each appended to the file when it ends.

        Returns
        -------
        tuple of TrainingResult
        float
            Seconds that the reused trainings had taken.
        """
        saved = dict(read_results(path))
        jobs = self._jobs()
        reused = [saved[job.key] for job in jobs if job.key in saved]
        if resume:
            text = RESULTS_REUSED.format(reused=len(reused), total=len(jobs), path=path)
            self.notify(Noted(text=text))
        self._announce([job for job in jobs if job.key not in saved])
        results = []
        trained = self._train_all([job for job in jobs if job.key not in saved])
        for number, job in enumerate(jobs, start=1):
            result = saved.get(job.key)
            if result is None:
                step = f"training {number} of {len(jobs)}: {job.title(self.folds)}"
                self.notify(Progressed(step=step, done=number - 1, total=len(jobs)))
                result = replace(next(trained), method=job.method_name, backbone=job.backbone)
                append_result(path, job.key, result)
                for note in result.notes:
                    self.notify(Noted(text=f"{job.method_name}, seed {job.split.seed}: {note}"))
                if number % max(1, len(jobs) // REPORTED_LINES) == 0 or number == len(jobs):
                    cached = " (features cached)" * result.cached
                    line = f"{result.score} in {result.seconds:.1f} s{cached}"
                    count = f"{number}/{len(jobs)} {job.title(self.folds)}"
                    self.notify(Noted(text=f"{count}: {line}"))
            results.append(replace(result, method=job.method_name, backbone=job.backbone))
        return tuple(results), sum(result.seconds for result in reused)

    def _announce(self, jobs: list[_Job]) -> None:
        """Report how many trainings will run, and how long unless they are quick."""
        trainings = [
            PlannedTraining(
                backbone=self.backbones[job.backbone],
                name=(job.backbone, job.method_name, job.split.fraction),
                method=job.method,
                parts=(job.split.train, job.split.val, job.split.test),
            )
            for job in jobs
        ]
        about = self._describe_split()
        self.notify(Progressed(step="estimating the time", done=0, total=0))
        for text in describe_trainings(trainings, self.recipe, self.cache, about=about):
            self.notify(Noted(text=text))
        if self.trials.seeds < FEW_SEEDS:
            self.notify(Noted(text=TOO_FEW_SEEDS.format(seeds=self.trials.seeds)))

    def _train_all(self, jobs: list[_Job]) -> Iterator[TrainingResult]:
        """Run the trainings one after the other here, or several at once on a cluster.

        A task uses as many threads as this process would, because they change how sums are
        rounded.
        """
        shared = (self.backbones, self.recipe, self.cache, threads())
        if is_on():
            return map_tasks(_train, _with_same_threads, shared, jobs, cores=threads())
        return (_train(shared, job) for job in jobs)

    def _require_enough_images(self, name: str, split: Split) -> None:
        """Fail early if a method cannot learn from its images, before others train for hours."""
        try:
            self._parse_method(name, split.seed).check(split.train)
        except DataError as error:
            raise DataError(
                f"{error} These are the {len(split.train)} images of {name} at fraction "
                f"{split.fraction:g}, seed {split.seed}. Pass larger --fractions."
            ) from error

    def _key(self, split: Split, backbone: str, method: Method | None) -> str:
        """Hash of everything that decides a training."""
        parts = (split.train, split.val or split.train.subset(()), split.test)
        values = {
            "recipe": {**self.recipe.as_dict(), "method": None, "backbone": None},
            "method": "auto" if method is None else described(method),
            "weights": dict(self.backbones[backbone].origin),
            "backbone": backbone,
            "split": (split.seed, split.fold, split.fraction, split.fixed),
            "images": [[_identity_of(s) for s in part.samples] for part in parts],
            "targets": [part.targets().tolist() for part in parts],
        }
        return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()

    def summarise(
        self, results: tuple[TrainingResult, ...], seconds: float, command: str
    ) -> Comparison:
        """Compute curves, effects and sentences of the comparison."""
        data, test = self.prepared.data, self.prepared.test
        measure = PRIMARY_METRICS[data.kind]
        share = float(np.mean([result.tested for result in results])) / len(data)
        plan = ScoringPlan(
            test_share=None if self.has_fixed_test else share,
            units=units(len(test), test.groups())[1],
        )
        curves = build_curves(results, plan)
        effects = compare_with_reference(results, plan, measure)
        return Comparison(
            name=data.name,
            task=self.recipe.task,
            measure=measure,
            results=results,
            curves=curves,
            effects=effects,
            sentences=summarise_comparison(curves, effects, measure),
            test=str(plan),
            split=self._describe_split(),
            budget=self.trials.budget(),
            seconds=seconds,
            command=command,
        )

    def _describe_split(self) -> str:
        seeds = f"{self.trials.seeds} seed{'s' * (self.trials.seeds > 1)}"
        if self.has_fixed_test:
            return f"the data's own test part of {len(self.prepared.test)} images, {seeds}"
        if self.folds:
            return f"{self.folds}-fold cross-validation, {seeds}"
        return f"a new split per seed, {self.recipe.test_fraction:.0%} test images, {seeds}"


_Shared = tuple[dict[str, FrozenBackbone], Recipe, Cache, int]
"""Backbones, settings, cache and number of threads of all trainings."""


def _with_same_threads(shared: _Shared) -> _Shared:
    use_threads(shared[-1])
    return shared


def _train(shared: _Shared, job: _Job) -> TrainingResult:
    backbones, recipe, cache, _ = shared
    backbone = backbones[job.backbone]
    return train_on_split(job.split, job.method, backbone=backbone, recipe=recipe, cache=cache)


def _identity_of(sample: Sample) -> tuple[Any, ...]:
    weight = () if sample.weight == 1 else (sample.weight,)
    return (sample.digest, sample.group, *weight)
