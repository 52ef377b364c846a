import numpy as np
import pytest

from headstart.errors import ModelFileError
from headstart.models.heads.linear import LinearHead


def test_logits_equal_torch_linear():
    import torch

    rng = np.random.default_rng(0)
    head = LinearHead(weight=rng.normal(size=(3, 5)), bias=rng.normal(size=3))
    x = rng.normal(size=(4, 5))
    reference = torch.nn.functional.linear(
        torch.from_numpy(x), torch.from_numpy(head.weight), torch.from_numpy(head.bias)
    )
    np.testing.assert_allclose(head.logits(x), reference.numpy(), rtol=1e-12)


def test_state_comes_back():
    head = LinearHead(weight=np.eye(2, 3), bias=np.array([1.0, 2.0]))
    again = LinearHead.from_state(head.state(), n_outputs=2)
    np.testing.assert_array_equal(again.weight, head.weight)
    np.testing.assert_array_equal(again.bias, head.bias)


@pytest.mark.parametrize(
    "state",
    [
        {"weight": np.zeros((2, 3))},
        {"weight": np.zeros((3, 3)), "bias": np.zeros(3)},
        {"weight": np.zeros(3), "bias": np.zeros(2)},
    ],
)
def test_a_damaged_state_is_refused(state):
    with pytest.raises(ModelFileError, match="head"):
        LinearHead.from_state(state, n_outputs=2)


def test_the_module_gives_the_same_logits_and_its_values_come_back():
    import torch

    head = LinearHead.random(4, 3, seed=1)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    module = head.module()
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), head.logits(x), rtol=1e-5)
    with torch.no_grad():
        module.weight.mul_(2.0)
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    assert not np.shares_memory(head.weight, state["weight"])
    np.testing.assert_array_equal(head.with_state(state).weight, 2 * head.weight)
