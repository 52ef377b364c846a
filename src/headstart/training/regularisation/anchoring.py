"""Penalties on weights: L2-SP and elastic weight consolidation (EWC).

Pure functions on tensors by name. Penalties on outputs are in penalties.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from headstart.errors import UsageError
from headstart.training.weight_averaging import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["anchors", "ewc", "fisher", "l2_sp"]


def anchors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the current weights, so that later training does not change the copy.

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        As in ``dict(module.named_parameters())``.

    Returns
    -------
    dict of str to torch.Tensor
        Detached copies that share no memory with ``tensors``.

    Examples
    --------
    >>> import torch
    >>> live = {"w": torch.zeros(2)}
    >>> start = anchors(live)
    >>> _ = live["w"].add_(1)
    >>> start["w"]
    tensor([0., 0.])
    """
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def l2_sp(
    parameters: Mapping[str, Tensor],
    anchors: Mapping[str, Tensor],
    *,
    alpha: float,
    head: Iterable[Tensor] = (),
    beta: float = 0.0,
) -> Tensor:
    """Penalise the distance to the pretrained weights: alpha/2 ||w - w0||² + beta/2 ||v||².

    Parameters
    ----------
    parameters : mapping of str to torch.Tensor
        The pretrained weights w that train; without any the penalty is 0.
    anchors : mapping of str to torch.Tensor
        Their values before training, by the same names (other names are ignored).
    alpha, beta : float
    head : iterable of torch.Tensor
        New weights v, which have no pretrained value.

    Raises
    ------
    UsageError
        If an anchor is missing, has another shape, or shares memory with the live weight.

    References
    ----------
    Li, Grandvalet, Davoine, "Explicit inductive bias for transfer learning", ICML 2018, eq. 4.

    Examples
    --------
    >>> import torch
    >>> l2_sp({"w": torch.ones(3)}, {"w": torch.zeros(3)}, alpha=0.5)
    tensor(0.7500)
    """
    pairs = _pair_with_fixed(parameters, anchors)
    distance = _sum_terms(at_least_float32(w - w0).square().sum() for _, w, w0 in pairs)
    norm = _sum_terms(at_least_float32(v).square().sum() for v in head)
    return alpha / 2 * distance + beta / 2 * norm


def ewc(
    parameters: Mapping[str, Tensor], anchors: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> Tensor:
    """Penalise changes of weights that are important for the source: 1/2 sum_i F_i (w_i - w0_i)².

    Parameters
    ----------
    parameters, anchors : mapping of str to torch.Tensor
        As for ``l2_sp``.
    fisher : mapping of str to torch.Tensor
        Diagonal of the Fisher information by name, from ``fisher``.

    Raises
    ------
    UsageError
        If an anchor or a Fisher value is missing, has another shape, or shares memory with the
        live weight.

    References
    ----------
    Kirkpatrick et al., "Overcoming catastrophic forgetting", PNAS 2017, eq. 3 (lambda is the
    penalty's weight).

    Examples
    --------
    >>> import torch
    >>> ewc({"w": torch.ones(2)}, {"w": torch.zeros(2)}, {"w": torch.tensor([4.0, 0.0])})
    tensor(2.)
    """
    importance = {name: value for name, _, value in _pair_with_fixed(parameters, fisher)}
    terms = (
        (importance[name] * at_least_float32(w - w0).square()).sum()
        for name, w, w0 in _pair_with_fixed(parameters, anchors)
    )
    return _sum_terms(terms) / 2


def fisher(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Measure the diagonal Fisher information: the mean over examples of (d log p(y|x) / d w)².

    One backward pass per example. With observed classes it is the empirical Fisher information;
    with classes drawn from the network's own predictions it is the true one.

    Parameters
    ----------
    network : torch.nn.Module
        Returns logits (n, n_classes). It must be in inference mode, and is not changed. Frozen
        weights are measured like the others.
    batches : iterable of (torch.Tensor, torch.Tensor)
        Inputs (n, ...) and classes (n,).

    Returns
    -------
    dict of str to torch.Tensor
        Values of at least 0 by parameter name, in the shapes of the parameters.

    Raises
    ------
    UsageError
        If a part of the network is in training mode, or there is no example.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Linear(1, 2, bias=False).eval()
    >>> _ = torch.nn.init.zeros_(net.weight)
    >>> fisher(net, [(torch.ones(1, 1), torch.tensor([0]))])["weight"].flatten()
    tensor([0.2500, 0.2500])
    """
    import torch
    from torch.nn.functional import cross_entropy

    if in_training := [name for name, part in network.named_modules() if part.training]:
        raise UsageError(
            f"Expected the network in inference mode, got {len(in_training)} modules in training "
            f"mode, such as {in_training[0]!r}: BatchNorm would normalise single images. Call "
            "network.eval() first."
        )
    weights = {name: w.detach() for name, w in network.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, weights, (x[None],))
        return cross_entropy(logits, y[None])

    total = {name: torch.zeros_like(at_least_float32(w)) for name, w in weights.items()}
    count = 0
    # torch.func differentiates its arguments, so frozen weights need no requires_grad.
    gradient_of_loss = torch.func.grad(loss)
    for inputs, classes in batches:
        for x, y in zip(inputs, classes, strict=True):
            for name, gradient in gradient_of_loss(weights, x, y).items():
                total[name] += at_least_float32(gradient).square()
            count += 1
    if count == 0:
        raise UsageError(
            f"Expected examples to measure the Fisher information on, got {count}. Pass at least "
            "one batch."
        )
    return {name: value / count for name, value in total.items()}


def _pair_with_fixed(
    tensors: Mapping[str, Tensor], fixed: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, live tensor and fixed value of each tensor."""
    for name, live in tensors.items():
        value = fixed.get(name)
        if value is None or value.shape != live.shape:
            shape = "none" if value is None else f"shape {tuple(value.shape)}"
            raise UsageError(
                f"Expected a fixed value of shape {tuple(live.shape)} for {name!r}, got {shape}. "
                "Copy the weights of the same network before training, with anchors()."
            )
        # A view of the live weight changes with it, and the penalty would always be 0.
        if live.numel() and value.data_ptr() == live.data_ptr():
            raise UsageError(
                f"The fixed value of {name!r} shares the memory of the live weight. Copy it with "
                "anchors()."
            )
        yield name, live, value


def _sum_terms(terms: Iterable[Tensor]) -> Tensor:
    import torch

    # A tensor without dimensions can be added to tensors of any device.
    return sum(terms, start=torch.zeros(()))
