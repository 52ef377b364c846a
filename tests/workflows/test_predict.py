"""Predictions from Python: the values and the files of the command."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import headstart
from headstart.cache import Cache
from headstart.cli.app import app
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.models.inference import Detections
from headstart.models.transfer_model import Prediction, TransferModel
from headstart.workflows.predict import PredictedImages, predict_images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of dark and bright images, with the images."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 190)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(low, low + 60, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")
    run = headstart.fit(
        folder / "photos", method="linear-probe", out=folder / "run", offline=True, progress=False
    )
    return SimpleNamespace(model=run.model, run=folder / "run", photos=folder / "photos")


def test_files_and_values_are_those_of_the_command(saved, tmp_path) -> None:
    words = ("predict", saved.run, saved.photos)
    found = headstart.predict(saved.run, saved.photos, format="csv", out=tmp_path / "python")
    again = saved.model.predict(saved.photos, format="json", out=str(tmp_path / "model"))
    plain = saved.model.predict(saved.photos)
    assert [prediction.label for prediction in plain] == ["bright"] * 6 + ["dark"] * 6
    assert found == again == plain
    out = tmp_path / "command"
    result = CliRunner().invoke(app, [*map(str, words), "--format", "csv", "--out", str(out)])
    assert result.exit_code == 0
    text = (out / "predictions.csv").read_text()
    assert (tmp_path / "python" / "predictions.csv").read_text() == text
    assert len(list(csv.DictReader(text.splitlines()))) == 12
    rows = json.loads((tmp_path / "model" / "predictions.json").read_text())
    assert rows == json.loads(CliRunner().invoke(app, [*map(str, words), "--json"]).stdout)
    with pytest.raises(UsageError, match="new or empty"):
        headstart.predict(saved.model, saved.photos, format="csv", out=out)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"format": "csv"}, UsageError, r"`format` is 'csv'.* but `out` is None. Pass out='found'"),
        ({"format": "jsn"}, UnknownNameError, r"'jsn'. Did you mean 'json'"),
        ({"format": "coco"}, UnknownNameError, r"format for classification: 'coco'"),
        ({"out": "found"}, UsageError, r"--out is 'found', but a table .* one of json, csv"),
        ({"ids": "a.json"}, UsageError, r"--ids needs the format coco, got 'table'"),
        ({"threshold": 0.5}, UsageError, r"threshold=0.5 cannot be used with a multiclass"),
        ({"nms": 0.5}, UsageError, r"`nms`=0.5 cannot be used"),
        ({"bad_files": "keep"}, UsageError, r"'keep'"),
        ({"outt": "x"}, UnknownNameError, r"setting: 'outt'. Did you mean 'out'"),
        ({"cache": 3}, UsageError, r"`cache` must be"),
    ],
)
def test_wrong_settings_are_refused(saved, settings, error, message) -> None:
    for call in (saved.model.predict, lambda *a, **k: headstart.predict(saved.run, *a, **k)):
        with pytest.raises(error, match=message):
            call(saved.photos, **settings)


def test_the_command_refuses_a_folder_for_a_table(saved, tmp_path) -> None:
    words = ["predict", str(saved.run), str(saved.photos), "--out", str(tmp_path / "x")]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, UsageError)
    assert "remove --out" in str(error)
    assert not (tmp_path / "x").exists()


def test_unreadable_images_stop_or_are_left_out(saved, tmp_path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "good.png").write_bytes((saved.photos / "dark" / "0.png").read_bytes())
    with pytest.raises(DataError, match=r"bad\.png"):
        headstart.predict(saved.model, tmp_path)
    found = headstart.predict(saved.model, tmp_path, bad_files="skip", cache=False)
    assert [prediction.label for prediction in found] == ["dark"]


def test_formats_that_are_always_files_have_a_folder(saved, monkeypatch, tmp_path) -> None:
    """Boxes as COCO results: in `predictions`, with the ids of a file, and returned as well."""
    ids = {"images": [{"id": 7, "file_name": "0.png"}], "categories": [{"id": 3, "name": "dark"}]}
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    image = saved.photos / "dark" / "0.png"
    boxes = Detections(
        name=str(image),
        size=(40, 40),
        boxes=np.array([[1, 2, 5, 8]], np.float32),
        scores=np.array([0.75], np.float32),
        labels=np.array([0]),
    )
    task = SimpleNamespace(name="detection", classes=("dark",), kind="detection")
    detector = SimpleNamespace(
        task=task,
        image_options=saved.model.image_options,
        with_selection=lambda **_: detector,
        predict_samples=lambda samples, **_: iter([boxes] * len(samples)),
    )
    monkeypatch.setattr("headstart.workflows.predict.open_model", lambda _: detector)
    monkeypatch.chdir(tmp_path)
    found = headstart.predict("model", image, format="coco", ids=tmp_path / "ids.json")
    assert found == [boxes]
    (result,) = json.loads((tmp_path / "predictions" / "results.json").read_text())
    assert (result["image_id"], result["category_id"], result["bbox"]) == (7, 3, [1, 2, 4, 6])


def test_predictions_are_computed_when_they_are_read(saved, tmp_path) -> None:
    with Cache(tmp_path / "cache") as cache:
        found = predict_images(saved.model, saved.photos, cache=cache)
        assert isinstance(found, PredictedImages)
        assert (len(found.samples), found.folder, found.classes) == (12, None, ("bright", "dark"))
        found.write()  # nothing to write
        assert isinstance(next(found.predictions), Prediction)
    assert isinstance(saved.model, TransferModel)


def test_frames_that_are_left_out_are_reported(saved, tmp_path) -> None:
    """The text goes to the other channel, so that JSON and CSV stay whole."""
    pages = [Image.new("RGB", (40, 40), (value,) * 3) for value in (5, 90, 200)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.tif")
    for flags in ([], ["--json"], ["--format", "csv"]):
        words = ["predict", str(saved.run), str(tmp_path), *flags]
        result = CliRunner().invoke(app, words)
        assert "1 files have several pages or frames" in " ".join(result.stderr.split())
        assert "2 are left out" in " ".join(result.stderr.split())
        assert "left out" not in result.stdout
    assert len(json.loads(CliRunner().invoke(app, [*words[:3], "--json"]).stdout)) == 2
    found = predict_images(saved.model, tmp_path / "pages.tif", cache=Cache())
    assert [finding.kind for finding in found.findings] == ["several-frames"]
    assert not predict_images(saved.model, tmp_path / "one.tif", cache=Cache()).findings
