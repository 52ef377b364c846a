"""Measured costs are positive, have the right shapes, and are measured once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import fingerprint, plan_freezing
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.data.transforms.augment import Augmentation
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnreadableImageError
from headstart.features.extractor import SplitPoint, View
from headstart.models.heads.linear import LinearHead
from headstart.training import profiler
from headstart.training.profiler import measure_costs, measure_decoding

SMALL = Preprocess(
    resize=72, crop=64, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def backbone():
    spec = replace(resolve("timm/test_resnet"), preprocess=SMALL)
    state = load(spec, pretrained=False).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={"sha256": "", "from": "test", "file": ""})


def head(backbone):
    return LinearHead.random(backbone.width, 2, seed=0)


def images(n):
    rng = np.random.default_rng(0)
    return [Sample(image=rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(n)]


@pytest.mark.parametrize("train_from", ["last:1", "head", "all"])
def test_every_stage_is_timed_and_sized(backbone, cache, train_from):
    costs = measure_costs(
        backbone.module,
        plan_freezing(backbone.module, train_from=train_from),
        head(backbone),
        cache=cache,
    )
    assert [stage.name for stage in costs.stages] == [s.name for s in backbone.module.stages]
    assert costs.width == backbone.module.width
    assert min(stage.seconds for stage in costs.stages) > 0
    assert costs.learn > 0
    assert costs.update > 0
    for stage in costs.stages:
        assert stage.bytes == 4 * np.prod(backbone.shape_at(stage.name))


def test_it_leaves_no_trace_in_the_network_or_in_torch(backbone, cache):
    module = backbone.copy()
    before, threads, draw = (
        fingerprint(module.state_dict()),
        torch.get_num_threads(),
        torch.random.get_rng_state(),
    )
    freeze_plan = plan_freezing(module, train_from="last:2", batch_norm="train")
    measure_costs(module, freeze_plan, head(backbone), cache=cache)
    assert fingerprint(module.state_dict()) == before
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_times_are_remembered_for_a_plan(backbone, cache, monkeypatch):
    last = plan_freezing(backbone.module, train_from="last:1")
    first = measure_costs(backbone.module, last, head(backbone), cache=cache)
    pixels = measure_decoding(backbone, images(3), SplitPoint(engine="fp32"), cache=cache)

    def fail(*args):
        raise RuntimeError("measured again")

    monkeypatch.setattr(profiler, "_shortest_seconds", fail)
    slower = plan_freezing(backbone.module, train_from="last:1", learning_rate=1e-6)
    assert measure_costs(backbone.module, slower, head(backbone), cache=cache) == first
    assert (
        measure_decoding(backbone, images(3), SplitPoint(engine="fp32"), cache=cache) == pixels > 0
    )
    with pytest.raises(RuntimeError, match="measured again"):
        measure_costs(
            backbone.module,
            plan_freezing(backbone.module, train_from="last:2"),
            head(backbone),
            cache=cache,
        )
    view = View(augmentation=Augmentation(rotation=20.0), seed=0, number=0)
    with pytest.raises(RuntimeError, match="measured again"):
        measure_decoding(backbone, images(3), SplitPoint(engine="fp32", view=view), cache=cache)


def test_a_deeper_plan_costs_more_to_learn(backbone, cache):
    learn = [
        measure_costs(
            backbone.module,
            plan_freezing(backbone.module, train_from=name),
            head(backbone),
            cache=cache,
        ).learn
        for name in ("head", "all")
    ]
    assert learn[0] < learn[1]


def test_pixels_of_nothing_and_of_a_damaged_image(backbone, cache):
    assert measure_decoding(backbone, [], SplitPoint(engine="fp32"), cache=cache) == 0
    with pytest.raises(UnreadableImageError):
        measure_decoding(backbone, [Sample(image=b"no")], SplitPoint(engine="fp32"), cache=cache)
