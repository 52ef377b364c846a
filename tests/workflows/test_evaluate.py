"""Evaluate a model or a folder, on a folder of images or on a dataset."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.cache import Cache
from headstart.data.readers import read_dataset
from headstart.errors import LeakError, UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.workflows.evaluate import evaluate, evaluate_model

CHANGES = ("mirrored", "rotated")


def draw(folder, number, seed):
    """Dark and bright noise: two classes that any backbone separates."""
    rng = np.random.default_rng(seed)
    for name, low in (("dark", 0), ("bright", 190)):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(low, low + 60, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("data") / "photos", 10, 0)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("data") / "others", 6, 1)


@pytest.fixture(scope="module")
def run(photos, cache, tmp_path_factory):
    """Settings by name, as on the command line."""
    return headstart.fit(
        photos,
        out=tmp_path_factory.mktemp("runs") / "first",
        cache=cache,
        method="linear-probe",
        folds=3,
        engine="fp32",
        device="cpu",
    )


def test_settings_by_name_reach_the_run(run):
    assert run.recipe.method == headstart.LinearProbe(folds=3)
    assert (run.recipe.engine, run.recipe.device) == ("fp32", "cpu")
    assert run.report.read_text(encoding="utf-8").startswith("<!")


def test_a_model_and_its_folder_are_evaluated_as_by_the_command(run, others, cache):
    wanted = evaluate_model(run.folder, others, cache=cache, device="cpu").evaluation.as_dict()
    assert wanted["images"] == 12
    for model in (run.model, run.folder, str(run.folder)):
        found = headstart.evaluate(model, others, cache=cache, device="cpu")
        assert found.as_dict() == wanted


def test_a_dataset_and_an_extractor_are_used_as_they_are(run, others, cache):
    extractor = Extractor(cache=cache, engine="fp32", device="cpu")
    data = read_dataset(others)
    found = evaluate(run.model, data, extractor=extractor, train=run.prepared.train)
    assert [baseline.name for baseline in found.baselines]
    assert evaluate(run.folder, data, extractor=extractor).metrics == found.metrics


def test_training_images_are_refused(run, photos, cache):
    with pytest.raises(LeakError, match="trained on"):
        evaluate(run.model, photos, cache=cache, device="cpu")
    found = evaluate(run.model, photos, cache=cache, device="cpu", allow_overlap=True)
    assert len(found.names) == 20


def test_wrong_arguments_are_refused(run, others, cache):
    extractor = Extractor(cache=cache, engine="fp32", device="cpu")
    with pytest.raises(UnknownNameError, match="Did you mean 'device'"):
        evaluate(run.model, others, devise="cpu")
    with pytest.raises(UsageError, match="needs `extractor`"):
        evaluate(run.model, others, train=run.prepared.train)
    with pytest.raises(UsageError, match="`extractor` needs a Dataset"):
        evaluate(run.model, others, extractor=extractor)
    with pytest.raises(UsageError, match="group_by"):
        evaluate(run.model, read_dataset(others), extractor=extractor, group_by="x")


def test_copies_of_training_images_are_a_warning(cache, tmp_path):
    rng = np.random.default_rng(0)

    def put(path, blocks):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(blocks, np.ones((12, 12), np.uint8))).save(path)

    for name, low in (("dark", 0), ("bright", 120)):
        scenes = rng.integers(low, low + 130, (24, 8, 8), dtype=np.uint8)
        for i, scene in enumerate(scenes[:20]):
            put(tmp_path / "photos" / name / f"{'abcdefghijklmnopqrst'[i]}.png", scene)
        put(tmp_path / "others" / name / "mirrored.png", scenes[3][:, ::-1])
        put(tmp_path / "others" / name / "rotated.png", scenes[4].T)
        for i in range(20, 24):
            put(tmp_path / "others" / name / f"new {i}.png", scenes[i])
    settings = {"method": "linear-probe", "folds": 3, "engine": "fp32", "test_fraction": 0.1}
    run = headstart.fit(tmp_path / "photos", out=tmp_path / "run", cache=cache, **settings)
    descriptors = run.model.record["training_descriptors"]
    assert len(descriptors) == 84 * len(run.model.record["learned_from"])
    assert "training_descriptors" not in (tmp_path / "run" / "report.json").read_text()
    evaluated = evaluate_model(run.model, tmp_path / "others", cache=cache)
    expected = {f"{name}/{change}.png" for name in ("dark", "bright") for change in CHANGES}
    (finding,) = evaluated.prepared.findings
    found = {"/".join(Path(path).parts[-2:]) for path in finding.paths}
    assert found <= expected
    assert len(found) >= 3  # one of them may be a test image
    assert finding.message.startswith(f"{len(found)} of 12 images are nearly the same as training")
    assert (finding.kind, finding.severity) == ("near-duplicate", "warning")
    shown = headstart.evaluate(run.model, tmp_path / "others", cache=cache, progress=False)
    assert shown.findings == (finding,)
    assert f"warning: {finding.message}" in repr(shown)
    assert f"<p>warning: {finding.message}</p>" in shown._repr_html_()
    older = replace(run.model, record={**run.model.record, "training_descriptors": ""})
    assert evaluate_model(older, tmp_path / "others", cache=cache).prepared.findings == ()


def test_images_of_another_domain_name_the_command_that_adapts(cache, tmp_path):
    rng = np.random.default_rng(5)
    photos, same = draw(tmp_path / "photos", 25, 2), draw(tmp_path / "same", 6, 3)
    bars = tmp_path / "striped images"
    for name, low in (("dark", 0), ("bright", 150)):
        (bars / name).mkdir(parents=True)
        for i in range(8):
            rows = (
                low + 100 * (np.arange(40)[:, None] // (3 + i) % 2) + rng.integers(0, 5, (40, 40))
            )
            pixels = np.stack([rows, rows // 2, np.zeros_like(rows)], axis=2).astype(np.uint8)
            Image.fromarray(pixels).save(bars / name / f"{i}.png")
    settings = {"method": "linear-probe", "folds": 3, "engine": "fp32", "test_fraction": 0.2}
    run = headstart.fit(photos, out=tmp_path / "run", cache=cache, device="cpu", **settings)
    assert evaluate_model(run.folder, same, cache=cache, device="cpu").prepared.findings == ()
    evaluated = evaluate_model(run.folder, bars, cache=cache, device="cpu")
    (finding,) = evaluated.prepared.findings
    assert (finding.kind, finding.severity) == ("other-domain", "warning")
    assert finding.message.startswith("100 % of the 16 images are unlike the training images")
    assert finding.message.endswith(f"headstart adapt {run.folder} --target '{bars}'")
    data = read_dataset(bars)
    (finding,) = evaluate_model(run.model, data, cache=cache, device="cpu").prepared.findings
    assert finding.message.endswith("headstart adapt MODEL --target FOLDER")
    assert "domain_reference" not in (run.folder / "report.json").read_text()
