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
