"""The verb export: where it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headstart
from headstart.errors import DataError, ExportError, ModelFileError, SetupError, UsageError
from headstart.models.exported_model import ExportedModel
from headstart.workflows import export as verb

pytestmark = pytest.mark.usefixtures("quick_export")


def test_the_file_and_its_certificate(classifier: Any, tmp_path: Path) -> None:
    classifier.save(tmp_path / "run")
    extra = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    exported = headstart.export(tmp_path / "run", images=[extra])
    assert exported.path == tmp_path / "run" / "model.onnx"
    certificate = json.loads((tmp_path / "run" / "model.onnx.certificate.json").read_text())
    assert certificate == exported.certificate.as_dict()
    assert certificate["agrees"]
    assert certificate["runtime"].startswith("ONNX Runtime ")
    assert len(certificate["images"]) == 16
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if p.name[0] != "m") == []
    description = ExportedModel.open(exported.path).description
    assert description["licence"] == classifier.backbone.spec.licence
    assert description["classes"] == list(classifier.task.classes)
    assert len(description["weights_hash"]) == 64
    assert headstart.load(tmp_path / "run").task == classifier.task  # the folder still loads
    with pytest.raises(UsageError, match="exists already"):
        headstart.export(tmp_path / "run")


def test_disagreement_keeps_no_file(
    classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verb.TOLERANCES, "image", 1e-12)
    with pytest.raises(ExportError, match="disagrees with the model") as caught:
        classifier.export(out=tmp_path / "m.onnx")
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(classifier: Any, tmp_path: Path) -> None:
    for settings, message in (
        ({"to": "tflite"}, "Unknown format: 'tflite'"),
        ({"input": "video"}, "Unknown input: 'video'"),
        ({"to": "openvino", "input": "image"}, "--to openvino cannot hold the preprocessing"),
        ({"out": tmp_path / "m.bin"}, r"must end with .onnx.*m.onnx"),
        ({"out": tmp_path / "no" / "m.onnx"}, "does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            headstart.export(classifier, **settings)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError, match=r"broken.jpg"):
        headstart.export(classifier, out=tmp_path / "m.onnx", images=tmp_path / "broken.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.jpg"]


def test_a_full_disk_is_named(
    classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verb, "write_whole", full)
    with pytest.raises(SetupError, match="No space left"):
        classifier.export(out=tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["openvino", "pt2"])
def test_other_formats(classifier: Any, tmp_path: Path, to: str) -> None:
    if to == "openvino":
        pytest.importorskip("openvino")
    path = tmp_path / f"m{verb.FORMATS[to][-1]}"
    exported = classifier.export(to, out=path)
    names = sorted(
        [*(f"m{ending}" for ending in verb.FORMATS[to]), f"{path.name}.certificate.json"]
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert exported.certificate.largest_difference < 1e-4
    assert exported.certificate.runtime.split()[0] == {"openvino": "OpenVINO", "pt2": "PyTorch"}[to]
    assert exported.files[0] == path
    written = [file for file in tmp_path.iterdir() if file != exported.certificate_path]
    assert sorted(exported.files) == sorted(written)
    assert exported.as_dict()["bytes"] == sum(file.stat().st_size for file in written)
    if to == "pt2":
        with pytest.raises(UsageError, match="may run code"):
            headstart.predict(path, np.zeros((8, 8, 3), np.uint8))
        return
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (expected,), (actual,) = classifier.predict(pixels), headstart.predict(path, pixels)
    assert actual.label == expected.label
    assert actual.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    with pytest.raises(UsageError, match=r"m\.(xml|bin) exists already"):
        classifier.export(to, out=path)
    path.write_text("<net>")
    with pytest.raises(ModelFileError, match="OpenVINO cannot read it"):
        headstart.predict(path, pixels)
