"""The contract of a head, which turns a backbone's features into predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Head"]


class Head(Protocol):
    """A head is a value: its architecture and its trained tensors."""

    @property
    def kind(self) -> str:
        """Its name in files and on the command line, such as ``linear`` or ``unet``."""
        ...

    @property
    def taps(self) -> tuple[str, ...]:
        """Stages whose maps the head reads, in the order they run; empty for pooled features."""
        ...

    def module(self) -> nn.Module:
        """Build the module with its own copy of the tensors, in float32 on the CPU."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the tensors by the names of ``module().state_dict()``."""
        ...

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Return the same head with other tensors."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """The architecture as JSON values, for model.json."""
        ...
