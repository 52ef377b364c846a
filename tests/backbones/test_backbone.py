"""The contract of all backbones, held against the libraries' own networks."""

import functools

import pytest
import torch
from torch import nn

from headstart.backbones.backbone import Backbone, assemble, load, original_head
from headstart.backbones.catalog import names, resolve
from headstart.backbones.weights import locate

ARCHITECTURES = {spec.architecture: spec.name for spec in map(resolve, names())}
SIDES = {"torchvision/inception_v3": 160, "torchvision/vit_b_16": 224}
SMALL = {"timm/vit_tiny_patch16_224": 64, "timm/vit_small_patch16_224": 64}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


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
    """Backbone, the library's network with the same values, and the side of the pictures."""
    spec = resolve(ARCHITECTURES[architecture])
    side = {**SIDES, **SMALL}.get(architecture, 96)
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
    return assemble(spec, state).eval(), reference.eval(), side


@pytest.fixture(params=ARCHITECTURES)
def case(request):
    return built(request.param)


def pictures(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_contract(case):
    """One test, so that each network is built once: see the comments."""
    backbone, reference, side = case
    x = pictures(side)

    # Stage by stage is the whole run, bit for bit, and every stage is as declared.
    whole, value = backbone.forward_features(x), x
    for stage in backbone.stages:
        value = backbone.run(value, start=stage.name, stop=stage.name)
        if value.ndim == 4:
            assert value.shape[1] == stage.channels
            assert 0.5 < side / value.shape[2] / stage.stride < 2
        else:
            assert value.shape[2] == stage.channels
            assert (side // stage.stride) ** 2 in {value.shape[1], value.shape[1] - 1}
    assert torch.equal(value, whole)
    middle = len(backbone.stages) // 2
    first = backbone.run(x, stop=backbone.stages[middle - 1].name)
    assert torch.equal(backbone.run(first, start=backbone.stages[middle].name), whole)

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

    # Every parameter and buffer belongs to exactly one stage, and every stage has some.
    owners = {
        name: [c.name for c in backbone._plan.cuts if _owned(c.paths, name)]
        for name in backbone.trunk.state_dict()
    }
    assert {name: own for name, own in owners.items() if len(own) != 1} == {}
    for name, (owner,) in owners.items():
        assert backbone.stage_of(f"trunk.{name}") == owner
    assert {owner for (owner,) in owners.values()} == {stage.name for stage in backbone.stages}


def _owned(paths, name):
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def test_embedded_weights_know_what_a_photograph_shows():
    """scikit-learn's pictures: a Chinese temple and a dahlia, which ImageNet calls a daisy."""
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
