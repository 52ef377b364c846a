"""The main job on images made here, with the embedded weights."""

import csv
import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from headstart.cache import Cache
from headstart.data.dataset import Dataset
from headstart.errors import DataError, LeakError, SetupError, UnknownNameError, UsageError
from headstart.evaluation.baselines import PROBE
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.scratch import Scratch
from headstart.models.saving import load
from headstart.training.optim import Training
from headstart.workflows.evaluate import evaluate_model
from headstart.workflows.events import EpochDone, Noted, Planned
from headstart.workflows.fit import fit, slug
from headstart.workflows.recipe import Recipe

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
FP32 = Recipe(engine="fp32", device="cpu", method=LinearProbe())


def draw(path, kind, seed):
    """An image with stripes (one class) or blocks (another), in random colours."""
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
    assert [row["image"] for row in rows] == [sample.name for sample in test.samples]
    right = np.mean([row["truth"] == row["prediction"] for row in rows])
    assert run.evaluation.metrics["accuracy"].value == pytest.approx(right)
    assert f"{right:.3f}" in (run.folder / "report.html").read_text()
    assert report["evaluation"]["metrics"]["accuracy"]["value"] == pytest.approx(right)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "finished"
    assert yaml.safe_load((run.folder / "resolved.yaml").read_text()) == run.recipe.as_dict()
    assert run.recipe == FP32.resolved_for(run.prepared.data)


def test_the_saved_model_answers_as_the_run_did(run, store):
    names = [sample.image for sample in run.prepared.test.samples]
    predictions = load(run.folder).predict(names, cache=store)
    classes = run.model.task.classes
    ours = np.array(
        [[prediction.probabilities[name] for name in classes] for prediction in predictions]
    )
    np.testing.assert_array_equal(ours, run.evaluation.probabilities)


def test_an_older_run_is_never_touched(run, photos, store):
    before = digest(run.folder)
    second_run = fit(photos, FP32, out=run.folder, cache=store)
    assert second_run.folder.name == "first-2"
    assert digest(run.folder) == before
    shutil.rmtree(second_run.folder)


def test_one_seed_gives_one_model_bit_for_bit(run, photos, tmp_path):
    second_run = fit(photos, FP32, out=tmp_path / "again", cache=Cache(tmp_path / "fresh"))
    assert digest(second_run.folder) == digest(run.folder)
    assert second_run.model.task == run.model.task


def test_another_seed_gives_another_split(run, photos, store, tmp_path):
    other = Recipe(engine="fp32", device="cpu", seed=1, method=LinearProbe(seed=1))
    other_run = fit(photos, other, out=tmp_path / "other", cache=store)
    assert other_run.evaluation.names != run.evaluation.names


def test_no_test_image_reaches_the_model(split_photos, store, tmp_path):
    """Neither weights, nor temperature, nor penalty may depend on the test part.

    The val part may choose the penalty and the temperature, as it chooses the epoch of a
    fine-tuning: its author held it out for choices. It stays the same here.
    """
    first = fit(split_photos, FP32, out=tmp_path / "a", cache=store)
    changed = changed_part(split_photos, "test", tmp_path / "changed")
    second = fit(changed, FP32, out=tmp_path / "b", cache=store)
    assert digest(first.folder) == digest(second.folder)
    assert first.model.task == second.model.task
    assert first.evaluation.metrics["accuracy"].value > second.evaluation.metrics["accuracy"].value


def test_the_val_part_makes_choices_but_is_not_fitted(split_photos, store, tmp_path):
    """It was thrown away by the linear probe."""
    first = fit(split_photos, FP32, out=tmp_path / "a", cache=store)
    changed = changed_part(split_photos, "val", tmp_path / "changed")  # labels that are wrong
    second = fit(changed, FP32, out=tmp_path / "b", cache=store)
    assert first.model.record["validation_images"] == 6
    assert second.model.record["penalty"] >= first.model.record["penalty"]
    assert second.model.task.temperature != first.model.task.temperature
    assert set(first.model.record["learned_from"]) != set(second.model.record["learned_from"])


def changed_part(photos, part, folder):
    """Copy of the data with other images, and labels that are wrong, in one part."""
    shutil.copytree(photos, folder)
    for number, path in enumerate(sorted((folder / part).rglob("*.png"))):
        draw(path, "stripes", 1000 + number)
    return folder


def test_the_test_part_is_evaluated_and_not_the_val_part(split_photos, store, tmp_path):
    run = fit(split_photos, FP32, out=tmp_path / "run", cache=store)
    assert len(run.evaluation.names) == 10
    assert all("/test/" in name for name in run.evaluation.names)


def test_multilabel_goes_the_same_way(store, tmp_path):
    from headstart.data.demo.classification import load as load_demo

    shapes = load_demo("shapes")
    subset = shapes.subset(range(60))
    run = fit(subset, FP32, out=tmp_path / "shapes", cache=store)
    assert run.model.task.kind == "multilabel"
    assert run.evaluation.metrics["macro_f1"].value > 0.3
    assert {path.name for path in run.folder.iterdir()} == FILES


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


def test_a_model_is_evaluated_on_other_images_by_class_name(run, store, tmp_path):
    for i in range(4):
        draw(tmp_path / "more" / "stripes" / f"{i}.png", "stripes", 50 + i)
    evaluation = evaluate_model(run.folder, tmp_path / "more", cache=store).evaluation
    assert set(evaluation.targets) == {run.model.task.classes.index("stripes")}
    assert evaluation.metrics["accuracy"].value == np.mean(evaluation.correct)


def test_training_images_are_refused_in_an_evaluation(run, photos, store):
    with pytest.raises(LeakError, match=f"trained on {len(run.prepared.train)} of these 24"):
        evaluate_model(run.folder, photos, cache=store)
    evaluation = evaluate_model(run.folder, photos, cache=store, allow_overlap=True).evaluation
    assert len(evaluation.names) == 24


def test_too_few_images_are_said_before_the_backbone_runs(tmp_path, store):
    for i in range(2):
        draw(tmp_path / "few" / "stripes" / f"{i}.png", "stripes", i)
        draw(tmp_path / "few" / "blocks" / f"{i}.png", "blocks", 100 + i)
    events = []
    with pytest.raises(DataError, match="'blocks', 'stripes'"):
        fit(tmp_path / "few", FP32, out=tmp_path / "x", cache=store, observer=events.append)
    assert not any(isinstance(event, Planned) for event in events)


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
    with pytest.raises(UsageError, match="does not name a new folder"):
        fit("photos", FP32, out=out, cache=Cache(tmp_path / "cache"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": 5}, r"`out` must be a path, got 5. Pass out='runs/photos'"),
        ({"observer": 3}, r"`observer` must be a function of one event, got 3"),
    ],
)
def test_wrong_types_are_said_before_the_images_are_read(settings, message):
    with pytest.raises(UsageError, match=message):
        fit("nowhere", FP32, **settings)


def test_a_wrong_device_is_said_before_the_images_are_read(tmp_path):
    with pytest.raises(UnknownNameError, match="device"):
        fit(tmp_path / "nothing", Recipe(device="tpu"), out=tmp_path / "run")


def test_a_disk_that_fills_up_is_said_with_the_folder(photos, tmp_path, monkeypatch):
    def full(model, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headstart.workflows.run_folder.save", full)
    with pytest.raises(SetupError, match=r"elsewhere.*No space left.*--out"):
        fit(photos, FP32, out=tmp_path / "elsewhere", cache=Cache(tmp_path / "cache"))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


# ------------------------------------------------------------------- training the backbone

TINY = "timm/test_resnet"


@pytest.fixture
def tiny(monkeypatch, tmp_path_factory):
    """A small backbone with weights made here, as a file that is found."""
    from safetensors.torch import save_file

    from headstart.backbones.backbone import load as load_backbone
    from headstart.backbones.catalog import resolve

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    backbone = load_backbone(resolve(TINY), pretrained=False, seed=1)
    save_file({k: v.contiguous() for k, v in backbone.trunk.state_dict().items()}, path)
    return f"file:{path}@{TINY}"


def tuning(backbone, **options):
    training = Training(epochs=3, batch_size=8, patience=9)
    method = Finetune(train_from="layer4", batch_norm="train", training=training, **options)
    return Recipe(engine="fp32", device="cpu", backbone=backbone, method=method)


class Interrupted(Exception):  # noqa: N818 - what a kill is to this process
    pass


@pytest.fixture
def patient(monkeypatch):
    """As if every step took half a minute: each leaves a checkpoint."""
    monkeypatch.setattr("headstart.training.engine.CHECKPOINT_SECONDS", -1)


def after_epoch(number, error):
    def observe(event):
        if isinstance(event, EpochDone) and event.epoch.number == number:
            raise error

    return observe


def test_a_tuned_model_is_told_epoch_by_epoch_and_compared(tiny, photos, store, tmp_path):
    events = []
    run = fit(photos, tuning(tiny), out=tmp_path / "run", cache=store, observer=events.append)
    assert [e.epoch.number for e in events if isinstance(e, EpochDone)] == [0, 1, 2, 3]
    [plan] = [event for event in events if isinstance(event, Planned)]
    assert plan.outline.plan.last_constant_stage == "layer3"
    names = [baseline.name for baseline in run.evaluation.baselines]
    assert names == ["majority class", "5-nearest neighbours", PROBE]
    gain = run.evaluation.baselines[-1].lead.interval
    assert run.model.record["target_gain"] == gain.as_dict()
    drifts = run.model.record["forgetting"]["stages"]
    assert drifts[0]["cka"] == 1
    assert drifts[-1]["relative_weight_change"] > 0
    assert any("Transfer gain" in sentence for sentence in events[-1].forgetting)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_probe_of_the_comparison_is_the_probe(tiny, photos, store, tmp_path):
    """Neighbours and probe see the backbone as it was, not as it is."""
    tuned = fit(photos, tuning(tiny), out=tmp_path / "run", cache=store)
    plain = Recipe(engine="fp32", device="cpu", backbone=tiny, method=LinearProbe())
    probe = fit(photos, plain, out=tmp_path / "probe", cache=store)
    majority, neighbours, compared = tuned.evaluation.baselines
    assert compared.accuracy == probe.evaluation.metrics["accuracy"]
    assert (majority.accuracy, neighbours.accuracy) == tuple(
        baseline.accuracy for baseline in probe.evaluation.baselines
    )


def test_scratch_has_nothing_to_forget(tiny, photos, store, tmp_path):
    method = Scratch(training=Training(epochs=1, batch_size=8))
    recipe = replace(tuning(tiny), method=method)
    run = fit(photos, recipe, out=tmp_path / "run", cache=store)
    assert "forgetting" not in run.model.record
    assert run.evaluation.baselines[-1].name == PROBE


@pytest.mark.usefixtures("patient")
def test_a_training_that_was_killed_goes_on_to_the_same_bits(tiny, photos, store, tmp_path):
    recipe = tuning(tiny, dropout=0.1)
    uninterrupted = fit(photos, recipe, out=tmp_path / "whole", cache=store)
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(photos, recipe, out=out, cache=store, observer=after_epoch(2, Interrupted()))
    assert [path.name for path in tmp_path.iterdir() if path.name != "whole"] == ["run.partial"]
    events = []
    run = fit(photos, recipe, out=out, cache=store, observer=events.append, resume=True)
    # An exception in an observer keeps the run's state: epoch 2 is not trained again.
    assert [e.epoch.number for e in events if isinstance(e, EpochDone)] == [3]
    assert digest(run.folder) == digest(uninterrupted.folder)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "run"}


@pytest.mark.usefixtures("patient")
def test_a_training_is_begun_anew_unless_it_is_asked_to_go_on(tiny, photos, store, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(photos, tuning(tiny), out=out, cache=store, observer=after_epoch(2, Interrupted()))
    (tmp_path / "run.partial" / "mine.txt").write_text("not ours")
    events = []
    fit(photos, tuning(tiny), out=out, cache=store, observer=events.append)
    assert [e.epoch.number for e in events if isinstance(e, EpochDone)] == [0, 1, 2, 3]
    assert [e.text for e in events if isinstance(e, Noted) and "--resume" in e.text]
    assert [path.name for path in (tmp_path / "run.partial").iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("patient")
def test_another_method_cannot_take_a_training_up(tiny, photos, store, tmp_path):
    with pytest.raises(Interrupted):
        fit(
            photos,
            tuning(tiny),
            out=tmp_path / "run",
            cache=store,
            observer=after_epoch(2, Interrupted()),
        )
    with pytest.raises(UsageError, match="method"):
        fit(photos, tuning(tiny, dropout=0.5), out=tmp_path / "run", cache=store, resume=True)
    assert (tmp_path / "run.partial" / "checkpoint.safetensors").exists()


def test_ctrl_c_saves_the_best_model_so_far_and_keeps_the_checkpoint(tiny, photos, store, tmp_path):
    recipe, observer = tuning(tiny), after_epoch(2, KeyboardInterrupt())
    run = fit(photos, recipe, out=tmp_path / "run", cache=store, observer=observer)
    assert run.interrupted
    assert "STOPPED BY HAND" in run.summary[0]
    assert {path.name for path in run.folder.iterdir()} == FILES
    assert load(run.folder).record["interrupted"] is True
    uninterrupted = fit(photos, recipe, out=tmp_path / "whole", cache=store)
    resumed = fit(photos, recipe, out=tmp_path / "run", cache=store, resume=True)
    assert not resumed.interrupted
    assert digest(resumed.folder) == digest(uninterrupted.folder)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run-2", "whole"}
