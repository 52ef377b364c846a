"""What a backbone's features score by every measure: numbers with intervals, compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UnknownNameError, UsageError
from headstart.metrics.classification import mean_average_precision_score
from headstart.metrics.confidence_intervals import (
    Difference,
    Interval,
    paired_proportion_difference,
    proportion_interval,
    student_quantile,
)
from headstart.metrics.transferability.features import (
    h_score,
    knn_correctness,
    log_me,
    shrunk_h_score,
    trans_rate,
)
from headstart.metrics.transferability.separation import gbc, parc, sfda
from headstart.metrics.transferability.source_labels import leep, nce, nleep

if TYPE_CHECKING:
    from headstart.data.dataset import Kind

__all__ = [
    "DEFAULTS",
    "MEASURES",
    "PROBE",
    "Features",
    "Measure",
    "Score",
    "ahead",
    "jackknife",
    "scored",
]

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

LEAST_BLOCKS = 5
"""A spread over fewer is no estimate."""

PROBE = "linear-probe"


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What a backbone says of some images, and what is true of them.

    Parameters
    ----------
    values : array, shape (n, d)
    targets : array, shape (n,) of class indices, or (n, n_classes) of 0 and 1 for multilabel
    kind : {"multiclass", "multilabel"}
        Of the targets; objects and regions count as multiclass.
    groups : array, shape (n,), or None
        What is not independent.
    answers : array, shape (n, n_classes), or None
        Logits of a cross-validated probe, each image's by the fold that has not seen it.
    chances : array, shape (n, Z), or None
        Probabilities of the classes that the backbone was trained on.
    missing : mapping of str to str
        Why ``answers`` (under "linear-probe") or ``chances`` (under "source") are None.
    """

    values: Floats
    targets: Rows
    kind: Kind = "multiclass"
    groups: Rows | None = None
    answers: Floats | None = None
    chances: Floats | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def turned(self) -> Floats:
        """The same rows in at most n coordinates: lengths, angles and distances are kept."""
        n, d = self.values.shape
        return self.values if d <= n else np.asarray(np.linalg.qr(self.values.T, mode="r")).T


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One way to score features.

    Parameters
    ----------
    title : str
        In a few words.
    of_features : callable, optional
        From features and targets to a number.
    of_chances : callable, optional
        From the source classes' probabilities and targets to a number.
    is_turnable : bool
        Whether only lengths and angles of the features count, so that they may be turned.
    least, most : float
        What the number can be; an interval is cut there.
    """

    title: str
    of_features: Callable[[Floats, Rows], float] | None = None
    of_chances: Callable[[Floats, Rows], float] | None = None
    is_turnable: bool = True
    least: float = -math.inf
    most: float = math.inf


MEASURES: Mapping[str, Measure] = {
    PROBE: Measure(title="cross-validated linear probe", least=0.0, most=1.0),
    "knn": Measure(title="nearest neighbours, leaving one out"),
    "log-me": Measure(title="LogME, evidence an image", of_features=log_me),
    "h-score": Measure(title="H-score, covariance as it is", of_features=h_score, least=0.0),
    "shrunk-h-score": Measure(
        title="H-score, covariance shrunk", of_features=shrunk_h_score, is_turnable=False, least=0.0
    ),
    "trans-rate": Measure(title="TransRate, coding rate", of_features=trans_rate, least=0.0),
    "nleep": Measure(title="NLEEP, by a mixture", of_features=nleep, most=0.0),
    "leep": Measure(title="LEEP, by the source's classes", of_chances=leep, most=0.0),
    "nce": Measure(
        title="NCE, by the source's likeliest class",
        of_chances=lambda chances, targets: nce(chances.argmax(axis=1), targets),
        most=0.0,
    ),
    "gbc": Measure(title="GBC, overlap of the classes", of_features=gbc, most=0.0),
    "parc": Measure(
        title="PARC, likeness in pairs", of_features=parc, is_turnable=False, least=-1.0, most=1.0
    ),
    "sfda": Measure(title="SFDA, challenged discriminant", of_features=sfda, most=0.0),
}
"""By name, as given to ``--measure``; each is better when higher."""

DEFAULTS = tuple(name for name in MEASURES if name not in {"h-score", "sfda"})
"""All but two that mislead where features are many: the plain H-score is the same for all
backbones there, and SFDA has been seen to put random weights first (docs/rank.md)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """A measure's number for one backbone.

    Parameters
    ----------
    measure : str
    interval : Interval or None
    worths : array, shape (n,), or None
        Where the number is a mean over images: what each was worth.
    left_out : array, shape (B,), or None
        Elsewhere: the number without each block of images.
    missing : str
        Why there is no number.
    """

    measure: str
    interval: Interval | None = None
    worths: Floats | None = None
    left_out: Floats | None = None
    missing: str = ""


def scored(
    features: Features, measures: Collection[str], blocks: Sequence[Rows]
) -> dict[str, Score]:
    """Score features by some measures.

    Parameters
    ----------
    features : Features
    measures : collection of str
        Some of ``MEASURES``.
    blocks : sequence of array
        Rows of each block that is left out in turn, the same for all backbones; none for
        numbers without intervals.

    Returns
    -------
    dict of str to Score

    Raises
    ------
    UnknownNameError
        If there is no such measure.
    UsageError
        If there is one class only.

    Examples
    --------
    >>> rng, y = np.random.default_rng(0), np.arange(60) % 2
    >>> telling = Features(values=rng.normal(size=(60, 4)) + 3 * y[:, None], targets=y)
    >>> blocks = [np.arange(start, 60, 10) for start in range(10)]
    >>> found = scored(telling, ["knn", "log-me"], blocks)
    >>> found["knn"].interval.value > 0.9, found["log-me"].left_out.shape
    (True, (10,))
    """
    from threadpoolctl import threadpool_limits

    for name in measures:
        if name not in MEASURES:
            raise UnknownNameError("measure", name, list(MEASURES))
    # One thread: small products wait for each other on many, the more the busier the machine.
    with threadpool_limits(1, "blas"):
        turned = features.turned()
        return {name: _score(name, features, turned, blocks) for name in measures}


def _score(name: str, features: Features, turned: Floats, blocks: Sequence[Rows]) -> Score:
    if name == PROBE:
        return _probed(features, blocks)
    if features.kind == "multilabel":
        return Score(measure=name, missing="defined for one class an image")
    if name == "knn":
        found = knn_correctness(turned, features.targets, groups=features.groups)
        return _mean(name, features, found.astype(np.float64))
    made = MEASURES[name]
    if made.of_features is not None:
        table = turned if made.is_turnable else features.values
        return _jackknifed(name, made.of_features, table, features.targets, blocks)
    if features.chances is None or made.of_chances is None:
        return Score(measure=name, missing=features.missing.get("source", "no source classes"))
    return _jackknifed(name, made.of_chances, features.chances, features.targets, blocks)


def _probed(features: Features, blocks: Sequence[Rows]) -> Score:
    """Accuracy of a probe's answers; of several labels their mean average precision."""
    logits, targets = features.answers, features.targets
    if logits is None:
        return Score(measure=PROBE, missing=features.missing.get(PROBE, "not computed"))
    if features.kind == "multilabel":
        chances = np.exp(-np.logaddexp(0.0, -logits))
        return _jackknifed(PROBE, _mean_precision, chances, targets, blocks)
    right = logits.argmax(axis=1) == targets
    return _mean(PROBE, features, right.astype(np.float64))


def _mean_precision(chances: Floats, targets: Rows) -> float:
    return float(mean_average_precision_score(targets, chances))


def _mean(name: str, features: Features, worths: Floats) -> Score:
    interval = proportion_interval(worths > 0.5, features.groups)
    return Score(measure=name, interval=interval, worths=worths)


def _jackknifed(
    name: str,
    number: Callable[[Floats, Rows], float],
    table: Floats,
    targets: Rows,
    blocks: Sequence[Rows],
) -> Score:
    made = MEASURES[name]
    kept = list(_rests(len(targets), targets, blocks))
    without = np.asarray([number(table[rows], targets[rows]) for rows in kept])
    interval = jackknife(number(table, targets), without)
    low, high = (min(max(at, made.least), made.most) for at in (interval.low, interval.high))
    if not math.isnan(interval.low):
        interval = replace(interval, low=low, high=high)
    return Score(measure=name, interval=interval, left_out=without)


def _rests(n: int, targets: Rows, blocks: Sequence[Rows]) -> Iterator[Rows]:
    """All rows but a block's; not where only one class would be left."""
    for block in blocks:
        rows = np.setdiff1d(np.arange(n), block)
        if len(np.unique(targets[rows])) > 1:
            yield rows


def jackknife(value: float, left_out: Floats, *, level: float = 0.95) -> Interval:
    """Interval of a smooth number of a set from its values without each block of the set.

    Nothing is drawn twice, as a bootstrap would: an image's copy makes features look more
    certain, neighbours right, and covariances narrower than they are.

    Parameters
    ----------
    value : float
        Of all images.
    left_out : array, shape (B,)
        Without each of B blocks of about the same size.
    level : float

    Returns
    -------
    Interval
        By Student's t with B - 1 degrees of freedom; unknown for fewer than five blocks, or
        where no block makes a difference.

    Reference
    ---------
    Tukey (1958), "Bias and confidence in not-quite large samples"; Miller (1974), "The
    jackknife: a review", section 2.

    Examples
    --------
    >>> values = np.arange(10.0)
    >>> without = (values.sum() - values) / 9
    >>> print(jackknife(values.mean(), without))
    4.500 [2.334, 6.666]
    """
    count, half = len(left_out), math.nan
    if count >= LEAST_BLOCKS:
        error = math.sqrt((count - 1) * float(left_out.var()))
        if error > 1e-12 * abs(value):
            half = student_quantile(level, count - 1) * error
    low, high = value - half, value + half
    return Interval(value=value, low=low, high=high, level=level, method="block jackknife")


def ahead(first: Score, other: Score, features: Features, *, level: float = 0.95) -> Difference:
    """How far one backbone is ahead of another by a measure, on the same images.

    Parameters
    ----------
    first, other : Score
        Of the same measure, images and blocks, both with a number.
    features : Features
        Of either: its groups are read.
    level : float

    Returns
    -------
    Difference
        By Newcombe's paired interval for shares of right answers; by the jackknife of the
        difference for other measures.

    Raises
    ------
    UsageError
        If the scores cannot be compared.
    """
    if first.interval is None or other.interval is None or first.measure != other.measure:
        raise UsageError(
            f"Expected two numbers of one measure, got {first.measure!r} and {other.measure!r}; "
            "do compare backbones that both have one."
        )
    if first.worths is not None and other.worths is not None:
        one, two = first.worths > 0.5, other.worths > 0.5
        return paired_proportion_difference(one, two, features.groups, level=level)
    gap = first.interval.value - other.interval.value
    paired = np.zeros(0)
    if first.left_out is not None and other.left_out is not None:
        paired = first.left_out - other.left_out
    found = jackknife(gap, paired, level=level)
    return Difference(interval=found, distinguishable=bool(found.low > 0 or found.high < 0))
