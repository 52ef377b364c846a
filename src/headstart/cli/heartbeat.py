"""A call at regular times, from a thread, while the program works and prints nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Heartbeat"]


class Heartbeat:
    """Call a function every few tenths of a second, until the block ends.

    Parameters
    ----------
    beat : callable
        It must be quick, and decides itself whether there is something to print.
    seconds : float
        Time between two calls.

    Examples
    --------
    >>> import time
    >>> beats = []
    >>> with Heartbeat(lambda: beats.append(1), seconds=0.01):
    ...     time.sleep(0.2)
    >>> len(beats) > 2
    True
    """

    def __init__(self, beat: Callable[[], None], *, seconds: float = 0.25) -> None:
        self._beat, self._seconds = beat, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headstart progress", daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._beat()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=1.0)
