"""Fine-tuning: what is frozen stays so, what is killed goes on, several processes are as one."""

import errno
import json
import os
import random
import runpy
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import fingerprint, plan_freezing
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.transforms.augment import Augmentation
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import SetupError, UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.metrics.classification import macro_f1_score
from headstart.models import saving as model_folder
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training import checkpoint
from headstart.training.job import Score, Session
from headstart.training.network import Network
from headstart.training.objectives import ClassObjective
from headstart.training.optim import Training

SMALL = Preprocess(
    resize=36, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)
EVEN = (0.5, 0.5, 0.5)
SHORT = Training(epochs=3, batch_size=8)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return Extractor(cache=Cache(tmp_path_factory.mktemp("kept")), device="cpu", workers=1)


def make_model(classes):
    spec = replace(resolve("timm/test_resnet"), preprocess=SMALL)
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    backbone = FrozenBackbone(spec=spec, state=state, origin={"from": "test"})
    return TransferModel(
        backbone=backbone, task=ClassificationTask(classes=classes, kind="multiclass")
    )


def striped(n, seed):
    """Stripes lie or stand, in any colour and at any place: no mean colour gives them away."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(n):
        width, shift = int(rng.integers(2, 5)), int(rng.integers(8))
        bars = ((np.arange(48) + shift) // width % 2)[:40, None, None]
        pixels = np.broadcast_to(bars * rng.integers(60, 200, 3), (40, 40, 3))
        pixels = pixels if number % 2 else pixels.swapaxes(0, 1)
        pixels = (pixels + rng.integers(0, 56, (40, 40, 3))).astype(np.uint8)
        samples.append(Sample(image=pixels, target=("lie", "stand")[number % 2]))
    return Dataset(samples=tuple(samples), classes=("lie", "stand"))


def f1(model, data, extractor):
    chances = model.predict_probabilities(data.samples, extractor=extractor)
    return macro_f1_score(data.targets(), model.task.predicted(chances))


@pytest.fixture
def always_better(monkeypatch):
    """Keep the last epoch, whatever it is worth."""
    count = iter(range(1000))
    monkeypatch.setattr(ClassObjective, "score", lambda *_: Score(float(next(count)), 0.0))


@pytest.fixture
def networks(monkeypatch):
    """Every network that is made, for hands that should not be on it."""
    made, begin = [], Network.__init__

    def init(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Network, "__init__", init)
    return made


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"activation_cache": "off"},
        {"training": replace(SHORT, ema=0.5, soup=2)},
        {"train_from": "last:3", "unfreeze_every": 1},
    ],
    ids=["plain", "no cache", "average", "unfreeze"],
)
def test_a_call_of_train_between_epochs_moves_nothing(extractor, networks, always_better, change):
    train, val = striped(24, 0), striped(12, 1)
    given, method = make_model(train.classes), replace(Finetune(training=SHORT), **change)
    session = Session(on_epoch=lambda *_: networks[-1].module.train())
    plain = method.fit(given, train, val, extractor=extractor)
    touched = method.fit(given, train, val, extractor=extractor, session=session)
    names = dict(make_model(train.classes).backbone.module.trunk.named_buffers())
    for name, value in touched.backbone.state.items():
        assert torch.equal(value, plain.backbone.state[name])
        if name in names:  # running statistics, in the stages that train as well
            assert torch.equal(value, given.backbone.state[name])


def test_a_later_stage_waits_for_its_epoch(extractor, networks, always_better):
    train, val = striped(24, 0), striped(12, 1)
    given, seen = make_model(train.classes), []
    names = [stage.name for stage in given.backbone.module.stages]

    def told(epoch, most):
        state = networks[-1].state()
        seen.append(
            {
                networks[-1].backbone.stage_of(f"trunk.{name}")
                for name, value in state.items()
                if not torch.equal(value, given.backbone.state[name])
            }
        )

    Finetune(train_from="last:3", unfreeze_every=1, training=SHORT).fit(
        given, train, val, extractor=extractor, session=Session(on_epoch=told)
    )
    assert seen == [set(), set(names[-1:]), set(names[-2:]), set(names[-3:])]


def test_the_start_is_a_candidate(extractor):
    train, val = striped(40, 0), striped(40, 1)
    given = make_model(train.classes)
    probe = LinearProbe().fit(given, train, val, extractor=extractor)
    for rate in (1e-4, 3.0):  # the second destroys what it touches
        tuned = Finetune(training=SHORT, learning_rate=rate).fit(
            given, train, val, extractor=extractor
        )
        epochs = tuned.record["epochs"]
        assert f1(tuned, val, extractor) == pytest.approx(max(e["score"] for e in epochs))
        assert f1(tuned, val, extractor) >= f1(probe, val, extractor) - 1e-9
        if rate > 1:
            assert tuned.record["best_epoch"] == 0


def colour_blind():
    """A model whose first layer sees the sum of the channels only."""
    spec = replace(resolve("timm/test_resnet"), preprocess=replace(SMALL, mean=EVEN, std=EVEN))
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    first = next(k for k, v in state.items() if v.ndim == 4 and v.shape[1] == 3)
    state[first] = state[first].mean(dim=1, keepdim=True).expand_as(state[first]).clone()
    backbone = FrozenBackbone(spec=spec, state=state, origin={"from": "test"})
    return TransferModel(
        backbone=backbone, task=ClassificationTask(classes=("a", "b"), kind="multiclass")
    )


def tinted(n, seed):
    """Red and blue at the same sum of channels."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(n):
        pixels = rng.integers(0, 180, (40, 40, 3))
        pixels[..., 2 * (number % 2)] += 60
        samples.append(Sample(image=pixels.astype(np.uint8), target="ab"[number % 2]))
    return Dataset(samples=tuple(samples), classes=("a", "b"))


def test_what_no_head_can_see_a_stage_learns(extractor):
    train, val, test = tinted(40, 0), tinted(20, 1), tinted(60, 2)
    given, found = colour_blind(), []
    probe = f1(LinearProbe().fit(given, train, val, extractor=extractor), test, extractor)
    assert probe < 0.75
    for seed in range(3):
        method = Finetune(
            train_from="all", learning_rate=3e-3, seed=seed, training=replace(SHORT, epochs=6)
        )
        found.append(f1(method.fit(given, train, val, extractor=extractor), test, extractor))
    assert min(found) > 0.9


# ------------------------------------------------------------------- other processes, other ends

DRIVER = """
import json, os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from headstart.distributed import processes as distributed
from headstart.models import saving as model_folder
from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.transforms.preprocess import Preprocess
from headstart.features.extractor import Extractor
from headstart.backbones.freezing import fingerprint
from headstart.methods.finetune import Finetune
from headstart.models.transfer_model import TransferModel
from headstart.models.tasks import ClassificationTask
from headstart.training import checkpoint, engine
from headstart.training.job import Session
from headstart.training.optim import Training
from headstart.backbones.frozen import FrozenBackbone

SGD = Training(optimiser="sgd", epochs=3, batch_size=8)
METHODS = {
    "plain": Finetune(train_from="last:2", learning_rate=0.01, training=SGD),
    "kill": Finetune(
        train_from="last:2", batch_norm="train", dropout=0.2, mixup=0.2, start="random",
        training=Training(epochs=3, batch_size=8, ema=0.9, soup=2),
    ),
    "statistics": Finetune(
        train_from="last:2", batch_norm="train", dropout=0.2, start="random", mixup=0.2,
        training=replace(SGD, epochs=2, ema=0.5, soup=2),
    ),
}


def images(n, seed):
    rng, samples = np.random.default_rng(seed), []
    for number in range(n):
        pixels = rng.integers(0, 200, (40, 40, 3))
        pixels[..., number % 2] += 30
        samples.append(Sample(image=pixels.astype(np.uint8), target="ab"[number % 2]))
    return Dataset(samples=tuple(samples), classes=("a", "b"))


def fit(how, root, session=None):
    even = (0.5, 0.5, 0.5)
    look = Preprocess(resize=36, crop=32, interpolation="bilinear", mean=even, std=even)
    spec = replace(resolve("timm/test_resnet"), preprocess=look)
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    backbone = FrozenBackbone(spec=spec, state=state, origin={"from": "test"})
    task = ClassificationTask(classes=("a", "b"), kind="multiclass")
    given = TransferModel(backbone=backbone, task=task)
    return METHODS[how].fit(
        given, images(29, 0), images(12, 1),
        extractor=Extractor(cache=Cache(Path(root) / "cache"), device="cpu", workers=1),
        session=session,
    )
"""

ENDS = """
root, seed = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
# Once, not in each child.
import accelerate, safetensors.torch, scipy.optimize, sklearn.metrics, timm
load("timm/test_resnet", pretrained=False)
rng = random.Random(seed)
engine.CHECKPOINT_SECONDS = -1  # after every step


def child(folder, steps):
    # In a process of its own; `steps` is where it says how far it is.
    def progress(name, done, most):
        if name == "training":
            os.write(steps, b".")

    session = Session(folder=folder, resume=True, progress=progress)
    model_folder.save(fit("kill", root, session), folder / "model")


def run(folder, after, ending):
    # Let it do some steps (all for None), and a moment; then end it. Its exit status comes back.
    read, write = os.pipe()
    process = os.fork()
    if not process:
        status = 70
        try:
            os.close(read)
            child(folder, write)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    seen = 0
    while os.read(read, 1):
        seen += 1
        if seen == after:
            time.sleep(0.03 * rng.random())
            os.kill(process, ending)
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), seen


said = {"straight": run(root / "straight", None, None), "killed": [], "stopped": []}
for _ in range(3):
    said["killed"].append(run(root / "killed", rng.randint(1, 4), signal.SIGKILL))
said["last"] = run(root / "killed", None, None)
said["stopped"] = run(root / "stopped", rng.randint(5, 9), signal.SIGINT)
said["record"] = dict(model_folder.load(root / "stopped" / "model").record)
said["resumed"] = run(root / "stopped", None, None)
(root / "said.json").write_text(json.dumps(said))
"""


def script(folder, *parts):
    path = folder / "driver.py"
    path.write_text("".join(parts))
    return path


def test_a_kill_costs_no_bit_and_ctrl_c_keeps_the_best(tmp_path):
    seed = random.SystemRandom().randrange(1000)
    done = subprocess.run(
        [sys.executable, str(script(tmp_path, DRIVER, ENDS)), str(tmp_path), str(seed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (seed, done.stderr)
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["straight"] == [0, 12], (seed, done.stderr)
    assert [status for status, _ in said["killed"]] == [-signal.SIGKILL] * 3, seed
    assert said["last"][0] == 0
    assert said["last"][1] < 12  # something was taken up
    straight = model_of(tmp_path / "straight")
    assert model_of(tmp_path / "killed") == straight, seed
    assert said["stopped"][0] == 0, (seed, done.stderr)
    assert said["record"]["interrupted"]
    assert "Stopped by hand" in said["record"]["notes"][0]
    scores = [epoch["score"] for epoch in said["record"]["epochs"]]
    assert 2 <= len(scores) <= 3
    assert scores[said["record"]["best_epoch"]] == max(scores)
    assert said["resumed"][0] == 0
    assert model_of(tmp_path / "stopped") == straight, seed  # a resume is not marked by the stop


def model_of(folder):
    """The tensors' bytes, and the record without what a clock decides."""
    record = json.loads((folder / "model" / "model.json").read_text())["record"]
    for epoch in record["epochs"]:
        del epoch["seconds"]
    return (folder / "model" / "model.safetensors").read_bytes(), record


def test_a_full_disk_is_said_and_what_was_kept_is_whole(extractor, tmp_path, monkeypatch):
    train, val = striped(24, 0), striped(12, 1)
    given, write, kept = make_model(train.classes), checkpoint.write, []

    def until_full(folder, state):
        if kept and kept[-1].epoch == 2:
            monkeypatch.setattr("safetensors.torch.save_file", no_space)
        write(folder, state)
        kept.append(state)

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", until_full)
    monkeypatch.setattr("headstart.training.engine.CHECKPOINT_SECONDS", -1)  # after every step
    with pytest.raises(
        SetupError, match=r"No space left on device\. The previous checkpoint is complete"
    ):
        Finetune(training=SHORT).fit(
            given, train, val, extractor=extractor, session=Session(folder=tmp_path)
        )
    found = checkpoint.read(tmp_path, identity=kept[0].identity)
    assert (found.epoch, found.step) == (2, 0)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]
    monkeypatch.undo()
    session = Session(folder=tmp_path, resume=True)
    fresh = make_model(train.classes)
    resumed = Finetune(training=SHORT).fit(fresh, train, val, extractor=extractor, session=session)
    straight = Finetune(training=SHORT).fit(fresh, train, val, extractor=extractor)
    assert all(
        torch.equal(v, straight.backbone.state[k]) for k, v in resumed.backbone.state.items()
    )


TWO = """
root = Path(sys.argv[1])
torch.set_num_threads(1)
distributed.start("cpu")
me, writes, write = distributed.rank(), [], checkpoint.write
checkpoint.write = lambda *a: writes.append(1) or write(*a)
for how in ("plain", "statistics"):
    model = fit(how, root, Session(folder=root / how))
    record = dict(model.record)
    head = {f"head.{k}": torch.from_numpy(v) for k, v in model.head.state().items()}
    said = {"hash": fingerprint({**model.backbone.state, **head}), "writes": len(writes)}
    said["epochs"] = record["epochs"]
    (root / f"{how}-{me}.json").write_text(json.dumps(said))
    if me == 0:
        model_folder.save(model, root / f"{how}-model")
distributed.stop()
"""


def test_two_processes_are_as_one(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = script(tmp_path, DRIVER, TWO)
    done = subprocess.run(
        [sys.executable, *launch, str(path), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for how in ("plain", "statistics"):
        said = [json.loads((tmp_path / f"{how}-{n}.json").read_text()) for n in (0, 1)]
        assert said[0]["hash"] == said[1]["hash"], how
        assert [one["score"] for one in said[0]["epochs"]] == [
            one["score"] for one in said[1]["epochs"]
        ]
        assert said[0]["writes"] >= 1  # the last one; by time there may be more
        assert said[1]["writes"] == 0
    alone = runpy.run_path(str(script(tmp_path, DRIVER)))
    one = alone["fit"]("plain", tmp_path / "alone")
    two = model_folder.load(tmp_path / "plain-model")
    for name, value in one.backbone.state.items():
        torch.testing.assert_close(two.backbone.state[name], value, rtol=0, atol=1e-5)
    np.testing.assert_allclose(two.head.weight, one.head.weight, rtol=0, atol=1e-5)
    for ours, theirs in zip(one.record["epochs"], two.record["epochs"], strict=True):
        assert ours["score"] == theirs["score"]
        assert ours["held_out_loss"] == pytest.approx(theirs["held_out_loss"], abs=1e-5)
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"start": "probed"}, UnknownNameError),
        ({"activation_cache": "yes"}, UnknownNameError),
        ({"dropout": 1.0}, UsageError),
        ({"stoch_norm": -0.1}, UsageError),
        ({"lora_rank": 0}, UsageError),
        ({"wise_ft": 1.5}, UsageError),
        ({"wise_ft": 0.5, "only": "lora"}, UsageError),
        ({"mixup": 0.2, "cutmix": 1.0}, UsageError),
        ({"head_learning_rate": 0.0}, UsageError),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(change, error):
    with pytest.raises(error, match=next(iter(change))):
        Finetune(**change)


def test_a_rate_that_is_looked_for_is_the_one_that_is_used(extractor):
    train, val = striped(16, 0), striped(8, 1)
    how = Finetune(learning_rate="auto", start="random", training=Training(epochs=2, batch_size=8))
    found = how.fit(make_model(train.classes), train, val, extractor=extractor)
    swept = found.record["learning_rate_found"]
    rates = [row["learning_rate"] for row in found.record["plan"]["stages"] if row["trains"]]
    assert rates == pytest.approx([swept["suggested"] / 10])  # the random head's is ten times it
    assert len(swept["rates"]) == len(swept["losses"])
    json.dumps(found.record, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": replace(SHORT, precision="fp16")}, "Precision fp16 needs a GPU"),
        ({"train_from": "last:2", "unfreeze_every": 3}, r"after the last epoch \(3\)"),
    ],
)
def test_what_cannot_happen_is_refused(extractor, change, message):
    train, val = striped(16, 0), striped(8, 1)
    with pytest.raises(UsageError, match=message):
        replace(Finetune(training=SHORT), **change).fit(
            make_model(train.classes), train, val, extractor=extractor
        )


def test_adapted_statistics_do_not_depend_on_the_order_of_the_classes(extractor):
    rng = np.random.default_rng(0)
    shades = [40] * 80 + [200] * 80  # sorted by class, as folders are
    images = [np.full((40, 40, 3), s + rng.integers(20), dtype=np.uint8) for s in shades]
    labels = ["dark"] * 80 + ["bright"] * 80
    samples = [Sample(image=p, target=t) for p, t in zip(images, labels, strict=True)]
    train = Dataset(samples=tuple(samples), classes=("bright", "dark"))
    given = make_model(train.classes)
    first = given.backbone.module.stages[0].name
    how = Finetune(batch_norm=f"{first}=adapt", training=replace(SHORT, epochs=1))
    found = how.fit(given, train, train.subset([0, 159]), extractor=extractor)
    network = given.backbone.module.trunk
    pixels = torch.from_numpy(np.stack([SMALL.resize_and_crop(p) for p in images]))
    with torch.inference_mode():
        raw = network.conv1[0](SMALL.normalise(pixels.permute(0, 3, 1, 2)))
    name = "conv1.1.running_var"
    torch.testing.assert_close(found.backbone.state[name], raw.var((0, 2, 3)), rtol=0.1, atol=1e-4)


@pytest.mark.parametrize("augment", ["none", "light"])
def test_adapted_stages_that_do_not_train_are_cached_and_give_the_same_bits(tmp_path, augment):
    """Once their statistics are computed, they are constant: their outputs are computed once."""
    train, val = striped(48, 0), striped(8, 1)
    given = make_model(train.classes)
    *prefix, last = (stage.name for stage in given.backbone.module.stages)
    policies = ",".join([*(f"{name}=adapt" for name in prefix), f"{last}=train"])
    augmentation = replace(Augmentation.named(augment), views=2)
    found = {}
    for mode in ("on", "off"):
        with Cache(tmp_path / mode) as cache:
            extractor = Extractor(cache=cache, device="cpu", workers=1)
            how = Finetune(
                train_from=last,
                batch_norm=policies,
                training=SHORT,
                augmentation=augmentation,
                activation_cache=mode,
            )
            assert how.outline(given, train, extractor=extractor).cached.startswith(
                f"up to {prefix[-1]}" if mode == "on" else "nothing: switched off"
            )
            found[mode] = how.fit(given, train, val, extractor=extractor)
    on, off = found["on"], found["off"]
    assert on.record["plan"]["boundary"] == prefix[-1]
    assert on.record["plan"]["stages"][0]["batch_norm"] == "adapt"
    assert fingerprint(on.backbone.state) == fingerprint(off.backbone.state)
    assert [e["score"] for e in on.record["epochs"]] == [e["score"] for e in off.record["epochs"]]
    name = "conv1.1.running_mean"
    assert not torch.equal(on.backbone.state[name], given.backbone.state[name])


def test_adapted_statistics_are_those_of_one_pass_before_the_training(extractor):
    """The stages that follow, trained or not, change nothing in them."""
    train, val = striped(48, 0), striped(8, 1)
    given = make_model(train.classes)
    first, *_, last = (stage.name for stage in given.backbone.module.stages)
    states = []
    for change in ({"train_from": "head"}, {"train_from": last}, {"train_from": last, "seed": 1}):
        how = Finetune(batch_norm=f"{first}=adapt", training=SHORT, **change)
        states.append(how.fit(given, train, val, extractor=extractor).backbone.state)
    for state in states[1:]:
        assert torch.equal(state["conv1.1.running_var"], states[0]["conv1.1.running_var"])


def test_the_plan_shows_adapted_stages_as_constant_only_if_nothing_trains_in_them():
    module = make_model(("a", "b")).backbone.module
    first, *_, last = (stage.name for stage in module.stages)
    plan = plan_freezing(module, train_from=last, batch_norm=f"{first}=adapt,{last}=adapt")
    assert plan.adapts_first
    assert plan.first_changing_stage == first
    after = plan.after_adapting()
    assert after.first_changing_stage == last
    assert {row.batch_norm for row in after.rows} == {"frozen"}
    trained = plan_freezing(module, train_from=last, batch_norm="adapt")
    assert not trained.adapts_first
    assert trained.after_adapting() is trained
