"""What a network in training reads, epoch by epoch: pixels, or what crosses the boundary."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import constant
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Sample
from headstart.data.loader import digest_of, load_canvas, load_pixels, view_of
from headstart.data.transforms.augment import Augmentation
from headstart.distributed import main_first
from headstart.features.engines import CPU_BATCH, GPU_BATCH, Running
from headstart.features.extractor import Activations, Extractor, SplitPoint, View
from headstart.runtime import available_memory, cores, device, one_thread_each
from headstart.training.activation_cache import MEMORY_SHARE, Where

if TYPE_CHECKING:
    from headstart.backbones.backbone import Backbone

__all__ = ["Inputs", "Reading", "continuation"]

Batch = NDArray[np.float32] | NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """Where a network's inputs come from, for whatever images.

    Parameters
    ----------
    backbone : FrozenBackbone
        Its constant stages give what crosses the cut.
    extractor : Extractor
    cut : Cut, optional
        Where constant stages end; by default the network reads pixels.
    cached : bool
        Run the constant stages once for every image and view, and keep what they give; or run
        them whenever it is asked for. The values are the same.
    kept : str, optional
        The stage whose output is kept, at most the cut's; by default the cut's.
    where : {"", "memory", "disk"}
        Where what is kept is read from; by default as much as fits easily is held in memory.
    seed : int
        Of the augmented views.
    """

    backbone: FrozenBackbone
    extractor: Extractor
    split_point: SplitPoint | None = None
    cached: bool = True
    kept: str | None = None
    where: Where = ""
    seed: int = 0

    def of(self, samples: Sequence[Sample], augmentation: Augmentation, *, epochs: int) -> Inputs:
        """Get ready to read images for so many epochs."""
        return Inputs(self, samples, augmentation, epochs)


class Inputs:
    """From rows of some images to arrays, always the same for the same epoch.

    Parameters
    ----------
    reading : Reading
    samples : sequence of Sample
    augmentation : Augmentation
    epochs : int
        That will be read: what they need is computed now, if it is to be kept. Later ones see
        what these saw, from the first on.
    """

    def __init__(
        self,
        reading: Reading,
        samples: Sequence[Sample],
        augmentation: Augmentation,
        epochs: int,
    ) -> None:
        self.reading, self.samples, self.augmentation = reading, samples, augmentation
        self._epochs = epochs
        self._kept: dict[View | None, Callable[[NDArray[np.intp]], Batch]] = {}
        self._run: Callable[[Sequence[Sample], View | None], Batch] | None = None
        self._decoded: dict[int, NDArray[np.uint8]] = {}
        self._room = int(MEMORY_SHARE * available_memory())
        if reading.split_point is not None and reading.cached:
            self._keep(reading.split_point, epochs)
        elif reading.split_point is not None:
            self._run = reading.extractor.runner(reading.backbone, reading.split_point)

    def view(self, epoch: int) -> View | None:
        """The look that images have in an epoch, from 1; None is the image as it is."""
        if self.augmentation.is_off:
            return None
        number = (epoch - 1) % self._epochs
        number = number % self.augmentation.views if self.augmentation.views else number
        return View(augmentation=self.augmentation, seed=self.reading.seed, number=number)

    def fetch(self, epoch: int, rows: NDArray[np.intp]) -> Batch:
        """Values of some images as an epoch sees them."""
        view = self.view(epoch)
        if view in self._kept:
            return self._kept[view](rows)
        if self._run is not None:
            run = self._run
            return _on_cores(lambda part: run([self.samples[row] for row in part], view), rows)
        return np.stack([self._pixels(int(row), view) for row in rows])

    def _pixels(self, row: int, view: View | None) -> NDArray[np.uint8]:
        """One image as a view shows it; decoded once, as long as there is room."""
        sample, preprocess = self.samples[row], self.reading.backbone.spec.preprocess
        found = self._decoded.get(row)
        if found is None:
            found = (load_pixels if view is None else load_canvas)(sample, preprocess)
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._decoded[row] = found
        if view is None:
            return found
        return view_of(
            found,
            preprocess,
            view.augmentation,
            seed=view.seed,
            view=view.number,
            image=digest_of(sample),
        )

    def _keep(self, split_point: SplitPoint, epochs: int) -> None:
        views = dict.fromkeys(self.view(epoch) for epoch in range(1, epochs + 1))
        extractor, backbone, kept_at = (
            self.reading.extractor,
            self.reading.backbone,
            self.reading.kept,
        )
        inner = split_point if kept_at is None else replace(split_point, stop=kept_at)
        onward = None
        if (
            inner.stop is not None
            and split_point.stop is not None
            and inner.stop != split_point.stop
        ):
            target = device(extractor.device)
            onward = continuation(backbone.module, inner.stop, split_point.stop, device=target)
        for view in views:
            with main_first():
                kept = extractor.activations(backbone, self.samples, replace(inner, view=view))
            read = self._reader(kept, len(views))
            self._kept[view] = read if onward is None else _chained(read, onward)

    def _reader(self, kept: Activations, views: int) -> Callable[[NDArray[np.intp]], Batch]:
        size = len(self.samples) * int(np.prod(kept.shape)) * 4
        fits = size * views <= MEMORY_SHARE * available_memory()
        if self.reading.where == "disk" or (not self.reading.where and not fits):
            return kept.read
        values = kept.read(range(len(self.samples)))
        return lambda rows: values[rows]


def continuation(
    backbone: Backbone, start: str, stop: str, *, device: str
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Make the function from what a stage gave to what a later one gives, in inference.

    In the batches that extraction runs, so that a training does not depend, to the bit, on which
    of the constant stages' outputs are kept.

    Parameters
    ----------
    backbone : Backbone
        Constant; it is not modified.
    start : str
        The stage whose output is given, channels last.
    stop : str
        The last stage that runs, behind ``start``.
    device : str
    """
    import torch

    names = [stage.name for stage in backbone.stages]
    first = names[names.index(start) + 1]
    module = constant(copy.deepcopy(backbone)).to(device)
    module.to(memory_format=torch.channels_last)
    turn = threading.Lock()  # of a GPU, which runs one batch at a time

    def forward(values: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            x = torch.from_numpy(values).to(device)
            x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
            x = module.run(x, start=first, stop=stop)
            x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
            return np.ascontiguousarray(x.float().cpu().numpy())

    def in_turn(values: NDArray[Any]) -> NDArray[np.float32]:
        with turn:
            return forward(values)

    if device == "cpu":
        return Running(forward=forward, batch=CPU_BATCH)
    return Running(forward=in_turn, batch=GPU_BATCH)


def _chained(
    read: Callable[[NDArray[np.intp]], Batch],
    onward: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> Callable[[NDArray[np.intp]], Batch]:
    return lambda rows: _on_cores(lambda part: onward(read(part)), rows)


def _on_cores(work: Callable[[NDArray[np.intp]], Batch], rows: NDArray[np.intp]) -> Batch:
    """Run constant stages as extraction does: every thread on a core of its own.

    Sums in a layer that is shared between threads are rounded otherwise, and Adam's first steps
    make much of little: where a gradient is next to nothing, rounding decides its sign.
    """
    import torch

    if torch.get_num_threads() == 1 or len(rows) == 0:
        return work(rows)
    size = max(CPU_BATCH, -(-len(rows) // cores() // CPU_BATCH) * CPU_BATCH)
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]
    with ThreadPoolExecutor(cores(), initializer=one_thread_each) as executor:
        return np.concatenate(list(executor.map(work, parts)))
