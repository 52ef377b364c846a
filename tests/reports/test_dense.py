"""Pages of detectors and segmenters: the numbers they should have, drawn truths and answers."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Boxes, Dataset, Mask, Palette, Sample
from headstart.data.draw import class_colours
from headstart.data.prepare import PreparedData
from headstart.evaluation.detection import evaluate_detections
from headstart.evaluation.segmentation import PixelCounts, evaluate_counts
from headstart.evaluation.summary import summarise
from headstart.metrics.segmentation import boundary_counts, pixel_counts
from headstart.models.build import create_model
from headstart.models.inference import Detections
from headstart.models.tasks import DetectionTask
from headstart.models.transfer_model import TransferModel
from headstart.reports.dense import dense_page
from headstart.reports.report import Facts, render_card, render_html, render_json

HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a browser would make of the page: open tags, images, the text of every section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.links: set[str | None] = set()
        self.sections: dict[str, str] = {}
        self._section = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section] = ""
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "a":
            self.links.add(dict(attrs)["href"])
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._section:
            self.sections[self._section] += data

    def section(self, name: str) -> str:
        return re.sub(r"\s+", " ", self.sections[name].replace("\xa0", " "))


@pytest.fixture(scope="module")
def backbone() -> FrozenBackbone:
    spec = resolve("timm/test_resnet")
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={"sha256": "cafe" * 16, "from": "here"})


def dataset(targets: list[Any], classes: tuple[str, ...], kind: str) -> Dataset:
    samples = [
        Sample(
            image=np.full((60, 80, 3), 120, np.uint8),
            target=target,
            split="train" if i % 2 else "test",
            title=f"{i}.png",
        )
        for i, target in enumerate(targets)
    ]
    return Dataset(samples=tuple(samples), classes=classes, kind=kind, name="cells")  # type: ignore[arg-type]


def told(prepared: PreparedData, model: TransferModel, evaluation: Any) -> Facts:
    record = {"anchors_reach": 0.875, "method": {"name": "finetune"}, "seed": 3}
    return Facts(
        name="cells",
        prepared=prepared,
        model=replace(model, task=evaluation.task, record=record),
        evaluation=evaluation,
        summary=summarise(evaluation),
        seconds={"training": 2.5},
        command="headstart fit cells/ --task detection",
    )


def boxes(
    backbone: FrozenBackbone, classes: tuple[str, ...] = ("disc", "rod"), n: int = 8
) -> Facts:
    """Every held-out image has two objects; the first is found, the other once in two."""
    corners = ((4.0, 6.0, 30.0, 28.0), (40.0, 10.0, 70.0, 36.0))
    truth = Boxes(corners=corners, labels=classes[:2])
    data = dataset([truth] * 2 * n, classes, "detection")
    prepared = PreparedData(data=data, records=(), findings=())
    found = [
        Detections(
            name=sample.name,
            size=(80, 60),
            boxes=np.array([corners[0], corners[1] if i % 2 else (0, 40, 20, 58)], np.float32),
            scores=np.array([0.9, 0.75], np.float32),
            labels=np.array([0, 1]),
        )
        for i, sample in enumerate(prepared.test.samples)
    ]
    task = DetectionTask(classes=classes, threshold=0.45)
    truths = [sample.target for sample in prepared.test.samples]
    evaluation = evaluate_detections(task, found, truths)  # type: ignore[arg-type]
    return told(prepared, create_model(backbone, data, head="fcos", size=64), evaluation)


def masks(
    backbone: FrozenBackbone, names: tuple[str, ...] = ("background", "leaf"), n: int = 6
) -> Facts:
    """Half of the leaf is found, in all held-out images but the first, which is right."""
    true = np.zeros((60, 80), np.uint8)
    true[20:40, 20:60] = 1
    said = np.where(np.arange(80) < 40, true, 0).astype(np.uint8)
    palette = Palette(codes=tuple(enumerate(names)))
    target = Mask(source=true, palette=palette, present=names[:2])
    data = dataset([target] * 2 * n, names, "segmentation")
    prepared = PreparedData(data=data, records=(), findings=())
    model = create_model(backbone, data, head="fpn", size=64)
    pairs = [(true if i == 0 else said, true) for i in range(n)]
    counts = PixelCounts(
        np.stack([pixel_counts(*pair, len(names)) for pair in pairs]),
        np.stack([boundary_counts(*pair, len(names)) for pair in pairs]),
    )
    shown = tuple(sample.name for sample in prepared.test.samples)
    return told(prepared, model, evaluate_counts(model.task, counts, names=shown))


@pytest.fixture(scope="module")
def detector(backbone: FrozenBackbone) -> Facts:
    return boxes(backbone)


@pytest.fixture(scope="module")
def segmenter(backbone: FrozenBackbone) -> Facts:
    return masks(backbone)


@pytest.fixture(scope="module", params=["detector", "segmenter"])
def facts(request: pytest.FixtureRequest) -> Facts:
    given: Facts = request.getfixturevalue(request.param)
    return given


def shown(uri: str | None) -> np.ndarray[Any, Any]:
    data = base64.b64decode((uri or "").partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def near(image: np.ndarray[Any, Any], colour: np.ndarray[Any, Any]) -> int:
    return int((np.abs(image.astype(int) - colour.astype(int)).max(axis=-1) < 40).sum())


def test_the_page_is_whole_and_holds_everything_itself(facts: Facts) -> None:
    html = render_html(facts)
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert not {"script", "link", "iframe"} & page.tags
    assert all((image["src"] or "").startswith("data:image/webp") for image in page.images)
    assert all(image["alt"] for image in page.images)
    terms = {link for link in page.links if link.startswith("#term-")}
    assert page.links - terms == {"#content", *(f"#open-{name}" for name in page.sections)}
    assert terms
    assert all(f'id="{link[1:]}"' in html for link in terms)
    assert render_html(facts) == html
    assert "nan" not in " ".join(page.sections.values())


def test_every_number_is_on_the_page_and_in_the_json(facts: Facts) -> None:
    page, numbers = Page(render_html(facts)), render_json(facts)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    for name, interval in facts.evaluation.metrics.items():
        assert numbers["evaluation"]["metrics"][name]["value"] == pytest.approx(interval.value)
        ends = f"{interval.low:.3f} – {interval.high:.3f}".replace("nan – nan", "no interval")
        assert f"{interval.value:.3f} {ends}" in page.section("scores")
    for row in numbers["evaluation"]["per_class"]:
        first = row["ap"] if "ap" in row else row["iou"]
        assert f"{first['value']:.3f}" in page.section("classes")
    assert [one["image"] for one in numbers["worst"]] == [
        facts.evaluation.names[row] for row in facts.evaluation.worst(200)
    ]


def test_the_card_says_what_it_is_and_how_good(facts: Facts) -> None:
    card = render_card(facts)
    headline = next(iter(facts.evaluation.metrics.values()))
    assert str(headline) in card
    assert ("An object detector" in card) is (facts.model.task.kind == "detection")
    assert "Temperature" not in card
    for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_how_it_was_made_names_the_canvas_the_head_and_the_anchors(detector: Facts) -> None:
    made = Page(render_html(detector)).section("details")
    assert "padded to 64 × 64 pixels" in made
    assert "The fcos head: reads" in made
    assert "score of at least 0.45" in made
    assert "88 % of the training objects overlap an anchor" in made


def test_confusions_have_the_background(detector: Facts) -> None:
    shown = Page(render_html(detector)).section("confusion")
    assert "no object" in shown
    assert "8 100 %" in shown  # the first object
    assert "4 50 %" in shown  # the other: found, and missed
    assert shown.rstrip().endswith("–")


def test_scores_of_one_size_say_from_how_many_objects(detector: Facts) -> None:
    assert "mAP, small objects (16)" in Page(render_html(detector)).section("scores")
    assert render_json(detector)["evaluation"]["objects"]["all"] == 16


def test_curves_are_drawn_and_told(detector: Facts) -> None:
    html = render_html(detector)
    told = Page(html).section("curves")
    assert html.count("<polyline") == 2
    assert "disc AP 1.000" in told
    assert "not reached" in told  # the rod at high recall
    start = re.search(r'<polyline class="line" points="([^ ]+)', html)
    assert start is not None
    assert start[1] == "0,0"


def test_the_worst_images_show_truth_beside_answer(detector: Facts) -> None:
    page = Page(render_html(detector))
    wrong = [
        image
        for image in page.images
        if (image["alt"] or "").startswith(("Ground truth", "Prediction"))
    ]
    assert [image["alt"] for image in wrong[:2]] == ["Ground truth: 0.png", "Prediction: 0.png"]
    assert len(wrong) == 2 * 4
    assert "1 correct, 1 missed, 1 without an object" in page.section("worst")
    truth, answer = (shown(image["src"]) for image in wrong[:2])
    assert truth.shape == answer.shape == (360, 480, 3)
    rod = class_colours(2)[1]
    right = np.s_[60:216, 230:430]  # where the rod is
    assert near(truth[right], rod) > 300
    assert near(answer[right], rod) < 30
    assert near(answer[230:, :140], rod) > 200


def test_the_worst_masks_are_tinted_by_class(segmenter: Facts) -> None:
    page = Page(render_html(segmenter))
    wrong = [
        pil_image
        for pil_image in page.images
        if (pil_image["alt"] or "").startswith("Ground truth")
    ]
    assert len(wrong) == 5
    image = shown(wrong[0]["src"])
    leaf = 0.55 * class_colours(2)[1].astype(float) + 0.45 * 120
    assert np.abs(image[180, 240] - leaf).max() < 12
    assert np.abs(image[20, 20].astype(int) - 120).max() < 12
    assert "mean IoU" in page.section("worst")
    legend = page.section("worst").partition("no colour.")[2].partition("2.png")[0]
    assert "leaf" in legend
    assert "background" not in legend


def test_one_class_everywhere_stands_beside_a_segmenter(segmenter: Facts) -> None:
    shown = Page(render_html(segmenter)).section("scores")
    assert "Mean IoU, compared with baselines" in shown
    assert "Pixel accuracy, compared with baselines" in shown
    for baseline in segmenter.evaluation.baselines:
        assert f"{baseline.accuracy.value:.3f}" in shown


def test_examples_show_what_the_data_say(facts: Facts) -> None:
    page = Page(render_html(facts))
    drawn = [image for image in page.images if "with their annotations" in (image["alt"] or "")]
    assert 0 < len(drawn) <= 6
    colour = class_colours(2)[0 if facts.model.task.kind == "detection" else 1]
    if facts.model.task.kind == "segmentation":
        colour = (0.55 * colour.astype(float) + 0.45 * 120).astype(np.uint8)
    assert near(shown(drawn[0]["src"]), colour) > 200


def test_images_that_are_gone_leave_a_gap(detector: Facts, tmp_path: Path) -> None:
    gone = tuple(
        replace(sample, image=tmp_path / "gone.png") for sample in detector.prepared.data.samples
    )
    prepared = replace(detector.prepared, data=replace(detector.prepared.data, samples=gone))
    html = render_html(replace(detector, prepared=prepared))
    assert Page(html).images == []
    assert html.count("image not available") == 6 + 8 + 2 * 3


def test_an_evaluation_of_other_images_has_names_only(detector: Facts) -> None:
    prepared = PreparedData(data=detector.prepared.data.split("train"), records=(), findings=())
    worst = dense_page(detector.evaluation, detector.model, prepared)["worst"]  # type: ignore[arg-type]
    assert [one["image"] for one in worst] == ["0.png", "4.png", "8.png", "12.png"]
    assert all(one["truth"] is None for one in worst)


def test_hostile_names_are_text(backbone: FrozenBackbone) -> None:
    for given in (boxes(backbone, (HOSTILE, "b|c")), masks(backbone, (HOSTILE, "b|c"))):
        page = Page(render_html(given))
        assert "script" not in page.tags
        assert HOSTILE in page.section("classes")
        assert "<script" not in re.sub(r"\\<", "", render_card(given))


def test_many_classes_stay_bounded(backbone: FrozenBackbone) -> None:
    classes = tuple(f"class-{i}" for i in range(40))
    page = Page(render_html(boxes(backbone, classes, n=3)))
    assert "objects" in page.section("confusion")
    assert "The other 10 classes" in page.section("classes")
    page = Page(render_html(masks(backbone, classes, n=3)))
    assert "The other 10 classes" in page.section("classes")
