"""One training of a comparison: made, judged, and summed up as a cell."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.weights import locate
from headstart.cache import Cache
from headstart.data.dataset import Dataset
from headstart.data.splits import nested_fractions, repeats
from headstart.errors import DataError
from headstart.evaluation.classification import evaluate
from headstart.evaluation.comparison import (
    Cell,
    Comparison,
    ScoringPlan,
    curves,
    effects,
    sentences,
)
from headstart.evaluation.summary import MEASURES, headline, redrawn, simple_rules
from headstart.features.extractor import Extractor
from headstart.methods.method import Method, described
from headstart.metrics.confidence_intervals import Interval, units
from headstart.models.build import create_model
from headstart.models.transfer_model import TransferModel
from headstart.reports.comparison import draw, render_page
from headstart.runtime import device
from headstart.selection.race import decide
from headstart.training.job import Session
from headstart.training.trainer import held_out
from headstart.workflows.events import DataReady, JsonLog, Noted, Observer, Progressed, progress_of
from headstart.workflows.recipe import Recipe, Trials, in_steps, method_named
from headstart.workflows.resolve import checked, read, settled
from headstart.workflows.run_folder import (
    alone,
    claim,
    hidden_folder,
    resumable,
    told_where,
    wanted_folder,
)

__all__ = [
    "Split",
    "add_cell",
    "compare",
    "learned_from",
    "read_cells",
    "train_cell",
    "trained",
    "write",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The images of a cell, the same whatever the method.

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


def learned_from(split: Split) -> int:
    """Images whose gradients count: those that a method does not hold out to stop on."""
    if split.val is not None:
        return len(split.train)
    return len(held_out(split.train, split.seed)[0])


def train_cell(
    split: Split, method: Method | None, *, backbone: FrozenBackbone, recipe: Recipe, cache: Cache
) -> Cell:
    """Train on a split, and judge on its test part.

    Parameters
    ----------
    split : Split
    method : Method or None
        None lets the images to learn from choose it, in a race whose time is the cell's.
    backbone : FrozenBackbone
    recipe : Recipe
        Everything else.
    cache : Cache

    Raises
    ------
    DataError
        If the method cannot learn from these images.
    KeyboardInterrupt
        If the training was stopped: half a training is no cell.

    Examples
    --------
    >>> train_cell(split, method, backbone=backbone, recipe=recipe, cache=cache)  # doctest: +SKIP
    """
    engine = "fp32" if recipe.engine == "auto" else recipe.engine
    extractor = Extractor(cache=cache, engine=engine, device=recipe.device)
    cached = False
    if not split.train.is_dense and (method is None or method.name != "scratch"):
        cached = extractor.outlook(backbone, split.train.samples)[1] == 0
    begin, worked = time.perf_counter(), time.process_time()
    name = "auto" if method is None else method.name
    if method is None:
        found = decide(
            [backbone],
            split.train,
            split.val,
            extractor=extractor,
            budget=recipe.budget,
            seed=split.seed,
        )
        method, backbone = found.method, found.backbone
    method.check(split.train)
    start = create_model(
        backbone,
        split.train,
        head=recipe.head,
        size=recipe.size,
        seed=split.seed,
        offline=recipe.offline,
    )
    model = method.fit(start, split.train, split.val, extractor=extractor, session=Session())
    seconds, worked = time.perf_counter() - begin, time.process_time() - worked
    if model.record.get("interrupted"):
        raise KeyboardInterrupt
    evaluation = evaluate(model, split.test, extractor=extractor, seed=recipe.seed)
    return Cell(
        backbone=backbone.spec.name,
        method=name,
        seed=split.seed,
        fold=split.fold,
        fraction=split.fraction,
        images=len(split.train),
        tested=len(split.test),
        score=evaluation.metrics[headline(evaluation)],
        seconds=seconds,
        cached=cached,
        cpu_seconds=worked,
        gpu_seconds=seconds if device(recipe.device) == "cuda" else 0.0,
        rules=simple_rules(evaluation, split.train),
        draws=redrawn(evaluation, split.test) if split.fixed else (),
        **trained(model),
    )


def trained(model: TransferModel) -> dict[str, Any]:
    """What learned: in words, how many parameters, and in how many steps; the fields of a cell."""
    state = {} if model.head is None else model.head.state()
    head = sum(int(values.size) for values in state.values())
    stages = model.record.get("plan", {}).get("stages")
    if stages is None:
        return {"trains": "head, solved", "parameters": head, "steps": 0}
    return {
        "trains": _stages_in_words(stages),
        "parameters": head + sum(row["trainable"] for row in stages),
        "steps": int(model.record.get("steps", 0)),
    }


def _stages_in_words(stages: list[Mapping[str, Any]]) -> str:
    """Name the stages that learn with the head.

    >>> _stages_in_words([{"stage": "stem", "trains": False}, {"stage": "layer1", "trains": True}])
    'layer1 and head'
    """
    names = [row["stage"] for row in stages if row["trains"]]
    if not names:
        return "head"
    if len(names) == len(stages):
        return "everything"
    return f"{names[0]} and head" if len(names) == 1 else f"{names[0]} to {names[-1]} and head"


def add_cell(path: Path, key: str, cell: Cell) -> None:
    """Add a finished cell to the file, at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, "cell": cell.as_dict()}) + "\n")


def read_cells(path: Path) -> Iterator[tuple[str, Cell]]:
    """Cells of a comparison that was stopped; a line that a kill cut short is left out."""
    if not path.is_file():
        return
    text = path.read_bytes().decode("utf-8", "replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # what comes next begins on a line of its own
        path.write_text(whole, encoding="utf-8")
    for line in whole.splitlines():
        entry = json.loads(line)
        given = dict(entry["cell"])
        score: dict[str, Any] = {
            k: float("nan") if v is None else v for k, v in given.pop("score").items()
        }
        draws = tuple(float("nan") if v is None else v for v in given.pop("draws"))
        yield entry["key"], Cell(**given, score=Interval(**score), draws=draws)


def write(found: Comparison, folder: Path) -> None:
    """Write compare.json and table.csv."""
    text = json.dumps(found.as_dict(), indent=1, allow_nan=False)
    (folder / "compare.json").write_text(text, encoding="utf-8")
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        score = (found.measure, "low", "high")
        costs = ("trains", "parameters", "steps", "seconds", "cpu_seconds", "gpu_seconds")
        rules = list(dict.fromkeys(n for c in found.curves for at in c.points for n in at.rules))
        rows.writerow(("backbone", "method", "fraction", "images", *score, *rules, *costs))
        for curve in found.curves:
            for at in curve.points:
                s, simple = at.score, [at.rules.get(name, "") for name in rules]
                cells = (at.fraction, at.images, s.value, s.low, s.high, *simple)
                seconds = (at.seconds, at.cpu_seconds, at.gpu_seconds)
                spent = (at.trains, at.parameters, at.steps, *(round(t, 3) for t in seconds))
                rows.writerow((curve.backbone, curve.method, *cells, *spent))


SMALL = 200
"""Images below which a single split is too much a matter of luck."""

CELLS = "cells.jsonl"

BEGUN_ANEW = (
    "Begun anew: the {count} trainings kept in {folder} were not asked for (--resume takes them "
    "over), and are deleted."
)

TAKEN_OVER = "{kept} of {all} trainings are taken over from {path}."

LINES = 40
"""Trainings that are told one by one; of more, some."""


def compare(
    source: str | Path | Dataset,
    trials: Trials | None = None,
    *,
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    cache: Cache | None = None,
    observer: Observer | None = None,
    command: str = "",
    resume: bool = False,
) -> tuple[Comparison, Path]:
    """Train every method on every backbone, seed and fraction, and say what differs.

    In a seed, fold and fraction all methods learn from the same images and are tested on the
    same. The test part is the author's where there is one; else every seed splits anew.

    Parameters
    ----------
    source : str, Path or Dataset
        As for `headstart.run.fit`.
    trials : Trials, optional
    recipe : Recipe, optional
        Everything else; its backbone and method have no say.
    out : str or Path, optional
        By default ``runs/compare-<name>``.
    cache : Cache, optional
    observer : callable, optional
    command : str
    resume : bool
        Take the cells over that ``<out>.partial/`` holds.

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
        If an argument cannot be meant.

    Examples
    --------
    >>> found, folder = compare("photos/", Trials(methods=("scratch", "probe")))  # doctest: +SKIP
    """
    trials, cache, begin = trials or Trials(), cache or Cache(), time.perf_counter()
    recipe = recipe or Recipe()
    wanted = wanted_folder(out, source)
    if out is None:
        wanted = wanted.with_name(f"compare-{wanted.name}")
    kept = resumable(wanted)
    with ExitStack() as held:
        held.enter_context(alone(kept))
        folder = held.enter_context(hidden_folder(wanted))
        log = held.enter_context(JsonLog(folder / "log.jsonl"))
        tell = _told(log, observer)
        work = _Work(source, trials, recipe, cache, tell)
        if not resume and (count := len(dict(read_cells(kept / CELLS)))):
            tell(Noted(text=BEGUN_ANEW.format(count=count, folder=kept)))
            (kept / CELLS).unlink()
        cells, earlier = work.cells(kept / CELLS, resume)
        found = work.summed(cells, earlier + time.perf_counter() - begin, command)
        log.close()
        with told_where(wanted):
            write(found, folder)
            draw(found, folder / "compare.png")
            (folder / "compare.html").write_text(render_page(found), encoding="utf-8")
            final = claim(folder, wanted)
            (kept / CELLS).unlink(missing_ok=True)
    return found, final


class _Work:
    """What all cells share: the images, the backbones, and who is told."""

    def __init__(
        self,
        source: str | Path | Dataset,
        trials: Trials,
        recipe: Recipe,
        cache: Cache,
        tell: Observer,
    ) -> None:
        data = read(source, recipe)
        self.recipe = settled(recipe, data)
        self.trials, self.cache, self.tell = trials, cache, tell
        for name in trials.methods:  # wrong ones are said before anything is computed
            self._named(name, 0)
        self.backbones = {name: self._trunk(name) for name in trials.backbones}
        begin = time.perf_counter()
        self.prepared = checked(data, self.recipe, cache, progress_of(tell))
        tell(DataReady(prepared=self.prepared, seconds=time.perf_counter() - begin))
        parts = {sample.split for sample in data.samples}
        self.fixed = "train" in parts and len(parts) > 1
        few = len(data) < SMALL and not data.is_dense
        folds = 5 * few if trials.folds is None else trials.folds
        self.folds = 0 if self.fixed else folds

    def _trunk(self, name: str) -> FrozenBackbone:
        spec = resolve(name, offline=self.recipe.offline)
        return FrozenBackbone.read(spec, locate(spec, offline=self.recipe.offline))

    def _named(self, name: str, seed: int) -> Method:
        return method_named(name, self.recipe.task, seed=seed, epochs=self.trials.epochs)

    def _method(self, name: str, split: Split) -> Method | None:
        if name == "auto" and not split.train.is_dense:
            return None  # a race is part of the cell
        method = self._named(name, split.seed)
        if self.trials.steps is None:
            return method
        return in_steps(method, self.trials.steps, learned_from(split), split.train.kind)

    def splits(self) -> list[Split]:
        seeds = range(self.recipe.seed, self.recipe.seed + self.trials.seeds)
        data = self.prepared.data
        if self.fixed:
            parts = [(s, 0, self.prepared.train, self.prepared.test) for s in seeds]
        else:
            parts = [
                (one.seed, one.fold, data.subset(one.train), data.subset(one.test))
                for one in repeats(
                    data.targets(),
                    seeds=list(seeds),
                    folds=self.folds,
                    fraction=self.recipe.test_fraction,
                    blocks=data.groups(),
                )
            ]
        found = []
        for seed, fold, train, test in parts:
            shares = nested_fractions(
                train.targets(), self.trials.fractions, blocks=train.groups(), seed=seed
            )
            val = self.prepared.val if self.fixed else None
            found += [
                Split(
                    seed=seed,
                    fold=fold,
                    fraction=share,
                    train=train.subset(rows),
                    val=val,
                    test=test,
                    fixed=self.fixed,
                )
                for share, rows in shares.items()
            ]
        return found

    def cells(self, path: Path, resume: bool) -> tuple[tuple[Cell, ...], float]:
        """Every cell, from the file where it is there, and what those of the file took.

        Each is added as it is finished.
        """
        known = dict(read_cells(path))
        jobs = [
            (split, backbone, name)
            for split in self.splits()
            for backbone in self.trials.backbones
            for name in self.trials.methods
        ]
        self._require_enough(jobs)
        methods = [self._method(name, split) for split, _, name in jobs]
        keys = [self._key(job[0], job[1], m) for job, m in zip(jobs, methods, strict=True)]
        earlier = [known[key].seconds for key in keys if key in known]
        if resume:
            self.tell(Noted(text=TAKEN_OVER.format(kept=len(earlier), all=len(jobs), path=path)))
        found = []
        for number, (job, method, key) in enumerate(zip(jobs, methods, keys, strict=True), start=1):
            split, backbone, name = job
            cell = known.get(key)
            if cell is None:
                made = train_cell(
                    split,
                    method,
                    backbone=self.backbones[backbone],
                    recipe=self.recipe,
                    cache=self.cache,
                )
                cell = replace(made, method=name, backbone=backbone)
                add_cell(path, key, cell)
                if number % max(1, len(jobs) // LINES) == 0 or number == len(jobs):
                    self.tell(Noted(text=_line(cell, number, len(jobs), self.folds)))
            found.append(replace(cell, method=name, backbone=backbone))
            self.tell(Progressed(step="cells", done=number, total=len(jobs)))
        return tuple(found), sum(earlier)

    def _require_enough(self, jobs: list[tuple[Split, str, str]]) -> None:
        """Refuse what some method cannot learn from before another has learned for an hour."""
        for split, _, name in jobs:
            try:
                self._named(name, split.seed).check(split.train)
            except DataError as error:
                raise DataError(
                    f"{error} This is what {name} would get at fraction {split.fraction:g} of "
                    f"seed {split.seed}: {len(split.train)} images; do ask for larger fractions."
                ) from error

    def _key(self, split: Split, backbone: str, method: Method | None) -> str:
        parts = (split.train, split.val or split.train.subset(()), split.test)
        decides = {
            "recipe": {**self.recipe.as_dict(), "method": None, "backbone": None},
            "method": "auto" if method is None else described(method),
            "weights": dict(self.backbones[backbone].origin),
            "backbone": backbone,
            "split": (split.seed, split.fold, split.fraction, split.fixed),
            "images": [[(s.digest, s.group) for s in part.samples] for part in parts],
            "targets": [part.targets().tolist() for part in parts],
        }
        return hashlib.sha256(json.dumps(decides, default=str).encode()).hexdigest()

    def summed(self, cells: tuple[Cell, ...], seconds: float, command: str) -> Comparison:
        data, test = self.prepared.data, self.prepared.test
        measure = MEASURES[data.kind]
        share = float(np.mean([c.tested for c in cells])) / len(data)
        judging = ScoringPlan(
            test_share=None if self.fixed else share, units=units(len(test), test.groups())[1]
        )
        shown = curves(cells, judging)
        found = effects(cells, judging, measure)
        return Comparison(
            name=data.name,
            task=self.recipe.task,
            measure=measure,
            cells=cells,
            curves=shown,
            effects=found,
            sentences=sentences(shown, found, measure),
            test=str(judging),
            split=self._split_in_words(),
            budget=self.trials.budget(),
            seconds=seconds,
            command=command,
        )

    def _split_in_words(self) -> str:
        seeds = f"{self.trials.seeds} seed{'s' * (self.trials.seeds > 1)}"
        if self.fixed:
            return f"the author's test part of {len(self.prepared.test)} images, {seeds}"
        if self.folds:
            return f"{self.folds}-fold cross-validation, {seeds}"
        return f"a new split a seed, {self.recipe.test_fraction:.0%} tested on, {seeds}"


def _told(log: JsonLog, observer: Observer | None) -> Observer:
    def tell(event: Any) -> None:
        log(event)
        if observer is not None:
            observer(event)

    return tell


def _line(cell: Cell, number: int, total: int, folds: int) -> str:
    part = f"seed {cell.seed}, fold {cell.fold + 1}" if folds else f"seed {cell.seed}"
    return (
        f"{number}/{total} {cell.backbone} {cell.method}, {part}, {cell.fraction:.0%}: "
        f"{cell.score} in {cell.seconds:.1f} s{' (features cached)' * cell.cached}"
    )
