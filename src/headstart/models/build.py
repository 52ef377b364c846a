"""A model that has learned nothing yet: a backbone with a head that fits the data.

What every method starts from; the data's kind decides the task, its sizes the canvas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset, Kind
from headstart.data.images import shown_size
from headstart.data.loader import load_boxes
from headstart.data.transforms.preprocess import canvas_for
from headstart.errors import UnknownNameError, UsageError
from headstart.models.heads.detection import BoxHead
from headstart.models.heads.pretrained import is_published, names, open_head, split
from headstart.models.heads.segmentation import MaskHead
from headstart.models.tasks import ClassificationTask, DetectionTask, SegmentationTask
from headstart.models.transfer_model import TransferModel

__all__ = ["HEADS", "LONG_SIDE", "create_model"]

HEADS: Mapping[str, tuple[str, ...]] = {
    "detection": ("faster-rcnn", "retinanet", "fcos", "ssdlite"),
    "segmentation": ("unet", "unetplusplus", "deeplabv3plus", "fpn", "deeplabv3"),
}
"""Heads on maps by task; the first is taken where none is named."""

LONG_SIDE = 320
"""Pixels of the longer side where boxes or masks are learned and no size is given."""


def create_model(
    backbone: FrozenBackbone,
    data: Dataset,
    *,
    head: str = "auto",
    size: int = 0,
    seed: int = 0,
    record: Mapping[str, Any] | None = None,
    offline: bool | None = None,
) -> TransferModel:
    """Make a model that has learned nothing yet: what every method starts from.

    Parameters
    ----------
    backbone : FrozenBackbone
    data : Dataset
        What will be learned from: its kind decides the task, its boxes the anchors.
    head : str
        For boxes ``faster-rcnn``, ``retinanet``, ``fcos`` or ``ssdlite``; for masks ``unet``,
        ``unetplusplus``, ``deeplabv3plus``, ``fpn`` or ``deeplabv3``; by default the first. It may
        carry options of its kind: ``faster-rcnn?channels=64&first_stride=8``. Or a published one
        (see ``heads.published``), which brings its own backbone, trained with it.
    size : int
        Longer side of images of boxes and masks, rounded up to a multiple of 32; 0 is 320.
    seed : int
        Of the head.
    record : mapping, optional
    offline : bool, optional
        Fetch no published head; by default the environment says so (``HEADSTART_OFFLINE``).

    Raises
    ------
    UsageError
        If the head is none for this task, or the backbone gives no maps that it can read.
    WeightsNotFoundError, WeightsMismatchError
        If a published head is in no place, or is another file.
    """
    noted: dict[str, Any] = dict(record or {})
    if not data.is_dense:
        if head != "auto" or size:
            raise UsageError(
                "Expected a head and a size for boxes or masks only, got one for classes; do name "
                "the backbone's crop instead, such as ?crop=288."
            )
        return TransferModel(
            backbone=backbone,
            task=ClassificationTask(classes=data.classes, kind=data.kind),
            record=noted,
        )
    kind, options = _named_head(head, data.kind)
    sizes = [shown_size(sample.image) for sample in data.samples]
    backbone = backbone.on_canvas(canvas_for(sizes, size or LONG_SIDE))
    boxes = _boxes(backbone, data) if data.kind == "detection" else None
    if is_published(kind):
        backbone, found = open_head(
            kind, backbone, data.classes, boxes=boxes, seed=seed, offline=offline, options=options
        )
    else:
        draw = MaskHead.random if boxes is None else partial(BoxHead.fitted, boxes=boxes)
        found = draw(
            backbone.module.stages,
            len(data.classes),
            kind=kind,
            canvas=backbone.spec.preprocess.shape,
            seed=seed,
            **options,
        )
    if boxes is None:
        task: Any = SegmentationTask(classes=data.classes)
    else:
        task = DetectionTask(classes=data.classes)
        if (reached := found.reach(boxes)) is not None:  # FCOS has no anchors
            noted["anchors_reach"] = reached
    return TransferModel(backbone=backbone, task=task, head=found, record=noted)


def _boxes(backbone: FrozenBackbone, data: Dataset) -> NDArray[np.float32]:
    """All boxes on the canvas that are learned, without the hard ones; shape (n, 4)."""
    truths = [load_boxes(s, backbone.spec.preprocess, data.classes) for s in data.samples]
    return np.concatenate([truth.boxes[~truth.hard] for truth in truths])


def _named_head(text: str, kind: Kind) -> tuple[str, dict[str, Any]]:
    """Kind and options of a head's name.

    >>> _named_head("faster-rcnn?channels=64&sizes=[[16],[32]]", "detection")
    ('faster-rcnn', {'channels': 64, 'sizes': ((16,), (32,))})
    """
    name, query = split(text)
    heads = HEADS[kind]
    if name not in {"auto", *heads} and not is_published(name):
        raise UnknownNameError(f"head for {kind}", name, (*heads, *names(kind)))
    options = {key: _plain(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    return heads[0] if name == "auto" else name, options


def _plain(text: str) -> Any:
    """A number, a list of such as tuples, or the text itself."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    try:
        return frozen(json.loads(text))
    except ValueError:
        return text
