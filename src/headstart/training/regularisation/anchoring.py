"""What holds weights near where they started: L2-SP and elastic weight consolidation.

Pure functions on tensors by name; penalties on what a network gives out are in penalties.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from headstart.errors import UsageError
from headstart.training.weight_averaging import wide

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["anchors", "ewc", "fisher", "l2_sp"]


def anchors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the weights as they are now, apart from anything that moves later.

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        As ``dict(module.named_parameters())`` gives them.

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
        The pretrained weights w that train; none gives 0.
    anchors : mapping of str to torch.Tensor
        Where they started, by the same names (more are ignored).
    alpha, beta : float
    head : iterable of torch.Tensor
        New weights v without a start.

    Raises
    ------
    UsageError
        If an anchor is missing, of another shape, or the live weight itself.

    References
    ----------
    Li, Grandvalet, Davoine, "Explicit inductive bias for transfer learning", ICML 2018, eq. 4.

    Examples
    --------
    >>> import torch
    >>> l2_sp({"w": torch.ones(3)}, {"w": torch.zeros(3)}, alpha=0.5)
    tensor(0.7500)
    """
    moved = _total(wide(w - w0).square().sum() for _, w, w0 in _paired(parameters, anchors))
    new = _total(wide(v).square().sum() for v in head)
    return alpha / 2 * moved + beta / 2 * new


def ewc(
    parameters: Mapping[str, Tensor], anchors: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> Tensor:
    """Penalise moves by what they matter to the source: 1/2 sum_i F_i (w_i - w0_i)².

    Parameters
    ----------
    parameters, anchors : mapping of str to torch.Tensor
        As for ``l2_sp``.
    fisher : mapping of str to torch.Tensor
        Diagonal of the Fisher information by name, as ``fisher`` gives it.

    Raises
    ------
    UsageError
        If an anchor or a Fisher value is missing, of another shape, or the live weight itself.

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
    worth = {name: value for name, _, value in _paired(parameters, fisher)}
    moves = _paired(parameters, anchors)
    return _total((worth[n] * wide(w - w0).square()).sum() for n, w, w0 in moves) / 2


def fisher(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Measure the diagonal Fisher information: the mean over examples of (d log p(y|x) / d w)².

    One backward pass an example. With observed classes it is the empirical Fisher; with classes
    drawn from the network's own answers, the Fisher proper.

    Parameters
    ----------
    network : torch.nn.Module
        Gives logits (n, n_classes); in inference mode, and left as it is. Weights that are
        frozen are measured like the others.
    batches : iterable of (torch.Tensor, torch.Tensor)
        Inputs (n, ...) and classes (n,).

    Returns
    -------
    dict of str to torch.Tensor
        By parameter name; shapes of the parameters, at least 0.

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

    if any(part.training for part in network.modules()):
        raise UsageError(
            "Expected the whole network to be in inference mode, got training mode; "
            "do freeze it first, or BatchNorm measures single images by themselves."
        )
    weights = {name: w.detach() for name, w in network.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, weights, (x[None],))
        return cross_entropy(logits, y[None])

    total = {name: torch.zeros_like(wide(w)) for name, w in weights.items()}
    count = 0
    # torch.func differentiates whatever is handed in, so frozen weights need not be thawed.
    slope = torch.func.grad(loss)
    for inputs, classes in batches:
        for x, y in zip(inputs, classes, strict=True):
            for name, gradient in slope(weights, x, y).items():
                total[name] += wide(gradient).square()
            count += 1
    if count == 0:
        raise UsageError("Expected examples to measure the Fisher information on, got none.")
    return {name: value / count for name, value in total.items()}


def _paired(
    tensors: Mapping[str, Tensor], fixed: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, live in tensors.items():
        held = fixed.get(name)
        if held is None or held.shape != live.shape:
            got = "none" if held is None else f"shape {tuple(held.shape)}"
            raise UsageError(
                f"Expected a fixed value of shape {tuple(live.shape)} for {name!r}, got {got}; "
                "do take the copy from the same network, before it is trained."
            )
        # A view of the live weight moves along with it, and the penalty would stay 0 for ever.
        if live.numel() and held.data_ptr() == live.data_ptr():
            raise UsageError(
                f"Expected the fixed value of {name!r} to be a copy, got the live weight's own "
                "memory; do take it with anchors()."
            )
        yield name, live, held


def _total(terms: Iterable[Tensor]) -> Tensor:
    import torch

    # A number without dimensions may be added to tensors of any device.
    return sum(terms, start=torch.zeros(()))
