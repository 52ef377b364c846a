"""Interruptions of a training: loss that is not finite, lack of memory, and Ctrl-C."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from headstart.distributed import world_size

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Interruption", "capture", "is_out_of_memory"]


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
        can_handle = world_size() == 1 and threading.current_thread() is threading.main_thread()
        if can_handle and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._is_installed = True
            signal.signal(signal.SIGINT, self._on_sigint)
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
