"""All backbones are compared with the libraries' own networks."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from headstart.backbones.backbone import (
    Backbone,
    build_from_state,
    drop_unused_tensors,
    load,
    original_head,
)
from headstart.backbones.catalog import names, resolve
from headstart.backbones.freezing import fingerprint
from headstart.backbones.stages import belongs_to
from headstart.backbones.weights import locate
from headstart.errors import UnknownNameError, UsageError, WeightsMismatchError

ARCHITECTURES = {spec.architecture: spec.name for spec in map(resolve, names())}
SIDES = {"torchvision/inception_v3": 160, "torchvision/vit_b_16": 224}
SMALL = {"timm/vit_tiny_patch16_224": 64, "timm/vit_small_patch16_224": 64}


@pytest.fixture(autouse=True)
def _no_gradients():
    """Use one thread: layers this small are slower with several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def library_model(architecture: str, **options) -> nn.Module:
    """Build the network as its library does, with all of its classifier."""
    library, name = architecture.split("/")
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False, num_classes=7, **options)
    from torchvision import models

    if name == "inception_v3":  # what torchvision sets for its own weights
        options |= {"transform_input": True, "init_weights": False}
    return models.get_model(name, weights=None, num_classes=7, **options)


def without_classifier(model: nn.Module) -> nn.Module:
    """Take off a torchvision network's last layers by hand: independent of stages.py."""
    family = type(model).__name__
    if family == "VGG":
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
    elif family == "ConvNeXt":
        model.classifier = model.classifier[:2]
    elif family == "VisionTransformer":
        model.heads = nn.Identity()
    elif hasattr(model, "fc"):
        model.fc = nn.Identity()
    else:
        model.classifier = nn.Identity()
    return model


def cheap_values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Fill a state dict, the same each time, without the seconds that initialising takes."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
        elif tensor.ndim < 2:  # norms: scales and variances above zero, means and biases too
            state[name] = torch.rand(tensor.shape, generator=generator) * 0.5 + 0.75
        else:
            tile = torch.randn(min(tensor.numel(), 65_521), generator=generator)
            tile *= (2 / tensor[0].numel()) ** 0.5
            repeats = -(-tensor.numel() // tile.numel())
            state[name] = tile.repeat(repeats)[: tensor.numel()].reshape(tensor.shape)
    return state


@functools.lru_cache(maxsize=1)
def built(architecture: str) -> tuple[Backbone, nn.Module, int]:
    """Backbone, the library's network with the same values, and the side of the images."""
    spec = resolve(ARCHITECTURES[architecture])
    side = {**SIDES, **SMALL}.get(architecture, 64)
    options = {}
    if architecture in SMALL:
        options = {"img_size": side}
        spec = resolve(f"{spec.name}?img_size={side}&crop={side}")
    with torch.device("meta"):
        try:
            reference = library_model(architecture, **options)
        except NotImplementedError:
            reference = None
    reference = library_model(architecture, **options) if reference is None else reference
    state = cheap_values(reference)
    reference.load_state_dict(state, assign=True)
    return build_from_state(spec, state).eval(), reference.eval(), side


@pytest.fixture(params=ARCHITECTURES)
def case(request):
    return built(request.param)


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_contract(case):
    """One test for all properties, so that each network is built only once."""
    backbone, reference, side = case
    x = images(side)

    # Running stage by stage equals one run, bit for bit; every stage has the declared shape.
    expected, value = backbone.run(x), x
    for stage in backbone.stages:
        value = backbone.run(value, start=stage.name, stop=stage.name)
        if value.ndim == 4:
            assert value.shape[1] == stage.channels
            assert 0.5 < side / value.shape[2] / stage.stride < 2
        else:
            assert value.shape[2] == stage.channels
            assert (side // stage.stride) ** 2 in {value.shape[1], value.shape[1] - 1}
    assert torch.equal(value, expected)
    middle = len(backbone.stages) // 2
    first = backbone.run(x, stop=backbone.stages[middle - 1].name)
    assert torch.equal(backbone.run(first, start=backbone.stages[middle].name), expected)

    # The pooled features are what the library's own classifier reads.
    pooled = backbone.pooled(x)
    assert pooled.shape == (2, backbone.width)
    assert pooled.std() > 0
    assert torch.isfinite(pooled).all()
    if backbone.spec.architecture.startswith("timm/"):
        expected = reference.forward_head(reference.forward_features(x), pre_logits=True)
    else:
        expected = without_classifier(reference)(x)
    assert torch.equal(pooled, expected.flatten(1))
    assert torch.equal(backbone(x), pooled)

    # A backbone that ends earlier is the same network up to that stage, without the rest.
    if len(backbone.stages) > 1:
        last, after = backbone.stages[-2], backbone.stages[-1]
        ending = backbone.spec.ending_at(last.name)
        part = drop_unused_tensors(ending, backbone.trunk.state_dict())
        short = build_from_state(ending, part).eval()
        maps = backbone.run(x, stop=last.name)
        means = maps.flatten(2).mean(2) if maps.ndim == 4 else maps.mean(1)
        assert torch.allclose(short(x), means, rtol=1e-4, atol=1e-5)
        assert short.stages == backbone.stages[:-1]
        assert short.width == last.channels
        assert set(part) == {
            name
            for name in backbone.trunk.state_dict()
            if backbone.stage_of(f"trunk.{name}") != after.name
        }

    # Every parameter and buffer belongs to exactly one stage, and every stage has some.
    owners = {
        name: [stage.name for stage in backbone._plan.stages if belongs_to(name, stage.paths)]
        for name in backbone.trunk.state_dict()
    }
    assert {name: own for name, own in owners.items() if len(own) != 1} == {}
    for name, (owner,) in owners.items():
        assert backbone.stage_of(f"trunk.{name}") == owner
    assert {owner for (owner,) in owners.values()} == {stage.name for stage in backbone.stages}


def test_embedded_weights_recognise_photographs():
    """scikit-learn's two images: a Chinese temple, and a dahlia, which ImageNet calls a daisy."""
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    spec = resolve("embedded/efficientnet_lite0")
    weights = locate(spec, offline=True)
    backbone = load(spec, weights=weights).eval()
    head = original_head(spec, weights)
    assert backbone.head_keys == ("classifier.bias", "classifier.weight")
    for name, right in {"china.jpg": 698, "flower.jpg": 985}.items():  # palace, daisy
        pixels = spec.preprocess.resize_and_crop(sklearn_datasets.load_sample_image(name))
        batch = spec.preprocess.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        logits = backbone.pooled(batch) @ head["classifier.weight"].T + head["classifier.bias"]
        assert right in logits.topk(5).indices


# ------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_matches_the_network_at_its_own_size(architecture):
    """On the ``meta`` device, which takes milliseconds at any size."""
    spec = resolve(ARCHITECTURES[architecture])
    with torch.random.fork_rng(devices=[]):
        measured = build_from_state(replace(spec, stages=(), width=0), meta_values(architecture))
    assert measured.stages == spec.stages
    assert measured.width == spec.width
    assert measured.stages[-1].stride == (16 if "vit_" in architecture else 32)


def meta_values(architecture):
    try:
        with torch.device("meta"):
            return library_model(architecture).state_dict()
    except NotImplementedError:
        return library_model(architecture).state_dict()


# ------------------------------------------------------------------- timm beyond the table


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_resnet", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("test_efficientnet", ["stem", *(f"stage{i}" for i in range(1, 6)), "conv_head"]),
        ("mobilenetv3_small_050", ["stem", *(f"stage{i}" for i in range(1, 7))]),
        ("test_convnext", ["stem", "stage1", "stage2", "stage3", "stage4"]),
        ("regnetx_002", ["stem", "block1", "block2", "block3", "block4"]),
        ("test_vit", ["patches", "blocks1", "blocks2", "blocks3", "blocks4"]),
        ("test_vit4", ["patches", "blocks1", "blocks2", "blocks3", "blocks4"]),
        ("test_nfnet", ["trunk"]),
        ("test_byobnet", ["trunk"]),
        ("swin_tiny_patch4_window7_224", ["trunk"]),
    ],
)
def test_models_of_timm_outside_the_table(name, stages):
    backbone = load(f"timm/{name}", pretrained=False, seed=1).eval()
    assert [stage.name for stage in backbone.stages] == stages
    side = backbone.spec.preprocess.crop
    x = value = images(side, 1)
    for stage in backbone.stages:
        value = backbone.run(value, start=stage.name, stop=stage.name)
        assert stage.channels in value.shape
        assert stage.stride in {2, 4, 8, 16, 32}
    reference = library_model(f"timm/{name}").eval()
    reference.load_state_dict(backbone.trunk.state_dict(), strict=False)
    assert torch.equal(value, reference.forward_features(x))
    pooled = reference.forward_head(value, pre_logits=True)
    assert torch.equal(backbone.pooled(x), pooled)
    assert pooled.shape[1] == backbone.width
    for key in backbone.state_dict():
        assert backbone.stage_of(key) in {stage.name for stage in backbone.stages}


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_stages_are_measured_alike_on_a_canvas_that_is_no_square(name):
    upright, wide, square = (
        load(f"timm/{name}{query}", pretrained=False)
        for query in ("?canvas=160,96", "?canvas=64,224", "")
    )
    assert upright.stages == wide.stages == square.stages
    assert upright.width == square.width


# ------------------------------------------------------------------------------- behaviour


@pytest.fixture(scope="module")
def small() -> Backbone:
    return load("resnet18", pretrained=False).eval()


def test_copies_are_independent(small):
    """A copy in another precision must run on its own values."""
    x = images(64)
    before = small.pooled(x)
    other = copy.deepcopy(small).to(torch.bfloat16)
    for tensor in other.parameters():
        tensor.zero_()
    assert other.pooled(x.to(torch.bfloat16)).dtype == torch.bfloat16
    assert torch.equal(small.pooled(x), before)


def test_random_weights_come_from_the_seed_and_leave_torchs_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    weights = fingerprint(load("resnet18", pretrained=False, seed=1).state_dict())
    assert torch.equal(torch.rand(1), expected)
    assert fingerprint(load("resnet18", pretrained=False, seed=1).state_dict()) == weights
    assert fingerprint(load("resnet18", pretrained=False, seed=2).state_dict()) != weights


def test_load_leaves_the_training_mode_alone():
    """``freezing`` sets gradients and modes; ``load`` leaves them as the library does."""
    with torch.inference_mode(False):
        for name in ("resnet18", "timm/test_resnet"):
            backbone = load(name, pretrained=False)
            rebuilt = build_from_state(backbone.spec, backbone.trunk.state_dict())
            for module in (backbone, rebuilt):
                assert module.training
                assert all(tensor.requires_grad for tensor in module.parameters())


def test_measuring_leaves_running_statistics_alone():
    spec = resolve("timm/test_resnet")
    backbone = load(spec, pretrained=False, seed=3)
    assert backbone.training
    for name, tensor in backbone.trunk.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert tensor == 0
        elif name.endswith("running_mean"):
            assert not tensor.any()


def test_inception_takes_imagenet_images_to_its_own_scale():
    backbone = built("torchvision/inception_v3")[0]
    assert backbone.trunk.transform_input
    assert backbone.trunk.AuxLogits is None or not list(backbone.trunk.AuxLogits.parameters())
    assert {key.partition(".")[0] for key in backbone.head_keys} == {"fc", "AuxLogits"}


@pytest.mark.parametrize(
    ("start", "stop", "error", "message"),
    [
        ("layer5", None, UnknownNameError, "Unknown stage: 'layer5'"),
        (None, "fc", UnknownNameError, "Unknown stage: 'fc'"),
        ("layer3", "layer2", UsageError, "got 'layer3' to 'layer2'"),
    ],
)
def test_stages_that_cannot_be_run(small, start, stop, error, message):
    with pytest.raises(error, match=message):
        small.run(images(64), start=start, stop=stop)
    with pytest.raises(UnknownNameError, match="parameter"):
        small.stage_of("trunk.fc.weight")


# --------------------------------------------------------------------- weights that differ


def stored(state, folder) -> str:
    torch.save(state, folder / "w.pth")
    return f"file:{folder / 'w.pth'}@torchvision/resnet18"


def test_a_file_gives_its_values_and_its_head(tmp_path):
    model = library_model("torchvision/resnet18").eval()
    for tensor in model.state_dict().values():
        if tensor.ndim == 4:
            tensor.copy_(tensor.half())
    half = {k: v.half() if v.ndim == 4 else v for k, v in model.state_dict().items()}
    name = stored(half, tmp_path)
    backbone, x = load(name).eval(), images(64)
    assert {tensor.dtype for tensor in backbone.parameters()} == {torch.float32}
    head = original_head(backbone.spec, locate(backbone.spec))
    logits = backbone.pooled(x) @ head["fc.weight"].T + head["fc.bias"]
    torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-4)


def test_files_without_a_classifier_or_batch_counts_are_complete(tmp_path):
    state = library_model("torchvision/resnet18").state_dict()
    backbone = {k: v for k, v in state.items() if "num_batches" not in k and "fc." not in k}
    module = load(stored(backbone, tmp_path))
    assert module.head_keys == ()
    assert not any(t.is_meta for t in module.state_dict().values())
    assert original_head(module.spec, locate(module.spec)) == {}


def test_differences_are_listed(tmp_path):
    state = library_model("torchvision/resnet18").state_dict()
    state["extra.weight"] = state.pop("layer1.0.conv1.weight")
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(WeightsMismatchError) as caught:
        load(stored(state, tmp_path))
    for part in (
        "3 differences",
        "missing layer1.0.conv1.weight",
        "unexpected extra.weight",
        "conv1.weight of shape (64, 1, 7, 7) instead of (64, 3, 7, 7)",
    ):
        assert part in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path):
    name = stored(library_model("torchvision/resnet18").state_dict(), tmp_path)
    with pytest.raises(WeightsMismatchError, match="Name the architecture") as caught:
        load(name.replace("resnet18", "resnet50"))
    message = str(caught.value)
    assert "188 differences: missing layer1.0.conv3.weight; " in message
    assert "and 180 more" in message
    assert len(message) < 1000


def test_padding_is_part_of_the_name(tmp_path):
    """TensorFlow's padding changes the features, so a lost option must be visible."""
    model = library_model("timm/mobilenetv2_100", pad_type="same").eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    name = f"file:{tmp_path / 'w.pth'}@timm/mobilenetv2_100"
    x = images(64)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    assert torch.equal(load(f"{name}?pad_type=same").eval().pooled(x), expected)
    assert not torch.allclose(load(name).eval().pooled(x), expected, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_on_loading(value):
    backbone = load("embedded/efficientnet_lite0")
    state = {name: tensor.clone() for name, tensor in backbone.trunk.state_dict().items()}
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name][0] = value
    with pytest.raises(WeightsMismatchError, match="NaN or infinity in"):
        build_from_state(backbone.spec, state)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda name, t: t.to(torch.int8), "of type torch.int8 instead of torch.float32"),
        (lambda name, t: t > 0, "of type torch.bool instead of torch.float32"),
        (lambda name, t: -t, "have a variance below 0 in"),
    ],
)
def test_weights_of_another_kind_are_refused_on_loading(change, reason):
    backbone = load("embedded/efficientnet_lite0")
    state = {name: tensor.clone() for name, tensor in backbone.trunk.state_dict().items()}
    name = next(name for name in state if name.endswith("running_var"))
    state[name] = change(name, state[name])
    with pytest.raises(WeightsMismatchError, match=reason):
        build_from_state(backbone.spec, state)
