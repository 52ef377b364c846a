"""What training minimises: cross-entropy, and what bends it for rare classes and sure answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Kind
from headstart.errors import UnknownNameError, UsageError
from headstart.training.logistic_regression import IMBALANCED_FROM

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Imbalance", "Loss", "balanced_weights", "classification_loss", "log_priors"]

Imbalance = Literal["auto", "none", "balanced", "sampling"]
Targets = NDArray[np.integer[Any]]

KINDS = ("multiclass", "multilabel")
IMBALANCES = ("auto", "none", "balanced", "sampling")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How the cross-entropy is bent.

    Parameters
    ----------
    label_smoothing : float
        Share of every target that is spread over all classes, 0 to below 1.
    focal : float
        Gamma of the focal loss: from 0 (off) on, answers that are right weigh less.
    logit_adjustment : float
        Tau: that many log priors are added to the logits in training, so that without them
        the model treats classes alike; 0 is off, 1 is the paper's. Multiclass only.
    imbalance : {"auto", "none", "balanced", "sampling"}
        ``balanced`` weights classes alike; ``sampling`` draws them alike often (multiclass
        only); ``auto`` weights them from a ratio of 3 on, and never for multilabel or where
        logits are adjusted.

    Raises
    ------
    UsageError
        If a value cannot be meant, or rare classes would be helped twice.

    Examples
    --------
    >>> rare = np.array([0, 0, 0, 1])
    >>> Loss().resolved(rare, n_classes=2, kind="multiclass")
    'balanced'
    >>> Loss().weights(rare, n_classes=2, kind="multiclass")
    array([0.66666667, 2.        ])
    """

    label_smoothing: float = 0.0
    focal: float = 0.0
    logit_adjustment: float = 0.0
    imbalance: Imbalance = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                f"Expected `label_smoothing` to be from 0 to below 1, got {self.label_smoothing}."
            )
        for name, value in (("focal", self.focal), ("logit_adjustment", self.logit_adjustment)):
            if not 0 <= value < float("inf"):
                raise UsageError(f"Expected `{name}` to be 0 or more, got {value}.")
        if self.imbalance not in IMBALANCES:
            raise UnknownNameError("imbalance", self.imbalance, IMBALANCES)
        if self.logit_adjustment and self.imbalance in {"balanced", "sampling"}:
            raise UsageError(
                "Expected one remedy for rare classes, got `logit_adjustment` and "
                f"`imbalance` {self.imbalance!r}; do leave one of them out."
            )

    def resolved(
        self, targets: Targets, *, n_classes: int, kind: Kind
    ) -> Literal["none", "balanced", "sampling"]:
        """Say what ``imbalance`` means for these targets: never ``auto``.

        Raises
        ------
        UsageError
            If it, or the adjustment of logits, has no meaning for multilabel.
        """
        if kind == "multilabel" and (self.logit_adjustment or self.imbalance == "sampling"):
            what = "logit_adjustment" if self.logit_adjustment else "sampling"
            raise UsageError(
                f"Expected `{what}` for classes that exclude each other, got multilabel targets; "
                "do use imbalance 'balanced' or 'none'."
            )
        if self.imbalance != "auto":
            return self.imbalance
        if kind == "multilabel" or self.logit_adjustment:
            return "none"
        counts = np.bincount(targets, minlength=n_classes)
        present = counts[counts > 0]
        rare = len(present) > 0 and present.max() >= IMBALANCED_FROM * present.min()
        return "balanced" if rare else "none"

    def weights(self, targets: Targets, *, n_classes: int, kind: Kind) -> NDArray[Any] | None:
        """Weights (n_classes,) for ``classification_loss``; None where none are called for."""
        if self.resolved(targets, n_classes=n_classes, kind=kind) != "balanced":
            return None
        return balanced_weights(targets, n_classes=n_classes, kind=kind)

    def adjustment(self, targets: Targets, *, n_classes: int, kind: Kind) -> NDArray[Any] | None:
        """What to add to the logits in training, (n_classes,); None for nothing."""
        self.resolved(targets, n_classes=n_classes, kind=kind)
        if not self.logit_adjustment:
            return None
        return self.logit_adjustment * log_priors(targets, n_classes=n_classes)


def balanced_weights(targets: Targets, *, n_classes: int, kind: Kind) -> NDArray[Any]:
    """Weights that make all classes (or both sides of each label) count alike.

    Parameters
    ----------
    targets : array of int, shape (n,), or 0/1 table (n, n_classes) for multilabel
    n_classes : int
    kind : {"multiclass", "multilabel"}

    Returns
    -------
    array of float, shape (n_classes,)
        Multiclass: examples by classes that have any, by examples of the class, so that the
        mean over examples is 1; 0 for a class without examples. Multilabel: negatives by
        positives, the weight of the positive side; 1 for a label that is never or always there.

    Examples
    --------
    >>> balanced_weights(np.array([0, 1, 1, 1]), n_classes=2, kind="multiclass")
    array([2.        , 0.66666667])
    >>> balanced_weights(np.array([[1], [0], [0], [0]]), n_classes=1, kind="multilabel")
    array([3.])
    """
    if kind == "multilabel":
        positive = targets.sum(axis=0)
        negative = len(targets) - positive
        weight = negative / np.maximum(positive, 1)
        return np.where((positive == 0) | (negative == 0), 1.0, weight)
    counts = np.bincount(targets, minlength=n_classes)
    share = counts.sum() / max(1, np.count_nonzero(counts))
    return np.where(counts > 0, share / np.maximum(counts, 1), 0.0)


def log_priors(targets: Targets, *, n_classes: int) -> NDArray[Any]:
    """Logarithm of every class's share, shape (n_classes,); an empty class counts as one example.

    >>> np.exp(log_priors(np.array([0, 0, 0, 1]), n_classes=2))
    array([0.75, 0.25])
    """
    counts = np.maximum(np.bincount(targets, minlength=n_classes), 1)
    return np.asarray(np.log(counts / max(1, len(targets))))


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    kind: Kind,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
    logit_adjustment: Tensor | None = None,
) -> Tensor:
    """Mean loss of a batch.

    Parameters
    ----------
    logits : tensor, shape (n, k)
        16-bit floats are taken to float32 first.
    targets : tensor
        Multiclass: indices (n,), or soft rows (n, k) that sum to one, as mixing gives them.
        Multilabel: (n, k) in 0..1.
    kind : {"multiclass", "multilabel"}
    label_smoothing : float
        Multiclass: share spread evenly over the k classes; multilabel: over yes and no.
    class_weights : tensor, shape (k,), optional
        Multiclass: of the classes; multilabel: of the positive side. The mean is the plain one.
    focal_gamma : float
        Each term is multiplied by (1 - p) to this power, p the probability of its target.
    logit_adjustment : tensor, shape (k,), optional
        Added to the logits; ``Loss.adjustment`` computes it. Leave it out in prediction.

    Returns
    -------
    tensor
        A scalar, float32 or float64; multilabel: mean over examples and labels.

    Raises
    ------
    UsageError
        If shapes or types do not fit the kind.

    Reference
    ---------
    Szegedy et al., CVPR 2016, section 7 (smoothing); Lin et al., Focal loss, ICCV 2017,
    equation 4; Menon et al., Long-tail learning via logit adjustment, ICLR 2021, equation 10.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    >>> round(classification_loss(logits, torch.tensor([0, 1]), kind="multiclass").item(), 4)
    0.6931
    """
    import torch

    _require(logits, targets, kind, class_weights, logit_adjustment)
    scores = logits.float() if logits.dtype in {torch.float16, torch.bfloat16} else logits
    if logit_adjustment is not None:
        scores = scores + logit_adjustment.to(scores)
    weights = None if class_weights is None else class_weights.to(scores)
    if kind == "multilabel":
        return _sigmoid_loss(scores, targets.to(scores), label_smoothing, weights, focal_gamma)
    if targets.ndim == 1:
        targets = torch.zeros_like(scores).scatter_(1, targets[:, None].long(), 1.0)
    return _softmax_loss(scores, targets.to(scores), label_smoothing, weights, focal_gamma)


def _require(
    logits: Tensor,
    targets: Tensor,
    kind: str,
    class_weights: Tensor | None,
    logit_adjustment: Tensor | None,
) -> None:
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    if logits.ndim != 2 or not logits.is_floating_point():
        raise UsageError(
            f"Expected `logits` to be floats of shape (n, k), got {logits.dtype} of shape "
            f"{tuple(logits.shape)}."
        )
    n, k = logits.shape
    as_indices = kind == "multiclass" and targets.shape == (n,) and not targets.is_floating_point()
    if not as_indices and (
        targets.shape != (n, k) or (kind == "multiclass" and not targets.is_floating_point())
    ):
        wanted = f"class indices ({n},) or soft rows" if kind == "multiclass" else "a table"
        raise UsageError(
            f"Expected {kind} `targets` to be {wanted} ({n}, {k}), got {targets.dtype} of shape "
            f"{tuple(targets.shape)}."
        )
    for name, values in (("class_weights", class_weights), ("logit_adjustment", logit_adjustment)):
        if values is not None and values.shape != (k,):
            raise UsageError(f"Expected `{name}` of shape ({k},), got shape {tuple(values.shape)}.")
    if kind == "multilabel" and logit_adjustment is not None:
        raise UsageError(
            "Expected no `logit_adjustment` for multilabel targets, got one; "
            "do weight the labels instead."
        )


def _softmax_loss(
    scores: Tensor, rows: Tensor, smoothing: float, weights: Tensor | None, gamma: float
) -> Tensor:
    from torch.nn.functional import log_softmax

    log_p = log_softmax(scores, dim=1)
    terms = -(rows * (1 - smoothing) + smoothing / scores.shape[1]) * log_p
    if gamma:
        # Away from zero, where the slope of a root is infinite.
        terms = terms * (-log_p.expm1()).clamp_min(1e-12) ** gamma
    # The plain mean, also with weights, whose mean over the training images is 1: a batch that
    # is computed in parts, or by several processes, then takes the same step as a whole one.
    return (terms * (1 if weights is None else weights)).sum(dim=1).mean()


def _sigmoid_loss(
    scores: Tensor, rows: Tensor, smoothing: float, weights: Tensor | None, gamma: float
) -> Tensor:
    from torch.nn.functional import logsigmoid

    yes, no = logsigmoid(scores), logsigmoid(-scores)
    rows = rows * (1 - smoothing) + smoothing / 2
    # 1 - p is the other side's probability, exact from its logarithm.
    positive = -rows * yes * (gamma * no).exp()
    negative = -(1 - rows) * no * (gamma * yes).exp()
    return (positive * (1 if weights is None else weights) + negative).mean()
