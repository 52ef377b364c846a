"""Search for the penalty of a linear probe by cross-validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Kind
from headstart.models.heads.linear import LinearHead
from headstart.runtime import cores
from headstart.training.logistic_regression import (
    GRADIENT_TOLERANCE,
    Array,
    Basis,
    Design,
    Loss,
    Solution,
    Targets,
    mean_loss,
    principal_basis,
    solve_path,
)

__all__ = [
    "LARGE_PROBLEM",
    "PENALTIES",
    "Folds",
    "Imbalance",
    "PenaltySearch",
    "Problem",
    "search_penalty",
]

Imbalance = Literal["auto", "none", "balanced"]
Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]

PENALTIES = tuple(float(10.0**exponent) for exponent in np.arange(-1.0, -6.5, -0.5))
"""Penalties from strong to weak, for features of mean squared norm one."""

IMBALANCED_FROM = 3.0
"""With ``auto``, classes are weighted if the largest has this many times as many images as the
smallest."""


SEARCH_TOLERANCE = 1e-5
"""Gradient of the large problems that only compare penalties."""

LARGE_PROBLEM = 1e8
"""Images times features times classes, from which one fold chooses the penalty."""


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
    row_weights : array, shape (n,), optional
        Positive weights of the rows, in the fit and in the choice of the penalty. Where classes are
        weighted, they are factors of the weights of the classes.
    """

    columns: Targets
    loss: Loss
    is_binary: bool = False
    row_weights: Array | None = None

    @classmethod
    def of(cls, targets: Targets, *, n_classes: int, kind: Kind) -> Problem:
        """Convert class indices (n,) or a 0/1 table (n, n_classes)."""
        if kind == "multilabel":
            return cls(columns=targets, loss="sigmoid")
        if n_classes == 2:
            return cls(columns=targets[:, None], loss="sigmoid", is_binary=True)
        return cls(columns=np.eye(n_classes, dtype=np.int8)[targets], loss="softmax")

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

    def weights_of(self, rows: Any, *, weighted: bool) -> Array:
        """Weights of rows: those of their classes, if ``weighted``, times their own."""
        given = np.ones(len(self.columns)) if self.row_weights is None else self.row_weights
        return np.asarray((self.weights(rows).T * given[rows]).T if weighted else given[rows])

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
    folds: Folds,
    *,
    penalties: Sequence[float] = PENALTIES,
    weighted: bool = False,
    fit_rows: slice = slice(None),
) -> PenaltySearch:
    """Choose the penalty with the smallest cross-validated log-loss, then fit on all rows.

    Parameters
    ----------
    features : array, shape (n, d)
    problem : Problem
        With n rows.
    folds : sequence of (train, test) index arrays
        Every row is tested once; no row outside ``fit_rows`` is trained on.
    penalties : sequence of float
        Tried from strong to weak. The search stops after two in a row without improvement.
    weighted : bool
        Give all classes the same total weight, in the fit and in the choice of the penalty.
    fit_rows : slice
        Rows that the head is fitted on; by default all. The others only take part in the choice
        of the penalty.

    Returns
    -------
    PenaltySearch

    Notes
    -----
    From ``LARGE_PROBLEM`` on, the first fold alone chooses the penalty, in float32: it then holds
    out enough images (and the rows outside ``fit_rows``). The other folds are solved for that
    penalty only.
    """
    from threadpoolctl import threadpool_limits

    # One thread for each fold or block: faster than many threads on one small product, and the
    # same bits on any number of cores.
    ordered = sorted(penalties, reverse=True)
    is_large = len(features) * min(features.shape) * problem.columns.shape[1] >= LARGE_PROBLEM
    n_workers = cores() if is_large else min(len(folds), cores())
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n_workers) as executor:
        basis = principal_basis(features[fit_rows])
        if is_large:
            chosen = _search_large(
                features, basis, problem, folds, ordered, (weighted, fit_rows), executor
            )
        else:
            chosen = _search_small(
                features, basis, problem, folds, ordered, (weighted, fit_rows), executor
            )
    solution = chosen.solution
    return PenaltySearch(
        head=_linear_head(problem, *basis.undo(solution.weight, solution.bias)),
        penalty=solution.penalty,
        held_out=problem.logits(chosen.held_out),
        candidates=chosen.candidates,
        folds=len(folds),
        iterations=solution.iterations,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chosen:
    """The solution on all rows, held-out scores of every row, and the penalties that were tried."""

    solution: Solution
    held_out: Array
    candidates: tuple[tuple[float, float], ...]


def _has_stopped_improving(losses: Sequence[float]) -> bool:
    """Whether the last two losses are above an earlier one."""
    return len(losses) > 2 and min(losses[-2:]) > min(losses)


def _fold_weights(problem: Problem, rows: Any, *, weighted: bool) -> Array:
    """Weights of all rows, 0 outside ``rows``: a copy of these rows would take more memory."""
    inside = problem.weights_of(rows, weighted=weighted)
    weights = np.zeros((len(problem.columns), *inside.shape[1:]))
    weights[rows] = inside
    return weights


def _search_small(
    features: Array,
    basis: Basis,
    problem: Problem,
    folds: Folds,
    ordered: Sequence[float],
    fit: tuple[bool, slice],
    executor: ThreadPoolExecutor,
) -> _Chosen:
    """Solve every fold for every penalty."""
    weighted, fit_rows = fit
    coordinates = basis.apply(features)
    best_scores, candidates = np.zeros(problem.columns.shape), list[tuple[float, float]]()

    def solve(rows: Any, penalties: Sequence[float]) -> Iterator[Solution]:
        weights = _fold_weights(problem, rows, weighted=weighted)
        return solve_path(
            coordinates, problem.columns, penalties, loss=problem.loss, weights=weights
        )

    all_weights = problem.weights_of(slice(None), weighted=weighted)
    paths = [solve(rows, ordered) for rows, _ in folds]
    for penalty in ordered:
        scores = np.zeros(problem.columns.shape)
        for (_, rows), solution in zip(folds, executor.map(next, paths), strict=True):
            scores[rows] = solution.scores(coordinates[rows])
        loss = mean_loss(scores, problem.columns, loss=problem.loss, weights=all_weights)
        if not candidates or loss < min(loss for _, loss in candidates):
            best_scores = scores
        candidates.append((penalty, loss))
        if _has_stopped_improving([loss for _, loss in candidates]):
            break
    best_penalty = min(candidates, key=lambda candidate: candidate[1])[0]
    *_, solution = solve(fit_rows, [p for p in ordered if p >= best_penalty])
    return _Chosen(solution=solution, held_out=best_scores, candidates=tuple(candidates))


def _search_large(
    features: Array,
    basis: Basis,
    problem: Problem,
    folds: Folds,
    ordered: Sequence[float],
    fit: tuple[bool, slice],
    executor: ThreadPoolExecutor,
) -> _Chosen:
    """Choose the penalty on the first fold, then solve the other folds and all rows for it."""
    weighted, fit_rows = fit
    is_wide = features.shape[0] <= features.shape[1]
    plain = Design(
        features=basis.apply(features) if is_wide else features,
        basis=None if is_wide else basis,
        executor=executor,
    )
    quick, columns, loss = replace(plain, dtype=np.float32), problem.columns, problem.loss

    def solve(rows: Any, penalties: Sequence[float], **options: Any) -> Iterator[Solution]:
        weights = _fold_weights(problem, rows, weighted=weighted)
        options = {"tolerance": SEARCH_TOLERANCE, **options}
        design = options.pop("design", quick)
        return solve_path(design, columns, penalties, loss=loss, weights=weights, **options)

    (first_train, first_test), *others = folds
    not_fitted = np.delete(np.arange(len(columns)), fit_rows)
    chosen_on = np.concatenate([first_test, not_fitted])
    test_weights = problem.weights_of(chosen_on, weighted=weighted)
    candidates, held_out = list[tuple[float, float]](), np.zeros(columns.shape)
    best: Solution
    for solution in solve(first_train, ordered):
        scores = quick.scores(solution.weight, solution.bias)[chosen_on]
        value = mean_loss(scores, columns[chosen_on], loss=loss, weights=test_weights)
        if not candidates or value < min(value for _, value in candidates):
            best, held_out[chosen_on] = solution, scores
        candidates.append((solution.penalty, value))
        if _has_stopped_improving([value for _, value in candidates]):
            break
    solved = [best]
    for train, test in others:
        [solution] = solve(train, [best.penalty], start=_mean_of(solved))
        held_out[test] = quick.scores(solution.weight, solution.bias)[test]
        solved.append(solution)
    # The mean of the folds is nearer to the minimum on all rows than one fold is.
    [nearly] = solve(fit_rows, [best.penalty], start=_mean_of(solved))
    [exact] = solve(
        fit_rows, [best.penalty], start=nearly, design=plain, tolerance=GRADIENT_TOLERANCE
    )
    return _Chosen(solution=exact, held_out=held_out, candidates=tuple(candidates))


def _mean_of(solutions: Sequence[Solution]) -> Solution:
    weight = np.mean([solution.weight for solution in solutions], axis=0)
    bias = np.mean([solution.bias for solution in solutions], axis=0)
    return replace(solutions[0], weight=weight, bias=bias)


def _linear_head(problem: Problem, weight: Array, bias: Array) -> LinearHead:
    """Convert the solution for raw features to a layer with one output per class."""
    return LinearHead(
        weight=problem.logits(weight).T.astype(np.float32),
        bias=problem.logits(bias[None])[0].astype(np.float32),
    )
