"""The contract of an objective: what a task asks of a training, and how it judges one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headstart.data.samples import Dataset
from headstart.training.inputs import Inputs
from headstart.training.job import Rows, Score
from headstart.training.network import Fetch, Network, Outputs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LossStep", "Objective", "Penalty"]

Penalty = Callable[["Tensor", Outputs, Rows], "Tensor"]
LossStep = Callable[[Rows, NDArray[Any], int], "Tensor"]
"""From the rows of a batch, what was fetched for them and the global step to their mean loss."""


class Objective(Protocol):
    """Knows the truth of the pictures to learn from and of those to stop on."""

    @property
    def train(self) -> Dataset:
        """Pictures to learn from."""
        ...

    @property
    def val(self) -> Dataset:
        """Pictures to stop on."""
        ...

    @property
    def starts(self) -> bool:
        """Whether the head is solved on the pictures as they are before anything moves."""
        ...

    def start(self, network: Network, read: Fetch) -> None:
        """Give the network its first head, solved on what ``read`` gives of every picture."""
        ...

    def order(self, epoch: int) -> Rows:
        """Rows of the pictures to learn from, as an epoch goes through them."""
        ...

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a training that reads ``inputs``."""
        ...

    def answers(self, network: Network, read: Fetch) -> Any:
        """What the network says of the pictures to stop on, in inference."""
        ...

    def score(self, answers: Any) -> Score:
        """How good these answers are."""
        ...

    def settled(self, task: Any, answers: Any) -> Any:
        """Return the task, as certain as the final network's answers allow."""
        ...


def on_device(values: NDArray[Any], device: str) -> Tensor:
    """Return an array as a tensor of its own."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
