"""Boxes lie where they were drawn, however the image is stored."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from headstart.data.checks.images import ImageRecord, check
from headstart.data.dataset import Boxes
from headstart.data.formats.annotations import (
    is_background,
    orient_boxes,
    quick_header,
    split_from_path,
    to_upright,
)
from headstart.data.readers import read_dataset

BOX = (3, 2, 9, 6)
SIZE = (20, 12)


def painted(orientation, path=None, kind="PNG"):
    """A black image with BOX in white, stored with an EXIF orientation."""
    pixels = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = path or io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind, exif=exif.tobytes())
    return out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_as_pillow_turns_the_image(orientation):
    upright = ImageOps.exif_transpose(Image.open(painted(orientation)))
    assert tuple(orient_boxes([BOX], orientation, *SIZE)[0]) == upright.getbbox()


def test_no_boxes_turn_into_none():
    assert orient_boxes((), 6, *SIZE).shape == (0, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_stated_size_tells_what_was_drawn_on(tmp_path, orientation, kind):
    path = tmp_path / "a.img"
    painted(orientation, path, kind)
    head = quick_header(path)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).point(lambda v: 255 * (v > 127))
    assert (head.width, head.height) == upright.size
    as_stored = Boxes(corners=(BOX,), labels=("a",), hard=(True,), size=SIZE)
    boxes, moved = to_upright(as_stored, head)
    assert moved == (orientation > 4)
    assert boxes.labels == ("a",)
    assert boxes.hard == (True,)
    assert boxes.size == upright.size
    if orientation > 4:  # the others have the same size orient_boxes: the stated size cannot decide
        assert boxes.corners == (upright.getbbox(),)
    drawn_as_shown = Boxes(corners=(upright.getbbox(),), labels=("a",), size=upright.size)
    assert to_upright(drawn_as_shown, head) == (drawn_as_shown, False)


def test_shares_become_pixels_of_the_image_as_shown(tmp_path):
    painted(6, tmp_path / "a.png")
    boxes, moved = to_upright(
        Boxes(corners=((0.25, 0.5, 0.5, 1.0),), labels=("a",)),
        quick_header(tmp_path / "a.png"),
        relative=True,
    )
    assert boxes.corners == ((3.0, 10.0, 6.0, 20.0),)
    assert not moved


def test_a_size_that_is_neither_is_left_for_the_checks(tmp_path):
    painted(6, tmp_path / "a.png")
    boxes = Boxes(corners=(BOX,), labels=("a",), size=(40, 24))
    assert to_upright(boxes, quick_header(tmp_path / "a.png")) == (boxes, False)
    assert to_upright(boxes, None) == (boxes, False)


def test_headers_of_broken_and_odd_files(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    assert quick_header(tmp_path / "text.jpg") is None
    assert quick_header(tmp_path) is None
    (tmp_path / "big.txt").write_bytes(b"x" * 70000)
    assert quick_header(tmp_path / "big.txt") is None
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "big.tif")  # its directory lies behind the pixels
    head = quick_header(tmp_path / "big.tif")
    assert (head.width, head.height) == (300, 200)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/_annotations.coco.json", "train"),
        ("instances_train2017.json", "train"),
        ("data/test/val.json", "val"),
        ("test_tubes/a.json", "test"),
        ("latest/trains.json", None),
        ("", None),
    ],
)
def test_words_that_name_a_part(path, split):
    assert split_from_path(path) == split


def test_background_by_its_usual_names():
    assert all(map(is_background, ("Background", "__background__", " bg ")))
    assert not any(map(is_background, ("", "ground", "back")))


def annotated_set(root, style, n_images, n_missing, n_empty=0):
    """A folder of images; the last ones have no annotations, and some files are empty."""
    boxes = ["0 0.5 0.5 0.2 0.2\n"] * (n_images - n_empty) + [""] * n_empty
    lists = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for i in range(n_images):
        path = root / "images" / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        is_missing = i < n_missing
        if style == "coco" or (style == "coco-entry" and not is_missing):
            lists["images"].append({"id": i, "file_name": path.name})
        if style.startswith("coco") and not is_missing:
            box = {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5]}
            lists["annotations"].append(box)
        elif style == "yolo" and not is_missing:
            label = root / "labels" / f"{i:03}.txt"
            label.parent.mkdir(exist_ok=True)
            label.write_text(boxes[i])
        elif style == "voc" and not is_missing:
            shape = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax>"
            shape = f"{shape}<ymax>5</ymax></bndbox></object>" if boxes[i] else ""
            path.with_suffix(".xml").write_text(f"<annotation>{shape}</annotation>")
    if style.startswith("coco"):
        (root / "boxes.json").write_text(json.dumps(lists))
    return root


@pytest.mark.parametrize(
    ("style", "n_missing", "n_empty", "words"),
    [
        ("voc", 3, 0, "3 of 40 images (8 %) have no annotation file: used as images without"),
        ("voc", 2, 0, ""),  # 5 %
        ("voc", 0, 20, ""),  # files without objects say that there are none
        ("voc", 30, 5, "30 of 40 images (75 %) have no annotation file"),
        ("yolo", 3, 0, "3 of 40 images (8 %) have no label file: used as images without objects"),
        ("yolo", 2, 0, ""),
        ("yolo", 0, 20, ""),
        ("coco", 3, 0, "3 of 40 images (8 %) have no annotation in the files: used as images"),
        ("coco", 2, 0, ""),
        ("coco-entry", 3, 0, "3 of 40 images (8 %) have no entry in the COCO files: left out"),
        ("coco-entry", 2, 0, ""),
    ],
)
def test_a_half_annotated_set_is_a_warning(tmp_path, style, n_missing, n_empty, words):
    data = read_dataset(annotated_set(tmp_path, style, 40, n_missing, n_empty), min_classes=1)
    assert len(data.warnings) == bool(words)
    assert "".join(data.warnings).startswith(words)
    records = [ImageRecord(digest=sample.name) for sample in data.samples]
    kinds = [f.severity for f in check(data, records) if f.kind == "half-annotated"]
    assert kinds == ["warning"] * bool(words)
