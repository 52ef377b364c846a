"""A backbone: a pretrained network without its classifier, in stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones.catalog import resolve
from headstart.backbones.spec import BackboneSpec, Stage
from headstart.backbones.stages import Plan, StageModules, ended, mean_of_places, plan
from headstart.backbones.weights import WeightsFile, locate, read_state
from headstart.errors import UnknownNameError, UsageError, WeightsMismatchError

__all__ = ["Backbone", "Ends", "assemble", "kept", "load", "original_head"]


class Backbone(nn.Module):
    """A network without its classifier, that can be run from one stage to another.

    Parameters
    ----------
    spec : BackboneSpec
    trunk : torch.nn.Module
        The library's network; its parameters keep the library's names.
    how : Plan
        Where it is cut.

    Attributes
    ----------
    stages : tuple of Stage
        In the order in which they run.
    width : int
        Of the pooled features.
    head_keys : tuple of str
        Names of the original classifier's tensors in the weights' file; ``original_head``
        reads them.

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

    def __init__(self, spec: BackboneSpec, trunk: nn.Module, how: Plan) -> None:
        super().__init__()
        self.spec = spec
        self.trunk = trunk
        self.head_keys: tuple[str, ...] = ()
        self._plan = how
        if spec.stages and spec.width:
            self.stages, self.width = spec.stages, spec.width
        else:
            self.stages, self.width = _measured(self)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features, shape (n, width), of normalised images (n, 3, H, W)."""
        return self.pooled(x)

    def pooled(self, x: Tensor) -> Tensor:
        """Pooled features, shape (n, width), of normalised images (n, 3, H, W)."""
        return self.pool(self.run(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the last stage gives for normalised images (n, 3, H, W)."""
        return self.run(x)

    def run(self, x: Tensor, start: str | None = None, stop: str | None = None) -> Tensor:
        """Run some of the stages.

        Parameters
        ----------
        x : tensor
            Normalised images (n, 3, H, W), or what the stage before ``start`` gave.
        start : str, optional
            The first stage that runs; by default the first of all.
        stop : str, optional
            The last stage that runs; by default the last of all. It gives maps
            (n, channels, h, w) or tokens (n, tokens, channels).

        Raises
        ------
        UnknownNameError
            If there is no such stage.
        UsageError
            If ``stop`` comes before ``start``.
        """
        begin = 0 if start is None else self._place(start)
        end = len(self.stages) - 1 if stop is None else self._place(stop)
        if begin > end:
            raise UsageError(
                f"Expected `stop` not to come before `start`, got {start!r} to {stop!r}; "
                f"the order is {', '.join(stage.name for stage in self.stages)}."
            )
        for cut in self._plan.cuts[begin : end + 1]:
            x = _run_cut(self.trunk, cut, x)
        return x

    def maps(self, x: Tensor, stops: Sequence[str], start: str | None = None) -> list[Tensor]:
        """Run once and collect what several stages give.

        Parameters
        ----------
        x : tensor
            As for ``run``.
        stops : sequence of str
            The stages, in the order in which they run.
        start : str, optional
            The first stage that runs; by default the first of all.

        Raises
        ------
        UnknownNameError, UsageError
            As ``run``.

        Examples
        --------
        >>> backbone = load("torchvision/resnet18", pretrained=False).eval()
        >>> maps = backbone.maps(torch.zeros(1, 3, 64, 64), ["layer2", "layer4"])
        >>> [tuple(one.shape) for one in maps]
        [(1, 128, 8, 8), (1, 512, 2, 2)]
        """
        found = []
        for stop in stops:
            x = self.run(x, start=start, stop=stop)
            found.append(x)
            place = self._place(stop) + 1
            start = self.stages[place].name if place < len(self.stages) else stop
        return found

    def pool(self, features: Tensor) -> Tensor:
        """From what the last stage gives to what the original classifier read, (n, width)."""
        return self._plan.pool(self.trunk, features)

    def stage_of(self, parameter: str) -> str:
        """Name of the stage of a parameter or buffer, as ``state_dict()`` calls it.

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
        """As ``stage_of``; None where the network leaves it unused."""
        name = parameter.removeprefix("trunk.")
        owner, _, inner = name.partition(".parametrizations.")  # as torch renames what it adapts
        name = f"{owner}.{inner.partition('.')[0]}" if inner else name
        for cut in self._plan.cuts:
            if any(name == path or name.startswith(f"{path}.") for path in cut.paths):
                return cut.name
        return None

    def _place(self, stage: str) -> int:
        known = [cut.name for cut in self._plan.cuts]
        if stage not in known:
            raise UnknownNameError("stage", stage, known)
        return known.index(stage)


def load(
    backbone: str | BackboneSpec,
    *,
    weights: WeightsFile | Path | None = None,
    offline: bool | None = None,
    pretrained: bool = True,
    seed: int = 0,
) -> Backbone:
    """Build a backbone and give it its weights.

    Parameters
    ----------
    backbone : str or BackboneSpec
        A name (see ``headstart.backbones.catalog``) or what it resolved to.
    weights : WeightsFile or Path, optional
        The file to read; by default it is looked for.
    offline : bool, optional
        Open no socket; by default the environment says so (``HEADSTART_OFFLINE``).
    pretrained : bool
        False for random weights.
    seed : int
        Of the random weights.

    Returns
    -------
    Backbone
        In float32 on the CPU, in the library's default mode; see ``headstart.freezing``.

    Raises
    ------
    UnknownNameError
        If nothing has that name.
    WeightsNotFoundError, WeightsMismatchError
        If there are no weights, or not those of this network.

    Examples
    --------
    >>> load("embedded/efficientnet_lite0").width
    1280
    """
    spec = resolve(backbone, offline=offline) if isinstance(backbone, str) else backbone
    if not pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk, how = _build(spec)
        return Backbone(spec, trunk, how)
    if not isinstance(weights, WeightsFile):
        weights = locate(spec, offline=offline, weights=weights)
    return assemble(spec, read_state(weights, spec))


def assemble(spec: BackboneSpec, state: Mapping[str, Tensor]) -> Backbone:
    """Build a backbone around tensors.

    Parameters
    ----------
    spec : BackboneSpec
    state : mapping of str to tensor
        By the library's names; the backbone takes the tensors as its own. Those of the
        original classifier are left out and listed in ``head_keys``.

    Raises
    ------
    WeightsMismatchError
        If other tensors are missing, not expected, or of another shape; all are listed.
    """
    trunk, how = _empty(spec)
    heads = tuple(sorted(k for k in state if any(_within(k, path) for path in how.heads)))
    mine = {k: v for k, v in _without(state, how.dropped).items() if k not in heads}
    for name, buffer in trunk.named_buffers():  # files of old versions do not have these
        if name.endswith("num_batches_tracked"):
            mine.setdefault(name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    _require_match(spec, trunk.state_dict(), mine)
    if not _made_by_loading(trunk):  # tables that are computed when the network is built
        trunk, how = _build(spec)
    trunk.load_state_dict(mine, strict=True, assign=_made_by_loading(trunk))
    result = Backbone(spec, trunk, how)
    result.head_keys = heads
    return result


def kept(spec: BackboneSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the tensors behind the stage that a backbone ends with, its classifier's too."""
    _, how = _empty(spec)
    return _without(state, (*how.dropped, *how.heads)) if spec.until else dict(state)


def original_head(spec: BackboneSpec, weights: WeightsFile) -> dict[str, Tensor]:
    """Read the original classifier's tensors, by the library's names; empty if none is there."""
    _, how = _empty(spec)
    state = read_state(weights, spec)
    return {k: v for k, v in state.items() if any(_within(k, path) for path in how.heads)}


def _build(spec: BackboneSpec) -> tuple[nn.Module, Plan]:
    """Make the library's network without its classifier, as far as it is wanted."""
    model, how = _whole(spec)
    return model, ended(how, model, spec.until) if spec.until else how


def _whole(spec: BackboneSpec) -> tuple[nn.Module, Plan]:
    library, _, name = spec.architecture.partition("/")
    if library == "timm":
        import timm

        options: dict[str, Any] = dict(spec.model_options)
        model = timm.create_model(name, pretrained=False, num_classes=0, **options)
        return model, plan(spec.architecture, model)
    from torchvision import models

    options = dict(spec.model_options)
    if name == "inception_v3":  # as torchvision sets it for its own weights
        options = {"transform_input": True, "init_weights": True} | options
    model = models.get_model(name, weights=None, **options)
    how = plan(spec.architecture, model)
    for path in how.heads:
        model.set_submodule(path, nn.Identity())
    return model, how


def _empty(spec: BackboneSpec) -> tuple[nn.Module, Plan]:
    """Make the network without values where its library can, which is quick."""
    try:
        with torch.device("meta"):
            return _build(spec)
    except (NotImplementedError, RuntimeError):  # its builder computes with tensors
        return _build(spec)


def _within(key: str, path: str) -> bool:
    return key == path or key.startswith(f"{path}.")


def _without(state: Mapping[str, Tensor], paths: Sequence[str]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not any(_within(k, path) for path in paths)}


def _made_by_loading(trunk: nn.Module) -> bool:
    """Whether a state dict holds every tensor of a network."""
    stored = set(trunk.state_dict())
    return all(name in stored for name, _ in chain(trunk.named_parameters(), trunk.named_buffers()))


def _require_match(
    spec: BackboneSpec, expected: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> None:
    """Compare names and shapes; say how many differ, and which first."""
    faults = [f"missing {name}" for name in expected if name not in given]
    faults += [f"not expected {name}" for name in given if name not in expected]
    faults += [
        f"{name} of shape {tuple(given[name].shape)} and not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise WeightsMismatchError(
            f"Expected weights of {spec.architecture}, got {len(faults)} differences: "
            f"{'; '.join(faults[:8])}{more}; do name the architecture that the file was made for."
        )


def _run_cut(trunk: nn.Module, cut: StageModules, x: Tensor) -> Tensor:
    for step in cut.steps:
        x = trunk.get_submodule(step)(x) if isinstance(step, str) else step(trunk, x)
    return x


class _Shapes(nn.Module):
    """Every stage's output shape, and the pooled one's, as a module's forward pass."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.trunk = backbone.trunk
        self.how = backbone._plan

    def forward(self, x: Tensor) -> list[tuple[int, ...]]:
        shapes = []
        for cut in self.how.cuts:
            x = _run_cut(self.trunk, cut, x)
            shapes.append(tuple(x.shape))
        return [*shapes, tuple(self.how.pool(self.trunk, x).shape)]


def _measured(backbone: Backbone) -> tuple[tuple[Stage, ...], int]:
    """Stages and width of a network that no table describes, by running it without values."""
    read = backbone.spec.preprocess.shape
    *shapes, pooled = _shapes(backbone, read)
    channels = getattr(backbone.trunk, "num_features", None)
    stages = tuple(
        _stage(cut.name, shape, read, channels)
        for cut, shape in zip(backbone._plan.cuts, shapes, strict=True)
    )
    return stages, pooled[1]


def _shapes(backbone: Backbone, read: tuple[int, int]) -> list[tuple[int, ...]]:
    module = _Shapes(backbone)
    named = dict(chain(module.named_parameters(), module.named_buffers()))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            abstract = {name: tensor.to("meta") for name, tensor in named.items()}
            x = torch.zeros(2, 3, *read, device="meta")
            return torch.func.functional_call(module, abstract, (x,))  # type: ignore[no-any-return]
        except (RuntimeError, NotImplementedError):
            # Some networks make tensors on the CPU on their way: run on copies.
            copies = {name: tensor.clone() for name, tensor in named.items()}
            x = torch.zeros(2, 3, *read)
            return torch.func.functional_call(module, copies, (x,))  # type: ignore[no-any-return]


def _stage(name: str, shape: tuple[int, ...], read: tuple[int, int], channels: int | None) -> Stage:
    if len(shape) == 3:  # tokens
        stride = round(math.sqrt(math.prod(read) / shape[1]))
        return Stage(name=name, channels=shape[2], stride=stride)
    last = channels is not None and shape[-1] == channels and shape[1] != channels
    width, place = (shape[3], shape[1]) if last else (shape[1], shape[2])
    return Stage(name=name, channels=width, stride=2 ** round(math.log2(read[0] / place)))


class Ends(nn.Module):
    """Means over places behind some stages, and the pooled features, as one row an image.

    Parameters
    ----------
    backbone : Backbone
    ends : sequence of str
        Stages in the order in which they run; an empty name, last, is the pooled features.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> backbone = load("torchvision/resnet18", pretrained=False).eval()
    >>> Ends(backbone, ["layer2", ""])(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 640])
    """

    def __init__(self, backbone: Backbone, ends: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.ends = tuple(ends)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, sum of the widths) of normalised images (n, 3, H, W)."""
        last = self.backbone.stages[-1].name
        maps = self.backbone.maps(x, [end or last for end in self.ends])
        rows = [
            mean_of_places(one) if end else self.backbone.pool(one)
            for end, one in zip(self.ends, maps, strict=True)
        ]
        return torch.cat(rows, dim=1)
