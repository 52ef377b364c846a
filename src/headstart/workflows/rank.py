"""Which backbone would serve these images best, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.weights import locate
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Kind
from headstart.data.images import shown_size
from headstart.data.loader import load_batch
from headstart.data.splits import kfold, nested_fractions
from headstart.data.transforms.preprocess import canvas_for
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.features.engines import CPU_BATCH, compile_engine
from headstart.features.extractor import Extractor
from headstart.features.extractor import Features as Pooled
from headstart.features.regions import Regions, region_features
from headstart.models.build import LONG_SIDE
from headstart.runtime import device
from headstart.selection.ranking import Ranked, Ranking, ordered, sentences
from headstart.selection.scores import DEFAULTS, MEASURES, PROBE, Features, scored
from headstart.training.logistic_regression import Problem, search_penalty
from headstart.workflows.events import DataReady, Noted, Observer, progress_of
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import checked, read, settled

__all__ = ["MOST", "rank"]

MOST = 500
"""Training images that are looked at, where nothing else is said."""

FOLDS = 5
BLOCKS = 10
TIMED = 3

MOST_REGIONS = 1000
"""Objects or regions that are scored: more say little more, as those of an image are alike."""

Rows = NDArray[np.intp]
Floats = NDArray[np.float64]


def rank(
    source: str | Path | Dataset,
    backbones: Sequence[str],
    *,
    recipe: Recipe | None = None,
    measures: Sequence[str] = DEFAULTS,
    most: int = MOST,
    cache: Cache | None = None,
    observer: Observer | None = None,
) -> Ranking:
    """Score backbones on training images, and put them in order.

    The images are those that ``fit`` would learn from: the held-out ones are never looked at,
    and remain good for judging what is trained afterwards. For boxes and masks what is scored are
    the objects, or the regions of each class, by the mean of the last maps under them.

    Parameters
    ----------
    source : str, Path or Dataset
        As for `headstart.run.fit`.
    backbones : sequence of str
        Names of the backbone grammar.
    recipe : Recipe, optional
        Split, engine, device and seed; its backbone and method have no say.
    measures : sequence of str
        Some of ``scorecard.MEASURES``; the order is by the first.
    most : int
        Training images to look at, spread over the classes in whole groups; 0 for all.
    cache : Cache, optional
    observer : callable, optional

    Returns
    -------
    Ranking

    Raises
    ------
    UnknownNameError
        If there is no such backbone or measure.
    UsageError
        If none or one is named twice, or the first measure is defined for none of them.
    DataError
        If the images cannot be used, or show one class only.
    WeightsNotFoundError
        If weights are missing; said before anything is computed.

    Examples
    --------
    >>> found = rank("photos/", ["resnet18", "resnet50"])  # doctest: +SKIP
    >>> found.rows[0].backbone  # doctest: +SKIP
    'torchvision/resnet50'
    """
    begin, cache, recipe = time.perf_counter(), cache or Cache(), recipe or Recipe()
    tell: Observer = observer or (lambda _: None)
    _require_names(backbones, measures, most)
    found = [resolve(name, offline=recipe.offline) for name in backbones]
    data = read(source, recipe)  # a mistyped path is said before weights are fetched
    weights = [locate(spec, offline=recipe.offline) for spec in found]
    recipe = settled(recipe, data)
    prepared = checked(data, recipe, cache, progress_of(tell))
    _require_meant(prepared.train, recipe)
    tell(DataReady(prepared=prepared, seconds=time.perf_counter() - begin))
    look = _Look(_few(prepared.train, most, recipe.seed), recipe, cache, tell, tuple(measures))
    seen = []
    for spec, file in zip(found, weights, strict=True):
        seen.append(look.at(FrozenBackbone.read(spec, file)))
        tell(Noted(text=_line(seen[-1], measures[0], look)))
    rows = ordered(seen, measures[0], look.known)
    groups = look.known.groups
    return Ranking(
        name=prepared.data.name,
        task=recipe.task,
        measure=measures[0],
        images=len(look.data),
        available=len(prepared.train),
        regions=len(look.known.targets) if data.is_dense else None,
        groups=None if groups is None else len(np.unique(groups)),
        rows=rows,
        sentences=(*sentences(rows, measures), *look.without_looking(measures[0])),
        seconds=time.perf_counter() - begin,
    )


class _Look:
    """What all backbones share: images, blocks, measures, and how features are made."""

    def __init__(
        self,
        data: Dataset,
        recipe: Recipe,
        cache: Cache,
        tell: Observer,
        measures: tuple[str, ...],
    ) -> None:
        self.data, self.recipe, self.measures = data, recipe, measures
        self.extractor = Extractor(
            cache=cache,
            engine="fp32" if data.is_dense else recipe.engine,
            device=recipe.device,
            progress=progress_of(tell),
        )
        self.folds: list[tuple[Rows, Rows]] = []
        self.blocks: list[Rows] = []
        self.why = ""
        if data.is_dense:
            sizes = [shown_size(sample.image) for sample in data.samples]
            self.canvas = canvas_for(sizes, recipe.size or LONG_SIDE)
        else:
            self._settle(data.targets(), data.groups())

    def _settle(self, targets: Rows, groups: Rows | None) -> None:
        """Fix what is scored, the same for all backbones."""
        kind: Kind = "multiclass" if self.data.is_dense else self.data.kind
        blank = np.zeros((len(targets), 0))
        self.known = Features(values=blank, targets=targets, kind=kind, groups=groups)
        try:
            self.folds, blocks = self._folds(FOLDS), self._folds(BLOCKS)
            self.blocks = [held for _, held in blocks]
        except DataError as error:  # a class in one group only: no fold, and no block
            self.folds, self.why = [], str(error)

    def _folds(self, count: int) -> list[tuple[Rows, Rows]]:
        known, seed = self.known, self.recipe.seed
        return kfold(known.targets, count, blocks=known.groups, seed=seed)

    def at(self, backbone: FrozenBackbone) -> Ranked:
        """Score one backbone."""
        if self.data.is_dense:
            backbone = backbone.on_canvas(self.canvas)
            given, costs = self._regions(backbone)
        else:
            given, costs = self._whole(backbone)
        if PROBE in self.measures and self.folds:
            given = replace(given, answers=self._answers(given.values))
        milliseconds = 1000 * _seconds(backbone, self.data, costs["engine"], self.extractor)
        return Ranked(
            backbone=backbone.spec.name,
            scores=scored(given, self.measures, self.blocks),
            milliseconds=milliseconds,
            megabytes=backbone.parameters * 4 / 1e6,
            width=given.values.shape[1],
            **costs,
        )

    def without_looking(self, measure: str) -> tuple[str, ...]:
        """What the commonest class reaches, where right answers are counted."""
        if self.known.kind == "multilabel" or measure not in {PROBE, "knn"}:
            return ()
        counts = np.bincount(self.known.targets)
        share, name = counts.max() / counts.sum(), self.data.classes[int(counts.argmax())]
        return (f"Saying {name!r} every time would reach {share:.3f}: that takes no backbone.",)

    def _whole(self, backbone: FrozenBackbone) -> tuple[Features, dict[str, Any]]:
        """Features of whole images, and what they cost."""
        seen = self.extractor.features(backbone, self.data.samples)
        chances, none = _source_chances(backbone, seen.values)
        given = replace(
            self.known,
            values=seen.values.astype(np.float64),
            chances=chances,
            missing={PROBE: self.why, "source": none},
        )
        return given, {"engine": seen.engine.engine, **_pass(seen)}

    def _regions(self, backbone: FrozenBackbone) -> tuple[Features, dict[str, Any]]:
        """Features of objects or regions, and what they cost."""
        seen = region_features(self.extractor, backbone, self.data)
        groups = self.data.groups()
        of = seen.images if groups is None else groups[seen.images]
        rows = _few_regions(seen, of, self.data, self.recipe.seed)
        if not hasattr(self, "known"):  # boxes and masks are read with the first maps
            self._settle(seen.targets[rows], of[rows])
        none = "The source's classes are of whole images"
        given = replace(
            self.known,
            values=seen.values[rows].astype(np.float64),
            missing={PROBE: self.why, "source": none},
        )
        return given, {"engine": self.extractor.engine, **_pass(seen)}

    def _answers(self, values: Floats) -> Floats:
        """Logits of a probe's answers out of fold.

        Classes are not weighted: the answers are judged by how many are right.
        """
        kind, targets = self.known.kind, self.known.targets
        problem = Problem.of(targets, n_classes=len(self.data.classes), kind=kind)
        found = search_penalty(values.astype(np.float32), problem, self.folds)
        return np.asarray(found.held_out, dtype=np.float64)


def _pass(seen: Pooled | Regions) -> dict[str, Any]:
    return {"seconds": seen.seconds, "computed": seen.computed, "reused": seen.reused}


def _require_names(backbones: Sequence[str], measures: Sequence[str], most: int) -> None:
    for what, names in (("backbone", backbones), ("measure", measures)):
        if not names or len(set(names)) < len(names):
            raise UsageError(
                f"Expected a {what} or more, each once, got {', '.join(names) or 'none'}; do name "
                "them with commas between."
            )
    for name in measures:
        if name not in MEASURES:
            raise UnknownNameError("measure", name, list(MEASURES))
    if most < 0 or 0 < most < 10:
        raise UsageError(f"Expected --max-images of 10 or more, or 0 for all, got {most}.")


def _require_meant(train: Dataset, recipe: Recipe) -> None:
    if train.is_dense and recipe.engine not in {"auto", "fp32"}:
        raise UsageError(
            f"Expected --engine fp32 for {train.kind}, got {recipe.engine}; do leave it out."
        )
    if recipe.size and not train.is_dense:
        raise UsageError(
            "Expected a size for boxes or masks only, got one for classes; do name the "
            "backbone's crop instead, such as ?crop=288."
        )
    if sum(count > 0 for count in train.counts().values()) < 2:
        raise DataError(
            f"Expected two classes or more to learn from in {train.name!r}, got "
            f"{', '.join(train.classes) or 'none'}; do add a class, or compare backbones by "
            "training: headstart compare --backbones."
        )


def _few(train: Dataset, most: int, seed: int) -> Dataset:
    """At most about so many images, in whole groups, the classes' shares kept."""
    if not 0 < most < len(train):
        return train
    share = most / len(train)
    rows = nested_fractions(train.targets(), (share,), blocks=train.groups(), seed=seed)
    return train.subset(rows[share])


def _few_regions(seen: Regions, groups: Rows, data: Dataset, seed: int) -> Rows:
    """At most about so many regions, of whole images, the classes' shares kept."""
    count = len(seen.targets)
    if len(np.unique(seen.targets)) < 2:
        raise DataError(
            f"Expected objects or regions of two classes or more in {data.name!r}, got one; do "
            "raise --max-images, or compare backbones by training: headstart compare."
        )
    if count <= MOST_REGIONS:
        return np.arange(count)
    share = MOST_REGIONS / count
    return nested_fractions(seen.targets, (share,), blocks=groups, seed=seed)[share]


def _source_chances(
    backbone: FrozenBackbone, values: NDArray[np.float32]
) -> tuple[NDArray[np.float64] | None, str]:
    """Probabilities of the classes that the backbone was trained on, or why there are none."""
    found, why = backbone.classifier()
    if found is None:
        return None, why
    weight, bias = found
    logits = values.astype(np.float64) @ weight.T + bias
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    return chances / chances.sum(axis=1, keepdims=True), ""


def _seconds(backbone: FrozenBackbone, data: Dataset, engine: str, extractor: Extractor) -> float:
    """Seconds of an image through the network, decoded before, on one core or the GPU."""
    import torch

    pixels = load_batch(data.samples[:CPU_BATCH], backbone.spec.preprocess)
    target = device(extractor.device)
    # The core's own seconds: by the clock, what else the machine does would be counted.
    clock = time.process_time if target == "cpu" else time.perf_counter
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a pass, where every core has its own images
    found = []
    try:
        run = compile_engine(backbone.module, engine, device=target)
        for _ in range(TIMED + 1):  # the first run warms up
            begin = clock()
            run(pixels)
            found.append(clock() - begin)
    finally:
        torch.set_num_threads(before)
    return min(found[1:]) / run.batch


def _line(row: Ranked, measure: str, look: _Look) -> str:
    number = row.scores[measure].interval or row.scores[measure].missing
    kept = "features kept" if not row.computed else f"{row.seconds:.1f} s"
    return f"{row.label}: {number}, {len(look.data)} images, {kept}"
