"""Draws of whole groups, and quantiles against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from headstart.resampling import leave_outs, normal_quantile, resamples, student_quantile, units


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
