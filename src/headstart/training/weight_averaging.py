"""Weight averaging: interpolation between two networks, moving averages, soups.

A state is the result of ``module.state_dict()``. Floating-point tensors are averaged in float32 or
wider; integers, such as BatchNorm's ``num_batches_tracked``, are taken from the last state.
Arguments are not changed, and no result shares memory with them. BatchNorm's running statistics
are averaged like weights; for very different networks, estimate them again afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from headstart.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["at_least_float32", "ema", "ema_decay", "greedy_soup", "interpolate", "soup"]

State = Mapping[str, "Tensor"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert to at least float32: half precision loses small differences and their squares.

    Examples
    --------
    >>> import torch
    >>> at_least_float32(torch.ones(1, dtype=torch.float16)).dtype
    torch.float32
    >>> at_least_float32(torch.ones(1, dtype=torch.float64)).dtype
    torch.float64
    """
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def interpolate(start: State, end: State, share: float) -> dict[str, Tensor]:
    """Interpolate between two networks: (1 - share) * start + share * end.

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
        If the share is outside 0 to 1, or the states are not of the same network.

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
    _require_same_network(start, end)
    return {
        name: _interpolate(start[name], last, share).to(last.dtype) for name, last in end.items()
    }


def ema(average: State, live: State, decay: float) -> dict[str, Tensor]:
    """Take one step of the exponential moving average: decay * average + (1 - decay) * live.

    Parameters
    ----------
    average : mapping of str to torch.Tensor
        The average so far; begin with ``ema(live, live, 0)``.
    live : mapping of str to torch.Tensor
        The current weights.
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
        If the decay is outside 0 to 1, or the states are not of the same network.

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
    _require_same_network(average, live)
    return {name: _interpolate(average[name], last, 1 - decay) for name, last in live.items()}


def ema_decay(step: int, decay: float) -> float:
    """Return the decay at a step, smaller at first: min(decay, (1 + step) / (10 + step)).

    Parameters
    ----------
    step : int
        Number of steps done, from 0.
    decay : float
        Decay after many steps, from 0 to 1.

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
        raise UsageError(f"`step` must be at least 0, got {step}.")
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
        In the dtypes of the last state; exactly the network itself if all are equal.

    Raises
    ------
    UsageError
        If there is no state, or the states are not of the same network.

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
        # A running mean does not change if the next state is equal to it; a sum would round.
        mean = ema(mean, state, 1 - 1 / count)
    return {name: mean[name].to(last.dtype) for name, last in states[-1].items()}


def greedy_soup(
    states_with_scores: Iterable[tuple[State, float]], score: Callable[[State], float]
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Average networks, the best first, and skip those that lower the score.

    Parameters
    ----------
    states_with_scores : iterable of (mapping of str to torch.Tensor, float)
        Networks that were fine-tuned from one start, each with its score on validation images
        (never on test images); higher is better.
    score : callable
        Scores a state on the same images; called once for each network except the best.

    Returns
    -------
    tuple of (dict of str to torch.Tensor, tuple of int)
        The average, and the indices of its networks in the order in which they were added.

    Raises
    ------
    UsageError
        If there is no network, a score is not finite, or the states are not of the same network.

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
    networks = list(states_with_scores)
    scores = [network_score for _, network_score in networks]
    if not networks or not all(map(math.isfinite, scores)):
        raise UsageError(f"Expected networks with finite scores, got scores {scores}.")
    best, *candidates = sorted(range(len(networks)), key=lambda i: -scores[i])
    members, best_score = [best], scores[best]
    average = soup([networks[best][0]])
    for candidate in candidates:
        new_average = soup([networks[i][0] for i in (*members, candidate)])
        if (new_score := score(new_average)) >= best_score:
            members, best_score, average = [*members, candidate], new_score, new_average
    return average, tuple(members)


def _interpolate(first: Tensor, last: Tensor, share: float) -> Tensor:
    """(1 - share) * first + share * last, exact at both ends and if the two are equal."""
    import torch

    if not last.is_floating_point():
        return last.detach().clone()
    dtype = torch.promote_types(at_least_float32(first).dtype, at_least_float32(last).dtype)
    return torch.lerp(first.detach().to(dtype), last.detach().to(dtype), share)


def _require_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise UsageError(f"`{name}` must be from 0 to 1, got {share}.")


def _require_same_network(first: State, last: State) -> None:
    if first.keys() != last.keys():
        different = sorted(first.keys() ^ last.keys())[:3]
        raise UsageError(
            f"Expected two states of one network, got different names, such as {different}."
        )
    for name, tensor in last.items():
        if tensor.shape != first[name].shape:
            raise UsageError(
                f"Expected two states of one network, got {name!r} with shapes "
                f"{tuple(first[name].shape)} and {tuple(tensor.shape)}."
            )
