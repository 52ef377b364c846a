import pytest
import torch
from torch import nn

from headstart.errors import HeadstartError
from headstart.freezing import constant, fingerprint, require_constant


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def shifted(n=16):
    return torch.randn(n, 3, 8, 8) * 1.5 + 0.7


def test_requires_grad_alone_lets_batch_norm_drift():
    """The pain that this module exists for: it must be visible to the fingerprint."""
    module = network().requires_grad_(False).train()
    before = fingerprint(module.state_dict())
    module(shifted())
    assert fingerprint(module.state_dict()) != before
    with pytest.raises(HeadstartError, match="frozen"):
        require_constant(module.state_dict(), before)


def test_a_constant_module_does_not_move():
    module = constant(network().train())
    before = fingerprint(module.state_dict())
    x = shifted()
    first = module(x)
    for _ in range(3):
        assert torch.equal(module(x), first)  # no dropout either
    require_constant(module.state_dict(), before)
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "1.num_batches_tracked", "3.bias"])
def test_fingerprint_sees_every_tensor(name):
    state = network().state_dict()
    before = fingerprint(state)
    state[name] = state[name] + 1
    assert fingerprint(state) != before


def test_fingerprint_does_not_depend_on_order_or_memory_format():
    state = network().state_dict()
    turned = {k: state[k].clone(memory_format=torch.contiguous_format) for k in reversed(state)}
    turned["0.weight"] = turned["0.weight"].to(memory_format=torch.channels_last)
    assert fingerprint(turned) == fingerprint(state)


def test_fingerprint_tells_shapes_and_types_apart():
    flat = {"w": torch.zeros(4)}
    assert fingerprint(flat) != fingerprint({"w": torch.zeros(2, 2)})
    assert fingerprint(flat) != fingerprint({"w": torch.zeros(4, dtype=torch.int32)})
