"""Estimate of the duration of a training on this machine, from measured costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headstart.backbones.freezing import FreezePlan, plan_freezing
from headstart.data.dataset import Dataset, Sample
from headstart.features.extractor import Extractor, SplitPoint, View
from headstart.models.heads.head import Head
from headstart.models.transfer_model import TransferModel
from headstart.runtime import cores, device
from headstart.training.activation_cache import TrainingWorkload, plan_activation_cache
from headstart.training.penalty_search import LARGE_PROBLEM
from headstart.training.profiler import (
    MeasuredCosts,
    measure_costs,
    measure_decoding,
    recall_costs,
)
from headstart.training.settings import SharedSettings

if TYPE_CHECKING:
    from headstart.backbones.frozen import FrozenBackbone

__all__ = [
    "ImageCosts",
    "extraction_seconds",
    "feature_seconds",
    "has_usual_costs",
    "measure_image_costs",
    "probe_seconds",
    "training_seconds",
    "usual_image_costs",
]

STEP_OVERHEAD, EPOCH_OVERHEAD, TRAINING_OVERHEAD = 1.5e-3, 0.03, 0.3
"""Seconds for each step, each epoch and each training that do not depend on images: passing data
on, clipping gradients, switching modes, building the network. Measured on two cores."""


@dataclass(frozen=True, kw_only=True)
class ImageCosts:
    """Cost of one image on this machine.

    Parameters
    ----------
    forward : float
        Seconds for the forward pass through the whole backbone, when every core processes its
        own images.
    pixels : float
        Seconds to decode and resize it.
    """

    forward: float
    pixels: float

    @property
    def seconds(self) -> float:
        """Sum of the two, because they share the cores."""
        return self.forward + self.pixels


def measure_image_costs(
    backbone: FrozenBackbone, plan: FreezePlan, head: Head, data: Dataset, *, extractor: Extractor
) -> ImageCosts:
    """Measure the cost of an image without the feature cache, or read it from the cache."""
    measured = _measure_with_decoding(backbone, plan, head, data, extractor)
    return ImageCosts(forward=_forward_seconds(measured), pixels=measured.pixels)


def feature_seconds(costs: ImageCosts, missing: int, rate: float | None, cores: int) -> float:
    """Estimate the seconds to extract features that are not in the cache yet.

    Parameters
    ----------
    costs : ImageCosts
    missing : int
        Number of images.
    rate : float or None
        Measured rate of the engine in images per second and core; None if it was not measured.
    cores : int

    Examples
    --------
    >>> feature_seconds(ImageCosts(forward=0.02, pixels=0.005), 100, None, 2)
    2.5
    >>> feature_seconds(ImageCosts(forward=0.02, pixels=0.005), 100, 50.0, 2)
    1.5
    """
    forward = costs.forward if rate is None else 1 / (rate * cores)
    return missing * (forward + costs.pixels)


def usual_image_costs(model: TransferModel, data: Dataset, *, extractor: Extractor) -> ImageCosts:
    """Seconds per image where the last resolution trains, measured or read from the cache."""
    plan, head = _usual_training(model, data)
    return measure_image_costs(model.backbone, plan, head, data, extractor=extractor)


def has_usual_costs(model: TransferModel, data: Dataset, *, extractor: Extractor) -> bool:
    """Whether an earlier run has measured what ``usual_image_costs`` measures."""
    plan, head = _usual_training(model, data)
    module, target = model.backbone.module, device(extractor.device)
    return recall_costs(module, plan, head, cache=extractor.cache, device=target) is not None


def _usual_training(model: TransferModel, data: Dataset) -> tuple[FreezePlan, Head]:
    plan = plan_freezing(model.backbone.module, train_from="last:1", learning_rate=1e-4)
    return plan, model.initial_head(data, seed=0)


def extraction_seconds(
    model: TransferModel, samples: Sequence[Sample], data: Dataset, *, extractor: Extractor
) -> float:
    """Estimate the seconds to compute the features of these images that are not in the cache."""
    choice, missing = extractor.plan_extraction(model.backbone, samples)
    if not missing:
        return 0.0
    rate = choice.rates.get(choice.engine)
    costs = usual_image_costs(model, data, extractor=extractor)
    return feature_seconds(costs, missing, rate, cores())


def probe_seconds(n: int, width: int, n_classes: int) -> float:
    """Estimate the seconds of a linear probe's penalty search on features.

    The constants are half of the CPU seconds of five searches, for two cores. They are no bound:
    the number of solver steps depends on how hard the classes are to separate. On drawn features
    whose classes are well separated, three other searches took a quarter to a half of the estimate
    (docs/methods/linear_probe.md).
    """
    rank, columns = min(n, width), n_classes if n_classes > 2 else 1
    size = n * rank * columns
    basis = 0.1 + 2.5e-10 * n * width * rank
    if size >= LARGE_PROBLEM:
        return basis + 0.015 * columns + 2.2e-8 * size
    return basis + 0.015 * columns + 2.2e-7 * size


def training_seconds(
    backbone: FrozenBackbone,
    plan: FreezePlan,
    head: Head,
    data: Dataset,
    sizes: tuple[int, int],
    *,
    method: SharedSettings,
    fits_head: bool,
    extractor: Extractor,
) -> float:
    """Estimate the seconds of a training that runs all of its epochs.

    Parameters
    ----------
    backbone : FrozenBackbone
    plan : FreezePlan
        Which stages train.
    head : Head
    data : Dataset
        Training images, including the validation images.
    sizes : pair of int
        Number of training images, and of validation images that are scored after every epoch.
    method : SharedSettings
        The method.
    fits_head : bool
        Whether the head is fitted on frozen features first.
    extractor : Extractor
        Values in its cache are not computed again.
    """
    training = method.training.for_kind(data.kind)
    workload = TrainingWorkload.of(sizes, training, method.augmentation, fits_head=fits_head)
    measured = _measure_with_decoding(backbone, plan, head, data, extractor)
    n_steps = workload.epochs * math.ceil(workload.n_train / workload.batch_size)
    overhead = TRAINING_OVERHEAD + EPOCH_OVERHEAD * workload.epochs + STEP_OVERHEAD * n_steps
    if plan.last_constant_stage is not None:
        cache_plan = plan_activation_cache(
            backbone,
            (backbone.module, plan, head),
            workload,
            samples=data.samples,
            view=View(augmentation=method.augmentation, seed=method.seed, number=0),
            extractor=extractor,
        )
        # 0 where nothing was measured, because it is clear that the cache is not used.
        if cache_plan.cached:
            return overhead + cache_plan.seconds_cached
        if cache_plan.seconds_uncached:
            return overhead + cache_plan.seconds_uncached
    n_train_passes = workload.n_train * workload.epochs
    n_inference_passes = workload.n_reads - n_train_passes
    seconds = n_train_passes * measured.learn + n_steps * measured.update
    seconds += workload.n_reads * measured.pixels
    return overhead + seconds + n_inference_passes * _forward_seconds(measured)


def _forward_seconds(measured: MeasuredCosts) -> float:
    return math.fsum(stage.seconds for stage in measured.stages)


def _measure_with_decoding(
    backbone: FrozenBackbone, plan: FreezePlan, head: Head, data: Dataset, extractor: Extractor
) -> MeasuredCosts:
    cache = extractor.cache
    measured = measure_costs(
        backbone.module, plan, head, cache=cache, device=device(extractor.device)
    )
    pixels = measure_decoding(backbone, data.samples, SplitPoint(engine="fp32"), cache=cache)
    return replace(measured, pixels=pixels)
