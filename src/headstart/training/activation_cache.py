"""Decision about the activation cache: whether to use it, after which stage, on which storage.

Compares expected training times. They are computed from the costs that profiler.py measures.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Self

from headstart.backbones.freezing import FreezePlan
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.data.transforms.augment import Augmentation
from headstart.distributed.processes import is_main, sum_scalar
from headstart.errors import SetupError
from headstart.features.extractor import Extractor, SplitPoint, View
from headstart.models.heads.head import Head
from headstart.runtime import available_memory, device
from headstart.training.network import find_split_point
from headstart.training.optim import Training
from headstart.training.profiler import MeasuredCosts, measure_costs, measure_decoding

if TYPE_CHECKING:
    from headstart.backbones.backbone import Backbone

__all__ = [
    "MEMORY_SHARE",
    "ActivationCachePlan",
    "ActivationStorage",
    "AvailableStorage",
    "TrainingWorkload",
    "agree_on_cache_plan",
    "cache_options",
    "choose_cache_plan",
    "plan_activation_cache",
]

ActivationCacheMode = Literal["auto", "on", "off"]
ActivationStorage = Literal["", "memory", "disk"]

MEMORY_SHARE = 0.25
"""Share of the free memory that cached activations may take; larger ones are read from disk."""

DISK_SHARE = 0.8
"""Share of the cache's budget, and of the free disk, that may be used. The cache evicts entries
until it is at 90 % of its budget, so more than that would be lost again."""

MIN_SPEEDUP = 1.05
"""Smallest expected speed-up that is worth the disk space; less is within the measurement noise."""

N_LOOKUP_IMAGES = 256
"""Images that are looked up in the cache to estimate which share of all images it holds."""

DISK_WRITE_RATE, DISK_READ_RATE, MEMORY_READ_RATE = 300e6, 600e6, 5e9
"""Bytes per second into the cache, out of it, and out of memory. For SQLite with its checksums, a
little below the rates of one machine (350 MB and 700 MB). They decide only if the gain is small."""


@dataclass(frozen=True, kw_only=True)
class TrainingWorkload:
    """Number of images that a training reads, and how often.

    Parameters
    ----------
    n_train, n_val : int
        Training images, and validation images that are scored after every epoch.
    epochs, batch_size : int
    views : int or None
        Number of augmented views of an image; 0 for a new view in every epoch, None for no
        augmentation.
    fits_head : bool
        Whether the head is fitted first, on all training images without augmentation.
    taps : tuple of str
        Stages whose outputs must all be cached, the last frozen stage at the end. If empty, the
        output of one frozen stage is enough.
    missing : mapping of str to float
        Share, 0 to 1, that is not in the cache yet, by stage (``""`` for pooled features); by
        default all.
    """

    n_train: int
    n_val: int = 0
    epochs: int
    batch_size: int = 16
    views: int | None = None
    fits_head: bool = False
    taps: tuple[str, ...] = ()
    missing: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sizes: tuple[int, int],
        training: Training,
        augmentation: Augmentation,
        *,
        fits_head: bool,
    ) -> Self:
        """Derive it from the settings; sizes: number of training and of validation images."""
        resolved = training.for_images(sizes[0])
        return cls(
            n_train=sizes[0],
            n_val=sizes[1],
            epochs=resolved.epochs,
            batch_size=resolved.batch_size,
            views=None if augmentation.is_off else augmentation.views,
            fits_head=fits_head,
        )

    @property
    def n_cached(self) -> int:
        """Number of cached outputs: one for each image and view."""
        n_views = 1 if self.views is None else min(self.views, self.epochs) + self.fits_head
        return self.n_train * n_views + self.n_val

    @property
    def n_reads(self) -> int:
        """Number of times an image is read. The network is also scored at the start and the end."""
        return self.n_train * (self.epochs + self.fits_head) + self.n_val * (self.epochs + 2)


@dataclass(frozen=True, kw_only=True)
class AvailableStorage:
    """Space for cached values, in bytes.

    Parameters
    ----------
    memory, disk : int
        Free memory and free disk space.
    budget : int
        Budget of the cache.
    """

    memory: int
    disk: int
    budget: int

    @classmethod
    def measure(cls, cache: Cache) -> Self:
        """Measure the free memory and the free disk space of this machine."""
        cache.folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(cache.folder).free
        return cls(memory=available_memory(), disk=disk, budget=cache.budget)


@dataclass(frozen=True, kw_only=True)
class ActivationCachePlan:
    """Decision about the activation cache, with the expected training times.

    Parameters
    ----------
    cached : bool
    stop : str or None
        The stage whose output is cached; None for pooled features, or if nothing is cached.
    storage : {"", "memory", "disk"}
        Where every epoch reads it from; it is always on disk as well.
    bytes : int
    seconds_cached, seconds_uncached : float
        Expected time of the whole training, with and without the cache.
    reason : str
        Why nothing is cached, or why this option does not fit.

    Examples
    --------
    >>> ActivationCachePlan(
    ...     cached=True, stop="layer4", storage="memory", bytes=780_000_000,
    ...     seconds_cached=10.0, seconds_uncached=31.0, reason="",
    ... ).sentence()
    'up to layer4: 3.1x faster, 780 MB in memory (10 s instead of 31 s)'
    """

    cached: bool
    stop: str | None = None
    storage: ActivationStorage = ""
    bytes: int = 0
    seconds_cached: float = 0.0
    seconds_uncached: float = 0.0
    reason: str = ""

    @property
    def speedup(self) -> float:
        """Expected speed-up of the training."""
        return self.seconds_uncached / self.seconds_cached if self.seconds_cached > 0 else 1.0

    def sentence(self) -> str:
        """Summarise the decision in one line."""
        if not self.cached:
            return f"nothing: {self.reason}"
        stages = f"up to {self.stop}" if self.stop else "pooled features"
        storage = "in memory" if self.storage == "memory" else "read from disk"
        cached, uncached = map(_format_seconds, (self.seconds_cached, self.seconds_uncached))
        details = f"{cached} instead of {uncached}" + (f"; {self.reason}" if self.reason else "")
        size = _format_size(self.bytes)
        return f"{stages}: {self.speedup:.1f}x faster, {size} {storage} ({details})"


def cache_options(
    plan: FreezePlan,
    measured: MeasuredCosts,
    workload: TrainingWorkload,
    available: AvailableStorage,
) -> tuple[ActivationCachePlan, ...]:
    """List everything that could be cached, the first stage first.

    ``reason`` of an option is not empty if the option does not fit. If only the head trains,
    pooled features are the only option: they are the smallest, and no stage runs after them.
    """
    if plan.last_constant_stage is None:
        return ()
    stage_names = [stage.name for stage in measured.stages]
    end = stage_names.index(plan.last_constant_stage) + 1
    head_only = plan.first_changing_stage is None
    later_seconds = math.fsum(stage.seconds for stage in measured.stages[end:])
    n_steps = workload.epochs * math.ceil(workload.n_train / workload.batch_size)
    n_inference_passes = workload.n_reads - workload.n_train * workload.epochs
    # Training steps and the trainable stages in validation cost the same with every option.
    common_seconds = workload.n_train * workload.epochs * measured.learn
    common_seconds += n_steps * measured.update
    common_seconds += n_inference_passes * later_seconds
    seconds_up_to = [math.fsum(s.seconds for s in measured.stages[:n]) for n in range(end + 1)]
    seconds_before = [measured.pixels + seconds for seconds in seconds_up_to]
    seconds_uncached = common_seconds + workload.n_reads * seconds_before[end]
    plans = []
    is_pooled = head_only and not workload.taps
    for n_stages in [end] if head_only or workload.taps else range(1, end + 1):
        stop = None if is_pooled else stage_names[n_stages - 1]
        image_bytes = 4 * measured.width if is_pooled else measured.stages[n_stages - 1].bytes
        if workload.taps:
            image_bytes = sum(s.bytes for s in measured.stages if s.name in workload.taps)
        size = image_bytes * workload.n_cached
        missing_share = workload.missing.get(stop or "", 1.0)
        storage: ActivationStorage = "memory" if size <= MEMORY_SHARE * available.memory else "disk"
        read_rate = MEMORY_READ_RATE if storage == "memory" else DISK_READ_RATE
        # Each read: the stored value, then the frozen stages behind it.
        fetch_seconds = image_bytes / read_rate + seconds_before[end] - seconds_before[n_stages]
        # Once: compute and write what is missing, and load all of it if it is held in memory.
        write_seconds = image_bytes / DISK_WRITE_RATE
        fill_seconds = (
            workload.n_cached * missing_share * (seconds_before[n_stages] + write_seconds)
        )
        fill_seconds += size / DISK_READ_RATE if storage == "memory" else 0.0
        plans.append(
            ActivationCachePlan(
                cached=True,
                stop=stop,
                storage=storage,
                bytes=size,
                seconds_cached=common_seconds + fill_seconds + workload.n_reads * fetch_seconds,
                seconds_uncached=seconds_uncached,
                reason=_reason_too_large(size, missing_share, available),
            )
        )
    return tuple(plans)


def choose_cache_plan(
    plan: FreezePlan,
    measured: MeasuredCosts,
    workload: TrainingWorkload,
    available: AvailableStorage,
    *,
    mode: ActivationCacheMode = "auto",
) -> ActivationCachePlan:
    """Choose the option with the shortest expected training time.

    Parameters
    ----------
    mode : {"auto", "on", "off"}
        ``on`` takes the best option that fits, even if it saves no time.

    Raises
    ------
    SetupError
        If the mode is ``on`` and no option fits.

    Examples
    --------
    >>> from headstart.backbones.freezing import StageRow
    >>> from headstart.training.profiler import StageCost
    >>> body = StageRow(stage="body", parameters=9)
    >>> top = StageRow(stage="top", parameters=9, trainable=9)
    >>> costs = [StageCost(name=name, seconds=0.01, bytes=1000) for name in ("body", "top")]
    >>> choose_cache_plan(
    ...     FreezePlan(rows=(body, top)),
    ...     MeasuredCosts(stages=tuple(costs), learn=0.03),
    ...     TrainingWorkload(n_train=100, epochs=10),
    ...     AvailableStorage(memory=10**9, disk=10**9, budget=10**9),
    ... ).sentence()
    'up to body: 1.3x faster, 0.1 MB in memory (31 s instead of 40 s)'
    """
    if reason := _reason_without_measuring(plan, workload, mode):
        return ActivationCachePlan(cached=False, reason=reason)
    plans = cache_options(plan, measured, workload, available)
    fitting_plans = [option for option in plans if not option.reason]
    best = min(fitting_plans or plans, key=lambda option: option.seconds_cached)
    if not fitting_plans:
        if mode == "on":
            raise SetupError(
                f"The activation cache needs {_format_size(best.bytes)}, but {best.reason}. Raise "
                "HEADSTART_CACHE_BUDGET, free disk space, or pass --activation-cache off."
            )
        return _uncached(best, f"it needs {_format_size(best.bytes)}, but {best.reason}")
    if mode == "auto" and best.speedup < MIN_SPEEDUP:
        reason = f"{best.speedup:.2f}x faster is not worth {_format_size(best.bytes)}"
        return _uncached(best, reason + (" with one epoch" if workload.epochs == 1 else ""))
    return best


def plan_activation_cache(
    backbone: FrozenBackbone,
    network: tuple[Backbone, FreezePlan, Head],
    workload: TrainingWorkload,
    *,
    samples: Sequence[Sample],
    view: View,
    extractor: Extractor,
    mode: ActivationCacheMode = "auto",
) -> ActivationCachePlan:
    """Measure the costs, look up what the cache holds already, and decide.

    Parameters
    ----------
    backbone : FrozenBackbone
        The outputs of its frozen stages are cached.
    network : Backbone, FreezePlan and Head
        The network to train; not changed.
    workload : TrainingWorkload
        Without ``missing`` and ``taps``: they are filled in here.
    samples : sequence of Sample
    view : View
        The first view of the training.
    extractor : Extractor
    mode : {"auto", "on", "off"}
    """
    module, plan, head = network
    if reason := _reason_without_measuring(plan, workload, mode):
        return ActivationCachePlan(cached=False, reason=reason)
    measured = measure_costs(
        module, plan, head, cache=extractor.cache, device=device(extractor.device)
    )
    pixels_at = SplitPoint(engine="fp32", view=view)
    pixels = measure_decoding(backbone, samples, pixels_at, cache=extractor.cache)
    sampled = samples[:: max(1, len(samples) // N_LOOKUP_IMAGES)]
    views = dict.fromkeys([None, None if workload.views is None else view])
    missing = {}
    stage_names = [stage.name for stage in module.stages]
    constant_stages = stage_names[: stage_names.index(plan.last_constant_stage or "") + 1]
    split_point = find_split_point(plan, head)
    if split_point is not None and split_point.taps:
        split_points = [split_point]
    else:
        inner = constant_stages if plan.first_changing_stage else [None]
        split_points = [SplitPoint(engine="fp32", stop=stop) for stop in inner]
    for candidate in split_points:
        n_missing = sum(
            len(extractor.missing(backbone, sampled, replace(candidate, view=view)))
            for view in views
        )
        missing[candidate.stop or ""] = min(1.0, n_missing / max(1, len(sampled) * len(views)))
    return choose_cache_plan(
        plan,
        replace(measured, pixels=pixels),
        replace(workload, missing=missing, taps=split_point.taps if split_point else ()),
        AvailableStorage.measure(extractor.cache),
        mode=mode,
    )


def agree_on_cache_plan(plan: ActivationCachePlan, stages: Sequence[str]) -> ActivationCachePlan:
    """Return the plan of the main process.

    Processes wait for each other while the cache is filled. With different plans they would wait
    at different places.
    """
    # One number can be summed over processes: 0 for no cache, 1 for pooled features, else a stage.
    own_code = (2 + stages.index(plan.stop) if plan.stop else 1) if plan.cached else 0
    main_code = int(sum_scalar(own_code if is_main() else 0))
    if main_code == own_code:
        return plan
    stop = stages[main_code - 2] if main_code > 1 else None
    reason = "as the main process decided"
    return replace(plan, cached=main_code > 0, stop=stop, storage="", reason=reason)


def _reason_without_measuring(
    plan: FreezePlan, workload: TrainingWorkload, mode: ActivationCacheMode
) -> str:
    """Return why nothing is cached if that is clear without measuring, else an empty text."""
    if plan.last_constant_stage is None:
        return "every stage trains"
    if mode == "off":
        return "switched off"
    if workload.views == 0:
        return "every epoch draws new views; pass --views 4 to repeat four"
    return ""


def _uncached(best: ActivationCachePlan, reason: str) -> ActivationCachePlan:
    return ActivationCachePlan(
        cached=False,
        seconds_cached=best.seconds_cached,
        seconds_uncached=best.seconds_uncached,
        reason=reason,
    )


def _reason_too_large(size: int, missing_share: float, available: AvailableStorage) -> str:
    """Return which limit the size exceeds, or an empty text if it fits."""
    budget, disk = int(DISK_SHARE * available.budget), int(DISK_SHARE * available.disk)
    if size > DISK_SHARE * available.budget:
        return f"{DISK_SHARE:.0%} of the cache's budget is only {_format_size(budget)}"
    if size * missing_share > DISK_SHARE * available.disk:
        return f"{DISK_SHARE:.0%} of the free disk space is only {_format_size(disk)}"
    return ""


def _format_size(n_bytes: int) -> str:
    if n_bytes < 1e6:
        return f"{n_bytes / 1e6:.1f} MB"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.1f} GB"


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min"
