"""Weights of one's own: a file that the backbone grammar reads back, tensor by tensor."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.demo import regimes
from headstart.errors import UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods import pretraining
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.pretraining import (
    SMALL_ARCHITECTURE,
    pretrain,
    random_backbone,
    regime_backbone,
)
from headstart.methods.scratch import Scratch
from headstart.models.build import create_model
from headstart.training.optim import Training

BRIEF = Scratch(training=Training(epochs=1, batch_size=16), seed=3)


@pytest.fixture(scope="module")
def few():
    data = regimes.blanks()
    return data.subset(range(60))


def test_the_file_holds_what_was_trained_and_is_read_as_a_backbone(few, tmp_path) -> None:
    name = pretrain(few, tmp_path / "own" / "w.safetensors", method=BRIEF, device="cpu")
    backbone, drawn = (
        FrozenBackbone.open(name, offline=True),
        random_backbone(SMALL_ARCHITECTURE, seed=3),
    )
    kept = load_file(tmp_path / "own" / "w.safetensors")
    assert {key: value.shape for key, value in backbone.state.items() if key in kept} == {
        key: value.shape for key, value in kept.items()
    }
    moved = [key for key in kept if not torch.equal(kept[key], drawn.state[key])]
    assert len(moved) > len(kept) / 2  # it has learned
    assert backbone.spec.preprocess.crop == regimes.SIDE
    with Cache(tmp_path / "cache") as cache:  # and can be learned from
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        fitted = LinearProbe().fit(create_model(backbone, few), few, extractor=extractor)
        found = fitted.predict_samples(few.samples, cache=cache, engine="fp32", device="cpu")
    right = [one.label == sample.target for one, sample in zip(found, few.samples, strict=True)]
    assert np.mean(right) > 0.9


def test_a_seed_gives_the_same_weights(few, tmp_path) -> None:
    names = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in names:
        pretrain(few, path, method=BRIEF, device="cpu")
    first, second = map(load_file, names)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_file_is_never_written_over(few, tmp_path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"w\.safetensors"):
        pretrain(few, tmp_path / "w.safetensors", method=BRIEF)
    assert (tmp_path / "w.safetensors").read_bytes() == b"mine"


def test_random_weights_follow_from_the_seed() -> None:
    one, same, other = (random_backbone(SMALL_ARCHITECTURE, seed=seed) for seed in (1, 1, 2))
    assert one.identity == same.identity != other.identity


def test_sets_of_one_source_share_its_weights(tmp_path, monkeypatch) -> None:
    made = []

    def remember(data, path, **_):
        made.append(data.name)
        path.write_bytes(b"")
        return f"file:{path}@{SMALL_ARCHITECTURE}"

    monkeypatch.setattr(pretraining, "pretrain", remember)
    names = {
        regime: regime_backbone(regime, tmp_path, seed=2) for regime in regimes.EXPECTED_METHOD
    }
    assert names["near"] == names["shifted"] != names["hopeless"]
    assert made == ["regime:symbols:2", "regime:blanks:2"]
    with pytest.raises(UnknownNameError):
        regime_backbone("symbols", tmp_path)
