"""What a backbone costs on this machine: every stage, what learns, a step, an image's pixels.

A few random pixels go once through every stage, forward, and through what moves, forward and
backward. The times are remembered.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import FreezePlan, constant
from headstart.cache import Cache, key
from headstart.data.dataset import Sample
from headstart.data.loader import digest_of
from headstart.features.engines import CPU_BATCH, GPU_BATCH
from headstart.features.extractor import SplitPoint
from headstart.models.heads.head import Head
from headstart.runtime import cores, machine, versions
from headstart.training.network import Network, boundary_cut

if TYPE_CHECKING:
    from headstart.backbones.backbone import Backbone
    from headstart.backbones.frozen import FrozenBackbone

__all__ = ["Measured", "StageCost", "measure", "measure_pixels"]

REPEATS = 3
PIXEL_SAMPLES = 4
LEARNED_AT_ONCE = 8
USUAL_BATCH = 32
QUICK = 0.25
"""Seconds below which a few images say little: then a usual batch is timed. A network that is
dear costs each image the same in any batch."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage costs in inference.

    Parameters
    ----------
    name : str
    seconds : float
        For one image, where every core has its own images.
    bytes : int
        Of what it gives for one image, in float32.
    """

    name: str
    seconds: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times of a backbone on this machine.

    Parameters
    ----------
    stages : tuple of StageCost
        In the order in which they run.
    learn : float
        Seconds of an image forward and backward through what moves and the head.
    update : float
        Seconds of an optimiser's step.
    pixels : float
        Seconds to decode and resize an image, all cores at work.
    width : int
        Of the pooled features.
    """

    stages: tuple[StageCost, ...]
    learn: float
    update: float = 0.0
    pixels: float = 0.0
    width: int = 0


def measure(
    backbone: Backbone, plan: FreezePlan, head: Head, *, cache: Cache, device: str = "cpu"
) -> Measured:
    """Time every stage in inference, and what moves forward and backward; once for a machine.

    The backward pass is not guessed from the forward one: gradients of a few random images are
    taken, as the plan says, and thrown away. The optimiser's step is the time of Adam's
    arithmetic on as many values. The module is not changed.

    Parameters
    ----------
    backbone : Backbone
    plan : FreezePlan
        Of this backbone.
    head : Head
        Of a head for boxes, what it computes only in a training's loss is not counted.
    cache : Cache
        Where the times are remembered for backbone, crop, plan, device and versions.
    device : str
    """
    rows = [[row.stage, row.trainable, row.batch_norm] for row in plan.rows]
    seen = backbone.spec.preprocess.shape
    here = json.dumps(
        [machine(device).as_dict(), versions(), rows, plan.only, _threads(), head.kind]
    )
    wanted = key("boundary", backbone.spec.name, *map(str, seen), "fp32", here)
    if found := cache.get_many([wanted]).get(wanted):
        values = json.loads(found)
        stages = tuple(StageCost(**stage) for stage in values.pop("stages"))
        return Measured(stages=stages, **values)
    measured = Measured(
        stages=_stage_costs(backbone, device),
        learn=_learning_seconds(backbone, plan, head, device),
        update=_update_seconds(plan.trainable + sum(v.size for v in head.state().values()), device),
        width=backbone.width,
    )
    cache.put_many({wanted: json.dumps(asdict(measured)).encode()}, kind="choice")
    return measured


def measure_pixels(
    backbone: FrozenBackbone, samples: Sequence[Sample], split_point: SplitPoint, *, cache: Cache
) -> float:
    """Seconds to decode one of these images where every core decodes its own.

    Raises
    ------
    UnreadableImageError
        If one of the first few cannot be decoded.
    """
    few = samples[:PIXEL_SAMPLES]
    if not few:
        return 0.0
    view, preprocess = (
        split_point.view.fingerprint() if split_point.view else "",
        backbone.spec.preprocess,
    )
    here = json.dumps([machine().as_dict(), versions(), view, preprocess.fingerprint()])
    wanted = key("pixels", here, *(digest_of(sample) for sample in few))
    if found := cache.get_many([wanted]).get(wanted):
        return float(json.loads(found))
    seconds = _best(lambda: split_point.pixels(few, preprocess), "cpu") / len(few) / cores()
    cache.put_many({wanted: json.dumps(seconds).encode()}, kind="choice")
    return seconds


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _best(work: Callable[[], Any], device: str) -> float:
    """Seconds of the quickest of a few runs; the first one warms up."""
    import torch

    times = []
    for _ in range(1 + REPEATS):
        begin = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _random_pixels(backbone: Backbone, n: int) -> NDArray[np.uint8]:
    shape = (n, *backbone.spec.preprocess.shape, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _stage_costs(backbone: Backbone, device: str) -> tuple[StageCost, ...]:
    """As extraction runs them: on a CPU a small batch on one core, and all cores at it."""
    import torch

    on_cpu = device == "cpu"
    n = CPU_BATCH if on_cpu else GPU_BATCH
    module = constant(copy.deepcopy(backbone)).to(device)
    module.to(memory_format=torch.channels_last)
    pixels = torch.from_numpy(_random_pixels(backbone, n)).to(device).permute(0, 3, 1, 2)
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(1 if on_cpu else before)
    try:
        with torch.inference_mode():
            x = backbone.spec.preprocess.normalise(pixels)
            for stage in backbone.stages:
                run = partial(module.run, x, start=stage.name, stop=stage.name)
                seconds, x = _best(run, device), run()
                share = n * (cores() if on_cpu else 1)
                size = 4 * x.numel() // n
                found.append(StageCost(name=stage.name, seconds=seconds / share, bytes=size))
    finally:
        torch.set_num_threads(before)
    return tuple(found)


def _learning_seconds(backbone: Backbone, plan: FreezePlan, head: Head, device: str) -> float:
    """Of an image, as training runs it: a batch on all cores."""
    import torch

    split_point = boundary_cut(plan, head)
    n = LEARNED_AT_ONCE if not head.taps else 2
    with torch.random.fork_rng(devices=[]):
        network = Network(
            copy.deepcopy(backbone), head, plan, split_point=split_point, device=device
        )
        network.enter(max(row.from_epoch for row in plan.rows))
        moving = [p for group in network.groups(1.0) for p in group["params"]]

        def pixels(n: int) -> Any:
            with torch.no_grad():
                x = network.tensor(_random_pixels(backbone, n))
                return network.upto(x) if split_point else x

        x = pixels(n)

        def work() -> None:
            loss = sum(one.square().mean() for one in _tensors(network.outputs(x).logits))
            # Not a training: nothing is stepped, the gradients are thrown away.
            torch.autograd.grad(loss, moving, allow_unused=True)

        seconds = _best(work, device)
        if seconds < QUICK and not head.taps:
            n, x = USUAL_BATCH, pixels(USUAL_BATCH)
            seconds = _best(work, device)
        return seconds / n


def _tensors(found: Any) -> list[Any]:
    """Every tensor with a gradient in what a head gives."""
    if isinstance(found, Mapping):
        found = list(found.values())
    if isinstance(found, list | tuple):
        return [tensor for one in found for tensor in _tensors(one)]
    return [found] if getattr(found, "requires_grad", False) else []


def _update_seconds(values: int, device: str) -> float:
    """Adam's arithmetic and the gradient's norm, over so many values."""
    import torch

    parameter, gradient, mean, square = (torch.ones(values, device=device) for _ in range(4))

    def work() -> None:
        gradient.mul_(1.0 / gradient.norm())
        parameter.mul_(0.99)
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        parameter.addcdiv_(mean, square.sqrt().add_(1e-8), value=-1e-3)

    return _best(work, device)
