"""Ctrl-C between two steps, never inside one: what is left can be taken up again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from headstart.distributed import world

__all__ = ["Interruption"]


class Interruption:
    """Holds a first Ctrl-C back while something must not be left half done; a second one not.

    Ctrl-C is heard so within ``with``, in the main thread, where nobody else listens to it and
    there is one process: of several, one that steps on would wait for another that has left.

    Attributes
    ----------
    whole : bool
        Whether nothing is half done.

    Examples
    --------
    >>> with Interruption() as interruption:
    ...     with interruption.held():
    ...         interruption.whole
    ...     interruption.whole
    False
    True
    """

    def __init__(self) -> None:
        self.whole = True
        self._is_asked = self._listens = False

    def __enter__(self) -> Self:
        alone = world() == 1 and threading.current_thread() is threading.main_thread()
        if alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._listens = True
            signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._listens = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.whole or self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Finish the block before Ctrl-C is obeyed; an error within leaves ``whole`` False."""
        self.whole = False
        yield
        self.whole = True
        if self._is_asked:
            raise KeyboardInterrupt
