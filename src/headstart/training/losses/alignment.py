"""Losses that align domains: pure functions of features and logits of two domains.

Features have shape (n, d) for the source and (m, d) for the target. The formulas that also measure
a distance are those of ``headstart.metrics.domain_distance``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headstart.errors import UsageError
from headstart.metrics.domain_distance import covariance_gap, unbiased_discrepancy

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "batch_spectral_penalty",
    "class_confusion",
    "deep_coral",
    "entropies",
    "hard_feature_norm",
    "information_loss",
    "joint_mmd",
    "multi_kernel_mmd",
    "require_same_width",
    "stepwise_feature_norm",
]

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Widths of the Gaussian kernels, as multiples of the mean squared distance of a batch."""


def deep_coral(source: Tensor, target: Tensor) -> Tensor:
    """Squared Frobenius distance between the covariances, divided by 4 d^2.

    Parameters
    ----------
    source, target : tensor, shape (n, d) and (m, d)

    Returns
    -------
    tensor, scalar
        0 for fewer than two images in a domain, which have no covariance.

    Raises
    ------
    UsageError
        If the two have different widths.

    Reference
    ---------
    Sun and Saenko, Deep CORAL: correlation alignment for deep domain adaptation, ECCV workshops
    2016, equation 1.

    Examples
    --------
    >>> import torch
    >>> float(deep_coral(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]])))
    9.0
    """
    require_same_width(source, target)
    if min(len(source), len(target)) < 2:
        return _zero(source, target)
    gap: Tensor = covariance_gap(source, target)
    return gap


def multi_kernel_mmd(source: Tensor, target: Tensor, *, scales: Sequence[float] = SCALES) -> Tensor:
    """Unbiased squared maximum mean discrepancy with the mean of several Gaussian kernels.

    The kernels have fixed equal weights. The widths are multiples of the mean squared distance
    of the batch, a constant in the gradient.

    Parameters
    ----------
    source, target : tensor, shape (n, d) and (m, d)
        The numbers of images may differ.
    scales : sequence of float

    Returns
    -------
    tensor, scalar
        Around 0, and negative as often as not, for equal distributions. 0 for fewer than two
        images in a domain.

    Raises
    ------
    UsageError
        If the two have different widths.

    Reference
    ---------
    Long et al., Learning transferable features with deep adaptation networks, ICML 2015, equation
    3 (DAN); Gretton et al., A kernel two-sample test, JMLR 2012, equation 3 (the estimator).

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> bool(multi_kernel_mmd(x, x + 9) > multi_kernel_mmd(x, x + 1))
    True
    """
    return joint_mmd([source], [target], scales=scales)


def joint_mmd(
    source: Sequence[Tensor], target: Sequence[Tensor], *, scales: Sequence[float] = SCALES
) -> Tensor:
    """Discrepancy of the joint distributions of several layers: the product of their kernels.

    Parameters
    ----------
    source, target : sequence of tensor, shapes (n, d_l) and (m, d_l)
        Such as the features and the probabilities of the classes.
    scales : sequence of float
        Of every layer's kernels, as for ``multi_kernel_mmd``.

    Returns
    -------
    tensor, scalar

    Raises
    ------
    UsageError
        If a layer has different widths in the two domains, or their numbers of layers differ.

    Reference
    ---------
    Long et al., Deep transfer learning with joint adaptation networks, ICML 2017, equation 9
    (JAN), with the unbiased estimator.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> bool(joint_mmd([x, x], [x + 9, x + 9]) > 0.5)
    True
    """
    import torch

    if len(source) != len(target) or not source:
        raise UsageError(
            f"Expected the same layers of both domains, got {len(source)} and {len(target)}. Pass "
            "as many of the source as of the target."
        )
    for first, second in zip(source, target, strict=True):
        require_same_width(first, second)
    n, m = len(source[0]), len(target[0])
    if min(n, m) < 2:
        return _zero(source[0], target[0])
    in_source = (torch.arange(n + m, device=source[0].device) < n).to(source[0].dtype)
    kernel = torch.ones(n + m, n + m, dtype=source[0].dtype, device=source[0].device)
    for first, second in zip(source, target, strict=True):
        kernel = kernel * _mean_kernel(torch.cat([first, second]), scales)
    value: Tensor = unbiased_discrepancy(kernel, in_source, 1 - in_source)
    return value


def _mean_kernel(rows: Tensor, scales: Sequence[float]) -> Tensor:
    """Mean of Gaussian kernels of all pairs of rows, with exactly 1 on the diagonal."""
    import torch

    n = len(rows)
    squares = (rows[:, None] - rows[None]).square().sum(dim=2)
    width = float(squares.detach().sum()) / (n * (n - 1)) or 1.0  # 1 if all rows are copies
    return torch.stack([torch.exp(-squares / (2 * scale * width)) for scale in scales]).mean(0)


def entropies(logits: Tensor) -> Tensor:
    """Entropy of each prediction in nats, shape (n,), for logits (n, k).

    Reference
    ---------
    Wang et al., Tent: fully test-time adaptation by entropy minimization, ICLR 2021, section 3.2.1:
    its loss is the mean.

    Examples
    --------
    >>> import torch
    >>> [round(float(value), 4) for value in entropies(torch.tensor([[0.0, 0.0], [99.0, 0.0]]))]
    [0.6931, 0.0]
    """
    log_probabilities = logits.log_softmax(dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)


def information_loss(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions minus the entropy of their mean.

    It is smallest, -log k, for confident predictions that use all k classes equally often.

    Parameters
    ----------
    logits : tensor, shape (n, k)

    Returns
    -------
    tensor, scalar
        From -log k to 0, the negative mutual information.

    Reference
    ---------
    Liang et al., Do we really need to access the source data?, ICML 2020, equations 3 and 4
    (SHOT).

    Examples
    --------
    >>> import torch
    >>> round(float(information_loss(torch.tensor([[99.0, 0.0], [0.0, 99.0]]))), 4)
    -0.6931
    >>> round(float(information_loss(torch.tensor([[99.0, 0.0], [99.0, 0.0]]))), 4)
    0.0
    """
    import torch

    n = math.log(len(logits))
    mean_log = torch.logsumexp(logits.log_softmax(dim=1), dim=0) - n
    return entropies(logits).mean() + (mean_log.exp() * mean_log).sum()


def class_confusion(logits: Tensor, *, temperature: float = 2.5) -> Tensor:
    """Minimum class confusion: how often target images are between two classes.

    Parameters
    ----------
    logits : tensor, shape (m, k)
        Of target images.
    temperature : float
        The logits are divided by it.

    Returns
    -------
    tensor, scalar
        From 0 to (k - 1) / k.

    Raises
    ------
    UsageError
        If the temperature is not above 0.

    Reference
    ---------
    Jin et al., Minimum class confusion for versatile domain adaptation, ECCV 2020, equations 2 to 6
    (MCC).

    Examples
    --------
    >>> import torch
    >>> round(float(class_confusion(torch.zeros(3, 2))), 4)
    0.5
    """
    if not temperature > 0:
        raise UsageError(f"`temperature` must be above 0, got {temperature}. Pass 2.5.")
    scaled = logits / temperature
    probabilities = scaled.softmax(dim=1)
    certainty = 1 + (-entropies(scaled)).exp()
    weights = len(logits) * certainty / certainty.sum()
    confusion = probabilities.T @ (weights[:, None] * probabilities)
    tiny = 1e-30  # a class that no image has: its row is 0
    confusion = confusion / confusion.sum(dim=1, keepdim=True).clamp_min(tiny)
    return (confusion.sum() - confusion.trace()) / len(confusion)


def stepwise_feature_norm(features: Tensor, *, step: float = 1.0) -> Tensor:
    """Adaptive feature norm: pull every feature's norm to its present norm plus ``step``.

    Parameters
    ----------
    features : tensor, shape (n, d)
        Of both domains, one call for each.
    step : float

    Returns
    -------
    tensor, scalar
        Always step^2; only its gradient matters.

    Reference
    ---------
    Xu et al., Larger norm more transferable, ICCV 2019, equation 8 (SAFN).

    Examples
    --------
    >>> import torch
    >>> float(stepwise_feature_norm(torch.tensor([[3.0, 4.0]]), step=2.0))
    4.0
    """
    norms = features.norm(dim=1)
    loss: Tensor = (norms - (norms.detach() + step)).square().mean()
    return loss


def hard_feature_norm(features: Tensor, *, radius: float = 25.0) -> Tensor:
    """Hard adaptive feature norm: squared gap between the mean norm and a common radius.

    Parameters
    ----------
    features : tensor, shape (n, d)
        Of both domains, one call for each.
    radius : float

    Returns
    -------
    tensor, scalar

    Reference
    ---------
    Xu et al., Larger norm more transferable, ICCV 2019, equation 5 (HAFN).

    Examples
    --------
    >>> import torch
    >>> float(hard_feature_norm(torch.tensor([[3.0, 4.0]]), radius=7.0))
    4.0
    """
    loss: Tensor = (features.norm(dim=1).mean() - radius).square()
    return loss


def batch_spectral_penalty(source: Tensor, target: Tensor, *, largest: int = 1) -> Tensor:
    """Sum of the squares of the largest singular values of both feature matrices.

    Parameters
    ----------
    source, target : tensor, shape (n, d) and (m, d)
    largest : int
        Number of singular values; at most as many as there are.

    Returns
    -------
    tensor, scalar

    Raises
    ------
    UsageError
        If ``largest`` is below 1, or the widths differ.

    Reference
    ---------
    Chen et al., Transferability vs. discriminability: batch spectral penalization for adversarial
    domain adaptation, ICML 2019, equation 6 (BSP).

    Examples
    --------
    >>> import torch
    >>> float(batch_spectral_penalty(2 * torch.eye(2), torch.eye(2)))
    5.0
    """
    import torch

    require_same_width(source, target)
    if largest < 1:
        raise UsageError(f"`largest` must be 1 or more, got {largest}.")
    values = [torch.linalg.svdvals(features)[:largest] for features in (source, target)]
    return torch.stack([value.square().sum() for value in values]).sum()


def require_same_width(first: Tensor, second: Tensor) -> None:
    """Refuse outputs of different layers.

    Raises
    ------
    UsageError
        If the two are no matrices of one width.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UsageError(
            f"Expected two matrices of the same width, got shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}. Pass outputs of one layer."
        )


def _zero(first: Tensor, second: Tensor) -> Tensor:
    """Zero with a gradient of zeros."""
    return 0 * (first.sum() + second.sum())
