"""Distances to what was learned from, against scikit-learn and closed forms."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from scipy.spatial.distance import cdist, mahalanobis, pdist
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.metrics.outliers import OutlierMethod, Outliers, nearest

METHODS: tuple[OutlierMethod, ...] = get_args(OutlierMethod)


def clouds(seed: int = 0, n: int = 60, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    return rng.normal(size=(n, d)) + 4 * np.eye(3, d)[targets] + 1.0, targets


@pytest.mark.parametrize("k", [1, 4])
def test_the_neighbour_is_scikit_learns(k: int) -> None:
    known, targets = clouds()
    asked, _ = clouds(1)
    found = Outliers.fit(known, targets, k=k)
    reference = NearestNeighbors(n_neighbors=k).fit(normalize(known))
    distances, _ = reference.kneighbors(normalize(asked))
    np.testing.assert_allclose(found.scores(asked), distances[:, -1], atol=1e-6)
    alone, _ = reference.kneighbors()  # of each known row, itself left out
    np.testing.assert_allclose(found.typical, np.sort(alone[:, -1]), atol=1e-6)


def test_the_distance_is_mahalanobis() -> None:
    known, targets = clouds()
    asked, _ = clouds(1)
    means = [known[targets == c].mean(axis=0) for c in range(3)]
    within = LedoitWolf(assume_centered=True).fit(known - np.stack(means)[targets])
    overall = LedoitWolf().fit(known)
    of = [min(mahalanobis(row, mean, within.precision_) ** 2 for mean in means) for row in asked]
    background = [mahalanobis(row, known.mean(axis=0), overall.precision_) ** 2 for row in asked]
    plain = Outliers.fit(known, targets, method="mahalanobis").scores(asked)
    relative = Outliers.fit(known, targets, method="relative_mahalanobis").scores(asked)
    np.testing.assert_allclose(plain, of, rtol=1e-6)
    np.testing.assert_allclose(relative, np.subtract(of, background), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6, 1e12])
def test_the_unit_of_the_features_does_not_matter(method: OutlierMethod, unit: float) -> None:
    known, targets = clouds()
    asked, _ = clouds(1)
    wanted = Outliers.fit(known, targets, method=method).scores(asked)
    found = Outliers.fit(unit * known, targets, method=method).scores(unit * asked)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)


def test_without_classes_the_distance_is_from_the_mean_of_all() -> None:
    known, _ = clouds()
    asked, _ = clouds(1)
    scores = Outliers.fit(known, method="mahalanobis").scores(asked)
    np.testing.assert_allclose(scores, LedoitWolf().fit(known).mahalanobis(asked), rtol=1e-6)
    apart = Outliers.fit(known, method="relative_mahalanobis").scores(asked)
    np.testing.assert_allclose(apart, 0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_features_that_do_not_vary_have_finite_distances(method: OutlierMethod) -> None:
    found = Outliers.fit(np.full((5, 3), 0.1), np.arange(5) % 2, method=method)
    assert np.isfinite(found.scores([[0.1, 0.1, 0.1], [1.0, 2.0, 3.0]])).all()


def test_more_neighbours_than_there_are_is_the_farthest() -> None:
    known, _ = clouds(n=7)
    asked, _ = clouds(1, n=4)
    others = cdist(normalize(asked), normalize(known))
    found = Outliers.fit(known, k=50)
    np.testing.assert_allclose(found.scores(asked), np.sort(others)[:, 5])  # as for known ones
    alone = cdist(normalize(known), normalize(known)).max(axis=1)
    np.testing.assert_allclose(found.typical, np.sort(alone), atol=1e-7)
    two = Outliers.fit(known[:2])
    np.testing.assert_allclose(two.typical, pdist(normalize(known[:2])).repeat(2))


def test_more_images_than_a_block_are_compared_alike() -> None:
    known, _ = clouds(n=1100)
    reference = NearestNeighbors(n_neighbors=2).fit(normalize(known))
    wanted = np.sort(reference.kneighbors()[0][:, 1])
    np.testing.assert_allclose(Outliers.fit(known, k=2).typical, wanted, atol=1e-6)


@pytest.mark.parametrize("method", ["knn", "mahalanobis"])
@pytest.mark.parametrize("d", [6, 200])
def test_foreign_images_are_farther(method: OutlierMethod, d: int) -> None:
    """Also with more features than images."""
    known, targets = clouds(d=d)
    same, _ = clouds(1, d=d)
    foreign = np.random.default_rng(2).normal(size=(60, d)) - 4
    found = Outliers.fit(known, targets, method=method)
    scores = np.r_[found.scores(same), found.scores(foreign)]
    assert roc_auc_score(np.repeat([0, 1], 60), scores) > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_contract(method: OutlierMethod) -> None:
    known, targets = clouds()
    found = Outliers.fit(known, targets, method=method)
    scores = found.scores(known[:5])
    assert scores.shape == (5,)
    assert np.isfinite(scores).all()
    names = np.array(["x", "y", "z"])[targets]
    np.testing.assert_array_equal(
        Outliers.fit(known, names, method=method).scores(known[:5]), scores
    )
    assert found.scores(known[:0]).shape == (0,)
    with pytest.raises(UsageError, match="6 features"):
        found.scores(known[:, :3])
    with pytest.raises(DataError, match="finite"):
        found.scores(known * np.nan)


def test_a_groups_own_images_are_left_out() -> None:
    known, _ = clouds()
    twice = np.repeat(known, 2, axis=0)
    assert Outliers.fit(twice).typical.max() == pytest.approx(0, abs=1e-6)
    grouped = Outliers.fit(twice, groups=np.repeat(np.arange(60), 2)).typical
    np.testing.assert_allclose(grouped, np.repeat(Outliers.fit(known).typical, 2), atol=1e-6)


def test_beyond_is_the_share_that_is_nearer() -> None:
    known, targets = clouds()
    found = Outliers.fit(known, targets)
    middle = float(np.median(found.typical)) + 1e-9
    share = np.mean(found.typical < middle)
    assert 0.4 < share < 0.6
    assert found.beyond([middle, -1.0, 9.0]).tolist() == [share, 0.0, 1.0]
    assert np.isnan(Outliers.fit(known, targets, method="mahalanobis").beyond([1.0])).all()


def test_one_group_alone_says_nothing_of_what_is_typical() -> None:
    known, _ = clouds()
    found = Outliers.fit(known, groups=np.zeros(60, np.intp))
    assert np.isnan(found.beyond([0.1])).all()


def test_nearest_are_the_most_similar_and_the_first_of_equals() -> None:
    known = [[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]
    rows, cosines = nearest(known, [[5.0, 0.0]], 5)
    assert rows.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(cosines, [[1.0, 1.0, 0.0]])


def test_what_cannot_be_meant_is_refused() -> None:
    known, targets = clouds()
    with pytest.raises(UnknownNameError, match="mahalanobis"):
        Outliers.fit(known, targets, method="mahalanobi")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least 1"):
        Outliers.fit(known, targets, k=0)
    with pytest.raises(UsageError, match="shape"):
        Outliers.fit(known, targets[1:], method="mahalanobis")
    with pytest.raises(UsageError, match="shape"):
        Outliers.fit(known[0])
    with pytest.raises(DataError, match="two images"):
        Outliers.fit(known[:1])
