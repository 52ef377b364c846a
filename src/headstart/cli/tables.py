"""Tables of the terminal: data, findings, results, predictions, races, rankings, comparisons."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headstart.cli.output import print_line
from headstart.data.dataset import labels_of

if TYPE_CHECKING:
    from headstart.backbones.freezing import FreezePlan
    from headstart.data.checks.images import Finding
    from headstart.data.dataset import Dataset
    from headstart.evaluation.classification import AnyEvaluation
    from headstart.evaluation.comparison import Comparison
    from headstart.metrics.confidence_intervals import Interval
    from headstart.models.transfer_model import AnyPrediction
    from headstart.selection.ranking import RankedBackbone, Ranking

__all__ = [
    "show_backbones",
    "show_comparison",
    "show_data",
    "show_decision",
    "show_evaluation",
    "show_findings",
    "show_mistakes",
    "show_predictions",
    "show_ranking",
    "show_summary",
    "stage_table",
]

SENTENCES = 12
"""Sentences of a comparison that are printed; compare.json has all of them."""

MARKS = {"chosen": "*", "left out": "-"}
"""Mark in front of a candidate, by its state."""
COLUMNS = 5
"""Number of backbones in the table of the other scores."""
NAME_WIDTH = 27
"""Maximum width of a backbone's name, so that a ranking fits 80 columns."""
CLASS_LINES = 10
FINDING_LINES = 5
LINES_OF_A_KIND = 10
WORST_CLASSES = 5
MISTAKES = 5
"""Maximum number of lines, so that the output of a run stays short."""
BOX_COLUMNS = ("image", "label", "score", "left, top, right, bottom")


def show_comparison(console: Console, comparison: Comparison, *, brief: bool = False) -> None:
    """Print the scores and the cost of every curve, and the significant differences.

    Parameters
    ----------
    console : Console
    comparison : Comparison
    brief : bool
        Print only the sentences about the differences.
    """
    if brief:
        show_summary(console, comparison.sentences[:SENTENCES])
        return
    from headstart.reports.comparison import baseline_scores

    print_line(console, "[bold]Comparison[/]  ", f"{comparison.measure} on {comparison.name}")
    for line in (comparison.split, f"budget: {comparison.budget}", comparison.test):
        print_line(console, "  ", line, style="dim")
    table = Table(box=None, padding=(0, 1))
    table.add_column("method", overflow="fold")
    for title in ("images", "mean", "steps", "seconds", "CPU s"):
        table.add_column(title, justify="right", no_wrap=True)
    for curve in comparison.curves:
        for point in curve.points:
            table.add_row(
                escape(curve.name),
                f"{point.images} ({point.fraction:.0%})",
                escape(str(point.score)),
                str(point.steps or "-"),
                f"{point.seconds:.1f}",
                f"{point.cpu_seconds:.1f}",
            )
    for name, value in baseline_scores(comparison.curves).items():
        table.add_row(f"[dim]{escape(name)}[/]", "", f"{value:.3f}" + " " * len(" [0.000, 1.000]"))
    console.print(table, highlight=False)
    for curve in comparison.curves:
        point = curve.points[-1]
        line = f"{curve.name} trains {point.trains}: {point.parameters:,} parameters"
        print_line(console, "  ", line, style="dim")
    console.print("  CPU seconds are a proxy for energy", style="dim", highlight=False)
    for sentence in comparison.sentences[:SENTENCES]:
        print_line(console, "  ", sentence)
    if len(comparison.sentences) > SENTENCES:
        n_hidden = len(comparison.sentences) - SENTENCES
        console.print(f"  … and {n_hidden} more in compare.json", style="dim")


def show_decision(console: Console, record: Mapping[str, Any], *, brief: bool = False) -> None:
    """Print every candidate with its score, its gain and its seconds, and the reasons.

    Parameters
    ----------
    console : Console
    record : mapping
        Of a race, or of a planned one, whose rows have no scores.
    brief : bool
        Print only the first line.
    """
    planned = all(row["score"] is None for row in record["rows"])
    title = "Plan" if planned else "Race"
    kind = "held-out training" if record["folds"] else "training"
    about = (
        f"{record['measure']} on {record['images']} {kind} images, {_format_time(record, planned)}"
    )
    print_line(console, f"[bold]{title}[/]  ", about)
    if brief:
        return
    _print_candidates(console, record, planned)
    for line in record["why"]:
        if line.startswith("Chosen"):  # the star in the table shows it already
            continue
        print_line(console, "  ", line)


def _print_candidates(console: Console, record: Mapping[str, Any], planned: bool) -> None:
    """Print a table of the candidates; where a name does not fit, its numbers go below it."""
    titles = ("expected",) if planned else ("score", "gain", "seconds")
    rows = []
    for row in record["rows"]:
        scores = (
            () if planned else (_format_score(row, record["images"]), _format_gain(row["gain"]))
        )
        seconds = row["estimated"] if planned else row["seconds"]
        rows.append((row, (*scores, f"{seconds:.1f} s" if seconds else "")))
    numbers_width = sum(
        1 + max(map(len, column))
        for column in zip(titles, *(cells for _, cells in rows), strict=True)
    )
    longest_word = max((len(word) for row, _ in rows for word in row["name"].split()), default=0)
    if 2 + longest_word + 1 + numbers_width > console.width:
        for row, cells in rows:
            print_line(console, f"{MARKS.get(row['state'], ' ')} ", row["name"])
            print_line(console, "    ", "  ".join(filter(None, cells)))
        return
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("candidate", overflow="fold")
    for title in titles:
        justify: Literal["left", "right"] = "left" if title in {"score", "gain"} else "right"
        table.add_column(title, justify=justify, no_wrap=True)
    for row, cells in rows:
        style = "bold" if row["state"] == "chosen" else ""
        mark = MARKS.get(row["state"], " ")
        table.add_row(mark, escape(row["name"]), *map(escape, cells), style=style)
    console.print(table, highlight=False)


def _format_score(row: Mapping[str, Any], images: int) -> str:
    """Score with its interval; with the number of images if the candidate saw fewer than others."""
    score = row["score"]
    if score is None or score["value"] is None:  # not measured
        return ""
    count = f" (n={row['images']})" if 0 < row["images"] < images else ""
    return f"{score['value']:.3f} [{_format_bounds(score, '.3f')}]{count}"


def _format_gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None or gain["value"] is None:  # not measured
        return ""
    return f"{gain['value']:+.3f} [{_format_bounds(gain, '+.3f')}]"


def _format_bounds(interval: Mapping[str, Any], form: str) -> str:
    if interval["low"] is None or interval["high"] is None:
        return "unknown"
    return f"{interval['low']:{form}}, {interval['high']:{form}}"


def _format_time(record: Mapping[str, Any], planned: bool) -> str:
    budget = ""
    if record["budget"] is not None:
        budget = f" (budget {record['budget']:.0f} s)"
    if planned:
        return f"at most {record['estimated']:.0f} s{budget}"
    measured = record.get("measured", 0.0)
    measuring = f", {measured:.0f} s of it to measure this machine" if measured >= 1 else ""
    if record["folds"] == 1:  # boxes or masks, which have no probe
        return f"trainings in {record['seconds']:.0f} s{budget}{measuring}"
    if "probing" not in record:  # of an older run
        return f"in {record['seconds']:.0f} s{measuring}"
    training = record["seconds"] - record["probing"]
    trainings = f", trainings in {training:.0f} s{budget}" if record["budget"] else ""
    return f"probes in {record['probing']:.0f} s{trainings}{measuring}"


def show_ranking(console: Console, ranking: Ranking, *, brief: bool = False) -> None:
    """Print the order with its intervals, the costs, the other scores, and the conclusions.

    Parameters
    ----------
    console : Console
        At least 80 columns wide.
    ranking : Ranking
    brief : bool
        Print only the sentences about the order.
    """
    if brief:
        show_summary(console, ranking.sentences)
        return
    available = f" of {ranking.available}" * (ranking.available > ranking.images)
    unit = {"detection": "objects", "segmentation": "regions"}.get(ranking.task)
    regions = f", {ranking.regions} {unit}" if unit else ""
    groups = "" if ranking.groups is None else f" in {ranking.groups} groups"
    about = (
        f"{ranking.name} by {ranking.measure}: {ranking.images}{available} training images"
        f"{regions}{groups}"
    )
    print_line(console, "[bold]Ranking[/]  ", about)
    console.print(_order_table(ranking), highlight=False)
    console.print(_cost_table(ranking.rows), highlight=False)
    other_measures = [name for name in ranking.rows[0].scores if name != ranking.measure]
    if other_measures:
        console.print(_score_table(ranking.rows, other_measures), highlight=False)
    if other_measures and len(ranking.rows) > COLUMNS:
        console.print("  … --json prints the scores of all backbones", style="dim")
    for sentence in ranking.sentences:
        print_line(console, "  ", sentence)


def _order_table(ranking: Ranking) -> Table:
    table = _new_table("", "backbone", ranking.measure, "lead of the first")
    table.columns[1].max_width = NAME_WIDTH
    for place, row in enumerate(ranking.rows, start=1):
        score = row.scores[ranking.measure]
        is_similar = row.behind is not None and not row.behind.significant
        lead = "" if row.behind is None else _format_lead(row.behind.interval)
        table.add_row(
            f"{place}",
            escape(row.label),
            escape(str(score.interval or score.missing)),
            f"{lead}{' =' * is_similar}",
        )
    if any(row.behind and not row.behind.significant for row in ranking.rows):
        table.caption = "= not significantly different from the first"
        table.caption_justify = "left"
    return table


def _cost_table(rows: tuple[RankedBackbone, ...]) -> Table:
    table = _new_table("", "ms/image", "arithmetic", "time", "MB", "features")
    for place, row in enumerate(rows, start=1):
        cached = f" ({row.reused} cached)" * bool(row.reused)
        table.add_row(
            f"{place}",
            f"{row.milliseconds:.1f}",
            row.engine,
            f"{row.seconds:.1f} s{cached}" if row.computed else "cached",
            f"{row.megabytes:.1f}",
            f"{row.width}",
        )
    return table


def _score_table(rows: tuple[RankedBackbone, ...], measures: list[str]) -> Table:
    n_columns = min(len(rows), COLUMNS)
    table = _new_table("other scores (* highest)", *(f"{i}" for i in range(1, n_columns + 1)))
    for name in measures:
        intervals = [row.scores[name].interval for row in rows]
        values = [interval.value for interval in intervals if interval is not None]
        best = max(values) if len(values) > 1 else None
        table.add_row(name, *(_mark_best(interval, best) for interval in intervals[:n_columns]))
    return table


def _mark_best(interval: Interval | None, best: float | None) -> str:
    if interval is None:
        return "–"
    is_tiny = 0 < abs(interval.value) < 5e-4
    text = f"{interval.value:.1e}" if is_tiny else f"{interval.value:.3f}"
    return f"{text}{'*' if interval.value == best else ' '}"


def _format_lead(lead: Interval) -> str:
    if math.isnan(lead.low) or math.isnan(lead.high):
        return f"{lead.value:.3f} [unknown]"
    return f"{lead.value:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}]"


def _new_table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    text_titles = {"", "backbone", "arithmetic"}
    for i, title in enumerate(titles):
        is_left = title in text_titles or (i == 0)
        table.add_column(
            title,
            justify="left" if is_left else "right",
            overflow="fold",
            no_wrap=title != "backbone",
        )
    return table


def show_data(console: Console, data: Dataset, parts: Mapping[str, Dataset]) -> None:
    """Print the kind of task, notes of the reader, and the number of images by class and part."""
    print_line(console, "[bold]Data[/]  ", f"{data.name}: {len(data)} images, {data.kind}")
    for note in data.notes:
        print_line(console, "  ", note, style="dim")
    console.print(_class_table(parts, data.kind))


def show_findings(
    console: Console,
    findings: Sequence[Finding],
    *,
    limit: int = FINDING_LINES,
    rest_in: str = "",
    nothing: str = "no unreadable files, no duplicates, no leaks",
) -> int:
    """Print the first findings of the checks, errors before warnings; return how many are left.

    Parameters
    ----------
    console : Console
    findings : sequence of Finding
    limit : int
        Most lines of all kinds; at most 10 lines are of one kind.
    rest_in : str
        Where the others are, or how to get them.
    nothing : str
        Printed if there are no findings.
    """
    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    order = list(colours)
    lines = Counter[str]()
    hidden = Counter[str]()
    for finding in sorted(findings, key=lambda f: order.index(f.severity)):
        if lines.total() >= limit or lines[finding.kind] >= LINES_OF_A_KIND:
            hidden[finding.kind] += 1
            continue
        lines[finding.kind] += 1
        text = f"{finding.severity}: {_short_message(finding)}"
        print_line(console, "  ", text, style=colours[finding.severity])
    if hidden:
        kinds = ", ".join(f"{n} {kind}" for kind, n in hidden.most_common())
        text = f"… and {hidden.total()} more findings ({kinds}){rest_in and f': {rest_in}'}"
        print_line(console, "  ", text, style="dim")
    if not findings and nothing:
        console.print(f"  {nothing}", style="dim")
    return hidden.total()


def _short_message(finding: Finding) -> str:
    """The message without the folders that all paths of the finding share, but with the last one.

    The last folder is the class of images in class folders.
    """
    folders = [str(Path(path).parent.parent) for path in finding.paths]
    shared = os.path.commonpath(folders) if len(folders) > 1 else ""
    return finding.message.replace(f"{shared}{os.sep}", "") if shared else finding.message


def show_evaluation(console: Console, evaluation: AnyEvaluation, summary: Sequence[str]) -> None:
    """Print the summary, the metrics with their intervals, and the worst classes."""
    show_summary(console, summary)
    titles = _metric_titles(evaluation.task.kind)
    table = Table(box=None, padding=(0, 1), show_header=False, pad_edge=True)
    cells = [(titles[name], str(interval)) for name, interval in evaluation.metrics.items()]
    widest = sum(max(map(len, column)) for column in zip(*cells, strict=True)) + 4
    rows = zip_longest(cells[::2], cells[1::2], fillvalue=("", ""))
    for row in rows if 2 * widest <= console.width else ((cell,) for cell in cells):
        table.add_row(*(escape(text) for cell in row for text in cell))
    console.print(table, highlight=False)
    for line in _worst_classes(evaluation):
        print_line(console, "  ", line, style="dim")


def show_mistakes(console: Console, evaluation: AnyEvaluation) -> None:
    """Print the most frequent confusions of a classifier, and the images with the worst results."""
    from headstart.evaluation.classification import Evaluation

    if not isinstance(evaluation, Evaluation):
        names = _short_names(evaluation.names)
        _show_images(console, [names[row] for row in evaluation.worst(MISTAKES)])
        return
    if evaluation.task.kind == "multilabel":
        wrong = [
            name for name, ok in zip(evaluation.names, evaluation.correct, strict=True) if not ok
        ]
        _show_images(console, wrong[:MISTAKES])
        return
    from headstart.reports.charts import confused_pairs

    classes, counts = evaluation.task.classes, evaluation.confusion.sum(axis=1)
    if confused := confused_pairs(evaluation.confusion, MISTAKES):
        console.print("[bold]Confusions[/]")
    for pair in confused:
        text = f"{pair.count} of {counts[pair.truth]} images of {classes[pair.truth]}"
        print_line(console, "  ", f"{text}: predicted as {classes[pair.prediction]}")
    lines, names = [], _short_names(evaluation.names)
    for row in evaluation.mistakes(MISTAKES):
        label, predicted = evaluation.targets[row], evaluation.predicted[row]
        share = evaluation.probabilities[row].max()
        about = f"predicted {classes[predicted]} ({share:.0%}), labelled {classes[label]}"
        lines.append(f"{names[row]}: {about}")
    _show_images(console, lines)


def _short_names(names: Sequence[str]) -> list[str]:
    """Names of images without the folder that all of them share."""
    folders = {str(Path(name).parent) for name in names}
    shared = os.path.commonpath(folders) if all(map(os.path.isabs, folders)) else ""
    return [os.path.relpath(name, shared) if shared else name for name in names]


def _show_images(console: Console, lines: Sequence[str]) -> None:
    if lines:
        console.print("[bold]Worst images[/]")
    for line in lines:
        print_line(console, "  ", line)


def show_summary(console: Console, summary: Sequence[str]) -> None:
    """Print the sentences of a summary."""
    console.print("[bold]Summary[/]")
    for sentence in summary:
        print_line(console, "  ", sentence)


def _metric_titles(kind: str) -> Mapping[str, str]:
    if kind == "detection":
        from headstart.evaluation.detection import TITLES as BOX_TITLES

        return BOX_TITLES
    if kind == "segmentation":
        from headstart.evaluation.segmentation import TITLES as MASK_TITLES

        return MASK_TITLES
    from headstart.evaluation.classification import TITLES

    return TITLES


def _worst_classes(evaluation: AnyEvaluation) -> list[str]:
    """A line for each class with the lowest AP, IoU or recall."""
    rows: Sequence[Any] = evaluation.per_class
    match evaluation.task.kind:
        case "detection":
            lines = [
                (r.ap.value, f"class {r.name} ({r.objects} objects): AP {r.ap}, at .50 {r.ap50}")
                for r in rows
            ]
        case "segmentation":
            lines = [
                (
                    r.iou.value,
                    f"class {r.name} ({r.share:.1%} of pixels): IoU {r.iou}, Dice {r.dice}",
                )
                for r in rows
            ]
        case _:
            lines = [
                (r.recall.value, f"class {r.name} ({r.count} images): {_precision_recall(r)}")
                for r in rows
            ]
    measured = [line for line in lines if not math.isnan(line[0])]
    return [text for _, text in sorted(measured, key=lambda line: line[0])[:WORST_CLASSES]]


def _precision_recall(row: Any) -> str:
    return f"precision {row.precision}, recall {row.recall}"


def show_predictions(
    console: Console, predictions: Iterable[AnyPrediction], classes: Sequence[str]
) -> None:
    """Print predictions as a table: a row for each image, object, or class of a mask."""
    rows = [row for prediction in predictions for row in _prediction_rows(prediction, classes)]
    table = Table(box=None, padding=(0, 2))
    for title in rows[0] if rows else ():
        is_text = title in {"image", "label", "class", "abstains"}
        fold: Literal["fold", "ellipsis"] = "fold" if title == "image" else "ellipsis"
        table.add_column(title, justify="left" if is_text else "right", overflow=fold)
    for row in rows:
        table.add_row(*map(escape, row.values()))
    console.print(table, highlight=False)


def show_backbones(console: Console, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print the catalogue of backbones: a line for each.

    Parameters
    ----------
    console : Console
    rows : iterable of mapping
        As ``headstart backbones --json`` prints them.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("backbone", "px", "MB", "top1", "here", "licence", "trained on"):
        is_number = title in {"px", "MB", "top1"}
        table.add_column(
            title,
            justify="right" if is_number else "left",
            no_wrap=title != "trained on",
            overflow="fold",
        )
    for row in rows:
        sides = dict.fromkeys(row["input"])  # one number for a square
        table.add_row(
            escape(row["name"]),
            " x ".join(map(str, sides)),
            f"{row['megabytes']:.0f}" if row["megabytes"] else "–",
            f"{row['imagenet_top1']:.1f}" if row["imagenet_top1"] else "–",
            "yes" if row["on_disk"] else "no",
            escape((row["licence"] or "not stated").removesuffix("-Clause")),
            escape(row["trained_on"] or "unknown"),
        )
    console.print(table, highlight=False)


def _prediction_rows(prediction: AnyPrediction, classes: Sequence[str]) -> list[dict[str, str]]:
    """Rows of one image, each by the columns' titles."""
    from headstart.models.inference import Detections, Segmentation
    from headstart.models.prediction_files import masks_json, objects_json

    if isinstance(prediction, Detections):
        objects = objects_json([prediction], classes)[0]["objects"]
        return [
            {
                "image": prediction.name,
                "label": detected["label"],
                "score": f"{detected['score']:.3f}",
                "left, top, right, bottom": ", ".join(f"{side:.0f}" for side in detected["box"]),
            }
            for detected in objects
        ] or [dict(zip(BOX_COLUMNS, (prediction.name, "(none)", "", ""), strict=True))]
    if isinstance(prediction, Segmentation):
        shares = masks_json([prediction], classes)[0]["classes"]
        return [
            {"image": prediction.name, "class": name, "share": f"{share:.1%}"}
            for name, share in shares.items()
        ]
    labels = prediction.label
    row = {
        "image": prediction.name,
        "label": labels if isinstance(labels, str) else ", ".join(labels) or "(none)",
        "probability": f"{prediction.probability:.3f}",
    }
    if prediction.abstains is None:
        return [row]
    return [row | {"abstains": "yes" if prediction.abstains else "no"}]


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
    if kind == "detection":  # the rows above count objects, not images
        empty = [[not labels_of(s.target) for s in part.samples] for part in parts.values()]
        table.add_row("[dim]images[/]", *(str(len(flags)) for flags in empty))
        table.add_row("[dim]  of these without objects[/]", *(str(sum(flags)) for flags in empty))
    return table


def stage_table(plan: FreezePlan) -> Table:
    """Table of the stages in the order of the forward pass: what trains, and how."""
    table = Table(box=None, padding=(0, 2), pad_edge=True)
    for title in ("stage", "parameters", "trainable", "learning rate", "BatchNorm", "constant"):
        table.add_column(title, justify="left" if title in {"stage", "BatchNorm"} else "right")
    is_after_trained = False  # the input of such a stage changes, so its output does, too
    for row, constant in zip(plan.rows, plan.after_adapting().rows, strict=True):
        rate = f"{row.learning_rate:.1e}" if row.trains else "–"
        start = f" from epoch {row.from_epoch}" if row.trains and row.from_epoch > 1 else ""
        table.add_row(
            escape(row.stage),
            f"{row.parameters:,}",
            f"{row.trainable:,}",
            rate + start,
            row.batch_norm,
            "no" if is_after_trained or not constant.is_constant else "yes",
        )
        is_after_trained = is_after_trained or not constant.is_constant
    return table
