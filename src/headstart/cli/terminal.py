"""What a person sees of a run in a terminal: bars, plans and sentences, at most about 45 lines."""

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

    from headstart.data.prepare import Prepared
    from headstart.training.job import Epoch
    from headstart.workflows.events import Event, Finished, Planned

__all__ = ["Terminal", "plain_console", "terminal"]

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
                self._stop()
                self._data(prepared)
            case Decided(record=record):
                self._stop()
                show_decision(self.console, record)
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
        spec, weights = plan.backbone.spec, plan.backbone.origin
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
            self.console.print(stage_table(outline.plan), highlight=False)

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
            f"[bold]Next[/]  headstart predict {escape(folder)} IMAGE",
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
    precision, kept = plan.outline.precision, plan.images - plan.to_compute
    if plan.head is not None:  # there are no features
        return {"training": precision} if precision else {}
    features = (
        f"{plan.to_compute} images to compute, {kept} kept"
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
    height, width = plan.backbone.spec.preprocess.shape
    size = sum(values.size for values in plan.head.state().values())
    lines = {
        "images": f"seen whole on a canvas {width} wide, {height} high (--size)",
        "head": f"{plan.head.kind}, {size:,} parameters, on {', '.join(plan.head.taps)}",
    }
    if plan.reach is not None:
        lines["anchors"] = (
            f"{plan.reach:.0%} of the boxes to learn from overlap one by half or more"
        )
    return lines


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
