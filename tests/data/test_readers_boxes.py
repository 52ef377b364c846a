"""Whatever the format, the same boxes come out, on the image as it is shown."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data.checks.boxes import clean_boxes
from headstart.data.dataset import Boxes
from headstart.data.formats.box_files import find_box_annotations
from headstart.data.formats.layouts import list_folder
from headstart.data.readers import read_dataset
from headstart.errors import DataError, HeadstartError, LayoutError, UsageError

WIDTH, HEIGHT = 40, 20
CORNERS = {"a": ((4, 5, 14, 10), (0, 0, 40, 20)), "b": (), "c": ((20, 10, 30, 20),)}
NAMES = ("cat", "dog")  # object number i of an image is of class i


def save(path, orientation=1, size=(WIDTH, HEIGHT)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, exif=exif)


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def as_coco(root):
    images, annotations = [], []
    for key, boxes in CORNERS.items():
        save(root / "images" / f"{key}.jpg")
        image = {"id": key, "file_name": f"{key}.jpg", "width": WIDTH, "height": HEIGHT}
        images.append(image)
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            annotations.append(
                {"image_id": key, "category_id": i, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            )
    categories = [{"id": i, "name": name} for i, name in enumerate((*NAMES, "unused"))]
    value = {"images": images, "annotations": annotations, "categories": categories}
    write(root, "annotations/all.json", value)
    return "images"


def as_voc(root):
    for key, boxes in CORNERS.items():
        save(root / "JPEGImages" / f"{key}.jpg")
        objects = "".join(
            f"<object><name>{NAMES[i]}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for i, (x0, y0, x1, y1) in enumerate(boxes)
        )
        write(root, f"Annotations/{key}.xml", f"<annotation>{objects}</annotation>")
    return "JPEGImages"


def as_yolo(root):
    for key, boxes in CORNERS.items():
        save(root / "images" / f"{key}.jpg")
        rows = (
            f"{i} {(x0 + x1) / 2 / WIDTH} {(y0 + y1) / 2 / HEIGHT} "
            f"{(x1 - x0) / WIDTH} {(y1 - y0) / HEIGHT}\n"
            for i, (x0, y0, x1, y1) in enumerate(boxes)
        )
        write(root, f"labels/{key}.txt", "".join(rows))
    write(root, "data.yaml", "names: [cat, dog, unused]\n")
    return "images"


FORMATS = {"COCO": as_coco, "Pascal VOC": as_voc, "YOLO": as_yolo}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_data(tmp_path, name):
    folder = FORMATS[name](tmp_path)
    write(tmp_path, "prices.csv", "path,label\nx.jpg,1\n")
    data = read_dataset(tmp_path)
    assert (data.kind, data.classes, data.name) == ("detection", NAMES, tmp_path.name)
    assert [s.image for s in data.samples] == [tmp_path / folder / f"{k}.jpg" for k in "abc"]
    for sample, boxes in zip(data.samples, CORNERS.values(), strict=True):
        assert isinstance(sample.target, Boxes)
        assert sample.target.array().tolist() == [list(box) for box in boxes]
        assert sample.target.labels == NAMES[: len(boxes)]
    assert data.counts() == {"cat": 2, "dog": 1}
    assert data.notes[0].startswith(name)
    text = "\n".join(data.notes)
    assert "task: detection because" in text
    assert "3 objects in 3 images" in text
    assert "1 images without objects: used as negatives in training" in text
    assert "tables in the same folder not read: 'prices.csv'" in text
    assert ("1 classes without any object left out: 'unused'" in text) == (name != "Pascal VOC")
    assert read_dataset(tmp_path, task_kind="detection") == data


@pytest.mark.parametrize("name", FORMATS)
def test_groups_by_expression_and_one_class(tmp_path, name):
    FORMATS[name](tmp_path)
    data = read_dataset(tmp_path, group_by=r"[ab]\.jpg")
    assert [s.group for s in data.samples] == ["a.jpg", "b.jpg", None]
    with pytest.raises(UsageError, match="matches none"):
        read_dataset(tmp_path, group_by="zzz")
    with pytest.raises(LayoutError, match=f"{name}.*Remove --task"):
        read_dataset(tmp_path, task_kind="multilabel")


@pytest.mark.parametrize("start", ["", "annotations"])
def test_a_coco_file_finds_its_images_around_it(tmp_path, start, monkeypatch):
    as_coco(tmp_path)
    monkeypatch.chdir(tmp_path / start)
    name = "all.json" if start else "annotations/all.json"
    for path in (name, tmp_path / "annotations" / "all.json"):
        data = read_dataset(path)
        assert all(Path(s.image).is_file() for s in data.samples)
        assert data.counts() == {"cat": 2, "dog": 1}


def test_one_of_several_coco_files(tmp_path):
    as_coco(tmp_path)
    value = json.loads((tmp_path / "annotations/all.json").read_text())
    for part in ("train", "test"):
        images = value["images"][:1]
        own = [a for a in value["annotations"] if a["image_id"] == images[0]["id"]]
        write(tmp_path, f"annotations/{part}.json", value | {"images": images, "annotations": own})
    assert len(read_dataset(tmp_path / "annotations" / "train.json")) == 1
    assert {s.split for s in read_dataset(tmp_path / "annotations/train.json").samples} == {None}


def test_many_json_files_are_all_read_once_one_is_coco(tmp_path):
    for i in range(25):
        save(tmp_path / f"{i}.jpg")
        image = {"id": 1, "file_name": f"{i}.jpg"}
        box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
        names = [{"id": 1, "name": "cat"}]
        write(tmp_path, f"{i}.json", {"images": [image], "annotations": [box], "categories": names})
    assert read_dataset(tmp_path).counts() == {"cat": 25}


def test_boxes_turn_with_the_image(tmp_path):
    as_coco(tmp_path / "coco")
    as_yolo(tmp_path / "yolo")
    for root in ("coco/images", "yolo/images"):
        save(tmp_path / root / "c.jpg", orientation=6)
    data = read_dataset(tmp_path / "coco")
    assert data.samples[2].target == Boxes(
        corners=((0, 20, 10, 30),), labels=("cat",), size=(HEIGHT, WIDTH)
    )
    assert any("boxes of 1 images rotated by EXIF" in note for note in data.notes)
    shares = read_dataset(tmp_path / "yolo").samples[2].target  # of the image as shown
    assert shares.corners == ((10, 20, 15, 40),)


def test_images_of_unreadable_size_are_left_to_the_scan(tmp_path):
    as_yolo(tmp_path)
    (tmp_path / "images" / "c.jpg").write_bytes(b"no image")
    data = read_dataset(tmp_path)
    assert data.samples[2].target.labels == ("cat",)


def test_negatives_first_do_not_hide_yolo_labels(tmp_path):
    for i in range(20):
        save(tmp_path / "images" / f"{i:02}.jpg")
        write(tmp_path, f"labels/{i:02}.txt", "" if i < 19 else "0 0.5 0.5 0.5 0.5")
    assert find_box_annotations(tmp_path, list_folder(tmp_path)).format == "yolo"
    assert read_dataset(tmp_path).counts() == {"0": 1}


def test_boxes_that_are_asked_for_and_not_there(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "meta.json"):
        write(tmp_path, name, "{}")
    with pytest.raises(LayoutError, match=r"boxes for detection in .*, got none.*COCO.*VOC.*YOLO"):
        read_dataset(tmp_path, task_kind="detection")
    assert read_dataset(tmp_path).kind == "multiclass"
    with pytest.raises(LayoutError, match="Expected a folder or a manifest"):
        read_dataset(tmp_path / "meta.json")


def test_data_without_any_object(tmp_path):
    as_coco(tmp_path)
    value = json.loads((tmp_path / "annotations/all.json").read_text())
    write(tmp_path, "annotations/all.json", value | {"annotations": []})
    with pytest.raises(DataError, match="at least 1 class with images"):
        read_dataset(tmp_path)


SPOILERS = (b"-", b"9", b"e9", b"nan", b"\0", b"null", b"[]", b"{}", b"\n", b"<a>", b"\xff", b"../",
            b"1e999", b"9" * 400, b"true", b'"', b"&x;", b"<!DOCTYPE x>")  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_spoiled_files_are_read_or_refused_and_nothing_else(tmp_path, name):
    FORMATS[name](tmp_path)
    rng = np.random.default_rng(0)
    files = sorted(p for p in tmp_path.rglob("*.*") if p.suffix != ".jpg")
    refused = 0
    for _ in range(120):
        path = files[rng.integers(len(files))]
        content = path.read_bytes()
        at = int(rng.integers(len(content) + 1))
        cut = int(rng.choice([0, 0, 1, 20, 10**6]))
        path.write_bytes(content[:at] + SPOILERS[rng.integers(len(SPOILERS))] + content[at + cut :])
        try:
            clean_boxes(read_dataset(tmp_path))
        except HeadstartError as error:
            refused += 1
            assert str(error).startswith("Expected")  # noqa: PT017 - what else it may do is nothing
        path.write_bytes(content)
    assert 20 < refused < 120
