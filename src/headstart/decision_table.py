"""What a terminal shows of a race: who took part, what it took, and why one was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["show_decision"]

MARKS = {"chosen": "*", "left out": "-"}


def show_decision(console: Console, record: Mapping[str, Any]) -> None:
    """Show every contender with its score, its gain, its seconds, and the reasons.

    Parameters
    ----------
    console : Console
    record : mapping
        Of a race that was run, or of one that is planned, whose rows have no scores.
    """
    planned = all(row["score"] is None for row in record["rows"])
    title = "Plan" if planned else "Race"
    kind = "held-out training" if record["folds"] else "training"
    about = f"{record['measure']} on {record['pictures']} {kind} pictures, {_time(record, planned)}"
    console.print(f"[bold]{title}[/]  {escape(about)}", highlight=False)
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("", overflow="fold")
    for name in () if planned else ("score", "gain"):
        table.add_column(name, no_wrap=True)
    table.add_column("expected" if planned else "seconds", justify="right", no_wrap=True)
    for row in record["rows"]:
        numbers = () if planned else (_score(row, record["pictures"]), _gain(row["gain"]))
        seconds = row["estimated"] if planned else row["seconds"]
        table.add_row(
            MARKS.get(row["state"], " "),
            escape(row["name"]),
            *map(escape, numbers),
            f"{seconds:.1f} s" if seconds else "",
            style="bold" if row["state"] == "chosen" else "",
        )
    console.print(table, highlight=False)
    for line in record["why"]:
        if line.startswith("Chosen"):  # as the star says
            continue
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _score(row: Mapping[str, Any], pictures: int) -> str:
    """With how many pictures it is of, where others have answered more: the gain is on these."""
    found = row["score"]
    if found is None or found["value"] is None:  # nothing to judge by
        return ""
    of = f" of {row['pictures']}" if 0 < row["pictures"] < pictures else ""
    return f"{found['value']:.3f} [{_bounds(found, '.3f')}]{of}"


def _gain(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:  # nothing to judge by
        return ""
    return f"{found['value']:+.3f} [{_bounds(found, '+.3f')}]"


def _bounds(found: Mapping[str, Any], form: str) -> str:
    if found["low"] is None or found["high"] is None:
        return "unknown"
    return f"{found['low']:{form}}, {found['high']:{form}}"


def _time(record: Mapping[str, Any], planned: bool) -> str:
    budget = ""
    if record["budget"] is not None:
        budget = f" of {record['budget']:.0f} s"
    if planned:
        return f"at most {record['estimated']:.0f} s{budget}"
    measured = record.get("measured", 0.0)
    of_it = f", {measured:.0f} s of it to measure this machine" if measured >= 1 else ""
    return f"in {record['seconds']:.0f} s{budget}{of_it}"
