"""In which order the images of an epoch come."""

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
    """Draw the order of an epoch; seed and epoch alone decide it.

    Parameters
    ----------
    n : int
        Examples, and length of the epoch.
    seed, epoch : int
        0 or more.
    targets : array of int, shape (n,), optional
        Classes; needed to balance.
    balanced : bool
        Draw every class alike often (the counts differ by 1 at most). Examples of a small
        class come several times, but none again before all of its class have come; of a large
        class every epoch draws other examples.

    Returns
    -------
    array of intp, shape (n,)
        Indices; a permutation unless balanced.

    Raises
    ------
    UsageError
        If a number is negative, or targets that are needed are missing or of another shape.

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
        raise UsageError(
            f"Expected `n`, `seed` and `epoch` to be 0 or more, got {n}, {seed} and {epoch}."
        )
    rng = np.random.default_rng([seed, epoch])
    if not balanced:
        return rng.permutation(n).astype(np.intp, copy=False)
    if targets is None or targets.shape != (n,):
        given = "none" if targets is None else f"shape {targets.shape}"
        raise UsageError(
            f"Expected `targets` of shape ({n},), one class an example, got {given}; "
            "do not balance where an example may have several classes or none."
        )
    classes = np.unique(targets)
    quotas = np.full(len(classes), n // max(1, len(classes)))
    # Those that get one more are drawn, so that no class is favoured over the epochs.
    quotas[rng.permutation(len(classes))[: n - quotas.sum()]] += 1
    drawn = [
        _in_rounds(np.flatnonzero(targets == label), int(quota), rng)
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return rng.permutation(np.concatenate([np.zeros(0, dtype=np.intp), *drawn]))


def _in_rounds(members: NDArray[np.intp], quota: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw ``quota`` members: whole rounds of all of them, then a part of one round."""
    rounds = -(-quota // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)] or [members])[:quota]
