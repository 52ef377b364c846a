import numpy as np
import pytest
import torch
from torch import nn

from headstart.errors import UsageError
from headstart.training.regularisation.anchoring import anchors, ewc, fisher, l2_sp


def layer(seed=0, width=4, classes=3):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(width, classes).double().eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return net


def examples(n=6, width=4, classes=3):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(n, width))), torch.from_numpy(
        rng.integers(classes, size=n)
    )


def gradients(loss, tensors):
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def test_l2_sp_is_its_formula_and_so_is_its_gradient():
    net, head = layer(0), layer(1)
    weights = dict(net.named_parameters())
    start = anchors(layer(2).state_dict())
    loss = l2_sp(weights, start, alpha=0.3, head=head.parameters(), beta=0.2)
    moved = {name: (w - start[name]).detach().numpy() for name, w in weights.items()}
    new = [v.detach().numpy() for v in head.parameters()]
    expected = 0.15 * sum((m**2).sum() for m in moved.values()) + 0.1 * sum(
        (v**2).sum() for v in new
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for name, gradient in gradients(loss, weights).items():
        np.testing.assert_allclose(gradient.numpy(), 0.3 * moved[name], rtol=1e-12)


def test_anchors_stay_when_the_network_moves():
    net = layer()
    weights = dict(net.named_parameters())
    start = anchors(weights)
    assert l2_sp(weights, start, alpha=1.0) == 0
    with torch.no_grad():
        for w in weights.values():
            w.add_(1.0)
    assert l2_sp(weights, start, alpha=1.0).item() == pytest.approx(15 / 2)
    assert not any(anchor.requires_grad for anchor in start.values())


@pytest.mark.parametrize(
    "live", [dict, lambda w: {n: t.detach() for n, t in w.items()}], ids=["itself", "view"]
)
def test_an_anchor_that_moves_along_is_refused(live):
    weights = dict(layer().named_parameters())
    with pytest.raises(UsageError, match="Copy it with"):
        l2_sp(weights, live(weights), alpha=1.0)
    with pytest.raises(UsageError, match="Copy it with"):
        ewc(weights, live(weights), anchors(weights))


@pytest.mark.parametrize("start", [{}, {"weight": torch.zeros(1, 4), "bias": torch.zeros(3)}])
def test_anchors_of_another_network_are_refused(start):
    weights = dict(layer().named_parameters())
    with pytest.raises(UsageError, match="'weight'"):
        l2_sp(weights, start, alpha=1.0)
    with pytest.raises(UsageError, match="'weight'"):
        ewc(weights, anchors(weights), start)


def test_nothing_that_trains_costs_nothing():
    assert l2_sp({}, anchors(layer().state_dict()), alpha=1.0) == 0


def test_small_moves_of_half_precision_weights_are_not_lost():
    start = {"w": torch.zeros(100, dtype=torch.float16)}
    moved = {"w": torch.full((100,), 1e-4, dtype=torch.float16)}
    assert l2_sp(moved, start, alpha=2.0).item() == pytest.approx(1e-6, rel=1e-2)


def test_ewc_is_its_formula_and_so_is_its_gradient():
    weights = dict(layer(0).named_parameters())
    start, worth = anchors(layer(1).state_dict()), anchors(layer(2).state_dict())
    loss = ewc(weights, start, worth)
    moved = {name: (w - start[name]).detach().numpy() for name, w in weights.items()}
    expected = sum((worth[name].numpy() * m**2).sum() for name, m in moved.items()) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for name, gradient in gradients(loss, weights).items():
        np.testing.assert_allclose(gradient.numpy(), worth[name].numpy() * moved[name], rtol=1e-12)


def test_ewc_with_fisher_one_is_l2_sp():
    weights = dict(layer(0).named_parameters())
    start = anchors(layer(1).state_dict())
    ones = {name: torch.ones_like(w) for name, w in start.items()}
    assert ewc(weights, start, ones).item() == l2_sp(weights, start, alpha=1.0).item()


def test_fisher_is_the_closed_form_of_logistic_regression():
    net, (x, y) = layer(), examples()
    logits = x.numpy() @ net.weight.detach().numpy().T + net.bias.detach().numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    score = np.eye(3)[y] - p  # d log p(y|x) / d logits
    information = fisher(net, [(x, y)])
    expected = (score[:, :, None] ** 2 * x.numpy()[:, None, :] ** 2).mean(axis=0)
    np.testing.assert_allclose(information["weight"].numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(information["bias"].numpy(), (score**2).mean(axis=0), rtol=1e-12)


def test_fisher_squares_single_examples_not_their_mean():
    # Two examples whose gradients cancel: the square of the mean would be 0.
    net = nn.Linear(1, 2, bias=False).eval()
    nn.init.zeros_(net.weight)
    x, y = torch.ones(2, 1), torch.tensor([0, 1])
    assert fisher(net, [(x, y)])["weight"].flatten().tolist() == pytest.approx([0.25, 0.25])


def test_fisher_does_not_depend_on_the_batches():
    net, (x, y) = layer(), examples()
    batched = fisher(net, [(x, y)])
    parts = fisher(net, [(x[:1], y[:1]), (x[1:], y[1:])])
    for name, value in batched.items():
        torch.testing.assert_close(parts[name], value)


def test_fisher_measures_frozen_weights_and_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    net.eval().requires_grad_(False)
    before = anchors(net.state_dict())
    information = fisher(
        net, [(torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4), torch.tensor([0, 1]))]
    )
    assert set(information) == {name for name, _ in net.named_parameters()}
    assert all((value > 0).any() for value in information.values())
    assert all(torch.equal(before[name], now) for name, now in net.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


def test_fisher_refuses_training_mode_and_no_examples():
    net = nn.Sequential(layer(), nn.BatchNorm1d(3).train()).eval()
    net[1].train()
    with pytest.raises(UsageError, match="inference mode"):
        fisher(net, [examples()])
    with pytest.raises(UsageError, match="got 0"):
        fisher(layer(), [])
