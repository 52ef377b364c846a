"""Draws of whole groups, and quantiles against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from headstart.metrics import classification as metrics
from headstart.metrics.confidence_intervals import (
    bca_bounds,
    leave_outs,
    normal_quantile,
    paired_differences,
    resamples,
    student_quantile,
    units,
)


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 12, 29, 999])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99, 0.9999])  # many pairs ask for the last
def test_quantiles_are_scipys(freedom: int, level: float) -> None:
    upper = (1 + level) / 2
    assert normal_quantile(level) == pytest.approx(stats.norm.ppf(upper))
    assert student_quantile(level, freedom) == pytest.approx(stats.t.ppf(upper, freedom))


def test_units_follow_groups_and_none_is_alone() -> None:
    codes, count = units(6, ["a", None, 7, "a", None, (1, 2)])
    assert codes.tolist() == [0, 1, 2, 0, 3, 4]
    assert count == 5


@pytest.mark.parametrize("n", [1, 7, 5000])
def test_resamples_draw_whole_groups(n: int) -> None:
    groups = np.arange(n) // 3
    codes, count = units(n, groups)
    blocks = list(resamples(codes, count, 130, np.random.default_rng(0)))
    weights = np.concatenate(blocks)
    assert weights.shape == (130, n)
    first = np.unique(codes, return_index=True)[1]
    np.testing.assert_array_equal(weights, weights[:, first][:, codes])
    np.testing.assert_array_equal(weights[:, first].sum(axis=1), count)


@pytest.mark.parametrize(("count", "blocks"), [(2, 2), (150, 150), (900, 200)])
def test_each_unit_is_left_out_once(count: int, blocks: int) -> None:
    codes = np.repeat(np.arange(count), 2)
    left = np.concatenate(list(leave_outs(codes, count, np.random.default_rng(0))))
    assert len(left) == blocks
    np.testing.assert_array_equal((left == 0).sum(axis=0), 1)


@pytest.mark.parametrize(("n", "seed"), [(9, 1), (15, 2)])
def test_bca_of_few_skewed_values_is_scipys_at_hesterbergs_level(n: int, seed: int) -> None:
    """Wider by Student's t and the square root of n / (n - 1), and as skewed as scipy's."""
    values = np.random.default_rng(seed).exponential(size=n)
    times = np.concatenate(list(resamples(np.arange(n), n, 40_000, np.random.default_rng(0))))
    without = (values.sum() - values) / (n - 1)
    low, high = bca_bounds(values.mean(), times @ values / n, without, n, 0.9)
    wide = stats.t.ppf(0.95, n - 1) * np.sqrt(n / (n - 1))
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(1),
        confidence_level=2 * stats.norm.cdf(wide) - 1,
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx(expected, abs=0.02 * (expected.high - expected.low))
    assert high - values.mean() > 1.1 * (values.mean() - low)


def test_the_most_extreme_numbers_are_left_to_the_draws() -> None:
    """Every draw above the value: the reflected interval is joined, and holds the value."""
    draws = np.linspace(0.3, 0.5, 201)
    low, high = bca_bounds(0.25, draws, np.linspace(0.24, 0.26, 20), 20, 0.9)
    assert low == pytest.approx(2 * 0.25 - np.quantile(draws, 0.95))
    assert high >= 0.25


@pytest.mark.parametrize("score", ["balanced_accuracy_score", "macro_f1_score"])
def test_paired_differences_of_equal_models_are_rarely_significant(score: str) -> None:
    """Type I error at 5 % with 40 images of four classes; it was 8 to 10 %."""
    measure, rng, found, trials = getattr(metrics, score), np.random.default_rng(0), 0, 150
    for trial in range(trials):
        y = np.r_[np.arange(8) % 4, rng.integers(0, 4, 32)]
        is_shared, shared = rng.random(40) < 0.5, rng.random(40)
        a, b = (
            np.where(
                np.where(is_shared, shared, rng.random(40)) > 0.8,
                (y + rng.integers(1, 4, 40)) % 4,
                y,
            )
            for _ in range(2)
        )
        (difference,) = paired_differences(
            lambda w, y=y, a=a: measure(y, a, sample_weight=w),
            lambda w, y=y, b=b: measure(y, b, sample_weight=w),
            40,
            n_resamples=200,
            seed=trial,
            vectorized=True,
        )
        found += difference.significant
    assert found / trials < 0.08
