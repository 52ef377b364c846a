"""Files of a comparison: its finished trainings, and its tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headstart.evaluation.comparison import Comparison, TrainingResult
from headstart.files import csv_text, write_whole
from headstart.metrics.confidence_intervals import Interval
from headstart.metrics.validation import json_text

__all__ = ["append_result", "read_results", "write_tables"]


def append_result(path: Path, key: str, result: TrainingResult) -> None:
    """Append a finished training to the file, and wait until it is on the disk."""
    with path.open("ab", buffering=0) as file:
        file.write(f"{json_text({'key': key, 'result': result.as_dict()})}\n".encode())
        os.fsync(file.fileno())


def read_results(path: Path) -> Iterator[tuple[str, TrainingResult]]:
    """Read the finished trainings of a comparison; drop a line that a kill has cut off."""
    if not path.is_file():
        return
    text = path.read_bytes().decode("utf-8", "replace")
    complete = text[: text.rfind("\n") + 1]
    if complete != text:  # the next line must begin at the start of a line
        write_whole(path, complete)
    for line in complete.splitlines():
        entry = json.loads(line)
        values = dict(entry["result"])
        score: dict[str, Any] = {
            name: float("nan") if value is None else value
            for name, value in values.pop("score").items()
        }
        draws = tuple(float("nan") if v is None else v for v in values.pop("draws"))
        notes = tuple(values.pop("notes", ()))
        yield (
            entry["key"],
            TrainingResult(**values, score=Interval(**score), draws=draws, notes=notes),
        )


def write_tables(comparison: Comparison, folder: Path) -> None:
    """Write compare.json and table.csv."""
    write_whole(folder / "compare.json", json_text(comparison.as_dict(), indent=1))
    curves = comparison.curves
    rules = list(dict.fromkeys(name for c in curves for point in c.points for name in point.rules))
    score_columns = (comparison.measure, "low", "high")
    costs = ("trains", "parameters", "steps", "seconds", "cpu_seconds", "gpu_seconds")
    rows = [
        (
            curve.backbone,
            curve.method,
            point.fraction,
            point.images,
            *(point.score.value, point.score.low, point.score.high),
            *(point.rules.get(name, "") for name in rules),
            *(point.trains, point.parameters, point.steps),
            *(round(s, 3) for s in (point.seconds, point.cpu_seconds, point.gpu_seconds)),
        )
        for curve in curves
        for point in curve.points
    ]
    titles = ("backbone", "method", "fraction", "images", *score_columns, *rules, *costs)
    write_whole(folder / "table.csv", csv_text(titles, rows))
