"""Conversion of values to strict JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest

from headstart.errors import UsageError
from headstart.metrics import PRIMARY_METRICS, SELECTION_METRICS
from headstart.metrics.transferability.features import h_score, log_me, trans_rate
from headstart.metrics.transferability.separation import gbc, parc, sfda
from headstart.metrics.validation import json_text, to_jsonable


@dataclass(frozen=True)
class Point:
    x: float
    tags: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (-math.inf, None),
        (np.float32(0.5), 0.5),
        (np.float64(math.nan), None),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.0, math.nan], [2.0, 3.0]]), [[1.0, None], [2.0, 3.0]]),
        ({1: (2, None)}, {"1": [2, None]}),
        (frozenset({4}), [4]),
        (Point(math.nan, ("a", "b")), {"x": None, "tags": ["a", "b"]}),
        ([Point(1.0)], [{"x": 1.0, "tags": []}]),
        (PurePosixPath("photos/a.png"), "photos/a.png"),
        (Point, str(Point)),
        (True, True),
        ("text", "text"),
    ],
)
def test_values_become_strict_json(value: Any, expected: Any) -> None:
    converted = to_jsonable(value)
    assert converted == expected
    assert json.loads(json.dumps(converted, allow_nan=False)) == expected


def test_every_kind_of_data_has_its_metrics() -> None:
    assert set(PRIMARY_METRICS) == set(SELECTION_METRICS)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_numbers_that_json_does_not_know_become_null(number):
    text = json_text({"deep": [{"value": number}], "array": np.array([number, 1.0])}, indent=1)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "deep": [{"value": None}],
        "array": [None, 1.0],
    }


@pytest.mark.parametrize("score", [log_me, trans_rate, h_score, parc, gbc, sfda])
def test_real_valued_targets_are_no_classes(score):
    """Every number became a class of its own, and the score was meaningless."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 4))
    with pytest.raises(UsageError, match="real number"):
        score(features, rng.normal(size=20))
    labels = np.arange(20) % 2
    assert score(features, labels.astype(float)) == score(features, labels)
