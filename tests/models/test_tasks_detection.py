"""Detection as a value."""

import numpy as np
import pytest

from headstart.errors import ModelFileError
from headstart.models.inference import Detections
from headstart.models.tasks import DetectionTask


def test_it_comes_back_from_its_values():
    task = DetectionTask(classes=("cell", "platelet"), threshold=0.25)
    assert DetectionTask.from_dict(task.as_dict()) == task
    assert task.as_dict()["name"] == task.name == task.kind


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"classes": ["a"]},
        {"classes": [], "threshold": 0.5},
        {"classes": ["a"], "threshold": 2},
        {"classes": ["a"], "threshold": "much"},
        {"classes": ["a"], "threshold": float("nan")},
    ],
)
def test_a_detection_task_of_no_sense_is_refused(values):
    with pytest.raises(ModelFileError, match="detection task"):
        DetectionTask.from_dict(values)


def test_objects_have_the_threshold_of_their_class():
    task = DetectionTask(
        classes=("ant", "bee"), class_thresholds=(0.3, 0.7), threshold_range=(0.4, 0.6)
    )
    assert DetectionTask.from_dict(task.as_dict()) == task
    assert DetectionTask.from_dict({"classes": ["ant"], "threshold": 0.4}).thresholds == (0.4,)
    found = Detections(
        name="a.png",
        size=(9, 9),
        boxes=np.zeros((3, 4), np.float32),
        scores=np.array([0.8, 0.6, 0.4], np.float32),
        labels=np.array([1, 1, 0]),
    )
    assert found.above(task.thresholds).scores.tolist() == pytest.approx([0.8, 0.4])
    assert len(found.above(0.5).scores) == 2


@pytest.mark.parametrize(
    "wrong", [{"class_thresholds": [0.5]}, {"threshold_range": [0.5]}, {"class_thresholds": [0, 2]}]
)
def test_damaged_thresholds_are_refused(wrong):
    values = DetectionTask(classes=("ant", "bee")).as_dict() | wrong
    with pytest.raises(ModelFileError):
        DetectionTask.from_dict(values)
