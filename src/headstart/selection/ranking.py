"""Backbones in the order of what they scored: values, and what can be said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import Difference
from headstart.selection.scores import MEASURES, PROBE, Features, Score, ahead

__all__ = ["Ranked", "Ranking", "ordered", "sentences"]

_COSTS = ("milliseconds", "engine", "seconds", "computed", "reused", "megabytes", "width")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """One backbone: what it scores, how far behind the first it is, what it costs.

    Parameters
    ----------
    backbone : str
    scores : mapping of str to Score
        By measure.
    behind : Difference or None
        The first one's number less this one's, at the level that holds for all pairs; None for
        the first, and where this one has no number.
    milliseconds : float
        Of one core (or the GPU) for an image's way through the network, measured now, whatever
        was in the cache and whatever else the machine does; reading the image is not in it.
    engine : str
        The arithmetic that was timed.
    seconds : float
        That the pass over the images took; near 0 where its features were kept.
    computed, reused : int
        Different images that the network ran on, and that came from the cache.
    megabytes : float
        Of the backbone's values in float32.
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
        """The backbone's name without the folders of a file.

        >>> Ranked(
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
            name: {"value": None, "missing": one.missing}
            if one.interval is None
            else one.interval.as_dict()
            for name, one in self.scores.items()
        }
        behind = None
        if self.behind is not None:
            behind = {
                **self.behind.interval.as_dict(),
                "distinguishable": self.behind.distinguishable,
            }
        plain = {name: getattr(self, name) for name in _COSTS}
        return {"backbone": self.backbone, "scores": scores, "behind": behind, **plain}


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """Backbones in the order of a measure, the best first.

    Parameters
    ----------
    name, task : str
        Of the data.
    measure : str
        That the order is by.
    images, available : int
        Training images that were looked at, and that there are.
    groups : int or None
        Groups among what was scored.
    rows : tuple of Ranked
    sentences : tuple of str
        What can be said of them.
    seconds : float
        Of everything.
    regions : int or None
        Objects, or regions of a class, that were scored; None where whole images were.
    """

    name: str
    task: str
    measure: str
    images: int
    available: int
    groups: int | None
    rows: tuple[Ranked, ...]
    sentences: tuple[str, ...]
    seconds: float
    regions: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        given = {k: v for k, v in vars(self).items() if k not in {"rows", "sentences"}}
        return {
            **given,
            "rows": [row.as_dict() for row in self.rows],
            "sentences": list(self.sentences),
        }


def ordered(rows: Sequence[Ranked], measure: str, features: Features) -> tuple[Ranked, ...]:
    """Put the best first, with how far each is behind; those without a number last.

    Parameters
    ----------
    rows : sequence of Ranked
    measure : str
    features : Features
        Of any of them: groups are read.

    Raises
    ------
    UsageError
        If none has a number.
    """

    def value(row: Ranked) -> float:
        interval = row.scores[measure].interval
        return -math.inf if interval is None or math.isnan(interval.value) else interval.value

    first, *others = sorted(rows, key=value, reverse=True)
    if value(first) == -math.inf:
        raise UsageError(
            f"Expected a measure that is defined for these backbones and data, got {measure}: "
            f"{first.scores[measure].missing or 'no number'}; do name another one first, such as "
            f"{'knn' if measure == PROBE else PROBE}."
        )
    # All pairs are looked at: which one is first, the same images have said.
    pairs, one = max(len(rows) * len(others) // 2, 1), first.scores[measure]
    gaps = [
        None
        if value(row) == -math.inf
        else ahead(one, row.scores[measure], features, level=1 - 0.05 / pairs)
        for row in others
    ]
    behind = (replace(row, behind=gap) for row, gap in zip(others, gaps, strict=True))
    return (first, *behind)


def sentences(rows: Sequence[Ranked], measures: Sequence[str]) -> tuple[str, ...]:
    """Say in words what the order by the first measure means, and which measures dissent."""
    first, measure = rows[0], measures[0]
    number = first.scores[measure].interval
    told = [f"{first.label} comes first by {MEASURES[measure].title}: {number}."]
    alike = [row for row in rows[1:] if row.behind and not row.behind.distinguishable]
    known = [row for row in rows[1:] if row.behind]
    if alike:
        names = ", ".join(row.label for row in alike)
        told.append(f"Cannot be distinguished from it on these images: {names}.")
        quick = min((first, *alike), key=lambda row: row.milliseconds)
        if quick is not first:
            told.append(
                f"Of these {quick.label} is the quickest: {quick.milliseconds:.1f} ms an "
                f"image against {first.milliseconds:.1f} ms."
            )
    elif known:
        told.append("It is ahead of all others beyond what chance explains.")
    told.extend(_dissent(rows, measures))
    return tuple(told)


def _dissent(rows: Sequence[Ranked], measures: Sequence[str]) -> list[str]:
    """Name the measures that would put another backbone first."""
    others: dict[str, list[str]] = {}
    for measure in measures[1:]:
        have = [(one.value, row) for row in rows if (one := row.scores[measure].interval)]
        if len(have) == len(rows) > 1:
            best = max(have, key=lambda pair: pair[0])[1]
            if best is not rows[0]:
                others.setdefault(best.label, []).append(measure)
    return [f"{name} would come first by {', '.join(by)}." for name, by in others.items()]
