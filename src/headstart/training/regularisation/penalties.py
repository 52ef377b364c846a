"""Settings of regularisation, and penalties on outputs: DELTA, BSS, Co-Tuning, LwF.

Penalties are pure functions. Each returns a differentiable scalar tensor in float32 or wider.
Penalties on weights are in anchoring.py. ``Regularisation`` contains the weight of each penalty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headstart.data.dataset import html_fields
from headstart.errors import UsageError
from headstart.training.losses.distillation import kd
from headstart.training.weight_averaging import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Regularisation",
    "bss",
    "co_tuning",
    "delta",
    "lwf",
    "relation",
]

_WEIGHTS = ("l2_sp", "l2_sp_head", "delta", "bss", "co_tuning", "ewc", "lwf")


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """Weights of the penalties that keep a network close to its source; 0 switches a penalty off.

    Parameters
    ----------
    l2_sp : float
        Weight alpha of the distance to the pretrained weights.
    l2_sp_head : float
        Weight beta of the squared norm of the new head, in addition to ``l2_sp``.
    delta : float
        Weight of the distance to the feature maps of the source network.
    bss : float
        Weight of the ``bss_k`` smallest squared singular values of a batch's features.
    bss_k : int
        Number of singular values, at least 1.
    co_tuning : float
        Weight of the source head's cross-entropy with related source classes.
    ewc : float
        Weight of the distance to the pretrained weights, scaled by their Fisher information.
    lwf : float
        Weight of the distance to the predictions of the source head.
    temperature : float
        Temperature of ``lwf``, above 0.

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

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        for name in (*_WEIGHTS, "temperature"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and math.isfinite(value) and value >= 0):
                raise UsageError(
                    f"`{name}` must be a finite number of at least 0, got {value!r}. Pass 0 to "
                    "switch it off."
                )
        if self.temperature == 0:
            raise UsageError(
                f"`temperature` must be above 0, got {self.temperature}. The usual value is 2."
            )
        if isinstance(self.bss_k, bool) or not isinstance(self.bss_k, int) or self.bss_k < 1:
            raise UsageError(
                f"`bss_k` must be a whole number of at least 1, got {self.bss_k!r}. To switch the "
                "penalty off, pass bss=0."
            )

    @property
    def is_off(self) -> bool:
        """Whether the weight of every penalty is 0."""
        return not any(getattr(self, name) for name in _WEIGHTS)


def delta(
    maps: Sequence[Tensor],
    source_maps: Sequence[Tensor],
    importance: Sequence[Tensor] | None = None,
) -> Tensor:
    """Penalise changed feature maps: mean over images of sum_l sum_c a_lc ||FM_lc - FM0_lc||².

    Parameters
    ----------
    maps, source_maps : sequence of torch.Tensor, shape (n, channels, ...)
        Feature maps of the same layers and images; no gradient flows into the source's.
    importance : sequence of torch.Tensor, shape (channels,), or None
        Attention a_l of each channel; None is 1 / channels.

    Raises
    ------
    UsageError
        If the layers or shapes do not match.

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
            f"Expected feature maps of the same shapes as the source's, {shapes[1]}, got "
            f"{shapes[0]}."
        )
    if importance is None:
        importance = [
            at_least_float32(m).new_full((m.shape[1],), 1 / m.shape[1]) for m in source_maps
        ]
    if [tuple(a.shape) for a in importance] != [shape[1:2] for shape in shapes[0]]:
        raise UsageError(
            f"Expected one importance per channel of the feature maps {shapes[0]}, got shapes "
            f"{[tuple(a.shape) for a in importance]}."
        )
    layers = zip(maps, source_maps, importance, strict=True)
    return torch.stack([(a * _channel_distances(new, old)).sum() for new, old, a in layers]).sum()


def bss(features: Tensor, k: int = 1) -> Tensor:
    """Penalise weak directions of a batch: the sum of its k smallest squared singular values.

    Parameters
    ----------
    features : torch.Tensor, shape (n, width)
        Pooled features of one batch; it has min(n, width) singular values.
    k : int
        From 1 to min(n, width).

    Raises
    ------
    UsageError
        If the features are not a matrix or have fewer than k singular values.

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
            f"got shape {tuple(features.shape)}. Lower --bss-k or raise --batch-size."
        )
    # Singular values come in descending order.
    values: Tensor = torch.linalg.svdvals(at_least_float32(features))
    return values[-k:].square().sum()


def relation(source_probabilities: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    """Relate target classes to source classes: p(y_s | y_t), the mean prediction of each class.

    Parameters
    ----------
    source_probabilities : torch.Tensor, shape (n, n_source)
        Predictions of the source network on the training images, calibrated if possible; every
        row sums to 1.
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
        If the shapes do not match, a row is not a distribution, or a class has no image.

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

    probabilities = at_least_float32(source_probabilities)
    if probabilities.ndim != 2 or tuple(targets.shape) != (len(probabilities),):
        raise UsageError(
            "Expected probabilities of shape (n, n_source) and n targets, "
            f"got {tuple(probabilities.shape)} and {tuple(targets.shape)}."
        )
    row_sums = probabilities.sum(dim=1)
    if bool((probabilities < 0).any()) or not torch.allclose(
        row_sums, probabilities.new_ones(()), atol=1e-3
    ):
        raise UsageError(
            "Expected rows of probabilities with sum 1, got values from "
            f"{float(probabilities.min()):g} and sums up to {float(row_sums.max()):g}. Apply the "
            "softmax first."
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < n_classes:
        raise UsageError(
            f"Expected targets from 0 to {n_classes - 1}, got {int(targets.min())} to "
            f"{int(targets.max())}."
        )
    counts = torch.bincount(targets, minlength=n_classes)
    if bool((counts == 0).any()):
        empty = (counts == 0).nonzero().flatten().tolist()
        raise UsageError(f"Expected images of every class, got none of the classes {empty}.")
    sums = probabilities.new_zeros((n_classes, probabilities.shape[1]))
    return sums.index_add_(0, targets, probabilities) / counts[:, None]


def co_tuning(source_logits: Tensor, relation_rows: Tensor) -> Tensor:
    """Train the source head too: mean over images of -sum_s p(s | y_t) log softmax(logits)_s.

    Parameters
    ----------
    source_logits : torch.Tensor, shape (n, n_source)
        Logits of the source head on the current features.
    relation_rows : torch.Tensor, shape (n, n_source)
        Rows of ``relation``, one for the class of each image.

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
    log_probabilities = at_least_float32(source_logits).log_softmax(dim=1)
    return -(relation_rows * log_probabilities).sum(dim=1).mean()


def lwf(logits: Tensor, old_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Penalise changed predictions of the source head: T² KL(softmax(old / T) || softmax(new / T)).

    With the factor T² the size of the gradient does not depend on the temperature.

    Parameters
    ----------
    logits : torch.Tensor, shape (n, n_source)
        Logits of the source head on the current features.
    old_logits : torch.Tensor, shape (n, n_source)
        Logits of the unchanged source network for the same images; no gradient flows into it.
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
    _require_same_shape(logits, old_logits)
    if not temperature > 0:
        raise UsageError(f"`temperature` must be above 0, got {temperature}. The usual value is 2.")
    return kd(logits, old_logits, temperature)


def _channel_distances(new: Tensor, old: Tensor) -> Tensor:
    """||FM_c - FM0_c||² of each channel, mean over images."""
    change = at_least_float32(new) - at_least_float32(old.detach())
    return change.square().reshape(*change.shape[:2], -1).sum(dim=2).mean(dim=0)


def _require_same_shape(tensor: Tensor, other: Tensor) -> None:
    if tensor.shape != other.shape or tensor.ndim != 2:
        raise UsageError(
            "Expected two tables of the same shape (n, n_source), "
            f"got {tuple(tensor.shape)} and {tuple(other.shape)}."
        )
