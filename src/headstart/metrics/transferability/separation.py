"""Transferability scores from the separation of classes in feature space: GBC, PARC and SFDA.

A higher score is better. Compare scores of backbones on the same images and labels only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from headstart.metrics.validation import Floats, Ints, centre_columns, check_features

__all__ = ["gbc", "parc", "sfda"]

GBC_COMPONENTS = 64

CHALLENGE = 5.0
"""The parameter a of SFDA: how fast regularisation falls as the spread within classes grows."""


def gbc(features: ArrayLike, targets: ArrayLike) -> float:
    """GBC: negative overlap of the classes, each modelled as a spherical normal distribution.

    The sum over ordered pairs of classes of -exp(-D), where D is the Bhattacharyya distance of
    the two, on the first 64 principal components.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)
        A class with one image gets the average width of the others.

    Returns
    -------
    float
        From -C (C - 1) for C classes, if all are equal, to 0. Shifts, rotations and scaling of
        the features do not change it.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or there is only one class.

    Reference
    ---------
    Pandy et al., Transferability estimation using Bhattacharyya class separability, CVPR 2022,
    equations 2 to 4.

    Examples
    --------
    >>> round(gbc([[0.0], [2.0], [0.0], [2.0]], [0, 0, 1, 1]), 6)
    -2.0
    """
    f, codes = check_features(features, targets)
    f = _principal_components(f, GBC_COMPONENTS)
    means, counts = _class_means_and_counts(f, codes)
    squares = np.bincount(codes, weights=((f - means[codes]) ** 2).mean(axis=1))
    widths = squares / counts
    widths[counts == 1] = squares.sum() / max(counts[counts > 1].sum(), 1)
    widths = np.maximum(widths, 1e-9 * max(float((f**2).mean()), 1e-30))
    pooled = (widths[:, None] + widths) / 2
    mean_term = ((means[:, None] - means) ** 2).sum(axis=2) / pooled / 8
    width_term = 0.5 * f.shape[1] * (np.log(pooled) - np.log(widths[:, None] * widths) / 2)
    overlap = np.exp(-(mean_term + width_term))
    np.fill_diagonal(overlap, 0.0)
    return -float(overlap.sum())


def parc(features: ArrayLike, targets: ArrayLike) -> float:
    """PARC: whether images with similar features have similar labels.

    The rank correlation, over pairs of images, of 1 - Pearson's r of their features and
    1 - Pearson's r of their 0/1 labels. It compares n (n - 1) / 2 pairs: use at most
    some thousand images.

    Parameters
    ----------
    features : array, shape (n, d)
        At least two columns. A constant row has correlation 0 with all others.
    targets : array of labels, shape (n,)

    Returns
    -------
    float
        From -1 to 1; 0 for uninformative features. (The paper reports it times 100.)

    Raises
    ------
    UsageError
        As for ``gbc``.

    Reference
    ---------
    Bolya, Mittapalli and Hoffman, Scalable diverse model selection for accessible transfer
    learning, NeurIPS 2021, equations 4 to 6; without the reduction of the features, and without
    the standardisation of each feature that implementations often add.

    Examples
    --------
    >>> round(parc(np.eye(4)[[0, 0, 1, 1]], ["a", "a", "b", "b"]), 6)
    1.0
    """
    from scipy.stats import rankdata

    f, codes = check_features(features, targets)
    above = np.triu_indices(len(f), k=1)
    # Rounded, so that equal distances are ties, whatever the order of summation.
    distances = np.round(1 - _row_correlation(f)[above], 10)
    label_distances = (codes[above[0]] != codes[above[1]]).astype(
        np.float64
    )  # two values, so ranks are not needed
    ranks = rankdata(distances)
    ranks -= ranks.mean()
    label_distances -= label_distances.mean()
    scale = np.sqrt((ranks @ ranks) * (label_distances @ label_distances))
    return float(ranks @ label_distances / scale) if scale > 0 else 0.0


def sfda(features: ArrayLike, targets: ArrayLike) -> float:
    """SFDA: mean log probability of the labels by a self-challenging Fisher discriminant.

    A regularised discriminant is fitted. Each image is then moved towards the mean of the other
    classes, the further the lower the probability of its own class, and the discriminant is
    fitted and evaluated again. The regularisation is scaled by the scatter within classes, and
    its share is computed from features of total variance one, so that the scale of the features
    does not matter. (In the paper it does, and the score is meaningless for fewer images than
    features on a small scale.)

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)

    Returns
    -------
    float
        At most 0. Shifts, rotations and scaling of the features do not change it.

    Raises
    ------
    UsageError
        As for ``gbc``.

    Reference
    ---------
    Shao et al., Not all models are equal: predicting model transferability in a
    self-challenging Fisher space, ECCV 2022, section 4: regularised FDA with the share
    exp(-a sigma(S_W)) of the identity, a = 5, here times tr(S_W) / d; ConfMix by the
    discriminant's own probability.

    Examples
    --------
    >>> y = np.repeat([0, 1], 20)
    >>> noise = np.random.default_rng(0).normal(size=(40, 3))
    >>> sfda(noise + 2 * y[:, None], y) > sfda(noise, y)
    True
    """
    f, codes = check_features(features, targets)
    f = _principal_components(f, len(f))
    f /= max(float(np.sqrt((f**2).sum() / len(f))), 1e-300)
    rows = np.arange(len(f))
    share = _identity_share(f, codes)
    own_probability = np.exp(_log_posterior(f, codes, share))[rows, codes]
    means, counts = _class_means_and_counts(f, codes)
    total = f.sum(axis=0)
    other_means = (total - means * counts[:, None]) / (len(f) - counts)[:, None]
    challenged = own_probability[:, None] * f + (1 - own_probability)[:, None] * other_means[codes]
    challenged -= challenged.mean(axis=0)
    return float(_log_posterior(challenged, codes, share)[rows, codes].mean())


def _identity_share(f: Floats, codes: Ints) -> float:
    """Share of the identity in the scatter within classes; it falls with the spread."""
    inner = f - _class_means_and_counts(f, codes)[0][codes]
    return float(np.exp(-CHALLENGE * np.linalg.norm(inner, 2) ** 2 / len(f)))


def _log_posterior(f: Floats, codes: Ints, share: float) -> Floats:
    """Log probabilities by a regularised linear discriminant, shape (n, classes)."""
    means, counts = _class_means_and_counts(f, codes)
    inner = f - means[codes]
    within, d = inner.T @ inner / len(f), f.shape[1]
    size = max(float(np.trace(within)), 1e-9 * float((f**2).sum()) / len(f), 1e-300) / d
    within = (1 - share) * within + share * size * np.eye(d)
    axes = np.linalg.solve(within, means.T)
    scores = f @ axes - 0.5 * (means.T * axes).sum(axis=0) + np.log(counts / len(f))
    top = scores.max(axis=1, keepdims=True)
    return np.asarray(scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True)))


def _principal_components(f: Floats, max_components: int) -> Floats:
    """Coordinates on the principal components, centred, shape (n, at most ``max_components``)."""
    u, s, _ = np.linalg.svd(centre_columns(f), full_matrices=False)
    n_components = max(1, min(max_components, int((s > 1e-10 * s[0]).sum())))
    return np.asarray(u[:, :n_components] * s[:n_components])


def _class_means_and_counts(f: Floats, codes: Ints) -> tuple[Floats, Floats]:
    """Mean of each class, shape (classes, d), and its number of images."""
    columns = np.eye(int(codes.max()) + 1)[codes]
    counts = columns.sum(axis=0)
    return np.asarray(columns.T @ f / counts[:, None]), counts


def _row_correlation(f: Floats) -> Floats:
    """Pearson's r of all pairs of rows, shape (n, n); 0 for a constant row."""
    centred = f - f.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1)
    is_constant = length <= 1e-12 * np.maximum(np.abs(f).max(axis=1), 1e-300)
    centred[is_constant], length[is_constant] = 0.0, 1.0
    centred /= length[:, None]
    return np.asarray(centred @ centred.T)
