"""A backbone: a pretrained network without its classifier, in stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones.catalog import resolve
from headstart.backbones.spec import BackboneSpec, Stage
from headstart.backbones.stages import (
    StageModules,
    StagePlan,
    belongs_to,
    plan_stages,
    spatial_mean,
    truncate_after,
)
from headstart.backbones.weights import WeightsFile, locate, read_state
from headstart.data.dataset import html_table
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnknownNameError, UsageError, WeightsMismatchError

__all__ = [
    "Backbone",
    "StageFeatures",
    "StageRows",
    "build_from_state",
    "drop_unused_tensors",
    "load",
    "original_head",
]


class Backbone(nn.Module):
    """A network without its classifier that runs any range of its stages.

    Parameters
    ----------
    spec : BackboneSpec
    trunk : torch.nn.Module
        The library's network; its parameters keep the library's names.
    plan : StagePlan
        Its stages, pooling and classifier.

    Attributes
    ----------
    stages : tuple of Stage
        In execution order.
    width : int
        Number of pooled features.
    head_keys : tuple of str
        Names of the original classifier's tensors in the weights file; ``original_head`` reads
        them.
    origin : dict of str to str
        Of the weights of a network of the user's own; else empty.

    Examples
    --------
    >>> backbone = load("torchvision/resnet18", pretrained=False).eval()
    >>> [stage.name for stage in backbone.stages]
    ['stem', 'layer1', 'layer2', 'layer3', 'layer4']
    >>> half = backbone.run(torch.zeros(1, 3, 64, 64), stop="layer2")
    >>> half.shape
    torch.Size([1, 128, 8, 8])
    >>> backbone.pool(backbone.run(half, start="layer3")).shape
    torch.Size([1, 512])
    """

    def __init__(self, spec: BackboneSpec, trunk: nn.Module, plan: StagePlan) -> None:
        super().__init__()
        self.spec = spec
        self.trunk = trunk
        self.head_keys: tuple[str, ...] = ()
        self.origin: dict[str, str] = {}
        self._plan = plan
        if spec.stages and spec.width:
            self.stages, self.width = spec.stages, spec.width
        else:
            self.stages, self.width = _measure_stages(self)

    def __repr__(self) -> str:
        stages = ", ".join(stage.name for stage in self.stages)
        return f"Backbone({self.spec.name!r}, stages {stages}, {self.width} features)"[:1000]

    def _repr_html_(self) -> str:
        stages = ", ".join(stage.name for stage in self.stages)
        rows = {"stages": stages, "features": self.width, "data": self.spec.data}
        return html_table(f"Backbone {self.spec.name}", rows)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        stages: Sequence[str] | Mapping[str, str] | None = None,
        preprocess: Preprocess | Mapping[str, Any] | None = None,
    ) -> Backbone:
        """Use a network of your own as backbone.

        Parameters
        ----------
        module : torch.nn.Module
            With its trained weights. It gets RGB images and returns maps (n, channels, h, w), or
            an object with ``last_hidden_state`` or ``feature_maps``. It is copied.
        stages : sequence of str, or mapping of str to str, optional
            Paths of the submodules that end the stages, in execution order, or names of stages
            with these paths. What comes after the last one, such as a classifier, is left out. By
            default the stages are found by the sizes of the maps.
        preprocess : Preprocess or mapping, optional
            Some of ``size`` (default 224 pixels), ``crop`` (share of the resized image, 0.875),
            ``mean`` and ``std`` (those of ImageNet, for values in 0..1) and ``interpolation``
            ("bilinear" or "bicubic").

        Raises
        ------
        UnknownNameError
            If a stage or a key of ``preprocess`` does not exist.
        UsageError
            If the module cannot be used; the message names the reason.

        Examples
        --------
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2))
        >>> backbone = Backbone.from_module(network, preprocess={"size": 64, "mean": 0.5})
        >>> [(stage.name, stage.channels, stage.stride) for stage in backbone.stages]
        [('0', 8, 2), ('2', 16, 4)]
        """
        from headstart.backbones.own_module import describe_module

        spec, state, origin = describe_module(module, stages=stages, preprocess=preprocess)
        backbone = build_from_state(spec, state)
        backbone.spec = replace(spec, stages=backbone.stages, width=backbone.width)
        backbone.origin = origin
        return backbone

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features, shape (n, width), of normalised images (n, 3, H, W)."""
        return self.pooled(x)

    def pooled(self, x: Tensor) -> Tensor:
        """Pooled features, shape (n, width), of normalised images (n, 3, H, W)."""
        return self.pool(self.run(x))

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Run a range of stages.

        Parameters
        ----------
        x : tensor
            Normalised images (n, 3, H, W), or the output of the stage before ``start``.
        start : str, optional
            The first stage to run; by default the first one of the backbone.
        stop : str, optional
            The last stage to run; by default the last one of the backbone. Its output, maps
            (n, channels, h, w) or tokens (n, tokens, channels), is returned.

        Raises
        ------
        UnknownNameError
            If there is no such stage.
        UsageError
            If ``stop`` comes before ``start``.
        """
        first = 0 if start is None else self._stage_index(start)
        last = len(self.stages) - 1 if stop is None else self._stage_index(stop)
        if first > last:
            raise UsageError(
                f"Expected `stop` not to come before `start`, got {start!r} to {stop!r}. "
                f"The order of the stages is {', '.join(stage.name for stage in self.stages)}."
            )
        for stage in self._plan.stages[first : last + 1]:
            x = _run_stage(self.trunk, stage, x)
        return x

    def maps(self, x: Tensor, stops: Sequence[str], start: str | None = None) -> list[Tensor]:
        """Run once and return the outputs of several stages.

        Parameters
        ----------
        x : tensor
            As for ``run``.
        stops : sequence of str
            The stages, in execution order.
        start : str, optional
            The first stage to run; by default the first one of the backbone.

        Raises
        ------
        UnknownNameError, UsageError
            As ``run``.

        Examples
        --------
        >>> backbone = load("torchvision/resnet18", pretrained=False).eval()
        >>> maps = backbone.maps(torch.zeros(1, 3, 64, 64), ["layer2", "layer4"])
        >>> [tuple(stage_map.shape) for stage_map in maps]
        [(1, 128, 8, 8), (1, 512, 2, 2)]
        """
        maps = []
        for stop in stops:
            x = self.run(x, start=start, stop=stop)
            maps.append(x)
            following = self._stage_index(stop) + 1  # continue after this stage
            start = self.stages[following].name if following < len(self.stages) else stop
        return maps

    def pool(self, features: Tensor) -> Tensor:
        """Pool the output of the last stage to the classifier's input, shape (n, width)."""
        return self._plan.pool(self.trunk, features)

    def stage_of(self, parameter: str) -> str:
        """Return the stage of a parameter or buffer, by its name in ``state_dict()``.

        Raises
        ------
        UnknownNameError
            If there is no such parameter.

        Examples
        --------
        >>> load("torchvision/resnet18", pretrained=False).stage_of("trunk.bn1.running_mean")
        'stem'
        """
        if (stage := self.find_stage(parameter)) is None:
            raise UnknownNameError("parameter", parameter, self.state_dict())
        return stage

    def find_stage(self, parameter: str) -> str | None:
        """Return the stage as ``stage_of`` does, or None if no stage uses the parameter."""
        name = parameter.removeprefix("trunk.")
        # torch stores an adapted `conv.weight` as `conv.parametrizations.weight.original`.
        owner, _, inner = name.partition(".parametrizations.")
        name = f"{owner}.{inner.partition('.')[0]}" if inner else name
        for stage in self._plan.stages:
            if belongs_to(name, stage.paths):
                return stage.name
        return None

    def _stage_index(self, name: str) -> int:
        names = [stage.name for stage in self._plan.stages]
        if name not in names:
            raise UnknownNameError("stage", name, names)
        return names.index(name)


def load(
    backbone: str | BackboneSpec,
    *,
    weights: WeightsFile | Path | None = None,
    offline: bool | None = None,
    pretrained: bool = True,
    seed: int = 0,
) -> Backbone:
    """Build a backbone and load its weights.

    Parameters
    ----------
    backbone : str or BackboneSpec
        A name (see ``headstart.backbones.catalog``), or the result of ``resolve``.
    weights : WeightsFile or Path, optional
        The file to read; by default ``locate`` finds it.
    offline : bool, optional
        Do not use the network; by default as ``HEADSTART_OFFLINE`` is set.
    pretrained : bool
        False for random weights.
    seed : int
        Seed of the random weights.

    Returns
    -------
    Backbone
        In float32 on the CPU, in the library's default mode; see
        ``headstart.backbones.freezing``.

    Raises
    ------
    UnknownNameError
        If the name is unknown.
    WeightsNotFoundError, WeightsMismatchError
        If there are no weights, or they belong to another network.

    Examples
    --------
    >>> load("embedded/efficientnet_lite0").width
    1280
    """
    spec = resolve(backbone, offline=offline) if isinstance(backbone, str) else backbone
    if not pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk, plan = _build_network(spec)
            if spec.source == "module":
                from headstart.backbones.own_module import randomise

                randomise(trunk)
        return Backbone(spec, trunk, plan)
    if not isinstance(weights, WeightsFile):
        weights = locate(spec, offline=offline, weights=weights)
    return build_from_state(spec, read_state(weights, spec))


def build_from_state(spec: BackboneSpec, state: Mapping[str, Tensor]) -> Backbone:
    """Build a backbone from its tensors.

    Parameters
    ----------
    spec : BackboneSpec
    state : mapping of str to tensor
        By the library's names. The tensors are not copied. Those of the original classifier
        are left out and listed in ``head_keys``.

    Raises
    ------
    WeightsMismatchError
        If other tensors are missing, unexpected or have another shape; the first 8 are listed.
        If a value is NaN or infinite, as after a training that diverged.
    """
    trunk, plan = _build_without_values(spec)
    head_keys = tuple(sorted(name for name in state if belongs_to(name, plan.heads)))
    tensors = _drop_paths(state, (*plan.dropped, *plan.heads))
    for name, buffer in trunk.named_buffers():  # files of old versions do not have these
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    _require_match(spec, trunk.state_dict(), tensors)
    _require_finite(spec, tensors)
    # Tables that are computed when the network is built are not in the state: build it for real.
    if not _is_complete_in_state(trunk):
        trunk, plan = _build_network(spec)
    trunk.load_state_dict(tensors, strict=True, assign=_is_complete_in_state(trunk))
    backbone = Backbone(spec, trunk, plan)
    backbone.head_keys = head_keys
    return backbone


def drop_unused_tensors(spec: BackboneSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """If ``spec.until`` is set, drop the classifier's tensors and those after that stage."""
    _, plan = _build_without_values(spec)
    return _drop_paths(state, (*plan.dropped, *plan.heads)) if spec.until else dict(state)


def original_head(spec: BackboneSpec, weights: WeightsFile) -> dict[str, Tensor]:
    """Read the original classifier's tensors, by the library's names; empty if it is missing."""
    _, plan = _build_without_values(spec)
    state = read_state(weights, spec)
    return {name: tensor for name, tensor in state.items() if belongs_to(name, plan.heads)}


def _build_network(spec: BackboneSpec) -> tuple[nn.Module, StagePlan]:
    """Build the library's network without its classifier, up to the stage ``spec.until``."""
    model, plan = _build_all_stages(spec)
    return model, truncate_after(plan, model, spec.until) if spec.until else plan


def _build_all_stages(spec: BackboneSpec) -> tuple[nn.Module, StagePlan]:
    library, _, name = spec.architecture.partition("/")
    if library == "module":
        from headstart.backbones.own_module import build_network

        return build_network(spec)
    if library == "timm":
        import timm

        options: dict[str, Any] = dict(spec.model_options)
        model = timm.create_model(name, pretrained=False, num_classes=0, **options)
        return model, plan_stages(spec.architecture, model)
    from torchvision import models

    options = dict(spec.model_options)
    if name == "inception_v3":  # what torchvision sets for its own weights
        options = {"transform_input": True, "init_weights": True} | options
    model = models.get_model(name, weights=None, **options)
    plan = plan_stages(spec.architecture, model)
    for path in plan.heads:
        model.set_submodule(path, nn.Identity())
    return model, plan


def _build_without_values(spec: BackboneSpec) -> tuple[nn.Module, StagePlan]:
    """Build the network on the ``meta`` device, which is fast, if its library supports that."""
    try:
        with torch.device("meta"):
            return _build_network(spec)
    except (NotImplementedError, RuntimeError):  # its builder computes with tensors
        return _build_network(spec)


def _drop_paths(state: Mapping[str, Tensor], paths: Sequence[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not belongs_to(name, paths)}


def _is_complete_in_state(trunk: nn.Module) -> bool:
    """Whether every parameter and buffer of a network is in its state dict."""
    stored = set(trunk.state_dict())
    return all(name in stored for name, _ in chain(trunk.named_parameters(), trunk.named_buffers()))


def _require_finite(spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        has_values = not tensor.is_meta  # a plan of a network has shapes only
        if has_values and not torch.isfinite(tensor).all():
            raise WeightsMismatchError(
                f"The weights of {spec.name} have NaN or infinity in {name[:100]!r}. Pass "
                "weights of a training that did not diverge, or copy the file again."
            )
        # A variance of nearly 0 may be below it by rounding; BatchNorm adds 1e-5 at least.
        if has_values and name.endswith("running_var") and (tensor < -1e-5).any():
            raise WeightsMismatchError(
                f"The weights of {spec.name} have a variance below 0 in {name[:100]!r}: "
                f"{tensor.min().item():.4g}. Copy the file again, or pass other weights."
            )


def _require_match(
    spec: BackboneSpec, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]
) -> None:
    """Compare names, shapes and types; list the first differences and count the others."""
    faults = [f"missing {name}" for name in expected if name not in actual]
    faults += [f"unexpected {name}" for name in actual if name not in expected]
    faults += [
        f"{name} of shape {tuple(actual[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in actual and actual[name].shape != tensor.shape
    ]
    faults += [
        f"{name} of type {actual[name].dtype} instead of {tensor.dtype}"
        for name, tensor in expected.items()
        if name in actual and tensor.is_floating_point() and not actual[name].is_floating_point()
    ]
    if faults:
        rest = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        action = (
            "Name the architecture that the file was made for, as in "
            "file:PATH@torchvision/resnet18."
        )
        if spec.source == "module":
            action = "Pass the code that built the network of the training as `module`."
        raise WeightsMismatchError(
            f"Expected weights of {spec.architecture}, got {len(faults)} differences: "
            f"{'; '.join(faults[:8])}{rest}. {action}"
        )


def _run_stage(trunk: nn.Module, stage: StageModules, x: Tensor) -> Tensor:
    for step in stage.steps:
        x = trunk.get_submodule(step)(x) if isinstance(step, str) else step(trunk, x)
    return x


class _ShapeProbe(nn.Module):
    """Return the output shape of every stage, and that of the pooled features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.trunk = backbone.trunk
        self.plan = backbone._plan

    def forward(self, x: Tensor) -> list[tuple[int, ...]]:
        shapes = []
        for stage in self.plan.stages:
            x = _run_stage(self.trunk, stage, x)
            shapes.append(tuple(x.shape))
        return [*shapes, tuple(self.plan.pool(self.trunk, x).shape)]


def _measure_stages(backbone: Backbone) -> tuple[tuple[Stage, ...], int]:
    """Find stages and width of a network that is not in the catalogue, by running it."""
    image_shape = backbone.spec.preprocess.shape
    *shapes, pooled = _output_shapes(backbone, image_shape)
    channels = getattr(backbone.trunk, "num_features", None)
    stages = tuple(
        _describe_stage(stage.name, shape, image_shape, channels)
        for stage, shape in zip(backbone._plan.stages, shapes, strict=True)
    )
    return stages, pooled[1]


def _output_shapes(backbone: Backbone, image_shape: tuple[int, int]) -> list[tuple[int, ...]]:
    module = _ShapeProbe(backbone)
    named = dict(chain(module.named_parameters(), module.named_buffers()))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            abstract = {name: tensor.to("meta") for name, tensor in named.items()}
            x = torch.zeros(2, 3, *image_shape, device="meta")
            return torch.func.functional_call(module, abstract, (x,))  # type: ignore[no-any-return]
        except (RuntimeError, NotImplementedError):
            # Some networks create tensors on the CPU in their forward pass. Run them on copies, so
            # that the statistics of BatchNorm stay as they are.
            copies = {name: tensor.clone() for name, tensor in named.items()}
            x = torch.zeros(2, 3, *image_shape)
            return torch.func.functional_call(module, copies, (x,))  # type: ignore[no-any-return]


def _describe_stage(
    name: str, shape: tuple[int, ...], image_shape: tuple[int, int], channels: int | None
) -> Stage:
    if len(shape) == 3:  # tokens
        stride = round(math.sqrt(math.prod(image_shape) / shape[1]))
        return Stage(name=name, channels=shape[2], stride=stride)
    # Some networks, such as Swin, return maps with the channels last.
    channels_last = channels is not None and shape[-1] == channels and shape[1] != channels
    width, height = (shape[3], shape[1]) if channels_last else (shape[1], shape[2])
    return Stage(name=name, channels=width, stride=2 ** round(math.log2(image_shape[0] / height)))


class StageRows(nn.Module):
    """Spatial means of several stages and the pooled features, one output each.

    Parameters
    ----------
    backbone : Backbone
    ends : sequence of str
        Names of stages in execution order; an empty name, at the end, is the pooled features.
    """

    def __init__(self, backbone: Backbone, ends: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.ends = tuple(ends)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features (n, width of the stage) of normalised images (n, 3, H, W), for each end."""
        last = self.backbone.stages[-1].name
        maps = self.backbone.maps(x, [end or last for end in self.ends])
        return tuple(
            spatial_mean(stage_map) if end else self.backbone.pool(stage_map)
            for end, stage_map in zip(self.ends, maps, strict=True)
        )


class StageFeatures(nn.Module):
    """Spatial means of several stages and the pooled features, as one row per image.

    Parameters
    ----------
    backbone : Backbone
    ends : sequence of str
        As for ``StageRows``.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> backbone = load("torchvision/resnet18", pretrained=False).eval()
    >>> StageFeatures(backbone, ["layer2", ""])(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 640])
    """

    def __init__(self, backbone: Backbone, ends: Sequence[str]) -> None:
        super().__init__()
        self.rows = StageRows(backbone, ends)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, sum of the widths) of normalised images (n, 3, H, W)."""
        return torch.cat(self.rows(x), dim=1)
