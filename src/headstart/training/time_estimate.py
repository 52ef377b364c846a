"""How long a training will take on this machine, from what its stages and steps cost here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from headstart.backbones.freezing import FreezePlan
from headstart.data.dataset import Dataset
from headstart.data.transforms.augment import Augmentation
from headstart.features.extractor import Extractor, SplitPoint, View
from headstart.models.heads.head import Head
from headstart.runtime import device
from headstart.training.activation_cache import Demand, foresee
from headstart.training.optim import Training
from headstart.training.profiler import Measured, measure, measure_pixels

if TYPE_CHECKING:
    from headstart.backbones.frozen import FrozenBackbone

__all__ = ["Costs", "Gradient", "costs_of", "feature_seconds", "training_seconds"]


class Gradient(Protocol):
    """What this has to know of a method that trains by gradient."""

    @property
    def training(self) -> Training:
        """Epochs, batches, steps."""
        ...

    @property
    def augmentation(self) -> Augmentation:
        """Of the images to learn from."""
        ...

    @property
    def seed(self) -> int:
        """Of the views."""
        ...


STEP, EPOCH, ONCE = 1.5e-3, 0.03, 0.3
"""Seconds around each step, each epoch and each training that no image's cost explains: data
handed on, gradients clipped, modules put into training, a network made; as two cores took them."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one image costs on this machine.

    Parameters
    ----------
    forward : float
        Seconds through the whole backbone, every core with images of its own.
    pixels : float
        Seconds to decode and resize it.
    """

    forward: float
    pixels: float

    @property
    def seconds(self) -> float:
        """Of both: the two share the cores."""
        return self.forward + self.pixels


def costs_of(
    backbone: FrozenBackbone, plan: FreezePlan, head: Head, data: Dataset, *, extractor: Extractor
) -> Costs:
    """Measure, or remember, what an image costs where nothing is kept."""
    found = _measured(backbone, plan, head, data, extractor)
    return Costs(forward=_forward(found), pixels=found.pixels)


def feature_seconds(costs: Costs, missing: int, rate: float | None, cores: int) -> float:
    """Expect how long features take that are not kept yet.

    Parameters
    ----------
    costs : Costs
    missing : int
        Images.
    rate : float or None
        Images a second and core that an engine was measured at, if it was.
    cores : int

    Examples
    --------
    >>> feature_seconds(Costs(forward=0.02, pixels=0.005), 100, None, 2)
    2.5
    >>> feature_seconds(Costs(forward=0.02, pixels=0.005), 100, 50.0, 2)
    1.5
    """
    forward = costs.forward if rate is None else 1 / (rate * cores)
    return missing * (forward + costs.pixels)


def training_seconds(
    backbone: FrozenBackbone,
    plan: FreezePlan,
    head: Head,
    data: Dataset,
    sizes: tuple[int, int],
    *,
    how: Gradient,
    solves: bool,
    extractor: Extractor,
) -> float:
    """Expect the seconds of a training that runs all of its epochs.

    Parameters
    ----------
    backbone : FrozenBackbone
    plan : FreezePlan
        What learns.
    head : Head
    data : Dataset
        Images to learn from, the held-out ones included.
    sizes : pair of int
        How many are learned from, and how many are judged after every epoch.
    how : Gradient
        The method.
    solves : bool
        Whether the head is solved on features first.
    extractor : Extractor
        What its cache holds need not be computed.
    """
    settled = how.training.for_kind(data.kind)
    demand = Demand.of(sizes, settled, how.augmentation, solves=solves)
    found = _measured(backbone, plan, head, data, extractor)
    steps = demand.epochs * math.ceil(demand.images / demand.batch_size)
    around = ONCE + EPOCH * demand.epochs + STEP * steps
    if plan.boundary is not None:
        kept = foresee(
            backbone,
            (backbone.module, plan, head),
            demand,
            samples=data.samples,
            view=View(augmentation=how.augmentation, seed=how.seed, number=0),
            extractor=extractor,
        )
        if kept.seconds_plain:
            return around + (kept.seconds_cached if kept.cached else kept.seconds_plain)
    learned = demand.images * demand.epochs
    looked = demand.reads - learned
    each = learned * found.learn + steps * found.update + demand.reads * found.pixels
    return around + each + looked * _forward(found)


def _forward(found: Measured) -> float:
    return math.fsum(stage.seconds for stage in found.stages)


def _measured(
    backbone: FrozenBackbone, plan: FreezePlan, head: Head, data: Dataset, extractor: Extractor
) -> Measured:
    where, cache = device(extractor.device), extractor.cache
    found = measure(backbone.module, plan, head, cache=cache, device=where)
    pixels = measure_pixels(backbone, data.samples, SplitPoint(engine="fp32"), cache=cache)
    return replace(found, pixels=pixels)
