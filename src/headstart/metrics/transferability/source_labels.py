"""Transferability scores from the predictions of a source model: LEEP, NCE and NLEEP.

LEEP and NCE need a source classifier, NLEEP fits a mixture model instead. All three are log
probabilities: at most 0, and higher is better. The negative entropy of the labels means no better
than guessing by the class frequencies.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike

from headstart.errors import UsageError
from headstart.metrics.validation import Floats, Ints, centre_columns, check_features

__all__ = ["leep", "nce", "nleep"]

ENERGY = 0.8
"""Share of the features' variance that a mixture of normal distributions is fitted to."""

PER_COMPONENT = 5
"""Smallest mean number of images for each component of the mixture."""

ITERATIONS = 200


def leep(source_probabilities: ArrayLike, targets: ArrayLike) -> float:
    """LEEP: mean log probability of the labels, predicted from the source classes.

    The source probabilities and the labels give a table P(y, z) = 1/n sum over images of label y
    of p(z | x). The probability of an image's label is the sum over z of P(y | z) p(z | x). A
    source class with probability 0 for all images is ignored.

    Parameters
    ----------
    source_probabilities : array, shape (n, Z)
        Predictions of the source model; rows sum to 1.
    targets : array of labels, shape (n,)

    Returns
    -------
    float
        From the negative entropy of the labels to 0; never below ``nce`` of the same table.

    Raises
    ------
    UsageError
        If the arrays do not fit together, rows are not probabilities, or there is only one class.

    Reference
    ---------
    Nguyen et al., LEEP: a new measure to evaluate transferability of learned representations,
    ICML 2020, equations 1 and 2.

    Examples
    --------
    >>> leep([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], ["cat", "dog"])
    0.0
    """
    source_chances, codes = check_features(source_probabilities, targets)
    _require_probabilities(source_chances)
    joint = _joint_table(source_chances, codes)
    mass = joint.sum(axis=0)
    conditional = np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)
    return min(float(np.log((conditional[codes] * source_chances).sum(axis=1)).mean()), 0.0)


def nce(source_labels: ArrayLike, targets: ArrayLike) -> float:
    """NCE: negative conditional entropy of the labels, given the source model's classes.

    Parameters
    ----------
    source_labels : array of labels, shape (n,)
        Most probable source class of each image; all may be the same.
    targets : array of labels, shape (n,)

    Returns
    -------
    float
        From the negative entropy of the labels, if the source classes are uninformative, to 0,
        if each source class occurs with one label only.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or there is only one class of targets.

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
    source_classes = np.asarray(source_labels)
    if source_classes.ndim != 1:
        raise UsageError(
            f"Expected `source_labels` of shape (n,), got {source_classes.shape}. Pass one class "
            "for each image, such as probabilities.argmax(axis=1)."
        )
    names, source_codes = np.unique(source_classes, return_inverse=True)
    chance, codes = check_features(np.eye(len(names))[source_codes], targets)
    joint = _joint_table(chance, codes)
    is_present = joint > 0
    conditional = joint / joint.sum(axis=0)
    return min(float((joint[is_present] * np.log(conditional[is_present])).sum()), 0.0)


def nleep(
    features: ArrayLike, targets: ArrayLike, *, components: int | None = None, seed: int = 0
) -> float:
    """NLEEP: LEEP with the components of a Gaussian mixture in place of source classes.

    The mixture is fitted to the principal components with 80 % of the features' variance. Its
    posterior replaces the source probabilities. The covariances are diagonal: full ones, as in
    the paper, usually have more parameters than there are images.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)
    components : int, optional
        Components of the mixture. By default five for each class as in the paper, but at most
        one for five images: with one for each image every backbone would look perfect.
    seed : int
        Seed of the fit.

    Returns
    -------
    float
        As for ``leep``; if all features are equal, the negative entropy of the labels.

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
    f, codes = check_features(features, targets)
    if components is not None and components < 1:
        raise UsageError(f"`components` must be at least 1, got {components}. Pass 5.")
    coordinates = _principal_components(f)
    order = np.lexsort(coordinates.T)  # so that the order of the images does not matter
    max_parts = max(2, len(f) // PER_COMPONENT)
    parts = min(5 * (int(codes.max()) + 1), max_parts) if components is None else components
    parts = min(parts, len(np.unique(coordinates, axis=0)))
    return leep(_mixture_posterior(coordinates[order], parts, seed), codes[order])


def _principal_components(f: Floats) -> Floats:
    """Coordinates with most of the variance, scaled; one of zeros if all rows are equal."""
    u, s, _ = np.linalg.svd(centre_columns(f), full_matrices=False)
    total = float((s**2).sum())
    if total <= 0:
        return np.zeros((len(f), 1))
    n_components = int(np.searchsorted(np.cumsum(s**2), ENERGY * total)) + 1
    coordinates = u[:, :n_components] * s[:n_components]
    # The sign of a component is arbitrary: make the longer tail positive.
    signs = np.sign((coordinates**3).sum(axis=0))
    return np.asarray(coordinates * np.where(signs == 0, 1, signs) * np.sqrt(len(f) / total))


def _mixture_posterior(coordinates: Floats, parts: int, seed: int) -> Floats:
    """Probability of each component of a fitted mixture, shape (n, parts)."""
    if parts == 1:
        return np.ones((len(coordinates), 1))
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    # Scaled to a mean variance of one, so that reg_covar is small in comparison.
    scaled = coordinates / np.sqrt(coordinates.var(axis=0).mean())
    model = GaussianMixture(
        parts, covariance_type="diag", reg_covar=1e-3, max_iter=ITERATIONS, random_state=seed
    )
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # a nearly converged fit ranks as well
        posterior: Floats = model.fit(scaled).predict_proba(scaled)
    return posterior


def _joint_table(chance: Floats, codes: Ints) -> Floats:
    """Joint probabilities of label y and source class z, shape (classes, Z)."""
    columns = np.eye(int(codes.max()) + 1)[codes]
    return np.asarray(columns.T @ chance / len(codes))


def _require_probabilities(chance: Floats) -> None:
    worst = float(np.abs(chance.sum(axis=1) - 1).max())
    if chance.min() < 0 or worst > 1e-3:
        raise UsageError(
            f"Expected rows of `source_probabilities` to be probabilities, got a minimum of "
            f"{chance.min():.3g} and a sum off by {worst:.3g}. Apply softmax to logits."
        )
