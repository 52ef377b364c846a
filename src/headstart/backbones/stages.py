"""Stages of each family of networks, in execution order.

A stage is a list of steps. A step is either the path of a submodule or a function of the network
and its input. Run in order, the steps are the library's own forward pass: a test checks that the
outputs are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from headstart.errors import UnknownNameError, UsageError

__all__ = [
    "StageModules",
    "StagePlan",
    "belongs_to",
    "plan_stages",
    "spatial_mean",
    "truncate_after",
]

Step = str | Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class StageModules:
    """One stage: its steps and the paths of the parameters that its functions use.

    Parameters
    ----------
    name : str
    steps : tuple
    owns : tuple of str
        Further paths, of the parameters that functions among the steps use.
    """

    name: str
    steps: tuple[Step, ...]
    owns: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the submodules and parameters that belong to the stage."""
        return (*self.owns, *(step for step in self.steps if isinstance(step, str)))


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Plan for running a network without its classifier.

    Parameters
    ----------
    stages : tuple of StageModules
        In execution order.
    pool : callable
        From the output of the last stage to the input of the original classifier, (n, width).
    heads : tuple of str
        Paths of the classifier's parts, which are in the weights file but not in the backbone.
    dropped : tuple of str
        Paths of the removed stages, if the backbone ends early.
    """

    stages: tuple[StageModules, ...]
    pool: Callable[[nn.Module, Tensor], Tensor]
    heads: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def plan_stages(architecture: str, model: nn.Module) -> StagePlan:
    """Divide a network into stages.

    Parameters
    ----------
    architecture : str
        ``"torchvision/..."`` or ``"timm/..."``.
    model : torch.nn.Module
        The library's network, with or without its classifier.

    Returns
    -------
    StagePlan
        With a single stage called ``trunk`` if the family is unknown.
    """
    family = type(model).__name__
    if architecture.startswith("timm/"):
        return _plan_timm(family, model)
    return _TORCHVISION_FAMILIES[family](model)


def truncate_after(plan: StagePlan, model: nn.Module, stage: str) -> StagePlan:
    """Remove the stages after ``stage`` from a network, in place; pool by the spatial mean.

    Raises
    ------
    UnknownNameError
        If there is no such stage.
    UsageError
        If it is the last stage.
    """
    names = [modules.name for modules in plan.stages]
    if stage not in names:
        raise UnknownNameError("stage", stage, names)
    end = names.index(stage) + 1
    if end == len(names):
        raise UsageError(
            f"Expected `until` to name a stage before the last one, got {stage!r}, which is the "
            f"last one. Remove `until={stage}` from the name of the backbone."
        )
    dropped = tuple(path for modules in plan.stages[end:] for path in modules.paths)
    # Replace what is dropped, so that the path of every other submodule stays the same.
    for path in dropped:
        owner, _, name = path.rpartition(".")
        parent = model.get_submodule(owner)
        is_module = isinstance(getattr(parent, name), nn.Module)
        setattr(parent, name, nn.Identity() if is_module else None)
    return StagePlan(
        stages=plan.stages[:end], pool=_pool_spatial_mean, heads=plan.heads, dropped=dropped
    )


def _pool_spatial_mean(model: nn.Module, x: Tensor) -> Tensor:
    return spatial_mean(x)


def spatial_mean(x: Tensor) -> Tensor:
    """Mean (n, channels) of maps (n, channels, h, w) or of tokens (n, tokens, channels).

    >>> spatial_mean(torch.ones(2, 8, 3, 3)).shape
    torch.Size([2, 8])
    """
    return x.mean(1) if x.ndim == 3 else x.mean((2, 3))


def _plan_timm(family: str, model: nn.Module) -> StagePlan:
    config = getattr(model, "pretrained_cfg", {})
    classifier = config.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    stages = _TIMM_FAMILIES[family](model) if family in _TIMM_FAMILIES else (_timm_single_stage(),)
    return StagePlan(stages=_assign_remaining(model, stages, heads), pool=_timm_pool, heads=heads)


def _assign_remaining(
    model: nn.Module, stages: tuple[StageModules, ...], heads: tuple[str, ...]
) -> tuple[StageModules, ...]:
    """Assign the parameters of the pooling (norms, attention pools) to the last stage."""
    assigned = tuple(path for stage in stages for path in stage.paths) + heads
    rest = tuple(name for name in model.state_dict() if not belongs_to(name, assigned))
    last = stages[-1]
    return (*stages[:-1], StageModules(name=last.name, steps=last.steps, owns=(*last.owns, *rest)))


def belongs_to(name: str, paths: Iterable[str]) -> bool:
    """Whether a tensor, submodule or parameter is, or lies inside, one of the paths.

    >>> belongs_to("layer1.0.weight", ["layer1"]), belongs_to("layer10.weight", ["layer1"])
    (True, False)
    """
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _stage(name: str, *steps: Step) -> StageModules:
    return StageModules(name=name, steps=steps)


# ------------------------------------------------------------------- torchvision's families


def _average_pool(model: nn.Module, x: Tensor) -> Tensor:
    return torch.flatten(model.avgpool(x), 1)  # type: ignore[operator]


def _global_average_pool(model: nn.Module, x: Tensor) -> Tensor:
    return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)


def _resnet(model: nn.Module) -> StagePlan:
    layers = (_stage(name, name) for name in ("layer1", "layer2", "layer3", "layer4"))
    stem = _stage("stem", "conv1", "bn1", "relu", "maxpool")
    return StagePlan(stages=(stem, *layers), pool=_average_pool, heads=("fc",))


def _vgg(model: nn.Module) -> StagePlan:
    # VGG's own head reads a map of 7 x 7; its spatial mean is the usual feature, 512 wide.
    stages: list[StageModules] = []
    steps: list[Step] = []
    for name, layer in model.features.named_children():  # type: ignore[union-attr]
        steps.append(f"features.{name}")
        if isinstance(layer, nn.MaxPool2d):
            stages.append(_stage(f"block{len(stages) + 1}", *steps))
            steps = []
    return StagePlan(stages=tuple(stages), pool=_global_average_pool, heads=("classifier",))


def _efficientnet(model: nn.Module) -> StagePlan:
    """EfficientNet: a stem, seven stages, a last convolution."""
    last = len(model.features) - 1  # type: ignore[arg-type]
    names = ["stem", *(f"stage{i}" for i in range(1, last)), "conv_head"]
    stages = tuple(_stage(name, f"features.{i}") for i, name in enumerate(names))
    return StagePlan(stages=stages, pool=_average_pool, heads=("classifier",))


def _mobilenet(model: nn.Module) -> StagePlan:
    """MobileNet v2 and v3: every block that halves the map starts a new stage."""
    blocks = list(model.features)  # type: ignore[arg-type]
    last = len(blocks) - 1
    edges = [0, *(i for i in range(1, last) if _halves_the_map(blocks[i])), last, last + 1]
    names = ["stem", *(f"stage{i}" for i in range(1, len(edges) - 2)), "conv_head"]
    stages = [
        _stage(name, *(f"features.{i}" for i in range(start, end)))
        for name, (start, end) in zip(names, pairwise(edges), strict=True)
    ]
    pool = _average_pool if hasattr(model, "avgpool") else _global_average_pool
    return StagePlan(stages=tuple(stages), pool=pool, heads=("classifier",))


def _halves_the_map(block: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) and m.stride[0] == 2 for m in block.modules())


def _densenet(model: nn.Module) -> StagePlan:
    stem = _stage("stem", *(f"features.{name}" for name in ("conv0", "norm0", "relu0", "pool0")))
    blocks = [_stage("block1", "features.denseblock1")]
    for i in (2, 3, 4):
        steps: list[Step] = [f"features.transition{i - 1}", f"features.denseblock{i}"]
        blocks.append(_stage(f"block{i}", *steps, *(("features.norm5", _relu) if i == 4 else ())))
    return StagePlan(stages=(stem, *blocks), pool=_global_average_pool, heads=("classifier",))


def _relu(model: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.relu(x)


def _convnext(model: nn.Module) -> StagePlan:
    # The LayerNorm in the classifier is pretrained: it belongs to the backbone.
    stages = (
        _stage("stem", "features.0"),
        _stage("stage1", "features.1"),
        _stage("stage2", "features.2", "features.3"),
        _stage("stage3", "features.4", "features.5"),
        StageModules(name="stage4", steps=("features.6", "features.7"), owns=("classifier.0",)),
    )
    return StagePlan(stages=stages, pool=_convnext_pool, heads=("classifier.2",))


def _convnext_pool(model: nn.Module, x: Tensor) -> Tensor:
    norm = model.get_submodule("classifier.0")
    return torch.flatten(norm(model.avgpool(x)), 1)  # type: ignore[operator]


def _regnet(model: nn.Module) -> StagePlan:
    blocks = (_stage(f"block{i}", f"trunk_output.block{i}") for i in range(1, 5))
    return StagePlan(stages=(_stage("stem", "stem"), *blocks), pool=_average_pool, heads=("fc",))


def _inception(model: nn.Module) -> StagePlan:
    def mixed(number: int, letters: str) -> StageModules:
        return _stage(f"mixed{number}", *(f"Mixed_{number}{letter}" for letter in letters))

    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1")
    stages = (
        _stage("stem", _inception_input, *stem),
        _stage("conv", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
        mixed(5, "bcd"),
        mixed(6, "abcde"),
        mixed(7, "abc"),
    )
    return StagePlan(stages=stages, pool=_average_pool, heads=("fc", "AuxLogits"))


def _inception_input(model: nn.Module, x: Tensor) -> Tensor:
    # These weights were trained with mean and standard deviation 0.5, not with ImageNet's.
    return model._transform_input(x)  # type: ignore[operator, no-any-return]


def _vit(model: nn.Module) -> StagePlan:
    stem = StageModules(
        name="patches",
        steps=(_vit_patches,),
        owns=("conv_proj", "class_token", "encoder.pos_embedding"),
    )
    layers = [
        f"encoder.layers.{name}"
        for name, _ in model.get_submodule("encoder.layers").named_children()
    ]
    stages = (stem, *_group_blocks(layers, ("encoder.ln",)))
    return StagePlan(stages=stages, pool=_class_token, heads=("heads",))


def _group_blocks(layers: list[str], after: tuple[Step, ...]) -> tuple[StageModules, ...]:
    """Group a transformer's blocks into at most four stages; the last includes ``after``."""
    count = min(4, len(layers))
    edges = [round(i * len(layers) / count) for i in range(count + 1)]
    parts: list[tuple[Step, ...]] = [tuple(layers[start:end]) for start, end in pairwise(edges)]
    parts[-1] += after
    return tuple(_stage(f"blocks{i}", *steps) for i, steps in enumerate(parts, start=1))


def _vit_patches(model: nn.Module, x: Tensor) -> Tensor:
    tokens = model._process_input(x)  # type: ignore[operator]
    token = model.class_token.expand(tokens.shape[0], -1, -1)  # type: ignore[operator]
    encoder = model.get_submodule("encoder")
    embedded = torch.cat([token, tokens], dim=1) + encoder.pos_embedding  # type: ignore[operator]
    return encoder.dropout(embedded)  # type: ignore[operator, no-any-return]


def _class_token(model: nn.Module, x: Tensor) -> Tensor:
    return x[:, 0]


_TORCHVISION_FAMILIES: dict[str, Callable[[nn.Module], StagePlan]] = {
    "ResNet": _resnet,
    "VGG": _vgg,
    "EfficientNet": _efficientnet,
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


def _timm_single_stage() -> StageModules:
    return _stage("trunk", _timm_features)


def _timm_features(model: nn.Module, x: Tensor) -> Tensor:
    return model.forward_features(x)  # type: ignore[operator, no-any-return]


def _timm_resnet(model: nn.Module) -> tuple[StageModules, ...]:
    stem = _stage("stem", "conv1", "bn1", "act1", "maxpool")
    return (stem, *(_stage(name, name) for name in ("layer1", "layer2", "layer3", "layer4")))


def _timm_efficientnet(model: nn.Module) -> tuple[StageModules, ...]:
    stages = _stages_of_children(model, "blocks", "stage")
    return (_stage("stem", "conv_stem", "bn1"), *stages, _stage("conv_head", "conv_head", "bn2"))


def _timm_mobilenetv3(model: nn.Module) -> tuple[StageModules, ...]:
    # Its last convolution comes after the pooling, so it is part of the pooling.
    return (_stage("stem", "conv_stem", "bn1"), *_stages_of_children(model, "blocks", "stage"))


def _timm_convnext(model: nn.Module) -> tuple[StageModules, ...]:
    *stages, last = _stages_of_children(model, "stages", "stage")
    return (_stage("stem", "stem"), *stages, _stage(last.name, *last.steps, "norm_pre"))


def _timm_regnet(model: nn.Module) -> tuple[StageModules, ...]:
    blocks = (_stage(f"block{i}", f"s{i}") for i in (1, 2, 3))
    return (_stage("stem", "stem"), *blocks, _stage("block4", "s4", "final_conv"))


def _timm_vit(model: nn.Module) -> tuple[StageModules, ...]:
    tokens = ("cls_token", "reg_token", "pos_embed", "patch_embed", "patch_drop", "norm_pre")
    stem = StageModules(name="patches", steps=(_timm_patches,), owns=tokens)
    layers = [f"blocks.{name}" for name, _ in model.get_submodule("blocks").named_children()]
    return (stem, *_group_blocks(layers, ("norm",)))


def _timm_patches(model: nn.Module, x: Tensor) -> Tensor:
    embedded = model._pos_embed(model.patch_embed(x))  # type: ignore[operator]
    return model.norm_pre(model.patch_drop(embedded))  # type: ignore[operator, no-any-return]


def _stages_of_children(model: nn.Module, path: str, name: str) -> tuple[StageModules, ...]:
    children = model.get_submodule(path).named_children()
    return tuple(_stage(f"{name}{i}", f"{path}.{key}") for i, (key, _) in enumerate(children, 1))


_TIMM_FAMILIES: dict[str, Callable[[nn.Module], tuple[StageModules, ...]]] = {
    "ResNet": _timm_resnet,
    "EfficientNet": _timm_efficientnet,
    "MobileNetV3": _timm_mobilenetv3,
    "ConvNeXt": _timm_convnext,
    "RegNet": _timm_regnet,
    "VisionTransformer": _timm_vit,
}
