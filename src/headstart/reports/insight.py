"""What a report says of an insight and of a decision: the values of their templates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.data.draw import hex_colours
from headstart.data.prepare import Prepared
from headstart.evaluation.embeddings import Neighbourhood, Outlier, Place
from headstart.evaluation.insight import Diagnostics
from headstart.evaluation.learning_curve import CurvePoint
from headstart.evaluation.slices import Slice
from headstart.metrics.confidence_intervals import Interval
from headstart.reports.charts import CURVE_HEIGHT, CURVE_WIDTH, Tick
from headstart.reports.page import LIMITS, thumbnails

__all__ = ["Band", "band", "insight_extras", "insight_page"]

MAP_SIZE = 600.0, 400.0
FOREIGN = 0.99
"""Images are shown as foreign that are farther off than so many of those learned from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A line over a logarithmic axis with an interval at every point, placed for drawing.

    ``points`` are (x, y, top, bottom); ``area`` is the outline of the intervals.
    """

    line: str
    area: str
    points: tuple[tuple[float, float, float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def insight_page(
    insight: Diagnostics | None, prepared: Prepared, record: Mapping[str, Any]
) -> dict[str, Any]:
    """What the page says of it; what was not looked into, or not decided, is left out.

    Parameters
    ----------
    insight : Insight or None
    prepared : Prepared
    record : mapping
        The model's; its ``decision`` is shown where there is one.
    """
    decision = _decision(record.get("decision"))
    if insight is None:
        return {"insight": None, "decision": decision, "insight_sections": []}
    errors = insight.label_errors[: LIMITS["label_errors"]]
    foreign = _foreign(insight.outliers)
    near = insight.neighbourhoods[: LIMITS["neighbourhoods"]]
    shown = _thumbnails([*errors, *foreign], near, prepared)
    found = {
        "all": insight,
        "curve": band(insight.curve) if len(insight.curve) > 1 else None,
        "slices": _slices(insight.slices),
        "different": sum(one.distinguishable for one in insight.slices),
        "label_errors": [(one, shown[one.row]) for one in errors],
        "outliers": [(one, shown[one.row]) for one in foreign],
        "neighbours": [
            (one, shown[one.row], [(*each, shown[each[0]]) for each in one.neighbours])
            for one in near
        ],
        "map": _map(insight.places, prepared.data.classes),
        "map_size": MAP_SIZE,
    }
    return {"insight": found, "decision": decision, "insight_sections": _sections(found)}


def insight_extras(insight: Diagnostics | None) -> dict[str, Any]:
    """What report.json has of it; a decision is in the model's record already."""
    return {} if insight is None else {"insight": insight.as_dict()}


def _sections(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    titles = {
        "slices": "Better or worse",
        "curve": "More images",
        "label_errors": "Doubtful labels",
        "outliers": "Foreign images",
        "neighbours": "Neighbours",
        "map": "Map",
    }
    # A section that says "none" is there too, if it was looked for.
    looked = {"label_errors": found["all"].labels_looked_at, "outliers": found["all"].outliers}
    return [(f"insight-{key}", titles[key]) for key in titles if found[key] or looked.get(key)]


def _thumbnails(
    singles: Iterable[Any], near: Sequence[Neighbourhood], prepared: Prepared
) -> dict[int, str | None]:
    """A small image for every row that is shown, each made once."""
    rows = [one.row for one in singles]
    for one in near:
        rows += [one.row, *(row for row, *_ in one.neighbours)]
    different = list(dict.fromkeys(rows))
    made = thumbnails(prepared.data.samples[row] for row in different)
    return dict(zip(different, made, strict=True))


def _foreign(outliers: Sequence[Outlier]) -> Sequence[Outlier]:
    """The farthest; where nothing is known of what is typical, some all the same."""
    beyond = [one for one in outliers if math.isnan(one.beyond) or one.beyond >= FOREIGN]
    return beyond[: LIMITS["outliers"]]


def _slices(slices: Sequence[Slice]) -> list[Slice]:
    """Those that differ first, then the lowest."""

    def order(one: Slice) -> tuple[bool, float]:
        return not one.distinguishable, one.score.value

    return sorted(slices, key=order)[: LIMITS["slices"]]


def band(points: Sequence[CurvePoint]) -> Band:
    """Place scores and their intervals over the number of images, in ``charts``' curve box.

    Parameters
    ----------
    points : sequence of CurvePoint
        At least two, the fewest images first.

    Examples
    --------
    >>> def point(n, value):
    ...     score = Interval(value=value, low=value - 0.1, high=value + 0.1, method="")
    ...     return CurvePoint(images=n, score=score)
    >>> placed = band([point(10, 0.5), point(100, 0.7)])
    >>> placed.line, [tick.text for tick in placed.y_ticks]
    ('0,112.5 300,37.5', ['40 %', '60 %', '80 %'])
    """
    across = [math.log(point.images) for point in points]
    scores = [point.score for point in points]
    low, high = min(s.low for s in scores), max(s.high for s in scores)
    wide, tall = max(across[-1] - across[0], 1e-9), max(high - low, 1e-9)

    def down(y: float) -> float:
        return round(CURVE_HEIGHT * (high - y) / tall, 2)

    xs = [round(CURVE_WIDTH * (x - across[0]) / wide, 2) for x in across]
    placed = tuple(
        (x, down(s.value), down(s.high), down(s.low)) for x, s in zip(xs, scores, strict=True)
    )
    outline = [(x, top) for x, _, top, _ in placed] + [(x, end) for x, _, _, end in placed[::-1]]
    return Band(
        line=" ".join(f"{x:g},{y:g}" for x, y, _, _ in placed),
        area=" ".join(f"{x:g},{y:g}" for x, y in outline),
        points=placed,
        x_ticks=tuple(Tick(at=x, text=f"{p.images:,}") for x, p in zip(xs, points, strict=True)),
        y_ticks=tuple(
            Tick(at=down(y), text=f"{100 * y:.0f} %") for y in (low, (low + high) / 2, high)
        ),
    )


def _map(places: Sequence[Place], classes: Sequence[str]) -> dict[str, Any] | None:
    """Dots in a box, those learned from below; the names of classes at their middle."""
    if not places:
        return None
    few = classes[: LIMITS["map_classes"]]
    coloured = dict(zip(few, hex_colours(len(few)), strict=True))
    margin = 12.0
    dots = [
        {
            "x": round(margin + one.x * (MAP_SIZE[0] - 2 * margin), 1),
            "y": round(margin + one.y * (MAP_SIZE[1] - 2 * margin), 1),
            "colour": coloured.get(one.label),
            "right": one.right,
            "label": one.label,
            "image": one.image,
        }
        for one in places
    ]
    dots.sort(key=lambda dot: (dot["right"] is not None, dot["right"] is False))
    return {
        "dots": dots,
        "names": _apart(_middles(dots, coloured)),
        "legend": [item for item in coloured.items() if any(d["label"] == item[0] for d in dots)],
        "others": any(dot["colour"] is None for dot in dots),
        "judged": sum(one.right is not None for one in places),
        "wrong": sum(one.right is False for one in places),
    }


def _middles(dots: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """Where each class is written: at the dot that is nearest to the median of its dots."""
    found = []
    for name in names:
        own = np.array([(dot["x"], dot["y"]) for dot in dots if dot["label"] == name])
        if len(own):
            off = np.square(own - np.median(own, axis=0)).sum(axis=1)
            x, y = own[off.argmin()]
            found.append({"name": name, "x": float(x), "y": float(y)})
    return found


def _apart(names: list[dict[str, Any]], line: float = 15.0) -> list[dict[str, Any]]:
    """Move names down that would lie on each other, and all up again if they pass the end."""
    found: list[dict[str, Any]] = []
    for one in sorted(names, key=lambda name: float(name["y"])):
        y = float(one["y"])
        for other in sorted(found, key=lambda name: float(name["y"])):
            near = abs(other["x"] - one["x"]) < 4.0 * (len(other["name"]) + len(one["name"]))
            if near and abs(y - other["y"]) < line:
                y = other["y"] + line
        found.append(one | {"y": y})
    over = max([one["y"] for one in found], default=0.0) - (MAP_SIZE[1] - 8)
    return [one | {"y": round(one["y"] - max(over, 0.0), 1)} for one in found]


def _decision(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The table of candidates, its numbers as intervals."""
    if not given:
        return None
    rows = [
        {**row, "score": _interval(row.get("score")), "gain": _interval(row.get("gain"))}
        for row in given["rows"][: LIMITS["candidates"]]
    ]
    return {**given, "rows": rows, "left_out": len(given["rows"]) - len(rows)}


def _interval(given: Mapping[str, Any] | None) -> Interval | None:
    if not given:
        return None
    ends = (given.get(name) for name in ("value", "low", "high"))
    value, low, high = (math.nan if end is None else float(end) for end in ends)
    return Interval(value=value, low=low, high=high, method=str(given.get("method", "")))
