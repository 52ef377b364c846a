"""Evaluate a model or a folder, on a folder of images or on a dataset."""

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.cache import Cache
from headstart.data.readers import read_dataset
from headstart.errors import LeakError, UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.workflows.evaluate import evaluate, evaluate_model


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
