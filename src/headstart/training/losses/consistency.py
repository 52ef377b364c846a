"""Losses of consistency between two views of an image: mean teacher and FixMatch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from headstart.errors import UsageError
from headstart.training.losses.alignment import require_same_width

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["confident_label_loss", "consistency_loss", "ramp_up", "teacher_decay"]


def consistency_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the probabilities, summed over the classes; mean over the images.

    Parameters
    ----------
    student, teacher : tensor, shape (n, k)
        Logits of two views of the same images. The teacher is a constant in the gradient.

    Returns
    -------
    tensor, scalar
        From 0 to 2.

    Raises
    ------
    UsageError
        If the two have different widths.

    Reference
    ---------
    Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, section 2 (the cost
    J); French et al., Self-ensembling for visual domain adaptation, ICLR 2018, section 3.1.

    Examples
    --------
    >>> import torch
    >>> float(consistency_loss(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]])))
    2.0
    """
    require_same_width(student, teacher)
    gap = student.softmax(dim=1) - teacher.detach().softmax(dim=1)
    return gap.square().sum(dim=1).mean()


def confident_label_loss(weak: Tensor, strong: Tensor, *, threshold: float = 0.95) -> Tensor:
    """Cross-entropy of strong views with the labels that confident weak views predict.

    Parameters
    ----------
    weak, strong : tensor, shape (n, k)
        Logits of a weakly and of a strongly augmented view of the same images. The weak view is a
        constant in the gradient.
    threshold : float
        Smallest probability of a label. Images below it count as 0 in the mean.

    Returns
    -------
    tensor, scalar

    Raises
    ------
    UsageError
        If the threshold is not from 0 to 1, or the widths differ.

    Reference
    ---------
    Sohn et al., FixMatch: simplifying semi-supervised learning with consistency and confidence,
    NeurIPS 2020, equation 4.

    Examples
    --------
    >>> import torch
    >>> sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    >>> round(float(confident_label_loss(sure, torch.zeros(1, 2))), 4)
    0.6931
    >>> float(confident_label_loss(unsure, torch.zeros(1, 2)))
    0.0
    """
    from torch.nn.functional import cross_entropy

    require_same_width(weak, strong)
    if not 0 <= threshold <= 1:
        raise UsageError(f"`threshold` must be from 0 to 1, got {threshold}. Pass 0.95.")
    confidence, labels = weak.detach().softmax(dim=1).max(dim=1)
    losses = cross_entropy(strong, labels, reduction="none")
    return (losses * (confidence >= threshold)).mean()


def ramp_up(progress: float, *, length: float = 0.3) -> float:
    """Weight of a consistency loss: it rises from exp(-5) to 1 in the first part of a training.

    Parameters
    ----------
    progress : float
        Share of the training, from 0 to 1.
    length : float
        Share of the training after which the weight is 1.

    Reference
    ---------
    Tarvainen and Valpola, NeurIPS 2017, appendix B.1: exp(-5 (1 - x)^2).

    Examples
    --------
    >>> [round(ramp_up(p), 4) for p in (0.0, 0.15, 0.3, 1.0)]
    [0.0067, 0.2865, 1.0, 1.0]
    """
    missing = 1 - min(progress / length, 1.0)
    return math.exp(-5 * missing**2)


def teacher_decay(step: int, highest: float) -> float:
    """Decay of the teacher's running average: short in the first steps.

    Parameters
    ----------
    step : int
        Number of steps that are done.
    highest : float

    Reference
    ---------
    Tarvainen and Valpola, NeurIPS 2017, their code: min(1 - 1 / (step + 1), highest).

    Examples
    --------
    >>> [teacher_decay(step, 0.99) for step in (0, 1, 3, 1000)]
    [0.0, 0.5, 0.75, 0.99]
    """
    return min(1 - 1 / (step + 1), highest)
