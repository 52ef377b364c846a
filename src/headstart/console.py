"""What a person sees in a terminal: tables, bars and sentences, at most about 45 lines."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headstart.data.samples import labels_of

if TYPE_CHECKING:
    from rich.progress import Progress

    from headstart.data.checks import Finding
    from headstart.data.prepare import Prepared
    from headstart.data.samples import Dataset
    from headstart.evaluation import AnyEvaluation
    from headstart.events import Event, Finished, Planned
    from headstart.freezing import FreezePlan
    from headstart.model import Prediction
    from headstart.training.job import Epoch

__all__ = [
    "Terminal",
    "plain_console",
    "show_data",
    "show_evaluation",
    "show_findings",
    "show_predictions",
    "terminal",
]

CLASS_LINES = 10
FINDING_LINES = 5
WORST_CLASSES = 5
EPOCH_LINES = 20
NOTE_LINES = 5


class Terminal:
    """Shows a run's events; bars only where a person watches.

    Parameters
    ----------
    console : rich.console.Console
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        from headstart.events import DataReady, EpochDone, Finished, Noted, Planned, Progressed

        match event:
            case Progressed(step=step, done=done, total=total):
                self.progress(step, done, total)
            case DataReady(prepared=prepared):
                self._stop()
                self._data(prepared)
            case Planned():
                self._stop()
                self._plan(event)
            case EpochDone(epoch=epoch, most=most, measure=measure):
                self._epoch(epoch, most, measure)
            case Noted(text=text):
                self._say("[bold]Note[/]  ", text)
            case Finished():
                self._stop()
                self._verdict(event)

    def progress(self, step: str, done: int, total: int) -> None:
        """Move the bar of a step; on anything but a terminal nothing is shown."""
        if not self.console.is_terminal:
            return
        if self._bars is None:
            self._bars = _bars(self.console)
            self._bars.start()
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=total)
        self._bars.update(self._tasks[step], completed=done)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}

    def _data(self, prepared: Prepared) -> None:
        parts = {"train": prepared.train, "held out": prepared.test}
        if prepared.val is not None:
            parts = {"train": prepared.train, "val": prepared.val, "held out": prepared.test}
        show_data(self.console, prepared.data, parts)
        show_findings(self.console, prepared.findings)

    def _plan(self, plan: Planned) -> None:
        spec, weights = plan.trunk.spec, plan.trunk.origin
        outline = plan.outline
        self._say("[bold]Plan[/]  ", f"{outline.title} on {spec.name}")
        lines = {
            "weights": f"{spec.data or 'unknown data'}, {spec.licence or 'licence not stated'}, "
            f"sha256 {weights['sha256'][:12]}… ({weights['from']})",
            **({} if outline.plan is not None else {"frozen": _frozen(plan)}),
            **_seen_whole(plan),
            "trains": outline.trains,
            **({"kept": outline.kept} if outline.plan is not None else {}),
            **_arithmetic(plan),
        }
        for title, text in lines.items():
            self._say(f"  {title:<9} ", text)
        if outline.plan is not None:
            self.console.print(_stage_table(outline.plan), highlight=False)

    def _say(self, title: str, text: str) -> None:
        """Print a title as it is, and text without any markup."""
        self.console.print(f"{title}{escape(text)}", highlight=False, soft_wrap=True)

    def _epoch(self, epoch: Epoch, most: int, measure: str) -> None:
        """Show one line an epoch; of a long training every n-th, with the best until then."""
        if epoch.number % max(1, math.ceil(most / EPOCH_LINES)) and epoch.number < most:
            return
        mark = "* best" if epoch.is_best else f"(best: {epoch.best})"
        loss = "" if epoch.loss is None else f"loss {epoch.loss:.3f}  "
        self._say(
            f"  epoch {epoch.number:>{len(str(most))}}/{most}  ",
            f"{loss}held-out {measure} {epoch.score:.3f}, loss {epoch.held_out_loss:.3f}  "
            f"{epoch.seconds:.1f} s  {mark}",
        )

    def _verdict(self, event: Finished) -> None:
        show_evaluation(self.console, event.evaluation, event.verdict)
        for title, found in (("Kept", event.kept), ("Notes", event.notes)):
            if found:
                self.console.print(f"[bold]{title}[/]")
            for sentence in found[:NOTE_LINES]:
                self._say("  ", sentence)
        total = sum(event.seconds.values())
        slowest = ", ".join(f"{step} {seconds:.1f}" for step, seconds in event.seconds.items())
        say = self.console.print
        say(f"[bold]Time[/]  {total:.1f} s ({slowest})", highlight=False)
        say(
            f"[bold]Files[/] {escape(str(event.folder))}/: model.safetensors, model.json, "
            "report.html, predictions.csv, card.md, …",
            highlight=False,
            soft_wrap=True,
        )
        folder = shlex.quote(str(event.folder))  # to be copied into a shell
        say(
            f"[bold]Next[/]  headstart predict {escape(folder)} PICTURE",
            highlight=False,
            soft_wrap=True,
        )


def _frozen(plan: Planned) -> str:
    return (
        f"{plan.parameters:,} parameters; BatchNorm in inference mode, statistics constant "
        "(checked by hash)"
    )


def _arithmetic(plan: Planned) -> dict[str, str]:
    """Say what computes: the features, and the training if there is one."""
    precision, kept = plan.outline.precision, plan.pictures - plan.to_compute
    if plan.head is not None:  # there are no features
        return {"training": precision} if precision else {}
    features = (
        f"{plan.to_compute} pictures to compute, {kept} kept"
        f"{_estimate(plan.seconds, plan.cache_bytes)}"
    )
    if plan.outline.plan is None:
        return {"engine": plan.engine.describe(), "features": features}
    training = f"; training {precision}" * bool(precision)
    return {
        "engine": f"features {plan.engine.describe()}{training}",
        "features": f"{features}, to compare with a probe",
    }


def _seen_whole(plan: Planned) -> dict[str, str]:
    """Say how large boxes and masks are learned, and with what head."""
    if plan.head is None:
        return {}
    height, width = plan.trunk.spec.preprocess.shape
    size = sum(values.size for values in plan.head.state().values())
    lines = {
        "pictures": f"seen whole on a canvas {width} wide, {height} high (--size)",
        "head": f"{plan.head.kind}, {size:,} parameters, on {', '.join(plan.head.taps)}",
    }
    if plan.reach is not None:
        lines["anchors"] = (
            f"{plan.reach:.0%} of the boxes to learn from overlap one by half or more"
        )
    return lines


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
    for left, right in zip_longest(cells[::2], cells[1::2], fillvalue=("", "")):
        table.add_row(*map(escape, (*left, *right)))
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


def show_predictions(console: Console, predictions: Sequence[Prediction]) -> None:
    """Show predictions as a table: picture, label, probability."""
    table = Table(box=None, padding=(0, 2))
    for title in ("picture", "label", "probability"):
        table.add_column(title, justify="right" if title == "probability" else "left")
    for item in predictions:
        label = item.label if isinstance(item.label, str) else ", ".join(item.label) or "(none)"
        table.add_row(escape(item.name), escape(label), f"{item.probability:.3f}")
    console.print(table, highlight=False)


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


def _stage_table(plan: FreezePlan) -> Table:
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


def _estimate(seconds: float | None, size: int) -> str:
    if not size:
        return ""
    about = "" if seconds is None else f", about {max(1, math.ceil(seconds))} s"
    return f"{about}, {size / 1e6:.1f} MB of cache"


def _bars(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:.0f}/s" if task.speed else "")

    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def plain_console() -> Console:
    """Standard output for people."""
    return Console(emoji=False)  # ":symbols:" in a name is text


@contextmanager
def terminal(quiet: bool) -> Iterator[Terminal]:
    """Show events on standard output; with ``quiet`` nowhere, as where a document stands alone."""
    console = Console(stderr=True, quiet=True, emoji=False) if quiet else plain_console()
    with Terminal(console) as shown:
        yield shown
