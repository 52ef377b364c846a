"""Feature extraction: the split point of a network, views of images, and cached outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache, key
from headstart.data.dataset import Sample
from headstart.data.loader import digest_of, load_batch, map_bounded
from headstart.data.transforms.preprocess import Preprocess
from headstart.distributed.ray import is_on, map_tasks
from headstart.errors import SetupError, UnknownNameError
from headstart.features.engines import (
    ENGINES,
    CompiledEngine,
    EngineChoice,
    choose_engine,
    compile_engine,
)
from headstart.runtime import cores, device, use_one_thread

if TYPE_CHECKING:
    from headstart.data.transforms.augment import Augmentation

__all__ = ["Activations", "Extractor", "Features", "SplitPoint", "View"]

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, the number of images done, and the total number."""
COMMIT_EVERY = 1024
COMMIT_BYTES = 128_000_000
"""Images, or bytes, between two commits to the cache. A kill loses at most these. Before each
commit the weights are hashed, so that no features of a changed backbone are stored."""
SHARD_BATCHES = 16
"""Batches in one task on a Ray cluster: enough that the time to send it does not matter."""


@dataclass(frozen=True, kw_only=True)
class View:
    """An augmented view of an image.

    Parameters
    ----------
    augmentation : Augmentation
    seed, number : int
        Together with the image's content they determine the view's pixels.
    """

    augmentation: Augmentation
    seed: int
    number: int

    def fingerprint(self) -> str:
        """Text for everything that the pixels depend on, except image and preprocessing."""
        if self.augmentation.is_off:
            return ""
        return f"{self.augmentation.fingerprint()}:{self.seed}:{self.number}"


@dataclass(frozen=True, kw_only=True)
class SplitPoint:
    """End of the frozen part, and the outputs that are computed for an image.

    Parameters
    ----------
    engine : str
    stop : str, optional
        The last stage that runs; by default all run and are pooled.
    view : View, optional
        By default the image without augmentation.
    taps : tuple of str
        Stages whose maps to return, in order, ``stop`` at the end. An image's values are then
        these maps one after the other, each channels last and flattened.
    ends : tuple of str
        Stages whose maps to average over their positions; an empty name stands for the pooled
        features of the whole network. Each is cached as the features of the backbone that ends
        at that stage.
    """

    engine: str
    stop: str | None = None
    view: View | None = None
    taps: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def key(self, backbone: FrozenBackbone, sample: Sample) -> bytes:
        """Cache key: a digest of everything that the values depend on."""
        parts = [self.stop or "", self.view.fingerprint() if self.view else "", *self.taps]
        # Keys of pooled features have no further parts, so that older caches stay valid.
        inner = parts if any(parts) else []
        return key("features", backbone.identity, self.engine, *inner, digest_of(sample))

    def cache_entries(
        self, backbone: FrozenBackbone, sample: Sample, row: NDArray[np.float32]
    ) -> dict[bytes, NDArray[np.float32]]:
        """Values of an image by cache key: all of them in one entry, or one entry for each end."""
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
        """Decode images, with the view's augmentation: (n, *preprocess.shape, 3)."""
        if self.view is None or self.view.augmentation.is_off:
            return load_batch(samples, preprocess)
        from headstart.data.loader import load_views

        view = self.view
        return load_views(samples, preprocess, view.augmentation, seed=view.seed, view=view.number)


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Pooled features of some images, and the cost of computing them.

    Parameters
    ----------
    values : array, float32, shape (n, width)
    engine : EngineChoice
    computed, reused : int
        Number of distinct images that the backbone ran on, and that were in the cache.
    seconds : float
        Time of the extraction, without the choice of the engine.
    """

    values: NDArray[np.float32]
    engine: EngineChoice
    computed: int
    reused: int
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Activations:
    """Activations at a split point inside the backbone, image by image, in the cache.

    They are not held in memory: each batch is read when it is needed.

    Parameters
    ----------
    cache : Cache
    keys : tuple of bytes
        One for each image.
    shape : tuple of int
        Of one image's values: (h, w, channels), (tokens, channels) or (width,).
    restore : callable
        Computes the values again, once, that are not in the cache: damaged ones are found only
        when they are read.
    """

    cache: Cache
    keys: tuple[bytes, ...]
    shape: tuple[int, ...]
    restore: Callable[[], None]

    def read(self, rows: Sequence[int] | NDArray[np.intp]) -> NDArray[np.float32]:
        """Values of some images as a new array, shape (len(rows), *shape).

        Raises
        ------
        SetupError
            If entries are missing, because the cache's budget is too small for an epoch.
        """
        keys = [self.keys[row] for row in rows]
        cached = self.cache.get_many(keys)
        if len(set(keys)) > len(cached):
            self.restore()
            cached = self.cache.get_many(keys)
        if n_missing := len(set(keys)) - len(cached):
            raise SetupError(
                f"The activations of {n_missing} of {len(set(keys))} images were evicted from the "
                "cache during training. Raise HEADSTART_CACHE_BUDGET, or pass "
                "--activation-cache off."
            )
        values = np.empty((len(keys), *self.shape), dtype=np.float32)
        for row, entry_key in zip(values, keys, strict=True):
            row[...] = np.frombuffer(cached[entry_key], dtype=np.float32).reshape(self.shape)
        return values


@dataclass(kw_only=True)
class Extractor:
    """Computes features and activations: with this cache, engine, device and progress observer.

    Parameters
    ----------
    cache : Cache
    engine : {"auto", "fp32", "bf16", "openvino", "openvino-bf16"}
        ``auto`` is a fixed choice for this machine, backbone and number of images
        (``engines.choose_engine``), made once for each backbone.
    device : {"auto", "cpu", "cuda", "mps"}
    workers : int, optional
        Number of threads; on a CPU each decodes and computes on its own core.
    progress : callable, optional
        Called after each batch.

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
    _choices: dict[bytes, EngineChoice] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.engine not in {"auto", *ENGINES}:
            raise UnknownNameError("engine", self.engine, ["auto", *ENGINES])

    def features(self, backbone: FrozenBackbone, samples: Sequence[Sample]) -> Features:
        """Pooled features of the images; those of each distinct image are computed only once.

        Raises
        ------
        UnreadableImageError
            If an image cannot be decoded. Features computed before it are stored.
        HeadstartError
            If the weights of the frozen backbone have changed.
        """
        rows, distinct = _distinct_rows([digest_of(sample) for sample in samples])
        unique = [samples[row] for row in rows]
        choice = self._choose(backbone, unique)
        started_at = time.perf_counter()
        split_point = SplitPoint(engine=choice.engine)
        features = self._read_cached(backbone, split_point, unique)
        missing = [i for i in range(len(unique)) if i not in features]
        reused = len(features)
        features.update(self._compute(backbone, split_point, unique, missing))
        values = _stack_rows([features[i] for i in range(len(unique))])[distinct]
        return Features(
            values=values,
            engine=choice,
            computed=len(missing),
            reused=reused,
            seconds=time.perf_counter() - started_at,
        )

    def stage_features(
        self, backbone: FrozenBackbone, samples: Sequence[Sample], ends: Sequence[str]
    ) -> tuple[dict[str, NDArray[np.float32]], int]:
        """Features of the backbones that end at several stages, in one run of the network.

        They are cached as the features of these backbones, so that ``features`` reuses them.

        Parameters
        ----------
        backbone : FrozenBackbone
        samples : sequence of Sample
        ends : sequence of str
            Stages, in the order they run; an empty name, at the end, is the whole backbone.

        Returns
        -------
        dict of str to array, shape (n, width of that stage)
        int
            Number of distinct images that the network ran on.

        Raises
        ------
        UnreadableImageError
            If an image cannot be decoded. Features computed before it are stored.
        """
        rows, distinct = _distinct_rows([digest_of(sample) for sample in samples])
        unique = [samples[row] for row in rows]
        split_point = SplitPoint(engine=self._choose(backbone, unique).engine, ends=tuple(ends))
        pooled = replace(split_point, ends=())
        parts = {end: backbone.until(end) if end else backbone for end in ends}
        features = {end: self._read_cached(part, pooled, unique) for end, part in parts.items()}
        missing = [
            i for i in range(len(unique)) if any(i not in rows for rows in features.values())
        ]
        for i, row in self._compute(backbone, split_point, unique, missing):
            values = split_point.cache_entries(backbone, unique[i], row).values()
            for end_features, value in zip(features.values(), values, strict=True):
                end_features[i] = value
        stacked = {
            end: _stack_rows([end_features[i] for i in range(len(unique))])[distinct]
            for end, end_features in features.items()
        }
        return stacked, len(missing)

    def plan_extraction(
        self, backbone: FrozenBackbone, samples: Sequence[Sample]
    ) -> tuple[EngineChoice, int]:
        """Return the engine that would run, and the number of images it would run on."""
        rows, _ = _distinct_rows([digest_of(sample) for sample in samples])
        unique = [samples[row] for row in rows]
        choice = self._choose(backbone, unique)
        return choice, len(self.missing(backbone, unique, SplitPoint(engine=choice.engine)))

    def missing(
        self, backbone: FrozenBackbone, samples: Sequence[Sample], split_point: SplitPoint
    ) -> list[bytes]:
        """Cache keys of the values that would have to be computed, without duplicates."""
        return self.cache.missing([split_point.key(backbone, sample) for sample in samples])

    def activations(
        self, backbone: FrozenBackbone, samples: Sequence[Sample], split_point: SplitPoint
    ) -> Activations:
        """Run the frozen stages once for each image and cache their outputs.

        Raises
        ------
        UnreadableImageError
            If an image cannot be decoded. Activations computed before it are stored.
        HeadstartError
            If the weights of the frozen backbone have changed.
        """
        rows, _ = _distinct_rows([digest_of(sample) for sample in samples])
        unique = [samples[row] for row in rows]

        def compute_missing() -> None:
            absent = set(self.missing(backbone, unique, split_point))
            missing = [
                i for i, sample in enumerate(unique) if split_point.key(backbone, sample) in absent
            ]
            for _ in self._compute(backbone, split_point, unique, missing):
                pass  # values are in the cache; a list of all of them could exhaust the memory

        restored = False

        def restore() -> None:
            nonlocal restored
            if not restored:  # once: a budget that is too small would evict the values again
                restored = True
                compute_missing()

        compute_missing()
        return Activations(
            cache=self.cache,
            keys=tuple(split_point.key(backbone, sample) for sample in samples),
            shape=split_point.shape(backbone),
            restore=restore,
        )

    def runner(
        self, backbone: FrozenBackbone, split_point: SplitPoint
    ) -> Callable[[Sequence[Sample], View | None], NDArray[np.float32]]:
        """Build the function from images to activations at the split point, without a cache."""
        compiled = compile_engine(
            backbone.module,
            split_point.engine,
            device=device(self.device),
            stop=split_point.stop,
            taps=split_point.taps,
            cache=self.cache,
        )

        def run(samples: Sequence[Sample], view: View | None) -> NDArray[np.float32]:
            return compiled(
                replace(split_point, view=view).pixels(samples, backbone.spec.preprocess)
            )

        return run

    def _choose(self, backbone: FrozenBackbone, unique: list[Sample]) -> EngineChoice:
        if self.engine != "auto" or not unique:
            return EngineChoice(engine=self.engine)
        # One choice for all calls: training images alone may be too few, together they are not.
        if backbone.identity not in self._choices:
            self._choices[backbone.identity] = choose_engine(
                backbone, len(unique), device=device(self.device), cache=self.cache
            )
        return self._choices[backbone.identity]

    def _read_cached(
        self, backbone: FrozenBackbone, split_point: SplitPoint, unique: list[Sample]
    ) -> dict[int, NDArray[np.float32]]:
        keys = [split_point.key(backbone, sample) for sample in unique]
        cached = self.cache.get_many(keys)
        return {
            i: np.frombuffer(cached[entry_key], dtype=np.float32)
            for i, entry_key in enumerate(keys)
            if entry_key in cached
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
        compiled = compile_engine(
            backbone.module,
            split_point.engine,
            device=device(self.device),
            stop=split_point.stop,
            taps=split_point.taps,
            ends=split_point.ends,
            cache=self.cache,
        )
        weights_before = compiled.fingerprint()
        size = compiled.batch
        batches = [missing[at : at + size] for at in range(0, len(missing), size)]
        uncommitted: dict[bytes, bytes] = {}
        n_done = 0
        run_batch = partial(_load_and_run, compiled, backbone.spec.preprocess, split_point, unique)
        if is_on():
            outputs = _map_shards(_Shared(backbone, split_point, self.device), unique, batches)
        else:
            outputs = self._map_batches(run_batch, batches)
        try:
            for batch, rows in zip(batches, outputs, strict=True):
                for i, row in zip(batch, rows, strict=True):
                    entries = split_point.cache_entries(backbone, unique[i], row)
                    uncommitted.update({k: value.tobytes() for k, value in entries.items()})
                    yield i, row
                n_done += len(batch)
                if len(uncommitted) >= min(COMMIT_EVERY, COMMIT_BYTES // rows[0].nbytes):
                    self._commit(compiled, weights_before, uncommitted)
                if self.progress is not None:
                    self.progress(split_point.stop or "features", n_done, len(missing))
        finally:  # after an unreadable image, or Ctrl-C, everything before it is stored
            self._commit(compiled, weights_before, uncommitted)

    def _map_batches(
        self, run_batch: Callable[[list[int]], NDArray[np.float32]], batches: list[list[int]]
    ) -> Iterator[NDArray[np.float32]]:
        workers = self.workers or cores()
        with ThreadPoolExecutor(workers, initializer=use_one_thread) as executor:
            yield from map_bounded(run_batch, batches, executor, 4 * workers)

    def _commit(
        self, compiled: CompiledEngine, weights_before: str, entries: dict[bytes, bytes]
    ) -> None:
        """Store entries in the cache, if the weights that computed them have not changed."""
        if entries:
            compiled.require_unchanged(weights_before)
            self.cache.put_many(entries, kind="features")
            entries.clear()


@dataclass(frozen=True, eq=False)
class _Shared:
    """What a worker of a cluster needs to compute the values of any image."""

    backbone: FrozenBackbone
    split_point: SplitPoint
    device: str


def _map_shards(
    shared: _Shared, unique: list[Sample], batches: list[list[int]]
) -> Iterator[NDArray[np.float32]]:
    """Compute the batches in the workers of a cluster, some in a task, in their order."""
    shards = (
        [[unique[i] for i in batch] for batch in batches[at : at + SHARD_BATCHES]]
        for at in range(0, len(batches), SHARD_BATCHES)
    )
    for outputs in map_tasks(_run_shard, _prepare_worker, shared, shards):
        yield from outputs


def _prepare_worker(shared: _Shared) -> Callable[[list[Sample]], NDArray[np.float32]]:
    """Compile the engine in a worker; with one thread, as each thread of one process has."""
    use_one_thread()
    split_point = shared.split_point
    compiled = compile_engine(
        shared.backbone.module,
        split_point.engine,
        device=device(shared.device),
        stop=split_point.stop,
        taps=split_point.taps,
        ends=split_point.ends,
        cache=Cache(),
    )
    preprocess = shared.backbone.spec.preprocess
    return lambda batch: compiled(split_point.pixels(batch, preprocess))


def _run_shard(
    compute: Callable[[list[Sample]], NDArray[np.float32]], batches: list[list[Sample]]
) -> list[NDArray[np.float32]]:
    return [compute(batch) for batch in batches]


def _load_and_run(
    compiled: CompiledEngine,
    preprocess: Preprocess,
    split_point: SplitPoint,
    unique: list[Sample],
    batch: list[int],
) -> NDArray[np.float32]:
    return compiled(split_point.pixels([unique[i] for i in batch], preprocess))


def _distinct_rows(digests: list[str]) -> tuple[list[int], list[int]]:
    """Rows of the first image of each content, and for every image its index among these."""
    positions: dict[str, int] = {}
    rows: list[int] = []
    for row, digest in enumerate(digests):
        if digest not in positions:
            positions[digest] = len(rows)
            rows.append(row)
    return rows, [positions[digest] for digest in digests]


def _stack_rows(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)
