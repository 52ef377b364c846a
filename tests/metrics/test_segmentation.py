"""Mask metrics against scikit-learn on flattened pixels, in closed form, in any order or batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from headstart.data.dataset import IGNORED
from headstart.errors import UsageError
from headstart.metrics import segmentation as metrics
from headstart.metrics.validation import Floats

quick = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
PIXEL: dict[str, Callable[..., Floats]] = {
    "iou": metrics.iou_scores,
    "mean_iou": metrics.mean_iou_score,
    "dice": metrics.dice_scores,
    "mean_dice": metrics.mean_dice_score,
    "accuracy": metrics.pixel_accuracy_score,
    "class_accuracy": metrics.class_accuracy_scores,
    "mean_class_accuracy": metrics.mean_class_accuracy_score,
    "frequency_weighted_iou": metrics.frequency_weighted_iou_score,
}
BOUNDARY: dict[str, Callable[..., Floats]] = {
    "boundary": metrics.boundary_f_scores,
    "mean_boundary": metrics.mean_boundary_f_score,
}


def masks(seed: int, n: int = 5) -> tuple[list[Any], list[Any], int]:
    """Predicted and true masks of several sizes, in blocks, with ignored and absent classes."""
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(2, 5))
    present_classes = rng.integers(0, n_classes, n_classes)  # some classes are nowhere
    predicted, truth = [], []
    for _ in range(n):
        h, w = rng.integers(1, 5, 2)
        blocks = present_classes[rng.integers(0, n_classes, (h, w))].repeat(4, 0).repeat(3, 1)
        noise = present_classes[rng.integers(0, n_classes, blocks.shape)]
        truth.append(np.where(rng.random(blocks.shape) < 0.1, IGNORED, blocks).astype(np.uint8))
        predicted.append(np.where(rng.random(blocks.shape) < 0.2, noise, blocks).astype(np.uint8))
    return predicted, truth, n_classes


def stacked(predicted: list[Any], truth: list[Any], n_classes: int) -> tuple[Any, Any]:
    pairs = list(zip(predicted, truth, strict=True))
    return (
        np.stack([metrics.pixel_counts(*pair, n_classes) for pair in pairs]),
        np.stack([metrics.boundary_counts(*pair, n_classes, tolerance=0.1) for pair in pairs]),
    )


def every_number(counts: tuple[Any, Any], weights: Any = None) -> dict[str, Floats]:
    result = {name: score(counts[0], weights) for name, score in PIXEL.items()}
    return result | {name: score(counts[1], weights) for name, score in BOUNDARY.items()}


def equal(result: dict[str, Floats], expected: dict[str, Floats]) -> None:
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value, err_msg=name)


# ------------------------------------------------------------------------- against scikit-learn


@quick
@given(seeds)
def test_every_number_is_that_of_scikit_learn(seed: int) -> None:
    predicted, truth, n_classes = masks(seed)
    y, z = (np.concatenate([mask.ravel() for mask in side]) for side in (truth, predicted))
    y, z = y[y != IGNORED], z[y != IGNORED]
    labels, present = np.arange(n_classes), np.union1d(y, z)
    counts = stacked(predicted, truth, n_classes)
    table = sk.confusion_matrix(y, z, labels=labels)
    np.testing.assert_array_equal(metrics.total_counts(counts[0]), table)
    result = every_number(counts)
    iou = sk.jaccard_score(y, z, labels=present, average=None)
    dice = sk.f1_score(y, z, labels=present, average=None)
    np.testing.assert_allclose(result["iou"][present], iou)
    np.testing.assert_allclose(result["dice"][present], dice)
    absent = np.setdiff1d(labels, present)
    assert np.isnan(result["iou"][absent]).all()
    assert np.isnan(result["dice"][absent]).all()
    np.testing.assert_allclose(result["mean_iou"], iou.mean())
    np.testing.assert_allclose(result["mean_dice"], dice.mean())
    np.testing.assert_allclose(result["accuracy"], sk.accuracy_score(y, z))
    true_classes = np.unique(y)
    recall = sk.recall_score(y, z, labels=true_classes, average=None)
    np.testing.assert_allclose(result["class_accuracy"][true_classes], recall)
    np.testing.assert_allclose(result["mean_class_accuracy"], recall.mean())
    frequency = sk.jaccard_score(y, z, labels=present, average="weighted")
    np.testing.assert_allclose(result["frequency_weighted_iou"], frequency)


def test_some_classes_of_the_cases_are_nowhere() -> None:
    result = [every_number(stacked(*masks(seed))) for seed in range(20)]
    assert any(np.isnan(scores["iou"]).any() for scores in result)
    assert any(len(scores["iou"]) > 2 and scores["mean_iou"] < 1 for scores in result)


# --------------------------------------------------------------------- weights, order, batches


@quick
@given(seeds)
def test_integer_weights_are_repetitions(seed: int) -> None:
    counts = stacked(*masks(seed))
    weights = np.random.default_rng(seed).integers(0, 4, 5) + np.eye(5, dtype=int)[0]
    repeated = tuple(table.repeat(weights, axis=0) for table in counts)
    equal(every_number(counts, weights), every_number((repeated[0], repeated[1])))


@quick
@given(seeds)
def test_rows_of_weights_stand_alone(seed: int) -> None:
    counts = stacked(*masks(seed))
    weights = np.random.default_rng(seed).integers(0, 4, (3, 5)) + np.eye(3, 5)
    together = every_number(counts, weights)
    for row, weight in enumerate(weights):
        equal({name: value[row] for name, value in together.items()}, every_number(counts, weight))


@quick
@given(seeds, st.permutations(range(5)), st.integers(1, 5))
def test_neither_order_nor_batches_matter(seed: int, order: list[int], size: int) -> None:
    counts = stacked(*masks(seed))
    expected = every_number(counts)
    equal(every_number((counts[0][order], counts[1][order])), expected)
    batches = [
        np.stack([table[at : at + size].sum(axis=0) for at in range(0, 5, size)])
        for table in counts
    ]
    equal(every_number((batches[0], batches[1])), expected)


def test_a_mean_of_batches_would_differ() -> None:
    """Else the test above could not fail."""
    counts = stacked(*masks(4))[0]
    alone = np.mean([metrics.mean_iou_score(table[None]) for table in counts])
    assert abs(alone - metrics.mean_iou_score(counts)) > 0.01


# ----------------------------------------------------------------------------------- boundaries


def square(left: int, side: int = 20, size: int = 80) -> Any:
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[30 : 30 + side, left : left + side] = 1
    return mask


def test_a_shifted_square_in_closed_form() -> None:
    """A ring of 4 (s - 1) pixels, moved by d along its upper and lower rows."""
    side, shift = 20, 4
    ring = 4 * (side - 1)
    counts = metrics.boundary_counts(square(20 + shift), square(20), 2, tolerance=0)
    rows = 2 * (side - shift)  # of the upper and the lower side, what overlaps
    np.testing.assert_array_equal(counts[1], [ring, rows, ring, rows])
    result = metrics.boundary_f_scores(counts[None])
    assert float(result[1]) == pytest.approx(rows / ring)
    reach = shift / np.hypot(80, 80)  # now every pixel is near
    near = metrics.boundary_counts(square(20 + shift), square(20), 2, tolerance=reach * 1.0001)
    assert float(metrics.boundary_f_scores(near[None])[1]) == 1
    # short of that, the outer side of each is out, and the inner one but for its ends
    less = metrics.boundary_counts(square(20 + shift), square(20), 2, tolerance=reach * 0.999)
    out = side + (side - 2 * shift)
    np.testing.assert_array_equal(less[1, [1, 3]], [ring - out, ring - out])


def test_the_tolerance_is_a_share_of_the_diagonal() -> None:
    true, predicted = np.zeros((180, 240), dtype=np.uint8), np.zeros((180, 240), dtype=np.uint8)
    for moved, f in ((2, 1), (3, 0)):  # the tolerance is 2.25 pixels
        true[:, :100], predicted[:, : 100 + moved] = 1, 1
        counts = metrics.boundary_counts(predicted, true, 2)
        np.testing.assert_array_equal(metrics.boundary_f_scores(counts[None]), [f, f])


@quick
@given(seeds, st.sampled_from([0.0, 0.05, 0.1, 0.3]))
def test_boundaries_by_all_distances(seed: int, tolerance: float) -> None:
    *images, n_classes = masks(seed)
    for predicted, truth in zip(*images, strict=True):
        counts = metrics.boundary_counts(predicted, truth, n_classes, tolerance=tolerance)
        reach = tolerance * np.hypot(*truth.shape)
        for label in range(n_classes):
            predicted_edge, true_edge = (outline(mask, truth, label) for mask in (predicted, truth))
            near = (
                cdist(predicted_edge, true_edge) <= reach
                if len(predicted_edge) and len(true_edge)
                else np.zeros((1, 1))
            )
            plain = [
                len(predicted_edge),
                near.any(axis=1).sum(),
                len(true_edge),
                near.any(axis=0).sum(),
            ]
            np.testing.assert_array_equal(counts[label], plain)


def outline(mask: Any, truth: Any, label: int) -> Any:
    """Pixels of a class beside another class, one by one."""
    result, (h, w) = [], mask.shape
    for row, column in np.argwhere((mask == label) & (truth != IGNORED)):
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        inside = [at for at in around if 0 <= at[0] < h and 0 <= at[1] < w]
        if any(mask[at] != label and truth[at] != IGNORED for at in inside):
            result.append((row, column))
    return np.array(result, dtype=float).reshape(-1, 2)


def test_the_edge_of_the_image_and_of_ignored_pixels_is_no_boundary() -> None:
    truth = np.zeros((9, 9), dtype=np.uint8)
    truth[:, 4] = IGNORED
    truth[:, 5:] = 1
    counts = metrics.boundary_counts(truth * 0, truth, 2)
    assert counts.sum() == 0
    assert np.isnan(metrics.mean_boundary_f_score(counts[None]))


def test_a_boundary_in_only_one_mask_scores_zero() -> None:
    counts = metrics.boundary_counts(square(20), square(20) * 0, 3)
    np.testing.assert_array_equal(metrics.boundary_f_scores(counts[None]), [0, 0, np.nan])
    assert metrics.mean_boundary_f_score(counts[None]) == 0


# ----------------------------------------------------------------------------------- failures


def test_pixels_are_ignored_that_the_data_ignore() -> None:
    counts = metrics.pixel_counts([[9, 0]], [[IGNORED, 0]], 1)
    np.testing.assert_array_equal(counts, [[1]])


def test_without_pixels_nothing_is_defined() -> None:
    blank = np.full((3, 3), IGNORED, dtype=np.uint8)
    counts = (
        metrics.pixel_counts(blank, blank, 2)[None],
        metrics.boundary_counts(blank, blank, 2)[None],
    )
    assert all(np.isnan(value).all() for value in every_number(counts).values())


@pytest.mark.parametrize(
    ("predicted", "truth", "n_classes"),
    [
        ([[0, 1]], [[0]], 2),
        ([0, 1], [0, 1], 2),
        ([[0.0]], [[0]], 2),
        ([[0]], [[True]], 2),
        ([[2]], [[0]], 2),
        ([[0]], [[2]], 2),
        ([[-1]], [[0]], 2),
        ([[0]], [[0]], 0),
        ([[IGNORED]], [[0]], 2),
    ],
)
def test_what_does_not_fit_is_refused(predicted: Any, truth: Any, n_classes: int) -> None:
    for count in (metrics.pixel_counts, metrics.boundary_counts):
        with pytest.raises(UsageError, match=r"Expected .* got .*\. [A-Z]"):
            count(predicted, truth, n_classes)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: metrics.boundary_counts([[0]], [[0]], 1, tolerance=-1),
        lambda: metrics.iou_scores([[1, 0], [0, 1]]),
        lambda: metrics.iou_scores(np.ones((1, 2, 4))),
        lambda: metrics.boundary_f_scores(np.ones((1, 2, 2))),
        lambda: metrics.iou_scores(np.ones((2, 2, 2)), [1, 1, 1]),
        lambda: metrics.iou_scores(np.ones((0, 2, 2))),
    ],
)
def test_questions_without_an_answer_are_refused(ask: Any) -> None:
    with pytest.raises(UsageError, match=r"Expected .* got .*\. [A-Z]"):
        ask()
