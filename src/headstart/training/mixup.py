"""MixUp and CutMix: images of a batch are blended or pasted together, with their targets."""

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

    One share is drawn for the batch: ``share * x + (1 - share) * x[partner]``. Targets are blended
    in the same way.

    Parameters
    ----------
    x : tensor of floats, shape (n, ...)
        Normalised images, or outputs of a stage (Manifold MixUp).
    targets : tensor of floats, shape (n, k)
        One-hot, soft or 0/1 rows.
    alpha : float
        The share is drawn from Beta(alpha, alpha): close to 0 or 1 for a small alpha, uniform from
        0 to 1 for alpha 1.
    rng : numpy.random.Generator
        Draws the share and the partners.

    Returns
    -------
    tuple of tensor
        Mixed ``x`` and ``targets`` with the same shapes and types, in new memory.

    Raises
    ------
    UsageError
        If types or shapes do not match, or ``alpha`` is not above 0.

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
    _require_valid(x, targets, alpha)
    share, partners = _draw_share(alpha, rng), _draw_partners(x, rng)
    mixed = share * x + (1 - share) * x[partners]
    return mixed, share * targets + (1 - share) * targets[partners]


def cutmix(
    x: Tensor, targets: Tensor, *, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another example into every example of a batch.

    The position and the size of the rectangle are drawn once for the batch. Targets are mixed by
    the pasted area: the part of the rectangle outside of the image does not count.

    Parameters
    ----------
    x : tensor of floats, shape (n, c, h, w)
        Normalised images, or outputs of a stage.
    targets : tensor of floats, shape (n, k)
    alpha : float
        The share of the original image is drawn from Beta(alpha, alpha), before clipping; 1 in the
        paper.
    rng : numpy.random.Generator

    Returns
    -------
    tuple of tensor
        Mixed ``x`` and ``targets`` with the same shapes and types, in new memory.

    Raises
    ------
    UsageError
        If types or shapes do not match, ``x`` has no height and width, or ``alpha`` is not above 0.

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
    _require_valid(x, targets, alpha)
    if x.ndim != 4:
        raise UsageError(
            f"Expected `x` of shape (n, c, h, w), got shape {tuple(x.shape)}. CutMix needs height "
            "and width: use mixup instead."
        )
    height, width = x.shape[2:]
    share, partners = _draw_share(alpha, rng), _draw_partners(x, rng)
    top, bottom, left, right = _draw_box(height, width, share, rng)
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x[partners, :, top:bottom, left:right]
    # The remaining share of the original image: the box may be clipped at the edges.
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, share * targets + (1 - share) * targets[partners]


def _require_valid(x: Tensor, targets: Tensor, alpha: float) -> None:
    if not (x.is_floating_point() and targets.is_floating_point()):
        raise UsageError(
            f"Expected `x` and `targets` to be floats, got {x.dtype} and {targets.dtype}. "
            "Normalise the images and pass targets as one-hot rows."
        )
    if targets.ndim != 2 or len(x) != len(targets):
        raise UsageError(
            f"Expected `targets` of shape ({len(x)}, k), one row per example, "
            f"got shape {tuple(targets.shape)}."
        )
    if not 0 < alpha < math.inf:
        raise UsageError(
            f"Expected `alpha` above 0, got {alpha}. To switch mixing off, leave it out."
        )


def _draw_share(alpha: float, rng: np.random.Generator) -> float:
    return float(rng.beta(alpha, alpha))


def _draw_partners(x: Tensor, rng: np.random.Generator) -> Tensor:
    import torch

    return torch.from_numpy(rng.permutation(len(x))).to(x.device)


def _draw_box(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a box with 1 - share of the area, clipped: its top, bottom, left and right."""
    ratio = math.sqrt(1 - share)
    box_height, box_width = int(height * ratio), int(width * ratio)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, left = y - box_height // 2, x - box_width // 2
    bottom, right = min(height, top + box_height), min(width, left + box_width)
    top, left = max(0, top), max(0, left)
    return top, bottom, left, right
