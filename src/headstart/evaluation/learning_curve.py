"""What more images would bring: a linear probe on ever more of the training part."""

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
from headstart.training.logistic_regression import Problem, principal_basis, solve_path

__all__ = ["SHARES", "CurvePoint", "probe_curve"]

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)

Array = NDArray[np.floating[Any]]
Targets = NDArray[np.integer[Any]]
Groups = NDArray[np.intp] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """So many images to learn from, and the share of others that is then answered right."""

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
    """Accuracy in cross-validation, learning from a growing share of every fold.

    The smaller shares are in the larger ones. ``penalty`` is that for all images; with fewer
    it grows so that the prior stays what it is.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array, shape (n,) or (n, n_classes)
        Every class occurs. Of several labels all must be right.
    kind : {"multiclass", "multilabel"}
    groups : array of int, shape (n,), optional
        Kept together, on either side of a fold and in the shares.
    penalty : float
    shares : sequence of float
        Above 0 to 1. Left out where a fold's share lacks a class.
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
    >>> found = probe_curve(x, np.repeat([0, 1], 20), shares=(0.5, 1.0))
    >>> [(point.images, point.score.value) for point in found]
    [(16, 1.0), (32, 1.0)]
    """
    from threadpoolctl import threadpool_limits

    n_classes = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    problem = Problem.of(targets, n_classes=n_classes, kind=kind)
    folds = kfold(targets, 5, blocks=groups, seed=seed)
    found = []
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(len(folds), cores())) as executor:
        coordinates = principal_basis(features).apply(features)
        ranks = [_ranks(targets[rows], _of(groups, rows), seed) for rows, _ in folds]
        for share in shares:
            chosen = [
                rows[rank < share - 1e-9] for (rows, _), rank in zip(folds, ranks, strict=True)
            ]
            if not all(_complete(problem.columns[rows]) for rows in chosen):
                continue

            def right(at: int, chosen: list[NDArray[np.intp]] = chosen) -> NDArray[np.bool_]:
                rows, test = chosen[at], folds[at][1]
                strength = penalty * len(targets) / len(rows)
                return _right(problem, coordinates, rows, test, strength)

            correct = np.empty(len(targets), dtype=bool)
            for (_, test), one in zip(folds, executor.map(right, range(len(folds))), strict=True):
                correct[test] = one
            images = round(float(np.mean([len(rows) for rows in chosen])))
            score = proportion_interval(correct, groups)
            found.append(CurvePoint(images=images, score=score))
    return tuple(found)


def _right(
    problem: Problem,
    coordinates: Array,
    rows: NDArray[np.intp],
    test: NDArray[np.intp],
    penalty: float,
) -> NDArray[np.bool_]:
    """Learn from ``rows``, and say which of ``test`` are answered right."""
    path = solve_path(
        coordinates[rows], problem.columns[rows], (10 * penalty, penalty), loss=problem.loss
    )
    *_, solved = path
    scores = solved.scores(coordinates[test])
    truth = problem.columns[test]
    if problem.loss == "softmax":
        return np.asarray(scores.argmax(axis=1) == truth.argmax(axis=1))
    return np.asarray(((scores > 0) == (truth == 1)).all(axis=1))


def _complete(columns: Targets) -> bool:
    """Whether every class both occurs and is missing somewhere: else its bias has no end."""
    return len(columns) > 1 and bool((columns.min(axis=0) == 0).all() and columns.any(axis=0).all())


def _ranks(targets: Targets, groups: Groups, seed: int) -> Array:
    """A number from 0 to 1 for every row: the rows below a share are that share of each class."""
    columns = targets if targets.ndim == 2 else np.eye(int(targets.max()) + 1, dtype=int)[targets]
    codes = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(int(codes.max()) + 1)
    place = np.argsort(order)
    by_group = np.full(len(order), np.inf)
    for column in columns.T:
        members = np.unique(codes[column == 1])
        members = members[np.argsort(place[members])]
        sizes = np.bincount(codes[column == 1], minlength=len(order))[members]
        # A class's first group is in from the start, so that small shares have all classes.
        begun = np.concatenate([[0], np.cumsum(sizes)[:-1]]) / max(sizes.sum(), 1)
        by_group[members] = np.minimum(by_group[members], begun)
    missing = np.isinf(by_group)  # without any label
    by_group[missing] = place[missing] / len(order)
    return np.asarray(by_group[codes])


def _of(groups: Groups, rows: NDArray[np.intp]) -> Groups:
    return None if groups is None else groups[rows]
