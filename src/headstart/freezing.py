"""What does not move: the only place where parameters and BatchNorm are told to stay.

A frozen part is constant. Its parameters receive no gradient and its BatchNorm layers are in
inference mode, so their running statistics stay what the pretraining left. That is what makes
its outputs worth keeping; ``fingerprint`` proves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["constant", "fingerprint", "require_constant"]

ModuleT = TypeVar("ModuleT", bound="nn.Module")


def constant(module: ModuleT) -> ModuleT:
    """Freeze a module: no gradients, BatchNorm and dropout in inference mode.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place.

    Returns
    -------
    torch.nn.Module
        The same module.
    """
    module.requires_grad_(requires_grad=False)
    module.eval()
    return module


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash every parameter and buffer, running statistics included.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        As ``module.state_dict()`` gives it.

    Returns
    -------
    str
        SHA-256, hexadecimal. Equal if and only if all values are equal bit for bit.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_constant(state: Mapping[str, Tensor], before: str) -> None:
    """Hold a frozen module's state against the fingerprint taken before the run.

    Raises
    ------
    HeadstartError
        If any parameter or running statistic has moved.
    """
    if fingerprint(state) != before:
        raise HeadstartError(
            "Expected the frozen backbone to be what it was before the run, got other values; "
            "nothing was saved. Do report this: it is a defect of Headstart."
        )
