import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics import mutual_info_score
from sklearn.mixture import GaussianMixture

from headstart.errors import UsageError
from headstart.metrics.transferability.source_labels import leep, nce, nleep


def entropy(targets: np.ndarray) -> float:
    shares = np.unique(targets, return_counts=True)[1] / len(targets)
    return -float((shares * np.log(shares)).sum())


def answers(n: int, source: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(source, 0.3), size=n)


def leep_by_loops(chance: np.ndarray, targets: np.ndarray) -> float:
    n, total = len(targets), 0.0
    joint: dict[tuple[object, int], float] = {}
    for i in range(n):
        for z in range(chance.shape[1]):
            joint[targets[i], z] = joint.get((targets[i], z), 0.0) + chance[i, z] / n
    for i in range(n):
        probability = 0.0
        for z in range(chance.shape[1]):
            mass = sum(joint[y, z] for y in set(targets.tolist()))
            if mass > 0:
                probability += joint[targets[i], z] / mass * chance[i, z]
        total += np.log(probability)
    return total / n


def test_leep_is_the_mean_of_the_logarithms() -> None:
    chance, targets = answers(30, 5), np.arange(30) % 3
    assert leep(chance, targets) == pytest.approx(leep_by_loops(chance, targets))


def test_a_source_class_without_mass_changes_nothing() -> None:
    chance, targets = answers(30, 5), np.arange(30) % 3
    wider = np.insert(chance, [0, 3, 5], 0.0, axis=1)
    assert leep(wider, targets) == pytest.approx(leep(chance, targets))
    assert leep(wider.astype(np.float32), targets) == pytest.approx(leep(chance, targets), abs=1e-6)


def test_a_source_that_says_the_same_of_all_is_worth_the_shares() -> None:
    targets = np.asarray([0, 0, 0, 1, 1, 2])
    same = np.tile([0.2, 0.5, 0.3], (6, 1))
    assert leep(same, targets) == pytest.approx(-entropy(targets))
    assert nce(np.zeros(6), targets) == pytest.approx(-entropy(targets))


def test_nce_is_mutual_information_less_entropy() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 80)
    source = np.where(rng.random(80) < 0.6, targets, rng.integers(0, 9, 80))
    expected = mutual_info_score(source, targets) - entropy(targets)
    assert nce(source, targets) == pytest.approx(expected)
    assert nce(np.asarray(list("abcdefghi"))[source], targets) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(2, 4), st.integers(0, 99))
def test_leep_lies_between_conditional_entropy_and_certainty(
    n: int, source: int, classes: int, seed: int
) -> None:
    chance = answers(n, source, seed)
    targets = np.random.default_rng(seed + 1).integers(0, classes, n)
    targets[:2] = 0, 1
    joint = np.eye(classes)[targets].T @ chance / n
    is_present = joint > 0
    soft = float((joint[is_present] * np.log((joint / joint.sum(axis=0))[is_present])).sum())
    assert -entropy(targets) - 1e-9 <= soft <= leep(chance, targets) + 1e-9
    assert leep(chance, targets) <= 0
    hard = chance.argmax(axis=1)
    assert leep(np.eye(source)[hard], targets) == pytest.approx(nce(hard, targets))


def test_order_and_names_do_not_matter() -> None:
    chance, targets = answers(40, 6), np.arange(40) % 3
    order = np.random.default_rng(1).permutation(40)
    names = np.asarray(["z", "k", "a"])
    for score in (leep, lambda p, t: nce(p.argmax(axis=1), t)):
        expected = score(chance, targets)
        assert score(chance[order], targets[order]) == pytest.approx(expected)
        assert score(chance[:, ::-1], targets) == pytest.approx(expected)
        assert score(chance, names[targets]) == pytest.approx(expected)
        assert score(chance, targets * 10 - 7) == pytest.approx(expected)


def blobs(n: int = 90, d: int = 6, apart: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = np.arange(n) % 3
    return rng.normal(size=(n, d)) + apart * np.eye(3, d)[targets], targets


def test_nleep_is_leep_of_the_mixture_that_scikit_learn_fits() -> None:
    f, targets = blobs(apart=9)
    places = PCA(0.8, svd_solver="full").fit_transform(f)
    model = GaussianMixture(3, covariance_type="diag", n_init=5, random_state=1).fit(places)
    expected = leep(model.predict_proba(places), targets)
    assert nleep(f, targets, components=3) == pytest.approx(expected, abs=1e-3)


def test_nleep_of_one_part_is_the_shares_and_of_blobs_their_conditional_entropy() -> None:
    rng = np.random.default_rng(0)
    blob = np.repeat(np.arange(4), 10)
    f = np.c_[10.0 * (blob % 2), 7.0 * (blob // 2)] + 1e-3 * rng.normal(size=(40, 2))
    targets = rng.integers(0, 3, 40)
    assert nleep(f, targets, components=1) == pytest.approx(-entropy(targets))
    assert nleep(f, targets, components=4) == pytest.approx(nce(blob, targets), abs=1e-6)
    # two parts lie along the axis that varies most, not along the whitened ones
    assert nleep(f, targets, components=2) == pytest.approx(nce(blob % 2, targets), abs=1e-3)


@pytest.mark.parametrize(
    ("n", "classes", "parts"), [(100, 2, 10), (30, 2, 6), (12, 3, 2), (9, 2, 2)]
)
def test_nleep_has_five_parts_a_class_and_five_images_a_part(n, classes, parts) -> None:
    rng = np.random.default_rng(2)
    f, targets = rng.normal(size=(n, 6)), np.arange(n) % classes
    scores = {k: nleep(f, targets, components=k) for k in (parts - 1, parts, parts + 1)}
    assert nleep(f, targets) == scores[parts]
    assert len(set(scores.values())) == 3


def test_nleep_reads_the_components_that_hold_four_fifths_of_the_variance() -> None:
    targets = np.arange(60) % 2
    start = np.c_[np.ones(60), targets, np.random.default_rng(0).normal(size=(60, 2))]
    telling, *noise = np.linalg.qr(start)[0].T[1:]
    three = np.stack([*noise, telling], axis=1)
    enough, short = (three * np.sqrt(v) for v in ((0.5, 0.31, 0.19), (0.5, 0.29, 0.21)))
    assert nleep(enough, targets) == pytest.approx(nleep(enough[:, :2], targets), abs=1e-9)
    assert nleep(enough, targets) < -0.3
    assert nleep(short, targets) == pytest.approx(0, abs=1e-6)


def test_nleep_does_not_hang_on_order_shift_turn_or_scale() -> None:
    f, targets = blobs()
    rng = np.random.default_rng(1)
    order, turn = rng.permutation(90), np.linalg.qr(rng.normal(size=(6, 6)))[0]
    expected = nleep(f, targets)
    assert nleep(f[order], targets[order]) == pytest.approx(expected, abs=1e-6)
    assert nleep(1000 * f @ turn + 3, targets) == pytest.approx(expected, abs=1e-6)
    assert nleep(f, np.asarray(["z", "k", "a"])[targets]) == pytest.approx(expected)


def test_nleep_prefers_classes_that_lie_apart_also_with_few_images() -> None:
    far, targets = blobs(30, 200, 20.0)
    near, _ = blobs(30, 200, 0.0)
    assert -entropy(targets) - 1e-9 <= nleep(near, targets) < nleep(far, targets) <= 0


def test_nleep_of_features_that_are_all_alike_is_the_shares() -> None:
    targets = np.asarray([0, 0, 0, 1, 1, 2])
    assert nleep(np.full((6, 3), 0.1), targets) == pytest.approx(-entropy(targets))
    assert nleep(np.eye(2)[[0, 0, 0, 1, 1, 1]], targets, components=5) <= 0


@pytest.mark.parametrize(
    ("chance", "targets"),
    [
        (np.full((3, 2), 0.5), [0, 1]),
        (np.full((3, 2), 0.5), [1, 1, 1]),
        (np.full((3, 2), 0.6), [0, 1, 0]),
        (np.asarray([[1.5, -0.5]] * 3), [0, 1, 0]),
        (np.asarray([[0.5, 0.5], [0.5, 0.5], [0.5, 0.6]]), [0, 1, 0]),
        (np.full((3, 2), np.nan), [0, 1, 0]),
    ],
)
def test_leep_refuses_what_is_no_answer(chance, targets) -> None:
    with pytest.raises(UsageError, match=r"Expected .*\. [A-Z]"):
        leep(chance, targets)


def test_what_cannot_be_meant_is_refused() -> None:
    f, targets = blobs(9)
    with pytest.raises(UsageError, match="components"):
        nleep(f, targets, components=0)
    with pytest.raises(UsageError, match="two classes"):
        nleep(f, np.zeros(9))
    with pytest.raises(UsageError, match="source_labels"):
        nce(f, targets)
    with pytest.raises(UsageError, match="n targets"):
        nce([1, 2], targets)
