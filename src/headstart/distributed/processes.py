"""Training in several processes: ranks, sums, broadcasts. Without a launcher nothing changes.

This is the only file that calls ``torch.distributed``. A launcher (``torchrun``,
``accelerate launch``) starts the same command several times and passes each process its rank
in environment variables; ``start`` reads them. Before that, and without a launcher, there is one
process, of rank 0. The processes exchange tensors only, never pickles.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import SetupError, UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor, device

__all__ = [
    "barrier",
    "broadcast_tensors",
    "is_main",
    "local_rows",
    "main_first",
    "mean_gradients",
    "processes",
    "rank",
    "start",
    "started",
    "stop",
    "sum_scalar",
    "world_size",
]

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
JOIN_TIMEOUT = timedelta(minutes=5)
"""Time that a process waits for the others at the start."""

OPERATION_TIMEOUT = timedelta(days=1)
"""Time that a process waits for the others later. It is long because the first process may fill
the cache for hours. When a process dies, the launcher ends the others."""

_join_numbers = itertools.count()
"""Counts the calls of ``start`` that join. The launcher keeps its store, so a second call without
a prefix of its own may read the addresses of the first."""


def start(device: str = "auto") -> bool:
    """Join the processes that a launcher has started. Without a launcher, do nothing.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        Device that the processes compute on. CPUs use the backend gloo, GPUs NCCL, with one GPU
        for each process; ``auto`` takes GPUs if there are any.

    Returns
    -------
    bool
        Whether this call joined them; the caller must then call ``stop``. False without a
        launcher, and if the caller's own program has joined already.

    Raises
    ------
    SetupError
        If variables of the launcher are missing or invalid, or there are more processes than
        GPUs.

    Examples
    --------
    >>> start(), world_size()  # nothing has launched this example
    (False, 1)
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise UnknownNameError("device", device, ["auto", "cpu", "cuda"])
    if os.environ.get("WORLD_SIZE", "1").strip() in {"", "1"} or started():
        return False
    local_rank = _local_rank(os.environ)
    import torch

    torch_distributed = _torch_distributed()
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            count = f"{gpus} GPU" if gpus == 1 else f"{gpus} GPUs"
            at_most = f"Launch at most {gpus} processes on it, or use" if gpus else "Use"
            raise SetupError(
                f"This machine has {count}, too few for {local_rank + 1} or more processes. "
                f"{at_most} the device cpu."
            )
        torch.cuda.set_device(local_rank)
    try:
        store, number, size = next(torch_distributed.rendezvous("env://", timeout=JOIN_TIMEOUT))
        torch_distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=torch_distributed.PrefixStore(f"headstart/{next(_join_numbers)}", store),
            rank=number,
            world_size=size,
            timeout=OPERATION_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise SetupError(
            f"Cannot join the other processes at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {error}. Launch all of them with torchrun or "
            "accelerate launch."
        ) from error
    return True


def stop() -> None:
    """Leave the other processes. Without others, do nothing.

    Examples
    --------
    >>> stop()
    """
    if started():
        _torch_distributed().destroy_process_group()


@contextmanager
def processes(device: str = "auto") -> Iterator[None]:
    """Join the processes of a launcher, if there is one, and leave them after the block.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "mps"}
        As for ``start``; ``mps`` joins as ``cpu``, because there is no backend for Apple's GPUs.

    Examples
    --------
    >>> with processes():
    ...     world_size()
    1
    """
    joined = start("cpu" if device == "mps" else device)
    try:
        yield
    finally:
        if joined:
            stop()


def started() -> bool:
    """Whether this process has joined others.

    Examples
    --------
    >>> started()
    False
    """
    # A process that joined has imported the module, so that no import of torch is needed here.
    module = sys.modules.get("torch.distributed")
    return module is not None and bool(module.is_available() and module.is_initialized())


def rank() -> int:
    """Return the number of this process, from 0.

    Examples
    --------
    >>> rank()
    0
    """
    return int(_torch_distributed().get_rank()) if started() else 0


def world_size() -> int:
    """Return the number of processes.

    Examples
    --------
    >>> world_size()
    1
    """
    return int(_torch_distributed().get_world_size()) if started() else 1


def is_main() -> bool:
    """Whether this process writes the files and prints.

    Examples
    --------
    >>> is_main()
    True
    """
    return rank() == 0


def barrier() -> None:
    """Wait until every process has reached this line.

    Examples
    --------
    >>> barrier()
    """
    # A sum waits for all processes, and needs no options of the backend.
    sum_scalar(0.0)


@contextmanager
def main_first() -> Iterator[None]:
    """Run a block in the main process, then in the others, for example to fill a cache once.

    After an error in the main process the others run the block too, and raise their own error.

    Examples
    --------
    >>> with main_first():
    ...     filled = True
    """
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def local_rows(rows: Sequence[int] | NDArray[np.intp]) -> NDArray[np.intp]:
    """Return this process's part of a global batch.

    The parts are contiguous, in the order of ranks, and differ by at most one row. If each
    process weights the mean over its part by ``len(part) * world_size() / len(rows)``, then
    ``mean_gradients`` gives the gradient of the mean over all rows.

    Parameters
    ----------
    rows : sequence of int, shape (n,)

    Returns
    -------
    array
        Shape (n // world,) or one more; empty if there are fewer rows than processes.

    Examples
    --------
    >>> local_rows([4, 7, 9])
    array([4, 7, 9])
    """
    return np.array_split(np.asarray(rows, dtype=np.intp), world_size())[rank()]


def sum_scalar(value: float) -> float:
    """Sum a number over all processes, in float64.

    Examples
    --------
    >>> sum_scalar(0.1)
    0.1
    """
    if world_size() == 1:
        return value
    import torch

    total = torch.tensor([value], dtype=torch.float64, device=_backend_device())
    _torch_distributed().all_reduce(total)
    return float(total)


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes.

    Parameters
    ----------
    parameters : iterable of torch.Tensor
        In the same order in all processes. A gradient that is missing in some processes counts
        as zero there; one that is missing in all stays None. ``grad`` is changed in place.

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> weight.grad = torch.ones(2)
    >>> mean_gradients([weight])
    >>> weight.grad
    tensor([1., 1.])
    """
    if world_size() == 1:
        return
    import torch

    parameters = list(parameters)
    has_gradient = [parameter.grad is not None for parameter in parameters]
    # Processes must agree on the parameters to average: the sum counts the gradients of each.
    counts = torch.tensor(has_gradient, dtype=torch.float32).to(_backend_device())
    _torch_distributed().all_reduce(counts)
    trained = [p for p, count in zip(parameters, counts.tolist(), strict=True) if count]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        _change_flat([g for g in gradients if g.dtype == dtype], _all_reduce_mean)


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Copy the values of the main process to all processes, bit for bit.

    Parameters
    ----------
    tensors : iterable of torch.Tensor
        Same shapes and dtypes in the same order in all processes; changed in place.

    Examples
    --------
    >>> import torch
    >>> broadcast_tensors([torch.ones(2)])
    """
    if world_size() == 1:
        return
    tensors = [tensor.detach() for tensor in tensors]
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        _change_flat([t for t in tensors if t.dtype == dtype], _broadcast_from_main)


def _change_flat(tensors: Sequence[Tensor], change: Callable[[Tensor], None]) -> None:
    """Apply ``change`` to tensors of one dtype as one buffer: one message, not hundreds."""
    import torch

    with torch.no_grad():
        flat = torch.cat([tensor.detach().reshape(-1).to(_backend_device()) for tensor in tensors])
        if flat.numel():
            change(flat)
        ends = np.cumsum([0, *(tensor.numel() for tensor in tensors)]).tolist()
        for tensor, (start, end) in zip(tensors, itertools.pairwise(ends), strict=True):
            tensor.copy_(flat[start:end].view(tensor.shape))


def _all_reduce_mean(flat: Tensor) -> None:
    _torch_distributed().all_reduce(flat)
    flat.div_(world_size())


def _broadcast_from_main(flat: Tensor) -> None:
    import torch

    # As bytes: a backend supports some dtypes only, but all support bytes.
    _torch_distributed().broadcast(flat.view(torch.uint8), src=0)


def _backend_device() -> device:
    """Return the device on which the backend needs its tensors."""
    import torch

    # The text lists backends by device, as in "cpu:gloo,cuda:nccl". NCCL has no CPU tensors.
    if "cpu:" in str(_torch_distributed().get_backend_config()):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _torch_distributed() -> Any:
    import torch.distributed

    return torch.distributed


def _local_rank(environment: Mapping[str, str]) -> int:
    """Check the variables of the launcher and return the process's number on its machine."""
    missing = [name for name in LAUNCHER_VARIABLES if not environment.get(name)]
    if missing:
        raise SetupError(
            f"WORLD_SIZE is set, but the environment variables {', '.join(missing)} of a launcher "
            "are missing. Launch with torchrun or accelerate launch, or unset WORLD_SIZE."
        )
    for name in LAUNCHER_VARIABLES:
        if name != "MASTER_ADDR" and not environment[name].strip().isdecimal():
            raise SetupError(
                f"Expected a whole number in the environment, got {name}={environment[name]!r}. "
                "Launch with torchrun or accelerate launch."
            )
    return int(environment["LOCAL_RANK"])
