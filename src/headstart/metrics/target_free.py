"""Scores of a classifier on unlabelled images of another domain: pure functions.

None of them reads a label of the target. Each can be wrong: a model can be confident and mistaken.
Use several together, and compare only models with the same classes on the same images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.errors import UsageError
from headstart.metrics.validation import Floats

__all__ = [
    "EmbeddedRisk",
    "batch_nuclear_norm",
    "class_separation",
    "deep_embedded_validation",
    "density_ratios",
    "describe_collapse",
    "effective_classes",
    "mean_entropy",
    "mutual_information",
    "neighbourhood_density",
]

COLLAPSED = 0.5
"""Predictions have collapsed if they use less than this share of the classes used at the start,
both counted without the first."""

MOST_IMAGES = 2000
"""Images whose pairs are compared: all pairs of more need too much memory."""

LEAST_WEIGHT = 0.8
"""Smallest mean density ratio at which source images count as images of the target's kind."""


class EmbeddedRisk(NamedTuple):
    """Estimated error on the target, with the terms of each source image.

    ``value``: the estimate with its control variate. ``terms``: (n,), their mean is the value.
    ``mean_weight``: mean of the density ratios, 1 in expectation. Far below 1, most of the target
    has no source images near it, and the estimate says nothing about the target.
    """

    value: float
    terms: Floats
    mean_weight: float = 1.0

    @property
    def covers_target(self) -> bool:
        """Whether the mean weight is near enough to 1 for the estimate to be used."""
        return self.mean_weight >= LEAST_WEIGHT


def mean_entropy(probabilities: ArrayLike) -> float:
    """Mean entropy of the predictions in nats; lower is more confident.

    >>> round(mean_entropy([[0.5, 0.5], [1.0, 0.0]]), 4)
    0.3466
    """
    return float(_row_entropies(_check(probabilities)).mean())


def mutual_information(probabilities: ArrayLike) -> float:
    """Entropy of the mean prediction minus the mean entropy; higher is better.

    Parameters
    ----------
    probabilities : array, shape (m, k)

    Returns
    -------
    float
        From 0 to log k. 0 if all images have the same prediction, whatever its confidence.

    Reference
    ---------
    Bridle et al., Unsupervised classifiers, mutual information and phantom targets, NIPS 1991.

    Examples
    --------
    >>> round(mutual_information([[1.0, 0.0], [0.0, 1.0]]), 4)
    0.6931
    """
    p = _check(probabilities)
    return float(_row_entropies(p.mean(axis=0, keepdims=True))[0] - _row_entropies(p).mean())


def effective_classes(probabilities: ArrayLike) -> float:
    """Number of classes that the predictions use: exp of the entropy of their shares.

    >>> round(effective_classes([[0.9, 0.1], [0.2, 0.8]]), 6)
    2.0
    >>> effective_classes([[0.9, 0.1], [0.8, 0.2]])
    1.0
    """
    p = _check(probabilities)
    shares = np.bincount(p.argmax(axis=1), minlength=p.shape[1]) / len(p)
    return float(np.exp(_row_entropies(shares[None])[0]))


def describe_collapse(probabilities: ArrayLike, start_classes: float) -> str:
    """Describe predictions in which few classes have taken over, or return "".

    Parameters
    ----------
    probabilities : array, shape (m, k)
    start_classes : float
        ``effective_classes`` of the model before the adaptation, on the same images.

    Examples
    --------
    >>> describe_collapse([[0.9, 0.1], [0.8, 0.2]], 2.0)
    'The predictions collapsed: they use 1.0 classes, the source model 2.0.'
    """
    classes = effective_classes(probabilities)
    if classes - 1 >= COLLAPSED * (start_classes - 1):
        return ""
    return (
        f"The predictions collapsed: they use {classes:.1f} classes, the source model "
        f"{start_classes:.1f}."
    )


def neighbourhood_density(probabilities: ArrayLike, *, temperature: float = 0.05) -> float:
    """Soft neighbourhood density: how many images share each image's prediction, in nats.

    Parameters
    ----------
    probabilities : array, shape (m, k)
        At least two rows. Of more than 2000, evenly spaced ones are used.
    temperature : float

    Returns
    -------
    float
        From 0 to log(m - 1); higher is better.

    Reference
    ---------
    Saito et al., Tune it the right way: unsupervised validation of domain adaptation via soft
    neighborhood density, ICCV 2021, equations 1 to 3 (SND).

    Examples
    --------
    >>> round(neighbourhood_density([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3), 4)  # log 2
    0.6931
    """
    p = _check(probabilities)
    if not temperature > 0 or len(p) < 2:
        raise UsageError(
            f"Expected `temperature` above 0 and two images, got {temperature} and {len(p)}."
        )
    p = p[np.linspace(0, len(p) - 1, min(len(p), MOST_IMAGES)).round().astype(int)]
    p = p / np.linalg.norm(p, axis=1, keepdims=True)
    similarity = p @ p.T / temperature
    np.fill_diagonal(similarity, -np.inf)
    similarity -= similarity.max(axis=1, keepdims=True)
    weights = np.exp(similarity)
    return float(_row_entropies(weights / weights.sum(axis=1, keepdims=True)).mean())


def batch_nuclear_norm(probabilities: ArrayLike) -> float:
    """Sum of the singular values of the predictions, from 0 to 1: confident and diverse.

    It is divided by its largest value, sqrt(m * min(m, k)).

    Reference
    ---------
    Cui et al., Towards discriminability and diversity: batch nuclear-norm maximization, CVPR 2020,
    equation 6 (BNM).

    Examples
    --------
    >>> round(batch_nuclear_norm([[1.0, 0.0], [0.0, 1.0]]), 6)
    1.0
    """
    p = _check(probabilities)
    largest = np.sqrt(len(p) * min(p.shape))
    return float(np.linalg.svd(p, compute_uv=False).sum() / largest)


def class_separation(features: ArrayLike, probabilities: ArrayLike) -> float:
    """Share of the features' variance that lies between the predicted classes, from 0 to 1.

    Parameters
    ----------
    features : array, shape (m, d)
        Scaled to length 1 first, so that larger features alone give no better score.
    probabilities : array, shape (m, k)

    Examples
    --------
    >>> class_separation([[1.0, 0.0], [0.0, 1.0]], [[0.9, 0.1], [0.1, 0.9]])
    1.0
    """
    p, f = _check(probabilities), np.asarray(features, dtype=np.float64)
    if f.ndim != 2 or len(f) != len(p):
        raise UsageError(f"Expected features ({len(p)}, d), got shape {f.shape}.")
    f = f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)
    labels, centre = p.argmax(axis=1), f.mean(axis=0)
    between = sum(
        (labels == k).sum() * ((f[labels == k].mean(axis=0) - centre) ** 2).sum()
        for k in np.unique(labels)
    )
    return float(between / max(((f - centre) ** 2).sum(), 1e-300))


def density_ratios(train: ArrayLike, target: ArrayLike, at: ArrayLike) -> Floats:
    """Density of the target over that of the source, for each row of ``at``.

    A logistic regression separates source and target features.

    Parameters
    ----------
    train, target, at : array, shapes (n, d), (m, d) and (v, d)
        Features of source training images, target images and source validation images.

    Returns
    -------
    array, shape (v,)

    Reference
    ---------
    Bickel et al., Discriminative learning for differing training and test distributions, ICML
    2007; You et al., ICML 2019, equation 7.

    Examples
    --------
    >>> ratios = density_ratios([[0.0], [1.0]], [[4.0], [5.0]], [[0.0], [5.0]])
    >>> bool(ratios[0] < ratios[1])
    True
    """
    from sklearn.linear_model import LogisticRegression

    source, other, rows = (np.asarray(v, dtype=np.float64) for v in (train, target, at))
    both = np.concatenate([source, other])
    centre, scale = both.mean(axis=0), both.std(axis=0) + 1e-6
    side = np.repeat([0, 1], [len(source), len(other)])
    # The penalty grows with the width: few images separate perfectly in many dimensions.
    model = LogisticRegression(C=1 / both.shape[1], max_iter=1000)
    model.fit((both - centre) / scale, side)
    log_odds = model.decision_function((rows - centre) / scale)
    return np.asarray(np.exp(np.clip(log_odds, -10, 10)) * len(source) / len(other))


def deep_embedded_validation(losses: ArrayLike, ratios: ArrayLike) -> EmbeddedRisk:
    """Estimate the error on the target by weighted errors on source validation images.

    Parameters
    ----------
    losses : array, shape (v,)
        Of source validation images, such as 0 for a correct prediction and 1 for a wrong one.
    ratios : array, shape (v,)
        ``density_ratios`` of these images, in the features of the same model.

    Returns
    -------
    EmbeddedRisk
        Its value is not limited to the range of the losses.

    Reference
    ---------
    You et al., Towards accurate model selection in deep unsupervised domain adaptation, ICML 2019,
    equations 8 to 10 (DEV).

    Examples
    --------
    >>> deep_embedded_validation([0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]).value
    0.5
    """
    loss, weight = np.asarray(losses, dtype=np.float64), np.asarray(ratios, dtype=np.float64)
    if loss.ndim != 1 or loss.shape != weight.shape or len(loss) < 2:
        raise UsageError(
            f"Expected losses and ratios of two or more images, got shapes {loss.shape} and "
            f"{weight.shape}."
        )
    weighted, variance = loss * weight, float(weight.var(ddof=1))
    # The mean of the weights is 1 in expectation: it reduces the variance as a control variate.
    slope = -float(np.cov(weighted, weight, ddof=1)[0, 1]) / variance if variance > 1e-12 else 0.0
    terms = weighted + slope * (weight - 1)
    return EmbeddedRisk(float(terms.mean()), terms, float(weight.mean()))


def _row_entropies(p: NDArray[Any]) -> Floats:
    return np.asarray(-(p * np.log(np.maximum(p, 1e-300))).sum(axis=1))


def _check(probabilities: ArrayLike) -> Floats:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not p.size or not np.isfinite(p).all() or p.min() < 0:
        raise UsageError(
            f"Expected probabilities (m, k), finite and not negative, got shape {p.shape}."
        )
    return p
