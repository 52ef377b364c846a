"""Profiler: times of each stage, of a training step and of image decoding on this machine.

A few random images pass forward through every stage, and forward and backward through the
trainable part. The times are stored in the cache.
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

from headstart.backbones.freezing import FreezePlan, freeze
from headstart.cache import Cache, key
from headstart.data.dataset import Sample
from headstart.data.loader import digest_of
from headstart.features.engines import CPU_BATCH, GPU_BATCH
from headstart.features.extractor import SplitPoint
from headstart.models.heads.head import Head
from headstart.runtime import cores, machine, threads, versions
from headstart.training.network import Network, find_split_point

if TYPE_CHECKING:
    from headstart.backbones.backbone import Backbone
    from headstart.backbones.frozen import FrozenBackbone

__all__ = ["MeasuredCosts", "StageCost", "measure_costs", "measure_decoding", "recall_costs"]

N_REPEATS = 3
N_DECODED_IMAGES = 4
SMALL_BATCH = 8
LARGE_BATCH = 32
FAST_BATCH_SECONDS = 0.25
"""If a small batch takes fewer seconds than this, overhead dominates and a large batch is timed.
A slow network takes the same time per image in any batch."""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Cost of one stage in inference.

    Parameters
    ----------
    name : str
    seconds : float
        Time for one image when every core processes its own images.
    bytes : int
        Size of the stage's output for one image, in float32.
    """

    name: str
    seconds: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class MeasuredCosts:
    """Times of a backbone on this machine.

    Parameters
    ----------
    stages : tuple of StageCost
        In the order in which they run.
    learn : float
        Seconds for one image forward and backward through the trainable part and the head.
    update : float
        Seconds for one optimiser step.
    pixels : float
        Seconds to decode and resize one image when all cores work.
    width : int
        Number of pooled features.
    """

    stages: tuple[StageCost, ...]
    learn: float
    update: float = 0.0
    pixels: float = 0.0
    width: int = 0


def measure_costs(
    backbone: Backbone, plan: FreezePlan, head: Head, *, cache: Cache, device: str = "cpu"
) -> MeasuredCosts:
    """Time every stage in inference and the trainable part in training, once per machine.

    The backward pass is measured, not estimated from the forward pass: gradients of a few random
    images are computed according to the plan and discarded. The optimiser step is the time of
    Adam's arithmetic on the same number of values. The module is not changed.

    Parameters
    ----------
    backbone : Backbone
    plan : FreezePlan
        Freezing plan of this backbone.
    head : Head
        For a detection head, parts that run only in the training loss are not measured.
    cache : Cache
        Stores the times by backbone, crop, plan, device and versions.
    device : str
    """
    remembered = recall_costs(backbone, plan, head, cache=cache, device=device)
    if remembered is not None:
        return remembered
    measured = MeasuredCosts(
        stages=_stage_costs(backbone, device),
        learn=_learning_seconds(backbone, plan, head, device),
        update=_update_seconds(plan.trainable + sum(v.size for v in head.state().values()), device),
        width=backbone.width,
    )
    cache_key = _costs_key(backbone, plan, head, device)
    cache.put_many({cache_key: json.dumps(asdict(measured)).encode()}, kind="choice")
    return measured


def recall_costs(
    backbone: Backbone, plan: FreezePlan, head: Head, *, cache: Cache, device: str = "cpu"
) -> MeasuredCosts | None:
    """Return the times that an earlier ``measure_costs`` stored for this machine, if any."""
    cache_key = _costs_key(backbone, plan, head, device)
    cached = cache.get_many([cache_key]).get(cache_key)
    if not cached:
        return None
    values = json.loads(cached)
    stages = tuple(StageCost(**stage) for stage in values.pop("stages"))
    return MeasuredCosts(stages=stages, **values)


def _costs_key(backbone: Backbone, plan: FreezePlan, head: Head, device: str) -> bytes:
    rows = [[row.stage, row.trainable, row.batch_norm] for row in plan.rows]
    size = backbone.spec.preprocess.shape
    environment = json.dumps(
        [machine(device).as_dict(), versions(), rows, plan.only, threads(), head.kind]
    )
    return key("boundary", backbone.spec.name, *map(str, size), "fp32", environment)


def measure_decoding(
    backbone: FrozenBackbone, samples: Sequence[Sample], split_point: SplitPoint, *, cache: Cache
) -> float:
    """Seconds to decode one of these images when every core decodes its own images.

    Raises
    ------
    UnreadableImageError
        If one of the first few images cannot be decoded.
    """
    decoded = samples[:N_DECODED_IMAGES]
    if not decoded:
        return 0.0
    view = split_point.view.fingerprint() if split_point.view else ""
    preprocess = backbone.spec.preprocess
    environment = json.dumps([machine().as_dict(), versions(), view, preprocess.fingerprint()])
    cache_key = key("pixels", environment, *(digest_of(sample) for sample in decoded))
    if cached := cache.get_many([cache_key]).get(cache_key):
        return float(json.loads(cached))
    seconds = _shortest_seconds(lambda: split_point.pixels(decoded, preprocess), "cpu")
    seconds = seconds / len(decoded) / cores()
    cache.put_many({cache_key: json.dumps(seconds).encode()}, kind="choice")
    return seconds


def _shortest_seconds(work: Callable[[], Any], device: str) -> float:
    """Shortest time of a few runs; one run before them warms up."""
    import torch

    times = []
    for _ in range(1 + N_REPEATS):
        started_at = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started_at)
    return min(times[1:])


def _random_pixels(backbone: Backbone, n: int) -> NDArray[np.uint8]:
    shape = (n, *backbone.spec.preprocess.shape, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _stage_costs(backbone: Backbone, device: str) -> tuple[StageCost, ...]:
    """Time the stages as feature extraction runs them: on a CPU, each core has its own batch."""
    import torch

    on_cpu = device == "cpu"
    n = CPU_BATCH if on_cpu else GPU_BATCH
    module = freeze(copy.deepcopy(backbone)).to(device)
    module.to(memory_format=torch.channels_last)
    pixels = torch.from_numpy(_random_pixels(backbone, n)).to(device).permute(0, 3, 1, 2)
    n_threads, costs = torch.get_num_threads(), []
    torch.set_num_threads(1 if on_cpu else n_threads)
    try:
        with torch.inference_mode():
            x = backbone.spec.preprocess.normalise(pixels)
            for stage in backbone.stages:
                run = partial(module.run, x, start=stage.name, stop=stage.name)
                seconds, x = _shortest_seconds(run, device), run()
                n_parallel = n * (cores() if on_cpu else 1)
                size = 4 * x.numel() // n
                costs.append(StageCost(name=stage.name, seconds=seconds / n_parallel, bytes=size))
    finally:
        torch.set_num_threads(n_threads)
    return tuple(costs)


def _learning_seconds(backbone: Backbone, plan: FreezePlan, head: Head, device: str) -> float:
    """Time one image forward and backward as training runs it: a batch on all cores."""
    import torch

    split_point = find_split_point(plan, head)
    n = SMALL_BATCH if not head.taps else 2
    with torch.random.fork_rng(devices=[]):
        network = Network(
            copy.deepcopy(backbone), head, plan, split_point=split_point, device=device
        )
        network.set_training(max(row.from_epoch for row in plan.rows))
        parameters = [p for group in network.parameter_groups(1.0) for p in group["params"]]

        def random_inputs(n: int) -> Any:
            with torch.no_grad():
                x = network.tensor(_random_pixels(backbone, n))
                return network.run_to_split(x) if split_point else x

        x = random_inputs(n)

        def work() -> None:
            tensors = _differentiable_tensors(network.outputs(x).logits)
            loss = sum(tensor.square().mean() for tensor in tensors)
            # Not a training: no step is taken, the gradients are discarded.
            torch.autograd.grad(loss, parameters, allow_unused=True)

        seconds = _shortest_seconds(work, device)
        if seconds < FAST_BATCH_SECONDS and not head.taps:
            n, x = LARGE_BATCH, random_inputs(LARGE_BATCH)
            seconds = _shortest_seconds(work, device)
        return seconds / n


def _differentiable_tensors(outputs: Any) -> list[Any]:
    """Collect every tensor with a gradient from the outputs of a head."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, list | tuple):
        return [tensor for output in outputs for tensor in _differentiable_tensors(output)]
    return [outputs] if getattr(outputs, "requires_grad", False) else []


def _update_seconds(n_values: int, device: str) -> float:
    """Time Adam's arithmetic and the norm of the gradient on that many values."""
    import torch

    parameter, gradient, mean, square = (torch.ones(n_values, device=device) for _ in range(4))

    def work() -> None:
        gradient.mul_(1.0 / gradient.norm())
        parameter.mul_(0.99)
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        parameter.addcdiv_(mean, square.sqrt().add_(1e-8), value=-1e-3)

    return _shortest_seconds(work, device)
