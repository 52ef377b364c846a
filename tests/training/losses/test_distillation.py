"""Losses of distillation against float64 computations in NumPy, and by their properties."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.special import log_softmax, softmax

from headstart.errors import UsageError
from headstart.training.losses.distillation import dist, dkd, kd, pkt, rkd


def table(n, width, seed):
    return np.random.default_rng(seed).normal(size=(n, width)) * 2


def tensor(values, **settings):
    return torch.tensor(values, dtype=torch.float64, **settings)


def divergence(old_logits, new_logits):
    old, new = log_softmax(old_logits, axis=1), log_softmax(new_logits, axis=1)
    return (np.exp(old) * (old - new)).sum(axis=1).mean()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_the_scaled_divergence(temperature):
    new, old = table(5, 7, 0), table(5, 7, 1)
    expected = temperature**2 * divergence(old / temperature, new / temperature)
    assert float(kd(tensor(new), tensor(old), temperature)) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_decouples_the_divergence(temperature):
    new, old, targets = table(6, 5, 0), table(6, 5, 1), np.array([0, 4, 2, 2, 1, 3])
    rows = np.arange(6)
    probabilities = [softmax(x / temperature, axis=1) for x in (new, old)]
    true = [p[rows, targets] for p in probabilities]
    binary = true[1] * np.log(true[1] / true[0])
    binary += (1 - true[1]) * np.log((1 - true[1]) / (1 - true[0]))
    others = []
    for x in (new, old):
        kept = np.stack([np.delete(row, c) for row, c in zip(x, targets, strict=True)])
        others.append(kept / temperature)
    expected = temperature**2 * (binary.mean() + 8 * divergence(others[1], others[0]))
    found = dkd(tensor(new), tensor(old), torch.from_numpy(targets), temperature)
    assert float(found) == pytest.approx(expected)


def test_dkd_with_the_weight_of_the_paper_s_identity_is_kd():
    """KD = KL of true against rest + (1 - p_true of the teacher) KL of the others (equation 6)."""
    new, old, targets = table(1, 4, 0), table(1, 4, 1), torch.tensor([2])
    zero_others = dkd(tensor(new), tensor(new), targets, 1.0)
    assert float(zero_others) == pytest.approx(0, abs=1e-12)
    probability = softmax(old, axis=1)[0, 2]
    kept = [np.delete(x, 2, axis=1) for x in (new, old)]
    other = divergence(kept[1], kept[0])
    binary = float(dkd(tensor(new), tensor(old), targets, 1.0)) - 8 * other
    assert float(kd(tensor(new), tensor(old), 1.0)) == pytest.approx(
        binary + (1 - probability) * other
    )


def test_dist_is_one_minus_the_correlations():
    new, old = table(4, 6, 0), table(4, 6, 1)
    a, b = softmax(new / 2, axis=1), softmax(old / 2, axis=1)
    classes = np.mean([1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])
    images = np.mean([1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])
    expected = 4 * (classes + images)
    assert float(dist(tensor(new), tensor(old), 2.0)) == pytest.approx(expected, rel=1e-5)


def huber(new, old):
    change = np.abs(new - old)
    return np.where(change < 1, change**2 / 2, change - 0.5).mean()


def test_rkd_compares_distances_and_angles():
    new, old = table(5, 3, 0), table(5, 8, 1)
    distances = [pdist(x) / pdist(x).mean() for x in (new, old)]
    angles = []
    for x in (new, old):
        unit = x[None] - x[:, None]
        unit = unit / np.maximum(np.linalg.norm(unit, axis=2, keepdims=True), 1e-12)
        angles.append(np.einsum("aic,akc->aik", unit, unit))
    expected = huber(*distances) + 2 * huber(*angles)
    assert float(rkd(tensor(new), tensor(old))) == pytest.approx(expected, rel=1e-6)


def test_pkt_compares_similarities():
    new, old = table(5, 3, 0), table(5, 8, 1)
    shares = []
    for x in (new, old):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        kernel = (1 + unit @ unit.T) / 2
        kept = np.stack([np.delete(row, i) for i, row in enumerate(kernel)])
        shares.append(kept / kept.sum(axis=1, keepdims=True))
    expected = (shares[1] * np.log(shares[1] / shares[0])).sum(axis=1).mean()
    assert float(pkt(tensor(new), tensor(old))) == pytest.approx(expected, rel=1e-6)


LOGITS = {
    "kd": kd,
    "dkd": lambda a, b: dkd(a, b, torch.arange(len(a)) % a.shape[1]),
    "dist": dist,
}
ALL = {**LOGITS, "rkd": rkd, "pkt": pkt}


@pytest.mark.parametrize("name", ALL)
def test_equal_outputs_have_no_loss_and_others_do(name):
    x, y = tensor(table(6, 4, 3)), tensor(table(6, 4, 4))
    assert float(ALL[name](x, x)) == pytest.approx(0, abs=1e-6)
    assert float(ALL[name](x, y)) > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_exact_and_reach_the_student_only(name):
    student = tensor(table(4, 3, 5), requires_grad=True)
    teacher = tensor(table(4, 3, 6), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ALL[name](x, teacher), student)
    ALL[name](student, teacher).backward()
    assert teacher.grad is None
    assert bool(torch.isfinite(student.grad).all())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_images_have_a_finite_loss(name, n):
    value = ALL[name](tensor(table(n, 3, 7), requires_grad=True), tensor(table(n, 3, 8)))
    value.backward()
    assert np.isfinite(float(value.detach()))


@pytest.mark.parametrize("name", LOGITS)
def test_a_constant_added_to_the_logits_changes_nothing(name):
    x, y = tensor(table(5, 4, 3)), tensor(table(5, 4, 4))
    assert float(LOGITS[name](x + 7, y - 3)) == pytest.approx(float(LOGITS[name](x, y)), rel=1e-5)


@pytest.mark.parametrize("name", LOGITS)
def test_bf16_is_summed_in_float32(name):
    x, y = tensor(table(5, 4, 3)), tensor(table(5, 4, 4))
    low = LOGITS[name](x.bfloat16(), y.bfloat16())
    assert low.dtype == torch.float32
    expected = float(LOGITS[name](x.bfloat16().double(), y.bfloat16().double()))
    assert float(low) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", LOGITS)
def test_other_classes_are_refused(name):
    with pytest.raises(UsageError, match=r"\(4, 3\) and \(4, 5\)"):
        LOGITS[name](tensor(table(4, 3, 0)), tensor(table(4, 5, 0)))


@pytest.mark.parametrize("loss", [rkd, pkt])
def test_other_images_are_refused(loss):
    with pytest.raises(UsageError, match=r"\(4, 3\) and \(5, 3\)"):
        loss(tensor(table(4, 3, 0)), tensor(table(5, 3, 0)))


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_of_zero_is_refused(temperature):
    with pytest.raises(UsageError, match="above 0"):
        kd(tensor(table(2, 2, 0)), tensor(table(2, 2, 0)), temperature)
