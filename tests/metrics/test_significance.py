"""Paired tests against scipy, direct computation, and what they promise in the long run."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from headstart.errors import UsageError
from headstart.metrics.significance import (
    corrected_resampled,
    corrected_resampled_t,
    hierarchical,
    holm,
    paired_bootstrap,
)


def test_without_overlap_the_corrected_test_is_the_paired_t_test() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 12)
    found = corrected_resampled(values, test_share=1e-12)
    wanted = stats.ttest_1samp(values, 0.0)
    low, high = wanted.confidence_interval(0.95)
    assert found.p_value == pytest.approx(wanted.pvalue, rel=1e-6)
    assert (found.interval().low, found.interval().high) == pytest.approx((low, high), rel=1e-6)


def test_the_correction_is_that_of_nadeau_and_bengio() -> None:
    values = np.array([0.02, 0.05, -0.01, 0.04, 0.03])
    t = values.mean() / np.sqrt((1 / 5 + 0.25) * values.var(ddof=1))
    found = corrected_resampled(values, test_share=0.2)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert not corrected_resampled_t(values, test_share=0.2).distinguishable
    assert stats.ttest_1samp(values, 0).pvalue < 0.1  # which it would be without correction


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], [0.1, 0.1, 0.1]])
def test_without_spread_nothing_is_claimed(values: list[float]) -> None:
    found = corrected_resampled_t(values, test_share=0.2)
    assert np.isnan(found.interval.low)
    assert not found.distinguishable


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.random(6) ** 3
        rejected = np.zeros(6, dtype=bool)
        for step, i in enumerate(np.argsort(p)):  # straight from the paper
            if p[i] > 0.05 / (6 - step):
                break
            rejected[i] = True
        assert ((holm(p) <= 0.05) == rejected).all()


def test_holm_leaves_out_what_is_unknown() -> None:
    found = holm([0.02, np.nan, 0.03])
    assert np.isnan(found[1])
    assert found[[0, 2]].tolist() == pytest.approx([0.04, 0.04])
    assert holm([0.4, 0.9]).tolist() == [0.8, 0.9]
    assert holm([0.6, 1.0, 0.0]).tolist() == [1.0, 1.0, 0.0]
    for wrong in ([1.2], [-0.1], [[0.1]]):
        with pytest.raises(UsageError, match="0 to 1"):
            holm(wrong)


def test_one_seed_on_many_images_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(2)
    gaps = rng.normal(0.1, 1, 400)
    found = paired_bootstrap(gaps[None], np.zeros((1, 400)), n_resamples=4000).interval
    low, high = stats.ttest_1samp(gaps, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)


def draws_of(mean: np.ndarray, variance: float, kept: int = 50) -> np.ndarray:
    """Resampled numbers, (seeds, 2 * kept), whose mean over seeds varies that much."""
    half = np.sqrt(variance * (2 * kept - 1) / (2 * kept))
    return mean[:, None] + np.repeat([half, -half], kept)


@pytest.mark.parametrize(("images", "seeds"), [(12, 2), (7, 5), (40, 3)])
def test_seeds_and_images_are_joined_as_in_welchs_test(images: int, seeds: int) -> None:
    """Two independent means' variances and degrees of freedom, by scipy."""
    rng = np.random.default_rng(images)
    one, two = rng.normal(0.4, 0.3, images), rng.normal(0, 0.1, seeds)
    # a bootstrap's variance of the mean is short of the unbiased one by (n - 1) / n
    drawn = draws_of(two, one.var() / images)
    found = hierarchical(two, drawn, units=images)
    wanted = stats.ttest_ind(one, two, equal_var=False)
    low, high = wanted.confidence_interval(0.9)
    assert found.freedom == pytest.approx(wanted.df)
    assert found.interval(0.9).high - found.interval(0.9).low == pytest.approx(high - low)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(two.mean()) / found.error, wanted.df))
    assert found.method == "bootstrap-seeds-and-images"


def test_one_seed_is_judged_by_its_images_alone() -> None:
    one = np.random.default_rng(0).normal(0.4, 0.3, 15)
    found = hierarchical([one.mean()], draws_of(one[:1], one.var() / 15), units=15)
    wanted = stats.ttest_1samp(one, 0.0)
    assert (found.freedom, found.method) == (pytest.approx(14), "bootstrap-images")
    assert found.p_value == pytest.approx(wanted.pvalue)


def test_too_few_draws_or_images_are_unknown() -> None:
    table = draws_of(np.zeros(2), 0.01)
    table[0, 10:60] = np.nan  # half of them: the others count
    half = hierarchical([0.0, 0.1], table, units=9)
    kept = table[1, ~np.isnan(table[0])]
    assert half.error**2 == pytest.approx(kept.var(ddof=1) * 9 / 8 + 0.005 / 2)
    table[0, 60] = np.nan
    for found in (
        hierarchical([0.0, 0.1], table, units=9),
        hierarchical([0.0, 0.1], draws_of(np.zeros(2), 0.01), units=1),
        hierarchical([0.1], np.full((1, 200), 0.1), units=9),
    ):
        assert np.isnan(found.error)
        assert np.isnan(found.p_value)
        assert not found.difference().distinguishable
    assert hierarchical([0.0, 0.1], draws_of(np.zeros(2), 0.01), units=2).error > 0


@pytest.mark.parametrize(
    ("differing", "level", "enough"), [(5, 0.95, False), (6, 0.95, True), (6, 0.96, True)]
)
def test_six_images_are_the_fewest_witnesses(differing: int, level: float, enough: bool) -> None:
    """By a sign test, 2 / 2**5 is 0.06 and 2 / 2**6 is 0.03; the t-interval leaves out 0."""
    one = np.arange(20)[None] < differing
    assert (stats.binomtest(0, differing).pvalue < 1 - level) == enough
    found = paired_bootstrap(one, np.zeros_like(one), level=level)
    assert found.interval.low > 0
    assert found.distinguishable is enough


def test_two_splits_are_enough_and_knowing_nothing_is_no_difference() -> None:
    found = corrected_resampled([0.1, 0.3], test_share=0.5)
    assert found.error == pytest.approx(np.sqrt(1.5 * 0.02))
    assert found.interval(0.9).high == pytest.approx(0.2 + stats.t.ppf(0.95, 1) * found.error)
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.2 / found.error, 1))
    assert np.isnan(corrected_resampled([0.5] * 3, test_share=0.2).p_value)


def test_the_correction_holds_its_level_on_splits_that_overlap() -> None:
    """Two rules that are equally right on average, tested on 10 random fifths of 60 images.

    Two such fifths share a fifth of their images: the correlation that the paper supposes.
    """
    rng = np.random.default_rng(5)
    corrected = plain = 0
    for _ in range(600):
        gaps = rng.normal(size=60)
        values = [gaps[rng.permutation(60)[:12]].mean() for _ in range(10)]
        corrected += corrected_resampled(values, test_share=0.2).p_value < 0.05
        plain += stats.ttest_1samp(values, 0.0).pvalue < 0.05
    assert 0.03 <= corrected / 600 <= 0.07
    assert plain / 600 > 0.2


def test_groups_are_drawn_whole() -> None:
    rng = np.random.default_rng(3)
    gaps = np.repeat(rng.normal(0.2, 1, 20), 10)[None]
    groups = np.repeat(np.arange(20), 10).tolist()
    alone = paired_bootstrap(gaps, np.zeros_like(gaps)).interval
    whole = paired_bootstrap(gaps, np.zeros_like(gaps), groups=groups).interval
    assert (whole.high - whole.low) / (alone.high - alone.low) == pytest.approx(
        np.sqrt(10), rel=0.25
    )


def test_few_witnesses_prove_nothing() -> None:
    one = np.ones((5, 100))
    two = one.copy()
    two[:, :5] = 0
    assert not paired_bootstrap(one, two).distinguishable
    two[:, :30] = 0
    assert paired_bootstrap(one, two).distinguishable


def test_intervals_cover_the_truth_over_seeds_and_images() -> None:
    """Seeds, images and their interaction vary; 95 % intervals hold the mean, 0."""
    rng = np.random.default_rng(4)
    n_sets, seeds, n = 300, 5, 60
    held, images_only = 0, 0
    for k in range(n_sets):
        seed_effect = rng.normal(0, 0.15, (seeds, 1))
        gaps = seed_effect + rng.normal(0, 1, (1, n)) + rng.normal(0, 0.5, (seeds, n))
        found = paired_bootstrap(gaps, np.zeros_like(gaps), n_resamples=200, seed=k).interval
        held += found.low <= 0 <= found.high
        means = gaps.mean(axis=0)
        images_only += abs(means.mean()) <= 1.96 * means.std(ddof=1) / np.sqrt(n)
    assert 0.92 <= held / n_sets <= 0.985
    assert images_only / n_sets < held / n_sets


def test_shapes_are_checked() -> None:
    with pytest.raises(UsageError, match="as there are seeds"):
        hierarchical([0.1, 0.2], [[0.1, 0.2]], units=3)
    with pytest.raises(UsageError, match="as `first`"):
        paired_bootstrap(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(UsageError, match="test_share"):
        corrected_resampled([0.1], test_share=1.0)
    with pytest.raises(UsageError, match="finite"):
        corrected_resampled([np.nan], test_share=0.2)
    with pytest.raises(UsageError, match="n_resamples"):
        paired_bootstrap(np.ones((1, 9)), np.zeros((1, 9)), n_resamples=99)
    for level in (0.0, 1.0, 95):
        with pytest.raises(UsageError, match="level"):
            corrected_resampled_t([0.1, 0.2], test_share=0.2, level=level)
