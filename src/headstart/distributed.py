"""Several processes that train one model: who is who, sums, and exact no-ops on a single one.

This is the only file that speaks to ``torch.distributed``. A launcher (``torchrun``,
``accelerate launch``) starts the same command several times and tells each process its rank
through the environment; ``start`` reads it. Until then, and without a launcher, there is one
process, of rank 0. Nothing is exchanged but tensors: no pickle.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
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
    "main_first",
    "mean_gradients",
    "processes",
    "rank",
    "share",
    "start",
    "started",
    "stop",
    "sum_scalar",
    "world",
]

TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MEETING = timedelta(minutes=5)
"""How long a process waits for the others to begin with."""

PATIENCE = timedelta(days=1)
"""How long it waits for them afterwards: the first may fill the cache for hours. It is the
launcher that ends all of them when one has died."""


def start(device: str = "auto") -> bool:
    """Join the processes that a launcher has started; nothing to join is fine.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        What the processes compute on: gloo carries tensors between CPUs, NCCL between GPUs, of
        which each process takes its own; ``auto`` takes GPUs where there are any.

    Returns
    -------
    bool
        Whether this call joined them; then the caller ends it with ``stop``. False without a
        launcher, and where the caller's own program has joined already.

    Raises
    ------
    SetupError
        If the launcher's words are incomplete, or there are more processes than GPUs.

    Examples
    --------
    >>> start(), world()  # nothing has launched this example
    (False, 1)
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise UnknownNameError("device", device, ["auto", "cpu", "cuda"])
    if os.environ.get("WORLD_SIZE", "1").strip() in {"", "1"} or started():
        return False
    local = _told(os.environ)
    import torch

    processes = _processes()
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        gpus = torch.cuda.device_count()
        if local >= gpus:
            raise SetupError(
                f"Expected a GPU for every process on this machine, got {gpus} for more than "
                f"{local}; do launch {gpus or 'no'} processes, or choose the device cpu."
            )
        torch.cuda.set_device(local)
    try:
        store, number, size = next(processes.rendezvous("env://", timeout=MEETING))
        processes.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=processes.PrefixStore("headstart", store),
            rank=number,
            world_size=size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise SetupError(
            f"Expected to meet the other processes at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}, got {error}; do launch all of them with torchrun or "
            "accelerate launch."
        ) from error
    return True


def stop() -> None:
    """Leave the other processes; nothing to leave is fine.

    Examples
    --------
    >>> stop()
    """
    if started():
        _processes().destroy_process_group()


@contextmanager
def processes(device: str = "auto") -> Iterator[None]:
    """Join the processes of a launcher, if there is one, and leave them behind the block.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "mps"}
        As for ``start``; Apple's GPUs have no backend of their own.

    Examples
    --------
    >>> with processes():
    ...     world()
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
    # Whoever joined has imported it: asking costs no import of torch.
    module = sys.modules.get("torch.distributed")
    return module is not None and bool(module.is_available() and module.is_initialized())


def rank() -> int:
    """Return this process's number, from 0.

    Examples
    --------
    >>> rank()
    0
    """
    return int(_processes().get_rank()) if started() else 0


def world() -> int:
    """Return how many processes there are.

    Examples
    --------
    >>> world()
    1
    """
    return int(_processes().get_world_size()) if started() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and speaks to the person.

    Examples
    --------
    >>> is_main()
    True
    """
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here.

    Examples
    --------
    >>> barrier()
    """
    # A sum waits for all, and needs none of the backends' own options.
    sum_scalar(0.0)


@contextmanager
def main_first() -> Iterator[None]:
    """Run a block in the main process, then in the others, as when a cache is to be filled once.

    An error in the main process lets the others go on: they meet it themselves.

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


def share(rows: Sequence[int] | NDArray[np.intp]) -> NDArray[np.intp]:
    """Return this process's part of a global batch.

    The parts are contiguous, in the order of ranks, and differ by at most one row. A mean over
    a part, weighted by ``len(part) * world() / len(rows)``, gives through ``mean_gradients`` the
    gradient of the mean over all rows.

    Parameters
    ----------
    rows : sequence of int, shape (n,)

    Returns
    -------
    array
        Shape (n // world,) or one more; empty where there are fewer rows than processes.

    Examples
    --------
    >>> share([4, 7, 9])
    array([4, 7, 9])
    """
    return np.array_split(np.asarray(rows, dtype=np.intp), world())[rank()]


def sum_scalar(value: float) -> float:
    """Sum a number over all processes, in float64.

    Examples
    --------
    >>> sum_scalar(0.1)
    0.1
    """
    if world() == 1:
        return value
    import torch

    total = torch.tensor([value], dtype=torch.float64, device=_place())
    _processes().all_reduce(total)
    return float(total)


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes.

    Parameters
    ----------
    parameters : iterable of torch.Tensor
        In the same order everywhere. Where a process has no gradient and another one has, it
        counts as zero; where none has, none is made. Changed in place: ``grad``.

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> weight.grad = torch.ones(2)
    >>> mean_gradients([weight])
    >>> weight.grad
    tensor([1., 1.])
    """
    if world() == 1:
        return
    import torch

    found = list(parameters)
    wanted = torch.tensor([p.grad is not None for p in found], dtype=torch.float32).to(_place())
    _processes().all_reduce(wanted)
    chosen = [p for p, count in zip(found, wanted.tolist(), strict=True) if count]
    for parameter in chosen:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in chosen if parameter.grad is not None]
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        _in_one([g for g in gradients if g.dtype == dtype], _mean)


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Give all processes the main one's values, bit for bit.

    Parameters
    ----------
    tensors : iterable of torch.Tensor
        Same shapes and dtypes in the same order everywhere; changed in place.

    Examples
    --------
    >>> import torch
    >>> broadcast_tensors([torch.ones(2)])
    """
    if world() == 1:
        return
    found = [tensor.detach() for tensor in tensors]
    for dtype in sorted({tensor.dtype for tensor in found}, key=str):
        _in_one([t for t in found if t.dtype == dtype], _from_main)


def _in_one(tensors: Sequence[Tensor], change: Callable[[Tensor], None]) -> None:
    """Change tensors of one dtype in one buffer: one message costs less than hundreds."""
    import torch

    with torch.no_grad():
        flat = torch.cat([tensor.detach().reshape(-1).to(_place()) for tensor in tensors])
        if flat.numel():
            change(flat)
        ends = np.cumsum([0, *(tensor.numel() for tensor in tensors)]).tolist()
        for tensor, (begin, end) in zip(tensors, pairwise(ends), strict=True):
            tensor.copy_(flat[begin:end].view(tensor.shape))


def _mean(flat: Tensor) -> None:
    _processes().all_reduce(flat)
    flat.div_(world())


def _from_main(flat: Tensor) -> None:
    import torch

    # As bytes: backends know some dtypes only, and every one keeps bytes.
    _processes().broadcast(flat.view(torch.uint8), src=0)


def _place() -> device:
    """Where the backend wants its tensors."""
    import torch

    # By device, as in "cpu:gloo,cuda:nccl"; NCCL alone knows no CPU.
    if "cpu:" in str(_processes().get_backend_config()):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _processes() -> Any:
    import torch.distributed

    return torch.distributed


def _told(environment: Mapping[str, str]) -> int:
    """Return the process's number on its machine, once all that a launcher tells is there."""
    missing = [name for name in TOLD if not environment.get(name)]
    if missing:
        raise SetupError(
            f"Expected a launcher to have set {', '.join(TOLD)}, got none of "
            f"{', '.join(missing)}; do launch with torchrun or accelerate launch, or unset "
            "WORLD_SIZE."
        )
    numbers = [name for name in TOLD if name != "MASTER_ADDR"]
    wrong = [name for name in numbers if not environment[name].strip().isdecimal()]
    if wrong:
        raise SetupError(
            f"Expected whole numbers in the environment, got {wrong[0]}={environment[wrong[0]]!r}; "
            "do launch with torchrun or accelerate launch."
        )
    return int(environment["LOCAL_RANK"])
