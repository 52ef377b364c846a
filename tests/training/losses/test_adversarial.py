"""The inverted loss of ADDA; the other losses of adversaries are in test_alignment.py."""

import math

import numpy as np
import pytest
import torch

from headstart.training.losses.adversarial import domain_loss, inverted_domain_loss


def test_the_inverted_loss_is_that_of_a_source_image() -> None:
    z = np.random.default_rng(0).normal(size=(7, 1)) * 3
    value = float(inverted_domain_loss(torch.tensor(z)))
    assert value == pytest.approx(-np.log(1 / (1 + np.exp(-z))).mean(), rel=1e-12)
    logits = torch.tensor(z, requires_grad=True)
    assert torch.autograd.gradcheck(inverted_domain_loss, (logits,))
    sure = torch.tensor([-800.0], requires_grad=True)  # the discriminator is right and certain
    assert math.isfinite(float(inverted_domain_loss(sure).detach()))
    (inverted,) = torch.autograd.grad(inverted_domain_loss(sure), sure)
    (plain,) = torch.autograd.grad(domain_loss(torch.zeros(1), sure), sure)
    assert (float(inverted), float(plain)) == (-1.0, 0.0)
