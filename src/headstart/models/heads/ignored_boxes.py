"""Regions of a detector's canvas that its loss ignores: crowds and difficult objects.

What lies in such a region is neither an object nor background. It contributes nothing to the loss,
unless it matches an object that is not ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_area, box_iou, clip_boxes_to_image

__all__ = [
    "IgnoringFCOSHead",
    "IgnoringRetinaNetHead",
    "drop_ignored_proposals",
    "ignored_anchors",
    "mask_background",
]

MIN_INSIDE = 0.5  # share of an anchor on the canvas that lies in one ignored box
SURE = 100.0  # logit of a certain prediction: its loss and its gradient are 0 in float32
UNUSED = -2  # torchvision's mark of an anchor that is neither positive nor background


def ignored_anchors(
    anchors: Tensor, ignored: Tensor, min_iou: float, canvas: tuple[int, int]
) -> Tensor:
    """Mark the anchors that an ignored box covers by half, or overlaps as it would an object.

    Parameters
    ----------
    anchors : tensor, shape (n, 4)
        Anchors or proposed regions. Only their part on the canvas counts.
    ignored : tensor, shape (m, 4)
    min_iou : float
        IoU from which an anchor is not background for a box that is not ignored.
    canvas : (int, int)
        Height and width.

    Returns
    -------
    tensor of bool, shape (n,)

    Examples
    --------
    >>> anchors = torch.tensor([[0.0, 0, 4, 4], [8, 0, 12, 4], [-8, 0, 4, 4]])
    >>> ignored_anchors(anchors, torch.tensor([[0.0, 0, 9, 9]]), 0.5, (16, 16)).tolist()
    [True, False, True]
    """
    if not len(ignored):
        return anchors.new_zeros(len(anchors), dtype=torch.bool)
    visible = clip_boxes_to_image(anchors, canvas)
    # Intersections of each pair: (n, m, 2) corners.
    low = torch.maximum(visible[:, None, :2], ignored[None, :, :2])
    high = torch.minimum(visible[:, None, 2:], ignored[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(dim=2) / box_area(visible)[:, None].clamp(min=1e-6)
    marks = (inside >= MIN_INSIDE) | (box_iou(anchors, ignored) >= min_iou)
    result: Tensor = marks.any(dim=1)
    return result


def drop_ignored_proposals(
    proposals: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    min_iou: float,
    canvas: tuple[int, int],
) -> list[Tensor]:
    """Leave out the proposals in ignored boxes that match no object.

    Parameters
    ----------
    proposals : sequence of tensor, shape (n, 4)
        For each image.
    targets : sequence of dict
        For each image its ``boxes`` (k, 4) and ``ignored`` boxes (m, 4).
    min_iou : float
        IoU from which a proposal matches a box.
    canvas : (int, int)
        Height and width.
    """
    kept = []
    for regions, target in zip(proposals, targets, strict=True):
        unused = ignored_anchors(regions, target["ignored"], min_iou, canvas)
        if unused.any() and len(target["boxes"]):
            unused &= (box_iou(regions, target["boxes"]) < min_iou).all(dim=1)
        kept.append(regions[~unused])
    return kept


def mask_background(logits: Tensor, unused: Tensor) -> Tensor:
    """Replace the logits (n, 1 + classes) of unused anchors by those of certain background.

    Their loss is 0, and no gradient reaches them.
    """
    certain = torch.zeros_like(logits[0])
    certain[0] = SURE
    return torch.where(unused[:, None], certain, logits)


class IgnoringRetinaNetHead(RetinaNetHead):  # type: ignore[misc]
    """RetinaNet's head, without a loss for background anchors in ignored boxes."""

    min_iou = 0.4  # of RetinaNet's matcher: below it an anchor is background
    canvas: tuple[int, int]

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> Any:
        """Compute the loss; marks unused anchors as those between the two thresholds."""
        matches = [
            match.masked_fill(
                (match < 0) & ignored_anchors(own, target["ignored"], self.min_iou, self.canvas),
                UNUSED,
            )
            for match, own, target in zip(matched_idxs, anchors, targets, strict=True)
        ]
        return super().compute_loss(targets, head_outputs, anchors, matches)


class IgnoringFCOSHead(FCOSHead):  # type: ignore[misc]
    """FCOS's head, without a loss for background points in ignored boxes."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> Any:
        """Compute the loss; replaces the logits of unused points by certain background."""
        unused = torch.stack(
            [
                (match < 0) & _points_inside(own, target["ignored"])
                for match, own, target in zip(matched_idxs, anchors, targets, strict=True)
            ]
        )
        logits = head_outputs["cls_logits"].masked_fill(unused[..., None], -SURE)
        outputs = {**head_outputs, "cls_logits": logits}
        return super().compute_loss(targets, outputs, anchors, matched_idxs)


def _points_inside(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Mark the anchors whose centre lies in one of the boxes."""
    centres = (anchors[:, None, :2] + anchors[:, None, 2:]) / 2
    inside = (centres >= boxes[None, :, :2]) & (centres <= boxes[None, :, 2:])
    result: Tensor = inside.all(dim=2).any(dim=1)
    return result
