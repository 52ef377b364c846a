"""Callbacks of a run: functions and objects that get its events and may stop it."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from typing import Any

from headstart.distributed.processes import world_size
from headstart.errors import UsageError
from headstart.training.interruption import StopRequest
from headstart.training.job import Stop
from headstart.workflows.events import EpochDone, Event, Observer, require_observer

__all__ = ["Callbacks"]


class Callbacks:
    """Pass each event to an observer and to callbacks, and stop the run if one asks for it.

    Parameters
    ----------
    callbacks : iterable
        Functions that get every event, or objects with ``on_epoch`` (gets each ``EpochDone``) or
        ``on_event`` (gets every event), or both. A result of ``headstart.STOP`` or True stops the
        run; None and False do not.
    observer : callable, optional
        Gets every event first; its result is ignored.

    Attributes
    ----------
    stop : StopRequest or None
        Of the run; a stop signal without one is ignored.

    Raises
    ------
    UsageError
        If a callback is neither, or the observer is no function.

    Examples
    --------
    >>> from headstart.workflows.events import Noted
    >>> callbacks = Callbacks([lambda event: event.text == "enough"])
    >>> callbacks.stop = StopRequest(lambda event: None)
    >>> callbacks.stop.keep_model()
    >>> callbacks(Noted(text="enough"))
    >>> callbacks.stop.is_requested
    True
    """

    def __init__(self, callbacks: Iterable[Any] = (), observer: Observer | None = None) -> None:
        if not isinstance(callbacks, Iterable) or isinstance(callbacks, str):
            raise UsageError(
                f"`callbacks` must be a list, got {reprlib.repr(callbacks)}. Pass a list such as "
                "callbacks=[callback]."
            )
        require_observer(observer)
        self._callbacks = tuple(callbacks)
        self._observer = observer
        self.stop: StopRequest | None = None
        for callback in self._callbacks:
            _require_callback(callback)

    def require_one_process(self) -> None:
        """Refuse callbacks where several processes train: one that stopped would leave the others.

        Raises
        ------
        UsageError
            If there are callbacks and several processes.
        """
        if self._callbacks and world_size() > 1:
            raise UsageError(
                f"`callbacks` cannot be used in {world_size()} processes. Leave them out, or start "
                "one process."
            )

    def __call__(self, event: Event) -> None:
        """Pass on an event."""
        if self._observer is not None:
            self._observer(event)
        for callback in self._callbacks:
            for name, method in _methods(callback, event):
                if _is_stop(name, method(event)) and self.stop is not None:
                    self.stop.request()


def _is_stop(name: str, result: object) -> bool:
    if result is None or isinstance(result, bool | Stop):
        return bool(result)
    raise UsageError(
        f"{name} returned {reprlib.repr(result)}. Make it return headstart.STOP to stop the run, "
        "or nothing."
    )


def _require_callback(callback: object) -> None:
    methods = [getattr(callback, name, None) for name in ("on_epoch", "on_event")]
    if isinstance(callback, type) and any(methods):
        raise UsageError(
            f"A callback must be an object, got the class {callback.__name__}. Pass "
            f"{callback.__name__}()."
        )
    if not callable(callback) and not any(map(callable, methods)):
        raise UsageError(
            f"A callback must be a function or have a method `on_epoch` or `on_event`, got "
            f"{reprlib.repr(callback)}. Add `def on_epoch(self, event)`."
        )


def _methods(callback: Any, event: Event) -> list[tuple[str, Callable[[Event], object]]]:
    """Methods of a callback that get this event, with their names."""
    kind = type(callback).__name__
    on_event = getattr(callback, "on_event", None)
    on_epoch = getattr(callback, "on_epoch", None)
    methods: list[tuple[str, Callable[[Event], object]]] = []
    if callable(on_event):
        methods.append((f"{kind}.on_event", on_event))
    if callable(on_epoch) and isinstance(event, EpochDone):
        methods.append((f"{kind}.on_epoch", on_epoch))
    if not callable(on_event) and not callable(on_epoch):
        methods.append((getattr(callback, "__name__", kind), callback))
    return methods
