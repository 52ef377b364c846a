"""Choosing and solving a linear head: one penalty by cross-validation, then all rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.samples import Kind
from headstart.heads.pooled import LinearHead
from headstart.runtime import cores
from headstart.training.logistic import (
    Loss,
    Solution,
    mean_loss,
    principal_basis,
    solve_path,
)

__all__ = ["PENALTIES", "Imbalance", "Problem", "Search", "search_penalty"]

Array = NDArray[np.floating[Any]]
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
