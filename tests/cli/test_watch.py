"""The command watch: one line of JSON for each image, and its ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from headstart.cli.app import app
from headstart.workflows import watch as verb


@pytest.fixture
def folder(classifier: Any, tmp_path: Path) -> Path:
    classifier.save(tmp_path / "run")
    (tmp_path / "in").mkdir()
    for number in range(2):
        pixels = np.full((30, 40, 3), 90 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    return tmp_path


def test_lines_of_json_until_nothing_comes(folder: Path) -> None:
    words = ["watch", str(folder / "run"), str(folder / "in"), "--every", "0.01", "--idle", "0.05"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(row["name"]).name for row in rows] == ["0.png", "1.png"]
    assert result.stderr.strip() == "Stopped after 2 images."


def test_ctrl_c_is_the_usual_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb.time, "sleep", interrupt)
    result = CliRunner().invoke(app, ["watch", str(folder / "run"), str(folder / "in")])
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.strip() == "Stopped after 0 images."
