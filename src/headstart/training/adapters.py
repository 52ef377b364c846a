"""Small changes inside a network that is kept: LoRA's low-rank updates and StochNorm.

Both change a network in place and can be taken out again. Nothing here says what trains; that
is freezing.py's to say, from the names that are returned. Importing this module imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.utils import parametrize

from headstart.errors import UsageError

__all__ = ["add_lora", "add_stoch_norm", "merge_lora", "remove_stoch_norm"]


class _LowRank(nn.Module):
    """weight -> weight + scale * (up @ down), the product reshaped like the weight."""

    def __init__(self, weight: Tensor, rank: int, scale: float, draw: torch.Generator) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(rank, rows, columns)
        down = torch.empty(rank, columns)
        # What nn.Linear starts with; drawn on the CPU, so that every device gets the same.
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=draw)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def add_lora(module: nn.Module, *, rank: int, scale: float = 1.0, seed: int) -> tuple[str, ...]:
    """Give every convolution and linear layer a low-rank update: W0 + scale * B A.

    A weight of shape (out, in / groups, height, width) is seen as a matrix of shape
    (out, in / groups * height * width); B has shape (out, r), A the columns of that matrix, with
    r = min(rank, out, columns). B starts at 0, so that nothing changes at first.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place. Its state dict gets ``parametrizations`` in its names until
        ``merge_lora``.
    rank : int
        At least 1.
    scale : float
        alpha / r in the paper's words.
    seed : int
        Of A, which is drawn layer after layer from a generator of its own.

    Returns
    -------
    tuple of str
        Names of the new parameters: r * (out + columns) numbers a layer. W0 is not among
        them and must be frozen; whether it is, is left as it was.

    Raises
    ------
    UsageError
        If the rank or the scale has no meaning, there is no such layer, or one has a
        parametrized weight already.

    References
    ----------
    Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022, eq. 3.

    Examples
    --------
    >>> layer = nn.Conv2d(8, 16, 3, bias=False)
    >>> add_lora(layer, rank=2, seed=0)
    ('parametrizations.weight.0.down', 'parametrizations.weight.0.up')
    >>> sum(p.numel() for p in layer.parametrizations.weight[0].parameters())
    176
    >>> merge_lora(layer)
    ('weight',)
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UsageError(f"Expected `rank` to be a whole number of at least 1, got {rank!r}.")
    if not (math.isfinite(scale) and scale != 0):
        raise UsageError(f"Expected `scale` to be finite and not 0, got {scale!r}.")
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if not layers:
        raise UsageError("Expected a network with convolutions or linear layers, got none.")
    for name, layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            raise UsageError(
                f"Expected plain weights, got a parametrized one in {name or 'the layer'!r}; "
                "do call merge_lora first."
            )
    draw = torch.Generator().manual_seed(seed)
    for _, layer in layers:
        update = _LowRank(layer.weight, rank, scale, draw)
        parametrize.register_parametrization(layer, "weight", update)
    return tuple(
        _joined(name, f"parametrizations.weight.0.{own}")
        for name, _ in layers
        for own in ("down", "up")
    )


def merge_lora(module: nn.Module) -> tuple[str, ...]:
    """Add every low-rank update to its weight and leave plain layers behind.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place; computes what it computed before, with its original names.

    Returns
    -------
    tuple of str
        Names of the weights that were merged.

    Raises
    ------
    UsageError
        If there is no update.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> _ = add_lora(layer, rank=1, seed=0)
    >>> merge_lora(layer), [name for name, _ in layer.named_parameters()]
    (('weight',), ['bias', 'weight'])
    """
    merged = [(name, m) for name, m in module.named_modules() if _has_lora(m)]
    if not merged:
        raise UsageError("Expected a network with LoRA, got none; do call add_lora first.")
    for _, layer in merged:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return tuple(_joined(name, "weight") for name, _ in merged)


def add_stoch_norm(module: nn.Module, probability: float) -> tuple[str, ...]:
    """Let BatchNorm use its moving statistics, channel by channel, by the toss of a coin.

    In training y_c = gamma_c * z_c + beta_c, where z_c is x_c normalised with the moving
    statistics with the given probability, else with the batch's; the moving statistics are
    those before this batch, and are updated as always. In inference nothing changes.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place; names and values of its state stay. Every ``nn.BatchNorm2d`` is taken
        (timm's with an activation as well). Copies made of it toss coins too.
    probability : float
        From 0 (plain BatchNorm) to 1. The coins come from torch's generator of the layer's
        device.

    Returns
    -------
    tuple of str
        Names of the layers.

    Raises
    ------
    UsageError
        If the probability is outside 0 to 1, there is no BatchNorm layer, or one computes
        something of its own or has no moving statistics.

    References
    ----------
    Kou et al., "Stochastic normalization", NeurIPS 2020.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    >>> add_stoch_norm(net, 0.5)
    ('1',)
    >>> remove_stoch_norm(net)
    ('1',)
    """
    if not 0 <= probability <= 1:
        raise UsageError(f"Expected `probability` to be from 0 to 1, got {probability}.")
    layers = list(_batch_norms(module))
    if not layers:
        raise UsageError("Expected a network with BatchNorm layers, got none; do train without it.")
    for name, layer in layers:
        plain = type(layer).forward is nn.BatchNorm2d.forward or hasattr(layer, "act")
        if "forward" in vars(layer) or layer.running_mean is None or not plain:
            raise UsageError(
                f"Expected {name or 'the layer'!r} to be a plain BatchNorm with moving "
                f"statistics, got a {type(layer).__name__} that is none or is changed already; "
                "do train without StochNorm."
            )
    for _, layer in layers:
        # In the layer's own dict, where a copy of the network finds it bound to the copy.
        vars(layer)["forward"] = partial(_tossed, layer, probability)
    return tuple(name for name, _ in layers)


def remove_stoch_norm(module: nn.Module) -> tuple[str, ...]:
    """Make BatchNorm plain again.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place.

    Returns
    -------
    tuple of str
        Names of the layers; none is no error.

    Examples
    --------
    >>> remove_stoch_norm(nn.BatchNorm2d(4))
    ()
    """
    names = []
    for name, layer in _batch_norms(module):
        own = vars(layer).get("forward")
        if isinstance(own, partial) and own.func is _tossed:
            del vars(layer)["forward"]
            names.append(name)
    return tuple(names)


def _tossed(layer: nn.BatchNorm2d, probability: float, x: Tensor) -> Tensor:
    if not layer.training:
        return type(layer).forward(layer, x)
    # Copies, because the batch's own branch moves the statistics in place.
    before = cast(Tensor, layer.running_mean).clone(), cast(Tensor, layer.running_var).clone()
    batch = nn.BatchNorm2d.forward(layer, x)
    moving = batch_norm(x, *before, layer.weight, layer.bias, training=False, eps=layer.eps)
    coins = torch.rand(layer.num_features, device=x.device) < probability
    y = torch.where(coins[:, None, None], moving, batch)
    for after in ("drop", "act"):  # of timm's BatchNormAct2d
        y = getattr(layer, after, nn.Identity())(y)
    return y


def _batch_norms(module: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    return ((n, m) for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d))


def _has_lora(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    chain = cast(nn.ModuleDict, module.parametrizations)["weight"]
    return isinstance(cast(nn.ModuleList, chain)[0], _LowRank)


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
