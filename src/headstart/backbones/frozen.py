"""Frozen backbone: specification, weights and, when needed, the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.catalog import resolve, with_options
from headstart.backbones.freezing import fingerprint, freeze
from headstart.backbones.plugin_backbones import build_plugin, find_plugin
from headstart.backbones.spec import BackboneSpec
from headstart.backbones.weights import WeightsFile, locate, read_state
from headstart.cache import key
from headstart.plugins import Plugin

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.backbones.backbone import Backbone

__all__ = ["FrozenBackbone", "name_of", "to_backbone"]

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenBackbone:
    """A backbone with fixed weights. Its module is built at the first use.

    A run whose features are all in the cache never builds the network: ``identity``, which the
    cache keys contain, is computed from the parameters alone.

    Parameters
    ----------
    spec : BackboneSpec
    state : mapping of str to torch.Tensor
        Parameters and running statistics, by their names in the backbone.
    origin : mapping of str to str
        Where the weights come from and the SHA-256 of the file, for the model's record.
    """

    spec: BackboneSpec
    state: Mapping[str, Tensor]
    origin: Mapping[str, str]

    def __repr__(self) -> str:
        return (
            f"FrozenBackbone({self.spec.name!r}, {self.parameters} parameters, input "
            f"{self.spec.preprocess.shape})"
        )

    @classmethod
    def open(
        cls, name: str | nn.Module | FrozenBackbone, *, offline: bool | None = None
    ) -> FrozenBackbone:
        """Find and read the weights of a backbone by name. The network is not built.

        Parameters
        ----------
        name : str, torch.nn.Module or FrozenBackbone
            A name, or a network of the user's own, as in ``Backbone.from_module``.
        offline : bool, optional
            Do not use the network.

        Raises
        ------
        UnknownNameError
            If there is no such backbone.
        WeightsNotFoundError
            If its weights are neither on disk nor downloadable.
        WeightsMismatchError
            If they are damaged or belong to another network.
        """
        if isinstance(name, FrozenBackbone):
            return name
        if not isinstance(name, str):
            return cls.of(name)
        if (plugin := find_plugin(name)) is not None:
            return cls._of_plugin(plugin, name)
        spec = resolve(name, offline=offline)
        return cls.read(spec, locate(spec, offline=offline))

    @classmethod
    def read(cls, spec: BackboneSpec, weights: WeightsFile) -> FrozenBackbone:
        """Read weights that ``locate`` has found."""
        origin = {"sha256": weights.sha256, "from": weights.origin, "file": weights.path.name}
        return cls(spec=spec, state=_used_tensors(spec, read_state(weights, spec)), origin=origin)

    @classmethod
    def of(cls, module: nn.Module) -> FrozenBackbone:
        """Take a network of the user's own, or a ``Backbone``, with its present weights.

        Raises
        ------
        UnknownNameError, UsageError
            As ``Backbone.from_module``.
        """
        from headstart.backbones.backbone import Backbone

        backbone = module if isinstance(module, Backbone) else Backbone.from_module(module)
        tensors = backbone.trunk.state_dict().items()
        state = {name: tensor.detach().cpu().clone() for name, tensor in tensors}
        sha256 = fingerprint(state)
        origin = backbone.origin or {"from": "module", "file": backbone.spec.name}
        return cls(spec=backbone.spec, state=state, origin={**origin, "sha256": sha256})

    @classmethod
    def _of_plugin(cls, plugin: Plugin, name: str) -> FrozenBackbone:
        """Take the network that a backbone of another package builds, with its full name."""
        backbone = cls.of(build_plugin(plugin))
        spec = replace(backbone.spec, name=plugin.full_name)
        spec = with_options(spec, name.partition("?")[2])
        origin = {**backbone.origin, "from": f"{plugin.package} {plugin.version}"}
        state = _used_tensors(spec, backbone.state)
        return replace(backbone, spec=spec, state=state, origin=origin)

    @property
    def note(self) -> str:
        """Stages and preprocessing of a network of the user's own in a sentence; else empty."""
        spec = self.spec
        if spec.source != "module":
            return ""
        stages = ", ".join(f"{s.name} (1/{s.stride})" for s in self.module.stages)
        assumed = self.origin.get("assumed", "")
        action = f" Assumed: {assumed}; pass preprocess=... to change it." if assumed else ""
        return f"Backbone {spec.name}: stages {stages}, {self.width} features.{action}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all parameters and running statistics."""
        return fingerprint(self.state)

    @cached_property
    def identity(self) -> bytes:
        """Cache key of everything that the pooled features depend on, except engine and image."""
        return key(
            "pooled",
            self.spec.architecture,
            repr(sorted(self.spec.model_options)),
            self.fingerprint,
            self.spec.preprocess.fingerprint(),
            *([f"until {self.spec.until}"] if self.spec.until else []),
            *([f"code {self.spec.sha256}"] if self.spec.source == "module" else []),
        )

    @cached_property
    def module(self) -> Backbone:
        """The frozen module, built at the first use."""
        from headstart.backbones.backbone import build_from_state

        return freeze(build_from_state(self.spec, self.state))

    def copy(self) -> Backbone:
        """Build a module with copies of the tensors, for training."""
        from headstart.backbones.backbone import build_from_state

        return build_from_state(self.spec, {name: t.clone() for name, t in self.state.items()})

    def on_canvas(self, canvas: tuple[int, int]) -> FrozenBackbone:
        """Return this backbone with uncropped images of (height, width) pixels as its input."""
        preprocess = replace(self.spec.preprocess, canvas=canvas)
        return replace(self, spec=replace(self.spec, preprocess=preprocess))

    def resized(self, side: int) -> FrozenBackbone:
        """Return this backbone with square images of ``side`` pixels as its input."""
        return replace(self, spec=self.spec.resized(side))

    def until(self, stage: str) -> FrozenBackbone:
        """Return the backbone that ends with ``stage``, pooled by the spatial mean.

        Raises
        ------
        UnknownNameError, UsageError
            If there is no such stage, or it is the last one.

        Examples
        --------
        >>> FrozenBackbone.open("embedded/efficientnet_lite0").until("stage6").width
        192
        """
        if stage not in self._truncated:
            spec = self.spec.ending_at(stage)
            self._truncated[stage] = replace(self, spec=spec, state=_used_tensors(spec, self.state))
        return self._truncated[stage]

    @cached_property
    def _truncated(self) -> dict[str, FrozenBackbone]:
        # One object for each stage, because it caches its fingerprint, a hash of all values.
        return {}

    def with_parameters(self, state: Mapping[str, Tensor]) -> FrozenBackbone:
        """Return this backbone with other values.

        Parameters
        ----------
        state : mapping of str to torch.Tensor
            New values by the same names. Tensors that are missing here, such as those of the
            original classifier, are not changed.
        """
        return replace(self, state={**self.state, **state})

    def classifier(
        self, head_state: Mapping[str, Tensor] | None = None
    ) -> tuple[tuple[Array, Array] | None, str]:
        """Read the linear classifier that the backbone was published with.

        Parameters
        ----------
        head_state : mapping of str to torch.Tensor, optional
            Its tensors by the library's names; by default those among the weights.

        Returns
        -------
        pair of array or None, str
            Weight, shape (n_classes, width), and bias, shape (n_classes,), with an empty
            string; or None, with the reason as a sentence without its full stop.

        Examples
        --------
        >>> import torch
        >>> from headstart.backbones.backbone import load
        >>> from headstart.backbones.catalog import resolve
        >>> spec = resolve("timm/test_resnet")
        >>> state = load(spec, pretrained=False).trunk.state_dict()
        >>> backbone = FrozenBackbone(spec=spec, state=state, origin={})
        >>> backbone.classifier()
        (None, 'The weights hold no original classifier')
        >>> (weight, bias), _ = backbone.classifier({"fc.weight": torch.ones(10, 96)})
        >>> [weight.shape, bias.shape]
        [(10, 96), (10,)]
        """
        if self.spec.until:
            return None, "The backbone ends before the original classifier"
        backbone = self.module
        if head_state is None:
            head_state = {name: self.state[name] for name in backbone.head_keys}
        # The auxiliary classifier of Inception is only used in training.
        tensors = {
            name: tensor
            for name, tensor in head_state.items()
            if not name.lower().startswith("aux")
        }
        if not tensors:
            return None, "The weights hold no original classifier"
        weights = [tensor for name, tensor in tensors.items() if name.endswith("weight")]
        biases = [tensor for name, tensor in tensors.items() if name.endswith("bias")]
        has_other_tensors = len(tensors) != len(weights) + len(biases)
        is_one_layer = not has_other_tensors and len(weights) == 1 and len(biases) <= 1
        if not is_one_layer or weights[0].ndim != 2 or weights[0].shape[1] != backbone.width:
            reason = "The original classifier is more than one linear layer on the pooled features"
            return None, reason
        weight = weights[0].detach().float().cpu().numpy()
        if not biases:
            return (weight, np.zeros(len(weight), dtype=np.float32)), ""
        return (weight, biases[0].detach().float().cpu().numpy()), ""

    def shape_at(self, stop: str | None) -> tuple[int, ...]:
        """Return the shape of a stage's output for one image, channels last.

        None stands for the pooled features.
        """
        import torch

        if stop is None:
            return (self.width,)
        with torch.inference_mode():
            x = torch.zeros(1, 3, *self.spec.preprocess.shape)
            shape = tuple(self.module.run(x, stop=stop).shape[1:])
        return (*shape[1:], shape[0]) if len(shape) == 3 else shape

    def shapes_at(self, taps: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of several stages' maps for one image, channels last."""
        import torch

        with torch.inference_mode():
            x = torch.zeros(1, 3, *self.spec.preprocess.shape)
            maps = self.module.maps(x, taps)
        return tuple((*stage_map.shape[2:], stage_map.shape[1]) for stage_map in maps)

    @property
    def parameters(self) -> int:
        """Number of values in the weights file, including the original classifier."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def width(self) -> int:
        """Number of pooled features."""
        return self.spec.width or self.module.width


def name_of(backbone: str | FrozenBackbone) -> str:
    """Return the name of a backbone.

    >>> name_of("resnet18")
    'resnet18'
    """
    return backbone if isinstance(backbone, str) else backbone.spec.name


def to_backbone(value: Any) -> Any:
    """Take a network of the user's own, or of another package, as a ``FrozenBackbone``.

    Other values, such as the names of the catalogue, are returned as they are.

    Raises
    ------
    UnknownNameError, UsageError
        As ``Backbone.from_module``.
    SetupError
        If the backbone of another package cannot be imported or built.

    Examples
    --------
    >>> to_backbone("resnet18")
    'resnet18'
    """
    is_plugin = isinstance(value, str) and find_plugin(value) is not None
    return FrozenBackbone.open(value) if is_plugin or hasattr(value, "named_parameters") else value


def _used_tensors(spec: BackboneSpec, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not spec.until:  # all tensors are used, and nothing has to be built to know that
        return state
    from headstart.backbones.backbone import drop_unused_tensors

    return drop_unused_tensors(spec, state)
