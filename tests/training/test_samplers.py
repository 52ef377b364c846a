"""Orders of epochs: permutations, or every class alike often; functions of seed and epoch."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from headstart.errors import UsageError
from headstart.training.samplers import epoch_order


@given(n=st.integers(0, 60), seed=st.integers(0, 2**63), epoch=st.integers(0, 1000))
def test_an_order_is_a_permutation(n, seed, epoch):
    order = epoch_order(n, seed=seed, epoch=epoch)
    assert order.dtype == np.intp
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@given(
    targets=st.lists(st.sampled_from([0, 0, 0, 0, 0, 2, 3, 3]), max_size=40), seed=st.integers(0, 9)
)
def test_a_balanced_order_draws_classes_alike_and_repeats_last(targets, seed):
    targets = np.asarray(targets, dtype=np.intp)
    n = len(targets)
    order = epoch_order(n, seed=seed, epoch=1, targets=targets, balanced=True)
    assert order.shape == (n,)
    assert order.dtype == np.intp
    if n:
        per_class = [np.sum(targets[order] == label) for label in np.unique(targets)]
        assert max(per_class) - min(per_class) <= 1
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        times = np.bincount(order[targets[order] == label], minlength=n)[members]
        assert times.max() - times.min() <= 1


def test_seed_and_epoch_alone_decide():
    targets = np.repeat([0, 1, 2], [30, 5, 3])
    for balanced in (False, True):
        orders = {
            (seed, epoch): epoch_order(
                38, seed=seed, epoch=epoch, targets=targets, balanced=balanced
            )
            for seed, epoch in itertools.product(range(3), range(3))
        }
        for (seed, epoch), order in reversed(orders.items()):
            again = epoch_order(38, seed=seed, epoch=epoch, targets=targets, balanced=balanced)
            np.testing.assert_array_equal(order, again)
        assert len({order.tobytes() for order in orders.values()}) == 9


def test_every_place_is_alike_likely():
    firsts = [epoch_order(5, seed=0, epoch=e)[0] for e in range(1000)]
    assert chisquare(np.bincount(firsts, minlength=5)).pvalue > 1e-3


def test_balanced_orders_are_shuffled_and_use_all_images_over_the_epochs():
    targets = np.repeat([0, 1], [40, 8])
    orders = [epoch_order(48, seed=0, epoch=e, targets=targets, balanced=True) for e in range(20)]
    assert set(np.concatenate(orders)) == set(range(48))
    halves = [targets[order][:24].mean() for order in orders]
    assert 0.4 < np.mean(halves) < 0.6
    times = np.bincount(np.concatenate(orders), minlength=48)
    assert times[:40].sum() == times[40:].sum()


def test_no_class_is_favoured_by_the_remainder():
    targets = np.repeat([0, 1, 2], [6, 3, 1])  # 10 = 4 + 3 + 3
    counts = np.zeros(3)
    for epoch in range(600):
        order = epoch_order(10, seed=0, epoch=epoch, targets=targets, balanced=True)
        counts += np.bincount(targets[order], minlength=3)
    assert chisquare(counts - 600 * 3).pvalue > 1e-3


def test_what_cannot_be_meant_is_refused():
    for given_ in ({"seed": -1, "epoch": 0}, {"seed": 0, "epoch": -1}):
        with pytest.raises(UsageError, match="must be 0 or more"):
            epoch_order(3, **given_)
    with pytest.raises(UsageError, match="must be 0 or more"):
        epoch_order(-1, seed=0, epoch=0)
    with pytest.raises(UsageError, match="got none"):
        epoch_order(3, seed=0, epoch=0, balanced=True)
    for shape in ((4,), (3, 2)):
        targets = np.zeros(shape, dtype=np.intp)
        with pytest.raises(UsageError, match=r"of shape \(3,\)"):
            epoch_order(3, seed=0, epoch=0, targets=targets, balanced=True)
