"""Export with 8-bit integers: which images are used, the gate, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headstart
from headstart.data.demo.drawings import photos
from headstart.errors import DataError, ExportError, UsageError
from headstart.exports.int8_graph import CalibratedGraph
from headstart.metrics.confidence_intervals import paired_proportion_difference, wilson_interval
from headstart.workflows import quantise
from headstart.workflows.evaluate import short_digest
from headstart.workflows.quantise import Int8Check, choose_images

pytestmark = pytest.mark.usefixtures("quick_export")


@pytest.fixture(scope="module")
def folder(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pieces of photographs, 8 in each class."""
    root = tmp_path_factory.mktemp("int8") / "pieces"
    for number in range(24):
        place = root / classifier.task.classes[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        image = photos()[number % 2].crop((20 * number, 0, 20 * number + 90, 90))
        image.save(place / f"{number}.png")
    return root


def _check(before: int, after: int, n: int = 200) -> Int8Check:
    a, b = np.arange(n) < after, np.arange(n) < before
    return Int8Check(
        before=wilson_interval(before, n),
        after=wilson_interval(after, n),
        change=paired_proportion_difference(a, b),
        label_agreement=1 - abs(before - after) / n,
        images=n,
        calibration_images=64,
    )


def test_only_a_significant_loss_of_more_than_a_point_is_refused() -> None:
    losses = {after: _check(180, after).loses for after in (190, 180, 179, 177, 170, 100)}
    assert losses == {190: False, 180: False, 179: False, 177: False, 170: True, 100: True}
    assert not _check(1800, 1791, 2000).loses  # significant, but half a point
    assert "too few to exclude a loss" in _check(180, 179).sentences()[-1]
    assert len(_check(9000, 9000, 10000).sentences()) == 1
    assert "same label for 190 of 200" in _check(180, 170).sentences()[0]


def test_training_images_calibrate_and_the_others_compare(classifier: Any, folder: Path) -> None:
    unknown = choose_images(classifier, folder)
    assert len(unknown.calibration) == len(unknown.test) == 12
    assert set(np.bincount(unknown.calibration.targets()).tolist()) == {4}
    names = {sample.name for sample in unknown.calibration.samples}
    assert not names & {sample.name for sample in unknown.test.samples}
    digests = [short_digest(sample) for sample in unknown.calibration.samples]
    trained = replace(classifier, record={"learned_from": digests})
    known = choose_images(trained, folder)
    assert {sample.name for sample in known.calibration.samples} == names
    assert len(known.test) == 12
    both = [*digests, *(short_digest(sample) for sample in known.test.samples)]
    with pytest.raises(DataError, match="All 24 images of --int8"):
        choose_images(replace(classifier, record={"learned_from": both}), folder)


def test_the_file_and_its_own_rule(classifier: Any, folder: Path, tmp_path: Path) -> None:
    exported = headstart.export(classifier, out=tmp_path / "m.onnx", int8=folder, allow_loss=True)
    plain = headstart.export(classifier, out=tmp_path / "plain.onnx")
    assert exported.size < plain.size
    record = json.loads(exported.certificate_path.read_text())
    assert record["agrees"]  # the preprocessing and the float32 graph
    assert "more than 1 point" in record["int8"]["rule"]
    assert record["int8"]["images"] == 12
    assert exported.as_dict()["int8"] == record["int8"]
    # The numbers are those of the written file.
    test = choose_images(classifier, folder).test
    files = [headstart.ExportedModel.open(path) for path in (exported.path, plain.path)]
    labels = [[one.label for one in file.predict_samples(test.samples)] for file in files]
    truths = [sample.target for sample in test.samples]
    assert record["int8"]["accuracy_int8"]["value"] == pytest.approx(
        np.mean([a == b for a, b in zip(labels[0], truths, strict=True)])
    )
    assert record["int8"]["label_agreement"] == pytest.approx(
        np.mean([a == b for a, b in zip(*labels, strict=True)])
    )


def test_sensitive_layers_stay_in_float(
    classifier: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = quantise._compare
    needed = 2

    def bad_until(*arguments: Any) -> Int8Check:
        check, n = compare(*arguments), len(arguments[-1])
        return replace(_check(180, 180 if n >= needed else 100), float_layers=check.float_layers)

    monkeypatch.setattr(quantise, "_compare", bad_until)
    monkeypatch.setattr(CalibratedGraph, "rank_layers", lambda self, _: list(self.layers)[:12])
    exported = headstart.export(classifier, out=tmp_path / "m.onnx", int8=folder)
    assert exported.int8 is not None
    assert len(exported.int8.float_layers) == needed
    assert "2 sensitive layers stay in float32: " in exported.int8.sentences()[1]
    needed = 1000
    with pytest.raises(ExportError, match=r"lose more than 1 point.*--allow-loss") as caught:
        headstart.export(classifier, out=tmp_path / "bad.onnx", int8=folder)
    assert caught.value.exit_code == 2
    accepted = headstart.export(classifier, out=tmp_path / "bad.onnx", int8=folder, allow_loss=True)
    assert accepted.int8 is not None
    assert accepted.int8.loses
    assert accepted.int8.float_layers == ()


def test_wrong_arguments(classifier: Any, folder: Path, tmp_path: Path) -> None:
    several = replace(
        classifier, task=replace(classifier.task, kind="multilabel", max_risk=None, selected=None)
    )
    for model, settings, message in (
        (classifier, {"to": "openvino", "int8": folder}, "Pass --to onnx"),
        (classifier, {"allow_loss": True}, "Pass --int8 IMAGES"),
        (several, {"int8": folder}, "got a multilabel model"),
    ):
        suffix = ".xml" if settings.get("to") else ".onnx"
        with pytest.raises(UsageError, match=message):
            headstart.export(model, out=tmp_path / f"m{suffix}", **settings)
    assert list(tmp_path.iterdir()) == []


def test_bench_needs_the_images(classifier: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--int8 is missing"):
        headstart.bench(tmp_path, formats="torch,onnx-int8")
    with pytest.raises(UsageError, match="--int8 is given"):
        headstart.bench(tmp_path, formats="torch", int8=folder)
    classifier.save(tmp_path / "run")
    result = headstart.bench(
        tmp_path / "run", formats="onnx-int8", int8=folder, images=20, cache=False
    )
    assert [row.format for row in result.rows] == ["onnx-int8"]
    stored = (tmp_path / "run" / "model.safetensors").stat().st_size
    assert 0 < result.rows[0].size < stored
