"""The main job on images in memory is the main job on the same images in a folder."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from headstart import ImageClassifier, ImageSegmenter, ObjectDetector
from headstart.cache import Cache
from headstart.data.images import decode
from headstart.data.readers import read_dataset
from headstart.errors import LeakError, UnknownNameError, UsageError
from headstart.methods.linear_probe import LinearProbe
from headstart.models.saving import load
from headstart.workflows.compare import compare
from headstart.workflows.comparison_recipe import ComparisonRecipe
from headstart.workflows.evaluate import evaluate
from headstart.workflows.fit import fit
from headstart.workflows.plan import plan
from headstart.workflows.rank import rank
from headstart.workflows.recipe import Recipe

FP32 = Recipe(engine="fp32", device="cpu", method=LinearProbe(folds=2))
COLOURS = {"red": (200, 40, 40), "blue": (40, 40, 200)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(10):
            pixels = (colour + rng.normal(0, 60, (40, 48, 3))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


def in_memory(photos: Path) -> list[tuple[object, str]]:
    """The images of the folder, in turn as pixels, as PIL images and as paths."""
    samples = read_dataset(photos).samples
    pixels = [decode(sample.image) for sample in samples]
    forms = [lambda i: pixels[i], lambda i: Image.fromarray(pixels[i]), lambda i: samples[i].image]
    return [(forms[i % 3](i), str(sample.target)) for i, sample in enumerate(samples)]


def test_the_same_images_give_the_same_model(photos: Path, store: Cache, tmp_path: Path) -> None:
    folder = fit(photos, FP32, out=tmp_path / "folder", cache=store)
    memory = fit(in_memory(photos), FP32, out=tmp_path / "memory", cache=Cache(tmp_path / "c"))
    expected, head = folder.model.linear_head(), memory.model.linear_head()
    np.testing.assert_allclose(head.weight, expected.weight, atol=1e-6)
    np.testing.assert_allclose(
        memory.evaluation.probabilities, folder.evaluation.probabilities, atol=1e-6
    )
    with (memory.folder / "predictions.csv").open() as file:
        names = [row["image"] for row in csv.DictReader(file)]
    assert list(memory.evaluation.names) == names
    assert {name.partition(" ")[0] for name in names if "/" not in name} == {"image"}
    assert "data:image/" in memory.report.read_text(encoding="utf-8")
    with pytest.raises(LeakError):
        evaluate(memory.model, in_memory(photos), cache=store)
    again = evaluate(memory.model, in_memory(photos), cache=store, allow_overlap=True)
    assert len(again.names) == 20


def test_a_model_takes_paths_arrays_and_images(
    photos: Path, store: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    run = fit(photos, FP32, out=tmp_path / "run", cache=store)
    assert run.report == run.folder / "report.html"
    assert run.report.exists()
    path = sorted(photos.rglob("*.png"))[0]
    pixels, model = decode(path), run.model
    features = model.embed(path)
    expected = model.predict(path)[0].probabilities
    for image in (str(path), pixels, Image.fromarray(pixels), path.read_bytes(), [pixels]):
        np.testing.assert_allclose(model.embed(image), features, atol=1e-6)
        assert model.predict(image)[0].probabilities == pytest.approx(expected, abs=1e-6)
    probabilities = model.torch()(torch.from_numpy(pixels)[None])[0].tolist()
    assert probabilities == pytest.approx(list(expected.values()), abs=1e-4)


def test_a_model_evaluates_and_saves_itself(photos: Path, store: Cache, tmp_path: Path) -> None:
    run = fit(photos, FP32, out=tmp_path / "run", cache=store)
    with pytest.raises(LeakError):
        run.model.evaluate(photos, cache=store)
    with pytest.raises(UnknownNameError, match="Did you mean 'allow_overlap'"):
        run.model.evaluate(photos, alow_overlap=True)
    result = run.model.evaluate(photos, cache=store, allow_overlap=True)
    run.model.save(tmp_path / "model")
    again = load(tmp_path / "model").evaluate(photos, cache=store, allow_overlap=True)
    np.testing.assert_array_equal(result.probabilities, again.probabilities)
    np.testing.assert_array_equal(
        result.probabilities,
        evaluate(run.model, photos, cache=store, allow_overlap=True).probabilities,
    )


def test_every_verb_takes_objects(photos: Path, store: Cache, tmp_path: Path) -> None:
    samples = read_dataset(photos).samples
    frame = pd.DataFrame(
        {"file": [str(s.image) for s in samples], "label": [s.target for s in samples]}
    )
    assert plan(frame, FP32, cache=store)["rows"]
    ranking = rank(
        frame, ["embedded/efficientnet_lite0"], recipe=FP32, measure=["knn"], cache=store
    )
    assert (ranking.name, ranking.available) == ("DataFrame", 16)
    trials = ComparisonRecipe(methods=("probe",), seeds=1, folds=0)
    comparison, folder = compare(frame, trials, recipe=FP32, out=tmp_path / "c", cache=store)
    assert comparison.name == "DataFrame"
    assert (folder / "compare.html").exists()


def test_a_copy_in_memory_stays_on_one_side(photos: Path, store: Cache, tmp_path: Path) -> None:
    pairs = in_memory(photos)
    copies = [(decode(image), label) for image, label in pairs[:6]]
    run = fit(pairs + copies, FP32, out=tmp_path / "run", cache=store)
    sides = {s.name: s.split for s in run.prepared.data.samples}
    names = list(sides)
    assert all(sides[names[i]] == sides[names[20 + i]] for i in range(6))
    assert any(finding.kind == "duplicate" for finding in run.prepared.findings)


def test_the_estimators_take_objects(photos: Path, tmp_path: Path) -> None:
    options = {"folds": 2, "engine": "fp32", "cache_dir": str(tmp_path)}
    folder = ImageClassifier(**options).fit(photos)
    pairs = in_memory(photos)
    memory = ImageClassifier(**options).fit(pairs)
    assert list(memory.classes_) == list(folder.classes_)
    images = [image for image, _ in pairs]
    np.testing.assert_allclose(
        memory.predict_proba(images), folder.predict_proba(photos), atol=1e-6
    )
    assert memory.score(pairs) == folder.score(photos)
    assert len(memory.evaluate(photos, group_by=r"(\d)").names) == 20
    memory.save(tmp_path / "model")
    assert load(tmp_path / "model").task.classes == ("blue", "red")
    for estimator in (ImageClassifier(), ObjectDetector(), ImageSegmenter()):
        with pytest.raises(UsageError, match="`X` is a list of images"):
            estimator.fit(images)
