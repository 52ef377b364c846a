"""Solver of the linear probe: regularised logistic regression, and the search for its penalty.

The solver converges for each penalty on a path from strong to weak. It minimises, over weights W
and an unpenalised bias b,

    sum_i v_i * loss(y_i, x_i W + b) / sum_i v_i  +  penalty / 2 * ||W||^2

with the softmax cross-entropy (multiclass) or the sum over labels of the sigmoid
cross-entropy (binary and multilabel). With scikit-learn's ``C`` the same problem has
``penalty = 1 / (C * sum_i v_i)``; the tests compare the two. The search chooses the penalty by
cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Kind
from headstart.errors import HeadstartError
from headstart.models.heads.linear import LinearHead
from headstart.runtime import cores

__all__ = [
    "PENALTIES",
    "Basis",
    "Imbalance",
    "Loss",
    "PenaltySearch",
    "Problem",
    "Solution",
    "mean_loss",
    "principal_basis",
    "search_penalty",
    "solve_path",
]

Array = NDArray[np.floating[Any]]
Targets = NDArray[np.integer[Any]]
Loss = Literal["softmax", "sigmoid"]
Imbalance = Literal["auto", "none", "balanced"]

GRADIENT_TOLERANCE = 1e-6
MAX_ITERATIONS = 5000

PENALTIES = tuple(float(10.0**exponent) for exponent in np.arange(-1.0, -6.5, -0.5))
"""Penalties from strong to weak, for features of mean squared norm one."""

IMBALANCED_FROM = 3.0
"""With ``auto``, classes are weighted if the largest has this many times as many images as the
smallest."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """A shift, one scale for all features, and an orthonormal rotation.

    A rotation does not change the penalty, so the problem in this basis is the same problem. But
    it is small (at most n coordinates) and nearly diagonal, so that L-BFGS needs few steps.
    """

    mean: Array
    scale: float
    rotation: Array

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
    rotation = span @ np.linalg.eigh(scatter)[1]
    return Basis(mean=mean, scale=scale, rotation=rotation)


def solve_path(
    coordinates: Array,
    targets: Targets,
    penalties: Sequence[float],
    *,
    loss: Loss,
    weights: Array | None = None,
) -> Iterator[Solution]:
    """Yield the minimiser for each penalty; each starts from the previous one.

    Parameters
    ----------
    coordinates : array, shape (n, r)
    targets : array, shape (n, k)
        One-hot rows for softmax, 0 and 1 for sigmoid.
    penalties : sequence of float
        Preferably from strong to weak: a problem with a strong penalty is solved quickly.
    loss : {"softmax", "sigmoid"}
    weights : array, shape (n,) or (n, k), optional
        Weight of each example, or with the sigmoid loss of each label of each example. An example
        of weight 0 is ignored.

    Yields
    ------
    Solution

    Raises
    ------
    HeadstartError
        If the solver does not reach a gradient of ``GRADIENT_TOLERANCE``.

    Examples
    --------
    >>> x, y = np.array([[-1.0], [1.0]]), np.array([[0], [1]])
    >>> [solution] = solve_path(x, y, [1.0], loss="sigmoid")
    >>> w = solution.weight.item()  # stationary: w = sigmoid(-w)
    >>> bool(abs(w - 1 / (1 + np.exp(w))) < 1e-6)
    True
    """
    n, k = targets.shape
    normalised = _normalised_weights(n, weights)
    y = targets.astype(np.float64)
    variances = np.zeros((coordinates.shape[1], normalised.shape[1]))
    for rows in _row_blocks(n):
        variances += np.square(coordinates[rows]).T @ normalised[rows]
    start = np.zeros((coordinates.shape[1] + 1, k))
    for penalty in penalties:
        # At zero weights the Hessian is diag(variances) * p(1-p) + penalty. Scaling by its square
        # root gives all directions the same curvature.
        bias_row = np.full((1, variances.shape[1]), 0.25)
        scale = np.sqrt(np.vstack([variances / 4 + penalty, bias_row]))
        objective = _objective(coordinates, y, normalised, penalty, scale, _LOSSES[loss])
        minimiser, iterations = _minimise(objective, start * scale)
        start = minimiser / scale
        yield Solution(
            penalty=penalty, weight=start[:-1], bias=start[-1].copy(), iterations=iterations
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
    return (slice(start, start + 4096) for start in range(0, n, 4096))


def _normalised_weights(n: int, weights: Array | None) -> Array:
    """Weights of shape (n, 1) or (n, k) with sum 1."""
    columns = np.ones((n, 1)) if weights is None else np.asarray(weights).reshape(n, -1)
    return np.asarray(columns / columns.sum(axis=0))


def _objective(
    x: Array, y: Array, weights: Array, penalty: float, scale: Array, loss: Callable[..., Any]
) -> Callable[[Array], tuple[float, Array]]:
    """Objective and gradient as a function of the scaled weights and bias, flattened."""

    def value_and_gradient(flat: Array) -> tuple[float, Array]:
        params = flat.reshape(scale.shape[0], -1) / scale
        weight, bias = params[:-1], params[-1]
        losses, residual = loss(x @ weight + bias, y)
        residual *= weights
        gradient = np.vstack([x.T @ residual + penalty * weight, residual.sum(axis=0)])
        value = (weights * losses).sum() + penalty / 2 * np.square(weight).sum()
        return float(value), (gradient / scale).ravel()

    return value_and_gradient


def _minimise(objective: Callable[[Array], tuple[float, Array]], start: Array) -> tuple[Array, int]:
    from scipy.optimize import minimize

    result = minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={
            "gtol": GRADIENT_TOLERANCE,
            "ftol": 1e-15,
            "maxiter": MAX_ITERATIONS,
            "maxfun": 2 * MAX_ITERATIONS,
            "maxcor": 20,
        },
    )
    largest_gradient = float(np.abs(result.jac).max())
    # The line search also stops where two values are equal in float64. That is good enough.
    if not largest_gradient <= 100 * GRADIENT_TOLERANCE:  # also true for NaN
        raise HeadstartError(
            f"The solver of the linear probe did not converge: its gradient is "
            f"{largest_gradient:g} after {result.nit} steps, not {GRADIENT_TOLERANCE:g} "
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Targets in the form that the solver reads.

    Parameters
    ----------
    columns : array of 0 and 1, shape (n, k)
        One-hot rows; one column for two classes; one column per label for multilabel.
    loss : {"softmax", "sigmoid"}
    is_binary : bool
        Whether two classes share one column. Its score is the difference of their logits.
    """

    columns: Targets
    loss: Loss
    is_binary: bool = False

    @classmethod
    def of(cls, targets: Targets, *, n_classes: int, kind: Kind) -> Problem:
        """Convert class indices (n,) or a 0/1 table (n, n_classes)."""
        if kind == "multilabel":
            return cls(columns=targets, loss="sigmoid")
        if n_classes == 2:
            return cls(columns=targets[:, None], loss="sigmoid", is_binary=True)
        return cls(columns=np.eye(n_classes, dtype=np.intp)[targets], loss="softmax")

    def is_weighted(self, imbalance: Imbalance) -> bool:
        """Whether all classes get the same total weight."""
        if imbalance != "auto":
            return imbalance == "balanced"
        if self.loss == "sigmoid" and not self.is_binary:
            return False  # each label gets a threshold instead, which keeps probabilities unbiased
        counts = np.append(self.columns.sum(axis=0), [(1 - self.columns).sum()] * self.is_binary)
        return bool(counts.max() >= IMBALANCED_FROM * counts[counts > 0].min())

    def weights(self, rows: Any) -> Array:
        """Compute weights that give all classes (or both sides of each label) the same total."""
        columns = self.columns[rows]
        positive = np.maximum(columns.sum(axis=0), 1)
        if self.loss == "softmax":
            return np.asarray((columns / positive).sum(axis=1))
        negative = np.maximum(len(columns) - columns.sum(axis=0), 1)
        return np.asarray(np.where(columns == 1, 1 / positive, 1 / negative))

    def logits(self, scores: Array) -> Array:
        """Convert the solver's scores (n, k) to logits (n, n_classes)."""
        return np.hstack([-scores / 2, scores / 2]) if self.is_binary else scores


@dataclass(frozen=True, kw_only=True, eq=False)
class PenaltySearch:
    """A fitted head, and the search for its penalty.

    Parameters
    ----------
    head : LinearHead
        For raw features, fitted on all rows with the chosen penalty.
    penalty : float
    held_out : array, shape (n, n_classes)
        Logits of every row, from the model of the fold that was not trained on it.
    candidates : tuple of (penalty, log_loss)
        The penalties that were tried.
    folds, iterations : int
    """

    head: LinearHead
    penalty: float
    held_out: Array
    candidates: tuple[tuple[float, float], ...]
    folds: int
    iterations: int


def search_penalty(
    features: Array,
    problem: Problem,
    folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    *,
    penalties: Sequence[float] = PENALTIES,
    weighted: bool = False,
) -> PenaltySearch:
    """Choose the penalty with the smallest cross-validated log-loss, then fit on all rows.

    Parameters
    ----------
    features : array, shape (n, d)
    problem : Problem
        With n rows.
    folds : sequence of (train, test) index arrays
        Every row is tested once.
    penalties : sequence of float
        Tried from strong to weak. The search stops after two in a row without improvement.
    weighted : bool
        Give all classes the same total weight, in the fit and in the choice of the penalty.

    Returns
    -------
    PenaltySearch
    """
    from threadpoolctl import threadpool_limits

    ordered = sorted(penalties, reverse=True)
    best_loss, best_scores = np.inf, np.zeros(problem.columns.shape)
    candidates: list[tuple[float, float]] = []

    def solve(rows: Any, penalties: Sequence[float]) -> Iterator[Solution]:
        # Held-out rows get weight 0: a copy of the other rows would take as much memory again.
        row_weights = problem.weights(rows) if weighted else np.ones(len(problem.columns))[rows]
        weights = np.zeros((len(problem.columns), *row_weights.shape[1:]))
        weights[rows] = row_weights
        return solve_path(
            coordinates, problem.columns, penalties, loss=problem.loss, weights=weights
        )

    # One thread per fold: faster than many threads on one small product, and the same bits on
    # any number of cores.
    n_workers = min(len(folds), cores())
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n_workers) as executor:
        basis = principal_basis(features)
        coordinates = basis.apply(features)
        paths = [solve(rows, ordered) for rows, _ in folds]
        for penalty in ordered:
            scores = np.zeros(problem.columns.shape)
            for (_, rows), solution in zip(folds, executor.map(next, paths), strict=True):
                scores[rows] = solution.scores(coordinates[rows])
            weights = problem.weights(slice(None)) if weighted else None
            loss = mean_loss(scores, problem.columns, loss=problem.loss, weights=weights)
            candidates.append((penalty, loss))
            if loss < best_loss:
                best_loss, best_scores = loss, scores
            elif min(loss for _, loss in candidates[-2:]) > best_loss:
                break
        best_penalty = min(candidates, key=lambda candidate: candidate[1])[0]
        *_, solution = solve(slice(None), [p for p in ordered if p >= best_penalty])
    return PenaltySearch(
        head=_linear_head(problem, *basis.undo(solution.weight, solution.bias)),
        penalty=best_penalty,
        held_out=problem.logits(best_scores),
        candidates=tuple(candidates),
        folds=len(folds),
        iterations=solution.iterations,
    )


def _linear_head(problem: Problem, weight: Array, bias: Array) -> LinearHead:
    """Convert the solution for raw features to a layer with one output per class."""
    return LinearHead(
        weight=problem.logits(weight).T.astype(np.float32),
        bias=problem.logits(bias[None])[0].astype(np.float32),
    )
