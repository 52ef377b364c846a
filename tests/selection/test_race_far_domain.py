"""A drawn domain far from the pretraining, where fine-tuning is better than a probe by far."""

import time

import numpy as np
import pytest

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.demo import regimes
from headstart.features.extractor import Extractor
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.pretraining import regime_backbone
from headstart.models.build import create_model
from headstart.selection.race import decide

BUDGET = 120.0


def accuracy(model, data, extractor):
    logits = model.linear_head().logits(extractor.features(model.backbone, data.samples).values)
    return float(np.mean(logits.argmax(axis=1) == data.targets()))


@pytest.mark.bench  # the weights are trained first, which takes longer than the race
def test_the_default_finds_fine_tuning_within_two_minutes(tmp_path):
    """800 outlines for weights of filled symbols: all stages gain more than 10 points."""
    backbone = FrozenBackbone.open(regime_backbone("shifted", tmp_path))
    data = regimes.make("shifted")
    train, test = data.split("train"), data.split("test")
    with Cache(tmp_path / "cache") as cache:
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        started_at = time.perf_counter()
        found = decide([backbone], train, extractor=extractor, budget=BUDGET)
        seconds = time.perf_counter() - started_at
        assert (found.method.name, found.method.train_from) == ("finetune", "all")
        assert seconds < BUDGET
        probe = LinearProbe().fit(create_model(backbone, train), train, extractor=extractor)
        scores = [accuracy(model, test, extractor) for model in (found.trained.model, probe)]
    assert scores[0] - scores[1] >= 0.10
