"""The description of the machine agrees with the operating system."""

import os
import platform
import subprocess
import sys

import pytest

from headstart import runtime
from headstart.errors import SetupError, UnknownNameError


def test_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(runtime, "_cpu_quota", lambda cgroup: sys.maxsize)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert runtime.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert runtime.cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert runtime.cores() == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu.max": ""}, 64),
        ({}, 64),
    ],
)
def test_a_share_of_time_limits_the_cores(tmp_path, monkeypatch, files, expected):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    cpu_quota = runtime._cpu_quota
    monkeypatch.setattr(runtime, "_cpu_quota", lambda cgroup: cpu_quota(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert runtime.cores() == expected


def test_a_device_is_resolved(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runtime.device() == "cpu"
    for name in ("cuda", "mps"):
        with pytest.raises(SetupError, match=f"no device '{name}'. Use 'cpu'"):
            runtime.device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert runtime.device() == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.device("auto") == runtime.device("cuda") == "cuda"


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'cuda'"):
        runtime.device("cuda0")


def test_threads_that_wait_sleep_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    runtime.prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    runtime.prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_the_machine_is_described_in_plain_values():
    description = runtime.machine("cpu").as_dict()
    assert description["device"] == "cpu"
    assert description["cores"] == runtime.cores()
    assert description["processor"].strip()


INTEL = "processor\t: 0\nmodel name\t: Xeon: 8\nflags\t\t: fpu amx_bf16 avx\n\nprocessor\t: 1\n"
PLAIN = "processor\t: 0\nmodel name\t: Xeon: 8\nflags\t\t: fpu avx\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(INTEL, "Xeon: 8 amx"), (PLAIN, "Xeon: 8"), (ARM, platform.machine())],
)
def test_the_processor_is_named_with_what_makes_it_quick(monkeypatch, tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(runtime, "Path", lambda _: tmp_path / "cpuinfo")
    assert runtime._processor("cpu") == expected


def test_versions_are_read_without_importing_anything():
    script = (
        "import sys; from headstart.runtime import device, versions; device('cpu');"
        "found = versions(); print(found['headstart'], found['torch']);"
        "sys.exit(bool({'torch', 'numpy', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    import torch

    assert done.stdout.split()[1].split("+")[0] == torch.__version__.split("+")[0]


def test_packages_that_are_missing_have_no_version(monkeypatch):
    from importlib import metadata

    real = metadata.version

    def version(name):
        if name == "openvino":
            raise metadata.PackageNotFoundError(name)
        return real(name) if name != "headstart" else "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    versions = runtime.versions()
    assert versions["headstart"] == "1.2.3"
    assert "openvino" not in versions
    assert versions["python"] == platform.python_version()


def test_threads_are_those_of_a_layer():
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert runtime.threads() == 3
    finally:
        torch.set_num_threads(before)
