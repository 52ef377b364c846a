"""The cache plan is the fastest option that fits, according to a count of the work."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import FreezePlan, StageRow, plan_freezing
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.transforms.augment import Augmentation
from headstart.errors import SetupError
from headstart.features.extractor import Extractor, SplitPoint, View
from headstart.methods import finetune
from headstart.methods.finetune import Finetune
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training import activation_cache
from headstart.training.activation_cache import (
    MEMORY_SHARE,
    ActivationCachePlan,
    AvailableStorage,
    TrainingWorkload,
    agree_on_cache_plan,
    cache_options,
    choose_cache_plan,
    plan_activation_cache,
)
from headstart.training.job import Score
from headstart.training.objectives import ClassObjective
from headstart.training.optim import Training
from headstart.training.profiler import MeasuredCosts, StageCost

MB = 1_000_000
AMPLE_STORAGE = AvailableStorage(memory=10**15, disk=10**15, budget=10**15)


def make_plan(constant, moving):
    rows = [StageRow(stage=name, parameters=9) for name in constant]
    rows += [StageRow(stage=name, parameters=9, trainable=9) for name in moving]
    return FreezePlan(rows=tuple(rows))


LAST = make_plan(["a", "b"], ["c"])
HEAD = make_plan(["a", "b", "c"], [])
ALL = make_plan([], ["a", "b", "c"])


def make_measured(seconds=(0.02, 0.02, 0.01), sizes=(MB, MB // 4, MB // 8), **changes):
    stages = [
        StageCost(name=name, seconds=time, bytes=size)
        for name, time, size in zip("abc", seconds, sizes, strict=True)
    ]
    costs = {"stages": tuple(stages), "learn": 0.03, "update": 0.5, "pixels": 0.01, "width": 16}
    return MeasuredCosts(**{**costs, **changes})


def count(plan, measured, demand, stop):
    """Do the training image by image, on paper; stop: nothing, a stage, or pooled."""
    names = [stage.name for stage in measured.stages]
    time = {stage.name: stage.seconds for stage in measured.stages}
    size = {stage.name: stage.bytes for stage in measured.stages} | {"pooled": 4 * measured.width}
    constant = [row.stage for row in plan.rows if not row.trains]
    cached_stages = names if stop == "pooled" else names[: names.index(stop) + 1] if stop else []
    total = 0.0
    looks = {None: 1, 0: None}.get(demand.views, demand.views)
    stored = set()
    passes = [("train", epoch) for epoch in range(demand.epochs)]
    passes += [("plain", 0)] * demand.fits_head + [("score", 0)] * (demand.epochs + 2)
    for kind, epoch in passes:
        n = demand.n_val if kind == "score" else demand.n_train
        look = (epoch % looks if demand.views else 0) if kind == "train" else kind
        look = 0 if demand.views is None and kind == "plain" else look
        if stop and (kind == "score", look) not in stored:
            stored.add((kind == "score", look))
            total += n * (
                measured.pixels + sum(time[s] for s in cached_stages) + size[stop] / 300e6
            )
            total += n * size[stop] / 600e6
        if stop:
            total += n * size[stop] / 5e9
        else:
            total += n * measured.pixels
        total += n * sum(time[s] for s in constant if s not in cached_stages)
        if kind == "train":
            total += n * measured.learn + -(-n // demand.batch_size) * measured.update
        else:
            total += n * sum(time[s] for s in names if s not in constant)
    return total


DEMANDS = [
    TrainingWorkload(n_train=100, epochs=10),
    TrainingWorkload(n_train=100, n_val=20, epochs=10, fits_head=True),
    TrainingWorkload(n_train=90, n_val=10, epochs=8, views=4, fits_head=True, batch_size=32),
    TrainingWorkload(n_train=90, epochs=3, views=4),
]


@pytest.mark.parametrize("demand", DEMANDS)
@pytest.mark.parametrize("plan", [LAST, HEAD])
def test_expected_seconds_are_those_of_a_count(plan, demand):
    measured = make_measured()
    for option in cache_options(plan, measured, demand, AMPLE_STORAGE):
        stop = option.stop or "pooled"
        assert option.seconds_cached == pytest.approx(count(plan, measured, demand, stop))
        assert option.seconds_uncached == pytest.approx(count(plan, measured, demand, None))


@pytest.mark.parametrize(
    ("change", "stop"),
    [
        ({}, "b"),
        ({"sizes": (1000, 3000 * MB, 1)}, "a"),  # reading 3 GB an image takes longer than b
        ({"sizes": (1000, MB, 1), "seconds": (0.02, 0.0, 0.01)}, "a"),  # b costs nothing to run
    ],
)
def test_the_cut_is_the_quickest_of_the_constant_stages(change, stop):
    chosen = choose_cache_plan(
        LAST, make_measured(**change), TrainingWorkload(n_train=50, epochs=10), AMPLE_STORAGE
    )
    assert chosen.cached
    assert chosen.stop == stop


def test_pooled_features_are_kept_where_only_the_head_moves():
    chosen = choose_cache_plan(
        HEAD, make_measured(), TrainingWorkload(n_train=50, epochs=10), AMPLE_STORAGE
    )
    assert (chosen.cached, chosen.stop, chosen.bytes) == (True, None, 50 * 16 * 4)
    assert chosen.sentence().startswith("pooled features: ")


def test_what_is_kept_already_costs_nothing_again():
    demand = TrainingWorkload(n_train=50, epochs=1)
    assert not choose_cache_plan(LAST, make_measured(), demand, AMPLE_STORAGE).cached
    again = choose_cache_plan(
        LAST, make_measured(), replace(demand, missing={"b": 0.0}), AMPLE_STORAGE
    )
    assert (again.cached, again.stop) == (True, "b")


@pytest.mark.parametrize(
    ("plan", "demand", "room", "reason"),
    [
        (ALL, {}, AMPLE_STORAGE, "every stage trains"),
        (LAST, {"epochs": 1}, AMPLE_STORAGE, "with one epoch"),
        (LAST, {"views": 0}, AMPLE_STORAGE, "new views"),
        (LAST, {}, replace(AMPLE_STORAGE, budget=MB), "budget"),
        (LAST, {}, replace(AMPLE_STORAGE, disk=MB), "free disk"),
    ],
)
def test_it_declines_in_words(plan, demand, room, reason):
    workload = TrainingWorkload(**{"n_train": 50, "epochs": 10, **demand})
    chosen = choose_cache_plan(plan, make_measured(), workload, room)
    assert not chosen.cached
    assert reason in chosen.reason
    assert chosen.sentence().startswith("nothing: ")


def test_a_learning_part_that_dwarfs_the_rest_is_not_worth_the_disk():
    chosen = choose_cache_plan(
        LAST, make_measured(learn=10.0), TrainingWorkload(n_train=50, epochs=10), AMPLE_STORAGE
    )
    assert not chosen.cached
    assert "is not worth" in chosen.reason


def test_a_smaller_stage_is_taken_where_the_best_does_not_fit():
    measured = make_measured(sizes=(1000, MB, 1))
    demand = TrainingWorkload(n_train=50, epochs=10)
    assert choose_cache_plan(LAST, measured, demand, AMPLE_STORAGE).stop == "b"
    chosen = choose_cache_plan(LAST, measured, demand, replace(AMPLE_STORAGE, budget=40 * MB))
    assert (chosen.cached, chosen.stop) == (True, "a")


def test_a_quarter_of_free_memory_is_the_most_that_is_held():
    demand = TrainingWorkload(n_train=50, epochs=10)
    size = choose_cache_plan(LAST, make_measured(), demand, AMPLE_STORAGE).bytes
    assert size == 50 * MB // 4
    enough = int(size / MEMORY_SHARE)
    for memory, storage in ((enough, "memory"), (enough - 5, "disk")):
        chosen = choose_cache_plan(
            LAST, make_measured(), demand, replace(AMPLE_STORAGE, memory=memory)
        )
        assert chosen.storage == storage


def test_a_person_can_overrule_it():
    once = TrainingWorkload(n_train=50, epochs=1)
    assert choose_cache_plan(LAST, make_measured(), once, AMPLE_STORAGE, mode="on").cached
    often = TrainingWorkload(n_train=50, epochs=10)
    off = choose_cache_plan(LAST, make_measured(), often, AMPLE_STORAGE, mode="off")
    assert not off.cached
    assert off.sentence() == "nothing: switched off"
    with pytest.raises(SetupError, match="HEADSTART_CACHE_BUDGET"):
        choose_cache_plan(
            LAST, make_measured(), often, replace(AMPLE_STORAGE, budget=MB), mode="on"
        )


def make_model(name, crop):
    spec = resolve(name)
    side = {"resize": crop + 8, "crop": crop}
    spec = replace(spec, preprocess=replace(spec.preprocess, **side))
    state = load(spec, pretrained=False).trunk.state_dict()
    return TransferModel(
        backbone=FrozenBackbone(spec=spec, state=state, origin={}),
        task=ClassificationTask(classes=("dark", "light")),
        engine="fp32",
    )


def make_data(n):
    rng = np.random.default_rng(0)
    samples = []
    for row in range(n):
        pixels = rng.integers(0, 160, (48, 64, 3)) + 90 * (row % 2)
        samples.append(Sample(image=pixels.astype(np.uint8), target=("dark", "light")[row % 2]))
    return Dataset(samples=tuple(samples), classes=("dark", "light"))


def weights(model, method, cache, parts):
    extractor = Extractor(cache=cache, engine="fp32", device="cpu", workers=2)
    return method.fit(model, *parts, extractor=extractor).backbone.state


def largest_difference(a, b):
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


FAMILIES = [
    ("timm/test_resnet", 64, "last:2"),
    ("timm/test_efficientnet", 64, "last:2"),
    ("timm/test_vit", 160, "last:1"),
    ("torchvision/resnet18", 64, "last:1"),
]
AUGMENTATIONS = [Augmentation(), Augmentation(flip=True, crop=0.7, views=2)]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=["plain", "views"])
@pytest.mark.parametrize(("name", "crop", "train_from"), FAMILIES)
def test_weights_are_the_same_whatever_is_kept(
    name, crop, train_from, augmentation, tmp_path, monkeypatch
):
    model, parts = make_model(name, crop), (make_data(9), make_data(4))
    method = Finetune(
        train_from=train_from,
        learning_rate=1e-3,
        augmentation=augmentation,
        mixup=0.4,
        training=Training(epochs=3, batch_size=4),
    )
    count = itertools.count()  # every epoch is better, so that the last one is kept
    monkeypatch.setattr(ClassObjective, "score", lambda *_: Score(float(next(count)), 0.0))
    off = weights(model, replace(method, activation_cache="off"), Cache(tmp_path / "off"), parts)
    assert largest_difference(off, model.backbone.state) > 1e-4
    constant = plan_freezing(model.backbone.module, train_from=train_from).last_constant_stage
    names = [stage.name for stage in model.backbone.module.stages]
    split_points = names[: names.index(constant) + 1]
    for stop, storage in zip(split_points[-1::-2], ("disk", "memory"), strict=False):
        forced = ActivationCachePlan(cached=True, stop=stop, storage=storage)
        monkeypatch.setattr(
            finetune, "plan_activation_cache", lambda *_, forced=forced, **__: forced
        )
        on = weights(model, method, Cache(tmp_path / stop), parts)
        assert largest_difference(off, on) <= 1e-6
        assert not Cache(tmp_path / "off").stats().kinds.get("features")
        assert Cache(tmp_path / stop).stats().kinds["features"][0] > 0


@pytest.fixture
def steady(monkeypatch):
    """Times that no busy machine can shift: a stage takes 20 ms, learning 1 ms."""
    names = ["stem", "layer1", "layer2", "layer3", "layer4"]
    stages = tuple(StageCost(name=name, seconds=0.02, bytes=1000) for name in names)
    measured = MeasuredCosts(stages=stages, learn=0.001, width=16)
    monkeypatch.setattr(activation_cache, "measure_costs", lambda *_, **__: measured)


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("switch", ["on", "off", "auto"])
def test_the_outline_says_what_fit_does(switch, tmp_path):
    model, data, cache = make_model("timm/test_resnet", 64), make_data(40), Cache(tmp_path)
    extractor = Extractor(cache=cache, engine="fp32", device="cpu", workers=2)
    method = Finetune(activation_cache=switch, training=Training(epochs=12))
    line = method.outline(model, data, extractor=extractor).cached
    if switch == "off":
        assert line == "nothing: switched off"
    else:
        assert line.startswith("up to ")
    method = replace(method, training=Training(epochs=2))
    method.fit(model, data, extractor=extractor)
    assert ("features" in cache.stats().kinds) == (switch != "off")


def test_processes_keep_what_the_main_one_keeps(monkeypatch):
    mine = ActivationCachePlan(cached=True, stop="b", storage="memory")
    assert agree_on_cache_plan(mine, ["a", "b"]) is mine
    monkeypatch.setattr(activation_cache, "is_main", lambda: False)
    for main_code, cached, stop in ((0, False, None), (1, True, None), (2, True, "a")):
        monkeypatch.setattr(
            activation_cache, "sum_scalar", lambda own, main_code=main_code: main_code + own
        )
        chosen = agree_on_cache_plan(mine, ["a", "b"])
        assert (chosen.cached, chosen.stop) == (cached, stop)


@pytest.mark.usefixtures("steady")
def test_what_is_kept_already_is_found(tmp_path):
    model, data = make_model("timm/test_resnet", 64), make_data(8)
    extractor = Extractor(cache=Cache(tmp_path), engine="fp32", device="cpu", workers=2)
    backbone = model.backbone.copy()
    freeze_plan = plan_freezing(backbone, train_from="last:1")
    arguments = {
        "samples": data.samples,
        "view": View(augmentation=Augmentation(), seed=0, number=0),
        "extractor": extractor,
    }
    once = TrainingWorkload(n_train=8, epochs=1)
    head = LinearHead.random(backbone.width, 2, seed=0)
    assert not plan_activation_cache(
        model.backbone, (backbone, freeze_plan, head), once, **arguments
    ).cached
    extractor.activations(model.backbone, data.samples, SplitPoint(engine="fp32", stop="layer2"))
    chosen = plan_activation_cache(model.backbone, (backbone, freeze_plan, head), once, **arguments)
    assert (chosen.cached, chosen.stop) == (True, "layer2")
