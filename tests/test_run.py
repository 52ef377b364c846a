"""The main job on pictures made here, with the embedded weights."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from headstart.cache import Cache
from headstart.data.samples import Dataset
from headstart.errors import DataError, LeakError, SetupError, UnknownNameError, UsageError
from headstart.events import Planned
from headstart.methods.linear_probe import LinearProbe
from headstart.model_folder import load
from headstart.recipe import Recipe
from headstart.run import evaluate_source, fit, slug

FILES = {
    "model.safetensors",
    "model.json",
    "report.html",
    "report.json",
    "predictions.csv",
    "card.md",
    "resolved.yaml",
    "log.jsonl",
}
FP32 = Recipe(engine="fp32", device="cpu")


def draw(path, kind, seed):
    """A picture with stripes (one class) or blocks (another), in random colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :80]
    step = int(rng.integers(5, 9))
    mask = (x // step) % 2 if kind == "stripes" else ((x // step) + (y // step)) % 2
    colours = rng.integers(0, 256, (2, 3))
    noise = rng.normal(0, 12, (64, 80, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((colours[mask] + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photos"
    for i in range(12):
        draw(root / "stripes" / f"{i}.png", "stripes", i)
        draw(root / "blocks" / f"{i}.png", "blocks", 100 + i)
    return root


@pytest.fixture(scope="module")
def split_photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "split"
    for i in range(16):
        part = "train" if i < 8 else "val" if i < 11 else "test"
        draw(root / part / "stripes" / f"{i}.png", "stripes", i)
        draw(root / part / "blocks" / f"{i}.png", "blocks", 100 + i)
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def run(photos, store, tmp_path_factory):
    return fit(photos, FP32, out=tmp_path_factory.mktemp("runs") / "first", cache=store)


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_leaves_every_file_and_nothing_else(run):
    assert {path.name for path in run.folder.iterdir()} == FILES
    assert [path.name for path in run.folder.parent.iterdir()] == ["first"]


def test_the_files_agree_with_each_other(run):
    report = json.loads((run.folder / "report.json").read_text())
    rows = list(csv.DictReader((run.folder / "predictions.csv").read_text().splitlines()))
    test = run.prepared.test
    assert [row["picture"] for row in rows] == [sample.name for sample in test.samples]
    right = np.mean([row["truth"] == row["answer"] for row in rows])
    assert run.evaluation.metrics["accuracy"].value == pytest.approx(right)
    assert f"{right:.3f}" in (run.folder / "report.html").read_text()
    assert report["evaluation"]["metrics"]["accuracy"]["value"] == pytest.approx(right)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "finished"
    assert yaml.safe_load((run.folder / "resolved.yaml").read_text()) == FP32.as_dict()


def test_the_saved_model_answers_as_the_run_did(run, store):
    names = [sample.image for sample in run.prepared.test.samples]
    found = load(run.folder).predict(names, cache=store)
    classes = run.model.task.classes
    ours = np.array([[one.probabilities[name] for name in classes] for one in found])
    np.testing.assert_array_equal(ours, run.evaluation.probabilities)


def test_an_older_run_is_never_touched(run, photos, store):
    before = digest(run.folder)
    again = fit(photos, FP32, out=run.folder, cache=store)
    assert again.folder.name == "first-2"
    assert digest(run.folder) == before
    shutil.rmtree(again.folder)


def test_one_seed_gives_one_model_bit_for_bit(run, photos, tmp_path):
    again = fit(photos, FP32, out=tmp_path / "again", cache=Cache(tmp_path / "fresh"))
    assert digest(again.folder) == digest(run.folder)
    assert again.model.task == run.model.task


def test_another_seed_gives_another_split(run, photos, store, tmp_path):
    other = Recipe(engine="fp32", device="cpu", seed=1, method=LinearProbe(seed=1))
    found = fit(photos, other, out=tmp_path / "other", cache=store)
    assert found.evaluation.names != run.evaluation.names


def test_no_test_picture_reaches_the_model(split_photos, store, tmp_path):
    """Neither weights, nor temperature, nor penalty may know the held-out parts."""
    first = fit(split_photos, FP32, out=tmp_path / "a", cache=store)
    changed = tmp_path / "changed"
    shutil.copytree(split_photos, changed)
    held_out = [*(changed / "val").rglob("*.png"), *(changed / "test").rglob("*.png")]
    for number, path in enumerate(sorted(held_out)):
        draw(path, "stripes", 1000 + number)  # other pictures, and labels that are wrong
    second = fit(changed, FP32, out=tmp_path / "b", cache=store)
    assert digest(first.folder) == digest(second.folder)
    assert first.model.task == second.model.task
    assert first.evaluation.metrics["accuracy"].value > second.evaluation.metrics["accuracy"].value


def test_the_test_part_judges_and_not_the_val_part(split_photos, store, tmp_path):
    found = fit(split_photos, FP32, out=tmp_path / "run", cache=store)
    assert len(found.evaluation.names) == 10
    assert all("/test/" in name for name in found.evaluation.names)


def test_multilabel_goes_the_same_way(store, tmp_path):
    from headstart.data.demo import load as load_demo

    shapes = load_demo("shapes")
    some = shapes.subset(range(60))
    found = fit(some, FP32, out=tmp_path / "shapes", cache=store)
    assert found.model.task.kind == "multilabel"
    assert found.evaluation.metrics["macro_f1"].value > 0.3
    assert {path.name for path in found.folder.iterdir()} == FILES


def test_a_failed_run_leaves_nothing(photos, store, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(photos, broken)
    (broken / "stripes" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"0\.png"):
        fit(broken, FP32, out=tmp_path / "runs" / "x", cache=store)
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_interrupted_run_leaves_nothing(photos, store, tmp_path):
    def interrupt(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(photos, FP32, out=tmp_path / "runs" / "x", cache=store, observer=interrupt)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_wrong_backbone_is_said_before_anything_is_scanned(store, tmp_path):
    with pytest.raises(UnknownNameError, match="resnet18"):
        fit(Dataset(samples=(), classes=()), Recipe(backbone="resnet19"), out=tmp_path, cache=store)


def test_a_model_is_judged_on_other_pictures_by_name(run, store, tmp_path):
    for i in range(4):
        draw(tmp_path / "more" / "stripes" / f"{i}.png", "stripes", 50 + i)
    found = evaluate_source(run.folder, tmp_path / "more", cache=store)
    assert set(found.targets) == {run.model.task.classes.index("stripes")}
    assert found.metrics["accuracy"].value == np.mean(found.correct)


def test_pictures_that_were_learned_from_cannot_judge(run, photos, store):
    with pytest.raises(LeakError, match=f"got {len(run.prepared.train)} of 24"):
        evaluate_source(run.folder, photos, cache=store)
    found = evaluate_source(run.folder, photos, cache=store, allow_overlap=True)
    assert len(found.names) == 24


def test_too_few_pictures_are_said_before_the_backbone_runs(tmp_path, store):
    for i in range(2):
        draw(tmp_path / "few" / "stripes" / f"{i}.png", "stripes", i)
        draw(tmp_path / "few" / "blocks" / f"{i}.png", "blocks", 100 + i)
    told = []
    with pytest.raises(DataError, match="'blocks', 'stripes'"):
        fit(tmp_path / "few", FP32, out=tmp_path / "x", cache=store, observer=told.append)
    assert not any(isinstance(event, Planned) for event in told)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("demo:symbols", "demo-symbols"),
        ("/data/my photos/", "my-photos"),
        ("a/labels.csv", "labels"),
    ],
)
def test_a_run_is_named_after_its_data(source, name):
    assert slug(source) == name


@pytest.mark.parametrize("out", [".", "..", "/", ""])
def test_an_out_that_is_no_name_is_said_before_anything_is_done(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="to name a new folder"):
        fit("photos", FP32, out=out, cache=Cache(tmp_path / "cache"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_a_wrong_device_is_said_before_the_pictures_are_read(tmp_path):
    with pytest.raises(UnknownNameError, match="device"):
        fit(tmp_path / "nothing", Recipe(device="tpu"), out=tmp_path / "run")


def test_a_disk_that_fills_up_is_said_with_the_folder(photos, tmp_path, monkeypatch):
    def full(model, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headstart.run.save", full)
    with pytest.raises(SetupError, match=r"elsewhere.*No space left.*--out"):
        fit(photos, FP32, out=tmp_path / "elsewhere", cache=Cache(tmp_path / "cache"))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
