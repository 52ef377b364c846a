"""Episodes: reproducible, disjoint, with the interval of a mean."""

import numpy as np
import pytest

from headstart.errors import DataError, UsageError
from headstart.evaluation import episodes as module
from headstart.evaluation.episodes import evaluate_episodes
from headstart.training.few_shot_heads import HEADS, fit_few_shot_head


def draw(k=6, n=30, noise=2.0):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(k), n)
    return rng.normal(size=(k, 10))[y] + noise * rng.normal(size=(k * n, 10)), y


def test_a_seed_is_a_result():
    x, y = draw()
    one, same, other = (evaluate_episodes("lda", x, y, episodes=20, seed=s) for s in (3, 3, 4))
    assert one == same
    assert one != other


def test_the_interval_is_that_of_a_mean(monkeypatch):
    x, y = draw()
    calls = []

    def record(head, features, targets, *, n_classes):
        weight, bias = fit_few_shot_head(head, features, targets, n_classes=n_classes)
        calls.append(features)
        return weight, bias

    monkeypatch.setattr(module, "fit_few_shot_head", record)
    few, many = (evaluate_episodes("cosine", x, y, episodes=n, shots=2) for n in (50, 200))
    assert len(calls) == 250
    assert {len(rows) for rows in calls} == {10}
    assert few.low < few.value < few.high
    assert (many.high - many.low) < 0.7 * (few.high - few.low)


@pytest.mark.parametrize("head", HEADS)
def test_features_without_information_give_chance(head):
    x, y = draw()
    noise = np.random.default_rng(1).normal(size=x.shape)
    found = evaluate_episodes(head, noise, y, episodes=200, shots=5)
    assert abs(found.value - 0.2) < 0.04  # 600 fixed images may differ a little from chance


def test_no_image_is_on_both_sides_of_an_episode():
    """A feature that names its image would be recognised in the test part."""
    y = np.repeat(np.arange(5), 16)  # every image of a class is used: 1 + 15
    found = evaluate_episodes("euclidean", np.eye(80), y, episodes=30)
    assert found.value == pytest.approx(0.2)  # all distances are equal: the first class


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"ways": 1}, UsageError, "`ways` must be at least 2, got 1"),
        ({"shots": 0}, UsageError, "`shots` must be at least 1, got 0"),
        ({"episodes": 1}, UsageError, "`episodes` must be at least 2, got 1"),
        ({"ways": 7}, DataError, "need 7 classes of at least 16 images, but there are 6"),
        ({"shots": 16}, DataError, "classes of at least 31 images, but there are 0"),
    ],
)
def test_impossible_episodes_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        evaluate_episodes("cosine", *draw(), **change)
