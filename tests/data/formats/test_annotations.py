"""Boxes lie where they were drawn, however the image is stored."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from headstart.data.dataset import Boxes
from headstart.data.formats.annotations import (
    as_shown,
    is_background,
    quick_header,
    split_in,
    turned,
)

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
    shown = ImageOps.exif_transpose(Image.open(painted(orientation)))
    assert tuple(turned([BOX], orientation, *SIZE)[0]) == shown.getbbox()


def test_no_boxes_turn_into_none():
    assert turned((), 6, *SIZE).shape == (0, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_stated_size_tells_what_was_drawn_on(tmp_path, orientation, kind):
    path = tmp_path / "a.img"
    painted(orientation, path, kind)
    head = quick_header(path)
    with Image.open(path) as image:
        shown = ImageOps.exif_transpose(image).point(lambda v: 255 * (v > 127))
    assert (head.width, head.height) == shown.size
    as_stored = Boxes(corners=(BOX,), labels=("a",), hard=(True,), size=SIZE)
    boxes, moved = as_shown(as_stored, head)
    assert moved == (orientation > 4)
    assert boxes.labels == ("a",)
    assert boxes.hard == (True,)
    assert boxes.size == shown.size
    if orientation > 4:  # the others have the same size turned: what is meant cannot be told
        assert boxes.corners == (shown.getbbox(),)
    drawn_as_shown = Boxes(corners=(shown.getbbox(),), labels=("a",), size=shown.size)
    assert as_shown(drawn_as_shown, head) == (drawn_as_shown, False)


def test_shares_become_pixels_of_the_image_as_shown(tmp_path):
    painted(6, tmp_path / "a.png")
    boxes, moved = as_shown(
        Boxes(corners=((0.25, 0.5, 0.5, 1.0),), labels=("a",)),
        quick_header(tmp_path / "a.png"),
        relative=True,
    )
    assert boxes.corners == ((3.0, 10.0, 6.0, 20.0),)
    assert not moved


def test_a_size_that_is_neither_is_left_for_the_checks(tmp_path):
    painted(6, tmp_path / "a.png")
    boxes = Boxes(corners=(BOX,), labels=("a",), size=(40, 24))
    assert as_shown(boxes, quick_header(tmp_path / "a.png")) == (boxes, False)
    assert as_shown(boxes, None) == (boxes, False)


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
    assert split_in(path) == split


def test_background_by_its_usual_names():
    assert all(map(is_background, ("Background", "__background__", " bg ")))
    assert not any(map(is_background, ("", "ground", "back")))
