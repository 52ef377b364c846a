"""One process: nothing happens. Two: the numbers of one process with the whole batch."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from headstart.distributed import processes as distributed
from headstart.errors import SetupError, UnknownNameError

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------------------------- one process


def test_one_process_is_the_main_one_of_one():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.is_main()
    assert not distributed.started()
    assert not distributed.start()
    distributed.stop()


def test_on_one_process_nothing_changes():
    weight = torch.nn.Parameter(torch.ones(2))
    idle = torch.nn.Parameter(torch.ones(2))
    weight.grad = gradient = torch.tensor([0.1, float("nan")])
    before = gradient.clone()
    distributed.mean_gradients([weight, idle])
    distributed.broadcast_tensors([weight])
    distributed.barrier()
    assert weight.grad is gradient
    assert torch.equal(gradient.view(torch.int32), before.view(torch.int32))
    assert idle.grad is None
    assert distributed.sum_scalar(0.1) == 0.1
    rows = np.arange(3)
    assert distributed.local_rows(rows).tolist() == [0, 1, 2]
    assert distributed.local_rows([]).tolist() == []


def _record_block(calls):
    calls.append("block")
    return KeyError()


def test_main_first_lets_errors_through_and_the_others_go_on(monkeypatch):
    """Seen from the main process: without its call of `barrier` the others would wait for ever."""
    for first, expected in ((True, ["block", "barrier"]), (False, ["barrier", "block"])):
        calls = []
        monkeypatch.setattr(distributed, "is_main", lambda first=first: first)
        monkeypatch.setattr(distributed, "barrier", lambda calls=calls: calls.append("barrier"))
        with pytest.raises(KeyError), distributed.main_first():
            raise _record_block(calls)
        assert calls == expected


@pytest.mark.parametrize("joins", [True, False])
def test_processes_are_left_behind_the_block_by_who_joined_them(monkeypatch, joins):
    calls = []
    monkeypatch.setattr(distributed, "start", lambda device: calls.append(device) or joins)
    monkeypatch.setattr(distributed, "stop", lambda: calls.append("stop"))
    with pytest.raises(KeyError), distributed.processes("mps"):
        raise _record_block(calls)
    assert calls == ["cpu", "block", *["stop"] * joins]


def test_without_a_launcher_torch_is_not_imported():
    code = (
        "import sys\n"
        "from headstart.distributed import processes as d\n"
        "d.start(); d.barrier(); d.local_rows([1]); d.sum_scalar(1.0); d.mean_gradients([])\n"
        "with d.main_first(): d.rank()\n"
        "d.stop()\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("size", ["", "1", " 1 "])
def test_a_world_of_one_is_not_started(monkeypatch, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert not distributed.start("cpu")


def test_half_a_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(
        SetupError, match="variables LOCAL_RANK, MASTER_ADDR, MASTER_PORT of a launcher are missing"
    ):
        distributed.start("cpu")


@pytest.mark.parametrize(
    ("name", "value"), [("WORLD_SIZE", "two"), ("RANK", "-1"), ("MASTER_PORT", "x")]
)
def test_words_for_numbers_are_refused(monkeypatch, name, value):
    right = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for key, text in (right | {"MASTER_PORT": "29500"} | {name: value}).items():
        monkeypatch.setenv(key, text)
    with pytest.raises(SetupError, match=f"{name}='{value}'"):
        distributed.start("cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    values = ("1", "1", "2", "localhost", "29500")
    for name, value in zip(LAUNCHER, values, strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        SetupError, match=r"1 GPU, too few for 2 or more processes\. Launch at most 1"
    ):
        distributed.start("cuda")


def test_a_process_that_waits_alone_gets_an_error(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in zip(LAUNCHER, ("0", "0", "2", "127.0.0.1", port), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "JOIN_TIMEOUT", distributed.timedelta(seconds=1))
    with pytest.raises(SetupError, match=f"join the other processes at 127.0.0.1:{port}"):
        distributed.start("cpu")
    assert not distributed.started()


def test_an_unknown_device_is_refused():
    with pytest.raises(UnknownNameError, match="cuda"):
        distributed.start("cudda")


# --------------------------------------------------------------------------------- two processes

TWO = '''
import json, sys, time
from pathlib import Path
import numpy as np
import torch
from headstart.distributed import processes as d

torch.set_num_threads(1)
folder = Path(sys.argv[1])
report = {"before": [d.rank(), d.world_size()], "start": [d.start("cpu"), d.start("cpu")]}
report["identity"] = [d.rank(), d.world_size(), d.is_main(), d.started()]
me = d.rank()

def network():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(64, 2)]
    net = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
    return net, torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3).double())

photos = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(1))

def gradients(count, split):
    """Mean of squares of the first photos; `idle` never trains, `first` in process 0 only."""
    net, idle, double = network()
    first = torch.nn.Parameter(torch.ones(1))
    rows = np.arange(count)
    own = d.local_rows(rows) if split else rows
    if len(own):
        out = net(photos[own]) * double[:2].float()
        loss = out.pow(2).mean() * (len(own) * d.world_size() / count if split else 1)
        if split and me == 0:
            loss = loss + 3 * first.sum()
        loss.backward()
    every = [*net.parameters(), idle, double, first]
    if split:
        d.mean_gradients(every)
        report[f"idle {count}"] = idle.grad is None
        report[f"first {count}"] = first.grad.tolist()
    return [p.grad for p in [*net.parameters(), double]]

for count in (6, 7, 1):
    pairs = zip(gradients(count, True), gradients(count, False))
    report[f"error {count}"] = max(float((a - b).abs().max()) for a, b in pairs)
report["shares"] = [d.local_rows(range(n)).tolist() for n in (7, 1, 0)]
report["sum"] = d.sum_scalar(0.1 + me)

tensors = [
    torch.full((2, 3), float("nan")) if me == 0 else torch.zeros(2, 3),
    torch.tensor(5 - me), torch.tensor([me == 0, False]),
    torch.full((2,), 1 / 3 + me).bfloat16(), torch.zeros(0),
    torch.full((1, 2, 2, 2), float(me)).to(memory_format=torch.channels_last),
    torch.nn.Parameter(torch.full((2,), float(me))),
]
d.broadcast_tensors(tensors)
report["broadcast"] = [t.detach().float().flatten().tolist() for t in tensors]

with d.main_first():
    if me == 0:
        time.sleep(0.3)
        (folder / "filled").touch()
    report["filled"] = (folder / "filled").exists()
try:
    with d.main_first():
        if me == 0:
            raise KeyError
    report["error in main"] = "none"
except KeyError:
    report["error in main"] = "mine"
d.barrier()
d.stop()
report["after"] = [d.rank(), d.world_size(), d.started()]
if me == 1:
    time.sleep(0.3)  # process 0 must not read the old address of process 1
d.start("cpu")
report["second start"] = d.sum_scalar(1.0)
d.stop()
(folder / f"{me}.json").write_text(json.dumps(report))
'''


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Reports of two processes, launched as a user launches them."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "two.py"
    script.write_text(TWO)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_each_of_two_has_its_own_rank(two):
    for number, report in enumerate(two):
        assert report["before"] == [0, 1]
        assert report["start"] == [True, False]
        assert report["identity"] == [number, 2, number == 0, True]
        assert report["after"] == [0, 1, False]


def test_processes_can_join_twice(two):
    assert [report["second start"] for report in two] == [2.0, 2.0]


@pytest.mark.parametrize("count", [6, 7, 1])
def test_mean_gradients_are_those_of_the_global_batch(two, count):
    """Equal parts, unequal ones, and a process with nothing to do."""
    assert [report[f"error {count}"] < 1e-6 for report in two] == [True, True]


@pytest.mark.parametrize("count", [6, 7, 1])
def test_a_missing_gradient_counts_as_zero_and_none_is_made_of_nothing(two, count):
    for report in two:
        assert report[f"idle {count}"]
        assert report[f"first {count}"] == [1.5]


def test_the_parts_are_contiguous_and_may_be_empty(two):
    assert two[0]["shares"] == [[0, 1, 2, 3], [0], []]
    assert two[1]["shares"] == [[4, 5, 6], [], []]


def test_sums_are_in_float64(two):
    assert [report["sum"] for report in two] == [0.1 + 1.1] * 2


def test_broadcast_gives_the_main_ones_bits(two):
    third = float(torch.tensor(1 / 3).bfloat16())
    for report in two:
        nan, *others = report["broadcast"]
        assert np.isnan(nan).all()
        assert others == [[5], [1, 0], [third] * 2, [], [0.0] * 8, [0, 0]]


def test_the_main_one_goes_first_and_its_errors_block_nobody(two):
    assert [report["filled"] for report in two] == [True, True]
    assert [report["error in main"] for report in two] == ["mine", "none"]
