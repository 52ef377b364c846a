"""From scratch: the pretrained weights have no say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.scratch import Scratch
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.optim import Training

LOOK = Preprocess(resize=36, crop=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
SHORT = Training(epochs=1, batch_size=8)


def make_model(weights):
    spec = replace(resolve("timm/test_resnet"), preprocess=LOOK)
    state = load(spec, pretrained=False, seed=weights).trunk.state_dict()
    backbone = FrozenBackbone(
        spec=spec, state=state, origin={"sha256": "5" * 64, "from": "somewhere"}
    )
    return TransferModel(
        backbone=backbone, task=ClassificationTask(classes=("a", "b"), kind="multiclass")
    )


def tinted(n, seed):
    rng, samples = np.random.default_rng(seed), []
    for number in range(n):
        pixels = rng.integers(0, 180, (40, 40, 3))
        pixels[..., 2 * (number % 2)] += 60
        samples.append(Sample(image=pixels.astype(np.uint8), target="ab"[number % 2]))
    return Dataset(samples=tuple(samples), classes=("a", "b"))


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path / "kept"), device="cpu", workers=1)


def test_the_weights_given_have_no_say(extractor):
    train, val = tinted(16, 0), tinted(8, 1)
    found = [
        Scratch(training=SHORT).fit(make_model(weights), train, val, extractor=extractor)
        for weights in (5, 6)
    ]
    for name, value in found[0].backbone.state.items():
        assert torch.equal(value, found[1].backbone.state[name])
    assert found[0].backbone.origin["from"] == "random weights"
    assert found[0].backbone.origin["sha256"] == ""


def test_everything_is_said_to_move(extractor):
    outline = Scratch().outline(make_model(5), tinted(16, 0), extractor=extractor)
    assert outline.plan.last_constant_stage is None
    for row in outline.plan.rows:
        assert row.trainable == row.parameters
        assert row.batch_norm == "train"
        assert row.learning_rate == Scratch().learning_rate


def test_it_learns_colours(extractor):
    test = tinted(40, 2)
    method = Scratch(learning_rate=3e-3, training=replace(SHORT, epochs=5))
    model = method.fit(make_model(5), tinted(32, 0), tinted(16, 1), extractor=extractor)
    chances = model.predict_probabilities(test.samples, extractor=extractor)
    assert (chances.argmax(axis=1) == test.targets()).mean() > 0.9


@pytest.mark.parametrize(
    "change", [{"dropout": 1.0}, {"dropout": -0.1}, {"mixup": -1.0}, {"learning_rate": 0.0}]
)
def test_arguments_that_cannot_be_meant_are_refused(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        Scratch(**change)


def test_a_class_with_one_image_is_refused_by_name(extractor):
    train = tinted(9, 0).subset([0, 2, 4, 1])
    with pytest.raises(DataError, match="fewer of 'b'"):
        Scratch().fit(make_model(5), train, extractor=extractor)
