"""Template values of the diagnostics and of the choice of the method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.data.draw import hex_colours
from headstart.data.prepare import PreparedData
from headstart.evaluation.embeddings import MapPoint, NearestImages, Outlier
from headstart.evaluation.insight import Diagnostics, LabelError
from headstart.evaluation.learning_curve import CurvePoint
from headstart.evaluation.slices import Slice
from headstart.metrics.confidence_intervals import Interval
from headstart.reports.charts import CURVE_HEIGHT, CURVE_WIDTH, Tick
from headstart.reports.page import LARGE, LIMITS, thumbnails

__all__ = ["Band", "band", "insight_extras", "insight_page"]

MAP_SIZE = 600.0, 400.0
"""Width and height of the map in SVG units."""

OUTLIER_SHARE = 0.99
"""An image is shown as out of distribution if it is farther away than this share of the training
images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A line with an interval at every point over a logarithmic axis, in SVG coordinates.

    ``points`` are (x, y, top, bottom); ``area`` is the outline of the intervals.
    """

    line: str
    area: str
    points: tuple[tuple[float, float, float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def insight_page(
    insight: Diagnostics | None, prepared: PreparedData, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Values of the page; a section without data is omitted.

    Parameters
    ----------
    insight : Diagnostics or None
    prepared : PreparedData
    record : mapping
        Of the model; its ``decision`` is shown if there is one.
    """
    decision = _decision_values(record.get("decision"))
    if insight is None:
        return {"insight": None, "decision": decision, "insight_sections": []}
    errors = insight.label_errors[: LIMITS["label_errors"]]
    outliers = _select_outliers(insight.outliers)
    neighbourhoods = insight.neighbourhoods[: LIMITS["neighbourhoods"]]
    uris = _thumbnails(neighbourhoods, prepared)
    large = _large_images([*errors, *outliers], prepared)
    values = {
        "diagnostics": insight,
        "curve": band(insight.curve) if len(insight.curve) > 1 else None,
        "slices": _order_slices(insight.slices),
        "n_significant": sum(slice_.significant for slice_ in insight.slices),
        "label_errors": [(error, large[error.row]) for error in errors],
        "outliers": [(outlier, large[outlier.row]) for outlier in outliers],
        "neighbours": [
            (
                image,
                uris[image.row],
                [(*neighbour, uris[neighbour[0]]) for neighbour in image.neighbours],
            )
            for image in neighbourhoods
        ],
        "map": _map_values(insight.places, prepared.data.classes),
        "map_size": MAP_SIZE,
    }
    return {"insight": values, "decision": decision, "insight_sections": _section_titles(values)}


def insight_extras(insight: Diagnostics | None) -> dict[str, Any]:
    """Values of report.json; the choice of the method is in the model's record already."""
    return {} if insight is None else {"insight": insight.as_dict()}


def _section_titles(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    titles = {
        "slices": "Subgroups",
        "curve": "Learning curve",
        "label_errors": "Likely label errors",
        "outliers": "Out-of-distribution images",
        "neighbours": "Nearest images",
        "map": "Map",
    }
    # These two sections exist even when they show no image: "none" is a result.
    diagnostics = values["diagnostics"]
    checked = {"label_errors": diagnostics.labels_looked_at, "outliers": diagnostics.outliers}
    return [(f"insight-{key}", titles[key]) for key in titles if values[key] or checked.get(key)]


def _thumbnails(
    neighbourhoods: Sequence[NearestImages], prepared: PreparedData
) -> dict[int, str | None]:
    """Thumbnails of test images and their neighbours by row, each created once."""
    rows: list[int] = []
    for image in neighbourhoods:
        rows += [image.row, *(row for row, *_ in image.neighbours)]
    distinct = list(dict.fromkeys(rows))
    uris = thumbnails(prepared.data.samples[row] for row in distinct)
    return dict(zip(distinct, uris, strict=True))


def _large_images(
    images: Iterable[LabelError | Outlier], prepared: PreparedData
) -> dict[int, str | None]:
    """Large images by row, each created once."""
    distinct = list(dict.fromkeys(image.row for image in images))
    uris = thumbnails((prepared.data.samples[row] for row in distinct), height=LARGE)
    return dict(zip(distinct, uris, strict=True))


def _select_outliers(outliers: Sequence[Outlier]) -> Sequence[Outlier]:
    """The most distant images; without a reference distance (NaN), all."""
    selected = [o for o in outliers if math.isnan(o.beyond) or o.beyond >= OUTLIER_SHARE]
    return selected[: LIMITS["outliers"]]


def _order_slices(slices: Sequence[Slice]) -> list[Slice]:
    """Significant slices first, then by score, the lowest first."""

    def sort_key(slice_: Slice) -> tuple[bool, float]:
        return not slice_.significant, slice_.score.value

    return sorted(slices, key=sort_key)[: LIMITS["slices"]]


def band(points: Sequence[CurvePoint]) -> Band:
    """Scale scores and their intervals over the number of images to the size of ``charts``' curves.

    Parameters
    ----------
    points : sequence of CurvePoint
        At least two, the fewest images first.

    Examples
    --------
    >>> def point(n, value):
    ...     score = Interval(value=value, low=value - 0.1, high=value + 0.1, method="")
    ...     return CurvePoint(images=n, score=score)
    >>> scaled = band([point(10, 0.5), point(100, 0.7)])
    >>> scaled.line, [tick.text for tick in scaled.y_ticks]
    ('0,112.5 300,37.5', ['40 %', '60 %', '80 %'])
    """
    logs = [math.log(point.images) for point in points]
    scores = [point.score for point in points]
    low, high = min(s.low for s in scores), max(s.high for s in scores)
    log_range, score_range = max(logs[-1] - logs[0], 1e-9), max(high - low, 1e-9)

    def scale_y(y: float) -> float:
        return round(CURVE_HEIGHT * (high - y) / score_range, 2)

    xs = [round(CURVE_WIDTH * (x - logs[0]) / log_range, 2) for x in logs]
    scaled = tuple(
        (x, scale_y(s.value), scale_y(s.high), scale_y(s.low))
        for x, s in zip(xs, scores, strict=True)
    )
    outline = [(x, top) for x, _, top, _ in scaled] + [(x, end) for x, _, _, end in scaled[::-1]]
    return Band(
        line=" ".join(f"{x:g},{y:g}" for x, y, _, _ in scaled),
        area=" ".join(f"{x:g},{y:g}" for x, y in outline),
        points=scaled,
        x_ticks=tuple(Tick(at=x, text=f"{p.images:,}") for x, p in zip(xs, points, strict=True)),
        y_ticks=tuple(
            Tick(at=scale_y(y), text=f"{100 * y:.0f} %") for y in (low, (low + high) / 2, high)
        ),
    )


def _map_values(places: Sequence[MapPoint], classes: Sequence[str]) -> dict[str, Any] | None:
    """Dots, training images below test images and mistakes on top, and the class names."""
    if not places:
        return None
    with_colour = classes[: LIMITS["map_classes"]]
    colours = dict(zip(with_colour, hex_colours(len(with_colour)), strict=True))
    margin = 12.0
    dots = [
        {
            "x": round(margin + place.x * (MAP_SIZE[0] - 2 * margin), 1),
            "y": round(margin + place.y * (MAP_SIZE[1] - 2 * margin), 1),
            "colour": colours.get(place.label),
            "right": place.right,
            "label": place.label,
            "image": place.image,
        }
        for place in places
    ]
    dots.sort(key=lambda dot: (dot["right"] is not None, dot["right"] is False))
    return {
        "dots": dots,
        "titles": _separate(_class_centres(dots, colours)),
        "legend": [item for item in colours.items() if any(d["label"] == item[0] for d in dots)],
        "others": any(dot["colour"] is None for dot in dots),
        "n_test": sum(place.right is not None for place in places),
        "n_wrong": sum(place.right is False for place in places),
    }


def _class_centres(dots: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """Position of each class name: the dot of the class nearest to the median of its dots."""
    titles = []
    for name in names:
        points = np.array([(dot["x"], dot["y"]) for dot in dots if dot["label"] == name])
        if len(points):
            distances = np.square(points - np.median(points, axis=0)).sum(axis=1)
            x, y = points[distances.argmin()]
            titles.append({"name": name, "x": float(x), "y": float(y)})
    return titles


def _separate(titles: list[dict[str, Any]], line_height: float = 15.0) -> list[dict[str, Any]]:
    """Move overlapping titles down, then all titles up if the last one passes the lower edge."""
    separated: list[dict[str, Any]] = []
    for title in sorted(titles, key=lambda title: float(title["y"])):
        y = float(title["y"])
        for other in sorted(separated, key=lambda title: float(title["y"])):
            width = 4.0 * (len(other["name"]) + len(title["name"]))  # estimate from the letters
            if abs(other["x"] - title["x"]) < width and abs(y - other["y"]) < line_height:
                y = other["y"] + line_height
        separated.append(title | {"y": y})
    excess = max([title["y"] for title in separated], default=0.0) - (MAP_SIZE[1] - 8)
    return [title | {"y": round(title["y"] - max(excess, 0.0), 1)} for title in separated]


def _decision_values(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Table of the candidates with scores and gains as intervals."""
    if not record:
        return None
    rows = [
        {**row, "score": _to_interval(row.get("score")), "gain": _to_interval(row.get("gain"))}
        for row in record["rows"][: LIMITS["candidates"]]
    ]
    return {**record, "rows": rows, "n_hidden": len(record["rows"]) - len(rows)}


def _to_interval(record: Mapping[str, Any] | None) -> Interval | None:
    if not record:
        return None
    ends = (record.get(name) for name in ("value", "low", "high"))
    value, low, high = (math.nan if end is None else float(end) for end in ends)
    return Interval(value=value, low=low, high=high, method=str(record.get("method", "")))
