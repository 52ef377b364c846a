"""Table of a race in the terminal, in eighty columns."""

import io

from rich.console import Console

from headstart.cli.tables import show_decision
from headstart.metrics.confidence_intervals import Interval
from headstart.selection.rules import CandidateResult


def shown(record):
    text = io.StringIO()
    show_decision(Console(file=text, width=80, emoji=False), record)
    return text.getvalue()


def record(rows, **more):
    known = {
        "measure": "accuracy",
        "rule": "",
        "why": ["It is so.", "Chosen: linear probe."],
        "budget": 120.0,
        "estimated": 9.0,
        "seconds": 7.0,
        "probing": 3.0,
        "images": 40,
        "folds": 5,
    }
    return known | {"rows": [row.as_dict() for row in rows]} | more


def row(name, **more):
    return CandidateResult(name=name, backbone="[b]", stage="", method="linear-probe", **more)


def test_a_race_fits_eighty_columns_with_its_numbers():
    found = Interval(value=0.75, low=0.7, high=0.8, method="test")
    more = Interval(value=-0.05, low=-0.1, high=0.01, method="test")
    out = shown(
        record(
            [
                row("linear probe", score=found, seconds=1.5, state="chosen"),
                row("fine-tuning all stages", score=found, gain=more, seconds=2.0),
                row("training from scratch", state="left out", note="why"),
            ]
        )
    )
    assert max(map(len, out.splitlines())) <= 80
    assert "* linear probe" in out
    assert "0.750 [0.700, 0.800]" in out
    assert "-0.050 [-0.100, +0.010]" in out
    assert "- training from scratch" in out
    assert "probes in 3 s, trainings in 4 s (budget 120 s)" in " ".join(out.split())
    assert "It is so." in out
    assert "Chosen" not in out  # as the star says


def test_a_score_of_fewer_images_says_so():
    found = Interval(value=0.65, low=0.5, high=0.75, method="test")
    rows = [row("a", score=found, images=40), row("fine-tuning b", score=found, images=8)]
    out = shown(record(rows))
    assert out.count("0.650 [0.500, 0.750]") == 2
    assert out.count("0.750] (n=8)") == 1
    assert "n=40" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_plan_has_times_and_no_scores():
    out = shown(record([row("linear probe", estimated=3.0)], budget=None))
    assert "Plan" in out
    assert "at most 9 s" in out
    assert "score" not in out
    assert "3.0 s" in out


def test_names_are_text():
    assert "[red]x" in shown(record([row("[red]x", estimated=1.0)]))


def test_bounds_that_nobody_knows_are_unknown():
    found = Interval(value=0.75, low=float("nan"), high=float("nan"), method="test")
    assert "0.750 [unknown]" in shown(record([row("a", score=found)]))


def test_without_a_budget_only_the_time_of_the_probes_is_shown():
    found = Interval(value=0.75, low=0.7, high=0.8, method="test")
    out = shown(record([row("a", score=found)], budget=0.0, seconds=28.0, probing=28.0))
    assert "probes in 28 s" in out
    assert "0 s (" not in out
    assert "budget" not in out
