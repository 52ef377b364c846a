"""Few-shot heads against scikit-learn, distances computed one by one, and properties."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

from headstart.errors import UnknownNameError
from headstart.training.few_shot_heads import (
    HEADS,
    fit_few_shot_head,
    held_out_logits,
    lda,
    nearest_cosine,
    nearest_prototype,
    shrunken_centroids,
    simple_shot,
)


def draw(n=4, k=3, width=8, seed=0):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(k), n)
    return rng.normal(size=(k, width))[y] + rng.normal(size=(n * k, width)) + 2, y


def scores(affine, x):
    return x @ affine[0].T + affine[1]


def differences(logits):
    return logits - logits[:, :1]


@pytest.mark.parametrize("width", [3, 40])
def test_prototypes_are_squared_distances(width):
    x, y = draw(width=width)
    means = [x[y == k].mean(axis=0) for k in range(3)]
    distances = np.array([[-0.5 * sum((row - mean) ** 2) for mean in means] for row in x])
    logits = scores(nearest_prototype(x, y), x)
    np.testing.assert_allclose(differences(logits), differences(distances), atol=1e-12)


def test_cosine_predicts_by_cosines_computed_one_by_one():
    x, y = draw()
    unit = [row / np.sqrt(sum(row**2)) for row in x]
    means = [
        np.mean([u for u, label in zip(unit, y, strict=True) if label == k], 0) for k in (0, 1, 2)
    ]
    cosines = np.array([[row @ mean / np.sqrt(mean @ mean) for mean in means] for row in unit])
    logits = scores(nearest_cosine(x, y), x)
    np.testing.assert_allclose(logits / np.linalg.norm(x, axis=1)[:, None], cosines, atol=1e-12)


def test_simple_shot_is_the_cosine_of_centred_features():
    x, y = draw()
    centred = x - np.mean([x[y == k].mean(axis=0) for k in range(3)], axis=0)
    expected = scores(nearest_cosine(centred, y), centred)
    np.testing.assert_allclose(scores(simple_shot(x, y), x), expected, atol=1e-12)
    np.testing.assert_allclose(scores(simple_shot(x + 100, y), x + 100), expected, atol=1e-10)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 2.0])
def test_shrunken_centroids_are_those_of_scikit_learn(threshold):
    x, y = draw(n=5)
    x, y = x[:-2], y[:-2]  # classes of different sizes
    theirs = NearestCentroid(shrink_threshold=threshold).fit(x, y)
    ours, _ = shrunken_centroids(x, y, threshold=threshold)
    np.testing.assert_allclose(ours, theirs.centroids_, atol=1e-12)


@pytest.mark.parametrize("width", [4, 60])
@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 1.0])
def test_lda_is_that_of_scikit_learn(width, shrinkage):
    x, y = draw(n=6, width=width)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, y)
    ours = scores(lda(x, y, shrinkage=shrinkage), x)
    np.testing.assert_allclose(
        differences(ours), differences(theirs.decision_function(x)), atol=1e-8
    )


@pytest.mark.parametrize("name", HEADS)
def test_the_order_of_the_images_does_not_matter(name):
    x, y = draw()
    order = np.random.default_rng(1).permutation(len(y))
    one = fit_few_shot_head(name, x, y, n_classes=3)
    other = fit_few_shot_head(name, x[order], y[order], n_classes=3)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_one_image_of_each_class_is_recognised(name):
    x, y = draw(n=1, k=5, width=20)
    weight, bias = fit_few_shot_head(name, x, y, n_classes=5)
    assert ((x @ weight.T + bias).argmax(axis=1) == y).all()


@pytest.mark.parametrize("name", HEADS)
def test_a_class_without_images_is_never_predicted(name):
    x, y = draw()
    weight, bias = fit_few_shot_head(name, x, np.array([0, 2, 3])[y], n_classes=5)
    assert set((x @ weight.T + bias).argmax(axis=1)) <= {0, 2, 3}
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_images_and_one_class_give_finite_heads(name, value):
    for y in (np.array([0, 0, 1, 1]), np.zeros(4, dtype=int)):
        weight, bias = fit_few_shot_head(name, np.full((4, 3), value), y, n_classes=2)
        assert np.isfinite(weight).all()
        assert np.isfinite(bias).all()


@pytest.mark.parametrize("name", HEADS)
def test_held_out_logits_are_of_heads_fitted_without_the_image(name):
    x, y = draw()
    logits = held_out_logits(name, x, y, n_classes=3)
    for row in (0, 7):
        kept = np.arange(len(y)) != row
        weight, bias = fit_few_shot_head(name, x[kept], y[kept], n_classes=3)
        np.testing.assert_allclose(logits[row], weight @ x[row] + bias, atol=1e-9)
    changed = x.copy()
    changed[0] += 50  # changes the row itself and the heads of the others
    again = held_out_logits(name, changed, y, n_classes=3)
    kept = np.arange(len(y)) != 0
    weight, bias = fit_few_shot_head(name, x[kept], y[kept], n_classes=3)
    np.testing.assert_allclose(again[0], weight @ changed[0] + bias, atol=1e-9)


def test_a_group_is_left_out_as_a_whole():
    x, y = draw(n=4, k=2)
    groups = list("aabbccdd")
    logits = held_out_logits("lda", x, y, n_classes=2, groups=groups)
    kept = np.array([group != "b" for group in groups])
    weight, bias = fit_few_shot_head("lda", x[kept], y[kept], n_classes=2)
    np.testing.assert_allclose(logits[2:4], x[2:4] @ weight.T + bias, atol=1e-9)


def test_the_only_image_of_a_class_cannot_be_left_out():
    x, y = draw(n=2, k=3)
    logits = held_out_logits("cosine", x[:-1], y[:-1], n_classes=3)
    assert np.isnan(logits).any(axis=1).tolist() == [False] * 4 + [True]


def test_every_image_of_large_data_is_left_out_once():
    x, y = draw(n=120, k=2, width=4)
    y[[0, 100]] = 2  # two images of a third class, 100 images apart
    assert np.isfinite(held_out_logits("euclidean", x, y, n_classes=3)).all()


def test_an_unknown_head_is_refused():
    with pytest.raises(UnknownNameError, match="cosine"):
        fit_few_shot_head("cosin", *draw(), n_classes=3)
