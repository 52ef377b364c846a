"""Backbones on this machine, and the two of them that race (``--backbones auto``)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from headstart.backbones.catalog import names, resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.rungs import stage_flops
from headstart.backbones.spec import BackboneSpec
from headstart.backbones.weights import is_on_disk, locate
from headstart.cache import Cache
from headstart.data.dataset import Dataset
from headstart.distributed.processes import world_size
from headstart.errors import SetupError
from headstart.selection.ranking import RankedBackbone
from headstart.selection.scores import PROBE
from headstart.workflows.backbone_names import DEFAULT_BACKBONE
from headstart.workflows.events import Noted, Observer
from headstart.workflows.rank import MAX_IMAGES, rank_located
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import LocatedBackbone

__all__ = ["backbones_on_disk", "read_backbones"]

N_RACED = 2
"""Number of backbones that race."""

RANKING_SHARE = 0.25
"""Share of the budget for the comparison of all backbones."""


def backbones_on_disk() -> tuple[BackboneSpec, ...]:
    """List the backbones of the catalogue whose weights are on this machine, the smallest first.

    Examples
    --------
    >>> "embedded/efficientnet_lite0" in [spec.name for spec in backbones_on_disk()]
    True
    """
    here = [spec for spec in map(resolve, names()) if is_on_disk(spec)]
    return tuple(sorted(here, key=lambda spec: spec.megabytes))


def read_backbones(
    located: Sequence[LocatedBackbone],
    recipe: Recipe,
    train: Dataset,
    cache: Cache,
    notify: Observer,
    *,
    resumes: bool = False,
) -> tuple[list[FrozenBackbone], tuple[str, ...]]:
    """Read the weights of the backbones of a run; with ``auto`` choose these backbones first.

    Parameters
    ----------
    located : sequence of LocatedBackbone
        Of the recipe's names; ignored with ``auto``.
    recipe : Recipe
    train : Dataset
        Training images, for the ranking.
    cache : Cache
    notify : callable
    resumes : bool
        Whether an earlier run has chosen among them: with ``auto`` all are read, none is scored.

    Returns
    -------
    list of FrozenBackbone
        With ``auto`` the best two, the best one first.
    tuple of str
        What ``auto`` has considered, and why these two race.
    """
    if not recipe.is_auto:
        return [backbone.read() for backbone in located], ()
    if resumes:
        return [FrozenBackbone.open(spec.name, offline=True) for spec in backbones_on_disk()], ()
    if recipe.race_seconds <= 0 or world_size() > 1:
        reason = "several processes run" if world_size() > 1 else "the time budget is 0 s"
        sentence = f"--backbones auto: {DEFAULT_BACKBONE} alone is used, because {reason}."
        return [FrozenBackbone.open(DEFAULT_BACKBONE, offline=True)], (sentence,)
    reader = _Reader(RANKING_SHARE * recipe.race_seconds)
    ranking = rank_located(reader.backbones(train, notify), train, recipe, cache, notify)
    raced = [row.backbone for row in ranking[:N_RACED]]
    for sentence in (sentences := _sentences(ranking, reader, min(len(train), MAX_IMAGES))):
        notify(Noted(text=sentence))
    return [FrozenBackbone.open(name, offline=True) for name in raced], sentences


class _Reader:
    """Reads one backbone after the other while the time lasts, the smallest first."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started_at = seconds, time.perf_counter()
        self.skipped: list[str] = []
        self.unreadable: list[str] = []

    def backbones(self, train: Dataset, notify: Observer) -> Iterator[FrozenBackbone]:
        """Read the backbones; one whose time would not fit is skipped, the first is not."""
        flops = seconds = 0.0
        for spec in backbones_on_disk():
            try:
                backbone = FrozenBackbone.read(spec, locate(spec, offline=True))
            except SetupError:  # a damaged file of a backbone that nobody has named
                self.unreadable.append(spec.name)
                continue
            needed = float(sum(stage_flops(backbone.module)))
            elapsed = time.perf_counter() - self.started_at
            if flops and elapsed + seconds * needed / flops > self.seconds:
                self.skipped.append(spec.name)
                continue
            started_at = time.perf_counter()
            yield backbone  # is scored before the next one is requested
            seconds, flops = time.perf_counter() - started_at, needed


def _sentences(
    ranking: Sequence[RankedBackbone], reader: _Reader, n_images: int
) -> tuple[str, ...]:
    """Describe which backbones were considered, and why two of them race."""
    scores = ", ".join(f"{row.label} {row.scores[PROBE].interval}" for row in ranking)
    raced = " and ".join(row.label for row in ranking[:N_RACED])
    n_here = len(ranking) + len(reader.skipped) + len(reader.unreadable)
    best = "the best score" if len(ranking) == 1 else "the best two scores"
    first = (
        f"--backbones auto: {n_here} backbone{'s' * (n_here != 1)} of the catalogue on this "
        f"machine. Scored by a linear probe on about {n_images} training images: {scores}. In the "
        f"race, with {best}: {raced}. Nothing was downloaded."
    )
    sentences = [first]
    if reader.skipped:
        sentences.append(
            f"--backbones auto: not scored, to use at most a quarter of the budget: "
            f"{', '.join(reader.skipped)}. Pass a longer --budget, or name them with --backbones."
        )
    if reader.unreadable:
        sentences.append(
            f"--backbones auto: the weights of {', '.join(reader.unreadable)} are damaged. Delete "
            "the files, or download them again with --backbone."
        )
    return tuple(sentences)
