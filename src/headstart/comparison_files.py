"""A comparison as files, and the cells of one that was stopped."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headstart.comparison import Cell, Comparison
from headstart.intervals import Interval

__all__ = ["add_cell", "read_cells", "write"]


def add_cell(path: Path, key: str, cell: Cell) -> None:
    """Add a finished cell to the file, at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, "cell": cell.as_dict()}) + "\n")


def read_cells(path: Path) -> Iterator[tuple[str, Cell]]:
    """Cells of a comparison that was stopped; a line that a kill cut short is left out."""
    if not path.is_file():
        return
    text = path.read_bytes().decode("utf-8", "replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # what comes next begins on a line of its own
        path.write_text(whole, encoding="utf-8")
    for line in whole.splitlines():
        entry = json.loads(line)
        given = dict(entry["cell"])
        score: dict[str, Any] = {
            k: float("nan") if v is None else v for k, v in given.pop("score").items()
        }
        draws = tuple(float("nan") if v is None else v for v in given.pop("draws"))
        yield entry["key"], Cell(**given, score=Interval(**score), draws=draws)


def write(found: Comparison, folder: Path) -> None:
    """Write compare.json and table.csv."""
    text = json.dumps(found.as_dict(), indent=1, allow_nan=False)
    (folder / "compare.json").write_text(text, encoding="utf-8")
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        score = (found.measure, "low", "high")
        costs = ("trains", "parameters", "steps", "seconds", "cpu_seconds", "gpu_seconds")
        rules = list(dict.fromkeys(n for c in found.curves for at in c.points for n in at.rules))
        rows.writerow(("backbone", "method", "fraction", "pictures", *score, *rules, *costs))
        for curve in found.curves:
            for at in curve.points:
                s, simple = at.score, [at.rules.get(name, "") for name in rules]
                cells = (at.fraction, at.pictures, s.value, s.low, s.high, *simple)
                seconds = (at.seconds, at.cpu_seconds, at.gpu_seconds)
                spent = (at.trains, at.parameters, at.steps, *(round(t, 3) for t in seconds))
                rows.writerow((curve.backbone, curve.method, *cells, *spent))
