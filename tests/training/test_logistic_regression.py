"""The solver against scikit-learn's, and against the conditions that define a minimum."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from headstart.errors import HeadstartError
from headstart.training.logistic_regression import principal_basis, solve_path


def problem(n, d, k, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % k)
    centres = rng.normal(size=(k, d))
    return centres[labels] + 1.5 * rng.normal(size=(n, d)), labels


def scikit(x, labels, penalty, weights=None):
    weights = np.ones(len(x)) if weights is None else weights
    model = LogisticRegression(C=1 / (penalty * weights.sum()), tol=1e-10, max_iter=20_000)
    return model.fit(x, labels, sample_weight=weights)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("weighted", [False, True])
def test_multinomial_equals_scikit_learn(penalty, weighted):
    x, labels = problem(120, 8, 4)
    weights = np.random.default_rng(1).uniform(0.2, 3.0, 120) if weighted else None
    [ours] = solve_path(x, np.eye(4)[labels], [penalty], loss="softmax", weights=weights)
    reference = scikit(x, labels, penalty, weights)
    np.testing.assert_allclose(ours.weight.T, reference.coef_, atol=2e-4)
    bias = ours.bias - ours.bias.mean()
    np.testing.assert_allclose(bias, reference.intercept_ - reference.intercept_.mean(), atol=2e-4)


@pytest.mark.parametrize("penalty", [1.0, 1e-3])
def test_binary_equals_scikit_learn(penalty):
    x, labels = problem(90, 6, 2)
    [ours] = solve_path(x, labels[:, None], [penalty], loss="sigmoid")
    reference = scikit(x, labels, penalty)
    np.testing.assert_allclose(ours.weight.T, reference.coef_, atol=2e-4)
    np.testing.assert_allclose(ours.bias, reference.intercept_, atol=2e-4)


def test_multilabel_is_one_binary_problem_for_each_label():
    x, labels = problem(100, 5, 4)
    table = np.stack([labels % 2, labels // 2], axis=1)
    [joint] = solve_path(x, table, [1e-2], loss="sigmoid")
    for column in range(2):
        reference = scikit(x, table[:, column], 1e-2)
        np.testing.assert_allclose(joint.weight[:, column], reference.coef_[0], atol=2e-4)


def test_labels_can_be_weighted_one_by_one():
    x, labels = problem(100, 5, 4)
    table = np.stack([labels % 2, labels // 2], axis=1)
    weights = np.random.default_rng(2).uniform(0.2, 3.0, table.shape)
    [joint] = solve_path(x, table, [1e-2], loss="sigmoid", weights=weights)
    for column in range(2):
        reference = scikit(x, table[:, column], 1e-2, weights[:, column])
        np.testing.assert_allclose(joint.weight[:, column], reference.coef_[0], atol=2e-4)


def test_path_does_not_depend_on_where_it_starts():
    x, labels = problem(80, 6, 3)
    one_hot = np.eye(3)[labels]
    *_, along = solve_path(x, one_hot, [1.0, 0.1, 1e-3], loss="softmax")
    [alone] = solve_path(x, one_hot, [1e-3], loss="softmax")
    np.testing.assert_allclose(along.weight, alone.weight, atol=1e-4)


@pytest.mark.parametrize("shape", [(30, 8), (20, 50)])
def test_basis_leaves_the_solution_as_it_was(shape):
    x, labels = problem(*shape, 3)
    x = 7.0 * x + 100.0
    basis = principal_basis(x)
    one_hot = np.eye(3)[labels]
    [rotated] = solve_path(basis.apply(x), one_hot, [1e-2], loss="softmax")
    weight, bias = basis.undo(rotated.weight, rotated.bias)
    np.testing.assert_allclose(x @ weight + bias, rotated.scores(basis.apply(x)), atol=1e-8)
    reference = scikit((x - basis.mean) / basis.scale, labels, 1e-2)
    np.testing.assert_allclose(weight.T * basis.scale, reference.coef_, atol=2e-4)


def test_basis_of_one_repeated_image_is_finite():
    basis = principal_basis(np.ones((5, 3)))
    assert np.isfinite(basis.apply(np.ones((2, 3)))).all()


def test_separable_classes_are_no_trouble():
    x = np.array([[-1.0], [-2.0], [1.0], [2.0]])
    *_, weak = solve_path(x, np.array([[0], [0], [1], [1]]), [1.0, 1e-3, 1e-6], loss="sigmoid")
    assert (weak.scores(x)[:, 0] > 0).tolist() == [False, False, True, True]


def test_infinite_features_are_refused():
    x, labels = problem(20, 3, 2)
    x[3, 1] = np.inf
    with pytest.raises(HeadstartError, match="finite"):
        principal_basis(x)
    with pytest.raises(HeadstartError, match="gradient"), np.errstate(all="ignore"):
        list(solve_path(x, labels[:, None], [0.1], loss="sigmoid"))
