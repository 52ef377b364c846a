"""Page and figure of a comparison: compare.html, compare.png, and the coordinates of both."""

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
    "BaselineLevel",
    "Line",
    "Mark",
    "Plot",
    "baseline_scores",
    "draw_comparison",
    "plot_comparison",
    "render_page",
]

COLOURS = (
    *("#0d648c", "#b34a09", "#1b7f5c", "#8a4f9e"),
    *("#8c6200", "#b8487f", "#3565c4", "#5f6b76"),
)
"""Colours of the curves, in order: different under colour blindness, and dark in print."""

SHAPES = ("circle", "square", "diamond")
"""Shapes of the points, in order, filled first and then hollow: different without colours, too."""

MARGIN = 0.07
"""Free share of the width on both sides of the axis of the number of images."""

OFFSET = 0.012
"""Share of the width between the points of two curves at the same number of images, so that their
intervals do not overlap."""

MAX_TICKS = 6
TEXT_COLOUR, MUTED_COLOUR, GRID_COLOUR = "#1b2026", "#59636e", "#dde2e7"

DPI = 300
FIGURE_SIZE = 5.5, 3.6
"""Width and height in inches: the text width of a one-column page."""
LEGEND_WIDTH = 84
"""Number of letters that fit into a line of the legend."""
MARKERS = {"circle": "o", "square": "s", "diamond": "D"}
SENTENCES = 5
"""Sentences that the page shows at once; the others are folded away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of a curve; coordinates are from 0 to 1, to the right and upwards.

    ``low`` and ``high`` are the ends of the interval or None; ``single_runs`` are the scores of the
    training runs.
    """

    point: Point
    effect: Effect | None
    x: float
    y: float
    low: float | None
    high: float | None
    single_runs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve: its name, its number, which decides colour and shape, and its points."""

    name: str
    number: int
    marks: tuple[Mark, ...]

    @property
    def colour(self) -> str:
        """Colour in print."""
        return COLOURS[self.number % len(COLOURS)]

    @property
    def shape(self) -> str:
        """Shape of the points."""
        return SHAPES[self.number % len(SHAPES)]

    @property
    def is_hollow(self) -> bool:
        """Whether the points are hollow."""
        return bool(self.number // len(SHAPES) % 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineLevel:
    """Score of a baseline, drawn as a horizontal line."""

    name: str
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Curves, axes and baselines of the figure.

    Parameters
    ----------
    lines : tuple of Line
    baselines : tuple of BaselineLevel
        Those within the range of the axis.
    x_ticks : tuple of (position, text)
        Numbers of images on a logarithmic axis; names of curves if there is one number only.
    y_ticks : tuple of (position, text)
    is_curve : bool
        Whether there is more than one number of images.
    x_title : str
    """

    lines: tuple[Line, ...]
    baselines: tuple[BaselineLevel, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    is_curve: bool
    x_title: str


def plot_comparison(comparison: Comparison) -> Plot:
    """Compute the coordinates of all curves of a comparison.

    Examples
    --------
    >>> from headstart.metrics.confidence_intervals import Interval
    >>> def at(images, value):
    ...     score = Interval(value=value, low=value - 0.1, high=value + 0.1, method="t")
    ...     return Point(fraction=images / 40, images=images, score=score, seconds=1.0)
    >>> curve = Curve(name="probe", backbone="b", method="probe", points=(at(10, 0.5), at(40, 0.8)))
    >>> plot = plot_comparison(
    ...     Comparison(
    ...         name="a", task="classification", measure="accuracy", results=(), curves=(curve,),
    ...         effects=(), sentences=(), test="", split="", budget="", seconds=1.0,
    ...     )
    ... )
    >>> [text for _, text in plot.x_ticks], [round(mark.x, 2) for mark in plot.lines[0].marks]
    (['10', '40'], [0.07, 0.93])
    >>> [text for _, text in plot.y_ticks]
    ['0.4', '0.5', '0.6', '0.7', '0.8', '0.9']
    """
    sizes = _sizes_by_fraction(comparison.curves)
    levels = _tick_levels(comparison.curves)
    bottom, top = levels[0], levels[-1]

    def scale_y(value: float) -> float:
        return min(max((value - bottom) / (top - bottom), 0.0), 1.0)

    effects = {(effect.name, effect.fraction): effect for effect in comparison.effects}
    lines = []
    for number, curve in enumerate(comparison.curves):
        x_by_fraction = _x_positions(sizes, number, len(comparison.curves))
        points = [point for point in curve.points if math.isfinite(point.score.value)]
        lines.append(
            Line(
                name=curve.name,
                number=number,
                marks=tuple(
                    Mark(
                        point=point,
                        effect=effects.get((curve.name, point.fraction)),
                        x=x_by_fraction[point.fraction],
                        y=scale_y(point.score.value),
                        low=scale_y(point.score.low) if math.isfinite(point.score.low) else None,
                        high=scale_y(point.score.high) if math.isfinite(point.score.high) else None,
                        single_runs=tuple(
                            scale_y(score) for score in point.scores if math.isfinite(score)
                        ),
                    )
                    for point in points
                ),
            )
        )
    is_curve = len(sizes) > 1
    positions = _x_positions(sizes, 0, 1)
    n_curves = len(comparison.curves)
    names = [(_slot(i, n_curves), curve.name) for i, curve in enumerate(comparison.curves)]
    numbers = [(positions[fraction], f"{count:,}") for fraction, count in sizes.items()]
    digits = max(1, -math.floor(math.log10(levels[1] - levels[0]) + 1e-9))
    return Plot(
        lines=tuple(lines),
        baselines=tuple(
            BaselineLevel(name=name, y=scale_y(value))
            for name, value in baseline_scores(comparison.curves).items()
            if bottom < value < top
        ),
        x_ticks=tuple(numbers if is_curve else names),
        y_ticks=tuple((scale_y(level), f"{level:.{digits}f}") for level in levels),
        is_curve=is_curve,
        x_title="training images" if is_curve else _single_size_title(sizes),
    )


def _sizes_by_fraction(curves: Sequence[Curve]) -> dict[float, int]:
    """Numbers of training images by fraction, in ascending order."""
    sizes = {point.fraction: point.images for curve in curves for point in curve.points}
    return dict(sorted(sizes.items()))


def _single_size_title(sizes: dict[float, int]) -> str:
    return " ".join(f"trained on {count:,} images" for count in sizes.values())


def _x_positions(sizes: dict[float, int], number: int, count: int) -> dict[float, float]:
    """Positions of the fractions for one curve; with one fraction, every curve has its own slot."""
    if len(sizes) < 2:
        return {fraction: _slot(number, count) for fraction in sizes}
    logs = {fraction: math.log(max(size, 1)) for fraction, size in sizes.items()}
    first, last = min(logs.values()), max(logs.values())
    offset = (number - (count - 1) / 2) * min(OFFSET, 1.2 * MARGIN / max(count, 1))
    width = (last - first) or 1.0
    return {
        fraction: MARGIN + (1 - 2 * MARGIN) * (log - first) / width + offset
        for fraction, log in logs.items()
    }


def _slot(number: int, count: int) -> float:
    return (number + 0.5) / max(count, 1)


def _tick_levels(curves: Sequence[Curve]) -> list[float]:
    """Round levels from 0 to 1 that contain all intervals and the scores of all training runs."""
    ends = [
        end
        for curve in curves
        for point in curve.points
        for end in (point.score.value, point.score.low, point.score.high, *point.scores)
        if math.isfinite(end)
    ] or [0.0, 1.0]
    low, high = max(min(ends), 0.0), min(max(ends), 1.0)
    steps = (0.01, 0.02, 0.05, 0.1, 0.2)
    step = next((s for s in steps if (high - low) / s <= MAX_TICKS - 1), steps[-1])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def baseline_scores(curves: Sequence[Curve]) -> dict[str, float]:
    """Return the scores of the baselines with all training images, the same for all curves."""
    return dict(curves[0].points[-1].rules) if curves and curves[0].points else {}


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the curves with their intervals into a PNG of 1650 x 1080 pixels, 300 dpi.

    Examples
    --------
    >>> draw_comparison(comparison, Path("compare.png"))  # doctest: +SKIP
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = plot_comparison(comparison)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # ignore the user's own settings
        figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
        canvas = FigureCanvasAgg(figure)  # no window
        axes = figure.subplots()
        for line in plot.lines:
            _draw_line(axes, line, is_joined=plot.is_curve)
        _draw_axes(axes, plot, comparison.measure)
        if plot.is_curve:
            _draw_legend(figure, plot)
        canvas.print_figure(path, dpi=DPI, format="png", facecolor="white")


def _draw_line(axes: Axes, line: Line, *, is_joined: bool) -> None:
    marks = line.marks
    below = [0.0 if mark.low is None else mark.y - mark.low for mark in marks]
    above = [0.0 if mark.high is None else mark.high - mark.y for mark in marks]
    axes.errorbar(
        [mark.x for mark in marks],
        [mark.y for mark in marks],
        yerr=(below, above),
        color=line.colour,
        marker=MARKERS[line.shape],
        markerfacecolor="white" if line.is_hollow else line.colour,
        markersize=5,
        linewidth=1.4 if is_joined else 0,
        elinewidth=1.1,
        capsize=2.5,
        label=_escape_dollars(line.name),
    )


def _draw_legend(figure: Figure, plot: Plot) -> None:
    """Draw the legend above the axes, where no interval can cross it."""
    longest = max(len(line.name) for line in plot.lines)
    columns = max(1, min(len(plot.lines), LEGEND_WIDTH // (longest + 6)))
    figure.legend(
        loc="outside upper left", ncols=columns, frameon=False, fontsize=8, labelcolor=TEXT_COLOUR
    )


def _draw_axes(axes: Axes, plot: Plot, measure: str) -> None:
    for baseline in plot.baselines:
        axes.axhline(baseline.y, color=MUTED_COLOUR, linewidth=0.8, linestyle=(0, (4, 4)), zorder=0)
        name = _escape_dollars(baseline.name)
        axes.text(0.995, baseline.y, name, ha="right", va="bottom", size=7, color=MUTED_COLOUR)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xticks(
        [x for x, _ in plot.x_ticks],
        [_escape_dollars(text) for _, text in plot.x_ticks],
        size=8,
        color=TEXT_COLOUR,
    )
    if not plot.is_curve and sum(len(text) for _, text in plot.x_ticks) > 60:
        axes.tick_params("x", rotation=20)
    axes.set_yticks(
        [y for y, _ in plot.y_ticks], [text for _, text in plot.y_ticks], size=8, color=TEXT_COLOUR
    )
    axes.grid(axis="y", color=GRID_COLOUR, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(plot.x_title, size=9, color=TEXT_COLOUR)
    axes.set_ylabel(measure, size=9, color=TEXT_COLOUR)


def _escape_dollars(text: str) -> str:
    """Escape dollar signs, which matplotlib reads as the start of a formula."""
    return text.replace("$", r"\$")


def render_page(comparison: Comparison) -> str:
    """Render compare.html, which runs no script and loads nothing from outside.

    A point shows its values on hover, tap and keyboard focus. Checkboxes hide curves and show the
    single training runs. All of this is done with CSS.

    Examples
    --------
    >>> from pathlib import Path
    >>> Path("compare.html").write_text(render_page(comparison))  # doctest: +SKIP
    """
    effects = {(effect.name, effect.fraction): effect for effect in comparison.effects}
    baselines = list(dict.fromkeys(name for result in comparison.results for name in result.rules))
    rows = [
        {"curve": curve.name, "point": point, "effect": effects.get((curve.name, point.fraction))}
        for curve in comparison.curves
        for point in curve.points
    ]
    return page_template("compare.html.j2").render(
        comparison=comparison,
        plot=plot_comparison(comparison),
        rows=rows,
        baselines=baselines,
        lede=comparison.sentences[:1],
        sentences=comparison.sentences[1:SENTENCES],
        folded=comparison.sentences[SENTENCES:],
    )
