"""What a comparison of methods has found, as values that a table, a page or a file may show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from headstart.intervals import Interval

__all__ = ["Cell", "Comparison", "Curve", "Effect", "Point"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training and its score.

    Parameters
    ----------
    backbone, method : str
        As they were asked for.
    seed : int
        Decides the split, which pictures are learned from, and the training.
    fold : int
        Of repeated cross-validation; 0 where there is one test part a seed.
    fraction : float
        Share of the training pictures that were learned from.
    pictures, tested : int
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
        What simple rules reach on the same test pictures, by their names, in the same measure.
    draws : tuple of float
        The score on resampled test pictures, the same resamples for all cells of a comparison;
        empty where every seed has a test part of its own.
    """

    backbone: str
    method: str
    seed: int
    fold: int = 0
    fraction: float
    pictures: int
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
    """A method's mean score over seeds at one number of pictures.

    Parameters
    ----------
    fraction : float
    pictures : int
        Learned from; the mean over seeds, rounded.
    score : Interval
    seconds, cpu_seconds, gpu_seconds : float
        Mean of a training.
    trains : str
        What learned.
    parameters, steps : int
        That learned, and of gradient descent that were taken; means, rounded.
    rules : mapping of str to float
        Mean score of simple rules on the same test pictures.
    scores : tuple of float
        Of every seed (and fold).
    """

    fraction: float
    pictures: int
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
    """A method on a backbone, at every number of pictures, few first.

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
    """One curve against the reference, at one number of pictures.

    Parameters
    ----------
    name, reference : str
        Names of the curves.
    fraction : float
    difference : Interval
        Score of ``name`` less that of ``reference``, on the same pictures; of this pair alone.
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
