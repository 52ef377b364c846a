"""Answering only where it is sure enough: risk against coverage, and a threshold with a proof.

The risk is the share of wrong answers among those that are given, the coverage the share of
images that get one.
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
from headstart.metrics.validation import Weights, weights_of

__all__ = ["RiskCoverage", "Selected", "risk_coverage", "risk_upper_bound", "threshold_for_risk"]

Floats = NDArray[np.float64]

LOOKS = 10
"""Thresholds that are looked at, at most: each more costs certainty, each less coverage."""

APART = 0.05
"""Share of the images that two looks are apart, at least."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RiskCoverage:
    """Risk and coverage at every threshold, from the surest images on.

    Parameters
    ----------
    coverage, risk, thresholds : array, shape (m,)
        One entry for each different confidence, falling; what is at least as sure as the
        threshold is answered. The last coverage is 1.
    aurc : float
        Area under the curve, 0 to 1: the mean risk over all images' own confidences as
        thresholds. Lower is better.
    """

    coverage: Floats
    risk: Floats
    thresholds: Floats
    aurc: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """The threshold with the most coverage whose risk is shown to be as low as was wanted.

    Parameters
    ----------
    threshold : float or None
        From this confidence on an answer is given; minus infinity answers everything. None where
        no threshold that was looked at could be shown to reach the risk.
    coverage, risk : float
        On the images it was chosen on; without a threshold those of the best bound.
    bound : float
        The risk on new images is at most this, at ``level``.
    max_risk, level : float
        What was wanted.
    images : int
        It was chosen on.
    looks : int
        Thresholds that were looked at, which the bound pays for.
    provable : float
        The lowest risk that so many images could show, were every answer right.
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
        """Say in words what was chosen, or why nothing was.

        >>> sure = np.linspace(0.5, 1, 40)
        >>> threshold_for_risk(sure, sure > 0, max_risk=0.02).sentence()[:63]
        'No threshold is shown to be wrong in at most 2 % of its answers'
        """
        wanted = f"wrong in at most {_percent(self.max_risk)} of its answers"
        if self.threshold is not None:
            return (
                f"Chosen to be {wanted}: on {self.images} images that the head did not learn "
                f"from it answers {_percent(self.coverage)}, {_percent(self.risk)} of them wrong; "
                f"at {_percent(self.level)} certainty at most {_percent(self.bound)}."
            )
        if self.provable > self.max_risk:
            return (
                f"No threshold is shown to be {wanted}: {self.images} images could show no "
                f"less than {_percent(self.provable)} even if every answer were right; more "
                "labelled images would."
            )
        return (
            f"No threshold is shown to be {wanted}: of {self.looks} on {self.images} images "
            f"the best answers {_percent(self.coverage)}, {_percent(self.risk)} of them wrong, "
            f"which shows no less than {_percent(self.bound)}; more images or a better model "
            "would."
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON knows; answering everything is a threshold of 0."""
        found = asdict(self)
        if self.threshold is not None:
            found["threshold"] = max(self.threshold, 0.0)
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build it from the plain values of ``as_dict``.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a value is missing, or is no number that makes sense.
        """
        threshold = values["threshold"]
        shares = {
            name: float(values[name])
            for name in ("coverage", "risk", "bound", "max_risk", "level", "provable")
        }
        found = cls(
            threshold=None if threshold is None else float(threshold),
            images=int(values["images"]),
            looks=int(values["looks"]),
            **shares,
        )
        least = 0.0 if found.threshold is None else found.threshold
        if not all(0 <= share <= 1 for share in (*shares.values(), least)):
            raise ValueError(f"shares from 0 to 1 expected, got {dict(values)}")
        return found


def risk_coverage(
    confidence: ArrayLike, correct: ArrayLike, weights: Weights = None
) -> RiskCoverage:
    """How often answers are wrong, if only the surest are given, for every share of them.

    Parameters
    ----------
    confidence : array, shape (n,)
        Of each image's answer; images of one confidence are answered together or not at all.
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
    >>> found = risk_coverage([0.9, 0.8, 0.8, 0.6], [True, True, False, False])
    >>> found.coverage.tolist(), found.risk.round(3).tolist(), round(found.aurc, 3)
    ([0.25, 0.75, 1.0], [0.0, 0.333, 0.5], 0.292)
    """
    sure, right = _checked(confidence, correct)
    mass = weights_of(weights, len(sure))
    if mass.ndim != 1:
        raise UsageError(f"Expected `weights` of shape ({len(sure)},), got {mass.shape}.")
    levels, place = np.unique(-sure, return_inverse=True)
    here = np.bincount(place, weights=mass)
    wrong = np.cumsum(np.bincount(place, weights=mass * ~right))
    known = here > 0  # a level of weight 0 is no image
    answered = np.cumsum(here)
    risk = wrong[known] / answered[known]
    return RiskCoverage(
        coverage=answered[known] / answered[-1],
        risk=risk,
        thresholds=-levels[known],
        aurc=float(here[known] @ risk / answered[-1]),
    )


def risk_upper_bound(errors: float, answered: float, level: float = 0.95) -> float:
    """Risk that is not exceeded, at ``level``, where so many of the given answers were wrong.

    Counts may be fractions (effective numbers of images). Without an answer it is 1.

    References
    ----------
    Clopper and Pearson (1934), one-sided; the b with P(Binomial(answered, b) <= errors) =
    1 - level of Geifman and El-Yaniv (2017), "Selective classification for deep neural networks",
    lemma 3.1.

    Examples
    --------
    >>> round(risk_upper_bound(0, 100), 4), round(1 - 0.05 ** (1 / 100), 4)
    (0.0295, 0.0295)
    """
    from scipy.special import betaincinv

    if not 0 <= errors <= answered < math.inf:
        raise UsageError(f"Expected 0 <= `errors` <= `answered`, got {errors} of {answered}.")
    _require_share("level", level)
    if answered - errors <= 1e-9:  # nothing was right, or nothing answered
        return 1.0
    return float(betaincinv(errors + 1, answered - errors, level))


def threshold_for_risk(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    max_risk: float,
    level: float = 0.95,
    groups: Groups = None,
) -> Selected:
    """The threshold that answers most, of those whose risk is shown to be at most ``max_risk``.

    At most ``LOOKS`` numbers of answers are looked at, which the number of images decides and
    their confidences do not. Each look leaves out the least sure images: above the surest of
    those left out, the others are drawn independently, so that their errors are binomial and
    have an exact bound. Each bound has (1 - level) / looks of the error, and so all hold
    together, whichever is chosen.

    With groups (patients, videos) the errors are not binomial. The bound is then that of an
    effective number of images, which the errors' own clustering decides, and which is as small
    as if each group said one thing where there are no errors to tell. This is approximate; see
    docs/selective.md for how often it holds.

    Parameters
    ----------
    confidence : array, shape (n,)
    correct : array of bool, shape (n,)
        Of images that neither the model was trained nor will be judged on.
    max_risk : float
        Share of the given answers that may be wrong, above 0 and below 1.
    level : float
        How often, over sets of images to choose on, the bound holds; above 0.5.
    groups : n hashables, optional
        An image whose group is None is a group of its own.

    Returns
    -------
    Selected
        Without a threshold where none could be shown to have such a risk.

    Raises
    ------
    UsageError
        If the arrays are empty, do not fit each other, or a share lies outside (0, 1).

    References
    ----------
    Geifman and El-Yaniv (2017), "Selective classification for deep neural networks", algorithm 1
    and theorem 3.2, with looks that are set beforehand instead of a bisection, so that the sum
    over them needs no further assumption; Korn and Graubard (1998), "Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data"
    (effective numbers).

    Examples
    --------
    >>> sure = np.linspace(0.5, 1, 400)
    >>> found = threshold_for_risk(sure, sure > 0.55, max_risk=0.05)
    >>> print(f"{found.threshold:.3f} {found.coverage:.2f} {found.risk:.4f} {found.bound:.4f}")
    0.540 0.92 0.0191 0.0460
    """
    sure, right = _checked(confidence, correct)
    _require_share("max_risk", max_risk)
    _require_share("level", level, above=0.5)
    n = len(sure)
    codes, _ = units(n, groups)
    together = None if groups is None else codes
    independent = n**2 / float((np.bincount(codes).astype(np.float64) ** 2).sum())
    counts = _looks(n, independent, max_risk, 1 - level)
    per_look = 1 - (1 - level) / len(counts)
    order = np.sort(sure)
    best: tuple[float, ...] | None = None
    for count in counts:  # the largest first: the first that holds answers most
        above = -math.inf if count == n else float(order[n - count - 1])
        kept = sure > above
        bound = _bound(right[kept], None if together is None else together[kept], per_look)
        risk = float((~right[kept]).sum()) / max(int(kept.sum()), 1)
        found = (bound, above, float(kept.mean()), risk)
        best = found if best is None or bound < best[0] else best
        if bound <= max_risk:
            best = found
            break
    bound, above, coverage, risk = best or (1.0, math.inf, 0.0, 0.0)
    return Selected(
        threshold=_just(above) if bound <= max_risk else None,
        coverage=coverage,
        risk=risk,
        bound=bound,
        max_risk=max_risk,
        level=level,
        images=n,
        looks=len(counts),
        provable=risk_upper_bound(0, independent, level),
    )


def _just(above: float) -> float:
    """The least number above; nothing is below minus infinity."""
    return above if math.isinf(above) else math.nextafter(above, math.inf)


def _looks(n: int, independent: float, max_risk: float, error: float) -> list[int]:
    """Numbers of answers to look at, falling from n to the least that could show the risk."""
    for looks in range(LOOKS, 1, -1):
        needed = math.log(error / looks) / math.log1p(-max_risk) / independent
        if needed + (looks - 1) * APART <= 1:
            least = math.ceil(needed * n - 1e-9)
            return sorted({round(x) for x in np.linspace(least, n, looks)} | {n}, reverse=True)
    return [n]


def _bound(right: NDArray[np.bool_], groups: NDArray[np.intp] | None, level: float) -> float:
    answered, wrong = float(len(right)), float((~right).sum())
    if groups is None or not len(right):
        return risk_upper_bound(wrong, answered, level)
    # Two-sided at this level, an interval leaves 1 - level out on the side that counts here.
    two_sided = 2 * level - 1
    found = proportion_interval(right, groups, level=two_sided)
    size = _size_of(found.value, found.low, found.high, two_sided)
    return risk_upper_bound(wrong / answered * size, size, level)


def _size_of(value: float, low: float, high: float, level: float) -> float:
    """Number of images that has this score interval: (value - end)^2 = z^2 end (1 - end) / n."""
    end = low if value > 0.5 else high
    return float(normal_quantile(level) ** 2 * end * (1 - end) / (value - end) ** 2)


def _checked(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if sure.ndim != 1 or sure.shape != right.shape or not sure.size or right.dtype.kind != "b":
        raise UsageError(
            "Expected `confidence` and `correct` as numbers and booleans of one shape (n,), n at "
            f"least 1, got {sure.shape} and {right.dtype} of {right.shape}; do pass one of each an "
            "image."
        )
    if not np.isfinite(sure).all():
        raise UsageError("Expected finite `confidence`, got NaN or infinity; do leave these out.")
    return sure, right


def _require_share(name: str, value: float, *, above: float = 0.0) -> None:
    if not above < value < 1:
        raise UsageError(
            f"Expected `{name}` to lie between {above:g} and 1, got {value}; do pass a share such "
            f"as {0.95 if name == 'level' else 0.02}."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.3g} %"
