"""A backbone as parameters: what it is, its weights, and, once needed, the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import constant, fingerprint
from headstart.backbones.spec import BackboneSpec
from headstart.backbones.weights import WeightsFile, locate, read_state
from headstart.cache import key

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.backbones.backbone import Backbone

__all__ = ["FrozenBackbone"]

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenBackbone:
    """A frozen backbone: what it is, its parameters, and, once needed, the module.

    A run whose features are all kept never builds the network: the identity follows from the
    parameters alone.

    Parameters
    ----------
    spec : BackboneSpec
    state : mapping of str to torch.Tensor
        Parameters and running statistics, by their names in the backbone.
    origin : mapping of str to str
        Where the weights came from and the file's SHA-256, for the record.
    """

    spec: BackboneSpec
    state: Mapping[str, Tensor]
    origin: Mapping[str, str]

    @classmethod
    def open(cls, name: str, *, offline: bool | None = None) -> FrozenBackbone:
        """Find and read the weights of a backbone by name; nothing is built yet.

        Raises
        ------
        UnknownNameError
            If there is no such backbone.
        WeightsNotFoundError
            If its weights are nowhere to be had.
        WeightsMismatchError
            If they are damaged or of another network.
        """
        spec = resolve(name, offline=offline)
        return cls.read(spec, locate(spec, offline=offline))

    @classmethod
    def read(cls, spec: BackboneSpec, weights: WeightsFile) -> FrozenBackbone:
        """Read weights that have been located, so that a run can fail early without them."""
        origin = {"sha256": weights.sha256, "from": weights.origin, "file": weights.path.name}
        return cls(spec=spec, state=_kept(spec, read_state(weights, spec)), origin=origin)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all parameters and running statistics."""
        return fingerprint(self.state)

    @cached_property
    def identity(self) -> bytes:
        """Everything that the pooled features depend on, engine and images aside."""
        return key(
            "pooled",
            self.spec.architecture,
            repr(sorted(self.spec.model_options)),
            self.fingerprint,
            self.spec.preprocess.fingerprint(),
            *([f"until {self.spec.until}"] if self.spec.until else []),
        )

    @cached_property
    def module(self) -> Backbone:
        """The module, constant; built at the first use."""
        from headstart.backbones.backbone import assemble

        return constant(assemble(self.spec, self.state))

    def copy(self) -> Backbone:
        """Build a module with tensors of its own, to be trained."""
        from headstart.backbones.backbone import assemble

        return assemble(self.spec, {name: t.clone() for name, t in self.state.items()})

    def on_canvas(self, canvas: tuple[int, int]) -> FrozenBackbone:
        """Return this backbone reading whole images, (height, width) pixels."""
        preprocess = replace(self.spec.preprocess, canvas=canvas)
        return replace(self, spec=replace(self.spec, preprocess=preprocess))

    def until(self, stage: str) -> FrozenBackbone:
        """Return the backbone that ends behind a stage and is pooled by the mean over places.

        Raises
        ------
        UnknownNameError, UsageError
            If there is no such stage, or none behind it.

        Examples
        --------
        >>> FrozenBackbone.open("embedded/efficientnet_lite0").until("stage6").width
        192
        """
        if stage not in self._ends:
            spec = self.spec.ending(stage)
            self._ends[stage] = replace(self, spec=spec, state=_kept(spec, self.state))
        return self._ends[stage]

    @cached_property
    def _ends(self) -> dict[str, FrozenBackbone]:
        """Each made once: its fingerprint is a hash of all its values."""
        return {}

    def tuned(self, state: Mapping[str, Tensor]) -> FrozenBackbone:
        """Return this backbone with other values; the original classifier stays as it was.

        Parameters
        ----------
        state : mapping of str to torch.Tensor
            By the same names; what is absent stays.
        """
        return replace(self, state={**self.state, **state})

    def classifier(
        self, given: Mapping[str, Tensor] | None = None
    ) -> tuple[tuple[Array, Array] | None, str]:
        """Read the linear classifier that the backbone was published with.

        Parameters
        ----------
        given : mapping of str to torch.Tensor, optional
            Its tensors by the library's names; by default those among the weights.

        Returns
        -------
        pair of array or None, str
            Weight, shape (n_classes, width), and bias, shape (n_classes,), with an empty
            string; or None, with the reason in words, as a sentence without its full stop.

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
        >>> found, _ = backbone.classifier({"fc.weight": torch.ones(10, 96)})
        >>> [one.shape for one in found]
        [(10, 96), (10,)]
        """
        if self.spec.until:
            return None, "The backbone ends before the original classifier"
        backbone = self.module
        tensors = {k: self.state[k] for k in backbone.head_keys} if given is None else dict(given)
        # A second classifier half-way up helps training only.
        tensors = {k: v for k, v in tensors.items() if not k.lower().startswith("aux")}
        if not tensors:
            return None, "The weights hold no original classifier"
        weights = [v for k, v in tensors.items() if k.endswith("weight")]
        biases = [v for k, v in tensors.items() if k.endswith("bias")]
        named = len(tensors) == len(weights) + len(biases)
        plain = named and len(weights) == 1 and len(biases) <= 1
        if not plain or weights[0].ndim != 2 or weights[0].shape[1] != backbone.width:
            reason = "The original classifier is more than one linear layer on the pooled features"
            return None, reason
        weight, *bias = (t.detach().float().cpu().numpy() for t in (*weights, *biases))
        return (weight, bias[0] if bias else np.zeros(len(weight), dtype=np.float32)), ""

    def shape_at(self, stop: str | None) -> tuple[int, ...]:
        """Shape of one image's values behind a stage, channels last; pooled for None."""
        import torch

        if stop is None:
            return (self.width,)
        with torch.inference_mode():
            x = torch.zeros(1, 3, *self.spec.preprocess.shape)
            shape = tuple(self.module.run(x, stop=stop).shape[1:])
        return (*shape[1:], shape[0]) if len(shape) == 3 else shape

    def shapes_at(self, taps: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Shapes of one image's maps behind several stages in order, channels last."""
        import torch

        with torch.inference_mode():
            x = torch.zeros(1, 3, *self.spec.preprocess.shape)
            maps = self.module.maps(x, taps)
        return tuple((*one.shape[2:], one.shape[1]) for one in maps)

    @property
    def parameters(self) -> int:
        """Number of values in the weights' file, the original classifier included."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def width(self) -> int:
        """Number of pooled features."""
        return self.spec.width or self.module.width


def _kept(spec: BackboneSpec, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not spec.until:  # nothing has to be built, which takes a while
        return state
    from headstart.backbones.backbone import kept

    return kept(spec, state)
