"""Where networks are cut: each family's stages, in the order in which they run.

A stage is a list of steps, and a step is either the path of a submodule or a function of the
whole network and its input. Run one after the other they are the library's own forward pass,
operation for operation; the contract test holds that bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from headstart.errors import UnknownNameError, UsageError

__all__ = ["Plan", "StageModules", "ended", "mean_of_places", "plan"]

Step = str | Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class StageModules:
    """One stage: its steps, and paths of the parameters that its functions use.

    Parameters
    ----------
    name : str
    steps : tuple
    owns : tuple of str
        Paths beside the steps' own.
    """

    name: str
    steps: tuple[Step, ...]
    owns: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the submodules and parameters that belong to the stage."""
        return (*self.owns, *(step for step in self.steps if isinstance(step, str)))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a network is run without its classifier.

    Parameters
    ----------
    cuts : tuple of Cut
        The stages, in order.
    pool : callable
        From the last stage's output to (n, width), what the original classifier reads.
    heads : tuple of str
        Paths of the classifier's parts: in the weights' file, but not in the backbone.
    dropped : tuple of str
        Paths of the stages behind the one that it ends with.
    """

    cuts: tuple[StageModules, ...]
    pool: Callable[[nn.Module, Tensor], Tensor]
    heads: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def plan(architecture: str, model: nn.Module) -> Plan:
    """Find where a network is cut.

    Parameters
    ----------
    architecture : str
        ``"torchvision/..."`` or ``"timm/..."``.
    model : torch.nn.Module
        As the library builds it, with or without its classifier.

    Returns
    -------
    Plan
        One stage called ``trunk`` where the family is not known.
    """
    family = type(model).__name__
    if architecture.startswith("timm/"):
        return _timm(family, model)
    return _TORCHVISION[family](model)


def ended(how: Plan, model: nn.Module, stage: str) -> Plan:
    """Take the stages behind one out of a network, in place; what is left is pooled by the mean.

    Raises
    ------
    UnknownNameError
        If there is no such stage.
    UsageError
        If no stage comes behind it.
    """
    known = [cut.name for cut in how.cuts]
    if stage not in known:
        raise UnknownNameError("stage", stage, known)
    end = known.index(stage) + 1
    if end == len(known):
        raise UsageError(
            f"Expected `until` to name a stage before the last one, got {stage!r}; do leave it "
            "out: the backbone ends there."
        )
    dropped = tuple(path for cut in how.cuts[end:] for path in cut.paths)
    for path in dropped:
        owner, _, name = path.rpartition(".")
        parent = model.get_submodule(owner)
        is_module = isinstance(getattr(parent, name), nn.Module)
        setattr(parent, name, nn.Identity() if is_module else None)
    return Plan(cuts=how.cuts[:end], pool=_mean, heads=how.heads, dropped=dropped)


def _mean(model: nn.Module, x: Tensor) -> Tensor:
    return mean_of_places(x)


def mean_of_places(x: Tensor) -> Tensor:
    """Mean over places (n, channels) of maps (n, channels, h, w) or tokens (n, tokens, channels).

    >>> mean_of_places(torch.ones(2, 8, 3, 3)).shape
    torch.Size([2, 8])
    """
    return x.mean(1) if x.ndim == 3 else x.mean((2, 3))


def _timm(family: str, model: nn.Module) -> Plan:
    config = getattr(model, "pretrained_cfg", {})
    named = config.get("classifier") or ()
    heads = (named,) if isinstance(named, str) else tuple(named)
    cuts = _TIMM[family](model) if family in _TIMM else (_timm_trunk(),)
    return Plan(cuts=_with_rest(model, cuts, heads), pool=_timm_pool, heads=heads)


def _with_rest(
    model: nn.Module, cuts: tuple[StageModules, ...], heads: tuple[str, ...]
) -> tuple[StageModules, ...]:
    """Give what the pooling uses (norms, attention pools) to the last stage."""
    taken = tuple(path for cut in cuts for path in cut.paths) + heads
    rest = tuple(
        name for name in model.state_dict() if not any(_within(name, path) for path in taken)
    )
    last = cuts[-1]
    return (*cuts[:-1], StageModules(name=last.name, steps=last.steps, owns=(*last.owns, *rest)))


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _cut(name: str, *steps: Step) -> StageModules:
    return StageModules(name=name, steps=steps)


# ------------------------------------------------------------------- torchvision's families


def _average(model: nn.Module, x: Tensor) -> Tensor:
    return torch.flatten(model.avgpool(x), 1)  # type: ignore[operator]


def _global_average(model: nn.Module, x: Tensor) -> Tensor:
    return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)


def _resnet(model: nn.Module) -> Plan:
    layers = (_cut(name, name) for name in ("layer1", "layer2", "layer3", "layer4"))
    stem = _cut("stem", "conv1", "bn1", "relu", "maxpool")
    return Plan(cuts=(stem, *layers), pool=_average, heads=("fc",))


def _vgg(model: nn.Module) -> Plan:
    # VGG's own head reads 7 x 7 places; the mean over them is the usual feature, 512 wide.
    cuts: list[StageModules] = []
    steps: list[Step] = []
    for name, layer in model.features.named_children():  # type: ignore[union-attr]
        steps.append(f"features.{name}")
        if isinstance(layer, nn.MaxPool2d):
            cuts.append(_cut(f"block{len(cuts) + 1}", *steps))
            steps = []
    return Plan(cuts=tuple(cuts), pool=_global_average, heads=("classifier",))


def _numbered(model: nn.Module) -> Plan:
    """EfficientNet: a stem, seven stages, a last convolution."""
    last = len(model.features) - 1  # type: ignore[arg-type]
    names = ["stem", *(f"stage{i}" for i in range(1, last)), "conv_head"]
    cuts = tuple(_cut(name, f"features.{i}") for i, name in enumerate(names))
    return Plan(cuts=cuts, pool=_average, heads=("classifier",))


def _mobilenet(model: nn.Module) -> Plan:
    """MobileNet v2 and v3: a new stage begins with every block that halves the map."""
    blocks = list(model.features)  # type: ignore[arg-type]
    last = len(blocks) - 1
    edges = [0, *(i for i in range(1, last) if _halves(blocks[i])), last, last + 1]
    names = ["stem", *(f"stage{i}" for i in range(1, len(edges) - 2)), "conv_head"]
    cuts = [
        _cut(name, *(f"features.{i}" for i in range(begin, end)))
        for name, (begin, end) in zip(names, pairwise(edges), strict=True)
    ]
    pool = _average if hasattr(model, "avgpool") else _global_average
    return Plan(cuts=tuple(cuts), pool=pool, heads=("classifier",))


def _halves(block: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) and m.stride[0] == 2 for m in block.modules())


def _densenet(model: nn.Module) -> Plan:
    stem = _cut("stem", *(f"features.{name}" for name in ("conv0", "norm0", "relu0", "pool0")))
    blocks = [_cut("block1", "features.denseblock1")]
    for i in (2, 3, 4):
        steps: list[Step] = [f"features.transition{i - 1}", f"features.denseblock{i}"]
        blocks.append(_cut(f"block{i}", *steps, *(("features.norm5", _relu) if i == 4 else ())))
    return Plan(cuts=(stem, *blocks), pool=_global_average, heads=("classifier",))


def _relu(model: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.relu(x)


def _convnext(model: nn.Module) -> Plan:
    # The LayerNorm before the classifier belongs to what was pretrained.
    cuts = (
        _cut("stem", "features.0"),
        _cut("stage1", "features.1"),
        _cut("stage2", "features.2", "features.3"),
        _cut("stage3", "features.4", "features.5"),
        StageModules(name="stage4", steps=("features.6", "features.7"), owns=("classifier.0",)),
    )
    return Plan(cuts=cuts, pool=_convnext_pool, heads=("classifier.2",))


def _convnext_pool(model: nn.Module, x: Tensor) -> Tensor:
    norm = model.get_submodule("classifier.0")
    return torch.flatten(norm(model.avgpool(x)), 1)  # type: ignore[operator]


def _regnet(model: nn.Module) -> Plan:
    blocks = (_cut(f"block{i}", f"trunk_output.block{i}") for i in range(1, 5))
    return Plan(cuts=(_cut("stem", "stem"), *blocks), pool=_average, heads=("fc",))


def _inception(model: nn.Module) -> Plan:
    def mixed(number: int, letters: str) -> StageModules:
        return _cut(f"mixed{number}", *(f"Mixed_{number}{letter}" for letter in letters))

    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1")
    cuts = (
        _cut("stem", _inception_input, *stem),
        _cut("conv", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
        mixed(5, "bcd"),
        mixed(6, "abcde"),
        mixed(7, "abc"),
    )
    return Plan(cuts=cuts, pool=_average, heads=("fc", "AuxLogits"))


def _inception_input(model: nn.Module, x: Tensor) -> Tensor:
    # From ImageNet's mean and deviation to the 0.5 that these weights were trained with.
    return model._transform_input(x)  # type: ignore[operator, no-any-return]


def _vit(model: nn.Module) -> Plan:
    stem = StageModules(
        name="patches",
        steps=(_vit_patches,),
        owns=("conv_proj", "class_token", "encoder.pos_embedding"),
    )
    layers = [
        f"encoder.layers.{name}"
        for name, _ in model.get_submodule("encoder.layers").named_children()
    ]
    cuts = (stem, *_quarters(layers, ("encoder.ln",)))
    return Plan(cuts=cuts, pool=_class_token, heads=("heads",))


def _quarters(layers: list[str], after: tuple[Step, ...]) -> tuple[StageModules, ...]:
    """Blocks of a transformer in at most four stages; what follows them is in the last."""
    count = min(4, len(layers))
    edges = [round(i * len(layers) / count) for i in range(count + 1)]
    parts: list[tuple[Step, ...]] = [tuple(layers[begin:end]) for begin, end in pairwise(edges)]
    parts[-1] += after
    return tuple(_cut(f"blocks{i}", *steps) for i, steps in enumerate(parts, start=1))


def _vit_patches(model: nn.Module, x: Tensor) -> Tensor:
    tokens = model._process_input(x)  # type: ignore[operator]
    token = model.class_token.expand(tokens.shape[0], -1, -1)  # type: ignore[operator]
    encoder = model.get_submodule("encoder")
    embedded = torch.cat([token, tokens], dim=1) + encoder.pos_embedding  # type: ignore[operator]
    return encoder.dropout(embedded)  # type: ignore[operator, no-any-return]


def _class_token(model: nn.Module, x: Tensor) -> Tensor:
    return x[:, 0]


_TORCHVISION: dict[str, Callable[[nn.Module], Plan]] = {
    "ResNet": _resnet,
    "VGG": _vgg,
    "EfficientNet": _numbered,
    "MobileNetV2": _mobilenet,
    "MobileNetV3": _mobilenet,
    "DenseNet": _densenet,
    "ConvNeXt": _convnext,
    "RegNet": _regnet,
    "Inception3": _inception,
    "VisionTransformer": _vit,
}


# -------------------------------------------------------------------------- timm's families


def _timm_pool(model: nn.Module, x: Tensor) -> Tensor:
    return model.forward_head(x, pre_logits=True)  # type: ignore[operator, no-any-return]


def _timm_trunk() -> StageModules:
    return _cut("trunk", _timm_features)


def _timm_features(model: nn.Module, x: Tensor) -> Tensor:
    return model.forward_features(x)  # type: ignore[operator, no-any-return]


def _timm_resnet(model: nn.Module) -> tuple[StageModules, ...]:
    stem = _cut("stem", "conv1", "bn1", "act1", "maxpool")
    return (stem, *(_cut(name, name) for name in ("layer1", "layer2", "layer3", "layer4")))


def _timm_efficientnet(model: nn.Module) -> tuple[StageModules, ...]:
    stages = _children(model, "blocks", "stage")
    return (_cut("stem", "conv_stem", "bn1"), *stages, _cut("conv_head", "conv_head", "bn2"))


def _timm_mobilenetv3(model: nn.Module) -> tuple[StageModules, ...]:
    # Its last convolution comes after the pooling.
    return (_cut("stem", "conv_stem", "bn1"), *_children(model, "blocks", "stage"))


def _timm_convnext(model: nn.Module) -> tuple[StageModules, ...]:
    *stages, last = _children(model, "stages", "stage")
    return (_cut("stem", "stem"), *stages, _cut(last.name, *last.steps, "norm_pre"))


def _timm_regnet(model: nn.Module) -> tuple[StageModules, ...]:
    blocks = (_cut(f"block{i}", f"s{i}") for i in (1, 2, 3))
    return (_cut("stem", "stem"), *blocks, _cut("block4", "s4", "final_conv"))


def _timm_vit(model: nn.Module) -> tuple[StageModules, ...]:
    tokens = ("cls_token", "reg_token", "pos_embed", "patch_embed", "patch_drop", "norm_pre")
    stem = StageModules(name="patches", steps=(_timm_patches,), owns=tokens)
    layers = [f"blocks.{name}" for name, _ in model.get_submodule("blocks").named_children()]
    return (stem, *_quarters(layers, ("norm",)))


def _timm_patches(model: nn.Module, x: Tensor) -> Tensor:
    embedded = model._pos_embed(model.patch_embed(x))  # type: ignore[operator]
    return model.norm_pre(model.patch_drop(embedded))  # type: ignore[operator, no-any-return]


def _children(model: nn.Module, path: str, name: str) -> tuple[StageModules, ...]:
    children = model.get_submodule(path).named_children()
    return tuple(_cut(f"{name}{i}", f"{path}.{key}") for i, (key, _) in enumerate(children, 1))


_TIMM: dict[str, Callable[[nn.Module], tuple[StageModules, ...]]] = {
    "ResNet": _timm_resnet,
    "EfficientNet": _timm_efficientnet,
    "MobileNetV3": _timm_mobilenetv3,
    "ConvNeXt": _timm_convnext,
    "RegNet": _timm_regnet,
    "VisionTransformer": _timm_vit,
}
