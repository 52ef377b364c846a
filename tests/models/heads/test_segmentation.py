import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import segmentation

from headstart.backbones.backbone import build_from_state, load
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import freeze, unfreeze
from headstart.backbones.spec import Stage
from headstart.errors import ModelFileError, UnknownNameError, UsageError, WeightsMismatchError
from headstart.models.heads.segmentation import VOC_CLASSES, MaskHead, decoder_from_torchvision
from headstart.models.heads.segmentation_config import SEGMENTATION_HEADS

BACKBONES = ("timm/test_resnet", "timm/test_efficientnet", "torchvision/resnet18")
CANVASES = ((64, 96), (96, 64))
STRIDES = (2, 4, 8, 16, 32)
STAGES = tuple(Stage(name=f"s{n}", channels=8 * n, stride=n) for n in STRIDES)

every_kind = pytest.mark.parametrize("kind", SEGMENTATION_HEADS)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are slower on several, the more so beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def backbone(name):
    return freeze(load(name, pretrained=False))


@cache
def maps_of(name, canvas):
    """Maps of two images by every stage."""
    x = torch.randn(2, 3, *canvas, generator=torch.Generator().manual_seed(0))
    stages = [stage.name for stage in backbone(name).stages]
    with torch.no_grad():
        return dict(zip(stages, backbone(name).maps(x, stages), strict=True))


def small(kind, *, stages=STAGES, canvas=(64, 96), n_classes=3, seed=0, **options):
    return MaskHead.random(stages, n_classes, kind=kind, canvas=canvas, seed=seed, **options)


def fake_maps(head, n=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    sizes = [[-(-side // s) for side in head.shape.canvas] for s in head.shape.strides]
    return [
        torch.randn(n, c, *size, generator=rng)
        for c, size in zip(head.shape.channels, sizes, strict=True)
    ]


# ------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("canvas", CANVASES, ids=str)
@pytest.mark.parametrize("name", BACKBONES)
@every_kind
def test_every_kind_works_on_every_backbone(kind, name, canvas):
    head = small(kind, stages=backbone(name).stages, canvas=canvas)
    maps = [maps_of(name, canvas)[tap] for tap in head.taps]

    module = freeze(head.module())
    logits = module(maps)
    assert logits.shape == (2, 3, *canvas)
    assert torch.isfinite(logits).all()
    assert logits.std() > 0
    for i in range(2):  # an image's answer does not depend on its neighbours
        alone = module([x[i : i + 1] for x in maps])[0]
        torch.testing.assert_close(alone, logits[i], atol=1e-4, rtol=1e-4)

    unfreeze(module)
    slopes = torch.autograd.grad(module(maps).square().sum(), list(module.parameters()))
    assert all(torch.isfinite(slope).all() for slope in slopes)
    assert all(slope.abs().max() > 0 for slope in slopes if slope.ndim == 4)


@every_kind
def test_what_is_written_comes_back(kind):
    head = small(kind)
    values = json.loads(json.dumps(head.as_dict()))
    again = MaskHead.from_dict(values, head.state())
    assert again.as_dict() == head.as_dict()
    assert again.kind == kind
    assert again.taps == head.taps
    maps = fake_maps(head)
    torch.testing.assert_close(
        freeze(again.module())(maps), freeze(head.module())(maps), rtol=0, atol=0
    )


@every_kind
def test_the_seed_decides_and_nothing_else(kind):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, same, other = (small(kind, seed=seed).state() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@every_kind
def test_the_module_has_tensors_of_its_own_and_gives_them_back(kind):
    head = small(kind)
    before = {name: value.copy() for name, value in head.state().items()}
    module = head.module()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(1.0)
    assert all(np.array_equal(head.state()[name], before[name]) for name in before)
    moved = head.with_state({k: v.numpy() for k, v in module.state_dict().items()})
    for name, _ in module.named_parameters():
        np.testing.assert_array_equal(moved.state()[name], before[name] + 1)
    assert set(moved.state()) == set(head.state()) == set(module.state_dict())


@every_kind
def test_a_single_image_can_be_learned_from(kind):
    head = small(kind)
    module = unfreeze(head.module())
    logits = module(fake_maps(head, n=1))
    assert torch.isfinite(logits).all()
    assert torch.autograd.grad(logits.square().sum(), module.classifier.weight)[0].abs().sum() > 0


@pytest.mark.parametrize("kind", ["unet", "unetplusplus", "fpn"])
def test_a_single_place_of_a_single_image_can_be_learned_from(kind):
    wide = [replace(stage, channels=600) if stage.stride == 32 else stage for stage in STAGES]
    head = small(kind, stages=wide, canvas=(32, 32))  # the coarsest map is 1 x 1
    module = unfreeze(head.module())
    assert list(module.state_dict()) == list(head.state())
    logits = module(fake_maps(head, n=1))
    assert logits.shape == (1, 3, 32, 32)
    assert torch.isfinite(logits).all()
    assert torch.autograd.grad(logits.square().sum(), module.classifier.weight)[0].abs().sum() > 0


@every_kind
def test_in_inference_nothing_is_random_and_nothing_moves(kind):
    head = small(kind)
    module = freeze(head.module())
    maps = fake_maps(head)
    assert torch.equal(module(maps), module(maps))
    state = module.state_dict()
    assert all(np.array_equal(state[name].numpy(), value) for name, value in head.state().items())


def test_dropout_is_alive_in_training_only():
    head = small("fpn", dropout=0.5)
    module, maps = unfreeze(head.module()), fake_maps(head)
    torch.manual_seed(0)
    first, second = module(maps), module(maps)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(module(maps), first)


# ----------------------------------------------------------------- maps of all sizes and widths


@every_kind
def test_a_canvas_that_no_stride_divides_is_padded_and_cut(kind):
    """Whatever lies beyond the padding, the left and upper part sees the same image."""
    odd = small(kind, canvas=(70, 91))
    logits = freeze(odd.module())(fake_maps(odd))
    assert logits.shape == (2, 3, 70, 91)
    filled = replace(odd, shape=replace(odd.shape, canvas=odd.shape.padded))
    assert filled.shape.canvas == (96, 96)
    sides = [96 // s for s in odd.shape.strides]
    maps = [
        nn.functional.pad(x, (0, n - x.shape[3], 0, n - x.shape[2]))
        for x, n in zip(fake_maps(odd), sides, strict=True)
    ]
    padded_logits = freeze(filled.module())(maps)
    torch.testing.assert_close(padded_logits[..., :70, :91], logits)


@every_kind
def test_maps_that_are_off_by_a_pixel_are_fitted(kind):
    head = small(kind)
    maps = [x[..., :-1] if x.shape[3] > 4 else x for x in fake_maps(head)]
    logits = freeze(head.module())(maps)
    assert logits.shape == (2, 3, 64, 96)
    assert torch.isfinite(logits).all()


def test_wide_maps_are_projected_before_they_cost():
    wide = [replace(stage, channels=1280) if stage.stride == 32 else stage for stage in STAGES]
    head, narrow = small("unet", stages=wide), small("unet")
    assert head.state()["readers.4.0.weight"].shape == (512, 1280, 1, 1)
    assert head.state()["decoder.blocks.0.conv1.0.weight"].shape[1] == 512 + 128
    assert not any(name.startswith("readers") for name in narrow.state())


@pytest.mark.parametrize(
    ("kind", "strides", "read"),
    [
        ("unet", (4, 8, 16, 32), (4, 8, 16, 32)),
        ("unet", (2, 4, 8, 16, 32), (2, 4, 8, 16, 32)),
        ("unet", (4, 8, 8, 8), (4, 8)),  # of a network with dilations
        ("unet", (4, 16), (4, 16)),
        ("unetplusplus", (2, 4, 8, 16, 32), (4, 8, 16, 32)),
        ("fpn", (1, 2, 4, 8, 16, 32), (4, 8, 16, 32)),
        ("deeplabv3plus", (2, 4, 8, 16, 32), (4, 32)),
        ("deeplabv3plus", (4, 8, 8, 8), (4, 8)),
        ("deeplabv3", (4, 8, 8, 8), (8,)),
    ],
)
def test_the_last_stage_of_each_stride_is_read(kind, strides, read):
    stages = [Stage(name=f"s{i}", channels=8, stride=s) for i, s in enumerate(strides)]
    head = small(kind, stages=stages)
    assert head.shape.strides == read
    last = {stride: f"s{i}" for i, stride in enumerate(strides)}
    assert head.taps == tuple(last[stride] for stride in read)
    assert freeze(head.module())(fake_maps(head)).shape == (2, 3, 64, 96)


@every_kind
@pytest.mark.parametrize("strides", [(16, 16, 16), (32,)])
def test_tokens_and_uncut_networks_are_refused(kind, strides):
    stages = [Stage(name=f"blocks{i}", channels=8, stride=s) for i, s in enumerate(strides)]
    with pytest.raises(UsageError, match=r"torchvision/resnet18"):
        small(kind, stages=stages)


@pytest.mark.parametrize(("kind", "strides"), [("fpn", (8, 16, 32)), ("unetplusplus", (4, 16))])
def test_missing_strides_are_named(kind, strides):
    stages = [Stage(name=f"s{i}", channels=8, stride=s) for i, s in enumerate(strides)]
    with pytest.raises(UsageError, match=r"strides 4, 8, 16 and 32 for .* s0 at"):
        small(kind, stages=stages)


def test_tokens_among_the_maps_are_refused():
    head = small("unet")
    with pytest.raises(UsageError, match="maps"):
        head.module()([torch.zeros(1, 10, c) for c in head.shape.channels])


def test_dilations_follow_the_size_of_the_map():
    assert small("deeplabv3", canvas=(1056, 1056)).shape.options["rates"] == (6, 12, 18)
    assert small("deeplabv3", canvas=(64, 64)).shape.options["rates"] == (1, 2, 3)
    assert small("deeplabv3", rates=(2, 4, 8)).shape.options["rates"] == (2, 4, 8)


# ------------------------------------------------------------------------------------- classes


@every_kind
def test_classes_of_equal_names_keep_their_outputs(kind):
    head = small(kind)
    new = head.with_classes(["sky", "road", "car"], ["Road", "tree", "sky", "kerb"], 3)
    maps = fake_maps(head)
    old, adapted = (freeze(h.module())(maps) for h in (head, new))
    torch.testing.assert_close(adapted[:, 0], old[:, 1])
    torch.testing.assert_close(adapted[:, 2], old[:, 0])
    assert adapted.shape[1] == 4
    again = head.with_classes(["sky", "road", "car"], ["Road", "tree", "sky", "kerb"], 3)
    other = head.with_classes(["sky", "road", "car"], ["Road", "tree", "sky", "kerb"], 4)
    weights = [h.state()["classifier.weight"] for h in (new, again, other)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
    assert head.shape.n_classes == 3


def test_other_names_than_the_heads_are_refused():
    with pytest.raises(UsageError, match="Expected 3 names"):
        small("unet").with_classes(["a", "b"], ["a", "c"], 0)


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kind", "settings", "complaint"),
    [
        ("unet", {"n_classes": 1}, "2 to 255 classes"),
        ("unet", {"n_classes": 256}, "2 to 255 classes"),
        ("unet", {"canvas": (64, 0)}, "canvas"),
        ("unet", {"canvas": (4128, 64)}, r"1 to 4096 pixels a side, .* --size"),
        ("deeplabv3", {"canvas": (32, 32)}, "larger images"),
        ("unet", {"widths": (8, 8)}, "widths"),
        ("fpn", {"width": 40}, "multiple of 32"),
        ("fpn", {"dropout": 1.0}, "below 1"),
        ("deeplabv3plus", {"rates": (1, 2)}, "rates"),
        ("deeplabv3plus", {"width": 10**6}, "width"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind, settings, complaint):
    with pytest.raises(UsageError, match=complaint):
        small(kind, **settings)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'unet'"):
        small("u-net")
    with pytest.raises(UnknownNameError, match="Did you mean 'widths'"):
        small("unet", width=(8, 8))


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "linear"},
        {"canvas": [64]},
        {"canvas": [10**6, 64]},
        {"channels": [8, 16, 32, 64, 10**9]},
        {"channels": ["a"] * 5},
        {"strides": [2, 4, 8, 16, 31]},
        {"taps": ["a"]},
        {"n_classes": True},
        {"n_classes": 4},
        {"options": {"widths": [10**7] * 4, "widest": 512}},
        {"options": {}},
        {"options": None},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(damage):
    head = small("unet")
    with pytest.raises(ModelFileError):
        MaskHead.from_dict(head.as_dict() | damage, head.state())


def test_damaged_tensors_are_refused():
    head = small("unet")
    state = head.state()
    bias = state["classifier.bias"]
    damaged = [
        {k: v for k, v in state.items() if k != "classifier.bias"},
        state | {"more": bias},
        state | {"classifier.bias": bias[:2]},
        state | {"classifier.bias": bias.astype(np.float64)},
    ]
    for tensors in damaged:
        with pytest.raises(ModelFileError, match=r"classifier\.bias|more"):
            head.with_state(tensors)


# ------------------------------------------------------------------- torchvision's own weights


@pytest.mark.parametrize("network", ["deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50"])
def test_torchvisions_network_is_found_again_in_our_parts(network):
    torch.manual_seed(0)
    published = getattr(segmentation, network)(weights=None, weights_backbone=None, aux_loss=True)
    freeze(published)
    state = {name: value.numpy() for name, value in published.state_dict().items()}
    canvas = (32, 64)
    decoder = decoder_from_torchvision(state, canvas=canvas)
    spec = resolve(decoder.backbone)
    backbone = freeze(
        build_from_state(spec, {k: torch.from_numpy(v) for k, v in decoder.state.items()})
    )
    x = torch.randn(1, 3, *canvas)
    with torch.no_grad():
        ours = freeze(decoder.head.module())(backbone.maps(x, decoder.head.taps))
        torch.testing.assert_close(ours, published(x)["out"])
    shape = decoder.head.shape
    last = backbone.stages[-1]
    assert (decoder.head.taps, shape.channels) == ((last.name,), (last.channels,))
    assert (shape.strides, shape.n_classes) == ((last.stride,), len(VOC_CLASSES))


def test_voc_classes_are_torchvisions():
    published = segmentation.DeepLabV3_ResNet50_Weights.DEFAULT.meta["categories"]
    assert list(VOC_CLASSES) == ["background", *published[1:]]


def test_other_weights_are_refused():
    with pytest.raises(WeightsMismatchError, match="DeepLabV3"):
        decoder_from_torchvision({"conv1.weight": np.zeros((1, 1))}, canvas=(64, 64))


def test_defaults_are_light():
    """Multiplications at 192 x 256, which say what seconds on a busy machine cannot."""
    stages = load("torchvision/resnet18", pretrained=False).stages

    def cost(module, run):
        total = []

        def count(layer, _, y):
            total.append(math.prod(layer.weight.shape[1:]) * y.numel())

        hooks = [
            layer.register_forward_hook(count)
            for layer in module.modules()
            if isinstance(layer, nn.Conv2d)
        ]
        with torch.no_grad():
            run()
        for hook in hooks:
            hook.remove()
        return sum(total)

    module = backbone("torchvision/resnet18")
    most = cost(module, lambda: module.run(torch.zeros(1, 3, 192, 256)))
    for kind in SEGMENTATION_HEADS:
        head = small(kind, stages=stages, canvas=(192, 256))
        module = freeze(head.module())
        assert cost(module, lambda m=module, h=head: m(fake_maps(h, n=1))) < most
