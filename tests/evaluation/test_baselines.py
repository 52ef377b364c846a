"""Simple rules, against scikit-learn and against votes counted by hand."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.neighbors import KNeighborsClassifier

from headstart.errors import DataError, UsageError
from headstart.evaluation.baselines import (
    correctness,
    majority_baseline,
    nearest_neighbour_baseline,
)


def blobs(n, classes=2, width=8, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    # Lengths differ much, so that only the direction may count.
    length = rng.uniform(0.1, 50, size=(n, 1))
    features = length * (centres[targets] + scale * rng.normal(size=(n, width)))
    return features.astype(np.float32), targets


def answers_equal(train, asked, expected, *, k=5):
    """The rule's answers are not handed out: with them as the truth its accuracy is one."""
    right = np.ones(len(expected), dtype=bool)
    return nearest_neighbour_baseline(train, (asked, expected), right, k=k).accuracy.value == 1


@pytest.mark.parametrize("k", [1, 3, 5, 11])
def test_neighbours_vote_as_in_scikit_learn(k):
    train, (asked, _) = blobs(120), blobs(1300, seed=1)  # more than two blocks of 512
    reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(*train)
    expected = reference.predict(asked)
    assert 0 < expected.mean() < 1
    assert answers_equal(train, asked, expected, k=k)
    expected[700] = 1 - expected[700]
    assert not answers_equal(train, asked, expected, k=k)


def test_accuracy_and_lead_are_those_of_scikit_learn():
    train, (asked, targets) = blobs(80, scale=2.0), blobs(200, seed=1, scale=2.0)
    reached = KNeighborsClassifier(5, metric="cosine").fit(*train).score(asked, targets)
    correct = np.random.default_rng(2).random(200) < 0.9
    found = nearest_neighbour_baseline(train, (asked, targets), correct)
    assert found.name == "5-nearest neighbours"
    assert found.accuracy.value == pytest.approx(reached)
    assert found.lead.interval.value == pytest.approx(correct.mean() - reached)


def directions(*degrees):
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("labels", "k", "expected"),
    [
        ([2, 1, 0, 0], 3, 2),  # one vote each: the most similar decides, not the smallest number
        ([2, 1, 1, 0], 3, 1),  # a majority is not overruled by the most similar
        ([2, 1, 1, 2], 4, 2),  # two against two
        ([1, 2, 2, 1], 4, 1),
    ],
)
def test_ties_of_the_vote_go_to_the_most_similar(labels, k, expected):
    known = directions(1, 2, 3, 4)
    assert answers_equal((known, np.array(labels)), directions(0), np.array([expected]), k=k)


@pytest.mark.parametrize("n", [40, 999])
def test_of_equally_similar_images_the_first_are_taken(n):
    far, near = directions(*range(60, 60 + n % 7)), np.tile(directions(10), (n, 1))
    known = np.concatenate([far, near])
    for first in (0, 1):
        labels = np.full(len(known), 1 - first)
        labels[len(far) : len(far) + 3] = first
        assert answers_equal((known, labels), directions(0), np.array([first]), k=3)


def test_blocks_do_not_change_answers():
    train, (asked, _) = blobs(60, classes=4), blobs(1100, seed=3)
    right = np.ones(1, dtype=bool)
    single = np.array(
        [
            next(
                c
                for c in range(4)
                if nearest_neighbour_baseline(
                    train, (one[None], np.array([c])), right
                ).accuracy.value
            )
            for one in asked[500:530]
        ]
    )
    expected = np.full(1100, -1)
    expected[500:530] = single
    chosen = np.ones(1100, dtype=bool)
    found = nearest_neighbour_baseline(train, (asked, expected), chosen)
    assert found.accuracy.value * 1100 == pytest.approx(30)


def test_fewer_training_images_than_neighbours_are_all_asked():
    known, labels = directions(0, 5, 90), np.array([0, 0, 1])
    found = nearest_neighbour_baseline(
        (known, labels), (directions(80), np.array([0])), np.array([True])
    )
    assert found.name == "3-nearest neighbours"
    assert found.accuracy.value == 1


def test_labels_are_voted_on_one_by_one():
    known = directions(0, 1, 2, 90, 91)
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [0, 0]])
    right = np.array([True])
    one = nearest_neighbour_baseline(
        (known, labels), (directions(1), np.array([[1, 1]])), right, k=3
    )
    assert one.accuracy.value == 1
    half = nearest_neighbour_baseline(
        (known, labels), (directions(0.4), np.array([[1, 0]])), right, k=2
    )
    assert half.accuracy.value == 1  # one of two is no majority


def test_a_feature_vector_of_zeros_is_no_crash():
    train, (asked, targets) = blobs(20), blobs(4, seed=1)
    asked[0] = 0
    found = nearest_neighbour_baseline(train, (asked, targets), np.ones(4, dtype=bool))
    assert np.isfinite(found.accuracy.value)


def test_the_same_twice():
    train, test = blobs(100), blobs(300, seed=1)
    right = np.ones(300, dtype=bool)
    assert nearest_neighbour_baseline(train, test, right) == nearest_neighbour_baseline(
        train, test, right
    )


def test_the_majority_is_that_of_the_training_part():
    learned, targets = np.array([2, 2, 0, 1]), np.array([0, 0, 0, 2])
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((4, 1)), learned)
    found = majority_baseline(learned, targets, np.array([True, True, True, False]))
    assert found.accuracy.value == dummy.score(np.zeros((4, 1)), targets) == 0.25
    assert found.lead.interval.value == pytest.approx(0.5)


def test_the_majority_of_labels_is_decided_one_by_one():
    learned = np.array([[1, 0], [1, 1], [0, 0]])
    targets = np.array([[1, 0], [1, 1], [1, 0], [0, 0]])
    assert majority_baseline(learned, targets, np.ones(4, dtype=bool)).accuracy.value == 0.5


def test_groups_widen_the_lead():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 20)
    correct = np.repeat(rng.random(10) < 0.8, 20)
    targets = np.repeat(rng.integers(0, 2, 10), 20)
    learned = np.array([0, 0, 1])
    alone = majority_baseline(learned, targets, correct)
    grouped = majority_baseline(learned, targets, correct, groups=groups)
    for pick in (lambda b: b.accuracy, lambda b: b.lead.interval):
        assert pick(grouped).value == pytest.approx(pick(alone).value)
        assert pick(grouped).high - pick(grouped).low > 2 * (pick(alone).high - pick(alone).low)


def test_no_training_images_are_refused():
    nothing, right = np.array([], dtype=np.intp), np.array([True])
    with pytest.raises(DataError, match="at least one training image"):
        majority_baseline(nothing, np.array([0]), right)
    empty = np.zeros((0, 2), dtype=np.float32), nothing
    with pytest.raises(DataError, match="at least one training image"):
        nearest_neighbour_baseline(empty, (directions(0), np.array([0])), right)


def test_no_neighbours_are_refused():
    train = directions(0), np.array([0])
    with pytest.raises(UsageError, match="`k` must be at least 1, got 0"):
        nearest_neighbour_baseline(train, train, np.array([True]), k=0)


def test_every_label_must_be_right():
    table = np.array([[1, 0], [1, 1]])
    np.testing.assert_array_equal(correctness(table, np.array([[1, 0], [1, 0]])), [True, False])
