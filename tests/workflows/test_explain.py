"""Explain: drawings, page and numbers agree; one unreadable image leaves the others."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from headstart.backbones.frozen import FrozenBackbone
from headstart.cli.app import app
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, HeadstartError, UsageError
from headstart.models.heads.linear import LinearHead
from headstart.models.saving import load, save
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.workflows.explain import explain

SMALL = Preprocess(
    resize=40, crop=32, interpolation="bilinear", mean=(0.45, 0.45, 0.45), std=(0.2, 0.2, 0.2)
)


class Page(HTMLParser):
    """Images and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.images, self.text, self.policy = [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert tag not in {"script", "link", "iframe"}
        if tag == "img":
            self.images.append(unquote(found["src"]))
            assert found["alt"]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    whole = FrozenBackbone.open("embedded/efficientnet_lite0", offline=True)
    backbone = replace(whole, spec=replace(whole.spec, preprocess=SMALL)).until("stage2")
    head = LinearHead.random(backbone.width, 2, seed=0)
    task = ClassificationTask(classes=("cat", "<dog>"))
    folder = tmp_path_factory.mktemp("runs") / "pets"
    save(TransferModel(backbone=backbone, task=task, head=head, engine="fp32"), folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/a.png", "sub/b #1 & <x>.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (50, 80, 3), np.uint8)).save(path)
    return root


def test_page_files_and_numbers_agree(saved, photos, tmp_path):
    rows, bad = explain(saved, photos, out=tmp_path / "maps")
    assert bad == ()
    written = json.loads((tmp_path / "maps" / "explanations.json").read_text())
    assert written == rows
    files = {p.relative_to(tmp_path / "maps").as_posix() for p in (tmp_path / "maps").rglob("*.*")}
    assert files == {"index.html", "explanations.json", *(row["file"] for row in rows)}
    assert len(rows) == 3
    page = Page((tmp_path / "maps" / "index.html").read_text())
    assert page.images == [row["file"] for row in rows]
    assert "http" not in re.sub(r"http-equiv", "", page.text)
    assert page.policy.startswith("default-src 'none'")
    said = load(saved).predict([row["image"] for row in rows], engine="fp32")
    assert [row["prediction"] for row in rows] == [one.label for one in said]
    for row in rows:
        with Image.open(tmp_path / "maps" / row["file"]) as drawn:
            assert drawn.size == (2 * 480 + 8, 300)


def test_the_left_half_is_the_image_as_it_is_shown(saved, photos, tmp_path):
    rows, _ = explain(saved, photos / "a.png", out=tmp_path / "maps")
    with Image.open(tmp_path / "maps" / rows[0]["file"]) as file:
        drawn = np.asarray(file, dtype=float)
    with Image.open(photos / "a.png") as file:
        shown = np.asarray(file.resize((480, 300), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(drawn[:, :480] - shown).mean() < 2


def test_an_image_that_cannot_be_read_is_named_and_the_others_go_on(saved, photos, tmp_path):
    (photos / "broken <b>.jpg").write_bytes(b"no image")
    rows, bad = explain(saved, photos, out=tmp_path / "maps")
    assert len(rows) == 3
    assert len(bad) == 1
    assert "broken <b>.jpg" in bad[0]
    text = Page((tmp_path / "maps" / "index.html").read_text()).text
    assert "broken <b>.jpg" in text
    assert "Unreadable images" in text


def test_where_none_can_be_read_nothing_is_written(saved, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    with pytest.raises(DataError):
        explain(saved, tmp_path / "x.jpg", out=tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_a_folder_with_something_in_it_stays_as_it_is(saved, photos, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="new or empty"):
        explain(saved, photos, out=tmp_path / "maps")
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["mine.txt"]


def run(*arguments):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def test_the_verb_draws_and_exits_with_2_where_an_image_was_left_out(saved, photos, tmp_path):
    good = run(saved, photos, "--out", tmp_path / "one", "--class", "cat")
    assert good.exit_code == 0, good.output
    assert "Drew 3 images" in good.output
    (photos / "z.jpg").write_bytes(b"no image")
    mixed = run(saved, photos, "--out", tmp_path / "two", "--method", "occlusion", "--json")
    assert mixed.exit_code == 2
    told = json.loads(mixed.stdout)
    assert len(told["images"]) == 3
    assert told["images"][0]["method"] == "occlusion"
    assert "z.jpg" in told["unreadable"][0]
    assert "z.jpg" in mixed.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["no-such-model", "."], 2),
        (["MODEL", "no-such-photo.jpg"], 2),
        (["MODEL", "PHOTOS", "--class", "cow"], 1),
        (["MODEL", "PHOTOS", "--method", "lime"], 1),
    ],
)
def test_what_cannot_be_meant_has_the_exit_code_of_its_kind(
    arguments, code, saved, photos, tmp_path
):
    known = {"MODEL": saved, "PHOTOS": photos}
    found = run(*(known.get(one, one) for one in arguments), "--out", tmp_path / "maps")
    assert isinstance(found.exception, HeadstartError)
    assert found.exception.exit_code == code
    assert not (tmp_path / "maps").exists()
