"""Estimated times of a training against arithmetic by hand, on fixed costs."""

import numpy as np
import pytest

from headstart.backbones.freezing import plan_freezing
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.methods.scratch import Scratch
from headstart.models.heads.linear import LinearHead
from headstart.training import activation_cache, time_estimate
from headstart.training.optim import Training
from headstart.training.profiler import MeasuredCosts, StageCost
from headstart.training.time_estimate import (
    EPOCH_OVERHEAD,
    STEP_OVERHEAD,
    TRAINING_OVERHEAD,
    ImageCosts,
    feature_seconds,
    measure_image_costs,
    training_seconds,
)


@pytest.fixture
def fixed_costs(monkeypatch):
    """Costs that nobody measured: a second a stage, two a learned image, half one a step."""
    backbone = random_backbone(SMALL_ARCHITECTURE)
    stages = tuple(StageCost(name=s.name, seconds=1.0, bytes=400) for s in backbone.module.stages)
    measured = MeasuredCosts(stages=stages, learn=2.0, update=0.5, width=backbone.width)
    for module in (time_estimate, activation_cache):
        monkeypatch.setattr(module, "measure_costs", lambda *_, **__: measured)
        monkeypatch.setattr(module, "measure_decoding", lambda *_, **__: 0.25)
    return backbone


@pytest.fixture
def extractor(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        yield Extractor(cache=cache, engine="fp32", device="cpu")


def make_dataset(n):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)
    samples = tuple(Sample(image=im, target="ab"[i % 2]) for i, im in enumerate(images))
    return Dataset(samples=samples, classes=("a", "b"))


def expected(backbone, method, train_from, extractor, *, solves=False):
    freeze_plan = plan_freezing(backbone.module, train_from=train_from, batch_norm="frozen")
    head = LinearHead.random(backbone.width, 2, seed=0)
    return training_seconds(
        backbone,
        freeze_plan,
        head,
        make_dataset(10),
        (10, 4),
        method=method,
        fits_head=solves,
        extractor=extractor,
    )


def test_a_training_of_everything_is_its_steps_and_its_looks(fixed_costs, extractor):
    method = Scratch(training=Training(epochs=3, batch_size=5))
    learned, looks = 10 * 3, 4 * (3 + 2)  # scored after every epoch, before, and at the end
    by_hand = learned * 2.0 + 3 * 2 * 0.5 + (learned + looks) * 0.25
    by_hand += (
        looks * len(fixed_costs.module.stages)
        + TRAINING_OVERHEAD
        + 3 * EPOCH_OVERHEAD
        + 6 * STEP_OVERHEAD
    )
    assert expected(fixed_costs, method, "all", extractor) == pytest.approx(by_hand)


def test_solving_the_head_looks_at_every_image_once_more(fixed_costs, extractor):
    method = Finetune(train_from="all", training=Training(epochs=3, batch_size=5))
    without_fit = expected(fixed_costs, method, "all", extractor)
    with_fit = expected(fixed_costs, method, "all", extractor, solves=True)
    assert with_fit - without_fit == pytest.approx(10 * (0.25 + len(fixed_costs.module.stages)))


def test_constant_stages_are_run_once(fixed_costs, extractor):
    method = Finetune(training=Training(epochs=30, batch_size=5))
    head = expected(fixed_costs, method, "last:1", extractor)
    all_stages = expected(fixed_costs, method, "all", extractor)
    by_hand = 30 * 10 * 2.0 + 30 * 2 * 0.5  # steps; looks at the last stage, 14 images once
    assert by_hand < head < by_hand + 14 * 6 + 4 * 32 * 1.1
    assert head < all_stages


def test_features_cost_their_engine_and_their_pixels(fixed_costs, extractor):
    costs = measure_image_costs(
        fixed_costs,
        plan_freezing(fixed_costs.module, train_from="all"),
        LinearHead.random(96, 2, seed=0),
        make_dataset(4),
        extractor=extractor,
    )
    assert costs == ImageCosts(forward=float(len(fixed_costs.module.stages)), pixels=0.25)
    assert feature_seconds(costs, 8, None, 2) == 8 * costs.seconds
    assert feature_seconds(costs, 8, 4.0, 2) == 8 * (1 / 8 + 0.25)
    assert feature_seconds(costs, 0, None, 2) == 0
