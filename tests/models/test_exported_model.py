"""Exported files: the predictions of the model, also without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import headstart
from headstart.errors import MissingExtraError, ModelFileError, UsageError
from headstart.exports.check_images import check_images
from headstart.models.exported_model import ExportedModel, open_model
from headstart.models.tasks import DetectionTask


def test_predictions_are_those_of_the_model(
    classifier: Any, exported_files: dict[str, Path]
) -> None:
    images = list(check_images((160, 160)).values())
    expected = classifier.predict(images)
    for kind, tolerance in (("image", 0.02), ("batch", 0.001)):
        model = ExportedModel.open(exported_files[kind])
        assert model.task == classifier.task
        actual = model.predict(images)
        rows = [[list(p.probabilities.values()) for p in side] for side in (expected, actual)]
        assert np.abs(np.subtract(*rows)).max() < tolerance
        assert np.ptp(np.array(rows[0]), axis=0).max() > 0.3  # the images differ
        labels = [[(p.label, p.abstains, p.name) for p in side] for side in (expected, actual)]
        confident = [p.probability > 0.6 + tolerance for p in expected]
        pairs = zip(*labels, confident, strict=True)
        assert all(first == second for first, second, is_sure in pairs if is_sure)
        assert model.predict([]) == []


def test_settings_of_other_models_are_refused(exported_files: dict[str, Path]) -> None:
    model = open_model(exported_files["image"])
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    for settings in ({"threshold": 0.5}, {"tile": 64}, {"engine": "bf16"}, {"device": "cuda"}):
        samples = headstart.Sample(image=pixels)
        with pytest.raises(UsageError, match=next(iter(settings))):
            list(model.predict_samples([samples], **settings))
    with pytest.raises(UsageError, match="nms"):
        model.with_selection(nms=0.5)
    assert model.with_selection(nms=None) is model
    with pytest.raises(UsageError, match="for detection"):
        model.require_task(DetectionTask)
    assert "ExportedModel(" in repr(model)


def test_damaged_and_foreign_files(exported_files: dict[str, Path], tmp_path: Path) -> None:
    content = exported_files["batch"].read_bytes()
    foreign = onnx.load_from_string(content)
    del foreign.metadata_props[:]
    files = {
        "cut.onnx": (content[: len(content) // 2], "cannot read it|is damaged"),
        "empty.onnx": (b"", "cannot read it|no description"),
        "page.onnx": (b"<html>", "cannot read it"),
        "foreign.onnx": (foreign.SerializeToString(), "no description of Headstart"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelFileError, match=message):
            open_model(tmp_path / name)
    with pytest.raises(ModelFileError, match="no file"):
        open_model(tmp_path / "missing.onnx")


def test_the_runtime_is_an_extra(
    exported_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"headstart\[onnx\]"):
        open_model(exported_files["image"])


WITHOUT_TORCH = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it fails
from headstart.cli.app import main
for command in {commands!r}:
    sys.argv = ["headstart", *command]
    try:
        main()
    except SystemExit as stop:
        print("exit", stop.code)
"""
BLOCKED = ("torch", "torchvision", "timm", "accelerate", "segmentation_models_pytorch", "sklearn")
BLOCKED += ("safetensors", "huggingface_hub", "matplotlib", "openvino", "onnx", "onnxscript")


def test_the_command_line_needs_no_torch(exported_files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("cat", "d\u00f6g"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels // (1 + len(name) % 2)).save(
                tmp_path / "photos" / name / f"{i}{name[0]}.png"
            )
    file = str(exported_files["image"])
    commands = [["predict", file, "photos", "--format", "csv"], ["evaluate", file, "photos"]]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(blocked=BLOCKED, commands=commands)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(headstart.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "image,label,probability,abstains,cat" in done.stdout
    assert "Test accuracy" in done.stdout
    assert done.stdout.count("exit 0") == 2
