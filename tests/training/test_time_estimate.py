"""What a training is expected to take: the arithmetic by hand, on costs that are given."""

import numpy as np
import pytest

from headstart.backbones.freezing import plan
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.pretraining import SMALL, random_backbone
from headstart.methods.scratch import Scratch
from headstart.models.heads.linear import LinearHead
from headstart.training import activation_cache as boundary
from headstart.training import time_estimate as duration
from headstart.training.optim import Training
from headstart.training.profiler import Measured, StageCost
from headstart.training.time_estimate import (
    EPOCH,
    ONCE,
    STEP,
    Costs,
    costs_of,
    feature_seconds,
    training_seconds,
)


@pytest.fixture
def given(monkeypatch):
    """Costs that nobody measured: a second a stage, two a learned image, half one a step."""
    backbone = random_backbone(SMALL)
    stages = tuple(StageCost(name=s.name, seconds=1.0, bytes=400) for s in backbone.module.stages)
    found = Measured(stages=stages, learn=2.0, update=0.5, width=backbone.width)
    for module in (duration, boundary):
        monkeypatch.setattr(module, "measure", lambda *_, **__: found)
        monkeypatch.setattr(module, "measure_pixels", lambda *_, **__: 0.25)
    return backbone


@pytest.fixture
def extractor(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        yield Extractor(cache=cache, engine="fp32", device="cpu")


def drawn(n):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)
    samples = tuple(Sample(image=im, target="ab"[i % 2]) for i, im in enumerate(images))
    return Dataset(samples=samples, classes=("a", "b"))


def expected(backbone, method, train_from, extractor, *, solves=False):
    what = plan(backbone.module, train_from=train_from, batch_norm="frozen")
    head = LinearHead.random(backbone.width, 2, seed=0)
    return training_seconds(
        backbone, what, head, drawn(10), (10, 4), how=method, solves=solves, extractor=extractor
    )


def test_a_training_of_everything_is_its_steps_and_its_looks(given, extractor):
    method = Scratch(training=Training(epochs=3, batch_size=5))
    learned, looks = 10 * 3, 4 * (3 + 2)  # judged after every epoch, before, and at the end
    by_hand = learned * 2.0 + 3 * 2 * 0.5 + (learned + looks) * 0.25
    by_hand += looks * len(given.module.stages) + ONCE + 3 * EPOCH + 6 * STEP
    assert expected(given, method, "all", extractor) == pytest.approx(by_hand)


def test_solving_the_head_looks_at_every_image_once_more(given, extractor):
    method = Finetune(train_from="all", training=Training(epochs=3, batch_size=5))
    less = expected(given, method, "all", extractor)
    more = expected(given, method, "all", extractor, solves=True)
    assert more - less == pytest.approx(10 * (0.25 + len(given.module.stages)))


def test_constant_stages_are_run_once(given, extractor):
    method = Finetune(training=Training(epochs=30, batch_size=5))
    head = expected(given, method, "last:1", extractor)
    everything = expected(given, method, "all", extractor)
    by_hand = 30 * 10 * 2.0 + 30 * 2 * 0.5  # steps; looks at the last stage, 14 images once
    assert by_hand < head < by_hand + 14 * 6 + 4 * 32 * 1.1
    assert head < everything


def test_features_cost_their_engine_and_their_pixels(given, extractor):
    costs = costs_of(
        given,
        plan(given.module, train_from="all"),
        LinearHead.random(96, 2, seed=0),
        drawn(4),
        extractor=extractor,
    )
    assert costs == Costs(forward=float(len(given.module.stages)), pixels=0.25)
    assert feature_seconds(costs, 8, None, 2) == 8 * costs.seconds
    assert feature_seconds(costs, 8, 4.0, 2) == 8 * (1 / 8 + 0.25)
    assert feature_seconds(costs, 0, None, 2) == 0
