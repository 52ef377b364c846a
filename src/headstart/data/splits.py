"""Who is trained on and who is tested on: pure functions that return indices.

Nothing here looks at an image. A *block* is what must stay together: images of one group and
duplicates of each other. One seed gives one answer, on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.data.dataset import Dataset, SplitName
from headstart.data.stratify import Units, deal, make_units, require_testable, spread_out, train_all
from headstart.errors import DataError, UsageError

__all__ = [
    "Repeat",
    "assign",
    "blocks",
    "evenly",
    "holdout",
    "kfold",
    "nested_fractions",
    "per_class",
    "repeats",
]

Indices = NDArray[np.intp]


def blocks(
    n: int,
    groups: Sequence[object] | NDArray[Any] | None = None,
    duplicates: Iterable[Iterable[int]] = (),
) -> Indices:
    """Number the blocks: connected components of "same group" and "duplicate of".

    Parameters
    ----------
    n : int
        Number of examples.
    groups : sequence of length n, or None
        Group of each example; None (also for one example) means a group of its own.
    duplicates : iterable of iterables of int
        Each holds the indices of examples that are the same image.

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
    >>> blocks(5, groups=["a", None, "a", "b", "b"], duplicates=[(1, 2)])
    array([0, 0, 0, 1, 1])
    """
    if groups is not None and len(groups) != n:
        raise UsageError(f"Expected {n} groups, got {len(groups)}; do: give one for each example.")
    parent = list(range(n))
    first: dict[object, int] = {}
    for i, group in enumerate(() if groups is None else groups):
        if group is not None:
            parent[i] = first.setdefault(group, i)
    for members in duplicates:
        indices = [int(i) for i in members]
        if not all(0 <= i < n for i in indices):
            raise UsageError(f"Expected duplicates as indices below {n}, got {indices}.")
        for other in indices[1:]:
            low, high = sorted((_root(parent, indices[0]), _root(parent, other)))
            parent[high] = low
    roots = np.asarray([_root(parent, i) for i in range(n)], dtype=np.intp)
    _, first_at, inverse = np.unique(roots, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_at)).astype(np.intp)[inverse]


def _root(parent: list[int], i: int) -> int:
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
    """Set a test part aside, stratified, in whole blocks.

    Every class is in the training part; a class of two or more blocks is in the test part too
    (unless blocks of several classes rule that out). The share of a class that is tested differs
    from ``fraction`` by less than its largest block, where blocks hold one class each.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,), or 0 and 1 of shape (n, n_classes) for multilabel.
    fraction : float
        Share to be tested, between 0 and 1.
    blocks : array, shape (n,), or None
        What must stay together, see `blocks`; None: nothing.
    seed : int

    Returns
    -------
    train, test : arrays
        Sorted indices; together all examples, each once.

    Raises
    ------
    UsageError
        If an argument is out of range.
    DataError
        If every class lies in one block, so that nothing can be tested.

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
    if _plain(table, blocks):
        tested = _holdout_plain(table, fraction, rng)
    else:
        units = make_units(table, blocks)
        pinned = frozenset(
            b for b, held in enumerate(units.held) if any(units.spread[c] == 1 for c in held)
        )
        part = deal(units, (1 - fraction, fraction), rng, pinned)
        spread_out(units, part, 2, pinned)
        train_all(units, part)
        tested = np.asarray(part, dtype=np.intp)[units.of] == 1
    if not tested.any():
        raise DataError(
            "Expected a class with images in two or more groups, got none, so that no test part "
            "can be set aside; do: add images, or group them less coarsely."
        )
    return np.flatnonzero(~tested), np.flatnonzero(tested)


def _plain(targets: NDArray[np.intp], blocks: ArrayLike | None) -> bool:
    if targets.ndim != 1:
        return False
    if blocks is None:
        return True
    given = np.asarray(blocks)
    return given.shape == targets.shape and len(np.unique(given)) == len(targets)


def _holdout_plain(
    targets: NDArray[np.intp], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Every 1/fraction-th of the examples sorted by class: exact for classes and for the whole."""
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
    """Cut the data into folds for cross-validation, stratified, in whole blocks.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,), or 0 and 1 of shape (n, n_classes) for multilabel.
    n_folds : int
        At least 2. Fewer folds come back where a class has fewer blocks (for multilabel: where
        there are fewer blocks).
    blocks : array, shape (n,), or None
        What must stay together, see `blocks`; None: nothing.
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
        If a class lies in one block, so that it cannot be both trained on and tested.

    Examples
    --------
    >>> [test.tolist() for _, test in kfold([0, 0, 1, 1], 5, blocks=[0, 1, 2, 3], seed=1)]
    [[0, 2], [1, 3]]
    """
    if n_folds < 2:
        raise UsageError(f"Expected `n_folds` to be at least 2, got {n_folds}.")
    table, rng = _as_targets(targets), np.random.default_rng(seed)
    units = None if _plain(table, blocks) else make_units(table, blocks)
    n_folds = _possible_folds(table, units, n_folds)
    if units is None:
        fold = np.empty(len(table), dtype=np.intp)
        fold[_by_class(table, rng)] = np.arange(len(table)) % n_folds
    else:
        part = deal(units, (1 / n_folds,) * n_folds, rng, frozenset())
        lonely = spread_out(units, part, n_folds, frozenset())
        if lonely and table.ndim == 1:
            raise DataError(
                f"Expected every class to be in the training part of each fold, got class "
                f"{lonely[0]} in one fold only, as its groups are shared with other classes; "
                "do: group less coarsely."
            )
        fold = np.unique(np.asarray(part)[units.of], return_inverse=True)[1]
    numbers = np.unique(fold)
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in numbers]


def _possible_folds(targets: NDArray[np.intp], units: Units | None, n_folds: int) -> int:
    if units is None:
        labels, counts = np.unique(targets, return_counts=True)
        spread = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    else:
        spread = units.spread if targets.ndim == 1 else {-1: len(units.size)}
    rarest = min(spread, key=lambda c: (spread[c], c))
    if spread[rarest] < 2:
        what = f"class {rarest}" if rarest >= 0 else "the data"
        raise DataError(
            f"Expected at least 2 images (in different groups) of every class, got 1 for {what}, "
            "so that it cannot be both trained on and tested; do: add images of it or leave it "
            "out."
        )
    return min(n_folds, int(spread[rarest]))


def per_class(
    targets: ArrayLike, k: int, *, blocks: ArrayLike | None = None, seed: int = 0
) -> Indices:
    """Choose ``k`` examples of every class, from as many different blocks as possible.

    Parameters
    ----------
    targets : array
        Class indices, shape (n,): exactly ``k`` of each class come back. 0 and 1 of shape
        (n, n_classes): at least ``k`` of each label, rare labels first.
    k : int
        At least 1.
    blocks : array, shape (n,), or None
    seed : int

    Returns
    -------
    array
        Sorted indices.

    Raises
    ------
    UsageError
        If ``k`` is below 1.
    DataError
        If a class has fewer than ``k`` examples.

    Examples
    --------
    >>> chosen = per_class([0, 0, 0, 1, 1, 1], 2)
    >>> chosen.shape
    (4,)
    """
    if k < 1:
        raise UsageError(f"Expected `k` to be at least 1, got {k}.")
    table, rng = _as_targets(targets), np.random.default_rng(seed)
    of = np.arange(len(table)) if blocks is None else np.asarray(blocks)
    if table.ndim == 1:
        members = [np.flatnonzero(table == c) for c in np.unique(table)]
    else:
        members = [np.flatnonzero(column) for column in table.T if column.any()]
    chosen = np.zeros(len(table), dtype=bool)
    for rows in sorted(members, key=len):
        if len(rows) < k:
            label = table[rows[0]] if table.ndim == 1 else "a label"
            raise DataError(
                f"Expected at least {k} images of every class, got {len(rows)} of class {label}; "
                "do: ask for fewer or add images."
            )
        free = rng.permutation(rows[~chosen[rows]])
        wanted = max(0, k - int(chosen[rows].sum()))
        chosen[free[np.argsort(_repeats(of[free]), kind="stable")][:wanted]] = True
    return np.flatnonzero(chosen)


def _repeats(values: NDArray[Any]) -> Indices:
    """How often each value has occurred before, in this order."""
    order = np.argsort(values, kind="stable")
    new = np.flatnonzero(np.diff(values[order], prepend=values[order][:1]) != 0)
    starts = np.zeros(len(values), dtype=np.intp)
    starts[new] = new
    result = np.empty(len(values), dtype=np.intp)
    result[order] = np.arange(len(values)) - np.maximum.accumulate(starts)
    return result


def assign(
    dataset: Dataset,
    *,
    duplicates: Iterable[Iterable[int]] = (),
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Give every example a part, unless the data's author did.

    Parameters
    ----------
    dataset : Dataset
        With train and at least one of val and test: returned as it is. With nothing, or with
        train only: split by `holdout` into train and test.
    duplicates : iterable of iterables of int
        Indices of examples that are the same image; they stay together.
    test_fraction : float
        Between 0 and 1.
    seed : int

    Returns
    -------
    Dataset
        Its notes say what was done.

    Raises
    ------
    DataError
        If only some examples have a part, or none is for training.

    Examples
    --------
    >>> from headstart.data.dataset import Sample
    >>> samples = tuple(Sample(image=b"", target=name) for name in ("cat", "dog") * 5)
    >>> data = assign(Dataset(samples=samples, classes=("cat", "dog")))
    >>> len(data.split("train")), len(data.split("test"))
    (8, 2)
    """
    parts = {sample.split for sample in dataset.samples}
    if None in parts and len(parts) > 1:
        without = len(dataset.split_indices(None))
        raise DataError(
            f"Expected all images of {dataset.name!r} or none to have a split, got {without} of "
            f"{len(dataset)} without; do: fill in the split, or remove it altogether."
        )
    if "train" in parts and len(parts) > 1:
        return dataset
    if None not in parts and "train" not in parts:
        raise DataError(
            f"Expected {dataset.name!r} to have a part to train on, got "
            f"{' and '.join(sorted(map(str, parts))) or 'no images'} only; do: add it."
        )
    together = blocks(len(dataset), dataset.groups(), duplicates)
    if dataset.kind == "multiclass":
        require_testable(dataset.targets(), together, dataset.classes)
    _, test = holdout(dataset.targets(), fraction=test_fraction, blocks=together, seed=seed)
    tested = set(test.tolist())
    names: tuple[SplitName, SplitName] = ("train", "test")
    samples = tuple(replace(s, split=names[i in tested]) for i, s in enumerate(dataset.samples))
    kept = " with groups and duplicates kept together" if together.max() + 1 < len(dataset) else ""
    note = (
        f"split: {len(dataset) - len(test)} train, {len(test)} test, stratified by class{kept}, "
        f"seed {seed}" + (", all from the author's train part" if "train" in parts else "")
    )
    return replace(dataset, samples=samples, notes=(*dataset.notes, note))


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
            "the training images such as 0.1, 0.3, 1."
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


def evenly(count: int, limit: int) -> list[int]:
    """At most ``limit`` of ``count`` places, evenly spread from the first on, always the same.

    >>> evenly(10, 3), evenly(2, 5)
    ([0, 3, 6], [0, 1])
    """
    return [i * count // limit for i in range(limit)] if count > limit else list(range(count))
