"""The probe as a method: a value that refuses what cannot be meant."""

import dataclasses

import pytest

from headstart.data.dataset import Dataset, Sample
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.methods.linear_probe import LinearProbe


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
