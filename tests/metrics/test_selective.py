"""Held against scipy's distributions, a plain loop, and simulated images with known risks."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headstart.errors import UsageError
from headstart.metrics.selective import (
    MAX_THRESHOLDS,
    SelectedThreshold,
    risk_coverage,
    risk_upper_bound,
    threshold_for_risk,
)

answers = st.lists(
    st.tuples(st.sampled_from([0.2, 0.3, 0.5, 0.7, 0.9, 0.99]), st.booleans()),
    min_size=1,
    max_size=40,
)


# ------------------------------------------------------------------------- the curve


@given(answers)
def test_the_curve_is_what_a_loop_over_thresholds_counts(rows):
    sure, right = map(np.array, zip(*rows, strict=True))
    result = risk_coverage(sure, right)
    levels = sorted(set(sure), reverse=True)
    assert result.thresholds.tolist() == levels
    for level, coverage, risk in zip(levels, result.coverage, result.risk, strict=True):
        predicted = [ok for value, ok in rows if value >= level]
        assert coverage == pytest.approx(len(predicted) / len(rows))
        assert risk == pytest.approx(predicted.count(False) / len(predicted))
    each = [np.mean(~right[sure >= value]) for value in sure]
    assert result.aurc == pytest.approx(np.mean(each))


@given(answers)
def test_the_curve_ends_where_everything_is_answered(rows):
    sure, right = map(np.array, zip(*rows, strict=True))
    result = risk_coverage(sure, right)
    assert result.coverage[-1] == 1
    assert result.risk[-1] == pytest.approx(np.mean(~right))
    assert (np.diff(result.coverage) > 0).all()
    assert 0 <= result.aurc <= 1


@given(answers, st.randoms(use_true_random=False))
def test_order_and_scale_of_confidence_do_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    original = risk_coverage(*map(np.array, zip(*rows, strict=True)))
    sure, right = map(np.array, zip(*shuffled, strict=True))
    permuted = risk_coverage(10 * sure - 3, right)
    np.testing.assert_allclose(original.risk, permuted.risk)
    assert original.aurc == pytest.approx(permuted.aurc)


def test_weights_count_as_repeated_images():
    sure, right = np.array([0.9, 0.8, 0.8, 0.5]), np.array([True, False, True, False])
    times = np.array([1, 2, 0, 3])
    weighted = risk_coverage(sure, right, times)
    repeated = risk_coverage(np.repeat(sure, times), np.repeat(right, times))
    np.testing.assert_allclose(weighted.risk, repeated.risk)
    np.testing.assert_allclose(weighted.coverage, repeated.coverage)
    assert weighted.aurc == pytest.approx(repeated.aurc)
    none = risk_coverage([0.9, 0.8], np.array([True, False]), np.array([0.0, 2.0]))
    assert (none.thresholds.tolist(), none.risk.tolist()) == ([0.8], [1.0])
    with pytest.raises(UsageError, match="weights"):
        risk_coverage([0.9, 0.8], np.array([True, False]), np.ones((3, 2)))


def test_surest_right_has_a_lower_area_than_surest_wrong():
    right = np.arange(100) >= 10
    assert risk_coverage(np.arange(100), right).aurc < 0.01
    assert risk_coverage(-np.arange(100), right).aurc > 0.3


# ------------------------------------------------------------------------- the bound


@pytest.mark.parametrize(("errors", "answered"), [(0, 1), (0, 40), (3, 50), (49, 50), (17, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.995])
def test_the_bound_is_clopper_and_pearsons(errors, answered, level):
    limit = risk_upper_bound(errors, answered, level)
    assert limit == pytest.approx(stats.beta.ppf(level, errors + 1, answered - errors))
    assert stats.binom.cdf(errors, answered, limit) == pytest.approx(1 - level)  # lemma 3.1


@pytest.mark.parametrize(("errors", "answered"), [(-1, 5), (6, 5), (0, math.inf), (math.nan, 5)])
def test_counts_that_cannot_be_are_refused(errors, answered):
    with pytest.raises(UsageError, match="`errors`"):
        risk_upper_bound(errors, answered)


def test_nothing_answered_shows_nothing():
    assert risk_upper_bound(0, 0) == risk_upper_bound(5, 5) == 1


# ------------------------------------------------------------------------- the threshold


def draw_images(n, error, rng):
    """Confidences from 0 to 1, wrong with 2 * error * (1 - confidence): above t that is
    error * (1 - t) on average."""
    sure = rng.random(n)
    return sure, rng.random(n) >= 2 * error * (1 - sure)


def test_the_threshold_does_what_it_says_on_its_own_images():
    sure, right = draw_images(2000, 0.1, np.random.default_rng(3))
    result = threshold_for_risk(sure, right, max_risk=0.05)
    is_answered = sure >= result.threshold
    assert 0.2 < result.coverage < 0.5
    assert is_answered.mean() == pytest.approx(result.coverage)
    assert np.mean(~right[is_answered]) == pytest.approx(result.risk)
    per_look = 1 - 0.05 / result.looks
    wrong, answered = np.sum(~right[is_answered]), is_answered.sum()
    assert result.bound == pytest.approx(stats.beta.ppf(per_look, wrong + 1, answered - wrong))
    assert result.risk < result.bound <= 0.05
    assert result.looks == MAX_THRESHOLDS


def numbers_looked_at(n, max_risk, error=0.05):
    """As many evenly spread numbers of answers, ten at most, as are a twentieth of all apart; of
    the least of them all must be right for (1 - max_risk)**least to be within its error."""
    for looks in range(10, 1, -1):
        least = next(k for k in range(10**6) if (1 - max_risk) ** k <= error / looks)
        if (n - least) / n >= 0.05 * (looks - 1):
            return np.linspace(least, n, looks).round().astype(int)
    return [n]


@pytest.mark.parametrize(
    ("n", "max_risk"), [(1000, 0.05), (150, 0.05), (113, 0.05), (60, 0.05), (400, 0.2)]
)
def test_the_looks_reach_from_what_could_just_be_shown_to_everything(n, max_risk):
    counts = numbers_looked_at(n, max_risk)
    sure = np.arange(n) / n
    for surest_right in (counts[0], counts[0] - 1):
        result = threshold_for_risk(sure, np.arange(n) >= n - surest_right, max_risk=max_risk)
        assert result.looks == len(counts)
        assert (result.threshold is not None) == (surest_right == counts[0])


@pytest.mark.parametrize("seed", range(4))
def test_where_none_is_shown_the_look_with_the_best_bound_is_told(seed):
    rng = np.random.default_rng(seed)
    sure = rng.random(300)
    right = rng.random(300) < (0.75, 0.6 + 0.35 * sure, 0.9 - 0.3 * sure, 0.85)[seed]
    counts = numbers_looked_at(300, 0.03)
    rows = []
    for count in counts:
        wrong = int((~right[np.argsort(-sure)[:count]]).sum())
        rows.append(
            (stats.beta.ppf(1 - 0.05 / len(counts), wrong + 1, count - wrong), count, wrong)
        )
    best_bound, count, wrong = min(rows)
    result = threshold_for_risk(sure, right, max_risk=0.03)
    assert result.threshold is None
    assert (result.bound, result.coverage) == pytest.approx((best_bound, count / 300))
    assert result.risk == pytest.approx(wrong / count)


def test_groups_that_are_all_wrong_show_nothing():
    names = np.repeat(np.arange(30), 4)
    result = threshold_for_risk(
        np.arange(120) / 120, np.zeros(120, bool), max_risk=0.3, groups=names
    )
    assert result.threshold is None
    assert (result.bound, result.risk) == (1, 1)


def test_a_bound_holds_in_95_of_100_draws_where_every_threshold_is_a_little_too_risky():
    rng, draws = np.random.default_rng(0), 600
    chosen = naive = 0
    for _ in range(draws):
        sure, right = rng.random(300), rng.random(300) >= 0.0501
        chosen += threshold_for_risk(sure, right, max_risk=0.05).threshold is not None
        curve = risk_coverage(sure, right)
        # what is done without a correction: the best of all thresholds, each at 95 %
        wrong, answered = curve.risk * curve.coverage * 300, curve.coverage * 300
        bounds = stats.beta.ppf(0.95, wrong + 1, answered - wrong)
        naive += bool((bounds <= 0.05).any())
    assert chosen / draws <= 0.05
    assert naive / draws > 0.1


def test_the_bound_holds_where_confidence_tells_risk():
    rng, draws = np.random.default_rng(1), 300
    broken = chosen = 0
    for _ in range(draws):
        result = threshold_for_risk(*draw_images(800, 0.1, rng), max_risk=0.06)
        if result.threshold is not None:
            chosen += 1
            broken += 0.1 * (1 - max(result.threshold, 0)) > result.bound
    assert chosen > draws / 2
    assert broken / draws <= 0.05


@pytest.mark.parametrize("likeness", [1.0, 0.3])
def test_the_bound_holds_for_groups_that_are_right_or_wrong_together(likeness):
    rng, draws, size, groups = np.random.default_rng(2), 800, 8, 75
    error, names = 0.0501, np.repeat(np.arange(75), 8)
    chosen = blind = 0
    for _ in range(draws):
        if likeness == 1:
            chance = (rng.random(groups) < error).astype(float)
        else:
            scale = (1 - likeness) / likeness
            chance = rng.beta(error * scale, (1 - error) * scale, groups)
        right = rng.random(size * groups) >= np.repeat(chance, size)
        sure = rng.random(size * groups)
        options = {"max_risk": 0.05}
        chosen += threshold_for_risk(sure, right, groups=names, **options).threshold is not None
        blind += threshold_for_risk(sure, right, **options).threshold is not None
    assert chosen / draws <= 0.05
    assert blind / draws > 0.05


def test_groups_of_one_are_no_groups():
    sure, right = draw_images(800, 0.1, np.random.default_rng(3))
    plain = threshold_for_risk(sure, right, max_risk=0.06)
    alone = threshold_for_risk(sure, right, max_risk=0.06, groups=range(800))
    assert alone.threshold is not None
    assert alone.bound == pytest.approx(plain.bound, rel=0.2)  # few errors say little of clustering
    assert alone.provable == plain.provable


def test_repeated_images_prove_no_more_than_they_are():
    sure = np.linspace(0.5, 1, 50)
    right = np.ones(50, dtype=bool)
    once = threshold_for_risk(sure, right, max_risk=0.2)
    names = np.repeat(np.arange(50), 10)
    often = threshold_for_risk(
        np.repeat(sure, 10), np.repeat(right, 10), max_risk=0.2, groups=names
    )
    assert often.bound == pytest.approx(once.bound)
    assert often.provable == pytest.approx(once.provable)


def test_images_of_one_confidence_stay_together():
    sure = np.repeat([0.9, 0.6], [150, 150])
    right = np.arange(300) < 200
    result = threshold_for_risk(sure, right, max_risk=0.05)
    assert result.coverage == 0.5
    assert 0.6 < result.threshold < 0.61
    assert result.risk == 0


def test_a_model_that_is_always_right_answers_everything():
    result = threshold_for_risk(np.linspace(0.1, 1, 500), np.ones(500, bool), max_risk=0.05)
    assert result.threshold == -math.inf
    assert result.coverage == 1
    assert result.as_dict()["threshold"] == 0


def test_too_few_images_show_nothing_and_the_words_say_how_many_do():
    result = threshold_for_risk(np.linspace(0, 1, 40), np.ones(40, bool), max_risk=0.02)
    assert result.threshold is None
    assert result.provable == pytest.approx(1 - 0.05 ** (1 / 40))
    assert "40 images cannot prove a risk below 7.2 %" in result.sentence()


@pytest.mark.parametrize(("n", "is_provable"), [(58, False), (59, True), (60, True), (70, True)])
def test_what_is_provable_is_shown_where_every_answer_is_right(n, is_provable):
    result = threshold_for_risk(np.arange(n) / n, np.ones(n, bool), max_risk=0.05)
    assert (result.threshold is not None) == is_provable == (result.provable <= 0.05)
    assert result.bound == pytest.approx(1 - 0.05 ** (1 / n))


def test_a_poor_model_shows_nothing_and_the_words_say_how_near_it_came():
    rng = np.random.default_rng(0)
    result = threshold_for_risk(rng.random(500), rng.random(500) > 0.3, max_risk=0.05)
    assert result.threshold is None
    assert result.bound > 0.05
    assert "proves a risk of at most" in result.sentence()
    assert "even without an error" not in result.sentence()


@settings(max_examples=60)
@given(
    st.integers(1, 400),
    st.sampled_from([0.01, 0.05, 0.2, 0.5]),
    st.floats(0, 0.5),
    st.integers(0, 10**6),
)
def test_what_is_chosen_is_always_within_what_was_wanted(n, max_risk, error, seed):
    sure, right = draw_images(n, error, np.random.default_rng(seed))
    result = threshold_for_risk(sure, right, max_risk=max_risk)
    assert 1 <= result.looks <= MAX_THRESHOLDS
    assert result.provable <= result.bound
    assert (result.threshold is not None) == (result.bound <= max_risk)
    if result.threshold is not None:
        assert result.risk <= result.bound
        assert np.mean(sure >= result.threshold) == pytest.approx(result.coverage)
    assert SelectedThreshold.from_dict(result.as_dict()).as_dict() == result.as_dict()


def test_a_stricter_wish_answers_no_more():
    sure, right = draw_images(3000, 0.1, np.random.default_rng(5))
    wishes = 0.2, 0.1, 0.07, 0.04
    coverages = [threshold_for_risk(sure, right, max_risk=wish).coverage for wish in wishes]
    assert coverages == sorted(coverages, reverse=True)
    assert coverages[0] == 1


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("wrong", [{"max_risk": 0.0}, {"max_risk": 1.0}, {"max_risk": math.nan}])
def test_a_risk_that_is_no_share_is_refused(wrong):
    with pytest.raises(UsageError, match="max_risk"):
        threshold_for_risk([0.5], [True], **wrong)


def test_a_level_below_a_half_is_refused():
    with pytest.raises(UsageError, match="level"):
        threshold_for_risk([0.5], [True], max_risk=0.1, level=0.4)


@pytest.mark.parametrize(
    ("sure", "right"),
    [([], []), ([0.5], [True, False]), ([0.5], [1]), ([math.nan], [True]), ([[0.5]], [[True]])],
)
def test_arrays_that_do_not_fit_are_refused(sure, right):
    with pytest.raises(UsageError, match="Expected"):
        risk_coverage(sure, np.asarray(right, dtype=None if right else bool))
    with pytest.raises(UsageError, match="Expected"):
        threshold_for_risk(sure, np.asarray(right, dtype=None if right else bool), max_risk=0.1)


def test_a_stored_choice_that_makes_no_sense_is_refused():
    result = threshold_for_risk(np.linspace(0.1, 1, 500), np.ones(500, bool), max_risk=0.05)
    with pytest.raises(ValueError, match="shares"):
        SelectedThreshold.from_dict(replace(result, threshold=7.0).as_dict())
    with pytest.raises(KeyError):
        SelectedThreshold.from_dict({"threshold": 0.5})
