"""Losses against an adversary: a discriminator of the domains, or a second classifier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from headstart.training.losses.alignment import entropies, require_same_width

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "adversary_of_margins",
    "classifier_discrepancy",
    "conditional_features",
    "domain_loss",
    "entropy_weights",
    "inverted_domain_loss",
    "reversal_factor",
    "reverse_gradient",
]


def reverse_gradient(features: Tensor, factor: float) -> Tensor:
    """Return the same values, with the gradient multiplied by ``-factor``.

    Parameters
    ----------
    features : tensor
    factor : float

    Reference
    ---------
    Ganin et al., Domain-adversarial training of neural networks, JMLR 2016, equations 16 and 17.

    Examples
    --------
    >>> import torch
    >>> reverse_gradient(torch.tensor([1.0, 2.0]), 0.5)
    tensor([1., 2.])
    """
    constant = features.detach()
    return constant + factor * (constant - features)  # the second term is exactly 0


def reversal_factor(progress: float, *, highest: float = 1.0, slope: float = 10.0) -> float:
    """Factor of the reversed gradient: it rises from 0 to ``highest`` during the training.

    Parameters
    ----------
    progress : float
        Share of the training, from 0 to 1.
    highest, slope : float

    Reference
    ---------
    Ganin et al., Domain-adversarial training of neural networks, JMLR 2016, section 5.2.2.

    Examples
    --------
    >>> [round(reversal_factor(p), 3) for p in (0.0, 0.1, 1.0)]
    [0.0, 0.462, 1.0]
    """
    return highest * (2 / (1 + math.exp(-slope * progress)) - 1)


def domain_loss(
    source_logits: Tensor,
    target_logits: Tensor,
    *,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of a discriminator between the domains; each domain has half of the weight.

    Parameters
    ----------
    source_logits, target_logits : tensor, shape (n,) and (m,), or with a last axis of 1
        Positive means source.
    source_weights, target_weights : tensor, shape (n,) and (m,), optional
        With a mean of 1, such as ``entropy_weights`` (CDAN+E).

    Returns
    -------
    tensor, scalar
        log 2 for a discriminator that guesses.

    Reference
    ---------
    Ganin et al., Domain-adversarial training of neural networks, JMLR 2016, equation 14 (DANN);
    Long et al., Conditional adversarial domain adaptation, NeurIPS 2018, equations 3 and 10 (CDAN).

    Examples
    --------
    >>> import torch
    >>> round(float(domain_loss(torch.zeros(3), torch.zeros(5))), 4)
    0.6931
    """
    from torch.nn.functional import softplus

    source, target = softplus(-source_logits.reshape(-1)), softplus(target_logits.reshape(-1))
    if source_weights is not None:
        source = source * source_weights
    if target_weights is not None:
        target = target * target_weights
    return (source.mean() + target.mean()) / 2


def inverted_domain_loss(target_logits: Tensor) -> Tensor:
    """Cross-entropy of a discriminator on the target with inverted labels, for the encoder.

    Parameters
    ----------
    target_logits : tensor, shape (m,), or with a last axis of 1
        Positive means source.

    Returns
    -------
    tensor, scalar
        log 2 for a discriminator that guesses. Its gradient stays large where the discriminator
        is right.

    Reference
    ---------
    Tzeng et al., Adversarial discriminative domain adaptation, CVPR 2017, equation 9 (ADDA).

    Examples
    --------
    >>> import torch
    >>> round(float(inverted_domain_loss(torch.zeros(5))), 4)
    0.6931
    """
    from torch.nn.functional import softplus

    return softplus(-target_logits.reshape(-1)).mean()


def entropy_weights(logits: Tensor) -> Tensor:
    """Weights of images for the discriminator: confident ones count more; their mean is 1.

    They are constants in the gradient.

    Parameters
    ----------
    logits : tensor, shape (n, k)

    Returns
    -------
    tensor, shape (n,)

    Reference
    ---------
    Long et al., Conditional adversarial domain adaptation, NeurIPS 2018, equation 10 (CDAN+E).

    Examples
    --------
    >>> import torch
    >>> entropy_weights(torch.zeros(2, 3))
    tensor([1., 1.])
    """
    weights = 1 + (-entropies(logits.detach())).exp()
    return weights / weights.mean()


def conditional_features(features: Tensor, probabilities: Tensor) -> Tensor:
    """Outer product of features and probabilities: the discriminator's input in CDAN.

    Parameters
    ----------
    features : tensor, shape (n, d)
    probabilities : tensor, shape (n, k)
        Constants in the gradient.

    Returns
    -------
    tensor, shape (n, k * d)

    Reference
    ---------
    Long et al., Conditional adversarial domain adaptation, NeurIPS 2018, equation 5.

    Examples
    --------
    >>> import torch
    >>> conditional_features(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([[0., 0., 1., 2.]])
    """
    return (probabilities.detach()[:, :, None] * features[:, None]).flatten(1)


def classifier_discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference between the probabilities of two classifiers.

    Parameters
    ----------
    first, second : tensor, shape (m, k)
        Logits of the same target images.

    Returns
    -------
    tensor, scalar
        From 0 to 2 / k.

    Raises
    ------
    UsageError
        If the two have different widths.

    Reference
    ---------
    Saito et al., Maximum classifier discrepancy for unsupervised domain adaptation, CVPR 2018,
    equation 9 (MCD).

    Examples
    --------
    >>> import torch
    >>> float(classifier_discrepancy(torch.zeros(2, 3), torch.ones(2, 3)))
    0.0
    """
    require_same_width(first, second)
    return (first.softmax(dim=1) - second.softmax(dim=1)).abs().mean()


def adversary_of_margins(
    source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], *, margin: float = 4.0
) -> Tensor:
    """Loss of the adversarial classifier of the margin disparity discrepancy.

    It agrees with the classifier on the source and disagrees on the target. The features get its
    gradient reversed.

    Parameters
    ----------
    source, target : pair of tensor, shapes (n, k) and (m, k)
        Logits of the classifier, a constant, and of the adversary.
    margin : float
        The weight of the source, exp of the margin of the paper.

    Returns
    -------
    tensor, scalar

    Reference
    ---------
    Zhang et al., Bridging theory and algorithm for domain adaptation, ICML 2019, equations 28 to
    30 (MDD).

    Examples
    --------
    >>> import torch
    >>> even = torch.zeros(3, 2), torch.zeros(3, 2)
    >>> round(float(adversary_of_margins(even, even, margin=1.0)), 4)  # 2 log 2
    1.3863
    """
    import torch
    from torch.nn.functional import cross_entropy, one_hot

    agree = cross_entropy(source[1], source[0].detach().argmax(dim=1))
    predicted = one_hot(target[0].detach().argmax(dim=1), target[1].shape[1]).bool()
    others = target[1].masked_fill(predicted, -math.inf)
    # -log(1 - p) without the loss of digits where p is almost 1
    disagree = (torch.logsumexp(target[1], 1) - torch.logsumexp(others, 1)).mean()
    return margin * agree + disagree
