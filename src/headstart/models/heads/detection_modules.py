"""Parts of the detectors' heads, from torchvision's, as a shape asks for them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
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
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation

from headstart.errors import UsageError
from headstart.models.heads.detection_config import BoxShape

__all__ = [
    "BoxModule",
    "Truth",
    "anchor_maker",
    "anchors_on",
    "build",
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
    """Where torchvision's classes expect a backbone."""

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
    """Make what chooses regions; so many a level before suppression, and an image after it."""
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
    """Make a RetinaNet without backbone and pyramid (Lin et al. 2017, Focal loss)."""
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
    """Make an FCOS without backbone and pyramid (Tian et al. 2019)."""
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


Truth = tuple[Tensor, Tensor]
"""Boxes (k, 4) on the canvas and their classes (k,), counted from 0."""
Found = tuple[Tensor, Tensor, Tensor]
"""Boxes (k, 4) on the canvas, scores (k,) and classes (k,)."""


class BoxModule(nn.Module):
    """A head in training or in use; ``build`` makes one.

    Parameters
    ----------
    shape : BoxShape
    """

    def __init__(self, shape: BoxShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Any]:
        """Compute what both ``loss`` and ``detect`` read, in float32.

        Parameters
        ----------
        maps : sequence of tensor
            One (n, channels, h, w) for each of the shape's strides.
        """
        return self._raw([self._fitted(x, i) for i, x in enumerate(maps)])

    def loss(self, raw: dict[str, Any], truths: Sequence[Truth]) -> dict[str, Tensor]:
        """Compute the terms of the loss: scalars, to be summed.

        Parameters
        ----------
        raw : dict
            Of ``forward``.
        truths : sequence of (boxes, labels)
            For each image boxes (k, 4) on the canvas and classes (k,) from 0; k may be 0.

        Raises
        ------
        UsageError
            If a box has no area, or a class does not exist.
        """
        for boxes, labels in truths:
            if (boxes[:, 2:] <= boxes[:, :2]).any():
                raise UsageError("Expected boxes with an area, got one without; do leave it out.")
            if labels.numel() and not 0 <= labels.min() <= labels.max() < self.shape.n_classes:
                raise UsageError(
                    f"Expected classes from 0 to {self.shape.n_classes - 1}, got "
                    f"{int(labels.min())} to {int(labels.max())}."
                )
        return self._loss(raw, truths)

    def detect(self, raw: dict[str, Any]) -> list[Found]:
        """Find objects: for each image boxes on the canvas, scores (best first) and classes.

        At most 100 an image, with scores above 0.01, after non-maximum suppression by class.
        """
        raise NotImplementedError

    def _raw(self, maps: list[Tensor]) -> dict[str, Any]:
        raise NotImplementedError

    def _loss(self, raw: dict[str, Any], truths: Sequence[Truth]) -> dict[str, Tensor]:
        raise NotImplementedError

    def _fitted(self, x: Tensor, place: int) -> Tensor:
        """Bring a map to the size that its stride says: convolutions may lose a border."""
        if x.ndim != 4:
            raise UsageError(
                f"Expected maps (n, channels, h, w), got a tensor of shape {tuple(x.shape)}; do "
                "take a convolutional backbone, such as torchvision/resnet18."
            )
        size = self.shape.grids[place]
        if tuple(x.shape[-2:]) == size:
            return x
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def _canvases(self, levels: Sequence[Tensor]) -> ImageList:
        """What torchvision asks of the images, which is their sizes."""
        n = levels[0].shape[0]
        return ImageList(levels[0].new_empty((n, 0, *self.shape.padded)), [self.shape.canvas] * n)


class TwoStage(BoxModule):
    """Faster R-CNN on a feature pyramid (Ren et al. 2015; Lin et al. 2017)."""

    def __init__(self, shape: BoxShape) -> None:
        super().__init__(shape)
        told = shape.options
        self.pyramid = pyramid_of(shape)
        anchors = anchor_maker(shape)
        each = anchors.num_anchors_per_location()[0]
        self.rpn_head = RPNHead(told["channels"], each, conv_depth=told["rpn_convs"])
        # Two that differ in how many they let through: torchvision's asks whether it is in
        # training. Both are without parameters.
        self.proposer = proposer_of(anchors, told["training_proposals"])
        self.finder = proposer_of(anchors, told["proposals"])
        self.roi = regions_of(shape)

    def _raw(self, maps: list[Tensor]) -> dict[str, Any]:
        levels = self.pyramid(_named(maps))
        objectness, deltas = self.rpn_head(list(levels.values()))
        return {
            "levels": OrderedDict((name, x.float()) for name, x in levels.items()),
            "objectness": [x.float() for x in objectness],
            "deltas": [x.float() for x in deltas],
        }

    def _loss(self, raw: dict[str, Any], truths: Sequence[Truth]) -> dict[str, Tensor]:
        targets = _targets(truths, background=1)
        flat = concat_box_prediction_layers(raw["objectness"], raw["deltas"])
        proposals, anchors = self._proposals(self.proposer, raw, flat)
        labels, matched = self.proposer.assign_targets_to_anchors(anchors, targets)
        wanted = self.proposer.box_coder.encode(matched, anchors)
        objectness, proposal_boxes = self.proposer.compute_loss(*flat, labels, wanted)
        chosen = self.roi.select_training_samples(proposals, targets)
        regions, _, region_labels, region_targets = chosen
        logits, deltas = self._regions(raw, regions)
        classes, boxes = fastrcnn_loss(logits, deltas, region_labels, region_targets)
        return {
            "objectness": objectness,
            "proposals": proposal_boxes,
            "classes": classes,
            "boxes": boxes,
        }

    def detect(self, raw: dict[str, Any]) -> list[Found]:
        """Find objects in every image."""
        flat = concat_box_prediction_layers(raw["objectness"], raw["deltas"])
        regions, _ = self._proposals(self.finder, raw, flat)
        logits, deltas = self._regions(raw, regions)
        sizes = [self.shape.canvas] * len(regions)
        found = self.roi.postprocess_detections(logits, deltas, regions, sizes)
        return [(boxes, scores, labels - 1) for boxes, scores, labels in zip(*found, strict=True)]

    def _proposals(
        self, proposer: RegionProposalNetwork, raw: dict[str, Any], flat: tuple[Tensor, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Regions to look at, and all anchors, of each image."""
        levels = list(raw["levels"].values())
        canvases = self._canvases(levels)
        anchors = proposer.anchor_generator(canvases, levels)
        boxes = proposer.box_coder.decode(flat[1].detach(), anchors)
        counts = [x[0].numel() for x in raw["objectness"]]
        boxes, _ = proposer.filter_proposals(
            boxes.view(len(anchors), -1, 4), flat[0], canvases.image_sizes, counts
        )
        return boxes, anchors

    def _regions(self, raw: dict[str, Any], regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        pooled = self.roi.box_roi_pool(raw["levels"], regions, [self.shape.padded])
        logits, deltas = self.roi.box_predictor(self.roi.box_head(pooled))
        return logits.float(), deltas.float()


class Dense(BoxModule):
    """RetinaNet and FCOS: every place of a pyramid answers (Lin et al. 2017; Tian et al. 2019)."""

    def __init__(self, shape: BoxShape) -> None:
        super().__init__(shape)
        self.pyramid = pyramid_of(shape)
        anchors = anchor_maker(shape)
        make = retinanet_of if shape.kind == "retinanet" else fcos_of
        self.net = make(shape, anchors)

    def _raw(self, maps: list[Tensor]) -> dict[str, Any]:
        levels = list(self.pyramid(_named(maps)).values())
        outputs = {name: x.float() for name, x in self.net.head(levels).items()}
        # Of the levels only their sizes are asked for.
        return {"outputs": outputs, "levels": [x[:, :0].float() for x in levels]}

    def _loss(self, raw: dict[str, Any], truths: Sequence[Truth]) -> dict[str, Tensor]:
        anchors = self.net.anchor_generator(self._canvases(raw["levels"]), raw["levels"])
        given: list[Any] = [_targets(truths, background=0), raw["outputs"], anchors]
        if self.shape.kind == "fcos":
            given.append(self._counts(raw))
        terms = self.net.compute_loss(*given)
        names = {"classification": "classes", "bbox_regression": "boxes", "bbox_ctrness": "centres"}
        return {names[name]: term for name, term in terms.items()}

    def detect(self, raw: dict[str, Any]) -> list[Found]:
        """Find objects in every image."""
        canvases = self._canvases(raw["levels"])
        anchors = self.net.anchor_generator(canvases, raw["levels"])
        counts = self._counts(raw)
        outputs = {name: list(x.split(counts, dim=1)) for name, x in raw["outputs"].items()}
        split = [list(a.split(counts)) for a in anchors]
        found = self.net.postprocess_detections(outputs, split, canvases.image_sizes)
        return [(one["boxes"], one["scores"], one["labels"]) for one in found]

    def _counts(self, raw: dict[str, Any]) -> list[int]:
        """Number of anchors of every level."""
        each = self.net.anchor_generator.num_anchors_per_location()
        return [x.shape[2] * x.shape[3] * a for x, a in zip(raw["levels"], each, strict=True)]


class SingleShot(BoxModule):
    """SSDLite: thin predictors on the backbone's own maps (Liu et al. 2016; Sandler et al. 2018).

    Normalised over groups of channels, where torchvision's is over the batch: its last maps have
    one place, of which a batch of one image has no statistics.
    """

    def __init__(self, shape: BoxShape) -> None:
        super().__init__(shape)
        widths = list(shape.widths)
        self.extra = nn.ModuleList()
        for i in range(shape.options["extra_levels"]):
            self.extra.append(halving(widths[-1], 256 if i < 2 else 128))
            widths.append(256 if i < 2 else 128)
        anchors = anchor_maker(shape)
        head = SSDLiteHead(
            widths, anchors.num_anchors_per_location(), shape.n_classes + 1, group_norm
        )
        self.net = SSD(
            nn.Identity(),
            anchors,
            shape.canvas,
            shape.n_classes + 1,
            head=head,
            score_thresh=LEAST_SCORE,
            nms_thresh=0.55,
            detections_per_img=MOST_FOUND,
            topk_candidates=shape.options["candidates"],
        )
        for module in self.extra.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.03)

    def _raw(self, maps: list[Tensor]) -> dict[str, Any]:
        levels = list(maps)
        for block in self.extra:
            levels.append(block(levels[-1]))
        outputs = {name: x.float() for name, x in self.net.head(levels).items()}
        return {"outputs": outputs, "levels": [x[:, :0].float() for x in levels]}

    def _loss(self, raw: dict[str, Any], truths: Sequence[Truth]) -> dict[str, Tensor]:
        targets = _targets(truths, background=1)
        anchors = self.net.anchor_generator(self._canvases(raw["levels"]), raw["levels"])
        matched = [
            self.net.proposal_matcher(box_iou(target["boxes"], each))
            if len(target["boxes"])
            else torch.full((len(each),), -1, dtype=torch.int64, device=each.device)
            for target, each in zip(targets, anchors, strict=True)
        ]
        terms = self.net.compute_loss(targets, raw["outputs"], anchors, matched)
        return {"classes": terms["classification"], "boxes": terms["bbox_regression"]}

    def detect(self, raw: dict[str, Any]) -> list[Found]:
        """Find objects in every image."""
        canvases = self._canvases(raw["levels"])
        anchors = self.net.anchor_generator(canvases, raw["levels"])
        found = self.net.postprocess_detections(raw["outputs"], anchors, canvases.image_sizes)
        return [(one["boxes"], one["scores"], one["labels"] - 1) for one in found]


def build(shape: BoxShape) -> BoxModule:
    """Make the module of a shape; its numbers come from torch's default generator."""
    if shape.kind == "faster-rcnn":
        return TwoStage(shape)
    return SingleShot(shape) if shape.kind == "ssdlite" else Dense(shape)


def _named(maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
    return OrderedDict((str(i), x) for i, x in enumerate(maps))


def _targets(truths: Sequence[Truth], *, background: int) -> list[dict[str, Tensor]]:
    return [{"boxes": b.float(), "labels": labels + background} for b, labels in truths]
