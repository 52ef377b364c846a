"""What is computed of a picture: how far a network runs, on which look of it, what is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.cache import key
from headstart.data.loading import digest_of, load_batch
from headstart.data.samples import Sample
from headstart.data.transforms import Preprocess
from headstart.trunk import Trunk

if TYPE_CHECKING:
    from headstart.data.augment import Augmentation

__all__ = ["Cut", "View"]


@dataclass(frozen=True, kw_only=True)
class View:
    """One of a picture's augmented looks.

    Parameters
    ----------
    augmentation : Augmentation
    seed, number : int
        Together with the picture's content they decide its pixels.
    """

    augmentation: Augmentation
    seed: int
    number: int

    def fingerprint(self) -> str:
        """Everything that the pixels depend on, picture and preprocessing aside."""
        if self.augmentation.is_off:
            return ""
        return f"{self.augmentation.fingerprint()}:{self.seed}:{self.number}"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What is computed of a picture.

    Parameters
    ----------
    engine : str
    stop : str, optional
        The last stage that runs; by default all run and are pooled.
    view : View, optional
        By default the picture as it is.
    taps : tuple of str
        Stages whose maps are wanted, in order, ``stop`` at the end: a picture's values are then
        these maps one after the other, each channels last and flattened.
    ends : tuple of str
        Stages whose means over places are wanted, and the whole network's pooled features for an
        empty name: each is kept as the features of the backbone that ends there.
    """

    engine: str
    stop: str | None = None
    view: View | None = None
    taps: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def key(self, trunk: Trunk, sample: Sample) -> bytes:
        """Digest of everything that the values depend on."""
        parts = [self.stop or "", self.view.fingerprint() if self.view else "", *self.taps]
        inner = parts if any(parts) else []  # pooled features of plain pictures: as ever
        return key("features", trunk.identity, self.engine, *inner, digest_of(sample))

    def entries(
        self, trunk: Trunk, sample: Sample, row: NDArray[np.float32]
    ) -> dict[bytes, NDArray[np.float32]]:
        """What is kept of a picture's values, by key: all of them, or each end on its own."""
        if not self.ends:
            return {self.key(trunk, sample): row}
        parts = [trunk.until(end) if end else trunk for end in self.ends]
        edges = np.cumsum([part.width for part in parts])[:-1]
        keys = [replace(self, ends=()).key(part, sample) for part in parts]
        return dict(zip(keys, np.split(row, edges), strict=True))

    def shape(self, trunk: Trunk) -> tuple[int, ...]:
        """Shape of one picture's values."""
        if self.taps:
            return (sum(int(np.prod(shape)) for shape in trunk.shapes_at(self.taps)),)
        return trunk.shape_at(self.stop)

    def pixels(self, samples: Sequence[Sample], preprocess: Preprocess) -> NDArray[np.uint8]:
        """Decode pictures as this view shows them: (n, *preprocess.shape, 3)."""
        if self.view is None or self.view.augmentation.is_off:
            return load_batch(samples, preprocess)
        from headstart.data.loading import load_views

        view = self.view
        return load_views(samples, preprocess, view.augmentation, seed=view.seed, view=view.number)
