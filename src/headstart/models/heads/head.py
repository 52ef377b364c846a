"""The contract of a head: what turns a backbone's features into answers, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Head"]


class Head(Protocol):
    """A head is a value: what it is built of, and the numbers that training gave it."""

    @property
    def kind(self) -> str:
        """Its name in files and on the command line, such as ``linear`` or ``unet``."""
        ...

    @property
    def taps(self) -> tuple[str, ...]:
        """Stages whose maps it reads, in the order in which they run; none for pooled features."""
        ...

    def module(self) -> nn.Module:
        """Build it with tensors of its own, in float32 on the CPU, to be trained or run."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """Return its numbers by name, as ``module().state_dict()`` names them."""
        ...

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Return the same head with other numbers."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """What it is built of, as plain values for model.json."""
        ...
