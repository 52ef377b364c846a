"""Slices against the rest: exact tests, groups, and how often nothing is called something."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import fisher_exact, t, ttest_ind, ttest_rel

from headstart.errors import UsageError
from headstart.evaluation.slices import MIN_SLICE_IMAGES, compare_slices, size_thirds
from headstart.metrics.confidence_intervals import proportion_interval


def test_two_slices_are_fishers_test_corrected() -> None:
    right = np.array([True] * 18 + [False] * 2 + [True] * 8 + [False] * 12)
    found = compare_slices(right, {"class": ["a"] * 20 + ["b"] * 20})
    exact = fisher_exact([[18, 2], [8, 12]]).pvalue
    assert [one.p_value for one in found] == pytest.approx([2 * exact] * 2)  # Holm, two alike
    assert found[0].score == proportion_interval(right[:20])
    assert (found[0].rest, found[1].rest) == (0.4, 0.9)
    assert all(one.significant for one in found)


def test_numbers_are_a_t_test() -> None:
    rng = np.random.default_rng(0)
    values = np.r_[rng.normal(0.8, 0.1, 50), rng.normal(0.74, 0.1, 50)]
    found = compare_slices(values, {"size": ["s"] * 50 + ["l"] * 50})
    reference = ttest_ind(values[:50], values[50:], equal_var=False).pvalue
    assert math.log10(found[0].p_value) == pytest.approx(math.log10(2 * reference), abs=0.2)
    assert found[0].score.low < values[:50].mean() < found[0].score.high


def test_images_without_a_number_or_a_name_are_left_out() -> None:
    values = np.array([1.0, 0.5, np.nan, 0.25])
    [one] = compare_slices(values, {"size": ["s", "s", "s", None]})
    assert (one.images, one.score.value, one.rest) == (2, 0.75, 0.25)


def test_groups_that_answer_as_one_are_one_witness() -> None:
    """Two groups a class, each all right or all wrong: 40 images say no more than 4 groups."""
    groups = np.repeat(np.arange(4), 10)
    right = groups < 2
    cut = {"class": ["a"] * 20 + ["b"] * 20}
    assert all(one.significant for one in compare_slices(right, cut))
    assert not any(one.significant for one in compare_slices(right, cut, groups=groups))


def test_groups_of_equal_shares_are_alike_whatever_the_rounding() -> None:
    """Two groups a class, 2 of 3 right in some and 1 of 3 in others: as above, 4 witnesses."""
    groups = np.repeat(np.arange(4), 30)
    right = np.arange(120) % 3 < np.where(groups < 2, 2, 1)
    for values in (right, 0.1 + 0.2 * right, np.where(groups < 2, 0.1, 0.3)):
        one, _ = compare_slices(values, {"class": ["a"] * 60 + ["b"] * 60}, groups=groups)
        assert one.p_value == pytest.approx(2 * fisher_exact([[2, 0], [0, 2]]).pvalue)
    alike, _ = compare_slices(np.full(120, 0.1), {"class": ["a"] * 60 + ["b"] * 60})
    assert alike.p_value == 1


def test_groups_within_slices_are_a_t_test_of_their_means() -> None:
    """Groups of one size: scipy's test of group means, with the freedom of the smaller side."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), 4)
    values = rng.normal(size=48) + rng.normal(size=12)[groups] + 0.8 * (groups < 5)
    inside = groups < 5
    means = values.reshape(12, 4).mean(axis=1)
    one, two = means[:5], means[5:]
    spread = np.sqrt(12 / 11 * (one.var() / 5 + two.var() / 7))
    wanted = 2 * t.sf(abs(one.mean() - two.mean()) / spread, 4)
    cut = {"class": ["a" if side else None for side in inside]}
    [found] = compare_slices(values, cut, groups=groups)
    assert found.p_value == pytest.approx(wanted)
    [turned] = compare_slices(
        values, {"class": [None if s else "a" for s in inside]}, groups=groups
    )
    assert turned.p_value == pytest.approx(wanted)
    right = values > 0
    shares = right.reshape(12, 4).mean(axis=1)
    spread = np.sqrt(12 / 11 * (shares[:5].var() / 5 + shares[5:].var() / 7))
    clustered = 2 * t.sf(abs(shares[:5].mean() - shares[5:].mean()) / spread, 4)
    table = [[right[side].sum(), (~right[side]).sum()] for side in (inside, ~inside)]
    [both] = compare_slices(right, cut, groups=groups)
    assert both.p_value == pytest.approx(max(clustered, fisher_exact(table).pvalue))
    assert both.score == proportion_interval(right[inside], groups[inside])


def test_groups_that_lie_in_both_slices_are_compared_within() -> None:
    """Six patients, each with images of both kinds: the paired t-test but for its freedom."""
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(6), 2)
    values = 3 * rng.normal(size=6)[groups] + 0.1 * rng.normal(size=12) + 0.2 * (np.arange(12) % 2)
    cut = {"kind": ["a" if k % 2 else None for k in range(12)]}
    [found] = compare_slices(values, cut, groups=groups)
    assert found.p_value == pytest.approx(ttest_rel(values[1::2], values[::2]).pvalue)


def test_a_side_of_one_group_is_judged_by_its_images_or_not_at_all() -> None:
    groups = np.r_[np.zeros(6, int), np.repeat([1, 2, 3], 6)]
    cut = {"class": ["a"] * 6 + [None] * 18}
    right = np.arange(24) % 6 < np.where(groups == 0, 1, 5)
    [one] = compare_slices(right, cut, groups=groups)
    [other] = compare_slices(right.astype(float), cut, groups=groups)
    assert math.isnan(one.p_value)
    assert math.isnan(other.p_value)


def test_one_group_is_held_against_the_rest_by_its_images() -> None:
    groups = np.repeat(np.arange(10), 6)
    cut = {"group": [str(group) for group in groups]}
    found = compare_slices(groups != 9, cut, groups=groups)
    assert [one.significant for one in found] == [False] * 9 + [True]


def test_too_few_images_are_not_tested() -> None:
    right = np.array([False] * (MIN_SLICE_IMAGES - 1) + [True] * 50)
    found = compare_slices(right, {"class": ["a"] * (MIN_SLICE_IMAGES - 1) + ["b"] * 50})
    assert all(math.isnan(one.p_value) and not one.significant for one in found)
    assert found[0].as_dict()["p_value"] is None
    enough = compare_slices(np.r_[False, right], {"class": ["a"] * MIN_SLICE_IMAGES + ["b"] * 50})
    assert all(one.significant for one in enough)


def test_chance_is_rarely_called_a_difference() -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(200):
        groups = np.repeat(np.arange(12), 5)
        level = rng.uniform(0.4, 1.0, 12)  # groups differ, classes do not
        right = rng.uniform(size=60) < level[groups]
        cut = {"class": [("a", "b", "c")[group % 3] for group in groups]}
        found = compare_slices(right, cut, groups=groups)
        alarms += any(one.significant for one in found)
    assert alarms <= 20  # 5 in 100 are meant; 10 would be far beyond chance


def test_thirds_of_sizes() -> None:
    sizes = [(w, 10) for w in range(1, 31)]
    named = size_thirds(sizes)
    assert [named.count(name) for name in dict.fromkeys(named)] == [10, 10, 10]
    assert size_thirds([(5, 5), (0, 0), (9, 9)])[1] is None
    assert size_thirds([]) == []
    two = size_thirds([(5, 5)] * 8 + [(9, 9)] * 2)
    assert two == ["small, up to 25 pixels"] * 8 + ["large, above 25 pixels"] * 2
    three = [f"{word} pixels" for word in ("small, up to 4", "medium, up to 9", "large, above 9")]
    assert size_thirds([(4, 4), (3, 3), (2, 2), (0, 5)]) == [*three[::-1], None]
    assert size_thirds([(0, 0), (0, 0)]) == [None, None]
    assert size_thirds([(3, 3), (3, 3)]) == [None, None]


def test_cuts_name_every_image() -> None:
    with pytest.raises(UsageError, match="2 names"):
        compare_slices([True, False], {"class": ["a"]})
