import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf
from sklearn.cross_decomposition import CCA
from sklearn.neighbors import KNeighborsClassifier

from headstart.errors import UsageError
from headstart.metrics.transferability.features import (
    h_score,
    knn_correctness,
    log_me,
    shrunk_h_score,
    trans_rate,
)

SCORES = (log_me, h_score, shrunk_h_score, trans_rate)


def drawn(n: int, d: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.minimum(np.arange(n) % (classes + 1), classes - 1)  # the last is twice as common
    return rng.normal(size=(n, d)) + np.eye(classes, d)[targets], targets


def best_evidence(f: np.ndarray, y: np.ndarray) -> float:
    """The Gaussian log evidence itself, maximised over both variances."""

    def lost(logs: np.ndarray) -> float:
        covariance = np.exp(logs[0]) * np.eye(len(f)) + np.exp(logs[1]) * f @ f.T
        return -multivariate_normal(np.zeros(len(f)), covariance).logpdf(y)

    starts = [(a, b) for a in (-3.0, -1.0) for b in (-5.0, -2.0)]
    options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 4000}
    return max(-minimize(lost, s, method="Nelder-Mead", options=options).fun for s in starts)


@pytest.mark.parametrize(("n", "d"), [(40, 5), (24, 24), (20, 60)])
def test_log_me_is_the_gaussian_evidence_at_its_maximum(n: int, d: int) -> None:
    f, targets = drawn(n, d)
    expected = np.mean([best_evidence(f, (targets == c).astype(float)) for c in range(3)]) / n
    assert log_me(f, targets) == pytest.approx(expected, abs=1e-5)


def densest_evidence(f: np.ndarray, y: np.ndarray) -> float:
    """The same, without a local search: at every ratio of the variances, the noise known."""
    evidences = []
    for log_ratio in np.arange(-12, 12, 0.02):
        shape = np.eye(len(f)) + np.exp(log_ratio) * f @ f.T
        noise = y @ np.linalg.solve(shape, y) / len(y)
        logs = np.linalg.slogdet(shape)[1] + len(y) * np.log(2 * np.pi * noise)
        evidences.append(-(logs + len(y)) / 2)
    return max(evidences)


@pytest.mark.parametrize(("seed", "d", "offset"), [(55, 30, 1), (13, 40, 5), (57, 40, 5)])
def test_log_me_is_the_highest_of_several_maxima(seed: int, d: int, offset: int) -> None:
    """Features that tell nothing; the fixed point of the paper ends up to 0.07 lower here."""
    f, targets = np.random.default_rng(seed).normal(size=(14, d)) + offset, np.arange(14) % 2
    expected = np.mean([densest_evidence(f, (targets == c).astype(float)) for c in (0, 1)]) / 14
    assert log_me(f, targets) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("score", SCORES)
def test_the_unit_of_the_features_does_not_matter(score, unit: float) -> None:
    f, targets = drawn(40, 8)
    assert score(unit * f, targets) == pytest.approx(score(f, targets), rel=1e-6)


def test_log_me_of_features_that_tell_all_or_nothing_is_a_number() -> None:
    targets = np.arange(12) % 3
    assert 5 < log_me(np.eye(3)[targets], targets) < 50
    noise = [stats.norm(0, np.sqrt(1 / 3)).logpdf(targets == c).mean() for c in range(3)]
    assert log_me(np.zeros((12, 4)), targets) == pytest.approx(np.mean(noise))


def test_h_score_is_the_sum_of_squared_canonical_correlations() -> None:
    """Of features and 0/1 labels, by scikit-learn's iteration; the code decomposes once."""
    f, targets = drawn(90, 4)
    labels = np.eye(3)[targets]
    first, second = CCA(2, max_iter=5000, tol=1e-12).fit_transform(f, labels)
    expected = sum(np.corrcoef(first[:, i], second[:, i])[0, 1] ** 2 for i in range(2))
    assert h_score(f, targets) == pytest.approx(expected, rel=1e-6)


def test_h_score_of_repeated_and_constant_features_is_that_of_each_once() -> None:
    f, targets = drawn(50, 4)
    wider = np.c_[f, f[:, :2], f[:, 2:] * -8, np.full(50, 1e3)]
    assert h_score(wider, targets) == pytest.approx(h_score(f, targets))
    assert h_score(wider.astype(np.float32), targets) == pytest.approx(
        h_score(f, targets), rel=1e-5
    )


def test_h_score_says_nothing_where_features_are_many_and_shrinkage_does() -> None:
    noise = np.random.default_rng(0).normal(size=(30, 200))
    targets = np.arange(30) % 3
    telling = noise + 3 * np.eye(3, 200)[targets]
    assert h_score(noise, targets) == pytest.approx(2)
    assert shrunk_h_score(noise, targets) < 0.9 * shrunk_h_score(telling, targets)


@pytest.mark.parametrize(("n", "d"), [(60, 4), (30, 80), (6, 1)])
def test_shrunk_h_score_is_that_of_scikit_learns_covariance(n: int, d: int) -> None:
    f, targets = np.random.default_rng(0).normal(size=(n, d)), drawn(n, 3)[1]
    f[:, 0] += 3 * targets
    covariance, shrinkage = ledoit_wolf(f)
    means = np.asarray([f[targets == c].mean(axis=0) for c in range(3)])[targets] - f.mean(axis=0)
    between = (1 - shrinkage) * means.T @ means / n
    expected = np.trace(np.linalg.solve(covariance, between))
    assert shrunk_h_score(f, targets) == pytest.approx(expected)


@pytest.mark.parametrize("score", SCORES[1:])
def test_features_that_are_all_alike_are_worth_nothing(score) -> None:
    assert score(np.full((9, 4), 0.1), np.arange(9) % 3) == pytest.approx(0, abs=1e-9)


def test_trans_rate_is_the_difference_of_log_determinants() -> None:
    f, targets = drawn(60, 5)
    z = f - f.mean(axis=0)
    z /= np.sqrt((z**2).sum() / len(z))

    def rate(part: np.ndarray) -> float:
        return 0.5 * np.linalg.slogdet(np.eye(5) + part.T @ part / (len(part) * 1e-4))[1]

    expected = rate(z) - sum(np.mean(targets == c) * rate(z[targets == c]) for c in range(3))
    assert trans_rate(f, targets) == pytest.approx(expected)


def test_trans_rate_nears_the_difference_of_gaussian_entropies() -> None:
    """Where the distortion vanishes, R is the entropy of a normal distribution but for a term
    that both sides share; the scale of the features cancels."""
    f, targets = drawn(80, 4)
    f = 100 * (f - f.mean(axis=0))

    def entropy(part: np.ndarray) -> float:
        return stats.multivariate_normal(np.zeros(4), part.T @ part / len(part)).entropy()

    expected = entropy(f) - sum(np.mean(targets == c) * entropy(f[targets == c]) for c in range(3))
    assert trans_rate(f, targets, distortion=1e-12) == pytest.approx(expected, rel=1e-6)
    assert trans_rate(f, targets, distortion=1e-4) == trans_rate(f, targets)
    assert trans_rate(f, targets, distortion=1.0) < expected / 2


def test_neighbours_agree_with_scikit_learn_leaving_one_out() -> None:
    f, targets = drawn(60, 6)
    expected = []
    for row in range(60):
        others = np.arange(60) != row
        model = KNeighborsClassifier(1, metric="cosine", algorithm="brute")
        model.fit(f[others], targets[others])
        expected.append(model.predict(f[row : row + 1])[0] == targets[row])
    np.testing.assert_array_equal(knn_correctness(f, targets, k=1), expected)


@pytest.mark.parametrize(("n", "k"), [(60, 5), (60, 2), (1100, 7), (11, 20)])
def test_nearer_neighbours_weigh_more(n: int, k: int) -> None:
    f, targets = drawn(n, 6)
    model = KNeighborsClassifier(
        min(k, n - 1) + 1,  # the first is the image itself, and is given no weight
        metric="cosine",
        algorithm="brute",
        weights=lambda d: np.exp(1 - d) * (np.arange(d.shape[1]) > 0),
    ).fit(f, targets)
    expected = model.predict(f) == targets
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(knn_correctness(f, targets, k=k), expected)


def test_five_neighbours_vote_unless_told_otherwise() -> None:
    f, targets = drawn(200, 6)
    np.testing.assert_array_equal(knn_correctness(f, targets), knn_correctness(f, targets, k=5))
    for k in (4, 6):
        assert (knn_correctness(f, targets) != knn_correctness(f, targets, k=k)).any()


def test_neighbours_are_nobody_where_all_are_one_group() -> None:
    f, targets = drawn(9, 3)
    assert not knn_correctness(f, targets, groups=np.zeros(9)).any()


def test_neighbours_of_one_group_do_not_vote() -> None:
    f = np.asarray([[1, 0.0], [1, 0.01], [1, 0.3], [0, 1.0], [0.01, 1], [0.3, 1]])
    targets = np.asarray([0, 0, 1, 1, 1, 0])
    alone = knn_correctness(f, targets, k=1)
    assert alone[:2].all()
    grouped = knn_correctness(f, targets, k=1, groups=[0, 0, 1, 2, 2, 3])
    assert not grouped[:2].any()


@pytest.mark.parametrize("score", SCORES)
def test_scores_do_not_depend_on_order_names_or_rotation(score) -> None:
    f, targets = drawn(45, 7)
    rng = np.random.default_rng(1)
    order, turn = rng.permutation(45), np.linalg.qr(rng.normal(size=(7, 7)))[0]
    expected = score(f, targets)
    assert score(f[order], targets[order]) == pytest.approx(expected, rel=1e-6)
    assert score(f, np.asarray(["z", "k", "a"])[targets]) == pytest.approx(expected, rel=1e-6)
    assert score(f, targets * 17 - 4) == pytest.approx(expected, rel=1e-6)
    assert score(f @ turn, targets) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_classes_that_lie_apart_score_higher_than_shuffled_ones(score) -> None:
    f, targets = drawn(120, 8)
    shuffled = np.random.default_rng(0).permutation(targets)
    assert score(f, targets) > score(f, shuffled)


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 40), st.integers(1, 50), st.integers(2, 3), st.integers(0, 99))
def test_ranges_hold(n: int, d: int, classes: int, seed: int) -> None:
    f, targets = drawn(n, max(d, classes), classes, seed)
    assert -1e-9 <= h_score(f, targets) <= classes - 1 + 1e-6
    assert -1e-9 <= shrunk_h_score(f, targets) <= classes - 1 + 1e-6
    assert trans_rate(f, targets) >= -1e-9
    assert np.isfinite(log_me(f, targets))


@pytest.mark.parametrize("score", [*SCORES, knn_correctness])
@pytest.mark.parametrize(
    ("features", "targets"),
    [
        (np.zeros((3, 2)), [0, 1]),
        (np.zeros(3), [0, 1, 0]),
        (np.full((3, 2), np.nan), [0, 1, 0]),
        (np.zeros((3, 2)), [1, 1, 1]),
    ],
)
def test_what_cannot_be_scored_is_refused(score, features, targets) -> None:
    with pytest.raises(UsageError, match="Expected"):
        score(features, targets)


def test_settings_that_cannot_be_meant_are_refused() -> None:
    f, targets = drawn(9, 2)
    with pytest.raises(UsageError, match="distortion"):
        trans_rate(f, targets, distortion=0)
    with pytest.raises(UsageError, match="`k`"):
        knn_correctness(f, targets, k=0)
    with pytest.raises(UsageError, match="group"):
        knn_correctness(f, targets, groups=[1, 2])


@pytest.mark.parametrize("score", [h_score, shrunk_h_score, trans_rate])
def test_features_of_no_width_tell_nothing(score) -> None:
    assert score(np.zeros((4, 0)), [0, 1, 0, 1]) == 0.0
