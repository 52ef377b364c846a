import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from headstart.data.dataset import Dataset, Sample
from headstart.data.splits import (
    assign_splits,
    evenly_spaced,
    find_blocks,
    holdout,
    kfold,
)
from headstart.errors import DataError, UsageError

Ints = NDArray[np.intp]

# Class sizes: every class can be on both sides.
SIZES = st.lists(st.integers(2, 40), min_size=1, max_size=6)
FRACTIONS = st.floats(0.05, 0.95)
SEEDS = st.integers(0, 2**31)


def shuffled(sizes: list[int], seed: int) -> Ints:
    targets = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(targets)


@st.composite
def pure_blocks(draw: st.DrawFn) -> tuple[Ints, Ints]:
    """Targets and blocks, each block of one class, every class in at least two."""
    targets, of = [], []
    for label in range(draw(st.integers(1, 5))):
        for size in draw(st.lists(st.integers(1, 12), min_size=2, max_size=12)):
            block = of[-1] + 1 if of else 0
            targets += [label] * size
            of += [block] * size
    order = np.random.default_rng(draw(SEEDS)).permutation(len(targets))
    return np.asarray(targets)[order], np.asarray(of)[order]


@st.composite
def mixed_blocks(draw: st.DrawFn) -> tuple[Ints, Ints]:
    n = draw(st.integers(4, 80))
    rng = np.random.default_rng(draw(SEEDS))
    return rng.integers(draw(st.integers(1, 5)), size=n), rng.integers(
        draw(st.integers(2, 20)), size=n
    )


def is_partition(parts: list[Ints], n: int) -> bool:
    return sorted(np.concatenate(parts).tolist()) == list(range(n)) and all(
        (np.diff(part) > 0).all() for part in parts
    )


def shared(of: Ints, a: Ints, b: Ints) -> set[int]:
    return set(of[a].tolist()) & set(of[b].tolist())


class TestBlocks:
    def test_without_anything(self) -> None:
        assert find_blocks(3).tolist() == [0, 1, 2]
        assert find_blocks(0).tolist() == []

    def test_chains_are_one_block(self) -> None:
        groups = ["a", "b", None, None, "b", None]
        assert find_blocks(6, groups, [(0, 2), (2, 4)]).tolist() == [0, 0, 0, 1, 0, 2]

    def test_triples(self) -> None:
        assert find_blocks(5, None, [(4, 1, 3)]).tolist() == [0, 1, 2, 1, 1]

    @given(st.integers(1, 30), st.data())
    @settings(max_examples=60, deadline=None)
    def test_same_as_scipy(self, n: int, data: st.DataObject) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        index = st.integers(0, n - 1)
        pairs = data.draw(st.lists(st.tuples(index, index), max_size=20))
        groups = data.draw(st.lists(st.sampled_from([None, "a", "b"]), min_size=n, max_size=n))
        links = pairs + [
            (i, j) for i in range(n) for j in range(n) if groups[i] and groups[i] == groups[j]
        ]
        rows, cols = np.asarray(links or [(0, 0)]).T
        graph = coo_array((np.ones(len(rows)), (rows, cols)), shape=(n, n))
        expected = connected_components(graph, directed=False)[1]
        got = find_blocks(n, groups, pairs)
        assert ((got[:, None] == got) == (expected[:, None] == expected)).all()
        assert list(dict.fromkeys(got.tolist())) == list(range(got.max() + 1))

    def test_wrong_arguments(self) -> None:
        with pytest.raises(UsageError, match="3 groups, got 1"):
            find_blocks(3, ["a"])
        with pytest.raises(UsageError, match="indices below 3"):
            find_blocks(3, None, [(0, 3)])


class TestHoldout:
    @given(SIZES, FRACTIONS, SEEDS)
    @settings(max_examples=150, deadline=None)
    def test_single_examples(self, sizes: list[int], fraction: float, seed: int) -> None:
        targets = shuffled(sizes, seed)
        train, test = holdout(targets, fraction=fraction, seed=seed)
        assert is_partition([train, test], len(targets))
        tested = np.bincount(targets[test], minlength=len(sizes))
        ideal = np.asarray(sizes) * fraction
        assert (np.abs(tested - ideal) < 1 + 1e-9).all()
        assert (tested >= 1).all()
        assert (tested < sizes).all()

    def test_the_whole_is_exact_however_small_the_classes(self) -> None:
        targets = np.repeat(np.arange(200), 7)
        for of in (None, np.arange(1400) // 1, np.arange(2800).repeat(1)[:1400]):
            _, test = holdout(targets, fraction=0.2, blocks=of)
            assert abs(len(test) - 280) <= 1

    def test_rounding_does_not_add_up_over_blocks(self) -> None:
        targets = np.repeat(np.arange(100), 14)
        _, test = holdout(targets, fraction=0.2, blocks=np.arange(1400) // 2)
        assert abs(len(test) - 280) <= 4

    @given(pure_blocks(), FRACTIONS, SEEDS)
    @settings(max_examples=150, deadline=None)
    def test_whole_blocks(self, data: tuple[Ints, Ints], fraction: float, seed: int) -> None:
        targets, of = data
        train, test = holdout(targets, fraction=fraction, blocks=of, seed=seed)
        assert is_partition([train, test], len(targets))
        assert not shared(of, train, test)
        for label in np.unique(targets):
            tested = (targets[test] == label).sum()
            largest = np.bincount(of[targets == label]).max()
            assert abs(tested - (targets == label).sum() * fraction) <= largest + 1e-9
            assert tested > 0
            assert (targets[train] == label).any()

    @given(mixed_blocks(), FRACTIONS, SEEDS)
    @settings(max_examples=150, deadline=None)
    def test_blocks_of_several_classes(
        self, data: tuple[Ints, Ints], fraction: float, seed: int
    ) -> None:
        targets, of = data
        try:
            train, test = holdout(targets, fraction=fraction, blocks=of, seed=seed)
        except DataError:
            spread = [len(np.unique(of[targets == c])) for c in np.unique(targets)]
            assert min(spread) <= 2
            return
        assert is_partition([train, test], len(targets))
        assert not shared(of, train, test)
        assert set(targets[train]) == set(targets)

    def test_a_class_in_one_block_is_trained_on(self) -> None:
        targets = np.asarray([0] * 10 + [1] + [2] * 3)
        of = np.asarray([*range(10), 10, 11, 11, 11])
        for seed in range(10):
            train, test = holdout(targets, fraction=0.5, blocks=of, seed=seed)
            assert {0, 1, 2} == set(targets[train])
            assert {0} == set(targets[test])

    def test_nothing_can_be_tested(self) -> None:
        with pytest.raises(DataError, match="two or more groups"):
            holdout([0, 0, 1, 1], fraction=0.5, blocks=[0, 0, 1, 1])
        with pytest.raises(DataError, match="two or more groups"):
            holdout([0, 1, 2], fraction=0.5)

    def test_wrong_arguments(self) -> None:
        for fraction in (0, 1, -0.1, 1.5):
            with pytest.raises(UsageError, match="between 0 and 1"):
                holdout([0, 1], fraction=fraction)
        for targets in ([], [0.5, 1.5], [[[0]]]):
            with pytest.raises(UsageError, match="class indices"):
                holdout(targets, fraction=0.5)
        with pytest.raises(UsageError, match="one block for each"):
            holdout([0, 1, 1], fraction=0.5, blocks=[0, 1])

    def test_seeds(self) -> None:
        targets = np.arange(200) % 3
        for of in (None, np.arange(200) // 2):
            a, b, c = (holdout(targets, fraction=0.3, blocks=of, seed=s)[1] for s in (1, 1, 2))
            assert a.tolist() == b.tolist()
            assert a.tolist() != c.tolist()

    @given(pure_blocks(), SEEDS)
    @settings(max_examples=40, deadline=None)
    def test_counts_do_not_depend_on_the_order(self, data: tuple[Ints, Ints], seed: int) -> None:
        targets, of = data
        order = np.random.default_rng(seed).permutation(len(targets))
        # Names of blocks carry no meaning either.
        renamed = np.random.default_rng(seed).permutation(of.max() + 1)[of]
        _, one = holdout(targets, fraction=0.3, blocks=of)
        _, two = holdout(targets[order], fraction=0.3, blocks=renamed[order])
        counts = [np.bincount(t, minlength=9) for t in (targets[one], targets[order][two])]
        sizes = [np.bincount(of[targets == c]).max() for c in np.unique(targets)]
        assert (np.abs(counts[0] - counts[1]) <= 2 * max(sizes)).all()

    def test_every_example_is_as_likely_to_be_tested(self) -> None:
        targets = np.arange(40) % 4
        for of in (None, np.arange(40) // 4 * 4 + targets):
            times = np.zeros(40)
            for seed in range(600):
                times[holdout(targets, fraction=0.25, blocks=of, seed=seed)[1]] += 1
            # 5 standard deviations of a binomial of 600 draws.
            assert np.abs(times / 600 - times.mean() / 600).max() < 5 * np.sqrt(0.25 * 0.75 / 600)


class TestMultilabel:
    @pytest.mark.parametrize("blocked", [False, True])
    def test_labels_are_shared_out(self, blocked: bool) -> None:
        rng = np.random.default_rng(0)
        rates = np.asarray([0.5, 0.3, 0.1, 0.05, 0.02])
        targets = (rng.random((1000, 5)) < rates).astype(int)
        of = np.arange(1000) // 3 if blocked else None
        train, test = holdout(targets, fraction=0.2, blocks=of)
        assert is_partition([train, test], 1000)
        assert abs(len(test) - 200) <= 6
        got = targets[test].sum(0)
        assert (np.abs(got - 0.2 * targets.sum(0)) <= 6).all()
        chance = np.mean(
            [
                np.abs(targets[rng.permutation(1000)[:200]].sum(0) - 0.2 * targets.sum(0))
                for _ in range(100)
            ]
        )
        assert np.abs(got - 0.2 * targets.sum(0)).mean() < chance / 2

    def test_folds(self) -> None:
        rng = np.random.default_rng(1)
        targets = (rng.random((500, 4)) < [0.6, 0.2, 0.1, 0.03]).astype(int)
        folds = kfold(targets, 5)
        assert is_partition([test for _, test in folds], 500)
        counts = np.asarray([targets[test].sum(0) for _, test in folds])
        assert (np.abs(counts - targets.sum(0) / 5) <= 2).all()

    def test_a_single_positive_is_trained_on(self) -> None:
        targets = np.zeros((50, 2), dtype=int)
        targets[::2, 0] = 1
        targets[7, 1] = 1
        for seed in range(5):
            train, _ = holdout(targets, fraction=0.4, seed=seed)
            assert 7 in train
        assert len(kfold(targets, 5)) == 5


class TestKfold:
    @given(SIZES, st.integers(2, 7), SEEDS)
    @settings(max_examples=100, deadline=None)
    def test_single_examples(self, sizes: list[int], n_folds: int, seed: int) -> None:
        targets = shuffled(sizes, seed)
        folds = kfold(targets, n_folds, seed=seed)
        assert len(folds) == min(n_folds, *sizes)
        assert is_partition([test for _, test in folds], len(targets))
        for train, test in folds:
            assert is_partition([train, test], len(targets))
            counts = np.bincount(targets[test], minlength=len(sizes))
            assert (np.abs(counts - np.asarray(sizes) / len(folds)) < 1).all()
            assert abs(len(test) - len(targets) / len(folds)) < 1

    @given(pure_blocks(), st.integers(2, 7), SEEDS)
    @settings(max_examples=100, deadline=None)
    def test_whole_blocks(self, data: tuple[Ints, Ints], n_folds: int, seed: int) -> None:
        targets, of = data
        folds = kfold(targets, n_folds, blocks=of, seed=seed)
        fewest = min(len(np.unique(of[targets == c])) for c in np.unique(targets))
        assert len(folds) == min(n_folds, fewest)
        assert is_partition([test for _, test in folds], len(targets))
        for train, test in folds:
            assert not shared(of, train, test)
            assert set(targets[train]) == set(targets)
            for label in np.unique(targets):
                largest = np.bincount(of[targets == label]).max()
                ideal = (targets == label).sum() / len(folds)
                assert abs((targets[test] == label).sum() - ideal) <= largest + 1e-9

    @given(mixed_blocks(), SEEDS)
    @settings(max_examples=100, deadline=None)
    def test_blocks_of_several_classes(self, data: tuple[Ints, Ints], seed: int) -> None:
        targets, of = data
        try:
            folds = kfold(targets, 4, blocks=of, seed=seed)
        except DataError:
            spread = [len(np.unique(of[targets == c])) for c in np.unique(targets)]
            assert min(spread) <= 2
            return
        assert len(folds) >= 2
        assert is_partition([test for _, test in folds], len(targets))
        for train, test in folds:
            assert not shared(of, train, test)
            assert set(targets[train]) == set(targets)

    def test_as_even_as_scikit_learn(self) -> None:
        targets = np.random.default_rng(0).choice(4, size=203, p=[0.6, 0.25, 0.1, 0.05])
        reference = StratifiedKFold(5, shuffle=True, random_state=0).split(targets, targets)
        theirs = [np.bincount(targets[test]) for _, test in reference]
        ours = [np.bincount(targets[test]) for _, test in kfold(targets, 5)]
        assert np.ptp(ours, axis=0).max() <= np.ptp(theirs, axis=0).max()
        assert np.ptp(np.sum(ours, 1)) <= np.ptp(np.sum(theirs, 1))

    @pytest.mark.parametrize("size", [1.5, 4, 12])
    def test_groups_as_even_as_scikit_learn(self, size: float) -> None:
        ours, theirs = [], []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            of = rng.integers(int(400 / size), size=400)
            # Groups lean to a class, as patients do.
            lean = rng.integers(3, size=400)[of]
            targets = np.where(rng.random(400) < 0.7, lean, rng.choice(3, size=400))
            reference = StratifiedGroupKFold(5).split(targets, targets, of)
            for out, folds in ((theirs, reference), (ours, kfold(targets, 5, blocks=of))):
                counts = np.asarray([np.bincount(targets[test], minlength=3) for _, test in folds])
                out.append(np.std(counts / counts.sum(0), axis=0).mean())
        assert np.mean(ours) <= 1.1 * np.mean(theirs)

    def test_impossible(self) -> None:
        with pytest.raises(DataError, match=r"got 1 for class 2"):
            kfold([0, 0, 1, 1, 2], 3)
        with pytest.raises(DataError, match=r"got 1 for class 1"):
            kfold([0, 0, 1, 1], 3, blocks=[0, 1, 2, 2])
        with pytest.raises(UsageError, match="at least 2"):
            kfold([0, 0, 1, 1], 1)
        # Three classes, each pair of which shares a block: no two folds can hold all of them.
        with pytest.raises(DataError, match="shared with other classes"):
            kfold([0, 1, 0, 2, 1, 2], 2, blocks=[0, 0, 1, 1, 2, 2])


def dataset(splits: list[str | None], groups: list[str | None] | None = None) -> Dataset:
    samples = tuple(
        Sample(
            image=b"",
            target="ab"[i % 2],
            split=split,  # type: ignore[arg-type]
            group=groups[i] if groups else None,
        )
        for i, split in enumerate(splits)
    )
    return Dataset(samples=samples, classes=("a", "b"))


class TestAssign:
    def test_splits_what_has_none(self) -> None:
        data = assign_splits(dataset([None] * 50), test_fraction=0.2)
        assert len(data.split("test")) == 10
        assert data.split("test").counts() == {"a": 5, "b": 5}
        assert "40 train, 10 test" in data.notes[-1]

    def test_groups_and_duplicates_stay_together(self) -> None:
        groups = [str(i // 4) for i in range(48)]
        data = assign_splits(dataset([None] * 48, groups), duplicates=[(0, 47), (9, 20)])
        part = {i: s.split for i, s in enumerate(data.samples)}
        for i, sample in enumerate(data.samples):
            assert sample.split == part[i // 4 * 4]
        assert part[0] == part[47]
        assert part[9] == part[20]
        assert "kept together" in data.notes[-1]

    @pytest.mark.parametrize("others", [["val"], ["test"], ["val", "test"]])
    def test_the_author_knows_best(self, others: list[str]) -> None:
        data = dataset(["train", "train", *others, *others])
        assert assign_splits(data, duplicates=[(0, 2)]) is data

    def test_train_alone_is_split(self) -> None:
        data = assign_splits(dataset(["train"] * 20))
        assert len(data.split("test")) == 4
        assert "author's train part" in data.notes[-1]

    def test_refusals(self) -> None:
        with pytest.raises(DataError, match="got 1 of 3 without"):
            assign_splits(dataset(["train", "test", None]))
        with pytest.raises(DataError, match="part to train on, got test and val only"):
            assign_splits(dataset(["val", "test"]))
        with pytest.raises(DataError, match="Expected a label"):
            assign_splits(Dataset(samples=(Sample(image=b""),) * 2, classes=("a", "b")))


def test_quick_enough_for_100_000() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(100, size=100_000)
    of = find_blocks(100_000, rng.integers(30_000, size=100_000).tolist(), [(0, 1)])
    start = time.perf_counter()
    holdout(targets, fraction=0.2, blocks=of)
    kfold(targets, 5)
    # About a second; quadratic work would take hours.
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ((None, None), "got 1 of 'cat', 1 of 'dog'. Add images."),
        (("p1", "p2"), "got 1 of 'cat', 1 of 'dog'. Add images."),
        (("p1", "p1", "p2", "p2"), "2 of 'cat', 2 of 'dog', all images of a class in one group"),
    ],
)
def test_too_little_to_test_on_is_said_by_name(groups, said):
    half = len(groups) // 2
    labels = ("cat",) * half + ("dog",) * half
    samples = tuple(
        Sample(image=b"", target=label, group=group)
        for label, group in zip(labels, groups, strict=True)
    )
    with pytest.raises(DataError) as caught:
        assign_splits(Dataset(samples=samples, classes=("cat", "dog")))
    assert said in str(caught.value)


@given(st.integers(0, 200), st.integers(1, 50))
def test_evenly_spread_places_are_distinct_and_in_range(count: int, limit: int) -> None:
    places = evenly_spaced(count, limit)
    assert len(places) == len(set(places)) == min(count, limit)
    assert all(0 <= place < count for place in places)
    gaps = np.diff([*places, count])
    assert len(places) == 0 or gaps.max() - gaps.min() <= 1
