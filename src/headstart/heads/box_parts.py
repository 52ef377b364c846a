"""Parts of the detectors' heads, from torchvision's, as a shape asks for them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation

from headstart.heads.box_shape import BoxShape

__all__ = [
    "anchor_maker",
    "anchors_on",
    "fcos_of",
    "group_norm",
    "halving",
    "proposer_of",
    "pyramid_of",
    "regions_of",
    "retinanet_of",
]

LEAST_SCORE = 0.01
MOST_FOUND = 100


def anchors_on(shape: BoxShape) -> Tensor:
    """All anchors on the canvas, (n, 4), in float32."""
    levels = [torch.empty((1, 0, *grid)) for grid in shape.grids]
    canvas = ImageList(torch.empty((1, 0, *shape.padded)), [shape.canvas])
    anchors: Tensor = anchor_maker(shape)(canvas, levels)[0]
    return anchors


class _Centred(AnchorGenerator):  # type: ignore[misc]
    """Anchors in the middle of their places: at a corner, a map of one place would miss most."""

    def grid_anchors(
        self, grid_sizes: list[list[int]], strides: list[list[Tensor]]
    ) -> list[Tensor]:
        at_corners = super().grid_anchors(grid_sizes, strides)
        middles = [torch.stack([x, y, x, y]) / 2 for y, x in strides]
        return [a + middle for a, middle in zip(at_corners, middles, strict=True)]


class _Outside(nn.Identity):
    """Where torchvision's classes expect a trunk."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels


def anchor_maker(shape: BoxShape) -> AnchorGenerator:
    """Make what lays anchors over the levels."""
    make = _Centred if shape.kind == "ssdlite" else AnchorGenerator
    return make(shape.sizes, (shape.ratios,) * len(shape.sizes))


def pyramid_of(shape: BoxShape) -> FeaturePyramidNetwork:
    """Make Lin et al. 2017, Feature pyramid networks, figure 3."""
    told = shape.options
    channels, extra = told["channels"], told.get("extra", "pool")
    if extra == "pool":
        top: nn.Module = LastLevelMaxPool()
    else:
        top = LastLevelP6P7(channels if extra == "p6p7" else shape.widths[-1], channels)
    norm = nn.BatchNorm2d if told.get("norm") == "batch" else None
    return FeaturePyramidNetwork(list(shape.widths), channels, top, norm)


def proposer_of(anchors: AnchorGenerator, limits: tuple[int, int]) -> RegionProposalNetwork:
    """Make what chooses regions; so many a level before suppression, and a picture after it."""
    before, after = (dict.fromkeys(("training", "testing"), n) for n in limits)
    return RegionProposalNetwork(anchors, nn.Identity(), 0.7, 0.3, 256, 0.5, before, after, 0.7)


def regions_of(shape: BoxShape) -> RoIHeads:
    """Make what looks at regions: pooling, layers, and outputs for each class."""
    told = shape.options
    channels, side, width = told["channels"], told["pooled"], told["width"]
    norm = nn.BatchNorm2d if told["norm"] == "batch" else None
    if told["box_convs"]:
        convs = [channels] * told["box_convs"]
        head: nn.Module = FastRCNNConvFCHead((channels, side, side), convs, [width], norm)
    else:
        head = TwoMLPHead(channels * side**2, width)
    return RoIHeads(
        MultiScaleRoIAlign([str(i) for i in range(len(shape.widths))], side, sampling_ratio=2),
        head,
        FastRCNNPredictor(width, shape.n_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=told["regions"],
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=LEAST_SCORE,
        nms_thresh=0.5,
        detections_per_img=MOST_FOUND,
    )


def retinanet_of(shape: BoxShape, anchors: AnchorGenerator) -> RetinaNet:
    """Make a RetinaNet without trunk and pyramid (Lin et al. 2017, Focal loss)."""
    told = shape.options
    norm = partial(nn.GroupNorm, 32) if told["norm"] == "group" else None
    each = anchors.num_anchors_per_location()[0]
    head = RetinaNetHead(told["channels"], each, shape.n_classes, norm_layer=norm)
    for tower in (head.classification_head, head.regression_head):
        blocks = list(tower.conv)[: told["convs"]]  # torchvision makes four
        more = told["convs"] - len(blocks)
        blocks += [_tower_block(told["channels"], norm) for _ in range(more)]
        tower.conv = nn.Sequential(*blocks)
    head.regression_head._loss_type = told["box_loss"]  # as torchvision's own builder sets it
    return RetinaNet(
        _Outside(told["channels"]),
        shape.n_classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=LEAST_SCORE,
        detections_per_img=MOST_FOUND,
        topk_candidates=told["candidates"],
    )


def _tower_block(channels: int, norm: Any) -> nn.Module:
    block: nn.Module = Conv2dNormActivation(channels, channels, norm_layer=norm)
    nn.init.normal_(block[0].weight, std=0.01)  # type: ignore[index]
    return block


def fcos_of(shape: BoxShape, anchors: AnchorGenerator) -> FCOS:
    """Make an FCOS without trunk and pyramid (Tian et al. 2019)."""
    told = shape.options
    return FCOS(
        _Outside(told["channels"]),
        shape.n_classes,
        anchor_generator=anchors,
        head=FCOSHead(told["channels"], 1, shape.n_classes, num_convs=told["convs"]),
        score_thresh=LEAST_SCORE,
        detections_per_img=MOST_FOUND,
        topk_candidates=told["candidates"],
    )


def halving(channels: int, width: int) -> nn.Sequential:
    """Halve a map as SSDLite does: narrow, step over depth-wise, widen."""
    block = partial(Conv2dNormActivation, norm_layer=group_norm, activation_layer=nn.ReLU6)
    thin = width // 2
    return nn.Sequential(
        block(channels, thin, kernel_size=1),
        block(thin, thin, kernel_size=3, stride=2, groups=thin),
        block(thin, width, kernel_size=1),
    )


def group_norm(channels: int) -> nn.GroupNorm:
    """Make at most 32 groups of at least 4 channels, as even as they come."""
    return nn.GroupNorm(max(math.gcd(channels // 4, 32), 1) if channels % 4 == 0 else 1, channels)
