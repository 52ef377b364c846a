"""The page of a comparison: whole, offline, and readable without any script."""

from __future__ import annotations

import math
from html.parser import HTMLParser

from headstart.evaluation.comparison import (
    Comparison,
    ScoringPlan,
    TrainingResult,
    build_curves,
    compare_with_reference,
    summarise_comparison,
)
from headstart.metrics.confidence_intervals import Interval
from headstart.reports.comparison import render_page


def _found(scores: dict[str, float], *, name: str = "photos", seeds: int = 3) -> Comparison:
    results = tuple(
        TrainingResult(
            backbone="b",
            method=method,
            seed=seed,
            fraction=fraction,
            images=round(200 * fraction),
            tested=40,
            score=Interval(value=value * fraction**0.1, low=0.1, high=0.9, method="wilson"),
            seconds=2.0,
            cpu_seconds=4.0,
            gpu_seconds=1.5 if method == "finetune" else 0.0,
            trains="head, fitted" if method == "probe" else "",
            parameters=2_560_000,
            steps=150,
            rules={"majority class": 0.25},
        )
        for method, base in scores.items()
        for fraction in (0.1, 1.0)
        for seed in range(seeds)
        for value in (base + 0.01 * ((seed * 7 + len(method)) % 3),)
    )
    plan = ScoringPlan(test_share=0.2)
    curves = build_curves(results, plan)
    effects = compare_with_reference(results, plan, "accuracy")
    return Comparison(
        name=name,
        task="classification",
        measure="accuracy",
        results=results,
        curves=curves,
        effects=effects,
        sentences=summarise_comparison(curves, effects, "accuracy"),
        test=str(plan),
        split="new splits",
        budget="5 epochs",
        seconds=12.0,
        command="headstart compare photos",
    )


class _Reader(HTMLParser):
    VOID = frozenset({"meta", "input", "br", "line", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = render_page(_found({"scratch": 0.5, "probe": 0.8, "finetune": 0.83}))
    read = _read(page)
    tags = {tag for tag, _ in read.tags}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    policy = next(a for t, a in read.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in str(policy["content"])
    assert "http" not in page.replace("http-equiv", "")
    links = {str(a["href"]) for t, a in read.tags if t == "a"}
    assert links <= {f"#{a['id']}" for _, a in read.tags if "id" in a}


def test_every_point_tells_its_values_to_finger_and_keyboard() -> None:
    found = _found({"scratch": 0.5, "probe": 0.8})
    read = _read(render_page(found))
    points = [a for _, a in read.tags if a.get("role") == "img"]
    assert len(points) == 4
    assert all(a["tabindex"] == "0" for a in points)
    best = found.curves[1].points[-1]
    label = f"probe, 200 images: {best.score.value:.3f}, {best.score.low:.3f}"
    assert any(str(a["aria-label"]).startswith(label) for a in points)
    boxes = {a["id"] for t, a in read.tags if t == "input"}
    assert boxes == {"show-0", "show-1", "single-runs"}
    words = " ".join(" ".join(read.text).split())
    effect = found.effects[-1]
    assert f"compared with scratch: {effect.difference.value:+.3f}" in words
    assert "significant" in words


def test_the_table_has_simple_rules_costs_and_what_trained() -> None:
    words = " ".join(
        " ".join(_read(render_page(_found({"scratch": 0.5, "finetune": 0.8, "probe": 0.7}))).text)
        .replace("\N{NO-BREAK SPACE}", " ")
        .split()
    )
    for part in (
        *("majority class", "0.250", "head, fitted", "2.56 M parameters", "150", "2.0 4.0 CPU"),
        *("1.5 GPU", "reference", "yes, better", "5 epochs", "headstart compare photos"),
    ):
        assert part in words


def test_names_are_text() -> None:
    page = render_page(_found({"scratch": 0.5, "probe?a=<b>": 0.8}, name="<script>&"))
    assert "<script" not in page
    assert "&lt;script&gt;&amp;" in page


def test_where_nothing_is_known_the_page_says_so() -> None:
    read = _read(render_page(_found({"scratch": 0.5, "probe": math.nan}, seeds=1)))
    words = " ".join(read.text)
    assert "no interval" in words
    assert "nan" not in words.lower()
