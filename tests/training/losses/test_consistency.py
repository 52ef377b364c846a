"""Losses of consistency, against float64 NumPy and by property."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from headstart.errors import UsageError
from headstart.training.losses.consistency import (
    confident_label_loss,
    consistency_loss,
    ramp_up,
    teacher_decay,
)


def drawn(n: int, k: int, seed: int) -> Tensor:
    return torch.tensor(3 * np.random.default_rng(seed).normal(size=(n, k)))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("n", [1, 5])
def test_consistency_is_the_squared_difference_of_probabilities(n: int) -> None:
    a, b = drawn(n, 4, 0), drawn(n, 4, 1)
    expected = ((softmax(a.numpy()) - softmax(b.numpy())) ** 2).sum(axis=1).mean()
    assert float(consistency_loss(a, b)) == pytest.approx(expected, rel=1e-12)
    assert float(consistency_loss(b, a)) == pytest.approx(expected, rel=1e-12)
    assert float(consistency_loss(a, a + 7)) == pytest.approx(0, abs=1e-24)
    x = a.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: consistency_loss(x, b), (x,))


def test_only_confident_labels_count() -> None:
    weak, strong = drawn(40, 3, 2), drawn(40, 3, 3)
    p, q = softmax(weak.numpy()), softmax(strong.numpy())
    sure = p.max(axis=1) >= 0.8
    assert 0 < sure.sum() < 40
    terms = -np.log(q[np.arange(40), p.argmax(axis=1)]) * sure
    assert float(confident_label_loss(weak, strong, threshold=0.8)) == pytest.approx(terms.mean())
    assert float(confident_label_loss(weak, strong, threshold=1.0)) == 0
    x = strong.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: confident_label_loss(weak, x, threshold=0.8), (x,))


def test_the_first_view_is_a_constant() -> None:
    first, second = drawn(6, 3, 4).requires_grad_(), drawn(6, 3, 5).requires_grad_()
    for value in (consistency_loss(second, first), confident_label_loss(first, second)):
        assert torch.autograd.grad(value, first, allow_unused=True, retain_graph=True) == (None,)


def test_schedules_are_those_of_the_paper() -> None:
    assert ramp_up(0.0) == pytest.approx(math.exp(-5))
    assert ramp_up(0.5, length=1.0) == pytest.approx(math.exp(-1.25))
    assert ramp_up(0.3) == ramp_up(0.9) == 1
    assert [teacher_decay(step, 0.9) for step in (0, 1, 9, 10)] == [0, 0.5, 0.9, 0.9]


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UsageError, match=r"threshold.*1\.5"):
        confident_label_loss(drawn(2, 3, 0), drawn(2, 3, 0), threshold=1.5)
    with pytest.raises(UsageError, match=r"\(2, 3\) and \(2, 4\)"):
        consistency_loss(drawn(2, 3, 0), drawn(2, 4, 0))
