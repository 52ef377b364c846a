"""Splits for comparing methods: repeated, and of growing numbers of pictures inside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.data.splits import holdout, kfold
from headstart.data.stratify import Units, make_units
from headstart.errors import UsageError

__all__ = ["Repeat", "nested_fractions", "repeats"]

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repeat:
    """One split of repeated splits.

    Parameters
    ----------
    seed, fold : int
    train, test : array
        Sorted indices; together all examples, each once.
    """

    seed: int
    fold: int
    train: Indices
    test: Indices


def repeats(
    targets: ArrayLike,
    *,
    seeds: Sequence[int],
    folds: int = 0,
    fraction: float = 0.2,
    blocks: ArrayLike | None = None,
) -> Iterator[Repeat]:
    """Split the same examples again and again, stratified, in whole blocks.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,), or 0 and 1 of shape (n, n_classes).
    seeds : sequence of int
        One hold-out, or one cross-validation, a seed.
    folds : int
        Of each cross-validation, 2 or more; 0 for hold-outs. Fewer where a class has fewer blocks.
    fraction : float
        Share that a hold-out tests on.
    blocks : array, shape (n,), or None
        What must stay together.

    Raises
    ------
    UsageError
        If an argument is out of range.
    DataError
        If nothing can be set aside.

    Examples
    --------
    >>> found = list(repeats([0, 0, 0, 1, 1, 1], seeds=(0, 1), folds=3))
    >>> [(one.seed, one.fold, len(one.test)) for one in found][:3]
    [(0, 0, 2), (0, 1, 2), (0, 2, 2)]
    """
    if folds < 0 or folds == 1:
        raise UsageError(f"Expected `folds` of 2 or more, or 0 for hold-outs, got {folds}.")
    for seed in seeds:
        if folds:
            parts = kfold(targets, folds, blocks=blocks, seed=seed)
        else:
            parts = [holdout(targets, fraction=fraction, blocks=blocks, seed=seed)]
        for fold, (train, test) in enumerate(parts):
            yield Repeat(seed=seed, fold=fold, train=train, test=test)


def nested_fractions(
    targets: ArrayLike,
    fractions: Sequence[float],
    *,
    blocks: ArrayLike | None = None,
    seed: int = 0,
    least: int = 2,
) -> dict[float, Indices]:
    """Choose growing shares of the examples, each inside the next, stratified, in whole blocks.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,), or 0 and 1 of shape (n, n_classes).
    fractions : sequence of float
        Above 0, up to 1.
    blocks : array, shape (n,), or None
        What must stay together.
    seed : int
    least : int
        Blocks of each class in every share, or all where there are fewer: a method has to learn
        from one and select on another.

    Returns
    -------
    dict of float to array
        Sorted indices, by fraction, few first.

    Raises
    ------
    UsageError
        If a fraction is out of range.

    Examples
    --------
    >>> found = nested_fractions([0] * 10 + [1] * 10, (0.2, 0.5, 1.0))
    >>> [len(rows) for rows in found.values()]
    [4, 10, 20]
    """
    if not fractions or not all(0 < one <= 1 for one in fractions):
        raise UsageError(
            f"Expected `fractions` above 0 and up to 1, got {list(fractions)}; do: give shares of "
            "the training pictures such as 0.1, 0.3, 1."
        )
    table = np.asarray(targets)
    made = make_units(table, blocks)
    queues = _queues(made, np.random.default_rng(seed))
    chosen: set[int] = set()
    found: dict[float, Indices] = {}
    for share in sorted(set(fractions)):
        for queue in queues.values():
            chosen.update(_prefix(queue, share, made))
        _at_least(chosen, made, queues, least)
        if share == 1:
            chosen.update(range(len(made.size)))
        held = np.isin(made.of, np.fromiter(chosen, dtype=np.intp))
        found[share] = np.flatnonzero(held)
    return found


def _queues(made: Units, rng: np.random.Generator) -> dict[int, list[int]]:
    """Blocks in the order they come in, each in the queue of its rarest class."""
    queues: dict[int, list[int]] = {}
    for block in rng.permutation(len(made.size)).tolist():
        rarest = min(made.held[block], key=lambda c: (made.spread[c], c))
        queues.setdefault(rarest, []).append(block)
    return queues


def _prefix(queue: list[int], share: float, made: Units) -> list[int]:
    """The first blocks that come nearest to a share of the queue's examples."""
    sizes = np.asarray([made.size[block] for block in queue])
    middles = np.cumsum(sizes) - sizes / 2
    return queue[: int((middles < share * sizes.sum() + 1e-9).sum())]


def _at_least(chosen: set[int], made: Units, queues: dict[int, list[int]], least: int) -> None:
    """Add the next blocks of a class that has too few."""
    line: list[int] = [block for queue in queues.values() for block in queue]
    for label, spread in sorted(made.spread.items(), key=lambda item: item[::-1]):
        missing = min(least, spread) - sum(label in made.held[block] for block in chosen)
        free = (b for b in line if b not in chosen and label in made.held[b])
        for _, block in zip(range(missing), list(free), strict=False):
            chosen.add(block)
