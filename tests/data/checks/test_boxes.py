"""Boxes that cannot be learned from are named and left out; the others are left alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headstart.cache import Cache
from headstart.data.checks.boxes import (
    clean_boxes,
    find_boxless,
    keep_boxed,
    require_matching_sizes,
)
from headstart.data.checks.scan import ImageRecord, scan
from headstart.data.dataset import Boxes, Dataset, Sample
from headstart.data.prepare import inspect_dataset, prepare
from headstart.data.splits import kfold
from headstart.errors import DataError, UsageError
from headstart.workflows.evaluate import labelled_part

WIDTH, HEIGHT = 40, 30
GOOD = (2.0, 3.0, 20.0, 25.0)


def dataset(*targets, image=None):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8) if image is None else image
    samples = tuple(
        Sample(image=pixels, target=target, title=f"{i}.jpg") for i, target in enumerate(targets)
    )
    return Dataset(samples=samples, classes=("cat", "dog"), kind="detection")


def boxes(*corners, labels=None, **more):
    return Boxes(corners=corners, labels=labels or ("cat",) * len(corners), **more)


def settle(target):
    clean, findings = clean_boxes(dataset(target))
    return clean.samples[0].target, [(f.kind, f.severity, f.message) for f in findings]


@pytest.mark.parametrize(
    "target",
    [
        Boxes(),
        Boxes(size=(WIDTH, HEIGHT)),
        boxes(GOOD, size=(WIDTH, HEIGHT)),
        boxes(GOOD, (0, 0, WIDTH, HEIGHT), hard=(True, False)),
        boxes(GOOD, GOOD, labels=("cat", "dog")),
        None,
    ],
)
def test_sound_boxes_are_the_same_objects(target):
    clean, _ = clean_boxes(dataset(target))
    assert clean.samples[0].target is target


@pytest.mark.parametrize(
    ("corners", "kind", "words", "left"),
    [
        ((5, 5, 5, 9), "box-empty", "1 box left out (at most 1 pixel wide or high): cat at", None),
        ((5, 5, 6, 9), "box-empty", "cat at 5, 5, 6, 9", None),
        ((9, 9, 5, 5), "box-empty", "cat at 9, 9, 5, 5", None),
        ((50, 5, 60, 9), "box-outside", "left out (outside the image of 40 x 30): cat", None),
        ((-9, 5, 0.5, 9), "box-outside", "outside the image", None),
        ((-1, -0.5, 41.5, 9), None, None, (0, 0, 40, 9)),
        ((-2, 5, 10, 9), "box-outside", "reaching out of the image of 40 x 30", (0, 5, 10, 9)),
        (
            (30, 5, 10000, 9),
            "box-outside",
            "clipped (reaching out of the image of 40 x 30): cat at 30, 5, 10000, 9",
            (30, 5, 40, 9),
        ),
    ],
)
def test_each_wrong_box_is_named_and_the_others_stay(corners, kind, words, left):
    target = boxes(GOOD, corners, labels=("dog", "cat"), hard=(False, True))
    clean, findings = settle(target)
    assert clean.corners == ((GOOD,) if left is None else (GOOD, left))
    assert clean.labels == (("dog",) if left is None else ("dog", "cat"))
    assert clean.hard == ((False,) if left is None else (False, True))
    if kind is None:
        assert findings == []
        return
    ((found, severity, message),) = findings
    assert (found, severity) == (kind, "warning")
    assert message.startswith("0.jpg: 1 box ")
    assert words in message


def test_repeated_boxes_and_boxes_of_two_classes():
    target = boxes(GOOD, GOOD, GOOD, (1, 1, 9, 9), labels=("cat", "cat", "dog", "cat"))
    clean, findings = settle(target)
    assert clean.labels == ("cat", "dog", "cat")
    assert findings == [
        ("box-repeated", "warning", "0.jpg: 1 box left out (repeated): cat at 2, 3, 20, 25"),
        ("label-conflict", "warning", "0.jpg: the same box is labelled cat and dog"),
    ]


def test_many_boxes_make_one_finding():
    target = boxes(*((i, i, i, i) for i in range(9)))
    clean, ((kind, _, message),) = settle(target)
    assert clean.labels == ()
    assert kind == "box-empty"
    assert "9 boxes" in message
    assert message.endswith("cat at 2, 2, 2, 2 and 6 more")


def test_another_size_is_an_error_only_where_boxes_do_not_fit():
    fits, findings = settle(boxes(GOOD, size=(80, 60)))
    assert fits.corners == (GOOD,)
    expected = "0.jpg: the annotation states 80 x 60, the image has 40 x 30"
    assert findings == [("box-size", "warning", expected)]
    data = dataset(boxes((30, 30, 70, 50), size=(80, 60)), boxes(GOOD, size=(41, 30)))
    _, findings = clean_boxes(data)
    assert [(f.kind, f.severity, f.paths) for f in findings if f.kind == "box-size"] == [
        ("box-size", "error", ("0.jpg",)),
        ("box-size", "warning", ("1.jpg",)),
    ]
    with pytest.raises(DataError, match=r"(?s)got 1 images of another size.*0\.jpg.*30 pixels"):
        require_matching_sizes(findings)


@given(st.lists(st.tuples(*[st.floats(-20, 60)] * 4), max_size=6))
def test_what_is_settled_lies_inside_and_stays(corners):
    clean, findings = clean_boxes(dataset(boxes(*corners)))
    array = clean.samples[0].target.array()
    assert (array >= 0).all()
    assert (array <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
    assert (array[:, 2:] > array[:, :2]).all()
    again, none = clean_boxes(clean)
    assert again == clean or again.samples[0].target == clean.samples[0].target
    assert none == ()
    gone = len(corners) - len(array)
    assert bool(gone) <= bool(findings)


def test_sizes_from_records_headers_and_bytes_agree(tmp_path):
    image = Image.new("RGB", (WIDTH, HEIGHT))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown as 30 x 40
    image.save(tmp_path / "a.jpg", exif=exif)
    target = boxes((0, 0, 40, 40), size=(HEIGHT, WIDTH))
    for pil_image in (tmp_path / "a.jpg", (tmp_path / "a.jpg").read_bytes()):
        data = dataset(target, image=pil_image)
        clean, _ = clean_boxes(data)
        assert clean.samples[0].target.corners == ((0, 0, 30, 40),)
        assert clean_boxes(data, scan(data.samples)) == clean_boxes(data)


@pytest.mark.parametrize(
    ("orientation", "size", "stated", "unclear"),
    [
        (6, (40, 30), (30, 40), False),
        (6, (40, 30), None, True),
        (6, (30, 30), (30, 30), True),
        (3, (40, 30), (40, 30), True),
        (1, (40, 30), None, False),
    ],
)
def test_turned_images_whose_boxes_may_not_be(tmp_path, orientation, size, stated, unclear):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(tmp_path / "a.jpg", exif=exif)
    data = dataset(boxes(GOOD, size=stated), Boxes(size=stated), image=tmp_path / "a.jpg")
    for records in (None, scan(data.samples)):
        _, findings = clean_boxes(data, records)
        assert [(f.kind, f.paths) for f in findings] == [("box-turned", ("0.jpg",))] * unclear


def test_images_that_cannot_be_read_keep_their_boxes(tmp_path):
    data = dataset(boxes((5, 5, 5, 5)), image=tmp_path / "no-such.jpg")
    assert clean_boxes(data) == (data, ())
    assert clean_boxes(data, [ImageRecord(digest="", problem="no such file")]) == (data, ())
    with pytest.raises(UsageError, match="one record for each of 1 samples, got 0"):
        clean_boxes(data, [])


def test_other_tasks_are_left_alone():
    data = Dataset(samples=(Sample(image=b"", target="cat"),), classes=("cat",))
    assert clean_boxes(data) == (data, ())


# ---------------------------------------------------------------- a whole set


def scene(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def cells(tmp_path):
    """Twelve images of four films: every third without objects, one with a box of no area."""
    root = tmp_path / "cells"
    root.mkdir()
    images, annotations = [], []
    for i in range(12):
        scene(i).save(root / f"{i}.png")
        size = {"width": WIDTH, "height": HEIGHT}
        images.append({"id": i, "file_name": f"{i}.png", "video_id": i // 3, **size})
        if i % 3:
            box = {"image_id": i, "category_id": i % 2, "bbox": [2, 2, 10, 10 if i != 7 else 0]}
            annotations.append({"id": i, **box})
            annotations.append({"id": 100 + i, **box, "category_id": 1, "bbox": [5, 5, 9, 9]})
    categories = [{"id": 0, "name": "red"}, {"id": 1, "name": "white"}, {"id": 2, "name": "none"}]
    value = {"images": images, "annotations": annotations, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(value))
    return root


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def test_a_set_is_read_checked_and_split(cells, cache):
    prepared = prepare(cells, cache=cache, test_fraction=0.25)
    data = prepared.data
    assert (data.kind, data.classes, len(data)) == ("detection", ("red", "white"), 12)
    assert sum(not sample.target.labels for sample in data.samples) == 4
    assert data.counts() == {"red": 4, "white": 11}
    found = {finding.kind: finding.message for finding in reversed(prepared.findings)}
    assert found.keys() == {"box-empty", "rare-class", "half-annotated"}
    assert "7.png: 1 box left out (at most" in found["box-empty"]
    n_red = prepared.train.counts()["red"]
    assert found["rare-class"] == f"class 'red' has only {n_red} objects to learn from"
    sides = {sample.group: {s.split for s in data.samples if s.group == sample.group}
             for sample in data.samples}  # fmt: skip
    assert len(sides) == 4
    assert all(len(side) == 1 for side in sides.values())
    assert len(prepared.test) == 3
    assert any(not sample.target.labels for sample in prepared.train.samples)
    assert inspect_dataset(cells, cache=cache)[0].counts() == data.counts()


def test_folds_of_a_detection_set(cells, cache):
    data = prepare(cells, cache=cache).data
    folds = kfold(data.targets(), 4, blocks=data.groups())
    assert sorted(i for _, test in folds for i in test) == list(range(12))


def test_images_that_were_scaled_without_their_boxes_are_refused(cells, cache):
    for path in cells.glob("*.png"):
        Image.open(path).resize((8, 6)).save(path)
    with pytest.raises(DataError, match="Expected boxes that lie in their images, got 8"):
        prepare(cells, cache=cache, allow_overlap=True)
    _, findings = inspect_dataset(cells, cache=cache)
    assert {f.severity for f in findings if f.kind == "box-size"} == {"error", "warning"}


def test_a_missing_image_is_an_error_or_skipped(cells, cache):
    (cells / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png: no such file"):
        prepare(cells, cache=cache)
    assert len(prepare(cells, cache=cache, bad_files="skip").data) == 11


@pytest.mark.parametrize(
    ("target", "is_left_out"),
    [
        (boxes((5, 5, 5, 9)), True),  # no width
        (boxes((5, 5, 9, 5)), True),  # no height
        (boxes((5, 5, 6, 9)), True),  # a pixel
        (boxes((9, 9, 5, 5)), True),  # corners swapped
        (boxes((50, 2, 60, 9)), True),  # outside
        (boxes((2, -20, 9, -4)), True),
        (boxes((39.5, 2, 60, 9)), True),  # nothing of it left after clipping
        (boxes((5, 5, 5, 9), (50, 2, 60, 9)), True),
        (boxes((5, 5, 5, 9), hard=(True,)), True),
        (boxes((5, 5, 5, 9), GOOD), False),
        (boxes((-5, -5, 50, 50)), False),  # clipped
        (boxes(GOOD, GOOD), False),  # repeated
        (boxes(GOOD, hard=(True,)), False),
        (Boxes(), False),  # a negative
    ],
)
def test_an_image_whose_boxes_are_all_invalid_is_no_negative(target, is_left_out):
    data = dataset(boxes(GOOD), target, Boxes())
    clean, _ = clean_boxes(data)
    findings = find_boxless(data, clean)
    kept, records = keep_boxed(clean, scan(data.samples), findings)
    names = [sample.name for sample in kept.samples]
    assert names == (["0.jpg", "2.jpg"] if is_left_out else ["0.jpg", "1.jpg", "2.jpg"])
    assert len(records) == len(kept)
    assert [(f.kind, f.paths, f.rows) for f in findings] == [
        ("box-none", ("1.jpg",), (1,))
    ] * is_left_out


def test_only_invalid_boxes_are_an_error():
    data = dataset(boxes((5, 5, 5, 9)))
    clean, _ = clean_boxes(data)
    with pytest.raises(DataError, match="1 images without one"):
        keep_boxed(clean, scan(data.samples), find_boxless(data, clean))


def test_training_and_evaluation_leave_out_images_without_a_valid_box(tmp_path, cache):
    rng = np.random.default_rng(0)
    lists = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for i in range(12):
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        lists["images"].append({"id": i, "file_name": f"{i}.png"})
        box = [5, 5, 0, 9] if i == 3 else [5, 5, 9, 9]
        lists["annotations"].append({"id": i, "image_id": i, "category_id": 1, "bbox": box})
    (tmp_path / "boxes.json").write_text(json.dumps(lists))
    (tmp_path / "4.png").write_bytes(b"damaged")  # rows are those of the whole data set
    prepared = prepare(tmp_path, cache=cache, bad_files="skip")
    left = {Path(sample.name).name for sample in prepared.data.samples}
    assert left == {f"{i}.png" for i in range(12)} - {"3.png", "4.png"}
    assert len(prepared.records) == 10
    message = next(f.message for f in prepared.findings if f.kind == "box-none")
    assert message.startswith("1 image left out, because none of its boxes is valid")
    part = labelled_part(tmp_path, "detection", "test", cache=cache, bad_files="skip")
    assert {Path(sample.name).name for sample in part.samples} == left
