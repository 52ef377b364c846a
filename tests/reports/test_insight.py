"""Template values and sections of the diagnostics and of the choice of the method."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.demo import classification as demo
from headstart.data.prepare import PreparedData
from headstart.evaluation.embeddings import MapPoint, NearestImages, Outlier
from headstart.evaluation.insight import Diagnostics, LabelError
from headstart.evaluation.learning_curve import CurvePoint
from headstart.evaluation.slices import Slice
from headstart.methods.linear_probe import LinearProbe
from headstart.metrics.confidence_intervals import Interval
from headstart.reports.insight import band, insight_extras, insight_page
from headstart.reports.page import LIMITS
from headstart.reports.report import Facts, render_html
from headstart.workflows.fit import Run, fit
from headstart.workflows.recipe import Recipe


def interval(value: float, half: float = 0.1) -> Interval:
    return Interval(value=value, low=value - half, high=value + half, method="")


def prepared(n: int = 40) -> PreparedData:
    samples = tuple(
        Sample(
            image=np.full((8, 8, 3), 6 * i, np.uint8),
            target=("cat", "dog")[i % 2],
            split="train" if i < n // 2 else "test",
            title=f"{i}.png",
        )
        for i in range(n)
    )
    return PreparedData(
        data=Dataset(samples=samples, classes=("cat", "dog")), records=(), findings=()
    )


def doubt(row: int) -> LabelError:
    return LabelError(
        row=row, image=f"{row}.png", part="train", label="cat", likely="dog", score=0.9
    )


def outlier(row: int, beyond: float) -> Outlier:
    return Outlier(row=row, image=f"{row}.png", score=0.5, beyond=beyond, right=True)


def place(row: int, x: float, y: float, right: bool | None, label: str = "cat") -> MapPoint:
    return MapPoint(row=row, image=f"{row}.png", label=label, right=right, x=x, y=y)


def part(name: str, value: float, p_value: float) -> Slice:
    return Slice(
        kind="class", name=name, images=9, score=interval(value), rest=0.5, p_value=p_value
    )


def shown(insight: Diagnostics | None, **record: Any) -> dict[str, Any]:
    return insight_page(insight, prepared(), record)


def test_nothing_is_said_where_nothing_was_looked_into() -> None:
    assert shown(None) == {"insight": None, "decision": None, "insight_sections": []}
    assert insight_extras(None) == {}
    assert shown(Diagnostics())["insight_sections"] == []


def test_sections_are_those_that_have_something_to_say() -> None:
    found = shown(Diagnostics(labels_looked_at=40, outliers=(outlier(30, 0.2),)))
    assert [title for _, title in found["insight_sections"]] == [
        "Likely label errors",
        "Out-of-distribution images",
    ]
    assert found["insight"]["label_errors"] == []
    assert found["insight"]["outliers"] == []  # none is farther than 99 in 100


def test_what_is_shown_is_bounded_and_has_its_own_image() -> None:
    many = Diagnostics(labels_looked_at=40, label_errors=tuple(doubt(i) for i in range(40)))
    errors = shown(many)["insight"]["label_errors"]
    assert len(errors) == LIMITS["label_errors"]
    assert all(uri.startswith("data:image/webp;base64,") for _, uri in errors)
    assert len({uri for _, uri in errors}) == len(errors)
    assert len(insight_extras(many)["insight"]["label_errors"]) == 40


def test_foreign_are_those_beyond_most_or_all_where_that_is_not_known() -> None:
    outliers = (outlier(30, 1.0), outlier(31, 0.99), outlier(32, 0.98))
    found = shown(Diagnostics(outliers=outliers))["insight"]["outliers"]
    assert [one.row for one, _ in found] == [30, 31]
    unknown = tuple(outlier(row, math.nan) for row in (30, 31))
    assert len(shown(Diagnostics(outliers=unknown))["insight"]["outliers"]) == 2


def test_parts_that_differ_come_first_then_the_lowest() -> None:
    slices = (part("a", 0.9, 0.5), part("b", 0.2, 0.5), part("c", 0.8, 0.01))
    found = shown(Diagnostics(slices=slices))["insight"]
    assert [one.name for one in found["slices"]] == ["c", "b", "a"]
    assert found["n_significant"] == 1


def test_a_curve_needs_two_points_and_holds_every_interval() -> None:
    points = [CurvePoint(images=n, score=interval(v)) for n, v in ((10, 0.4), (40, 0.7))]
    assert shown(Diagnostics(curve=tuple(points[:1])))["insight"]["curve"] is None
    drawn = band([*points, CurvePoint(images=160, score=interval(0.75, 0.05))])
    assert [x for x, *_ in drawn.points] == [0, 150, 300]  # fourfold each: even steps
    assert min(top for _, _, top, _ in drawn.points) == 0
    assert max(end for *_, end in drawn.points) == 150
    for _, y, top, end in drawn.points:
        assert top < y < end
    assert len(drawn.area.split()) == 6
    assert [tick.text for tick in drawn.x_ticks] == ["10", "40", "160"]


def test_a_curve_of_equal_scores_is_drawn_too() -> None:
    sure = Interval(value=1.0, low=1.0, high=1.0, method="")
    drawn = band([CurvePoint(images=n, score=sure) for n in (5, 5)])
    assert "nan" not in drawn.line + drawn.area


def test_the_map_draws_mistakes_last_and_names_each_class_once() -> None:
    places = (
        place(0, 0.0, 0.0, False),
        place(1, 1.0, 1.0, None),
        place(2, 0.5, 0.5, True, "dog"),
        place(3, 0.5, 0.5, None, "cat, dog"),
    )
    found = shown(Diagnostics(places=places, map_by="PCA"))["insight"]["map"]
    assert [dot["right"] for dot in found["dots"]] == [None, None, True, False]
    assert (found["n_test"], found["n_wrong"], found["others"]) == (2, 1, True)
    assert sorted(one["name"] for one in found["titles"]) == ["cat", "dog"]
    assert all(0 <= dot["x"] <= 600 and 0 <= dot["y"] <= 400 for dot in found["dots"])


def test_names_that_would_lie_on_each_other_are_moved_apart() -> None:
    samples = prepared().data.samples
    names = tuple(f"class {i}" for i in range(10))
    data = Dataset(
        samples=tuple(replace(sample, target=names[i % 10]) for i, sample in enumerate(samples)),
        classes=names,
    )
    places = tuple(place(i, 0.99, 0.99, None, names[i]) for i in range(10))
    held = PreparedData(data=data, records=(), findings=())
    found = insight_page(Diagnostics(places=places), held, {})["insight"]["map"]["titles"]
    heights = sorted(one["y"] for one in found)
    assert np.diff(heights).min() >= 14.9
    assert heights[0] > 0
    assert heights[-1] < 400


DECISION = {
    "measure": "accuracy",
    "rule": "The simplest that nothing beats is taken.",
    "why": ["Fine-tuning gained nothing that can be told apart."],
    "budget": 600,
    "estimated": 30.0,
    "seconds": 28.5,
    "images": 384,
    "folds": 5,
    "rows": [
        {
            "name": "linear probe at layer3",
            "backbone": "embedded/<tiny>",
            "stage": "layer3",
            "method": "linear-probe",
            "images": 384,
            "score": {"value": 0.8, "low": 0.75, "high": 0.85},
            "against": "",
            "gain": None,
            "significant": None,
            "seconds": 1.5,
            "estimated": 1.0,
            "megabytes": 18.0,
            "state": "chosen",
            "note": "",
        },
        {
            "name": "fine-tune from layer4",
            "backbone": "embedded/tiny",
            "stage": "",
            "method": "finetune",
            "images": 384,
            "score": None,
            "against": "linear probe at layer3",
            "gain": {"value": 0.01, "low": None, "high": None},
            "significant": False,
            "seconds": 0.0,
            "estimated": 20.0,
            "megabytes": 18.0,
            "state": "left out",
            "note": "The budget was spent.",
        },
    ],
}


def test_a_decision_has_intervals_and_ends() -> None:
    found = shown(None, decision=DECISION)["decision"]
    assert found["rows"][0]["score"] == Interval(value=0.8, low=0.75, high=0.85, method="")
    assert math.isnan(found["rows"][1]["gain"].low)
    assert found["n_hidden"] == 0
    many = DECISION | {"rows": DECISION["rows"] * 40}  # type: ignore[operator]
    cut = shown(None, decision=many)["decision"]
    assert (len(cut["rows"]), cut["n_hidden"]) == (LIMITS["candidates"], 80 - LIMITS["candidates"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    whole = demo.load("symbols")
    data = replace(
        whole.subset([row for row in range(180) if row % 60 < 12]), classes=whole.classes[:3]
    )
    recipe = Recipe(engine="fp32", device="cpu", method=LinearProbe())
    folder = tmp_path_factory.mktemp("insight")
    with Cache(folder / "cache") as cache:
        return fit(data, recipe, out=folder / "run", cache=cache)


def page_of(run: Run, insight: Diagnostics | None, **record: Any) -> str:
    facts = Facts(
        name="x",
        prepared=run.prepared,
        model=replace(run.model, record={**run.model.record, **record}),
        evaluation=run.evaluation,
        summary=run.summary,
        seconds=run.seconds,
        command="",
        diagnostics=insight,
    )
    return render_html(facts)


def test_no_count_of_doubts_contradicts_the_labels_shown(run: Run) -> None:
    """A label may be likelier wrong than right, and yet its image look like no other class's."""
    assert run.diagnostics is not None
    few = replace(run.diagnostics, labels_in_doubt=0, label_errors=(doubt(0), doubt(1)))
    section = page_of(run, few).split('id="insight-label_errors"')[1].split("</section>")[0]
    assert section.count("more likely <b>dog</b>") == 2
    assert "at least the average confidence of that class: 0." in section


def test_a_run_has_every_section_and_every_link_leads_somewhere(run: Run) -> None:
    html = (run.folder / "report.html").read_text()
    ids = set(re.findall(r'id="([^"]+)"', html))
    assert {"insight-" + name for name in ("slices", "curve", "label_errors", "outliers")} <= ids
    assert {"insight-neighbours", "insight-map"} <= ids
    assert set(re.findall(r'href="#([^"]+)"', html)) <= ids
    assert "insight-notes" not in ids
    numbers = json.loads((run.folder / "report.json").read_text())["insight"]
    assert run.diagnostics is not None
    assert len(numbers["places"]) == len(run.prepared.data)
    assert "insight" in run.seconds


def test_the_page_is_well_formed_and_refers_to_nothing_outside(run: Run) -> None:
    html = page_of(run, run.diagnostics, decision=DECISION)
    assert html.count("<section") == html.count("</section>")
    assert html.count("<svg") == html.count("</svg>")
    assert "<script" not in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert "default-src 'none'" in html
    assert "nan" not in re.sub(r'src="[^"]*"', "", html).replace("banana", "")


def test_a_decision_is_told_in_words_and_numbers(run: Run) -> None:
    html = page_of(run, None, decision=DECISION)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    for told in ("The budget was spent.", "no interval", "28.5 seconds", "chosen", "skipped"):
        assert told in text
    assert "embedded/&lt;tiny&gt;" in html
    assert 'id="insight-map"' not in html


def test_reasons_are_told_where_something_could_not_be_seen(run: Run) -> None:
    html = page_of(run, Diagnostics(notes=("Map: left out. Too few <images>.",)))
    assert "Too few &lt;images&gt;." in html
    assert 'id="insight-slices"' not in html


def test_neighbours_show_the_mistake_and_what_it_was_made_of(run: Run) -> None:
    near = ((1, "1.png", "dog", 0.5),)
    one = NearestImages(
        row=0, image="0.png", right=False, label="cat", predicted="dog", neighbours=near
    )
    html = page_of(run, Diagnostics(neighbourhoods=(one,)))
    assert "labelled cat, predicted dog" in html
    assert html.count('class="neighbours-row"') == 1
