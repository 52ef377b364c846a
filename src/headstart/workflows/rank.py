"""Ranking of backbones by how well their features separate the classes, without training one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone, name_of, to_backbone
from headstart.cache import Cache, open_cache
from headstart.data.dataset import Dataset, Kind
from headstart.data.image_sizes import upright_size
from headstart.data.loader import load_batch
from headstart.data.splits import kfold, nested_fractions
from headstart.data.transforms.placement import canvas_for
from headstart.distributed.ray import cluster
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.features.engines import CPU_BATCH, compile_engine
from headstart.features.extractor import Extractor
from headstart.features.extractor import Features as PooledFeatures
from headstart.features.regions import Regions, region_features
from headstart.models.build import LONG_SIDE
from headstart.runtime import device
from headstart.selection.ranking import RankedBackbone, Ranking, rank_backbones, summarise_ranking
from headstart.selection.scores import DEFAULTS, PROBE, SCORES, Features, score_features
from headstart.training.interruption import StopRequest
from headstart.training.penalty_search import Problem, search_penalty
from headstart.workflows.backbone_names import parse_names
from headstart.workflows.events import DataReady, Noted, Observer, progress_of, shown
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import (
    check_data,
    locate_backbones,
    read_source,
    require_engine,
    resolve_recipe,
)
from headstart.workflows.verb_settings import ranking_recipe, split_names

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MAX_IMAGES", "rank", "rank_located"]

STOPPING = "Stopping. Features in the cache are kept."

MAX_IMAGES = 500
"""Default number of training images."""

MIN_IMAGES = 10
"""Smallest number of training images that may be requested."""

MAX_REGIONS = 1000
"""Objects or regions that are scored: more add little, because those of one image are alike."""

FOLDS = 5
"""Folds of the cross-validated linear probe."""

BLOCKS = 10
"""Blocks of images that the jackknife leaves out in turn."""

TIMED_RUNS = 3
"""Timed forward passes of a batch; the fastest counts."""

Rows = NDArray[np.intp]
Floats = NDArray[np.float64]


def rank(  # noqa: PLR0913 - one argument a flag
    source: object,
    backbones: str | Sequence[str | nn.Module | FrozenBackbone],
    *,
    recipe: Recipe | None = None,
    measure: str | Sequence[str] = DEFAULTS,
    max_images: int = MAX_IMAGES,
    cache: Cache | bool | None = None,
    observer: Observer | None = None,
    progress: bool | None = None,
    no_cache: bool = False,
    on: str = "",
    **settings: Any,
) -> Ranking:
    """Score backbones on training images, and order them by score.

    Every flag of ``headstart rank`` is a keyword of the same name, with underscores for dashes.
    The split is that of ``fit``. Test images are never used, so they can still evaluate a model
    that is trained afterwards. For boxes and masks the scored units are the objects, or the
    regions of each class; their features are the mean of the last maps inside them.

    Parameters
    ----------
    source : str, Path, Dataset or object
        As for `headstart.fit`.
    backbones : str, or sequence of str or torch.nn.Module
        Names of the backbone grammar, or networks of your own; or names with commas.
    recipe : Recipe, optional
        Split, engine, device and seed; its backbone and method are ignored.
    measure : str or sequence of str
        Some of ``selection.scores.SCORES``, or their names with commas; the first decides the
        order.
    max_images : int
        Approximate number of training images to use: whole groups, with the same shares of the
        classes; 0 for all.
    cache : Cache or bool, optional
        Cache of features; by default the user's cache. False is the same as ``no_cache``.
    observer : callable, optional
    progress : bool, optional
        Show progress; None does so in a terminal and in a notebook only.
    no_cache : bool
        Use an empty cache, which is deleted at the end.
    on : str
        ``ray`` or ``ray:ADDRESS``: compute features on a Ray cluster.
    **settings
        Instead of a recipe: ``group_by``, ``masks``, ``engine``, ``seed`` and the other flags.

    Returns
    -------
    Ranking

    Raises
    ------
    UnknownNameError
        If there is no such backbone or measure.
    UsageError
        If there are no names or a name occurs twice, or no backbone has a score by the first
        measure.
    DataError
        If the images cannot be used, or have one class only.
    WeightsNotFoundError
        If weights are missing; raised before anything is computed.

    Examples
    --------
    >>> ranking = rank("photos/", ["resnet18", "resnet50"])  # doctest: +SKIP
    >>> ranking.rows[0].backbone  # doctest: +SKIP
    'torchvision/resnet50'
    """
    recipe, measures = ranking_recipe(recipe, settings), split_names(measure, "measure")
    names = parse_names(backbones) if isinstance(backbones, str) else backbones
    with (
        open_cache(cache, no_cache=no_cache) as store,
        shown(progress, observer) as notify,
        cluster(on, progress_of(notify)),
    ):
        return _rank(source, names, recipe, measures or DEFAULTS, max_images, store, notify)


def _rank(
    source: object,
    backbones: Sequence[str | nn.Module | FrozenBackbone],
    recipe: Recipe,
    measures: Sequence[str],
    max_images: int,
    cache: Cache,
    notify: Observer,
) -> Ranking:
    """Score the backbones, and order them."""
    started_at = time.perf_counter()
    known: list[str | FrozenBackbone] = [to_backbone(backbone) for backbone in backbones]
    _require_names([name_of(backbone) for backbone in known], measures, max_images)
    for name in known:  # fail early on a wrong name or path, before weights are downloaded
        if isinstance(name, str):
            resolve(name, offline=recipe.offline)
    data = read_source(source, recipe)
    located = [
        locate_backbones(replace(recipe, backbone=backbone, rivals=()))[0] for backbone in known
    ]
    recipe = resolve_recipe(recipe, data)
    prepared = check_data(data, recipe, cache, progress_of(notify))
    _require_rankable(prepared.train, recipe)
    notify(DataReady(prepared=prepared, seconds=time.perf_counter() - started_at))
    images = _limit_images(prepared.train, max_images, recipe.seed)
    scorer = _Scorer(images, recipe, cache, notify, tuple(measures))
    with StopRequest(notify, always_ends=STOPPING):
        rows = scorer.rank(place.read() for place in located)
    groups = scorer.shared.groups
    return Ranking(
        name=prepared.data.name,
        task=recipe.task,
        measure=measures[0],
        images=len(images),
        available=len(prepared.train),
        regions=len(scorer.shared.targets) if data.is_dense else None,
        groups=None if groups is None else len(np.unique(groups)),
        rows=rows,
        sentences=(*summarise_ranking(rows, measures), *scorer.most_frequent_class(measures[0])),
        seconds=time.perf_counter() - started_at,
    )


def rank_located(
    backbones: Iterable[FrozenBackbone],
    train: Dataset,
    recipe: Recipe,
    cache: Cache,
    notify: Observer,
) -> tuple[RankedBackbone, ...]:
    """Order backbones by a linear probe on some training images, the best first.

    Parameters
    ----------
    backbones : iterable of FrozenBackbone
        The next one is requested when the one before is scored.
    train : Dataset
        Images with classes.
    recipe : Recipe
        Engine, device and seed.
    cache : Cache
    notify : callable
    """
    images = _limit_images(train, MAX_IMAGES, recipe.seed)
    return _Scorer(images, recipe, cache, notify, (PROBE,)).rank(backbones)


class _Scorer:
    """Scores backbones on the same images, folds and blocks.

    Parameters
    ----------
    data : Dataset
        Training images to use.
    recipe : Recipe
    cache : Cache
    notify : callable
    measures : tuple of str
    """

    shared: Features
    """Targets and groups of all backbones, without values. For boxes and masks they are known
    after the first backbone has run."""

    def __init__(
        self,
        data: Dataset,
        recipe: Recipe,
        cache: Cache,
        notify: Observer,
        measures: tuple[str, ...],
    ) -> None:
        self.data, self.recipe, self.measures = data, recipe, measures
        self.notify = notify
        self.extractor = Extractor(
            cache=cache,
            engine="fp32" if data.is_dense else recipe.engine,
            device=recipe.device,
            progress=progress_of(notify),
        )
        self.folds: list[tuple[Rows, Rows]] = []
        self.blocks: list[Rows] = []
        self.missing_folds = ""
        if data.is_dense:
            sizes = [upright_size(sample.image) for sample in data.samples]
            self.canvas = canvas_for(sizes, recipe.size or LONG_SIDE)
        else:
            self._fix_targets(data.targets(), data.groups())

    def _fix_targets(self, targets: Rows, groups: Rows | None) -> None:
        """Fix the scored images or regions, their folds and blocks, for all backbones."""
        kind: Kind = "multiclass" if self.data.is_dense else self.data.kind
        no_values = np.zeros((len(targets), 0))
        self.shared = Features(values=no_values, targets=targets, kind=kind, groups=groups)
        try:
            self.folds, blocks = self._kfold(FOLDS), self._kfold(BLOCKS)
            self.blocks = [held_out for _, held_out in blocks]
        except DataError as error:  # all images of a class are in one group: no folds, no blocks
            self.folds, self.missing_folds = [], str(error)

    def _kfold(self, n_folds: int) -> list[tuple[Rows, Rows]]:
        shared = self.shared
        return kfold(shared.targets, n_folds, blocks=shared.groups, seed=self.recipe.seed)

    def rank(self, backbones: Iterable[FrozenBackbone]) -> tuple[RankedBackbone, ...]:
        """Score the backbones one after the other, and order them by the first measure."""
        scored = []
        for backbone in backbones:
            if backbone.note:
                self.notify(Noted(text=backbone.note))
            scored.append(self.score(backbone))
            line = _format_scored(scored[-1], self.measures[0], len(self.data))
            self.notify(Noted(text=line))
        return rank_backbones(scored, self.measures[0], self.shared)

    def score(self, backbone: FrozenBackbone) -> RankedBackbone:
        """Score one backbone, and measure its costs."""
        if self.data.is_dense:
            backbone = backbone.on_canvas(self.canvas)
            features, costs = self._region_features(backbone)
        else:
            features, costs = self._image_features(backbone)
        if PROBE in self.measures and self.folds:
            features = replace(features, probe_logits=self._probe_logits(features.values))
        seconds = _seconds_per_image(backbone, self.data, costs["engine"], self.extractor)
        return RankedBackbone(
            backbone=backbone.spec.name,
            scores=score_features(features, self.measures, self.blocks),
            milliseconds=1000 * seconds,
            megabytes=backbone.parameters * 4 / 1e6,
            width=features.values.shape[1],
            **costs,
        )

    def most_frequent_class(self, measure: str) -> tuple[str, ...]:
        """Report the score of always predicting the most frequent class, as a reference.

        Empty for measures that do not count correct predictions.
        """
        if self.shared.kind == "multilabel" or measure not in {PROBE, "knn"}:
            return ()
        counts = np.bincount(self.shared.targets)
        share, name = counts.max() / counts.sum(), self.data.classes[int(counts.argmax())]
        return (f"Always predicting {name!r}, the most frequent class, would reach {share:.3f}.",)

    def _image_features(self, backbone: FrozenBackbone) -> tuple[Features, dict[str, Any]]:
        """Compute features of whole images, with their costs."""
        pooled = self.extractor.features(backbone, self.data.samples)
        probabilities, missing = _source_probabilities(backbone, pooled.values)
        features = replace(
            self.shared,
            values=pooled.values.astype(np.float64),
            source_probabilities=probabilities,
            missing={PROBE: self.missing_folds, "source": missing},
        )
        return features, _costs(pooled, pooled.engine.engine)

    def _region_features(self, backbone: FrozenBackbone) -> tuple[Features, dict[str, Any]]:
        """Compute features of objects or regions, with their costs."""
        regions = region_features(self.extractor, backbone, self.data)
        image_groups = self.data.groups()
        groups = regions.images if image_groups is None else image_groups[regions.images]
        rows = _limit_regions(regions, groups, self.data, self.recipe.seed)
        if not hasattr(self, "shared"):  # boxes and masks are read together with the first maps
            self._fix_targets(regions.targets[rows], groups[rows])
        missing = "The source's classes are of whole images"
        features = replace(
            self.shared,
            values=regions.values[rows].astype(np.float64),
            missing={PROBE: self.missing_folds, "source": missing},
        )
        return features, _costs(regions, self.extractor.engine)

    def _probe_logits(self, values: Floats) -> Floats:
        """Compute held-out logits of a cross-validated linear probe.

        Classes are not weighted, because the score is the share of correct predictions.
        """
        kind, targets = self.shared.kind, self.shared.targets
        problem = Problem.of(targets, n_classes=len(self.data.classes), kind=kind)
        search = search_penalty(values.astype(np.float32), problem, self.folds)
        return np.asarray(search.held_out, dtype=np.float64)


def _costs(features: PooledFeatures | Regions, engine: str) -> dict[str, Any]:
    return {
        "engine": engine,
        "seconds": features.seconds,
        "computed": features.computed,
        "reused": features.reused,
    }


def _require_names(backbones: Sequence[str], measures: Sequence[str], max_images: int) -> None:
    for flag, names in (("--backbones", backbones), ("--measure", measures)):
        if not names or len(set(names)) < len(names):
            raise UsageError(
                f"{flag} must be one or more different names, got {', '.join(names) or 'none'}. "
                "Pass each name once, with commas between them."
            )
    for name in measures:
        if name not in SCORES:
            raise UnknownNameError("measure", name, list(SCORES))
    if max_images < 0 or 0 < max_images < MIN_IMAGES:
        raise UsageError(
            f"--max-images must be {MIN_IMAGES} or more, or 0 for all images, got {max_images}."
        )


def _require_rankable(train: Dataset, recipe: Recipe) -> None:
    """Refuse settings that do not fit the data, and data with one class."""
    require_engine(recipe, train)
    if recipe.size and not train.is_dense:
        raise UsageError(
            f"--size {recipe.size} is for boxes or masks only, but {train.name!r} has classes of "
            "images. Remove --size, or set the crop in a backbone's name, such as "
            "resnet18?crop=288."
        )
    names = [name for name, count in train.counts().items() if count > 0]
    if len(names) < 2:
        raise DataError(
            f"Ranking needs training images of at least two classes, but {train.name!r} has "
            f"{', '.join(names) or 'none'}. Add images of another class, or compare backbones by "
            "training: headstart compare --backbones."
        )


def _limit_images(train: Dataset, max_images: int, seed: int) -> Dataset:
    """Select about ``max_images`` images: whole groups, with the same shares of the classes."""
    if not 0 < max_images < len(train):
        return train
    share = max_images / len(train)
    rows = nested_fractions(train.targets(), (share,), blocks=train.groups(), seed=seed)
    return train.subset(rows[share])


def _limit_regions(regions: Regions, groups: Rows, data: Dataset, seed: int) -> Rows:
    """Select about `MAX_REGIONS` regions: whole images, with the same shares of the classes."""
    count, targets = len(regions.targets), np.unique(regions.targets)
    if len(targets) < 2:
        raise DataError(
            "Ranking needs objects or regions of at least two classes, but the "
            f"{len(data)} images used of {data.name!r} have only {data.classes[targets[0]]!r}. "
            "Pass a larger --max-images, or compare backbones by training: "
            "headstart compare --backbones."
        )
    if count <= MAX_REGIONS:
        return np.arange(count)
    share = MAX_REGIONS / count
    return nested_fractions(regions.targets, (share,), blocks=groups, seed=seed)[share]


def _source_probabilities(
    backbone: FrozenBackbone, values: NDArray[np.float32]
) -> tuple[Floats | None, str]:
    """Compute probabilities of the pretraining classes; None with the reason if that fails."""
    classifier, missing = backbone.classifier()
    if classifier is None:
        return None, missing
    weight, bias = classifier
    logits = values.astype(np.float64) @ weight.T + bias
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True), ""


def _seconds_per_image(
    backbone: FrozenBackbone, data: Dataset, engine: str, extractor: Extractor
) -> float:
    """Time the forward pass of a decoded image, on one core or the GPU."""
    import torch

    pixels = load_batch(data.samples[:CPU_BATCH], backbone.spec.preprocess)
    target = device(extractor.device)
    # CPU time of this process: other processes on the machine must not count.
    clock = time.process_time if target == "cpu" else time.perf_counter
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the extraction, where each core has its own images
    seconds = []
    try:
        compiled = compile_engine(backbone.module, engine, device=target, cache=extractor.cache)
        for _ in range(TIMED_RUNS + 1):  # the first run warms up
            started_at = clock()
            compiled(pixels)
            seconds.append(clock() - started_at)
    finally:
        torch.set_num_threads(n_threads)
    return min(seconds[1:]) / compiled.batch


def _format_scored(row: RankedBackbone, measure: str, n_images: int) -> str:
    score = row.scores[measure].interval or row.scores[measure].missing
    duration = f"{row.seconds:.1f} s" if row.computed else "features cached"
    return f"{row.label}: {score}, {n_images} images, {duration}"
