"""Record the first minute of a run on a terminal with 80 columns: docs/first_minute.md.

    python docs/make_recording.py

The command runs in a pseudo-terminal. Every line is written with the time at which it appeared;
of the moving progress line, its text is kept every few seconds. Needs Linux or macOS.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

COLUMNS, ROWS = 80, 50
FIRST_SECONDS = 60.0
PROGRESS_SECONDS = 2.0
COMMAND = ("fit", "demo:scenes", "--offline", "--budget", "20s")
PAGE = Path(__file__).with_name("first_minute.md")
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
PROGRESS = re.compile(rf"[{SPINNER}]|.* \d+ % .*\d s(?: left)?$")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BEGINNING = """# The first minute

```console
$ headstart {command}
```

prints this on a terminal with {columns} columns, with an empty cache. It is the run of `make demo`.
The time in seconds is on the left. A line that begins with `…` is the progress line at that moment;
on the screen it moves in place. `docs/make_recording.py` made this page from a real run on {cores}
cores.

```text
{lines}
```

The whole run took {seconds:.0f} s. What the lines mean: [commands.md](commands.md),
[race.md](race.md), [report.md](report.md).
"""


class Recorder:
    """Lines of a terminal, and texts of its progress line, with their times."""

    def __init__(self) -> None:
        self.started_at = time.perf_counter()
        self.rows: list[tuple[float, str]] = []
        self._open = ""
        self._shown_at = 0.0

    def feed(self, text: str) -> None:
        """Take a piece of output."""
        seconds = time.perf_counter() - self.started_at
        *ended, self._open = (self._open + CONTROL.sub("", text)).split("\n")
        for line in map(_last_state, ended):
            # A progress line that ends is removed from the screen at once.
            if not PROGRESS.match(line):
                self.rows.append((seconds, line))
                self._shown_at = seconds
        moving = _last_state(self._open)
        if moving and seconds - self._shown_at > PROGRESS_SECONDS:
            self.rows.append((seconds, f"… {moving.lstrip(SPINNER + ' ')}"))
            self._shown_at = seconds


def _last_state(line: str) -> str:
    """Text of a line after its last carriage return: what it shows in the end."""
    return line.rstrip("\r").rpartition("\r")[2].rstrip()


def record(command: tuple[str, ...], folder: Path) -> tuple[Recorder, float]:
    """Run the command line in a pseudo-terminal; return its lines and the seconds it took."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "HEADSTART_CACHE": str(folder / "cache")}
    recorder = Recorder()
    process = subprocess.Popen(  # noqa: S603 - a fixed command
        [sys.executable, "-m", "headstart", *command],
        stdout=terminal, stderr=terminal, cwd=folder, env=environment,
    )  # fmt: skip
    os.close(terminal)
    while True:
        try:
            piece = os.read(screen, 65536)
        except OSError:  # the program has ended
            break
        if not piece:
            break
        recorder.feed(piece.decode(errors="replace"))
    if process.wait():
        raise SystemExit("\n".join(line for _, line in recorder.rows))
    return recorder, time.perf_counter() - recorder.started_at


def page(recorder: Recorder, seconds: float) -> str:
    """Write the page from a recording."""
    rows = [(at, line) for at, line in recorder.rows if at <= FIRST_SECONDS]
    lines = "\n".join(f"{at:5.1f}  {line}".rstrip() for at, line in rows)
    return BEGINNING.format(
        command=" ".join(COMMAND),
        columns=COLUMNS,
        cores=os.cpu_count(),
        lines=lines,
        seconds=seconds,
    )


def main() -> None:
    """Record, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        recorder, seconds = record(COMMAND, Path(folder))
    PAGE.write_text(page(recorder, seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
