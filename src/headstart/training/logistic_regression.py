"""Solver of the linear probe: regularised logistic regression.

The solver converges for each penalty on a path from strong to weak. It minimises, over weights W
and an unpenalised bias b,

    sum_i v_i * loss(y_i, x_i W + b) / sum_i v_i  +  penalty / 2 * ||W||^2

with the softmax cross-entropy (multiclass) or the sum over labels of the sigmoid
cross-entropy (binary and multilabel). With scikit-learn's ``C`` the same problem has
``penalty = 1 / (C * sum_i v_i)``; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.errors import HeadstartError
from headstart.training.descent import descend

__all__ = [
    "Basis",
    "Design",
    "Loss",
    "Solution",
    "mean_loss",
    "principal_basis",
    "solve_path",
]

Array = NDArray[np.floating[Any]]
Targets = NDArray[np.integer[Any]]
Loss = Literal["softmax", "sigmoid"]

GRADIENT_TOLERANCE = 1e-7
MAX_ITERATIONS = 5000

MANY_PARAMETERS = 200_000
"""Weights from which L-BFGS remembers fewer steps; each takes as much memory as the weights."""

LEAST_CURVATURE = 1e-10
BLOCK = 2048
"""Rows that are multiplied at a time. The results depend on it in the last bits."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """A shift, one scale for all features, and an orthonormal rotation.

    A rotation does not change the penalty, so the problem in this basis is the same problem. But
    it is small (at most n coordinates) and nearly diagonal, so that L-BFGS needs few steps.
    """

    mean: Array
    scale: float
    rotation: Array
    variances: Array

    def apply(self, features: Array) -> Array:
        """Compute coordinates (n, r) of features (n, d)."""
        coordinates = np.empty((len(features), self.rotation.shape[1]))
        for rows in _row_blocks(len(features)):
            coordinates[rows] = (features[rows] - self.mean) @ self.rotation / self.scale
        return coordinates

    def undo(self, weight: Array, bias: Array) -> tuple[Array, Array]:
        """Convert weights and bias for coordinates to weights (d, k) and bias (k,) for features."""
        raw_weight = self.rotation @ weight / self.scale
        return raw_weight, bias - self.mean @ raw_weight


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The minimiser for one penalty.

    Parameters
    ----------
    penalty : float
    weight : array, shape (r, k)
    bias : array, shape (k,)
    iterations : int
    """

    penalty: float
    weight: Array
    bias: Array
    iterations: int

    def scores(self, coordinates: Array) -> Array:
        """Compute linear scores, shape (n, k)."""
        return np.asarray(coordinates @ self.weight + self.bias)


def principal_basis(features: Array) -> Basis:
    """Compute a basis of the span of the features, scaled to a mean squared norm of one.

    Parameters
    ----------
    features : array, shape (n, d)

    Returns
    -------
    Basis
        With r = min(n, d) coordinates.

    Raises
    ------
    HeadstartError
        If a feature is not a finite number.

    Examples
    --------
    >>> basis = principal_basis(np.array([[0.0], [4.0]]))
    >>> np.abs(basis.apply(np.array([[2.0], [4.0]])))
    array([[0.],
           [1.]])
    """
    x = np.asarray(features)
    mean = x.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise HeadstartError(
            f"{np.count_nonzero(~np.isfinite(mean))} of {len(mean)} features are NaN or infinite. "
            "Check the weights of the backbone, or pass --engine fp32."
        )
    span = np.eye(x.shape[1])
    if len(x) < x.shape[1]:
        span = np.linalg.qr((x - mean).T)[0]  # few images span a small space: an orthonormal basis
    scatter = np.zeros((span.shape[1], span.shape[1]))
    for rows in _row_blocks(len(x)):
        projected = (x[rows] - mean) @ span if len(x) < x.shape[1] else x[rows] - mean
        scatter += projected.T @ projected
    scale = float(np.sqrt(np.trace(scatter) / len(x))) or 1.0
    # Eigenvectors are orthonormal to machine precision, whatever the conditioning.
    eigenvalues, vectors = np.linalg.eigh(scatter)
    variances = np.maximum(eigenvalues, 0.0) / len(x) / scale**2
    return Basis(mean=mean, scale=scale, rotation=span @ vectors, variances=variances)


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Features as the solver reads them: in blocks of rows, and rotated only where that is small.

    Coordinates of many images would take as much memory as their features. Instead the weights
    are converted: ``coordinates @ weight`` equals ``features @ basis.undo(weight)``.

    Parameters
    ----------
    features : array, shape (n, d)
        Coordinates if there is no ``basis``, and raw features otherwise.
    basis : Basis, optional
    dtype : float type
        Of the products. float32 needs half the time of float64.
    executor : ThreadPoolExecutor, optional
        Runs blocks at the same time. They are added in their order, so that the result has the
        same bits on any number of cores.
    """

    features: Array
    basis: Basis | None = None
    dtype: Any = np.float64
    executor: ThreadPoolExecutor | None = None

    @property
    def rank(self) -> int:
        """Number of coordinates."""
        array = self.features if self.basis is None else self.basis.rotation
        return int(array.shape[1])

    def scores(self, weight: Array, bias: Array) -> Array:
        """Compute linear scores, shape (n, k)."""
        scores = np.empty((len(self.features), weight.shape[1]), dtype=self.dtype)

        def keep(rows: slice, block: Array) -> None:
            scores[rows] = block

        self._over_blocks(weight, bias, keep)
        return scores

    def gradient(
        self, weight: Array, bias: Array, residuals: Callable[[slice, Array], tuple[float, Array]]
    ) -> tuple[float, Array]:
        """Sum a loss over the blocks, with its gradient (r + 1, k) in weight and bias.

        ``residuals`` converts rows and their scores to a loss and its derivative in the scores.
        """

        def step(rows: slice, scores: Array) -> tuple[float, Array, Array]:
            value, residual = residuals(rows, scores)
            slope = self._read(rows).T @ residual.astype(self.dtype, copy=False)
            return value, slope, residual.sum(axis=0, dtype=np.float64)

        value, slope, total = 0.0, np.zeros((self.features.shape[1], weight.shape[1])), 0.0
        for block_value, block_slope, block_total in self._over_blocks(weight, bias, step):
            value, total = value + block_value, total + block_total
            slope += block_slope
        return value, self._in_basis(slope, total)

    def slope(
        self, scores: Array, residuals: Callable[[slice, Array], tuple[float, Array]]
    ) -> Array:
        """Gradient (r + 1, k) of a loss in weight and bias, where the scores are these."""

        def step(rows: slice) -> tuple[Array, Array]:
            _, residual = residuals(rows, scores[rows])
            slope = self._read(rows).T @ residual.astype(self.dtype, copy=False)
            return slope, residual.sum(axis=0, dtype=np.float64)

        slope, total = np.zeros((self.features.shape[1], scores.shape[1])), 0.0
        for block_slope, block_total in self.map_blocks(step):
            slope += block_slope
            total = total + block_total
        return self._in_basis(slope, total)

    def _in_basis(self, slope: Array, total: Any) -> Array:
        """Convert a gradient in raw features to one in coordinates, and append the bias."""
        if self.basis is not None:
            slope -= np.outer(self.basis.mean, total)
            slope = self.basis.rotation.T @ slope / self.basis.scale
        return np.vstack([slope, total])

    def map_blocks(self, work: Callable[[slice], Any]) -> Iterator[Any]:
        """Call a function with the rows of each block, in their order."""
        blocks = list(_row_blocks(len(self.features)))
        # A list, because each caller reads all blocks.
        return iter(
            list(map(work, blocks) if self.executor is None else self.executor.map(work, blocks))
        )

    def variances(self) -> Array:
        """Mean squares of the coordinates, shape (r, 1)."""
        if self.basis is not None:
            return np.asarray(self.basis.variances[:, None])
        squares = np.zeros(self.rank)
        for rows in _row_blocks(len(self.features)):
            squares += np.square(self.features[rows], dtype=np.float64).sum(axis=0)
        return squares[:, None] / len(self.features)

    def _read(self, rows: slice) -> Array:
        return self.features[rows].astype(self.dtype, copy=False)

    def _over_blocks(
        self, weight: Array, bias: Array, step: Callable[[slice, Array], Any]
    ) -> Iterator[Any]:
        """Call ``step`` with the rows and scores of each block."""
        if self.basis is not None:
            weight, bias = self.basis.undo(weight, bias)
        weight, bias = weight.astype(self.dtype, copy=False), bias.astype(self.dtype, copy=False)

        def run(rows: slice) -> Any:
            return step(rows, self._read(rows) @ weight + bias)

        return self.map_blocks(run)


def solve_path(
    coordinates: Array | Design,
    targets: Targets,
    penalties: Sequence[float],
    *,
    loss: Loss,
    weights: Array | None = None,
    start: Solution | None = None,
    tolerance: float = GRADIENT_TOLERANCE,
) -> Iterator[Solution]:
    """Yield the minimiser for each penalty; each starts from the previous one.

    Parameters
    ----------
    coordinates : array, shape (n, r), or Design
    targets : array, shape (n, k)
        One-hot rows for softmax, 0 and 1 for sigmoid.
    penalties : sequence of float
        Preferably from strong to weak: a problem with a strong penalty is solved quickly.
    loss : {"softmax", "sigmoid"}
    weights : array, shape (n,) or (n, k), optional
        Weight of each example, or with the sigmoid loss of each label of each example. An example
        of weight 0 is ignored.
    start : Solution, optional
        Start of the first penalty; zero by default.
    tolerance : float
        Largest gradient of a minimiser, in coordinates of about equal curvature.

    Yields
    ------
    Solution

    Raises
    ------
    HeadstartError
        If the solver does not reach a gradient of about ``tolerance``.

    Examples
    --------
    >>> x, y = np.array([[-1.0], [1.0]]), np.array([[0], [1]])
    >>> [solution] = solve_path(x, y, [1.0], loss="sigmoid")
    >>> w = solution.weight.item()  # stationary: w = sigmoid(-w)
    >>> bool(abs(w - 1 / (1 + np.exp(w))) < 1e-6)
    True
    """
    design = coordinates if isinstance(coordinates, Design) else Design(features=coordinates)
    normalised = _normalised_weights(len(targets), weights)
    variances = design.variances()
    values = np.zeros((design.rank + 1, targets.shape[1]))
    if start is not None:
        values = np.vstack([start.weight, start.bias])
    for penalty in penalties:
        # Scaling by the square root of the curvature gives all directions about the same
        # curvature. That of a coordinate and a class is nearly the product of the coordinate's
        # variance and the class's mean p(1-p) at the start.
        curvature = _mean_curvature(design, targets, normalised, values, _LOSSES[loss])
        scale = np.sqrt(np.vstack([variances * curvature + penalty, curvature]))
        minimiser: Array = values * scale
        iterations, is_converged = 0, False
        if design.dtype == np.float32:
            residuals = _residuals(targets, normalised, _LOSSES[loss])
            products = _ScaledProducts(design, residuals, penalty, scale)
            minimiser, iterations, is_converged = descend(products, minimiser, tolerance)
        if not is_converged:
            objective = _objective(design, targets, normalised, penalty, scale, _LOSSES[loss])
            minimiser, further = _minimise(objective, minimiser, tolerance)
            iterations += further
        values = minimiser / scale
        yield Solution(
            penalty=penalty, weight=values[:-1], bias=values[-1].copy(), iterations=iterations
        )


def mean_loss(
    scores: Array, targets: Targets, *, loss: Loss, weights: Array | None = None
) -> float:
    """Compute the mean loss of linear scores, weighted as in ``solve_path``, without penalty.

    >>> round(mean_loss(np.zeros((2, 1)), np.array([[0], [1]]), loss="sigmoid"), 6)
    0.693147
    """
    normalised = _normalised_weights(len(targets), weights)
    return float((normalised * _LOSSES[loss](scores, targets.astype(np.float64))[0]).sum())


def _row_blocks(n: int) -> Iterator[slice]:
    """Split rows into blocks, so that a pass over them does not copy all features at once."""
    return (slice(start, start + BLOCK) for start in range(0, n, BLOCK))


def _normalised_weights(n: int, weights: Array | None) -> Array:
    """Weights of shape (n, 1) or (n, k) with sum 1."""
    columns = np.ones((n, 1)) if weights is None else np.asarray(weights).reshape(n, -1)
    return np.asarray(columns / columns.sum(axis=0))


def _residuals(
    targets: Targets, weights: Array, loss: Callable[..., Any]
) -> Callable[[slice, Array], tuple[float, Array]]:
    """Weighted loss of a block of rows and its derivative in the scores."""

    def of_block(rows: slice, scores: Array) -> tuple[float, Array]:
        losses, residual = loss(scores, targets[rows].astype(scores.dtype))
        residual *= weights[rows].astype(scores.dtype)
        return float((weights[rows] * losses).sum(dtype=np.float64)), residual

    return of_block


def _mean_curvature(
    design: Design, targets: Targets, weights: Array, values: Array, loss: Callable[..., Any]
) -> Array:
    """Weighted mean of p(1-p) of each column, shape (1, k), at weights and bias ``values``."""
    total = np.zeros((1, targets.shape[1]))
    if not values.any():
        blank = np.zeros((1, targets.shape[1]))
        probability = loss(blank, blank)[1]
        curvature = np.asarray(probability * (1 - probability))  # 0 of a single class
        return np.asarray(np.maximum(curvature, LEAST_CURVATURE))
    scores = design.scores(values[:-1], values[-1])
    for rows in _row_blocks(len(targets)):
        y = targets[rows].astype(scores.dtype)
        probability = loss(scores[rows], y)[1] + y
        total += (weights[rows] * (probability * (1 - probability))).sum(axis=0)
    return np.maximum(total, LEAST_CURVATURE)


def _objective(
    design: Design,
    targets: Targets,
    weights: Array,
    penalty: float,
    scale: Array,
    loss: Callable[..., Any],
) -> Callable[[Array], tuple[float, Array]]:
    """Objective and gradient as a function of the scaled weights and bias, flattened."""
    residuals = _residuals(targets, weights, loss)

    def value_and_gradient(flat: Array) -> tuple[float, Array]:
        params = flat.reshape(scale.shape[0], -1) / scale
        weight, bias = params[:-1], params[-1]
        value, gradient = design.gradient(weight, bias, residuals)
        gradient[:-1] += penalty * weight
        value += penalty / 2 * float(np.square(weight).sum())
        return value, (gradient / scale).ravel()

    return value_and_gradient


@dataclass(frozen=True, eq=False)
class _ScaledProducts:
    """Products of a problem with its features, for ``descend``."""

    design: Design
    residuals: Callable[[slice, Array], tuple[float, Array]]
    penalty: float
    scale: Array

    def scores(self, parameters: Array) -> Array:
        values = parameters / self.scale
        return self.design.scores(values[:-1], values[-1])

    def gradient(self, parameters: Array, scores: Array) -> Array:
        gradient = self.design.slope(scores, self.residuals)
        gradient[:-1] += self.penalty * (parameters / self.scale)[:-1]
        return np.asarray(gradient / self.scale)

    def slope(self, scores: Array, direction_scores: Array) -> float:
        def of_block(rows: slice) -> float:
            _, residual = self.residuals(rows, scores[rows])
            return float((residual * direction_scores[rows]).sum(dtype=np.float64))

        return sum(self.design.map_blocks(of_block), 0.0)

    def penalty_slope(self, parameters: Array, direction: Array) -> float:
        first, second = (part[:-1] / self.scale[:-1] for part in (parameters, direction))
        return self.penalty * float(np.vdot(first, second))


def _minimise(
    objective: Callable[[Array], tuple[float, Array]], start: Array, tolerance: float
) -> tuple[Array, int]:
    from scipy.optimize import minimize

    result = minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={
            "gtol": tolerance,
            "ftol": 1e-15,
            "maxiter": MAX_ITERATIONS,
            "maxfun": 2 * MAX_ITERATIONS,
            "maxcor": 20 if start.size < MANY_PARAMETERS else 8,
        },
    )
    largest_gradient = float(np.abs(result.jac).max())
    # The line search also stops where two values are equal in float64. That is good enough.
    if not largest_gradient <= 100 * tolerance:  # also true for NaN
        raise HeadstartError(
            f"The solver of the linear probe did not converge: its gradient is "
            f"{largest_gradient:g} after {result.nit} steps, not {tolerance:g} "
            f"({result.message}). Check the features for extremely large values."
        )
    return result.x.reshape(start.shape), int(result.nit)


def _softmax_loss(logits: Array, y: Array) -> tuple[Array, Array]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponential = np.exp(shifted)
    total = exponential.sum(axis=1, keepdims=True)
    losses = np.log(total) - (y * shifted).sum(axis=1, keepdims=True)
    exponential /= total
    exponential -= y
    return losses, exponential


def _sigmoid_loss(logits: Array, y: Array) -> tuple[Array, Array]:
    losses = np.logaddexp(0.0, logits) - y * logits
    # exp of a non-positive number only: never overflows.
    decay = np.exp(-np.abs(logits))
    probability = np.where(logits >= 0, 1.0, decay) / (1.0 + decay)
    return losses, probability - y


_LOSSES: dict[Loss, Callable[[Array, Array], tuple[Array, Array]]] = {
    "softmax": _softmax_loss,
    "sigmoid": _sigmoid_loss,
}
