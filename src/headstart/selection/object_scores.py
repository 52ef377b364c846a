"""Scores of a race for boxes and masks: mAP or mean IoU on held-out training images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset
from headstart.evaluation import detection, segmentation
from headstart.evaluation.classification import AnyEvaluation
from headstart.evaluation.summary import N_RESAMPLES, primary_metric, resampled_scores
from headstart.metrics.confidence_intervals import Difference, Interval, units
from headstart.metrics.significance import Contrast, hierarchical
from headstart.selection.rules import shrink_gain

__all__ = ["ObjectScorer"]

Floats = NDArray[np.float64]

TITLES = {"detection": detection.TITLES["map"], "segmentation": segmentation.TITLES["mean_iou"]}


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectScorer:
    """Scores and compares detectors or segmenters on the same held-out images.

    The values of a candidate are its score, and its scores on resampled images: the same images
    for every candidate, so that differences are paired.

    Parameters
    ----------
    held_out : Dataset
        Training images that no candidate trains on.
    rows : array
        Their rows in the training part.
    """

    held_out: Dataset
    rows: NDArray[np.intp]
    n_units: int = field(init=False)

    def __post_init__(self) -> None:
        _, count = units(len(self.held_out), self.held_out.groups())
        object.__setattr__(self, "n_units", count)

    @property
    def measure(self) -> str:
        """Name of the score."""
        return TITLES[self.held_out.kind]

    def empty(self) -> Floats:
        """Values of a candidate that has no score yet."""
        return np.full(1 + N_RESAMPLES, np.nan)

    def record(self, values: Floats, rows: NDArray[np.intp], evaluation: Any) -> None:
        """Enter the evaluation of a candidate on the held-out images."""
        values[:] = self._scores(evaluation)

    def _scores(self, evaluation: AnyEvaluation) -> Floats:
        score = evaluation.metrics[primary_metric(evaluation)].value
        draws = resampled_scores(evaluation, self.held_out)
        return np.array([np.nan_to_num(score), *draws])

    def score(self, values: Floats) -> Interval:
        """Return the score with its 95 % interval."""
        interval = self._contrast(values).interval()
        low, high = np.clip([interval.low, interval.high], 0, 1).tolist()
        return Interval(value=interval.value, low=low, high=high, method=interval.method)

    def gain(self, values: Floats, against: Floats, *, level: float) -> Difference:
        """Return the gain over another candidate, with an interval at the given level."""
        return self._contrast(values - against).difference(level)

    def expected_gain(self, values: Floats, against: Floats) -> float:
        """Return the gain over another candidate that is expected on new images."""
        contrast = self._contrast(values - against)
        error = contrast.error
        if math.isnan(error) and not (values - against).any():
            error = 0.0  # two equal candidates
        return shrink_gain(contrast.value, error, 1 - float(against[0]))

    def explain_control(self, values: Floats, against: Floats, name: str) -> str:
        """Return nothing: the other candidate has no score on more images."""
        return ""

    def predicted_rows(self, values: Floats) -> NDArray[np.intp]:
        """Return the rows of the images that have a prediction."""
        return self.rows[:0] if np.isnan(values[0]) else self.rows

    def _contrast(self, values: Floats) -> Contrast:
        return hierarchical(values[:1], values[None, 1:], units=self.n_units)
