"""What a network in training reads, epoch by epoch: pixels, or what crosses the boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headstart.data.augment import Augmentation
from headstart.data.samples import Sample
from headstart.distributed import main_first
from headstart.features import Activations, Cut, Extractor, View
from headstart.runtime import available_memory
from headstart.trunk import Trunk

__all__ = ["Inputs", "Reading"]

Batch = NDArray[np.float32] | NDArray[np.uint8]

MEMORY_SHARE = 0.25
"""Of the memory that is free: what kept activations may take; larger ones stay on disk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """Where a network's inputs come from, for whatever pictures.

    Parameters
    ----------
    trunk : Trunk
        Its constant stages give what crosses the cut.
    extractor : Extractor
    cut : Cut, optional
        Where constant stages end; by default the network reads pixels.
    cached : bool
        Run the constant stages once for every picture and view, and keep what they give; or run
        them whenever it is asked for. The values are the same.
    seed : int
        Of the augmented views.
    """

    trunk: Trunk
    extractor: Extractor
    cut: Cut | None = None
    cached: bool = True
    seed: int = 0

    def of(self, samples: Sequence[Sample], augmentation: Augmentation, *, epochs: int) -> Inputs:
        """Get ready to read pictures for so many epochs."""
        return Inputs(self, samples, augmentation, epochs)


class Inputs:
    """From rows of some pictures to arrays, always the same for the same epoch.

    Parameters
    ----------
    reading : Reading
    samples : sequence of Sample
    augmentation : Augmentation
    epochs : int
        That will be read: what they need is computed now, if it is to be kept.
    """

    def __init__(
        self,
        reading: Reading,
        samples: Sequence[Sample],
        augmentation: Augmentation,
        epochs: int,
    ) -> None:
        self.reading, self.samples, self.augmentation = reading, samples, augmentation
        self._kept: dict[View | None, Callable[[NDArray[np.intp]], Batch]] = {}
        self._run: Callable[[Sequence[Sample], View | None], Batch] | None = None
        if reading.cut is not None and reading.cached:
            self._keep(reading.cut, epochs)
        elif reading.cut is not None:
            self._run = reading.extractor.runner(reading.trunk, reading.cut)

    def view(self, epoch: int) -> View | None:
        """The look that pictures have in an epoch, from 1; None is the picture as it is."""
        if self.augmentation.is_off:
            return None
        number = (epoch - 1) % self.augmentation.views if self.augmentation.views else epoch - 1
        return View(augmentation=self.augmentation, seed=self.reading.seed, number=number)

    def fetch(self, epoch: int, rows: NDArray[np.intp]) -> Batch:
        """Values of some pictures as an epoch sees them."""
        view = self.view(epoch)
        if view in self._kept:
            return self._kept[view](rows)
        samples = [self.samples[row] for row in rows]
        if self._run is not None:
            return self._run(samples, view)
        preprocess = self.reading.trunk.spec.preprocess
        return Cut(engine="fp32", view=view).pixels(samples, preprocess)

    def _keep(self, cut: Cut, epochs: int) -> None:
        views = dict.fromkeys(self.view(epoch) for epoch in range(1, epochs + 1))
        extractor, trunk = self.reading.extractor, self.reading.trunk
        for view in views:
            with main_first():
                kept = extractor.activations(trunk, self.samples, replace(cut, view=view))
            self._kept[view] = self._reader(kept, len(views))

    def _reader(self, kept: Activations, views: int) -> Callable[[NDArray[np.intp]], Batch]:
        size = len(self.samples) * int(np.prod(kept.shape)) * 4
        if size * views > MEMORY_SHARE * available_memory():
            return kept.read
        values = kept.read(range(len(self.samples)))
        return lambda rows: values[rows]
