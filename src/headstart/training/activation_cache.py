"""Whether keeping what the constant stages give pays, behind which of them, and where.

Arithmetic over what ``costs`` has measured.
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
from headstart.distributed import is_main, sum_scalar
from headstart.errors import SetupError
from headstart.features.extractor import Extractor, SplitPoint, View
from headstart.models.heads.head import Head
from headstart.runtime import available_memory, device
from headstart.training.network import boundary_cut
from headstart.training.optim import Training
from headstart.training.profiler import Measured, measure, measure_pixels

if TYPE_CHECKING:
    from headstart.backbones.backbone import Backbone

__all__ = [
    "MEMORY_SHARE",
    "ActivationCachePlan",
    "Demand",
    "Room",
    "Where",
    "agreed",
    "decide",
    "foresee",
    "options",
]

Wanted = Literal["auto", "on", "off"]
Where = Literal["", "memory", "disk"]

MEMORY_SHARE = 0.25
"""Of the memory that is free: what kept activations may take; larger ones stay on disk."""

DISK_SHARE = 0.8
"""Of the cache's budget, and of the free disk: the cache evicts down to nine tenths."""

PAYS_FROM = 1.05
"""Smallest expected speed-up that is worth the disk: less is within the noise of measuring."""

SOUGHT = 256
"""Images that are looked for in the cache, to know what share of all is kept already."""

WRITES, READS, COPIES = 300e6, 600e6, 5e9
"""Bytes a second into the cache, out of it, and out of memory: SQLite with its checksums, a
little below what one machine gave (350 MB and 700 MB). Where they decide, the gain is small."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a training will ask for.

    Parameters
    ----------
    images, judged : int
        To learn from, and held out to be judged on after every epoch.
    epochs, batch_size : int
    views : int or None
        Different looks of an image; 0 for endlessly many, None for the image as it is.
    solves : bool
        Whether all images are looked at once as they are, before the first epoch.
    taps : tuple of str
        Stages whose maps all have to be kept, the boundary at the end; none for the boundary's
        alone, or an earlier stage's.
    missing : mapping of str to float
        Share, 0 to 1, that is not kept yet, by stage (``""`` for pooled); by default all.
    """

    images: int
    judged: int = 0
    epochs: int
    batch_size: int = 16
    views: int | None = None
    solves: bool = False
    taps: tuple[str, ...] = ()
    missing: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, sizes: tuple[int, int], training: Training, augmentation: Augmentation, *, solves: bool
    ) -> Self:
        """Read it off the settings; sizes: images to learn from, and to be judged on."""
        settled = training.for_images(sizes[0])
        return cls(
            images=sizes[0],
            judged=sizes[1],
            epochs=settled.epochs,
            batch_size=settled.batch_size,
            views=None if augmentation.is_off else augmentation.views,
            solves=solves,
        )

    @property
    def kept(self) -> int:
        """Values that are kept, views counted one by one."""
        looks = 1 if self.views is None else min(self.views, self.epochs) + self.solves
        return self.images * looks + self.judged

    @property
    def reads(self) -> int:
        """How often an image is asked for: the start and the end are judged too."""
        return self.images * (self.epochs + self.solves) + self.judged * (self.epochs + 2)


@dataclass(frozen=True, kw_only=True)
class Room:
    """What kept values may take, in bytes.

    Parameters
    ----------
    memory, disk : int
        That are free.
    budget : int
        Of the cache.
    """

    memory: int
    disk: int
    budget: int

    @classmethod
    def now(cls, cache: Cache) -> Self:
        """Look at the machine."""
        cache.folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(cache.folder).free
        return cls(memory=available_memory(), disk=disk, budget=cache.budget)


@dataclass(frozen=True, kw_only=True)
class ActivationCachePlan:
    """What is kept, and what that is expected to bring.

    Parameters
    ----------
    cached : bool
    stop : str or None
        The stage whose output is kept; None for pooled features, or where nothing is kept.
    where : {"", "memory", "disk"}
        Where it is read from in every epoch; it is on disk in any case.
    bytes : int
    seconds_cached, seconds_plain : float
        Expected of the whole training, with and without.
    reason : str
        In words.

    Examples
    --------
    >>> ActivationCachePlan(
    ...     cached=True, stop="layer4", where="memory", bytes=780_000_000,
    ...     seconds_cached=10.0, seconds_plain=31.0, reason="",
    ... ).sentence()
    'up to layer4: 3.1x, 780 MB in memory (10 s, not 31 s)'
    """

    cached: bool
    stop: str | None = None
    where: Where = ""
    bytes: int = 0
    seconds_cached: float = 0.0
    seconds_plain: float = 0.0
    reason: str = ""

    @property
    def speedup(self) -> float:
        """How many times quicker the training is expected to be."""
        return self.seconds_plain / self.seconds_cached if self.seconds_cached > 0 else 1.0

    def sentence(self) -> str:
        """One line for a person."""
        if not self.cached:
            return f"nothing: {self.reason}"
        what = f"up to {self.stop}" if self.stop else "pooled features"
        place = "in memory" if self.where == "memory" else "read from disk"
        times = f"{_seconds(self.seconds_cached)}, not {_seconds(self.seconds_plain)}"
        note = f"; {self.reason}" if self.reason else ""
        return f"{what}: {self.speedup:.1f}x, {_size(self.bytes)} {place} ({times}{note})"


def options(
    plan: FreezePlan, measured: Measured, demand: Demand, room: Room
) -> tuple[ActivationCachePlan, ...]:
    """Everything that could be kept, the first stage first; ``reason`` says why one cannot.

    Where nothing but the head moves, pooled features are the only one: they are the smallest,
    and leave nothing to be run.
    """
    if plan.boundary is None:
        return ()
    names = [stage.name for stage in measured.stages]
    end = names.index(plan.boundary) + 1
    head_only = plan.first_moving is None
    rest = math.fsum(stage.seconds for stage in measured.stages[end:])
    steps = demand.epochs * math.ceil(demand.images / demand.batch_size)
    looked = demand.reads - demand.images * demand.epochs
    common = demand.images * demand.epochs * measured.learn + steps * measured.update
    common += looked * rest
    upto = [math.fsum(s.seconds for s in measured.stages[:n]) for n in range(end + 1)]
    before = [measured.pixels + seconds for seconds in upto]
    plain = common + demand.reads * before[end]
    found = []
    pooled = head_only and not demand.taps
    for place in [end] if head_only or demand.taps else range(1, end + 1):
        stop = None if pooled else names[place - 1]
        each = 4 * measured.width if pooled else measured.stages[place - 1].bytes
        if demand.taps:
            each = sum(stage.bytes for stage in measured.stages if stage.name in demand.taps)
        size = each * demand.kept
        absent = demand.missing.get(stop or "", 1.0)
        where: Where = "memory" if size <= MEMORY_SHARE * room.memory else "disk"
        fetch = each / (COPIES if where == "memory" else READS) + before[end] - before[place]
        once = demand.kept * absent * (before[place] + each / WRITES)
        once += size / READS if where == "memory" else 0.0
        found.append(
            ActivationCachePlan(
                cached=True,
                stop=stop,
                where=where,
                bytes=size,
                seconds_cached=common + once + demand.reads * fetch,
                seconds_plain=plain,
                reason=_too_large(size, absent, room),
            )
        )
    return tuple(found)


def decide(
    plan: FreezePlan,
    measured: Measured,
    demand: Demand,
    room: Room,
    *,
    wanted: Wanted = "auto",
) -> ActivationCachePlan:
    """Take what is expected to be quickest.

    Parameters
    ----------
    wanted : {"auto", "on", "off"}
        ``on`` keeps the best of what fits, whether or not it pays.

    Raises
    ------
    SetupError
        If something shall be kept and nothing fits.

    Examples
    --------
    >>> from headstart.backbones.freezing import StageRow
    >>> from headstart.training.profiler import StageCost
    >>> body = StageRow(stage="body", parameters=9)
    >>> top = StageRow(stage="top", parameters=9, trainable=9)
    >>> costs = [StageCost(name=name, seconds=0.01, bytes=1000) for name in ("body", "top")]
    >>> decide(
    ...     FreezePlan(rows=(body, top)),
    ...     Measured(stages=tuple(costs), learn=0.03),
    ...     Demand(images=100, epochs=10),
    ...     Room(memory=10**9, disk=10**9, budget=10**9),
    ... ).sentence()
    'up to body: 1.3x, 0.1 MB in memory (31 s, not 40 s)'
    """
    if reason := _settled(plan, demand, wanted):
        return ActivationCachePlan(cached=False, reason=reason)
    found = options(plan, measured, demand, room)
    fitting = [option for option in found if not option.reason]
    best = min(fitting or found, key=lambda option: option.seconds_cached)
    if not fitting:
        if wanted == "on":
            raise SetupError(
                f"Expected room for what the frozen part gives, got a need of {_size(best.bytes)}: "
                f"{best.reason}; do raise HEADSTART_CACHE_BUDGET, free the disk, or train with the "
                "boundary cache off."
            )
        return _declined(best, f"{_size(best.bytes)} would be needed, {best.reason}")
    if wanted == "auto" and best.speedup < PAYS_FROM:
        why = f"{best.speedup:.2f}x would not pay {_size(best.bytes)}"
        return _declined(best, why + (", there is one epoch" if demand.epochs == 1 else ""))
    return best


def foresee(
    backbone: FrozenBackbone,
    network: tuple[Backbone, FreezePlan, Head],
    demand: Demand,
    *,
    samples: Sequence[Sample],
    view: View,
    extractor: Extractor,
    wanted: Wanted = "auto",
) -> ActivationCachePlan:
    """Measure what is not known yet, look at what is kept already, and decide.

    Parameters
    ----------
    backbone : FrozenBackbone
        Its constant stages give what is kept.
    network : Backbone, FreezePlan and Head
        What will train; not changed.
    demand : Demand
        What is missing is looked up here.
    samples : sequence of Sample
    view : View
        The first of the looks that training sees.
    extractor : Extractor
    wanted : {"auto", "on", "off"}
    """
    module, plan, head = network
    if reason := _settled(plan, demand, wanted):
        return ActivationCachePlan(cached=False, reason=reason)
    measured = measure(module, plan, head, cache=extractor.cache, device=device(extractor.device))
    seen = SplitPoint(engine="fp32", view=view)
    pixels = measure_pixels(backbone, samples, seen, cache=extractor.cache)
    few = samples[:: max(1, len(samples) // SOUGHT)]
    looks = dict.fromkeys([None, None if demand.views is None else view])
    missing = {}
    names = [stage.name for stage in module.stages]
    constant = names[: names.index(plan.boundary or "") + 1]
    last = boundary_cut(plan, head)
    if last is not None and last.taps:
        stops = [last]
    else:
        inner = constant if plan.first_moving else [None]
        stops = [SplitPoint(engine="fp32", stop=stop) for stop in inner]
    for split_point in stops:
        split_points = [replace(split_point, view=look) for look in looks]
        absent = [
            len(extractor.missing(backbone, few, split_point)) for split_point in split_points
        ]
        missing[split_point.stop or ""] = min(1.0, sum(absent) / max(1, len(few) * len(looks)))
    return decide(
        plan,
        replace(measured, pixels=pixels),
        replace(demand, missing=missing, taps=last.taps if last else ()),
        Room.now(extractor.cache),
        wanted=wanted,
    )


def agreed(mine: ActivationCachePlan, stages: Sequence[str]) -> ActivationCachePlan:
    """Return what the main process keeps: several must wait for each other at the same places."""
    own = (2 + stages.index(mine.stop) if mine.stop else 1) if mine.cached else 0
    code = int(sum_scalar(own if is_main() else 0))
    if code == own:
        return mine
    stop = stages[code - 2] if code > 1 else None
    return replace(mine, cached=code > 0, stop=stop, where="", reason="as the main process decided")


def _settled(plan: FreezePlan, demand: Demand, wanted: Wanted) -> str:
    """Why nothing is kept, where no measuring is needed to know; else empty."""
    if plan.boundary is None:
        return "every stage moves"
    if wanted == "off":
        return "switched off"
    if demand.views == 0:
        return "every epoch sees new views; views=4 would repeat four"
    return ""


def _declined(best: ActivationCachePlan, reason: str) -> ActivationCachePlan:
    return ActivationCachePlan(
        cached=False,
        seconds_cached=best.seconds_cached,
        seconds_plain=best.seconds_plain,
        reason=reason,
    )


def _too_large(size: int, absent: float, room: Room) -> str:
    if size > DISK_SHARE * room.budget:
        return f"{DISK_SHARE:.0%} of the cache's budget are {_size(int(DISK_SHARE * room.budget))}"
    if size * absent > DISK_SHARE * room.disk:
        return f"{DISK_SHARE:.0%} of the free disk are {_size(int(DISK_SHARE * room.disk))}"
    return ""


def _size(number: int) -> str:
    if number < 1e6:
        return f"{number / 1e6:.1f} MB"
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"


def _seconds(number: float) -> str:
    if number < 120:
        return f"{number:.0f} s" if number >= 10 else f"{number:.1f} s"
    return f"{number / 60:.0f} min"
