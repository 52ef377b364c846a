"""How far apart the classes of a new task lie among given features: pure functions.

Every score is better when higher, and compares backbones on the same images and labels only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from headstart.metrics.validation import Floats, Ints, centred, labelled

__all__ = ["gbc", "parc", "sfda"]

GBC_COMPONENTS = 64

CHALLENGE = 5.0
"""How fast the regularisation of SFDA fades as the spread within classes grows: a."""


def gbc(features: ArrayLike, targets: ArrayLike) -> float:
    """Negative overlap of the classes, each taken as a spherical normal distribution.

    The sum over ordered pairs of classes of -exp(-D), where D is the Bhattacharyya distance of
    the two, on the first 64 principal components.

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)
        A class of one image is as wide as the others on average.

    Returns
    -------
    float
        From -C (C - 1) for C classes, where all are alike, to 0. It does not change when the
        features are shifted, turned or scaled.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or there is one class only.

    Reference
    ---------
    Pandy et al., Transferability estimation using Bhattacharyya class separability, CVPR 2022,
    equations 2 to 4.

    Examples
    --------
    >>> round(gbc([[0.0], [2.0], [0.0], [2.0]], [0, 0, 1, 1]), 6)
    -2.0
    """
    f, codes = labelled(features, targets)
    f = _components(f, GBC_COMPONENTS)
    means, counts = _means(f, codes)
    squares = np.bincount(codes, weights=((f - means[codes]) ** 2).mean(axis=1))
    widths = squares / counts
    widths[counts == 1] = squares.sum() / max(counts[counts > 1].sum(), 1)
    widths = np.maximum(widths, 1e-9 * max(float((f**2).mean()), 1e-30))
    joined = (widths[:, None] + widths) / 2
    apart = ((means[:, None] - means) ** 2).sum(axis=2) / joined / 8
    shape = 0.5 * f.shape[1] * (np.log(joined) - np.log(widths[:, None] * widths) / 2)
    overlap = np.exp(-(apart + shape))
    np.fill_diagonal(overlap, 0.0)
    return -float(overlap.sum())


def parc(features: ArrayLike, targets: ArrayLike) -> float:
    """Whether images that are alike by their features are alike by their labels.

    The rank correlation, over pairs of images, of 1 - Pearson's r of their features and
    1 - Pearson's r of their 0/1 labels. Of n (n - 1) / 2 pairs: meant for some thousand
    images.

    Parameters
    ----------
    features : array, shape (n, d)
        With two columns or more; a row without spread is like no other.
    targets : array of labels, shape (n,)

    Returns
    -------
    float
        From -1 to 1; 0 where the features tell nothing. (The paper shows it times 100.)

    Raises
    ------
    UsageError
        As for ``gbc``.

    Reference
    ---------
    Bolya, Mittapalli and Hoffman, Scalable diverse model selection for accessible transfer
    learning, NeurIPS 2021, equations 4 to 6; without its reduction of the features, and without
    the standardising of each feature that programs often add.

    Examples
    --------
    >>> round(parc(np.eye(4)[[0, 0, 1, 1]], ["a", "a", "b", "b"]), 6)
    1.0
    """
    from scipy.stats import rankdata

    f, codes = labelled(features, targets)
    above = np.triu_indices(len(f), k=1)
    # rounded, so that equal distances are ties whatever the order of the sums
    distances = np.round(1 - _row_correlation(f)[above], 10)
    unlike = (codes[above[0]] != codes[above[1]]).astype(np.float64)  # two values: like ranks
    ranks = rankdata(distances)
    ranks -= ranks.mean()
    unlike -= unlike.mean()
    scale = np.sqrt((ranks @ ranks) * (unlike @ unlike))
    return float(ranks @ unlike / scale) if scale > 0 else 0.0


def sfda(features: ArrayLike, targets: ArrayLike) -> float:
    """Mean log probability of the labels by a Fisher discriminant that is made to work harder.

    A regularised discriminant is fitted; then each image is drawn towards the mean of the
    other classes, the more the less sure its own class is, and the discriminant is fitted again
    and judged. What is added to the scatter within classes is as large as that scatter on
    average, and how much of it follows from features of total variance one: the score does not
    hang on their unit. (In the paper it does, and says nothing for fewer images than features
    where the unit is small.)

    Parameters
    ----------
    features : array, shape (n, d)
    targets : array of labels, shape (n,)

    Returns
    -------
    float
        At most 0. It does not change when the features are shifted, turned or scaled.

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
    f, codes = labelled(features, targets)
    f = _components(f, len(f))
    f /= max(float(np.sqrt((f**2).sum() / len(f))), 1e-300)
    rows = np.arange(len(f))
    share = _identity_share(f, codes)
    sure = np.exp(_log_posterior(f, codes, share))[rows, codes]
    means, counts = _means(f, codes)
    total = f.sum(axis=0)
    others = (total - means * counts[:, None]) / (len(f) - counts)[:, None]
    mixed = sure[:, None] * f + (1 - sure)[:, None] * others[codes]
    mixed -= mixed.mean(axis=0)
    return float(_log_posterior(mixed, codes, share)[rows, codes].mean())


def _identity_share(f: Floats, codes: Ints) -> float:
    """Share of the identity in the scatter within classes: less, the more they spread."""
    inner = f - _means(f, codes)[0][codes]
    return float(np.exp(-CHALLENGE * np.linalg.norm(inner, 2) ** 2 / len(f)))


def _log_posterior(f: Floats, codes: Ints, share: float) -> Floats:
    """Log probabilities by a regularised linear discriminant, shape (n, classes)."""
    means, counts = _means(f, codes)
    inner = f - means[codes]
    within, d = inner.T @ inner / len(f), f.shape[1]
    size = max(float(np.trace(within)), 1e-9 * float((f**2).sum()) / len(f), 1e-300) / d
    within = (1 - share) * within + share * size * np.eye(d)
    axes = np.linalg.solve(within, means.T)
    scores = f @ axes - 0.5 * (means.T * axes).sum(axis=0) + np.log(counts / len(f))
    top = scores.max(axis=1, keepdims=True)
    return np.asarray(scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True)))


def _components(f: Floats, most: int) -> Floats:
    """Coordinates along the principal components, centred, shape (n, most at most)."""
    u, s, _ = np.linalg.svd(centred(f), full_matrices=False)
    kept = max(1, min(most, int((s > 1e-10 * s[0]).sum())))
    return np.asarray(u[:, :kept] * s[:kept])


def _means(f: Floats, codes: Ints) -> tuple[Floats, Floats]:
    """Mean, shape (classes, d), and number of images of each class."""
    columns = np.eye(int(codes.max()) + 1)[codes]
    counts = columns.sum(axis=0)
    return np.asarray(columns.T @ f / counts[:, None]), counts


def _row_correlation(f: Floats) -> Floats:
    """Pearson's r of every two rows, shape (n, n); 0 for a row without spread."""
    spread = f - f.mean(axis=1, keepdims=True)
    length = np.linalg.norm(spread, axis=1)
    flat = length <= 1e-12 * np.maximum(np.abs(f).max(axis=1), 1e-300)
    spread[flat], length[flat] = 0.0, 1.0
    spread /= length[:, None]
    return np.asarray(spread @ spread.T)
