"""Linear head on pooled features (one vector for each image)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from headstart.errors import ModelFileError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LinearHead"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """One linear layer: logits = features @ weight.T + bias.

    Parameters
    ----------
    weight : array, shape (n_outputs, width)
    bias : array, shape (n_outputs,)

    Examples
    --------
    >>> head = LinearHead(weight=np.array([[1.0, 2.0]]), bias=np.array([0.5]))
    >>> head.logits(np.array([[1.0, 1.0]]))
    array([[3.5]])
    """

    weight: NDArray[np.floating[Any]]
    bias: NDArray[np.floating[Any]]

    kind: ClassVar[str] = "linear"
    taps: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        return f"LinearHead({self.width} features, {len(self.weight)} outputs)"

    @property
    def width(self) -> int:
        """Number of input features."""
        return int(self.weight.shape[1])

    def logits(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Logits of shape (n, n_outputs) for features of shape (n, width), in float64."""
        products = np.asarray(features, dtype=np.float64) @ self.weight.T.astype(np.float64)
        return products + self.bias

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Return the parameters by name, in float32, as they are stored with a model."""
        return {
            "weight": np.ascontiguousarray(self.weight, dtype=np.float32),
            "bias": np.ascontiguousarray(self.bias, dtype=np.float32),
        }

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Return the same head with other parameters."""
        return replace(self, weight=state["weight"], bias=state["bias"])

    def module(self) -> nn.Module:
        """Build torch's linear layer with these parameters."""
        import torch
        from torch import nn

        layer = nn.Linear(self.width, len(self.bias))
        layer.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in self.state().items()})
        return layer

    def as_dict(self) -> dict[str, Any]:
        """The architecture as JSON values; its size follows from the parameters."""
        return {"kind": self.kind}

    @classmethod
    def random(cls, width: int, n_outputs: int, *, seed: int) -> LinearHead:
        """Initialise a head: weights uniform within 1 / sqrt(width), as torch does; bias zero."""
        limit = width**-0.5
        weight = np.random.default_rng(seed).uniform(-limit, limit, (n_outputs, width))
        return cls(weight=weight.astype(np.float32), bias=np.zeros(n_outputs, dtype=np.float32))

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], *, n_outputs: int) -> LinearHead:
        """Build the head from stored parameters.

        Raises
        ------
        ModelFileError
            If a parameter is missing or has another shape than the classes need.
        """
        missing = sorted({"weight", "bias"} - set(state))
        if missing:
            raise ModelFileError(
                f"Expected the head to have weight and bias, missing: {', '.join(missing)}. Copy "
                "the model again."
            )
        weight, bias = state["weight"], state["bias"]
        if weight.ndim != 2 or bias.shape != (n_outputs,) or weight.shape[0] != n_outputs:
            raise ModelFileError(
                f"Expected a head with {n_outputs} outputs, got weight {weight.shape} and bias "
                f"{bias.shape}. Copy the model again."
            )
        return cls(weight=weight, bias=bias)
