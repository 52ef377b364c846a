"""Where the curves of a comparison lie on a figure: pure functions, no markup, no drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.evaluation.comparison import Comparison, Curve, Effect, Point
from headstart.reports.page import page_template

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "DPI",
    "SHAPES",
    "Line",
    "Mark",
    "Plot",
    "Rule",
    "draw",
    "placed",
    "render_page",
]

COLOURS = (
    *("#0d648c", "#c2500a", "#1b7f5c", "#8a4f9e"),
    *("#a07000", "#b8487f", "#3b6fd0", "#5f6b76"),
)
"""Of the curves, in order; told apart with every kind of colour vision, and dark on paper."""

SHAPES = ("circle", "square", "diamond")
"""Of the points, in order, full first and then hollow: a print without colours tells them too."""

MARGIN = 0.07
"""Share of the width left free on both sides of an axis of numbers of images."""

APART = 0.012
"""Share of the width between two curves at one number of images: intervals shall not hide."""

TICKS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of a curve: ``x`` and the others from 0 to 1, to the right and upwards.

    ``low`` and ``high`` are the interval's ends, None where there is none; ``every`` are the
    single trainings.
    """

    point: Point
    effect: Effect | None
    x: float
    y: float
    low: float | None
    high: float | None
    every: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve: its name, which colour and shape it has, and its points."""

    name: str
    number: int
    marks: tuple[Mark, ...]

    @property
    def colour(self) -> str:
        """Its colour on paper."""
        return COLOURS[self.number % len(COLOURS)]

    @property
    def shape(self) -> str:
        """The shape of its points."""
        return SHAPES[self.number % len(SHAPES)]

    @property
    def is_hollow(self) -> bool:
        """Whether its points are hollow."""
        return bool(self.number // len(SHAPES) % 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A simple rule's score, as a level."""

    name: str
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Curves on axes.

    Parameters
    ----------
    lines : tuple of Line
    rules : tuple of Rule
        Those that lie on the axis.
    x_ticks : tuple of (place, text)
        Numbers of images on a logarithmic axis; names of curves where there is one number only.
    y_ticks : tuple of (place, text)
    is_curve : bool
        Whether there are several numbers of images.
    x_title : str
    """

    lines: tuple[Line, ...]
    rules: tuple[Rule, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    is_curve: bool
    x_title: str


def placed(found: Comparison) -> Plot:
    """Place all curves of a comparison.

    Examples
    --------
    >>> from headstart.metrics.confidence_intervals import Interval
    >>> def at(images, value):
    ...     score = Interval(value=value, low=value - 0.1, high=value + 0.1, method="t")
    ...     return Point(fraction=images / 40, images=images, score=score, seconds=1.0)
    >>> curve = Curve(name="probe", backbone="b", method="probe", points=(at(10, 0.5), at(40, 0.8)))
    >>> plot = placed(
    ...     Comparison(
    ...         name="a", task="classification", measure="accuracy", cells=(), curves=(curve,),
    ...         effects=(), sentences=(), test="", split="", budget="", seconds=1.0,
    ...     )
    ... )
    >>> [text for _, text in plot.x_ticks], [round(mark.x, 2) for mark in plot.lines[0].marks]
    (['10', '40'], [0.07, 0.93])
    >>> [text for _, text in plot.y_ticks]
    ['0.4', '0.5', '0.6', '0.7', '0.8', '0.9']
    """
    sizes = _sizes(found.curves)
    marks = _levels(found.curves)
    bottom, top = marks[0], marks[-1]

    def up(value: float) -> float:
        return min(max((value - bottom) / (top - bottom), 0.0), 1.0)

    judged = {(effect.name, effect.fraction): effect for effect in found.effects}
    lines = []
    for number, curve in enumerate(found.curves):
        across = _across(sizes, number, len(found.curves))
        points = [at for at in curve.points if math.isfinite(at.score.value)]
        lines.append(
            Line(
                name=curve.name,
                number=number,
                marks=tuple(
                    Mark(
                        point=at,
                        effect=judged.get((curve.name, at.fraction)),
                        x=across[at.fraction],
                        y=up(at.score.value),
                        low=up(at.score.low) if math.isfinite(at.score.low) else None,
                        high=up(at.score.high) if math.isfinite(at.score.high) else None,
                        every=tuple(up(one) for one in at.scores if math.isfinite(one)),
                    )
                    for at in points
                ),
            )
        )
    several = len(sizes) > 1
    places = _across(sizes, 0, 1)
    names = [(_slot(i, len(found.curves)), curve.name) for i, curve in enumerate(found.curves)]
    numbers = [(places[share], f"{count:,}") for share, count in sizes.items()]
    digits = max(1, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))
    return Plot(
        lines=tuple(lines),
        rules=tuple(
            Rule(name=name, y=up(value))
            for name, value in _rules(found.curves).items()
            if bottom < value < top
        ),
        x_ticks=tuple(numbers if several else names),
        y_ticks=tuple((up(level), f"{level:.{digits}f}") for level in marks),
        is_curve=several,
        x_title="images to learn from" if several else _single(sizes),
    )


def _sizes(shown: Sequence[Curve]) -> dict[float, int]:
    """Numbers of images by fraction, few first."""
    found = {at.fraction: at.images for curve in shown for at in curve.points}
    return dict(sorted(found.items()))


def _single(sizes: dict[float, int]) -> str:
    return " ".join(f"learned from {count:,} images" for count in sizes.values())


def _across(sizes: dict[float, int], number: int, count: int) -> dict[float, float]:
    """Where each fraction lies for one curve; at one fraction every curve has its own place."""
    if len(sizes) < 2:
        return {share: _slot(number, count) for share in sizes}
    logs = {share: math.log(max(size, 1)) for share, size in sizes.items()}
    first, last = min(logs.values()), max(logs.values())
    aside = (number - (count - 1) / 2) * min(APART, 1.2 * MARGIN / max(count, 1))
    width = (last - first) or 1.0
    return {
        share: MARGIN + (1 - 2 * MARGIN) * (log - first) / width + aside
        for share, log in logs.items()
    }


def _slot(number: int, count: int) -> float:
    return (number + 0.5) / max(count, 1)


def _levels(shown: Sequence[Curve]) -> list[float]:
    """Round levels that hold all intervals and single trainings, inside 0 to 1."""
    ends = [
        end
        for curve in shown
        for at in curve.points
        for end in (at.score.value, at.score.low, at.score.high, *at.scores)
        if math.isfinite(end)
    ] or [0.0, 1.0]
    low, high = max(min(ends), 0.0), min(max(ends), 1.0)
    steps = (0.01, 0.02, 0.05, 0.1, 0.2)
    step = next((s for s in steps if (high - low) / s <= TICKS - 1), steps[-1])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def _rules(shown: Sequence[Curve]) -> dict[str, float]:
    """Simple rules with all images; the same for all curves."""
    return dict(shown[0].points[-1].rules) if shown and shown[0].points else {}


DPI = 300
SIZE = 5.5, 3.6
"""Inches: as wide as the text of a page with one column."""

INK, SOFT, FAINT = "#1b2026", "#59636e", "#dde2e7"
LETTERS = 84
"""That a line of the legend holds."""

MARKERS = {"circle": "o", "square": "s", "diamond": "D"}


def draw(found: Comparison, path: Path) -> None:
    """Draw the curves with their intervals into a PNG of 1650 x 1080 pixels, 300 to the inch.

    Examples
    --------
    >>> draw(found, Path("compare.png"))  # doctest: +SKIP
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = placed(found)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # what the user has set for figures of their own is not meant here
        figure = Figure(figsize=SIZE, layout="constrained")
        canvas = FigureCanvasAgg(figure)  # never a window
        axes = figure.subplots()
        for line in plot.lines:
            _line(axes, line, is_joined=plot.is_curve)
        _axes(axes, plot, found.measure)
        if plot.is_curve:
            _legend(figure, plot)
        canvas.print_figure(path, dpi=DPI, format="png", facecolor="white")


def _line(axes: Axes, line: Line, *, is_joined: bool) -> None:
    marks = line.marks
    below = [0.0 if at.low is None else at.y - at.low for at in marks]
    above = [0.0 if at.high is None else at.high - at.y for at in marks]
    axes.errorbar(
        [at.x for at in marks],
        [at.y for at in marks],
        yerr=(below, above),
        color=line.colour,
        marker=MARKERS[line.shape],
        markerfacecolor="white" if line.is_hollow else line.colour,
        markersize=5,
        linewidth=1.4 if is_joined else 0,
        elinewidth=1.1,
        capsize=2.5,
        label=_plain(line.name),
    )


def _legend(figure: Figure, plot: Plot) -> None:
    """Name the curves above the axes, where no interval can cross the names."""
    longest = max(len(line.name) for line in plot.lines)
    columns = max(1, min(len(plot.lines), LETTERS // (longest + 6)))
    figure.legend(
        loc="outside upper left", ncols=columns, frameon=False, fontsize=8, labelcolor=INK
    )


def _axes(axes: Axes, plot: Plot, measure: str) -> None:
    for rule in plot.rules:
        axes.axhline(rule.y, color=SOFT, linewidth=0.8, linestyle=(0, (4, 4)), zorder=0)
        axes.text(0.995, rule.y, _plain(rule.name), ha="right", va="bottom", size=7, color=SOFT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xticks(
        [x for x, _ in plot.x_ticks], [_plain(text) for _, text in plot.x_ticks], size=8, color=INK
    )
    if not plot.is_curve and sum(len(text) for _, text in plot.x_ticks) > 60:
        axes.tick_params("x", rotation=20)
    axes.set_yticks(
        [y for y, _ in plot.y_ticks], [text for _, text in plot.y_ticks], size=8, color=INK
    )
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(plot.x_title, size=9, color=INK)
    axes.set_ylabel(measure, size=9, color=INK)


def _plain(text: str) -> str:
    """Keep a dollar from beginning a formula."""
    return text.replace("$", r"\$")


SENTENCES = 5
"""Said at once; more are folded away."""


def render_page(found: Comparison) -> str:
    """Render the page: HTML that runs no script and refers to nothing outside itself.

    Points show their values when they are pointed at, tapped or reached by the keyboard; curves
    are hidden and single trainings shown by boxes to tick. All of it is style.

    Examples
    --------
    >>> from pathlib import Path
    >>> Path("compare.html").write_text(render_page(found))  # doctest: +SKIP
    """
    judged = {(effect.name, effect.fraction): effect for effect in found.effects}
    rules = list(dict.fromkeys(name for cell in found.cells for name in cell.rules))
    rows = [
        {"curve": curve.name, "at": at, "effect": judged.get((curve.name, at.fraction))}
        for curve in found.curves
        for at in curve.points
    ]
    return page_template("compare.html.j2").render(
        found=found,
        plot=placed(found),
        rows=rows,
        rules=rules,
        lede=found.sentences[:1],
        said=found.sentences[1:SENTENCES],
        folded=found.sentences[SENTENCES:],
    )
