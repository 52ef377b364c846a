"""Boxes and masks as values, and what a data set says of them."""

import numpy as np
import pytest

from headstart.data.dataset import Boxes, Dataset, Mask, Palette, Sample
from headstart.errors import DataError


def test_a_box_without_a_label_is_refused() -> None:
    with pytest.raises(DataError, match="1 boxes, 0 labels"):
        Boxes(corners=((0, 0, 1, 1),))


def test_no_objects_is_a_valid_answer() -> None:
    nothing = Boxes()
    assert nothing.array().shape == (0, 4)
    assert nothing.is_hard().shape == (0,)


def test_targets_say_which_classes_an_image_shows_and_counts_count_objects() -> None:
    two = Boxes(corners=((0, 0, 1, 1), (0, 0, 2, 2)), labels=("cell", "cell"))
    data = Dataset(
        samples=(Sample(image=b"", target=two), Sample(image=b"", target=Boxes())),
        classes=("cell", "platelet"),
        kind="detection",
    )
    assert data.targets().tolist() == [[1, 0], [0, 0]]
    assert data.counts() == {"cell": 2, "platelet": 0}


def test_masks_name_the_classes_that_they_show() -> None:
    palette = Palette(codes=((0, "sky"), (1, "road"), (2, "sky")))
    assert palette.names == ("sky", "road")
    mask = Mask(source=np.ones((2, 2), dtype=np.uint8), palette=palette, present=("road",))
    data = Dataset(
        samples=(Sample(image=b"", target=mask),), classes=palette.names, kind="segmentation"
    )
    assert data.targets().tolist() == [[0, 1]]
    assert data.counts() == {"sky": 0, "road": 1}
