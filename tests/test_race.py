"""The rules of a race, against scikit-learn, scipy and simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, label_ranking_average_precision_score

from headstart.intervals import Difference, Interval
from headstart.race import (
    TRAININGS_SHARE,
    Row,
    best_of,
    gain,
    level_of,
    picture_scores,
    score,
    undecidable,
)


def difference(value, distinguishable):
    interval = Interval(value=value, low=value - 0.1, high=value + 0.1, method="test")
    return Difference(interval=interval, distinguishable=distinguishable)


def test_labels_are_scored_as_scikit_learn_scores_them():
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 7)) < 0.3).astype(int)
    targets[0], targets[1] = 0, 1  # no label at all, and all of them
    chances = rng.random((60, 7)).round(1)  # with ties
    found = picture_scores("multilabel", targets, chances)
    expected = [
        label_ranking_average_precision_score(t[None], c[None])
        for t, c in zip(targets, chances, strict=True)
    ]
    np.testing.assert_allclose(found, expected)


def test_classes_are_scored_by_accuracy():
    rng = np.random.default_rng(0)
    targets, chances = rng.integers(0, 4, 50), rng.random((50, 4))
    found = picture_scores("multiclass", targets, chances)
    assert found.mean() == accuracy_score(targets, chances.argmax(axis=1))


@pytest.mark.parametrize("level", [0.95, 0.99, 0.997])
def test_too_few_errors_are_those_that_a_sign_test_says_nothing_of(level):
    for wrong in range(15):
        values = np.r_[np.zeros(wrong), np.ones(200)]
        p = binomtest(wrong, wrong).pvalue if wrong else 1.0  # a perfect rival wins each of them
        assert bool(undecidable(values, level)) == (p > 1 - level)
        perfect = gain(np.ones(len(values)), values, None, "multiclass", level=level)
        if p > 1 - level:
            assert not perfect.distinguishable


def test_chance_wins_no_more_often_than_it_is_given():
    """Two that are equally good, looked at after each of five folds, two rivals a race."""
    rng = np.random.default_rng(0)
    level, wins, races = level_of(TRAININGS_SHARE, 10), 0, 300
    for _ in range(races):
        base, *rivals = rng.random((3, 200)) < 0.7
        looks = [
            gain(one[:n] * 1.0, base[:n] * 1.0, None, "multiclass", level=level)
            for one in rivals
            for n in (40, 80, 120, 160, 200)
        ]
        wins += best_of(looks) is not None
    assert wins / races <= TRAININGS_SHARE


def test_a_group_counts_once():
    """What ten pictures of one patient say ten times is said once."""
    groups = np.repeat(np.arange(8), 10)
    base = np.where(groups < 4, 0.0, 1.0)
    alone = gain(np.ones(80), base, None, "multiclass", level=0.997)
    together = gain(np.ones(80), base, groups, "multiclass", level=0.997)
    assert alone.distinguishable
    assert not together.distinguishable


def test_the_largest_gain_beyond_chance_wins():
    assert best_of([None, difference(0.1, True), difference(0.2, True)]) == 2
    assert best_of([difference(0.5, False), difference(0.1, True)]) == 1
    assert best_of([difference(-0.5, True), difference(0.3, False), None]) is None
    assert best_of([]) is None


def test_a_score_of_labels_stays_within_bounds():
    values = np.r_[np.ones(30), 0.5]
    found = score(values, None, "multilabel")
    assert found.value == pytest.approx(values.mean())
    assert found.low < found.value < found.high <= 1.0


def test_a_row_is_plain_values():
    row = Row(name="a", backbone="b", stage="", method="scratch").as_dict()
    assert row["score"] is None
    assert row["state"] == "probed"
