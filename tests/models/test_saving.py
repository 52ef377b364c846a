"""Saving and loading a model: complete, or refused with a message; nothing is run or downloaded."""

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from headstart.backbones.backbone import load as load_backbone
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import ModelFileError, SetupError, UsageError
from headstart.models.heads.linear import LinearHead
from headstart.models.saving import load, save
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel

SMALL = Preprocess(
    resize=40, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)
WIDTH = 576
ODD = ("cat", "größe 猫 🐈", 'a "b", c\n\t', "../x", "", "\udcff", "<script>")


def make_model(classes=("ant", "bee", "cat"), seed=0, **changes):
    spec = replace(resolve("torchvision/mobilenet_v3_small"), preprocess=SMALL)
    state = load_backbone(spec, pretrained=False, seed=seed).trunk.state_dict()
    rng = np.random.default_rng(seed)
    head = LinearHead(
        weight=rng.normal(size=(len(classes), WIDTH)).astype(np.float32),
        bias=rng.normal(size=len(classes)).astype(np.float32),
    )
    model = TransferModel(
        backbone=FrozenBackbone(
            spec=spec, state=state, origin={"sha256": "", "from": "test", "file": ""}
        ),
        task=ClassificationTask(classes=tuple(classes), temperature=0.7),
        head=head,
        engine="fp32",
        record={"seed": seed, "candidates": [{"penalty": 0.1, "log_loss": 0.5}]},
    )
    return replace(model, **changes)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    save(model, folder)
    return {name: (folder / name).read_bytes() for name in ("model.json", "model.safetensors")}


@pytest.fixture
def folder(written, tmp_path):
    """Give every test a model of its own to damage."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in written.items():
        (folder / name).write_bytes(content)
    return folder


def describe(folder, change):
    """Change the description, and state the tensors' hash as a hostile author would."""
    description = json.loads((folder / "model.json").read_bytes())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


def put_tensors(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    name, stated = "model.safetensors", hashlib.sha256(content).hexdigest()
    describe(folder, lambda description: description["files"].update({name: stated}))


def retensor(folder, change):
    tensors = from_bytes((folder / "model.safetensors").read_bytes())
    change(tensors)
    put_tensors(folder, to_bytes(tensors))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("HEADSTART_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def refused(folder):
    with pytest.raises(ModelFileError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(("Expected", "model.json: ", "Cannot read"))
    assert len(message) < 1500
    return message


# ---------------------------------------------------------------- whole


FRESH = """
import json, socket, sys
class Closed(socket.socket):
    def __init__(self, *a, **k): raise OSError("no network here")
socket.socket = Closed
socket.create_connection = socket.getaddrinfo = Closed
import pickle
def refuse(*a, **k): raise RuntimeError("pickle was used")
pickle.load = pickle.loads = refuse
from headstart import Cache, load
from pathlib import Path
model = load(sys.argv[1])
found = model.predict(sys.argv[2], engine="fp32", device="cpu", cache=Cache(Path(sys.argv[3])))
print(json.dumps([[one.label, [value.hex() for value in one.probabilities.values()]]
                  for one in found]))
"""


def test_a_fresh_process_without_network_gives_the_same_bits(model, tmp_path):
    rng = np.random.default_rng(5)
    (tmp_path / "images").mkdir()
    for i in range(5):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    save(model, tmp_path / "run")
    # Another working directory, a relative folder, and a home without any weights in it.
    environment = {
        **{name: value for name, value in os.environ.items() if "CACHE" not in name},
        "HOME": str(tmp_path),
        "TORCH_HOME": str(tmp_path),
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FRESH, "run", "images", "cache"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = model.predict(
        tmp_path / "images", engine="fp32", device="cpu", cache=Cache(tmp_path / "other")
    )
    expected = [
        [prediction.label, [p.hex() for p in prediction.probabilities.values()]]
        for prediction in here
    ]
    assert json.loads(done.stdout) == expected


def test_everything_comes_back(model, folder):
    again = load(folder)
    assert again.task == model.task
    assert again.engine == model.engine
    assert again.record == model.record
    assert again.backbone.spec == model.backbone.spec
    assert again.backbone.origin == model.backbone.origin
    assert again.backbone.identity == model.backbone.identity
    np.testing.assert_array_equal(again.head.weight, model.head.weight)
    np.testing.assert_array_equal(again.head.bias, model.head.bias)


def test_a_multilabel_model_comes_back(tmp_path):
    task = ClassificationTask(classes=("a", "b"), kind="multilabel", thresholds=(0.25, 0.75))
    save(make_model(("a", "b"), task=task), tmp_path)
    assert load(str(tmp_path)).task == task


def test_class_names_survive(tmp_path):
    save(make_model(ODD), tmp_path)
    assert load(tmp_path).task.classes == ODD


def test_no_file_is_a_pickle(written):
    for content in written.values():
        assert not content.startswith((b"\x80", b"PK"))
    json.loads(written["model.json"])
    size = struct.unpack("<Q", written["model.safetensors"][:8])[0]
    json.loads(written["model.safetensors"][8 : 8 + size])


def test_saving_again_replaces_and_leaves_other_files_alone(model, folder):
    (folder / "report.html").write_text("mine")
    for seed in (1, 2):
        save(make_model(seed=seed), folder)
    assert load(folder).record["seed"] == 2
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.json", "model.safetensors", "report.html",
    ]  # fmt: skip


def test_what_was_loaded_can_be_saved(folder, tmp_path):
    save(load(folder), tmp_path / "copy")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_a_relative_folder_and_another_working_directory(model, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert load("model").task == model.task
    monkeypatch.chdir(folder)
    assert load(".").task == model.task


def test_weights_that_share_memory_are_saved(model, tmp_path):
    flat = torch.arange(8.0)
    state = {**model.backbone.state, "classifier.0.bias": flat[:4], "classifier.3.bias": flat[4:]}
    save(replace(model, backbone=replace(model.backbone, state=state)), tmp_path)
    torch.testing.assert_close(load(tmp_path).backbone.state["classifier.3.bias"], flat[4:])


# ---------------------------------------------------------------- saved half-way


@pytest.mark.parametrize("breaks_at", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_save_that_is_interrupted_leaves_the_old_model(folder, monkeypatch, breaks_at, error):
    steps = iter(range(1, 100))
    real = Path.replace

    def replace_file(self, target):
        if next(steps) == breaks_at:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace_file)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else SetupError):
        save(make_model(seed=3), folder)
    assert load(folder).record["seed"] == 0
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("breaks_at", [1, 2])
def test_a_first_save_that_is_interrupted_leaves_nothing(model, tmp_path, monkeypatch, breaks_at):
    steps = iter(range(1, 100))

    def fsync(handle):
        if next(steps) == breaks_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SetupError, match="No space left"):
        save(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="Cannot write"):
        save(model, tmp_path / "file")


def test_a_folder_called_as_the_model_is_not_removed(model, tmp_path):
    (tmp_path / "model.json").mkdir()
    (tmp_path / "model.json" / "diary.txt").write_text("mine")
    with pytest.raises(SetupError):
        save(model, tmp_path)
    assert (tmp_path / "model.json" / "diary.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["model.json"]


def test_saving_does_not_write_through_a_link(model, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").symlink_to(tmp_path / "precious.txt")
    save(model, tmp_path / "run")
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert load(tmp_path / "run").task == model.task


def test_a_model_without_a_head_is_not_saved(model, tmp_path):
    with pytest.raises(UsageError, match="fitted"):
        save(replace(model, head=None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("nan"), np.float32(1), {1, 2}, b"x"])
def test_a_record_of_more_than_plain_values_is_refused(model, tmp_path, value):
    with pytest.raises(UsageError, match="JSON"):
        save(replace(model, record={"x": value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- damaged


def write_over(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def flip(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)


def claim(size):
    def damage(folder):
        content = (folder / "model.safetensors").read_bytes()
        put_tensors(folder, struct.pack("<Q", size) + content[8:])

    return damage


def header(text):
    return lambda folder: put_tensors(folder, struct.pack("<Q", len(text)) + text + b"\0" * 64)


def sparse(name, size):
    def damage(folder):
        with (folder / name).open("r+b") as file:
            file.truncate(size)

    return damage


def fifo(name):
    def damage(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def link(name, target):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def as_folder(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


OVERLAP = (
    b'{"backbone.a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
    b'"backbone.b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}'
)
DAMAGE = {
    "truncated": (truncate, "SHA-256"),
    "flipped bit": (flip, "SHA-256"),
    "no tensors": (remove("model.safetensors"), r"model\.safetensors"),
    "empty tensors": (write_over("model.safetensors", b""), "safetensors"),
    "five bytes": (write_over("model.safetensors", b"12345"), "safetensors"),
    "a pickle": (write_over("model.safetensors", b"\x80\x04cos\nsystem\n"), "safetensors"),
    "header of 2**60": (claim(2**60), "got a header of"),
    "header of 2**63": (claim(2**63 + 1), "got a header of"),
    "header of nothing": (claim(0), "got a header of"),
    "header not JSON": (header(b"{not json at all}"), "fit together"),
    "header a list": (header(b"[1, 2, 3]      "), "fit together"),
    "header nested": (header(b"[" * 100_000), "fit together"),
    "header overlapping": (header(OVERLAP), "fit together"),
    "tensors of a terabyte": (sparse("model.safetensors", 2**40), "at most"),
    "description of a terabyte": (sparse("model.json", 2**40), "at most"),
    "no description": (remove("model.json"), r"a folder with model\.safetensors"),
    "empty description": (write_over("model.json", b""), "JSON"),
    "not JSON": (write_over("model.json", b"{'a': 1}"), "JSON"),
    "not text": (write_over("model.json", b"\xff\xfe\xfa\x00\xd8"), "JSON"),
    "a list": (write_over("model.json", b"[1]"), "another file"),
    "null": (write_over("model.json", b"null"), "another file"),
    "nested": (write_over("model.json", b"[" * 100_000 + b"]" * 100_000), "JSON"),
    "nested dicts": (write_over("model.json", b'{"a":' * 100_000), "JSON"),
    "a number of 100,000 digits": (write_over("model.json", b"1" * 100_000), "JSON"),
    "description is a folder": (as_folder("model.json"), "run's folder"),
    "tensors are a folder": (as_folder("model.safetensors"), "to be a file"),
    "description is a pipe": (fifo("model.json"), "run's folder"),
    "tensors are a pipe": (fifo("model.safetensors"), "to be a file"),
    "description is a device": (link("model.json", "/dev/zero"), "run's folder"),
    "tensors are a device": (link("model.safetensors", "/dev/zero"), "to be a file"),
    "description leads to a secret": (link("model.json", "/etc/passwd"), "JSON"),
    "tensors lead to a secret": (link("model.safetensors", "/etc/passwd"), "safetensors"),
    "tensors lead nowhere": (link("model.safetensors", "gone"), "to be a file"),
    "tensors lead to themselves": (link("model.safetensors", "model.safetensors"), "Expected"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_words(folder, no_network, damage):
    harm, words = DAMAGE[damage]
    harm(folder)
    message = refused(folder)
    assert words.replace("\\", "") in message
    assert "root:" not in message  # nothing of a file that a link leads to


def test_a_folder_that_is_none(tmp_path):
    assert "no such folder" in refused(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file")


# ---------------------------------------------------------------- unknown and hostile


def at(path, value):
    """Set what is at a dotted path of the description."""

    def change(description):
        *above, last = path.split(".")
        for name in above:
            description = description[name]
        description[last] = value

    return change


def without(name):
    return lambda description: description.pop(name)


def option(**options):
    return at("backbone.model_options", options)


HUGE = 10**400
HOSTILE = {
    "another format": at("format", "pickle"),
    "version 99": at("version", 99),
    "version as text": at("version", "1"),
    "version of a megabyte": at("version", "9" * 1_000_000),
    "no task": without("task"),
    "no head": without("head"),
    "another head": at("head", {"kind": "mlp"}),
    "task a list": at("task", []),
    "another task": at("task.name", "detection"),
    "files empty": at("files", {}),
    "files a list": at("files", ["model.safetensors"]),
    "files upwards": at("files", {"../../etc/passwd": "0" * 64}),
    "files absolute": at("files", {"/etc/passwd": "0" * 64}),
    "files also upwards": lambda description: description["files"].update({"../../x": ""}),
    "hash wrong": at("files", {"model.safetensors": "0" * 64}),
    "hash null": at("files", {"model.safetensors": None}),
    "engine unknown": at("engine", "os.system"),
    "engine a list": at("engine", ["fp32"]),
    "record a list": at("record", []),
    "temperature NaN": at("task.temperature", float("nan")),
    "temperature zero": at("task.temperature", 0),
    "temperature null": at("task.temperature", None),
    "temperature enormous": at("task.temperature", HUGE),
    "kind unknown": at("task.kind", "exec"),
    "kind a list": at("task.kind", ["multiclass"]),
    "thresholds NaN": at("task.thresholds", [float("nan")] * 3),
    "thresholds too few": at("task.thresholds", [0.5]),
    "thresholds too high": at("task.thresholds", [0.5, 0.5, 7]),
    "thresholds a number": at("task.thresholds", 3),
    "classes none": at("task.classes", []),
    "classes null": at("task.classes", None),
    "classes a text": at("task.classes", "abc"),
    "classes numbers": at("task.classes", [1, 2, 3]),
    "classes lists": at("task.classes", [["a"], ["b"], ["c"]]),
    "classes double": at("task.classes", ["a", "a", "b"]),
    "classes too few": at("task.classes", ["a", "b"]),
    "classes too many": at("task.classes", list("abcd")),
    "backbone empty": at("backbone", {}),
    "backbone with more": at("backbone.evil", 1),
    "architecture on the hub": at("backbone.architecture", "timm/hf-hub:evil/model"),
    "architecture on the hub, new": at("backbone.architecture", "timm/hf_hub:evil/model"),
    "architecture local": at("backbone.architecture", "timm/local-dir:/tmp"),
    "architecture elsewhere": at("backbone.architecture", "os/system"),
    "architecture unknown": at("backbone.architecture", "timm/nothing_of_that_name"),
    "architecture null": at("backbone.architecture", None),
    "architecture that fetches": at("backbone.architecture", "torchvision/fcn_resnet50"),
    "architecture of a detector": at(
        "backbone.architecture", "torchvision/fasterrcnn_mobilenet_v3_large_fpn"
    ),
    "another architecture": at("backbone.architecture", "torchvision/resnet18"),
    "option checkpoint_path": option(checkpoint_path="/etc/passwd"),
    "option pretrained": option(pretrained=True),
    "option pretrained_cfg": option(pretrained_cfg={"url": "http://localhost:1"}),
    "option pretrained_cfg_overlay": option(pretrained_cfg_overlay={"file": "/etc/passwd"}),
    "option cache_dir": option(cache_dir="/"),
    "option weights": option(weights="DEFAULT"),
    "option weights_backbone": option(weights_backbone="DEFAULT"),
    "option a dict": option(block_cfg={"a": 1}),
    "option a list": option(width_mult=[1]),
    "option null": option(width_mult=None),
    "option too large": option(width_mult=1e6),
    "option enormous": option(num_classes=HUGE),
    "options a list": at("backbone.model_options", [1]),
    "stages a number": at("backbone.stages", 3),
    "stages infinite": at("backbone.stages", [["a", float("inf"), 2]]),
    "width too small": at("backbone.width", 100),
    "width a text": at("backbone.width", "576"),
    "preprocess a list": at("backbone.preprocess", [*SMALL.as_dict()]),
    "preprocess null": at("backbone.preprocess", None),
    "crop a text": at("backbone.preprocess.crop", "32"),
    "crop a fraction": at("backbone.preprocess.crop", 31.5),
    "crop zero": at("backbone.preprocess.crop", 0),
    "canvas of a gigapixel": at("backbone.preprocess.canvas", [32, 10**9]),
    "canvas a fraction": at("backbone.preprocess.canvas", [32, 31.5]),
    "canvas a number": at("backbone.preprocess.canvas", 32),
    "resize of a gigapixel": at("backbone.preprocess.resize", 10**9),
    "mean NaN": at("backbone.preprocess.mean", [float("nan")] * 3),
    "mean of texts": at("backbone.preprocess.mean", ["a", "b", "c"]),
    "std infinite": at("backbone.preprocess.std", [float("inf")] * 3),
    "interpolation unknown": at("backbone.preprocess.interpolation", "lanczos"),
}


@pytest.mark.parametrize("change", HOSTILE)
def test_a_hostile_description_is_refused_in_words(folder, no_network, change):
    describe(folder, HOSTILE[change])
    refused(folder)


def tensor(name, value):
    return lambda tensors: tensors.update({name: value})


def renamed(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


BN = "backbone.features.0.1.running_mean"
TENSORS = {
    "of another part": tensor("optimizer.step", torch.zeros(1)),
    "without a part": tensor("weight", torch.zeros(1)),
    "more of the head": tensor("head.evil", torch.zeros(1)),
    "more of the backbone": tensor("backbone.evil", torch.zeros(1)),
    "backbone itself": tensor("backbone", torch.zeros(1)),
    "head without bias": lambda tensors: tensors.pop("head.bias"),
    "head too narrow": tensor("head.weight", torch.zeros(3, WIDTH - 1)),
    "head too short": tensor("head.weight", torch.zeros(2, WIDTH)),
    "head flat": tensor("head.weight", torch.zeros(3 * WIDTH)),
    "bias too long": tensor("head.bias", torch.zeros(4)),
    "head in half": tensor("head.weight", torch.zeros(3, WIDTH, dtype=torch.bfloat16)),
    "head of integers": tensor("head.weight", torch.zeros(3, WIDTH, dtype=torch.int64)),
    "head NaN": tensor("head.weight", torch.full((3, WIDTH), torch.nan)),
    "backbone in double": tensor(BN, torch.zeros(16, dtype=torch.float64)),
    "backbone of integers": tensor(BN, torch.zeros(16, dtype=torch.int64)),
    "backbone of another shape": tensor(BN, torch.zeros(15)),
    "backbone under another name": renamed(BN, "backbone.other"),
    "nothing": lambda tensors: tensors.clear(),
}


@pytest.mark.parametrize("change", TENSORS)
def test_tensors_that_do_not_fit_are_refused_in_words(folder, no_network, change):
    retensor(folder, TENSORS[change])
    refused(folder)


def test_options_of_layers_are_let_through(model, tmp_path):
    options = (("drop_path_rate", 0.1), ("pad_type", "same"))
    spec = replace(resolve("timm/test_efficientnet"), preprocess=SMALL, model_options=options)
    state = load_backbone(spec, pretrained=False).trunk.state_dict()
    width = load_backbone(spec, pretrained=False).width
    head = LinearHead(weight=np.ones((3, width), np.float32), bias=np.zeros(3, np.float32))
    backbone = replace(model.backbone, spec=spec, state=state)
    save(replace(model, backbone=backbone, head=head), tmp_path)
    assert load(tmp_path).backbone.spec.model_options == options


def test_a_link_to_a_whole_file_is_read(folder, model, tmp_path):
    """As the Hugging Face cache keeps its files."""
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    read = load(folder)
    assert read.task == model.task
    assert {k: v.tolist() for k, v in read.head.state().items()} == {
        k: v.tolist() for k, v in model.head.state().items()
    }


def test_a_backbone_that_ends_early_comes_back_as_small_as_it_is(model, tmp_path):
    backbone = model.backbone.until("stage3")
    head = LinearHead(weight=np.ones((3, backbone.width), np.float32), bias=np.zeros(3, np.float32))
    save(replace(model, backbone=backbone, head=head), tmp_path / "short")
    save(model, tmp_path / "whole")
    back = load(tmp_path / "short")
    assert back.backbone.spec == backbone.spec
    assert back.backbone.fingerprint == backbone.fingerprint
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("short", "whole")]
    assert sizes[0] < sizes[1] / 2
    x = torch.zeros(1, 3, 32, 32)
    assert torch.equal(
        back.backbone.module(x), model.backbone.module.run(x, stop="stage3").mean((2, 3))
    )
