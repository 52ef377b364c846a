"""Progress of a call from Python: on a terminal, or below the cell of a notebook.

The function `show_progress` is public. The verbs call it through the package (docs/decisions/0018).
"""

from __future__ import annotations

import reprlib
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

from headstart.cli.heartbeat import Heartbeat
from headstart.cli.output import print_line
from headstart.cli.terminal import (
    IDLE_SECONDS,
    LONG_STEP_SECONDS,
    WORKING,
    SafeConsole,
    Terminal,
    format_epoch,
    prints_epoch,
)
from headstart.errors import UsageError
from headstart.files import printable

if TYPE_CHECKING:
    from headstart.workflows.events import DataReady, Event, Observer, Progressed

__all__ = ["NotebookDisplay", "TerminalDisplay", "event_lines", "is_notebook", "show_progress"]

FINDING_LINES = 5
"""Most findings of the checks."""
NOTEBOOK_LINES = 40
"""Most lines below a cell; the oldest are removed."""
REDRAW_SECONDS = 0.2
"""Shortest time between two updates of the progress of one step in a notebook."""


@contextmanager
def show_progress(progress: bool | None = None) -> Iterator[Observer | None]:
    """Show the progress of a call, on standard error or below the cell of a notebook.

    `headstart.fit`, ``evaluate`` and the other verbs do this themselves; they have the keyword
    ``progress``.

    Parameters
    ----------
    progress : bool, optional
        None shows progress if standard error is a terminal, and in a notebook. True shows it
        anywhere: on a pipe or in a file, a line for each step that is longer than 2 s. False shows
        nothing.

    Yields
    ------
    callable or None
        An observer, for the argument ``observer`` of a verb; None if nothing is shown.

    Raises
    ------
    UsageError
        If ``progress`` is not True, False or None.

    Examples
    --------
    >>> with show_progress(False) as observer:
    ...     print(observer)
    None
    """
    if progress is not None and not isinstance(progress, bool):
        raise UsageError(
            f"`progress` must be True, False or None, got {reprlib.repr(progress)}. Leave it out "
            "to show progress in terminals and notebooks only."
        )
    if progress is False:
        yield None
    elif is_notebook():
        with NotebookDisplay().running() as display:
            yield display
    elif progress or (sys.stderr is not None and sys.stderr.isatty()):
        console = SafeConsole(stderr=True, emoji=False)
        with Terminal(console) as terminal:
            yield TerminalDisplay(terminal)
    else:
        yield None


def is_notebook() -> bool:
    """Whether the code runs in a kernel of Jupyter; imports nothing."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return getattr(shell, "kernel", None) is not None


def event_lines(event: Event) -> list[str]:
    """Describe an event in a few lines of plain text; progress has none.

    Examples
    --------
    >>> from headstart.workflows.events import Noted
    >>> event_lines(Noted(text="The folder exists."))
    ['Note: The folder exists.']
    """
    from headstart.selection.progress import FirstModel, NextStep
    from headstart.training.interruption import StopRequested
    from headstart.workflows.events import (
        DataReady,
        Decided,
        EpochDone,
        Finished,
        Noted,
        Planned,
    )

    match event:
        case DataReady():
            return _data_lines(event)
        case FirstModel() | NextStep() | StopRequested():
            return [event.sentence()]
        case Decided(record=record):
            return [line for line in record["why"] if line.startswith("Chosen")]
        case Planned(outline=outline, backbone=backbone):
            return [f"Plan: {outline.title} on {backbone.spec.name}."]
        case EpochDone(epoch=epoch, n_epochs=n_epochs) if prints_epoch(epoch, n_epochs):
            number = f"epoch {epoch.number}/{n_epochs}"
            return [f"{number}: {format_epoch(epoch, event.measure)}"]
        case Noted(text=text):
            return [f"Note: {text}"]
        case Finished(folder=folder, summary=summary):
            return [*summary[:1], f"Report: {folder / 'report.html'}"]
        case _:
            return []


def _data_lines(event: DataReady) -> list[str]:
    """Count the images, and list the findings of the checks that are more than notes."""
    prepared = event.prepared
    data, n_classes = prepared.data, len(prepared.data.classes)
    parts = f"{len(prepared.train)} for training, {len(prepared.test)} for the test"
    found = [finding for finding in prepared.findings if finding.severity != "note"]
    found.sort(key=lambda finding: finding.severity)  # error, then warning
    more = len(found) - FINDING_LINES
    return [
        f"Data: {data.name}, {len(data)} images of {n_classes} classes: {parts}.",
        *(f"{finding.severity}: {finding.message}" for finding in found[:FINDING_LINES]),
        *([f"… and {more} more findings"] if more > 0 else []),
    ]


class TerminalDisplay:
    """Show the events of a call on standard error: the current step, and a few lines.

    Parameters
    ----------
    terminal : Terminal
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def __call__(self, event: Event) -> None:
        """Show one event."""
        from headstart.workflows.events import Progressed

        if isinstance(event, Progressed):
            self._terminal(event)
        for line in event_lines(event):
            print_line(self._terminal.console, "", line, keep=line.startswith("Report: "))


class NotebookDisplay:
    """Show the events of a call below the cell of a notebook; the lines stay in the notebook.

    It needs no widgets: the display of IPython is updated in place, at least every 2 s.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._step: Progressed | None = None
        self._handle: Any = None
        self._drawn_at = self._began_at = time.perf_counter()
        self._lock = threading.RLock()

    @contextmanager
    def running(self) -> Iterator[NotebookDisplay]:
        """Yield the display; at the end, remove the progress bar and show the time."""
        started_at = time.perf_counter()
        outcome = "Stopped by an error"
        heartbeat = Heartbeat(self._beat)
        self._begin(WORKING)
        heartbeat.start()
        try:
            yield self
            outcome = "Done"
        except KeyboardInterrupt:
            outcome = "Interrupted"
            raise
        finally:
            heartbeat.stop()
            with self._lock:
                self._step = None
                self._lines.append(f"{outcome} after {time.perf_counter() - started_at:.1f} s.")
                self._draw()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        from headstart.selection.progress import NextStep
        from headstart.workflows.events import Progressed

        with self._lock:
            if isinstance(event, Progressed):
                is_new = self._step is None or self._step.step != event.step
                if is_new:
                    self._began_at = time.perf_counter()
                self._step = event
                if is_new or time.perf_counter() - self._drawn_at > REDRAW_SECONDS:
                    self._draw()
            elif lines := event_lines(event):
                self._lines += lines
                self._begin(
                    lines[0].removeprefix("Next: ").rstrip(".")
                    if isinstance(event, NextStep)
                    else WORKING
                )
                self._draw()

    def _begin(self, name: str) -> None:
        """Note what is done until the next event."""
        from headstart.workflows.events import Progressed

        self._step, self._began_at = Progressed(step=name, done=0, total=0), time.perf_counter()

    def _beat(self) -> None:
        """Draw the current step and its time again, if nothing was drawn for some time."""
        with self._lock:
            if self._step and time.perf_counter() - self._drawn_at > IDLE_SECONDS:
                self._draw()

    def _draw(self) -> None:
        """Show the lines and the current step, in place of what was shown before."""
        display = import_module("IPython.display").display  # has no types
        content = {"text/html": self._html(), "text/plain": self._text()}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
        self._drawn_at = time.perf_counter()

    def _html(self) -> str:
        lines = "".join(f"<div>{escape(printable(line))}</div>" for line in self._shown())
        if self._step is None:
            return f"<div>{lines}</div>"
        done, total = self._step.done, self._step.total
        amount = f' value="{done}" max="{total}"' if total else ""
        text = escape(self._step_text(self._step))
        return f"<div>{lines}<div><progress{amount}></progress> {text}</div></div>"

    def _text(self) -> str:
        step = [] if self._step is None else [self._step_text(self._step)]
        return "\n".join([*map(printable, self._shown()), *step])

    def _shown(self) -> list[str]:
        n_before = len(self._lines) - NOTEBOOK_LINES
        before = [f"… {n_before} lines before"] if n_before > 0 else []
        return [*before, *self._lines[-NOTEBOOK_LINES:]]

    def _step_text(self, event: Progressed) -> str:
        """Describe the current step, with its time if it is long."""
        amount = f": {event.done}/{event.total}" if event.total else " …"
        seconds = time.perf_counter() - self._began_at
        so_far = f", {seconds:.0f} s so far" if seconds > LONG_STEP_SECONDS else ""
        return printable(f"{event.step}{amount}{so_far}")
