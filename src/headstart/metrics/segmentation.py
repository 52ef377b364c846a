"""Metrics of masks: from counts of pixels, one table per image, to numbers of the whole set.

`pixel_counts` and `boundary_counts` look at each image once. The metrics take the tables of
all images stacked, ``counts`` of shape (n, C, C) or (n, C, 4), and ``weights`` over images
of shape (n,) or (B, n), as in `headstart.metrics`: a weight of w counts the image w times, and
with (B, n) results gain a leading axis B. Counts are added up before anything is divided, never
averaged over batches or images, so that no number depends on either. Numbers are 0 to 1; one
without meaning (the IoU of a class that is nowhere) is NaN, and averages leave it out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike as Array
from numpy.typing import NDArray

from headstart.errors import UsageError
from headstart.metrics.validation import Floats, Ints, Weights, mean_defined, ratio, weights_of

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

_IGNORED = 255
_TOLERANCE = 0.0075


def pixel_counts(
    predicted: Array, truth: Array, n_classes: int, *, ignored: int = _IGNORED
) -> Ints:
    """How many pixels of class i (row) a mask calls j (column).

    Parameters
    ----------
    predicted, truth : array of int, shape (h, w)
        Class indices from 0.
    n_classes : int
    ignored : int
        Pixels where ``truth`` is this are not counted, whatever is predicted.

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
    said, true, kept = _masks(predicted, truth, n_classes, ignored)
    cells = true[kept] * n_classes + said[kept]
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def boundary_counts(
    predicted: Array,
    truth: Array,
    n_classes: int,
    *,
    tolerance: float = _TOLERANCE,
    ignored: int = _IGNORED,
) -> Ints:
    """How many pixels of each class's boundary lie near the other mask's boundary of the class.

    The boundary of a class is its pixels that have another class above, below, left or right;
    the edge of the image and of what is ignored is no boundary. Near is a Euclidean distance
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
        Predicted boundary pixels, those of them near a true one; true ones, those near a
        predicted one.

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
    >>> true, said = np.zeros((6, 6), dtype=int), np.zeros((6, 6), dtype=int)
    >>> true[:, :3], said[:, :4] = 1, 1
    >>> boundary_counts(said, true, 2)[1], boundary_counts(said, true, 2, tolerance=0.2)[1]
    (array([6, 0, 6, 0]), array([6, 6, 6, 6]))
    """
    said, true, kept = _masks(predicted, truth, n_classes, ignored)
    if not tolerance >= 0:
        raise UsageError(f"Expected `tolerance` of at least 0, got {tolerance}; do pass 0.0075.")
    reach = tolerance * float(np.hypot(*true.shape))
    edge_said, edge_true = _edges(said, kept), _edges(true, kept)
    counts = np.zeros((n_classes, 4), dtype=np.intp)
    for label in np.union1d(said[edge_said], true[edge_true]).tolist():
        one, other = edge_said & (said == label), edge_true & (true == label)
        near = _near(one, other, reach), _near(other, one, reach)
        counts[label] = one.sum(), near[0], other.sum(), near[1]
    return counts


def total_counts(counts: Array, weights: Weights = None) -> Floats:
    """Tables of images added up, each as often as its weight says, (...,) for (n, ...).

    Raises
    ------
    UsageError
        If ``counts`` is not of shape (n, C, C) or (n, C, 4), or weights do not fit.

    Examples
    --------
    >>> total_counts([[[1, 0], [0, 1]], [[0, 1], [0, 1]]], [1, 2])
    array([[1., 2.],
           [0., 3.]])
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 3 or not len(table):
        raise UsageError(
            f"Expected `counts` of shape (n, C, C) or (n, C, 4), got {table.shape}; do stack one "
            "table for each image."
        )
    given = weights_of(weights, len(table))
    flat = given @ table.reshape(len(table), -1)
    return np.asarray(flat.reshape(*given.shape[:-1], *table.shape[1:]))


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
    right, held, named = _tallies(counts, weights)
    return ratio(right, held + named - right)


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
    right, held, named = _tallies(counts, weights)
    return ratio(2 * right, held + named)


def mean_dice_score(counts: Array, weights: Weights = None) -> Floats:
    """Mean of `dice_scores` over the classes in truth or prediction, () or (B,).

    Examples
    --------
    >>> float(mean_dice_score([[[1, 1, 0], [0, 1, 0], [0, 0, 0]]]).round(3))
    0.667
    """
    return mean_defined(dice_scores(counts, weights))


def pixel_accuracy_score(counts: Array, weights: Weights = None) -> Floats:
    """Share of pixels named right, () or (B,); NaN where every pixel is ignored.

    Examples
    --------
    >>> float(pixel_accuracy_score([[[1, 1], [0, 2]]]))
    0.75
    """
    right, held, _ = _tallies(counts, weights)
    return ratio(right.sum(axis=-1), held.sum(axis=-1))


def class_accuracy_scores(counts: Array, weights: Weights = None) -> Floats:
    """Of the pixels of each class, the share named so, (C,) or (B, C); NaN for an absent class.

    Examples
    --------
    >>> class_accuracy_scores([[[1, 1], [0, 2]]])
    array([0.5, 1. ])
    """
    right, held, _ = _tallies(counts, weights)
    return ratio(right, held)


def mean_class_accuracy_score(counts: Array, weights: Weights = None) -> Floats:
    """Mean of `class_accuracy_scores` over the classes in truth, () or (B,).

    Examples
    --------
    >>> float(mean_class_accuracy_score([[[1, 1], [0, 2]]]))
    0.75
    """
    return mean_defined(class_accuracy_scores(counts, weights))


def frequency_weighted_iou_score(counts: Array, weights: Weights = None) -> Floats:
    """`iou_scores` averaged by how many pixels each class has in truth, () or (B,).

    References
    ----------
    Long et al. (2015), "Fully convolutional networks for semantic segmentation", section 5.

    Examples
    --------
    >>> float(frequency_weighted_iou_score([[[1, 1], [0, 2]]]).round(4))
    0.5833
    """
    right, held, named = _tallies(counts, weights)
    each = np.nan_to_num(ratio(right, held + named - right))
    return ratio((held * each).sum(axis=-1), held.sum(axis=-1))


def boundary_f_scores(counts: Array, weights: Weights = None) -> Floats:
    """Boundary F of each class from stacked `boundary_counts` (n, C, 4); (C,) or (B, C).

    F = 2 P R / (P + R), P the share of predicted boundary pixels near a true one, R the share
    of true ones near a predicted one, both over the whole set. NaN for a class without a
    boundary in truth and prediction, 0 for one with a boundary in only one of them.

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
            f"Expected `counts` of shape (n, C, 4), got {np.shape(counts)}; do stack what "
            "boundary_counts gives."
        )
    said, said_near, true, true_near = np.moveaxis(total, -1, 0)
    precision, recall = (
        np.nan_to_num(ratio(said_near, said)),
        np.nan_to_num(ratio(true_near, true)),
    )
    both = precision + recall
    f = np.nan_to_num(ratio(2 * precision * recall, both))
    return np.where(said + true > 0, f, np.nan)


def mean_boundary_f_score(counts: Array, weights: Weights = None) -> Floats:
    """Mean of `boundary_f_scores` over the classes with a boundary in either, () or (B,).

    Examples
    --------
    >>> float(mean_boundary_f_score([[[4, 2, 4, 4], [0, 0, 0, 0]]]).round(3))
    0.667
    """
    return mean_defined(boundary_f_scores(counts, weights))


def _masks(
    predicted: Array, truth: Array, n_classes: int, ignored: int
) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Both masks as class indices, and where truth is not ignored."""
    said, true = np.asarray(predicted), np.asarray(truth)
    fits = said.shape == true.shape and said.ndim == 2 and said.size > 0
    if not fits or said.dtype.kind not in "iu" or true.dtype.kind not in "iu" or n_classes < 1:
        raise UsageError(
            f"Expected two masks (h, w) of class indices and at least one class, got "
            f"{said.dtype} {said.shape}, {true.dtype} {true.shape} and {n_classes}; do bring the "
            "predicted mask to the image's size."
        )
    kept = true != ignored
    for name, mask in (("predicted", said[kept]), ("truth", true[kept])):
        if mask.size and not 0 <= mask.min() <= mask.max() < n_classes:
            raise UsageError(
                f"Expected classes from 0 to {n_classes - 1} in `{name}`, got {mask.min()} to "
                f"{mask.max()}; do map other values to a class or to {ignored}."
            )
    return said.astype(np.intp), true.astype(np.intp), kept


def _edges(mask: Ints, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels that have another class beside them; what is not kept is beside nothing."""
    edge = np.zeros(mask.shape, dtype=bool)
    for axis in (0, 1):
        low, high = (
            (slice(None),) * axis + (slice(None, -1),),
            (slice(None),) * axis + (slice(1, None),),
        )
        differs = (mask[low] != mask[high]) & kept[low] & kept[high]
        edge[low] |= differs
        edge[high] |= differs
    return edge


def _near(points: NDArray[np.bool_], others: NDArray[np.bool_], reach: float) -> int:
    """How many points have one of the others within reach; only the window around those is read."""
    from scipy import ndimage

    if not points.any() or not others.any():
        return 0
    window = []
    for axis in (1, 0):
        lines = np.flatnonzero(others.any(axis=axis))
        window.append(slice(max(0, lines[0] - int(reach)), lines[-1] + int(reach) + 1))
    inside = tuple(window)
    distance: NDArray[Any] = ndimage.distance_transform_edt(~others[inside])
    return int((distance[points[inside]] <= reach).sum())


def _tallies(counts: Array, weights: Weights) -> tuple[Floats, Floats, Floats]:
    """Pixels of each class that are right, that are of it, that are named it; each (..., C)."""
    total = total_counts(counts, weights)
    if total.shape[-1] != total.shape[-2]:
        raise UsageError(
            f"Expected `counts` of shape (n, C, C), got {np.shape(counts)}; do stack what "
            "pixel_counts gives."
        )
    right = np.diagonal(total, axis1=-2, axis2=-1)
    return right, total.sum(axis=-1), total.sum(axis=-2)
