"""Boxes and masks in the images' own coordinates: a backbone and a head on maps, run on images.

Every image is seen whole (``Preprocess.canvas``), and what is found goes back the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import constant
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Sample
from headstart.data.images import Pixels, decode, shown_size
from headstart.data.loader import load_batch, map_bounded
from headstart.data.transforms.preprocess import Placement
from headstart.data.transforms.tiling import blend, tiles
from headstart.errors import UsageError
from headstart.models.heads.head import Head
from headstart.runtime import cores, device, one_thread_each

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Detections", "Segmentation", "detect", "segment"]

AT_ONCE = 8
"""Images that the network reads at a time."""

MOST_LOGITS = 50_000_000
"""Values of one image's enlarged logits; above it the mask is enlarged, not what made it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """What was found in one image, the most certain first.

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
        Places among the model's classes.
    """

    name: str
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.intp]

    def above(self, score: float) -> Detections:
        """Return only what is at least so certain."""
        kept = self.scores >= score
        return Detections(
            name=self.name,
            size=self.size,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """A class for every pixel of one image.

    Parameters
    ----------
    name : str
        Of the image.
    mask : array, uint8, shape (height, width)
        Places among the model's classes, in the image's own size as it is shown.
    """

    name: str
    mask: NDArray[np.uint8]


def detect(
    backbone: FrozenBackbone, head: Head, samples: Sequence[Sample], *, device: str = "auto"
) -> list[Detections]:
    """Find objects in images, in order.

    Parameters
    ----------
    backbone : FrozenBackbone
        Its preprocessing has a canvas.
    head : Head
        For boxes.
    samples : sequence of Sample
    device : str

    Raises
    ------
    UnreadableImageError
        If an image cannot be decoded.
    """
    found = []
    for sample, place, answer in _answers(backbone, head, samples, device, _boxes):
        boxes, scores, labels = answer
        boxes = place.boxes_to_image(boxes)
        # What lies in the margin beside the image has no area in it.
        real = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
        order = np.flatnonzero(real)[np.argsort(-scores[real], kind="stable")]
        found.append(
            Detections(
                name=sample.name,
                size=(place.width, place.height),
                boxes=boxes[order],
                scores=scores[order],
                labels=labels[order],
            )
        )
    return found


def segment(
    backbone: FrozenBackbone,
    head: Head,
    samples: Sequence[Sample],
    *,
    tile: int = 0,
    device: str = "auto",
) -> Iterator[Segmentation]:
    """Give every pixel a class, image after image, in order.

    Parameters
    ----------
    backbone : FrozenBackbone
        Its preprocessing has a canvas.
    head : Head
        For masks.
    samples : sequence of Sample
    tile : int
        Longer side, in the image's pixels, of the windows that are read one by one where an
        image is larger; they overlap by a quarter. By default every image is read whole,
        however small its details become. Give the side of the images that were learned from.
    device : str

    Raises
    ------
    UnreadableImageError
        If an image cannot be decoded.
    UsageError
        If ``tile`` is negative.
    """
    if tile < 0:
        raise UsageError(f"Expected `tile` to be 0 or more pixels, got {tile}.")
    if tile:
        network = _network(backbone, head, device)
        for sample in samples:
            yield Segmentation(name=sample.name, mask=_tiled(backbone, network, sample, tile))
        return
    for sample, place, logits in _answers(backbone, head, samples, device, _logits):
        yield Segmentation(name=sample.name, mask=_mask(logits, place))


def _answers(
    backbone: FrozenBackbone,
    head: Head,
    samples: Sequence[Sample],
    wanted: str,
    decide: Callable[[Any, Any], list[Any]],
) -> Iterator[tuple[Sample, Placement, Any]]:
    """Run the network on every image, and say where each lay on the canvas."""
    preprocess, network = backbone.spec.preprocess, _network(backbone, head, wanted)
    batches = [samples[at : at + AT_ONCE] for at in range(0, len(samples), AT_ONCE)]
    load = partial(load_batch, preprocess=preprocess)
    with ThreadPoolExecutor(cores(), initializer=one_thread_each) as executor:
        loaded = map_bounded(load, batches, executor, 2)
        for batch, pixels in zip(batches, loaded, strict=True):
            for sample, answer in zip(batch, network(pixels, decide), strict=True):
                yield sample, preprocess.placement(*shown_size(sample.image)), answer


def _network(
    backbone: FrozenBackbone, head: Head, wanted: str
) -> Callable[[NDArray[np.uint8], Callable[[Any, Any], list[Any]]], list[Any]]:
    """Make the function from canvases (n, H, W, 3) to what is decided of each."""
    import copy

    import torch

    target, preprocess = device(wanted), backbone.spec.preprocess
    frozen = constant(copy.deepcopy(backbone.module)).to(target)
    frozen.to(memory_format=torch.channels_last)
    module = constant(head.module()).to(target)

    def answer(pixels: NDArray[np.uint8], decide: Callable[[Any, Any], list[Any]]) -> list[Any]:
        with torch.inference_mode():
            x = preprocess.normalise(torch.from_numpy(pixels).to(target).permute(0, 3, 1, 2))
            return decide(module, frozen.maps(x, head.taps))

    return answer


def _tiled(
    backbone: FrozenBackbone, network: Callable[..., list[Any]], sample: Sample, tile: int
) -> Pixels:
    """Read an image window by window, each of the canvas's shape."""
    preprocess = backbone.spec.preprocess
    pixels = decode(sample.image)
    height, width = pixels.shape[:2]
    window = [max(1, round(tile * side / max(preprocess.shape))) for side in preprocess.shape]
    size = min(window[0], height), min(window[1], width)
    places = tiles(height, width, size, min(size) // 4)
    place = preprocess.placement(*size)

    def chances() -> Iterator[NDArray[np.float32]]:
        for at in range(0, len(places), AT_ONCE):
            windows = [
                pixels[top : top + size[0], left : left + size[1]]
                for top, left in places[at : at + AT_ONCE]
            ]
            canvases = np.stack([preprocess.resize_only(window) for window in windows])
            for logits in network(canvases, _logits):
                yield _enlarged(logits, place).softmax(0).cpu().numpy()

    return np.asarray(blend(chances(), places, (height, width)).argmax(0), dtype=np.uint8)


def _boxes(module: Any, maps: list[Tensor]) -> list[Any]:
    return [
        (boxes.float().cpu().numpy(), scores.float().cpu().numpy(), _whole(labels))
        for boxes, scores, labels in module.detect(module(maps))
    ]


def _whole(labels: Tensor) -> NDArray[np.intp]:
    return np.asarray(labels.cpu().numpy(), dtype=np.intp)


def _logits(module: Any, maps: list[Tensor]) -> list[Any]:
    return list(module(maps))


def _mask(logits: Tensor, place: Placement) -> NDArray[np.uint8]:
    """Classes in the image's size: its logits are enlarged, then compared."""
    import torch

    with torch.inference_mode():
        if len(logits) * place.height * place.width > MOST_LOGITS:
            return place.mask_to_image(logits.argmax(0).to(torch.uint8).cpu().numpy())
        return _enlarged(logits, place).argmax(0).to(torch.uint8).cpu().numpy()


def _enlarged(logits: Tensor, place: Placement) -> Tensor:
    """Logits (n_classes, height, width) for the image's own pixels, the margin left out."""
    from torch.nn.functional import interpolate

    seen = logits[None, :, : place.rows, : place.columns].float()
    size = (place.height, place.width)
    return interpolate(seen, size=size, mode="bilinear", align_corners=False)[0]
