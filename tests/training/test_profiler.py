"""What is measured is positive, has the right shapes, and is measured once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import fingerprint, plan
from headstart.backbones.trunk import Trunk
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.data.transforms.augment import Augmentation
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnreadableImageError
from headstart.features.extractor import Cut, View
from headstart.models.heads.linear import LinearHead
from headstart.training import profiler as costs
from headstart.training.profiler import measure, measure_pixels

SMALL = Preprocess(
    resize=72, crop=64, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def trunk():
    spec = replace(resolve("timm/test_resnet"), preprocess=SMALL)
    state = load(spec, pretrained=False).trunk.state_dict()
    return Trunk(spec=spec, state=state, origin={"sha256": "", "from": "test", "file": ""})


def head(trunk):
    return LinearHead.random(trunk.width, 2, seed=0)


def pictures(n):
    rng = np.random.default_rng(0)
    return [Sample(image=rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(n)]


@pytest.mark.parametrize("train_from", ["last:1", "head", "all"])
def test_every_stage_is_timed_and_sized(trunk, cache, train_from):
    found = measure(
        trunk.backbone, plan(trunk.backbone, train_from=train_from), head(trunk), cache=cache
    )
    assert [stage.name for stage in found.stages] == [s.name for s in trunk.backbone.stages]
    assert found.width == trunk.backbone.width
    assert min(stage.seconds for stage in found.stages) > 0
    assert found.learn > 0
    assert found.update > 0
    for stage in found.stages:
        assert stage.bytes == 4 * np.prod(trunk.shape_at(stage.name))


def test_it_leaves_no_trace_in_the_network_or_in_torch(trunk, cache):
    backbone = trunk.copy()
    before, threads, draw = (
        fingerprint(backbone.state_dict()),
        torch.get_num_threads(),
        torch.random.get_rng_state(),
    )
    what = plan(backbone, train_from="last:2", batch_norm="train")
    measure(backbone, what, head(trunk), cache=cache)
    assert fingerprint(backbone.state_dict()) == before
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_times_are_remembered_for_a_plan(trunk, cache, monkeypatch):
    last = plan(trunk.backbone, train_from="last:1")
    first = measure(trunk.backbone, last, head(trunk), cache=cache)
    pixels = measure_pixels(trunk, pictures(3), Cut(engine="fp32"), cache=cache)

    def fail(*given):
        raise RuntimeError("measured again")

    monkeypatch.setattr(costs, "_best", fail)
    slower = plan(trunk.backbone, train_from="last:1", learning_rate=1e-6)
    assert measure(trunk.backbone, slower, head(trunk), cache=cache) == first
    assert measure_pixels(trunk, pictures(3), Cut(engine="fp32"), cache=cache) == pixels > 0
    with pytest.raises(RuntimeError, match="measured again"):
        measure(trunk.backbone, plan(trunk.backbone, train_from="last:2"), head(trunk), cache=cache)
    view = View(augmentation=Augmentation(rotation=20.0), seed=0, number=0)
    with pytest.raises(RuntimeError, match="measured again"):
        measure_pixels(trunk, pictures(3), Cut(engine="fp32", view=view), cache=cache)


def test_a_deeper_plan_costs_more_to_learn(trunk, cache):
    learn = [
        measure(
            trunk.backbone, plan(trunk.backbone, train_from=name), head(trunk), cache=cache
        ).learn
        for name in ("head", "all")
    ]
    assert learn[0] < learn[1]


def test_pixels_of_nothing_and_of_a_damaged_picture(trunk, cache):
    assert measure_pixels(trunk, [], Cut(engine="fp32"), cache=cache) == 0
    with pytest.raises(UnreadableImageError):
        measure_pixels(trunk, [Sample(image=b"no")], Cut(engine="fp32"), cache=cache)
