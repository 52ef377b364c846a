"""Modules of the detectors' heads: torchvision's parts on our maps, without its trunk or transform.

Neither ``loss`` nor ``detect`` asks whether the module is in training: the same raw outputs can
be judged by both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import box_iou

from headstart.errors import UsageError
from headstart.heads.box_parts import (
    LEAST_SCORE,
    MOST_FOUND,
    anchor_maker,
    fcos_of,
    group_norm,
    halving,
    proposer_of,
    pyramid_of,
    regions_of,
    retinanet_of,
)
from headstart.heads.box_shape import BoxShape

__all__ = ["BoxModule", "Truth", "build"]

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
            For each picture boxes (k, 4) on the canvas and classes (k,) from 0; k may be 0.

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
        """Find objects: for each picture boxes on the canvas, scores (best first) and classes.

        At most 100 a picture, with scores above 0.01, after non-maximum suppression by class.
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
        """What torchvision asks of the pictures, which is their sizes."""
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
        """Find objects in every picture."""
        flat = concat_box_prediction_layers(raw["objectness"], raw["deltas"])
        regions, _ = self._proposals(self.finder, raw, flat)
        logits, deltas = self._regions(raw, regions)
        sizes = [self.shape.canvas] * len(regions)
        found = self.roi.postprocess_detections(logits, deltas, regions, sizes)
        return [(boxes, scores, labels - 1) for boxes, scores, labels in zip(*found, strict=True)]

    def _proposals(
        self, proposer: RegionProposalNetwork, raw: dict[str, Any], flat: tuple[Tensor, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Regions to look at, and all anchors, of each picture."""
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
        """Find objects in every picture."""
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
    one place, of which a batch of one picture has no statistics.
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
        """Find objects in every picture."""
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
