"""What a terminal shows of data, findings, evaluations and predictions: tables and sentences."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headstart.data.samples import labels_of

if TYPE_CHECKING:
    from headstart.data.checks import Finding
    from headstart.data.samples import Dataset
    from headstart.evaluation import AnyEvaluation
    from headstart.freezing import FreezePlan
    from headstart.model import Answer

__all__ = [
    "show_data",
    "show_evaluation",
    "show_findings",
    "show_predictions",
    "stage_table",
]

CLASS_LINES = 10
FINDING_LINES = 5
WORST_CLASSES = 5

_OBJECT = ("picture", "label", "score", "left, top, right, bottom")


def show_data(console: Console, data: Dataset, parts: Mapping[str, Dataset]) -> None:
    """Show what was read: the kind of task, notes, and the classes' counts in each part."""
    console.print(
        f"[bold]Data[/]  {escape(data.name)}: {len(data)} pictures, {data.kind}", highlight=False
    )
    for note in data.notes:
        console.print(f"  {escape(note)}", style="dim", highlight=False)
    console.print(_class_table(parts, data.kind))


def show_findings(
    console: Console, findings: Sequence[Finding], *, limit: int = FINDING_LINES
) -> None:
    """Show what a check found, the gravest first, the first few of it; the report has all."""
    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    order = list(colours)
    for finding in sorted(findings, key=lambda f: order.index(f.severity))[:limit]:
        text = f"  {finding.severity}: {_shortened(finding)}"
        colour = colours[finding.severity]
        console.print(escape(text), style=colour, highlight=False, soft_wrap=True)
    if len(findings) > limit:
        console.print(f"  … and {len(findings) - limit} more findings", style="dim")
    if not findings:
        console.print("  no unreadable files, no duplicates, no leaks", style="dim")


def _shortened(finding: Finding) -> str:
    """The finding in words, without the folders that all its paths share."""
    folders = [str(Path(path).parent) for path in finding.paths]
    shared = os.path.commonpath(folders) if len(folders) > 1 else ""
    return finding.message.replace(f"{shared}{os.sep}", "") if shared else finding.message


def show_evaluation(console: Console, evaluation: AnyEvaluation, verdict: Sequence[str]) -> None:
    """Show the verdict in words and the metrics with their intervals."""
    console.print("[bold]Verdict[/]")
    for sentence in verdict:
        console.print(f"  {escape(sentence)}", highlight=False)
    titles = _titles(evaluation.task.kind)
    table = Table(box=None, padding=(0, 1), show_header=False, pad_edge=True)
    cells = [(titles[name], str(interval)) for name, interval in evaluation.metrics.items()]
    widest = sum(max(map(len, column)) for column in zip(*cells, strict=True)) + 4
    rows = zip_longest(cells[::2], cells[1::2], fillvalue=("", ""))
    for row in rows if 2 * widest <= console.width else ((cell,) for cell in cells):
        table.add_row(*(escape(text) for cell in row for text in cell))
    console.print(table, highlight=False)
    for line in _worst_classes(evaluation):
        console.print(escape(f"  {line}"), style="dim", highlight=False)


def _titles(kind: str) -> Mapping[str, str]:
    if kind == "detection":
        from headstart.box_evaluation import TITLES as OF_BOXES

        return OF_BOXES
    if kind == "segmentation":
        from headstart.mask_evaluation import TITLES as OF_MASKS

        return OF_MASKS
    from headstart.evaluation import TITLES

    return TITLES


def _worst_classes(evaluation: AnyEvaluation) -> list[str]:
    """A line for each of the classes that are found or told apart worst."""
    rows: Sequence[Any] = evaluation.per_class
    match evaluation.task.kind:
        case "detection":
            lines = [
                (r.ap.value, f"{r.name} ({r.objects} objects): AP {r.ap}, at .50 {r.ap50}")
                for r in rows
            ]
        case "segmentation":
            lines = [
                (r.iou.value, f"{r.name} ({r.share:.1%} of pixels): IoU {r.iou}, Dice {r.dice}")
                for r in rows
            ]
        case _:
            lines = [
                (
                    r.recall.value,
                    f"{r.name} ({r.count}): precision {r.precision}, recall {r.recall}",
                )
                for r in rows
            ]
    known = [line for line in lines if not math.isnan(line[0])]
    return [text for _, text in sorted(known, key=lambda line: line[0])[:WORST_CLASSES]]


def show_predictions(console: Console, found: Iterable[Answer], classes: Sequence[str]) -> None:
    """Show predictions as a table: a row for each picture, object, or class of a mask."""
    rows = [row for one in found for row in _rows(one, classes)]
    table = Table(box=None, padding=(0, 2))
    for title in rows[0] if rows else ():
        is_text = title in {"picture", "label", "class", "answer"}
        fold: Literal["fold", "ellipsis"] = "fold" if title == "picture" else "ellipsis"
        table.add_column(title, justify="left" if is_text else "right", overflow=fold)
    for row in rows:
        table.add_row(*map(escape, row.values()))
    console.print(table, highlight=False)


def _rows(one: Answer, classes: Sequence[str]) -> list[dict[str, str]]:
    """What is said of one picture, by the columns' titles."""
    from headstart.dense import Detections, Segmented
    from headstart.dense_output import masks_json, objects_json

    if isinstance(one, Detections):
        objects = objects_json([one], classes)[0]["objects"]
        return [
            {
                "picture": one.name,
                "label": found["label"],
                "score": f"{found['score']:.3f}",
                "left, top, right, bottom": ", ".join(f"{side:.0f}" for side in found["box"]),
            }
            for found in objects
        ] or [dict(zip(_OBJECT, (one.name, "(none)", "", ""), strict=True))]
    if isinstance(one, Segmented):
        shares = masks_json([one], classes)[0]["classes"]
        return [
            {"picture": one.name, "class": name, "share": f"{share:.1%}"}
            for name, share in shares.items()
        ]
    label = one.label if isinstance(one.label, str) else ", ".join(one.label) or "(none)"
    row = {"picture": one.name, "label": label, "probability": f"{one.probability:.3f}"}
    if one.abstains is None:
        return [row]
    return [row | {"answer": "abstains" if one.abstains else "given"}]


def _class_table(parts: Mapping[str, Dataset], kind: str) -> Table:
    table = Table(box=None, padding=(0, 2))
    table.add_column("objects of" if kind == "detection" else "class")
    for title in parts:
        table.add_column(title, justify="right")
    counts = [part.counts() for part in parts.values()]
    classes = list(counts[0])
    for name in classes[:CLASS_LINES]:
        table.add_row(escape(name), *(str(count[name]) for count in counts))
    if len(classes) > CLASS_LINES:
        table.add_row(f"… {len(classes) - CLASS_LINES} more", *[""] * len(parts))
    if kind == "detection":  # else the rows are of pictures already
        bare = [[not labels_of(s.target) for s in part.samples] for part in parts.values()]
        table.add_row("[dim]pictures[/]", *(str(len(rows)) for rows in bare))
        table.add_row("[dim]  of these without objects[/]", *(str(sum(rows)) for rows in bare))
    return table


def stage_table(plan: FreezePlan) -> Table:
    """What happens to each stage, in the order in which they run."""
    table = Table(box=None, padding=(0, 2), pad_edge=True)
    for title in ("stage", "parameters", "trainable", "rate", "BatchNorm", "constant"):
        table.add_column(title, justify="left" if title in {"stage", "BatchNorm"} else "right")
    is_behind = False
    for row in plan.rows:
        rate = f"{row.learning_rate:.1e}" if row.trains else "–"
        since = f" from epoch {row.from_epoch}" if row.trains and row.from_epoch > 1 else ""
        table.add_row(
            escape(row.stage),
            f"{row.parameters:,}",
            f"{row.trainable:,}",
            rate + since,
            row.batch_norm,
            "no" if is_behind or not row.is_constant else "yes",
        )
        is_behind = is_behind or not row.is_constant
    return table
