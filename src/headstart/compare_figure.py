"""A comparison's curves as a picture for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headstart.comparison import Comparison
from headstart.comparison_plot import Line, Plot, placed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DPI", "draw"]

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
