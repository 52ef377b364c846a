"""A checkpoint: whole after any kill, refused when damaged or another run's, exact to the bit."""

import ast
import copy
import errno
import math
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from headstart.errors import ModelFileError, SetupError, UsageError
from headstart.training.checkpoint import (
    Checkpoint,
    flatten_optimiser,
    read,
    remove,
    restore_optimiser,
    write,
)

IDENTITY = {"data": "d1", "method": "m1", "seed": "0", "versions": "v1"}
FILE = "checkpoint.safetensors"


def make(epoch=2, step=5, identity=IDENTITY, **changes):
    generator = torch.Generator().manual_seed(epoch)
    tensors = {
        "weight": torch.randn(3, 4, generator=generator),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 2),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "flags": torch.tensor([True, False]),
        "random": generator.get_state(),
    }
    values = {"best": 0.1 + 0.2, "history": [{"loss": 1.5}]}
    contents = {"tensors": tensors, "values": values} | changes
    return Checkpoint(identity=identity, epoch=epoch, step=step, **contents)


def same(first, second):
    """Bit for bit, also NaN and signed zeros."""
    first, second = first.contiguous().flatten(), second.contiguous().flatten()
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(first.view(torch.uint8), second.view(torch.uint8))
    )


def assert_same(first, second):
    assert (dict(first.identity), first.epoch, first.step) == (
        second.identity,
        second.epoch,
        second.step,
    )
    assert list(first.tensors)
    assert set(first.tensors) == set(second.tensors)
    for name, tensor in first.tensors.items():
        assert tensor.shape == second.tensors[name].shape
        assert tensor.stride() == second.tensors[name].stride()
        assert same(tensor, second.tensors[name]), name
    assert repr(first.values) == repr(second.values)


# ------------------------------------------------------------------------------- write and read


def test_what_is_read_is_what_was_written(tmp_path):
    write(tmp_path / "new" / "folder", make())
    assert_same(make(), read(tmp_path / "new" / "folder", identity=IDENTITY))


def test_there_is_one_file_and_the_last_one_counts(tmp_path):
    write(tmp_path, make(epoch=1))
    write(tmp_path, make(epoch=2))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert read(tmp_path, identity=IDENTITY).epoch == 2


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert read(tmp_path, identity=IDENTITY) is None
    assert read(tmp_path / "nowhere", identity=IDENTITY) is None
    write(tmp_path, make())
    remove(tmp_path)
    remove(tmp_path)
    assert read(tmp_path, identity=IDENTITY) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        -0.0,
        0.1 + 0.2,
        5e-324,
        2**70,
        True,
        None,
        "größe 猫\udcff\n",
        [1, [2.0, ()]],
        (0.9, (0.999, [math.nan])),
        {"": {"float": [{}]}},
    ],
)
def test_values_are_read_as_they_were_written(tmp_path, value):
    write(tmp_path, make(values={"value": value}))
    restored = read(tmp_path, identity=IDENTITY).values["value"]
    assert repr(restored) == repr(value)
    assert type(restored) is type(value)


@pytest.mark.parametrize("value", [{1: 2}, {"$float": "nan"}, {1, 2}, object(), torch.zeros(1)])
def test_values_that_json_cannot_say_are_refused_and_nothing_is_lost(tmp_path, value):
    write(tmp_path, make(epoch=1))
    with pytest.raises(UsageError, match="Convert it"):
        write(tmp_path, make(epoch=2, values={"deep": [value]}))
    assert read(tmp_path, identity=IDENTITY).epoch == 1


def test_bits_that_compare_unequal_survive(tmp_path):
    odd = torch.tensor([math.nan, -0.0, math.inf, 1e-45])
    write(tmp_path, make(tensors={"odd": odd}))
    assert same(read(tmp_path, identity=IDENTITY).tensors["odd"], odd)


def test_the_order_in_memory_survives(tmp_path):
    photo = torch.randn(2, 3, 4, 5)
    tensors = {
        "last": photo.to(memory_format=torch.channels_last),
        "turned": photo.permute(3, 0, 2, 1),
        "plain": photo,
    }
    write(tmp_path, make(tensors=tensors))
    assert_same(make(tensors=tensors), read(tmp_path, identity=IDENTITY))


def test_views_and_shared_tensors_are_kept_as_values(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "all": base,
        "again": base,
        "row": base[1],
        "gaps": base[:, ::2],
        "wide": base[:, :1].expand(3, 7),
    }
    write(tmp_path, make(tensors=tensors))
    restored = read(tmp_path, identity=IDENTITY).tensors
    assert all(same(restored[name], tensor) for name, tensor in tensors.items())
    restored["all"].zero_()
    assert restored["again"][1, 1] == 5


def test_gradients_are_not_kept(tmp_path):
    write(tmp_path, make(tensors={"weight": nn.Parameter(torch.ones(2))}))
    assert not read(tmp_path, identity=IDENTITY).tensors["weight"].requires_grad


def test_what_was_read_does_not_hang_on_the_file(tmp_path):
    write(tmp_path, make(epoch=1))
    restored = read(tmp_path, identity=IDENTITY)
    (tmp_path / FILE).write_bytes(b"")
    assert_same(make(epoch=1), restored)


def test_the_name_of_the_document_is_taken():
    with pytest.raises(UsageError, match="Rename that tensor"):
        write("nowhere", make(tensors={"checkpoint.json": torch.zeros(1)}))
    assert not Path("nowhere").exists()


# ----------------------------------------------------------------------------- identity, damage


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": "d2"}, "different data[.]"),
        ({"seed": "1", "method": "m2"}, "different method, seed[.]"),
        ({"plan": "new"}, "different plan[.]"),
    ],
)
def test_the_error_for_another_run_names_the_differences(tmp_path, change, named):
    write(tmp_path, make())
    with pytest.raises(UsageError, match=named):
        read(tmp_path, identity=IDENTITY | change)


def test_a_part_that_is_missing_differs(tmp_path):
    write(tmp_path, make())
    with pytest.raises(UsageError, match=r"different versions[.]"):
        read(tmp_path, identity={k: v for k, v in IDENTITY.items() if k != "versions"})


def test_every_changed_byte_is_noticed(tmp_path):
    write(tmp_path, make())
    path = tmp_path / FILE
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 7):  # the tensors' bytes are most of it: not each of them
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            restored = read(tmp_path, identity=IDENTITY)
        except ModelFileError:
            refused += 1
        else:  # filling between header and tensors says nothing
            assert_same(make(), restored)
    assert refused > len(content) / 7 - 8


@pytest.mark.parametrize("length", [0, 1, 8, 100, 2000, -1])
def test_a_file_cut_short_is_damaged(tmp_path, length):
    write(tmp_path, make())
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelFileError, match="Delete it to start again"):
        read(tmp_path, identity=IDENTITY)


def test_other_files_are_no_checkpoint(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / FILE)
    with pytest.raises(ModelFileError, match="another kind of file"):
        read(tmp_path, identity=IDENTITY)
    (tmp_path / FILE).write_text("hello")
    with pytest.raises(ModelFileError, match="damaged"):
        read(tmp_path, identity=IDENTITY)


def test_what_is_no_file_cannot_be_read_nor_deleted(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(SetupError, match="Cannot read"):
        read(tmp_path, identity=IDENTITY)
    with pytest.raises(SetupError, match=r"Delete .* by hand"):
        remove(tmp_path)


@contextmanager
def room_for(size):
    """Files end there: the nearest to a full disk that every test machine has."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def broken(where, name):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, fail)
        yield


@pytest.mark.parametrize(
    ("full", "word"),
    [
        (lambda: room_for(100_000), "File too large"),
        (lambda: broken(os, "fsync"), "No space left on device"),
        (lambda: broken(Path, "replace"), "No space left on device"),
    ],
    ids=["write", "fsync", "replace"],
)
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, full, word):
    large = {"large": torch.zeros(100_000)}
    with full(), pytest.raises(SetupError, match=f"{word}.* No checkpoint exists. Free disk space"):
        write(tmp_path, make(tensors=large))
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, make(epoch=1))
    with full(), pytest.raises(SetupError, match=f"{word}.* The previous checkpoint is complete"):
        write(tmp_path, make(epoch=2, tensors=large))
    assert_same(make(epoch=1), read(tmp_path, identity=IDENTITY))
    write(tmp_path, make(epoch=2))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_what_a_kill_left_is_cleared_away(tmp_path):
    left = tmp_path / f"{FILE}.unfinished"
    for clear in (lambda: write(tmp_path, make()), lambda: remove(tmp_path)):
        left.mkdir()
        (left / ".tmp123").write_bytes(b"half")
        clear()
        assert not left.exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="No checkpoint exists"):
        write(tmp_path / "file", make())


KILLED = """
import itertools, os, random, signal, sys, time
import torch
from headstart.training.checkpoint import Checkpoint, read, write

torch.set_num_threads(1)  # threads do not survive the fork
last = 0
for number in range(10):
    ready, tell = os.pipe()
    if (child := os.fork()) == 0:
        for epoch in itertools.count(last + 1):
            tensors = {str(i): torch.full((60_000,), float(epoch)) for i in range(4)}
            write(sys.argv[1], Checkpoint(identity={}, epoch=epoch, step=0, tensors=tensors))
            os.write(tell, b"!")
    os.read(ready, 1)
    time.sleep(random.Random(number).uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = read(sys.argv[1], identity={})
    whole = all(bool((t == found.epoch).all()) for t in found.tensors.values())
    print(found.epoch, whole, len(found.tensors), found.epoch > last, flush=True)
    last = found.epoch
print(os.listdir(sys.argv[1]))
"""


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    *rounds, names = done.stdout.splitlines()
    assert [line.split()[1:] for line in rounds] == [["True", "4", "True"]] * 10
    assert set(ast.literal_eval(names)) <= {FILE, f"{FILE}.unfinished"}


# ------------------------------------------------------------------------------------ optimisers

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1 / 3, betas=(0.85, 0.99), foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
}


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    return layers.to(memory_format=torch.channels_last)


def groups(net):
    return [
        {"params": list(net[0].parameters()), "weight_decay": 0.01},
        {"params": [*net[1].parameters(), *net[3].parameters()]},
    ]


def steps(net, optimiser, numbers):
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        photos = torch.randn(4, 3, 6, 6, generator=generator)
        optimiser.zero_grad()
        net(photos.contiguous(memory_format=torch.channels_last)).pow(2).mean().backward()
        optimiser.step()
        for group in optimiser.param_groups:  # a schedule
            group["lr"] = group["lr"] * 0.9


@pytest.mark.parametrize("make_optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
def test_a_resumed_optimiser_gives_the_same_weights_bit_for_bit(tmp_path, make_optimiser):
    straight = network()
    steps(straight, make_optimiser(groups(straight)), range(7))

    first = network()
    optimiser = make_optimiser(groups(first))
    steps(first, optimiser, range(3))
    tensors, values = flatten_optimiser(optimiser.state_dict())
    state = {f"net.{name}": tensor for name, tensor in first.state_dict().items()}
    write(tmp_path, make(tensors=tensors | state, values={"optimiser": values}))

    restored = read(tmp_path, identity=IDENTITY)
    before = copy.deepcopy(dict(restored.tensors))
    second = network()
    second.load_state_dict({name: restored.tensors[f"net.{name}"] for name in second.state_dict()})
    optimiser = make_optimiser(groups(second))
    restore_optimiser(optimiser, restored.tensors, restored.values["optimiser"])
    steps(second, optimiser, range(3, 7))

    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert all(same(before[name], restored.tensors[name]) for name in before), "changed in place"


def test_the_test_of_optimisers_can_fail():
    """Without the moments the weights come out others."""
    first, second = network(), network()
    adam = torch.optim.Adam(first.parameters(), lr=0.1)
    steps(first, adam, range(4))
    adam = torch.optim.Adam(second.parameters(), lr=0.1)
    steps(second, adam, range(2))
    fresh = torch.optim.Adam(second.parameters(), lr=0.1 * 0.9**2)
    steps(second, fresh, range(2, 4))
    assert not torch.equal(first[0].weight, second[0].weight)


def flattened(make_optimiser):
    net = network()
    optimiser = make_optimiser(groups(net))
    steps(net, optimiser, range(1))
    return flatten_optimiser(optimiser.state_dict())


@pytest.mark.parametrize(("saved", "current"), [("momentum", "adamw"), ("adamw", "momentum")])
def test_another_kind_of_optimiser_is_refused(saved, current):
    tensors, values = flattened(OPTIMISERS[saved])
    with pytest.raises(UsageError, match="Pass the same --optimiser"):
        restore_optimiser(OPTIMISERS[current](groups(network())), tensors, values)


def test_other_parameters_are_refused():
    tensors, values = flattened(OPTIMISERS["adamw"])
    with pytest.raises(UsageError, match="of other parameters"):
        restore_optimiser(OPTIMISERS["adamw"](network().parameters()), tensors, values)


def test_missing_tensors_are_refused():
    tensors, values = flattened(OPTIMISERS["adamw"])
    del tensors["optimiser.0.exp_avg"]
    with pytest.raises(UsageError, match=r"optimiser\.0\.exp_avg"):
        restore_optimiser(OPTIMISERS["adamw"](groups(network())), tensors, values)


def test_state_that_belongs_to_no_parameter_is_refused():
    with pytest.raises(UsageError, match="stores 'shared'"):
        flatten_optimiser({"state": {"shared": {}}, "param_groups": []})
