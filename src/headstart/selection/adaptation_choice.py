"""Choice between a source model and adapted models without any label of the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.confidence_intervals import Interval
from headstart.metrics.target_free import (
    EmbeddedRisk,
    batch_nuclear_norm,
    class_separation,
    mean_entropy,
    mutual_information,
    neighbourhood_density,
)
from headstart.metrics.validation import Floats

__all__ = ["TargetScores", "choose_adapted", "information_gain", "list_objections", "score_target"]

RESAMPLES = 500
STRUCTURE = ("neighbourhood_density", "batch_nuclear_norm", "class_separation")
"""Criteria of which most must improve, beside the mutual information."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetScores:
    """Label-free scores of a model on the target.

    Parameters
    ----------
    probabilities : array, shape (m, k)
        Of the target images, at temperature 1.
    values : mapping of str to float
        By criterion: ``mean_entropy``, ``mutual_information`` and those of ``STRUCTURE``.
    risk : EmbeddedRisk or None
        Deep embedded validation; None without source images.
    """

    probabilities: Floats
    values: Mapping[str, float] = field(default_factory=dict)
    risk: EmbeddedRisk | None = None

    def as_dict(self) -> dict[str, float]:
        """All scores by name."""
        risk = {} if self.risk is None else {"deep_embedded_validation": self.risk.value}
        return {**self.values, **risk}


def score_target(
    probabilities: Floats, features: NDArray[Any], risk: EmbeddedRisk | None = None
) -> TargetScores:
    """Compute all criteria.

    Parameters
    ----------
    probabilities : array, shape (m, k)
    features : array, shape (m, d)
    risk : EmbeddedRisk, optional

    Examples
    --------
    >>> scores = score_target(np.eye(2), np.eye(2))
    >>> round(scores.values["mutual_information"], 4)
    0.6931
    """
    values = {
        "mean_entropy": mean_entropy(probabilities),
        "mutual_information": mutual_information(probabilities),
        "neighbourhood_density": neighbourhood_density(probabilities),
        "batch_nuclear_norm": batch_nuclear_norm(probabilities),
        "class_separation": class_separation(features, probabilities),
    }
    return TargetScores(probabilities=probabilities, values=values, risk=risk)


def information_gain(
    start: TargetScores, adapted: TargetScores, *, seed: int = 0, level: float = 0.95
) -> Interval:
    """Difference of the mutual information, with an interval paired over the target images.

    Parameters
    ----------
    start, adapted : TargetScores
        Of the same images, in the same order.
    seed : int
        Of the bootstrap.
    level : float

    Examples
    --------
    >>> unsure = TargetScores(probabilities=np.full((20, 2), 0.5))
    >>> sure = TargetScores(probabilities=np.tile(np.eye(2), (10, 1)))
    >>> information_gain(unsure, sure).low > 0.5
    True
    """
    rng = np.random.default_rng([seed, 18])
    first, second = start.probabilities, adapted.probabilities
    value = mutual_information(second) - mutual_information(first)
    differences = []
    for _ in range(RESAMPLES):
        rows = rng.integers(len(first), size=len(first))
        differences.append(mutual_information(second[rows]) - mutual_information(first[rows]))
    tail = (1 - level) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Interval(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        level=level,
        method="paired bootstrap",
    )


def list_objections(start: TargetScores, adapted: TargetScores, gain: Interval) -> tuple[str, ...]:
    """List the reasons against an adapted model, in sentences; none accepts it.

    It is accepted if the mutual information is significantly higher, most of the criteria of
    ``STRUCTURE`` are higher, and the estimated error on the target is not significantly higher.
    The error is compared only if the source images cover the target in the features of both.

    Parameters
    ----------
    start, adapted : TargetScores
    gain : Interval
        As ``information_gain``.

    Examples
    --------
    >>> start = score_target(np.full((4, 2), 0.5), np.ones((4, 1)))
    >>> list_objections(start, start, information_gain(start, start))[0]
    'The mutual information is not significantly higher (+0.000 [+0.000, +0.000] nats).'
    """
    objections = []
    if not gain.low > 0:
        objections.append(
            "The mutual information is not significantly higher "
            f"({gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] nats)."
        )
    better = [name for name in STRUCTURE if adapted.values[name] > start.values[name]]
    if 2 * len(better) <= len(STRUCTURE):
        worse = ", ".join(name.replace("_", " ") for name in STRUCTURE if name not in better)
        objections.append(f"Most criteria of the predictions are not better: {worse}.")
    risks = [s.risk for s in (start, adapted) if s.risk is not None and s.risk.covers_target]
    if len(risks) == 2:
        terms = risks[1].terms - risks[0].terms
        error = 1.96 * float(terms.std(ddof=1)) / math.sqrt(len(terms))
        if float(terms.mean()) - error > 0:
            objections.append(
                "The estimated error on the target is significantly higher "
                f"({terms.mean():+.3f} [{terms.mean() - error:+.3f}, {terms.mean() + error:+.3f}])."
            )
    return tuple(objections)


def choose_adapted(scores: Sequence[TargetScores]) -> int:
    """Choose among accepted models: the best mean rank over all criteria but the entropy.

    The first wins a tie.

    Parameters
    ----------
    scores : sequence of TargetScores
        At least one.

    Returns
    -------
    int
        Index of the chosen model.

    Examples
    --------
    >>> unsure, sure = (score_target(p, np.eye(2)) for p in (np.full((2, 2), 0.5), np.eye(2)))
    >>> choose_adapted([unsure, sure])
    1
    """
    columns = [[s.values[name] for s in scores] for name in ("mutual_information", *STRUCTURE)]
    risks = [s.risk.value for s in scores if s.risk is not None and s.risk.covers_target]
    if len(risks) == len(scores):
        columns.append([-risk for risk in risks])
    table = np.array(columns)
    ranks = (table[:, :, None] < table[:, None, :]).sum(axis=2)  # number of better models
    return int(ranks.mean(axis=0).argmin())
