"""Balanced accuracy and its intervals, against scikit-learn and simulation."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from headstart.errors import UsageError
from headstart.metrics.class_means import (
    balanced_accuracy_interval,
    groups_span_classes,
    mean_of_intervals,
    paired_balanced_difference,
)
from headstart.metrics.confidence_intervals import wilson_interval


def test_the_value_is_scikit_learns():
    rng = np.random.default_rng(0)
    targets, predicted = rng.integers(0, 4, (2, 200))
    found = balanced_accuracy_interval(predicted == targets, targets)
    assert found.value == pytest.approx(balanced_accuracy_score(targets, predicted))
    assert 0 <= found.low < found.value < found.high <= 1


@pytest.mark.parametrize("recalls", [(0.9, 0.6), (0.95, 0.5)])
@pytest.mark.parametrize("sizes", [(500, 10), (60, 20)])
def test_intervals_cover_and_equal_models_seldom_differ(recalls, sizes):
    rng, n = np.random.default_rng(0), 500
    targets = np.repeat([0, 1], sizes)
    chance = np.asarray(recalls)[targets]
    covered, different = 0, 0
    for _ in range(n):
        a, b = rng.random((2, len(targets))) < chance
        interval = balanced_accuracy_interval(a, targets)
        covered += interval.low <= np.mean(recalls) <= interval.high
        different += paired_balanced_difference(a, b, targets).significant
    assert covered / n > 0.92
    assert different / n < 0.08


def test_few_images_that_differ_are_never_significant():
    targets = np.repeat([0, 1], (500, 10))
    first = np.ones(510, dtype=bool)
    other = first.copy()
    other[-5:] = False  # five of the ten
    assert not paired_balanced_difference(first, other, targets).significant
    other[-9:] = False
    assert paired_balanced_difference(first, other, targets).significant


def test_groups_of_several_classes_widen_the_interval():
    rng = np.random.default_rng(0)
    targets, right = np.arange(200) % 2, rng.random(200) < 0.8
    inside = [f"{i % 2}-{i // 20}" for i in range(200)]
    across = [i // 10 for i in range(200)]
    assert not groups_span_classes(targets, inside)
    assert groups_span_classes(targets, across)
    plain, own, mixed = (
        balanced_accuracy_interval(right, targets, groups) for groups in (None, inside, across)
    )
    assert plain.high - plain.low <= own.high - own.low < mixed.high - mixed.low


def test_shares_without_intervals_are_refused():
    with pytest.raises(UsageError, match="got 2 for 1"):
        mean_of_intervals([wilson_interval(1, 2)], [0.5, 0.5])
