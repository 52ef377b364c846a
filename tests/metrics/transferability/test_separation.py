import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad, quad
from scipy.linalg import eigh
from scipy.special import log_softmax
from scipy.stats import multivariate_normal, norm, pearsonr, spearmanr
from sklearn.decomposition import PCA

from headstart.errors import UsageError
from headstart.metrics.transferability.separation import gbc, parc, sfda

SCORES = (gbc, parc, sfda)


def drawn(n: int, d: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.minimum(np.arange(n) % (classes + 1), classes - 1)  # the last is twice as common
    return rng.normal(size=(n, d)) + np.eye(classes, d)[targets], targets


def test_gbc_of_two_classes_on_a_line_is_the_integral_of_their_overlap() -> None:
    f = np.asarray([0.0, 2.0, 1.0, 7.0])[:, None]
    first, second = norm(1, 1), norm(4, 3)
    overlap = quad(lambda x: np.sqrt(first.pdf(x) * second.pdf(x)), -30, 30)[0]
    assert gbc(f, [0, 0, 1, 1]) == pytest.approx(-2 * overlap, rel=1e-6)


def test_gbc_in_the_plane_is_the_integral_of_the_overlap() -> None:
    f, targets = drawn(12, 2, 2)
    normals = []
    for c in range(2):
        part = f[targets == c]
        normals.append(multivariate_normal(part.mean(axis=0), part.var(axis=0).mean() * np.eye(2)))
    overlap = dblquad(
        lambda y, x: np.sqrt(normals[0].pdf([x, y]) * normals[1].pdf([x, y])),
        -7, 7, -7, 7, epsabs=1e-5,
    )[0]  # fmt: skip
    assert gbc(f, targets) == pytest.approx(-2 * overlap, rel=1e-3)


def test_gbc_reads_the_first_64_principal_components() -> None:
    f, targets = drawn(150, 90)
    places = PCA(64, svd_solver="full").fit_transform(f)
    total = 0.0
    for a in range(3):
        for b in range(3):
            if a == b:
                continue
            first, second = places[targets == a], places[targets == b]
            va, vb = first.var(axis=0).mean() * np.eye(64), second.var(axis=0).mean() * np.eye(64)
            joined, gap = (va + vb) / 2, first.mean(axis=0) - second.mean(axis=0)
            logs = [np.linalg.slogdet(v)[1] for v in (joined, va, vb)]
            distance = gap @ np.linalg.inv(joined) @ gap / 8 + (logs[0] - sum(logs[1:]) / 2) / 2
            total += np.exp(-distance)
    assert gbc(f, targets) == pytest.approx(-total, rel=1e-8)


def test_gbc_of_a_class_of_one_image_is_finite_and_tells_it_apart() -> None:
    f, _ = drawn(7, 3)
    targets = [0, 0, 0, 1, 1, 1, 2]
    near = gbc(f, targets)
    far = f.copy()
    far[6] += 50
    assert -6 <= near < gbc(far, targets) <= 0


def test_gbc_takes_a_class_of_one_image_to_be_as_wide_as_the_others() -> None:
    """Two classes of variances 1 and 9, three images each, and two classes of one."""
    step = np.sqrt(1.5)
    f = np.r_[[-step, 0, step], 3 * np.asarray([-step, 0, step]) + 4, 10.0, -6.0][:, None]
    normals = [norm(0, 1), norm(4, 3), norm(10, np.sqrt(5)), norm(-6, np.sqrt(5))]
    total = 0.0
    for i, first in enumerate(normals):
        for second in normals[:i]:
            total += quad(
                lambda x, p=first, q=second: np.sqrt(p.pdf(x) * q.pdf(x)), -50, 50, limit=200
            )[0]
    assert gbc(f, [0, 0, 0, 1, 1, 1, 2, 3]) == pytest.approx(-2 * total, rel=1e-6)


def test_gbc_of_classes_that_are_points_is_certain() -> None:
    assert gbc([[0.0], [1.0], [3.0]], ["a", "b", "c"]) == 0
    assert gbc([[0.0], [0.0], [1.0], [1.0], [3.0]], [0, 0, 1, 1, 2]) == 0


def test_parc_of_rows_without_spread_is_that_of_correlation_zero() -> None:
    f, targets = drawn(12, 5)
    f[0], f[5] = 1e3, -0.1
    apart, unlike = [], []
    for i in range(12):
        for j in range(i + 1, 12):
            flat = {i, j} & {0, 5}
            apart.append(1.0 if flat else 1 - pearsonr(f[i], f[j])[0])
            unlike.append(float(targets[i] != targets[j]))
    assert parc(f, targets) == pytest.approx(spearmanr(apart, unlike)[0])
    assert parc(f.astype(np.float32), targets) == pytest.approx(parc(f, targets), abs=0.02)


def test_parc_is_the_rank_correlation_over_pairs() -> None:
    f, targets = drawn(20, 5)
    apart, unlike = [], []
    for i in range(20):
        for j in range(i + 1, 20):
            apart.append(1 - pearsonr(f[i], f[j])[0])
            unlike.append(1 - pearsonr(np.eye(3)[targets[i]], np.eye(3)[targets[j]])[0])
    assert parc(f, targets) == pytest.approx(spearmanr(apart, np.round(unlike, 9))[0])


def test_sfda_is_two_discriminants_with_mixing_between() -> None:
    """By generalised eigenvectors, as in the paper; the code solves a linear system."""
    f, targets = drawn(60, 4)
    f = f - f.mean(axis=0)
    f /= np.sqrt((f**2).sum() / 60)
    counts = np.bincount(targets)

    def log_chance(x: np.ndarray, lam: float | None) -> tuple[np.ndarray, float]:
        means = np.asarray([x[targets == c].mean(axis=0) for c in range(3)])
        within = sum(np.cov(x[targets == c].T, bias=True) * counts[c] / 60 for c in range(3))
        between = np.cov(means[targets].T, bias=True)
        lam = np.exp(-5 * np.linalg.eigvalsh(within)[-1]) if lam is None else lam
        u = eigh(between, (1 - lam) * within + lam * np.trace(within) / 4 * np.eye(4))[1][:, -2:]
        z, v = x @ u, means @ u
        scores = z @ v.T - (v**2).sum(axis=1) / 2 + np.log(counts / 60)
        return log_softmax(scores, axis=1), lam

    first, lam = log_chance(f, None)
    sure = np.exp(first[np.arange(60), targets])[:, None]
    others = np.asarray([f[targets != c].mean(axis=0) for c in range(3)])[targets]
    mixed = sure * f + (1 - sure) * others
    second, _ = log_chance(mixed - mixed.mean(axis=0), lam)
    assert sfda(f, targets) == pytest.approx(second[np.arange(60), targets].mean(), rel=1e-8)


def test_sfda_of_classes_that_are_points_is_certain() -> None:
    targets = np.arange(12) % 3
    assert sfda(np.eye(3)[targets], targets) == pytest.approx(0, abs=1e-6)


def test_sfda_tells_backbones_apart_with_fewer_images_than_features() -> None:
    f, targets = drawn(60, 400)
    results = [sfda(f + apart * np.eye(3, 400)[targets], targets) for apart in (0, 4, 8)]
    assert results[0] < -0.01
    assert results[0] < 2 * results[1] < 4 * results[2] < 0


@pytest.mark.parametrize("score", SCORES)
def test_order_names_and_scale_do_not_matter(score) -> None:
    f, targets = drawn(45, 7)
    order = np.random.default_rng(1).permutation(45)
    expected = score(f, targets)
    assert score(f[order], targets[order]) == pytest.approx(expected, rel=1e-8)
    assert score(f, np.asarray(["z", "k", "a"])[targets]) == pytest.approx(expected, rel=1e-8)
    assert score(f, targets * 17 - 4) == pytest.approx(expected, rel=1e-8)
    assert score(1e4 * f, targets) == pytest.approx(expected, rel=1e-6)
    assert score(1e-4 * f, targets) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("score", [gbc, sfda])
@pytest.mark.parametrize("d", [7, 80])
def test_turns_and_shifts_do_not_matter(score, d: int) -> None:
    f, targets = drawn(45, d)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0]
    assert score(f @ turn + 3, targets) == pytest.approx(score(f, targets), rel=1e-6)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("n", "d"), [(120, 8), (40, 300)])
def test_classes_that_lie_apart_score_higher_than_shuffled_ones(score, n: int, d: int) -> None:
    f, targets = drawn(n, d)
    f += 2 * np.eye(3, d)[targets]
    assert score(f, targets) > score(f, np.random.default_rng(0).permutation(targets))


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 30), st.integers(2, 40), st.integers(2, 4), st.integers(0, 99))
def test_ranges_hold(n: int, d: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    f, targets = rng.normal(size=(n, d)), rng.integers(0, classes, size=n)
    targets[:2] = 0, 1
    n_labels = len(np.unique(targets))
    assert -n_labels * (n_labels - 1) - 1e-9 <= gbc(f, targets) <= 0
    assert -1 - 1e-9 <= parc(f, targets) <= 1 + 1e-9
    assert -np.inf < sfda(f, targets) <= 1e-12


def test_features_that_are_all_alike_are_worth_nothing() -> None:
    f, targets = np.full((9, 4), 0.1), np.arange(9) % 3
    assert gbc(f, targets) == pytest.approx(-6)
    assert parc(f, targets) == 0
    assert sfda(f, targets) == pytest.approx(-np.log(3))


@pytest.mark.parametrize("score", SCORES)
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
    with pytest.raises(UsageError, match=r"Expected .*\. [A-Z]"):
        score(features, targets)
