"""Keep every test away from the machine it runs on: its caches, its switches, its network."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before anything is imported: huggingface_hub and torch read their folders at import, and
# the examples in src/, which take no fixture, are run in the same process.
_SCRATCH = Path(tempfile.mkdtemp(prefix="headstart-tests-"))
for _name in [name for name in os.environ if name.startswith("HEADSTART_")]:
    if not _name.startswith("HEADSTART_BENCH"):
        del os.environ[_name]
os.environ.update(
    HEADSTART_CACHE=str(_SCRATCH / "cache"),
    HEADSTART_OFFLINE="1",
    HF_HOME=str(_SCRATCH / "hf"),
    TORCH_HOME=str(_SCRATCH / "torch"),
    XDG_CACHE_HOME=str(_SCRATCH / "xdg"),
)
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes: one thread each, or they fight
    os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job is born so
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def isolated(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Give every test a cache of its own and the machine's switches as they are by default."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)  # the command line ignores it while it ends


def pytest_unconfigure() -> None:
    shutil.rmtree(_SCRATCH, ignore_errors=True)
