"""Comparison of methods: training results, learning curves, effects and their tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from headstart.metrics.confidence_intervals import Interval
from headstart.metrics.significance import Contrast, corrected_resampled, hierarchical, holm
from headstart.metrics.validation import to_jsonable

__all__ = [
    "Comparison",
    "Curve",
    "Effect",
    "Point",
    "ScoringPlan",
    "TrainingResult",
    "build_curves",
    "compare_with_reference",
    "summarise_comparison",
]

LEVEL = 0.95
ONE_SPLIT = (
    "Each method was trained once, so differences have no interval. Repeat the comparison with "
    "more seeds, such as --seeds 3, or with --folds 5."
)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Score and costs of one training.

    Parameters
    ----------
    backbone, method : str
        As requested.
    seed : int
        Seed of the split, of the selected training images, and of the training.
    fold : int
        Fold of repeated cross-validation; 0 if there is one test set per seed.
    fraction : float
        Share of the training images that were used.
    images, tested : int
        Number of training images and of test images.
    score : Interval
        The measure on the test set; the interval does not include the variance between seeds.
    seconds : float
        Duration of the training, with the features that had to be computed.
    cached : bool
        Whether all features came from the cache, so that ``seconds`` does not include them.
    cpu_seconds, gpu_seconds : float
        Busy time of the CPU and reserved time of the GPU; a proxy of the energy.
    trains : str
        Trained parts, such as ``layer4 and head``.
    parameters : int
        Number of trained parameters.
    steps : int
        Gradient steps; 0 if a solver fitted the head.
    rules : mapping of str to float
        Scores of simple rules on the same test images, by name, in the same measure.
    draws : tuple of float
        Scores on resampled test images, with the same resamples for all trainings of a
        comparison. Empty if every seed has its own test set.
    notes : tuple of str
        Messages of the training, such as a divergence.
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
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        values: dict[str, Any] = to_jsonable(self)
        return values


@dataclass(frozen=True, kw_only=True)
class Point:
    """Mean score of a method over seeds, at one number of images.

    Parameters
    ----------
    fraction : float
    images : int
        Number of training images; the mean over seeds, rounded.
    score : Interval
    seconds, cpu_seconds, gpu_seconds : float
        Mean per training.
    trains : str
        Trained parts.
    parameters, steps : int
        Trained parameters and gradient steps; means, rounded.
    rules : mapping of str to float
        Mean scores of simple rules on the same test images.
    scores : tuple of float
        Score of every seed (and fold).
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
    """Learning curve of a method on a backbone, the fewest images first.

    Parameters
    ----------
    name : str
        Display name, such as ``probe``; with several backbones it begins with the backbone.
    backbone, method : str
    points : tuple of Point
    """

    name: str
    backbone: str
    method: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Difference between a curve and the reference, at one number of images.

    Parameters
    ----------
    name, reference : str
        Names of the curves.
    fraction : float
    difference : Interval
        Score of ``name`` minus score of ``reference`` on the same images. The interval is not
        corrected for other pairs.
    p_value : float
        After Holm's correction over all pairs; NaN if the data cannot decide.
    significant : bool
        Whether the two are significantly different after the correction.
    sentence : str
        The result as a sentence.
    """

    name: str
    reference: str
    fraction: float
    difference: Interval
    p_value: float
    significant: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of a comparison.

    Parameters
    ----------
    name : str
        Name of the data.
    task : str
        classification, detection or segmentation.
    measure : str
        Display name of the measure, such as ``accuracy``; higher is better.
    results : tuple of TrainingResult
    curves : tuple of Curve
        The first is the reference.
    effects : tuple of Effect
        One effect per other curve and fraction.
    sentences : tuple of str
        Summary, the most important sentence first.
    test : str
        Description of the statistical test.
    split : str
        Description of the test sets.
    budget : str
        Description of the training budget, which is the same for all trainings.
    seconds : float
        Duration of the comparison.
    command : str
        Command that started it.
    """

    name: str
    task: str
    measure: str
    results: tuple[TrainingResult, ...]
    curves: tuple[Curve, ...]
    effects: tuple[Effect, ...]
    sentences: tuple[str, ...]
    test: str
    split: str
    budget: str
    seconds: float
    command: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types for JSON: NaN becomes None.

        Examples
        --------
        >>> one = Comparison(
        ...     name="a", task="classification", measure="accuracy", results=(), curves=(),
        ...     effects=(), sentences=(), test="", split="", budget="", seconds=1.0,
        ... )
        >>> one.as_dict()["curves"]
        []
        """
        values: dict[str, Any] = to_jsonable(self)
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringPlan:
    """Statistical test of repeated scores.

    Parameters
    ----------
    test_share : float or None
        Share of test images per split, if splits differ; None if all trainings share a test set.
    units : int
        Number of images, or groups, of the shared test set.
    """

    test_share: float | None = None
    units: int = 0

    def contrast(
        self, first: Sequence[TrainingResult], second: Sequence[TrainingResult] = ()
    ) -> Contrast:
        """Estimate the mean score, or the mean lead over a second method on the same splits."""
        values = np.asarray([result.score.value for result in first])
        if second:
            values = values - [result.score.value for result in second]
        is_defined = np.isfinite(values)  # a test set without objects has no score
        if not is_defined.any():
            return Contrast(value=math.nan, error=math.nan, freedom=0, method="undefined")
        values = values[is_defined]
        if self.test_share is not None:
            return corrected_resampled(values, test_share=self.test_share)
        draws = np.asarray([result.draws for result in first])
        if second:
            draws = draws - np.asarray([result.draws for result in second])
        return hierarchical(values, draws[is_defined], units=self.units)

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


def build_curves(results: Iterable[TrainingResult], plan: ScoringPlan) -> tuple[Curve, ...]:
    """Average results by backbone, method and fraction, in the order of their appearance.

    >>> score = Interval(value=0.5, low=0.4, high=0.6, method="wilson")
    >>> results = [
    ...     TrainingResult(
    ...         backbone="b", method="probe", seed=s, fraction=1.0, images=8, tested=2,
    ...         score=score, seconds=1.0,
    ...     )
    ...     for s in (0, 1)
    ... ]
    >>> build_curves(results, ScoringPlan(test_share=0.2))[0].points[0].images
    8
    """
    table = _group_results(results)
    short_names = _short_names({backbone for backbone, _ in table})
    return tuple(
        Curve(
            name=f"{short_names[backbone]} {method}" if len(short_names) > 1 else method,
            backbone=backbone,
            method=method,
            points=tuple(
                _average_point(results_by_fraction[fraction], plan)
                for fraction in sorted(results_by_fraction)
            ),
        )
        for (backbone, method), results_by_fraction in table.items()
    )


def compare_with_reference(
    results: Iterable[TrainingResult], plan: ScoringPlan, measure: str
) -> tuple[Effect, ...]:
    """Compare every curve with the first one at each fraction, on the same splits."""
    results = tuple(results)
    table, curves = _group_results(results), build_curves(results, plan)
    reference, *alternatives = curves
    pairs = []
    for curve in alternatives:
        curve_results = table[curve.backbone, curve.method]
        reference_results = table[reference.backbone, reference.method]
        fractions = sorted(set(curve_results) & set(reference_results))
        pairs += [
            (curve, fraction, plan.contrast(curve_results[fraction], reference_results[fraction]))
            for fraction in fractions
        ]
    corrected = holm([contrast.p_value for _, _, contrast in pairs])
    return tuple(
        _build_effect(curve, reference, fraction, (contrast, float(p)), measure)
        for (curve, fraction, contrast), p in zip(pairs, corrected, strict=True)
    )


def summarise_comparison(
    curves: Sequence[Curve], effects: Sequence[Effect], measure: str
) -> tuple[str, ...]:
    """Summarise a comparison: effects with all images first, then with fewer images."""
    sentences = [effect.sentence for effect in sorted(effects, key=lambda effect: -effect.fraction)]
    single_runs = all(len(point.scores) == 1 for curve in curves for point in curve.points)
    if single_runs and effects and all(math.isnan(effect.difference.low) for effect in effects):
        sentences.insert(0, ONE_SPLIT)
    return (*sentences, *filter(None, (_few_images_sentence(curve, measure) for curve in curves)))


def _few_images_sentence(curve: Curve, measure: str) -> str:
    """Describe the share of the best score that the fewest images reach."""
    smallest, largest = curve.points[0], curve.points[-1]
    if smallest is largest or not largest.score.value > 0 or math.isnan(smallest.score.value):
        return ""
    return (
        f"{curve.name}: {smallest.fraction:.0%} of the images reach "
        f"{smallest.score.value / largest.score.value:.0%} of the {measure} with "
        f"{_format_share(largest.fraction)} ({smallest.score.value:.3f} instead of "
        f"{largest.score.value:.3f})."
    )


def _short_names(backbones: set[str]) -> dict[str, str]:
    """Shorten backbones to the names of their files, if these are unique.

    >>> sorted(_short_names({"file:some/where/own.safetensors@timm/resnet18", "a/b"}).values())
    ['a/b', 'own.safetensors']
    """
    files = {backbone: backbone.removeprefix("file:").partition("@")[0] for backbone in backbones}
    names = {
        backbone: PurePath(file).name if backbone.startswith("file:") else backbone
        for backbone, file in files.items()
    }
    return (
        names
        if len(set(names.values())) == len(names)
        else {backbone: backbone for backbone in backbones}
    )


def _group_results(
    results: Iterable[TrainingResult],
) -> dict[tuple[str, str], dict[float, list[TrainingResult]]]:
    table: dict[tuple[str, str], dict[float, list[TrainingResult]]] = {}
    for result in results:
        results_by_fraction = table.setdefault((result.backbone, result.method), {})
        results_by_fraction.setdefault(result.fraction, []).append(result)
    for results_by_fraction in table.values():
        for members in results_by_fraction.values():
            members.sort(key=lambda result: (result.seed, result.fold))
    return table


def _average_point(results: Sequence[TrainingResult], plan: ScoringPlan) -> Point:
    def mean(name: str) -> float:
        return float(np.mean([getattr(result, name) for result in results]))

    score = plan.contrast(results).interval(LEVEL)
    if math.isnan(score.low):  # no variance between runs: use the interval of the test set
        test_interval = results[0].score
        score = replace(test_interval, value=score.value)
    low, high = max(score.low, 0.0), min(score.high, 1.0)
    return Point(
        fraction=results[0].fraction,
        images=round(mean("images")),
        score=replace(score, low=low, high=high),
        seconds=mean("seconds"),
        cpu_seconds=mean("cpu_seconds"),
        gpu_seconds=mean("gpu_seconds"),
        trains=_describe_trained_parts(results),
        parameters=round(mean("parameters")),
        steps=round(mean("steps")),
        rules={
            name: float(np.mean([result.rules.get(name, math.nan) for result in results]))
            for name in results[0].rules
        },
        scores=tuple(result.score.value for result in results),
    )


def _describe_trained_parts(results: Sequence[TrainingResult]) -> str:
    """Describe the trained parts, with counts if a race chose different ones."""
    counts = Counter(result.trains for result in results).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return "; ".join(f"{parts} ({count} of {len(results)})" for parts, count in counts)


def _build_effect(
    curve: Curve,
    reference: Curve,
    fraction: float,
    comparison: tuple[Contrast, float],
    measure: str,
) -> Effect:
    contrast, p_value = comparison
    difference = contrast.interval(LEVEL)
    is_significant = bool((difference.low > 0 or difference.high < 0) and p_value < 1 - LEVEL)
    score, reference_score = _score_at(curve, fraction), _score_at(reference, fraction)
    return Effect(
        name=curve.name,
        reference=reference.name,
        fraction=fraction,
        difference=difference,
        p_value=p_value,
        significant=is_significant,
        sentence=(
            f"{curve.name} {_format_mean(score)} against {reference.name} "
            f"{_format_mean(reference_score)} {measure} on {_format_share(fraction)}: "
            f"{_format_interval(difference, '+')}, "
            f"{'' if is_significant else 'not '}significantly different."
        ),
    )


def _score_at(curve: Curve, share: float) -> Interval:
    return next(point.score for point in curve.points if point.fraction == share)


def _format_mean(score: Interval) -> str:
    return "undefined" if math.isnan(score.value) else f"{score.value:.3f}"


def _format_interval(interval: Interval, sign: str) -> str:
    if math.isnan(interval.value):
        return "undefined"
    bounds = "[unknown]"
    if not math.isnan(interval.low):
        bounds = f"[{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
    return f"{interval.value:{sign}.3f} {bounds}"


def _format_share(share: float) -> str:
    return "all images" if share == 1 else f"{share:.0%} of the images"
