"""Table of a comparison in the terminal."""

from __future__ import annotations

import io
import json

from rich.console import Console

from headstart.cli.tables import show_comparison
from headstart.evaluation.comparison import Comparison, Curve, Point
from headstart.metrics.confidence_intervals import Interval


def test_scores_seconds_and_findings_are_shown() -> None:
    score = Interval(value=0.875, low=0.8, high=float("nan"), method="t")
    point = Point(
        fraction=0.3,
        images=24,
        score=score,
        seconds=1.25,
        cpu_seconds=2.5,
        trains="layer4 and head",
        parameters=12_810,
        steps=150,
        rules={"majority class": 0.375},
    )
    found = Comparison(
        name="photos [a]",
        task="classification",
        measure="accuracy",
        results=(),
        curves=(Curve(name="probe", backbone="b", method="probe", points=(point,)),),
        effects=(),
        sentences=tuple(f"finding {k}" for k in range(14)),
        test="t",
        split="s",
        budget="b",
        seconds=3.0,
    )
    text = io.StringIO()
    show_comparison(Console(file=text, width=80), found)
    shown = ("photos [a]", "24 (30%)", "0.875", "2.5", "proxy", "finding 0", "2 more")
    baseline = ("majority class", "0.375")
    for part in (*shown, *baseline, "150", "layer4 and head: 12,810 parameters"):
        assert part in text.getvalue()
    assert all(len(line) <= 80 for line in text.getvalue().splitlines())
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["curves"][0]["points"][0]["score"]["high"] is None
