"""Distill: two runs on the same images, the gain with its interval, and the refusals."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import headstart
from headstart.cli.app import app
from headstart.data.demo.classification import write
from headstart.errors import UsageError

STUDENT = "embedded/efficientnet_lite0?crop=64&resize=72"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    write("digits", folder)
    for one in sorted(folder.rglob("*.png")):
        if int(one.stem[2:]) % 10:
            one.unlink()
    return folder


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "teacher"
    return headstart.fit(str(data), method="linear-probe", out=out, offline=True).folder


def test_both_students_are_runs_and_the_gain_is_paired(data, teacher, tmp_path):
    found = headstart.distill(
        teacher, str(data), STUDENT, train_from="last:1", epochs=1, out=tmp_path / "s", offline=True
    )
    assert (found.run.folder, found.alone.folder) == (tmp_path / "s", tmp_path / "s-alone")
    test = found.run.prepared.test
    correct = [
        run.evaluation.predicted == run.evaluation.targets for run in (found.run, found.alone)
    ]
    assert found.gain.value == pytest.approx(np.mean(correct[0]) - np.mean(correct[1]))
    model = headstart.load(teacher)
    predictions = model.predict([sample.image for sample in test.samples])
    right = [
        one.label == sample.target for one, sample in zip(predictions, test.samples, strict=True)
    ]
    assert found.teacher.value == pytest.approx(np.mean(right))
    record = headstart.load(found.run.folder).record["method"]["distillation"]
    assert (record["teacher"], record["teacher_loss"]) == (str(teacher), "kd")
    assert headstart.load(found.alone.folder).record["method"]["distillation"]["teacher"] == ""
    stored = json.loads((found.run.folder / "distill.json").read_text())
    assert stored["sentences"] == list(found.sentences)
    assert found.n_seen == 0  # the same split
    assert "significant" in found.sentences[1]
    assert "teacher" in found.sentences[0]


@pytest.mark.parametrize("name", ["method", "backbone", "budget", "resume"])
def test_settings_that_distill_fixes_are_refused(name, teacher, data):
    with pytest.raises(UsageError, match=name):
        headstart.distill(teacher, str(data), **{name: "1"})


def test_the_command_refuses_other_classes_before_training(teacher, tmp_path):
    given = ["distill", str(teacher), "demo:symbols", "--student", STUDENT, "--out", tmp_path / "x"]
    result = CliRunner().invoke(app, [*map(str, given), "--offline"])
    assert "does not know the classes" in str(result.exception)
    assert not (tmp_path / "x").exists()


def test_a_teacher_that_has_seen_the_test_images_is_named(data, teacher, tmp_path):
    settings = {"train_from": "head", "epochs": 1, "offline": True, "seed": 1}
    found = headstart.distill(teacher, str(data), STUDENT, out=tmp_path / "s", **settings)
    assert 0 < found.n_seen <= len(found.run.prepared.test)
    assert f"trained on {found.n_seen} of these images" in found.sentences[-1]
