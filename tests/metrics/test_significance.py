"""Paired tests against scipy, direct computation, and their error rates in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import resamples, units
from headstart.metrics.significance import (
    Contrast,
    controlled_difference,
    corrected_resampled,
    hierarchical,
    holm,
)


def bootstrap_contrast(
    gaps: np.ndarray, groups: list | None = None, *, n_resamples: int = 1000, seed: int = 0
) -> Contrast:
    """Mean of differences of shape (seeds, images), by `hierarchical` on bootstrap draws."""
    codes, count = units(gaps.shape[1], groups)
    blocks = resamples(codes, count, n_resamples, np.random.default_rng(seed))
    draws = [weights @ gaps.T / weights.sum(axis=1, keepdims=True) for weights in blocks]
    return hierarchical(gaps.mean(axis=1), np.concatenate(draws).T, units=count)


def test_without_overlap_the_corrected_test_is_the_paired_t_test() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 12)
    result = corrected_resampled(values, test_share=1e-12)
    expected = stats.ttest_1samp(values, 0.0)
    low, high = expected.confidence_interval(0.95)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert (result.interval().low, result.interval().high) == pytest.approx((low, high), rel=1e-6)


def test_the_correction_is_that_of_nadeau_and_bengio() -> None:
    values = np.array([0.02, 0.05, -0.01, 0.04, 0.03])
    t = values.mean() / np.sqrt((1 / 5 + 0.25) * values.var(ddof=1))
    result = corrected_resampled(values, test_share=0.2)
    assert result.p_value == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert not result.difference().significant
    assert stats.ttest_1samp(values, 0).pvalue < 0.1  # which it would be without correction


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], [0.1, 0.1, 0.1]])
def test_without_spread_nothing_is_claimed(values: list[float]) -> None:
    result = corrected_resampled(values, test_share=0.2).difference()
    assert np.isnan(result.interval.low)
    assert not result.significant


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
    result = holm([0.02, np.nan, 0.03])
    assert np.isnan(result[1])
    assert result[[0, 2]].tolist() == pytest.approx([0.04, 0.04])
    assert holm([0.4, 0.9]).tolist() == [0.8, 0.9]
    assert holm([0.6, 1.0, 0.0]).tolist() == [1.0, 1.0, 0.0]
    for wrong in ([1.2], [-0.1], [[0.1]]):
        with pytest.raises(UsageError, match="0 to 1"):
            holm(wrong)


def test_one_seed_on_many_images_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(2)
    gaps = rng.normal(0.1, 1, 400)
    result = bootstrap_contrast(gaps[None], n_resamples=4000).interval()
    low, high = stats.ttest_1samp(gaps, 0.0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.012)


def draws_of(mean: np.ndarray, variance: float, n_draws: int = 50) -> np.ndarray:
    """Resampled numbers, (seeds, 2 * n_draws), whose mean over seeds varies that much."""
    half = np.sqrt(variance * (2 * n_draws - 1) / (2 * n_draws))
    return mean[:, None] + np.repeat([half, -half], n_draws)


@pytest.mark.parametrize(("images", "seeds"), [(12, 2), (7, 5), (40, 3)])
def test_seeds_and_images_each_have_their_own_quantile(images: int, seeds: int) -> None:
    """Two independent means' variances and degrees of freedom, by scipy."""
    rng = np.random.default_rng(images)
    image_values, seed_values = rng.normal(0.4, 0.3, images), rng.normal(0, 0.1, seeds)
    # a bootstrap's variance of the mean is short of the unbiased one by (n - 1) / n
    draws = draws_of(seed_values, image_values.var() / images)
    result = hierarchical(seed_values, draws, units=images)
    expected = stats.ttest_ind(image_values, seed_values, equal_var=False)
    assert result.freedom == pytest.approx(expected.df)
    variances = image_values.var(ddof=1) / images, seed_values.var(ddof=1) / seeds
    quantiles = stats.t.ppf(0.95, [images - 1, seeds - 1])
    half = np.sqrt(np.square(quantiles) @ variances)
    assert result.interval(0.9).high - result.interval(0.9).low == pytest.approx(2 * half)
    touching = result.interval(1 - result.p_value)  # ends at 0
    assert min(abs(touching.low), abs(touching.high)) == pytest.approx(0, abs=1e-9)
    assert result.method == "bootstrap-seeds-and-images"


def test_one_seed_is_tested_on_its_images_alone() -> None:
    image_values = np.random.default_rng(0).normal(0.4, 0.3, 15)
    result = hierarchical(
        [image_values.mean()], draws_of(image_values[:1], image_values.var() / 15), units=15
    )
    expected = stats.ttest_1samp(image_values, 0.0)
    assert (result.freedom, result.method) == (pytest.approx(14), "bootstrap-images")
    assert result.p_value == pytest.approx(expected.pvalue)


def test_too_few_draws_or_images_are_unknown() -> None:
    table = draws_of(np.zeros(2), 0.01)
    table[0, 10:60] = np.nan  # half of them: the others count
    half = hierarchical([0.0, 0.1], table, units=9)
    n_draws = table[1, ~np.isnan(table[0])]
    assert half.error**2 == pytest.approx(n_draws.var(ddof=1) * 9 / 8 + 0.005 / 2)
    table[0, 60] = np.nan
    for result in (
        hierarchical([0.0, 0.1], table, units=9),
        hierarchical([0.0, 0.1], draws_of(np.zeros(2), 0.01), units=1),
        hierarchical([0.1], np.full((1, 200), 0.1), units=9),
    ):
        assert np.isnan(result.error)
        assert np.isnan(result.p_value)
        assert not result.difference().significant
    assert hierarchical([0.0, 0.1], draws_of(np.zeros(2), 0.01), units=2).error > 0


def test_two_splits_are_enough_and_knowing_nothing_is_no_difference() -> None:
    result = corrected_resampled([0.1, 0.3], test_share=0.5)
    assert result.error == pytest.approx(np.sqrt(1.5 * 0.02))
    assert result.interval(0.9).high == pytest.approx(0.2 + stats.t.ppf(0.95, 1) * result.error)
    assert result.p_value == pytest.approx(2 * stats.t.sf(0.2 / result.error, 1))
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


def test_groups_are_resampled_together() -> None:
    rng = np.random.default_rng(3)
    gaps = np.repeat(rng.normal(0.2, 1, 20), 10)[None]
    groups = np.repeat(np.arange(20), 10).tolist()
    ungrouped = bootstrap_contrast(gaps).interval()
    grouped = bootstrap_contrast(gaps, groups).interval()
    assert (grouped.high - grouped.low) / (ungrouped.high - ungrouped.low) == pytest.approx(
        np.sqrt(10), rel=0.25
    )


def test_intervals_cover_the_truth_over_seeds_and_images() -> None:
    """Seeds, images and their interaction vary; 95 % intervals hold the mean, 0."""
    rng = np.random.default_rng(4)
    n_sets, seeds, n = 300, 5, 60
    covered, images_only = 0, 0
    for k in range(n_sets):
        seed_effect = rng.normal(0, 0.15, (seeds, 1))
        gaps = seed_effect + rng.normal(0, 1, (1, n)) + rng.normal(0, 0.5, (seeds, n))
        result = bootstrap_contrast(gaps, n_resamples=200, seed=k).interval()
        covered += result.low <= 0 <= result.high
        means = gaps.mean(axis=0)
        images_only += abs(means.mean()) <= 1.96 * means.std(ddof=1) / np.sqrt(n)
    assert 0.92 <= covered / n_sets <= 0.985
    assert images_only / n_sets < covered / n_sets


def test_shapes_are_checked() -> None:
    with pytest.raises(UsageError, match="as there are seeds"):
        hierarchical([0.1, 0.2], [[0.1, 0.2]], units=3)
    with pytest.raises(UsageError, match="test_share"):
        corrected_resampled([0.1], test_share=1.0)
    with pytest.raises(UsageError, match="finite"):
        corrected_resampled([np.nan], test_share=0.2)
    for level in (0.0, 1.0, 95):
        with pytest.raises(UsageError, match="level"):
            corrected_resampled([0.1, 0.2], test_share=0.2).difference(level)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 3.0, 10.0])
def test_few_seeds_do_not_claim_differences_that_do_not_exist(seeds, ratio):
    """Type I error at 5 %, with a variance between seeds of 0 to 100 times that of the images."""
    rng, rejected, trials, units = np.random.default_rng(1), 0, 600, 100
    for _ in range(trials):
        images = rng.normal(size=units)
        shifts = ratio / np.sqrt(units) * rng.normal(size=seeds)
        resampled = rng.multinomial(units, np.full(units, 1 / units), size=80) @ images / units
        contrast = hierarchical(images.mean() + shifts, resampled + shifts[:, None], units=units)
        rejected += contrast.p_value < 0.05
        assert contrast.difference().significant == (contrast.p_value < 0.05)
    # 600 trials: a rate of 5 % is below 7.2 % with a probability of 99 %.
    assert rejected / trials < 0.072


def test_seeds_that_agree_leave_the_variance_of_the_images():
    draws = np.random.default_rng(0).normal(size=400) / 10 + 0.5
    one = hierarchical([0.5], draws[None], units=100)
    two = hierarchical([0.5, 0.5], np.stack([draws, draws]), units=100)
    assert two.interval().low == pytest.approx(one.interval().low)
    assert two.p_value == pytest.approx(one.p_value, rel=1e-6)


def pair_of_methods(rng, n: int, accuracies: tuple[float, float], shared: float) -> np.ndarray:
    """Which of n images two methods get right; ``shared`` is how far the same images are hard."""
    noise = rng.normal(size=(2, n)) * np.sqrt(1 - shared**2) + shared * rng.normal(size=n)
    return (noise < stats.norm.ppf(np.array(accuracies))[:, None]).astype(float)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_control_is_unbiased_and_its_error_is_that_of_repetitions(classes: int) -> None:
    """2,000 pairs: the mean is the true gain, the spread is the stated error, and is smaller."""
    rng, found, plain = np.random.default_rng(0), [], []
    strata = np.arange(270) % classes if classes > 1 else None
    for _ in range(1000):
        against, values = pair_of_methods(rng, 270, (0.85, 0.88), 0.6)
        values[54:] = np.nan
        found.append(controlled_difference(values, against, strata=strata))
        plain.append(values[:54].mean() - against[:54].mean())
    gains = np.array([one.value for one in found])
    assert gains.mean() == pytest.approx(0.03, abs=0.006)
    assert np.mean([one.error for one in found]) == pytest.approx(gains.std(), rel=0.15)
    assert gains.std() < 0.95 * np.std(plain)


def test_a_control_is_the_paired_difference_where_nothing_else_is_known() -> None:
    rng = np.random.default_rng(1)
    against, values = pair_of_methods(rng, 60, (0.7, 0.8), 0.5)
    found = controlled_difference(values, against)
    assert found.value == pytest.approx(values.mean() - against.mean())
    same = controlled_difference(np.r_[against[:20], np.full(40, np.nan)], against)
    assert abs(same.value) < 0.03
    assert same.error > 0


def test_groups_widen_the_error_of_a_control() -> None:
    rng = np.random.default_rng(2)
    against, values = np.repeat(pair_of_methods(rng, 40, (0.7, 0.8), 0.3), 5, axis=1)
    values[100:] = np.nan
    groups = np.repeat(np.arange(40), 5)
    alone, grouped = (controlled_difference(values, against, groups=g) for g in (None, groups))
    assert grouped.value == alone.value
    assert grouped.error == pytest.approx(alone.error * np.sqrt(5), rel=0.05)
    perfect = np.r_[np.ones(100), np.full(100, np.nan)]
    assert controlled_difference(perfect, np.ones(200), groups=groups).error > 0
