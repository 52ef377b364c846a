"""A served model predicts as `headstart predict`, whatever else is in the batch."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import headstart
from headstart.cache import Cache
from headstart.data.readers import read_dataset
from headstart.errors import UnreadableImageError, UsageError
from headstart.models.build import create_model
from headstart.models.exported_model import ExportedModel
from headstart.models.prediction_files import as_json
from headstart.serving.predictor import Predictor
from headstart.serving.requests import MOST_PIXELS, Limits
from headstart.serving.server import Settings, build_app


def encode(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Images of odd sizes and modes, one rotated by EXIF."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    return {
        "a.png": encode(drawn),
        "exif.jpg": encode(drawn, "JPEG", exif=exif),
        "grey.png": encode(drawn[..., 0]),
        "thin.png": encode(drawn[:1]),
        "clear.png": encode(np.dstack([drawn, drawn[..., 0]])),
    }


@pytest.mark.parametrize("kind", ["model", "image", "batch"])
def test_answers_are_those_of_predict(
    classifier: Any, exported_files: Any, files: dict[str, bytes], kind: str, tmp_path: Path
) -> None:
    model = classifier if kind == "model" else ExportedModel.open(exported_files[kind])
    predictor = Predictor.of(model, cache=Cache(), max_pixels=10**6)
    samples = [predictor.sample(name, content) for name, content in files.items()]
    together = as_json(predictor(samples), model.task.classes)
    for row, (name, content) in zip(together, files.items(), strict=True):
        (tmp_path / name).write_bytes(content)
        alone = headstart.predict(model, tmp_path / name)
        expected = {**as_json(alone, model.task.classes)[0], "name": name}
        if kind == "batch":  # ONNX Runtime's last digits may depend on the batch
            assert row["probabilities"] == pytest.approx(expected.pop("probabilities"), abs=1e-5)
            assert row["label"] == expected["label"]
        else:
            assert row == expected


@pytest.mark.parametrize("head", ["ssdlite", "fpn"])
def test_boxes_and_masks_are_those_of_predict(
    classifier: Any, files: dict[str, bytes], head: str
) -> None:
    demo = {"ssdlite": "demo:boxes", "fpn": "demo:masks"}[head]
    data = read_dataset(demo).subset(range(2))
    model = create_model(classifier.backbone, data, head=head, size=64, seed=1)
    predictor = Predictor.of(model, cache=Cache(), max_pixels=10**6)
    samples = [predictor.sample(name, content) for name, content in files.items()]
    expected = headstart.predict(model, [sample.image for sample in samples])
    for answer, alone in zip(predictor(samples), expected, strict=True):
        row, other = (as_json([one], model.task.classes)[0] for one in (answer, alone))
        assert row == {**other, "image": row["image"]}
    assert all(row.name == name for row, name in zip(predictor(samples), files, strict=True))


def test_a_damaged_image_does_not_affect_the_others(
    classifier: Any, files: dict[str, bytes]
) -> None:
    predictor = Predictor.of(classifier, cache=Cache(), max_pixels=6300)
    first = predictor.sample("a.png", files["a.png"])
    large = predictor.sample("l.png", encode(np.zeros((80, 80), np.uint8)))
    broken = predictor.sample("b.png", files["a.png"][:200])
    answers = predictor([broken, first, large])
    assert answers[1] == predictor([first])[0]
    assert isinstance(answers[0], UnreadableImageError)
    assert "b.png: Expected the data to be a readable image, got damaged data" in str(answers[0])
    assert "80 x 80 pixels, which is above the limit of 6300" in str(answers[2])
    assert predictor([]) == []


def test_an_unfitted_model_is_refused(classifier: Any) -> None:
    unfitted = headstart.TransferModel(backbone=classifier.backbone, task=classifier.task)
    with pytest.raises(UsageError, match="not fitted"):
        Predictor.of(unfitted, cache=Cache(), max_pixels=100)


def test_limits_of_pixels(classifier: Any, tmp_path: Path) -> None:
    small = replace(classifier, record={"image_options": {"max_pixels": 50}})
    assert Predictor.of(small, cache=Cache()).options.max_pixels == 50
    assert Predictor.of(small, cache=Cache(), max_pixels=100).options.max_pixels == 100
    for model, name in ((small, "small"), (classifier, "large")):
        model.save(tmp_path / name)
    paths = {name: tmp_path / name for name in ("small", "large")}
    for given, expected in ((None, [50, MOST_PIXELS]), (10**9, [10**9, 10**9])):
        app = build_app(paths, Settings(), Limits(max_pixels=given), cache=Cache())
        with TestClient(app) as client:
            assert [one["max_pixels"] for one in client.get("/models").json()] == expected
