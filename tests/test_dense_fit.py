"""Boxes and masks through the main job, the folder and the command line, on scenes drawn here."""

import hashlib
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from headstart.cache import Cache
from headstart.cli import app as cli
from headstart.data.images import decode
from headstart.errors import DataError, LeakError, SetupError, UsageError
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.scratch import Scratch
from headstart.models.saving import load
from headstart.training.optim import Training
from headstart.workflows.evaluate import evaluate_model
from headstart.workflows.events import DataReady, EpochDone, Planned
from headstart.workflows.fit import fit
from headstart.workflows.recipe import Recipe
from headstart.workflows.run_folder import LOCK

TINY = "timm/test_resnet"
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
N = 20
FAST = Training(epochs=2, batch_size=8, patience=9)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small backbone with weights made here, as a file that is found."""
    from safetensors.torch import save_file

    from headstart.backbones.backbone import load as load_backbone
    from headstart.backbones.catalog import resolve

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    backbone = load_backbone(resolve(TINY), pretrained=False, seed=1)
    save_file({k: v.contiguous() for k, v in backbone.trunk.state_dict().items()}, path)
    return f"file:{path}@{TINY}"


def scene(number):
    """An image with a red and a blue rectangle (every fifth: with none), and what it shows."""
    rng = np.random.default_rng(number)
    height, width = (60, 90) if number % 2 else (80, 64)
    pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    mask, boxes = np.zeros((height, width), dtype=np.uint8), []
    for place, name in enumerate(() if number % 5 == 4 else COLOURS):
        top, left = int(rng.integers(2, 14)), 2 + place * width // 2 + int(rng.integers(0, 6))
        bottom, right = top + int(rng.integers(18, 40)), left + int(rng.integers(14, 24))
        pixels[top:bottom, left:right] = COLOURS[name]
        mask[top:bottom, left:right] = 1 + place
        boxes.append((place, [left, top, right - left, bottom - top]))
    return pixels, mask, boxes


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Boxes as COCO writes them."""
    root = tmp_path_factory.mktemp("data") / "cells"
    (root / "images").mkdir(parents=True)
    images, rows = [], []
    for number in range(N):
        pixels, _, boxes = scene(number)
        name = f"{number:02}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        height, width = pixels.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        rows += [
            {"image_id": number, "category_id": place + 1, "bbox": box} for place, box in boxes
        ]
    document = {
        "images": images,
        "annotations": [
            {**row, "id": i, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
            for i, row in enumerate(rows)
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(COLOURS)],
    }
    (root / "annotations.json").write_text(json.dumps(document))
    return root


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Masks beside images, in parts that the author made."""
    root = tmp_path_factory.mktemp("data") / "streets"
    for number in range(N):
        part = "train" if number < 10 else "val" if number < 15 else "test"
        pixels, mask, _ = scene(number)
        for kind, array in (("images", pixels), ("masks", mask)):
            folder = root / part / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / f"{number:02}.png")
    (root / "classes.txt").write_text("background\nred\nblue\n")
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


def recipe_for(backbone, head, **options):
    method = options.pop("method", None) or Finetune(train_from="head", training=FAST)
    return Recipe(
        backbone=backbone, head=head, size=64, device="cpu", engine="fp32", method=method, **options
    )


def told_of(kind, events):
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def boxes_run(cells, tiny, store, tmp_path_factory):
    events = []
    out = tmp_path_factory.mktemp("runs") / "cells"
    run = fit(cells, recipe_for(tiny, "ssdlite"), out=out, cache=store, observer=events.append)
    return run, events


@pytest.fixture(scope="module")
def masks_run(streets, tiny, store, tmp_path_factory):
    events = []
    out = tmp_path_factory.mktemp("runs") / "streets"
    run = fit(streets, recipe_for(tiny, "fpn"), out=out, cache=store, observer=events.append)
    return run, events


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


FILES = {
    "model.safetensors",
    "model.json",
    "report.html",
    "report.json",
    "predictions.csv",
    "card.md",
    "resolved.yaml",
    "log.jsonl",
}  # fmt: skip


@pytest.mark.parametrize("which", ["boxes_run", "masks_run"])
def test_a_run_leaves_every_file_and_nothing_else(which, request):
    run, _ = request.getfixturevalue(which)
    assert {path.name for path in run.folder.iterdir()} >= FILES
    assert [path.name for path in run.folder.parent.iterdir()] == [run.folder.name]
    report = json.loads((run.folder / "report.json").read_text())
    headline = next(iter(run.evaluation.metrics.items()))
    assert report["evaluation"]["metrics"][headline[0]]["value"] == pytest.approx(
        headline[1].value, nan_ok=True
    )


def test_what_is_told_of_boxes(boxes_run):
    run, events = boxes_run
    [plan], [data] = told_of(Planned, events), told_of(DataReady, events)
    assert data.prepared.data.kind == "detection"
    assert plan.head.kind == "ssdlite"
    assert plan.anchor_recall == run.model.record["anchors_reach"]
    assert 0 <= plan.anchor_recall <= 1
    assert {event.measure for event in told_of(EpochDone, events)} == {"mAP"}
    assert run.recipe.task == "detection"
    data_record = run.model.record["data"]
    assert data_record["images"] == {"train": 16, "held_out": 4}
    n = data_record["train"]["red"] + data_record["held_out"]["red"]
    assert n == N - N // 5  # objects, and every fifth image has none
    assert "features" not in run.seconds
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert next(x for x in lines if x["event"] == "plan")["head"] == "ssdlite"


def test_what_is_told_of_masks(masks_run):
    run, events = masks_run
    assert {event.measure for event in told_of(EpochDone, events)} == {"mean IoU"}
    assert run.model.task.classes == ("background", "red", "blue")
    assert len(run.model.record["learned_from"]) == 15  # the epoch was chosen on the val part
    assert len(run.evaluation.names) == 5


@pytest.mark.parametrize("which", ["boxes_run", "masks_run"])
def test_the_saved_model_answers_as_the_run_did(which, request, store):
    run, _ = request.getfixturevalue(which)
    samples = run.prepared.test.samples
    predictions = list(run.model.predict_samples(samples, cache=store, device="cpu"))
    loaded_predictions = load(run.folder).predict(
        [s.image for s in samples], cache=store, device="cpu"
    )
    for prediction, loaded_prediction, sample in zip(
        predictions, loaded_predictions, samples, strict=True
    ):
        shape = decode(sample.image).shape
        if which == "masks_run":
            np.testing.assert_array_equal(prediction.mask, loaded_prediction.mask)
            assert prediction.mask.shape == shape[:2]
        else:
            np.testing.assert_array_equal(prediction.boxes, loaded_prediction.boxes)
            assert loaded_prediction.size == (shape[1], shape[0])
            assert (prediction.scores >= run.model.task.threshold).all()
    everything = run.model.predict(
        [s.image for s in samples],
        cache=store,
        device="cpu",
        **({"threshold": 0.0} if which == "boxes_run" else {"tile": 40}),
    )
    if which == "boxes_run":
        assert sum(len(x.boxes) for x in everything) > sum(len(x.boxes) for x in loaded_predictions)
    else:
        assert [x.mask.shape for x in everything] == [x.mask.shape for x in loaded_predictions]


@pytest.mark.parametrize(
    ("which", "wrong"),
    [
        ("boxes_run", {"tile": 50}),
        ("boxes_run", {"threshold": 1.5}),
        ("boxes_run", {"engine": "bf16"}),
        ("masks_run", {"threshold": 0.5}),
        ("masks_run", {"tile": -1}),
    ],
)
def test_what_says_nothing_to_the_task_is_refused(which, wrong, request, store):
    run, _ = request.getfixturevalue(which)
    with pytest.raises(UsageError):
        run.model.predict(run.prepared.test.samples[0].image, cache=store, **wrong)


@pytest.mark.parametrize("which", ["boxes_run", "masks_run"])
def test_training_images_are_refused_in_an_evaluation(which, request, store, tmp_path):
    run, _ = request.getfixturevalue(which)
    learned = replace(
        run.prepared.train,
        samples=tuple(replace(sample, split=None) for sample in run.prepared.train.samples),
    )
    n = len(learned)
    with pytest.raises(LeakError, match=f"trained on {n} of these {n} images"):
        evaluate_model(run.folder, learned, cache=store, device="cpu")
    evaluation = evaluate_model(run.folder, run.prepared.test, cache=store, device="cpu").evaluation
    name = next(iter(evaluation.metrics))
    assert evaluation.metrics[name].value == run.evaluation.metrics[name].value


def test_a_folder_is_evaluated_on_its_test_part(masks_run, streets, store):
    run, _ = masks_run
    evaluation = evaluate_model(run.folder, streets, cache=store, device="cpu").evaluation
    assert evaluation.metrics == run.evaluation.metrics


def test_boxes_beyond_their_image_are_clipped_before_an_evaluation(
    boxes_run, cells, store, tmp_path
):
    run, _ = boxes_run
    shutil.copytree(cells, tmp_path / "more")
    for path in (tmp_path / "more" / "images").iterdir():
        pixels = decode(path)
        Image.fromarray(255 - pixels).save(path)  # images that were not learned from
    document = json.loads((cells / "annotations.json").read_text())
    document["annotations"][0]["bbox"] = [-20, -20, 400, 400]
    (tmp_path / "more" / "annotations.json").write_text(json.dumps(document))
    evaluation = evaluate_model(run.folder, tmp_path / "more", cache=store, device="cpu").evaluation
    first = evaluation.truths[evaluation.names.index(str(tmp_path / "more" / "images" / "00.png"))]
    assert first.corners[0] == (0.0, 0.0, 64.0, 80.0)


@pytest.fixture
def patient(monkeypatch):
    """As if every step took half a minute: each leaves a checkpoint."""
    monkeypatch.setattr("headstart.training.engine.CHECKPOINT_SECONDS", -1)


def after_epoch(number, error):
    def observe(event):
        if isinstance(event, EpochDone) and event.epoch.number == number:
            raise error

    return observe


class Killed(Exception):  # noqa: N818 - what a kill is to this process
    pass


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("data", "head"), [("cells", "fcos"), ("streets", "unet")])
def test_a_training_that_was_killed_goes_on_to_the_same_bits(
    data, head, request, tiny, store, tmp_path
):
    source = request.getfixturevalue(data)
    recipe = recipe_for(tiny, head, method=Finetune(train_from="layer4", training=FAST))
    uninterrupted = fit(source, recipe, out=tmp_path / "whole", cache=store)
    with pytest.raises(Killed):
        fit(source, recipe, out=tmp_path / "run", cache=store, observer=after_epoch(1, Killed()))
    run = fit(source, recipe, out=tmp_path / "run", cache=store, resume=True)
    assert digest(run.folder) == digest(uninterrupted.folder)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "run"}


def test_ctrl_c_saves_the_best_model_so_far(cells, tiny, store, tmp_path):
    recipe = recipe_for(tiny, "ssdlite", method=Scratch(training=FAST))
    stopped = after_epoch(1, KeyboardInterrupt())
    run = fit(cells, recipe, out=tmp_path / "run", cache=store, observer=stopped)
    assert run.interrupted
    assert "STOPPED BY HAND" in run.summary[0]
    assert load(run.folder).record["interrupted"] is True


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": LinearProbe()}, UsageError, "--method finetune"),
        ({"head": "unet"}, UsageError, "faster-rcnn"),
        ({"engine": "bf16"}, UsageError, "--engine fp32"),
        ({"task": "classification"}, UsageError, "detection"),
        ({"task": "segmentation"}, DataError, "masks"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_learned(
    change, error, words, cells, tiny, store, tmp_path
):
    events = []
    recipe = replace(recipe_for(tiny, "ssdlite"), **change)
    with pytest.raises(error, match=words):
        fit(cells, recipe, out=tmp_path / "runs" / "x", cache=store, observer=events.append)
    assert not told_of(Planned, events)
    assert list((tmp_path / "runs").iterdir()) == []


def command(capsys, *arguments):
    """Run the command line in this process."""
    argv_before, sys.argv = sys.argv, ["headstart", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        sys.argv = argv_before
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_the_command_line_learns_boxes_and_shows_them(cells, tiny, tmp_path, capsys):
    words = ("--backbone", tiny, "--head", "ssdlite", "--size", "64", "--epochs", "1")
    out = tmp_path / "run"
    code, output, err = command(capsys, "fit", cells, *words, "--out", out, "--device", "cpu")
    assert (code, err) == (0, "")
    for text in ("objects of", "without objects", "ssdlite", "anchors", "from last:1", "mAP"):
        assert text in output
    for absent in ("macro F1", "engine", "features"):
        assert absent not in output
    code, output, _ = command(
        capsys, "predict", out, cells, "--format", "json", "--threshold", "0", "--device", "cpu"
    )
    assert code == 0
    assert len(json.loads(output)) == N
    folder = tmp_path / "found"
    code, output, _ = command(
        capsys, "predict", out, cells, "--format", "yolo", "--out", folder, "--device", "cpu"
    )
    assert code == 0
    assert len(list((folder / "labels").iterdir())) == N
    code, output, _ = command(capsys, "predict", out, cells / "images" / "00.png")
    assert code == 0
    assert "left, top, right, bottom" in output


def test_the_command_line_writes_masks(masks_run, streets, tmp_path, capsys):
    run, _ = masks_run
    folder = tmp_path / "found"
    code, output, err = command(
        capsys, "predict", run.folder, streets / "test" / "images", "--format", "masks",
        "--out", folder, "--device", "cpu",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert sorted(p.name for p in (folder / "masks").iterdir())[0] == "15.png"
    code, output, _ = command(capsys, "evaluate", run.folder, streets, "--device", "cpu")
    assert code == 0
    assert "IoU" in output
    code, _, err = command(capsys, "predict", run.folder, streets, "--format", "coco")
    assert code == 1
    assert "masks" in err


def test_an_image_that_cannot_be_read_is_named_or_left_out(masks_run, tmp_path, capsys):
    run, _ = masks_run
    Image.fromarray(scene(3)[0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG junk")
    words = ("predict", run.folder, tmp_path, "--json", "--device", "cpu")
    code, _, err = command(capsys, *words)
    assert code == 2
    assert "bad.png" in err
    code, output, _ = command(capsys, *words, "--bad-files", "skip")
    assert code == 0
    assert [prediction["image"].rpartition("/")[2] for prediction in json.loads(output)] == [
        "good.png"
    ]


def test_a_second_training_with_the_same_out_is_refused(cells, tiny, store, tmp_path):
    recipe, out = recipe_for(tiny, "ssdlite"), tmp_path / "run"
    (tmp_path / "run.partial").mkdir()
    lock = tmp_path / "run.partial" / LOCK
    with FileLock(lock):
        lock.write_text("4321 node")
        with pytest.raises(UsageError, match="Process 4321 on node is training in"):
            fit(cells, recipe, out=out, cache=store)
    run = fit(cells, recipe, out=out, cache=store)
    assert [path.name for path in tmp_path.iterdir()] == [run.folder.name]


def test_a_published_head_that_is_missing_is_said_before_the_scan(cells, store, tmp_path):
    events = []
    recipe = Recipe(
        backbone="embedded/efficientnet_lite0",
        head="torchvision/fasterrcnn_resnet50_fpn",
        offline=True,
        device="cpu",
    )
    with pytest.raises(SetupError, match="fasterrcnn_resnet50_fpn"):
        fit(cells, recipe, out=tmp_path / "run", cache=store, observer=events.append)
    assert not told_of(DataReady, events)
