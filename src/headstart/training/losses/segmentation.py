"""Losses of semantic segmentation: over pixels, and over the overlap of regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED
from headstart.errors import UnknownNameError, UsageError
from headstart.training.losses.classification import balanced_class_weights
from headstart.training.weight_averaging import at_least_float32

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
LOSS_KINDS = get_args(MaskLossKind)
WEIGHTS = ("none", "balanced")
OVER_PIXELS = {"ce", "focal", "ce+dice"}
"""Losses with a term over pixels, which can weight classes. The others treat all classes alike."""


@dataclass(frozen=True, kw_only=True)
class MaskLoss:
    """Loss of masks and its options.

    Parameters
    ----------
    kind : {"ce", "dice", "focal", "lovasz", "jaccard", "ce+dice"}
        Loss of masks; ``ce+dice`` is the sum of the two.
    class_weights : {"none", "balanced"}
        ``balanced`` gives all classes the same total weight in the term over pixels, however many
        pixels they have.
    label_smoothing : float
        Share of every pixel's target that is spread over all classes, from 0 to below 1; in the
        cross-entropy only.
    focal_gamma : float
        Gamma of the focal loss: 0 is cross-entropy; a larger value reduces the weight of
        pixels that are predicted correctly.

    Raises
    ------
    UsageError
        If a value is invalid, or the kind of loss does not use it.

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
        if self.kind not in LOSS_KINDS:
            raise UnknownNameError("kind of loss", self.kind, LOSS_KINDS)
        if self.class_weights not in WEIGHTS:
            raise UnknownNameError("class_weights", self.class_weights, WEIGHTS)
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                f"`label_smoothing` must be at least 0 and below 1, got {self.label_smoothing}."
            )
        if not 0 <= self.focal_gamma < float("inf"):
            raise UsageError(f"`focal_gamma` must be 0 or more, got {self.focal_gamma}.")
        if self.class_weights != "none" and self.kind not in OVER_PIXELS:
            raise UsageError(
                f"The loss {self.kind!r} does not use class weights, got {self.class_weights!r}. "
                "Leave out --mask-class-weights, or pass --mask-loss ce+dice."
            )
        if self.label_smoothing and self.kind not in {"ce", "ce+dice"}:
            raise UsageError(
                f"The loss {self.kind!r} does not use `label_smoothing`, got "
                f"{self.label_smoothing}. Leave out --mask-label-smoothing, or pass --mask-loss ce "
                "or --mask-loss ce+dice."
            )

    def weights(self, counts: NDArray[np.integer[Any]]) -> NDArray[np.float64] | None:
        """Compute weights for ``mask_loss``, shape (n_classes,); None if it needs none.

        Parameters
        ----------
        counts : array of int, shape (n_classes,)
            Number of pixels of each class in the training masks.

        Returns
        -------
        array or None
            n / (n_present * n_class), with n_present the number of classes that have pixels, so
            that the mean over pixels is 1; 0 for a class without pixels.
        """
        if self.class_weights == "none":
            return None
        return balanced_class_weights(counts)


def mask_loss(
    logits: Tensor, truth: Tensor, settings: MaskLoss, *, class_weights: Tensor | None = None
) -> Tensor:
    """Compute the loss of a batch of masks.

    Parameters
    ----------
    logits : tensor, shape (n, n_classes, H, W)
        16-bit floats are converted to float32 first.
    truth : tensor of int64, shape (n, H, W)
        Indices of classes; 255 for ignored pixels. If all pixels are ignored, the loss is 0.
    settings : MaskLoss
    class_weights : tensor, shape (n_classes,), optional
        Weights in the term over pixels; ``MaskLoss.weights`` computes them.

    Returns
    -------
    tensor
        A scalar, float32 or float64.

    Raises
    ------
    UsageError
        If shapes or types do not match, or the truth contains numbers that are no class and not
        255.

    Examples
    --------
    >>> import torch
    >>> logits, truth = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    >>> round(mask_loss(logits, truth, MaskLoss()).item(), 4)  # ln 2 + 1/2
    1.1931
    """
    region_losses = {"dice": dice_loss, "lovasz": lovasz_loss, "jaccard": jaccard_loss}
    if settings.kind in region_losses:
        return region_losses[settings.kind](logits, truth)
    if settings.kind == "focal":
        return focal_loss(logits, truth, gamma=settings.focal_gamma, class_weights=class_weights)
    loss = cross_entropy_loss(
        logits, truth, class_weights=class_weights, label_smoothing=settings.label_smoothing
    )
    return loss + dice_loss(logits, truth) if settings.kind == "ce+dice" else loss


def cross_entropy_loss(
    logits: Tensor,
    truth: Tensor,
    *,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the mean cross-entropy over valid pixels; see ``mask_loss`` for shapes.

    The mean is not divided by the sum of weights: a batch with rare classes counts more.

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
        weight=None if class_weights is None else _check_weights(class_weights, scores),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return summed / (truth != IGNORED).sum().clamp_min(1)


def focal_loss(
    logits: Tensor, truth: Tensor, *, gamma: float = 2.0, class_weights: Tensor | None = None
) -> Tensor:
    """Compute the mean of (1 - p)^gamma times the cross-entropy, p the probability of the class.

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
    classes = truth.masked_fill(~valid, 0)
    log_p = scores.log_softmax(dim=1).gather(1, classes[:, None])[:, 0]
    # Clamp above 0: with gamma below 1, the gradient at 0 is infinite.
    terms = -log_p * (-log_p.expm1()).clamp_min(1e-12) ** gamma
    if class_weights is not None:
        terms = terms * _check_weights(class_weights, scores)[classes]
    return terms.masked_fill(~valid, 0).sum() / valid.sum().clamp_min(1)


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute 1 minus the soft Dice coefficient of the batch, averaged over its classes.

    From 0 to 1. Classes without a pixel in the batch are left out of the average, but pixels
    predicted as such a class lower the coefficient of their true class. See ``mask_loss`` for
    shapes.

    Reference
    ---------
    Milletari et al., V-Net, 3DV 2016, section 3, without the squares (Drozdzal et al. 2016).

    Examples
    --------
    >>> import torch
    >>> dice_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])).item()
    0.5
    """
    intersection, n_pixels, total = _overlaps(logits, truth)
    return _mean_over_present(1 - 2 * intersection / total.clamp_min(1), n_pixels)


def jaccard_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute 1 minus the soft intersection over union; otherwise like ``dice_loss``.

    >>> import torch
    >>> round(jaccard_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])).item(), 4)
    0.6667
    """
    intersection, n_pixels, total = _overlaps(logits, truth)
    union = (total - intersection).clamp_min(1)
    return _mean_over_present(1 - intersection / union, n_pixels)


def lovasz_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute the Lovasz-softmax loss, a convex surrogate of the Jaccard loss.

    Computed by segmentation-models-pytorch, in float32: over the batch, averaged over the classes
    that occur in it. It sorts all pixels once per class. See ``mask_loss`` for shapes.

    Reference
    ---------
    Berman et al., The Lovasz-softmax loss, CVPR 2018, equations 8, 9 and 11, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> lovasz_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])).item()
    0.5
    """
    from segmentation_models_pytorch.losses import LovaszLoss

    scores = _scores(logits, truth).float()  # the library needs float32
    if not (truth != IGNORED).any():  # the library would return an empty tensor
        return (scores * 0).sum()
    loss: Tensor = LovaszLoss("multiclass", ignore_index=IGNORED)(scores, truth)
    return loss


def _overlaps(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum per class: probability on its own pixels, number of its pixels, predicted plus true."""
    scores = _scores(logits, truth)
    valid = truth != IGNORED
    classes = truth.masked_fill(~valid, 0)
    probabilities, mask = scores.softmax(dim=1), valid.to(scores)
    # Look up one probability per pixel: a one-hot table of all classes takes as long as a decoder.
    # Sum in 64 bits, because there are many pixels.
    on_truth = (probabilities.gather(1, classes[:, None])[:, 0] * mask).flatten().double()
    zeros = on_truth.new_zeros(scores.shape[1])
    intersection = zeros.index_add(0, classes.flatten(), on_truth).to(scores)
    n_pixels = zeros.index_add(0, classes.flatten(), mask.flatten().double()).to(scores)
    predicted = (probabilities * mask[:, None]).sum(dim=(0, 2, 3))  # pairwise: precise in 32 bits
    return intersection, n_pixels, predicted + n_pixels


def _mean_over_present(losses: Tensor, n_pixels: Tensor) -> Tensor:
    """Average the losses of the classes that have pixels."""
    present = (n_pixels > 0).to(losses)
    # Clamp: rounding may make a sum of probabilities larger than the number of pixels.
    return (losses.clamp_min(0) * present).sum() / present.sum().clamp_min(1)


def _check_weights(class_weights: Tensor, scores: Tensor) -> Tensor:
    """Check the shape, and return the weights in the type of the scores."""
    if class_weights.shape != (scores.shape[1],):
        raise UsageError(
            f"Expected `class_weights` of shape ({scores.shape[1]},), got shape "
            f"{tuple(class_weights.shape)}."
        )
    return class_weights.to(scores)


def _scores(logits: Tensor, truth: Tensor) -> Tensor:
    """Check that logits and truth match, and return the logits in at least 32 bits."""
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
            f"Expected `truth` to contain 0 to {n_classes - 1}, and {IGNORED} for ignored pixels, "
            f"got {np.unique(truth.cpu().numpy())[:12]}. Decode the masks with their palette first."
        )
    return at_least_float32(logits)
