"""Engines: the precision and the library that a frozen backbone runs in.

The automatic choice is a fixed order of preference. It depends on the machine, the installed
packages, the network and the number of images, never on a measured time. An engine must compute the
same features as float32, within a tolerance; this is checked on fixed photographs.
"""

from __future__ import annotations

import json
import platform
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
from headstart.features.graphs import has_openvino, openvino_core, read_graph
from headstart.runtime import cores, machine, versions
from headstart.runtime import device as resolve_device

if TYPE_CHECKING:
    from torch import nn

    from headstart.backbones.backbone import Backbone
    from headstart.backbones.frozen import FrozenBackbone

__all__ = [
    "AUTO_MIN_IMAGES",
    "ENGINES",
    "CompiledEngine",
    "EngineChoice",
    "available_engines",
    "choose_engine",
    "compile_engine",
    "measuring_pays",
    "preferred_engines",
    "runnable_engine",
]

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels (n, H, W, 3) to pooled features (n, width), or to the output of an inner stage: maps
(n, h, w, channels), tokens (n, tokens, channels)."""

ENGINES = ("fp32", "bf16", "openvino", "openvino-bf16")
TOLERANCES = {"fp32": np.inf, "openvino": 1e-3, "bf16": 0.03}
"""Largest accepted relative L2 distance from torch's float32 features, on the worst photograph, of
the engines that are chosen automatically.

ResNet-18 in bf16 is off by 1 to 2 % on any images, networks with depthwise layers by 4 to 20 %,
depending on the images."""
AUTO_MIN_IMAGES = 500
"""Fewest distinct images for which another engine than fp32 is chosen automatically: converting a
network takes seconds."""
CHECK_VERSION = 1
"""Increased when the check of an engine changes, so that stored results are not used."""
CPU_BATCH = 4
"""Small enough for a core's cache: 8 to 35 % faster than 16 (docs/results.md)."""
GPU_BATCH = 64
MEASURING_SHARE = 0.1
"""Largest cost of a measurement, as a share of what it can save."""
CONVERSION_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ImportError,
)
"""Errors of torch.export and OpenVINO for a network that they do not support."""


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
    """The chosen engine, and the results of its check.

    Parameters
    ----------
    engine : str
    rates : mapping of str to float
        Images per second on one core (or on the GPU) of the chosen engine, for estimates of time.
        The choice does not depend on it. Empty if nothing was checked.
    distances : mapping of str to float
        Relative L2 distance from the float32 features, on the worst photograph, for each engine
        that was checked.
    notes : tuple of str
        Why preferred engines were not chosen.
    """

    engine: str
    rates: Mapping[str, float] = field(default_factory=dict)
    distances: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Describe the choice in one line.

        Examples
        --------
        >>> EngineChoice(engine="openvino", distances={"openvino": 2.6e-6}).describe()
        'openvino (features differ from fp32 by at most 2.6e-06)'
        >>> EngineChoice(engine="fp32", notes=("openvino is not installed",)).describe()
        'fp32 (openvino is not installed)'
        """
        texts = list(self.notes)
        if distance := self.distances.get(self.engine):
            texts.append(f"features differ from fp32 by at most {distance:.1e}")
        return f"{self.engine} ({'; '.join(texts)})" if texts else self.engine


def available_engines(device: str) -> tuple[str, ...]:
    """List the engines that this machine can run, float32 first."""
    import torch

    # On other devices bf16 is emulated, and slower than float32.
    has_bf16 = device == "cuda" or (
        device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    is_compiled = device == "cpu" and has_openvino()
    is_available = {
        "fp32": True,
        "bf16": has_bf16,
        "openvino": is_compiled,
        "openvino-bf16": is_compiled and has_bf16,
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
    cache: Cache | None = None,
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
    cache : Cache, optional
        Keeps the networks that were converted for OpenVINO.

    Raises
    ------
    UnknownNameError
        If there is no such engine.
    SetupError
        If this machine cannot run it.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if engine.startswith("openvino") and not has_openvino():
        raise MissingExtraError("openvino", extra="openvino")
    if engine not in available_engines(device):
        raise SetupError(
            f"The engine {engine!r} does not run on {device}. Pass --engine with one of: "
            f"{', '.join(available_engines(device))}."
        )
    if engine.startswith("openvino"):
        precision = "bf16" if engine.endswith("bf16") else "f32"
        return _compile_openvino(backbone, precision, ends or ("",), cache)
    return _compile_torch(backbone, engine, device, stop=stop, taps=taps, ends=ends)


def runnable_engine(engine: str, *, device: str) -> str:
    """Return the engine if this machine can run it, else "fp32"."""
    if engine == "auto":
        return engine
    return engine if engine in available_engines(resolve_device(device)) else "fp32"


def preferred_engines(device: str) -> tuple[str, ...]:
    """List the engines that are chosen automatically, in the order of preference.

    Exact engines come first. OpenVINO is preferred on x86-64 only, where its speed was measured.
    """
    if device == "cpu":
        is_measured = platform.machine().lower() in {"x86_64", "amd64"}
        return (*(("openvino",) if is_measured else ()), "bf16", "fp32")
    return ("bf16", "fp32")


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


def choose_engine(
    backbone: FrozenBackbone, images: int, *, device: str, cache: Cache
) -> EngineChoice:
    """Choose the first engine, in the order of preference, that computes the float32 features.

    The choice depends on the machine, the installed packages, the network and the number of images.
    It does not depend on time, on other data or on earlier runs.

    Parameters
    ----------
    backbone : FrozenBackbone
        Its network is built only if it was not checked before.
    images : int
        Number of distinct images. Fewer than `AUTO_MIN_IMAGES` run in fp32.
    device : str
    cache : Cache
        Where the results of the check and converted networks are stored.
    """
    if images < AUTO_MIN_IMAGES:
        return EngineChoice(engine="fp32")
    available, notes = available_engines(device), []
    distances: dict[str, float] = {}
    for engine in preferred_engines(device):
        if engine not in available:
            if engine == "openvino":
                notes.append("openvino is not installed")
            continue
        check = _recall_check(backbone, engine, device=device, cache=cache)
        distances[engine] = check["distance"]
        if check["distance"] <= TOLERANCES[engine]:
            rates = {engine: check["rate"]}
            return EngineChoice(engine=engine, rates=rates, distances=distances, notes=tuple(notes))
        reason = check["error"] or f"off by {check['distance']:.1%}"
        notes.append(f"{engine} was not used: {reason}")
    return EngineChoice(engine="fp32", distances=distances, notes=tuple(notes))


def _recall_check(
    backbone: FrozenBackbone, engine: str, *, device: str, cache: Cache
) -> dict[str, Any]:
    """Read the result of an earlier check of this network on this machine, or check it now.

    The photographs are fixed, so the stored result is that of a new check.
    """
    environment = json.dumps([machine(device).as_dict(), versions(), CHECK_VERSION])
    entry = key("engine check", engine, environment, backbone.identity)
    stored = cache.get_many([entry]).get(entry)
    if stored is not None:
        return dict(json.loads(stored))
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in extraction, where every core has its own images
    try:
        check = _check_engine(backbone.module, engine, device=device, cache=cache)
    finally:
        torch.set_num_threads(n_threads)
    cache.put_many({entry: json.dumps(check).encode()}, kind="choice")
    return check


def _check_engine(backbone: Backbone, engine: str, *, device: str, cache: Cache) -> dict[str, Any]:
    """Distance from float32 on fixed photographs, and images per second of one core."""
    pixels = check_photographs(backbone.spec.preprocess.shape)
    expected = compile_engine(backbone, "fp32", device=device)(pixels)
    try:
        compiled = compile_engine(backbone, engine, device=device, cache=cache)
        features = compiled(pixels)
    except CONVERSION_ERRORS as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return {"distance": float("inf"), "rate": 0.0, "error": f"conversion failed: {reason}"}
    distance = _largest_distance(features, expected)
    seconds = _time_forward(compiled, pixels)
    return {"distance": distance, "rate": len(pixels) / max(seconds, 1e-9), "error": ""}


def check_photographs(shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Eight crops of two photographs that are part of scikit-learn: (8, height, width, 3).

    Examples
    --------
    >>> check_photographs((64, 96)).shape
    (8, 64, 96, 3)
    """
    from headstart.data.demo.drawings import photos

    size = (shape[1], shape[0])
    boxes = [(x, y, x + 320, y + 213) for x in (0, 320) for y in (0, 213)]
    crops = [photo.resize(size, box=box) for photo in photos() for box in boxes]
    return np.stack([np.asarray(crop) for crop in crops])


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


def _compile_openvino(
    backbone: Backbone, precision: str, ends: Sequence[str], cache: Cache | None
) -> CompiledEngine:
    import torch

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": cores(),
        "INFERENCE_NUM_THREADS": cores(),
        "PERFORMANCE_HINT": "THROUGHPUT",
    }
    graph = read_graph(backbone, ends, cache=cache)
    compiled = openvino_core().compile_model(graph, "CPU", settings)
    requests = threading.local()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        normalised = backbone.spec.preprocess.normalise(batch).contiguous().numpy()
        results = requests.own.infer([normalised])
        return np.concatenate([results[i] for i in range(len(ends))], axis=1, dtype=np.float32)

    return CompiledEngine(forward=run, batch=CPU_BATCH)
