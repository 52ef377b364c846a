"""Who takes part in a race, and what each is expected to cost."""

from dataclasses import replace

import numpy as np
import pytest

from headstart.backbones.catalog import resolve
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.errors import TrainingError
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone, random_like
from headstart.methods.scratch import Scratch
from headstart.models.transfer_model import TransferModel
from headstart.selection.candidates import (
    estimate_feature_seconds,
    estimate_training_seconds,
    probe_candidate,
    probe_depths,
    rejection_reason,
    train_and_predict,
    training_candidates,
)
from headstart.training.optim import Training


def drawn(n=24, seed=0):
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        image = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        image[:, : 16 * (i % 2)] += 120
        samples.append(Sample(image=image, target=("full", "half")[i % 2]))
    return Dataset(samples=tuple(samples), classes=("full", "half"))


@pytest.fixture(scope="module")
def backbone():
    return random_backbone(SMALL_ARCHITECTURE)


@pytest.fixture
def extractor(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        yield Extractor(cache=cache, engine="fp32", device="cpu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision/resnet18", ("layer2", "layer3", "")),
        ("embedded/efficientnet_lite0", ("stage3", "stage5", "")),
        ("timm/vit_tiny_patch16_224", ("blocks2", "blocks3", "")),
    ],
)
def test_probes_stand_at_several_depths(name, expected):
    backbone = random_like(resolve(name))
    assert probe_depths(backbone) == expected
    for end in expected[:-1]:
        assert backbone.until(end).width


def test_two_places_are_for_trainings(backbone):
    last, deeper = training_candidates(backbone, 3, include_scratch=False)
    assert [one.method.train_from for one in (*last, *deeper)] == ["last:1", "all", "last:2"]
    last, fresh = training_candidates(backbone, 3, include_scratch=True)
    assert [type(one.method) for one in (*last, *fresh)] == [Finetune, Scratch]
    assert all(one.method.seed == 3 for one in (*last, *deeper, *fresh))


def test_a_method_that_cannot_learn_says_why(backbone):
    few = drawn(4)
    candidate = training_candidates(backbone, 0, include_scratch=False)[0][0]
    assert "at least 3 training images" in rejection_reason(candidate, [drawn(), few])
    assert rejection_reason(probe_candidate(backbone, "", 0), [few]) == ""


def test_what_is_kept_costs_nothing(backbone, extractor):
    data = drawn()
    before = estimate_feature_seconds(backbone, data.samples, data, extractor=extractor)
    extractor.features(backbone, data.samples)
    assert before > 0
    assert estimate_feature_seconds(backbone, data.samples, data, extractor=extractor) == 0


def test_more_images_and_more_stages_are_expected_to_take_longer(backbone, extractor):
    (last,), (whole, _) = training_candidates(backbone, 0, include_scratch=False)
    found = [
        estimate_training_seconds(who, data, None, 10, extractor=extractor)
        for who, data in ((last, drawn(100)), (whole, drawn(100)), (whole, drawn(400)))
    ]
    assert 0 < found[0] < found[1] < found[2]


def test_a_race_answers_what_was_held_out(backbone, extractor):
    data = drawn(40)
    learn, asked = data.subset(range(30)), data.subset(range(30, 40))
    who = probe_candidate(backbone, "", 0)
    quick = Training(epochs=2, patience=9)
    first, second = (Finetune(learning_rate=r, training=quick) for r in (1e-9, 1e-3))
    entered = replace(who, method=first, alternatives=(second,))
    logits, after = train_and_predict(entered, learn, None, asked, extractor=extractor)
    assert after.alternatives == ()
    assert after.method in (first, second)
    model = after.method.fit(
        TransferModel(backbone=backbone, task=first_task(data)), learn, extractor=extractor
    )
    exact = replace(extractor, engine="fp32")
    features = exact.features(model.backbone, asked.samples).values
    np.testing.assert_allclose(logits, model.linear_head().logits(features), atol=1e-4)


def first_task(data):
    from headstart.models.tasks import ClassificationTask

    return ClassificationTask(classes=data.classes)


def test_rates_that_fail_are_left_and_the_last_is_an_error(backbone, extractor, monkeypatch):
    data = drawn(24)
    who = training_candidates(backbone, 0, include_scratch=False)[0][0]

    def fails(self, model, train, val=None, **_):
        if self.learning_rate > 1e-4:
            raise TrainingError("Expected a finite loss, got nan.")
        return real(self, model, train, val, **_)

    quick = Training(epochs=1)
    methods = [Finetune(learning_rate=rate, training=quick) for rate in (1e-3, 1e-5)]
    real = Finetune.fit
    monkeypatch.setattr(Finetune, "fit", fails)
    entered = replace(who, method=methods[0], alternatives=(methods[1],))
    _, after = train_and_predict(entered, data, None, data, extractor=extractor)
    assert after.method is methods[1]
    with pytest.raises(TrainingError, match="finite"):
        train_and_predict(
            replace(who, method=methods[0], alternatives=()), data, None, data, extractor=extractor
        )
