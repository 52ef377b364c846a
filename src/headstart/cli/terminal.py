"""Progress and results of a run in the terminal, in at most about 45 lines."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape

from headstart.cli.tables import (
    show_data,
    show_decision,
    show_evaluation,
    show_findings,
    stage_table,
)

if TYPE_CHECKING:
    from rich.progress import Progress

    from headstart.data.prepare import PreparedData
    from headstart.training.job import Epoch
    from headstart.workflows.events import Event, Finished, Planned

__all__ = ["Terminal", "plain_console", "terminal"]

EPOCH_LINES = 20
NOTE_LINES = 5
"""Maximum number of lines, so that the output of a run stays short."""


class Terminal:
    """Prints the events of a run; progress bars only on a terminal.

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
        self._stop_bars()

    def __call__(self, event: Event) -> None:
        """Print one event."""
        from headstart.workflows.events import (
            DataReady,
            Decided,
            EpochDone,
            Finished,
            Noted,
            Planned,
            Progressed,
        )

        match event:
            case Progressed(step=step, done=done, total=total):
                self.progress(step, done, total)
            case DataReady(prepared=prepared):
                self._stop_bars()
                self._print_data(prepared)
            case Decided(record=record):
                self._stop_bars()
                show_decision(self.console, record)
            case Planned():
                self._stop_bars()
                self._print_plan(event)
            case EpochDone(epoch=epoch, n_epochs=n_epochs, measure=measure):
                self._print_epoch(epoch, n_epochs, measure)
            case Noted(text=text):
                self._print("[bold]Note[/]  ", text)
            case Finished():
                self._stop_bars()
                self._print_result(event)

    def progress(self, step: str, done: int, total: int) -> None:
        """Update the progress bar of a step; print nothing if the output is not a terminal."""
        if not self.console.is_terminal:
            return
        if self._bars is None:
            self._bars = _create_bars(self.console)
            self._bars.start()
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=total)
        self._bars.update(self._tasks[step], completed=done)

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
        show_findings(self.console, prepared.findings)

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
        """Print a title with markup and a text without, on one line."""
        self.console.print(f"{title}{escape(text)}", highlight=False, soft_wrap=True)

    def _print_epoch(self, epoch: Epoch, most: int, measure: str) -> None:
        """Print a line for every epoch; in a long training only for every n-th."""
        if epoch.number % max(1, math.ceil(most / EPOCH_LINES)) and epoch.number < most:
            return
        mark = "* best" if epoch.is_best else f"(best: {epoch.best})"
        loss = "" if epoch.loss is None else f"loss {epoch.loss:.3f}  "
        self._print(
            f"  epoch {epoch.number:>{len(str(most))}}/{most}  ",
            f"{loss}validation {measure} {epoch.score:.3f}, loss {epoch.held_out_loss:.3f}  "
            f"{epoch.seconds:.1f} s  {mark}",
        )

    def _print_result(self, event: Finished) -> None:
        show_evaluation(self.console, event.evaluation, event.summary)
        for title, sentences in (("Forgetting", event.forgetting), ("Notes", event.notes)):
            if sentences:
                self.console.print(f"[bold]{title}[/]")
            for sentence in sentences[:NOTE_LINES]:
                self._print("  ", sentence)
        total = sum(event.seconds.values())
        steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in event.seconds.items())
        print_line = self.console.print
        print_line(f"[bold]Time[/]  {total:.1f} s ({steps})", highlight=False)
        print_line(
            f"[bold]Files[/] {escape(str(event.folder))}/: model.safetensors, model.json, "
            "report.html, predictions.csv, card.md, …",
            highlight=False,
            soft_wrap=True,
        )
        folder = shlex.quote(str(event.folder))  # can be copied into a shell
        print_line(
            f"[bold]Next[/]  headstart predict {escape(folder)} IMAGE",
            highlight=False,
            soft_wrap=True,
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
    if plan.reach is not None:
        lines["anchors"] = (
            f"{plan.reach:.0%} of the training boxes overlap an anchor (IoU of at least 0.5)"
        )
    return lines


def _format_estimate(seconds: float | None, size: int) -> str:
    if not size:
        return ""
    about = "" if seconds is None else f", about {max(1, math.ceil(seconds))} s"
    return f"{about}, {size / 1e6:.1f} MB of cache"


def _create_bars(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
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
    """Console on standard output."""
    return Console(emoji=False)  # ":symbols:" in a name is text


@contextmanager
def terminal(quiet: bool) -> Iterator[Terminal]:
    """Print events on standard output; with ``quiet``, as for ``--json``, print nothing."""
    console = Console(stderr=True, quiet=True, emoji=False) if quiet else plain_console()
    with Terminal(console) as display:
        yield display
