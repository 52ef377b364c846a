"""The descent of large probes: the minimum of convex objectives, in few products."""

import numpy as np
import pytest

from headstart.training.descent import descend
from headstart.training.logistic_regression import Design, principal_basis, solve_path


class Quadratic:
    """||A x - b||^2 / 2 + penalty / 2 ||x||^2 without a bias; counts the products."""

    def __init__(self, matrix, targets, penalty=0.1):
        self.matrix, self.targets, self.penalty, self.products = matrix, targets, penalty, 0

    def scores(self, parameters):
        self.products += 1
        return self.matrix @ parameters

    def gradient(self, parameters, scores):
        self.products += 1
        return self.matrix.T @ (scores - self.targets) + self.penalty * parameters

    def slope(self, scores, direction_scores):
        return float(((scores - self.targets) * direction_scores).sum())

    def penalty_slope(self, parameters, direction):
        return self.penalty * float(np.vdot(parameters, direction))


@pytest.mark.parametrize("condition", [1, 10, 100])
def test_a_quadratic_is_minimised_with_two_products_a_step(condition):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(60, 20)) * np.geomspace(1, condition**0.5, 20)
    targets = rng.normal(size=(60, 3))
    problem = Quadratic(matrix, targets)
    found, steps, is_converged = descend(problem, np.zeros((20, 3)), 1e-5)
    exact = np.linalg.solve(matrix.T @ matrix + 0.1 * np.eye(20), matrix.T @ targets)
    assert is_converged
    np.testing.assert_allclose(found, exact, atol=1e-4)
    assert problem.products <= 2 * steps + 6


def test_it_ends_where_no_step_helps():
    problem = Quadratic(np.full((2, 1), np.nan), np.ones((2, 1)))
    assert descend(problem, np.ones((1, 1)), 1e-9)[2] is False


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("is_rotated", [False, True])
def test_float32_gives_the_minimum_of_float64(loss, is_rotated):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 6, 500)
    x = np.float32(rng.normal(size=(500, 30)) + 2 * rng.normal(size=(6, 30))[labels])
    basis = principal_basis(x)
    plain = Design(features=x, basis=basis) if is_rotated else Design(features=basis.apply(x))
    quick = Design(features=plain.features, basis=plain.basis, dtype=np.float32)
    weights, penalties = rng.uniform(0.5, 2, 500), [1e-1, 1e-3, 1e-5]
    columns = np.eye(6, dtype=np.int8)[labels]
    exact = solve_path(plain, columns, penalties, loss=loss, weights=weights)
    found = solve_path(quick, columns, penalties, loss=loss, weights=weights, tolerance=1e-5)
    for a, b in zip(exact, found, strict=True):
        assert a.penalty == b.penalty
        first, second = (plain.scores(s.weight, s.bias) for s in (a, b))
        np.testing.assert_allclose(first, second, atol=2e-2 * np.abs(first).max())
