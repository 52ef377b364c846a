"""Placement: there and back, against the pixels themselves and torch's nearest neighbour."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from headstart.data.dataset import IGNORED
from headstart.data.transforms.placement import Placement, canvas_for
from headstart.errors import UsageError

SIZES = [(480, 640), (37, 300), (300, 37), (20, 20), (1, 1), (8, 4000)]
CANVASES = [(64, 64), (96, 160), (320, 224)]
BOTH = list(itertools.product(SIZES, CANVASES))


def boxes_in(height: int, width: int, n: int = 20) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    x, y = (np.sort(rng.uniform(0, top, (n, 2)), axis=1) for top in (width, height))
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)


@pytest.mark.parametrize(("size", "canvas"), BOTH, ids=str)
def test_boxes_come_back(size, canvas):
    place, boxes = Placement.of(*size, canvas=canvas), boxes_in(*size)
    there = place.boxes_to_canvas(boxes)
    assert there.dtype == np.float32
    assert there.max(axis=0)[2] <= place.columns + 1e-4
    assert there.max(axis=0)[3] <= place.rows + 1e-4
    np.testing.assert_allclose(place.boxes_to_image(there), boxes, atol=1e-3)


@pytest.mark.parametrize(("size", "canvas"), BOTH, ids=str)
def test_the_image_is_whole_and_touches_two_sides(size, canvas):
    place = Placement.of(*size, canvas=canvas)
    assert place.rows <= canvas[0]
    assert place.columns <= canvas[1]
    assert place.rows == canvas[0] or place.columns == canvas[1]
    scale = place.rows / size[0], place.columns / size[1]
    assert abs(scale[0] * size[0] - scale[1] * size[0]) <= max(1, size[0] / size[1])


@pytest.mark.parametrize(("size", "canvas"), BOTH, ids=str)
def test_masks_are_looked_up_at_the_centres(size, canvas):
    mask = np.random.default_rng(0).integers(0, 5, size, dtype=np.uint8)
    place = Placement.of(*size, canvas=canvas)
    there = place.mask_to_canvas(mask)
    assert there.shape == canvas
    here = torch.from_numpy(mask)[None, None].float()
    reference = interpolate(here, size=(place.rows, place.columns), mode="nearest-exact")
    inside = there[: place.rows, : place.columns]
    # Where a centre falls between two pixels, floating point may take the other one.
    assert (inside == reference[0, 0].numpy()).mean() > 0.9
    there[: place.rows, : place.columns] = IGNORED
    assert (there == IGNORED).all()


def test_masks_come_back_whole_when_they_were_enlarged():
    mask = np.random.default_rng(0).integers(0, 9, (20, 31), dtype=np.uint8)
    place = Placement.of(20, 31, canvas=(64, 64))
    np.testing.assert_array_equal(place.mask_to_image(place.mask_to_canvas(mask)), mask)


@pytest.mark.parametrize("canvas", CANVASES, ids=str)
def test_masks_come_back_but_for_edges_when_they_were_reduced(canvas):
    mask = np.zeros((480, 640), dtype=np.uint8)
    mask[100:300, 200:500] = 3
    place = Placement.of(480, 640, canvas=canvas)
    back = place.mask_to_image(place.mask_to_canvas(mask))
    assert back.shape == mask.shape
    edge = 480 / place.rows  # a pixel of the canvas, at each of four sides
    assert (back != mask).sum() <= edge * (2 * 200 + 2 * 300)


def test_boxes_and_masks_agree():
    mask = np.zeros((333, 500), dtype=np.uint8)
    mask[50:150, 100:350] = 1
    place = Placement.of(333, 500, canvas=(96, 160))
    box = place.boxes_to_canvas(np.array([[100, 50, 350, 150]]))[0]
    y, x = np.nonzero(place.mask_to_canvas(mask) == 1)
    np.testing.assert_allclose(box, [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=0.51)


def test_boxes_in_the_filling_come_back_inside_the_image():
    place = Placement.of(50, 100, canvas=(64, 64))
    back = place.boxes_to_image(np.array([[-5, -5, 70, 70], [0, 40, 64, 64]], np.float32))
    np.testing.assert_allclose(back, [[0, 0, 100, 50], [0, 50, 100, 50]])


def test_no_boxes_are_an_answer():
    place = Placement.of(50, 100, canvas=(64, 64))
    assert place.boxes_to_canvas(np.zeros((0, 4))).shape == (0, 4)
    assert place.boxes_to_image(np.zeros((0, 4))).dtype == np.float32


def test_refuses_what_has_no_place():
    place = Placement.of(50, 100, canvas=(64, 64))
    with pytest.raises(UsageError, match=r"\(n, 4\)"):
        place.boxes_to_canvas(np.zeros(4))
    with pytest.raises(UsageError, match="image's size"):
        place.mask_to_canvas(np.zeros((64, 64), np.uint8))
    with pytest.raises(UsageError, match="canvas's size"):
        place.mask_to_image(np.zeros((50, 100), np.uint8))
    with pytest.raises(UsageError, match="1 pixel or more"):
        Placement.of(0, 100, canvas=(64, 64))


@pytest.mark.parametrize(
    ("sizes", "long_side", "expected"),
    [
        ([(480, 640)], 320, (256, 320)),
        ([(480, 640), (640, 480)], 320, (320, 320)),
        ([(100, 1000)], 256, (32, 256)),
        ([(10, 20)], 100, (64, 128)),
    ],
)
def test_canvas_is_the_smallest_that_holds_all(sizes, long_side, expected):
    canvas = canvas_for(sizes, long_side)
    assert canvas == expected
    for size in sizes:
        place = Placement.of(*size, canvas=canvas)
        assert max(place.rows, place.columns) >= long_side
    assert max(canvas) < long_side + 32


def test_canvas_of_no_image_is_refused():
    with pytest.raises(UsageError, match="one image or more"):
        canvas_for([], 320)
    with pytest.raises(UsageError, match="1 or more"):
        canvas_for([(10, 10)], 0)
