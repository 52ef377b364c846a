import copy

import pytest
import torch
from torch import nn

from headstart.backbones.backbone import load
from headstart.errors import UsageError
from headstart.training.adapters import add_lora, add_stoch_norm, merge_lora, remove_stoch_norm


def random_tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LAYERS = [
    pytest.param(lambda: nn.Linear(12, 7), (3, 12), id="linear"),
    pytest.param(lambda: nn.Conv2d(12, 8, 3, padding=1), (2, 12, 5, 5), id="conv"),
    pytest.param(lambda: nn.Conv2d(12, 8, 3, groups=4, bias=False), (2, 12, 5, 5), id="grouped"),
    pytest.param(lambda: nn.Conv2d(12, 12, (3, 1), groups=12), (2, 12, 5, 5), id="depthwise"),
    pytest.param(lambda: nn.Conv2d(12, 8, 1, stride=2), (2, 12, 5, 5), id="pointwise"),
]


def moved(net, names, seed=1):
    """The network after a step that only the named parameters took."""
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for i, name in enumerate(names):
            parameters[name].copy_(random_tensor(*parameters[name].shape, seed=seed + i))
    return net


# ------------------------------------------------------------------------------------- LoRA


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_lora_changes_nothing_at_first_and_its_formula_afterwards(make, shape):
    layer, x = make(), random_tensor(*shape)
    before, plain = layer(x), layer.weight.detach().clone()
    names = add_lora(layer, rank=2, scale=0.5, seed=0)
    assert torch.equal(layer(x), before)
    moved(layer, names)
    down, up = (dict(layer.named_parameters())[name] for name in names)
    assert down.shape == (2, plain[0].numel())
    assert up.shape == (len(plain), 2)
    by_hand = plain + 0.5 * torch.einsum("or,rc->oc", up, down).reshape(plain.shape)
    torch.testing.assert_close(layer.weight, by_hand)
    assert not torch.allclose(layer(x), before)


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_a_merged_layer_is_plain_and_computes_the_same(make, shape):
    layer, x = make(), random_tensor(*shape)
    names, kind = set(layer.state_dict()), type(layer)
    moved(layer, add_lora(layer, rank=3, seed=0))
    adapted = layer(x)
    assert merge_lora(layer) == ("weight",)
    torch.testing.assert_close(layer(x), adapted, rtol=1e-5, atol=1e-5)
    assert set(layer.state_dict()) == names
    assert type(layer) is kind


def test_only_the_update_takes_part_where_the_rest_is_frozen():
    layer = nn.Conv2d(4, 6, 3).requires_grad_(False)
    names = add_lora(layer, rank=2, seed=0)
    assert {n for n, p in layer.named_parameters() if p.requires_grad} == set(names)
    layer(random_tensor(1, 4, 5, 5)).sum().backward()
    gradients = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
    assert set(gradients) == set(names)
    assert gradients["parametrizations.weight.0.up"].abs().sum() > 0


def test_merging_leaves_a_frozen_weight_frozen():
    layer = nn.Linear(3, 2).requires_grad_(False)
    add_lora(layer, rank=1, seed=0)
    merge_lora(layer)
    assert not layer.weight.requires_grad


@pytest.mark.parametrize("name", ["timm/test_efficientnet", "torchvision/resnet18"])
def test_a_whole_backbone_is_adapted_and_merged(name):
    net, x = load(name, pretrained=False).eval(), random_tensor(2, 3, 64, 64)
    before, keys = net(x).detach(), set(net.state_dict())
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shapes = [(len(m.weight), m.weight[0].numel()) for m in layers]
    old = sum(p.numel() for p in net.parameters())
    names = add_lora(net, rank=2, seed=0)
    assert torch.equal(net(x), before)
    parameters = dict(net.named_parameters())
    new = sum(min(2, o, c) * (o + c) for o, c in shapes)
    assert len(names) == 2 * len(layers)
    assert sum(parameters[n].numel() for n in names) == new
    assert sum(p.numel() for p in parameters.values()) == old + new
    with torch.no_grad():
        for n in names:
            parameters[n].add_(0.01 * random_tensor(*parameters[n].shape))
    adapted = net(x).detach()
    assert not torch.allclose(adapted, before, rtol=1e-3)
    assert len(merge_lora(net)) == len(layers)
    torch.testing.assert_close(net(x), adapted, rtol=1e-5, atol=1e-5)
    assert set(net.state_dict()) == keys


def test_the_draw_hangs_on_the_seed_alone():
    def first(seed):
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 2))
        names = add_lora(net, rank=2, seed=seed)
        return [dict(net.named_parameters())[name] for name in names]

    torch.rand(3)
    same = [torch.equal(a, b) for a, b in zip(first(0), first(0), strict=True)]
    assert all(same)
    assert not torch.equal(first(0)[0], first(1)[0])


def test_adding_lora_leaves_the_global_random_state_alone():
    layer = nn.Linear(3, 2)
    before = torch.get_rng_state()
    add_lora(layer, rank=1, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_draw_is_as_wide_as_a_linear_layers():
    layer = nn.Linear(64, 64)
    add_lora(layer, rank=64, seed=0)
    down = layer.parametrizations.weight[0].down
    # Uniform up to 1/sqrt(fan in), as Kaiming with a = sqrt(5).
    assert 0.12 < down.abs().max() <= 1 / 64**0.5
    assert abs(down.mean()) < 0.005


def test_lora_keeps_the_weights_dtype():
    layer = nn.Linear(3, 2).to(torch.bfloat16)
    names = add_lora(layer, rank=1, seed=0)
    assert {dict(layer.named_parameters())[n].dtype for n in names} == {torch.bfloat16}
    assert layer.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_a_rank_without_meaning_is_refused(rank):
    with pytest.raises(UsageError, match="`rank`"):
        add_lora(nn.Linear(3, 2), rank=rank, seed=0)


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_scale_without_meaning_is_refused(scale):
    with pytest.raises(UsageError, match="`scale`"):
        add_lora(nn.Linear(3, 2), rank=1, scale=scale, seed=0)


def test_lora_goes_on_once_and_comes_off_once():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with pytest.raises(UsageError, match="add_lora"):
        merge_lora(net)
    add_lora(net, rank=1, seed=0)
    before = set(net.state_dict())
    with pytest.raises(UsageError, match="'0'"):
        add_lora(net, rank=1, seed=0)
    assert set(net.state_dict()) == before
    with pytest.raises(UsageError, match="linear layers"):
        add_lora(nn.ReLU(), rank=1, seed=0)


# -------------------------------------------------------------------------------- StochNorm


def normed(channels=64, seed=0):
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        layer.weight.copy_(random_tensor(channels, seed=seed))
        layer.bias.copy_(random_tensor(channels, seed=seed + 1))
        layer.running_mean.copy_(random_tensor(channels, seed=seed + 2))
        layer.running_var.copy_(random_tensor(channels, seed=seed + 3).exp())
    return layer


def batch(channels=64, seed=9):
    return 3 * random_tensor(4, channels, 5, 5, seed=seed) + 1


def answers(layer, x):
    """What plain BatchNorm gives with the batch's statistics and with the moving ones."""
    plain = copy.deepcopy(layer)
    remove_stoch_norm(plain)
    moving = plain.eval()(x)
    return plain.train()(x), moving


def test_without_a_chance_it_is_batch_norm():
    layer, x = normed(), batch()
    plain = copy.deepcopy(layer)
    add_stoch_norm(layer, 0.0)
    assert torch.equal(layer(x), plain(x))
    for name, value in plain.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value), name


def test_each_channel_takes_one_side_or_the_other():
    layer, x = normed(1000), batch(1000)
    of_batch, moving = answers(layer, x)
    add_stoch_norm(layer, 0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = layer(x)
    takes_moving = torch.isclose(y, moving, atol=1e-5).all(dim=(0, 2, 3))
    takes_batch = torch.isclose(y, of_batch, atol=1e-5).all(dim=(0, 2, 3))
    assert (takes_moving ^ takes_batch).all()
    assert 0.25 < takes_moving.double().mean() < 0.35  # 3.4 standard deviations


def test_with_certainty_the_statistics_are_those_before_the_batch():
    layer, x = normed(), batch()
    _, moving = answers(layer, x)
    expected = copy.deepcopy(layer)
    expected(x)
    add_stoch_norm(layer, 1.0)
    torch.testing.assert_close(layer(x), moving)
    torch.testing.assert_close(layer.running_mean, expected.running_mean)
    torch.testing.assert_close(layer.running_var, expected.running_var)
    assert layer.num_batches_tracked == 1


def test_gradients_are_those_of_the_side_taken():
    layer = normed()
    add_stoch_norm(layer, 1.0)
    x = batch().requires_grad_()
    out = random_tensor(*x.shape, seed=5)
    std = (layer.running_var + layer.eps).sqrt()
    layer(x).backward(out)
    expected = out * (layer.weight / std)[:, None, None]
    torch.testing.assert_close(x.grad, expected.detach())
    assert layer.weight.grad.abs().sum() > 0


def test_coins_follow_torchs_seed_and_differ_from_batch_to_batch():
    layer, x = normed(), batch()
    layer.momentum = 0.0  # so that only the coins differ
    add_stoch_norm(layer, 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = layer(x), layer(x)
        torch.manual_seed(3)
        again = layer(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_inference_is_plain_and_frozen_layers_do_not_move():
    layer, x = normed(), batch()
    expected = answers(layer, x)[1]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    add_stoch_norm(layer, 0.5)
    assert torch.equal(layer.eval()(x), expected)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_a_copy_tosses_for_itself():
    layer, x = normed(), batch()
    add_stoch_norm(layer, 1.0)
    twin = copy.deepcopy(layer)
    before = layer.running_mean.clone()
    with torch.no_grad():
        twin.weight.zero_()
        twin.bias.fill_(2.0)
    assert torch.equal(twin(x), torch.full_like(x, 2.0))
    assert torch.equal(layer.running_mean, before)
    assert not torch.equal(twin.running_mean, before)
    assert remove_stoch_norm(twin) == ("",)
    assert remove_stoch_norm(layer) == ("",)


@pytest.mark.parametrize("name", ["timm/test_efficientnet", "torchvision/resnet18"])
def test_whole_backbones_keep_names_and_answers(name):
    net, x = load(name, pretrained=False).train(), random_tensor(4, 3, 64, 64)
    with torch.no_grad():  # away from the library's start, where BatchNorm's output may be 0
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_var.fill_(0.7)
    start = copy.deepcopy(net)
    names = add_stoch_norm(net, 0.0)
    assert names == tuple(n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d))
    assert list(net.state_dict()) == list(start.state_dict())
    plain = copy.deepcopy(start)
    assert torch.equal(net(x), plain(x))
    assert remove_stoch_norm(net) == names
    add_stoch_norm(net, 1.0)
    net.load_state_dict(start.state_dict())
    # With nothing but moving statistics, training computes what inference does.
    torch.testing.assert_close(net(x), copy.deepcopy(start).eval()(x), rtol=1e-4, atol=1e-5)
    remove_stoch_norm(net)
    net.load_state_dict(start.state_dict())
    assert torch.equal(net(x), copy.deepcopy(start)(x))


class Own(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(2, track_running_stats=False), Own(2)], ids=["no statistics", "own"]
)
def test_layers_that_are_no_plain_batch_norm_are_refused(layer):
    net = nn.Sequential(nn.BatchNorm2d(2), layer)
    with pytest.raises(UsageError, match="'1'"):
        add_stoch_norm(net, 0.5)
    assert remove_stoch_norm(net) == ()


def test_stoch_norm_goes_on_once_and_needs_a_place():
    layer = normed()
    add_stoch_norm(layer, 0.5)
    with pytest.raises(UsageError, match="changed already"):
        add_stoch_norm(layer, 0.5)
    with pytest.raises(UsageError, match="has none"):
        add_stoch_norm(nn.Conv2d(2, 3, 1), 0.5)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(probability):
    with pytest.raises(UsageError, match="probability"):
        add_stoch_norm(normed(), probability)
