"""Engines: the precision and the library that a frozen backbone runs in, chosen by measuring.

An engine must compute the same features as float32, within a tolerance. Each candidate is compared
with float32 on real images and timed. The fastest one within the tolerance is stored in the cache
for this machine and backbone.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import fingerprint, require_unchanged
from headstart.cache import Cache, key
from headstart.errors import MissingExtraError, SetupError, UnknownNameError
from headstart.runtime import cores, machine, versions
from headstart.runtime import device as resolve_device

if TYPE_CHECKING:
    from torch import nn

    from headstart.backbones.backbone import Backbone

__all__ = [
    "ENGINES",
    "PROBE_IMAGES",
    "CompiledEngine",
    "EngineChoice",
    "available_engines",
    "candidate_engines",
    "choose_engine",
    "compile_engine",
    "engine_measuring_pays",
    "measuring_pays",
    "recall_choice",
    "runnable_engine",
]

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels (n, H, W, 3) to pooled features (n, width), or to the output of an inner stage: maps
(n, h, w, channels), tokens (n, tokens, channels)."""

ENGINES = ("fp32", "bf16", "openvino", "openvino-bf16")
TOLERANCE = 0.03
"""Largest accepted relative L2 distance from the float32 features, on the worst image.

A choice is stored for a backbone, not for its data, so the tolerance leaves a margin: ResNet-18 in
bf16 is off by 1 to 2 % on any images, networks with depthwise layers by 4 to 20 %, depending on the
images."""
PROBE_IMAGES = 8
CPU_BATCH = 4
"""Small enough for a core's cache: 8 to 35 % faster than 16 (docs/results.md)."""
GPU_BATCH = 64
N_TIMED_PASSES = 2
"""Timed forward passes of each engine, after one that warms up."""
MEASURING_SHARE = 0.1
"""Largest cost of a measurement, as a share of what it can save."""
ENGINE_SAVING = 2 / 3
"""Largest share of the extraction that an engine is assumed to save: two thirds, as one that is
three times as fast as float32."""
OPENVINO_MIN_IMAGES = 500
"""Fewest images for which OpenVINO is tried."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CompiledEngine:
    """A frozen backbone compiled for an engine.

    Parameters
    ----------
    forward : callable
        Pixels, uint8, (batch, H, W, 3) to pooled features (batch, width); thread-safe.
    batch : int
        Batch size.
    module : torch.nn.Module or None
        The network in the engine's precision; None for a compiled graph, whose weights cannot
        change.
    """

    forward: Forward
    batch: int = 4
    module: nn.Module | None = None

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pooled features (n, width) of pixels (n, H, W, 3).

        All batches have the same size; the last one is padded. Libraries choose their kernels by
        the batch size, so otherwise an image's features could depend on the other images.
        """
        n_padding = -len(pixels) % self.batch
        padding = np.zeros((n_padding, *pixels.shape[1:]), dtype=np.uint8)
        padded = np.concatenate([pixels, padding]) if n_padding else pixels
        starts = range(0, len(padded), self.batch)
        parts = [self.forward(padded[start : start + self.batch]) for start in starts]
        return np.concatenate(parts)[: len(pixels)]

    def fingerprint(self) -> str:
        """Hash of the weights and statistics that compute the features."""
        return "" if self.module is None else fingerprint(self.module.state_dict())

    def require_unchanged(self, before: str) -> None:
        """Compare the weights with their earlier fingerprint.

        Raises
        ------
        HeadstartError
            If any parameter or running statistic has changed.
        """
        if self.module is not None:
            require_unchanged(self.module.state_dict(), before)


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The chosen engine and the measurements.

    Parameters
    ----------
    engine : str
    rates : mapping of str to float
        Images per second on one core (or on the GPU), for each engine tried.
    distances : mapping of str to float
        Relative L2 distance from the float32 features, on the worst image.
    remembered : bool
        Whether the measurements are from an earlier run.
    """

    engine: str
    rates: Mapping[str, float] = field(default_factory=dict)
    distances: Mapping[str, float] = field(default_factory=dict)
    remembered: bool = False

    def describe(self) -> str:
        """Describe the choice in one line."""
        if not self.rates:
            return self.engine
        tried = ", ".join(
            f"{name} {rate:.0f}/s"
            + (f" but off by {self.distances[name]:.0%}" * (self.distances[name] > TOLERANCE))
            for name, rate in self.rates.items()
        )
        source = "remembered" if self.remembered else "measured"
        return f"{self.engine} ({source} on one core: {tried})"


def available_engines(device: str) -> tuple[str, ...]:
    """List the engines that this machine can run, float32 first."""
    import torch

    # On other devices bf16 is emulated, and slower than float32.
    has_bf16 = device == "cuda" or (
        device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    has_openvino = device == "cpu" and _has_openvino()
    is_available = {
        "fp32": True,
        "bf16": has_bf16,
        "openvino": has_openvino,
        "openvino-bf16": has_openvino and has_bf16,
    }
    return tuple(name for name in ENGINES if is_available[name])


def compile_engine(
    backbone: Backbone,
    engine: str,
    *,
    device: str,
    stop: str | None = None,
    taps: Sequence[str] = (),
    ends: Sequence[str] = (),
) -> CompiledEngine:
    """Build the function from pixels to pooled features, or to the outputs of inner stages.

    Parameters
    ----------
    backbone : Backbone
        Constant (see ``freezing.freeze``); it is not modified.
    engine : {"fp32", "bf16", "openvino", "openvino-bf16"}
    device : str
    stop : str, optional
        The last stage that runs (torch's engines only); by default all run and are pooled.
    taps : sequence of str
        Stages whose maps to return, in the order they run. An image's values are then one row:
        the maps one after the other, each channels last and flattened.
    ends : sequence of str
        Stages whose maps to average over their positions, in order; an empty name stands for the
        pooled features. An image's values are one row, one stage after the other.

    Raises
    ------
    UnknownNameError
        If there is no such engine.
    SetupError
        If this machine cannot run it.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if engine.startswith("openvino") and not _has_openvino():
        raise MissingExtraError("openvino", extra="openvino")
    if engine not in available_engines(device):
        raise SetupError(
            f"The engine {engine!r} does not run on {device}. Pass --engine with one of: "
            f"{', '.join(available_engines(device))}."
        )
    if engine.startswith("openvino"):
        return _compile_openvino(backbone, "bf16" if engine.endswith("bf16") else "f32", ends)
    return _compile_torch(backbone, engine, device, stop=stop, taps=taps, ends=ends)


def runnable_engine(engine: str, *, device: str) -> str:
    """Return the engine if this machine can run it, else "fp32"."""
    if engine == "auto":
        return engine
    return engine if engine in available_engines(resolve_device(device)) else "fp32"


def candidate_engines(device: str, images: int) -> tuple[str, ...]:
    """List the engines to try. OpenVINO is left out for few images: compiling takes seconds."""
    names = available_engines(device)
    if images < OPENVINO_MIN_IMAGES:
        names = tuple(name for name in names if not name.startswith("openvino"))
    return names


def measuring_pays(cost: float, saving: float) -> bool:
    """Whether to measure this machine: not where it costs more than a tenth of what it can save.

    Parameters
    ----------
    cost : float
        Expected seconds of the measurement.
    saving : float
        Most seconds that its result can save.

    Examples
    --------
    >>> measuring_pays(1.0, 10.0), measuring_pays(1.0, 9.0)
    (True, False)
    """
    return cost <= MEASURING_SHARE * saving


def engine_measuring_pays(images: int, n_engines: int, n_cores: int) -> bool:
    """Whether to measure the engines for this number of images to compute.

    The cost is the forward passes of the measurement, on one core; the saving is the share of the
    extraction that the fastest engine can save, on all cores. Both are in forward passes of one
    image, so the speed of the machine cancels out.

    Examples
    --------
    >>> engine_measuring_pays(1_000, 2, 2), engine_measuring_pays(2_000, 2, 2)
    (False, True)
    >>> engine_measuring_pays(10**6, 1, 2)  # there is nothing to choose from
    False
    """
    cost = n_engines * (1 + N_TIMED_PASSES) * PROBE_IMAGES
    return n_engines > 1 and measuring_pays(cost, ENGINE_SAVING * images / n_cores)


def choose_engine(
    backbone: Backbone,
    pixels: NDArray[np.uint8],
    *,
    device: str,
    cache: Cache,
    engines: Sequence[str],
) -> EngineChoice:
    """Measure the engines on real images and store the fastest one within the tolerance.

    Parameters
    ----------
    backbone : Backbone
    pixels : array, uint8, shape (n, H, W, 3)
        A few images of the data at hand.
    device : str
    cache : Cache
        Where the choice is stored.
    engines : sequence of str
        The candidates, see ``candidate_engines``.
    """
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in extraction, where every core has its own images
    try:
        choice = _measure_engines(backbone, pixels[:PROBE_IMAGES], device, engines)
    finally:
        torch.set_num_threads(n_threads)
    measured = {"engine": choice.engine, "rates": choice.rates, "distances": choice.distances}
    value = json.dumps(measured).encode()
    cache.put_many({_choice_key(backbone.spec.name, device, engines): value}, kind="choice")
    return choice


def recall_choice(
    backbone_name: str, *, device: str, cache: Cache, engines: Sequence[str]
) -> EngineChoice | None:
    """Return the choice that an earlier run stored for this machine, if any."""
    choice_key = _choice_key(backbone_name, device, engines)
    value = cache.get_many([choice_key]).get(choice_key)
    return EngineChoice(**json.loads(value), remembered=True) if value else None


def _choice_key(backbone_name: str, device: str, engines: Sequence[str]) -> bytes:
    environment = json.dumps([machine(device).as_dict(), versions(), list(engines)])
    return key("engine", backbone_name, environment)


def _measure_engines(
    backbone: Backbone, pixels: NDArray[np.uint8], device: str, engines: Sequence[str]
) -> EngineChoice:
    rates: dict[str, float] = {}
    distances: dict[str, float] = {}
    reference: NDArray[np.float32] | None = None
    for engine in engines:
        forward = compile_engine(backbone, engine, device=device)
        features = forward(pixels)
        reference = features if reference is None else reference  # the first engine is float32
        distances[engine] = _largest_distance(features, reference)
        rates[engine] = len(pixels) / min(
            _time_forward(forward, pixels) for _ in range(N_TIMED_PASSES)
        )
    accepted = [name for name in rates if distances[name] <= TOLERANCE]
    fastest = max(accepted, key=lambda name: rates[name])
    return EngineChoice(engine=fastest, rates=rates, distances=distances)


def _largest_distance(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Largest relative L2 distance of any image; infinite if a feature is not finite."""
    if not np.isfinite(features).all():
        return float("inf")
    size = np.maximum(np.linalg.norm(reference, axis=1), np.finfo(np.float32).tiny)
    return float((np.linalg.norm(features - reference, axis=1) / size).max())


def _time_forward(forward: Forward, pixels: NDArray[np.uint8]) -> float:
    started_at = time.perf_counter()
    forward(pixels)
    return time.perf_counter() - started_at


def _compile_torch(
    backbone: Backbone,
    engine: str,
    device: str,
    *,
    stop: str | None,
    taps: Sequence[str],
    ends: Sequence[str],
) -> CompiledEngine:
    import copy

    import torch

    from headstart.backbones.backbone import StageFeatures

    dtype = torch.bfloat16 if engine == "bf16" else torch.float32
    preprocess = backbone.spec.preprocess
    module = copy.deepcopy(backbone).to(device=device, dtype=dtype)
    module.to(memory_format=torch.channels_last)
    for layer, exact in zip(module.modules(), backbone.modules(), strict=True):
        # BatchNorm's statistics in bf16 would shift every feature; in float32 they cost no time.
        if isinstance(exact, torch.nn.modules.batchnorm._BatchNorm):
            layer.float().load_state_dict(exact.state_dict())
    # A GPU runs one batch at a time; on a CPU every core runs its own.
    lock = threading.Lock() if device != "cpu" else None

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            # (n, H, W, 3) permuted to (n, 3, H, W) is already channels_last in memory.
            batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
            x = preprocess.normalise(batch, dtype)
            if taps:
                maps = [m.permute(0, 2, 3, 1).flatten(1) for m in module.maps(x, taps)]
                return torch.cat(maps, dim=1).float().cpu().numpy()
            if ends:
                return np.asarray(StageFeatures(module, ends)(x).float().cpu().numpy())
            output = module.pooled(x) if stop is None else module.run(x, stop=stop)
            # Store maps channels last. This copies nothing where they are channels_last already.
            output = output.permute(0, 2, 3, 1) if output.ndim == 4 else output
            return np.ascontiguousarray(output.float().cpu().numpy())

    def run_locked(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if lock is None:
            return run(pixels)
        with lock:
            return run(pixels)

    batch = CPU_BATCH if device == "cpu" else GPU_BATCH
    return CompiledEngine(forward=run_locked, batch=batch, module=module)


def _has_openvino() -> bool:
    from importlib.util import find_spec

    return find_spec("openvino") is not None


def _compile_openvino(
    backbone: Backbone, precision: str, ends: Sequence[str] = ()
) -> CompiledEngine:
    # OpenVINO contacts an analytics host at import. Headstart opens no socket without a request.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino
    import torch

    from headstart.backbones.backbone import StageFeatures

    example = torch.zeros(2, 3, *backbone.spec.preprocess.shape)
    with torch.no_grad():
        module = StageFeatures(backbone, ends) if ends else backbone
        exported = torch.export.export(module, (example,), dynamic_shapes=(_dynamic_batch(),))
    graph = openvino.convert_model(exported)
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": cores(),
        "INFERENCE_NUM_THREADS": cores(),
        "PERFORMANCE_HINT": "THROUGHPUT",
    }
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    requests = threading.local()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        normalised = backbone.spec.preprocess.normalise(batch).contiguous().numpy()
        return np.array(requests.own.infer([normalised])[0], dtype=np.float32)

    return CompiledEngine(forward=run, batch=CPU_BATCH)


def _dynamic_batch() -> dict[int, Any]:
    from torch.export import Dim

    return {0: Dim("images", min=1)}
