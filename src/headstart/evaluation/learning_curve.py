"""Learning curve: accuracy of a linear probe with a growing share of the training images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Kind
from headstart.data.splits import kfold
from headstart.metrics.confidence_intervals import Interval, proportion_interval
from headstart.runtime import cores
from headstart.training.logistic_regression import principal_basis, solve_path
from headstart.training.penalty_search import Problem

__all__ = ["SHARES", "CurvePoint", "probe_curve"]

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)

Array = NDArray[np.floating[Any]]
Targets = NDArray[np.integer[Any]]
Groups = NDArray[np.intp] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Number of training images, and the accuracy on held-out images."""

    images: int
    score: Interval


def probe_curve(
    features: Array,
    targets: Targets,
    *,
    kind: Kind = "multiclass",
    groups: Groups = None,
    penalty: float = 1e-3,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> tuple[CurvePoint, ...]:
    """Compute cross-validated accuracy with growing shares of the training folds.

    Smaller shares are subsets of larger ones. ``penalty`` applies to all images; with fewer
    images it grows, so that the prior stays the same.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array, shape (n,) or (n, n_classes)
        Every class must occur. A multilabel prediction is correct if all labels are.
    kind : {"multiclass", "multilabel"}
    groups : array of int, shape (n,), optional
        Groups are never divided by folds or shares.
    penalty : float
    shares : sequence of float
        Above 0, at most 1. A share is skipped if it lacks a class in any fold.
    seed : int

    Returns
    -------
    tuple of CurvePoint
        The fewest images first.

    Raises
    ------
    DataError
        If a class has too few images or groups for two folds.

    Examples
    --------
    >>> x = np.repeat([[-1.0], [1.0]], 20, axis=0)
    >>> curve = probe_curve(x, np.repeat([0, 1], 20), shares=(0.5, 1.0))
    >>> [(point.images, point.score.value) for point in curve]
    [(16, 1.0), (32, 1.0)]
    """
    from threadpoolctl import threadpool_limits

    n_classes = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    problem = Problem.of(targets, n_classes=n_classes, kind=kind)
    folds = kfold(targets, 5, blocks=groups, seed=seed)
    points = []
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(len(folds), cores())) as executor:
        coordinates = principal_basis(features).apply(features)
        ranks = [_ranks(targets[rows], _select_groups(groups, rows), seed) for rows, _ in folds]
        for share in shares:
            train_rows = [
                rows[rank < share - 1e-9] for (rows, _), rank in zip(folds, ranks, strict=True)
            ]
            if not all(_has_all_classes(problem.columns[rows]) for rows in train_rows):
                continue

            def predict_fold(
                fold_index: int, train_rows: list[NDArray[np.intp]] = train_rows
            ) -> NDArray[np.bool_]:
                rows, test = train_rows[fold_index], folds[fold_index][1]
                fold_penalty = penalty * len(targets) / len(rows)
                return _predict_correctness(problem, coordinates, rows, test, fold_penalty)

            correct = np.empty(len(targets), dtype=bool)
            for (_, test), fold_correct in zip(
                folds, executor.map(predict_fold, range(len(folds))), strict=True
            ):
                correct[test] = fold_correct
            images = round(float(np.mean([len(rows) for rows in train_rows])))
            score = proportion_interval(correct, groups)
            points.append(CurvePoint(images=images, score=score))
    return tuple(points)


def _predict_correctness(
    problem: Problem,
    coordinates: Array,
    rows: NDArray[np.intp],
    test: NDArray[np.intp],
    penalty: float,
) -> NDArray[np.bool_]:
    """Fit a probe on ``rows``, and return which rows of ``test`` it predicts correctly."""
    path = solve_path(
        coordinates[rows], problem.columns[rows], (10 * penalty, penalty), loss=problem.loss
    )
    *_, solution = path
    scores = solution.scores(coordinates[test])
    true_columns = problem.columns[test]
    if problem.loss == "softmax":
        return np.asarray(scores.argmax(axis=1) == true_columns.argmax(axis=1))
    return np.asarray(((scores > 0) == (true_columns == 1)).all(axis=1))


def _has_all_classes(columns: Targets) -> bool:
    """Whether every class has positive and negative rows; otherwise its bias would diverge."""
    return len(columns) > 1 and bool((columns.min(axis=0) == 0).all() and columns.any(axis=0).all())


def _ranks(targets: Targets, groups: Groups, seed: int) -> Array:
    """Return a rank from 0 to 1 per row; ranks below a share select that share of each class."""
    columns = targets if targets.ndim == 2 else np.eye(int(targets.max()) + 1, dtype=int)[targets]
    codes = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]
    permutation = np.random.default_rng(seed).permutation(int(codes.max()) + 1)
    position = np.argsort(permutation)
    group_ranks = np.full(len(permutation), np.inf)
    for column in columns.T:
        members = np.unique(codes[column == 1])
        members = members[np.argsort(position[members])]
        sizes = np.bincount(codes[column == 1], minlength=len(permutation))[members]
        # The first group of a class has rank 0, so that small shares contain all classes.
        share_before = np.concatenate([[0], np.cumsum(sizes)[:-1]]) / max(sizes.sum(), 1)
        group_ranks[members] = np.minimum(group_ranks[members], share_before)
    is_unlabelled = np.isinf(group_ranks)  # without any label
    group_ranks[is_unlabelled] = position[is_unlabelled] / len(permutation)
    return np.asarray(group_ranks[codes])


def _select_groups(groups: Groups, rows: NDArray[np.intp]) -> Groups:
    return None if groups is None else groups[rows]
