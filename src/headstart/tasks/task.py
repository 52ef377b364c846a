"""The contract of a task: from a head's logits to what a person reads."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Task"]


class Task(Protocol):
    """What is asked of a picture.

    A task is a value: it knows the names of its classes and how sure it may be, and holds no
    parameters that are trained by gradient.
    """

    @property
    def name(self) -> str:
        """The task's name in files and on the command line."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the head's outputs."""
        ...

    def probabilities(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Calibrated probabilities for a head's logits."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        ...
