"""Interruptions of a training: loss that is not finite, lack of memory, and Ctrl-C."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from headstart.distributed.processes import world_size

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Interruption",
    "StopRequest",
    "StopRequested",
    "capture",
    "is_out_of_memory",
    "stop_sentences",
]

NO_MODEL = "Stopping: there is no model yet. Results in the cache are kept."
"""Sentence for a Ctrl-C before the first model of a run."""


def capture(
    folder: Path | None, state: Mapping[str, Tensor], rows: NDArray[np.intp], batch: NDArray[Any]
) -> Path:
    """Write the weights and the batch, so that the loss can be computed again.

    Parameters
    ----------
    folder : Path or None
        Created if needed; None for a new folder among the temporary files.
    state : mapping of str to torch.Tensor
        Written as ``weights.<name>``.
    rows : array, shape (n,)
    batch : array, shape (n, ...)
        Written as ``inputs``.

    Returns
    -------
    Path
        Path of the safetensors file.

    Examples
    --------
    >>> import tempfile, torch
    >>> rows, batch = np.array([4, 7]), np.zeros((2, 3), np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     capture(Path(folder), {"w": torch.ones(2)}, rows, batch).name
    'batch-not-finite.safetensors'
    """
    import torch
    from safetensors.torch import save_file

    folder = folder or Path(tempfile.mkdtemp(prefix="headstart-batch-"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "batch-not-finite.safetensors"
    tensors = {f"weights.{name}": tensor.contiguous() for name, tensor in state.items()}
    tensors["rows"] = torch.from_numpy(np.ascontiguousarray(rows))
    tensors["inputs"] = torch.from_numpy(np.ascontiguousarray(batch))
    save_file(tensors, path)
    return path


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory. On a CPU only the text of the error shows it.

    Examples
    --------
    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Interruption:
    """Delay of a first Ctrl-C until a block is complete. A second Ctrl-C is not delayed.

    It works within ``with``, in the main thread, if nothing else handles Ctrl-C and there is only
    one process. Of several processes, one that continues would wait for one that has stopped.

    Attributes
    ----------
    is_consistent : bool
        Whether no block is incomplete.

    Examples
    --------
    >>> with Interruption() as interruption:
    ...     with interruption.delayed():
    ...         interruption.is_consistent
    ...     interruption.is_consistent
    False
    True
    """

    def __init__(self) -> None:
        self.is_consistent = True
        self._is_requested = self._is_installed = False

    def __enter__(self) -> Self:
        self._is_installed = _install(self._on_sigint)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._is_installed = False

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        if self.is_consistent or self._is_requested:
            raise KeyboardInterrupt
        self._is_requested = True

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Finish the block before Ctrl-C takes effect. After an error it counts as incomplete."""
        self.is_consistent = False
        yield
        self.is_consistent = True
        if self._is_requested:
            raise KeyboardInterrupt


@dataclass(frozen=True, kw_only=True)
class StopRequested:
    """Ctrl-C was pressed, or a callback has stopped the run.

    Parameters
    ----------
    text : str
        What follows, in one sentence.

    Examples
    --------
    >>> StopRequested().sentence()
    'Stopping after this step; press Ctrl-C again to stop now.'
    """

    text: str = "Stopping after this step; press Ctrl-C again to stop now."

    def sentence(self) -> str:
        """Acknowledge the key in one line."""
        return self.text


class StopRequest:
    """Handling of Ctrl-C: acknowledged at once; with a model, the run stops at its next safe point.

    Before ``keep_model`` a first Ctrl-C raises ``KeyboardInterrupt``; afterwards it sets
    ``is_requested``, and only a second one raises. It handles Ctrl-C within ``with``, in the main
    thread of a single process, if nothing else does. Within another `StopRequest` it shares the
    state of that one.

    Parameters
    ----------
    notify : callable
        Called once with ``StopRequested``, in another thread, because the signal may interrupt
        a write to the same log.
    always_ends : str
        For work that has no partial result: the sentence for a Ctrl-C. ``keep_model`` then does
        nothing.

    Attributes
    ----------
    is_requested, is_forced : bool
        Whether Ctrl-C was pressed once, or twice.

    Examples
    --------
    >>> events = []
    >>> with StopRequest(events.append) as stop:
    ...     stop.keep_model()
    ...     signal.raise_signal(signal.SIGINT)
    ...     stop.is_requested
    True
    >>> events
    [StopRequested(text='Stopping after this step; press Ctrl-C again to stop now.')]
    """

    def __init__(self, notify: Callable[[StopRequested], None], *, always_ends: str = "") -> None:
        self._is_requested = self._is_forced = self._has_model = False
        self._is_pending = self._is_by_callback = False
        self._notify = notify
        self._always_ends = always_ends
        self._outer: StopRequest | None = None
        self._is_installed = False
        self._messenger: threading.Thread | None = None

    @property
    def is_requested(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._is_requested or (self._outer is not None and self._outer.is_requested)

    @property
    def is_by_callback(self) -> bool:
        """Whether a callback stopped the run, not Ctrl-C."""
        return self._is_by_callback or (self._outer is not None and self._outer.is_by_callback)

    @property
    def source(self) -> str:
        """What stopped the run, in words."""
        return "a callback" if self.is_by_callback else "Ctrl-C"

    @property
    def is_forced(self) -> bool:
        """Whether Ctrl-C was pressed again, or before there was a model."""
        return self._is_forced or (self._outer is not None and self._outer.is_forced)

    def __enter__(self) -> Self:
        owner = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if isinstance(owner, StopRequest):
            self._outer = owner
        else:
            self._is_installed = _install(self._on_sigint)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._is_installed = False
        if self._messenger is not None:
            self._messenger.join()

    def keep_model(self) -> None:
        """From now on, a first Ctrl-C ends the current step, not the run."""
        self._has_model = not self._always_ends
        if self._is_pending:
            self.request()
        if self._outer is not None:
            self._outer.keep_model()

    def request(self) -> None:
        """Stop as a first Ctrl-C does, for a callback; without a model as soon as there is one."""
        self._is_pending = not self._has_model
        if self._has_model and not self._is_requested:
            self._is_requested = self._is_by_callback = True
            self._notify(StopRequested(text="Stopping after this step, for a callback."))

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        self._is_forced = self._is_requested or not self._has_model
        if not self._is_requested:
            self._is_requested = True
            text = self._always_ends or NO_MODEL
            event = StopRequested() if self._has_model else StopRequested(text=text)
            self._messenger = threading.Thread(target=self._notify, args=(event,))
            self._messenger.start()
        if self._is_forced:
            raise KeyboardInterrupt


def stop_sentences(stop: StopRequest, record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sentence about Ctrl-C or a callback, if it ended a part of the run.

    Parameters
    ----------
    stop : StopRequest
        Of the run.
    record : mapping
        Of the model.

    Examples
    --------
    >>> stop = StopRequest(lambda event: None)
    >>> stop_sentences(stop, {})
    ()
    >>> stop_sentences(stop, {"interrupted": True, "epochs": [0, 1, 2]})[0][:41]
    'STOPPED BY HAND after 2 complete epochs. '
    """
    by = "STOPPED BY A CALLBACK" if stop.is_by_callback else "STOPPED BY HAND"
    if record.get("interrupted"):
        n_epochs = len(record["epochs"]) - 1
        sentence = (
            f"{by} after {n_epochs} complete epochs. This is the best model so far. "
            "Pass --resume to continue."
        )
    elif record.get("decision", {}).get("stopped"):
        sentence = (
            f"{by} during the race: this is the best candidate so far. Run the same "
            "command again to compare all candidates; features in the cache are reused."
        )
    elif stop.is_requested:
        sentence = (
            f"{by} after the training: the model is complete. Label errors and weak "
            "subgroups were not looked for."
        )
    else:
        return ()
    return (sentence,)


def _install(handler: Callable[[int, FrameType | None], None]) -> bool:
    """Handle Ctrl-C in the main thread of a single process, if nothing else does.

    Of several processes, one that continues would wait for one that has stopped.
    """
    is_alone = world_size() == 1 and threading.current_thread() is threading.main_thread()
    if not is_alone or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    signal.signal(signal.SIGINT, handler)
    return True
