"""Tasks on a Ray cluster: start or join it, and map a function over items in order.

This is the only file that imports Ray. Verbs with ``--on`` enter ``cluster``; inside of it
``is_on`` is true, and ``map_tasks`` runs a function in Ray's workers. A task is repeated if its
worker or its machine dies, so it must have no effect but its result. All results come back to the
caller, which stores them by the content of their images: nothing is stored twice, and nothing is
lost.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, TypeVar

from headstart.distributed.processes import world_size
from headstart.errors import HeadstartError, MissingExtraError, SetupError, UsageError

__all__ = ["cluster", "cluster_address", "is_on", "map_tasks"]

STARTS = 3
"""Ray waits a fixed time for its own processes, which a busy machine may exceed: try again. A
cluster that does not answer is tried once, for half a minute."""

PAUSE = 2.0
"""Seconds between two starts."""

RETRIES = 5
"""Times that a task is repeated because its worker or its machine died."""

TASKS_PER_PLACE = 2
"""Tasks that are sent before the first result is taken: enough that no core waits."""

Shared = TypeVar("Shared")
State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")

_is_on: ContextVar[bool] = ContextVar("headstart_ray", default=False)


def cluster_address(on: str) -> str | None:
    """Read the value of ``--on``.

    Parameters
    ----------
    on : str
        Empty for this process, ``ray`` for the cores of this machine, or ``ray:ADDRESS`` for a
        cluster, such as ``ray:10.0.0.1:6379`` or ``ray:auto``.

    Returns
    -------
    str or None
        The address that Ray takes; None for this process.

    Raises
    ------
    UsageError
        If it is none of these.

    Examples
    --------
    >>> cluster_address("ray"), cluster_address("ray:10.0.0.1:6379"), cluster_address("")
    ('local', '10.0.0.1:6379', None)
    """
    if not on:
        return None
    engine, colon, address = on.partition(":")
    if engine != "ray" or (colon and not address):
        raise UsageError(
            f"`on` must be 'ray' or 'ray:ADDRESS', got {on!r}. Pass --on ray for the cores of this "
            "machine, or the address of a cluster, such as --on ray:10.0.0.1:6379."
        )
    return address or "local"  # without an address Ray would join a cluster that it finds


@contextmanager
def cluster(on: str, progress: Callable[[str, int, int], None] | None = None) -> Iterator[None]:
    """Start Ray or join a cluster, and leave it at the end; an empty ``on`` does nothing.

    Parameters
    ----------
    on : str
        As `cluster_address`.
    progress : callable, optional
        Called with the name of the step, 0 and 0 before Ray starts.

    Raises
    ------
    MissingExtraError
        If Ray is not installed.
    SetupError
        If Ray does not start, or the cluster cannot be reached.
    UsageError
        If ``on`` is invalid, or a launcher such as torchrun has started several processes.

    Examples
    --------
    >>> with cluster(""):
    ...     is_on()
    False
    """
    address = cluster_address(on)
    if address is None:
        yield
        return
    if world_size() > 1:
        raise UsageError(
            f"`on` is {on!r}, but a launcher started {world_size()} processes. Run the command "
            "without torchrun, or remove --on."
        )
    if find_spec("ray") is None:
        raise MissingExtraError("ray", extra="ray")
    if progress is not None:
        progress(f"starting Ray ({address})", 0, 0)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import
    if address != "local":  # else it tries 20 times, each for half a minute
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    import ray

    owned = not ray.is_initialized()  # a notebook may have started it
    if owned:
        _start(address)
    token = _is_on.set(True)
    try:
        yield
    finally:
        _is_on.reset(token)
        if owned:
            ray.shutdown()


def is_on() -> bool:
    """Whether this thread is inside of ``cluster``.

    >>> is_on()
    False
    """
    return _is_on.get()


def map_tasks(
    function: Callable[[State, Item], Result],
    prepare: Callable[[Shared], State],
    shared: Shared,
    items: Iterable[Item],
    *,
    cores: int = 1,
) -> Iterator[Result]:
    """Call ``function(prepare(shared), item)`` in the workers; yield in the order of the items.

    Parameters
    ----------
    function : callable
        A function of a module. It may run more than once for an item, if a worker dies.
    prepare : callable
        A function of a module. It runs once in each worker.
    shared : object
        Sent once to each worker.
    items : iterable
        Read as results are taken: two are in flight for each place in the cluster.
    cores : int
        Cores that one task takes.

    Yields
    ------
    object
        Its arrays are read-only.

    Raises
    ------
    HeadstartError
        Of the function, unchanged.
    SetupError
        If a task failed in another way, or its worker died too often.

    Examples
    --------
    >>> from operator import add
    >>> with cluster("ray"):  # doctest: +SKIP
    ...     list(map_tasks(add, int, "1", [1, 2, 3]))
    [2, 3, 4]
    """
    import ray

    task = ray.remote(max_retries=RETRIES, num_cpus=cores)(_run_task)
    # In a list the reference is passed as it is: a worker reads the object once, not in each task.
    boxed = [ray.put((prepare, shared))]
    places = int(ray.cluster_resources().get("CPU", 1)) // cores
    if places < 1:
        raise SetupError(
            f"A task needs {cores} cores, and no machine of the cluster has them. Set "
            "OMP_NUM_THREADS=1 to use one core in each task."
        )
    waiting: deque[Any] = deque()
    try:
        for item in items:
            waiting.append(task.remote(function, boxed, item))
            if len(waiting) >= TASKS_PER_PLACE * places:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:  # an error, or Ctrl-C
        for reference in waiting:
            with suppress(Exception):
                ray.cancel(reference, force=True)


_prepared: dict[str, Any] = {}
"""In a worker: the prepared state of the last call of ``map_tasks``, by its reference."""


def _run_task(function: Callable[[Any, Any], Any], boxed: list[Any], item: Any) -> Any:
    """Run in a worker: prepare the state at the first task, then call the function."""
    import ray

    name = boxed[0].hex()
    if name not in _prepared:
        prepare, shared = ray.get(boxed[0])
        state = prepare(shared)
        _prepared.clear()
        _prepared[name] = state
    return function(_prepared[name], item)


def _result(reference: Any) -> Any:
    """Wait for a task; raise its error as if it had run here."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HeadstartError):
            raise error.cause from None
        raise SetupError(
            f"A task on Ray failed: {str(error.cause)[:300]}. Run the command without --on to see "
            "whether the cluster is the cause."
        ) from error
    except ray.exceptions.RayError as error:
        raise SetupError(
            f"A task on Ray failed {RETRIES + 1} times: {str(error).splitlines()[0][:300]}. Look "
            "at the memory of the workers with `ray status`."
        ) from error


def _start(address: str) -> None:
    """Start Ray on this machine or join a cluster; try again where a busy machine was too slow."""
    import ray

    starts = STARTS if address == "local" else 1
    for number in range(1, starts + 1):
        try:
            ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
            ray.shutdown()
            if number == starts:
                what = "did not start here" if address == "local" else f"was not found at {address}"
                raise SetupError(
                    f"Ray {what} (tries: {starts}): {str(error)[:300]} Run the command without "
                    "--on, or check the cluster with `ray status`."
                ) from error
            time.sleep(PAUSE)
        else:
            return
