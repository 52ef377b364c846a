"""What training on masks minimises: over pixels, and over the overlap of regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED
from headstart.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MaskLoss",
    "cross_entropy_loss",
    "dice_loss",
    "focal_loss",
    "jaccard_loss",
    "lovasz_loss",
    "mask_loss",
]

MaskLossKind = Literal["ce", "dice", "focal", "lovasz", "jaccard", "ce+dice"]
KINDS = ("ce", "dice", "focal", "lovasz", "jaccard", "ce+dice")
WEIGHTS = ("none", "balanced")
OVER_PIXELS = {"ce", "focal", "ce+dice"}
"""Kinds with a term over pixels, which can weigh classes; the others treat classes alike."""


@dataclass(frozen=True, kw_only=True)
class MaskLoss:
    """Which loss of masks is meant.

    Parameters
    ----------
    kind : {"ce", "dice", "focal", "lovasz", "jaccard", "ce+dice"}
        ``ce+dice`` is the sum of the two.
    class_weights : {"none", "balanced"}
        ``balanced``: in the term over pixels all classes weigh alike, however large they are.
    label_smoothing : float
        Share of every pixel's target that is spread over all classes, 0 to below 1; in the
        cross-entropy only.
    focal_gamma : float
        Of the focal loss: 0 is cross-entropy, larger values let sure pixels weigh less.

    Raises
    ------
    UsageError
        If a value cannot be meant, or the kind has no use for it.

    Examples
    --------
    >>> MaskLoss(class_weights="balanced").weights(np.array([300, 100, 0]))
    array([0.66666667, 2.        , 0.        ])
    """

    kind: MaskLossKind = "ce+dice"
    class_weights: Literal["none", "balanced"] = "none"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("kind of loss", self.kind, KINDS)
        if self.class_weights not in WEIGHTS:
            raise UnknownNameError("class_weights", self.class_weights, WEIGHTS)
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                f"Expected `label_smoothing` to be from 0 to below 1, got {self.label_smoothing}."
            )
        if not 0 <= self.focal_gamma < float("inf"):
            raise UsageError(f"Expected `focal_gamma` to be 0 or more, got {self.focal_gamma}.")
        if self.class_weights != "none" and self.kind not in OVER_PIXELS:
            raise UsageError(
                f"Expected no class weights for {self.kind}, which treats classes alike, got "
                f"{self.class_weights!r}; do leave them out or use 'ce+dice'."
            )
        if self.label_smoothing and self.kind not in {"ce", "ce+dice"}:
            raise UsageError(
                f"Expected no `label_smoothing` for {self.kind}, got {self.label_smoothing}; do "
                "leave it out or use 'ce' or 'ce+dice'."
            )

    def weights(self, counts: NDArray[np.integer[Any]]) -> NDArray[np.float64] | None:
        """Weights for ``mask_loss``, shape (n_classes,); None where none are called for.

        Parameters
        ----------
        counts : array of int, shape (n_classes,)
            Pixels of each class over the training masks.

        Returns
        -------
        array or None
            All pixels by classes that have any, by pixels of the class: their mean over pixels
            is 1; 0 for a class without pixels.
        """
        if self.class_weights == "none":
            return None
        share = counts.sum() / max(1, np.count_nonzero(counts))
        return np.where(counts > 0, share / np.maximum(counts, 1), 0.0)


def mask_loss(
    logits: Tensor, truth: Tensor, how: MaskLoss, *, class_weights: Tensor | None = None
) -> Tensor:
    """Loss of a batch of masks, as settings say.

    Parameters
    ----------
    logits : tensor, shape (n, n_classes, H, W)
        16-bit floats are taken to float32 first.
    truth : tensor of int64, shape (n, H, W)
        Indices of classes; 255 for pixels that are left out. Where all are, the loss is 0.
    how : MaskLoss
    class_weights : tensor, shape (n_classes,), optional
        ``MaskLoss.weights`` computes them; for the term over pixels.

    Returns
    -------
    tensor
        A scalar, float32 or float64.

    Raises
    ------
    UsageError
        If shapes or types do not fit, or the truth has other numbers than classes and 255.

    Examples
    --------
    >>> import torch
    >>> logits, truth = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    >>> round(mask_loss(logits, truth, MaskLoss()).item(), 4)  # ln 2 + 1/2
    1.1931
    """
    region = {"dice": dice_loss, "lovasz": lovasz_loss, "jaccard": jaccard_loss}
    if how.kind in region:
        return region[how.kind](logits, truth)
    if how.kind == "focal":
        return focal_loss(logits, truth, gamma=how.focal_gamma, class_weights=class_weights)
    smoothing = how.label_smoothing
    found = cross_entropy_loss(
        logits, truth, class_weights=class_weights, label_smoothing=smoothing
    )
    return found + dice_loss(logits, truth) if how.kind == "ce+dice" else found


def cross_entropy_loss(
    logits: Tensor,
    truth: Tensor,
    *,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy over the pixels that count; see ``mask_loss`` for shapes.

    With weights it is the plain mean still: a batch of rare classes counts for more.

    >>> import torch
    >>> logits, truth = torch.zeros(1, 4, 1, 2), torch.tensor([[[3, 255]]])
    >>> round(cross_entropy_loss(logits, truth).item(), 4)  # ln 4
    1.3863
    """
    from torch.nn.functional import cross_entropy

    scores = _scores(logits, truth)
    summed = cross_entropy(
        scores,
        truth,
        weight=None if class_weights is None else _fitting(class_weights, scores),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return summed / (truth != IGNORED).sum().clamp_min(1)


def focal_loss(
    logits: Tensor, truth: Tensor, *, gamma: float = 2.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean of (1 - p)^gamma times the cross-entropy, p the probability of the pixel's class.

    See ``mask_loss`` for shapes.

    Reference
    ---------
    Lin et al., Focal loss for dense object detection, ICCV 2017, equation 4, with the softmax.

    Examples
    --------
    >>> import torch
    >>> truth = torch.tensor([[[1]]])
    >>> round(focal_loss(torch.zeros(1, 2, 1, 1), truth).item(), 4)  # (1/2)^2 ln 2
    0.1733
    """
    scores = _scores(logits, truth)
    valid = truth != IGNORED
    known = truth.masked_fill(~valid, 0)
    log_p = scores.log_softmax(dim=1).gather(1, known[:, None])[:, 0]
    # Away from zero, where the slope of a root is infinite.
    terms = -log_p * (-log_p.expm1()).clamp_min(1e-12) ** gamma
    if class_weights is not None:
        terms = terms * _fitting(class_weights, scores)[known]
    return terms.masked_fill(~valid, 0).sum() / valid.sum().clamp_min(1)


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """One less the soft Dice coefficient over the batch, mean over the classes that it shows.

    From 0 to 1. Classes without a pixel in the batch have no Dice coefficient; what is predicted
    of them is missing from those that are there. See ``mask_loss`` for shapes.

    Reference
    ---------
    Milletari et al., V-Net, 3DV 2016, section 3, without the squares (Drozdzal et al. 2016).

    Examples
    --------
    >>> import torch
    >>> dice_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])).item()
    0.5
    """
    both, either = _overlaps(logits, truth)
    return _mean_over_present(1 - 2 * both[0] / either.clamp_min(1), both[1])


def jaccard_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """One less the soft intersection over union; otherwise as ``dice_loss``.

    >>> import torch
    >>> round(jaccard_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])).item(), 4)
    0.6667
    """
    both, either = _overlaps(logits, truth)
    return _mean_over_present(1 - both[0] / (either - both[0]).clamp_min(1), both[1])


def lovasz_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Lovasz-softmax: a convex surface through the Jaccard losses of all ways to be wrong.

    Over the batch, mean over the classes that it shows. It sorts all pixels once for each of
    these. See ``mask_loss`` for shapes.

    Reference
    ---------
    Berman et al., The Lovasz-softmax loss, CVPR 2018, equations 8, 9 and 11, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> lovasz_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])).item()
    0.5
    """
    import torch

    scores = _scores(logits, truth)
    valid = truth != IGNORED
    shown = truth[valid]
    shares = scores.softmax(dim=1).movedim(1, -1)[valid]  # (pixels, n_classes)
    present = torch.bincount(shown, minlength=scores.shape[1]) > 0
    losses = [
        _lovasz_of(shares[:, one], shown == one) for one in present.nonzero().flatten().tolist()
    ]
    return torch.stack(losses).mean() if losses else (scores * 0).sum()


def _lovasz_of(shares: Tensor, is_class: Tensor) -> Tensor:
    """Extension of one class's Jaccard loss to errors between 0 and 1.

    Pixels become wrong one after the other, the worst first; each error is weighed by how much
    the Jaccard loss grows when its pixel does.
    """
    errors = (is_class.to(shares) - shares).abs()
    errors, order = errors.sort(descending=True, stable=True)
    missed = is_class[order].cumsum(0)  # whole numbers: exact for any number of pixels
    claimed = (~is_class[order]).cumsum(0)
    size = missed[-1]
    loss = 1 - (size - missed).to(shares) / (size + claimed).to(shares)
    growth = loss.diff(prepend=loss.new_zeros(1))
    return (errors * growth).sum()


def _overlaps(logits: Tensor, truth: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Of every class: the share that is met and the pixels there are; predicted plus true."""
    import torch

    scores = _scores(logits, truth)
    valid = truth != IGNORED
    classes = truth.masked_fill(~valid, 0)
    shares, counted = scores.softmax(dim=1), valid.to(scores)
    # One share a pixel is looked up: a table of all classes for every pixel takes as long as a
    # decoder. Added up in 64 bits, for there are many.
    met = (shares.gather(1, classes[:, None])[:, 0] * counted).flatten().double()
    nothing = met.new_zeros(scores.shape[1])
    both = nothing.index_add(0, classes.flatten(), met).to(scores)
    pixels = nothing.index_add(0, classes.flatten(), counted.flatten().double()).to(scores)
    said = torch.einsum("nchw,nhw->c", shares, counted)
    return (both, pixels), said + pixels


def _mean_over_present(losses: Tensor, pixels: Tensor) -> Tensor:
    present = (pixels > 0).to(losses)
    # Sums of shares may exceed the pixels by a rounding.
    return (losses.clamp_min(0) * present).sum() / present.sum().clamp_min(1)


def _fitting(class_weights: Tensor, scores: Tensor) -> Tensor:
    if class_weights.shape != (scores.shape[1],):
        raise UsageError(
            f"Expected `class_weights` of shape ({scores.shape[1]},), got shape "
            f"{tuple(class_weights.shape)}."
        )
    return class_weights.to(scores)


def _scores(logits: Tensor, truth: Tensor) -> Tensor:
    """Logits in 32 bits or more, once they are seen to fit the truth."""
    import torch

    if logits.ndim != 4 or not logits.is_floating_point():
        raise UsageError(
            f"Expected `logits` to be floats of shape (n, n_classes, H, W), got {logits.dtype} of "
            f"shape {tuple(logits.shape)}."
        )
    n, n_classes, height, width = logits.shape
    if truth.shape != (n, height, width) or truth.dtype != torch.int64:
        raise UsageError(
            f"Expected `truth` to be int64 of shape {(n, height, width)}, got {truth.dtype} of "
            f"shape {tuple(truth.shape)}."
        )
    lowest, highest = truth.masked_fill(truth == IGNORED, 0).aminmax()
    if lowest < 0 or highest >= n_classes:
        raise UsageError(
            f"Expected `truth` to hold 0 to {n_classes - 1} and {IGNORED} for pixels left out, "
            f"got {np.unique(truth.cpu().numpy())[:12]}; do decode masks by their palette."
        )
    return logits.float() if logits.dtype in {torch.float16, torch.bfloat16} else logits
