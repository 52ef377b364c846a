"""Few-shot accuracy of a head on drawn episodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError, UsageError
from headstart.metrics.confidence_intervals import Interval, student_quantile
from headstart.training.few_shot_heads import fit_few_shot_head

__all__ = ["evaluate_episodes"]

QUERIES = 15
"""Test images of each class in an episode."""


def evaluate_episodes(
    head: str,
    features: NDArray[np.floating[Any]],
    targets: NDArray[np.integer[Any]],
    *,
    ways: int = 5,
    shots: int = 1,
    episodes: int = 600,
    seed: int = 0,
) -> Interval:
    """Mean accuracy of a few-shot head over episodes, with its 95 % interval.

    An episode draws ``ways`` classes, then ``shots`` training images and 15 other test images of
    each of them. The drawn images depend on the seed and the numbers only, so heads with the same
    seed are tested on the same episodes.

    Parameters
    ----------
    head : str
        One of `training.few_shot_heads.HEADS`.
    features : array, shape (n, d)
        Of classes that the backbone was not trained on.
    targets : array of int, shape (n,)
    ways, shots, episodes : int
    seed : int

    Returns
    -------
    Interval
        Of the mean over episodes, from Student's t. It is for episodes of these images: other
        images of the same classes may differ by more.

    Raises
    ------
    UsageError
        If a number is too small.
    DataError
        If too few classes have enough images.

    Reference
    ---------
    Snell et al., Prototypical networks for few-shot learning, NeurIPS 2017, section 3.2.

    Examples
    --------
    >>> targets = np.repeat(np.arange(3), 20)
    >>> print(evaluate_episodes("cosine", np.eye(3)[targets], targets, ways=3, episodes=10))
    1.000 [1.000, 1.000]
    """
    for name, value, least in (("ways", ways, 2), ("shots", shots, 1), ("episodes", episodes, 2)):
        if value < least:
            raise UsageError(
                f"`{name}` must be at least {least}, got {value}. Pass {name}={least} or more."
            )
    classes, counts = np.unique(targets, return_counts=True)
    usable = classes[counts >= shots + QUERIES]
    if len(usable) < ways:
        raise DataError(
            f"{ways} ways and {shots} shots need {ways} classes of at least {shots + QUERIES} "
            f"images, but there are {len(usable)}. Pass fewer ways or shots."
        )
    rows_of = [np.flatnonzero(targets == label) for label in usable]
    rng = np.random.default_rng((seed, ways, shots))
    truth = np.repeat(np.arange(ways), QUERIES)
    accuracies = np.empty(episodes)
    for episode in range(episodes):
        drawn = np.stack(
            [
                rng.choice(rows_of[label], shots + QUERIES, replace=False)
                for label in rng.choice(len(usable), ways, replace=False)
            ]
        )
        support = np.repeat(np.arange(ways), shots)
        weight, bias = fit_few_shot_head(
            head, features[drawn[:, :shots].ravel()], support, n_classes=ways
        )
        logits = features[drawn[:, shots:].ravel()] @ weight.T + bias
        accuracies[episode] = (logits.argmax(axis=1) == truth).mean()
    mean = float(accuracies.mean())
    error = float(accuracies.std(ddof=1)) / math.sqrt(episodes)
    half = student_quantile(0.95, episodes - 1) * error
    return Interval(value=mean, low=max(mean - half, 0.0), high=min(mean + half, 1.0), method="t")
