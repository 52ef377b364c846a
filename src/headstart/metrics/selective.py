"""Selective prediction: risk against coverage, and a threshold with a guaranteed risk.

A model abstains below a confidence threshold. The coverage is the share of images with a
prediction, the risk the share of wrong predictions among these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import (
    Groups,
    normal_quantile,
    proportion_interval,
    units,
)
from headstart.metrics.validation import Weights, check_weights

__all__ = [
    "RiskCoverage",
    "SelectedThreshold",
    "risk_coverage",
    "risk_upper_bound",
    "threshold_for_risk",
]

Floats = NDArray[np.float64]

MAX_THRESHOLDS = 10
"""Largest number of thresholds tested. Each test widens the bounds; too few lose coverage."""

MIN_COVERAGE_STEP = 0.05
"""Smallest difference in coverage between two tested thresholds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RiskCoverage:
    """Risk and coverage at every threshold, from the highest confidence to the lowest.

    Parameters
    ----------
    coverage, risk, thresholds : array, shape (m,)
        One entry for each different confidence, falling. The model predicts where the confidence
        is at least the threshold. The last coverage is 1.
    aurc : float
        Area under the curve, 0 to 1: the mean risk, with the confidence of each image as the
        threshold. Lower is better.
    """

    coverage: Floats
    risk: Floats
    thresholds: Floats
    aurc: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedThreshold:
    """Threshold with the largest coverage whose risk is proven to be at most ``max_risk``.

    Parameters
    ----------
    threshold : float or None
        Lowest confidence with a prediction. Minus infinity means that the model never abstains,
        None that no tested threshold provably reaches the risk.
    coverage, risk : float
        On the images that chose the threshold. Without a threshold, those of the best bound.
    bound : float
        Upper bound of the risk on new images, at ``level``.
    max_risk, level : float
        Requested risk and confidence level.
    images : int
        Number of images that chose the threshold.
    looks : int
        Number of tested thresholds, which the bound accounts for.
    provable : float
        Bound that these images give if all predictions are correct.
    """

    threshold: float | None
    coverage: float
    risk: float
    bound: float
    max_risk: float
    level: float
    images: int
    looks: int
    provable: float

    def sentence(self) -> str:
        """Summarise the threshold, or the reason for none.

        >>> confidences = np.linspace(0.5, 1, 40)
        >>> threshold_for_risk(confidences, confidences > 0, max_risk=0.02).sentence()[:75]
        'No threshold reaches a risk (share of wrong predictions) of at most 2 %: 40'
        """
        goal = f"a risk (share of wrong predictions) of at most {_format_percent(self.max_risk)}"
        if self.threshold is not None:
            return (
                f"Threshold chosen for {goal}. On {self.images} images that the head was not "
                f"trained on, the model predicts {_format_percent(self.coverage)}, "
                f"{_format_percent(self.risk)} of them wrong. With {_format_percent(self.level)} "
                f"confidence, the risk is at most {_format_percent(self.bound)}."
            )
        if self.provable > self.max_risk:
            return (
                f"No threshold reaches {goal}: {self.images} images cannot prove a risk below "
                f"{_format_percent(self.provable)}, even without an error. Add labelled images."
            )
        return (
            f"No threshold reaches {goal}: the best of {self.looks} predicts "
            f"{_format_percent(self.coverage)} of {self.images} images, "
            f"{_format_percent(self.risk)} of them wrong, which proves a risk of at most "
            f"{_format_percent(self.bound)}. Add labelled images or improve the model."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values. A model that never abstains has the threshold 0."""
        values = asdict(self)
        if self.threshold is not None:
            values["threshold"] = max(self.threshold, 0.0)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the values that ``as_dict`` returned.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a value is missing or invalid.
        """
        threshold = values["threshold"]
        shares = {
            name: float(values[name])
            for name in ("coverage", "risk", "bound", "max_risk", "level", "provable")
        }
        selected = cls(
            threshold=None if threshold is None else float(threshold),
            images=int(values["images"]),
            looks=int(values["looks"]),
            **shares,
        )
        lowest = 0.0 if selected.threshold is None else selected.threshold
        if not all(0 <= share <= 1 for share in (*shares.values(), lowest)):
            raise ValueError(f"Expected shares from 0 to 1, got {dict(values)}.")
        return selected


def risk_coverage(
    confidence: ArrayLike, correct: ArrayLike, weights: Weights = None
) -> RiskCoverage:
    """Compute the risk for every coverage: predict the most confident images first.

    Parameters
    ----------
    confidence : array, shape (n,)
        Of each image's prediction. Images with the same confidence are predicted together.
    correct : array of bool, shape (n,)
    weights : array, shape (n,), optional

    Returns
    -------
    RiskCoverage

    Raises
    ------
    UsageError
        If the arrays are empty, do not fit each other, or a confidence is not finite.

    References
    ----------
    El-Yaniv and Wiener (2010), "On the foundations of noise-free selective classification",
    section 2; Geifman, Uziel and El-Yaniv (2019), "Bias-reduced uncertainty estimation for deep
    neural classifiers", section 2 (area under the curve).

    Examples
    --------
    >>> curve = risk_coverage([0.9, 0.8, 0.8, 0.6], [True, True, False, False])
    >>> curve.coverage.tolist(), curve.risk.round(3).tolist(), round(curve.aurc, 3)
    ([0.25, 0.75, 1.0], [0.0, 0.333, 0.5], 0.292)
    """
    confidences, is_correct = _check_confidences(confidence, correct)
    image_weights = check_weights(weights, len(confidences))
    if image_weights.ndim != 1:
        raise UsageError(
            f"Expected `weights` of shape ({len(confidences)},), got {image_weights.shape}. Pass "
            "one weight for each image."
        )
    negative_levels, level_of = np.unique(-confidences, return_inverse=True)
    level_weights = np.bincount(level_of, weights=image_weights)
    wrong_weights = np.cumsum(np.bincount(level_of, weights=image_weights * ~is_correct))
    has_images = level_weights > 0  # images of weight 0 count as absent
    predicted_weights = np.cumsum(level_weights)
    risk = wrong_weights[has_images] / predicted_weights[has_images]
    return RiskCoverage(
        coverage=predicted_weights[has_images] / predicted_weights[-1],
        risk=risk,
        thresholds=-negative_levels[has_images],
        aurc=float(level_weights[has_images] @ risk / predicted_weights[-1]),
    )


def risk_upper_bound(errors: float, n_predicted: float, level: float = 0.95) -> float:
    """Upper confidence bound of the risk after ``errors`` in ``n_predicted`` predictions.

    Counts may be fractions (effective numbers of images). Without a prediction the bound is 1.

    References
    ----------
    Clopper and Pearson (1934), one-sided; the b with P(Binomial(n_predicted, b) <= errors) =
    1 - level of Geifman and El-Yaniv (2017), "Selective classification for deep neural networks",
    lemma 3.1.

    Examples
    --------
    >>> round(risk_upper_bound(0, 100), 4), round(1 - 0.05 ** (1 / 100), 4)
    (0.0295, 0.0295)
    """
    from scipy.special import betaincinv

    if not 0 <= errors <= n_predicted < math.inf:
        raise UsageError(
            f"Expected 0 <= `errors` <= `n_predicted`, got {errors} of {n_predicted}. Pass counts."
        )
    _require_share("level", level)
    if n_predicted - errors <= 1e-9:  # no correct prediction, or no prediction
        return 1.0
    return float(betaincinv(errors + 1, n_predicted - errors, level))


def threshold_for_risk(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    max_risk: float,
    level: float = 0.95,
    groups: Groups = None,
) -> SelectedThreshold:
    """Find the threshold with the largest coverage whose risk is provably at most ``max_risk``.

    At most ``MAX_THRESHOLDS`` numbers of predictions are tested. They depend on the number of
    images, not on the confidences. Each test drops the least confident images. Given the highest
    confidence among the dropped ones, the other images are independent draws, so that the number
    of errors is binomial and has an exact bound. Each bound gets the error
    (1 - level) / number of tests, so that all bounds hold together and any of them may be chosen.

    With groups (patients, videos) the errors are not binomial. The bound is then computed for an
    effective number of images, estimated from the clustering of the errors. Without errors, it is
    the number for images that are equal within each group. This is approximate; docs/selective.md
    reports how often it holds.

    Parameters
    ----------
    confidence : array, shape (n,)
    correct : array of bool, shape (n,)
        Of images used neither for training nor for the evaluation.
    max_risk : float
        Largest share of wrong predictions, above 0 and below 1.
    level : float
        Probability that the bound holds; above 0.5.
    groups : n hashables, optional
        An image whose group is None is a group of its own.

    Returns
    -------
    SelectedThreshold
        Without a threshold if none provably has such a risk.

    Raises
    ------
    UsageError
        If the arrays are empty, do not fit each other, or a share lies outside (0, 1).

    References
    ----------
    Geifman and El-Yaniv (2017), "Selective classification for deep neural networks", algorithm 1
    and theorem 3.2, with thresholds fixed in advance instead of a bisection, so that the sum
    over them needs no further assumption; Korn and Graubard (1998), "Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data"
    (effective numbers).

    Examples
    --------
    >>> confidences = np.linspace(0.5, 1, 400)
    >>> selected = threshold_for_risk(confidences, confidences > 0.55, max_risk=0.05)
    >>> print(f"{selected.threshold:.3f} {selected.coverage:.2f} {selected.bound:.4f}")
    0.540 0.92 0.0460
    """
    confidences, is_correct = _check_confidences(confidence, correct)
    _require_share("max_risk", max_risk)
    _require_share("level", level, above=0.5)
    n = len(confidences)
    codes, _ = units(n, groups)
    group_codes = None if groups is None else codes
    independent = n**2 / float((np.bincount(codes).astype(np.float64) ** 2).sum())
    counts = _prediction_counts(n, independent, max_risk, 1 - level)
    level_per_test = 1 - (1 - level) / len(counts)
    order = np.sort(confidences)
    best: tuple[float, ...] | None = None
    for count in counts:  # falling: the first one within the risk has the largest coverage
        limit = -math.inf if count == n else float(order[n - count - 1])
        is_predicted = confidences > limit
        predicted_groups = None if group_codes is None else group_codes[is_predicted]
        risk_bound = _clustered_risk_bound(
            is_correct[is_predicted], predicted_groups, level_per_test
        )
        risk = float((~is_correct[is_predicted]).sum()) / max(int(is_predicted.sum()), 1)
        candidate = (risk_bound, limit, float(is_predicted.mean()), risk)
        best = candidate if best is None or risk_bound < best[0] else best
        if risk_bound <= max_risk:
            best = candidate
            break
    risk_bound, limit, coverage, risk = best or (1.0, math.inf, 0.0, 0.0)
    return SelectedThreshold(
        threshold=_next_above(limit) if risk_bound <= max_risk else None,
        coverage=coverage,
        risk=risk,
        bound=risk_bound,
        max_risk=max_risk,
        level=level,
        images=n,
        looks=len(counts),
        provable=risk_upper_bound(0, independent, level),
    )


def _next_above(number: float) -> float:
    """Return the next larger float; minus infinity stays, because it excludes nothing."""
    return number if math.isinf(number) else math.nextafter(number, math.inf)


def _prediction_counts(n: int, independent: float, max_risk: float, error: float) -> list[int]:
    """Numbers of predictions to test, falling from n to the smallest that can prove the risk."""
    for n_tests in range(MAX_THRESHOLDS, 1, -1):
        # Share of the images at which a bound without errors reaches the risk.
        min_share = math.log(error / n_tests) / math.log1p(-max_risk) / independent
        if min_share + (n_tests - 1) * MIN_COVERAGE_STEP <= 1:
            smallest = math.ceil(min_share * n - 1e-9)
            return sorted({round(x) for x in np.linspace(smallest, n, n_tests)} | {n}, reverse=True)
    return [n]


def _clustered_risk_bound(
    is_correct: NDArray[np.bool_], groups: NDArray[np.intp] | None, level: float
) -> float:
    n_predicted, errors = float(len(is_correct)), float((~is_correct).sum())
    if groups is None or not len(is_correct):
        return risk_upper_bound(errors, n_predicted, level)
    # A two-sided interval at this level leaves out 1 - level on the upper side.
    two_sided = 2 * level - 1
    interval = proportion_interval(is_correct, groups, level=two_sided)
    size = _effective_size_of(interval.value, interval.low, interval.high, two_sided)
    return risk_upper_bound(errors / n_predicted * size, size, level)


def _effective_size_of(value: float, low: float, high: float, level: float) -> float:
    """Number of images that has this score interval: (value - end)^2 = z^2 end (1 - end) / n."""
    end = low if value > 0.5 else high
    return float(normal_quantile(level) ** 2 * end * (1 - end) / (value - end) ** 2)


def _check_confidences(
    confidence: ArrayLike, correct: ArrayLike
) -> tuple[Floats, NDArray[np.bool_]]:
    confidences, is_correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if (
        confidences.ndim != 1
        or confidences.shape != is_correct.shape
        or not confidences.size
        or is_correct.dtype.kind != "b"
    ):
        raise UsageError(
            "Expected `confidence` and `correct` as numbers and booleans of one shape (n,), n at "
            f"least 1, got {confidences.shape} and {is_correct.dtype} of {is_correct.shape}. Pass "
            "one of each for each image."
        )
    if not np.isfinite(confidences).all():
        raise UsageError("Expected finite `confidence`, got NaN or infinity. Remove those images.")
    return confidences, is_correct


def _require_share(name: str, value: float, *, above: float = 0.0) -> None:
    if not above < value < 1:
        raise UsageError(
            f"Expected `{name}` to lie between {above:g} and 1, got {value}. Pass a share such "
            f"as {0.95 if name == 'level' else 0.02}."
        )


def _format_percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.3g} %"
