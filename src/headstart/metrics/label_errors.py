"""Which labels are likely wrong, from probabilities by models that have not seen them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UnknownNameError, UsageError
from headstart.metrics.validation import scored

__all__ = ["Measure", "confident_joint", "confident_label_errors", "label_error_scores"]

Measure = Literal["normalized_margin", "self_confidence"]
MEASURES = "normalized_margin", "self_confidence"

Floats = NDArray[np.float64]
Counts = NDArray[np.intp]


def label_error_scores(
    probabilities: NDArray[np.floating[Any]],
    targets: NDArray[np.integer[Any]],
    *,
    measure: Measure = "self_confidence",
) -> Floats:
    """How likely each label is wrong: the higher, the sooner it is worth a look.

    Parameters
    ----------
    probabilities : array, shape (n, n_classes)
        Of each image by a model that has not seen it (out of fold). A model that has learned
        the wrong label confirms it.
    targets : array of int, shape (n,) or (n, n_classes)
        Class indices; or, where an image has any number of labels, 0 and 1.
    measure : {"normalized_margin", "self_confidence"}
        With p of the given label: (1 - p + highest other p) / 2, or 1 - p, which found more of
        the wrong labels that were planted in the embedded sets (docs/insight.md). For 0 and 1
        both are the same.

    Returns
    -------
    array, shape of ``targets``
        From 0 to 1.

    Raises
    ------
    UsageError
        If the shapes do not fit each other.
    UnknownNameError
        If there is no such measure.

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
    truth, chances = scored(targets, probabilities)
    if truth.ndim == 2:
        return np.asarray(np.where(truth == 1, 1 - chances, chances))
    rows = np.arange(len(truth))
    given = chances[rows, truth]
    if measure == "self_confidence":
        return np.asarray(1 - given)
    others = chances.copy()
    others[rows, truth] = 0.0
    return np.asarray((1 - given + others.max(axis=1, initial=0.0)) / 2)


def confident_joint(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.integer[Any]]
) -> Counts:
    """Count images by the label they were given and the one they confidently have.

    An image has class j confidently if p of j reaches the mean p of j over the images that
    are labelled j; of several such classes it has the likeliest, and where there is none it is
    not counted.

    Parameters
    ----------
    probabilities : array, shape (n, n_classes)
        Out of fold.
    targets : array of int, shape (n,)

    Returns
    -------
    array of int, shape (n_classes, n_classes)
        Given labels in rows; what is off the diagonal is likely wrong.

    Raises
    ------
    UsageError
        If the shapes do not fit each other, or ``targets`` are not class indices.

    References
    ----------
    Northcutt, Jiang and Chuang (2021), "Confident learning: estimating uncertainty in dataset
    labels", equations 1 and 2.

    Examples
    --------
    >>> chances = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.95, 0.05]])
    >>> confident_joint(chances, np.array([0, 0, 1, 1])).tolist()
    [[1, 0], [1, 1]]
    """
    truth, _, held = _confident(probabilities, targets)
    width = probabilities.shape[1]
    known = held >= 0
    flat = np.bincount(truth[known] * width + held[known], minlength=width**2)
    return np.asarray(flat.reshape(width, width), dtype=np.intp)


def confident_label_errors(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.integer[Any]]
) -> NDArray[np.bool_]:
    """Which images are off the diagonal of `confident_joint`.

    Parameters
    ----------
    probabilities : array, shape (n, n_classes)
    targets : array of int, shape (n,)

    Returns
    -------
    array of bool, shape (n,)
        How many there are is an estimate of how many labels are wrong.

    Raises
    ------
    UsageError
        If the shapes do not fit each other, or ``targets`` are not class indices.

    Examples
    --------
    >>> chances = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.95, 0.05]])
    >>> confident_label_errors(chances, np.array([0, 0, 1, 1])).tolist()
    [False, False, False, True]
    """
    truth, _, held = _confident(probabilities, targets)
    return np.asarray((held >= 0) & (held != truth))


def _confident(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.integer[Any]]
) -> tuple[Counts, Floats, Counts]:
    """Targets, each class's threshold, and the class confidently held, -1 for none."""
    truth, chances = scored(targets, probabilities)
    if truth.ndim != 1:
        raise UsageError(
            f"Expected `targets` to be class indices of shape (n,), got shape {truth.shape}; do "
            "use label_error_scores where an image has any number of labels."
        )
    width = chances.shape[1]
    counts = np.bincount(truth, minlength=width)
    own = np.bincount(truth, weights=chances[np.arange(len(truth)), truth], minlength=width)
    thresholds = np.where(counts > 0, own / np.maximum(counts, 1), np.inf)
    # The mean of equal numbers may exceed them by rounding.
    reached = chances >= thresholds - 1e-12
    held = np.where(reached, chances, -1.0).argmax(axis=1)
    return truth, thresholds, np.where(reached.any(axis=1), held, -1)
