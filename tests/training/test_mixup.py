"""MixUp and CutMix against their closed forms and Beta's distribution."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest

from headstart.errors import UsageError
from headstart.training.mixup import cutmix, mixup

MIXES = [mixup, cutmix]


def examples(n: int = 6, shape: tuple[int, ...] = (3, 9, 12), k: int = 4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((n, *shape), generator=generator)
    targets = torch.rand((n, k), generator=generator)
    return x, targets / targets.sum(dim=1, keepdim=True)


def share_and_partners(n: int, alpha: float, seed: int) -> tuple[float, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.beta(alpha, alpha), rng.permutation(n)


@pytest.mark.parametrize("shape", [(), (5,), (7, 5), (3, 9, 12)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_mixup_is_equation_1(shape, seed):
    x, targets = examples(shape=shape)
    share, other = share_and_partners(6, 0.4, seed)
    mixed, soft = mixup(x, targets, alpha=0.4, rng=np.random.default_rng(seed))
    for i in range(6):
        torch.testing.assert_close(mixed[i], share * x[i] + (1 - share) * x[other[i]])
        torch.testing.assert_close(soft[i], share * targets[i] + (1 - share) * targets[other[i]])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_those_of_beta(alpha):
    """The share is read off the result: example i is a one, its partner the share's rest."""
    x, rng = torch.eye(2, dtype=torch.float64), np.random.default_rng(0)
    shares = []
    while len(shares) < 1500:
        mixed, _ = mixup(x, x, alpha=alpha, rng=rng)
        if mixed[0, 1] != 0:  # it was mixed with the other and not with itself
            shares.append(float(mixed[0, 0]))
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("size", [(8, 8), (5, 13), (1, 1), (7, 1)], ids=str)
def test_cutmix_pastes_one_box_and_counts_its_area(size):
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, *size)
    areas = set()
    for seed in range(60):
        mixed, soft = cutmix(x, torch.eye(4), alpha=1.0, rng=np.random.default_rng(seed))
        _, other = share_and_partners(4, 1.0, seed)
        boxes = []
        for i in range(4):
            torch.testing.assert_close(soft[i] @ torch.arange(4.0), mixed[i].mean())
            pasted = (mixed[i] != i).numpy()
            if other[i] != i:
                assert (pasted[0] == pasted[1]).all()
                assert set(mixed[i, 0][pasted[0]].tolist()) <= {float(other[i])}
                rows, columns = pasted[0].any(axis=1), pasted[0].any(axis=0)
                assert (pasted[0] == np.outer(rows, columns)).all()
                assert (np.diff(np.flatnonzero(rows)) == 1).all()
                assert (np.diff(np.flatnonzero(columns)) == 1).all()
                boxes.append(pasted[0].tobytes())
                areas.add(pasted[0].mean())
        assert len(set(boxes)) <= 1  # one box for the batch
    assert len(areas) > 4 or size == (1, 1) or size == (7, 1)


def test_cutmix_boxes_are_of_the_share_until_they_are_clipped():
    size = 40
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, size, size)
    inside = clipped = 0
    for seed in range(300):
        share, other = share_and_partners(2, 1.0, seed)
        if other[0] == 0:
            continue
        mixed, _ = cutmix(x, torch.eye(2), alpha=1.0, rng=np.random.default_rng(seed))
        box = mixed[0, 0] == 1
        side = int(size * np.sqrt(1 - share))
        edges = torch.cat([box[0], box[-1], box[:, 0], box[:, -1]])
        if edges.any():
            assert box.sum() <= side**2
            clipped += 1
        else:
            assert box.sum() == side**2
            inside += 1
    assert min(inside, clipped) > 10


def test_cutmix_puts_the_box_anywhere():
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 10, 10)
    rng, counts = np.random.default_rng(0), torch.zeros(10, 10)
    for _ in range(400):
        mixed, _ = cutmix(x, torch.eye(2), alpha=1.0, rng=rng)
        counts += mixed[0, 0]
    assert counts.min() > 10
    assert (counts - counts.flip(0)).abs().max() < 60
    assert (counts - counts.flip(1)).abs().max() < 60


# -------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("mix", MIXES)
def test_targets_sum_to_one_and_nothing_given_is_changed(mix):
    x, targets = examples()
    before = x.clone(), targets.clone()
    for seed in range(5):
        mixed, soft = mix(x, targets, alpha=1.0, rng=np.random.default_rng(seed))
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(6))
        assert (soft >= 0).all()
        assert mixed.shape == x.shape
        assert mixed.data_ptr() != x.data_ptr()
        assert soft.data_ptr() != targets.data_ptr()
        assert torch.equal(x, before[0])
        assert torch.equal(targets, before[1])


@pytest.mark.parametrize("mix", MIXES)
def test_chance_comes_from_the_generator_alone(mix):
    x, targets = examples()
    first = mix(x, targets, alpha=1.0, rng=np.random.default_rng(1))
    state = torch.get_rng_state()
    again = mix(x, targets, alpha=1.0, rng=np.random.default_rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    other = mix(x, targets, alpha=1.0, rng=np.random.default_rng(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_types_and_memory_format_are_kept(mix, dtype):
    x, targets = examples()
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    mixed, soft = mix(x, targets, alpha=1.0, rng=np.random.default_rng(0))
    assert mixed.dtype == dtype
    assert soft.dtype == torch.float32
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mix", MIXES)
def test_one_example_is_mixed_with_itself(mix):
    x, targets = examples(n=1)
    mixed, soft = mix(x, targets, alpha=1.0, rng=np.random.default_rng(0))
    torch.testing.assert_close(mixed, x)
    torch.testing.assert_close(soft, targets)


@pytest.mark.parametrize("mix", MIXES)
def test_gradients_flow_to_both_partners(mix):
    x, targets = examples(n=2)
    x.requires_grad_()
    seed = next(s for s in range(20) if share_and_partners(2, 1.0, s)[1][0] == 1)
    mixed, _ = mix(x, targets, alpha=1.0, rng=np.random.default_rng(seed))
    (gradient,) = torch.autograd.grad(mixed[0].sum(), x)
    assert (gradient[0] != 0).any()
    assert (gradient[1] != 0).any()
    torch.testing.assert_close(gradient.sum(dim=0), torch.ones(x.shape[1:]))


@pytest.mark.parametrize("mix", MIXES)
def test_what_does_not_fit_is_refused(mix):
    x, targets = examples()
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match=r"to be floats, got torch\.uint8"):
        mix(x.to(torch.uint8), targets, alpha=1.0, rng=rng)
    with pytest.raises(UsageError, match=r"to be floats, got torch\.float32 and torch\.int64"):
        mix(x, targets.long(), alpha=1.0, rng=rng)
    with pytest.raises(UsageError, match=r"of shape \(6, k\)"):
        mix(x, targets[:5], alpha=1.0, rng=rng)
    with pytest.raises(UsageError, match=r"of shape \(6, k\)"):
        mix(x, targets[:, 0], alpha=1.0, rng=rng)
    for alpha in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="`alpha` above 0"):
            mix(x, targets, alpha=alpha, rng=rng)


def test_cutmix_needs_maps():
    x, targets = examples(shape=(7, 5))
    with pytest.raises(UsageError, match="`x` of shape"):
        cutmix(x, targets, alpha=1.0, rng=np.random.default_rng(0))
