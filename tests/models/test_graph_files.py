"""Descriptions in exported files, also damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headstart.errors import ModelFileError
from headstart.models.graph_files import read_description, suffix_of, to_entries
from headstart.models.tasks import ClassificationTask

TASK = ClassificationTask(classes=("cat", "dog"), temperature=2.0)
PIXELS = {"resize": 8, "crop": 8, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [1.0] * 3}
GOOD: dict[str, Any] = {
    "task": TASK.as_dict(),
    "preprocessing": PIXELS,
    "input": "image",
    "record": {},
}


def test_a_description_survives() -> None:
    values = read_description(Path("m.onnx"), {"other": "x", **to_entries(GOOD)})
    assert values["task"] == TASK
    assert values["preprocessing"].crop == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"headstart/format": '"other"'}, "no description of Headstart"),
        ({"headstart/version": "99"}, "version 99"),
        ({"headstart/task": "{"}, "no JSON"),
        ({"headstart/task": "[" * 100_000}, "no JSON"),
        ({"headstart/task": json.dumps({"classes": [], "kind": "multiclass"})}, "is damaged"),
        ({"headstart/task": "7"}, "is damaged"),
        ({"headstart/preprocessing": json.dumps({**PIXELS, "crop": -1})}, "is damaged"),
        ({"headstart/preprocessing": "[]"}, "is damaged"),
        ({"headstart/input": '"video"'}, "'video'"),
        ({"headstart/record": "null"}, "record is invalid"),
    ],
)
def test_a_damaged_description_is_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_description(Path("m.onnx"), {**to_entries(GOOD), **change})


def test_endings() -> None:
    assert [suffix_of(Path(name)) for name in ("a.onnx", "a.XML", "a.onnx/b", "a")] == [
        ".onnx",
        ".xml",
        "",
        "",
    ]
