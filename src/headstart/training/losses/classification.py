"""Losses of classification: cross-entropy, with options for rare classes and label noise.

The options are label smoothing, focal loss, class weights and logit adjustment.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Kind, html_fields
from headstart.errors import UnknownNameError, UsageError
from headstart.training.losses.own_loss import OwnLoss
from headstart.training.penalty_search import IMBALANCED_FROM
from headstart.training.weight_averaging import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Imbalance",
    "Loss",
    "balanced_class_weights",
    "balanced_weights",
    "classification_loss",
    "log_priors",
]

Imbalance = Literal["auto", "none", "balanced", "sampling"]
Targets = NDArray[np.integer[Any]]

LABEL_KINDS = ("multiclass", "multilabel")
IMBALANCES = get_args(Imbalance)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Options of the cross-entropy loss.

    Parameters
    ----------
    label_smoothing : float
        Share of every target that is spread over all classes, from 0 to below 1.
    focal : float
        Gamma of the focal loss: a larger value reduces the weight of correct predictions; 0 is off.
    logit_adjustment : float
        Tau: factor of the log priors that are added to the logits in training. Without them, the
        model then treats all classes alike. 0 is off, 1 is the value of the paper. Multiclass
        only.
    imbalance : {"auto", "none", "balanced", "sampling"}
        ``balanced`` gives all classes the same total weight; ``sampling`` draws them equally often
        (multiclass only); ``auto`` weights them if the largest has 3 times as many images as the
        smallest, but never for multilabel or with ``logit_adjustment``.
    function : callable, optional
        A loss of your own instead of the cross-entropy: from logits (n, k) and targets (indices
        (n,), or rows (n, k) for multilabel and MixUp) to one number, or to one number per image,
        which the weights of the classes then multiply.

    Raises
    ------
    UsageError
        If a value is invalid, or two options correct the same imbalance.

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
    function: OwnLoss | None = field(default=None, metadata={"flag": False})

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        if self.function is not None:
            object.__setattr__(self, "function", OwnLoss.of(self.function))
            for name in ("label_smoothing", "focal", "logit_adjustment"):
                if getattr(self, name):
                    raise UsageError(
                        f"`{name}` {getattr(self, name):g} belongs to the cross-entropy, but "
                        f"`loss` is {self.function.name}. Remove one of them."
                    )
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                f"`label_smoothing` must be at least 0 and below 1, got {self.label_smoothing}."
            )
        for name, value in (("focal", self.focal), ("logit_adjustment", self.logit_adjustment)):
            if not 0 <= value < float("inf"):
                raise UsageError(f"`{name}` must be 0 or more, got {value}.")
        if self.imbalance not in IMBALANCES:
            raise UnknownNameError("imbalance", self.imbalance, IMBALANCES)
        if self.logit_adjustment and self.imbalance in {"balanced", "sampling"}:
            raise UsageError(
                f"`logit_adjustment` {self.logit_adjustment:g} and `imbalance` {self.imbalance!r} "
                "both correct for rare classes. Leave out one of them."
            )

    def resolved(
        self, targets: Targets, *, n_classes: int, kind: Kind
    ) -> Literal["none", "balanced", "sampling"]:
        """Resolve ``auto`` for these targets.

        Raises
        ------
        UsageError
            If ``sampling`` or ``logit_adjustment`` is set for multilabel targets.
        """
        if kind == "multilabel" and (self.logit_adjustment or self.imbalance == "sampling"):
            option = "logit_adjustment" if self.logit_adjustment else "sampling"
            raise UsageError(
                f"`{option}` needs classes that exclude each other, got multilabel targets. Pass "
                "--imbalance balanced or --imbalance none instead."
            )
        if self.imbalance != "auto":
            return self.imbalance
        if kind == "multilabel" or self.logit_adjustment:
            return "none"
        counts = np.bincount(targets, minlength=n_classes)
        present = counts[counts > 0]
        is_imbalanced = len(present) > 0 and present.max() >= IMBALANCED_FROM * present.min()
        return "balanced" if is_imbalanced else "none"

    def check(self, *, n_classes: int, kind: Kind, mixed: bool) -> None:
        """Try a loss of the user's own on a small batch.

        Raises
        ------
        UsageError
            If it cannot be used for these classes.
        """
        if self.function is not None:
            balanced = self.imbalance == "balanced"
            self.function.require_valid(
                n_classes=n_classes, kind=kind, soft=mixed, balanced=balanced
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the values for a record: of the user's own loss its name and hash."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        own = values.pop("function")
        return values if own is None else {**values, "function": own.name, "code": own.code}

    def weights(self, targets: Targets, *, n_classes: int, kind: Kind) -> NDArray[Any] | None:
        """Compute weights (n_classes,) for ``classification_loss``; None if it needs none."""
        if self.resolved(targets, n_classes=n_classes, kind=kind) != "balanced":
            return None
        return balanced_weights(targets, n_classes=n_classes, kind=kind)

    def adjustment(self, targets: Targets, *, n_classes: int, kind: Kind) -> NDArray[Any] | None:
        """Compute what is added to the logits in training, (n_classes,); None if it is off."""
        self.resolved(targets, n_classes=n_classes, kind=kind)
        if not self.logit_adjustment:
            return None
        return self.logit_adjustment * log_priors(targets, n_classes=n_classes)


def balanced_weights(targets: Targets, *, n_classes: int, kind: Kind) -> NDArray[Any]:
    """Compute weights that give all classes (or both sides of each label) the same total.

    Parameters
    ----------
    targets : array of int, shape (n,), or 0/1 table (n, n_classes) for multilabel
    n_classes : int
    kind : {"multiclass", "multilabel"}

    Returns
    -------
    array of float, shape (n_classes,)
        Multiclass: n / (n_present * n_class), with n_present the number of classes that have
        examples, so that the mean over examples is 1; 0 for a class without examples. Multilabel:
        weight of the positive side, n_negative / n_positive; 1 for a label that all or no examples
        have.

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
    return balanced_class_weights(np.bincount(targets, minlength=n_classes))


def balanced_class_weights(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Compute n / (n_present * n_class) per class from its count; 0 for a class of count 0.

    >>> balanced_class_weights(np.array([300, 100, 0]))
    array([0.66666667, 2.        , 0.        ])
    """
    class_total = counts.sum() / max(1, np.count_nonzero(counts))
    return np.where(counts > 0, class_total / np.maximum(counts, 1), 0.0)


def log_priors(targets: Targets, *, n_classes: int) -> NDArray[Any]:
    """Compute the log share of each class, (n_classes,). An empty class counts as one example.

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
    row_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
    logit_adjustment: Tensor | None = None,
) -> Tensor:
    """Compute the mean loss of a batch.

    Parameters
    ----------
    logits : tensor, shape (n, k)
        16-bit floats are converted to float32 first.
    targets : tensor
        Multiclass: indices (n,), or soft rows (n, k) that sum to one, for example after MixUp.
        Multilabel: (n, k) in 0..1.
    kind : {"multiclass", "multilabel"}
    label_smoothing : float
        Share that is spread evenly: over the k classes (multiclass), or over yes and no
        (multilabel).
    class_weights : tensor, shape (k,), optional
        Weights of the classes (multiclass), or of the positive side (multilabel). The mean is
        not divided by the sum of weights.
    row_weights : tensor, shape (n,), optional
        Weights of the images, with mean 1 over the training images.
    focal_gamma : float
        Each term is multiplied by (1 - p) to this power, where p is the probability of its target.
    logit_adjustment : tensor, shape (k,), optional
        Added to the logits; ``Loss.adjustment`` computes it. Not used in prediction.

    Returns
    -------
    tensor
        A scalar, float32 or float64; multilabel: mean over examples and labels.

    Raises
    ------
    UsageError
        If shapes or types do not match the kind.

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

    _require_valid(logits, targets, kind, class_weights, logit_adjustment)
    scores = at_least_float32(logits)
    if logit_adjustment is not None:
        scores = scores + logit_adjustment.to(scores)
    weights = None if class_weights is None else class_weights.to(scores)
    if targets.ndim == 1 and kind == "multiclass":
        targets = torch.zeros_like(scores).scatter_(1, targets[:, None].long(), 1.0)
    losses = _sigmoid_losses if kind == "multilabel" else _softmax_losses
    by_image = losses(scores, targets.to(scores), label_smoothing, weights, focal_gamma)
    # The plain mean, also with weights (their mean over the training images is 1). So a batch that
    # is computed in parts, or by several processes, gives the same step as one computed at once.
    return (by_image if row_weights is None else by_image * row_weights.to(scores)).mean()


def _require_valid(
    logits: Tensor,
    targets: Tensor,
    kind: str,
    class_weights: Tensor | None,
    logit_adjustment: Tensor | None,
) -> None:
    if kind not in LABEL_KINDS:
        raise UnknownNameError("kind", kind, LABEL_KINDS)
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
        expected = f"class indices ({n},) or soft rows" if kind == "multiclass" else "a table"
        raise UsageError(
            f"Expected {kind} `targets` to be {expected} ({n}, {k}), got {targets.dtype} of shape "
            f"{tuple(targets.shape)}."
        )
    for name, values in (("class_weights", class_weights), ("logit_adjustment", logit_adjustment)):
        if values is not None and values.shape != (k,):
            raise UsageError(f"Expected `{name}` of shape ({k},), got shape {tuple(values.shape)}.")
    if kind == "multilabel" and logit_adjustment is not None:
        raise UsageError(
            f"`logit_adjustment` of shape {tuple(logit_adjustment.shape)} cannot be used with "
            "multilabel targets. Pass `class_weights` instead."
        )


def _softmax_losses(
    scores: Tensor, rows: Tensor, smoothing: float, weights: Tensor | None, gamma: float
) -> Tensor:
    from torch.nn.functional import log_softmax

    log_p = log_softmax(scores, dim=1)
    terms = -(rows * (1 - smoothing) + smoothing / scores.shape[1]) * log_p
    if gamma:
        # Clamp above 0: with gamma below 1, the gradient at 0 is infinite.
        terms = terms * (-log_p.expm1()).clamp_min(1e-12) ** gamma
    return (terms * (1 if weights is None else weights)).sum(dim=1)


def _sigmoid_losses(
    scores: Tensor, rows: Tensor, smoothing: float, weights: Tensor | None, gamma: float
) -> Tensor:
    from torch.nn.functional import logsigmoid

    log_yes, log_no = logsigmoid(scores), logsigmoid(-scores)
    rows = rows * (1 - smoothing) + smoothing / 2
    # 1 - p is the probability of the other side; its logarithm gives it exactly.
    positive = -rows * log_yes * (gamma * log_no).exp()
    negative = -(1 - rows) * log_no * (gamma * log_yes).exp()
    return (positive * (1 if weights is None else weights) + negative).mean(dim=1)
