"""Decision rules of the race: pure functions of predictions on the same held-out images.

A candidate that costs more than a linear probe, or that reads another stage than the last, wins
only if it is significantly better. The chance of replacing the plain probe although nothing is
better stays below 5 % over all candidates and comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.metrics import PRIMARY_METRICS
from headstart.metrics.class_means import balanced_accuracy_interval, paired_balanced_difference
from headstart.metrics.classification import mean_average_precision_score
from headstart.metrics.confidence_intervals import (
    Difference,
    Groups,
    Interval,
    paired_proportion_difference,
    proportion_interval,
    resamples,
    units,
)
from headstart.metrics.significance import Contrast, controlled_difference, hierarchical

if TYPE_CHECKING:
    from headstart.data.dataset import Kind

__all__ = [
    "BUDGET",
    "LEAST_GAIN",
    "OBJECTS_PROVED_RULE",
    "OBJECTS_RULE",
    "PROBES_ALPHA",
    "PROVED_RULE",
    "RULE",
    "TRAININGS_ALPHA",
    "CandidateResult",
    "Scorer",
    "adjusted_level",
    "index_of_best_gain",
    "is_improvement",
    "shrink_gain",
]

Floats = NDArray[np.float64]

PROBES_ALPHA = 0.02
"""Share of the 5 % error for the choice of another stage or backbone to probe."""

TRAININGS_ALPHA = 0.03
"""Share of the 5 % error for the trainings."""

BUDGET = 120.0
"""Default seconds for a race and the training of its winner."""

N_RESAMPLES = 1000
"""Bootstrap resamples for multilabel data."""

MIN_LABEL_IMAGES = 5
"""Minimum number of images (or groups) with a label for a comparison. With fewer, the bootstrap
interval of the average precision is too narrow."""

LEAST_GAIN = 0.005
"""Expected gain from which a training is chosen: below half a point the quicker probe is kept."""

NORMAL_QUANTILE = 1.96
"""Half of a 95 % interval in standard errors."""

GAIN_SPREAD = 0.05
"""Prior standard deviation of the gain of a training over the probe, around 0."""

RULE = (
    "The candidate that is expected to be best is chosen. A training is expected to be better than "
    "the linear probe if its gain on held-out training images is above half a point: corrected by "
    "the probe's score on all training images, and shrunk towards zero because few images decide. "
    "Pass --prove to leave the probe only for a candidate "
    "that is significantly better."
)

PROVED_RULE = (
    "A linear probe on the full backbone is chosen unless another candidate is significantly "
    "better on the same held-out training images. The chance of a wrong change is at most 5 % "
    "over all candidates and comparisons (paired intervals that share this error)."
)

OBJECTS_RULE = (
    "The candidate that is expected to be best is chosen: the first training, unless the gain of "
    "another one over it on held-out training images, shrunk towards zero because few images "
    "decide, is above half a point. Pass --prove to leave the first only for a candidate that is "
    "significantly better."
)

OBJECTS_PROVED_RULE = (
    "The first training is chosen unless another one is significantly better on the same held-out "
    "training images. The chance of a wrong change is at most 5 % over all candidates."
)


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """Result of one candidate of a race.

    Parameters
    ----------
    name : str
        Display name.
    backbone, stage, method : str
    images : int
        Number of held-out images predicted.
    score : Interval or None
    against : str
        Name of the row that it is compared with.
    gain : Interval or None
        Gain over ``against``, at the level of the decision.
    significant : bool or None
        Whether the gain is significant.
    seconds, estimated : float
        Actual and estimated duration.
    megabytes : float
        Size of the weights in float32.
    state : {"chosen", "promoted", "probed", "left out"}
    note : str
    trains : str
        Shares of the backbone that train, in words; empty for a probe.
    """

    name: str
    backbone: str
    stage: str
    method: str
    images: int = 0
    score: Interval | None = None
    against: str = ""
    gain: Interval | None = None
    significant: bool | None = None
    seconds: float = 0.0
    estimated: float = 0.0
    megabytes: float = 0.0
    state: str = "probed"
    note: str = ""
    trains: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **asdict(self),
            "score": None if self.score is None else self.score.as_dict(),
            "gain": None if self.gain is None else self.gain.as_dict(),
        }


def adjusted_level(share: float, comparisons: int) -> float:
    """Bonferroni level of each interval, for a total error of ``share`` over all comparisons.

    >>> round(adjusted_level(0.03, 10), 3)
    0.997
    """
    return 1.0 - share / max(comparisons, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """Score and compare predictions on the same held-out images.

    Missing predictions are NaN. A comparison uses the images that both candidates have predicted.

    Parameters
    ----------
    kind : {"multiclass", "multilabel"}
    targets : array, shape (n,) or (n, n_classes)
    groups : n hashables, optional
        Images of one group are not independent.
    weighted : bool
        Whether all classes count the same, as in a training with weighted classes: candidates are
        then compared by balanced accuracy.

    Examples
    --------
    >>> scorer = Scorer(kind="multiclass", targets=np.zeros(200, dtype=int))
    >>> print(scorer.score(np.ones(200)))
    1.000 [0.981, 1.000]
    >>> scorer.gain(np.arange(200) < 190, np.arange(200) < 120, level=0.997).significant
    True
    """

    kind: Kind
    targets: NDArray[np.integer[Any]]
    groups: Groups = None
    weighted: bool = False

    @property
    def measure(self) -> str:
        """Name of the score."""
        return "balanced accuracy" if self.weighted else PRIMARY_METRICS[self.kind]

    def correct(self, logits: Floats, rows: NDArray[np.intp] | None = None) -> Floats:
        """Reduce logits to what comparisons need.

        Multiclass: whether each image is correct, (n,). Multilabel: probabilities, (n, k).

        Parameters
        ----------
        logits : array, shape (m, n_classes)
        rows : array, shape (m,), optional
            Images of the logits; by default all.
        """
        if self.kind == "multilabel":
            return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))
        targets = self.targets if rows is None else self.targets[rows]
        return np.asarray(logits.argmax(axis=1) == targets, dtype=np.float64)

    def empty(self) -> Floats:
        """Values of a candidate that has predicted no image yet."""
        return np.full(self.targets.shape, np.nan)

    def record(self, values: Floats, rows: NDArray[np.intp], logits: Floats) -> None:
        """Enter the logits of a candidate for some images."""
        values[rows] = self.correct(logits, rows)

    def explain_control(self, values: Floats, against: Floats, name: str) -> str:
        """Name the other candidate's scores on the shared images and on all, as a clause."""
        shared, rows = self.empty(), self.predicted_rows(values)
        shared[rows] = against[rows]
        here, everywhere = self.score(shared).value, self.score(against).value
        return f" (the {name} has {here:.3f} on these images and {everywhere:.3f} on all)"

    def score(self, values: Floats) -> Interval:
        """Compute the score with its 95 % interval.

        It is accuracy, balanced accuracy, or mean average precision (``measure``).
        """
        rows, groups = self._shared_rows(values)
        if self.weighted:
            return balanced_accuracy_interval(values[rows] > 0.5, self.targets[rows], groups)
        if self.kind != "multilabel":
            return proportion_interval(values[rows] > 0.5, groups)
        interval = self._precision_contrast(values, None, rows).interval()
        low, high = np.clip([interval.low, interval.high], 0, 1).tolist()
        return Interval(value=interval.value, low=low, high=high, method=interval.method)

    def gain(self, values: Floats, against: Floats, *, level: float) -> Difference:
        """Compute the gain over another candidate, with an interval at the given level.

        Multilabel data: only labels of at least five images (or groups) count.
        """
        rows, groups = self._shared_rows(values, against)
        if self.kind != "multilabel":
            correct, correct_against = values[rows] > 0.5, against[rows] > 0.5
            if self.weighted:
                return paired_balanced_difference(
                    correct, correct_against, self.targets[rows], groups, level=level
                )
            return paired_proportion_difference(correct, correct_against, groups, level=level)
        labels = [
            label for label in range(self.targets.shape[1]) if self._has_enough_images(rows, label)
        ]
        if labels:
            selected = replace(self, targets=self.targets[:, labels])
            return selected._precision_contrast(
                values[:, labels], against[:, labels], rows
            ).difference(level)
        interval = self._precision_contrast(values, against, rows).interval(level)
        unknown = replace(interval, low=math.nan, high=math.nan)
        return Difference(interval=unknown, significant=False)

    def expected_gain(self, values: Floats, against: Floats) -> float:
        """Return the gain over another candidate that is expected on new images.

        Chance on the few images that both have predicted is corrected by the other candidate's
        score on all images (``controlled_difference``); the rest is shrunk (``shrink_gain``).
        Mean average precision has no such correction.

        Examples
        --------
        >>> scorer = Scorer(kind="multiclass", targets=np.zeros(220, dtype=int))
        >>> against = np.arange(220) >= 6
        >>> values = np.where(np.arange(220) < 40, np.arange(220) >= 4, np.nan)
        >>> round(scorer.expected_gain(values, against), 3)
        0.003
        """
        ceiling = 1 - self.score(against).value
        if self.kind == "multilabel":
            gain = self.gain(values, against, level=0.95).interval
            error = (gain.high - gain.low) / (2 * NORMAL_QUANTILE)
            return shrink_gain(gain.value, error, ceiling)
        contrast = controlled_difference(
            values, against, strata=self.targets if self.weighted else None, groups=self.groups
        )
        return shrink_gain(contrast.value, contrast.error, ceiling)

    def undecidable_reason(self, values: Floats, level: float) -> str:
        """Explain why no candidate could be significantly better; empty if one could.

        Another candidate can only gain on images that this one misclassifies. With few of them,
        a sign test is not significant at this level even if all of them become correct. With
        weighted classes, the balanced accuracy of a perfect model must be significantly better.

        Examples
        --------
        >>> scorer = Scorer(kind="multiclass", targets=np.zeros(100, dtype=int))
        >>> scorer.undecidable_reason(np.arange(100) > 2, 0.997)[:46]
        '3 of 100 held-out images are misclassified: to'
        """
        correct = np.asarray(values, dtype=np.float64) > 0.5
        if self.kind == "multilabel":
            correct = (correct == (self.targets == 1)).all(axis=1)
            rows = self.predicted_rows(values)
            if not any(self._has_enough_images(rows, k) for k in range(self.targets.shape[1])):
                return f"No label has {MIN_LABEL_IMAGES} held-out images (or groups)"
        n_errors = int((~correct).sum())
        is_decidable = n_errors >= math.ceil(math.log2(2 / (1 - level)))
        if is_decidable and self.weighted:
            perfect = np.ones(len(correct))
            is_decidable = self.gain(perfect, np.asarray(values), level=level).significant
        if is_decidable:
            return ""
        return (
            f"{n_errors} of {len(correct)} held-out images are misclassified: too few to show a "
            "significant improvement, even by a perfect model"
        )

    def predicted_rows(self, values: Floats) -> NDArray[np.intp]:
        """Return the rows of the images that have a prediction."""
        return np.flatnonzero(
            ~np.isnan(np.asarray(values, np.float64).reshape(len(values), -1)[:, 0])
        )

    def _has_enough_images(self, rows: NDArray[np.intp], label: int) -> bool:
        label_rows = rows[self.targets[rows, label] == 1]
        count = (
            len(label_rows)
            if self.groups is None
            else len(set(np.asarray(self.groups)[label_rows]))
        )
        return count >= MIN_LABEL_IMAGES

    def _shared_rows(self, *all_values: Floats) -> tuple[NDArray[np.intp], Groups]:
        rows = self.predicted_rows(all_values[0])
        for other in all_values[1:]:
            rows = np.intersect1d(rows, self.predicted_rows(other))
        groups = None if self.groups is None else np.asarray(self.groups)[rows]
        return rows, groups

    def _precision_contrast(
        self, values: Floats, against: Floats | None, rows: NDArray[np.intp]
    ) -> Contrast:
        """Bootstrap the mean average precision, or the difference of two, over images."""
        groups = None if self.groups is None else np.asarray(self.groups)[rows]
        codes, count = units(len(rows), groups)
        targets = self.targets[rows]
        if not targets.any():  # no image has any label
            nan = math.nan
            return Contrast(value=nan, error=nan, freedom=nan, method="bootstrap-images")

        def precision(weights: Floats) -> Floats:
            scores = mean_average_precision_score(targets, values[rows], sample_weight=weights)
            if against is not None:
                other = mean_average_precision_score(targets, against[rows], sample_weight=weights)
                scores = scores - other
            return np.ravel(scores)

        blocks = resamples(codes, count, N_RESAMPLES, np.random.default_rng(0))
        draws = np.concatenate([precision(block) for block in blocks])
        observed = precision(np.ones((1, len(rows))))
        return hierarchical(observed, draws[None], units=count)


def shrink_gain(gain: float, error: float, ceiling: float = math.inf) -> float:
    """Shrink an observed gain towards zero, the more the larger its standard error is.

    The mean of the posterior for a normal prior around 0 with standard deviation ``GAIN_SPREAD``,
    but at most ``ceiling``: no score is above 1. Where the error is unknown, nothing is expected.

    Examples
    --------
    >>> round(shrink_gain(0.05, 0.05), 3), round(shrink_gain(0.05, 0.005), 3)
    (0.025, 0.05)
    >>> shrink_gain(0.05, 0.005, ceiling=0.03)
    0.03
    """
    if not math.isfinite(error + gain):
        return 0.0
    return min(gain * GAIN_SPREAD**2 / (GAIN_SPREAD**2 + error**2), ceiling)


def is_improvement(difference: Difference) -> bool:
    """Whether the first is significantly better."""
    return difference.significant and difference.interval.value > 0


def index_of_best_gain(gains: Sequence[Difference | None]) -> int | None:
    """Return the index of the largest significant gain; None if there is none."""
    improvements = [
        (gain.interval.value, -i) for i, gain in enumerate(gains) if gain and is_improvement(gain)
    ]
    return -max(improvements)[1] if improvements else None
