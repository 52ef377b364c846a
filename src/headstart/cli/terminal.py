"""Progress and results of a run in the terminal, in at most about 45 lines."""

from __future__ import annotations

import math
import os
import shlex
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.segment import Segment

from headstart.cli.heartbeat import Heartbeat
from headstart.cli.output import print_line
from headstart.cli.tables import (
    show_data,
    show_decision,
    show_evaluation,
    show_findings,
    show_summary,
    stage_table,
)
from headstart.files import printable

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.progress import Progress
    from rich.text import Text

    from headstart.cli.options import Detail
    from headstart.data.prepare import PreparedData
    from headstart.training.job import Epoch
    from headstart.workflows.events import Event, Finished, Planned

__all__ = [
    "SafeConsole",
    "Terminal",
    "format_epoch",
    "open_in_browser",
    "plain_console",
    "prints_epoch",
    "terminal",
]

EPOCH_LINES = 20
NOTE_LINES = 5
"""Maximum number of lines, so that the output of a run stays short."""
LONG_STEP_SECONDS = 2.0
"""On a pipe the end of a step is printed if the step took longer than this."""
IDLE_SECONDS = 1.0
"""On a terminal the progress line appears after this time without any output."""
WORKING = "working"
"""Name of what is done between two steps."""
PIPE_SECONDS = 10.0
"""On a pipe a line about the current step is printed after this time without any output."""
WIDE = 100
"""Columns from which a progress line has a bar and numbers of images, not only a percentage."""


class SafeConsole(Console):
    """Console that shows control characters in text as escapes."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string to text; its width is that of the escapes."""
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Escape the text of everything else, such as progress bars."""
        for segment in super().render(renderable, options):
            if segment.control is None:
                yield Segment(printable(segment.text), segment.style)
            else:
                yield segment


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What the program does at the moment; ``total`` is 0 if it is not known."""

    name: str
    started_at: float
    done: int = 0
    total: int = 0


class Terminal:
    """Prints the events of a run; progress bars only on a terminal.

    Parameters
    ----------
    console : rich.console.Console
    detail : {"quiet", "normal", "verbose"}
        Quiet prints only the summary and the files; verbose every epoch, and every step with its
        time.
    """

    def __init__(self, console: Console, detail: Detail = "normal") -> None:
        self.console = console
        self._detail = detail
        self._last_event_at = time.perf_counter()
        self._started_at: dict[str, float] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._heartbeat = Heartbeat(self._beat)
        self._printed_at = time.monotonic()
        self._current: _Step | None = None
        self._n_hidden = 0

    def __enter__(self) -> Self:
        self._heartbeat.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._heartbeat.stop()
        self._stop_bars()

    def __call__(self, event: Event) -> None:
        """Print one event."""
        with self._lock:
            self._show(event)

    def _show(self, event: Event) -> None:
        from headstart.selection.progress import FirstModel, NextStep
        from headstart.training.interruption import StopRequested
        from headstart.workflows.events import EpochDone, Finished, Noted, Progressed

        if self._detail == "quiet":
            self._print_briefly(event)
            return
        match event:
            case Progressed(step=step, done=done, total=total):
                self.progress(step, done, total)
            case EpochDone(epoch=epoch, n_epochs=n_epochs, measure=measure):
                self._print_epoch(epoch, n_epochs, measure)
            case Noted(text=text):
                self._print("[bold]Note[/]  ", text)
            case FirstModel() | NextStep() | StopRequested():
                self._print("", event.sentence())
            case _:
                self._print_section(event)
        match event:
            case NextStep():
                self._begin(event.sentence().removeprefix("Next: ").rstrip("."))
            case Finished():
                self._current = None
            case Progressed():
                pass
            case _:
                self._begin("stopping" if isinstance(event, StopRequested) else WORKING)
        self._last_event_at = time.perf_counter()

    def _begin(self, name: str) -> None:
        """Note that something was printed, and what is done until the next event."""
        self._printed_at = time.monotonic()
        if self._current is None or self._current.name != name:
            self._current = _Step(name=name, started_at=self._printed_at)

    def _beat(self) -> None:
        """Print what is done, if nothing was printed for some time."""
        with self._lock:
            step, now = self._current, time.monotonic()
            if step is None or self._detail == "quiet":
                return
            if self.console.is_terminal:
                # The progress line of a step that has not ended moves by itself.
                if step.name not in self._tasks and now - self._printed_at > IDLE_SECONDS:
                    self._draw_bar(step.name, step.done, step.total)
            elif now - self._printed_at > PIPE_SECONDS:
                amount = f" {step.done} of {step.total}," if step.total else ""
                self._print("  ", f"{step.name}:{amount} {now - step.started_at:.0f} s so far")
                self._printed_at = now

    def _print_section(self, event: Event) -> None:
        """Print an event of several lines; it ends the progress line."""
        from headstart.workflows.events import DataReady, Decided, Finished, Planned

        self._stop_bars()
        match event:
            case DataReady(prepared=prepared):
                self._print_data(prepared)
            case Decided(record=record):
                show_decision(self.console, record)
            case Planned():
                self._print_plan(event)
            case Finished():
                self._print_result(event)

    def _print_briefly(self, event: Event) -> None:
        """Print the summary and the files, or the outcome of a plan."""
        from headstart.training.interruption import StopRequested
        from headstart.workflows.events import Decided, Finished

        match event:
            case StopRequested():
                self._print("", event.sentence())
            case Decided(record=record, backbone=""):
                show_decision(self.console, record, brief=True)
            case Finished():
                show_summary(self.console, event.summary)
                self._print_files(event)

    def progress(self, step: str, done: int, total: int) -> None:
        """Update the progress line of a step; a total of 0 is not known.

        If the output is not a terminal, the end of a long step is printed, and a line every 10 s
        without other output; with all details the end of every step.
        """
        if self._detail == "quiet":
            return
        with self._lock:
            if self._current is None or self._current.name != step:
                self._current = _Step(name=step, started_at=time.monotonic())
            self._current = replace(self._current, done=done, total=total)
            if total and done >= total:
                self._current = _Step(name=WORKING, started_at=time.monotonic())
            if self._detail == "verbose" or not self.console.is_terminal:
                self._print_end(step, done, total)
            if self.console.is_terminal:
                self._draw_bar(step, done, total)
                self._printed_at = time.monotonic()

    def _draw_bar(self, step: str, done: int, total: int) -> None:
        """Draw the progress line of a step."""
        if self._bars is None:
            self._bars = _create_bars(self.console)
            self._bars.start()
        if step not in self._tasks:
            self._remove_ended()
            text = escape(printable(step))
            self._tasks[step] = self._bars.add_task(text, total=total or None)
        self._bars.update(self._tasks[step], completed=done)

    def _print_end(self, step: str, done: int, total: int) -> None:
        if not total:
            return
        started_at = self._started_at.setdefault(step, self._last_event_at)
        if done >= total:
            seconds = time.perf_counter() - self._started_at.pop(step, started_at)
            if self._detail == "verbose" or seconds > LONG_STEP_SECONDS:
                self._print("  ", f"{step}: {total} in {seconds:.1f} s")
                self._printed_at = time.monotonic()

    def _remove_ended(self) -> None:
        """Remove the lines of steps that have ended, so that one line shows the current step."""
        if self._bars is None:
            return
        by_id = {task.id: task for task in self._bars.tasks}
        for step, task_id in list(self._tasks.items()):
            if by_id[task_id].total is None or by_id[task_id].finished:
                self._bars.remove_task(task_id)
                del self._tasks[step]

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}

    def _print_data(self, prepared: PreparedData) -> None:
        parts = {"train": prepared.train}
        if prepared.val is not None:
            parts["val"] = prepared.val
        parts["test"] = prepared.test
        show_data(self.console, prepared.data, parts)
        self._n_hidden = show_findings(self.console, prepared.findings)

    def _print_plan(self, plan: Planned) -> None:
        spec, weights = plan.backbone.spec, plan.backbone.origin
        outline = plan.outline
        self._print("[bold]Plan[/]  ", f"{outline.title} on {spec.name}")
        lines = {
            "weights": f"{spec.data or 'unknown data'}, {spec.licence or 'licence unknown'}, "
            f"sha256 {weights['sha256'][:12]}… ({weights['from']})",
            **({} if outline.plan is not None else {"frozen": _frozen_line(plan)}),
            **_input_lines(plan),
            "trains": outline.trains,
            **({"cached": outline.cached} if outline.cached else {}),
            **_engine_lines(plan),
        }
        for title, text in lines.items():
            self._print(f"  {title:<9} ", text)
        if outline.plan is not None:
            self.console.print(stage_table(outline.plan), highlight=False)

    def _print(self, title: str, text: str) -> None:
        """Print a title with markup and a text without, wrapped at words."""
        print_line(self.console, title, text)

    def _print_epoch(self, epoch: Epoch, n_epochs: int, measure: str) -> None:
        """Print a line for every epoch; in a long training only for every n-th."""
        if self._detail == "verbose" or prints_epoch(epoch, n_epochs):
            title = f"  epoch {epoch.number:>{len(str(n_epochs))}}/{n_epochs}  "
            self._print(title, format_epoch(epoch, measure))

    def _print_result(self, event: Finished) -> None:
        show_evaluation(self.console, event.evaluation, event.summary)
        for title, sentences in (("Forgetting", event.forgetting), ("Notes", event.notes)):
            if sentences:
                self.console.print(f"[bold]{title}[/]")
            for sentence in sentences[:NOTE_LINES]:
                self._print("  ", sentence)
        total = sum(event.seconds.values())
        steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in event.seconds.items())
        self._print("[bold]Time[/]  ", f"{total:.1f} s ({steps})")
        self._print_files(event)
        folder = shlex.quote(str(event.folder))  # can be copied into a shell
        predict = f"headstart predict {folder} IMAGE"
        print_line(self.console, "[bold]Predict[/]  ", predict, keep=True)
        report = shlex.quote(str(event.folder / "report.html"))
        print_line(self.console, "[bold]Next:[/] ", f"open {report}", keep=True)

    def _print_files(self, event: Finished) -> None:
        self._print(
            "[bold]Files[/] ",
            f"{event.folder}/: model.safetensors, model.json, report.html, predictions.csv, "
            "card.md, …",
        )
        if self._n_hidden:
            text = f"{self._n_hidden} more than printed above; all in {event.folder}/report.json"
            self._print("[bold]Findings[/] ", text)


def prints_epoch(epoch: Epoch, n_epochs: int) -> bool:
    """Whether to print an epoch: every one, or in a long training every n-th and the last."""
    every = math.ceil(n_epochs / EPOCH_LINES)
    return epoch.number % max(1, every) == 0 or epoch.number >= n_epochs


def format_epoch(epoch: Epoch, measure: str) -> str:
    """Format losses, score and time of an epoch, and whether it is the best one."""
    mark = "* best" if epoch.is_best else f"best: {epoch.best}"
    loss = "loss " if epoch.loss is None else f"loss {epoch.loss:.3f}, "
    return (
        f"{loss}validation {epoch.held_out_loss:.3f}  {measure} {epoch.score:.3f}  "
        f"{epoch.seconds:.1f} s  {mark}"
    )


def _frozen_line(plan: Planned) -> str:
    return (
        f"{plan.parameters:,} parameters, checked by hash; BatchNorm in inference mode with fixed "
        "statistics"
    )


def _engine_lines(plan: Planned) -> dict[str, str]:
    """Arithmetic of the features, and of the training if there is one."""
    precision, cached = plan.outline.precision, plan.images - plan.to_compute
    if plan.head is not None:  # there are no features
        return {"training": precision} if precision else {}
    features = (
        f"{plan.to_compute} images to compute, {cached} cached"
        f"{_format_estimate(plan.seconds, plan.cache_bytes)}"
    )
    if plan.outline.plan is None:
        return {"engine": plan.engine.describe(), "features": features}
    training = f"; training {precision}" * bool(precision)
    return {
        "engine": f"features {plan.engine.describe()}{training}",
        "features": f"{features}, for comparison with a linear probe",
    }


def _input_lines(plan: Planned) -> dict[str, str]:
    """Input size, head and anchors, for boxes and masks."""
    if plan.head is None:
        return {}
    height, width = plan.backbone.spec.preprocess.shape
    size = sum(values.size for values in plan.head.state().values())
    lines = {
        "images": f"resized and padded to {width} x {height} pixels (--size)",
        "head": f"{plan.head.kind}, {size:,} parameters, on {', '.join(plan.head.taps)}",
    }
    if plan.anchor_recall is not None:
        lines["anchors"] = (
            f"{plan.anchor_recall:.0%} of the training boxes overlap an anchor (IoU of at least "
            "0.5)"
        )
    return lines


def _format_estimate(seconds: float | None, size: int) -> str:
    if not size:
        return ""
    about = "" if seconds is None else f", about {max(1, math.ceil(seconds))} s"
    return f"{about}, {size / 1e6:.1f} MB of cache"


def _create_bars(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.text import Text

    is_wide = console.width >= WIDE

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text("")
            rate = f" {task.speed:.0f}/s" if task.speed else ""
            wide = f"{task.completed:.0f}/{task.total:.0f}{rate}"
            return Text(wide if is_wide else f"{task.percentage:.0f} %")

    class Clock(ProgressColumn):
        """Seconds left; seconds so far where the end is not known."""

        def render(self, task: Task) -> Text:
            if task.total is None or task.finished or task.time_remaining is None:
                return Text(f"{task.elapsed or 0:.0f} s")
            return Text(f"{task.time_remaining:.0f} s left")

    bars = (BarColumn(),) if is_wide else ()
    columns = SpinnerColumn(), TextColumn("{task.description}"), *bars, Amount(), Clock()
    return Progress(*columns, console=console, transient=True)


def open_in_browser(page: Path, console: Console) -> bool:
    """Open a page in the browser; only on a terminal, and not in CI.

    Returns
    -------
    bool
        Whether a browser was asked.
    """
    if not console.is_terminal or os.environ.get("CI") or "PYTEST_CURRENT_TEST" in os.environ:
        return False
    import webbrowser

    return webbrowser.open(page.resolve().as_uri())


def plain_console() -> Console:
    """Console on standard output."""
    return SafeConsole(emoji=False)  # ":symbols:" in a name is text


@contextmanager
def terminal(silent: bool, detail: Detail = "normal") -> Iterator[Terminal]:
    """Print events on standard output; with ``silent``, as for ``--json``, print nothing."""
    console = SafeConsole(stderr=True, quiet=True, emoji=False) if silent else plain_console()
    with Terminal(console, detail) as display:
        yield display
