import pytest
import torch
from torch import nn

from headstart.backbones.freezing import (
    fingerprint,
    freeze,
    plan_freezing,
    require_unchanged,
    start_adapting,
    start_training,
)
from headstart.backbones.rungs import resolutions
from headstart.errors import HeadstartError, UsageError


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
        require_unchanged(module.state_dict(), before)


def test_a_constant_module_does_not_move():
    module = freeze(network().train())
    before = fingerprint(module.state_dict())
    x = shifted()
    first = module(x)
    for _ in range(3):
        assert torch.equal(module(x), first)  # no dropout either
    require_unchanged(module.state_dict(), before)
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


def backbone(name="resnet18"):
    from headstart.backbones.backbone import load

    return load(name, pretrained=False)


def test_a_plan_is_a_value_and_changes_nothing():
    network = backbone()
    before = [p.requires_grad for p in network.parameters()], network.training
    plan = plan_freezing(network, train_from="layer3", learning_rate=1e-3, layer_decay=0.1)
    assert ([p.requires_grad for p in network.parameters()], network.training) == before
    assert [row.trains for row in plan.rows] == [False, False, False, True, True]
    assert [row.learning_rate for row in plan.rows if row.trains] == pytest.approx([1e-4, 1e-3])
    assert (plan.last_constant_stage, plan.first_changing_stage) == ("layer2", "layer3")
    assert plan == plan_freezing(
        backbone(), train_from="last:2", learning_rate=1e-3, layer_decay=0.1
    )
    assert sum(row.parameters for row in plan.rows) == sum(p.numel() for p in network.parameters())


def test_head_and_all_are_the_ends():
    none, everything = plan_freezing(backbone()), plan_freezing(backbone(), train_from="all")
    assert (none.first_changing_stage, none.trainable) == (None, 0)
    assert (everything.last_constant_stage, everything.first_changing_stage) == (None, "stem")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_from": "layer5"}, "Did you mean 'layer4'"),
        ({"train_from": "last:0"}, "from 1 to 4"),
        ({"train_from": "last:9"}, "from 1 to 4"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"train_from": "all", "learning_rate": -1.0}, "learning_rate"),
        ({"batch_norm": "freeze", "train_from": "all"}, "Did you mean 'frozen'"),
        ({"batch_norm": "layer9=train"}, "Did you mean 'layer"),
        ({"train_from": "last:2", "learning_rate": "layer4=1e-4"}, "without layer3"),
        ({"train_from": "all", "learning_rate": "quick"}, "a number"),
        ({"train_from": "all", "only": "("}, "regular expression"),
        ({"train_from": "all", "only": "nothing_of_that_name"}, "matches none"),
        ({"unfreeze_every": -1}, "unfreeze_every"),
    ],
)
def test_invalid_plans_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        plan_freezing(backbone(), **change)


@pytest.mark.parametrize("policy", ["frozen", "train"])
@pytest.mark.parametrize("name", ["resnet18", "timm/test_resnet", "timm/test_efficientnet"])
def test_only_planned_parameters_change(name, policy):
    network = backbone(name)
    plan = plan_freezing(network, train_from="last:1", batch_norm=policy)
    network.train()  # somebody else's doing: the plan is stronger
    start_training(network, plan)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        loss = network.pooled(torch.randn(4, 3, 64, 64) * 2 + 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert {network.stage_of(key) for key in moved} == set(resolutions(network.stages)[-1])
    statistics = {key for key in moved if "running_" in key}
    assert bool(statistics) == (policy == "train")


def test_named_layers_norms_and_biases():
    network = backbone()
    start_training(network, plan_freezing(network, train_from="all", only=r"layer4\.1\.conv2"))
    assert [n for n, p in network.named_parameters() if p.requires_grad] == [
        "trunk.layer4.1.conv2.weight"
    ]
    named = plan_freezing(network, train_from="all", only=r"layer4\.1")
    assert (named.last_constant_stage, named.first_changing_stage) == ("layer3", "layer4")
    start_training(network, plan_freezing(network, train_from="layer4", only="norm"))
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert trained == {
        f"trunk.layer4.{block}.{part}.{which}"
        for block, part in [(0, "bn1"), (0, "bn2"), (0, "downsample.1"), (1, "bn1"), (1, "bn2")]
        for which in ("weight", "bias")
    }
    biases = plan_freezing(network, train_from="layer4", only="bias")
    assert biases.trainable == 5 * 512


def test_rates_and_policies_by_stage():
    plan = plan_freezing(
        backbone(),
        train_from="layer3",
        learning_rate="layer3=1e-5,layer4=1e-4",
        batch_norm="layer2=adapt,layer4=train",
    )
    assert [row.learning_rate for row in plan.rows] == [0, 0, 0, 1e-5, 1e-4]
    policies = [row.batch_norm for row in plan.rows]
    assert policies == ["frozen", "frozen", "adapt", "frozen", "train"]
    assert (
        plan.last_constant_stage == "layer1"
    )  # the statistics of layer2 are not the pretraining's


def test_gradual_unfreezing_goes_from_the_last_stage_to_the_first():
    network = backbone()
    plan = plan_freezing(network, train_from="layer2", unfreeze_every=2, batch_norm="train")
    assert [row.from_epoch for row in plan.rows] == [1, 1, 5, 3, 1]
    assert plan.last_constant_stage == "layer1"
    for epoch, first in [(1, "layer4"), (2, "layer4"), (3, "layer3"), (5, "layer2"), (9, "layer2")]:
        start_training(network, plan, epoch=epoch)
        moving = {network.stage_of(n) for n, p in network.named_parameters() if p.requires_grad}
        assert min(moving) == first
        modes = {
            network.stage_of(f"{path}.weight")
            for path, module in network.named_modules()
            if isinstance(module, torch.nn.BatchNorm2d) and module.training
        }
        assert modes == moving


def test_adapted_statistics_are_those_of_the_images():
    network = backbone()
    plan = plan_freezing(network, train_from="layer4", batch_norm="stem=adapt")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    batches = [torch.randn(6, 3, 64, 64) * 3 + 1 for _ in range(3)]
    assert start_adapting(network, plan)
    with torch.no_grad():
        for batch in batches:
            network.pooled(batch)
        raw = torch.cat([network.trunk.conv1(batch) for batch in batches])
    freeze(network)
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.removeprefix("trunk.") for k in moved} == {
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
    }
    torch.testing.assert_close(network.trunk.bn1.running_mean, raw.mean((0, 2, 3)))
    variances = torch.stack([network.trunk.conv1(b).var((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(network.trunk.bn1.running_var, variances)
    assert not start_adapting(network, plan_freezing(network, train_from="all"))


@pytest.mark.parametrize(
    ("name", "options", "living"),
    [
        ("timm/densenet121", (("drop_rate", 0.2),), "head_drop"),  # a single stage, a function
        ("timm/densenet121", (("proj_drop_rate", 0.2),), "denseblock2.denselayer3"),
        ("timm/test_convnext", (("drop_rate", 0.2),), "head.drop"),  # beside the last stage's norm
        ("timm/test_efficientnet", (("drop_path_rate", 0.2),), "blocks.4.0.drop_path"),
    ],
)
def test_layers_without_weights_train_with_their_stage(name, options, living):
    from dataclasses import replace

    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve

    network = load(replace(resolve(name), model_options=options), pretrained=False)
    [layer] = [m for path, m in network.named_modules() if path.endswith(living)]
    start_training(network, plan_freezing(network, train_from="all"))
    assert layer.training
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not any(norm.training for norm in norms)
    start_training(network, plan_freezing(network))
    assert not any(module.training for module in network.modules())


def test_low_rank_updates_of_bare_layers_belong_to_their_stage():
    from headstart.training.adapters import add_lora

    network = backbone("timm/mobilenetv3_small_050")
    add_lora(network, rank=2, seed=0)
    plan = plan_freezing(network, train_from="last:1", only="lora")
    start_training(network, plan)
    moving = {n for n, p in network.named_parameters() if p.requires_grad}
    assert moving
    assert all(".parametrizations." in name for name in moving)
    assert {network.stage_of(name) for name in moving} == set(resolutions(network.stages)[-1])
