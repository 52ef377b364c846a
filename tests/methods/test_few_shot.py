"""The few-shot method: draws, choice of the head, refusals, and a head like any other."""

from dataclasses import replace

import numpy as np
import pytest

from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.few_shot import FewShot
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.few_shot_heads import HEADS
from headstart.workflows.recipe import make_recipe

CLASSES = ("dark", "light")


def part(n, seed=0):
    """Dark and light images in turn."""
    rng = np.random.default_rng(seed)
    images = [(rng.integers(0, 60, (32, 32, 3)) + 150 * (i % 2)).astype(np.uint8) for i in range(n)]
    samples = tuple(Sample(image=x, target=CLASSES[i % 2]) for i, x in enumerate(images))
    return Dataset(samples=samples, classes=CLASSES)


@pytest.fixture(scope="module")
def start():
    task = ClassificationTask(classes=CLASSES)
    return TransferModel(backbone=random_backbone(SMALL_ARCHITECTURE), task=task)


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path / "cache"), device="cpu", engine="fp32")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"shots": 0}, UsageError, "at least 1, got 0"),
        ({"shots": -3}, UsageError, "at least 1, got -3"),
        ({"few_shot_head": "cosin"}, UnknownNameError, "cosine"),
    ],
)
def test_invalid_settings_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        FewShot(**change)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kind": "detection", "classes": ("a",)}, UsageError, "--method finetune"),
        ({"kind": "multilabel"}, UsageError, "--method linear-probe"),
        ({"samples": part(4).samples[::2]}, DataError, "images of 1 class"),
    ],
)
def test_data_without_one_class_for_each_image_are_refused(change, error, words):
    data = part(4)
    if change.get("kind") == "detection":
        change = {**change, "samples": ()}
    if change.get("kind") == "multilabel":
        change = {**change, "samples": tuple(replace(s, target=("dark",)) for s in data.samples)}
    with pytest.raises(error, match=words):
        FewShot().check(replace(data, **change))


def test_weights_of_images_are_refused():
    data = part(4)
    weighted = replace(
        data, samples=tuple(replace(s, weight=i + 1.0) for i, s in enumerate(data.samples))
    )
    with pytest.raises(UsageError, match="have weights"):
        FewShot().check(weighted)


def test_shots_are_drawn_by_the_seed_and_the_rest_is_not_used(start, extractor):
    train = part(20)
    models = [FewShot(shots=3, seed=seed).fit(start, train, extractor=extractor) for seed in (0, 1)]
    few = models[0].record["few_shot"]
    assert (few["training_images"], few["unused_images"]) == (6, 14)
    again = FewShot(shots=3).fit(start, train, extractor=extractor)
    np.testing.assert_array_equal(again.head.weight, models[0].head.weight)
    assert (models[1].head.weight != models[0].head.weight).any()
    outline = FewShot(shots=3).outline(start, train, extractor=extractor)
    assert "6 training images; 14 others are not used (--shots 3)" in outline.trains
    more = FewShot(shots=10**9).fit(start, train, extractor=extractor)
    assert more.record["few_shot"]["unused_images"] == 0


def test_the_head_is_chosen_by_leaving_images_out(start, extractor):
    few = FewShot().fit(start, part(12), extractor=extractor).record["few_shot"]
    scores = {row["head"]: row["accuracy"] for row in few["heads"]}
    assert set(scores) == set(HEADS)
    assert scores[few["head"]][0] == max(value for value, _, _ in scores.values())
    assert all(low <= value <= high for value, low, high in scores.values())
    assert few["held_out_images"] == 12


@pytest.mark.parametrize("head", HEADS)
def test_every_head_recognises_new_images(start, extractor, head):
    model = FewShot(few_shot_head=head, shots=2).fit(start, part(12), extractor=extractor)
    found = model.predict_probabilities(part(12, seed=1).samples, extractor=extractor)
    assert (found.argmax(axis=1) == np.arange(12) % 2).all()
    assert model.record["few_shot"]["head"] == head


def test_one_image_of_each_class_is_enough(start, extractor):
    model = FewShot(shots=1).fit(start, part(12), extractor=extractor)
    few = model.record["few_shot"]
    assert (few["head"], few["heads"], few["held_out_images"]) == ("cosine", [], 0)
    assert model.task.temperature == 1.0


def test_validation_images_take_part_in_the_choice(start, extractor):
    model = FewShot(shots=1).fit(start, part(12), part(8, seed=2), extractor=extractor)
    assert model.record["few_shot"]["held_out_images"] == 8
    assert model.record["validation_images"] == 8


def test_shots_alone_choose_the_method():
    assert make_recipe({"shots": 5}).method == FewShot(shots=5)
    assert make_recipe({"method": "few-shot"}).method == FewShot()
    with pytest.raises(UsageError, match="belongs to method few-shot"):
        make_recipe({"method": "finetune", "shots": 5})
