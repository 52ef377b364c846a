"""Order of the images in an epoch, with or without class balancing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import UsageError

__all__ = ["epoch_order"]


def epoch_order(
    n: int,
    *,
    seed: int,
    epoch: int,
    targets: NDArray[np.integer[Any]] | None = None,
    balanced: bool = False,
) -> NDArray[np.intp]:
    """Draw the order of an epoch. It depends on seed and epoch only.

    Parameters
    ----------
    n : int
        Number of examples, and length of the epoch.
    seed, epoch : int
        0 or more.
    targets : array of int, shape (n,), optional
        Classes; needed to balance.
    balanced : bool
        Draw every class equally often (the counts differ by 1 at most). Examples of a small class
        are drawn several times, each again only after all others of its class. Of a large class,
        every epoch draws different examples.

    Returns
    -------
    array of intp, shape (n,)
        Indices; a permutation unless balanced.

    Raises
    ------
    UsageError
        If a number is negative, or ``balanced`` is set and targets are missing or of another shape.

    Examples
    --------
    >>> epoch_order(5, seed=0, epoch=0)
    array([2, 4, 3, 0, 1])
    >>> targets = np.array([0, 0, 0, 0, 1, 1])
    >>> order = epoch_order(6, seed=0, epoch=0, targets=targets, balanced=True)
    >>> np.bincount(targets[order])
    array([3, 3])
    """
    if min(n, seed, epoch) < 0:
        raise UsageError(f"`n`, `seed` and `epoch` must be 0 or more, got {n}, {seed} and {epoch}.")
    rng = np.random.default_rng([seed, epoch])
    if not balanced:
        return rng.permutation(n).astype(np.intp, copy=False)
    if targets is None or targets.shape != (n,):
        shape = "none" if targets is None else f"shape {targets.shape}"
        raise UsageError(
            f"Expected `targets` of shape ({n},), one class per example, got {shape}. Balancing "
            "needs exactly one class per example: pass --imbalance balanced to weight labels "
            "instead."
        )
    classes = np.unique(targets)
    quotas = np.full(len(classes), n // max(1, len(classes)))
    # The remainder goes to random classes, so that no class is favoured over many epochs.
    quotas[rng.permutation(len(classes))[: n - quotas.sum()]] += 1
    rows = [
        _draw_in_rounds(np.flatnonzero(targets == label), int(quota), rng)
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return rng.permutation(np.concatenate([np.zeros(0, dtype=np.intp), *rows]))


def _draw_in_rounds(
    members: NDArray[np.intp], quota: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Draw ``quota`` members: complete rounds of all of them, then part of a round."""
    rounds = -(-quota // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)] or [members])[:quota]
