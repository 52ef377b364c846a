"""Transferability scores of a backbone's features, with intervals and paired comparisons."""

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
    "PROBE",
    "SCORES",
    "Features",
    "Measure",
    "Score",
    "compare_scores",
    "jackknife",
    "score_features",
]

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

MIN_BLOCKS = 5
"""Minimum number of blocks for a jackknife interval."""

PROBE = "linear-probe"


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Features of a backbone for some images, and the images' labels.

    Parameters
    ----------
    values : array, shape (n, d)
    targets : array, shape (n,) of class indices, or (n, n_classes) of 0 and 1 for multilabel
    kind : {"multiclass", "multilabel"}
        Kind of the targets; objects and regions are multiclass.
    groups : array, shape (n,), or None
        Rows of one group are not independent.
    probe_logits : array, shape (n, n_classes), or None
        Held-out logits of a cross-validated probe.
    source_probabilities : array, shape (n, Z), or None
        Probabilities of the source classes, on which the backbone was pretrained.
    missing : mapping of str to str
        Reasons why ``probe_logits`` (key "linear-probe") or ``source_probabilities`` (key
        "source") are None.
    """

    values: Floats
    targets: Rows
    kind: Kind = "multiclass"
    groups: Rows | None = None
    probe_logits: Floats | None = None
    source_probabilities: Floats | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def rotated(self) -> Floats:
        """Rotate the features into at most n coordinates; distances and angles stay the same."""
        n, d = self.values.shape
        return self.values if d <= n else np.asarray(np.linalg.qr(self.values.T, mode="r")).T


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One way to score features.

    Parameters
    ----------
    title : str
        Name in a few words.
    of_features : callable, optional
        Computes the score from features and targets.
    of_source_probabilities : callable, optional
        Computes the score from probabilities of the source classes and targets.
    is_rotation_invariant : bool
        Whether the score depends on lengths and angles only, so that features may be rotated.
    lower, upper : float
        Range of the score; intervals are clipped to it.
    """

    title: str
    of_features: Callable[[Floats, Rows], float] | None = None
    of_source_probabilities: Callable[[Floats, Rows], float] | None = None
    is_rotation_invariant: bool = True
    lower: float = -math.inf
    upper: float = math.inf


SCORES: Mapping[str, Measure] = {
    PROBE: Measure(title="cross-validated linear probe", lower=0.0, upper=1.0),
    "knn": Measure(title="leave-one-out nearest neighbours"),
    "log-me": Measure(title="LogME, evidence per image", of_features=log_me),
    "h-score": Measure(title="H-score, plain covariance", of_features=h_score, lower=0.0),
    "shrunk-h-score": Measure(
        title="H-score, shrunk covariance",
        of_features=shrunk_h_score,
        is_rotation_invariant=False,
        lower=0.0,
    ),
    "trans-rate": Measure(title="TransRate, coding rate", of_features=trans_rate, lower=0.0),
    "nleep": Measure(title="NLEEP, Gaussian mixture", of_features=nleep, upper=0.0),
    "leep": Measure(title="LEEP, source classes", of_source_probabilities=leep, upper=0.0),
    "nce": Measure(
        title="NCE, most likely source class",
        of_source_probabilities=lambda chances, targets: nce(chances.argmax(axis=1), targets),
        upper=0.0,
    ),
    "gbc": Measure(title="GBC, class overlap", of_features=gbc, upper=0.0),
    "parc": Measure(
        title="PARC, pairwise similarity",
        of_features=parc,
        is_rotation_invariant=False,
        lower=-1.0,
        upper=1.0,
    ),
    "sfda": Measure(title="SFDA, discriminant analysis", of_features=sfda, upper=0.0),
}
"""Measures by the name used in ``--measure``; higher is better for each."""

DEFAULTS = tuple(name for name in SCORES if name not in {"h-score", "sfda"})
"""All measures but two that mislead with many features: there the plain H-score is the same for
all backbones, and SFDA can rank random weights first (docs/rank.md)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """Score of one backbone by one measure.

    Parameters
    ----------
    measure : str
    interval : Interval or None
    image_scores : array, shape (n,), or None
        Score of each image, if the score is a mean over images.
    left_out : array, shape (B,), or None
        Otherwise the score without each block of images.
    missing : str
        Why there is no score.
    """

    measure: str
    interval: Interval | None = None
    image_scores: Floats | None = None
    left_out: Floats | None = None
    missing: str = ""


def score_features(
    features: Features, measures: Collection[str], blocks: Sequence[Rows]
) -> dict[str, Score]:
    """Score features by several measures.

    Parameters
    ----------
    features : Features
    measures : collection of str
        Keys of ``SCORES``.
    blocks : sequence of array
        Rows of each block for the jackknife, the same for all backbones. Without blocks, scores
        have no intervals.

    Returns
    -------
    dict of str to Score

    Raises
    ------
    UnknownNameError
        If there is no such measure.
    UsageError
        If there is only one class.

    Examples
    --------
    >>> rng, y = np.random.default_rng(0), np.arange(60) % 2
    >>> telling = Features(values=rng.normal(size=(60, 4)) + 3 * y[:, None], targets=y)
    >>> blocks = [np.arange(start, 60, 10) for start in range(10)]
    >>> found = score_features(telling, ["knn", "log-me"], blocks)
    >>> found["knn"].interval.value > 0.9, found["log-me"].left_out.shape
    (True, (10,))
    """
    from threadpoolctl import threadpool_limits

    for name in measures:
        if name not in SCORES:
            raise UnknownNameError("measure", name, list(SCORES))
    # One thread: for small matrix products, the overhead of many threads exceeds their gain.
    with threadpool_limits(1, "blas"):
        rotated = features.rotated()
        return {name: _score_by_measure(name, features, rotated, blocks) for name in measures}


def _score_by_measure(
    name: str, features: Features, rotated: Floats, blocks: Sequence[Rows]
) -> Score:
    if name == PROBE:
        return _score_probe(features, blocks)
    if features.kind == "multilabel":
        return Score(measure=name, missing="defined for one class per image only")
    if name == "knn":
        correct = knn_correctness(rotated, features.targets, groups=features.groups)
        return _score_mean(name, features, correct.astype(np.float64))
    measure = SCORES[name]
    if measure.of_features is not None:
        table = rotated if measure.is_rotation_invariant else features.values
        return _score_with_jackknife(name, measure.of_features, table, features.targets, blocks)
    if features.source_probabilities is None or measure.of_source_probabilities is None:
        return Score(measure=name, missing=features.missing.get("source", "no source classes"))
    return _score_with_jackknife(
        name,
        measure.of_source_probabilities,
        features.source_probabilities,
        features.targets,
        blocks,
    )


def _score_probe(features: Features, blocks: Sequence[Rows]) -> Score:
    """Score held-out probe predictions: accuracy, or mean average precision for multilabel."""
    logits, targets = features.probe_logits, features.targets
    if logits is None:
        return Score(measure=PROBE, missing=features.missing.get(PROBE, "not computed"))
    if features.kind == "multilabel":
        probabilities = np.exp(-np.logaddexp(0.0, -logits))
        return _score_with_jackknife(PROBE, _mean_precision, probabilities, targets, blocks)
    correct = logits.argmax(axis=1) == targets
    return _score_mean(PROBE, features, correct.astype(np.float64))


def _mean_precision(probabilities: Floats, targets: Rows) -> float:
    return float(mean_average_precision_score(targets, probabilities))


def _score_mean(name: str, features: Features, image_scores: Floats) -> Score:
    interval = proportion_interval(image_scores > 0.5, features.groups)
    return Score(measure=name, interval=interval, image_scores=image_scores)


def _score_with_jackknife(
    name: str,
    score_of: Callable[[Floats, Rows], float],
    values: Floats,
    targets: Rows,
    blocks: Sequence[Rows],
) -> Score:
    measure = SCORES[name]
    row_sets = list(_leave_blocks_out(len(targets), targets, blocks))
    left_out = np.asarray([score_of(values[rows], targets[rows]) for rows in row_sets])
    interval = jackknife(score_of(values, targets), left_out)
    low, high = (
        min(max(limit, measure.lower), measure.upper) for limit in (interval.low, interval.high)
    )
    if not math.isnan(interval.low):
        interval = replace(interval, low=low, high=high)
    return Score(measure=name, interval=interval, left_out=left_out)


def _leave_blocks_out(n: int, targets: Rows, blocks: Sequence[Rows]) -> Iterator[Rows]:
    """Yield all rows without each block; skip a block if only one class would remain."""
    for block in blocks:
        rows = np.setdiff1d(np.arange(n), block)
        if len(np.unique(targets[rows])) > 1:
            yield rows


def jackknife(value: float, left_out: Floats, *, level: float = 0.95) -> Interval:
    """Compute a block jackknife interval of a smooth statistic.

    A bootstrap would draw images twice. A copy of an image makes nearest neighbours correct and
    covariances too narrow.

    Parameters
    ----------
    value : float
        Statistic of all images.
    left_out : array, shape (B,)
        Statistic without each of B blocks of about the same size.
    level : float

    Returns
    -------
    Interval
        By Student's t with B - 1 degrees of freedom. Unknown for fewer than five blocks, or if
        the statistic is the same without every block.

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
    n_blocks, half_width = len(left_out), math.nan
    if n_blocks >= MIN_BLOCKS:
        error = math.sqrt((n_blocks - 1) * float(left_out.var()))
        if error > 1e-12 * abs(value):
            half_width = student_quantile(level, n_blocks - 1) * error
    low, high = value - half_width, value + half_width
    return Interval(value=value, low=low, high=high, level=level, method="block jackknife")


def compare_scores(
    first: Score, other: Score, features: Features, *, level: float = 0.95
) -> Difference:
    """Compare two backbones by one measure, on the same images.

    Parameters
    ----------
    first, other : Score
        Scores by the same measure, on the same images and blocks.
    features : Features
        Features of either backbone; only the groups are used.
    level : float

    Returns
    -------
    Difference
        Newcombe's paired interval for accuracies; jackknife of the difference for other
        measures.

    Raises
    ------
    UsageError
        If the scores cannot be compared.
    """
    if first.interval is None or other.interval is None or first.measure != other.measure:
        raise UsageError(
            f"Expected two scores by one measure, got {first.measure!r} ({first.interval}) and "
            f"{other.measure!r} ({other.interval}). Compare backbones that both have this score."
        )
    if first.image_scores is not None and other.image_scores is not None:
        correct, other_correct = first.image_scores > 0.5, other.image_scores > 0.5
        return paired_proportion_difference(correct, other_correct, features.groups, level=level)
    difference = first.interval.value - other.interval.value
    left_out_differences = np.zeros(0)
    if first.left_out is not None and other.left_out is not None:
        left_out_differences = first.left_out - other.left_out
    interval = jackknife(difference, left_out_differences, level=level)
    return Difference(interval=interval, significant=bool(interval.low > 0 or interval.high < 0))
