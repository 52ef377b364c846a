from pathlib import Path

import numpy as np
import pytest

from headstart.data.dataset import Dataset, Sample
from headstart.errors import DataError, UnknownNameError


def dataset(*targets, classes=("ant", "bee", "cat"), **options):
    samples = tuple(Sample(image=b"", target=target) for target in targets)
    return Dataset(samples=samples, classes=classes, **options)


def test_targets_follow_names_when_a_class_is_missing():
    data = dataset("cat", "ant")
    assert data.targets().tolist() == [2, 0]
    assert data.subset([0]).targets().tolist() == [2]
    assert data.counts() == {"ant": 1, "bee": 0, "cat": 1}


def test_multilabel_targets_are_a_table():
    data = dataset(("ant", "cat"), (), kind="multilabel")
    np.testing.assert_array_equal(data.targets(), [[1, 0, 1], [0, 0, 0]])


def test_an_unlabelled_example_is_named():
    with pytest.raises(DataError, match="<bytes>"):
        dataset("ant", None).targets()


def test_an_unknown_class_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'cat'"):
        dataset("cats").targets()


def test_groups_are_numbers_and_the_ungrouped_stand_alone():
    samples = tuple(Sample(image=b"", group=group) for group in ("a", None, "b", "a", None))
    codes = Dataset(samples=samples, classes=()).groups()
    assert codes[0] == codes[3]
    assert len(set(codes.tolist())) == 4
    assert dataset("ant").groups() is None


def test_a_file_name_that_is_no_text_can_be_written_down():
    broken = Path(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"))
    assert Sample(image=broken).name == r"caf\udce9.jpg"
    assert Sample(image=Path("cafe\u0301.jpg")).name == "cafe\u0301.jpg"


def test_splits_are_selected_by_name():
    samples = tuple(Sample(image=b"", split=split) for split in ("train", "test", "train"))
    data = Dataset(samples=samples, classes=())
    assert data.split_indices("train").tolist() == [0, 2]
    assert len(data.split("val")) == 0
