"""Dealing whole blocks to parts so that every class is shared out evenly.

The engine under `splits`: blocks in, the part of each block out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import DataError, UsageError

__all__ = ["Units", "deal", "make_units", "require_testable", "spread_out", "train_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Blocks as what they hold; a column of its own stands for "no label at all"."""

    of: NDArray[np.intp]  # (n,) block of each example
    held: list[dict[int, int]]  # for each block: class -> how many examples
    size: list[int]
    totals: dict[int, int]  # class -> how many examples
    spread: dict[int, int]  # class -> in how many blocks


def make_units(targets: NDArray[np.intp], blocks: ArrayLike | None) -> Units:
    """Sum up what each block holds.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,), or 0 and 1 of shape (n, n_classes).
    blocks : array, shape (n,), or None

    Returns
    -------
    Units

    Raises
    ------
    UsageError
        If the lengths differ.

    Examples
    --------
    >>> make_units(np.array([0, 0, 1]), [5, 5, 7]).held
    [{0: 2}, {1: 1}]
    """
    n = len(targets)
    if targets.ndim == 1:
        rows, labels = np.arange(n), targets
    else:
        rows, labels = np.nonzero(targets)
        bare = np.flatnonzero(~targets.any(axis=1))
        rows = np.concatenate([rows, bare])
        labels = np.concatenate([labels, np.full(len(bare), targets.shape[1])])
    given = np.arange(n) if blocks is None else np.asarray(blocks)
    if given.shape != (n,):
        raise UsageError(f"Expected one block for each of {n} examples, got shape {given.shape}.")
    names, of = np.unique(given, return_inverse=True)
    width = int(labels.max(initial=0)) + 1
    pairs, counts = np.unique(of[rows] * width + labels, return_counts=True)
    held: list[dict[int, int]] = [{} for _ in names]
    totals: dict[int, int] = {}
    spread: dict[int, int] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        block, label = divmod(pair, width)
        held[block][label] = count
        totals[label] = totals.get(label, 0) + count
        spread[label] = spread.get(label, 0) + 1
    size = np.bincount(of, minlength=len(names)).tolist()
    return Units(of=of.astype(np.intp), held=held, size=size, totals=totals, spread=spread)


def deal(
    units: Units, shares: Sequence[float], rng: np.random.Generator, pinned: frozenset[int]
) -> list[int]:
    """Stratify whole blocks, one after the other; the part of each block.

    A block goes where it brings every class nearest to its share of what was dealt so far (in
    squares, each class by its own size); large blocks first, then those of rare classes, so
    that small and common ones even out the rest. Like the iterative stratification of
    Sechidis, Tsoumakas and Vlahavas (ECML 2011), for blocks that hold several classes.

    Parameters
    ----------
    units : Units
    shares : sequence of float
        What share each part should get; the sum is 1.
    rng : numpy.random.Generator
    pinned : frozenset of int
        Blocks that go to part 0.

    Returns
    -------
    list of int

    Examples
    --------
    >>> units = make_units(np.array([0, 0, 1, 1]), None)
    >>> sorted(deal(units, (0.5, 0.5), np.random.default_rng(0), frozenset()))
    [0, 0, 1, 1]
    """
    parts = range(len(shares))
    need = {c: [total * share for share in shares] for c, total in units.totals.items()}
    lack = [sum(units.size) * share for share in shares]
    part = [-1] * len(units.size)

    def fit(p: int, c: int, count: int) -> float:
        # With two parts, what could not be given exactly is carried over, at most half a block,
        # so that rounding does not add up over many small classes.
        bound = count / 2 if len(shares) == 2 else 0.0
        carry = max(-bound, min(bound, lack[p] - shares[p] * sum(lack)))
        return count * (2 * (need[c][p] + carry) - count) / (units.totals[c] * shares[p])

    shuffled = rng.permutation(len(units.size)).tolist()
    rarity = [min(units.totals[c] for c in held) for held in units.held]
    for b in sorted(shuffled, key=lambda b: (b not in pinned, -units.size[b], rarity[b])):
        held = units.held[b].items()
        keys = [
            (round(sum(fit(p, c, count) for c, count in held), 9), round(lack[p], 9), -p)
            for p in parts
        ]
        best = 0 if b in pinned else max(parts, key=lambda p: keys[p])
        part[b] = best
        lack[best] -= units.size[b]
        for c, count in held:
            need[c][best] -= count
    return part


def spread_out(units: Units, part: list[int], n_parts: int, pinned: frozenset[int]) -> list[int]:
    """Move blocks until no class of two or more blocks lies in one part only; those that fail."""
    where: dict[int, dict[int, list[int]]] = {c: {} for c in units.totals}
    for b, p in enumerate(part):
        for c in units.held[b]:
            where[c].setdefault(p, []).append(b)
    lonely = []
    for c in sorted(units.totals, key=lambda c: (units.spread[c], c)):
        if units.spread[c] < 2 or len(where[c]) > 1:
            continue
        home = next(iter(where[c]))
        movable = [
            (units.size[b], b, p)
            for b in where[c][home]
            for p in range(n_parts)
            if p != home and b not in pinned and _may_move(where, b, p, units)
        ]
        if not movable:
            lonely.append(c)
            continue
        _, b, p = min(movable)
        part[b] = p
        for other in units.held[b]:
            where[other][home].remove(b)
            if not where[other][home]:
                del where[other][home]
            where[other].setdefault(p, []).append(b)
    return lonely


def _may_move(where: dict[int, dict[int, list[int]]], b: int, target: int, units: Units) -> bool:
    """Whether no class of two or more blocks would end up in one part only."""
    for c in units.held[b]:
        if units.spread[c] < 2:
            continue
        others = {p for p, held in where[c].items() if held != [b]}
        if others <= {target}:
            return False
    return True


def train_all(units: Units, part: list[int]) -> None:
    """Move blocks to part 0 until it holds every class."""
    trained = {c for b, p in enumerate(part) if p == 0 for c in units.held[b]}
    for b in sorted(range(len(part)), key=lambda b: (units.size[b], b)):
        if part[b] != 0 and not units.held[b].keys() <= trained:
            part[b] = 0
            trained |= units.held[b].keys()


def require_testable(
    targets: NDArray[np.intp], blocks: NDArray[np.intp], classes: Sequence[str]
) -> None:
    """Say it by the classes' names, where no class can be both trained on and tested.

    Raises
    ------
    DataError
        If every class lies in one block.

    Examples
    --------
    >>> require_testable(np.array([0, 0, 1]), np.array([0, 1, 2]), ("cat", "dog"))
    """
    if len(np.unique(np.stack([targets, blocks]), axis=1)[0]) > len(np.unique(targets)):
        return
    counts = np.bincount(targets, minlength=len(classes)).tolist()
    got = ", ".join(f"{n} of {c!r}" for n, c in zip(counts[:5], classes[:5], strict=True))
    got, way = got + (", ..." if len(counts) > 5 else ""), "add images"
    if max(counts, default=0) > 1:
        got += ", of each class all in one group or all the same image"
        way = "add other images, or group them less coarsely"
    raise DataError(
        "Expected at least 2 different images of a class, in two groups, so that one can be "
        f"tested on, got {got}; do: {way}."
    )
