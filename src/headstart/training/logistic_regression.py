"""Regularised logistic regression, solved to convergence along a path of penalties.

Minimises, over weights W and an unpenalised bias b,

    sum_i v_i * loss(y_i, x_i W + b) / sum_i v_i  +  penalty / 2 * ||W||^2

with the softmax cross-entropy (multiclass) or the sum over labels of the sigmoid
cross-entropy (binary and multilabel). With scikit-learn's ``C`` the same problem has
``penalty = 1 / (C * sum_i v_i)``; the tests hold the two against each other.
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
    "Problem",
    "Search",
    "Solution",
    "mean_loss",
    "principal_basis",
    "search_penalty",
    "solve_path",
]

Array = NDArray[np.floating[Any]]
Loss = Literal["softmax", "sigmoid"]

GRADIENT_TOLERANCE = 1e-6
MAX_ITERATIONS = 5000


@dataclass(frozen=True, kw_only=True)
class Basis:
    """A shift, one scale for all features, and an orthonormal rotation.

    The penalty is blind to rotations, so the problem in this basis is the same problem, but
    small (at most n coordinates) and nearly diagonal (so that L-BFGS needs few steps).
    """

    mean: Array
    scale: float
    rotation: Array

    def apply(self, features: Array) -> Array:
        """Coordinates of shape (n, r) for features of shape (n, d)."""
        found = np.empty((len(features), self.rotation.shape[1]))
        for rows in _blocks(len(features)):
            found[rows] = (features[rows] - self.mean) @ self.rotation / self.scale
        return found

    def undo(self, weight: Array, bias: Array) -> tuple[Array, Array]:
        """Weights (d, k) and bias (k,) that act on raw features as these act on coordinates."""
        raw = self.rotation @ weight / self.scale
        return raw, bias - self.mean @ raw


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
        """Linear scores, shape (n, k)."""
        return np.asarray(coordinates @ self.weight + self.bias)


def principal_basis(features: Array) -> Basis:
    """Basis of the features' span, scaled so that the mean squared norm is one.

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
            "Expected every feature to be finite, got NaN or infinity; "
            "do check the backbone's weights, or force the fp32 engine."
        )
    span = np.eye(x.shape[1])
    if len(x) < x.shape[1]:
        span = np.linalg.qr((x - mean).T)[0]  # the span of few images, orthonormal
    scatter = np.zeros((span.shape[1], span.shape[1]))
    for rows in _blocks(len(x)):
        inside = (x[rows] - mean) @ span if len(x) < x.shape[1] else x[rows] - mean
        scatter += inside.T @ inside
    scale = float(np.sqrt(np.trace(scatter) / len(x))) or 1.0
    # Eigenvectors are orthonormal to machine precision, whatever the conditioning.
    rotation = span @ np.linalg.eigh(scatter)[1]
    return Basis(mean=mean, scale=scale, rotation=rotation)


def solve_path(
    coordinates: Array,
    targets: NDArray[np.integer[Any]],
    penalties: Sequence[float],
    *,
    loss: Loss,
    weights: Array | None = None,
) -> Iterator[Solution]:
    """Yield the minimiser for each penalty, each started from the one before.

    Parameters
    ----------
    coordinates : array, shape (n, r)
    targets : array, shape (n, k)
        One-hot rows for softmax, 0 and 1 for sigmoid.
    penalties : sequence of float
        Best given from strong to weak: a strongly penalised problem is quickly solved.
    loss : {"softmax", "sigmoid"}
    weights : array, shape (n,) or (n, k), optional
        Importance of each example, or with the sigmoid loss of each label of each example; an
        example of weight 0 is left out.

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
    share = _share(n, weights)
    y = targets.astype(np.float64)
    spread = np.zeros((coordinates.shape[1], share.shape[1]))
    for rows in _blocks(n):
        spread += np.square(coordinates[rows]).T @ share[rows]
    start = np.zeros((coordinates.shape[1] + 1, k))
    for penalty in penalties:
        # At zero weights the Hessian is diag(spread) * p(1-p) + penalty: scaling by its root
        # makes all directions alike.
        bias_row = np.full((1, spread.shape[1]), 0.25)
        root = np.sqrt(np.vstack([spread / 4 + penalty, bias_row]))
        objective = _objective(coordinates, y, share, penalty, root, _LOSSES[loss])
        solved, iterations = _minimise(objective, start * root)
        start = solved / root
        yield Solution(
            penalty=penalty, weight=start[:-1], bias=start[-1].copy(), iterations=iterations
        )


def mean_loss(
    scores: Array, targets: NDArray[np.integer[Any]], *, loss: Loss, weights: Array | None = None
) -> float:
    """Mean loss of linear scores, weighted as in ``solve_path`` and without a penalty.

    >>> round(mean_loss(np.zeros((2, 1)), np.array([[0], [1]]), loss="sigmoid"), 6)
    0.693147
    """
    share = _share(len(targets), weights)
    return float((share * _LOSSES[loss](scores, targets.astype(np.float64))[0]).sum())


def _blocks(n: int) -> Iterator[slice]:
    """Rows in blocks: a pass over them needs no second copy of all features."""
    return (slice(start, start + 4096) for start in range(0, n, 4096))


def _share(n: int, weights: Array | None) -> Array:
    share = np.ones((n, 1)) if weights is None else np.asarray(weights).reshape(n, -1)
    return np.asarray(share / share.sum(axis=0))


def _objective(
    x: Array, y: Array, share: Array, penalty: float, root: Array, loss: Callable[..., Any]
) -> Callable[[Array], tuple[float, Array]]:
    def value_and_gradient(flat: Array) -> tuple[float, Array]:
        params = flat.reshape(root.shape[0], -1) / root
        weight, bias = params[:-1], params[-1]
        losses, residual = loss(x @ weight + bias, y)
        residual *= share
        gradient = np.vstack([x.T @ residual + penalty * weight, residual.sum(axis=0)])
        value = (share * losses).sum() + penalty / 2 * np.square(weight).sum()
        return float(value), (gradient / root).ravel()

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
    steepest = float(np.abs(result.jac).max())
    # The line search also stops where float64 cannot tell two values apart; that is as good.
    if not steepest <= 100 * GRADIENT_TOLERANCE:  # also true for NaN
        raise HeadstartError(
            f"Expected the probe's solver to reach a gradient of {GRADIENT_TOLERANCE:g}, got "
            f"{steepest:g} after {result.nit} steps ({result.message}); "
            "do check the features for extremely large values."
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


Targets = NDArray[np.integer[Any]]
Imbalance = Literal["auto", "none", "balanced"]

PENALTIES = tuple(float(10.0**exponent) for exponent in np.arange(-1.0, -6.5, -0.5))
"""From strong to weak, for features of mean squared norm one."""

IMBALANCED_FROM = 3.0
"""With ``auto``, classes are weighted when the largest has this many times the smallest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Targets as the solver reads them.

    Parameters
    ----------
    columns : array of 0 and 1, shape (n, k)
        One-hot rows; one column for two classes; one column a label for multilabel.
    loss : {"softmax", "sigmoid"}
    is_binary : bool
        Two classes share one column: its score is the difference of their logits.
    """

    columns: Targets
    loss: Loss
    is_binary: bool = False

    @classmethod
    def of(cls, targets: Targets, *, n_classes: int, kind: Kind) -> Problem:
        """Lay out class indices (n,) or a 0/1 table (n, n_classes)."""
        if kind == "multilabel":
            return cls(columns=targets, loss="sigmoid")
        if n_classes == 2:
            return cls(columns=targets[:, None], loss="sigmoid", is_binary=True)
        return cls(columns=np.eye(n_classes, dtype=np.intp)[targets], loss="softmax")

    def is_weighted(self, imbalance: Imbalance) -> bool:
        """Whether classes are to be weighted alike."""
        if imbalance != "auto":
            return imbalance == "balanced"
        if self.loss == "sigmoid" and not self.is_binary:
            return False  # labels get a threshold each, which does not bend probabilities
        counts = np.append(self.columns.sum(axis=0), [(1 - self.columns).sum()] * self.is_binary)
        return bool(counts.max() >= IMBALANCED_FROM * counts[counts > 0].min())

    def weights(self, rows: Any) -> Array:
        """Weights that make all classes (or both sides of each label) count alike."""
        columns = self.columns[rows]
        positive = np.maximum(columns.sum(axis=0), 1)
        if self.loss == "softmax":
            return np.asarray((columns / positive).sum(axis=1))
        negative = np.maximum(len(columns) - columns.sum(axis=0), 1)
        return np.asarray(np.where(columns == 1, 1 / positive, 1 / negative))

    def logits(self, scores: Array) -> Array:
        """Logits (n, n_classes) from the solver's scores (n, k)."""
        return np.hstack([-scores / 2, scores / 2]) if self.is_binary else scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """A solved head, and how its penalty was found.

    Parameters
    ----------
    head : LinearHead
        For raw features, solved on all rows with the chosen penalty.
    penalty : float
    held_out : array, shape (n, n_classes)
        Logits of every row by the fold's model that has not seen it.
    candidates : tuple of (penalty, log_loss)
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
) -> Search:
    """Choose the penalty with the smallest held-out log-loss and solve on all rows with it.

    Parameters
    ----------
    features : array, shape (n, d)
    problem : Problem
        With n rows.
    folds : sequence of (train, test) index arrays
        Every row tested once.
    penalties : sequence of float
        The path from strong to weak is left when two in a row have made it no better.
    weighted : bool
        Weight all classes alike, in the training and in the selection.

    Returns
    -------
    Search
    """
    from threadpoolctl import threadpool_limits

    ordered = sorted(penalties, reverse=True)
    best_loss, best_scores = np.inf, np.zeros(problem.columns.shape)
    candidates: list[tuple[float, float]] = []

    def path(rows: Any, penalties: Sequence[float]) -> Iterator[Solution]:
        # Held-out rows weigh nothing: a copy of the others would be as large as all features.
        share = problem.weights(rows) if weighted else np.ones(len(problem.columns))[rows]
        weights = np.zeros((len(problem.columns), *share.shape[1:]))
        weights[rows] = share
        return solve_path(
            coordinates, problem.columns, penalties, loss=problem.loss, weights=weights
        )

    # One thread a fold: quicker than many threads on one small product, and the same bits on
    # every number of cores.
    workers = min(len(folds), cores())
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as executor:
        basis = principal_basis(features)
        coordinates = basis.apply(features)
        paths = [path(rows, ordered) for rows, _ in folds]
        for penalty in ordered:
            scores = np.zeros(problem.columns.shape)
            for (_, rows), solution in zip(folds, executor.map(next, paths), strict=True):
                scores[rows] = solution.scores(coordinates[rows])
            everything = problem.weights(slice(None)) if weighted else None
            loss = mean_loss(scores, problem.columns, loss=problem.loss, weights=everything)
            candidates.append((penalty, loss))
            if loss < best_loss:
                best_loss, best_scores = loss, scores
            elif min(loss for _, loss in candidates[-2:]) > best_loss:
                break
        chosen = min(candidates, key=lambda candidate: candidate[1])[0]
        *_, solved = path(slice(None), [p for p in ordered if p >= chosen])
    return Search(
        head=_head(problem, *basis.undo(solved.weight, solved.bias)),
        penalty=chosen,
        held_out=problem.logits(best_scores),
        candidates=tuple(candidates),
        folds=len(folds),
        iterations=solved.iterations,
    )


def _head(problem: Problem, weight: Array, bias: Array) -> LinearHead:
    """Return the solution for raw features as a layer with one output a class."""
    return LinearHead(
        weight=problem.logits(weight).T.astype(np.float32),
        bias=problem.logits(bias[None])[0].astype(np.float32),
    )
