"""A comparison as one page: curves that answer to a finger, findings, and a table."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from headstart import charts
from headstart.comparison import Comparison, Effect
from headstart.comparison_plot import placed

if TYPE_CHECKING:
    from jinja2 import Template

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
    return _template().render(
        found=found,
        plot=placed(found),
        rows=rows,
        rules=rules,
        lede=found.sentences[:1],
        said=found.sentences[1:SENTENCES],
        folded=found.sentences[SENTENCES:],
    )


def _told(effect: Effect) -> str:
    return "told apart" if effect.distinguishable else "cannot be told apart"


def _amount(number: int) -> str:
    r"""A count as a person reads it.

    >>> _amount(0), _amount(12810), _amount(3_400_000)
    ('0', '12,810', '3.40\xa0M')
    """
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:.2f}\N{NO-BREAK SPACE}M"


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("headstart"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "unbroken": charts.unbroken,
        "told": _told,
        "amount": _amount,
        "percent": charts.percent,
    }
    environment.filters.update(filters)
    return environment.get_template("compare.html.j2")
