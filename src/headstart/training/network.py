"""A backbone and a head in training: what is constant stays so, and is proven to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import (
    FreezePlan,
    constant,
    fingerprint,
    learning,
    require_constant,
    start_adapting,
    start_training,
    trained,
)
from headstart.features.extractor import SplitPoint
from headstart.models.heads.head import Head

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.backbones.backbone import Backbone

__all__ = ["Network", "Outputs", "boundary_cut"]

JUDGE_BATCH, JUDGE_MAPS = 64, 8
"""Images at a time where nothing is learned, for heads on pooled features and on maps."""


Fetch = Callable[[NDArray[np.intp]], NDArray[Any]]


class Outputs(NamedTuple):
    """What a network gives for a batch.

    ``logits``, what the head gives: (n, n_classes) on pooled features, (n, n_classes, H, W) for
    masks, what the head itself reads on for boxes; ``pooled`` (n, width), or the mean over the
    last map for a head on maps; and ``maps``, the output of each stage that moves.
    """

    logits: Any
    pooled: Tensor
    maps: tuple[Tensor, ...]


class Network:
    """A backbone and a head, trained as a plan says.

    Parameters
    ----------
    backbone : Backbone
        Taken over and changed in place.
    head : Head
        Where the head starts.
    plan : FreezePlan
    cut : Cut, optional
        What has been computed when a batch arrives, at most up to the plan's boundary. By default
        batches are pixels.
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
        self.backbone, self.layer, self.plan, self._kind = backbone, layer, plan, head
        self.module: nn.Module = nn.ModuleDict({"backbone": backbone, "head": layer})
        self.module.to(device).to(memory_format=torch.channels_last)
        self.device, self.dropout, self.split_point = device, dropout, split_point
        names = [stage.name for stage in backbone.stages]
        self._is_pooled = split_point is not None and split_point.stop is None
        begin = (
            0
            if split_point is None or split_point.stop is None
            else names.index(split_point.stop) + 1
        )
        self._stages = [] if self._is_pooled else names[begin:]
        self._at_once = JUDGE_MAPS if head.taps else JUDGE_BATCH
        self._shapes: tuple[tuple[int, ...], ...] = ()
        self._moving = {row.stage for row in plan.rows if not row.is_constant}
        self._learning = False
        constant(backbone)
        self._before = fingerprint(self._constant_state())

    def enter(self, epoch: int) -> None:
        """Put everything into training as the plan says for an epoch, from 1."""
        start_training(self.backbone, self.plan, epoch=epoch)
        learning(self.layer)
        self._learning = True

    def rest(self) -> None:
        """Put everything into inference."""
        constant(self.backbone)
        constant(self.layer)
        self._learning = False

    def tensor(self, batch: NDArray[Any]) -> Tensor:
        """What the first stage to run reads, of an array as it was fetched.

        Parameters
        ----------
        batch : array
            Pixels, uint8, (n, H, W, 3); or what crossed the cut, float32: maps
            (n, h, w, channels), tokens (n, tokens, channels), pooled features (n, width), or
            several maps in one row (n, values).
        """
        import torch

        x = torch.from_numpy(batch).to(self.device)
        x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
        return self.backbone.spec.preprocess.normalise(x) if x.dtype == torch.uint8 else x

    def upto(self, x: Tensor) -> Tensor:
        """What crosses the cut of normalised images, as batches hold it."""
        import torch

        if self.split_point is None:
            return x
        if self.split_point.taps:
            maps = self.backbone.maps(x, self.split_point.taps)
            return torch.cat([one.permute(0, 2, 3, 1).flatten(1) for one in maps], dim=1)
        x = self.backbone.run(x, stop=self.split_point.stop)
        return self.backbone.pool(x) if self._is_pooled else x

    def outputs(self, x: Tensor) -> Outputs:
        """Run the stages behind the cut, and the head on what it reads."""
        from torch.nn.functional import dropout

        maps, seen = [], self._parted(x)
        x = next(reversed(seen.values()), x)
        for stage in self._stages:
            x = self.backbone.run(x, start=stage, stop=stage)
            if stage in self._moving:
                maps.append(x)
            if stage in self._kind.taps:
                seen[stage] = x
        if self._kind.taps:
            given = self.layer([seen[stage] for stage in self._kind.taps])
            return Outputs(given, x.mean(dim=(2, 3)), tuple(maps))
        pooled = x if self._is_pooled else self.backbone.pool(x)
        dropped = dropout(pooled, self.dropout, training=self._learning)
        return Outputs(self.layer(dropped), pooled, tuple(maps))

    def _parted(self, x: Tensor) -> dict[str, Tensor]:
        """Maps by stage of a batch that holds several in one row; else none."""
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
        self._shapes = tuple((*one.shape[2:], one.shape[1]) for one in maps)
        return self._shapes

    def answers(self, fetch: Fetch, n: int) -> Iterator[tuple[NDArray[np.intp], Outputs]]:
        """Outputs for n rows, some at a time, in inference."""
        import torch

        self.rest()
        for at in range(0, n, self._at_once):
            rows = np.arange(at, min(n, at + self._at_once))
            with torch.inference_mode():  # not around the yield: it would hold for the caller
                found = self.outputs(self.tensor(fetch(rows)))
            yield rows, found

    def judge(self, fetch: Fetch, n: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Logits (n, n_classes) and pooled features (n, width) of n rows, in inference."""
        logits, pooled = [], []
        for _, found in self.answers(fetch, n):
            logits.append(found.logits.float().cpu().numpy())
            pooled.append(found.pooled.float().cpu().numpy())
        return np.concatenate(logits).astype(np.float64), np.concatenate(pooled)

    def adapt(self, fetch: Fetch, n: int) -> None:
        """Take the statistics of ``adapt`` stages from images, once; then they are constant."""
        import torch

        if not start_adapting(self.backbone, self.plan):
            return
        # Mixed: a folder is sorted by class, and statistics within a class are too narrow.
        order = np.random.default_rng(n).permutation(n)
        with torch.no_grad():
            for rows in np.array_split(order, max(1, n // self._at_once)):
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

    @property
    def head(self) -> Head:
        """The head as a value, with its numbers as they are."""
        state = self.layer.state_dict()
        return self._kind.with_state({k: v.detach().cpu().numpy().copy() for k, v in state.items()})

    def load(self, state: Mapping[str, Tensor], head: Head) -> None:
        """Take over tensors that ``state`` and ``head`` gave, or mixtures of such."""
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


def boundary_cut(plan: FreezePlan, head: Head) -> SplitPoint | None:
    """Where constant stages end, and what of theirs the head reads; None where all move."""
    if plan.boundary is None:
        return None
    if not head.taps:
        return SplitPoint(engine="fp32", stop=None if plan.first_moving is None else plan.boundary)
    names = [row.stage for row in plan.rows]
    before = names[: names.index(plan.boundary)]
    taps = (*(tap for tap in head.taps if tap in before), plan.boundary)
    return SplitPoint(engine="fp32", stop=plan.boundary, taps=taps)
