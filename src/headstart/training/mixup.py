"""MixUp and CutMix: images of a batch blended or pasted together, and their targets with them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cutmix", "mixup"]


def mixup(
    x: Tensor, targets: Tensor, *, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Blend every example of a batch with another one.

    One share is drawn for the batch: ``share * x + (1 - share) * x[other]``, targets alike.

    Parameters
    ----------
    x : tensor of floats, shape (n, ...)
        Normalised images, or what crosses a stage boundary: then it is Manifold MixUp.
    targets : tensor of floats, shape (n, k)
        One-hot, soft or 0/1 rows.
    alpha : float
        The share is drawn from Beta(alpha, alpha): near 0 or 1 for a small alpha, from 0 to 1
        alike for 1.
    rng : numpy.random.Generator
        Where the share and the partners come from.

    Returns
    -------
    tuple of tensor
        Mixed ``x`` and ``targets``, of the shapes and types given; new memory.

    Raises
    ------
    UsageError
        If types or shapes do not fit, or ``alpha`` is not above 0.

    Reference
    ---------
    Zhang et al., mixup, ICLR 2018, equation 1; Verma et al., Manifold Mixup, ICML 2019,
    equation 1.

    Examples
    --------
    >>> import torch
    >>> x, y = torch.tensor([[0.0], [1.0]]), torch.eye(2)
    >>> mixed, soft = mixup(x, y, alpha=1.0, rng=np.random.default_rng(0))
    >>> torch.equal(mixed[:, 0], soft[:, 1])
    True
    """
    _require(x, targets, alpha)
    share, other = _share(alpha, rng), _partners(x, rng)
    return share * x + (1 - share) * x[other], share * targets + (1 - share) * targets[other]


def cutmix(
    x: Tensor, targets: Tensor, *, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another example into every example of a batch.

    The rectangle's place and size are drawn for the batch. Targets are mixed by the area that
    was pasted: what lies outside the image does not count.

    Parameters
    ----------
    x : tensor of floats, shape (n, c, h, w)
        Normalised images, or maps that cross a stage boundary.
    targets : tensor of floats, shape (n, k)
    alpha : float
        The share that stays is drawn from Beta(alpha, alpha), before clipping; 1 in the paper.
    rng : numpy.random.Generator

    Returns
    -------
    tuple of tensor
        Mixed ``x`` and ``targets``, of the shapes and types given; new memory.

    Raises
    ------
    UsageError
        If types or shapes do not fit, ``x`` has no height and width, or ``alpha`` is not above 0.

    Reference
    ---------
    Yun et al., CutMix, ICCV 2019, equations 1 and 2.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    >>> mixed, soft = cutmix(x, torch.eye(2), alpha=1.0, rng=np.random.default_rng(0))
    >>> torch.allclose(mixed.mean(dim=(1, 2, 3)), soft[:, 1])
    True
    """
    _require(x, targets, alpha)
    if x.ndim != 4:
        raise UsageError(
            f"Expected `x` to be maps of shape (n, c, h, w), got shape {tuple(x.shape)}; "
            "do use mixup for what has no height and width."
        )
    height, width = x.shape[2:]
    share, other = _share(alpha, rng), _partners(x, rng)
    top, bottom, left, right = _box(height, width, share, rng)
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x[other, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, kept * targets + (1 - kept) * targets[other]


def _require(x: Tensor, targets: Tensor, alpha: float) -> None:
    if not (x.is_floating_point() and targets.is_floating_point()):
        raise UsageError(
            f"Expected `x` and `targets` to be floats, got {x.dtype} and {targets.dtype}; "
            "do normalise the images and give targets as one-hot rows."
        )
    if targets.ndim != 2 or len(x) != len(targets):
        raise UsageError(
            f"Expected `targets` of shape ({len(x)}, k), one row an example, "
            f"got shape {tuple(targets.shape)}."
        )
    if not 0 < alpha < math.inf:
        raise UsageError(f"Expected `alpha` to be above 0, got {alpha}; do not mix at all for 0.")


def _share(alpha: float, rng: np.random.Generator) -> float:
    return float(rng.beta(alpha, alpha))


def _partners(x: Tensor, rng: np.random.Generator) -> Tensor:
    import torch

    return torch.from_numpy(rng.permutation(len(x))).to(x.device)


def _box(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a box of 1 - share of the area, clipped at the edges."""
    ratio = math.sqrt(1 - share)
    tall, wide = int(height * ratio), int(width * ratio)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, left = max(0, y - tall // 2), max(0, x - wide // 2)
    bottom, right = min(height, y - tall // 2 + tall), min(width, x - wide // 2 + wide)
    return top, bottom, left, right
