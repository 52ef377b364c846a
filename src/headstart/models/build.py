"""Build an untrained model: a backbone with a head that fits the data.

Every method starts from such a model. The kind of the data decides the task, the sizes of the
images decide the canvas (the size that images are resized to).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.spec import Stage
from headstart.data.dataset import Dataset, Kind
from headstart.data.image_sizes import upright_size
from headstart.data.loader import load_boxes
from headstart.data.transforms.placement import canvas_for
from headstart.errors import UnknownNameError, UsageError
from headstart.models.heads.detection import BoxHead
from headstart.models.heads.detection_config import (
    DETECTION_HEADS,
    BoxSelection,
    lists_to_tuples,
)
from headstart.models.heads.linear import LinearHead
from headstart.models.heads.pretrained import (
    is_published,
    open_head,
    published_heads,
    split_options,
)
from headstart.models.heads.segmentation import MaskHead
from headstart.models.heads.segmentation_config import SEGMENTATION_HEADS
from headstart.models.tasks import ClassificationTask, DetectionTask, SegmentationTask, Task
from headstart.models.transfer_model import TransferModel

__all__ = ["HEADS", "LONG_SIDE", "create_model"]

HEADS: Mapping[str, tuple[str, ...]] = {
    "classification": (LinearHead.kind,),
    "detection": tuple(DETECTION_HEADS),
    "segmentation": tuple(SEGMENTATION_HEADS),
}
"""Kinds of heads by task; the first is the default."""

LONG_SIDE = 320
"""Pixels of the longer side of images for detection and segmentation if no size is given."""


def create_model(
    backbone: FrozenBackbone,
    data: Dataset,
    *,
    head: str = "auto",
    size: int = 0,
    seed: int = 0,
    record: Mapping[str, Any] | None = None,
    offline: bool | None = None,
    selection: BoxSelection | None = None,
) -> TransferModel:
    """Build an untrained model, which every method starts from.

    Parameters
    ----------
    backbone : FrozenBackbone
    data : Dataset
        Training data: their kind decides the task, their boxes the anchors.
    head : str
        For boxes ``faster-rcnn``, ``retinanet``, ``fcos`` or ``ssdlite``; for masks ``unet``,
        ``unetplusplus``, ``deeplabv3plus``, ``fpn`` or ``deeplabv3``; by default the first. It may
        carry options of its kind: ``faster-rcnn?channels=64&first_stride=8``. Or a published head
        (see ``headstart.models.heads.pretrained``), which includes the backbone that it was
        trained with.
    size : int
        Detection and segmentation only: longer side of the resized images, rounded up to a
        multiple of 32; 0 is 320.
    seed : int
        Of the head.
    record : mapping, optional
    offline : bool, optional
        Download no published head; by default from the environment (``HEADSTART_OFFLINE``).
    selection : BoxSelection, optional
        Detection only: non-maximum suppression and the largest number of boxes for an image.

    Raises
    ------
    UsageError
        If the head is not for this task, or the backbone gives no maps that it can read.
    WeightsNotFoundError, WeightsMismatchError
        If the file of a published head is not found, or is not the expected one.
    """
    record = dict(record or {})
    if not data.is_dense:
        if head != "auto" or size:
            raise UsageError(
                f"A head and a size are for boxes and masks, but the data have classes; got head "
                f"{head!r} and size {size}. Leave them out. To change the size of the images, "
                "pass the backbone's crop, such as --backbone 'NAME?crop=288'."
            )
        return TransferModel(
            backbone=backbone,
            task=ClassificationTask(classes=data.classes, kind=data.kind),
            record=record,
        )
    kind, options = _parse_head(head, data.kind)
    sizes = [upright_size(sample.image) for sample in data.samples]
    backbone = backbone.on_canvas(canvas_for(sizes, size or LONG_SIDE))
    boxes = _load_training_boxes(backbone, data) if data.kind == "detection" else None
    new_head: BoxHead | MaskHead
    if is_published(kind):
        backbone, new_head = open_head(
            kind, backbone, data.classes, boxes=boxes, seed=seed, offline=offline, options=options
        )
    else:
        make_head: _MakeHead = MaskHead.random
        if boxes is not None:
            make_head = partial(BoxHead.with_fitted_anchors, boxes=boxes)
        new_head = make_head(
            backbone.module.stages,
            len(data.classes),
            kind=kind,
            canvas=backbone.spec.preprocess.shape,
            seed=seed,
            **options,
        )
    task: Task = SegmentationTask(classes=data.classes)
    if boxes is not None and isinstance(new_head, BoxHead):
        task = DetectionTask(classes=data.classes, selection=selection or BoxSelection())
        if (recall := new_head.anchor_recall(boxes)) is not None:  # FCOS has no anchors
            record["anchors_reach"] = recall
    return TransferModel(backbone=backbone, task=task, head=new_head, record=record)


class _MakeHead(Protocol):
    """``MaskHead.random``, or ``BoxHead.with_fitted_anchors`` with the boxes filled in."""

    def __call__(
        self,
        stages: Sequence[Stage],
        n_classes: int,
        *,
        kind: str,
        canvas: tuple[int, int],
        seed: int,
        **options: Any,
    ) -> BoxHead | MaskHead: ...


def _load_training_boxes(backbone: FrozenBackbone, data: Dataset) -> NDArray[np.float32]:
    """All boxes on the canvas that are trained on, without the hard ones; shape (n, 4)."""
    truths = [load_boxes(s, backbone.spec.preprocess, data.classes) for s in data.samples]
    return np.concatenate([truth.boxes[~truth.hard] for truth in truths])


def _parse_head(text: str, kind: Kind) -> tuple[str, dict[str, Any]]:
    """Kind and options of a head's name.

    >>> _parse_head("faster-rcnn?channels=64&sizes=[[16],[32]]", "detection")
    ('faster-rcnn', {'channels': 64, 'sizes': ((16,), (32,))})
    """
    name, query = split_options(text)
    heads = HEADS[kind]
    if name not in {"auto", *heads} and not is_published(name):
        raise UnknownNameError(f"head for {kind}", name, (*heads, *published_heads(kind)))
    options = {key: _parse_option(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    return heads[0] if name == "auto" else name, options


def _parse_option(text: str) -> Any:
    """A number, a list of numbers as a tuple, or the text itself."""
    try:
        return lists_to_tuples(json.loads(text))
    except ValueError:
        return text
