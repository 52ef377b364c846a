from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from headstart.errors import UsageError
from headstart.metrics.domain_distance import (
    coral_distance,
    frechet_distance,
    mmd,
    mmd_p_value,
    proxy_a_distance,
)

NUMBERS = (mmd, frechet_distance, coral_distance)


def sets(n: int, m: int, d: int, shift: float = 0.5, seed: int = 0) -> tuple:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), 1.5 * rng.normal(size=(m, d)) + shift


def mmd_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    both = np.concatenate([a, b])
    pairs = [(i, j) for i in range(len(both)) for j in range(i)]
    width = np.median([((both[i] - both[j]) ** 2).sum() for i, j in pairs])

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return np.exp(-((x - y) ** 2).sum() / (2 * width))

    aa = [k(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j]
    bb = [k(b[i], b[j]) for i in range(len(b)) for j in range(len(b)) if i != j]
    ab = [k(x, y) for x in a for y in b]
    return np.mean(aa) + np.mean(bb) - 2 * np.mean(ab)


def test_mmd_is_the_unbiased_mean_over_pairs() -> None:
    a, b = sets(9, 14, 3)
    assert mmd(a, b) == pytest.approx(mmd_by_loops(a, b))


def test_mmd_of_sets_alike_is_zero_on_average() -> None:
    result = [mmd(*sets(20, 20, 2, 0.0, seed)[:1] * 2) for seed in range(3)]
    assert max(result) < 0  # a set with itself: the unbiased value is below zero
    rng = np.random.default_rng(0)
    estimates = [mmd(rng.normal(size=(20, 2)), rng.normal(size=(25, 2))) for _ in range(80)]
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / np.sqrt(80)


def test_mmd_p_values_of_sets_alike_are_uniform() -> None:
    rng = np.random.default_rng(0)
    result = [
        mmd_p_value(rng.normal(size=(12, 2)), rng.normal(size=(12, 2)), permutations=99, seed=s)
        for s in range(80)
    ]
    assert 0.4 < np.mean(result) < 0.6
    assert np.mean(np.asarray(result) <= 0.1) < 0.22
    far = mmd_p_value(*sets(20, 20, 3, 2.0), permutations=99)
    assert far == pytest.approx(0.01)


def test_mmd_p_value_is_the_share_of_all_splits_that_are_as_far() -> None:
    a, b = np.asarray([[0.0], [0.4], [1.3]]), np.asarray([[0.9], [2.2], [2.4], [3.1]])
    both, result = np.concatenate([a, b]), mmd_by_loops(a, b)
    splits = [np.isin(np.arange(7), chosen) for chosen in combinations(range(7), 3)]
    far = [mmd_by_loops(both[split], both[~split]) >= result - 1e-12 for split in splits]
    assert mmd_p_value(a, b, permutations=4000) == pytest.approx(np.mean(far), abs=0.02)
    assert mmd_p_value(np.ones((3, 1)), np.ones((4, 1)), permutations=50) == 1  # all are as far


def test_mmd_where_most_images_are_copies_has_the_mean_width() -> None:
    a, b = np.zeros((5, 1)), np.asarray([[0.0], [0.0], [0.0], [0.0], [3.0]])
    apart = np.exp(-9 / (2 * 9 * 9 / 45))  # 9 of 45 pairs are 3 apart
    within = (12 + 8 * apart) / 20
    assert mmd(a, b) == pytest.approx(1 + within - 2 * (20 + 5 * apart) / 25)


@pytest.mark.parametrize(("n", "m"), [(60, 80), (300, 40)])
def test_frechet_is_the_formula_with_scipys_root(n: int, m: int) -> None:
    a, b = sets(n, m, 6)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    gap = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    expected = gap + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_with_fewer_images_than_features() -> None:
    a, b = sets(12, 9, 40)
    root = sqrtm(np.cov(a.T) + 1e-9 * np.eye(40)).real
    inner = np.linalg.eigvalsh(root @ np.cov(b.T) @ root).clip(0)
    gap = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    expected = gap + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.sqrt(inner).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)


def test_frechet_of_a_set_and_its_shifted_copy_is_the_shift() -> None:
    a, _ = sets(7, 2, 30)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(30 * 4)
    assert frechet_distance(a, 3 * (a - a.mean(axis=0)) + a.mean(axis=0)) == pytest.approx(
        4 * np.trace(np.cov(a.T))
    )


@pytest.mark.parametrize(("n", "d"), [(30, 5), (6, 20)])
def test_coral_is_the_difference_of_covariances(n: int, d: int) -> None:
    a, b = sets(n, n + 3, d)
    expected = ((np.cov(a.T) - np.cov(b.T)) ** 2).sum() / (4 * d * d)
    assert coral_distance(a, b) == pytest.approx(expected)
    assert coral_distance(a, b + 7) == pytest.approx(expected)


@pytest.mark.parametrize("distance", NUMBERS)
def test_order_and_turns_do_not_matter(distance) -> None:
    a, b = sets(15, 22, 6)
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    expected = distance(a, b)
    assert distance(b, a) == pytest.approx(expected)
    assert distance(rng.permutation(a), rng.permutation(b)) == pytest.approx(expected)
    assert distance(a @ turn, b @ turn) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 15), st.integers(2, 15), st.integers(1, 30), st.integers(0, 99))
def test_ranges_hold(n: int, m: int, d: int, seed: int) -> None:
    a, b = sets(n, m, d, seed=seed)
    assert -2 <= mmd(a, b) <= 2
    assert frechet_distance(a, b) >= ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() - 1e-9
    assert coral_distance(a, b) >= 0


@pytest.mark.parametrize("distance", NUMBERS)
def test_sets_of_one_image_repeated_are_alike(distance) -> None:
    assert distance(np.full((4, 3), 0.1), np.full((5, 3), 0.1)) == pytest.approx(0, abs=1e-12)


def test_proxy_a_distance_is_two_less_four_times_the_held_out_error() -> None:
    a, b = sets(150, 150, 4, 0.8)
    result = proxy_a_distance(a, b)
    fresh_a, fresh_b = sets(4000, 4000, 4, 0.8, seed=1)
    model = LogisticRegression().fit(np.concatenate([a, b]), np.repeat([0, 1], 150))
    error = (model.predict(fresh_a).mean() + (1 - model.predict(fresh_b)).mean()) / 2
    assert result.low < 2 * (1 - 2 * error) < result.high
    assert result.low < result.value < result.high


def test_proxy_a_distance_of_known_errors_has_the_joined_wilson_intervals() -> None:
    """3 of 33 and 1 of 25 lie with the other set, whatever the folds; both sets weigh alike."""
    a, b = np.repeat([0.0, 10.0], [30, 3])[:, None], np.repeat([0.0, 10.0], [1, 24])[:, None]
    result = proxy_a_distance(1e4 * a + 7, 1e4 * b + 7, level=0.9)
    shares = [3 / 33, 1 / 25]
    sides = [binomtest(k, n).proportion_ci(0.9, "wilson") for k, n in ((3, 33), (1, 25))]
    error = sum(shares) / 2
    down = np.sqrt(sum((p - side.low) ** 2 for p, side in zip(shares, sides, strict=True))) / 2
    up = np.sqrt(sum((side.high - p) ** 2 for p, side in zip(shares, sides, strict=True))) / 2
    assert result.value == pytest.approx(2 - 4 * error)
    assert (result.low, result.high) == pytest.approx(
        (2 - 4 * (error + up), 2 - 4 * (error - down))
    )


def test_proxy_a_distance_needs_two_of_each_set_and_says_so_of_the_smaller() -> None:
    two, many = np.asarray([[0.0], [0.1]]), np.asarray([[9.0], [9.1], [9.2], [9.3]])
    assert proxy_a_distance(two, many, folds=2).value == 2
    with pytest.raises(UsageError, match=r"\[1, 4\]"):
        proxy_a_distance(two, many, groups=([1, 1], [2, 3, 4, 5]))


def test_proxy_a_distance_of_sets_alike_reaches_down_to_zero() -> None:
    rng = np.random.default_rng(0)
    result = proxy_a_distance(rng.normal(size=(60, 5)), rng.normal(size=(200, 5)))
    assert result.low == 0
    far = proxy_a_distance(rng.normal(size=(30, 5)), rng.normal(size=(20, 5)) + 20)
    assert far.value == 2
    assert 1 < far.low < far.high == 2


def test_copies_within_groups_make_no_distance() -> None:
    """Sets that are alike, each image taken ten times: only the groups tell."""
    rng = np.random.default_rng(0)
    a, b = (np.repeat(rng.normal(size=(12, 30)), 10, axis=0) for _ in range(2))
    groups = np.repeat(np.arange(12), 10)
    assert proxy_a_distance(a, b).value > 1.9
    grouped = proxy_a_distance(a, b, groups=(groups, groups + 12))
    assert grouped.low == 0
    assert grouped.value < 1


def test_proxy_a_distance_is_drawn_by_its_seed_alone() -> None:
    a, b = sets(40, 30, 4)
    assert proxy_a_distance(a, b, seed=3) == proxy_a_distance(a, b, seed=3)


@pytest.mark.parametrize("distance", [*NUMBERS, mmd_p_value, proxy_a_distance])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((4, 3)), np.zeros((4, 2))),
        (np.zeros((4, 3)), np.zeros((1, 3))),
        (np.zeros(4), np.zeros(4)),
        (np.full((4, 3), np.nan), np.zeros((4, 3))),
    ],
)
def test_what_cannot_be_compared_is_refused(distance, a, b) -> None:
    with pytest.raises(UsageError, match=r"Expected .*\. [A-Z]"):
        distance(a, b)


def test_settings_that_cannot_be_meant_are_refused() -> None:
    a, b = sets(6, 6, 2)
    with pytest.raises(UsageError, match="permutations"):
        mmd_p_value(a, b, permutations=0)
    with pytest.raises(UsageError, match="folds"):
        proxy_a_distance(a, b, folds=1)
    with pytest.raises(UsageError, match="a group for each"):
        proxy_a_distance(a, b, groups=([1], [2]))
    with pytest.raises(UsageError, match="two groups"):
        proxy_a_distance(a, b, groups=(np.zeros(6), np.arange(6)))
