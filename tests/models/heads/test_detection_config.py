import time

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from headstart.errors import UsageError
from headstart.models.heads.detection_config import anchor_recall, fit_anchors


def boxes_of(wide, high) -> np.ndarray:
    wide, high = np.broadcast_arrays(np.asarray(wide, float), np.asarray(high, float))
    left = np.arange(len(wide)) * 3.0
    return np.stack([left, left, left + wide, left + high], axis=1)


def test_sides_are_even_in_their_logarithm() -> None:
    sides = np.exp(np.linspace(np.log(20), np.log(320), 1001))
    sizes, ratios = fit_anchors(boxes_of(sides, sides), (4, 8, 16, 32))
    flat = np.array([side for level in sizes for side in level])
    span = np.log(320 / 20)
    assert flat[0] == pytest.approx(20 * np.exp(0.05 * span), rel=1e-6)
    assert flat[-1] == pytest.approx(20 * np.exp(0.95 * span), rel=1e-6)
    np.testing.assert_allclose(flat[1:] / flat[:-1], np.exp(0.9 * span / 3), rtol=1e-6)
    assert ratios == (1.0,)


def test_levels_hold_several_sides() -> None:
    sides = np.geomspace(16, 128, 101)
    sizes, _ = fit_anchors(boxes_of(sides, sides), (4, 8), per_level=2)
    assert [len(level) for level in sizes] == [2, 2]
    assert np.all(np.diff([side for level in sizes for side in level]) > 0)


def test_sides_stay_within_what_a_level_sees() -> None:
    small, _ = fit_anchors(boxes_of([6.0] * 5, [6.0] * 5), (4, 32))
    large, _ = fit_anchors(boxes_of([200.0] * 5, [200.0] * 5), (4, 32))
    assert [level[0] for level in small] == pytest.approx([6.0, 64.0])
    tiny, _ = fit_anchors(boxes_of([3.0] * 5, [3.0] * 5), (4, 32))
    assert tiny[0][0] == pytest.approx(3.0)
    assert [level[0] for level in large] == pytest.approx([64.0, 200.0])


def test_shapes_are_quantiles_within_a_third_and_three() -> None:
    high = np.array([5.0, 10.0, 20.0, 40.0, 100.0])  # over a width of 20: 1/4 to 5
    _, ratios = fit_anchors(boxes_of([20.0] * 5, high), (8,))
    logs = np.quantile(np.log(high / 20), (0.1, 0.5, 0.9))
    assert logs[0] < np.log(1 / 3)
    assert logs[2] > np.log(3)
    assert ratios == pytest.approx((1 / 3, 1.0, 3.0), abs=1e-4)


def test_recall_counts_boxes_that_an_anchor_overlaps_by_half() -> None:
    anchors = np.array([[0.0, 0.0, 10.0, 10.0], [100.0, 0.0, 110.0, 20.0]])
    boxes = np.array(
        [
            [0.0, 0.0, 10.0, 5.0],  # 50 / 100
            [0.0, 0.0, 10.0, 4.9],  # 49 / 100
            [100.0, 0.0, 110.0, 20.0],  # the same
            [50.0, 50.0, 60.0, 60.0],  # nothing
        ]
    )
    assert anchor_recall(boxes, anchors) == 0.5
    assert anchor_recall(boxes, anchors, iou=0.4) == 0.75


def test_fitted_anchors_reach_more_than_ill_fitted_ones() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 200, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 30, (60, 2))], axis=1)
    centres = np.stack(np.meshgrid(np.arange(0, 256, 8), np.arange(0, 256, 8)), -1).reshape(-1, 2)

    def reached(sizes) -> float:
        half = np.array([side for level in sizes for side in level])[:, None, None] / 2
        grid = np.concatenate([centres - half, centres + half], axis=-1).reshape(-1, 4)
        return anchor_recall(boxes, grid)

    sizes, _ = fit_anchors(boxes, (4, 8))
    assert reached(sizes) > reached(((64.0,), (128.0,))) + 0.5


def drawn(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.uniform(0, 80, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 40, (n, 2))], axis=1)


@pytest.mark.parametrize(("n_boxes", "n_anchors"), [(300, 40), (40, 7000), (5, 70_000)])
def test_recall_is_that_of_torchvisions_iou(n_boxes: int, n_anchors: int) -> None:
    rng = np.random.default_rng(0)
    boxes, anchors = drawn(rng, n_boxes), drawn(rng, n_anchors)
    overlaps = box_iou(torch.from_numpy(boxes), torch.from_numpy(anchors)).numpy().max(axis=1)
    for iou in (0.5, float(np.quantile(overlaps, 0.5)) + 1e-6):
        assert anchor_recall(boxes, anchors, iou=iou) == (overlaps >= iou).mean()


def test_recall_of_many_boxes_is_that_of_some_among_all_of_them() -> None:
    boxes = np.tile([[0.0, 0.0, 8.0, 8.0]], (1_000_000, 1))
    boxes[250_000:] += 50  # out of reach
    anchors = drawn(np.random.default_rng(0), 50)
    anchors[0] = boxes[0]
    anchors[1:] += 500
    start = time.process_time()
    assert anchor_recall(boxes, anchors) == pytest.approx(0.25, abs=1e-3)
    assert time.process_time() - start < 2  # one by one it would be ten
    assert anchor_recall(boxes[:250_000], anchors) == 1.0


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), np.ones((3, 2)), np.ones((1, 4))])
def test_boxes_that_cannot_be_meant_are_refused(boxes: np.ndarray) -> None:
    with pytest.raises(UsageError):
        fit_anchors(boxes, (8,))
    with pytest.raises(UsageError):
        anchor_recall(boxes, np.ones((1, 4)))
