"""One training of a comparison: made, judged, and summed up as a cell."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headstart.advice import decide
from headstart.blank import blank
from headstart.cache import Cache
from headstart.comparison import Cell
from headstart.data.samples import Dataset
from headstart.evaluation import evaluate
from headstart.features import Extractor
from headstart.headlines import headline, redrawn, simple_rules
from headstart.methods.method import Method
from headstart.model import TransferModel
from headstart.recipe import Recipe
from headstart.runtime import device
from headstart.training.job import Session
from headstart.training.tuning import held_out
from headstart.trunk import Trunk

__all__ = ["Split", "learned_from", "train_cell", "trained"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The pictures of a cell, the same whatever the method.

    Parameters
    ----------
    seed, fold : int
    fraction : float
        Share of the training pictures that ``train`` holds.
    train, test : Dataset
    val : Dataset or None
    fixed : bool
        Whether every seed is tested on the same pictures.
    """

    seed: int
    fold: int
    fraction: float
    train: Dataset
    val: Dataset | None
    test: Dataset
    fixed: bool


def learned_from(split: Split) -> int:
    """Pictures whose gradients count: those that a method does not hold out to stop on."""
    if split.val is not None:
        return len(split.train)
    return len(held_out(split.train, split.seed)[0])


def train_cell(
    split: Split, method: Method | None, *, trunk: Trunk, recipe: Recipe, cache: Cache
) -> Cell:
    """Train on a split, and judge on its test part.

    Parameters
    ----------
    split : Split
    method : Method or None
        None lets the pictures to learn from choose it, in a race whose time is the cell's.
    trunk : Trunk
    recipe : Recipe
        Everything else.
    cache : Cache

    Raises
    ------
    DataError
        If the method cannot learn from these pictures.
    KeyboardInterrupt
        If the training was stopped: half a training is no cell.

    Examples
    --------
    >>> train_cell(split, method, trunk=trunk, recipe=recipe, cache=cache)  # doctest: +SKIP
    """
    engine = "fp32" if recipe.engine == "auto" else recipe.engine
    extractor = Extractor(cache=cache, engine=engine, device=recipe.device)
    cached = False
    if not split.train.is_dense and (method is None or method.name != "scratch"):
        cached = extractor.outlook(trunk, split.train.samples)[1] == 0
    begin, worked = time.perf_counter(), time.process_time()
    name = "auto" if method is None else method.name
    if method is None:
        found = decide(
            [trunk],
            split.train,
            split.val,
            extractor=extractor,
            budget=recipe.budget,
            seed=split.seed,
        )
        method, trunk = found.method, found.trunk
    method.check(split.train)
    start = blank(
        trunk,
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
        backbone=trunk.spec.name,
        method=name,
        seed=split.seed,
        fold=split.fold,
        fraction=split.fraction,
        pictures=len(split.train),
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
