"""Scores with intervals: against closed forms, plain recomputation, and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp
from sklearn.metrics import average_precision_score

from headstart.errors import UnknownNameError, UsageError
from headstart.metrics.confidence_intervals import (
    paired_proportion_difference,
    proportion_interval,
)
from headstart.metrics.transferability.features import knn_correctness, log_me
from headstart.metrics.transferability.separation import parc
from headstart.metrics.transferability.source_labels import leep, nce
from headstart.selection.scores import (
    PROBE,
    SCORES,
    Features,
    compare_scores,
    jackknife,
    score_features,
)


def drawn(n: int = 60, d: int = 5, seed: int = 0, apart: float = 1.0) -> Features:
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    return Features(
        values=rng.normal(size=(n, d)) + apart * np.eye(3, d)[targets],
        targets=targets,
        probe_logits=np.eye(3)[targets] + rng.normal(size=(n, 3)),
        source_probabilities=rng.dirichlet(np.ones(7), size=n),
    )


def blocks(n: int = 60, count: int = 10) -> list[np.ndarray]:
    return [np.arange(start, n, count) for start in range(count)]


def test_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = np.random.default_rng(0).normal(size=12)
    found = jackknife(values.mean(), (values.sum() - values) / 11)
    wanted = ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_five_blocks_are_the_fewest_that_tell() -> None:
    values = np.asarray([0.1, 0.4, 0.2, 0.9, 0.3])
    found = jackknife(values.mean(), (values.sum() - values) / 4, level=0.999)
    wanted = ttest_1samp(values, 0).confidence_interval(0.999)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert np.isnan(jackknife(0.3, np.asarray([0.1, 0.2, 0.4, 0.5])).low)


def test_a_lead_is_the_jackknife_of_paired_differences() -> None:
    one, two = drawn(apart=1.2), drawn(apart=1.0)
    a, b = (score_features(given, ["log-me"], blocks())["log-me"] for given in (one, two))
    gaps = []
    for block in blocks():
        kept = np.delete(np.arange(60), block)
        gaps.append(
            log_me(one.values[kept], one.targets[kept])
            - log_me(two.values[kept], two.targets[kept])
        )
    # pseudo-values of Tukey: their mean's t-interval
    gap = log_me(one.values, one.targets) - log_me(two.values, two.targets)
    wanted = ttest_1samp(10 * gap - 9 * np.asarray(gaps), 0).confidence_interval(0.9)
    found = compare_scores(a, b, one, level=0.9)
    assert found.interval.value == pytest.approx(gap)
    assert found.interval.high - found.interval.low == pytest.approx(wanted.high - wanted.low)
    assert found.significant
    assert not compare_scores(a, a, one).significant
    behind = compare_scores(b, a, one, level=0.9)
    assert behind.significant
    assert behind.interval.high == pytest.approx(-found.interval.low)
    unknown = compare_scores(
        *(score_features(given, ["log-me"], [])["log-me"] for given in (one, two)), one
    )
    assert not unknown.significant
    assert np.isnan(unknown.interval.low)


def test_a_measures_interval_is_the_jackknife_over_its_blocks() -> None:
    given = drawn()
    found = score_features(given, ["log-me"], blocks())["log-me"]
    without = []
    for block in blocks():
        kept = np.delete(np.arange(60), block)
        without.append(log_me(given.values[kept], given.targets[kept]))
    np.testing.assert_allclose(found.left_out, without)
    error = np.sqrt(9 / 10 * ((without - np.mean(without)) ** 2).sum())
    assert found.interval.value == pytest.approx(log_me(given.values, given.targets))
    assert found.interval.high - found.interval.value == pytest.approx(
        student.ppf(0.975, 9) * error
    )


def test_scores_are_the_measures_own_also_where_features_are_many() -> None:
    given = drawn(30, 90)
    found = score_features(given, list(SCORES), [])
    for name, made in SCORES.items():
        if made.of_features is not None:
            wanted = made.of_features(given.values, given.targets)
            assert found[name].interval.value == pytest.approx(wanted, rel=1e-6), name
    assert found["leep"].interval.value == pytest.approx(
        leep(given.source_probabilities, given.targets)
    )
    hard = given.source_probabilities.argmax(axis=1)
    assert found["nce"].interval.value == pytest.approx(nce(hard, given.targets))
    assert found["parc"].interval.value == pytest.approx(parc(given.values, given.targets))
    assert np.isnan(found["parc"].interval.low)  # without blocks nothing is known of its spread


def test_means_over_images_have_the_interval_of_a_share() -> None:
    groups = np.arange(60) // 3
    given = drawn()
    given = Features(
        values=given.values, targets=given.targets, probe_logits=given.probe_logits, groups=groups
    )
    found = score_features(given, [PROBE, "knn"], blocks())
    answered = given.probe_logits.argmax(axis=1) == given.targets
    assert found[PROBE].interval == proportion_interval(answered, groups)
    right = knn_correctness(given.values, given.targets, groups=groups)
    assert found["knn"].interval == proportion_interval(right, groups)


def test_intervals_hold_what_other_images_of_the_kind_score() -> None:
    """Log evidence of 120 images, drawn anew 60 times: most intervals hold the mean of all."""
    names = ["log-me", "shrunk-h-score", "parc"]
    found = [score_features(drawn(120, 6, seed), names, blocks(120)) for seed in range(60)]
    for name in names:
        middle = np.mean([one[name].interval.value for one in found])
        held = [one[name].interval.low <= middle <= one[name].interval.high for one in found]
        assert np.mean(held) >= 0.75, name  # docs/rank.md has the long simulation


def test_no_interval_leaves_what_a_number_can_be() -> None:
    found = score_features(drawn(apart=4.0), list(SCORES), blocks())
    for name, one in found.items():
        made = SCORES[name]
        assert made.lower <= one.interval.low <= one.interval.high <= made.upper, name


def test_better_features_are_ahead_and_equal_ones_are_not() -> None:
    far, near, same = drawn(apart=3.0), drawn(apart=0.3), drawn(apart=0.3, seed=1)
    names = [name for name in SCORES if SCORES[name].of_features] + ["knn"]
    of_far, of_near, of_same = (score_features(one, names, blocks()) for one in (far, near, same))
    clear = 0
    for name in names:
        found = compare_scores(of_far[name], of_near[name], far)
        assert found.interval.value > 0, name
        clear += found.significant
        level = compare_scores(of_near[name], of_same[name], far, level=0.999)
        assert not level.significant, name
    assert clear >= len(names) - 1


def test_shares_are_compared_as_pairs() -> None:
    one, two = drawn(seed=0), drawn(seed=1)
    a, b = (score_features(features, [PROBE], [])[PROBE] for features in (one, two))
    wanted = paired_proportion_difference(
        *(f.probe_logits.argmax(axis=1) == f.targets for f in (one, two))
    )
    assert compare_scores(a, b, one) == wanted


def test_several_labels_are_scored_by_their_mean_average_precision() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 4)) < 0.4).astype(np.intp)
    logits = targets + rng.normal(size=(60, 4))
    given = Features(values=logits, targets=targets, kind="multilabel", probe_logits=logits)
    found = score_features(given, [PROBE], blocks())[PROBE]
    wanted = average_precision_score(targets, logits, average="macro")
    assert found.interval.value == pytest.approx(wanted)
    assert 0 <= found.interval.low < wanted < found.interval.high <= 1
    worse = Features(values=logits, targets=targets, kind="multilabel", probe_logits=0.0 * logits)
    behind = compare_scores(found, score_features(worse, [PROBE], blocks())[PROBE], given)
    assert behind.significant


def test_a_block_that_holds_all_but_one_class_is_not_left_out() -> None:
    given = drawn(12)
    rows = np.flatnonzero(given.targets != 0)
    parts = [rows, *([row] for row in range(0, 12, 2))]
    found = score_features(given, ["log-me"], [np.asarray(part) for part in parts])["log-me"]
    assert len(found.left_out) == 6


def test_what_is_missing_is_said() -> None:
    bare = Features(
        values=np.eye(4), targets=np.asarray([0, 0, 1, 1]), missing={"source": "it ends before"}
    )
    found = score_features(bare, ["leep", PROBE, "log-me"], [])
    assert found["leep"].interval is None
    assert found["leep"].missing == "it ends before"
    assert found[PROBE].missing
    with pytest.raises(UsageError, match="two scores by one measure"):
        compare_scores(found["leep"], found["leep"], bare)
    labels = Features(values=np.eye(4), targets=np.eye(4, dtype=np.intp), kind="multilabel")
    assert "one class" in score_features(labels, ["knn"], [])["knn"].missing


def test_an_unknown_measure_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'log-me'"):
        score_features(drawn(), ["logme"], [])
