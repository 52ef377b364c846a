"""Adapters inside a pretrained network: LoRA (low-rank updates) and StochNorm.

Both change a network in place and can be removed again. They return names of parameters or
layers; freezing.py decides what trains. Importing this module imports torch.
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

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(rank, rows, columns)
        down = torch.empty(rank, columns)
        # The initialisation of nn.Linear; drawn on the CPU, so that every device gets the same.
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def add_lora(module: nn.Module, *, rank: int, scale: float = 1.0, seed: int) -> tuple[str, ...]:
    """Add a low-rank update to every convolution and linear layer: W0 + scale * B A.

    A weight of shape (out, in / groups, height, width) is treated as a matrix of shape
    (out, columns) with columns = in / groups * height * width. B has shape (out, r) and A has
    shape (r, columns), with r = min(rank, out, columns). B starts at 0, so the network does not
    change at first.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place. The names in its state dict contain ``parametrizations`` until
        ``merge_lora``.
    rank : int
        At least 1.
    scale : float
        alpha / r in the paper.
    seed : int
        Seed of A, which is drawn layer by layer from a separate generator.

    Returns
    -------
    tuple of str
        Names of the new parameters: r * (out + columns) values per layer. W0 is not among them.
        This function does not freeze it; the caller must.

    Raises
    ------
    UsageError
        If the rank or the scale is invalid, there is no such layer, or a layer has a
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
        raise UsageError(f"`rank` must be a whole number of at least 1, got {rank!r}.")
    if not (math.isfinite(scale) and scale != 0):
        raise UsageError(f"`scale` must be finite and not 0, got {scale!r}.")
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if not layers:
        raise UsageError(
            f"LoRA needs convolutions or linear layers, but {type(module).__name__} has none. "
            "Train its weights directly."
        )
    for name, layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            raise UsageError(
                f"The weight of {name or 'the layer'!r} is parametrized already. Run merge_lora "
                "first."
            )
    generator = torch.Generator().manual_seed(seed)
    for _, layer in layers:
        update = _LowRank(layer.weight, rank, scale, generator)
        parametrize.register_parametrization(layer, "weight", update)
    return tuple(
        _join_names(name, f"parametrizations.weight.0.{factor}")
        for name, _ in layers
        for factor in ("down", "up")
    )


def merge_lora(module: nn.Module) -> tuple[str, ...]:
    """Add every low-rank update to its weight and restore plain layers.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place. It computes the same as before; its parameters have their original names.

    Returns
    -------
    tuple of str
        Names of the weights that were merged.

    Raises
    ------
    UsageError
        If no layer has a low-rank update.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> _ = add_lora(layer, rank=1, seed=0)
    >>> merge_lora(layer), [name for name, _ in layer.named_parameters()]
    (('weight',), ['bias', 'weight'])
    """
    merged = [(name, m) for name, m in module.named_modules() if _has_lora(m)]
    if not merged:
        raise UsageError(
            f"{type(module).__name__} has no low-rank updates to merge. Run add_lora first."
        )
    for _, layer in merged:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return tuple(_join_names(name, "weight") for name, _ in merged)


def add_stoch_norm(module: nn.Module, probability: float) -> tuple[str, ...]:
    """Let BatchNorm use its moving statistics at random, channel by channel.

    In training y_c = gamma_c * z_c + beta_c. With the given probability, z_c is x_c normalised
    with the moving statistics from before this batch, else with the statistics of the batch. The
    moving statistics are updated as usual. In inference nothing changes.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place; names and values of its state stay. Every ``nn.BatchNorm2d`` is changed,
        also timm's with an activation. Copies of the module behave the same.
    probability : float
        From 0 (plain BatchNorm) to 1. Random numbers come from torch's generator of the layer's
        device.

    Returns
    -------
    tuple of str
        Names of the layers.

    Raises
    ------
    UsageError
        If the probability is outside 0 to 1, there is no BatchNorm layer, or a layer has its own
        ``forward`` or no moving statistics.

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
        raise UsageError(f"`probability` must be from 0 to 1, got {probability}.")
    layers = list(_batch_norms(module))
    if not layers:
        raise UsageError(
            f"StochNorm needs BatchNorm layers, but {type(module).__name__} has none. Leave out "
            "--stoch-norm."
        )
    for name, layer in layers:
        is_plain = type(layer).forward is nn.BatchNorm2d.forward or hasattr(layer, "act")
        if "forward" in vars(layer) or layer.running_mean is None or not is_plain:
            raise UsageError(
                f"StochNorm cannot change {name or 'the layer'!r} ({type(layer).__name__}): it is "
                "not a plain BatchNorm with moving statistics, or it is changed already. Leave out "
                "--stoch-norm."
            )
    for _, layer in layers:
        # In the layer's own dict: deepcopy copies it, and binds it to the copied layer.
        vars(layer)["forward"] = partial(_stochastic_forward, layer, probability)
    return tuple(name for name, _ in layers)


def remove_stoch_norm(module: nn.Module) -> tuple[str, ...]:
    """Restore plain BatchNorm layers.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place.

    Returns
    -------
    tuple of str
        Names of the changed layers; empty if there was nothing to restore.

    Examples
    --------
    >>> remove_stoch_norm(nn.BatchNorm2d(4))
    ()
    """
    names = []
    for name, layer in _batch_norms(module):
        forward = vars(layer).get("forward")
        if isinstance(forward, partial) and forward.func is _stochastic_forward:
            del vars(layer)["forward"]
            names.append(name)
    return tuple(names)


def _stochastic_forward(layer: nn.BatchNorm2d, probability: float, x: Tensor) -> Tensor:
    if not layer.training:
        return type(layer).forward(layer, x)
    # Copies, because the forward pass with batch statistics updates the moving ones in place.
    before = cast(Tensor, layer.running_mean).clone(), cast(Tensor, layer.running_var).clone()
    by_batch = nn.BatchNorm2d.forward(layer, x)
    by_moving = batch_norm(x, *before, layer.weight, layer.bias, training=False, eps=layer.eps)
    use_moving = torch.rand(layer.num_features, device=x.device) < probability
    y = torch.where(use_moving[:, None, None], by_moving, by_batch)
    for name in ("drop", "act"):  # of timm's BatchNormAct2d
        y = getattr(layer, name, nn.Identity())(y)
    return y


def _batch_norms(module: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    return ((n, m) for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d))


def _has_lora(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    parametrizations = cast(nn.ModuleDict, module.parametrizations)["weight"]
    return isinstance(cast(nn.ModuleList, parametrizations)[0], _LowRank)


def _join_names(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
