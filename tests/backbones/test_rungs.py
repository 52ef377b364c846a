"""Rungs of every backbone of the catalogue, and the counted operations."""

import pytest
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import names, resolve
from headstart.backbones.freezing import plan_freezing
from headstart.backbones.rungs import (
    find_rungs,
    first_trained_index,
    format_shares,
    list_rungs,
    resolutions,
    stage_flops,
)
from headstart.backbones.spec import Stage
from headstart.errors import UsageError

KNOWN = [name for name in names() if resolve(name).stages]


@pytest.mark.parametrize("name", KNOWN)
def test_rungs_of_the_catalogue_are_nested_and_named_alike(name):
    stages = resolve(name).stages
    assert list_rungs(stages) == ("head", "last:1", "last:2", "all")
    order = [stage.name for stage in stages]
    starts = [first_trained_index(rung, stages) for rung in list_rungs(stages)]
    assert starts == sorted(set(starts), reverse=True), "each rung trains more than the one before"
    assert (starts[0], starts[-1]) == (len(order), 0)
    assert [name for group in resolutions(stages) for name in group] == order
    strides = {stage.name: stage.stride for stage in stages}
    if len(set(strides.values())) > 1:
        last = order[starts[1] :]
        assert {strides[name] for name in last} == {stages[-1].stride}
        assert strides[order[starts[1] - 1]] < stages[-1].stride, "the whole resolution trains"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embedded/efficientnet_lite0", ["stage6", "stage4"]),
        ("torchvision/resnet18", ["layer4", "layer3"]),
        ("torchvision/mobilenet_v2", ["stage4", "stage3"]),
        ("timm/vit_tiny_patch16_224", ["blocks4", "blocks3"]),
    ],
)
def test_the_inner_rungs_of_known_networks(name, expected):
    stages = resolve(name).stages
    starts = [stages[first_trained_index(rung, stages)].name for rung in ("last:1", "last:2")]
    assert starts == expected


SMALL = ("embedded/efficientnet_lite0", "torchvision/mobilenet_v3_small", "timm/test_vit")


@pytest.mark.parametrize("name", SMALL)
def test_shares_grow_from_nothing_to_everything(name):
    backbone = load(name, pretrained=False)
    rungs = find_rungs(backbone)
    for field in ("parameter_share", "flop_share"):
        shares = [getattr(rung, field) for rung in rungs]
        assert shares == sorted(set(shares))
        assert (shares[0], shares[-1]) == (0.0, 1.0)
    for rung in rungs:
        plan = plan_freezing(backbone, train_from=rung.name)
        assert tuple(row.stage for row in plan.rows if row.trains) == rung.stages
        sizes = sum(row.parameters for row in plan.rows)
        assert plan.trainable / sizes == pytest.approx(rung.parameter_share)
        assert f"{100 * rung.parameter_share:.0f} % of the parameters" in format_shares(
            backbone, plan
        )


def test_flops_equal_those_counted_by_hand():
    """A convolution costs two operations for each weight and position of its output."""
    backbone = load("torchvision/resnet18?crop=64", pretrained=False).eval()
    by_hand = dict.fromkeys([stage.name for stage in backbone.stages], 0)

    def count(stage, module, output):
        by_hand[stage] += 2 * module.weight.numel() * output.shape[2] * output.shape[3]

    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            stage = backbone.stage_of(f"{name}.weight")
            module.register_forward_hook(lambda m, _, out, stage=stage: count(stage, m, out))
    with torch.no_grad():
        backbone(torch.zeros(1, 3, 64, 64))
    assert stage_flops(load("torchvision/resnet18?crop=64", pretrained=False)) == tuple(
        by_hand.values()
    )


def test_counting_changes_no_statistics():
    backbone = load("torchvision/mobilenet_v3_small?crop=96", pretrained=False).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    stage_flops(backbone)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_network_of_one_stage_has_two_rungs():
    stages = [Stage(name="trunk", channels=4, stride=32)]
    assert list_rungs(stages) == ("head", "all")
    with pytest.raises(UsageError, match="from 1 to 1"):
        first_trained_index("last:2", stages)


@pytest.mark.parametrize("text", ["last:", "last:0", "last:5", "last:x", "last:-1", "last:²"])
def test_a_wrong_number_of_resolutions_is_refused(text):
    with pytest.raises(UsageError, match=r"from 1 to 4 \(the number of resolutions.*last:1"):
        first_trained_index(text, resolve("resnet18").stages)
