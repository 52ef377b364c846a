"""A call at regular times, from a thread, while the program works and prints nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context

__all__ = ["Heartbeat"]


class Heartbeat:
    """Call a function every few tenths of a second, from ``start`` to ``stop``.

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
    >>> heartbeat = Heartbeat(lambda: beats.append(1), seconds=0.01)
    >>> heartbeat.start()
    >>> time.sleep(0.2)
    >>> heartbeat.stop()
    >>> len(beats) > 2
    True
    """

    def __init__(self, beat: Callable[[], None], *, seconds: float = 0.25) -> None:
        self._beat, self._seconds = beat, seconds
        self._ended = threading.Event()
        # The context holds the cell of a notebook below which the calls may print.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name="headstart progress", daemon=True
        )

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._beat()

    def start(self) -> None:
        """Begin to call."""
        self._thread.start()

    def stop(self) -> None:
        """End the calls; one that runs may take up to a second more."""
        self._ended.set()
        self._thread.join(timeout=1.0)
