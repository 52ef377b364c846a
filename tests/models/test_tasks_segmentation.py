"""Segmentation as a value."""

import pytest

from headstart.errors import ModelFileError
from headstart.models.tasks import SegmentationTask


def test_it_comes_back_from_its_values():
    task = SegmentationTask(classes=("background", "leaf"))
    assert SegmentationTask.from_dict(task.as_dict()) == task
    assert task.as_dict()["name"] == task.name == task.kind


@pytest.mark.parametrize("classes", [["a"], [str(i) for i in range(255)]])
def test_masks_hold_2_to_254_classes(classes):
    with pytest.raises(ModelFileError, match="from 2 to 254"):
        SegmentationTask.from_dict({"classes": classes})
