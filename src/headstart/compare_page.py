"""A comparison as one page: curves that answer to a finger, findings, and a table."""

from __future__ import annotations

from headstart.comparison import Comparison
from headstart.comparison_plot import placed
from headstart.pages import page_template

__all__ = ["render_page"]

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
