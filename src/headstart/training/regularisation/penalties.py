"""What holds a network's outputs near its source's: penalties as pure functions, with papers.

Every penalty is a scalar tensor that can be differentiated, in float32 or wider; those on the
weights themselves are in anchoring.py. How much each counts is one value, ``Regularisation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headstart.errors import UsageError
from headstart.training.weight_averaging import wide

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Regularisation",
    "bss",
    "channel_importance",
    "co_tuning",
    "delta",
    "loss_increases",
    "lwf",
    "relation",
]


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """How strongly the source is held on to; 0 switches a penalty off.

    Parameters
    ----------
    l2_sp : float
        Weight alpha of the distance to the pretrained weights.
    l2_sp_head : float
        Weight beta of the squared norm of the new head, beside ``l2_sp``.
    delta : float
        Weight of the distance to the source network's feature maps.
    bss : float
        Weight of the ``bss_k`` smallest squared singular values of a batch's features.
    bss_k : int
        How many singular values, at least 1.
    co_tuning : float
        Weight of the source head's cross-entropy with related source classes.
    ewc : float
        Weight of the distance to the pretrained weights, measured by their Fisher information.
    lwf : float
        Weight of the distance to the source head's answers.
    temperature : float
        Of ``lwf``, above 0.

    Raises
    ------
    UsageError
        If a value is negative, not finite, or not a number.

    Examples
    --------
    >>> Regularisation().is_off, Regularisation(l2_sp=0.01).is_off
    (True, False)
    """

    l2_sp: float = 0.0
    l2_sp_head: float = 0.0
    delta: float = 0.0
    bss: float = 0.0
    bss_k: int = 1
    co_tuning: float = 0.0
    ewc: float = 0.0
    lwf: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        for name in (*_WEIGHTS, "temperature"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value >= 0):
                raise UsageError(
                    f"Expected `{name}` to be a finite number of at least 0, got {value!r}; "
                    "do give 0 to switch it off."
                )
        if self.temperature == 0:
            raise UsageError("Expected `temperature` to be above 0, got 0; do give 2, as usual.")
        if isinstance(self.bss_k, bool) or not isinstance(self.bss_k, int) or self.bss_k < 1:
            raise UsageError(
                f"Expected `bss_k` to be a whole number of at least 1, got {self.bss_k!r}; "
                "do set bss=0 to switch the penalty off."
            )

    @property
    def is_off(self) -> bool:
        """Whether no penalty has a weight."""
        return not any(getattr(self, name) for name in _WEIGHTS)


_WEIGHTS = ("l2_sp", "l2_sp_head", "delta", "bss", "co_tuning", "ewc", "lwf")


def delta(
    maps: Sequence[Tensor],
    source_maps: Sequence[Tensor],
    importance: Sequence[Tensor] | None = None,
) -> Tensor:
    """Penalise changed feature maps: mean over images of sum_l sum_c a_lc ||FM_lc - FM0_lc||².

    Parameters
    ----------
    maps, source_maps : sequence of torch.Tensor, shape (n, channels, ...)
        Of chosen layers, for the same images; no gradient flows into the source's.
    importance : sequence of torch.Tensor, shape (channels,), or None
        Attention a_l on each channel, as ``channel_importance`` gives it; None is 1 / channels.

    Raises
    ------
    UsageError
        If the layers or shapes do not fit each other.

    References
    ----------
    Li et al., "DELTA: deep learning transfer using feature map with attention", ICLR 2019
    (the regulariser Omega' with weights W_j).

    Examples
    --------
    >>> import torch
    >>> delta([torch.ones(2, 4, 3, 3)], [torch.zeros(2, 4, 3, 3)])
    tensor(9.)
    """
    import torch

    shapes = [tuple(m.shape) for m in maps], [tuple(m.shape) for m in source_maps]
    if not maps or shapes[0] != shapes[1]:
        raise UsageError(
            f"Expected feature maps shaped like the source's, {shapes[1]}, got {shapes[0]}."
        )
    if importance is None:
        importance = [wide(m).new_full((m.shape[1],), 1 / m.shape[1]) for m in source_maps]
    if [tuple(a.shape) for a in importance] != [shape[1:2] for shape in shapes[0]]:
        raise UsageError(
            f"Expected one importance for each channel of maps {shapes[0]}, "
            f"got shapes {[tuple(a.shape) for a in importance]}."
        )
    layers = zip(maps, source_maps, importance, strict=True)
    return torch.stack([(a * _distances(new, old)).sum() for new, old, a in layers]).sum()


def loss_increases(maps: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Measure how much the loss grows when each channel is switched off in turn.

    Parameters
    ----------
    maps : torch.Tensor, shape (n, channels, ...)
    loss : callable
        From feature maps to a mean loss; called once a channel and once more.

    Returns
    -------
    torch.Tensor, shape (channels,)

    Examples
    --------
    >>> import torch
    >>> loss_increases(torch.ones(1, 2), lambda m: -(m * torch.tensor([0.0, 3.0])).sum())
    tensor([0., 3.])
    """
    import torch

    with torch.no_grad():
        full = loss(maps)
        kept = torch.ones_like(maps)
        found = []
        for channel in range(maps.shape[1]):
            kept[:, channel] = 0
            found.append(loss(maps * kept) - full)
            kept[:, channel] = 1
        return torch.stack(found)


def channel_importance(increases: Tensor) -> Tensor:
    """Turn growing losses into attention: the softmax over channels.

    Parameters
    ----------
    increases : torch.Tensor, shape (channels,)
        How much the loss grows without each channel, as ``loss_increases`` measures it.

    Returns
    -------
    torch.Tensor, shape (channels,)
        Positive, sum 1; 1 / channels where all matter alike.

    References
    ----------
    Li et al., "DELTA", ICLR 2019 (the weights W_j, from the loss without filter j).

    Examples
    --------
    >>> import torch
    >>> channel_importance(torch.tensor([0.0, 0.0]))
    tensor([0.5000, 0.5000])
    """
    return wide(increases).softmax(dim=0)


def bss(features: Tensor, k: int = 1) -> Tensor:
    """Penalise the batch's weakest directions: the sum of its k smallest squared singular values.

    Parameters
    ----------
    features : torch.Tensor, shape (n, width)
        Pooled features of one batch; it has min(n, width) singular values.
    k : int
        From 1 to min(n, width).

    Raises
    ------
    UsageError
        If the features are no matrix or have fewer than k singular values.

    References
    ----------
    Chen et al., "Catastrophic forgetting meets negative transfer: batch spectral shrinkage for
    safe transfer learning", NeurIPS 2019 (L_bss).

    Examples
    --------
    >>> import torch
    >>> bss(torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    tensor(4.)
    """
    import torch

    if features.ndim != 2 or not 1 <= k <= min(features.shape):
        raise UsageError(
            f"Expected features of shape (n, width) with at least k={k} singular values, "
            f"got shape {tuple(features.shape)}; do lower bss_k or enlarge the batch."
        )
    # Singular values come in descending order.
    values: Tensor = torch.linalg.svdvals(wide(features))
    return values[-k:].square().sum()


def relation(source_probabilities: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    """Relate target classes to source classes: p(y_s | y_t), the mean answer for each class.

    Parameters
    ----------
    source_probabilities : torch.Tensor, shape (n, n_source)
        The source network's answers on the training images, calibrated where that is
        possible; every row sums to 1.
    targets : torch.Tensor, shape (n,)
        Class indices from 0 to n_classes - 1.
    n_classes : int

    Returns
    -------
    torch.Tensor, shape (n_classes, n_source)
        Every row sums to 1; ``relation(...)[targets]`` are the rows for ``co_tuning``.

    Raises
    ------
    UsageError
        If the shapes do not fit, a row is no distribution, or a class has no image.

    References
    ----------
    You et al., "Co-Tuning for transfer learning", NeurIPS 2020 (direct approach).

    Examples
    --------
    >>> import torch
    >>> relation(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), torch.tensor([0, 0, 1]), 2)
    tensor([[0.7500, 0.2500],
            [0.0000, 1.0000]])
    """
    import torch

    answers = wide(source_probabilities)
    if answers.ndim != 2 or tuple(targets.shape) != (len(answers),):
        raise UsageError(
            "Expected probabilities of shape (n, n_source) and n targets, "
            f"got {tuple(answers.shape)} and {tuple(targets.shape)}."
        )
    if bool((answers < 0).any()) or not torch.allclose(
        answers.sum(dim=1), answers.new_ones(()), atol=1e-3
    ):
        raise UsageError("Expected rows of probabilities that sum to 1, got others; do softmax.")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < n_classes:
        raise UsageError(f"Expected targets from 0 to {n_classes - 1}, got others.")
    counts = torch.bincount(targets, minlength=n_classes)
    if bool((counts == 0).any()):
        empty = (counts == 0).nonzero().flatten().tolist()
        raise UsageError(f"Expected images of every class, got none of the classes {empty}.")
    sums = answers.new_zeros((n_classes, answers.shape[1])).index_add_(0, targets, answers)
    return sums / counts[:, None]


def co_tuning(source_logits: Tensor, relation_rows: Tensor) -> Tensor:
    """Train the source head too: mean over images of -sum_s p(s | y_t) log softmax(logits)_s.

    Parameters
    ----------
    source_logits : torch.Tensor, shape (n, n_source)
        What the source head gives on the features as they are now.
    relation_rows : torch.Tensor, shape (n, n_source)
        Of ``relation``, one row for each image's class.

    Raises
    ------
    UsageError
        If the shapes differ.

    References
    ----------
    You et al., "Co-Tuning for transfer learning", NeurIPS 2020 (the source head's loss).

    Examples
    --------
    >>> import torch
    >>> co_tuning(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor(0.6931)
    """
    _require_same_shape(source_logits, relation_rows)
    answers = wide(source_logits).log_softmax(dim=1)
    return -(relation_rows * answers).sum(dim=1).mean()


def lwf(logits: Tensor, old_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Keep the source head's answers: T² KL(softmax(old / T) || softmax(new / T)).

    The factor T² keeps the gradient's size when the temperature changes.

    Parameters
    ----------
    logits : torch.Tensor, shape (n, n_source)
        What the source head gives now.
    old_logits : torch.Tensor, shape (n, n_source)
        What the untouched source network gives for the same images; no gradient flows there.
    temperature : float
        T, above 0.

    Raises
    ------
    UsageError
        If the shapes differ or the temperature is not above 0.

    References
    ----------
    Li, Hoiem, "Learning without forgetting", ECCV 2016, eq. 2-3 (the KL divergence is their
    cross-entropy without its constant part); Hinton, Vinyals, Dean, 2015, section 2, for T².

    Examples
    --------
    >>> import torch
    >>> lwf(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).abs() < 1e-6
    tensor(True)
    """
    from torch.nn.functional import kl_div

    _require_same_shape(logits, old_logits)
    if not temperature > 0:
        raise UsageError(f"Expected `temperature` to be above 0, got {temperature}; do give 2.")
    new = (wide(logits) / temperature).log_softmax(dim=1)
    old = (wide(old_logits.detach()) / temperature).log_softmax(dim=1)
    return kl_div(new, old, log_target=True, reduction="batchmean") * temperature**2


def _distances(new: Tensor, old: Tensor) -> Tensor:
    """||FM_c - FM0_c||² by channel, mean over images."""
    moved = wide(new) - wide(old.detach())
    return moved.square().reshape(*moved.shape[:2], -1).sum(dim=2).mean(dim=0)


def _require_same_shape(tensor: Tensor, other: Tensor) -> None:
    if tensor.shape != other.shape or tensor.ndim != 2:
        raise UsageError(
            "Expected two tables of the same shape (n, n_source), "
            f"got {tuple(tensor.shape)} and {tuple(other.shape)}."
        )
