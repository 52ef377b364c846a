"""What ends a step early: a loss that is no number, and memory that is not there."""

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

from headstart.distributed import world

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Interruption", "capture", "is_out_of_memory"]


def capture(
    folder: Path | None, state: Mapping[str, Tensor], rows: NDArray[np.intp], batch: NDArray[Any]
) -> Path:
    """Write what is needed to compute a loss once more.

    Parameters
    ----------
    folder : Path or None
        Made if need be; None for a new one among the temporary files.
    state : mapping of str to torch.Tensor
        Written as ``weights.<name>``.
    rows : array, shape (n,)
    batch : array, shape (n, ...)
        Written as ``inputs``.

    Returns
    -------
    Path
        Of a safetensors file.

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
    captured = {f"weights.{name}": tensor.contiguous() for name, tensor in state.items()}
    captured["rows"] = torch.from_numpy(np.ascontiguousarray(rows))
    captured["inputs"] = torch.from_numpy(np.ascontiguousarray(batch))
    save_file(captured, path)
    return path


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: of a device's by a class of its own, of the CPU's in words.

    Examples
    --------
    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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
