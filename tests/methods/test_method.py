"""What every method owes: a new model, exact to its seed, that a folder can hold."""

import itertools
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import fingerprint
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.transforms.augment import Augmentation
from headstart.data.transforms.preprocess import Preprocess
from headstart.features.extractor import Extractor
from headstart.methods.few_shot import FewShot
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.scratch import Scratch
from headstart.models import saving as model_folder
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training import trainer as tuning
from headstart.training.job import Score
from headstart.training.losses.classification import Loss
from headstart.training.objectives import ClassObjective
from headstart.training.optim import Training

SMALL = Preprocess(
    resize=36, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)
BACKBONES = {"resnet": "timm/test_resnet", "efficientnet": "timm/test_efficientnet"}
CLASSES = ("blue", "green", "red")
SHORT = Training(epochs=2, batch_size=8)
LIGHT = Augmentation.named("light")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def backbones():
    return {name: make_backbone(found) for name, found in BACKBONES.items()}


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return Extractor(cache=Cache(tmp_path_factory.mktemp("kept")), device="cpu", workers=1)


def make_backbone(name):
    spec = replace(resolve(name), preprocess=SMALL)
    backbone = load(spec, pretrained=False, seed=0)
    return FrozenBackbone(
        spec=spec, state=spread(backbone.trunk.state_dict()), origin={"from": "test"}
    )


def spread(state):
    """Running statistics as a pretraining leaves them: not the zeros and ones of the start."""
    draw = torch.Generator().manual_seed(1)
    found = {k: v.clone() for k, v in state.items()}
    for name, value in found.items():
        if name.endswith("running_mean"):
            value.add_(0.1 * torch.randn(value.shape, generator=draw))
        if name.endswith("num_batches_tracked"):
            value.add_(7)
    return found


def coloured(n, seed, *, kind="multiclass", classes=CLASSES):
    """Noise with a little of the class's colour; for several labels, of each of them."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(n):
        own = (CLASSES[number % len(classes)],)
        if kind == "multilabel":
            own = tuple(c for place, c in enumerate(CLASSES) if (number >> place) % 2)
        pixels = rng.integers(0, 180, (40, 48, 3))
        for name in own:
            pixels[..., 2 - CLASSES.index(name)] += 60
        target = own if kind == "multilabel" else own[0]
        samples.append(
            Sample(image=pixels.astype(np.uint8), target=target, group=f"visit {number // 2}")
        )
    if kind != "multilabel":
        samples = [replace(s, group=None) for s in samples]
    return Dataset(samples=tuple(samples), classes=CLASSES, kind=kind)


def untrained(backbone, data):
    return TransferModel(
        backbone=backbone, task=ClassificationTask(classes=data.classes, kind=data.kind)
    )


METHODS = {
    "probe": LinearProbe(),
    "last": Finetune(training=SHORT),
    "last, no cache": Finetune(training=SHORT, activation_cache="off"),
    "head": Finetune(train_from="head", training=SHORT),
    "all": Finetune(train_from="all", training=SHORT),
    "regex": Finetune(train_from="all", only="conv1|conv_pw", training=SHORT),
    "norm": Finetune(train_from="last:2", only="norm", training=SHORT),
    "bias": Finetune(train_from="last:2", only="bias", training=SHORT),
    "lora": Finetune(train_from="last:2", only="lora", lora_rank=2, training=SHORT),
    "train": Finetune(train_from="last:2", batch_norm="train", training=SHORT),
    "adapt": Finetune(train_from="last:2", batch_norm="adapt", training=SHORT),
    "stoch norm": Finetune(train_from="last:2", batch_norm="train", stoch_norm=0.5, training=SHORT),
    "unfreeze": Finetune(train_from="last:2", unfreeze_every=1, training=SHORT),
    "decay": Finetune(train_from="all", layer_decay=0.5, training=SHORT),
    "random": Finetune(start="random", training=SHORT),
    "dropout": Finetune(dropout=0.3, training=SHORT),
    "mixup": Finetune(mixup=0.2, training=SHORT),
    "cutmix": Finetune(cutmix=1.0, train_from="all", training=SHORT),
    "average": Finetune(training=replace(SHORT, ema=0.5, soup=2)),
    "between": Finetune(wise_ft=0.5, training=SHORT),
    "auto": Finetune(learning_rate="auto", training=SHORT),
    "sampling": Finetune(loss=Loss(imbalance="sampling"), training=SHORT),
    "focal": Finetune(loss=Loss(focal=2.0, label_smoothing=0.1), training=SHORT),
    "adjusted": Finetune(loss=Loss(logit_adjustment=1.0), training=SHORT),
    "bf16": Finetune(training=replace(SHORT, precision="bf16")),
    "views": Finetune(augmentation=replace(LIGHT, views=2), training=SHORT),
    "endless": Finetune(augmentation=LIGHT, training=SHORT),
    "scratch": Scratch(training=SHORT),
    "few-shot": FewShot(),
    "shots": FewShot(shots=2),
}
FROZEN = ("probe", "few-shot", "shots")
MULTILABEL = ("probe", "last", "lora", "mixup", "focal", "average", "scratch")
ON_EFFICIENTNET = (
    "probe",
    "few-shot",
    "last",
    "all",
    "lora",
    "norm",
    "train",
    "adapt",
    "stoch norm",
)
CASES = [("resnet", how) for how in METHODS] + [("efficientnet", how) for how in ON_EFFICIENTNET]


@contextmanager
def always_better():
    """Keep the last epoch, so that what training did is seen, good or bad."""
    count = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassObjective, "score", lambda *_: Score(float(next(count)), 0.0))
        yield


def whole(model):
    """Everything that a model computes with, as one hash."""
    head = {f"head.{k}": torch.from_numpy(v) for k, v in model.require_head().state().items()}
    return fingerprint({**model.backbone.state, **head})


@pytest.fixture(scope="module")
def fitted(backbones, extractor):
    """Every method's model, made once, however many tests look at it."""
    train, val = coloured(24, 0), coloured(12, 1)
    made = {}

    def fit(backbone, how):
        if (backbone, how) not in made:
            given = untrained(backbones[backbone], train)
            with always_better():
                made[backbone, how] = METHODS[how].fit(given, train, val, extractor=extractor)
        return made[backbone, how]

    return fit


def stages(model, backbone):
    """Where each tensor of the state lies; the original classifier in none."""
    plan = model.record["plan"]["stages"]
    moving = {row["stage"] for row in plan if row["trains"] or row["batch_norm"] != "frozen"}
    return plan, {k: backbone.stage_of(f"trunk.{k}") in moving for k in inner(model, backbone)}


def inner(model, backbone):
    return [k for k in model.backbone.state if f"trunk.{k}" in backbone.state_dict()]


@pytest.mark.parametrize(("network", "how"), CASES)
def test_the_model_given_stays_as_it_was(backbones, fitted, network, how):
    backbone = backbones[network]
    before = fingerprint(make_backbone(BACKBONES[network]).state)
    model = fitted(network, how)
    assert fingerprint(backbone.state) == before
    assert fingerprint(backbone.module.trunk.state_dict()) == before
    if how not in FROZEN:
        own = {v.data_ptr() for v in backbone.state.values()}
        own |= {v.data_ptr() for v in backbone.module.state_dict().values()}
        assert not own & {model.backbone.state[k].data_ptr() for k in inner(model, backbone.module)}


@pytest.mark.parametrize(("network", "how"), CASES)
def test_what_is_constant_is_so_bit_for_bit_and_the_rest_moves(backbones, fitted, network, how):
    backbone, model = backbones[network], fitted(network, how)
    if how in FROZEN:
        assert model.backbone is backbone
        return
    plan, moves = stages(model, backbone.module)
    moved = {k for k in moves if not torch.equal(model.backbone.state[k], backbone.state[k])}
    assert moved <= {k for k, free in moves.items() if free}
    assert model.record["best_epoch"] == 2
    for row in plan:
        own = {k for k in moved if backbone.module.stage_of(f"trunk.{k}") == row["stage"]}
        statistics = {k for k in own if k.endswith(("running_mean", "running_var", "tracked"))}
        if row["batch_norm"] == "frozen":
            assert not statistics
        if row["trains"] or row["batch_norm"] != "frozen":
            assert own
            assert bool(statistics) == (row["batch_norm"] != "frozen" and has_norm(own, backbone))


def has_norm(own, backbone):
    """Whether the stage of these tensors holds running statistics."""
    stage = backbone.module.stage_of(f"trunk.{next(iter(own))}")
    names = [k for k in backbone.module.state_dict() if k.endswith("running_mean")]
    return any(backbone.module.stage_of(k) == stage for k in names)


@pytest.mark.parametrize(("backbone", "how"), CASES)
def test_a_folder_gives_the_same_model_back(backbones, fitted, extractor, tmp_path, backbone, how):
    model, val = fitted(backbone, how), coloured(12, 1)
    json.dumps(dict(model.record), allow_nan=False)
    chances = model.predict_probabilities(val.samples, extractor=extractor)
    assert chances.shape == (12, 3)
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    model_folder.save(model, tmp_path)
    again = model_folder.load(tmp_path)
    assert whole(again) == whole(model)
    assert {k: v.shape for k, v in again.backbone.state.items()} == {
        k: v.shape for k, v in backbones[backbone].state.items()
    }
    found = again.predict_probabilities(val.samples, extractor=extractor)
    np.testing.assert_array_equal(found, chances)


@pytest.mark.parametrize("how", METHODS)
def test_a_seed_is_a_model(backbones, extractor, fitted, how):
    train, val = coloured(24, 0), coloured(12, 1)
    given = untrained(backbones["resnet"], train)
    torch.manual_seed(123)  # nothing outside matters
    with always_better():
        again = METHODS[how].fit(given, train, val, extractor=extractor)
    assert whole(again) == whole(fitted("resnet", how))


@pytest.mark.parametrize("how", ["last", "lora", "stoch norm", "mixup", "views", "scratch"])
def test_another_seed_is_another_model(backbones, extractor, fitted, how):
    train, val = coloured(24, 0), coloured(12, 1)
    given = untrained(backbones["resnet"], train)
    with always_better():
        other = replace(METHODS[how], seed=1).fit(given, train, val, extractor=extractor)
    assert whole(other) != whole(fitted("resnet", how))


@pytest.mark.parametrize("how", MULTILABEL)
def test_several_labels_in_groups(backbones, extractor, how):
    train = coloured(32, 0, kind="multilabel")
    given = untrained(backbones["resnet"], train)
    model = METHODS[how].fit(given, train, extractor=extractor)
    chances = model.predict_probabilities(train.samples, extractor=extractor)
    assert np.isfinite(chances).all()
    assert ((chances >= 0) & (chances <= 1)).all()
    assert (np.abs(chances.sum(axis=1) - 1) > 1e-3).any()


@pytest.mark.parametrize(
    "how", ["probe", "few-shot", "last", "train", "sampling", "adjusted", "scratch"]
)
def test_a_class_without_held_out_images(backbones, extractor, how):
    train, val = coloured(24, 0), coloured(8, 1, classes=CLASSES[:2])
    assert "red" not in {sample.target for sample in val.samples}
    model = METHODS[how].fit(untrained(backbones["resnet"], train), train, val, extractor=extractor)
    chances = model.predict_probabilities(train.samples, extractor=extractor)
    assert chances.shape == (24, 3)
    assert np.isfinite(chances).all()


@pytest.mark.parametrize("how", ["probe", "last", "scratch"])
def test_a_group_is_never_on_both_sides(backbones, extractor, how, monkeypatch):
    samples = [replace(s, group=f"visit {n // 6}") for n, s in enumerate(coloured(30, 0).samples)]
    train = replace(coloured(30, 0), samples=tuple(samples))
    seen, choose = [], tuning.objective_for
    for module in ("finetune", "scratch"):
        monkeypatch.setattr(
            f"headstart.methods.{module}.objective_for",
            lambda parts, *a, **k: seen.append(parts) or choose(parts, *a, **k),
        )
    METHODS[how].fit(untrained(backbones["resnet"], train), train, extractor=extractor)
    assert bool(seen) == (how != "probe")
    for learn, select in seen:
        assert not {s.group for s in learn.samples} & {s.group for s in select.samples}
        assert len(learn) + len(select) == 30
