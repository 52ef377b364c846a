"""What a comparison of methods has found, as values that a table, a page or a file may show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from headstart.metrics.confidence_intervals import Interval
from headstart.metrics.significance import Contrast, corrected_resampled, hierarchical, holm

__all__ = [
    "Cell",
    "Comparison",
    "Curve",
    "Effect",
    "Point",
    "ScoringPlan",
    "curves",
    "effects",
    "sentences",
]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training and its score.

    Parameters
    ----------
    backbone, method : str
        As they were asked for.
    seed : int
        Decides the split, which images are learned from, and the training.
    fold : int
        Of repeated cross-validation; 0 where there is one test part a seed.
    fraction : float
        Share of the training images that were learned from.
    images, tested : int
        Learned from, and scored on.
    score : Interval
        The measure on the test part; its interval knows nothing of other seeds.
    seconds : float
        Of training, features included where they had to be computed.
    cached : bool
        Whether the backbone's answers were there already, so that ``seconds`` is without them.
    cpu_seconds, gpu_seconds : float
        What the processor worked and the GPU was held: a proxy of energy, no measurement of it.
    trains : str
        What learned, such as ``head, solved`` or ``layer4 and head``.
    parameters : int
        That learned.
    steps : int
        Of gradient descent that were taken; 0 where a solver did it.
    rules : mapping of str to float
        What simple rules reach on the same test images, by their names, in the same measure.
    draws : tuple of float
        The score on resampled test images, the same resamples for all cells of a comparison;
        empty where every seed has a test part of its own.
    """

    backbone: str
    method: str
    seed: int
    fold: int = 0
    fraction: float
    images: int
    tested: int
    score: Interval
    seconds: float
    cached: bool = False
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    trains: str = ""
    parameters: int = 0
    steps: int = 0
    rules: Mapping[str, float] = field(default_factory=dict)
    draws: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return _plain(asdict(self))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method's mean score over seeds at one number of images.

    Parameters
    ----------
    fraction : float
    images : int
        Learned from; the mean over seeds, rounded.
    score : Interval
    seconds, cpu_seconds, gpu_seconds : float
        Mean of a training.
    trains : str
        What learned.
    parameters, steps : int
        That learned, and of gradient descent that were taken; means, rounded.
    rules : mapping of str to float
        Mean score of simple rules on the same test images.
    scores : tuple of float
        Of every seed (and fold).
    """

    fraction: float
    images: int
    score: Interval
    seconds: float
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    trains: str = ""
    parameters: int = 0
    steps: int = 0
    rules: Mapping[str, float] = field(default_factory=dict)
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A method on a backbone, at every number of images, few first.

    Parameters
    ----------
    name : str
        Such as ``probe``, with the backbone in front where there are several.
    backbone, method : str
    points : tuple of Point
    """

    name: str
    backbone: str
    method: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One curve against the reference, at one number of images.

    Parameters
    ----------
    name, reference : str
        Names of the curves.
    fraction : float
    difference : Interval
        Score of ``name`` less that of ``reference``, on the same images; of this pair alone.
    p_value : float
        After Holm's correction over all pairs; NaN where the data cannot tell.
    distinguishable : bool
        Whether the two are told apart, all pairs considered.
    sentence : str
        The same in words.
    """

    name: str
    reference: str
    fraction: float
    difference: Interval
    p_value: float
    distinguishable: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison has found.

    Parameters
    ----------
    name : str
        Of the data.
    task : str
        classification, detection or segmentation.
    measure : str
        In words, such as ``accuracy``; more is better.
    cells : tuple of Cell
    curves : tuple of Curve
        The first is the reference.
    effects : tuple of Effect
        Of every other curve at every fraction.
    sentences : tuple of str
        The findings, the most important first.
    test : str
        How differences were judged, in words.
    split : str
        What was tested on, in words.
    budget : str
        What all trainings were given, in words.
    seconds : float
        Of the whole comparison.
    command : str
        How it was started.
    """

    name: str
    task: str
    measure: str
    cells: tuple[Cell, ...]
    curves: tuple[Curve, ...]
    effects: tuple[Effect, ...]
    sentences: tuple[str, ...]
    test: str
    split: str
    budget: str
    seconds: float
    command: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON: NaN becomes None.

        Examples
        --------
        >>> one = Comparison(
        ...     name="a", task="classification", measure="accuracy", cells=(), curves=(),
        ...     effects=(), sentences=(), test="", split="", budget="", seconds=1.0,
        ... )
        >>> one.as_dict()["curves"]
        []
        """
        return _plain(asdict(self))  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


LEVEL = 0.95

ONE_SPLIT = (
    "One training of each tells nothing of how much another one would differ: no difference has an "
    "interval. Do ask for more seeds, or for folds."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringPlan:
    """How repeated scores are judged.

    Parameters
    ----------
    test_share : float or None
        Share that each split tests on, where splits differ; None for one test part for all.
    units : int
        Images, or groups, of that one test part.
    """

    test_share: float | None = None
    units: int = 0

    def contrast(self, first: Sequence[Cell], second: Sequence[Cell] = ()) -> Contrast:
        """Judge the mean score, or the mean lead over the second's cells of the same splits."""
        values = np.asarray([cell.score.value for cell in first])
        if second:
            values = values - [cell.score.value for cell in second]
        known = np.isfinite(values)  # a measure may be undefined on a test part, such as no object
        if not known.any():
            return Contrast(value=math.nan, error=math.nan, freedom=0, method="undefined")
        values = values[known]
        if self.test_share is not None:
            return corrected_resampled(values, test_share=self.test_share)
        draws = np.asarray([cell.draws for cell in first])
        if second:
            draws = draws - np.asarray([cell.draws for cell in second])
        return hierarchical(values, draws[known], units=self.units)

    def __str__(self) -> str:
        if self.test_share is not None:
            return (
                "corrected resampled t-test over splits (Nadeau and Bengio 2003), Holm's "
                "correction over all pairs"
            )
        return (
            "paired bootstrap over images, with the variance between seeds added, Holm's "
            "correction over all pairs"
        )


def curves(cells: Iterable[Cell], judging: ScoringPlan) -> tuple[Curve, ...]:
    """Sum up cells by backbone, method and fraction, in the order they first appear.

    >>> score = Interval(value=0.5, low=0.4, high=0.6, method="wilson")
    >>> cells = [
    ...     Cell(
    ...         backbone="b", method="probe", seed=s, fraction=1.0, images=8, tested=2,
    ...         score=score, seconds=1.0,
    ...     )
    ...     for s in (0, 1)
    ... ]
    >>> curves(cells, ScoringPlan(test_share=0.2))[0].points[0].images
    8
    """
    table = _table(cells)
    short = _short({backbone for backbone, _ in table})
    return tuple(
        Curve(
            name=f"{short[backbone]} {method}" if len(short) > 1 else method,
            backbone=backbone,
            method=method,
            points=tuple(_point(by[share], judging) for share in sorted(by)),
        )
        for (backbone, method), by in table.items()
    )


def effects(cells: Iterable[Cell], judging: ScoringPlan, measure: str) -> tuple[Effect, ...]:
    """Hold every curve against the first one at each fraction, on the same splits."""
    cells = tuple(cells)
    table, shown = _table(cells), curves(cells, judging)
    reference, *others = shown
    pairs = []
    for curve in others:
        ours = table[curve.backbone, curve.method]
        theirs = table[reference.backbone, reference.method]
        shares = sorted(set(ours) & set(theirs))
        pairs += [(curve, at, judging.contrast(ours[at], theirs[at])) for at in shares]
    corrected = holm([found.p_value for _, _, found in pairs])
    return tuple(
        _effect(curve, reference, share, (found, float(p)), measure)
        for (curve, share, found), p in zip(pairs, corrected, strict=True)
    )


def sentences(shown: Sequence[Curve], found: Sequence[Effect], measure: str) -> tuple[str, ...]:
    """Say what was found: all images first, then fewer, then what few images reach."""
    told = [e.sentence for e in sorted(found, key=lambda e: -e.fraction)]
    alone = all(len(at.scores) == 1 for curve in shown for at in curve.points)
    if alone and found and all(math.isnan(e.difference.low) for e in found):
        told.insert(0, ONE_SPLIT)
    return (*told, *filter(None, (_saved(curve, measure) for curve in shown)))


def _saved(curve: Curve, measure: str) -> str:
    """How much of the best a curve's fewest images reach."""
    few, most = curve.points[0], curve.points[-1]
    if few is most or not most.score.value > 0 or math.isnan(few.score.value):
        return ""
    return (
        f"{curve.name}: with {few.fraction:.0%} of the images it reaches "
        f"{few.score.value / most.score.value:.0%} of the {measure} that it has with "
        f"{_all(most.fraction)} ({few.score.value:.3f} against {most.score.value:.3f})."
    )


def _short(backbones: set[str]) -> dict[str, str]:
    """Backbones by the names of their files, where these tell them apart.

    >>> sorted(_short({"file:some/where/own.safetensors@timm/resnet18", "a/b"}).values())
    ['a/b', 'own.safetensors']
    """
    files = {one: one.removeprefix("file:").partition("@")[0] for one in backbones}
    names = {
        one: PurePath(file).name if one.startswith("file:") else one for one, file in files.items()
    }
    return names if len(set(names.values())) == len(names) else {one: one for one in backbones}


def _table(cells: Iterable[Cell]) -> dict[tuple[str, str], dict[float, list[Cell]]]:
    table: dict[tuple[str, str], dict[float, list[Cell]]] = {}
    for cell in cells:
        by = table.setdefault((cell.backbone, cell.method), {})
        by.setdefault(cell.fraction, []).append(cell)
    for by in table.values():
        for members in by.values():
            members.sort(key=lambda cell: (cell.seed, cell.fold))
    return table


def _point(cells: Sequence[Cell], judging: ScoringPlan) -> Point:
    def mean(name: str) -> float:
        return float(np.mean([getattr(cell, name) for cell in cells]))

    score = judging.contrast(cells).interval(LEVEL)
    if math.isnan(score.low):  # no spread to learn from: what a single test part can say
        single = cells[0].score
        score = replace(single, value=score.value)
    low, high = max(score.low, 0.0), min(score.high, 1.0)
    return Point(
        fraction=cells[0].fraction,
        images=round(mean("images")),
        score=replace(score, low=low, high=high),
        seconds=mean("seconds"),
        cpu_seconds=mean("cpu_seconds"),
        gpu_seconds=mean("gpu_seconds"),
        trains=_trained(cells),
        parameters=round(mean("parameters")),
        steps=round(mean("steps")),
        rules={
            name: float(np.mean([cell.rules.get(name, math.nan) for cell in cells]))
            for name in cells[0].rules
        },
        scores=tuple(cell.score.value for cell in cells),
    )


def _trained(cells: Sequence[Cell]) -> str:
    """What learned; how often each, where a race did not always choose the same."""
    every = Counter(cell.trains for cell in cells).most_common()
    if len(every) == 1:
        return every[0][0]
    return "; ".join(f"{what} ({count} of {len(cells)})" for what, count in every)


def _effect(
    curve: Curve, reference: Curve, share: float, found: tuple[Contrast, float], measure: str
) -> Effect:
    contrast, p = found
    gap = contrast.interval(LEVEL)
    apart = bool((gap.low > 0 or gap.high < 0) and p < 1 - LEVEL)
    ours, theirs = (_at(one, share) for one in (curve, reference))
    return Effect(
        name=curve.name,
        reference=reference.name,
        fraction=share,
        difference=gap,
        p_value=p,
        distinguishable=apart,
        sentence=(
            f"{curve.name} {_mean(ours)} against {reference.name} {_mean(theirs)} {measure} on "
            f"{_all(share)}: {_shown(gap, '+')}, "
            f"{'told apart' if apart else 'cannot be told apart'}."
        ),
    )


def _at(curve: Curve, share: float) -> Interval:
    return next(point.score for point in curve.points if point.fraction == share)


def _mean(one: Interval) -> str:
    return "undefined" if math.isnan(one.value) else f"{one.value:.3f}"


def _shown(one: Interval, sign: str) -> str:
    if math.isnan(one.value):
        return "undefined"
    bounds = "[unknown]"
    if not math.isnan(one.low):
        bounds = f"[{one.low:{sign}.3f}, {one.high:{sign}.3f}]"
    return f"{one.value:{sign}.3f} {bounds}"


def _all(share: float) -> str:
    return "all images" if share == 1 else f"{share:.0%} of the images"
