"""The report's page, numbers and card: complete, escaped, self-contained, bounded."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.spec import BackboneSpec
from headstart.data.checks.images import Finding
from headstart.data.checks.scan import ImageRecord
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import PreparedData
from headstart.data.transforms.preprocess import Preprocess
from headstart.evaluation.baselines import majority_baseline
from headstart.evaluation.classification import (
    ClassRow,
    Evaluation,
    evaluate_probabilities,
)
from headstart.evaluation.explain import Explanation
from headstart.evaluation.forgetting import Forgetting, SourceChange, StageDrift
from headstart.evaluation.summary import summarise
from headstart.metrics import classification as metrics
from headstart.metrics.confidence_intervals import Difference, Interval
from headstart.metrics.selective import threshold_for_risk
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.reports.charts import markdown
from headstart.reports.report import Facts, render_card, render_html, render_json

VOID = {"meta", "img", "br", "link", "input", "hr"}
DRAWN = {"line", "circle", "rect", "polyline", "path"}
HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a browser would make of the page: open tags, addresses, text, table headers."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.sections: dict[str, str] = {}
        self._section = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in DRAWN, f"<{tag}/> is not closed in HTML"
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        self.sections[self._section] = self.sections.get(self._section, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.seen if name == tag]

    def section(self, name: str) -> str:
        return re.sub(r"\s+", " ", self.sections[name].replace("\xa0", " "))


def image(seed: int, size: tuple[int, int] = (40, 60)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def backbone() -> FrozenBackbone:
    expects = Preprocess(
        resize=256, crop=224, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    spec = BackboneSpec(
        name="embedded/tiny",
        source="embedded",
        architecture="timm/tiny",
        preprocess=expects,
        licence="Licence-7",
        data="ImageNet",
        width=5,
    )
    return FrozenBackbone(spec=spec, state={}, origin={"sha256": "cafe" * 16, "from": "package"})


def facts(
    classes: Sequence[str] = ("cat", "dog"),
    *,
    kind: str = "multiclass",
    wrong: int = 3,
    each: int = 12,
    held_out: Sequence[str] | None = None,
    findings: tuple[Finding, ...] = (),
    names: Sequence[str] | None = None,
    n_groups: int | None = None,
) -> Facts:
    """A run on noise: ``each`` images of each class to train on, and as many held out."""
    held_out = classes if held_out is None else held_out
    samples = [
        Sample(
            image=image(i),
            target=name if kind == "multiclass" else (name,),
            split=split,  # type: ignore[arg-type]
        )
        for split, present in (("train", classes), ("test", held_out))
        for name in present
        for i in range(each)
    ]
    data = Dataset(samples=tuple(samples), classes=tuple(classes), kind=kind, name="photos")  # type: ignore[arg-type]
    prepared = PreparedData(
        data=data,
        records=tuple(ImageRecord(digest="", width=60, height=40, format="JPEG") for _ in samples),
        findings=findings,
    )
    targets = prepared.test.targets()
    task = ClassificationTask(classes=tuple(classes), kind=kind, temperature=1.25)  # type: ignore[arg-type]
    probabilities = answers(targets, len(classes), wrong, kind)
    correct = task.predicted(probabilities) == targets
    correct = correct.all(axis=1) if correct.ndim == 2 else correct
    evaluation = evaluate_probabilities(
        task,
        probabilities,
        targets,
        names=tuple(names or (sample.name for sample in prepared.test.samples)),
        baselines=(majority_baseline(prepared.train.targets(), targets, correct),),
        groups=None if n_groups is None else np.arange(len(targets)) % n_groups,
    )
    model = TransferModel(
        backbone=backbone(),
        task=task,
        head=LinearHead(
            weight=np.zeros((len(classes), 5), np.float32), bias=np.zeros(len(classes), np.float32)
        ),
        engine="bf16",
        record={
            "method": {"name": "linear-probe", "folds": 5},
            "penalty": 1e-3,
            "candidates": [
                {"penalty": 1e-2, "log_loss": 0.5},
                {"penalty": 1e-3, "log_loss": 0.25},
                {"penalty": 1e-4, "log_loss": 0.375},
            ],
            "folds": 5,
            "iterations": 87,
            "weighted_classes": False,
            "seed": 17,
            "versions": {"torch": "2.99.1"},
        },
    )
    return Facts(
        name="photos",
        prepared=prepared,
        model=model,
        evaluation=evaluation,
        summary=summarise(evaluation),
        seconds={"scan": 1.5, "features": 2.25},
        command="headstart fit photos/",
    )


def answers(targets: np.ndarray[Any, Any], k: int, wrong: int, kind: str) -> Any:
    if kind == "multilabel":
        chances = np.where(targets == 1, 0.9, 0.2)
        chances[:wrong] = 1 - chances[:wrong]
        return chances
    said = targets.copy()
    said[:wrong] = (said[:wrong] + 1) % k
    chances = np.full((len(targets), k), 0.1 / max(k - 1, 1))
    chances[np.arange(len(targets)), said] = 0.9 + 0.0001 * np.arange(len(targets))
    return chances / chances.sum(axis=1, keepdims=True)


VARIANTS = {
    "two classes": {},
    "one class missing from the held-out part": {"held_out": ["cat"]},
    "no mistakes": {"wrong": 0},
    "only mistakes": {"wrong": 24},
    "multilabel": {"kind": "multilabel", "classes": ("disc", "square", "line")},
    "groups": {"n_groups": 8},
    "25 classes": {"classes": [f"class-{i}" for i in range(25)], "each": 2},
    "40 classes": {"classes": [f"class-{i}" for i in range(40)], "each": 2},
    "hostile": {"classes": (HOSTILE, 'a"|b&', "c" * 300)},
    "findings": {"findings": (Finding(kind="leak", severity="error", message="m", paths=("p",)),)},
}


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Facts:
    return facts(**VARIANTS[request.param])


def test_page_is_balanced_self_contained_and_described(variant: Facts) -> None:
    html = render_html(variant)
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.seen}
    for _, attrs in page.seen:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "srcset", "action"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/webp;base64,", "#"))
    assert "url(" not in html
    assert "@import" not in html
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert len(page.all("h1")) == 1
    assert all(attrs.get("scope") in {"row", "col"} for attrs in page.all("th"))
    assert all(attrs["role"] == "img" for attrs in page.all("svg"))
    assert len(page.all("title")) == 1 + len(page.all("svg"))
    linked = {attrs["href"] for attrs in page.all("a")}
    sections = {f"#open-{attrs['id']}" for attrs in page.all("section")}
    terms = {href for href in linked if href.startswith("#term-")}
    assert terms
    assert linked - terms == sections | {"#content"}
    anchors = {f"#{attrs['id']}" for _, attrs in page.seen if attrs.get("id")}
    assert linked <= anchors


def test_same_facts_give_the_same_page(variant: Facts) -> None:
    assert render_html(variant) == render_html(variant)


def test_numbers_survive_json_without_nan(variant: Facts) -> None:
    numbers = render_json(variant)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    accuracy = variant.evaluation.metrics["accuracy"]
    assert numbers["evaluation"]["metrics"]["accuracy"]["low"] == pytest.approx(accuracy.low)
    assert numbers["reliability"]["weight"] == variant.evaluation.reliability.weight.tolist()
    assert [row["class"] for row in numbers["evaluation"]["per_class"]] == list(
        variant.model.task.classes
    )


def test_card_has_tables_that_hold(variant: Facts) -> None:
    card = render_card(variant)
    for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1
        assert table.splitlines()[1].startswith("| ---")
    assert not re.search(r"(?<!\\)<", card)
    assert "\n\n\n\n" not in card


def test_page_says_every_number() -> None:
    given = facts()
    page = Page(render_html(given))
    shown = page.section("scores")
    for interval in given.evaluation.metrics.values():
        ends = f"{interval.low:.3f} – {interval.high:.3f}".replace("nan – nan", "no interval")
        assert f"{interval.value:.3f} {ends}" in shown
    assert "nan" not in page.text.replace("distance", "")
    rule = given.evaluation.baselines[0]
    assert f"{rule.accuracy.value:.3f} {rule.accuracy.low:.3f} – {rule.accuracy.high:.3f}" in shown
    lead = rule.lead.interval
    assert f"{lead.value:+.3f} {lead.low:+.3f} to {lead.high:+.3f}" in shown
    for row in given.evaluation.per_class:
        for one in (row.recall, row.precision):
            assert f"{one.value:.3f} {one.low:.3f} – {one.high:.3f}" in page.section("classes")
    assert "9 75 %3 25 %" in page.section("confusion")
    for sentence in given.summary:
        assert sentence.replace("`", "") in page.text.replace("\xa0", " ")
    assert "<code>headstart compare</code>" in render_html(given)


def test_page_says_how_it_was_made() -> None:
    made = Page(render_html(facts())).section("details")
    for said in (
        "headstart fit photos/", "embedded/tiny", "timm/tiny", "ImageNet", "cafe" * 16,
        "Licence-7", "256 pixels (bicubic", "224 × 224", "0.25, 0.25, 0.25", "BatchNorm",
        "5 features to 2 classes, 12 parameters", "bf16", "linear-probe, 5 folds, penalty 0.001",
        "87 iterations", "Seed17", "3.8 = scan 1.5 + features 2.2", "torch 2.99.1", "0.3750",
    ):  # fmt: skip
        assert said in made, said


def test_interval_bars_lie_where_the_numbers_are() -> None:
    given = facts()
    accuracy = given.evaluation.metrics["accuracy"]
    styles = [a["style"] or "" for a in Page(render_html(given)).all("span") if a.get("style")]
    left, width = (float(x) for x in re.findall(r"[\d.]+", styles[0]))
    assert left == pytest.approx(100 * accuracy.low, abs=0.01)
    assert left + width == pytest.approx(100 * accuracy.high, abs=0.02)
    assert float(re.findall(r"[\d.]+", styles[1])[0]) == pytest.approx(
        100 * accuracy.value, abs=0.01
    )


def test_hostile_names_are_text_everywhere() -> None:
    given = facts(
        (HOSTILE, "dog"),
        findings=(Finding(kind="leak", severity="error", message=HOSTILE, paths=("<img src=x>",)),),
        names=['"><img src=x onerror=y>'] + ["b"] * 23,
    )
    given = replace(given, name=HOSTILE, command=HOSTILE, summary=(HOSTILE, HOSTILE))
    page = Page(render_html(given))
    assert page.all("script") == []
    assert page.text.count(HOSTILE) >= 10
    assert '"><img src=x onerror=y>' in page.section("mistakes")
    assert {attrs["src"] for attrs in page.all("img")} == {
        src for src in (a["src"] for a in page.all("img")) if src and src.startswith("data:")
    }
    assert "<script" not in re.sub(r"\\<", "", render_card(given).replace(f"```\n{HOSTILE}", ""))


def test_command_cannot_leave_its_block_in_the_card() -> None:
    given = replace(facts(), command="a\n```\n# mine")
    assert len(re.findall("^```", render_card(given), flags=re.MULTILINE)) == 4


def test_a_class_that_nobody_asked_about_has_no_interval() -> None:
    given = facts(held_out=["cat"])
    page = Page(render_html(given))
    assert "dog (0) – no interval" in page.section("classes")
    recall = render_json(given)["evaluation"]["per_class"][1]["recall"]
    assert recall["value"] is recall["low"] is None


def test_multilabel_has_no_single_answer_to_be_wrong() -> None:
    given = facts(("disc", "square"), kind="multilabel")
    page, numbers = Page(render_html(given)), render_json(given)
    assert {a["id"] for a in page.all("section")} == {
        "scores", "data", "classes", "calibration", "details", "terms",
    }  # fmt: skip
    assert "All labels of an image correct" in page.section("scores")
    assert numbers["evaluation"]["confusion"] is None
    assert "mistakes" not in numbers


def test_no_mistakes_and_no_findings_are_said() -> None:
    page = Page(render_html(facts(wrong=0)))
    assert "all 24 test images are classified correctly" in page.section("mistakes")
    assert "no unreadable files, no duplicates" in page.section("data")


def test_mistakes_come_most_confident_first_with_truth_and_answer() -> None:
    names = [f"{i}.jpg" for i in range(24)]
    given = facts(names=names)
    shown = Page(render_html(given)).section("mistakes")
    assert [int(i) for i in re.findall(r"(\d+)\.jpg", shown)] == [2, 1, 0]
    assert "predicted dog (90 %) labelled cat (10 %)" in shown
    told = render_json(given)["mistakes"]
    assert [one["image"] for one in told] == ["2.jpg", "1.jpg", "0.jpg"]
    assert told[0]["probability_of_truth"] == pytest.approx(1 - told[0]["probability"])


def test_findings_are_grouped_gravest_first_and_bounded() -> None:
    many = tuple(
        Finding(kind="duplicate", severity="warning", message=f"same-{i}.", paths=("a", "b"))
        for i in range(27)
    )
    leak = Finding(
        kind="leak", severity="error", message="both sides", paths=tuple(f"p{i}" for i in range(9))
    )
    given = facts(findings=(*many, leak))
    shown = Page(render_html(given)).section("data")
    assert shown.index("leak (1)") < shown.index("duplicate (27)")
    assert "same-19." in shown
    assert "same-20." not in shown
    assert "and 7 more, in report.json" in shown
    assert "p3" in shown
    assert "p4" not in shown
    assert "9 images, all in report.json" in shown
    assert len(render_json(given)["data"]["findings"]) == 28


def test_thumbnails_show_the_image_and_never_stop_the_report(tmp_path: Path) -> None:
    red = np.zeros((50, 400, 3), np.uint8)
    red[..., 0] = 255
    good, gone = tmp_path / "a" / "good.png", tmp_path / "a" / "gone.png"
    good.parent.mkdir()
    Image.fromarray(red).save(good)
    given = facts(wrong=0, each=2)
    samples = tuple(
        replace(s, image=good if i % 2 else gone) for i, s in enumerate(given.prepared.data.samples)
    )
    given = replace(
        given, prepared=replace(given.prepared, data=replace(given.prepared.data, samples=samples))
    )
    page = Page(render_html(given))
    uris = [attrs["src"] or "" for attrs in page.all("img")]
    assert len(uris) == 4
    assert page.text.count("image not available") == 4
    with Image.open(io.BytesIO(base64.b64decode(uris[0].partition(",")[2]))) as shown:
        assert shown.size == (224, 112)
        assert np.abs(np.asarray(shown).astype(int) - [255, 0, 0]).max() < 10
    assert {attrs["alt"] for attrs in page.all("img")} == {"cat: good.png", "dog: good.png"}
    assert str(good.parent) in page.section("details")


def many_classes(k: int, n: int) -> Facts:
    """Numbers as they would be; bootstrapping them is another test's matter."""
    rng = np.random.default_rng(0)
    names = tuple(f"a class with a rather long name, number {i}" for i in range(k))
    pil_image = image(0)
    targets = np.sort(rng.integers(0, k, n))
    samples = tuple(
        Sample(image=pil_image, target=names[t], split="test" if i % 2 else "train")
        for i, t in enumerate(targets)
    )
    chances = rng.dirichlet(np.ones(k), len(targets[1::2]))
    half = Interval(value=0.5, low=0.25, high=0.75, method="")
    task = ClassificationTask(classes=names)
    evaluation = Evaluation(
        task=task,
        names=tuple(f"/a/folder/that/is/deep/{i}.jpg" for i in range(len(chances))),
        targets=targets[1::2],
        probabilities=chances,
        metrics=dict.fromkeys(("accuracy", "log_loss", "ece"), half),
        per_class=tuple(
            ClassRow(
                name=name, count=9, precision=half, recall=replace(half, value=0.3 + i / 2 / k)
            )
            for i, name in enumerate(reversed(names))
        ),
        reliability=metrics.reliability_curve(targets[1::2], chances, 10),
    )
    small = facts()
    return replace(
        small,
        prepared=PreparedData(
            data=Dataset(samples=samples, classes=names),
            records=(),
            findings=tuple(
                Finding(kind="near-duplicate", severity="note", message="m" * 300) for _ in range(n)
            ),
        ),
        model=replace(small.model, task=task),
        evaluation=evaluation,
    )


def test_a_thousand_classes_and_twenty_thousand_images_stay_small() -> None:
    given = many_classes(1000, 20_000)
    html = render_html(given)
    assert len(html.encode()) < 3e6
    page = Page(html)
    assert len(page.all("img")) <= 40 + 24
    assert "40 of 1,000 classes" in page.section("data")
    assert "The other 970 classes" in page.section("classes")
    # found least often comes first
    assert page.section("classes").index("number 999") < page.section("classes").index("number 500")
    pairs = json.loads(json.dumps(render_json(given), allow_nan=False))
    assert pairs["evaluation"]["confusion"] is None
    wrong = int((~given.evaluation.correct).sum())
    assert sum(pair["images"] for pair in pairs["confusions"]) == wrong
    assert page.section("confusion").count("number") == 2 * 20


def test_more_classes_than_a_page_bears_are_counted() -> None:
    page = Page(render_html(many_classes(1100, 2200)))
    assert "100 more are in report.json" in page.section("classes")
    assert "100 more are in report.json" in page.section("data")


def test_reliability_whiskers_only_where_images_are_independent() -> None:
    def whiskers(given: Facts) -> int:
        return sum(
            attrs.get("class") == "whisker" for attrs in Page(render_html(given)).all("line")
        )

    assert whiskers(facts()) > 0
    assert whiskers(facts(n_groups=8)) == 0
    assert whiskers(facts(("disc", "square"), kind="multilabel")) == 0


def test_a_model_without_a_penalty_search_has_no_curve() -> None:
    given = facts()
    bare = replace(given, model=replace(given.model, record={}))
    page = Page(render_html(bare))
    assert len(page.all("svg")) == 2  # calibration and risk
    assert "penalty" not in page.section("details")
    assert render_card(bare)


def test_json_has_no_number_that_is_not_one() -> None:
    given = facts()
    record = {"loss": math.nan, "best": math.inf, "at": Path("a"), "n": np.int64(3), "ok": True}
    told = render_json(replace(given, model=replace(given.model, record=record)))
    assert told["model"]["record"] == {"loss": None, "best": None, "at": "a", "n": 3, "ok": True}


def tuned(**change: Any) -> Facts:
    """A run that moved the backbone, with the record that a method of training leaves."""
    stages = [
        {"stage": "stem", "parameters": 1234, "trainable": 0, "batch_norm": "frozen",
         "learning_rate": 0.0, "from_epoch": 1, "trains": False},
        {"stage": "layer1", "parameters": 56789, "trainable": 20, "batch_norm": "adapt",
         "learning_rate": 1e-4, "from_epoch": 3, "trains": True},
        {"stage": "layer2", "parameters": 7, "trainable": 7, "batch_norm": "train",
         "learning_rate": 2.5e-4, "from_epoch": 1, "trains": True},
    ]  # fmt: skip
    share = Interval(value=0.93, low=0.886, high=0.958, method="wilson")
    lost = Interval(value=-0.125, low=-0.25, high=-0.0625, method="newcombe-paired")
    source = SourceChange(
        name="ImageNet",
        images=200,
        agreement=share,
        before=replace(share, value=0.875),
        after=replace(share, value=0.75),
        change=Difference(interval=lost, significant=True),
    )
    drifts = (
        StageDrift(stage="stem", cka=1.0, cosine=1.0, relative_weight_change=0.0),
        StageDrift(stage="layer1", cka=math.nan, cosine=0.8125, relative_weight_change=0.0123),
        StageDrift(stage="layer2", cka=0.4375, cosine=0.5625, relative_weight_change=math.nan),
    )
    epochs = [
        {"number": i, "loss": 1 / i, "score": 0.5 + i / 16, "seconds": 1.25 * i}
        for i in range(1, 5)
    ]
    record = {
        "method": {"name": "finetune"},
        "plan": {"stages": stages, "only": "norm", "boundary": "stem"},
        "epochs": epochs,
        "best_epoch": 3,
        "forgetting": Forgetting(stages=drifts, source=source, images=200).as_dict(),
        "target_gain": Interval(value=0.021, low=0.001, high=0.041, method="").as_dict(),
    } | change
    record = {key: value for key, value in record.items() if value is not None}
    given = facts()
    return replace(given, model=replace(given.model, record=record))


def test_a_linear_probe_says_nothing_of_training_or_keeping(variant: Facts) -> None:
    page = Page(render_html(variant))
    assert not {"training", "forgetting"} & {attrs["id"] for attrs in page.all("section")}
    assert "fine-tuned" not in render_card(variant)


def test_page_says_what_trained() -> None:
    shown = Page(render_html(tuned())).section("training")
    assert "Everything up to stem is constant" in shown
    assert "only these parameters are trained: norm" in shown
    for row in (
        "stem1,234nonefrozen–",
        "layer156,78920 from epoch 3adapt0.0001",
        "layer27alltrain0.00025",
    ):
        assert row in shown
    made = Page(render_html(tuned())).section("details")
    assert "Frozenstem " in made
    assert "Trainedlayer1, layer2, and one linear layer" in made
    assert "The whole backbone" not in made


def test_nothing_frozen_and_nothing_trained_are_said() -> None:
    rows = tuned().model.record["plan"]["stages"]
    all_of_it = {"stages": rows[1:], "only": "all", "boundary": None}
    page = Page(render_html(tuned(plan=all_of_it)))
    assert "FrozenNo stage" in page.section("details")
    assert "is constant" not in page.section("training")
    assert "only these" not in page.section("training")
    adapted = {"stages": [rows[0] | {"batch_norm": "adapt"}, *rows[1:]]}
    assert "Frozenstem (but BatchNorm: adapt)" in Page(render_html(tuned(plan=adapted))).section(
        "details"
    )
    page = Page(render_html(tuned(plan={"stages": rows[:1], "boundary": "stem"})))
    assert "TrainedOne linear layer" in page.section("details")
    assert "on the frozen backbone" in render_card(tuned(plan={"stages": rows[:1]}))


def test_page_draws_the_epochs_and_has_them_as_a_table() -> None:
    page = Page(render_html(tuned()))
    shown = page.section("training")
    assert "4 epochs; the model of epoch 3 was kept." in shown
    assert "3 (kept)0.33330.68753.8" in shown
    drawn = [attrs["aria-labelledby"] for attrs in page.all("svg")]
    assert drawn[-2:] == ["loss-title loss-desc", "score-title score-desc"]
    assert sum(attrs.get("class") == "hollow" for attrs in page.all("circle")) == 2 * 3


def test_epochs_without_a_score_have_no_curve_of_it() -> None:
    epochs = [{"number": i, "loss": 1.0, "score": None, "seconds": 1.0} for i in (1, 2)]
    page = Page(render_html(tuned(epochs=epochs, best_epoch=None, plan=None)))
    assert [a["aria-labelledby"] for a in page.all("svg")][-1] == "loss-title loss-desc"
    assert "2 epochs. The loss" in page.section("training")
    assert "11.0000–1.0" in page.section("training")
    one = Page(render_html(tuned(epochs=epochs[:1])))
    assert len(one.all("svg")) == 2  # calibration and risk
    assert "1 epoch;" in one.section("training")


def test_very_many_epochs_are_thinned_and_the_best_is_among_them() -> None:
    epochs = [{"number": i, "loss": 1.0, "score": 0.5, "seconds": 1.0} for i in range(1, 3001)]
    page = Page(render_html(tuned(epochs=epochs, best_epoch=2998)))
    shown = page.section("training")
    assert "2998 (kept)" in shown
    assert "3,000 epochs" in shown
    assert "2,798 more are in report.json" in shown
    assert len(render_json(tuned(epochs=epochs))["model"]["record"]["epochs"]) == 3000


def test_page_and_card_say_what_the_backbone_has_kept() -> None:
    given = tuned()
    page, card = Page(render_html(given)), render_card(given)
    shown = page.section("forgetting")
    for row in ("stem1.0001.0000.00 %", "layer1–0.8121.23 %", "layer20.4380.562–"):
        assert row in shown
    assert "same 200 images" in shown
    for said in (
        "Transfer gain over the linear probe: +2.1 points [0.1, 4.1].",
        "classifier gives the same answer for 186 of 200 images",
        "Its accuracy changes by -12.5 points [-25.0, -6.2]",
        "Changed most: layer2 (CKA 0.438",
    ):
        assert said in shown
        assert markdown(said) in card
    told = render_json(given)["model"]["record"]
    assert told["forgetting"] == given.model.record["forgetting"]
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert "one linear layer on the fine-tuned backbone" in card
    assert "layer1 (20 parameters), layer2 (7 parameters), the linear layer" in card
    assert "The backbone is frozen" not in card
    bare = Page(render_html(tuned(target_gain=None))).section("forgetting")
    assert "Target" not in bare


def test_where_the_temperature_comes_from_is_said() -> None:
    given = tuned(temperature_from="the validation part")
    assert "fitted on the validation part, not" in Page(render_html(given)).section("calibration")
    assert "fitted on the validation part." in render_card(given)


def test_a_tuned_page_is_whole_and_its_names_are_text() -> None:
    plan = json.loads(json.dumps(tuned().model.record["plan"]).replace("layer", HOSTILE))
    kept = json.loads(json.dumps(tuned().model.record["forgetting"]).replace("layer", HOSTILE))
    plan["only"] = HOSTILE
    given = tuned(plan=plan, forgetting=kept)
    test_page_is_balanced_self_contained_and_described(given)
    test_card_has_tables_that_hold(given)
    page = Page(render_html(given))
    assert page.section("training").count(HOSTILE) == 3
    assert page.section("forgetting").count(HOSTILE) == 3
    assert page.all("script") == []


# ------------------------------------------------------------------------- abstaining


def careful(max_risk: float = 0.1) -> Facts:
    """A model with a threshold for a wanted risk, and as many images as that takes."""
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.full(2, 0.1), 1500)
    targets = np.array([rng.choice(2, p=p) for p in chances])
    sure, correct = chances.max(axis=1), chances.argmax(axis=1) == targets
    chosen = threshold_for_risk(sure[300:], correct[300:], max_risk=max_risk)
    given = facts()
    task = replace(given.model.task, max_risk=max_risk, selected=chosen)
    judged = evaluate_probabilities(
        task, chances[:300], targets[:300], names=tuple(f"{i}.png" for i in range(300))
    )
    model = replace(given.model, task=task)
    return replace(given, model=model, evaluation=judged, summary=summarise(judged))


def test_the_curve_of_risk_is_drawn_with_the_threshold_on_it() -> None:
    given = careful(0.02)
    said = given.evaluation.abstention
    assert said.coverage.value < 1
    html = render_html(given)
    section = Page(html).section("selective")
    assert f"{said.coverage.value:.3f}" in section
    assert f"{said.risk.value:.3f}" in section
    assert "Requested: at most 0.02" in section
    drawing = html.split('id="risk-title"')[1].split("</svg>")[0]
    mark = re.search(r'class="dot" cx="([\d.]+)" cy="([\d.]+)"', drawing)
    assert float(mark[1]) == pytest.approx(300 * said.coverage.value, abs=0.1)
    line = re.search(r'class="line" points="([^"]*)"', drawing)[1].split()
    ends = [tuple(map(float, point.split(","))) for point in line]
    assert ends[-1][0] == 300  # everything answered
    nearest = min(ends, key=lambda point: abs(point[0] - float(mark[1])))
    assert nearest[1] == pytest.approx(float(mark[2]), abs=3)
    assert len(ends) < 70
    told = render_json(given)["evaluation"]["abstention"]["selected"]
    assert told["threshold"] == pytest.approx(said.selected.threshold)


def test_a_model_that_abstains_nowhere_is_told_without_a_threshold() -> None:
    given = careful(0.4)
    assert given.model.task.selected.coverage == 1
    section = Page(render_html(given)).section("selective")
    assert "the model never abstains" in section
    assert "abstains from the other images" not in section
    assert "at most 40 % of its predictions are wrong" in render_card(given)


def test_a_risk_that_cannot_be_shown_is_said_on_the_page() -> None:
    section = Page(render_html(careful(0.0001))).section("selective")
    assert "No threshold reaches" in section
    assert "Requested" not in section


def test_without_a_wanted_risk_the_page_says_how_to_want_one() -> None:
    assert "--max-risk" in Page(render_html(facts())).section("selective")


def test_the_card_says_where_the_model_abstains() -> None:
    given = careful(0.02)
    card = render_card(given)
    assert f"confidence is below {given.model.task.selected.threshold:.3f}" in card
    assert "at most 2 % of the other predictions" in card
    assert "abstains" not in render_card(careful(0.0001)).split("## Usage")[1]
    assert "model abstains" not in render_card(facts())


def test_the_card_says_what_a_race_has_weighed() -> None:
    decision = {"rows": [{}, {}, {}], "why": [f"The {HOSTILE} is better.", "Chosen: probe."]}
    given = facts()
    record = {**given.model.record, "decision": decision}
    card = render_card(replace(given, model=replace(given.model, record=record)))
    assert "Chosen from 3 candidates by their scores on held-out training images" in card
    assert f"- The {markdown(HOSTILE)} is better.\n- Chosen: probe.\n" in card
    assert "\n\n\n\n" not in card
    assert "candidates" not in render_card(given)


# ------------------------------------------------------------------------- maps


def test_maps_of_the_surest_mistakes_and_of_right_answers_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = facts(wrong=2)
    judged, classes = given.evaluation, given.model.task.classes
    right = np.flatnonzero(judged.correct)
    rows = judged.mistakes(3) + [right[i * len(right) // 3] for i in range(3)]

    def explained(model: Any, samples: Any, **_: Any) -> Any:
        for sample, row in zip(samples, rows, strict=True):
            yield Explanation(
                name=sample.name,
                label=classes[judged.predicted[row]],
                probability=0.875,
                prediction="",
                method="grad-cam",
                heat=np.eye(3),
                part=(0.0, 0.0, 1.0, 1.0),
            )

    monkeypatch.setattr("headstart.reports.classification.explain", explained)
    html = render_html(given)
    page = Page(html)
    section = page.section("heatmaps")
    assert section.count("), correct") == 3
    assert section.count("labelled") == 2  # there are no more mistakes
    assert html.split('id="heatmaps"')[1].split("</section>")[0].count("data:image/webp") == 5
    assert "Heat maps" in page.text


def test_where_no_map_can_be_made_there_is_no_section() -> None:
    page = Page(render_html(facts()))  # whose network does not exist
    assert "heatmaps" not in page.sections
    assert "Heat maps" not in page.text


# ------------------------------------------------------------------------- first screen


def test_the_first_screen_has_the_result_three_mistakes_and_what_to_do() -> None:
    given = facts(wrong=5)
    html = render_html(given)
    first = html.split('<div class="first-screen">')[1].split('<section id="scores">')[0]
    shown = re.sub(r"\s+", " ", Page(f"<div>{first}").text.replace("\xa0", " "))
    assert "19 of 24 test images right (79 %, likely 60 to 91 %)" in shown
    assert "5 of 12 images of “cat” are predicted as “dog”" in shown
    assert first.count('<details class="zoom"') == 3
    assert shown.count("predicted dog (90 % confident) labelled cat") == 3
    advice = render_json(given)["next_steps"]
    assert 1 <= len(advice) <= 4
    for step in advice:
        assert step["text"].replace("\xa0", " ") in shown
        assert step["command"] in shown


def test_a_skipped_training_is_offered_with_its_command_and_its_table_is_folded() -> None:
    decision = {
        "measure": "accuracy", "rule": "The simplest.", "budget": 0, "estimated": 0.0,
        "why": ["Skipped all trainings: the time budget is 0 s. Try `--budget 2m`."],
        "seconds": 1.0, "images": 24, "folds": 5, "rows": [],
    }  # fmt: skip
    given = facts()
    record = {**given.model.record, "decision": decision}
    html = render_html(replace(given, model=replace(given.model, record=record)))
    page = Page(html)
    assert "headstart fit photos/ --budget 2m" in page.text
    assert '<section id="decision"><details class="fold"><summary>' in html
    assert '<section id="scores"><details class="fold" open>' in html
    assert "#open-decision" in {attrs["href"] for attrs in page.all("a")}


def test_headings_have_no_gap_and_a_multilabel_page_shows_wrong_labels() -> None:
    html = render_html(facts(("disc", "square"), kind="multilabel"))
    levels = [int(level) for level in re.findall(r"<h([1-6])", html)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert "did not predict" in html.split('<section id="scores">')[0]
