"""Metrics of segmentation, from one table of pixel counts for each image.

`pixel_counts` and `boundary_counts` process each image once. The metrics take the tables of
all images stacked, ``counts`` of shape (n, C, C) or (n, C, 4), and ``weights`` over images
of shape (n,) or (B, n), as in metrics/classification.py: a weight of w counts the image w times,
and with (B, n) results gain a leading axis B. Counts are summed over all images before the
division, so that no result depends on the order or the batches. Results are 0 to 1. An undefined
one (the IoU of a class that is absent) is NaN, and averages leave it out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike as Array
from numpy.typing import NDArray

from headstart.errors import UsageError
from headstart.metrics.validation import Floats, Ints, Weights, check_weights, divide, mean_defined

__all__ = [
    "boundary_counts",
    "boundary_f_scores",
    "class_accuracy_scores",
    "dice_scores",
    "frequency_weighted_iou_score",
    "iou_scores",
    "mean_boundary_f_score",
    "mean_class_accuracy_score",
    "mean_dice_score",
    "mean_iou_score",
    "pixel_accuracy_score",
    "pixel_counts",
    "total_counts",
]

_IGNORED_VALUE = 255
_TOLERANCE = 0.0075


def pixel_counts(
    predicted: Array, truth: Array, n_classes: int, *, ignored: int = _IGNORED_VALUE
) -> Ints:
    """Count the pixels of class i (row) that a mask predicts as j (column).

    Parameters
    ----------
    predicted, truth : array of int, shape (h, w)
        Class indices from 0.
    n_classes : int
    ignored : int
        Pixels where ``truth`` has this value are not counted, whatever the prediction.

    Returns
    -------
    array of int, shape (C, C)

    Raises
    ------
    UsageError
        If shapes differ, are not (h, w), or a class is out of range.

    Examples
    --------
    >>> pixel_counts([[0, 1], [1, 1]], [[0, 0], [1, 255]], 2)
    array([[1, 1],
           [0, 1]])
    """
    predicted_mask, true_mask, valid = _check_masks(predicted, truth, n_classes, ignored)
    cells = true_mask[valid] * n_classes + predicted_mask[valid]
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def boundary_counts(
    predicted: Array,
    truth: Array,
    n_classes: int,
    *,
    tolerance: float = _TOLERANCE,
    ignored: int = _IGNORED_VALUE,
) -> Ints:
    """Count the boundary pixels of each class that lie near the boundary in the other mask.

    The boundary of a class is its pixels that have another class above, below, left or right.
    The edge of the image and of ignored pixels is no boundary. Near means a Euclidean distance
    of at most ``tolerance`` times the diagonal.

    Parameters
    ----------
    predicted, truth, n_classes, ignored
        As of `pixel_counts`.
    tolerance : float
        Share of the image's diagonal, at least 0.

    Returns
    -------
    array of int, shape (C, 4)
        Predicted boundary pixels, and those near a true one; true boundary pixels, and those
        near a predicted one.

    Raises
    ------
    UsageError
        As `pixel_counts`, and if ``tolerance`` is negative.

    References
    ----------
    Csurka et al. (2013), "What is a good evaluation measure for semantic segmentation?",
    section 2.3, where 0.75 % of the diagonal is proposed.

    Examples
    --------
    >>> true, predicted = np.zeros((6, 6), dtype=int), np.zeros((6, 6), dtype=int)
    >>> true[:, :3], predicted[:, :4] = 1, 1
    >>> boundary_counts(predicted, true, 2)[1]
    array([6, 0, 6, 0])
    >>> boundary_counts(predicted, true, 2, tolerance=0.2)[1]
    array([6, 6, 6, 6])
    """
    predicted_mask, true_mask, valid = _check_masks(predicted, truth, n_classes, ignored)
    if not tolerance >= 0:
        raise UsageError(f"Expected `tolerance` of at least 0, got {tolerance}. Pass 0.0075.")
    max_distance = tolerance * float(np.hypot(*true_mask.shape))
    predicted_edge, true_edge = _find_edges(predicted_mask, valid), _find_edges(true_mask, valid)
    counts = np.zeros((n_classes, 4), dtype=np.intp)
    for label in np.union1d(predicted_mask[predicted_edge], true_mask[true_edge]).tolist():
        predicted_pixels = predicted_edge & (predicted_mask == label)
        true_pixels = true_edge & (true_mask == label)
        predicted_near = _count_near(predicted_pixels, true_pixels, max_distance)
        true_near = _count_near(true_pixels, predicted_pixels, max_distance)
        counts[label] = predicted_pixels.sum(), predicted_near, true_pixels.sum(), true_near
    return counts


def total_counts(counts: Array, weights: Weights = None) -> Floats:
    """Sum the tables of all images with their weights, (...,) for (n, ...).

    Raises
    ------
    UsageError
        If ``counts`` is not of shape (n, C, C) or (n, C, 4), or weights have another shape.

    Examples
    --------
    >>> total_counts([[[1, 0], [0, 1]], [[0, 1], [0, 1]]], [1, 2])
    array([[1., 2.],
           [0., 3.]])
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 3 or not len(table):
        raise UsageError(
            f"Expected `counts` of shape (n, C, C) or (n, C, 4), got {table.shape}. Stack one "
            "table for each image."
        )
    image_weights = check_weights(weights, len(table))
    flat = image_weights @ table.reshape(len(table), -1)
    return np.asarray(flat.reshape(*image_weights.shape[:-1], *table.shape[1:]))


def iou_scores(counts: Array, weights: Weights = None) -> Floats:
    """Intersection over union of each class, (C,) or (B, C).

    IoU = n_kk / (sum_j n_kj + sum_i n_ik - n_kk); NaN for a class in neither truth nor
    prediction.

    References
    ----------
    Everingham et al. (2010), "The PASCAL visual object classes challenge", section 4.3.

    Examples
    --------
    >>> iou_scores([[[1, 1, 0], [0, 1, 0], [0, 0, 0]]])
    array([0.5, 0.5, nan])
    """
    correct, in_truth, predicted = _count_pixels(counts, weights)
    return divide(correct, in_truth + predicted - correct)


def mean_iou_score(counts: Array, weights: Weights = None) -> Floats:
    """Mean of `iou_scores` over the classes in truth or prediction, () or (B,).

    Examples
    --------
    >>> float(mean_iou_score([[[1, 1, 0], [0, 1, 0], [0, 0, 0]]]))
    0.5
    """
    return mean_defined(iou_scores(counts, weights))


def dice_scores(counts: Array, weights: Weights = None) -> Floats:
    """Dice coefficient, which is the F1 of pixels, of each class, (C,) or (B, C).

    Dice = 2 n_kk / (sum_j n_kj + sum_i n_ik); NaN as of `iou_scores`.

    References
    ----------
    Dice (1945), "Measures of the amount of ecologic association between species".

    Examples
    --------
    >>> dice_scores([[[1, 1, 0], [0, 1, 0], [0, 0, 0]]]).round(3)
    array([0.667, 0.667,   nan])
    """
    correct, in_truth, predicted = _count_pixels(counts, weights)
    return divide(2 * correct, in_truth + predicted)


def mean_dice_score(counts: Array, weights: Weights = None) -> Floats:
    """Mean of `dice_scores` over the classes in truth or prediction, () or (B,).

    Examples
    --------
    >>> float(mean_dice_score([[[1, 1, 0], [0, 1, 0], [0, 0, 0]]]).round(3))
    0.667
    """
    return mean_defined(dice_scores(counts, weights))


def pixel_accuracy_score(counts: Array, weights: Weights = None) -> Floats:
    """Share of pixels classified correctly, () or (B,); NaN if every pixel is ignored.

    Examples
    --------
    >>> float(pixel_accuracy_score([[[1, 1], [0, 2]]]))
    0.75
    """
    correct, in_truth, _ = _count_pixels(counts, weights)
    return divide(correct.sum(axis=-1), in_truth.sum(axis=-1))


def class_accuracy_scores(counts: Array, weights: Weights = None) -> Floats:
    """Share of the pixels of each class that are correct, (C,) or (B, C); NaN for an absent class.

    Examples
    --------
    >>> class_accuracy_scores([[[1, 1], [0, 2]]])
    array([0.5, 1. ])
    """
    correct, in_truth, _ = _count_pixels(counts, weights)
    return divide(correct, in_truth)


def mean_class_accuracy_score(counts: Array, weights: Weights = None) -> Floats:
    """Mean of `class_accuracy_scores` over the classes in truth, () or (B,).

    Examples
    --------
    >>> float(mean_class_accuracy_score([[[1, 1], [0, 2]]]))
    0.75
    """
    return mean_defined(class_accuracy_scores(counts, weights))


def frequency_weighted_iou_score(counts: Array, weights: Weights = None) -> Floats:
    """Mean of `iou_scores`, weighted by the pixels of each class in truth, () or (B,).

    References
    ----------
    Long et al. (2015), "Fully convolutional networks for semantic segmentation", section 5.

    Examples
    --------
    >>> float(frequency_weighted_iou_score([[[1, 1], [0, 2]]]).round(4))
    0.5833
    """
    correct, in_truth, predicted = _count_pixels(counts, weights)
    iou = np.nan_to_num(divide(correct, in_truth + predicted - correct))
    return divide((in_truth * iou).sum(axis=-1), in_truth.sum(axis=-1))


def boundary_f_scores(counts: Array, weights: Weights = None) -> Floats:
    """Boundary F of each class from stacked `boundary_counts` (n, C, 4); (C,) or (B, C).

    F = 2 P R / (P + R), where P is the share of predicted boundary pixels near a true one, and R
    the share of true ones near a predicted one, both over all images. NaN for a class without a
    boundary in truth and prediction, 0 for a class with a boundary in only one of them.

    References
    ----------
    Csurka et al. (2013), "What is a good evaluation measure for semantic segmentation?",
    section 2.3; there the F of single images is averaged, here pixels are added up.

    Examples
    --------
    >>> boundary_f_scores([[[4, 2, 4, 4], [0, 0, 0, 0]]]).round(3)
    array([0.667,   nan])
    """
    total = total_counts(counts, weights)
    if total.shape[-1] != 4:
        raise UsageError(
            f"Expected `counts` of shape (n, C, 4), got {np.shape(counts)}. Stack the "
            "results of boundary_counts."
        )
    n_predicted, n_predicted_near, n_true, n_true_near = np.moveaxis(total, -1, 0)
    precision, recall = (
        np.nan_to_num(divide(n_predicted_near, n_predicted)),
        np.nan_to_num(divide(n_true_near, n_true)),
    )
    f_scores = np.nan_to_num(divide(2 * precision * recall, precision + recall))
    return np.where(n_predicted + n_true > 0, f_scores, np.nan)


def mean_boundary_f_score(counts: Array, weights: Weights = None) -> Floats:
    """Mean of `boundary_f_scores` over the classes where it is defined, () or (B,).

    Examples
    --------
    >>> float(mean_boundary_f_score([[[4, 2, 4, 4], [0, 0, 0, 0]]]).round(3))
    0.667
    """
    return mean_defined(boundary_f_scores(counts, weights))


def _check_masks(
    predicted: Array, truth: Array, n_classes: int, ignored: int
) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Check two masks; return them as class indices, and where truth is not ignored."""
    predicted_mask, true_mask = np.asarray(predicted), np.asarray(truth)
    shape = predicted_mask.shape
    is_valid_shape = shape == true_mask.shape and len(shape) == 2 and predicted_mask.size > 0
    is_integer = predicted_mask.dtype.kind in "iu" and true_mask.dtype.kind in "iu"
    if not (is_valid_shape and is_integer and n_classes >= 1):
        raise UsageError(
            f"Expected two masks (h, w) of class indices and at least one class, got "
            f"{predicted_mask.dtype} {shape}, {true_mask.dtype} {true_mask.shape} and {n_classes}. "
            "Resize the predicted mask to the size of the image."
        )
    valid = true_mask != ignored
    for name, mask in (("predicted", predicted_mask[valid]), ("truth", true_mask[valid])):
        if mask.size and not 0 <= mask.min() <= mask.max() < n_classes:
            raise UsageError(
                f"Expected classes from 0 to {n_classes - 1} in `{name}`, got {mask.min()} to "
                f"{mask.max()}. Map other values to a class or to {ignored}."
            )
    return predicted_mask.astype(np.intp), true_mask.astype(np.intp), valid


def _find_edges(mask: Ints, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find pixels next to a pixel of another class. Invalid pixels have no neighbours."""
    edge = np.zeros(mask.shape, dtype=bool)
    for axis in (0, 1):
        low, high = (
            (slice(None),) * axis + (slice(None, -1),),
            (slice(None),) * axis + (slice(1, None),),
        )
        differs = (mask[low] != mask[high]) & valid[low] & valid[high]
        edge[low] |= differs
        edge[high] |= differs
    return edge


def _count_near(points: NDArray[np.bool_], others: NDArray[np.bool_], max_distance: float) -> int:
    """Count the points that have one of the others within ``max_distance``."""
    from scipy import ndimage

    if not points.any() or not others.any():
        return 0
    # Only the window around the others matters. A smaller distance transform is faster.
    window = []
    for axis in (1, 0):
        indices = np.flatnonzero(others.any(axis=axis))
        window.append(
            slice(max(0, indices[0] - int(max_distance)), indices[-1] + int(max_distance) + 1)
        )
    window_slices = tuple(window)
    distance: NDArray[Any] = ndimage.distance_transform_edt(~others[window_slices])
    return int((distance[points[window_slices]] <= max_distance).sum())


def _count_pixels(counts: Array, weights: Weights) -> tuple[Floats, Floats, Floats]:
    """Pixels of each class that are correct, in truth, predicted; each (..., C)."""
    total = total_counts(counts, weights)
    if total.shape[-1] != total.shape[-2]:
        raise UsageError(
            f"Expected `counts` of shape (n, C, C), got {np.shape(counts)}. Stack the "
            "results of pixel_counts."
        )
    correct = np.diagonal(total, axis1=-2, axis2=-1)
    return correct, total.sum(axis=-1), total.sum(axis=-2)
