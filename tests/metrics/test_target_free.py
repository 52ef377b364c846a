"""Label-free scores, against closed forms and their own definitions."""

import math

import numpy as np
import pytest

from headstart.errors import UsageError
from headstart.metrics import target_free as scores


def drawn(m: int, k: int, seed: int, sharp: float = 2.0) -> np.ndarray:
    z = sharp * np.random.default_rng(seed).normal(size=(m, k))
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_information_is_that_of_the_joint_table() -> None:
    p = drawn(40, 4, 0)
    joint = p / len(p)
    rows, columns = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    expected = (joint * np.log(joint / (rows * columns))).sum()
    assert scores.mutual_information(p) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_limits_of_the_scores(k: int) -> None:
    even, sure = np.full((4 * k, k), 1 / k), np.tile(np.eye(k), (4, 1))
    same = np.tile(np.eye(k)[:1], (4 * k, 1))
    assert scores.mean_entropy(even) == pytest.approx(math.log(k))
    assert scores.mean_entropy(sure) == 0
    assert scores.mutual_information(even) == pytest.approx(0, abs=1e-12)
    assert scores.mutual_information(same) == 0  # confident in one class: collapsed
    assert scores.mutual_information(sure) == pytest.approx(math.log(k))
    assert scores.batch_nuclear_norm(sure) == pytest.approx(1)
    assert scores.batch_nuclear_norm(same) == pytest.approx(1 / math.sqrt(k))
    assert scores.effective_classes(sure) == pytest.approx(k)
    assert scores.effective_classes(same) == 1
    assert scores.class_separation(sure, sure) == pytest.approx(1)
    # three other images have the same prediction: log 3, as far as the temperature allows
    assert scores.neighbourhood_density(sure, temperature=0.01) == pytest.approx(math.log(3))


def test_neighbourhoods_are_those_of_loops() -> None:
    p = drawn(7, 3, 1)
    total = 0.0
    for i in range(7):
        close = [
            p[i] @ p[j] / np.linalg.norm(p[i]) / np.linalg.norm(p[j]) for j in range(7) if j != i
        ]
        weights = np.exp(np.array(close) / 0.05)
        weights /= weights.sum()
        total -= (weights * np.log(weights)).sum()
    assert scores.neighbourhood_density(p) == pytest.approx(total / 7, rel=1e-9)


@pytest.mark.parametrize("score", [scores.mutual_information, scores.batch_nuclear_norm])
def test_neither_order_nor_names_of_classes_matter(score) -> None:
    p = drawn(20, 4, 2)
    assert score(p[::-1][:, [2, 0, 3, 1]]) == pytest.approx(score(p), rel=1e-12)


def test_collapse_is_relative_to_the_start() -> None:
    p, same = drawn(60, 5, 3), np.tile(np.eye(5)[:1], (60, 1))
    assert scores.describe_collapse(p, scores.effective_classes(p)) == ""
    assert "use 1.0 classes" in scores.describe_collapse(same, scores.effective_classes(p))
    assert scores.describe_collapse(same, 1.0) == ""  # the target may have one class only


def test_weighted_validation_estimates_the_error_on_the_target() -> None:
    rng = np.random.default_rng(0)
    estimates, plain = [], []
    for _ in range(200):  # wrong where x > 0.8: 20 % of the source, 36 % of the target
        x = rng.random(300)
        risk = scores.deep_embedded_validation(x > 0.8, 2 * x)  # density of the target: 2 x
        estimates.append(risk.value)
        plain.append(np.mean(2 * x * (x > 0.8)))
        assert risk.terms.mean() == pytest.approx(risk.value)
    assert np.mean(estimates) == pytest.approx(0.36, abs=0.01)
    assert np.std(estimates) < np.std(plain)  # the control variate


def test_ratios_are_one_without_a_shift_and_grow_towards_the_target() -> None:
    rng = np.random.default_rng(0)
    same = scores.density_ratios(*(rng.normal(size=(n, 3)) for n in (200, 300, 50)))
    assert np.mean(same) == pytest.approx(1, abs=0.1)
    a, b = rng.normal(size=(200, 1)), rng.normal(size=(400, 1)) + 1
    ratios = scores.density_ratios(a, b, [[-1.0], [0.5], [2.0]])
    assert ratios.tolist() == sorted(ratios)
    assert ratios[1] == pytest.approx(1, abs=0.25)  # the two normal densities are equal at 0.5


@pytest.mark.parametrize("wrong", [[], [1.0], [[math.nan, 1.0]], [[-1.0, 2.0]]])
def test_other_values_are_refused(wrong) -> None:
    with pytest.raises(UsageError, match="Expected probabilities"):
        scores.mean_entropy(wrong)
    with pytest.raises(UsageError, match="shape"):
        scores.deep_embedded_validation([1.0], [1.0])
    with pytest.raises(UsageError, match="shape"):
        scores.class_separation([[1.0]], [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(UsageError, match="temperature"):
        scores.neighbourhood_density([[0.5, 0.5]])


def test_an_estimate_far_from_the_target_is_marked() -> None:
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(80, 3)), rng.normal(6, 1, size=(80, 3))
    val = rng.normal(size=(40, 3))
    wrong = np.arange(40) % 4 == 0
    for target, covers in ((near, True), (far, False)):
        risk = scores.deep_embedded_validation(wrong, scores.density_ratios(near, target, val))
        assert risk.covers_target is covers
