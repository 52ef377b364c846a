"""Detection as a value."""

import pytest

from headstart.errors import ModelFileError
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
