"""Detection and segmentation on images, in the images' own coordinates.

Every image is resized to the canvas as a whole (``Preprocess.canvas``), and predictions are mapped
back to the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import freeze
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import CLASSES_SHOWN, Sample, brief, html_table
from headstart.data.image_sizes import upright_size
from headstart.data.images import Pixels, decode
from headstart.data.loader import load_batch, map_bounded
from headstart.data.transforms.placement import Placement
from headstart.data.transforms.tiling import blend, tiles
from headstart.errors import UsageError
from headstart.models.heads.detection_config import BoxSelection
from headstart.models.heads.head import Head
from headstart.runtime import cores, device, use_one_thread

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Detections", "Network", "Segmentation", "build_network", "detect", "segment"]

BATCH_SIZE = 8

MAX_LOGITS = 50_000_000
"""Maximum number of values of one image's enlarged logits. For a larger image the mask is enlarged
instead of the logits, to save memory."""

Decode = Callable[[Any, "list[Tensor]"], list[Any]]
"""From a head's module and the backbone's maps to one prediction for each image."""

Network = Callable[[NDArray[np.uint8], Decode], list[Any]]
"""From canvases (n, H, W, 3) to one prediction for each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """Objects detected in one image, by decreasing score.

    Parameters
    ----------
    name : str
        Of the image.
    size : (int, int)
        Width and height of the image as it is shown.
    boxes : array, float32, shape (n, 4)
        Left, top, right, bottom in the image's pixels.
    scores : array, float32, shape (n,)
        From 0 to 1.
    labels : array of int, shape (n,)
        Indices of the model's classes.
    """

    name: str
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.intp]

    def __repr__(self) -> str:
        scores = brief([round(float(score), 3) for score in self.scores])
        return (
            f"Detections({brief(self.name)}, size={self.size}, {len(self.boxes)} objects: "
            f"labels={brief(self.labels.tolist())}, scores={scores})"
        )

    def _repr_html_(self) -> str:
        shown = zip(self.labels, self.scores, self.boxes, strict=True)
        rows = {
            f"{number}": f"class {label}, score {score:.3f}, box {box.round().tolist()}"
            for number, (label, score, box) in enumerate(islice(shown, CLASSES_SHOWN), start=1)
        }
        return html_table(f"{brief(self.name)}: {len(self.boxes)} objects", rows)

    def above(self, score: float | Sequence[float]) -> Detections:
        """Return only the objects with at least this score, or that of their class."""
        least = np.asarray(score, dtype=np.float64)
        is_above = self.scores >= (least[self.labels] if least.ndim else least)
        return Detections(
            name=self.name,
            size=self.size,
            boxes=self.boxes[is_above],
            scores=self.scores[is_above],
            labels=self.labels[is_above],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """A class for every pixel of one image.

    Parameters
    ----------
    name : str
        Of the image.
    mask : array, uint8, shape (height, width)
        Indices of the model's classes, in the image's own size as it is shown.
    """

    name: str
    mask: NDArray[np.uint8]

    def __repr__(self) -> str:
        present = np.unique(self.mask).tolist()
        return f"Segmentation({brief(self.name)}, mask {self.mask.shape}, classes {brief(present)})"

    def _repr_html_(self) -> str:
        present, counts = np.unique(self.mask, return_counts=True)
        shown = zip(present[:CLASSES_SHOWN], counts, strict=False)
        rows = {f"class {code}": f"{count / self.mask.size:.1%}" for code, count in shown}
        height, width = self.mask.shape
        return html_table(f"{brief(self.name)}: {width} x {height} pixels", rows)


def detect(
    backbone: FrozenBackbone,
    head: Head,
    samples: Sequence[Sample],
    *,
    selection: BoxSelection | None = None,
    device: str = "auto",
    network: Network | None = None,
) -> list[Detections]:
    """Detect objects in images, in order.

    Parameters
    ----------
    backbone : FrozenBackbone
        Its preprocessing has a canvas.
    head : Head
        A detection head.
    samples : sequence of Sample
    selection : BoxSelection, optional
        Non-maximum suppression and the largest number of boxes for an image.
    device : str
    network : callable, optional
        From `build_network`, for many calls; by default it is built anew.

    Raises
    ------
    UnreadableImageError
        If an image cannot be decoded.
    """
    detections = []
    network = network or build_network(backbone, head, device)
    decode_maps = partial(_decode_objects, selection=selection or BoxSelection())
    outputs = _run_on_canvases(backbone, network, samples, decode_maps)
    for sample, placement, (canvas_boxes, scores, labels) in outputs:
        boxes = placement.boxes_to_image(canvas_boxes)
        # A box in the padding beside the image has no area in the image: drop it.
        has_area = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
        order = np.flatnonzero(has_area)[np.argsort(-scores[has_area], kind="stable")]
        detections.append(
            Detections(
                name=sample.name,
                size=(placement.width, placement.height),
                boxes=boxes[order],
                scores=scores[order],
                labels=labels[order],
            )
        )
    return detections


def segment(
    backbone: FrozenBackbone,
    head: Head,
    samples: Sequence[Sample],
    *,
    tile: int = 0,
    device: str = "auto",
    network: Network | None = None,
) -> Iterator[Segmentation]:
    """Predict the class of every pixel, image after image, in order.

    Parameters
    ----------
    backbone : FrozenBackbone
        Its preprocessing has a canvas.
    head : Head
        A segmentation head.
    samples : sequence of Sample
    tile : int
        Longer side, in the image's pixels, of the windows that a larger image is split into.
        They overlap by a quarter. By default every image is resized as a whole, which can lose
        small details. Pass the longer side of the training images.
    device : str
    network : callable, optional
        As for `detect`.

    Raises
    ------
    UnreadableImageError
        If an image cannot be decoded.
    UsageError
        If ``tile`` is negative.
    """
    if tile < 0:
        raise UsageError(
            f"Expected `tile` to be at least 0 pixels, got {tile}. Pass 0 to read each image at "
            "once, or a side such as 512."
        )
    network = network or build_network(backbone, head, device)
    if tile:
        for sample in samples:
            mask = _segment_tiles(backbone, network, sample, tile)
            yield Segmentation(name=sample.name, mask=mask)
        return
    outputs = _run_on_canvases(backbone, network, samples, _compute_logits)
    for sample, placement, logits in outputs:
        yield Segmentation(name=sample.name, mask=_logits_to_mask(logits, placement))


def _run_on_canvases(
    backbone: FrozenBackbone,
    network: Network,
    samples: Sequence[Sample],
    decode_maps: Decode,
) -> Iterator[tuple[Sample, Placement, Any]]:
    """Run the network on every image: the sample, its placement on the canvas, its prediction."""
    preprocess = backbone.spec.preprocess
    batches = [samples[at : at + BATCH_SIZE] for at in range(0, len(samples), BATCH_SIZE)]
    load = partial(load_batch, preprocess=preprocess)
    with ThreadPoolExecutor(cores(), initializer=use_one_thread) as executor:
        loaded = map_bounded(load, batches, executor, 2)
        for batch, pixels in zip(batches, loaded, strict=True):
            for sample, prediction in zip(batch, network(pixels, decode_maps), strict=True):
                yield sample, preprocess.placement(*upright_size(sample.image)), prediction


def build_network(backbone: FrozenBackbone, head: Head, device_name: str) -> Network:
    """Build the function from canvases (n, H, W, 3) to one prediction for each.

    Parameters
    ----------
    backbone : FrozenBackbone
    head : Head
        For detection or segmentation.
    device_name : str
    """
    import copy

    import torch

    target, preprocess = device(device_name), backbone.spec.preprocess
    frozen = freeze(copy.deepcopy(backbone.module)).to(target)
    frozen.to(memory_format=torch.channels_last)
    module = freeze(head.module()).to(target)

    def predict(pixels: NDArray[np.uint8], decode_maps: Decode) -> list[Any]:
        with torch.inference_mode():
            x = preprocess.normalise(torch.from_numpy(pixels).to(target).permute(0, 3, 1, 2))
            return decode_maps(module, frozen.maps(x, head.taps))

    return predict


def _segment_tiles(
    backbone: FrozenBackbone,
    network: Network,
    sample: Sample,
    tile: int,
) -> Pixels:
    """Segment an image window by window; windows have the aspect ratio of the canvas."""
    preprocess = backbone.spec.preprocess
    pixels = decode(sample.image, options=sample.options)
    height, width = pixels.shape[:2]
    window_size = [max(1, round(tile * side / max(preprocess.shape))) for side in preprocess.shape]
    size = min(window_size[0], height), min(window_size[1], width)
    corners = tiles(height, width, size, min(size) // 4)
    placement = preprocess.placement(*size)

    def window_probabilities() -> Iterator[NDArray[np.float32]]:
        for at in range(0, len(corners), BATCH_SIZE):
            windows = [
                pixels[top : top + size[0], left : left + size[1]]
                for top, left in corners[at : at + BATCH_SIZE]
            ]
            canvases = np.stack([preprocess.resize_only(window) for window in windows])
            for logits in network(canvases, _compute_logits):
                yield _resize_logits(logits, placement).softmax(0).cpu().numpy()

    # Overlapping windows are averaged, so that no seam shows where they meet.
    probabilities = blend(window_probabilities(), corners, (height, width))
    return np.asarray(probabilities.argmax(0), dtype=np.uint8)


def _decode_objects(module: Any, maps: list[Tensor], *, selection: BoxSelection) -> list[Any]:
    return [
        (
            boxes.float().cpu().numpy(),
            scores.float().cpu().numpy(),
            np.asarray(labels.cpu().numpy(), dtype=np.intp),
        )
        for boxes, scores, labels in module.detect(module(maps), selection)
    ]


def _compute_logits(module: Any, maps: list[Tensor]) -> list[Any]:
    return list(module(maps))


def _logits_to_mask(logits: Tensor, placement: Placement) -> NDArray[np.uint8]:
    """Mask in the image's size: the argmax of the resized logits."""
    import torch

    with torch.inference_mode():
        if len(logits) * placement.height * placement.width > MAX_LOGITS:
            return placement.mask_to_image(logits.argmax(0).to(torch.uint8).cpu().numpy())
        return _resize_logits(logits, placement).argmax(0).to(torch.uint8).cpu().numpy()


def _resize_logits(logits: Tensor, placement: Placement) -> Tensor:
    """Logits (n_classes, height, width) of the image's own pixels, without the padding."""
    from torch.nn.functional import interpolate

    on_image = logits[None, :, : placement.rows, : placement.columns].float()
    size = (placement.height, placement.width)
    return interpolate(on_image, size=size, mode="bilinear", align_corners=False)[0]
