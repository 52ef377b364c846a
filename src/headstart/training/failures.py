"""What ends a step early: a loss that is no number, and memory that is not there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["capture", "is_out_of_memory"]


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
