"""A backbone and a head in training, with a check that the constant part does not change."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import (
    FreezePlan,
    fingerprint,
    freeze,
    require_unchanged,
    start_adapting,
    start_training,
    trainable_parameters,
    unfreeze,
)
from headstart.features.extractor import SplitPoint
from headstart.models.heads.head import Head

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.backbones.backbone import Backbone

__all__ = ["Network", "Outputs", "find_split_point"]

INFERENCE_BATCH, INFERENCE_BATCH_MAPS = 64, 8
"""Batch sizes in inference, for heads on pooled features and for heads on maps."""

Fetch = Callable[[NDArray[np.intp]], NDArray[Any]]


class Outputs(NamedTuple):
    """Outputs of a network for a batch.

    ``logits``: output of the head, (n, n_classes) on pooled features, (n, n_classes, H, W) for
    masks, raw detector outputs for boxes. ``pooled``: (n, width), or the mean over the last map
    for a head on maps. ``maps``: output of each stage that trains.
    """

    logits: Any
    pooled: Tensor
    maps: tuple[Tensor, ...]


class Network:
    """A backbone and a head, trained as a freezing plan says.

    Parameters
    ----------
    backbone : Backbone
        Changed in place.
    head : Head
        Initial head.
    plan : FreezePlan
    split_point : SplitPoint, optional
        Last stage that has already run when a batch arrives; at most the last constant stage of
        the plan. By default batches are pixels.
    dropout : float
        Before the head, if it reads pooled features.
    device : str
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        plan: FreezePlan,
        *,
        split_point: SplitPoint | None = None,
        dropout: float = 0.0,
        device: str = "cpu",
    ) -> None:
        import torch
        from torch import nn

        layer = head.module()
        self.backbone, self.layer, self.plan, self._head = backbone, layer, plan, head
        self.module: nn.Module = nn.ModuleDict({"backbone": backbone, "head": layer})
        self.module.to(device).to(memory_format=torch.channels_last)
        self.device, self.dropout, self.split_point = device, dropout, split_point
        names = [stage.name for stage in backbone.stages]
        self._is_pooled = split_point is not None and split_point.stop is None
        first = 0
        if split_point is not None and split_point.stop is not None:
            first = names.index(split_point.stop) + 1
        self._stages = [] if self._is_pooled else names[first:]
        self._batch_size = INFERENCE_BATCH_MAPS if head.taps else INFERENCE_BATCH
        self._shapes: tuple[tuple[int, ...], ...] = ()
        self._moving = {row.stage for row in plan.rows if not row.is_constant}
        self._learning = False
        freeze(backbone)
        self._before = fingerprint(self._constant_state())

    def set_training(self, epoch: int) -> None:
        """Set the training mode that the plan defines for an epoch, from 1."""
        start_training(self.backbone, self.plan, epoch=epoch)
        unfreeze(self.layer)
        self._learning = True

    def set_inference(self) -> None:
        """Set backbone and head to inference mode."""
        freeze(self.backbone)
        freeze(self.layer)
        self._learning = False

    def tensor(self, batch: NDArray[Any]) -> Tensor:
        """Convert a fetched array to the input of the first stage that runs.

        Parameters
        ----------
        batch : array
            Pixels, uint8, (n, H, W, 3); or activations at the split point, float32: maps
            (n, h, w, channels), tokens (n, tokens, channels), pooled features (n, width), or
            several maps in one row (n, values).
        """
        import torch

        x = torch.from_numpy(batch).to(self.device)
        x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
        return self.backbone.spec.preprocess.normalise(x) if x.dtype == torch.uint8 else x

    def run_to_split(self, x: Tensor) -> Tensor:
        """Activations of normalised images at the split point, in the form of a batch."""
        import torch

        if self.split_point is None:
            return x
        if self.split_point.taps:
            maps = self.backbone.maps(x, self.split_point.taps)
            return torch.cat([m.permute(0, 2, 3, 1).flatten(1) for m in maps], dim=1)
        x = self.backbone.run(x, stop=self.split_point.stop)
        return self.backbone.pool(x) if self._is_pooled else x

    def outputs(self, x: Tensor) -> Outputs:
        """Run the stages after the split point, then the head."""
        from torch.nn.functional import dropout

        maps, tapped = [], self._split_taps(x)
        x = next(reversed(tapped.values()), x)
        for stage in self._stages:
            x = self.backbone.run(x, start=stage, stop=stage)
            if stage in self._moving:
                maps.append(x)
            if stage in self._head.taps:
                tapped[stage] = x
        if self._head.taps:
            logits = self.layer([tapped[stage] for stage in self._head.taps])
            return Outputs(logits, x.mean(dim=(2, 3)), tuple(maps))
        pooled = x if self._is_pooled else self.backbone.pool(x)
        dropped = dropout(pooled, self.dropout, training=self._learning)
        return Outputs(self.layer(dropped), pooled, tuple(maps))

    def _split_taps(self, x: Tensor) -> dict[str, Tensor]:
        """Split a batch that holds several maps per row into maps by stage; else empty."""
        if self.split_point is None or not self.split_point.taps:
            return {}
        import torch

        shapes = self._shapes or self._tap_shapes()
        sizes = [math.prod(shape) for shape in shapes]
        rows = zip(self.split_point.taps, torch.split(x, sizes, dim=1), shapes, strict=True)
        return {tap: part.reshape(len(x), *shape).permute(0, 3, 1, 2) for tap, part, shape in rows}

    def _tap_shapes(self) -> tuple[tuple[int, ...], ...]:
        import torch

        canvas = self.backbone.spec.preprocess.shape
        taps = self.split_point.taps if self.split_point else ()
        with torch.inference_mode():
            maps = self.backbone.maps(torch.zeros(1, 3, *canvas, device=self.device), taps)
        self._shapes = tuple((*m.shape[2:], m.shape[1]) for m in maps)
        return self._shapes

    def predict_batches(self, fetch: Fetch, n: int) -> Iterator[tuple[NDArray[np.intp], Outputs]]:
        """Yield rows and outputs for n rows in batches, in inference mode."""
        import torch

        self.set_inference()
        for at in range(0, n, self._batch_size):
            rows = np.arange(at, min(n, at + self._batch_size))
            with torch.inference_mode():  # ends before the yield, or it would apply to the caller
                outputs = self.outputs(self.tensor(fetch(rows)))
            yield rows, outputs

    def predict(self, fetch: Fetch, n: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Logits (n, n_classes) and pooled features (n, width) of n rows, in inference mode."""
        logits, pooled = [], []
        for _, outputs in self.predict_batches(fetch, n):
            logits.append(outputs.logits.float().cpu().numpy())
            pooled.append(outputs.pooled.float().cpu().numpy())
        return np.concatenate(logits).astype(np.float64), np.concatenate(pooled)

    def adapt(self, fetch: Fetch, n: int) -> None:
        """Estimate BatchNorm statistics of ``adapt`` stages from images, once; then freeze them."""
        import torch

        if not start_adapting(self.backbone, self.plan):
            return
        # Shuffled: folders are sorted by class, and statistics of one class are too narrow.
        order = np.random.default_rng(n).permutation(n)
        with torch.no_grad():
            for rows in np.array_split(order, max(1, n // self._batch_size)):
                self.outputs(self.tensor(fetch(rows)))
        self.set_inference()

    def parameter_groups(self, head_rate: float) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser, one per stage and one for the head."""
        rates = {row.stage: row.learning_rate for row in self.plan.rows if row.trains}
        by_stage: dict[str, list[Any]] = {stage: [] for stage in rates}
        for name, parameter in trainable_parameters(self.backbone, self.plan).items():
            by_stage[self.backbone.stage_of(name)].append(parameter)
        groups = [{"params": by_stage[stage], "lr": rates[stage]} for stage in rates]
        return [*groups, {"params": list(self.layer.parameters()), "lr": head_rate}]

    def frozen_copy(self) -> Callable[[Tensor], Outputs]:
        """Return the outputs of a constant copy of the current network, for regularisers."""
        return self.constant_copy().outputs

    def constant_copy(self) -> Network:
        """Return a copy of the current network, in inference mode and without gradients."""
        reference = copy.copy(self)
        reference.backbone = freeze(copy.deepcopy(self.backbone))
        reference.layer = freeze(copy.deepcopy(self.layer))
        reference._learning = False
        return reference

    def state(self) -> dict[str, Tensor]:
        """Tensors of the backbone by the library's names, on the CPU."""
        state = self.backbone.state_dict()
        return {k.removeprefix("trunk."): v.detach().cpu().clone() for k, v in state.items()}

    @property
    def head(self) -> Head:
        """The head as a value, with its current weights."""
        state = self.layer.state_dict()
        return self._head.with_state({k: v.detach().cpu().numpy().copy() for k, v in state.items()})

    def load(self, state: Mapping[str, Tensor], head: Head) -> None:
        """Load tensors that ``state`` and ``head`` returned, or averages of such."""
        import torch

        self.backbone.load_state_dict({f"trunk.{k}": v for k, v in state.items()})
        self.layer.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in head.state().items()})

    def require_unchanged(self) -> None:
        """Check that the constant stages have not changed.

        Raises
        ------
        HeadstartError
            If any parameter or running statistic has changed.
        """
        require_unchanged(self._constant_state(), self._before)

    def _constant_state(self) -> dict[str, Tensor]:
        state = self.backbone.state_dict()
        return {k: v for k, v in state.items() if self.backbone.stage_of(k) not in self._moving}


def find_split_point(plan: FreezePlan, head: Head) -> SplitPoint | None:
    """Find the last constant stage and the maps of constant stages that the head reads, or None."""
    if plan.last_constant_stage is None:
        return None
    if not head.taps:
        return SplitPoint(
            engine="fp32",
            stop=None if plan.first_changing_stage is None else plan.last_constant_stage,
        )
    names = [row.stage for row in plan.rows]
    before = names[: names.index(plan.last_constant_stage)]
    taps = (*(tap for tap in head.taps if tap in before), plan.last_constant_stage)
    return SplitPoint(engine="fp32", stop=plan.last_constant_stage, taps=taps)
