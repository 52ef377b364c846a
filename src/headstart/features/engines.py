"""What a frozen backbone runs in: precision and library, chosen by measuring.

An engine may be any arithmetic that keeps the features right. Each candidate is held against
float32 on real images, timed, and the quickest that agrees is remembered for this machine
and architecture.
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

from headstart.backbones.freezing import fingerprint, require_constant
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
    "Choice",
    "Running",
    "available",
    "candidates",
    "choose",
    "compile_engine",
    "recall",
    "runnable",
]

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels (n, H, W, 3) to pooled features (n, width), or to what an inner stage gives: maps
(n, h, w, channels), tokens (n, tokens, channels)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Running:
    """A frozen backbone at work.

    Parameters
    ----------
    forward : callable
        Pixels, uint8, (batch, H, W, 3) to pooled features (batch, width), from several threads.
    batch : int
        Images at a time.
    module : torch.nn.Module or None
        What computes them: a copy in the engine's arithmetic; None for a compiled graph, in
        which nothing can move.
    """

    forward: Forward
    batch: int = 4
    module: nn.Module | None = None

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pooled features (n, width) of pixels (n, H, W, 3).

        Always in batches of one size, the last one filled up: libraries choose their kernels by
        the batch's size, so that an image's bits would depend on the images beside it.
        """
        short = -len(pixels) % self.batch
        gap = np.zeros((short, *pixels.shape[1:]), dtype=np.uint8)
        filled = np.concatenate([pixels, gap]) if short else pixels
        starts = range(0, len(filled), self.batch)
        parts = [self.forward(filled[start : start + self.batch]) for start in starts]
        return np.concatenate(parts)[: len(pixels)]

    def fingerprint(self) -> str:
        """Hash of what computes the features: a constant part keeps it."""
        return "" if self.module is None else fingerprint(self.module.state_dict())

    def require_constant(self, before: str) -> None:
        """Hold what computes the features against its earlier fingerprint.

        Raises
        ------
        HeadstartError
            If any parameter or running statistic has moved.
        """
        if self.module is not None:
            require_constant(self.module.state_dict(), before)


ENGINES = ("fp32", "bf16", "openvino", "openvino-bf16")

TOLERANCE = 0.03
"""Largest relative L2 distance from float32 features, on the worst image, that is accepted.

A choice is remembered for a backbone, not for its data, so there is room: ResNet-18 in bf16 is off
by 1 to 2 % whatever the images, networks of depthwise layers by 4 to 20 %, depending on them."""

PROBE_IMAGES = 8

CPU_BATCH = 4
"""Small enough for a core's cache: 8 to 35 % quicker than 16 (docs/results.md)."""

GPU_BATCH = 64

OPENVINO_FROM = 500
"""Images from which on OpenVINO is tried."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The engine chosen, and what was measured.

    Parameters
    ----------
    engine : str
    rates : mapping of str to float
        Images per second on one core (or on the GPU), for each engine tried.
    distances : mapping of str to float
        Relative L2 distance from the float32 features, the worst image.
    remembered : bool
        Whether an earlier run measured it.
    """

    engine: str
    rates: Mapping[str, float] = field(default_factory=dict)
    distances: Mapping[str, float] = field(default_factory=dict)
    remembered: bool = False

    def describe(self) -> str:
        """One line for a person."""
        if not self.rates:
            return self.engine
        tried = ", ".join(
            f"{name} {rate:.0f}/s"
            + (f" but off by {self.distances[name]:.0%}" * (self.distances[name] > TOLERANCE))
            for name, rate in self.rates.items()
        )
        when = "remembered" if self.remembered else "measured"
        return f"{self.engine} ({when} on one core: {tried})"


def available(device: str) -> tuple[str, ...]:
    """Engines that this machine can run, float32 first."""
    import torch

    # Elsewhere bf16 is emulated, and slower than float32.
    has_bf16 = device == "cuda" or (
        device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    has_openvino = device == "cpu" and _has_openvino()
    there = {
        "fp32": True,
        "bf16": has_bf16,
        "openvino": has_openvino,
        "openvino-bf16": has_openvino and has_bf16,
    }
    return tuple(name for name in ENGINES if there[name])


def compile_engine(
    backbone: Backbone,
    engine: str,
    *,
    device: str,
    stop: str | None = None,
    taps: Sequence[str] = (),
    ends: Sequence[str] = (),
) -> Running:
    """Make the function from pixels to pooled features, or to what inner stages give.

    Parameters
    ----------
    backbone : Backbone
        Constant (see ``freezing.constant``); it is not modified.
    engine : {"fp32", "bf16", "openvino", "openvino-bf16"}
    device : str
    stop : str, optional
        The last stage that runs, in torch's engines; by default all run and are pooled.
    taps : sequence of str
        Stages whose maps are wanted, in order, the last one to run at the end; an image's values
        are then one row: the maps one after the other, each channels last and flattened.
    ends : sequence of str
        Stages whose means over places are wanted, in order, and an empty name for the pooled
        features: one row, one after the other.

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
    if engine not in available(device):
        raise SetupError(
            f"Expected an engine that {device} can run, got {engine!r}; "
            f"do use one of {', '.join(available(device))}."
        )
    if engine.startswith("openvino"):
        return _openvino(backbone, "bf16" if engine.endswith("bf16") else "f32", ends)
    return _torch(backbone, engine, device, (stop, taps, ends))


def runnable(engine: str, *, device: str) -> str:
    """Return the engine if this machine has it, else float32, which every machine has."""
    if engine == "auto":
        return engine
    return engine if engine in available(resolve_device(device)) else "fp32"


def candidates(device: str, images: int) -> tuple[str, ...]:
    """Engines worth trying: OpenVINO takes seconds to compile, which few images do not repay."""
    few = images < OPENVINO_FROM
    return tuple(name for name in available(device) if not (few and name.startswith("openvino")))


def choose(
    backbone: Backbone,
    pixels: NDArray[np.uint8],
    *,
    device: str,
    cache: Cache,
    engines: Sequence[str],
) -> Choice:
    """Measure the engines on real images and remember the quickest that is right.

    Parameters
    ----------
    backbone : Backbone
    pixels : array, uint8, shape (n, H, W, 3)
        A few images of the data at hand.
    device : str
    cache : Cache
        Where the choice is remembered.
    engines : sequence of str
        The candidates, see ``candidates``.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in extraction, where every core has its own images
    try:
        choice = _measure(backbone, pixels[:PROBE_IMAGES], device, engines)
    finally:
        torch.set_num_threads(before)
    measured = {"engine": choice.engine, "rates": choice.rates, "distances": choice.distances}
    value = json.dumps(measured).encode()
    wanted = _choice_key(backbone.spec.name, device, engines)
    cache.put_many({wanted: value}, kind="choice")
    return choice


def recall(
    backbone_name: str, *, device: str, cache: Cache, engines: Sequence[str]
) -> Choice | None:
    """Return the choice that an earlier run measured on this machine, if any."""
    wanted = _choice_key(backbone_name, device, engines)
    found = cache.get_many([wanted]).get(wanted)
    return Choice(**json.loads(found), remembered=True) if found else None


def _choice_key(backbone_name: str, device: str, engines: Sequence[str]) -> bytes:
    here = json.dumps([machine(device).as_dict(), versions(), list(engines)])
    return key("engine", backbone_name, here)


def _measure(
    backbone: Backbone, pixels: NDArray[np.uint8], device: str, engines: Sequence[str]
) -> Choice:
    rates: dict[str, float] = {}
    distances: dict[str, float] = {}
    reference: NDArray[np.float32] | None = None
    for engine in engines:
        forward = compile_engine(backbone, engine, device=device)
        features = forward(pixels)
        reference = features if reference is None else reference
        distances[engine] = _distance(features, reference)
        rates[engine] = len(pixels) / min(_seconds(forward, pixels) for _ in range(2))
    right = [name for name in rates if distances[name] <= TOLERANCE]
    best = max(right, key=lambda name: rates[name])
    return Choice(engine=best, rates=rates, distances=distances)


def _distance(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Worst relative L2 distance; infinite when a feature is not finite."""
    if not np.isfinite(features).all():
        return float("inf")
    size = np.maximum(np.linalg.norm(reference, axis=1), np.finfo(np.float32).tiny)
    return float((np.linalg.norm(features - reference, axis=1) / size).max())


def _seconds(forward: Forward, pixels: NDArray[np.uint8]) -> float:
    begin = time.perf_counter()
    forward(pixels)
    return time.perf_counter() - begin


def _torch(
    backbone: Backbone,
    engine: str,
    device: str,
    wanted: tuple[str | None, Sequence[str], Sequence[str]],
) -> Running:
    import copy

    import torch

    from headstart.backbones.backbone import Ends

    stop, taps, ends = wanted
    dtype = torch.bfloat16 if engine == "bf16" else torch.float32
    preprocess = backbone.spec.preprocess
    module = copy.deepcopy(backbone).to(device=device, dtype=dtype)
    module.to(memory_format=torch.channels_last)
    for layer, exact in zip(module.modules(), backbone.modules(), strict=True):
        # BatchNorm's statistics in bf16 would shift every feature; in float32 they cost nothing.
        if isinstance(exact, torch.nn.modules.batchnorm._BatchNorm):
            layer.float().load_state_dict(exact.state_dict())
    # A GPU runs one batch at a time; on a CPU every core runs its own.
    turn = threading.Lock() if device != "cpu" else None

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            # (n, H, W, 3) seen as (n, 3, H, W) is already channels_last.
            batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
            x = preprocess.normalise(batch, dtype)
            if taps:
                maps = [m.permute(0, 2, 3, 1).flatten(1) for m in module.maps(x, taps)]
                return torch.cat(maps, dim=1).float().cpu().numpy()
            if ends:
                return np.asarray(Ends(module, ends)(x).float().cpu().numpy())
            found = module.pooled(x) if stop is None else module.run(x, stop=stop)
            # Channels last as the next stage wants them: seen, not copied, where they are so.
            found = found.permute(0, 2, 3, 1) if found.ndim == 4 else found
            return np.ascontiguousarray(found.float().cpu().numpy())

    def run_in_turn(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if turn is None:
            return run(pixels)
        with turn:
            return run(pixels)

    batch = CPU_BATCH if device == "cpu" else GPU_BATCH
    return Running(forward=run_in_turn, batch=batch, module=module)


def _has_openvino() -> bool:
    from importlib.util import find_spec

    return find_spec("openvino") is not None


def _openvino(backbone: Backbone, precision: str, ends: Sequence[str] = ()) -> Running:
    # OpenVINO calls an analytics host at import; Headstart opens no socket that was not asked for.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino
    import torch

    from headstart.backbones.backbone import Ends

    example = torch.zeros(2, 3, *backbone.spec.preprocess.shape)
    with torch.no_grad():
        module = Ends(backbone, ends) if ends else backbone
        exported = torch.export.export(module, (example,), dynamic_shapes=(_any_batch(),))
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

    return Running(forward=run, batch=CPU_BATCH)


def _any_batch() -> dict[int, Any]:
    from torch.export import Dim

    return {0: Dim("images", min=1)}
