"""Averages of whole networks: weights between two ends, moving averages, soups.

A state is what ``module.state_dict()`` gives. Floating tensors are averaged in float32 or wider;
whole numbers, such as BatchNorm's ``num_batches_tracked``, are those of the last state. Nothing
given is changed, and no result shares memory with what was given. BatchNorm's running statistics
are averaged like weights; where the ends lie far apart they are better estimated anew afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from headstart.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ema", "ema_decay", "greedy_soup", "interpolate", "soup", "wide"]

State = Mapping[str, "Tensor"]


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32: half precision loses small moves and their squares.

    Examples
    --------
    >>> import torch
    >>> wide(torch.ones(1, dtype=torch.float16)).dtype, wide(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def interpolate(start: State, end: State, share: float) -> dict[str, Tensor]:
    """Walk from one network to another: (1 - share) * start + share * end.

    Parameters
    ----------
    start : mapping of str to torch.Tensor
        Usually the pretrained network.
    end : mapping of str to torch.Tensor
        Usually the fine-tuned one.
    share : float
        From 0 (exactly ``start``) to 1 (exactly ``end``).

    Returns
    -------
    dict of str to torch.Tensor
        In the dtypes of ``end``.

    Raises
    ------
    UsageError
        If the share is outside 0 to 1, or the states do not fit each other.

    References
    ----------
    Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR 2022, eq. 1.

    Examples
    --------
    >>> import torch
    >>> interpolate({"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}, 0.25)
    {'w': tensor([1.])}
    """
    _require_share("share", share)
    _require_alike(start, end)
    return {name: _mixed(start[name], last, share).to(last.dtype) for name, last in end.items()}


def ema(average: State, live: State, decay: float) -> dict[str, Tensor]:
    """Take one step of the exponential moving average: decay * average + (1 - decay) * live.

    Parameters
    ----------
    average : mapping of str to torch.Tensor
        The average so far; ``ema(live, live, 0)`` is a start.
    live : mapping of str to torch.Tensor
    decay : float
        From 0 (exactly ``live``) to 1 (exactly ``average``).

    Returns
    -------
    dict of str to torch.Tensor
        In float32 or wider even for half-precision weights, where small steps would be
        rounded away.

    Raises
    ------
    UsageError
        If the decay is outside 0 to 1, or the states do not fit each other.

    References
    ----------
    Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", 1992; with an
    exponential window as in Tarvainen, Valpola, "Mean teachers", NeurIPS 2017, section 2.

    Examples
    --------
    >>> import torch
    >>> ema({"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}, 0.75)
    {'w': tensor([1.])}
    """
    _require_share("decay", decay)
    _require_alike(average, live)
    return {name: _mixed(average[name], last, 1 - decay) for name, last in live.items()}


def ema_decay(step: int, decay: float) -> float:
    """Let a moving average forget its start: min(decay, (1 + step) / (10 + step)).

    Parameters
    ----------
    step : int
        Steps taken, from 0.
    decay : float
        In the long run, from 0 to 1.

    Raises
    ------
    UsageError
        If the step is negative or the decay outside 0 to 1.

    Examples
    --------
    >>> [ema_decay(step, 0.999) for step in (0, 8, 100_000)]
    [0.1, 0.5, 0.999]
    """
    _require_share("decay", decay)
    if step < 0:
        raise UsageError(f"Expected `step` to be at least 0, got {step}.")
    return min(decay, (1 + step) / (10 + step))


def soup(states: Sequence[State]) -> dict[str, Tensor]:
    """Average networks that were fine-tuned from one start: 1/k sum_i w_i.

    Parameters
    ----------
    states : sequence of mapping of str to torch.Tensor
        At least one.

    Returns
    -------
    dict of str to torch.Tensor
        In the dtypes of the last; exactly the network itself where all are equal.

    Raises
    ------
    UsageError
        If there is no state, or the states do not fit each other.

    References
    ----------
    Wortsman et al., "Model soups", ICML 2022, the uniform soup.

    Examples
    --------
    >>> import torch
    >>> soup([{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}])
    {'w': tensor([1.5000])}
    """
    if not states:
        raise UsageError("Expected at least one network to average, got none.")
    mean = ema(states[0], states[0], 0)
    for count, state in enumerate(states[1:], start=2):
        # A running mean stays where it is when the next state equals it.
        mean = ema(mean, state, 1 - 1 / count)
    return {name: mean[name].to(last.dtype) for name, last in states[-1].items()}


def greedy_soup(
    states_with_scores: Iterable[tuple[State, float]], score: Callable[[State], float]
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Average networks from the best on, keeping only those that do not lower the score.

    Parameters
    ----------
    states_with_scores : iterable of (mapping of str to torch.Tensor, float)
        Networks that were fine-tuned from one start, each with its score on held-out images
        (never the test's); more is better.
    score : callable
        The score of a state on the same images; called once for each network but the best.

    Returns
    -------
    tuple of (dict of str to torch.Tensor, tuple of int)
        The average, and which networks are in it, in the order in which they joined.

    Raises
    ------
    UsageError
        If there is no network, a score is not finite, or the states do not fit each other.

    References
    ----------
    Wortsman et al., "Model soups", ICML 2022, recipe 1.

    Examples
    --------
    >>> import torch
    >>> states = [({"w": torch.tensor([value])}, -abs(value)) for value in (-1.0, 4.0, 1.5)]
    >>> greedy_soup(states, lambda state: -abs(float(state["w"])))
    ({'w': tensor([0.2500])}, (0, 2))
    """
    known = list(states_with_scores)
    if not known or not all(math.isfinite(given) for _, given in known):
        raise UsageError(
            f"Expected networks with finite scores, got scores {[given for _, given in known]}."
        )
    best, *others = sorted(range(len(known)), key=lambda i: -known[i][1])
    chosen, reached = [best], known[best][1]
    mixed = soup([known[best][0]])
    for candidate in others:
        tried = soup([known[i][0] for i in (*chosen, candidate)])
        if (found := score(tried)) >= reached:
            chosen, reached, mixed = [*chosen, candidate], found, tried
    return mixed, tuple(chosen)


def _mixed(first: Tensor, last: Tensor, share: float) -> Tensor:
    """(1 - share) * first + share * last, exact at both ends and where the two are equal."""
    import torch

    if not last.is_floating_point():
        return last.detach().clone()
    dtype = torch.promote_types(wide(first).dtype, wide(last).dtype)
    return torch.lerp(first.detach().to(dtype), last.detach().to(dtype), share)


def _require_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise UsageError(f"Expected `{name}` to be from 0 to 1, got {share}.")


def _require_alike(first: State, last: State) -> None:
    if first.keys() != last.keys():
        differ = sorted(first.keys() ^ last.keys())[:3]
        raise UsageError(
            f"Expected two states of one network, got different names, such as {differ}."
        )
    for name, tensor in last.items():
        if tensor.shape != first[name].shape:
            raise UsageError(
                f"Expected two states of one network, got {name!r} with shapes "
                f"{tuple(first[name].shape)} and {tuple(tensor.shape)}."
            )
