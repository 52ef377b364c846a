"""The machine: its device, cores, memory, and what it computes quickly."""

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
    "one_thread_each",
    "peak_memory",
    "prepare",
    "threads",
    "timed",
    "versions",
]

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a measured choice holds for: another machine measures anew."""

    processor: str
    cores: int
    device: str

    def as_dict(self) -> dict[str, Any]:
        """The machine as plain values."""
        return asdict(self)


def prepare() -> None:
    """Make threads that wait sleep instead of spin; call before torch is imported.

    Spinning OpenMP threads take the cores from the threads that decode images. A value that
    the user has set wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def cores() -> int:
    """Count the cores that this process may use: fewer than the machine has, in a container."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(mine or 1, _quota(Path("/sys/fs/cgroup"))))


def _quota(cgroup: Path) -> int:
    """Cores that a container's share of time amounts to; very many where it is not limited.

    `docker run --cpus` and Kubernetes limit time and leave all cores visible: as many threads
    as cores would then wait for each other.
    """
    places = [("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")]
    for place in places:
        try:
            words = " ".join((cgroup / name).read_text() for name in place).split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # not there, or "max"
            continue
        if quota > 0 and period > 0:  # -1: no limit
            return -(-quota // period)
    return sys.maxsize


def device(name: str = "auto") -> str:
    """Resolve a device name; ``auto`` takes a GPU where there is one.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "mps"}

    Raises
    ------
    UnknownNameError
        If the name is none of these.
    SetupError
        If the device is not there.

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

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((kind for kind, there in present.items() if there), "cpu")
    if not present[name]:
        raise SetupError(f"Expected the device {name!r} to be present, got none; do use 'cpu'.")
    return name


@cache
def machine(device_name: str = "cpu") -> Machine:
    """Describe the machine with the device that work runs on."""
    return Machine(processor=_processor(device_name), cores=cores(), device=device_name)


def _processor(device_name: str) -> str:
    if device_name == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("model name", "flags")
        lines = info.read_text(errors="replace").splitlines()
        found = {line.split(":")[0].strip(): line for line in reversed(lines) if ":" in line}
        told = {key: found[key].split(":", 1)[1].strip() for key in wanted if key in found}
        # Virtual processors of one name differ in what they can: AMX decides what is quick.
        amx = " amx" if "amx_bf16" in told.get("flags", "") else ""
        return told.get("model name", platform.machine()) + amx  # ARM tells no name
    return platform.processor() or platform.machine()


def one_thread_each() -> None:
    """Let a worker thread compute on its own core only: none waits for another inside a layer."""
    import torch

    torch.set_num_threads(1)


def threads() -> int:
    """Threads that one layer is computed on: with another number the same sums round differently.

    >>> threads() >= 1
    True
    """
    import torch

    return int(torch.get_num_threads())


def available_memory() -> int:
    """Memory that programs may still take without swapping, in bytes."""
    import psutil

    return int(psutil.virtual_memory().available)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; 0 where it is not known."""
    try:
        import resource
    except ImportError:
        return 0
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def versions() -> dict[str, str]:
    """Versions of what a result may depend on, without importing any of it."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("headstart", "torch", "torchvision", "timm", "numpy", "pillow", "openvino"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def timed(clock: dict[str, float], step: str) -> Iterator[None]:
    """Write down how many seconds a step took; one that fails is not written down.

    >>> clock = {}
    >>> with timed(clock, "sum"):
    ...     total = sum(range(10))
    >>> list(clock)
    ['sum']
    """
    begin = time.perf_counter()
    yield
    clock[step] = time.perf_counter() - begin
