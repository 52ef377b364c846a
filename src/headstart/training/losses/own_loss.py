"""A loss function of the user's own: its checks, its record, and the mean over a batch."""

from __future__ import annotations

import hashlib
import inspect
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headstart.data.dataset import Kind
from headstart.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OwnLoss"]

N_TRIED = 6
"""Number of images in the batch that a loss is tried on."""


@dataclass(frozen=True, kw_only=True)
class OwnLoss:
    """A function from logits and targets to a loss. Only its name and a hash are stored.

    Parameters
    ----------
    name : str
        Module and name of the function.
    code : str
        Hash of its code, which a resumed training must share.

    Examples
    --------
    >>> from torch.nn.functional import cross_entropy
    >>> OwnLoss.of(cross_entropy).name
    'torch.nn.functional.cross_entropy'
    """

    name: str
    code: str
    _function: Callable[[Tensor, Tensor], Tensor] | None = field(
        default=None, repr=False, compare=False
    )

    @classmethod
    def of(cls, function: object) -> OwnLoss:
        """Take a function.

        Raises
        ------
        UsageError
            If it cannot be called with two arguments.
        """
        if isinstance(function, OwnLoss):
            return function
        if not callable(function) or isinstance(function, type):
            got = f"the class {function.__name__}" if isinstance(function, type) else repr(function)
            raise UsageError(
                f"`loss` must be a function of logits and targets, got {got[:80]}. Pass a function "
                "such as torch.nn.functional.cross_entropy, or the object of a loss class."
            )
        own = getattr(function, "__qualname__", type(function).__qualname__)
        module = getattr(function, "__module__", type(function).__module__)
        name = f"{module}.{own}"
        return cls(name=name, code=_code_of(function), _function=function)

    @property
    def note(self) -> str:
        """What a run stores of the loss, in a sentence."""
        text = f"The loss {self.name} is stored by name only. Keep its code, to train again."
        if "<" in self.name:  # a lambda, or a function inside another one
            text = (
                f"The loss {self.name} has no name that can be imported, so the run's files do not "
                "say how to train again. Define it with `def` at the top of a module."
            )
        return text

    def require_valid(self, *, n_classes: int, kind: Kind, soft: bool, balanced: bool) -> None:
        """Try the loss on a small batch.

        Parameters
        ----------
        n_classes : int
        kind : {"multiclass", "multilabel"}
        soft : bool
            Whether the targets are rows of probabilities, as after MixUp.
        balanced : bool
            Whether weights of the classes were requested, which need one loss per image.

        Raises
        ------
        UsageError
            If it fails, or its result has another shape, is not finite, or has no gradient.
        """
        import torch

        generator = torch.Generator().manual_seed(0)
        logits = torch.nn.Parameter(torch.randn(N_TRIED, n_classes, generator=generator))
        targets = torch.arange(N_TRIED) % n_classes
        if soft or kind == "multilabel":
            targets = torch.nn.functional.one_hot(targets, n_classes).float()
        try:
            value = self._call(logits, targets)
            gradient = None
            if value.grad_fn is not None:
                [gradient] = torch.autograd.grad(value.sum(), logits, allow_unused=True)
        except UsageError:
            raise
        except Exception as error:  # user's code: any exception is possible
            raise UsageError(
                f"The loss {self.name} failed on logits of shape {tuple(logits.shape)} and targets "
                f"{targets.dtype} of shape {tuple(targets.shape)}: {type(error).__name__}: "
                f"{str(error)[:200]}. Correct the function."
            ) from error
        if gradient is None or not torch.isfinite(gradient).all() or not gradient.any():
            raise UsageError(
                f"The loss {self.name} gives the logits no usable gradient (zero, NaN or "
                "infinite). Use differentiable operations of torch on the logits."
            )
        if balanced and (value.ndim == 0 or kind == "multilabel"):
            raise UsageError(
                f"imbalance='balanced' weights each image, but the loss {self.name} returns one "
                "number for the batch, or the data has several labels per image. Return one loss "
                "per image, or pass imbalance='none'."
            )

    def mean(
        self,
        logits: Tensor,
        targets: Tensor,
        class_weights: Tensor | None,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of a batch, with the weight of each image's class if there are any.

        Parameters
        ----------
        logits : tensor, shape (n, k)
        targets : tensor
            Indices (n,), or rows (n, k).
        class_weights : tensor, shape (k,), optional
            Not used if the function returns one number for the whole batch.
        row_weights : tensor, shape (n,), optional
            Weights of the images.

        Raises
        ------
        UsageError
            If images are weighted, but the function returns one number for the whole batch.
        """
        value = self._call(logits, targets)
        if value.ndim == 0:
            if row_weights is not None:
                raise UsageError(
                    f"The images have weights, but the loss {self.name} returned one number for "
                    f"{len(logits)} images. Make it return one number per image, or leave out the "
                    "weights."
                )
            return value
        if class_weights is not None:
            value = value * (
                class_weights[targets] if targets.ndim == 1 else targets @ class_weights
            )
        return value.mean() if row_weights is None else (value * row_weights).mean()

    def _call(self, logits: Tensor, targets: Tensor) -> Tensor:
        import torch

        if self._function is None:
            raise UsageError(
                f"The loss {self.name} is known by its name only. Pass the function itself, as in "
                "headstart.fit(..., loss=function)."
            )
        value = self._function(logits, targets)
        if not isinstance(value, torch.Tensor) or tuple(value.shape) not in {(), (len(logits),)}:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else reprlib.repr(value)
            raise UsageError(
                f"The loss {self.name} returned {got} for {len(logits)} images. Make it return a "
                f"tensor with one number, or with one number per image, shape ({len(logits)},)."
            )
        return value


def _code_of(function: object) -> str:
    """Hash of a function's source, or of its compiled code where there is no source."""
    try:
        text = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = type(function).__qualname__ if code is None else f"{code.co_code!r}{code.co_names}"
    settings = "" if inspect.isroutine(function) else reprlib.repr(function)
    return hashlib.sha256(f"{text}{_without_address(settings)}".encode()).hexdigest()[:16]


def _without_address(text: str) -> str:
    return text.partition(" at 0x")[0]
