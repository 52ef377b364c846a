"""The probe as a method: a value that refuses what cannot be meant."""

import dataclasses

import numpy as np
import pytest

from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"imbalance": "balance"}, UnknownNameError),
        ({"folds": 1}, UsageError),
        ({"penalties": ()}, UsageError),
        ({"penalties": (0.0,)}, UsageError),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(change, error):
    with pytest.raises(error):
        LinearProbe(**change)


def test_one_class_is_refused_before_any_work():
    data = Dataset(samples=(Sample(image=b"", target="a"),) * 4, classes=("a", "b"))
    with pytest.raises(DataError, match="needs at least two"):
        LinearProbe().fit(None, data, extractor=None)


def test_the_method_is_a_value():
    assert dataclasses.replace(LinearProbe(), folds=3) == LinearProbe(folds=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        LinearProbe().folds = 3


def test_a_class_with_one_image_is_refused_by_name():
    targets = ("ant", "ant", "bee", "cat", "cat")
    samples = tuple(Sample(image=b"", target=name) for name in targets)
    data = Dataset(samples=samples, classes=("ant", "bee", "cat", "dog"))
    with pytest.raises(DataError, match="fewer of 'bee'"):
        LinearProbe().check(data)


def test_a_class_in_one_group_is_refused_by_name():
    samples = tuple(
        Sample(image=b"", target=target, group=group)
        for target, group in [("ant", "x"), ("ant", "y"), ("bee", "z"), ("bee", "z")]
    )
    with pytest.raises(DataError, match="fewer of 'bee'"):
        LinearProbe().check(Dataset(samples=samples, classes=("ant", "bee")))


def test_the_validation_part_takes_part_in_the_choices(tmp_path):
    """It was thrown away: neither the penalty nor the temperature knew it."""
    backbone = random_backbone(SMALL_ARCHITECTURE)
    rng = np.random.default_rng(0)

    def part(n, brightness):
        images = [
            (rng.integers(0, 60, (32, 32, 3)) + brightness * (i % 2)).astype(np.uint8)
            for i in range(n)
        ]
        samples = tuple(Sample(image=im, target="ab"[i % 2]) for i, im in enumerate(images))
        return Dataset(samples=samples, classes=("a", "b"))

    train, val = part(24, 150), part(20, 0)  # the validation images show nothing
    start = TransferModel(
        backbone=backbone, head=None, task=ClassificationTask(classes=train.classes)
    )
    with Cache(tmp_path / "cache") as cache:
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        alone = LinearProbe().fit(start, train, extractor=extractor)
        both = LinearProbe().fit(start, train, val, extractor=extractor)
    assert (alone.record["validation_images"], both.record["validation_images"]) == (0, 20)
    assert both.record["penalty"] >= alone.record["penalty"]
    assert both.task.temperature > alone.task.temperature
