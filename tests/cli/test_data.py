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
