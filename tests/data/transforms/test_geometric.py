"""View transforms: on painted images, where every box and every mask can be read off the pixels."""

import numpy as np
import pytest

from headstart.data.dataset import IGNORED
from headstart.data.transforms.augment import PRESETS, Augmentation
from headstart.data.transforms.geometric import (
    MIN_CANVAS_SIDE,
    MIN_VISIBLE_SHARE,
    ViewTransform,
    draw_transform,
    transform_boxes,
    transform_mask,
    transform_pixels,
)
from headstart.errors import UsageError

COLOURS = np.array([[0, 0, 0], [250, 20, 20], [20, 250, 20], [20, 20, 250]], dtype=np.uint8)
SHAPES = [(96, 160), (160, 96), (128, 128)]
STRAIGHT = Augmentation(flip=True, flip_vertical=True, crop=0.3)
TURNED = Augmentation(flip=True, flip_vertical=True, crop=0.5, rotation=25)


def painted(shape: tuple[int, int], seed: int):
    """Three boxes side by side, one of each colour, and the same as pixels and as a mask."""
    rng = np.random.default_rng(seed)
    height, width = shape
    mask, boxes = np.zeros(shape, np.uint8), []
    for i in range(3):
        left = i * width // 3 + rng.integers(1, 5)
        right = left + rng.integers(18, width // 3 - 6)
        top = rng.integers(2, height // 2)
        bottom = top + rng.integers(18, height // 2 - 2)
        boxes.append((left, top, right, bottom))
        mask[top:bottom, left:right] = i + 1
    return COLOURS[mask], np.array(boxes, np.float32), np.arange(3), mask


def seen(pixels: np.ndarray) -> np.ndarray:
    """Which colour is nearest, as a mask: one of the channels is bright, or none is."""
    return np.where(pixels.max(axis=2) > 125, pixels.argmax(axis=2) + 1, 0)


def around(where: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(where)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = np.clip(sides, 0, None).prod()
    return both / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - both)


def overlaps(how: Augmentation, shape: tuple[int, int], n: int) -> np.ndarray:
    """Of every kept box with its colour, over many draws; and of boxes that were left behind."""
    found = []
    for seed in range(n):
        pixels, boxes, labels, _ = painted(shape, seed)
        moves = draw_transform(how, shape, np.random.default_rng(seed))
        moved = transform_pixels(pixels, moves, fill=(0, 0, 0))
        here, those, kept = transform_boxes(boxes, labels, shape, moves)
        places = [around(seen(moved) == label + 1) for label in those]
        found += [
            (overlap(box, place), overlap(old, place))
            for box, old, place in zip(here, boxes[kept], places, strict=True)
        ]
    assert len(found) > n  # most boxes are kept
    return np.array(found)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("how", "least"), [(STRAIGHT, 0.8), (TURNED, 0.5)], ids=["", "turned"])
def test_boxes_follow_the_pixels(shape, how, least):
    followed, left_behind = overlaps(how, shape, 50).T
    assert followed.min() > least
    assert left_behind.min() < 0.1  # the property can fail


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("how", [STRAIGHT, TURNED], ids=["", "turned"])
def test_masks_follow_the_pixels(shape, how):
    right = moved_out = 0
    for seed in range(50):
        pixels, *_, mask = painted(shape, seed)
        moves = draw_transform(how, shape, np.random.default_rng(seed))
        there = transform_mask(mask, moves)
        moved = transform_pixels(pixels, moves, fill=(0, 0, 0))
        colour = seen(moved)
        inside = (there != IGNORED) & ~edges(there)
        assert set(np.unique(there)) <= {0, 1, 2, 3, IGNORED}
        agree = (colour == there)[inside].mean()
        assert agree > 0.99
        right += agree
        moved_out += (there == IGNORED).any()
        assert inside.mean() > 0.3
    assert (moved_out > 0) == bool(how.rotation)


def edges(mask: np.ndarray) -> np.ndarray:
    """Pixels with another value beside them."""
    padded = np.pad(mask, 1, mode="edge")
    h, w = mask.shape
    around = [padded[1 + y : 1 + y + h, 1 + x : 1 + x + w] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return (np.stack(around) != mask).any(axis=0)


@pytest.mark.parametrize("angle", [90, 180, -90])
def test_right_angles_are_exact(angle):
    pixels, boxes, labels, mask = painted((120, 120), 0)
    moves = ViewTransform(angle=angle)
    turned = np.rot90(mask, angle // 90)
    np.testing.assert_array_equal(transform_mask(mask, moves), turned)
    np.testing.assert_array_equal(transform_pixels(pixels, moves), np.rot90(pixels, angle // 90))
    here, *_ = transform_boxes(boxes, labels, (120, 120), moves)
    exact = np.array([around(turned == i + 1) for i in range(3)])
    np.testing.assert_allclose(here, exact, atol=1e-3)


def test_turned_boxes_hold_the_turned_corners():
    """Against the rotation matrix, written out."""
    shape, angle = (100, 200), 30.0
    box = np.array([[80, 30, 130, 50]], np.float32)
    here, *_ = transform_boxes(box, np.zeros(1, np.int64), shape, ViewTransform(angle=angle))
    corners = np.array([(x, y) for x in box[0, ::2] for y in box[0, 1::2]]) - (100, 50)
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    turned = corners @ np.array([[c, -s], [s, c]]) + (100, 50)  # y points down
    np.testing.assert_allclose(here[0], [*turned.min(axis=0), *turned.max(axis=0)], atol=1e-3)


def test_windows_have_the_aspect_of_the_canvas_and_the_share_that_was_asked_for():
    rng = np.random.default_rng(0)
    for _ in range(200):
        top, left, height, width = draw_transform(Augmentation(crop=0.3), (96, 160), rng).window
        assert 0.3 - 0.02 <= height * width / (96 * 160) <= 1
        assert abs(width / height - 160 / 96) < 0.05
        assert 0 <= top <= 96 - height
        assert 0 <= left <= 160 - width


def test_boxes_out_of_sight_are_dropped_with_their_labels():
    boxes = np.array(
        [[0, 0, 10, 20], [49, 10, 70, 30], [58.5, 10, 70, 30], [70, 10, 78, 30]], np.float32
    )
    window = ViewTransform(window=(0, 60, 40, 40))
    here, labels, kept = transform_boxes(boxes, np.array([4, 5, 6, 7]), (40, 100), window)
    np.testing.assert_array_equal(kept, [False, True, True, True])
    np.testing.assert_array_equal(labels, [5, 6, 7])
    assert here[0].tolist() == [0, 10, 25, 30]  # 60 to 100 is stretched to 0 to 100
    narrow = ViewTransform(window=(0, 68, 32, 32))
    assert 2 / 21 < MIN_VISIBLE_SHARE < 2 / 8
    assert transform_boxes(boxes, labels=np.arange(4), shape=(40, 100), transform=narrow)[
        2
    ].tolist() == [
        False,
        False,
        False,
        True,
    ]
    assert MIN_CANVAS_SIDE == 2
    thin = np.array([[5, 5, 6.9, 30], [5, 5, 7, 30]], np.float32)
    assert transform_boxes(thin, np.arange(2), (40, 100), ViewTransform())[2].tolist() == [
        False,
        True,
    ]


def test_light_changes_pixels_and_nothing_else():
    pixels, boxes, labels, mask = painted((96, 160), 1)
    moves = ViewTransform(brightness=0.5, contrast=0.8)
    assert np.abs(transform_pixels(pixels, moves).astype(int) - pixels).max() > 50
    np.testing.assert_array_equal(transform_mask(mask, moves), mask)
    np.testing.assert_array_equal(transform_boxes(boxes, labels, (96, 160), moves)[0], boxes)


def test_settings_are_drawn_from_the_whole_range_and_only_where_they_are_on():
    rng = np.random.default_rng(3)
    every = Augmentation(
        flip=True, flip_vertical=True, rotation=40, brightness=0.3, contrast=0.2, crop=0.5
    )
    drawn = [draw_transform(every, (64, 64), rng) for _ in range(300)]
    for name, low, high in (("angle", -40, 40), ("brightness", 0.7, 1.3), ("contrast", 0.8, 1.2)):
        values = [getattr(moves, name) for moves in drawn]
        reach = high - low
        assert low <= min(values) < low + 0.1 * reach
        assert high - 0.1 * reach < max(values) <= high
    for name in ("flip", "flip_vertical"):
        assert 0.35 < np.mean([getattr(moves, name) for moves in drawn]) < 0.65
    assert draw_transform(Augmentation(), (64, 64), rng).is_identity


def test_nothing_is_changed_in_place_and_nothing_is_global():
    pixels, boxes, labels, mask = painted((96, 160), 2)
    kept = [one.copy() for one in (pixels, boxes, labels, mask)]
    for moves in (ViewTransform(), draw_transform(TURNED, (96, 160), np.random.default_rng(0))):
        for given in (pixels, mask):
            given.setflags(write=False)
        state = np.random.get_state()[1].copy()  # noqa: NPY002 - to see that it is left alone
        outs = transform_pixels(pixels, moves), transform_mask(mask, moves)
        transform_boxes(boxes, labels, (96, 160), moves)
        assert all(out.flags.writeable for out in outs)
        for one, before in zip((pixels, boxes, labels, mask), kept, strict=True):
            np.testing.assert_array_equal(one, before)
        np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_no_boxes_stay_no_boxes():
    moves = draw_transform(TURNED, (96, 160), np.random.default_rng(0))
    boxes, labels, kept = transform_boxes(
        np.zeros((0, 4), np.float32), np.zeros(0, np.int64), (96, 160), moves
    )
    assert boxes.shape == (0, 4)
    assert labels.shape == kept.shape == (0,)


def test_policies_are_refused_and_every_other_preset_is_not():
    for name in PRESETS:
        how = Augmentation.named(name)
        if how.policy == "none":
            assert draw_transform(how, (32, 32), np.random.default_rng(0)) is not None
    with pytest.raises(UsageError, match="trivialaugment"):
        draw_transform(Augmentation.named("strong"), (32, 32), np.random.default_rng(0))
