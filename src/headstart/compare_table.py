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
    table = Table(box=None, padding=(0, 1))
    for title in ("", "pictures", "mean", "steps", "seconds", "CPU s"):
        if title:
            table.add_column(title, justify="right", no_wrap=True)
        else:
            table.add_column(title, overflow="fold")
    for curve in found.curves:
        for at in curve.points:
            table.add_row(
                escape(curve.name),
                f"{at.pictures} ({at.fraction:.0%})",
                escape(str(at.score)),
                str(at.steps or "-"),
                f"{at.seconds:.1f}",
                f"{at.cpu_seconds:.1f}",
            )
    for name, value in _rules(found).items():
        table.add_row(f"[dim]{escape(name)}[/]", "", f"{value:.3f}" + " " * len(" [0.000, 1.000]"))
    console.print(table, highlight=False)
    for curve in found.curves:
        at = curve.points[-1]
        told = f"  {curve.name} trains {at.trains}: {at.parameters:,} parameters"
        console.print(escape(told), style="dim", highlight=False)
    console.print("  CPU seconds stand in for energy: a proxy", style="dim", highlight=False)
    for sentence in found.sentences[:SENTENCES]:
        console.print(f"  {escape(sentence)}", highlight=False)
    if len(found.sentences) > SENTENCES:
        more = len(found.sentences) - SENTENCES
        console.print(f"  … and {more} more in compare.json", style="dim")


def _rules(found: Comparison) -> dict[str, float]:
    """What rules that look at no picture reach, with all pictures to learn from."""
    return dict(found.curves[0].points[-1].rules) if found.curves else {}
