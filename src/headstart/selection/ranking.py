"""Ranking of backbones by their scores, with a summary in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import Difference
from headstart.selection.scores import PROBE, SCORES, Features, Score, compare_scores

__all__ = ["RankedBackbone", "Ranking", "rank_backbones", "summarise_ranking"]

_COST_FIELDS = ("milliseconds", "engine", "seconds", "computed", "reused", "megabytes", "width")


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedBackbone:
    """One backbone of a ranking: scores, distance to the first, and costs.

    Parameters
    ----------
    backbone : str
    scores : mapping of str to Score
        Scores by measure.
    behind : Difference or None
        Score of the first backbone minus this score, at a level corrected for all pairs. None for
        the first backbone, and if this one has no score.
    milliseconds : float
        Time of one core (or the GPU) for the forward pass of one image, without reading it. It is
        measured in every run, even if the features come from the cache.
    engine : str
        Engine that was timed.
    seconds : float
        Duration of the feature extraction; near 0 if the features come from the cache.
    computed, reused : int
        Distinct images that the network processed, and that came from the cache.
    megabytes : float
        Size of the weights in float32.
    width : int
        Number of features.
    """

    backbone: str
    scores: Mapping[str, Score]
    behind: Difference | None = None
    milliseconds: float
    engine: str
    seconds: float
    computed: int
    reused: int
    megabytes: float
    width: int

    @property
    def label(self) -> str:
        """Name of the backbone, without the folders of a file.

        >>> RankedBackbone(
        ...     backbone="file:a/b.pth@timm/x", scores={}, milliseconds=1, engine="fp32",
        ...     seconds=0, computed=0, reused=0, megabytes=1, width=1,
        ... ).label
        'b.pth@timm/x'
        """
        if not self.backbone.startswith("file:"):
            return self.backbone
        path, at, architecture = self.backbone.partition("@")
        return f"{PurePath(path.removeprefix('file:')).name}{at}{architecture}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        scores = {
            name: {"value": None, "missing": score.missing}
            if score.interval is None
            else score.interval.as_dict()
            for name, score in self.scores.items()
        }
        behind = None
        if self.behind is not None:
            behind = {
                **self.behind.interval.as_dict(),
                "significant": self.behind.significant,
            }
        plain = {name: getattr(self, name) for name in _COST_FIELDS}
        return {"backbone": self.backbone, "scores": scores, "behind": behind, **plain}


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """Backbones ordered by a measure, the best first.

    Parameters
    ----------
    name, task : str
        Name and task of the data.
    measure : str
        Measure of the order.
    images, available : int
        Training images used, and all training images.
    groups : int or None
        Groups of the scored rows.
    rows : tuple of RankedBackbone
    sentences : tuple of str
        Summary.
    seconds : float
        Total duration.
    regions : int or None
        Objects, or regions of one class, that were scored; None for image classification.
    """

    name: str
    task: str
    measure: str
    images: int
    available: int
    groups: int | None
    rows: tuple[RankedBackbone, ...]
    sentences: tuple[str, ...]
    seconds: float
    regions: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        fields = {
            name: value for name, value in vars(self).items() if name not in {"rows", "sentences"}
        }
        return {
            **fields,
            "rows": [row.as_dict() for row in self.rows],
            "sentences": list(self.sentences),
        }


def rank_backbones(
    rows: Sequence[RankedBackbone], measure: str, features: Features
) -> tuple[RankedBackbone, ...]:
    """Sort backbones by score and compare each with the first; those without a score come last.

    Parameters
    ----------
    rows : sequence of RankedBackbone
    measure : str
    features : Features
        Features of any of them; only the groups are used.

    Raises
    ------
    UsageError
        If no backbone has a score.
    """

    def value(row: RankedBackbone) -> float:
        interval = row.scores[measure].interval
        return -math.inf if interval is None or math.isnan(interval.value) else interval.value

    first, *rest = sorted(rows, key=value, reverse=True)
    if value(first) == -math.inf:
        raise UsageError(
            f"No backbone has a score by {measure}: "
            f"{first.scores[measure].missing or 'it is undefined for these data'}. Pass another "
            f"measure first, such as --measure {'knn' if measure == PROBE else PROBE}."
        )
    # Correct for all pairs, because the same images have selected the first backbone.
    pairs, best_score = max(len(rows) * len(rest) // 2, 1), first.scores[measure]
    leads = [
        None
        if value(row) == -math.inf
        else compare_scores(best_score, row.scores[measure], features, level=1 - 0.05 / pairs)
        for row in rest
    ]
    behind = (replace(row, behind=lead) for row, lead in zip(rest, leads, strict=True))
    return (first, *behind)


def summarise_ranking(rows: Sequence[RankedBackbone], measures: Sequence[str]) -> tuple[str, ...]:
    """Summarise a ranking: the best backbone, the ones close to it, and disagreeing measures."""
    first, measure = rows[0], measures[0]
    score = first.scores[measure].interval
    sentences = [f"{first.label} is best by {SCORES[measure].title}: {score}."]
    similar = [row for row in rows[1:] if row.behind and not row.behind.significant]
    compared = [row for row in rows[1:] if row.behind]
    if similar:
        names = ", ".join(row.label for row in similar)
        sentences.append(f"Not significantly different from it on these images: {names}.")
        fastest = min((first, *similar), key=lambda row: row.milliseconds)
        if fastest is not first:
            sentences.append(
                f"{fastest.label} is the fastest of them: {fastest.milliseconds:.1f} ms per "
                f"image, compared with {first.milliseconds:.1f} ms."
            )
    elif compared:
        sentences.append("It is significantly better than all others.")
    sentences.extend(_disagreeing_measures(rows, measures))
    return tuple(sentences)


def _disagreeing_measures(rows: Sequence[RankedBackbone], measures: Sequence[str]) -> list[str]:
    """Report the measures that would rank another backbone first."""
    names_by_first: dict[str, list[str]] = {}
    for measure in measures[1:]:
        scored = [
            (interval.value, row) for row in rows if (interval := row.scores[measure].interval)
        ]
        if len(scored) == len(rows) > 1:
            best = max(scored, key=lambda pair: pair[0])[1]
            if best is not rows[0]:
                names_by_first.setdefault(best.label, []).append(measure)
    return [
        f"{name} would be best by {', '.join(measure_names)}."
        for name, measure_names in names_by_first.items()
    ]
