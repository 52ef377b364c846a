"""Commands of ``headstart data`` as they are typed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.cli import app as cli


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headstart", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    captured = capsys.readouterr()
    return stop.value.code, captured.out, " ".join(captured.err.split())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_view_writes_a_page_and_says_where(photos, tmp_path, capsys):
    page = tmp_path / "page.html"
    code, out, _ = run(capsys, "data", "view", photos, "--out", page, "--open")
    assert code == 0
    assert f"Wrote {page}" in " ".join(out.split())
    assert "headstart data view" in page.read_text("utf-8")  # the command is on the page
    code, _, err = run(capsys, "data", "view", photos, "--out", page)
    assert code == 1
    assert "exists already" in err


def test_view_prints_one_json_document(photos, tmp_path, capsys):
    page = tmp_path / "page.html"
    code, out, _ = run(capsys, "data", "view", photos, "--out", page, "--json")
    assert code == 0
    assert json.loads(out) == {"page": str(page), "images": 6}


def test_convert_prints_what_is_not_kept_and_where(photos, tmp_path, capsys):
    out = tmp_path / "out"
    grouped = ("--group-by", r"(\d)\.png")
    code, text, err = run(capsys, "data", "convert", photos, out, "--to", "folders", *grouped)
    assert (code, err) == (0, "")
    text = " ".join(text.split())
    assert text.index("Not kept: 3 groups") < text.index("Wrote 6 images")
    assert sorted(path.name for path in out.iterdir()) == ["cat", "dog"]
    code, _, err = run(capsys, "data", "convert", photos, out, "--to", "folders")
    assert code == 1
    assert "nothing is overwritten. Pass a new folder." in err
    code, _, err = run(capsys, "data", "convert", photos, tmp_path / "b", "--to", "yolo")
    assert code == 1
    assert "cannot hold one class per image. Pass --to folders or --to parquet." in err


def test_convert_prints_one_json_document(photos, tmp_path, capsys):
    out = tmp_path / "out"
    code, text, _ = run(capsys, "data", "convert", photos, out, "--to", "parquet", "--json")
    expected = {"folder": str(out), "format": "parquet", "images": 6, "not_kept": []}
    assert (code, json.loads(text)) == (0, expected)


@pytest.fixture
def outlines(tmp_path: Path) -> Path:
    """COCO annotations with polygons: boxes, or masks with --task segmentation."""
    folder = tmp_path / "coco"
    folder.mkdir()
    images, objects = [], []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 40, "height": 40})
        polygon = [5, 5, 25, 5, 25, 25, 5, 25]
        entry = {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20]}
        objects.append(entry | {"segmentation": [polygon], "area": 400, "iscrowd": 0})
    document = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("flags", "kind"), [((), "detection"), (("--task", "segmentation"), "segmentation")]
)
def test_check_and_view_read_the_labels_for_a_task(outlines, tmp_path, capsys, flags, kind):
    code, text, _ = run(capsys, "data", "check", outlines, *flags)
    assert code == 0
    assert kind in text
    page = tmp_path / "page.html"
    code, _, err = run(capsys, "data", "view", outlines, "--out", page, *flags)
    assert (code, err) == (0, "")
    assert kind in page.read_text("utf-8")


@pytest.mark.parametrize("verb", ["check", "view"])
def test_an_unknown_task_is_named(photos, capsys, verb):
    code, _, err = run(capsys, "data", verb, photos, "--task", "boxes")
    assert code == 1
    assert "Unknown task: 'boxes'" in err
