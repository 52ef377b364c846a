"""Detection of likely label errors from out-of-fold probabilities."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UnknownNameError, UsageError
from headstart.metrics.validation import check_probabilities

__all__ = ["Measure", "another_is_likelier", "confident_label_errors", "label_error_scores"]

Measure = Literal["normalized_margin", "self_confidence"]
TIE = 1e-9
"""Probabilities that differ by less are equal: the difference is rounding."""
MEASURES = "normalized_margin", "self_confidence"

Floats = NDArray[np.float64]


def label_error_scores(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.integer[Any]],
    *,
    measure: Measure = "self_confidence",
) -> Floats:
    """Score how likely each label is wrong; higher is more likely.

    Parameters
    ----------
    probabilities : array, shape (n, n_classes)
        Out of fold: of each image by a model that was not trained on it. A model that was
        trained on a wrong label would confirm it.
    targets : array of int, shape (n,) or (n, n_classes)
        Class indices; for multilabel 0 and 1.
    measure : {"normalized_margin", "self_confidence"}
        With p of the given label: (1 - p + highest other p) / 2, or 1 - p. The latter found
        more of the label errors that were planted in the embedded datasets (docs/insight.md).
        For multilabel both are equal.

    Returns
    -------
    array, shape of ``targets``
        From 0 to 1.

    Raises
    ------
    UsageError
        If the shapes do not fit together.
    UnknownNameError
        If the measure is unknown.

    References
    ----------
    Northcutt, Jiang and Chuang (2021), "Confident learning: estimating uncertainty in dataset
    labels", section 3.2.

    Examples
    --------
    >>> chances = np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.3, 0.35, 0.35]])
    >>> label_error_scores(chances, np.array([0, 1, 1])).round(3).tolist()
    [0.1, 0.9, 0.65]
    """
    if measure not in MEASURES:
        raise UnknownNameError("measure", measure, list(MEASURES))
    truth, chances = check_probabilities(targets, probabilities)
    if truth.ndim == 2:
        return np.asarray(np.where(truth == 1, 1 - chances, chances))
    rows = np.arange(len(truth))
    given_chances = chances[rows, truth]
    if measure == "self_confidence":
        return np.asarray(1 - given_chances)
    others = chances.copy()
    others[rows, truth] = 0.0
    return np.asarray((1 - given_chances + others.max(axis=1, initial=0.0)) / 2)


def another_is_likelier(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.integer[Any]]
) -> NDArray[np.bool_]:
    """Find labels that are less probable than another class.

    Equal probabilities are no reason to doubt a label. With two classes this is a p of the label
    below 0.5, with many classes it is not: the most probable class often has less than 0.5.

    Parameters
    ----------
    probabilities : array, shape (n, n_classes)
    targets : array of int, shape (n,) or (n, n_classes)
        Class indices; for multilabel 0 and 1, where the other class of a label is its opposite.

    Returns
    -------
    array of bool, shape of ``targets``

    Raises
    ------
    UsageError
        If the shapes do not fit together.

    Examples
    --------
    >>> chances = np.array([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [1 / 3, 1 / 3, 1 / 3]])
    >>> another_is_likelier(chances, np.array([0, 0, 2])).tolist()
    [False, True, False]
    """
    truth, chances = check_probabilities(targets, probabilities)
    if truth.ndim == 2:
        return np.asarray(np.where(truth == 1, 1 - chances, chances) > 0.5 + TIE)
    given_chances = chances[np.arange(len(truth)), truth]
    return np.asarray(chances.max(axis=1) > given_chances + TIE)


def confident_label_errors(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.integer[Any]]
) -> NDArray[np.bool_]:
    """Find images that confidently have another class than their label.

    An image has class j confidently if its p of j reaches the mean p of j over the images with
    label j. Of several such classes it has the most probable one. These images are off the
    diagonal of the paper's confident joint. As in cleanlab, images whose label is their most
    probable class are not among them.

    Parameters
    ----------
    probabilities : array, shape (n, n_classes)
        Out of fold.
    targets : array of int, shape (n,)

    Returns
    -------
    array of bool, shape (n,)
        The number of True values estimates the number of wrong labels.

    Raises
    ------
    UsageError
        If the shapes do not fit together, or ``targets`` are not class indices.

    References
    ----------
    Northcutt, Jiang and Chuang (2021), "Confident learning: estimating uncertainty in dataset
    labels", equations 1 and 2.

    Examples
    --------
    >>> chances = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.95, 0.05]])
    >>> confident_label_errors(chances, np.array([0, 0, 1, 1])).tolist()
    [False, False, False, True]
    """
    truth, chances = check_probabilities(targets, probabilities)
    if truth.ndim != 1:
        raise UsageError(
            f"Expected `targets` to be class indices of shape (n,), got shape {truth.shape}. "
            "For multilabel, use label_error_scores."
        )
    width = chances.shape[1]
    counts = np.bincount(truth, minlength=width)
    sums = np.bincount(truth, weights=chances[np.arange(len(truth)), truth], minlength=width)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    # The mean of equal numbers may exceed them by rounding.
    reached = chances >= thresholds - 1e-12
    confident_class = np.where(reached, chances, -1.0).argmax(axis=1)
    off_diagonal = reached.any(axis=1) & (confident_class != truth)
    return np.asarray(off_diagonal & another_is_likelier(chances, truth))
