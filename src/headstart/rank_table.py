"""What a terminal shows of a ranking: who is first, by how much, at what cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from headstart.intervals import Interval
    from headstart.standings import Ranked, Ranking

__all__ = ["show_ranking"]

COLUMNS = 5
"""Backbones whose other numbers stand beside each other."""

NAME_WIDTH = 27


def show_ranking(console: Console, found: Ranking) -> None:
    """Show the order with its intervals, the costs, the other measures, and the findings.

    Parameters
    ----------
    console : Console
        80 columns are enough.
    found : Ranking
    """
    of = f" of {found.available}" * (found.available > found.pictures)
    what = {"detection": "objects", "segmentation": "regions"}.get(found.task)
    parts = f", {found.regions} {what}" if what else ""
    groups = "" if found.groups is None else f" in {found.groups} groups"
    about = (
        f"{found.name} by {found.measure}: {found.pictures}{of} training pictures{parts}{groups}"
    )
    console.print(f"[bold]Ranking[/]  {escape(about)}", highlight=False, soft_wrap=True)
    console.print(_order(found), highlight=False)
    console.print(_costs(found.rows), highlight=False)
    others = [name for name in found.rows[0].scores if name != found.measure]
    if others:
        console.print(_others(found.rows, others), highlight=False)
    if others and len(found.rows) > COLUMNS:
        console.print("  … and more backbones with --json", style="dim")
    for sentence in found.sentences:
        console.print(Padding(escape(sentence), (0, 0, 0, 2)), highlight=False)


def _order(found: Ranking) -> Table:
    table = _table("", "backbone", found.measure, "the first is ahead by")
    table.columns[1].max_width = NAME_WIDTH
    for place, row in enumerate(found.rows, start=1):
        number = row.scores[found.measure]
        alike = row.behind is not None and not row.behind.distinguishable
        gap = "" if row.behind is None else _signed(row.behind.interval)
        table.add_row(
            f"{place}",
            escape(row.label),
            escape(str(number.interval or number.missing)),
            f"{gap}{' =' * alike}",
        )
    if any(row.behind and not row.behind.distinguishable for row in found.rows):
        table.caption = "= cannot be distinguished from the first"
        table.caption_justify = "left"
    return table


def _costs(rows: tuple[Ranked, ...]) -> Table:
    table = _table("", "ms a picture", "arithmetic", "pass", "MB", "features")
    for place, row in enumerate(rows, start=1):
        kept = f" ({row.reused} kept)" * bool(row.reused)
        table.add_row(
            f"{place}",
            f"{row.milliseconds:.1f}",
            row.engine,
            f"{row.seconds:.1f} s{kept}" if row.computed else "kept",
            f"{row.megabytes:.1f}",
            f"{row.width}",
        )
    return table


def _others(rows: tuple[Ranked, ...], measures: list[str]) -> Table:
    shown = rows[:COLUMNS]
    table = _table("other measures (* highest)", *(f"{i}" for i in range(1, len(shown) + 1)))
    for name in measures:
        numbers = [row.scores[name].interval for row in rows]
        known = [one.value for one in numbers if one is not None]
        best = max(known) if len(known) > 1 else None
        table.add_row(name, *(_number(one, best) for one in numbers[: len(shown)]))
    return table


def _number(one: Interval | None, best: float | None) -> str:
    if one is None:
        return "–"
    tiny = 0 < abs(one.value) < 5e-4
    text = f"{one.value:.1e}" if tiny else f"{one.value:.3f}"
    return f"{text}{'*' if one.value == best else ' '}"


def _signed(one: Interval) -> str:
    if one.low != one.low or one.high != one.high:
        return f"{one.value:.3f} [unknown]"
    return f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    texts = {"", "backbone", "arithmetic"}
    for i, title in enumerate(titles):
        left = title in texts or (i == 0)
        table.add_column(
            title,
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=title != "backbone",
        )
    return table
