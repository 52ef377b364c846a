"""Inputs of a network in training: pixels, or cached outputs of its frozen stages.

The same epoch always reads the same values, whether or not they are cached.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import freeze
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Sample
from headstart.data.loader import digest_of, load_canvas, load_pixels, view_of
from headstart.data.transforms.augment import Augmentation
from headstart.distributed.processes import main_first
from headstart.features.engines import CPU_BATCH, GPU_BATCH, CompiledEngine
from headstart.features.extractor import Activations, Extractor, SplitPoint, View
from headstart.runtime import available_memory, cores, device, use_one_thread
from headstart.training.activation_cache import MEMORY_SHARE, ActivationStorage

if TYPE_CHECKING:
    from headstart.backbones.backbone import Backbone

__all__ = ["InputSource", "Inputs", "make_stage_runner"]

Batch = NDArray[np.float32] | NDArray[np.uint8]
Reader = Callable[[NDArray[np.intp]], Batch]
"""From rows to the values of these images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InputSource:
    """Source of a network's inputs, for any images.

    Parameters
    ----------
    backbone : FrozenBackbone
        Its frozen stages compute the inputs.
    extractor : Extractor
    split_point : SplitPoint, optional
        Where the frozen stages end; by default the network reads pixels.
    cached : bool
        Run the frozen stages once for every image and view, and cache their output; or run them
        for every batch. The values are the same.
    cached_stage : str, optional
        The stage whose output is cached, at or before the split point; by default the stage of
        the split point.
    storage : {"", "memory", "disk"}
        Where epochs read cached values from; by default memory if they fit easily, else disk.
    seed : int
        Seed of the augmented views.
    """

    backbone: FrozenBackbone
    extractor: Extractor
    split_point: SplitPoint | None = None
    cached: bool = True
    cached_stage: str | None = None
    storage: ActivationStorage = ""
    seed: int = 0

    def of(self, samples: Sequence[Sample], augmentation: Augmentation, *, epochs: int) -> Inputs:
        """Prepare to read images for a number of epochs."""
        return Inputs(self, samples, augmentation, epochs)


class Inputs:
    """Arrays of images by row and epoch, always the same for the same epoch.

    Parameters
    ----------
    input_source : InputSource
    samples : sequence of Sample
    augmentation : Augmentation
    epochs : int
        Number of epochs to prepare: their views are computed now if they are cached. Later
        epochs repeat these views from the first on.
    """

    def __init__(
        self,
        input_source: InputSource,
        samples: Sequence[Sample],
        augmentation: Augmentation,
        epochs: int,
    ) -> None:
        self.input_source, self.samples, self.augmentation = input_source, samples, augmentation
        self._epochs = epochs
        self._cached: dict[View | None, Reader] = {}
        self._run: Callable[[Sequence[Sample], View | None], Batch] | None = None
        self._decoded: dict[int, NDArray[np.uint8]] = {}
        self._free_bytes = int(MEMORY_SHARE * available_memory())
        if input_source.split_point is not None and input_source.cached:
            self._cache_activations(input_source.split_point, epochs)
        elif input_source.split_point is not None:
            self._run = input_source.extractor.runner(
                input_source.backbone, input_source.split_point
            )

    def view(self, epoch: int) -> View | None:
        """View of the images in an epoch, counted from 1; None for no augmentation."""
        if self.augmentation.is_off:
            return None
        number = (epoch - 1) % self._epochs
        number = number % self.augmentation.views if self.augmentation.views else number
        return View(augmentation=self.augmentation, seed=self.input_source.seed, number=number)

    def fetch(self, epoch: int, rows: NDArray[np.intp]) -> Batch:
        """Read the values of some images in an epoch."""
        view = self.view(epoch)
        if view in self._cached:
            return self._cached[view](rows)
        if self._run is not None:
            run = self._run
            return _split_over_cores(
                lambda part: run([self.samples[row] for row in part], view), rows
            )
        return np.stack([self._pixels(int(row), view) for row in rows])

    def _pixels(self, row: int, view: View | None) -> NDArray[np.uint8]:
        """Read the pixels of one image in a view. Decoded images stay in memory while they fit."""
        sample, preprocess = self.samples[row], self.input_source.backbone.spec.preprocess
        pixels = self._decoded.get(row)
        if pixels is None:
            pixels = (load_pixels if view is None else load_canvas)(sample, preprocess)
            if pixels.nbytes <= self._free_bytes:
                self._free_bytes -= pixels.nbytes
                self._decoded[row] = pixels
        if view is None:
            return pixels
        return view_of(
            pixels,
            preprocess,
            view.augmentation,
            seed=view.seed,
            view=view.number,
            image=digest_of(sample),
        )

    def _cache_activations(self, split_point: SplitPoint, epochs: int) -> None:
        views = dict.fromkeys(self.view(epoch) for epoch in range(1, epochs + 1))
        extractor, backbone = self.input_source.extractor, self.input_source.backbone
        stage = self.input_source.cached_stage or split_point.stop
        cache_point = replace(split_point, stop=stage)
        # Frozen stages after the cached one run for every batch.
        finish = None
        if stage is not None and split_point.stop is not None and stage != split_point.stop:
            target = device(extractor.device)
            finish = make_stage_runner(backbone.module, stage, split_point.stop, device=target)
        for view in views:
            with main_first():
                point = replace(cache_point, view=view)
                activations = extractor.activations(backbone, self.samples, point)
            read = self._reader(activations, len(views))
            self._cached[view] = read if finish is None else _compose(read, finish)

    def _reader(self, activations: Activations, n_views: int) -> Reader:
        """Choose whether rows are read from memory or from disk."""
        size = len(self.samples) * int(np.prod(activations.shape)) * 4
        fits = size * n_views <= MEMORY_SHARE * available_memory()
        if self.input_source.storage == "disk" or (not self.input_source.storage and not fits):
            return activations.read
        values = activations.read(range(len(self.samples)))
        return lambda rows: values[rows]


def make_stage_runner(
    backbone: Backbone, start: str, stop: str, *, device: str
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Make the function from the output of one stage to the output of a later one, in inference.

    It uses the batches of feature extraction. Therefore a training gives the same bits whichever
    frozen stage is cached.

    Parameters
    ----------
    backbone : Backbone
        It is not modified.
    start : str
        The stage whose output is passed, channels last.
    stop : str
        The last stage to run, after ``start``.
    device : str
    """
    import torch

    names = [stage.name for stage in backbone.stages]
    first = names[names.index(start) + 1]
    module = freeze(copy.deepcopy(backbone)).to(device)
    module.to(memory_format=torch.channels_last)
    gpu_lock = threading.Lock()  # a GPU runs one batch at a time

    def forward(values: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            x = torch.from_numpy(values).to(device)
            x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
            x = module.run(x, start=first, stop=stop)
            x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
            return np.ascontiguousarray(x.float().cpu().numpy())

    def forward_locked(values: NDArray[Any]) -> NDArray[np.float32]:
        with gpu_lock:
            return forward(values)

    if device == "cpu":
        return CompiledEngine(forward=forward, batch=CPU_BATCH)
    return CompiledEngine(forward=forward_locked, batch=GPU_BATCH)


def _compose(read: Reader, finish: Callable[[NDArray[Any]], NDArray[np.float32]]) -> Reader:
    return lambda rows: _split_over_cores(lambda part: finish(read(part)), rows)


def _split_over_cores(work: Reader, rows: NDArray[np.intp]) -> Batch:
    """Run frozen stages as feature extraction does: every thread on its own core.

    If threads share a layer, its sums are rounded differently. Adam's first steps amplify this:
    where a gradient is almost zero, rounding decides its sign.
    """
    import torch

    if torch.get_num_threads() == 1 or len(rows) == 0:
        return work(rows)
    size = max(CPU_BATCH, -(-len(rows) // cores() // CPU_BATCH) * CPU_BATCH)
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]
    with ThreadPoolExecutor(cores(), initializer=use_one_thread) as executor:
        return np.concatenate(list(executor.map(work, parts)))
