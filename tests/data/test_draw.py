"""Drawn boxes and masks: where they are, what stays, and that they can be told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headstart.data.draw import class_colours, draw_boxes, draw_mask, hex_colours, resize_to_fit
from headstart.errors import UsageError

CLASSES = ("cell", "platelet")


def grey(height: int = 120, width: int = 160, tone: int = 128) -> np.ndarray[Any, Any]:
    return np.full((height, width, 3), tone, dtype=np.uint8)


def places_of(image: np.ndarray[Any, Any], colour: np.ndarray[Any, Any]) -> set[tuple[int, int]]:
    rows, columns = np.nonzero((image == colour).all(axis=-1))
    return {(int(y), int(x)) for y, x in zip(rows, columns, strict=True)}


def test_a_box_is_where_it_is_and_nothing_else_changes() -> None:
    before = grey()
    after = draw_boxes(before, [[40, 50, 120, 100]], [1], classes=CLASSES)
    assert (before == 128).all()
    colour = class_colours(2)[1]
    for y, x in ((75, 40), (75, 119), (99, 80)):
        assert after[y, x].tolist() == colour.tolist()
    assert (after[60:90, 60:110] == 128).all()
    assert (after[105:] == 128).all()
    assert (after[:, :35] == 128).all()


@pytest.mark.parametrize("tone", [0, 128, 255])
def test_lines_stand_out_on_any_tone(tone: int) -> None:
    after = draw_boxes(grey(tone=tone), [[40, 50, 120, 100]], [0], classes=CLASSES).astype(int)
    row = after[75, 30:50].sum(axis=-1)
    assert row.max() - row.min() > 200


def test_two_classes_have_two_colours_and_scores_are_written() -> None:
    boxes = [[10, 40, 60, 100], [90, 40, 150, 100]]
    after = draw_boxes(grey(), boxes, [0, 1], classes=CLASSES)
    first, second = class_colours(2)
    assert len(places_of(after, first)) > 100 < len(places_of(after, second))
    with_scores = draw_boxes(grey(), boxes, [0, 1], [0.9, 0.8], classes=CLASSES)
    assert (with_scores != after).any()


def test_no_boxes_change_nothing() -> None:
    assert (draw_boxes(grey(), np.zeros((0, 4)), [], [], classes=CLASSES) == 128).all()


def test_boxes_over_the_border_and_of_no_area_are_drawn_too() -> None:
    boxes = [[-20, -20, 30, 30], [150, 110, 400, 300], [50, 50, 50, 50]]
    after = draw_boxes(grey(), boxes, [0, 0, 1], classes=CLASSES)
    assert after.shape == (120, 160, 3)
    assert (after != 128).any()


def test_the_surest_box_lies_on_top() -> None:
    boxes, labels = [[40, 50, 120, 100]] * 2, [0, 1]
    for scores, top in (((0.2, 0.9), 1), ((0.9, 0.2), 0)):
        after = draw_boxes(grey(), boxes, labels, scores, classes=CLASSES)
        assert after[99, 80].tolist() == class_colours(2)[top].tolist()


def test_crowded_texts_do_not_lie_on_each_other() -> None:
    """The plate of the second text has to go elsewhere, so that both are whole."""
    boxes = [[40, 50, 120, 100], [42, 50, 122, 100]]
    after = draw_boxes(grey(), boxes, [0, 1], [0.9, 0.8], classes=CLASSES)
    alone = draw_boxes(grey(), boxes[:1], [0], [0.9], classes=CLASSES)
    first = class_colours(2)[0]
    plate = {p for p in places_of(alone, first) if p[0] < 48}
    assert plate
    assert plate <= places_of(after, first)


@pytest.mark.parametrize(
    ("boxes", "labels", "scores"),
    [([[0, 0, 1, 1]], [], None), ([[0, 0, 1, 1]], [2], None), ([[0, 0, 1, 1]], [0], [0.1, 0.2])],
)
def test_what_does_not_fit_together_is_refused(boxes: Any, labels: Any, scores: Any) -> None:
    with pytest.raises(UsageError):
        draw_boxes(grey(), boxes, labels, scores, classes=CLASSES)


def test_only_rgb_images_are_drawn_on() -> None:
    with pytest.raises(UsageError, match="height, width, 3"):
        draw_boxes(np.zeros((4, 4), np.uint8), [], [], classes=CLASSES)


def test_a_mask_tints_by_class_and_leaves_the_rest() -> None:
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[10:30, 10:30] = 1
    mask[40:50, 10:30] = 255
    after = draw_mask(grey(60, 80), mask, ("background", "leaf"), alpha=0.5)
    expected = (128 + class_colours(2)[1].astype(float)) / 2
    assert np.abs(after[20, 20] - expected).max() <= 1
    assert (after[0, 0] == 128).all()  # background
    assert (after[45, 20] == 128).all()  # ignored
    assert (draw_mask(grey(60, 80), mask, ("background", "leaf"), alpha=0.0) == 128).all()


def test_colours_of_the_image_are_not_taken_for_classes() -> None:
    """On red and on blue of one brightness the same class looks the same; the rest stays."""
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, :10, 0], image[:, 10:, 2] = 60, 177  # luminance 12.8
    mask = np.zeros((10, 20), np.uint8)
    mask[5:] = 1
    after = draw_mask(image, mask, ("background", "leaf")).astype(int)
    assert np.abs(after[7, 3] - after[7, 15]).max() <= 1
    assert (after[:4] == image[:4]).all()


def test_where_classes_meet_there_is_a_light_line() -> None:
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[:, 40:] = 1
    after = draw_mask(grey(60, 80), mask, CLASSES, alpha=0.5).astype(int)
    assert after[30, 39].sum() > max(after[30, 20].sum(), after[30, 60].sum())


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="size"):
        draw_mask(grey(4, 4), np.zeros((4, 5), np.uint8), CLASSES)
    with pytest.raises(UsageError, match="2 classes"):
        draw_mask(grey(4, 4), np.full((4, 4), 2, np.uint8), CLASSES)
    with pytest.raises(UsageError, match="alpha"):
        draw_mask(grey(4, 4), np.zeros((4, 4), np.uint8), CLASSES, alpha=2.0)


def test_twenty_eight_colours_are_different_and_then_they_come_again() -> None:
    colours = class_colours(29)
    apart = np.abs(colours[:14, None].astype(int) - colours[None, :14]).sum(axis=-1)
    assert apart[~np.eye(14, dtype=bool)].min() > 40
    assert len(np.unique(colours[:28], axis=0)) == 28
    assert (colours[28] == colours[0]).all()
    assert len(hex_colours(3)[2]) == 7


def test_fitted_keeps_the_aspect_and_says_the_scale() -> None:
    small, scale = resize_to_fit(grey(100, 400), 200)
    assert small.shape == (50, 200, 3)
    assert scale == 0.5
    assert resize_to_fit(grey(1, 4000), 100)[0].shape == (1, 100, 3)
