"""Repeated splits and nested shares: what they promise, over many random data sets."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.data.splits import nested_fractions, repeated_splits
from headstart.errors import UsageError


def _drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(40, size=150)
    targets = blocks % 3
    targets[rng.random(150) < 0.1] = 0  # some blocks hold two classes
    return targets, blocks


@pytest.mark.parametrize("seed", range(5))
def test_shares_lie_inside_each_other_and_hold_every_class_twice(seed: int) -> None:
    targets, blocks = _drawn(seed)
    found = nested_fractions(targets, (0.3, 0.05, 1.0), blocks=blocks, seed=seed)
    assert list(found) == [0.05, 0.3, 1.0]
    assert len(found[1.0]) == 150
    assert set(found[0.05]) < set(found[0.3]) < set(found[1.0])
    for rows in found.values():
        outside = np.setdiff1d(np.arange(150), rows)
        assert not set(blocks[rows]) & set(blocks[outside])
        for label in range(3):
            assert len(set(blocks[rows][targets[rows] == label])) >= 2


def test_shares_are_stratified_and_follow_the_seed() -> None:
    targets = np.repeat([0, 1, 2], [100, 60, 40])
    one, same, other = (nested_fractions(targets, (0.1, 0.5), seed=s) for s in (1, 1, 2))
    assert np.bincount(targets[one[0.1]]).tolist() == [10, 6, 4]
    assert np.bincount(targets[one[0.5]]).tolist() == [50, 30, 20]
    assert np.array_equal(one[0.1], same[0.1])
    assert not np.array_equal(one[0.1], other[0.1])


def test_every_label_of_a_multilabel_set_is_there() -> None:
    rng = np.random.default_rng(0)
    table = (rng.random((80, 6)) < 0.08).astype(int)
    for rows in nested_fractions(table, (0.05, 0.2)).values():
        wanted = np.minimum(table.sum(axis=0), 2)
        assert (table[rows].sum(axis=0) >= wanted).all()


@pytest.mark.parametrize("folds", [0, 4])
def test_repeats_keep_groups_whole_and_differ_by_seed(folds: int) -> None:
    targets = np.repeat([0, 1], 40)
    blocks = np.arange(80) // 4
    found = list(repeated_splits(targets, seeds=(0, 1), folds=folds, blocks=blocks))
    assert len(found) == 2 * max(folds, 1)
    for one in found:
        assert sorted([*one.train, *one.test]) == list(range(80))
        assert not set(blocks[one.train]) & set(blocks[one.test])
    first, second = ([one for one in found if one.seed == s] for s in (0, 1))
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(first, second, strict=True))
    if folds:
        assert sorted(np.concatenate([one.test for one in first])) == list(range(80))


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UsageError, match="fractions"):
        nested_fractions([0, 1], (0.0, 1.0))
    with pytest.raises(UsageError, match="folds"):
        list(repeated_splits([0, 1], seeds=(0,), folds=1))
