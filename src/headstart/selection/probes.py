"""Linear probes at several depths of several backbones, on the same held-out images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset
from headstart.data.splits import kfold, nested_fractions
from headstart.features.extractor import Extractor
from headstart.methods.pretraining import random_like
from headstart.selection.candidates import (
    Candidate,
    costs,
    depths,
    expected_features,
    expected_probe,
    probe_of,
)
from headstart.selection.rules import PROBES_SHARE, Judge, Row, best_of, level_of
from headstart.training.logistic_regression import Problem, search_penalty

__all__ = [
    "Entry",
    "RaceContext",
    "best_probe",
    "control_seconds",
    "gained",
    "is_useless",
    "probes",
]

FOLDS = 5

CONTROL_IMAGES = 500
CONTROL_FROM = 200
"""Training images that random weights are tried on, and from which on they are."""

Floats = NDArray[np.float64]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(kw_only=True, eq=False)
class Entry:
    """A contender in a race: what its answer to each image was worth, and its row.

    Parameters
    ----------
    who : Contender
    values : array, shape (n,) or (n, n_classes)
        As ``Judge.worth``; NaN where it has not answered.
    row : Row
    lap_seconds : float
        Of the last fold, one training.
    whole_seconds : float
        Expected of the training on all images.
    """

    who: Candidate
    values: Floats
    row: Row
    lap_seconds: float = 0.0
    whole_seconds: float = 0.0

    @classmethod
    def of(cls, who: Candidate, values: Floats, **more: Any) -> Entry:
        """Enter a contender; ``more`` are fields of its row."""
        row = Row(
            name=who.name,
            backbone=who.backbone.spec.name,
            stage=who.backbone.spec.until,
            method=who.method.name,
            megabytes=who.megabytes,
            **more,
        )
        return cls(who=who, values=values, row=row)

    def note(self, **changes: Any) -> None:
        """Write into its row."""
        self.row = replace(self.row, **changes)


@dataclass(kw_only=True, eq=False)
class RaceContext:
    """What all contenders share: images, folds, time, and what is noted on the way.

    Parameters
    ----------
    train : Dataset
    val : Dataset or None
        What trainings stop on.
    extractor : Extractor
    budget : float
        Seconds.
    seed : int
    told : callable
        Given a line for every step.
    begin : float
    why : list of str
        The decision's reasons so far.
    estimated : float
        Seconds that what has run was expected to take.
    pace : float
        How much longer than expected the first probe took: others are as hard.
    measured : float
        Seconds that went into measuring this machine, so that the rest can be foreseen.
    """

    train: Dataset
    val: Dataset | None
    extractor: Extractor
    budget: float
    seed: int
    told: Callable[[str], None]
    begin: float = field(default_factory=time.perf_counter)
    why: list[str] = field(default_factory=list)
    estimated: float = 0.0
    pace: float = 1.0
    measured: float = 0.0

    def __post_init__(self) -> None:
        self.judge, self.folds = _laid_out(self.train, self.seed)

    @property
    def spent(self) -> float:
        """Seconds since the race began."""
        return time.perf_counter() - self.begin

    def probe_seconds(self, n: int, width: int) -> float:
        """What a probe on n images should take."""
        return self.pace * expected_probe(n, width, len(self.train.classes))

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the block's seconds as measuring: they are over when the estimate is made."""
        begin = self.spent
        yield
        self.measured += self.spent - begin


def probes(ground: RaceContext, backbones: Sequence[FrozenBackbone]) -> list[Entry]:
    """Probe every backbone at several depths; the first one's whole network comes first."""
    found: list[Entry] = []
    train = ground.train
    for backbone in backbones:
        with ground.measuring():
            ends = depths(backbone)
            expected = expected_features(backbone, train.samples, train, extractor=ground.extractor)
        begin = ground.spent
        if found and 0 < ground.budget < begin + expected:
            name = backbone.spec.name
            ground.why.append(f"{name} was left out: looking at the images takes too long.")
            continue
        features, _ = ground.extractor.stage_features(backbone, train.samples, ends)
        looking = (ground.spent - begin) / len(ends)
        for end in reversed(ends):
            begin = ground.spent
            who = probe_of(backbone, end, ground.seed, named=len(backbones) > 1)
            solving = ground.probe_seconds(len(train), who.backbone.width)
            if found and 0 < ground.budget < begin + solving:  # of very many images
                ground.why.append(f"The {who.name} was left out: solving it takes too long.")
                continue
            values = _held_out(train, features[end], ground.folds, ground.judge)
            if not found:
                ground.pace = (ground.spent - begin) / solving
            entry = Entry.of(
                who,
                values,
                images=len(values),
                score=ground.judge.score(values),
                seconds=looking + ground.spent - begin,
                estimated=expected / len(ends) + solving,
            )
            found.append(entry)
    return found


def best_probe(ground: RaceContext, found: list[Entry]) -> Entry:
    """The first one, unless another is better beyond chance."""
    first, *others = found
    level = level_of(PROBES_SHARE, len(others))
    gains = []
    for one in others:
        more = ground.judge.gain(one.values, first.values, level=level)
        one.note(against=first.row.name, gain=more.interval, distinguishable=more.distinguishable)
        gains.append(more)
    place = best_of(gains)
    if place is not None:
        best = others[place]
        ground.why.append(
            f"The {best.row.name} is better than the {first.row.name}: {gained(best)}."
        )
        return best
    if others:
        ground.why.append(f"No other probe is better than the {first.row.name}, beyond chance.")
    return first


def is_useless(ground: RaceContext, backbone: FrozenBackbone) -> bool:
    """Whether the same network with random weights probes as well: the source is no help."""
    train = ground.train
    with ground.measuring():
        taken = control_seconds(ground, backbone)
    if not taken:
        return False
    if len(train) > CONTROL_IMAGES:
        share = CONTROL_IMAGES / len(train)
        rows = nested_fractions(train.targets(), (share,), blocks=train.groups(), seed=ground.seed)
        train = train.subset(rows[share])
    begin = ground.spent
    if begin + taken > ground.budget:  # then no training fits either
        return False
    ground.estimated += taken
    judge, folds = _laid_out(train, ground.seed)
    learned, drawn = (
        _held_out(train, ground.extractor.features(one, train.samples).values, folds, judge)
        for one in (backbone, random_like(backbone.spec, seed=ground.seed))
    )
    found = judge.gain(learned, drawn, level=0.95)
    reached = [judge.score(values).value for values in (drawn, learned)]
    told = "{:.3f} with random weights, {:.3f} with the learned ones".format(*reached)
    ground.told(f"control, a probe on {len(train)} images: {told}, {ground.spent - begin:.1f} s")
    if found.distinguishable and found.interval.value > 0:
        return False
    ground.why.append(
        f"What the backbone has learned is of no use here: a probe on {len(train)} images "
        f"reaches {told}. So training from scratch takes part."
    )
    return True


def control_seconds(ground: RaceContext, backbone: FrozenBackbone) -> float:
    """What trying random weights should take; 0 where they are not tried."""
    train, count = ground.train, min(len(ground.train), CONTROL_IMAGES)
    if len(train) < CONTROL_FROM:
        return 0.0
    looking = count * costs(backbone, train, ground.extractor).seconds
    return looking + 2 * ground.probe_seconds(count, backbone.width)


def gained(one: Entry) -> str:
    """Its gain, in a few characters."""
    found = one.row.gain
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]" if found else "not measured"


def _laid_out(data: Dataset, seed: int) -> tuple[Judge, Sequence[Fold]]:
    groups, targets = data.groups(), data.targets()
    judge = Judge(kind=data.kind, targets=targets, groups=groups)
    return judge, kfold(targets, FOLDS, blocks=groups, seed=seed)


def _held_out(data: Dataset, features: Any, folds: Sequence[Fold], judge: Judge) -> Floats:
    """What a probe's answers out of fold are worth."""
    problem = Problem.of(judge.targets, n_classes=len(data.classes), kind=data.kind)
    found = search_penalty(features, problem, folds, weighted=problem.is_weighted("auto"))
    return judge.worth(np.asarray(found.held_out, dtype=np.float64))
