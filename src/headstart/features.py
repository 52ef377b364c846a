"""Features, once: the frozen trunk runs one time per picture, and what it gives is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.catalog import resolve
from headstart.backbones.spec import BackboneSpec
from headstart.backbones.weights import WeightsFile, locate, read_state
from headstart.cache import Cache, key
from headstart.data.loading import digest_of, load_batch, map_bounded
from headstart.data.samples import Sample
from headstart.data.transforms import Preprocess
from headstart.engines import (
    ENGINES,
    PROBE_PICTURES,
    Choice,
    Running,
    candidates,
    choose,
    compile_engine,
    recall,
)
from headstart.errors import UnknownNameError
from headstart.freezing import constant, fingerprint
from headstart.runtime import cores, device

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.backbones.backbone import Backbone

__all__ = ["Extractor", "Features", "Trunk"]

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, how many pictures are done, and how many there are."""

COMMIT_EVERY = 1024
"""Pictures between two commits to the cache: what a kill can cost. Each commit is preceded by a
hash over the weights, so that no feature of a backbone that has moved is ever kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trunk:
    """A frozen backbone: what it is, its parameters, and, once needed, the module.

    A run whose features are all kept never builds the network: the identity follows from the
    parameters alone.

    Parameters
    ----------
    spec : BackboneSpec
    state : mapping of str to torch.Tensor
        Parameters and running statistics, by their names in the backbone.
    origin : mapping of str to str
        Where the weights came from and the file's SHA-256, for the record.
    """

    spec: BackboneSpec
    state: Mapping[str, Tensor]
    origin: Mapping[str, str]

    @classmethod
    def open(cls, name: str, *, offline: bool | None = None) -> Trunk:
        """Find and read the weights of a backbone by name; nothing is built yet.

        Raises
        ------
        UnknownNameError
            If there is no such backbone.
        WeightsNotFoundError
            If its weights are nowhere to be had.
        WeightsMismatchError
            If they are damaged or of another network.
        """
        spec = resolve(name, offline=offline)
        return cls.read(spec, locate(spec, offline=offline))

    @classmethod
    def read(cls, spec: BackboneSpec, weights: WeightsFile) -> Trunk:
        """Read weights that have been located, so that a run can fail early without them."""
        origin = {"sha256": weights.sha256, "from": weights.origin, "file": weights.path.name}
        return cls(spec=spec, state=read_state(weights, spec), origin=origin)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all parameters and running statistics."""
        return fingerprint(self.state)

    @cached_property
    def identity(self) -> bytes:
        """Everything that the pooled features depend on, engine and pictures aside."""
        return key(
            "pooled",
            self.spec.architecture,
            repr(sorted(self.spec.model_options)),
            self.fingerprint,
            self.spec.preprocess.fingerprint(),
        )

    @cached_property
    def backbone(self) -> Backbone:
        """The module, constant; built at the first use."""
        from headstart.backbones.backbone import assemble

        return constant(assemble(self.spec, self.state))

    @property
    def parameters(self) -> int:
        """Number of values in the weights' file, the original classifier included."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def width(self) -> int:
        """Number of pooled features."""
        return self.spec.width or self.backbone.width


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Pooled features of some pictures, and what they cost.

    Parameters
    ----------
    values : array, float32, shape (n, width)
    engine : Choice
    computed, reused : int
        Different pictures that the trunk ran on, and that came from the cache.
    seconds : float
        Of the extraction, without the choice of the engine.
    """

    values: NDArray[np.float32]
    engine: Choice
    computed: int
    reused: int
    seconds: float


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

    def features(self, trunk: Trunk, samples: Sequence[Sample]) -> Features:
        """Pooled features of the pictures, each different picture computed at most once, ever.

        Raises
        ------
        UnreadableImageError
            If a picture cannot be decoded. What was computed before it is kept.
        HeadstartError
            If the frozen trunk is not what it was before.
        """
        rows, distinct = _distinct([digest_of(sample) for sample in samples])
        unique = [samples[row] for row in rows]
        choice = self._choose(trunk, unique)
        begin = time.perf_counter()
        found = self._reusable(trunk, choice.engine, unique)
        missing = [i for i in range(len(unique)) if i not in found]
        reused = len(found)
        found.update(self._compute(trunk, choice.engine, unique, missing))
        values = _stack([found[i] for i in range(len(unique))])[distinct]
        return Features(
            values=values,
            engine=choice,
            computed=len(missing),
            reused=reused,
            seconds=time.perf_counter() - begin,
        )

    def outlook(self, trunk: Trunk, samples: Sequence[Sample]) -> tuple[Choice, int]:
        """Return the engine that would run, and how many pictures it would run on."""
        rows, _ = _distinct([digest_of(sample) for sample in samples])
        unique = [samples[row] for row in rows]
        choice = self._choose(trunk, unique)
        wanted = [_key(trunk, choice.engine, sample) for sample in unique]
        return choice, len(self.cache.missing(wanted))

    def _choose(self, trunk: Trunk, unique: list[Sample]) -> Choice:
        if self.engine != "auto" or not unique:
            return Choice(engine=self.engine)
        target = device(self.device)
        engines = candidates(target, len(unique))
        remembered = recall(trunk.spec.name, device=target, cache=self.cache, engines=engines)
        if remembered is not None:
            return remembered
        pixels = load_batch(unique[:PROBE_PICTURES], trunk.spec.preprocess)
        return choose(trunk.backbone, pixels, device=target, cache=self.cache, engines=engines)

    def _reusable(
        self, trunk: Trunk, engine: str, unique: list[Sample]
    ) -> dict[int, NDArray[np.float32]]:
        keys = [_key(trunk, engine, sample) for sample in unique]
        found = self.cache.get_many(keys)
        return {
            i: np.frombuffer(found[wanted], dtype=np.float32)
            for i, wanted in enumerate(keys)
            if wanted in found
        }

    def _compute(
        self, trunk: Trunk, engine: str, unique: list[Sample], missing: list[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        if not missing:
            return
        running = compile_engine(trunk.backbone, engine, device=device(self.device))
        before = running.fingerprint()
        size = running.batch
        batches = [missing[at : at + size] for at in range(0, len(missing), size)]
        unsaved: dict[bytes, bytes] = {}
        done = 0
        try:
            for batch, rows in zip(
                batches, self._run(trunk, running, unique, batches), strict=True
            ):
                for i, row in zip(batch, rows, strict=True):
                    unsaved[_key(trunk, engine, unique[i])] = row.tobytes()
                    yield i, row
                done += len(batch)
                if len(unsaved) >= COMMIT_EVERY:
                    self._keep(running, before, unsaved)
                if self.progress is not None:
                    self.progress("features", done, len(missing))
        finally:  # a picture that cannot be read, or Ctrl-C, costs only itself
            self._keep(running, before, unsaved)

    def _run(
        self, trunk: Trunk, running: Running, unique: list[Sample], batches: list[list[int]]
    ) -> Iterator[NDArray[np.float32]]:
        workers = self.workers or cores()
        task = partial(_load_and_run, running, trunk.spec.preprocess, unique)
        with ThreadPoolExecutor(workers, initializer=_one_thread_each) as executor:
            yield from map_bounded(task, batches, executor, 4 * workers)

    def _keep(self, running: Running, before: str, unsaved: dict[bytes, bytes]) -> None:
        """Commit what was computed, if what computed it is still what it was."""
        if unsaved:
            running.require_constant(before)
            self.cache.put_many(unsaved, kind="features")
            unsaved.clear()


def _load_and_run(
    running: Running, preprocess: Preprocess, unique: list[Sample], batch: list[int]
) -> NDArray[np.float32]:
    return running(load_batch([unique[i] for i in batch], preprocess))


def _one_thread_each() -> None:
    """Let a worker compute on its own core only: no core waits for another inside a layer."""
    import torch

    torch.set_num_threads(1)


def _key(trunk: Trunk, engine: str, sample: Sample) -> bytes:
    return key("features", trunk.identity, engine, digest_of(sample))


def _distinct(digests: list[str]) -> tuple[list[int], list[int]]:
    """Rows of the first picture of each content, and for every row the place of its content."""
    place: dict[str, int] = {}
    rows: list[int] = []
    for row, content in enumerate(digests):
        if content not in place:
            place[content] = len(rows)
            rows.append(row)
    return rows, [place[content] for content in digests]


def _stack(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)
