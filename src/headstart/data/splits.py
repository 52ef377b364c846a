"""Splits of a data set: hold-out, cross-validation folds, subsets; pure functions of indices.

A *block* is a set of images that must stay together: images of one group, and duplicates. The
same seed gives the same split on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.data.dataset import Dataset, SplitName
from headstart.data.stratify import (
    BlockSummary,
    move_missing_classes_to_train,
    require_testable,
    spread_classes,
    stratify_blocks,
    summarise_blocks,
)
from headstart.errors import DataError, UsageError

__all__ = [
    "RepeatedSplit",
    "assign_splits",
    "evenly_spaced",
    "find_blocks",
    "find_root",
    "holdout",
    "kfold",
    "nested_fractions",
    "repeated_splits",
]

Indices = NDArray[np.intp]


def find_blocks(
    n: int,
    groups: Sequence[object] | NDArray[Any] | None = None,
    duplicates: Iterable[Iterable[int]] = (),
) -> Indices:
    """Find the blocks: connected components of "same group" and "duplicate of".

    Parameters
    ----------
    n : int
        Number of examples.
    groups : sequence of length n, or None
        Group of each example; None means that an example, or every example, has its own group.
    duplicates : iterable of iterables of int
        Each contains the indices of examples with the same image.

    Returns
    -------
    array, shape (n,)
        Block of each example, numbered from 0 in order of appearance.

    Raises
    ------
    UsageError
        If the lengths differ or an index is out of range.

    Examples
    --------
    >>> find_blocks(5, groups=["a", None, "a", "b", "b"], duplicates=[(1, 2)])
    array([0, 0, 0, 1, 1])
    """
    if groups is not None and len(groups) != n:
        raise UsageError(f"Expected {n} groups, got {len(groups)}. Pass one for each example.")
    parent = list(range(n))
    first_of_group: dict[object, int] = {}
    for i, group in enumerate(() if groups is None else groups):
        if group is not None:
            parent[i] = first_of_group.setdefault(group, i)
    for members in duplicates:
        indices = [int(i) for i in members]
        if not all(0 <= i < n for i in indices):
            raise UsageError(f"Expected duplicates as indices below {n}, got {indices}.")
        for index in indices[1:]:
            low, high = sorted((find_root(parent, indices[0]), find_root(parent, index)))
            parent[high] = low
    roots = np.asarray([find_root(parent, i) for i in range(n)], dtype=np.intp)
    _, first_index, inverse = np.unique(roots, return_index=True, return_inverse=True)
    # np.unique numbers by root; renumber in order of appearance.
    return np.argsort(np.argsort(first_index)).astype(np.intp)[inverse]


def find_root(parent: list[int], i: int) -> int:
    """Root of an element in a union-find forest; shortens the path on the way."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def _as_targets(targets: ArrayLike) -> NDArray[np.intp]:
    array = np.asarray(targets)
    if array.ndim not in {1, 2} or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
        raise UsageError(
            "Expected `targets` to be class indices of shape (n,) or 0 and 1 of shape "
            f"(n, n_classes), got {array.dtype} of shape {array.shape}."
        )
    return array.astype(np.intp)


def holdout(
    targets: ArrayLike, *, fraction: float, blocks: ArrayLike | None = None, seed: int = 0
) -> tuple[Indices, Indices]:
    """Split off a test part, stratified, in whole blocks.

    Every class is in the training part. A class with two or more blocks is also in the test part,
    unless blocks of several classes make this impossible. If each block has one class, the test
    share of a class differs from ``fraction`` by less than its largest block.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,), or 0 and 1 of shape (n, n_classes) for multilabel.
    fraction : float
        Share of the test part, between 0 and 1.
    blocks : array, shape (n,), or None
        Block of each example, see `find_blocks`; None: each example is a block.
    seed : int

    Returns
    -------
    train, test : arrays
        Sorted indices; each example is in one of them.

    Raises
    ------
    UsageError
        If an argument is out of range.
    DataError
        If every class is in a single block, so that nothing can be tested.

    References
    ----------
    Sechidis, Tsoumakas and Vlahavas, On the stratification of multi-label data, ECML 2011.

    Examples
    --------
    >>> train, test = holdout([0, 0, 0, 0, 1, 1], fraction=0.3, blocks=[0, 0, 1, 1, 2, 3])
    >>> len(train), len(test)
    (3, 3)
    """
    if not 0 < fraction < 1:
        raise UsageError(f"Expected `fraction` to be between 0 and 1, got {fraction}.")
    table, rng = _as_targets(targets), np.random.default_rng(seed)
    if _is_without_blocks(table, blocks):
        tested = _holdout_single_images(table, fraction, rng)
    else:
        summary = summarise_blocks(table, blocks)
        # The only block of a class must be trained on.
        pinned = frozenset(
            block
            for block, counts in enumerate(summary.class_counts)
            if any(summary.blocks_per_class[label] == 1 for label in counts)
        )
        part_of = stratify_blocks(summary, (1 - fraction, fraction), rng, pinned)
        spread_classes(summary, part_of, 2, pinned)
        move_missing_classes_to_train(summary, part_of)
        tested = np.asarray(part_of, dtype=np.intp)[summary.block_of] == 1
    if not tested.any():
        raise DataError(
            f"Expected a class with images in two or more groups, got none among {len(table)} "
            "images, so that there can be no test part. Add images, or use smaller groups."
        )
    return np.flatnonzero(~tested), np.flatnonzero(tested)


def _is_without_blocks(targets: NDArray[np.intp], blocks: ArrayLike | None) -> bool:
    """Whether each example has one label and is a block of its own: the simple, exact case."""
    if targets.ndim != 1:
        return False
    if blocks is None:
        return True
    block_ids = np.asarray(blocks)
    return block_ids.shape == targets.shape and len(np.unique(block_ids)) == len(targets)


def _holdout_single_images(
    targets: NDArray[np.intp], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Test every 1/fraction-th example, sorted by class: exact for each class and in total."""
    n = len(targets)
    order = _by_class(targets, rng)
    steps = np.floor(np.arange(n + 1) * fraction + rng.random())
    tested = np.zeros(n, dtype=bool)
    tested[order] = np.diff(steps) > 0
    for members in np.split(order, np.flatnonzero(np.diff(targets[order])) + 1):
        count = int(tested[members].sum())
        if len(members) == 1 or count == len(members):
            tested[members[0]] = False
        elif count == 0:
            tested[members[0]] = True
    return tested


def _by_class(targets: NDArray[np.intp], rng: np.random.Generator) -> Indices:
    shuffled = rng.permutation(len(targets))
    return shuffled[np.argsort(targets[shuffled], kind="stable")]


def kfold(
    targets: ArrayLike, n_folds: int, *, blocks: ArrayLike | None = None, seed: int = 0
) -> list[tuple[Indices, Indices]]:
    """Split the data into folds for cross-validation, stratified, in whole blocks.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,), or 0 and 1 of shape (n, n_classes) for multilabel.
    n_folds : int
        At least 2. Fewer folds are returned if a class has fewer blocks (for multilabel: if
        there are fewer blocks).
    blocks : array, shape (n,), or None
        Block of each example, see `find_blocks`; None: each example is a block.
    seed : int

    Returns
    -------
    list of (train, test)
        Sorted indices; every example is tested in exactly one fold, and every class of the test
        part is in the training part.

    Raises
    ------
    UsageError
        If ``n_folds`` is below 2.
    DataError
        If a class has one block only, so that it cannot be both trained on and tested.

    Examples
    --------
    >>> [test.tolist() for _, test in kfold([0, 0, 1, 1], 5, blocks=[0, 1, 2, 3], seed=1)]
    [[0, 2], [1, 3]]
    """
    if n_folds < 2:
        raise UsageError(f"Expected `n_folds` to be at least 2, got {n_folds}.")
    table, rng = _as_targets(targets), np.random.default_rng(seed)
    summary = None if _is_without_blocks(table, blocks) else summarise_blocks(table, blocks)
    n_folds = _possible_folds(table, summary, n_folds)
    if summary is None:
        fold = np.empty(len(table), dtype=np.intp)
        fold[_by_class(table, rng)] = np.arange(len(table)) % n_folds
    else:
        part_of = stratify_blocks(summary, (1 / n_folds,) * n_folds, rng, frozenset())
        unspread = spread_classes(summary, part_of, n_folds, frozenset())
        if unspread and table.ndim == 1:
            raise DataError(
                f"Expected every class to be in the training part of each fold, got class "
                f"{unspread[0]} in one fold only, as its groups are shared with other classes. "
                "Use smaller groups."
            )
        # Renumber: a part may be empty.
        fold = np.unique(np.asarray(part_of)[summary.block_of], return_inverse=True)[1]
    numbers = np.unique(fold)
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in numbers]


def _possible_folds(targets: NDArray[np.intp], summary: BlockSummary | None, n_folds: int) -> int:
    """Reduce the number of folds to the number of blocks of the rarest class."""
    if summary is None:
        labels, counts = np.unique(targets, return_counts=True)
        n_blocks = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    elif targets.ndim == 1:
        n_blocks = summary.blocks_per_class
    else:
        n_blocks = {-1: len(summary.sizes)}  # multilabel: all blocks
    rarest = min(n_blocks, key=lambda c: (n_blocks[c], c))
    if n_blocks[rarest] < 2:
        subject = f"class {rarest}" if rarest >= 0 else "the data"
        raise DataError(
            f"Expected at least 2 images (in different groups) of every class, got 1 for "
            f"{subject}, so that it cannot be both trained on and tested. Add images of it, or "
            "leave it out."
        )
    return min(n_folds, int(n_blocks[rarest]))


def assign_splits(
    dataset: Dataset,
    *,
    duplicates: Iterable[Iterable[int]] = (),
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Assign every example to a part, unless the data have splits.

    Parameters
    ----------
    dataset : Dataset
        With train and at least one of val and test: returned unchanged. With no split, or with
        train only: split by `holdout` into train and test.
    duplicates : iterable of iterables of int
        Indices of examples with the same image; they stay together.
    test_fraction : float
        Between 0 and 1.
    seed : int

    Returns
    -------
    Dataset
        A new split is described in its notes.

    Raises
    ------
    DataError
        If only some examples have a part, or none is for training.

    Examples
    --------
    >>> from headstart.data.dataset import Sample
    >>> samples = tuple(Sample(image=b"", target=name) for name in ("cat", "dog") * 5)
    >>> data = assign_splits(Dataset(samples=samples, classes=("cat", "dog")))
    >>> len(data.split("train")), len(data.split("test"))
    (8, 2)
    """
    parts = {sample.split for sample in dataset.samples}
    if None in parts and len(parts) > 1:
        n_without = len(dataset.split_indices(None))
        raise DataError(
            f"Expected all images of {dataset.name!r} or none to have a split, got {n_without} of "
            f"{len(dataset)} without. Fill in the missing splits, or remove all of them."
        )
    if "train" in parts and len(parts) > 1:
        return dataset
    if None not in parts and "train" not in parts:
        raise DataError(
            f"Expected {dataset.name!r} to have a part to train on, got "
            f"{' and '.join(sorted(map(str, parts))) or 'no images'} only. "
            "Add training images, or remove the split."
        )
    block_ids = find_blocks(len(dataset), dataset.groups(), duplicates)
    if dataset.kind == "multiclass":
        require_testable(dataset.targets(), block_ids, dataset.classes)
    _, test = holdout(dataset.targets(), fraction=test_fraction, blocks=block_ids, seed=seed)
    tested = set(test.tolist())
    names: tuple[SplitName, SplitName] = ("train", "test")
    samples = tuple(replace(s, split=names[i in tested]) for i, s in enumerate(dataset.samples))
    blocks_note = (
        " with groups and duplicates kept together" if block_ids.max() + 1 < len(dataset) else ""
    )
    note = (
        f"split: {len(dataset) - len(test)} train, {len(test)} test, stratified by class"
        f"{blocks_note}, seed {seed}"
        + (", all from the author's train part" if "train" in parts else "")
    )
    return replace(dataset, samples=samples, notes=(*dataset.notes, note))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RepeatedSplit:
    """One split of repeated splits.

    Parameters
    ----------
    seed, fold : int
    train, test : array
        Sorted indices; each example is in one of them.
    """

    seed: int
    fold: int
    train: Indices
    test: Indices


def repeated_splits(
    targets: ArrayLike,
    *,
    seeds: Sequence[int],
    folds: int = 0,
    fraction: float = 0.2,
    blocks: ArrayLike | None = None,
) -> Iterator[RepeatedSplit]:
    """Split the same examples repeatedly, stratified, in whole blocks.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,), or 0 and 1 of shape (n, n_classes).
    seeds : sequence of int
        One hold-out, or one cross-validation, for each seed.
    folds : int
        Number of folds of a cross-validation, 2 or more; 0 for hold-outs. Fewer if a class has
        fewer blocks.
    fraction : float
        Share of the test part of a hold-out.
    blocks : array, shape (n,), or None
        Block of each example; None: each example is a block.

    Raises
    ------
    UsageError
        If an argument is out of range.
    DataError
        If there can be no test part.

    Examples
    --------
    >>> splits = list(repeated_splits([0, 0, 0, 1, 1, 1], seeds=(0, 1), folds=3))
    >>> [(split.seed, split.fold, len(split.test)) for split in splits][:3]
    [(0, 0, 2), (0, 1, 2), (0, 2, 2)]
    """
    if folds < 0 or folds == 1:
        raise UsageError(f"Expected `folds` to be 2 or more, or 0 for hold-outs, got {folds}.")
    for seed in seeds:
        if folds:
            parts = kfold(targets, folds, blocks=blocks, seed=seed)
        else:
            parts = [holdout(targets, fraction=fraction, blocks=blocks, seed=seed)]
        for fold, (train, test) in enumerate(parts):
            yield RepeatedSplit(seed=seed, fold=fold, train=train, test=test)


def nested_fractions(
    targets: ArrayLike,
    fractions: Sequence[float],
    *,
    blocks: ArrayLike | None = None,
    seed: int = 0,
    min_blocks: int = 2,
) -> dict[float, Indices]:
    """Choose nested subsets of growing size, stratified, in whole blocks.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,), or 0 and 1 of shape (n, n_classes).
    fractions : sequence of float
        Above 0, up to 1.
    blocks : array, shape (n,), or None
        Block of each example; None: each example is a block.
    seed : int
    min_blocks : int
        Minimum number of blocks of each class in every subset (all, if there are fewer): a method
        needs one to train on and one to select on.

    Returns
    -------
    dict of float to array
        Sorted indices by fraction, ascending.

    Raises
    ------
    UsageError
        If a fraction is out of range.

    Examples
    --------
    >>> subsets = nested_fractions([0] * 10 + [1] * 10, (0.2, 0.5, 1.0))
    >>> [len(rows) for rows in subsets.values()]
    [4, 10, 20]
    """
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise UsageError(
            f"Expected `fractions` above 0 and up to 1, got {list(fractions)}. Pass shares "
            "of the training images such as 0.1, 0.3, 1."
        )
    table = np.asarray(targets)
    summary = summarise_blocks(table, blocks)
    queues = _queue_by_rarest_class(summary, np.random.default_rng(seed))
    chosen: set[int] = set()
    subsets: dict[float, Indices] = {}
    for fraction in sorted(set(fractions)):
        for queue in queues.values():
            chosen.update(_first_blocks(queue, fraction, summary))
        _add_missing_blocks(chosen, summary, queues, min_blocks)
        if fraction == 1:
            chosen.update(range(len(summary.sizes)))
        is_chosen = np.isin(summary.block_of, np.fromiter(chosen, dtype=np.intp))
        subsets[fraction] = np.flatnonzero(is_chosen)
    return subsets


def _queue_by_rarest_class(summary: BlockSummary, rng: np.random.Generator) -> dict[int, list[int]]:
    """Shuffle the blocks; put each into the queue of its rarest class."""
    queues: dict[int, list[int]] = {}
    for block in rng.permutation(len(summary.sizes)).tolist():
        counts = summary.class_counts[block]
        rarest = min(counts, key=lambda c: (summary.blocks_per_class[c], c))
        queues.setdefault(rarest, []).append(block)
    return queues


def _first_blocks(queue: list[int], fraction: float, summary: BlockSummary) -> list[int]:
    """First blocks of a queue whose size is nearest to a fraction of its examples."""
    sizes = np.asarray([summary.sizes[block] for block in queue])
    # A block belongs to the fraction if its middle does: this rounds to the nearest block.
    middles = np.cumsum(sizes) - sizes / 2
    return queue[: int((middles < fraction * sizes.sum() + 1e-9).sum())]


def _add_missing_blocks(
    chosen: set[int], summary: BlockSummary, queues: dict[int, list[int]], min_blocks: int
) -> None:
    """Add blocks of classes that have fewer than ``min_blocks`` chosen blocks; rare ones first."""
    ordered: list[int] = [block for queue in queues.values() for block in queue]
    for label, n_blocks in sorted(summary.blocks_per_class.items(), key=lambda item: item[::-1]):
        n_chosen = sum(label in summary.class_counts[block] for block in chosen)
        candidates = [b for b in ordered if b not in chosen and label in summary.class_counts[b]]
        n_missing = max(0, min(min_blocks, n_blocks) - n_chosen)
        chosen.update(candidates[:n_missing])


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Choose at most ``limit`` of ``count`` indices, evenly spaced, from the first on.

    >>> evenly_spaced(10, 3), evenly_spaced(2, 5)
    ([0, 3, 6], [0, 1])
    """
    return [i * count // limit for i in range(limit)] if count > limit else list(range(count))
