"""Intervals: closed forms against published numbers, and coverage by simulation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headstart.errors import UsageError
from headstart.metrics import classification as metrics
from headstart.metrics.confidence_intervals import (
    Interval,
    bootstrap_intervals,
    paired_differences,
    paired_proportion_difference,
    proportion_interval,
    wilson_interval,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)
SETS = 1500


def mean_of(values: Any) -> Callable[[Any], Any]:
    return lambda weights: weights @ values / weights.sum(axis=-1)


# closed forms


@quick
@given(st.integers(1, 500), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_is_scipys(total: int, share: float, level: float) -> None:
    successes = round(share * total)
    result = wilson_interval(successes, total, level)
    expected = stats.binomtest(successes, total).proportion_ci(level, method="wilson")
    assert result.low == pytest.approx(expected.low, abs=1e-12)
    assert result.high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert result.high > result.low


def test_wilson_takes_effective_sizes() -> None:
    between = wilson_interval(8.5, 10.5)
    assert wilson_interval(8, 10).low < between.low < wilson_interval(9, 11).low


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((20, 12, 2, 16), 0.0562, 0.3292)],
)
def test_paired_proportions_are_newcombes(cells: tuple[int, ...], low: float, high: float) -> None:
    """Published limits (Newcombe 1998, table II) for both right, only A, only B, none."""
    a = np.repeat([True, True, False, False], cells)
    b = np.repeat([True, False, True, False], cells)
    result = paired_proportion_difference(a, b)
    assert result.interval.value == pytest.approx(0.2)
    assert result.interval.low == pytest.approx(low, abs=5e-5)
    assert result.interval.high == pytest.approx(high, abs=5e-5)
    assert result.significant
    back = paired_proportion_difference(b, a).interval
    assert (back.low, back.high) == pytest.approx((-result.interval.high, -result.interval.low))


# proportions never pretend to be certain


@quick
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 20))
def test_proportions_never_degenerate(n: int, seed: int, share: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    right, groups = rng.random(n) < share, rng.integers(0, count, n)
    plain, grouped = proportion_interval(right), proportion_interval(right, groups)
    for result in (plain, grouped):
        assert result.value == pytest.approx(right.mean())
        assert 0 <= result.low <= result.value <= result.high <= 1
        assert result.high - result.low > 0.01
    # never narrower than independent images, never wider than one answer per group
    assert grouped.high - grouped.low >= plain.high - plain.low - 1e-12
    fewest = n**2 / (np.bincount(groups) ** 2).sum()
    widest = wilson_interval(right.mean() * fewest, fewest)
    assert grouped.high - grouped.low <= widest.high - widest.low + 1e-12


def test_groups_of_one_are_no_groups() -> None:
    right = np.arange(40) < 33
    for groups in (range(40), [None] * 40):
        grouped = proportion_interval(right, groups)
        assert (grouped.low, grouped.high) == pytest.approx(
            (proportion_interval(right).low, proportion_interval(right).high)
        )


def test_groups_that_agree_count_as_one_answer_each() -> None:
    right = np.repeat(np.arange(10) < 8, 20)
    result = proportion_interval(right, np.repeat(np.arange(10), 20))
    expected = wilson_interval(8, 10)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert result.method == "wilson-clustered"


def test_many_images_in_few_groups_have_the_cluster_t_interval() -> None:
    """Ten groups of 1 to 2000 images: the ratio estimator's t-interval, 9 degrees of freedom."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), rng.integers(1000, 2000, 10))
    right = rng.random(len(groups)) < rng.uniform(0.45, 0.65, 10)[groups]
    totals = np.bincount(groups, weights=right - right.mean())
    error = math.sqrt(10 / 9 * (totals**2).sum()) / len(groups)
    result = proportion_interval(right, groups)
    half = stats.t.ppf(0.975, 9) * error
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.02)
    other = rng.random(len(groups)) < 0.5
    gaps = right.astype(float) - other
    totals = np.bincount(groups, weights=gaps - gaps.mean())
    error = math.sqrt(10 / 9 * (totals**2).sum()) / len(groups)
    paired = paired_proportion_difference(right, other, groups).interval
    half = stats.t.ppf(0.975, 9) * error
    assert (paired.high - paired.low) / 2 == pytest.approx(half, rel=0.05)


def test_no_images_say_nothing() -> None:
    for result in (proportion_interval([]), wilson_interval(0, 0), proportion_interval([], [])):
        assert str(result) == "undefined"
    assert not paired_proportion_difference([], []).significant


def test_equal_models_cannot_be_told_apart_and_opposite_ones_can() -> None:
    right = np.arange(50) % 2 == 0
    same = paired_proportion_difference(right, right)
    assert same.interval.low < 0 < same.interval.high
    assert not same.significant
    yes, no = np.ones(20, bool), np.zeros(20, bool)
    assert paired_proportion_difference(yes, no).significant
    assert paired_proportion_difference(yes[:6], no[:6]).significant
    few = paired_proportion_difference(yes[:5], no[:5])  # an exact sign test gives 0.06
    assert few.interval.low > 0
    assert not few.significant
    grouped = paired_proportion_difference(yes, no, [0] * 10 + [1] * 10)
    assert not grouped.significant


# resamples


def test_one_row_at_a_time_and_all_rows_at_once_agree() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 50)
    p = rng.dirichlet(np.ones(3), 50)
    groups = rng.integers(0, 15, 50)

    def both(weights: Any) -> Any:
        losses = metrics.log_loss(y, p, sample_weight=weights)
        return np.stack([losses, metrics.brier_loss(y, p, sample_weight=weights)], axis=-1)

    options = {"groups": groups, "n_resamples": 120, "seed": 5}
    looped = bootstrap_intervals(both, 50, **options)
    many = bootstrap_intervals(both, 50, vectorized=True, **options)
    for a, b in zip(looped, many, strict=True):
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))
    assert looped[0].value == metrics.log_loss(y, p)
    assert bootstrap_intervals(both, 50, vectorized=True, **options) == many
    assert bootstrap_intervals(both, 50, vectorized=True, **{**options, "seed": 6}) != many


def test_bca_is_scipys() -> None:
    """The same method with another expansion and other draws: close, not equal."""
    values = np.random.default_rng(0).exponential(size=200)
    (result,) = bootstrap_intervals(mean_of(values), 200, n_resamples=8000, vectorized=True)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=8000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = expected.high - expected.low
    assert result.low == pytest.approx(expected.low, abs=0.04 * width)
    assert result.high == pytest.approx(expected.high, abs=0.04 * width)


@pytest.mark.parametrize("statistic", [mean_of(np.ones(9)), lambda weights: math.nan])
def test_what_never_varies_is_unknown(statistic: Any) -> None:
    (result,) = bootstrap_intervals(statistic, 9)
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert "[unknown]" in str(result) or str(result) == "undefined"


def test_one_unit_is_unknown() -> None:
    for groups in (["a"] * 9, None):
        n = 9 if groups else 1
        (result,) = bootstrap_intervals(mean_of(np.arange(n)), n, groups=groups)
        assert result.value == np.arange(n).mean()
        assert math.isnan(result.low)


def test_undefined_resamples_are_left_out_until_they_are_most() -> None:
    values = np.arange(20.0)

    def sometimes(first: int) -> Callable[[Any], float]:
        """NaN where none of the first images was drawn, as with the recall of a rare class."""
        return lambda w: float(mean_of(values)(w)) if w[:first].sum() > 0 else math.nan

    (rarely,) = bootstrap_intervals(sometimes(1), 20)  # NaN on (19/20)**20 = 36 %
    assert rarely.low < rarely.value < rarely.high
    (mostly,) = bootstrap_intervals(
        lambda w: float(mean_of(values)(w)) if (w[:2] > 0).all() else math.nan, 20
    )
    assert mostly.value == values.mean()
    assert math.isnan(mostly.low)


def test_a_number_that_resampling_shifts_still_lies_in_its_interval() -> None:
    """Calibration error of a calibrated model: every resample looks worse than the set."""
    shifted = 0
    for number in range(60):
        y, p = two_classes(np.random.default_rng([14, number]), 100)

        def error(weights: Any, y: Any = y, p: Any = p) -> Any:
            return metrics.expected_calibration_error(y, p, sample_weight=weights)

        (result,) = bootstrap_intervals(error, 100, n_resamples=200, seed=number, vectorized=True)
        assert 0 <= result.low <= result.value <= result.high <= 1
        shifted += result.low == 0
    assert shifted > 20  # the truth is 0


def test_differences_use_the_same_resamples() -> None:
    """A constant gap is seen however noisy the images are: only pairing can do that."""
    rng = np.random.default_rng(0)
    a = rng.normal(scale=10, size=60)
    b = a - 0.5 + rng.normal(scale=0.1, size=60)
    (result,) = paired_differences(mean_of(a), mean_of(b), 60, n_resamples=200, vectorized=True)
    assert result.significant
    assert result.interval.value == pytest.approx(0.5, abs=0.1)
    alone = bootstrap_intervals(mean_of(a), 60, n_resamples=200, vectorized=True)[0]
    assert alone.high - alone.low > 20 * (result.interval.high - result.interval.low)
    (none,) = paired_differences(mean_of(a), mean_of(a), 60)
    assert not none.significant


# what a person or a file sees


def test_text_and_json() -> None:
    result = Interval(value=0.871, low=0.842, high=0.897, method="wilson")
    assert str(result) == "0.871 [0.842, 0.897]"
    assert result.as_dict() == {
        "value": 0.871,
        "low": 0.842,
        "high": 0.897,
        "level": 0.95,
        "method": "wilson",
    }
    unknown = Interval(value=1.0, low=math.nan, high=math.nan, method="bootstrap-bca")
    assert str(unknown) == "1.000 [unknown]"
    assert json.loads(json.dumps(unknown.as_dict(), allow_nan=False))["low"] is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: wilson_interval(3, 2), "`successes`"),
        (lambda: wilson_interval(-1, 2), "`successes`"),
        (lambda: wilson_interval(math.nan, 2), "`successes`"),
        (lambda: wilson_interval(1, 2, 95), "`level`"),
        (lambda: proportion_interval([0.5, 1.0]), "booleans"),
        (lambda: proportion_interval([[True]]), "booleans"),
        (lambda: proportion_interval([True], groups=[1, 2]), "`groups` to have 1"),
        (lambda: paired_proportion_difference([True], [True, False]), "`correct_b`"),
        (lambda: bootstrap_intervals(mean_of(np.ones(3)), 0), "`n`"),
        (lambda: bootstrap_intervals(mean_of(np.ones(3)), 3, n_resamples=10), "`n_resamples`"),
        (lambda: bootstrap_intervals(mean_of(np.ones(3)), 3, level=0), "`level`"),
        (lambda: bootstrap_intervals(lambda w: 1.0, 3, vectorized=True), "`statistic`"),
        (lambda: bootstrap_intervals(lambda w: np.ones((2, 2)), 3), "`statistic`"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert str(caught.value).startswith("Expected ")
    assert re.search(r"\. [A-Z]\w+ .*\.$", str(caught.value)), "an imperative sentence follows"


# coverage: of 1500 simulated data sets, 93-97 % of the 95 % intervals hold the truth

Simulated = tuple[Callable[[Any], Any], int, Any]


def two_classes(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """Classes as two normal clouds, probabilities from the true posterior."""
    y = rng.integers(0, 2, n)
    x = rng.normal(size=n) + 1.5 * y
    p = 1 / (1 + np.exp(-1.5 * (x - 0.75)))
    return y, np.stack([1 - p, p], axis=1)


def clustered(rng: np.random.Generator) -> tuple[Any, Any]:
    """30 groups of 1 to 11 images; a correlation of 0.3 within the group; 85 % right."""
    groups = np.repeat(np.arange(30), rng.integers(1, 12, 30))
    spread = (1 - 0.3) / 0.3
    share = rng.beta(0.85 * spread, 0.15 * spread, 30)
    return rng.random(len(groups)) < share[groups], groups


def accuracy(rng: np.random.Generator) -> Simulated:
    return mean_of(rng.random(100) < 0.85), 100, None


def balanced_accuracy(rng: np.random.Generator) -> Simulated:
    y = rng.choice(3, 100, p=[0.5, 0.3, 0.2])
    z = np.where(rng.random(100) < np.array([0.9, 0.8, 0.7])[y], y, (y + 1) % 3)
    return lambda w: metrics.balanced_accuracy_score(y, z, sample_weight=w), 100, None


def log_loss(rng: np.random.Generator) -> Simulated:
    y, p = two_classes(rng, 100)
    return lambda w: metrics.log_loss(y, p, sample_weight=w), 100, None


def auroc(rng: np.random.Generator) -> Simulated:
    y, p = two_classes(rng, 100)
    return lambda w: metrics.macro_auroc_score(y, p, sample_weight=w), 100, None


def truths() -> dict[str, float]:
    y, p = two_classes(np.random.default_rng(1), 400_000)
    exact_area = float(stats.norm.cdf(1.5 / math.sqrt(2)))
    assert float(metrics.macro_auroc_score(y, p)) == pytest.approx(exact_area, abs=2e-3)
    loss = float(metrics.log_loss(y, p))
    return {"accuracy": 0.85, "balanced_accuracy": 0.8, "log_loss": loss, "auroc": exact_area}


@pytest.mark.parametrize("simulate", [accuracy, balanced_accuracy, log_loss, auroc])
def test_bootstrap_coverage(simulate: Callable[[np.random.Generator], Simulated]) -> None:
    truth, covered = truths()[simulate.__name__], 0
    for number in range(SETS):
        statistic, n, groups = simulate(np.random.default_rng([11, number]))
        (result,) = bootstrap_intervals(
            statistic, n, groups=groups, n_resamples=300, seed=number, vectorized=True
        )
        covered += result.low <= truth <= result.high
    assert 0.93 <= covered / SETS <= 0.97


def test_wilson_coverage() -> None:
    rng = np.random.default_rng(12)
    result = [proportion_interval(rng.random(100) < 0.85) for _ in range(SETS)]
    covered = sum(i.low <= 0.85 <= i.high for i in result)
    assert 0.93 <= covered / SETS <= 0.97


def test_grouped_accuracy_coverage() -> None:
    covered = {"clustered": 0, "bootstrap": 0, "as if independent": 0}
    for number in range(SETS):
        right, groups = clustered(np.random.default_rng([13, number]))
        (bootstrap,) = bootstrap_intervals(
            mean_of(right), len(right), groups=groups, n_resamples=300, seed=number, vectorized=True
        )
        result = proportion_interval(right, groups), bootstrap, proportion_interval(right)
        for name, interval in zip(covered, result, strict=True):
            covered[name] += interval.low <= 0.85 <= interval.high
    assert 0.93 <= covered["clustered"] / SETS <= 0.97
    assert 0.92 <= covered["bootstrap"] / SETS <= 0.97  # 30 groups are few for a bootstrap
    assert covered["as if independent"] / SETS < 0.85  # what the groups are for


@pytest.mark.parametrize("likeness", [0.0, 0.3, 0.8])
def test_paired_difference_coverage(likeness: float) -> None:
    """A quarter of the images tell two models apart, 7 to 3, more or less alike in a group."""
    covered = {"clustered": 0, "as if independent": 0}
    for number in range(SETS // 3):
        rng = np.random.default_rng([15, number])
        groups = np.repeat(np.arange(30), rng.integers(1, 12, 30))
        spread = (1 - likeness) / max(likeness, 1e-6)

        def chance(p: float, rng: Any = rng, groups: Any = groups, spread: float = spread) -> Any:
            return rng.beta(p * spread, (1 - p) * spread, 30)[groups]

        differ = rng.random(len(groups)) < chance(0.25)
        for_a = rng.random(len(groups)) < chance(0.7)
        right = rng.random(len(groups)) < 0.8
        a, b = np.where(differ, for_a, right), np.where(differ, ~for_a, right)
        for name, group_names in zip(covered, (groups, None), strict=True):
            result = paired_proportion_difference(a, b, group_names).interval
            covered[name] += result.low <= 0.1 <= result.high
    assert covered["clustered"] / (SETS // 3) >= 0.93
    if likeness == 0:
        assert 0.93 <= covered["as if independent"] / (SETS // 3) <= 0.97
    else:
        assert covered["as if independent"] / (SETS // 3) < 0.87
