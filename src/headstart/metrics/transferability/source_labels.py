"""How well what a source model says of new images tells their new labels: pure functions.

The first two need a source classifier; the third draws up classes of its own. All three are
logarithms of a probability: at most 0, better when higher, and no better than guessing by the
classes' shares at the negative entropy of the labels.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike

from headstart.errors import UsageError
from headstart.metrics.validation import Floats, Ints, centred, labelled

__all__ = ["leep", "nce", "nleep"]

ENERGY = 0.8
"""Share of the features' variance that a mixture of normal distributions is fitted to."""

PER_COMPONENT = 5
"""Images that a part of the mixture has on average, at least."""

ITERATIONS = 200


def leep(source_probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean log probability of the labels, told through the source model's classes.

    The source's answers and the labels give a table P(y, z) = 1/n sum over images of label y
    of p(z | x); an image's probability is the sum over z of P(y | z) p(z | x). A source class
    that no image has a share of tells nothing and takes no part.

    Parameters
    ----------
    source_probabilities : array, shape (n, Z)
        What the source model says of each image; rows add up to 1.
    targets : array of labels, shape (n,)

    Returns
    -------
    float
        From the negative entropy of the labels to 0; never below ``nce`` of the same table.

    Raises
    ------
    UsageError
        If the arrays do not fit together, rows are no probabilities, or there is one class only.

    Reference
    ---------
    Nguyen et al., LEEP: a new measure to evaluate transferability of learned representations,
    ICML 2020, equations 1 and 2.

    Examples
    --------
    >>> leep([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], ["cat", "dog"])
    0.0
    """
    chance, codes = labelled(source_probabilities, targets)
    _require_rows(chance)
    joint = _table(chance, codes)
    mass = joint.sum(axis=0)
    given = np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)
    return min(float(np.log((given[codes] * chance).sum(axis=1)).mean()), 0.0)


def nce(source_labels: ArrayLike, targets: ArrayLike) -> float:
    """Negative conditional entropy of the labels, given those of the source model.

    Parameters
    ----------
    source_labels : array of labels, shape (n,)
        The source model's likeliest class of each image; one class only is allowed.
    targets : array of labels, shape (n,)

    Returns
    -------
    float
        From the negative entropy of the labels, where the source tells nothing, to 0, where
        each of its classes belongs to one label.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or there is one class of targets only.

    Reference
    ---------
    Tran, Nguyen and Hassner, Transferability and hardness of supervised classification tasks,
    ICCV 2019, equation 5: the negative of H(Y | Z).

    Examples
    --------
    >>> nce(["tabby", "lynx", "husky"], ["cat", "cat", "dog"])
    0.0
    >>> round(nce([7, 7], ["cat", "dog"]), 6)
    -0.693147
    """
    given = np.asarray(source_labels)
    if given.ndim != 1:
        raise UsageError(
            f"Expected `source_labels` of shape (n,), got {given.shape}; do pass one class an "
            "image, such as probabilities.argmax(axis=1)."
        )
    names, answered = np.unique(given, return_inverse=True)
    chance, codes = labelled(np.eye(len(names))[answered], targets)
    joint = _table(chance, codes)
    held = joint > 0
    share = joint / joint.sum(axis=0)
    return min(float((joint[held] * np.log(share[held])).sum()), 0.0)


def nleep(
    features: ArrayLike, targets: ArrayLike, *, components: int | None = None, seed: int = 0
) -> float:
    """LEEP with the parts of a mixture of normal distributions in place of source classes.

    The features' principal components that hold 80 % of their variance get a mixture, whose
    posterior stands for the source model's answer. Its parts have diagonal covariances: full
    ones, as in the paper, have more values than there are images as a rule.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)
    components : int, optional
        Parts of the mixture; by default five a class as in the paper, but no more than one for
        each five images: with a part for each image every backbone would be perfect.
    seed : int
        Where the fit begins.

    Returns
    -------
    float
        As for ``leep``; where all features are equal, the negative entropy of the labels.

    Raises
    ------
    UsageError
        As for ``leep``, or if ``components`` is below 1.

    Reference
    ---------
    Li et al., Ranking neural checkpoints, CVPR 2021, section 3.2.

    Examples
    --------
    >>> y = np.repeat([0, 1], 20)
    >>> noise = np.random.default_rng(0).normal(size=(40, 3))
    >>> nleep(noise + 9 * y[:, None], y) > nleep(noise, y)
    True
    """
    f, codes = labelled(features, targets)
    if components is not None and components < 1:
        raise UsageError(f"Expected `components` to be 1 or more, got {components}; do use 5.")
    places = _principal(f)
    order = np.lexsort(places.T)  # so that the fit does not hang on the order of the images
    few = max(2, len(f) // PER_COMPONENT)
    parts = min(5 * (int(codes.max()) + 1), few) if components is None else components
    parts = min(parts, len(np.unique(places, axis=0)))
    return leep(_posterior(places[order], parts, seed), codes[order])


def _principal(f: Floats) -> Floats:
    """Coordinates that hold most of the variance, of unit total; one of zeros if none varies."""
    u, s, _ = np.linalg.svd(centred(f), full_matrices=False)
    total = float((s**2).sum())
    if total <= 0:
        return np.zeros((len(f), 1))
    kept = int(np.searchsorted(np.cumsum(s**2), ENERGY * total)) + 1
    found = u[:, :kept] * s[:kept]
    # The sign of a component is arbitrary: the longer tail is made the positive one.
    signs = np.sign((found**3).sum(axis=0))
    return np.asarray(found * np.where(signs == 0, 1, signs) * np.sqrt(len(f) / total))


def _posterior(places: Floats, parts: int, seed: int) -> Floats:
    """Probability of each part of a fitted mixture, shape (n, parts)."""
    if parts == 1:
        return np.ones((len(places), 1))
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    # The values are scaled to a mean variance of one, so that the ridge is small beside them.
    scaled = places / np.sqrt(places.var(axis=0).mean())
    model = GaussianMixture(
        parts, covariance_type="diag", reg_covar=1e-3, max_iter=ITERATIONS, random_state=seed
    )
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly there is as good a ranking
        found: Floats = model.fit(scaled).predict_proba(scaled)
    return found


def _table(chance: Floats, codes: Ints) -> Floats:
    """Shares of label y and source class z together, shape (classes, Z)."""
    columns = np.eye(int(codes.max()) + 1)[codes]
    return np.asarray(columns.T @ chance / len(codes))


def _require_rows(chance: Floats) -> None:
    worst = float(np.abs(chance.sum(axis=1) - 1).max())
    if chance.min() < 0 or worst > 1e-3:
        raise UsageError(
            f"Expected rows of `source_probabilities` to be shares of 1, got a least value of "
            f"{chance.min():.3g} and a sum off by {worst:.3g}; do apply softmax to logits."
        )
