"""Written predictions read back the same, with our readers and with pycocotools."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from headstart.data.dataset import Sample
from headstart.data.images import decode
from headstart.data.masks import decode_mask
from headstart.data.readers import read_dataset
from headstart.errors import SetupError, UnknownNameError, UsageError
from headstart.files import file_stems
from headstart.models.inference import Detections, Segmentation
from headstart.models.prediction_files import (
    FORMATS,
    as_csv,
    as_json,
    coco_images,
    coco_results,
    mask_png,
    require_format,
    write_predictions,
    yolo_text,
)
from headstart.models.transfer_model import Prediction

CLASSES = ("cell", "no", "größe, 1")
PLACES = ("a/1.png", "a/2.png", "b/1.png")


@pytest.fixture
def images(tmp_path):
    """Images of odd sizes in folders, two of one name."""
    rng = np.random.default_rng(0)
    paths = []
    for number, place in enumerate(PLACES):
        path = tmp_path / "images" / "images" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (33 + number, 47, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def objects(path, number):
    rng = np.random.default_rng(number)
    count = number  # none in the first image
    corners = rng.uniform(0, 15, (count, 2))
    boxes = np.hstack([corners, corners + rng.uniform(2, 15, (count, 2))]).astype(np.float32)
    return Detections(
        name=str(path),
        size=(47, 33 + number),
        boxes=boxes,
        scores=np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1],
        labels=rng.integers(0, 3, count),
    )


@pytest.fixture
def detected(images):
    return [(Sample(image=path), objects(path, i)) for i, path in enumerate(images)]


@pytest.fixture
def segmented(images):
    rng = np.random.default_rng(1)
    masks = [rng.integers(0, 3, (33 + i, 47), dtype=np.uint8) for i in range(3)]
    return [
        (Sample(image=path), Segmentation(name=str(path), mask=mask))
        for path, mask in zip(images, masks, strict=True)
    ]


def same_boxes(data, pairs, tolerance):
    truths = {sample.name: sample.target for sample in data.samples}
    for _, detections in pairs:
        truth = truths[detections.name]
        assert truth.labels == tuple(CLASSES[i] for i in detections.labels)
        np.testing.assert_allclose(truth.array(), detections.boxes, atol=tolerance)


def test_yolo_reads_back(detected, images, tmp_path):
    written = write_predictions(tmp_path / "out", "yolo", detected, CLASSES)
    assert sorted(p.relative_to(written).as_posix() for p in written.rglob("*.*")) == [
        "data.yaml", "labels/a/1.txt", "labels/a/2.txt", "labels/b/1.txt",
    ]  # fmt: skip
    root = tmp_path / "images"
    written.joinpath("labels").rename(root / "labels")
    written.joinpath("data.yaml").rename(root / "data.yaml")
    from headstart.data.checks.boxes import clean_boxes

    data, _ = clean_boxes(read_dataset(root, task_kind="detection"))
    assert data.classes
    assert set(data.classes) == set(CLASSES)
    same_boxes(data, detected, 1e-3)


def test_coco_reads_back(detected, tmp_path):
    written = write_predictions(tmp_path / "out", "coco", detected, CLASSES)
    results = json.loads((written / "results.json").read_text())
    images = json.loads((written / "images.json").read_text())
    annotations = [
        {**row, "id": i, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
        for i, row in enumerate(results, start=1)
    ]
    root = tmp_path / "images"
    for row in images["images"]:
        row["file_name"] = row["file_name"].removeprefix(f"{root}/")
    document = {**images, "annotations": annotations}
    (root / "annotations.json").write_text(json.dumps(document))
    same_boxes(read_dataset(root, task_kind="detection"), detected, 1e-3)
    assert [row["image_id"] for row in results] == [2, 3, 3]  # by order; the first has none
    assert {row["category_id"] for row in results} <= {1, 2, 3}
    scores = np.concatenate([detections.scores for _, detections in detected])
    np.testing.assert_allclose([row["score"] for row in results], scores, atol=1e-6)


def test_masks_read_back(segmented, tmp_path):
    written = write_predictions(tmp_path / "out", "masks", segmented, CLASSES)
    root = tmp_path / "images"
    (written / "masks").rename(root / "masks")
    (written / "classes.txt").rename(root / "classes.txt")
    data = read_dataset(root)
    assert (data.kind, data.classes) == ("segmentation", CLASSES)
    truths = {sample.name: sample.target for sample in data.samples}
    for _, segmentation in segmented:
        np.testing.assert_array_equal(
            decode_mask(truths[segmentation.name], CLASSES), segmentation.mask
        )


def test_a_mask_of_many_classes_is_an_indexed_image(tmp_path):
    mask = np.arange(254, dtype=np.uint8).reshape(2, 127)
    (tmp_path / "m.png").write_bytes(mask_png(mask, 254))
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert len(set(map(tuple, np.asarray(image.convert("RGB"))[0, :20].tolist()))) == 20
        np.testing.assert_array_equal(np.asarray(image), mask)


@pytest.mark.parametrize("fixture", ["detected", "segmented"])
def test_overlays_are_the_images_and_something_on_them(fixture, request, tmp_path):
    pairs = request.getfixturevalue(fixture)
    written = write_predictions(tmp_path / "out", "overlay", pairs, CLASSES)
    for (sample, _), place in zip(pairs, PLACES, strict=True):
        overlay, plain = decode(written / place), decode(sample.image)
        assert overlay.shape == plain.shape
        has_some = fixture == "segmented" or place != PLACES[0]
        assert (overlay != plain).any() == has_some


def test_json_and_csv_say_the_same_of_objects(detected, tmp_path):
    answers = [values for _, values in detected]
    rows = list(csv.DictReader(as_csv(answers, CLASSES).splitlines()))
    plain = as_json(answers, CLASSES)
    assert [values["image"] for values in plain] == [values.name for values in answers]
    assert plain[0]["objects"] == []
    flat = [(values["image"], o) for values in plain for o in values["objects"]]
    assert len(rows) == len(flat) == 3
    for row, (name, o), box in zip(
        rows, flat, np.concatenate([a.boxes for a in answers]), strict=True
    ):
        assert (row["image"], row["label"]) == (name, o["label"])
        assert float(row["score"]) == pytest.approx(o["score"], abs=1e-6)
        sides = [float(row[side]) for side in ("left", "top", "right", "bottom")]
        np.testing.assert_allclose(sides, o["box"], atol=0.006)
        np.testing.assert_allclose(o["box"], box, atol=0.006)
    for form in ("json", "csv"):
        written = write_predictions(tmp_path / form, form, detected, CLASSES)
        assert [p.name for p in written.iterdir()] == [f"predictions.{form}"]
    assert json.loads((tmp_path / "json" / "predictions.json").read_text()) == plain


def test_json_and_csv_say_the_shares_of_masks(segmented):
    answers = [values for _, values in segmented]
    plain = as_json(answers, CLASSES)
    for values, answer in zip(plain, answers, strict=True):
        assert (values["width"], values["height"]) == answer.mask.shape[::-1]
        for i, name in enumerate(CLASSES):
            assert values["classes"][name] == pytest.approx((answer.mask == i).mean(), abs=1e-6)
    rows = list(csv.DictReader(as_csv(answers, CLASSES).splitlines()))
    assert [row["class"] for row in rows[:3]] == list(CLASSES)


def test_classes_of_images_go_to_a_folder_too(tmp_path):
    prediction = Prediction(name="a.jpg", label="cat", probability=0.9, probabilities={"cat": 0.9})
    written = write_predictions(
        tmp_path / "out", "csv", [(Sample(image=b""), prediction)], ("cat",)
    )
    assert (written / "predictions.csv").read_text().splitlines()[
        1
    ] == "a.jpg,cat,0.900000,0.900000"
    assert as_json([prediction], ("cat",))[0]["probabilities"] == {"cat": 0.9}
    assert as_csv([], ("cat",)) == ""


def test_scores_stand_behind_yolo_lines_on_request(images):
    detections = objects(images[2], 2)
    plain, scored = (
        yolo_text(detections).splitlines(),
        yolo_text(detections, scores=True).splitlines(),
    )
    for short, long, score in zip(plain, scored, detections.scores, strict=True):
        assert long.startswith(short + " ")
        assert float(long.split()[5]) == pytest.approx(float(score), abs=1e-6)


def test_files_are_named_after_images_each_once():
    names = ["/x/a/1.jpg", "/x/b/1.jpg", "/x/b/1.png", "/x/b/1-2.gif"]
    assert file_stems(names) == ("a/1", "b/1", "b/1-2", "b/1-2-2")
    assert file_stems(["<ndarray>"] * 3) == ("ndarray", "ndarray-2", "ndarray-3")
    assert file_stems(["/x/a.b.jpg"]) == ("a.b",)
    assert file_stems([]) == ()


def test_a_folder_with_files_is_never_touched(detected, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    for folder in (tmp_path / "mine", tmp_path / "mine" / "diary.txt"):
        with pytest.raises(UsageError, match="new or empty"):
            write_predictions(folder, "coco", detected, CLASSES)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["diary.txt"]
    (tmp_path / "empty").mkdir()
    assert (
        write_predictions(tmp_path / "empty", "coco", detected, CLASSES) / "images.json"
    ).exists()


def test_what_fails_half_way_leaves_nothing(segmented, tmp_path):
    def failing():
        yield segmented[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path / "runs" / "out", "masks", failing(), CLASSES)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(detected, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="--out"):
        write_predictions(tmp_path / "file" / "out", "coco", detected, CLASSES)


def test_every_format_is_written_or_shown_and_no_other_taken(detected, tmp_path):
    for task, forms in FORMATS.items():
        for form in forms:
            require_format(form, task)
        with pytest.raises(UnknownNameError, match=f"format for {task}"):
            require_format("jpg", task)
    with pytest.raises(UnknownNameError, match="format"):
        write_predictions(tmp_path / "out", "table", detected, CLASSES)


def test_images_and_classes_of_coco_count_from_one(detected):
    answers = [prediction for _, prediction in detected]
    document = coco_images(answers, CLASSES)
    assert [row["id"] for row in document["images"]] == [1, 2, 3]
    assert document["categories"][2] == {"id": 3, "name": CLASSES[2]}
    assert coco_results([], CLASSES) == []
