"""Labels of Python objects."""

import numpy as np
import pandas as pd
import pytest
import torch

from headstart.data.dataset import Boxes
from headstart.data.formats.targets import mask_targets, plain_labels, to_boxes
from headstart.errors import DataError, UsageError

NAMES = ["cat", "dog", "fox"]


@pytest.mark.parametrize(
    ("cells", "classes", "expected"),
    [
        (["a", " b ", ""], None, ["a", "b", None]),
        ([0, 2.0, np.int64(1)], NAMES, ["cat", "fox", "dog"]),
        ([0, 2.0, True], None, ["0", "2", "True"]),
        ([-1, 0], NAMES, [None, "cat"]),
        ([-1, 0], None, ["-1", "0"]),
        ([None, float("nan"), pd.NA, pd.NaT], None, [None] * 4),
        (torch.tensor([1, 0]), NAMES, ["dog", "cat"]),
        ([torch.tensor(1), np.array(0)], NAMES, ["dog", "cat"]),
        (["dog", "cat"], NAMES, ["dog", "cat"]),
        ([[0, 2], [1]], NAMES, [["cat", "fox"], ["dog"]]),
        ([[0, 1, 1], [1, 0, 0]], NAMES, [["dog", "fox"], ["cat"]]),
        (np.array([[0, 1], [1, 0]]), None, ["1", "0"]),
        (np.array([[2], [0]]), NAMES, ["fox", "cat"]),
        ([(0, 1, 0), (0, 0, 1)], NAMES, ["dog", "fox"]),
    ],
)
def test_labels(cells: object, classes: list[str] | None, expected: list[object]) -> None:
    assert plain_labels(cells, "the list", classes) == expected


def test_labels_that_are_refused() -> None:
    with pytest.raises(DataError, match=r"from 0 to 2.*got 3"):
        plain_labels([0, 3], "the list", NAMES)
    with pytest.raises(DataError, match="ambiguous"):
        plain_labels([[0, 1], [1, 0]], "the list")
    with pytest.raises(UsageError, match=r"the label 0 in the list, got dict \(KeyError"):
        plain_labels([{"annotation": {}}], "the list")
    with pytest.raises(UsageError, match="got 1 boxes and 2 labels"):
        to_boxes({"boxes": [[0, 0, 1, 1]], "labels": ["a", "b"]}, "entry 0 of `y`")


def test_boxes_are_named_by_the_classes() -> None:
    (boxes,) = plain_labels([{"boxes": np.ones((1, 4)), "labels": np.array([2])}], "it", NAMES)
    assert boxes == Boxes(corners=((1.0, 1.0, 1.0, 1.0),), labels=("fox",))


def test_masks_share_a_palette() -> None:
    masks, names = mask_targets([np.array([[0, 2]]), np.array([[255, 1]])], "it", NAMES)
    assert names == ("cat", "dog", "fox")
    assert [mask.present for mask in masks] == [("cat", "fox"), ("dog",)]
    assert masks[0].palette is masks[1].palette
    with pytest.raises(UsageError, match="float64"):
        mask_targets([np.zeros((2, 2))], "it")
    with pytest.raises(DataError, match="got 3"):
        mask_targets([np.array([[3]])], "it", NAMES)
