"""Losses of domain adaptation, against closed forms and float64 NumPy, with gradients."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headstart.errors import UsageError
from headstart.metrics.domain_distance import coral_distance
from headstart.training.losses import adversarial
from headstart.training.losses import alignment as losses


def drawn(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    values = np.random.default_rng(seed).normal(size=(n, d)) + shift
    return torch.tensor(values, dtype=torch.float64)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(axis=1)


# ----------------------------------------------------------------------------- two domains


@pytest.mark.parametrize(("n", "m", "d"), [(5, 8, 3), (2, 2, 4), (7, 3, 1)])
def test_coral_is_that_of_numpy_covariances(n: int, m: int, d: int) -> None:
    a, b = drawn(n, d, 0), drawn(m, d, 1, shift=2)
    gap = np.cov(a.numpy().T).reshape(d, d) - np.cov(b.numpy().T).reshape(d, d)
    expected = (gap**2).sum() / (4 * d * d)
    assert float(losses.deep_coral(a, b)) == pytest.approx(expected, rel=1e-12)
    assert coral_distance(a.numpy(), b.numpy()) == pytest.approx(expected, rel=1e-12)
    assert float(losses.deep_coral(a + 5, b)) == pytest.approx(expected, rel=1e-9)  # no means


def mmd_by_loops(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    rows = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    n, total = len(first[0]), len(rows[0])
    widths = [
        np.mean([((r[i] - r[j]) ** 2).sum() for i in range(total) for j in range(total) if i != j])
        for r in rows
    ]

    def k(i: int, j: int) -> float:
        value = 1.0
        for r, width in zip(rows, widths, strict=True):
            square = ((r[i] - r[j]) ** 2).sum()
            value *= float(np.mean([np.exp(-square / (2 * s * width)) for s in losses.SCALES]))
        return value

    source, target = range(n), range(n, total)
    within = [np.mean([k(i, j) for i in s for j in s if i != j]) for s in (source, target)]
    return float(sum(within) - 2 * np.mean([k(i, j) for i in source for j in target]))


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 7), (2, 5)])
def test_mmd_is_unbiased_and_allows_unequal_sizes(n: int, m: int) -> None:
    a, b = drawn(n, 3, 0), drawn(m, 3, 1, shift=1)
    expected = mmd_by_loops([a.numpy()], [b.numpy()])
    assert float(losses.multi_kernel_mmd(a, b)) == pytest.approx(expected, abs=1e-12)
    c, d = drawn(n, 2, 2), drawn(m, 2, 3)
    joint = mmd_by_loops([a.numpy(), c.numpy()], [b.numpy(), d.numpy()])
    assert float(losses.joint_mmd([a, c], [b, d])) == pytest.approx(joint, abs=1e-12)


def test_mmd_has_mean_zero_for_equal_distributions() -> None:
    values = [
        float(losses.multi_kernel_mmd(drawn(6, 2, s), drawn(9, 2, s + 500))) for s in range(300)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0 < max(values)


PAIRS: list[Callable[[Tensor, Tensor], Tensor]] = [
    losses.deep_coral,
    losses.multi_kernel_mmd,
    losses.batch_spectral_penalty,
    adversarial.classifier_discrepancy,
]


@pytest.mark.parametrize("loss", PAIRS, ids=lambda f: f.__name__)
def test_a_distance_is_symmetric_and_ignores_the_order(loss: Any) -> None:
    a, b = drawn(6, 4, 0), drawn(6, 4, 1, shift=1)
    assert float(loss(a, b)) == pytest.approx(float(loss(b, a)), rel=1e-9)
    assert float(loss(a.flip(0), b.flip(0))) == pytest.approx(float(loss(a, b)), rel=1e-9)


def test_equal_sets_have_distance_zero_or_less() -> None:
    a = drawn(6, 4, 0)
    assert float(losses.deep_coral(a, a)) == 0
    assert float(adversarial.classifier_discrepancy(a, a)) == 0
    assert float(losses.multi_kernel_mmd(a, a)) < 0  # unbiased: no pair of an image with itself


def test_a_rotation_of_both_domains_changes_no_distance() -> None:
    a, b = drawn(6, 4, 0), drawn(5, 4, 1, shift=1)
    turn = torch.linalg.qr(drawn(4, 4, 2)).Q
    for loss in (losses.deep_coral, losses.multi_kernel_mmd, losses.batch_spectral_penalty):
        assert float(loss(a @ turn, b @ turn)) == pytest.approx(float(loss(a, b)), rel=1e-9)
    larger = losses.multi_kernel_mmd(3 * a, 3 * b)  # the widths follow the scale
    assert float(larger) == pytest.approx(float(losses.multi_kernel_mmd(a, b)), rel=1e-9)


@pytest.mark.parametrize("loss", [losses.deep_coral, losses.multi_kernel_mmd])
def test_one_image_gives_zero_with_a_gradient(loss: Any) -> None:
    one = drawn(1, 3, 0).requires_grad_()
    value = loss(one, drawn(4, 3, 1))
    value.backward()
    assert value.item() == 0
    assert one.grad is not None
    assert not one.grad.any()
    assert math.isfinite(float(loss(torch.ones(4, 3), torch.ones(4, 3))))  # copies only


def test_other_widths_are_refused() -> None:
    for loss in PAIRS:
        with pytest.raises(UsageError, match=r"\(2, 3\) and \(2, 4\)"):
            loss(drawn(2, 3, 0), drawn(2, 4, 0))
    with pytest.raises(UsageError, match="got 1 and 2"):
        losses.joint_mmd([drawn(2, 3, 0)], [drawn(2, 3, 0)] * 2)
    with pytest.raises(UsageError, match="got 0"):
        losses.batch_spectral_penalty(drawn(2, 3, 0), drawn(2, 3, 0), largest=0)
    with pytest.raises(UsageError, match="got 0"):
        losses.class_confusion(drawn(2, 3, 0), temperature=0)


# -------------------------------------------------------------------------------- gradients


def both(loss: Any) -> Any:
    return lambda x: loss(x[:4], x[4:8])


GRADIENTS = {
    "coral": both(losses.deep_coral),
    "bsp": both(losses.batch_spectral_penalty),
    "mcd": both(adversarial.classifier_discrepancy),
    "mcc": losses.class_confusion,
    "im": losses.information_loss,
    "tent": lambda x: losses.entropies(x).mean(),
    "hafn": losses.hard_feature_norm,
    "dann": lambda x: adversarial.domain_loss(x[:4, 0], x[4:, 0]),
    "mdd": both(lambda a, b: adversarial.adversary_of_margins((a.detach(), a), (b.detach(), b))),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    x = drawn(8, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(GRADIENTS[name], (x,))


def test_mmd_with_fixed_widths_has_the_right_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(rows: Tensor, scales: Any) -> Tensor:
        squares = (rows[:, None] - rows[None]).square().sum(dim=2)
        return torch.stack([torch.exp(-squares / (2 * s * width)) for s in scales]).mean(0)

    x = drawn(7, 3, 5).requires_grad_()
    rows = x.detach()
    width = float((rows[:, None] - rows[None]).square().sum()) / 42

    def joint(a: Tensor, b: Tensor) -> Tensor:  # the same layer twice: the kernel's square
        return losses.joint_mmd([a, a], [b, b])

    joint(x[:4], x[4:]).backward()
    ours, x.grad = x.grad, None
    monkeypatch.setattr(losses, "_mean_kernel", fixed)
    assert torch.autograd.gradcheck(lambda x: joint(x[:4], x[4:]), (x,))
    joint(x[:4], x[4:]).backward()
    assert torch.allclose(ours, x.grad, rtol=1e-10)


# --------------------------------------------------------------------------- target logits


def test_class_confusion_is_that_of_the_paper() -> None:
    z = drawn(9, 4, 3).numpy()
    p = softmax(z / 2.5)
    weights = 1 + np.exp(-entropy(p))
    weights *= len(z) / weights.sum()
    confusion = np.einsum("i,ij,ik->jk", weights, p, p)
    confusion /= confusion.sum(axis=1, keepdims=True)
    expected = (confusion.sum() - np.trace(confusion)) / 4
    assert float(losses.class_confusion(torch.tensor(z))) == pytest.approx(expected, rel=1e-12)


def test_class_confusion_stays_finite_without_a_class() -> None:
    z = torch.tensor([[500.0, 0.0, -500.0]] * 3).requires_grad_()
    value = losses.class_confusion(z)
    value.backward()
    assert math.isfinite(value.item())
    assert torch.isfinite(z.grad).all()


def test_information_loss_is_minus_the_mutual_information() -> None:
    z = drawn(9, 4, 3).numpy()
    p = softmax(z)
    expected = entropy(p).mean() - entropy(p.mean(axis=0, keepdims=True))[0]
    value = losses.information_loss(torch.tensor(z))
    assert float(value) == pytest.approx(expected, rel=1e-10)
    assert float(losses.information_loss(torch.tensor(z) + 7)) == pytest.approx(expected, rel=1e-9)


def test_margins_are_those_of_the_paper() -> None:
    h, f = drawn(5, 3, 0).numpy(), drawn(5, 3, 1).numpy()
    g, e = drawn(6, 3, 2).numpy(), drawn(6, 3, 3).numpy()
    agree = -np.log(softmax(f)[np.arange(5), h.argmax(1)]).mean()
    disagree = -np.log(1 - softmax(e)[np.arange(6), g.argmax(1)]).mean()
    pair = [torch.tensor(v) for v in (h, f, g, e)]
    value = adversarial.adversary_of_margins((pair[0], pair[1]), (pair[2], pair[3]), margin=4.0)
    assert float(value) == pytest.approx(4 * agree + disagree, rel=1e-10)
    sure = torch.tensor([[200.0, 0.0]])
    assert math.isfinite(float(adversarial.adversary_of_margins((sure, sure), (sure, sure))))


def test_feature_norms_grow_by_their_gradient() -> None:
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64).requires_grad_()
    value = losses.stepwise_feature_norm(x, step=2.0)
    value.backward()
    assert value.item() == pytest.approx(4.0)
    assert x.grad.flatten().tolist() == pytest.approx([-4 * 0.6, -4 * 0.8])  # -2 step f / |f|


def test_spectral_penalty_is_that_of_numpy() -> None:
    a, b = drawn(6, 3, 0), drawn(4, 3, 1)
    expected = sum((np.linalg.svd(v.numpy())[1][:2] ** 2).sum() for v in (a, b))
    assert float(losses.batch_spectral_penalty(a, b, largest=2)) == pytest.approx(expected)


# ------------------------------------------------------------------------------ adversaries


def test_the_gradient_is_reversed_and_the_value_exact() -> None:
    x = drawn(4, 3, 0).requires_grad_()
    y = adversarial.reverse_gradient(x, 0.3)
    assert torch.equal(y, x)
    (y * 2).sum().backward()
    assert x.grad.flatten().tolist() == pytest.approx([-0.6] * 12)


def test_the_schedule_rises_from_zero() -> None:
    values = [adversarial.reversal_factor(p / 10, highest=0.5) for p in range(11)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.5, abs=1e-4)


def test_the_domain_loss_weights_domains_alike_and_images_by_certainty() -> None:
    s, t = drawn(3, 1, 0), drawn(8, 1, 1)
    sigmoid = 1 / (1 + np.exp(-s.numpy())), 1 / (1 + np.exp(-t.numpy()))
    expected = -(np.log(sigmoid[0]).mean() + np.log(1 - sigmoid[1]).mean()) / 2
    assert float(adversarial.domain_loss(s, t)) == pytest.approx(expected)
    logits = drawn(8, 4, 2)
    raw = 1 + np.exp(-entropy(softmax(logits.numpy())))
    weights = adversarial.entropy_weights(logits)
    assert weights.numpy() == pytest.approx(raw / raw.mean())
    weighted = adversarial.domain_loss(s, t, target_weights=weights)
    second = (-np.log(1 - sigmoid[1][:, 0]) * raw / raw.mean()).mean()
    assert float(weighted) == pytest.approx((-np.log(sigmoid[0]).mean() + second) / 2)


def test_conditional_features_are_the_outer_product() -> None:
    f, p = drawn(3, 4, 0).requires_grad_(), drawn(3, 2, 1).requires_grad_()
    value = adversarial.conditional_features(f, p)
    expected = np.einsum("nk,nd->nkd", p.detach().numpy(), f.detach().numpy()).reshape(3, 8)
    assert value.detach().numpy() == pytest.approx(expected)
    value.sum().backward()
    assert p.grad is None
    assert f.grad is not None
