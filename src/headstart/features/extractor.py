"""What is computed of an image: how far a network runs, on which look of it, what is wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache, key
from headstart.data.dataset import Sample
from headstart.data.loader import digest_of, load_batch, map_bounded
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import SetupError, UnknownNameError
from headstart.features.engines import (
    ENGINES,
    PROBE_IMAGES,
    Choice,
    Running,
    candidates,
    choose,
    compile_engine,
    recall,
)
from headstart.runtime import cores, device, one_thread_each

if TYPE_CHECKING:
    from headstart.data.transforms.augment import Augmentation

__all__ = ["Activations", "Extractor", "Features", "SplitPoint", "View"]


@dataclass(frozen=True, kw_only=True)
class View:
    """One of an image's augmented looks.

    Parameters
    ----------
    augmentation : Augmentation
    seed, number : int
        Together with the image's content they decide its pixels.
    """

    augmentation: Augmentation
    seed: int
    number: int

    def fingerprint(self) -> str:
        """Everything that the pixels depend on, image and preprocessing aside."""
        if self.augmentation.is_off:
            return ""
        return f"{self.augmentation.fingerprint()}:{self.seed}:{self.number}"


@dataclass(frozen=True, kw_only=True)
class SplitPoint:
    """What is computed of an image.

    Parameters
    ----------
    engine : str
    stop : str, optional
        The last stage that runs; by default all run and are pooled.
    view : View, optional
        By default the image as it is.
    taps : tuple of str
        Stages whose maps are wanted, in order, ``stop`` at the end: an image's values are then
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

    def key(self, backbone: FrozenBackbone, sample: Sample) -> bytes:
        """Digest of everything that the values depend on."""
        parts = [self.stop or "", self.view.fingerprint() if self.view else "", *self.taps]
        inner = parts if any(parts) else []  # pooled features of plain images: as ever
        return key("features", backbone.identity, self.engine, *inner, digest_of(sample))

    def entries(
        self, backbone: FrozenBackbone, sample: Sample, row: NDArray[np.float32]
    ) -> dict[bytes, NDArray[np.float32]]:
        """What is kept of an image's values, by key: all of them, or each end on its own."""
        if not self.ends:
            return {self.key(backbone, sample): row}
        parts = [backbone.until(end) if end else backbone for end in self.ends]
        edges = np.cumsum([part.width for part in parts])[:-1]
        keys = [replace(self, ends=()).key(part, sample) for part in parts]
        return dict(zip(keys, np.split(row, edges), strict=True))

    def shape(self, backbone: FrozenBackbone) -> tuple[int, ...]:
        """Shape of one image's values."""
        if self.taps:
            return (sum(int(np.prod(shape)) for shape in backbone.shapes_at(self.taps)),)
        return backbone.shape_at(self.stop)

    def pixels(self, samples: Sequence[Sample], preprocess: Preprocess) -> NDArray[np.uint8]:
        """Decode images as this view shows them: (n, *preprocess.shape, 3)."""
        if self.view is None or self.view.augmentation.is_off:
            return load_batch(samples, preprocess)
        from headstart.data.loader import load_views

        view = self.view
        return load_views(samples, preprocess, view.augmentation, seed=view.seed, view=view.number)


Progress = Callable[[str, int, int], None]
"""Called with the name of the step, how many images are done, and how many there are."""

COMMIT_EVERY = 1024
COMMIT_BYTES = 128_000_000
"""Images, or bytes, between two commits to the cache: what a kill can cost. Each commit is
preceded by a hash over the weights, so that no feature of a backbone that has moved is kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Pooled features of some images, and what they cost.

    Parameters
    ----------
    values : array, float32, shape (n, width)
    engine : Choice
    computed, reused : int
        Different images that the backbone ran on, and that came from the cache.
    seconds : float
        Of the extraction, without the choice of the engine.
    """

    values: NDArray[np.float32]
    engine: Choice
    computed: int
    reused: int
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Activations:
    """What crosses a boundary inside the backbone, image by image, in the cache.

    Nothing is held in memory: a batch is read when it is needed.

    Parameters
    ----------
    cache : Cache
    keys : tuple of bytes
        One for each image.
    shape : tuple of int
        Of one image's values: (h, w, channels), (tokens, channels) or (width,).
    """

    cache: Cache
    keys: tuple[bytes, ...]
    shape: tuple[int, ...]

    def read(self, rows: Sequence[int] | NDArray[np.intp]) -> NDArray[np.float32]:
        """Values of some images, shape (len(rows), *shape), own memory.

        Raises
        ------
        SetupError
            If the cache has lost some, because its budget is smaller than an epoch's need.
        """
        wanted = [self.keys[row] for row in rows]
        found = self.cache.get_many(wanted)
        if lost := len(set(wanted)) - len(found):
            raise SetupError(
                "Expected what the frozen part gives to stay in the cache, got "
                f"{lost} of {len(set(wanted))} images evicted; do raise HEADSTART_CACHE_BUDGET, "
                "or train with the boundary cache off."
            )
        values = np.empty((len(wanted), *self.shape), dtype=np.float32)
        for row, name in zip(values, wanted, strict=True):
            row[...] = np.frombuffer(found[name], dtype=np.float32).reshape(self.shape)
        return values


@dataclass(kw_only=True)
class Extractor:
    """How features are made: where they are kept, what computes them, who is told.

    Parameters
    ----------
    cache : Cache
    engine : {"auto", "fp32", "bf16", "openvino", "openvino-bf16"}
        ``auto`` measures once for each machine and backbone.
    device : {"auto", "cpu", "cuda", "mps"}
    workers : int, optional
        Threads; on a CPU each decodes and computes on a core of its own.
    progress : callable, optional

    Raises
    ------
    UnknownNameError
        If there is no such engine.
    """

    cache: Cache
    engine: str = "auto"
    device: str = "auto"
    workers: int | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.engine not in {"auto", *ENGINES}:
            raise UnknownNameError("engine", self.engine, ["auto", *ENGINES])

    def features(self, backbone: FrozenBackbone, samples: Sequence[Sample]) -> Features:
        """Pooled features of the images, each different image computed at most once, ever.

        Raises
        ------
        UnreadableImageError
            If an image cannot be decoded. What was computed before it is kept.
        HeadstartError
            If the frozen backbone is not what it was before.
        """
        rows, distinct = _distinct([digest_of(sample) for sample in samples])
        unique = [samples[row] for row in rows]
        choice = self._choose(backbone, unique)
        begin = time.perf_counter()
        split_point = SplitPoint(engine=choice.engine)
        found = self._reusable(backbone, split_point, unique)
        missing = [i for i in range(len(unique)) if i not in found]
        reused = len(found)
        found.update(self._compute(backbone, split_point, unique, missing))
        values = _stack([found[i] for i in range(len(unique))])[distinct]
        return Features(
            values=values,
            engine=choice,
            computed=len(missing),
            reused=reused,
            seconds=time.perf_counter() - begin,
        )

    def stage_features(
        self, backbone: FrozenBackbone, samples: Sequence[Sample], ends: Sequence[str]
    ) -> tuple[dict[str, NDArray[np.float32]], int]:
        """Features of the backbones that end behind several stages, in one run of the network.

        They are kept as these backbones' own, and found again by ``features``.

        Parameters
        ----------
        backbone : FrozenBackbone
        samples : sequence of Sample
        ends : sequence of str
            Stages, in the order in which they run; an empty name, last, is the whole backbone.

        Returns
        -------
        dict of str to array, shape (n, width of that stage)
        int
            Different images that the network ran on.

        Raises
        ------
        UnreadableImageError
            If an image cannot be decoded. What was computed before it is kept.
        """
        rows, distinct = _distinct([digest_of(sample) for sample in samples])
        unique = [samples[row] for row in rows]
        split_point = SplitPoint(engine=self._choose(backbone, unique).engine, ends=tuple(ends))
        plain = replace(split_point, ends=())
        parts = {end: backbone.until(end) if end else backbone for end in ends}
        found = {end: self._reusable(part, plain, unique) for end, part in parts.items()}
        missing = [i for i in range(len(unique)) if any(i not in have for have in found.values())]
        for i, row in self._compute(backbone, split_point, unique, missing):
            values = split_point.entries(backbone, unique[i], row).values()
            for have, value in zip(found.values(), values, strict=True):
                have[i] = value
        stacked = {
            end: _stack([have[i] for i in range(len(unique))])[distinct]
            for end, have in found.items()
        }
        return stacked, len(missing)

    def outlook(self, backbone: FrozenBackbone, samples: Sequence[Sample]) -> tuple[Choice, int]:
        """Return the engine that would run, and how many images it would run on."""
        rows, _ = _distinct([digest_of(sample) for sample in samples])
        unique = [samples[row] for row in rows]
        choice = self._choose(backbone, unique)
        return choice, len(self.missing(backbone, unique, SplitPoint(engine=choice.engine)))

    def missing(
        self, backbone: FrozenBackbone, samples: Sequence[Sample], split_point: SplitPoint
    ) -> list[bytes]:
        """Keys of what would have to be computed, each once."""
        return self.cache.missing([split_point.key(backbone, sample) for sample in samples])

    def activations(
        self, backbone: FrozenBackbone, samples: Sequence[Sample], split_point: SplitPoint
    ) -> Activations:
        """Run the constant stages once per image and keep what they give.

        Raises
        ------
        UnreadableImageError
            If an image cannot be decoded. What was computed before it is kept.
        HeadstartError
            If the frozen backbone is not what it was before.
        """
        rows, _ = _distinct([digest_of(sample) for sample in samples])
        unique = [samples[row] for row in rows]
        absent = set(self.missing(backbone, unique, split_point))
        missing = [
            i for i, sample in enumerate(unique) if split_point.key(backbone, sample) in absent
        ]
        for _ in self._compute(backbone, split_point, unique, missing):
            pass  # it is in the cache: holding all of it would fill the memory
        return Activations(
            cache=self.cache,
            keys=tuple(split_point.key(backbone, sample) for sample in samples),
            shape=split_point.shape(backbone),
        )

    def runner(
        self, backbone: FrozenBackbone, split_point: SplitPoint
    ) -> Callable[[Sequence[Sample], View | None], NDArray[np.float32]]:
        """Make the function from images to what crosses the cut, which keeps nothing."""
        running = compile_engine(
            backbone.module,
            split_point.engine,
            device=device(self.device),
            stop=split_point.stop,
            taps=split_point.taps,
        )

        def run(samples: Sequence[Sample], view: View | None) -> NDArray[np.float32]:
            return running(
                replace(split_point, view=view).pixels(samples, backbone.spec.preprocess)
            )

        return run

    def _choose(self, backbone: FrozenBackbone, unique: list[Sample]) -> Choice:
        if self.engine != "auto" or not unique:
            return Choice(engine=self.engine)
        target = device(self.device)
        engines = candidates(target, len(unique))
        remembered = recall(backbone.spec.name, device=target, cache=self.cache, engines=engines)
        if remembered is not None:
            return remembered
        pixels = load_batch(unique[:PROBE_IMAGES], backbone.spec.preprocess)
        return choose(backbone.module, pixels, device=target, cache=self.cache, engines=engines)

    def _reusable(
        self, backbone: FrozenBackbone, split_point: SplitPoint, unique: list[Sample]
    ) -> dict[int, NDArray[np.float32]]:
        keys = [split_point.key(backbone, sample) for sample in unique]
        found = self.cache.get_many(keys)
        return {
            i: np.frombuffer(found[wanted], dtype=np.float32)
            for i, wanted in enumerate(keys)
            if wanted in found
        }

    def _compute(
        self,
        backbone: FrozenBackbone,
        split_point: SplitPoint,
        unique: list[Sample],
        missing: list[int],
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        if not missing:
            return
        running = compile_engine(
            backbone.module,
            split_point.engine,
            device=device(self.device),
            stop=split_point.stop,
            taps=split_point.taps,
            ends=split_point.ends,
        )
        before = running.fingerprint()
        size = running.batch
        batches = [missing[at : at + size] for at in range(0, len(missing), size)]
        unsaved: dict[bytes, bytes] = {}
        done = 0
        task = partial(_load_and_run, running, backbone.spec.preprocess, split_point, unique)
        try:
            for batch, rows in zip(batches, self._run(task, batches), strict=True):
                for i, row in zip(batch, rows, strict=True):
                    kept = split_point.entries(backbone, unique[i], row)
                    unsaved.update({name: value.tobytes() for name, value in kept.items()})
                    yield i, row
                done += len(batch)
                if len(unsaved) >= min(COMMIT_EVERY, COMMIT_BYTES // rows[0].nbytes):
                    self._keep(running, before, unsaved)
                if self.progress is not None:
                    self.progress(split_point.stop or "features", done, len(missing))
        finally:  # an image that cannot be read, or Ctrl-C, costs only itself
            self._keep(running, before, unsaved)

    def _run(
        self, task: Callable[[list[int]], NDArray[np.float32]], batches: list[list[int]]
    ) -> Iterator[NDArray[np.float32]]:
        workers = self.workers or cores()
        with ThreadPoolExecutor(workers, initializer=one_thread_each) as executor:
            yield from map_bounded(task, batches, executor, 4 * workers)

    def _keep(self, running: Running, before: str, unsaved: dict[bytes, bytes]) -> None:
        """Commit what was computed, if what computed it is still what it was."""
        if unsaved:
            running.require_constant(before)
            self.cache.put_many(unsaved, kind="features")
            unsaved.clear()


def _load_and_run(
    running: Running,
    preprocess: Preprocess,
    split_point: SplitPoint,
    unique: list[Sample],
    batch: list[int],
) -> NDArray[np.float32]:
    return running(split_point.pixels([unique[i] for i in batch], preprocess))


def _distinct(digests: list[str]) -> tuple[list[int], list[int]]:
    """Rows of the first image of each content, and for every row the place of its content."""
    place: dict[str, int] = {}
    rows: list[int] = []
    for row, content in enumerate(digests):
        if content not in place:
            place[content] = len(rows)
            rows.append(row)
    return rows, [place[content] for content in digests]


def _stack(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)
