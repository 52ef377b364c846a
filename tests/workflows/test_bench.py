"""The verb bench: what it measures, what it names within a target, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.errors import UsageError
from headstart.metrics.confidence_intervals import wilson_interval
from headstart.workflows.bench import Bench, Measurement, parse_target


def _row(model: str, p95: float, right: int | None = None) -> Measurement:
    return Measurement(
        model=model,
        format="onnx",
        milliseconds={"p50": p95 / 2, "p95": p95, "p99": 2 * p95},
        throughput=1000 / p95,
        size=10,
        score=None if right is None else wilson_interval(right, 100),
    )


def _bench(*rows: Measurement, target: float | None) -> Bench:
    measure = None if rows[0].score is None else "accuracy"
    return Bench(rows=rows, measure=measure, target=target, images=20)


@pytest.mark.usefixtures("quick_export")
def test_each_model_in_each_format(classifier: Any, tmp_path: Path) -> None:
    classifier.save(tmp_path / "run")
    rng = np.random.default_rng(0)
    for name in classifier.task.classes:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    result = headstart.bench(
        tmp_path / "run", data=tmp_path / "photos", images=20, target="1000s", cache=False
    )
    assert [row.format for row in result.rows] == ["torch", "onnx"]
    stored = sum(file.stat().st_size for file in (tmp_path / "run").iterdir())
    assert result.rows[0].size == stored  # nothing was written to the model's folder
    expected = headstart.evaluate(tmp_path / "run", tmp_path / "photos", cache=False)
    for row in result.rows:
        times = row.milliseconds
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
        assert row.throughput > 0
        assert row.score is not None
        assert row.score.value == expected.metrics["accuracy"].value
    assert result.best in result.rows
    assert result.as_dict()["rows"][1]["format"] == "onnx"


def test_the_best_within_the_target() -> None:
    rows = (_row("slow", 50, 99), _row("good", 15, 90), _row("fast", 5, 80), _row("same", 18, 90))
    best = _bench(*rows, target=20).best
    assert best is not None
    assert best.model == "good"
    (sentence,) = _bench(*rows, target=20).sentences()
    assert "the highest accuracy: good (onnx), 15.0 ms, accuracy 0.900 [" in sentence
    first, second = _bench(*rows, target=4).sentences()
    assert "No row is within 4 ms" in first
    assert "fast (onnx): 5.0 ms" in first
    assert "headstart fit TRAINING_IMAGES --backbone torchvision/mobilenet_v3_small" in second
    without = _bench(_row("a", 9), _row("b", 8), target=10)
    assert without.best is not None
    assert without.best.model == "b"
    assert "Pass --data" in without.sentences()[1]
    assert _bench(*rows, target=None).best is None
    assert _bench(*rows, target=None).sentences() == []


def test_wrong_arguments(tmp_path: Path) -> None:
    for models, settings, message in (
        ([], {}, r"`models` is \[\]"),
        (tmp_path, {"formats": "torch,onx"}, "Did you mean 'onnx'"),
        (tmp_path, {"formats": []}, r"`formats` is \[\]"),
        (tmp_path, {"images": 3}, "--images is 3"),
        (tmp_path, {"target": "20min"}, "--target is '20min'"),
    ):
        with pytest.raises(UsageError, match=message):
            headstart.bench(models, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["0", "-1ms", "ms", "nan", "inf", "", "1h"])
def test_no_time(target: str) -> None:
    with pytest.raises(UsageError, match="--target is"):
        parse_target(target)
