"""A backbone and a head in training: what is constant stays so, and is proven to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.freezing import (
    FreezePlan,
    constant,
    fingerprint,
    require_constant,
    start_adapting,
    start_training,
    trained,
)
from headstart.heads.pooled import LinearHead

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.backbones.backbone import Backbone

__all__ = ["Network", "Outputs"]

JUDGE_BATCH = 64
"""Pictures at a time where nothing is learned."""


Fetch = Callable[[NDArray[np.intp]], NDArray[Any]]


class Outputs(NamedTuple):
    """What a network gives for a batch.

    ``logits`` (n, n_classes), ``pooled`` (n, width), and ``maps``, the output of each stage that
    moves.
    """

    logits: Tensor
    pooled: Tensor
    maps: tuple[Tensor, ...]


class Network:
    """A backbone and a linear head, trained as a plan says.

    Parameters
    ----------
    backbone : Backbone
        Taken over and changed in place.
    head : LinearHead
        Where the head starts.
    plan : FreezePlan
    stop : str, optional
        The last stage that has run when a batch arrives, at most the plan's boundary;
        ``"pooled"`` when all have, and the features were pooled. By default batches are pixels.
    dropout : float
        Before the head.
    device : str
    """

    def __init__(
        self,
        backbone: Backbone,
        head: LinearHead,
        plan: FreezePlan,
        *,
        stop: str | None = None,
        dropout: float = 0.0,
        device: str = "cpu",
    ) -> None:
        import torch
        from torch import nn

        layer = nn.Linear(head.width, len(head.bias))
        layer.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in head.state().items()})
        self.backbone, self.layer, self.plan = backbone, layer, plan
        self.module: nn.Module = nn.ModuleDict({"backbone": backbone, "head": layer})
        self.module.to(device).to(memory_format=torch.channels_last)
        self.device, self.dropout, self.stop = device, dropout, stop
        names = [stage.name for stage in backbone.stages]
        self._stages = [] if stop == "pooled" else names[names.index(stop) + 1 if stop else 0 :]
        self._moving = {row.stage for row in plan.rows if not row.is_constant}
        self._learning = False
        constant(backbone)
        self._before = fingerprint(self._constant_state())

    def enter(self, epoch: int) -> None:
        """Put everything into training as the plan says for an epoch, from 1."""
        start_training(self.backbone, self.plan, epoch=epoch)
        self._learning = True

    def rest(self) -> None:
        """Put everything into inference."""
        constant(self.backbone)
        self._learning = False

    def tensor(self, batch: NDArray[Any]) -> Tensor:
        """What the first stage to run reads, of an array as it was fetched.

        Parameters
        ----------
        batch : array
            Pixels, uint8, (n, H, W, 3); or what crossed ``stop``, float32: maps
            (n, h, w, channels), tokens (n, tokens, channels) or pooled features (n, width).
        """
        import torch

        x = torch.from_numpy(batch).to(self.device)
        x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
        return self.backbone.spec.preprocess.normalise(x) if x.dtype == torch.uint8 else x

    def outputs(self, x: Tensor) -> Outputs:
        """Run the stages behind ``stop``, the pooling and the head."""
        from torch.nn.functional import dropout

        maps = []
        for stage in self._stages:
            x = self.backbone.run(x, start=stage, stop=stage)
            if stage in self._moving:
                maps.append(x)
        pooled = x if self.stop == "pooled" else self.backbone.pool(x)
        dropped = dropout(pooled, self.dropout, training=self._learning)
        return Outputs(self.layer(dropped), pooled, tuple(maps))

    def judge(self, fetch: Fetch, n: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Logits (n, n_classes) and pooled features (n, width) of n rows, in inference."""
        import torch

        self.rest()
        logits, pooled = [], []
        with torch.inference_mode():
            for at in range(0, n, JUDGE_BATCH):
                rows = np.arange(at, min(n, at + JUDGE_BATCH))
                found = self.outputs(self.tensor(fetch(rows)))
                logits.append(found.logits.float().cpu().numpy())
                pooled.append(found.pooled.float().cpu().numpy())
        return np.concatenate(logits).astype(np.float64), np.concatenate(pooled)

    def adapt(self, fetch: Fetch, n: int) -> None:
        """Take the statistics of ``adapt`` stages from pictures, once; then they are constant."""
        import torch

        if not start_adapting(self.backbone, self.plan):
            return
        # Mixed: a folder is sorted by class, and statistics within a class are too narrow.
        order = np.random.default_rng(n).permutation(n)
        with torch.no_grad():
            for rows in np.array_split(order, max(1, n // JUDGE_BATCH)):
                self.outputs(self.tensor(fetch(rows)))
        self.rest()

    def groups(self, head_rate: float) -> list[dict[str, Any]]:
        """Parameter groups of torch's optimisers, one for each stage and one for the head."""
        rates = {row.stage: row.learning_rate for row in self.plan.rows if row.trains}
        found: dict[str, list[Any]] = {stage: [] for stage in rates}
        for name, parameter in trained(self.backbone, self.plan).items():
            found[self.backbone.stage_of(name)].append(parameter)
        named = [{"params": found[stage], "lr": rates[stage]} for stage in rates]
        return [*named, {"params": list(self.layer.parameters()), "lr": head_rate}]

    def source(self) -> Callable[[Tensor], Outputs]:
        """Return the network as it is now, made constant: what regularisers hold it against."""
        still = copy.copy(self)
        still.backbone = constant(copy.deepcopy(self.backbone))
        still.layer = constant(copy.deepcopy(self.layer))
        still._learning = False
        return still.outputs

    def state(self) -> dict[str, Tensor]:
        """Tensors of the backbone by the library's names, on the CPU."""
        state = self.backbone.state_dict()
        return {k.removeprefix("trunk."): v.detach().cpu().clone() for k, v in state.items()}

    def linear_head(self) -> LinearHead:
        """The head as arrays."""
        weight, bias = (t.detach().cpu().numpy().copy() for t in self.layer.parameters())
        return LinearHead(weight=weight, bias=bias)

    def load(self, state: Mapping[str, Tensor], head: LinearHead) -> None:
        """Take over tensors that ``state`` and ``linear_head`` gave, or mixtures of such."""
        import torch

        self.backbone.load_state_dict({f"trunk.{k}": v for k, v in state.items()})
        self.layer.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in head.state().items()})

    def require_constant(self) -> None:
        """Hold the constant stages against what they were.

        Raises
        ------
        HeadstartError
            If any parameter or running statistic has moved.
        """
        require_constant(self._constant_state(), self._before)

    def _constant_state(self) -> dict[str, Tensor]:
        state = self.backbone.state_dict()
        return {k: v for k, v in state.items() if self.backbone.stage_of(k) not in self._moving}
