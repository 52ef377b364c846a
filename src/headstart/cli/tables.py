"""What a terminal shows of a comparison: a table of scores by number of images, and findings."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from headstart.data.dataset import labels_of

if TYPE_CHECKING:
    from headstart.backbones.freezing import FreezePlan
    from headstart.data.checks.images import Finding
    from headstart.data.dataset import Dataset
    from headstart.evaluation.classification import AnyEvaluation
    from headstart.evaluation.comparison import Comparison
    from headstart.metrics.confidence_intervals import Interval
    from headstart.models.transfer_model import Answer
    from headstart.selection.ranking import Ranked, Ranking

__all__ = [
    "show_comparison",
    "show_data",
    "show_decision",
    "show_evaluation",
    "show_findings",
    "show_predictions",
    "show_ranking",
    "stage_table",
]

SENTENCES = 12


def show_comparison(console: Console, found: Comparison) -> None:
    """Show every curve's scores, its seconds, and what is told apart."""
    console.print(f"[bold]{escape(found.measure)}[/] of {escape(found.name)}", highlight=False)
    for line in (found.split, f"budget: {found.budget}", found.test):
        console.print(f"  {escape(line)}", style="dim", highlight=False)
    table = Table(box=None, padding=(0, 1))
    for title in ("", "images", "mean", "steps", "seconds", "CPU s"):
        if title:
            table.add_column(title, justify="right", no_wrap=True)
        else:
            table.add_column(title, overflow="fold")
    for curve in found.curves:
        for at in curve.points:
            table.add_row(
                escape(curve.name),
                f"{at.images} ({at.fraction:.0%})",
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
    """What rules that look at no image reach, with all images to learn from."""
    return dict(found.curves[0].points[-1].rules) if found.curves else {}


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
    about = f"{record['measure']} on {record['images']} {kind} images, {_time(record, planned)}"
    console.print(f"[bold]{title}[/]  {escape(about)}", highlight=False)
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("", overflow="fold")
    for name in () if planned else ("score", "gain"):
        table.add_column(name, no_wrap=True)
    table.add_column("expected" if planned else "seconds", justify="right", no_wrap=True)
    for row in record["rows"]:
        numbers = () if planned else (_score(row, record["images"]), _gain(row["gain"]))
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


def _score(row: Mapping[str, Any], images: int) -> str:
    """With how many images it is of, where others have answered more: the gain is on these."""
    found = row["score"]
    if found is None or found["value"] is None:  # nothing to judge by
        return ""
    of = f" of {row['images']}" if 0 < row["images"] < images else ""
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
    of = f" of {found.available}" * (found.available > found.images)
    what = {"detection": "objects", "segmentation": "regions"}.get(found.task)
    parts = f", {found.regions} {what}" if what else ""
    groups = "" if found.groups is None else f" in {found.groups} groups"
    about = f"{found.name} by {found.measure}: {found.images}{of} training images{parts}{groups}"
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
    table = _table("", "ms an image", "arithmetic", "pass", "MB", "features")
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


CLASS_LINES = 10
FINDING_LINES = 5
WORST_CLASSES = 5

_OBJECT = ("image", "label", "score", "left, top, right, bottom")


def show_data(console: Console, data: Dataset, parts: Mapping[str, Dataset]) -> None:
    """Show what was read: the kind of task, notes, and the classes' counts in each part."""
    console.print(
        f"[bold]Data[/]  {escape(data.name)}: {len(data)} images, {data.kind}", highlight=False
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
        from headstart.evaluation.detection import TITLES as OF_BOXES

        return OF_BOXES
    if kind == "segmentation":
        from headstart.evaluation.segmentation import TITLES as OF_MASKS

        return OF_MASKS
    from headstart.evaluation.classification import TITLES

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
    """Show predictions as a table: a row for each image, object, or class of a mask."""
    rows = [row for one in found for row in _rows(one, classes)]
    table = Table(box=None, padding=(0, 2))
    for title in rows[0] if rows else ():
        is_text = title in {"image", "label", "class", "answer"}
        fold: Literal["fold", "ellipsis"] = "fold" if title == "image" else "ellipsis"
        table.add_column(title, justify="left" if is_text else "right", overflow=fold)
    for row in rows:
        table.add_row(*map(escape, row.values()))
    console.print(table, highlight=False)


def _rows(one: Answer, classes: Sequence[str]) -> list[dict[str, str]]:
    """What is said of one image, by the columns' titles."""
    from headstart.models.inference import Detections, Segmentation
    from headstart.models.prediction_files import masks_json, objects_json

    if isinstance(one, Detections):
        objects = objects_json([one], classes)[0]["objects"]
        return [
            {
                "image": one.name,
                "label": found["label"],
                "score": f"{found['score']:.3f}",
                "left, top, right, bottom": ", ".join(f"{side:.0f}" for side in found["box"]),
            }
            for found in objects
        ] or [dict(zip(_OBJECT, (one.name, "(none)", "", ""), strict=True))]
    if isinstance(one, Segmentation):
        shares = masks_json([one], classes)[0]["classes"]
        return [
            {"image": one.name, "class": name, "share": f"{share:.1%}"}
            for name, share in shares.items()
        ]
    label = one.label if isinstance(one.label, str) else ", ".join(one.label) or "(none)"
    row = {"image": one.name, "label": label, "probability": f"{one.probability:.3f}"}
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
    if kind == "detection":  # else the rows are of images already
        bare = [[not labels_of(s.target) for s in part.samples] for part in parts.values()]
        table.add_row("[dim]images[/]", *(str(len(rows)) for rows in bare))
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
