"""The machine: its device, cores, memory, threads and package versions."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from headstart.errors import SetupError, UnknownNameError

__all__ = [
    "Machine",
    "available_memory",
    "cores",
    "device",
    "machine",
    "prepare",
    "threads",
    "timed",
    "use_one_thread",
    "use_threads",
    "versions",
]

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Key of a measured choice, such as the fastest engine: another machine measures again."""

    processor: str
    cores: int
    device: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict of JSON values."""
        return asdict(self)


def prepare() -> None:
    """Let waiting OpenMP threads sleep instead of spin. Call before torch is imported.

    Spinning threads take the cores from the threads that decode images. A value that the user
    has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def cores() -> int:
    """Count the cores that this process may use: in a container fewer than the machine has."""
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(visible or 1, _cpu_quota(Path("/sys/fs/cgroup"))))


def _cpu_quota(cgroup: Path) -> int:
    """Return the CPU limit of the container in cores, rounded up; `sys.maxsize` without a limit.

    `docker run --cpus` and Kubernetes limit CPU time and leave all cores visible. One thread
    for each visible core would then be too many: the threads would wait for each other.
    """
    version_2, version_1 = ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
    for files in (version_2, version_1):
        try:
            words = " ".join((cgroup / file).read_text() for file in files).split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:  # -1 means no limit
            return -(-quota // period)  # rounded up
    return sys.maxsize


def device(name: str = "auto") -> str:
    """Resolve a device name; ``auto`` takes a GPU if there is one.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "mps"}

    Raises
    ------
    UnknownNameError
        If the name is none of these.
    SetupError
        If the machine has no such device.

    Examples
    --------
    >>> device("cpu")
    'cpu'
    """
    if name not in DEVICES:
        raise UnknownNameError("device", name, DEVICES)
    if name == "cpu":
        return name
    prepare()
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((kind for kind, is_available in available.items() if is_available), "cpu")
    if not available[name]:
        raise SetupError(f"This machine has no device {name!r}. Use 'cpu' or 'auto'.")
    return name


@cache
def machine(device_name: str = "cpu") -> Machine:
    """Describe the machine and the device that computes."""
    return Machine(processor=_processor(device_name), cores=cores(), device=device_name)


def _processor(device_name: str) -> str:
    if device_name == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        pairs = [line.split(":", 1) for line in lines if ":" in line]
        # Reversed, so that the first processor of several wins.
        fields = {name.strip(): value.strip() for name, value in reversed(pairs)}
        # Virtual processors with one name differ in features, and AMX decides what is fast.
        amx = " amx" if "amx_bf16" in fields.get("flags", "") else ""
        return fields.get("model name", platform.machine()) + amx  # ARM lists no model name
    return platform.processor() or platform.machine()


def use_threads(count: int) -> None:
    """Compute each layer on this number of threads.

    >>> use_threads(threads())
    """
    import torch

    torch.set_num_threads(count)


def use_one_thread() -> None:
    """Compute each layer on one thread, so that worker threads do not wait for each other."""
    import torch

    torch.set_num_threads(1)


def threads() -> int:
    """Return the number of threads that compute one layer. It changes how sums are rounded.

    >>> threads() >= 1
    True
    """
    import torch

    return int(torch.get_num_threads())


def available_memory() -> int:
    """Return the memory that is available without swapping, in bytes."""
    import psutil

    return int(psutil.virtual_memory().available)


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {"python": platform.python_version()}
    for package in ("headstart", "torch", "torchvision", "timm", "numpy", "pillow", "openvino"):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


@contextmanager
def timed(clock: dict[str, float], step: str) -> Iterator[None]:
    """Add the seconds that a step takes to ``clock``, unless the step fails.

    >>> clock = {}
    >>> with timed(clock, "sum"):
    ...     total = sum(range(10))
    >>> list(clock)
    ['sum']
    """
    started_at = time.perf_counter()
    yield
    clock[step] = clock.get(step, 0.0) + time.perf_counter() - started_at
