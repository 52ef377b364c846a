"""Stratified assignment of whole blocks to parts, used by `splits`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import DataError, UsageError

__all__ = [
    "BlockSummary",
    "move_missing_classes_to_train",
    "require_testable",
    "spread_classes",
    "stratify_blocks",
    "summarise_blocks",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSummary:
    """Class counts of blocks. For multilabel data, "no label" counts as one more class."""

    block_of: NDArray[np.intp]  # (n,) block of each example
    class_counts: list[dict[int, int]]  # of each block: class -> number of examples
    sizes: list[int]  # of each block: number of examples
    class_totals: dict[int, int]  # class -> number of examples
    blocks_per_class: dict[int, int]  # class -> number of blocks with it


def summarise_blocks(targets: NDArray[np.intp], blocks: ArrayLike | None) -> BlockSummary:
    """Count the examples of each class in each block.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,), or 0 and 1 of shape (n, n_classes).
    blocks : array, shape (n,), or None

    Returns
    -------
    BlockSummary

    Raises
    ------
    UsageError
        If the lengths differ.

    Examples
    --------
    >>> summarise_blocks(np.array([0, 0, 1]), [5, 5, 7]).class_counts
    [{0: 2}, {1: 1}]
    """
    n = len(targets)
    if targets.ndim == 1:
        rows, labels = np.arange(n), targets
    else:
        rows, labels = np.nonzero(targets)
        unlabelled = np.flatnonzero(~targets.any(axis=1))
        rows = np.concatenate([rows, unlabelled])
        labels = np.concatenate([labels, np.full(len(unlabelled), targets.shape[1])])
    block_ids = np.arange(n) if blocks is None else np.asarray(blocks)
    if block_ids.shape != (n,):
        raise UsageError(
            f"Expected one block for each of {n} examples, got shape {block_ids.shape}."
        )
    names, block_of = np.unique(block_ids, return_inverse=True)
    width = int(labels.max(initial=0)) + 1
    pairs, counts = np.unique(block_of[rows] * width + labels, return_counts=True)
    class_counts: list[dict[int, int]] = [{} for _ in names]
    class_totals: dict[int, int] = {}
    blocks_per_class: dict[int, int] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        block, label = divmod(pair, width)
        class_counts[block][label] = count
        class_totals[label] = class_totals.get(label, 0) + count
        blocks_per_class[label] = blocks_per_class.get(label, 0) + 1
    return BlockSummary(
        block_of=block_of.astype(np.intp),
        class_counts=class_counts,
        sizes=np.bincount(block_of, minlength=len(names)).tolist(),
        class_totals=class_totals,
        blocks_per_class=blocks_per_class,
    )


def stratify_blocks(
    summary: BlockSummary, shares: Sequence[float], rng: np.random.Generator, pinned: frozenset[int]
) -> list[int]:
    """Assign whole blocks to parts, one after the other, so that each class has its share.

    A block is put into the part where the class counts come nearest to the requested shares
    (squared differences, each class relative to its size). Large blocks come first, then blocks
    of rare classes, so that small blocks of common classes even out the rest. Similar to the
    iterative stratification of Sechidis, Tsoumakas and Vlahavas (ECML 2011), for blocks with
    several classes.

    Parameters
    ----------
    summary : BlockSummary
    shares : sequence of float
        Requested share of each part; the sum is 1.
    rng : numpy.random.Generator
    pinned : frozenset of int
        Blocks that must be in part 0.

    Returns
    -------
    list of int
        Part of each block.

    Examples
    --------
    >>> summary = summarise_blocks(np.array([0, 0, 1, 1]), None)
    >>> sorted(stratify_blocks(summary, (0.5, 0.5), np.random.default_rng(0), frozenset()))
    [0, 0, 1, 1]
    """
    parts = range(len(shares))
    # Examples still missing, by class and part, and by part.
    missing = {c: [total * share for share in shares] for c, total in summary.class_totals.items()}
    missing_in_part = [sum(summary.sizes) * share for share in shares]
    part_of = [-1] * len(summary.sizes)

    def improvement(part: int, label: int, count: int) -> float:
        # With two parts, the rounding error so far is carried over, at most half a block, so
        # that rounding errors do not add up over many small classes.
        limit = count / 2 if len(shares) == 2 else 0.0
        error = missing_in_part[part] - shares[part] * sum(missing_in_part)
        carry = max(-limit, min(limit, error))
        scale = summary.class_totals[label] * shares[part]
        return count * (2 * (missing[label][part] + carry) - count) / scale

    shuffled = rng.permutation(len(summary.sizes)).tolist()
    rarity = [min(summary.class_totals[c] for c in counts) for counts in summary.class_counts]
    for block in sorted(shuffled, key=lambda b: (b not in pinned, -summary.sizes[b], rarity[b])):
        counts = summary.class_counts[block].items()
        # Rounded, so that ties do not depend on the last bits; then the emptier, the first part.
        keys = [
            (
                round(sum(improvement(part, c, count) for c, count in counts), 9),
                round(missing_in_part[part], 9),
                -part,
            )
            for part in parts
        ]
        best = 0 if block in pinned else max(parts, key=lambda part: keys[part])
        part_of[block] = best
        missing_in_part[best] -= summary.sizes[block]
        for label, count in counts:
            missing[label][best] -= count
    return part_of


def spread_classes(
    summary: BlockSummary, part_of: list[int], n_parts: int, pinned: frozenset[int]
) -> list[int]:
    """Move blocks until every class of two or more blocks is in at least two parts.

    ``part_of`` is changed. Returned are the classes for which this is impossible.
    """
    # class -> part -> blocks of that class in that part
    blocks_in: dict[int, dict[int, list[int]]] = {label: {} for label in summary.class_totals}
    for block, part in enumerate(part_of):
        for label in summary.class_counts[block]:
            blocks_in[label].setdefault(part, []).append(block)
    unspread = []
    for label in sorted(summary.class_totals, key=lambda c: (summary.blocks_per_class[c], c)):
        if summary.blocks_per_class[label] < 2 or len(blocks_in[label]) > 1:
            continue
        source = next(iter(blocks_in[label]))
        movable = [
            (summary.sizes[block], block, part)
            for block in blocks_in[label][source]
            for part in range(n_parts)
            if part != source and block not in pinned and _may_move(blocks_in, block, part, summary)
        ]
        if not movable:
            unspread.append(label)
            continue
        _, block, target = min(movable)
        part_of[block] = target
        for moved_label in summary.class_counts[block]:
            blocks_in[moved_label][source].remove(block)
            if not blocks_in[moved_label][source]:
                del blocks_in[moved_label][source]
            blocks_in[moved_label].setdefault(target, []).append(block)
    return unspread


def _may_move(
    blocks_in: dict[int, dict[int, list[int]]], block: int, target: int, summary: BlockSummary
) -> bool:
    """Whether each class of the block, if it has several blocks, would be in another part too."""
    for label in summary.class_counts[block]:
        if summary.blocks_per_class[label] < 2:
            continue
        remaining = {part for part, members in blocks_in[label].items() if members != [block]}
        if remaining <= {target}:
            return False
    return True


def move_missing_classes_to_train(summary: BlockSummary, part_of: list[int]) -> None:
    """Move blocks to part 0 until it contains every class; small blocks first."""
    trained = {
        label
        for block, part in enumerate(part_of)
        if part == 0
        for label in summary.class_counts[block]
    }
    for block in sorted(range(len(part_of)), key=lambda b: (summary.sizes[b], b)):
        if part_of[block] != 0 and not summary.class_counts[block].keys() <= trained:
            part_of[block] = 0
            trained |= summary.class_counts[block].keys()


def require_testable(
    targets: NDArray[np.intp], blocks: NDArray[np.intp], classes: Sequence[str]
) -> None:
    """Raise an error with the classes' names if no class can be both trained on and tested.

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
    listing = ", ".join(f"{n} of {c!r}" for n, c in zip(counts[:5], classes[:5], strict=True))
    listing, advice = listing + (", ..." if len(counts) > 5 else ""), "Add images"
    if max(counts, default=0) > 1:
        listing += ", all images of a class in one group or identical"
        advice = "Add other images, or use smaller groups (--group-by)"
    raise DataError(
        "Expected at least 2 different images of a class, in two groups, so that one can be "
        f"tested on, got {listing}. {advice}."
    )
