"""Distances from the training images, against scikit-learn and closed forms."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import get_args

import numpy as np
import pytest
from scipy.spatial.distance import cdist, mahalanobis, pdist
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.metrics.outliers import (
    OutlierDetector,
    OutlierMethod,
    excess_p_value,
    nearest_neighbours,
)

METHODS: tuple[OutlierMethod, ...] = get_args(OutlierMethod)


def clouds(seed: int = 0, n: int = 60, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    return rng.normal(size=(n, d)) + 4 * np.eye(3, d)[targets] + 1.0, targets


@pytest.mark.parametrize("k", [1, 4])
def test_the_neighbour_is_scikit_learns(k: int) -> None:
    train, targets = clouds()
    queries, _ = clouds(1)
    detector = OutlierDetector.fit(train, targets, k=k)
    reference = NearestNeighbors(n_neighbors=k).fit(normalize(train))
    distances, _ = reference.kneighbors(normalize(queries))
    np.testing.assert_allclose(detector.scores(queries), distances[:, -1], atol=1e-6)
    alone, _ = reference.kneighbors()  # of each train row, itself left out
    np.testing.assert_allclose(detector.train_scores, np.sort(alone[:, -1]), atol=1e-6)


def test_the_distance_is_mahalanobis() -> None:
    train, targets = clouds()
    queries, _ = clouds(1)
    means = [train[targets == c].mean(axis=0) for c in range(3)]
    within = LedoitWolf(assume_centered=True).fit(train - np.stack(means)[targets])
    overall = LedoitWolf().fit(train)
    of = [min(mahalanobis(row, mean, within.precision_) ** 2 for mean in means) for row in queries]
    background = [mahalanobis(row, train.mean(axis=0), overall.precision_) ** 2 for row in queries]
    plain = OutlierDetector.fit(train, targets, method="mahalanobis").scores(queries)
    relative = OutlierDetector.fit(train, targets, method="relative_mahalanobis").scores(queries)
    np.testing.assert_allclose(plain, of, rtol=1e-6)
    np.testing.assert_allclose(relative, np.subtract(of, background), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6, 1e12])
def test_the_unit_of_the_features_does_not_matter(method: OutlierMethod, unit: float) -> None:
    train, targets = clouds()
    queries, _ = clouds(1)
    expected = OutlierDetector.fit(train, targets, method=method).scores(queries)
    scores = OutlierDetector.fit(unit * train, targets, method=method).scores(unit * queries)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-8)


def test_without_classes_the_distance_is_from_the_mean_of_all() -> None:
    train, _ = clouds()
    queries, _ = clouds(1)
    scores = OutlierDetector.fit(train, method="mahalanobis").scores(queries)
    np.testing.assert_allclose(scores, LedoitWolf().fit(train).mahalanobis(queries), rtol=1e-6)
    apart = OutlierDetector.fit(train, method="relative_mahalanobis").scores(queries)
    np.testing.assert_allclose(apart, 0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_features_that_do_not_vary_have_finite_distances(method: OutlierMethod) -> None:
    detector = OutlierDetector.fit(np.full((5, 3), 0.1), np.arange(5) % 2, method=method)
    assert np.isfinite(detector.scores([[0.1, 0.1, 0.1], [1.0, 2.0, 3.0]])).all()


def test_more_neighbours_than_there_are_is_the_farthest() -> None:
    train, _ = clouds(n=7)
    queries, _ = clouds(1, n=4)
    others = cdist(normalize(queries), normalize(train))
    detector = OutlierDetector.fit(train, k=50)
    np.testing.assert_allclose(
        detector.scores(queries), np.sort(others)[:, 5]
    )  # as for training images
    alone = cdist(normalize(train), normalize(train)).max(axis=1)
    np.testing.assert_allclose(detector.train_scores, np.sort(alone), atol=1e-7)
    two = OutlierDetector.fit(train[:2])
    np.testing.assert_allclose(two.train_scores, pdist(normalize(train[:2])).repeat(2))


def test_more_images_than_a_block_are_compared_alike() -> None:
    train, _ = clouds(n=1100)
    reference = NearestNeighbors(n_neighbors=2).fit(normalize(train))
    expected = np.sort(reference.kneighbors()[0][:, 1])
    np.testing.assert_allclose(OutlierDetector.fit(train, k=2).train_scores, expected, atol=1e-6)


@pytest.mark.parametrize("method", ["knn", "mahalanobis"])
@pytest.mark.parametrize("d", [6, 200])
def test_out_of_distribution_images_are_farther(method: OutlierMethod, d: int) -> None:
    """Also with more features than images."""
    train, targets = clouds(d=d)
    same, _ = clouds(1, d=d)
    outliers = np.random.default_rng(2).normal(size=(60, d)) - 4
    detector = OutlierDetector.fit(train, targets, method=method)
    scores = np.r_[detector.scores(same), detector.scores(outliers)]
    assert roc_auc_score(np.repeat([0, 1], 60), scores) > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_contract(method: OutlierMethod) -> None:
    train, targets = clouds()
    detector = OutlierDetector.fit(train, targets, method=method)
    scores = detector.scores(train[:5])
    assert scores.shape == (5,)
    assert np.isfinite(scores).all()
    names = np.array(["x", "y", "z"])[targets]
    np.testing.assert_array_equal(
        OutlierDetector.fit(train, names, method=method).scores(train[:5]), scores
    )
    assert detector.scores(train[:0]).shape == (0,)
    with pytest.raises(UsageError, match="6 features"):
        detector.scores(train[:, :3])
    with pytest.raises(DataError, match="finite"):
        detector.scores(train * np.nan)


def test_a_groups_own_images_are_left_out() -> None:
    train, _ = clouds()
    twice = np.repeat(train, 2, axis=0)
    assert OutlierDetector.fit(twice).train_scores.max() == pytest.approx(0, abs=1e-6)
    grouped = OutlierDetector.fit(twice, groups=np.repeat(np.arange(60), 2)).train_scores
    np.testing.assert_allclose(
        grouped, np.repeat(OutlierDetector.fit(train).train_scores, 2), atol=1e-6
    )


def test_beyond_is_the_share_that_is_nearer() -> None:
    train, targets = clouds()
    detector = OutlierDetector.fit(train, targets)
    middle = float(np.median(detector.train_scores)) + 1e-9
    share = np.mean(detector.train_scores < middle)
    assert 0.4 < share < 0.6
    assert detector.share_below([middle, -1.0, 9.0]).tolist() == [share, 0.0, 1.0]
    assert np.isnan(
        OutlierDetector.fit(train, targets, method="mahalanobis").share_below([1.0])
    ).all()


def test_one_group_alone_says_nothing_of_what_is_typical() -> None:
    train, _ = clouds()
    detector = OutlierDetector.fit(train, groups=np.zeros(60, np.intp))
    assert np.isnan(detector.share_below([0.1])).all()


def test_nearest_are_the_most_similar_and_the_first_of_equals() -> None:
    train = [[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]
    rows, cosines = nearest_neighbours(train, [[5.0, 0.0]], 5)
    assert rows.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(cosines, [[1.0, 1.0, 0.0]])


def test_what_is_invalid_is_refused() -> None:
    train, targets = clouds()
    with pytest.raises(UnknownNameError, match="mahalanobis"):
        OutlierDetector.fit(train, targets, method="mahalanobi")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least 1"):
        OutlierDetector.fit(train, targets, k=0)
    with pytest.raises(UsageError, match="shape"):
        OutlierDetector.fit(train, targets[1:], method="mahalanobis")
    with pytest.raises(UsageError, match="shape"):
        OutlierDetector.fit(train[0])
    with pytest.raises(DataError, match="two images"):
        OutlierDetector.fit(train[:1])


@pytest.mark.parametrize(("n_new", "rank", "n_known"), [(3, 2, 4), (4, 4, 4), (2, 1, 5)])
def test_the_excess_is_counted_over_all_orders(n_new: int, rank: int, n_known: int) -> None:
    total = n_new + n_known
    orders = [set(places) for places in combinations(range(total), n_known)]
    for above in range(n_new + 1):
        count = 0
        for places in orders:
            limit = sorted(places)[rank - 1]
            count += sum(i > limit for i in range(total) if i not in places) >= above
        wanted = count / comb(total, n_known)
        assert excess_p_value(above, n_new, rank, n_known) == pytest.approx(wanted, rel=1e-9)
    for wrong in ((0, n_new, 0, n_known), (0, n_new, n_known + 1, n_known), (9, 2, 1, 1)):
        with pytest.raises(UsageError, match="rank"):
            excess_p_value(*wrong)
