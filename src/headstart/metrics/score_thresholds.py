"""Choice of score thresholds of a detector, with the spread of the choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.metrics.confidence_intervals import resamples
from headstart.metrics.detection import f1_curve
from headstart.metrics.matching import Matches

__all__ = ["MIN_CLASS_OBJECTS", "ScoreThresholds", "choose_thresholds"]

Floats = NDArray[np.float64]

MIN_CLASS_OBJECTS = 30
"""Objects from which a class has a threshold of its own."""

PLATEAU = 0.01
"""The plateau is where F1 is at most this much below the best."""

N_RESAMPLES = 100
"""Resamples of the images, for the spread."""

DEFAULT = 0.5
"""Threshold if no box matches an object."""


@dataclass(frozen=True, kw_only=True)
class ScoreThresholds:
    """Score thresholds of a detector.

    Parameters
    ----------
    value : float
        For all classes together.
    by_class : tuple of float
        One for each class; ``value`` for a class with fewer than ``MIN_CLASS_OBJECTS`` objects.
    low, high : float
        Range of ``value`` over 90 % of the resamples of the images.
    """

    value: float
    by_class: tuple[float, ...]
    low: float
    high: float


def choose_thresholds(matches: Matches, *, seed: int = 0) -> ScoreThresholds:
    """Choose the score thresholds with a good F1 at an overlap of .5.

    F1 = 2 correct / (correct + false + objects). Its maximum jumps between images drawn anew. The
    threshold is therefore the middle of the scores around it where F1 is at most 0.01 lower, and
    of that the median over resamples of the images.

    Parameters
    ----------
    matches : Matches
        Boxes of images that the detector was not trained on.
    seed : int
        For the resamples.

    Returns
    -------
    ScoreThresholds
        0.5 if no box matches an object.

    Examples
    --------
    >>> from headstart.metrics.detection import match_boxes
    >>> found = [([[0, 0, 9, 10], [50, 0, 60, 10]], [0.9, 0.2], [0, 0])]
    >>> true = [([[0, 0, 10, 10]], [0], [False])]
    >>> choose_thresholds(match_boxes(found, true, 1)).value
    0.55
    """
    n, objects = matches.n_images, matches.objects[0]
    rng = np.random.default_rng(seed)
    draws = np.concatenate(list(resamples(np.arange(n), n, N_RESAMPLES, rng)))

    def middles(rows: NDArray[np.intp], counts: NDArray[Any]) -> list[float]:
        return [_plateau_middle(matches, rows, counts, weights) for weights in draws]

    all_middles = middles(np.arange(len(matches.score)), objects.sum(axis=0))
    value = float(np.median(all_middles))
    by_class = [value] * matches.n_classes
    for label in np.flatnonzero(objects.sum(axis=1) >= MIN_CLASS_OBJECTS):
        own = np.flatnonzero(matches.label == label)
        by_class[label] = float(np.median(middles(own, objects[label])))
    low, high = np.quantile(all_middles, [0.05, 0.95]).tolist()
    return ScoreThresholds(value=value, by_class=tuple(by_class), low=low, high=high)


def _plateau_middle(
    matches: Matches, rows: NDArray[np.intp], objects: NDArray[Any], weights: Floats
) -> float:
    """Middle of the scores around the best F1 where F1 is nearly as good."""
    score, f1 = f1_curve(matches, rows, float(objects @ weights), weights)
    if not f1.any():
        return DEFAULT
    best = int(f1.argmax())
    is_low = f1 < f1[best] - PLATEAU
    start = int(np.flatnonzero(is_low[:best])[-1]) + 1 if is_low[:best].any() else 0
    end = best + int(is_low[best:].argmax()) - 1 if is_low[best:].any() else len(f1) - 1
    # Every threshold above the next lower score keeps the same boxes.
    below = score[end + 1] if end + 1 < len(f1) else score[end]
    return float((score[start] + below) / 2)
