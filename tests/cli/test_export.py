"""The command export, and predict and evaluate with its file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.cli import app as cli
from headstart.workflows import export as verb


def _typed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str, str]:
    """Exit code, standard output and standard error of one command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headstart", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    printed = capsys.readouterr()
    return stop.value.code, printed.out, " ".join(printed.err.split())


@pytest.fixture
def folder(classifier: Any, quick_export: None, tmp_path: Path) -> Path:
    classifier.save(tmp_path / "run")
    rng = np.random.default_rng(0)
    for name in ("cat", "d\u00f6g"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (40 + 9 * i, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path


def test_export_then_predict_and_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _typed(capsys, "export", folder / "run")
    assert code == 0
    assert "same label for 15 of 15 images" in " ".join(out.split())
    file = folder / "run" / "model.onnx"
    for command, words in (("predict", ["--format", "json"]), ("evaluate", ["--json"])):
        documents = [
            _typed(capsys, command, model, folder / "photos", *words)
            for model in (folder / "run", file)
        ]
        assert [code for code, _, _ in documents] == [0, 0]
        first, second = (json.loads(text) for _, text, _ in documents)
        assert type(first) is type(second)
        if command == "predict":
            assert [list(row) for row in first] == [list(row) for row in second]
            assert [row["label"] for row in first] == [row["label"] for row in second]
        else:
            assert list(first) == list(second)
            accuracies = [one["metrics"]["accuracy"]["value"] for one in (first, second)]
            assert accuracies[0] == accuracies[1]


def test_disagreement_ends_with_2(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verb.TOLERANCES, "batch", 1e-15)
    code, out, err = _typed(capsys, "export", folder / "run", "--input", "batch", "--json")
    assert (code, out) == (2, "")
    assert "disagrees with the model" in err
    assert sorted(p.name for p in (folder / "run").iterdir()) == ["model.json", "model.safetensors"]


def test_a_report_needs_the_model_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = _typed(capsys, "evaluate", tmp_path / "m.onnx", tmp_path, "--out", "r")
    assert (code, "pass the model folder" in err) == (1, True)
