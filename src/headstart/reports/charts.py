"""Coordinates of charts and texts of numbers: pure functions without markup."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.data.splits import evenly_spaced
from headstart.metrics.classification import Reliability
from headstart.metrics.confidence_intervals import Interval, wilson_interval

__all__ = [
    "Bar",
    "Curve",
    "Pair",
    "ReliabilityPlot",
    "Tick",
    "axis_end",
    "confused_pairs",
    "curve",
    "epoch_curve",
    "interval_bar",
    "markdown",
    "percent",
    "reliability_plot",
    "row_shares",
    "unbroken",
]

SIDE = 300.0
"""Side of the reliability diagram's square in SVG units; axis labels and the strip are added."""

STRIP = 56.0
"""Height in SVG units of the histogram below the reliability diagram."""

CURVE_WIDTH, CURVE_HEIGHT = 300.0, 150.0
"""Size in SVG units of the area that curves are drawn in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A number and its interval, in percent of the axis; None where undefined.

    ``left`` and ``width`` are those of the interval, ``point`` is the position of the number.
    """

    point: float | None
    left: float | None
    width: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A tick of an axis: its position in SVG units, and its label."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Number of images of class ``truth`` predicted as ``prediction``, and their share of it."""

    truth: int
    prediction: int
    count: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One bin of the reliability diagram: its values and its coordinates.

    ``x`` and ``y`` are the coordinates of the point, ``low`` and ``high`` the y coordinates of the
    interval's ends, None if there is no interval; ``left`` and ``height`` are those of the bar in
    the histogram below.
    """

    confidence: float
    accuracy: float
    weight: float
    share: float
    x: float
    y: float
    low: float | None
    high: float | None
    left: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityPlot:
    """Bins that are not empty, the line through them, and the width of a bin."""

    bins: tuple[Bin, ...]
    line: str
    step: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line: its points, also as SVG text, the ticks, and the index of the chosen point or -1."""

    line: str
    points: tuple[tuple[float, float], ...]
    chosen: int
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def interval_bar(interval: Interval, top: float = 1.0) -> Bar:
    """Scale an interval to an axis from 0 to ``top``.

    Parameters
    ----------
    interval : Interval
    top : float
        End of the axis, above 0; larger values are clipped.

    Returns
    -------
    Bar

    Examples
    --------
    >>> interval_bar(Interval(value=0.5, low=0.25, high=0.75, method=""))
    Bar(point=50.0, left=25.0, width=50.0)
    >>> interval_bar(wilson_interval(0, 0))
    Bar(point=None, left=None, width=None)
    """
    point = _percent(interval.value, top)
    left, right = _percent(interval.low, top), _percent(interval.high, top)
    if left is None or right is None:
        return Bar(point=point, left=None, width=None)
    return Bar(point=point, left=left, width=round(right - left, 2))


def _percent(value: float, top: float) -> float | None:
    if math.isnan(value):
        return None
    return round(100 * min(max(value / top, 0.0), 1.0), 2)


def axis_end(interval: Interval) -> float:
    """End of an axis from 0 that contains the interval: 1, 2 or 5 times a power of ten.

    >>> axis_end(Interval(value=0.11, low=0.1, high=0.13, method=""))
    0.2
    >>> axis_end(wilson_interval(0, 0))
    1.0
    """
    largest = max((end for end in (interval.value, interval.high) if math.isfinite(end)), default=1)
    if largest <= 0:
        return 1.0
    exponent = math.floor(math.log10(largest))
    steps = (float(f"{lead}e{exponent}") for lead in (1, 2, 5))
    return next((step for step in steps if step >= largest), float(f"1e{exponent + 1}"))


def row_shares(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """Divide each row by its sum: shares from 0 to 1, NaN in rows without an image.

    >>> row_shares(np.array([[3, 1], [0, 0]]))
    array([[0.75, 0.25],
           [ nan,  nan]])
    """
    totals = confusion.sum(axis=1, keepdims=True).astype(np.float64)
    return np.asarray(confusion / np.where(totals == 0, np.nan, totals))


def confused_pairs(confusion: NDArray[np.integer], limit: int | None = None) -> list[Pair]:
    """List the off-diagonal cells of a confusion matrix, the most frequent first.

    Parameters
    ----------
    confusion : array of int, shape (n_classes, n_classes)
        Images by true class (rows) and predicted class (columns).
    limit : int, optional

    Examples
    --------
    >>> confused_pairs(np.array([[3, 1], [0, 2]]))
    [Pair(truth=0, prediction=1, count=1, share=0.25)]
    """
    wrong = confusion - np.diag(np.diag(confusion))
    rows, columns = np.nonzero(wrong)
    counts = wrong[rows, columns]
    totals = confusion.sum(axis=1)
    order = np.argsort(-counts, kind="stable")[:limit]
    return [
        Pair(
            truth=int(rows[i]),
            prediction=int(columns[i]),
            count=int(counts[i]),
            share=float(counts[i] / totals[rows[i]]),
        )
        for i in order
    ]


def reliability_plot(reliability: Reliability, *, independent: bool = True) -> ReliabilityPlot:
    """Scale the bins of a reliability diagram to a square of side ``SIDE``.

    Parameters
    ----------
    reliability : Reliability
        Arrays of shape (n_bins,).
    independent : bool
        Whether the images are independent; only then each bin has a 95 % interval.

    Returns
    -------
    ReliabilityPlot
        Without empty bins.

    Examples
    --------
    >>> reliability = Reliability(
    ...     confidence=np.array([np.nan, 0.8]),
    ...     accuracy=np.array([np.nan, 0.5]),
    ...     weight=np.array([0.0, 10.0]),
    ... )
    >>> [(bin.x, bin.y, bin.share) for bin in reliability_plot(reliability).bins]
    [(240.0, 150.0, 1.0)]
    """
    weights = np.asarray(reliability.weight, dtype=np.float64)
    n_bins, total, largest = len(weights), float(weights.sum()), float(weights.max(initial=0))
    bins = []
    for i in np.flatnonzero(weights > 0):
        confidence, accuracy = float(reliability.confidence[i]), float(reliability.accuracy[i])
        interval = wilson_interval(accuracy * weights[i], weights[i]) if independent else None
        bins.append(
            Bin(
                confidence=confidence,
                accuracy=accuracy,
                weight=float(weights[i]),
                share=float(weights[i]) / total,
                x=_scale(confidence),
                y=_scale(1 - accuracy),
                low=None if interval is None else _scale(1 - interval.low),
                high=None if interval is None else _scale(1 - interval.high),
                left=round(SIDE * float(i) / n_bins, 2),
                height=round(STRIP * float(weights[i]) / largest, 2),
            )
        )
    line = " ".join(f"{point.x:g},{point.y:g}" for point in bins)
    return ReliabilityPlot(bins=tuple(bins), line=line, step=round(SIDE / max(n_bins, 1), 2))


def _scale(share: float) -> float:
    return round(SIDE * share, 2)


def curve(points: Sequence[tuple[float, float]]) -> Curve:
    """Scale (x, y) points to a logarithmic x axis; the point with the lowest y is the chosen one.

    Parameters
    ----------
    points : sequence of (x, y)
        At least one; x above 0, y finite.

    Examples
    --------
    >>> scaled = curve([(0.1, 2.0), (0.01, 1.0)])
    >>> scaled.line, scaled.chosen, [tick.text for tick in scaled.x_ticks]
    ('300,0 0,150', 1, ['10⁻²', '10⁻¹'])
    """
    exponents = [math.log10(x) for x, _ in points]
    heights = [y for _, y in points]
    decades = range(math.ceil(min(exponents) - 1e-9), math.floor(max(exponents) + 1e-9) + 1)
    ticks = [(float(e), "10" + _superscript(e)) for e in decades]
    return _scale_curve(exponents, heights, heights.index(min(heights)), ticks)


def epoch_curve(
    points: Sequence[tuple[int, float | None]], best: int | None = None
) -> Curve | None:
    """Scale one number of every epoch; the epoch whose model was kept is the chosen one.

    Parameters
    ----------
    points : sequence of (epoch, number)
        Epochs whose number is None or not finite are skipped.
    best : int, optional
        The epoch whose model was kept.

    Returns
    -------
    Curve or None
        None if fewer than two epochs have a number.

    Examples
    --------
    >>> scaled = epoch_curve([(1, 0.5), (2, 0.75), (3, math.nan), (4, 0.6)], best=2)
    >>> scaled.line, scaled.chosen, [tick.text for tick in scaled.x_ticks]
    ('0,150 100,0 300,90', 1, ['1', '2', '4'])
    """
    measured = [(epoch, y) for epoch, y in points if y is not None and math.isfinite(y)]
    if len(measured) < 2:
        return None
    epochs = [epoch for epoch, _ in measured]
    chosen = epochs.index(best) if best in epochs else -1
    labelled = [epochs[i] for i in evenly_spaced(len(epochs) - 1, 5)] + epochs[-1:]
    ticks = [(float(epoch), str(epoch)) for epoch in labelled]
    return _scale_curve([float(epoch) for epoch in epochs], [y for _, y in measured], chosen, ticks)


def _scale_curve(
    xs: Sequence[float], ys: Sequence[float], chosen: int, ticks: Sequence[tuple[float, str]]
) -> Curve:
    """Scale points to ``CURVE_WIDTH`` and ``CURVE_HEIGHT``; y runs downwards, as in SVG."""
    first, last = min(xs), max(xs)
    low, high = min(ys), max(ys)

    def scale_x(x: float) -> float:
        share = (x - first) / (last - first) if last > first else 0.5
        return round(CURVE_WIDTH * share, 2)

    def scale_y(y: float) -> float:
        return round(CURVE_HEIGHT * ((high - y) / (high - low) if high > low else 0.5), 2)

    points = tuple((scale_x(x), scale_y(y)) for x, y in zip(xs, ys, strict=True))
    marks = [low, (low + high) / 2, high] if high > low else [low]
    return Curve(
        line=" ".join(f"{x:g},{y:g}" for x, y in points),
        points=points,
        chosen=chosen,
        x_ticks=tuple(Tick(at=scale_x(x), text=text) for x, text in ticks),
        y_ticks=tuple(Tick(at=scale_y(y), text=f"{y:.3g}") for y in marks),
    )


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def percent(share: float) -> str:
    r"""Format a share in percent; only exact 0 and 1 become 0 % and 100 %.

    >>> percent(0.5), percent(0.999), percent(0.001), percent(1.0), percent(math.nan)
    ('50\xa0%', '>99\xa0%', '<1\xa0%', '100\xa0%', '–')
    """
    if math.isnan(share):
        return "–"
    text = str(round(100 * share))
    if text == "100" and share < 1:
        text = ">99"
    if text == "0" and share > 0:
        text = "<1"
    return f"{text}\N{NO-BREAK SPACE}%"


def unbroken(sentence: str) -> str:
    r"""Replace spaces within intervals and before percent signs by no-break spaces.

    >>> unbroken("Accuracy 0.9 [0.8, 0.95] (95 % interval).")
    'Accuracy 0.9 [0.8,\xa00.95] (95\xa0% interval).'
    """
    return re.sub(
        r"\[[^\]]*\]|\d %", lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), sentence
    )


def markdown(text: object) -> str:
    r"""Escape a text for Markdown, tables and inline HTML included, and put it on one line.

    >>> print(markdown("a|b <i>"))
    a\|b \<i\>
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", " ".join(str(text).split()))
