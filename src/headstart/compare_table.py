"""What a terminal shows of a comparison: a table of scores by number of pictures, and findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from headstart.comparison import Comparison

__all__ = ["show_comparison"]

SENTENCES = 12


def show_comparison(console: Console, found: Comparison) -> None:
    """Show every curve's scores, its seconds, and what is told apart."""
    console.print(f"[bold]{escape(found.measure)}[/] of {escape(found.name)}", highlight=False)
    for line in (found.split, f"budget: {found.budget}", found.test):
        console.print(f"  {escape(line)}", style="dim", highlight=False)
    table = Table(box=None, padding=(0, 2))
    for title in ("", "pictures", "mean", "seconds", "CPU s"):
        table.add_column(title, justify="right" if title else "left", no_wrap=bool(title))
    for curve in found.curves:
        for at in curve.points:
            table.add_row(
                escape(curve.name),
                f"{at.pictures} ({at.fraction:.0%})",
                escape(str(at.score)),
                f"{at.seconds:.1f}",
                f"{at.cpu_seconds:.1f}",
            )
    console.print(table, highlight=False)
    console.print("  CPU seconds stand in for energy: a proxy", style="dim", highlight=False)
    for sentence in found.sentences[:SENTENCES]:
        console.print(f"  {escape(sentence)}", highlight=False)
    if len(found.sentences) > SENTENCES:
        more = len(found.sentences) - SENTENCES
        console.print(f"  … and {more} more in compare.json", style="dim")
