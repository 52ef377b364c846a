"""Modules of the detection heads, built from torchvision's parts by a shape."""

from __future__ import annotations

import math
import sys
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
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou, nms
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation

from headstart.errors import UsageError
from headstart.models.heads.detection_config import BoxSelection, BoxShape
from headstart.models.heads.ignored_boxes import (
    IgnoringFCOSHead,
    IgnoringRetinaNetHead,
    drop_ignored_proposals,
    ignored_anchors,
    mask_background,
)

__all__ = [
    "BoxModule",
    "Truth",
    "anchors_on",
    "build",
    "build_anchor_generator",
    "build_downsampling_block",
    "build_fcos",
    "build_proposal_network",
    "build_pyramid",
    "build_region_head",
    "build_retinanet",
    "group_norm",
]

MIN_SCORE = 0.01
LOW_ANCHOR_IOU = 0.3  # below it an anchor is background for the proposal network
MIN_REGION_IOU = 0.5  # from it on a region matches an object
DEFAULT_SELECTION = BoxSelection()
MAX_DETECTIONS = DEFAULT_SELECTION.max_boxes

Truth = tuple[Tensor, Tensor]
"""Boxes (k, 4) on the canvas and their class indices (k,)."""
DetectedObjects = tuple[Tensor, Tensor, Tensor]
"""Boxes (k, 4) on the canvas, scores (k,) and class indices (k,)."""


def anchors_on(shape: BoxShape) -> Tensor:
    """All anchors on the canvas, (n, 4), in float32."""
    levels = [torch.empty((1, 0, *grid)) for grid in shape.grids]
    canvas = ImageList(torch.empty((1, 0, *shape.padded)), [shape.canvas])
    anchors: Tensor = build_anchor_generator(shape)(canvas, levels)[0]
    return anchors


class _CentredAnchorGenerator(AnchorGenerator):  # type: ignore[misc]
    """Anchors at the centre of their cells.

    Torchvision puts them at the top left corner: on a map of one cell they would miss most
    objects.
    """

    def grid_anchors(
        self, grid_sizes: list[list[int]], strides: list[list[Tensor]]
    ) -> list[Tensor]:
        corner_anchors = super().grid_anchors(grid_sizes, strides)
        offsets = [torch.stack([x, y, x, y]) / 2 for y, x in strides]
        return [anchors + offset for anchors, offset in zip(corner_anchors, offsets, strict=True)]


class _NoBackbone(nn.Identity):
    """Placeholder for the backbone that torchvision's classes require."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels


def build_anchor_generator(shape: BoxShape) -> AnchorGenerator:
    """Build the anchor generator for all levels."""
    generator = _CentredAnchorGenerator if shape.kind == "ssdlite" else AnchorGenerator
    return generator(shape.sizes, (shape.ratios,) * len(shape.sizes))


def build_pyramid(shape: BoxShape) -> FeaturePyramidNetwork:
    """Build a feature pyramid (Lin et al. 2017, Feature pyramid networks, figure 3)."""
    options = shape.options
    channels, extra = options["channels"], options.get("extra", "pool")
    if extra == "pool":
        top: nn.Module = LastLevelMaxPool()
    else:
        top = LastLevelP6P7(channels if extra == "p6p7" else shape.widths[-1], channels)
    norm = nn.BatchNorm2d if options.get("norm") == "batch" else None
    return FeaturePyramidNetwork(list(shape.widths), channels, top, norm)


def build_proposal_network(
    anchors: AnchorGenerator, limits: tuple[int, int]
) -> RegionProposalNetwork:
    """Build the region proposal network.

    ``limits`` are the proposals of a level before non-maximum suppression, and of an image after.
    """
    before, after = (dict.fromkeys(("training", "testing"), limit) for limit in limits)
    return RegionProposalNetwork(
        anchors, nn.Identity(), 0.7, LOW_ANCHOR_IOU, 256, 0.5, before, after, 0.7
    )


def build_region_head(shape: BoxShape) -> RoIHeads:
    """Build the head on regions: pooling, layers, and outputs for each class."""
    options = shape.options
    channels, side, width = options["channels"], options["pooled"], options["width"]
    norm = nn.BatchNorm2d if options["norm"] == "batch" else None
    if options["box_convs"]:
        convs = [channels] * options["box_convs"]
        head: nn.Module = FastRCNNConvFCHead((channels, side, side), convs, [width], norm)
    else:
        head = TwoMLPHead(channels * side**2, width)
    return RoIHeads(
        MultiScaleRoIAlign([str(i) for i in range(len(shape.widths))], side, sampling_ratio=2),
        head,
        FastRCNNPredictor(width, shape.n_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=options["regions"],
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=MIN_SCORE,
        nms_thresh=0.5,
        detections_per_img=MAX_DETECTIONS,
    )


def build_retinanet(shape: BoxShape, anchors: AnchorGenerator) -> RetinaNet:
    """Build a RetinaNet without backbone and pyramid (Lin et al. 2017, Focal loss)."""
    options = shape.options
    norm = partial(nn.GroupNorm, 32) if options["norm"] == "group" else None
    n_anchors = anchors.num_anchors_per_location()[0]
    head = IgnoringRetinaNetHead(options["channels"], n_anchors, shape.n_classes, norm_layer=norm)
    for tower in (head.classification_head, head.regression_head):
        blocks = list(tower.conv)[: options["convs"]]  # torchvision builds four
        n_missing = options["convs"] - len(blocks)
        blocks += [_tower_block(options["channels"], norm) for _ in range(n_missing)]
        tower.conv = nn.Sequential(*blocks)
    head.canvas = shape.canvas
    head.regression_head._loss_type = options["box_loss"]  # as torchvision's own builder sets it
    return RetinaNet(
        _NoBackbone(options["channels"]),
        shape.n_classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=MIN_SCORE,
        detections_per_img=MAX_DETECTIONS,
        topk_candidates=options["candidates"],
    )


def _tower_block(channels: int, norm: Any) -> nn.Module:
    block: nn.Module = Conv2dNormActivation(channels, channels, norm_layer=norm)
    nn.init.normal_(block[0].weight, std=0.01)  # type: ignore[index]
    return block


def build_fcos(shape: BoxShape, anchors: AnchorGenerator) -> FCOS:
    """Build an FCOS without backbone and pyramid (Tian et al. 2019)."""
    options = shape.options
    return FCOS(
        _NoBackbone(options["channels"]),
        shape.n_classes,
        anchor_generator=anchors,
        head=IgnoringFCOSHead(options["channels"], 1, shape.n_classes, num_convs=options["convs"]),
        score_thresh=MIN_SCORE,
        detections_per_img=MAX_DETECTIONS,
        topk_candidates=options["candidates"],
    )


def build_downsampling_block(channels: int, width: int) -> nn.Sequential:
    """Halve a map as SSDLite does: reduce channels, depth-wise stride 2, expand channels."""
    block = partial(Conv2dNormActivation, norm_layer=group_norm, activation_layer=nn.ReLU6)
    narrow = width // 2
    return nn.Sequential(
        block(channels, narrow, kernel_size=1),
        block(narrow, narrow, kernel_size=3, stride=2, groups=narrow),
        block(narrow, width, kernel_size=1),
    )


def group_norm(channels: int) -> nn.GroupNorm:
    """Build a GroupNorm of at most 32 equal groups of at least 4 channels, else of one group."""
    n_groups = max(math.gcd(channels // 4, 32), 1) if channels % 4 == 0 else 1
    return nn.GroupNorm(n_groups, channels)


class BoxModule(nn.Module):
    """Base class of the modules of detection heads; ``build`` builds one.

    Parameters
    ----------
    shape : BoxShape
    """

    def __init__(self, shape: BoxShape) -> None:
        super().__init__()
        self.shape = shape
        self._own_nms: float | None = None

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Any]:
        """Compute the raw outputs for ``loss`` and ``detect``, in float32.

        Parameters
        ----------
        maps : sequence of tensor
            One (n, channels, h, w) for each of the shape's strides.
        """
        return self._raw_outputs([self._resize_to_grid(x, i) for i, x in enumerate(maps)])

    def loss(
        self,
        raw: dict[str, Any],
        truths: Sequence[Truth],
        ignored: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the terms of the loss: scalars, to be summed.

        Parameters
        ----------
        raw : dict
            Of ``forward``.
        truths : sequence of (boxes, labels)
            For each image boxes (k, 4) on the canvas and classes (k,) from 0; k may be 0.
        ignored : sequence of tensor, optional
            For each image boxes (m, 4) of crowds and difficult objects. What lies in them, and
            matches no box of ``truths``, is not part of the loss.

        Raises
        ------
        UsageError
            If a box has no area, or a class does not exist.
        """
        for boxes, labels in truths:
            is_empty = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
            if is_empty.any():
                raise UsageError(
                    f"Expected boxes with an area, got {boxes[is_empty][0].tolist()}. Remove this "
                    "box."
                )
            if labels.numel() and not 0 <= labels.min() <= labels.max() < self.shape.n_classes:
                raise UsageError(
                    f"Expected classes from 0 to {self.shape.n_classes - 1}, got "
                    f"{int(labels.min())} to {int(labels.max())}."
                )
        return self._loss_terms(raw, truths, ignored or [boxes[:0] for boxes, _ in truths])

    def detect(
        self, raw: dict[str, Any], selection: BoxSelection = DEFAULT_SELECTION
    ) -> list[DetectedObjects]:
        """Detect objects: for each image boxes on the canvas, scores and classes, best first.

        Scores are above 0.01. ``selection`` sets the non-maximum suppression and the largest
        number of boxes; by default at most 100, suppressed by class.
        """
        self._select_by(selection)
        detected = self._detections(raw)
        if not selection.class_agnostic_nms:
            return detected
        overlap, limit = self._nms_overlap(selection), selection.max_boxes
        kept = [nms(boxes, scores, overlap)[:limit] for boxes, scores, _ in detected]
        return [
            (boxes[rows], scores[rows], labels[rows])
            for (boxes, scores, labels), rows in zip(detected, kept, strict=True)
        ]

    def _nms_overlap(self, selection: BoxSelection) -> float:
        if self._own_nms is None:  # as the head was built
            self._own_nms = float(self._post_processor().nms_thresh)
        return self._own_nms if selection.nms is None else selection.nms

    def _select_by(self, selection: BoxSelection) -> None:
        """Set the suppression of torchvision's part; for all classes together it keeps all."""
        overlap, part = self._nms_overlap(selection), self._post_processor()
        part.nms_thresh = 1.0 if selection.class_agnostic_nms else overlap
        part.detections_per_img = (
            sys.maxsize if selection.class_agnostic_nms else selection.max_boxes
        )

    def _post_processor(self) -> Any:
        """Torchvision's part that suppresses boxes."""
        raise NotImplementedError

    def _detections(self, raw: dict[str, Any]) -> list[DetectedObjects]:
        raise NotImplementedError

    def _raw_outputs(self, maps: list[Tensor]) -> dict[str, Any]:
        raise NotImplementedError

    def _loss_terms(
        self, raw: dict[str, Any], truths: Sequence[Truth], ignored: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        raise NotImplementedError

    def _resize_to_grid(self, x: Tensor, level: int) -> Tensor:
        """Resize a map to the size of its level: convolutions without padding lose a border."""
        if x.ndim != 4:
            raise UsageError(
                f"Expected maps (n, channels, h, w), got a tensor of shape {tuple(x.shape)}. "
                "Choose a convolutional backbone, such as --backbone torchvision/resnet18."
            )
        size = self.shape.grids[level]
        if tuple(x.shape[-2:]) == size:
            return x
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def _image_list(self, levels: Sequence[Tensor]) -> ImageList:
        """Images without channels: torchvision reads only their number and size."""
        n = levels[0].shape[0]
        return ImageList(levels[0].new_empty((n, 0, *self.shape.padded)), [self.shape.canvas] * n)


class TwoStage(BoxModule):
    """Faster R-CNN on a feature pyramid (Ren et al. 2015; Lin et al. 2017)."""

    def __init__(self, shape: BoxShape) -> None:
        super().__init__(shape)
        options = shape.options
        self.pyramid = build_pyramid(shape)
        anchors = build_anchor_generator(shape)
        n_anchors = anchors.num_anchors_per_location()[0]
        self.rpn_head = RPNHead(options["channels"], n_anchors, conv_depth=options["rpn_convs"])
        # Two proposal networks without parameters that differ in the number of proposals.
        # Torchvision's chooses it by `self.training`; here `loss` and `detect` choose.
        self.training_rpn = build_proposal_network(anchors, options["training_proposals"])
        self.inference_rpn = build_proposal_network(anchors, options["proposals"])
        self.roi = build_region_head(shape)

    def _raw_outputs(self, maps: list[Tensor]) -> dict[str, Any]:
        levels = self.pyramid(_by_level(maps))
        objectness, deltas = self.rpn_head(list(levels.values()))
        return {
            "levels": OrderedDict((name, x.float()) for name, x in levels.items()),
            "objectness": [x.float() for x in objectness],
            "deltas": [x.float() for x in deltas],
        }

    def _loss_terms(
        self, raw: dict[str, Any], truths: Sequence[Truth], ignored: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        targets = _to_targets(truths, ignored, background=1)
        flat = concat_box_prediction_layers(raw["objectness"], raw["deltas"])
        proposals, anchors = self._propose_regions(self.training_rpn, raw, flat)
        objectness, proposal_boxes = self._proposal_losses(flat, anchors, targets)
        proposals = drop_ignored_proposals(proposals, targets, MIN_REGION_IOU, self.shape.canvas)
        samples = self.roi.select_training_samples(proposals, targets)
        regions, _, region_labels, region_targets = samples
        if any(map(len, regions)):
            logits, deltas = self._classify_regions(raw, regions)
            classes, boxes = fastrcnn_loss(logits, deltas, region_labels, region_targets)
        else:  # ignored boxes cover every region of the batch: a mean over none would be NaN
            classes = boxes = flat[0].sum() * 0
        return {
            "objectness": objectness,
            "proposals": proposal_boxes,
            "classes": classes,
            "boxes": boxes,
        }

    def _proposal_losses(
        self, flat: tuple[Tensor, Tensor], anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Losses of the proposal network: of objectness and of boxes."""
        rpn = self.training_rpn
        labels, matched_boxes = rpn.assign_targets_to_anchors(anchors, targets)
        for own, label, target in zip(anchors, labels, targets, strict=True):
            unused = ignored_anchors(own, target["ignored"], LOW_ANCHOR_IOU, self.shape.canvas)
            label[unused & (label == 0)] = -1.0
        if not any(bool((label >= 0).any()) for label in labels):
            return flat[0].sum() * 0, flat[1].sum() * 0
        target_deltas = rpn.box_coder.encode(matched_boxes, anchors)
        objectness, boxes = rpn.compute_loss(*flat, labels, target_deltas)
        return objectness, boxes

    def _post_processor(self) -> Any:
        return self.roi

    def _detections(self, raw: dict[str, Any]) -> list[DetectedObjects]:
        flat = concat_box_prediction_layers(raw["objectness"], raw["deltas"])
        regions, _ = self._propose_regions(self.inference_rpn, raw, flat)
        logits, deltas = self._classify_regions(raw, regions)
        sizes = [self.shape.canvas] * len(regions)
        outputs = self.roi.postprocess_detections(logits, deltas, regions, sizes)
        # Label 0 of torchvision is the background.
        return [(boxes, scores, labels - 1) for boxes, scores, labels in zip(*outputs, strict=True)]

    def _propose_regions(
        self, rpn: RegionProposalNetwork, raw: dict[str, Any], flat: tuple[Tensor, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Proposed regions, and all anchors, of each image."""
        levels = list(raw["levels"].values())
        images = self._image_list(levels)
        anchors = rpn.anchor_generator(images, levels)
        boxes = rpn.box_coder.decode(flat[1].detach(), anchors)
        counts = [x[0].numel() for x in raw["objectness"]]
        boxes, _ = rpn.filter_proposals(
            boxes.view(len(anchors), -1, 4), flat[0], images.image_sizes, counts
        )
        return boxes, anchors

    def _classify_regions(
        self, raw: dict[str, Any], regions: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Class logits and box deltas of the regions."""
        pooled = self.roi.box_roi_pool(raw["levels"], regions, [self.shape.padded])
        logits, deltas = self.roi.box_predictor(self.roi.box_head(pooled))
        return logits.float(), deltas.float()


class Dense(BoxModule):
    """RetinaNet and FCOS: predictions at every cell (Lin et al. 2017; Tian et al. 2019)."""

    def __init__(self, shape: BoxShape) -> None:
        super().__init__(shape)
        self.pyramid = build_pyramid(shape)
        anchors = build_anchor_generator(shape)
        build_net = build_retinanet if shape.kind == "retinanet" else build_fcos
        self.net = build_net(shape, anchors)

    def _raw_outputs(self, maps: list[Tensor]) -> dict[str, Any]:
        levels = list(self.pyramid(_by_level(maps)).values())
        outputs = {name: x.float() for name, x in self.net.head(levels).items()}
        # Anchors need only the sizes of the levels: keep no channels.
        return {"outputs": outputs, "levels": [x[:, :0].float() for x in levels]}

    def _loss_terms(
        self, raw: dict[str, Any], truths: Sequence[Truth], ignored: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        anchors = self.net.anchor_generator(self._image_list(raw["levels"]), raw["levels"])
        targets = _to_targets(truths, ignored, background=0)
        arguments: list[Any] = [targets, raw["outputs"], anchors]
        if self.shape.kind == "fcos":
            arguments.append(self._anchor_counts(raw))
        terms = self.net.compute_loss(*arguments)
        names = {"classification": "classes", "bbox_regression": "boxes", "bbox_ctrness": "centres"}
        return {names[name]: term for name, term in terms.items()}

    def _post_processor(self) -> Any:
        return self.net

    def _detections(self, raw: dict[str, Any]) -> list[DetectedObjects]:
        images = self._image_list(raw["levels"])
        anchors = self.net.anchor_generator(images, raw["levels"])
        counts = self._anchor_counts(raw)
        outputs = {name: list(x.split(counts, dim=1)) for name, x in raw["outputs"].items()}
        level_anchors = [list(image_anchors.split(counts)) for image_anchors in anchors]
        detections = self.net.postprocess_detections(outputs, level_anchors, images.image_sizes)
        return [(d["boxes"], d["scores"], d["labels"]) for d in detections]

    def _anchor_counts(self, raw: dict[str, Any]) -> list[int]:
        """Number of anchors of every level."""
        per_cell = self.net.anchor_generator.num_anchors_per_location()
        levels = raw["levels"]
        return [x.shape[2] * x.shape[3] * n for x, n in zip(levels, per_cell, strict=True)]


class SingleShot(BoxModule):
    """SSDLite: light predictors on the backbone's maps (Liu et al. 2016; Sandler et al. 2018).

    Uses group normalisation instead of torchvision's batch normalisation: the last maps have one
    cell, so a batch of one image has no batch statistics.
    """

    def __init__(self, shape: BoxShape) -> None:
        super().__init__(shape)
        widths = list(shape.widths)
        self.extra = nn.ModuleList()
        for i in range(shape.options["extra_levels"]):
            self.extra.append(build_downsampling_block(widths[-1], 256 if i < 2 else 128))
            widths.append(256 if i < 2 else 128)
        anchors = build_anchor_generator(shape)
        head = SSDLiteHead(
            widths, anchors.num_anchors_per_location(), shape.n_classes + 1, group_norm
        )
        self.net = SSD(
            nn.Identity(),
            anchors,
            shape.canvas,
            shape.n_classes + 1,
            head=head,
            score_thresh=MIN_SCORE,
            nms_thresh=0.55,
            detections_per_img=MAX_DETECTIONS,
            topk_candidates=shape.options["candidates"],
        )
        for module in self.extra.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.03)

    def _raw_outputs(self, maps: list[Tensor]) -> dict[str, Any]:
        levels = list(maps)
        for block in self.extra:
            levels.append(block(levels[-1]))
        outputs = {name: x.float() for name, x in self.net.head(levels).items()}
        return {"outputs": outputs, "levels": [x[:, :0].float() for x in levels]}

    def _loss_terms(
        self, raw: dict[str, Any], truths: Sequence[Truth], ignored: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        targets = _to_targets(truths, ignored, background=1)
        anchors = self.net.anchor_generator(self._image_list(raw["levels"]), raw["levels"])
        # For each image, the box of each anchor; -1 marks background.
        matches = [
            self.net.proposal_matcher(box_iou(target["boxes"], image_anchors))
            if len(target["boxes"])
            else torch.full(
                (len(image_anchors),), -1, dtype=torch.int64, device=image_anchors.device
            )
            for target, image_anchors in zip(targets, anchors, strict=True)
        ]
        logits = [
            mask_background(
                image_logits,
                (match < 0)
                & ignored_anchors(own, target["ignored"], MIN_REGION_IOU, self.shape.canvas),
            )
            if len(target["ignored"])
            else image_logits
            for image_logits, match, own, target in zip(
                raw["outputs"]["cls_logits"], matches, anchors, targets, strict=True
            )
        ]
        outputs = {**raw["outputs"], "cls_logits": torch.stack(logits)}
        terms = self.net.compute_loss(targets, outputs, anchors, matches)
        return {"classes": terms["classification"], "boxes": terms["bbox_regression"]}

    def _post_processor(self) -> Any:
        return self.net

    def _detections(self, raw: dict[str, Any]) -> list[DetectedObjects]:
        images = self._image_list(raw["levels"])
        anchors = self.net.anchor_generator(images, raw["levels"])
        detections = self.net.postprocess_detections(raw["outputs"], anchors, images.image_sizes)
        # Label 0 of torchvision is the background.
        return [(d["boxes"], d["scores"], d["labels"] - 1) for d in detections]


def build(shape: BoxShape) -> BoxModule:
    """Build the module of a shape, initialised from torch's default random generator."""
    if shape.kind == "faster-rcnn":
        return TwoStage(shape)
    return SingleShot(shape) if shape.kind == "ssdlite" else Dense(shape)


def _by_level(maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
    """Maps by their index as text, as torchvision's pyramid and region pooling read them."""
    return OrderedDict((str(i), x) for i, x in enumerate(maps))


def _to_targets(
    truths: Sequence[Truth], ignored: Sequence[Tensor], *, background: int
) -> list[dict[str, Tensor]]:
    """Truths as torchvision reads them; ``background`` is 1 where label 0 is the background."""
    return [
        {"boxes": boxes.float(), "labels": labels + background, "ignored": unused.float()}
        for (boxes, labels), unused in zip(truths, ignored, strict=True)
    ]
