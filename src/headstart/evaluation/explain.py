"""Explain predictions of a classifier by heat maps: Grad-CAM and occlusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import freeze
from headstart.data.dataset import Sample
from headstart.data.draw import resize_to_fit
from headstart.data.image_sizes import upright_size
from headstart.data.loader import load_pixels
from headstart.data.transforms.preprocess import LONGEST_SIDE, Preprocess
from headstart.errors import UnknownNameError, UsageError
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LONG_SIDE",
    "METHODS",
    "ExplainMethod",
    "Explanation",
    "RelativeBox",
    "draw_heat_map",
    "explain",
    "grad_cam",
    "occlusion",
    "visible_part",
]

LONG_SIDE = 480
"""Pixels of the longer side of a drawn image."""

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
RelativeBox = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, relative to its sides (0 to 1)."""

# From black through violet and orange to pale yellow. The lightness always increases, so the map
# is readable without colour vision.
RAMP = np.array(
    [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64
)

ExplainMethod = Literal["grad-cam", "occlusion"]
METHODS = "grad-cam", "occlusion"
BATCH_SIZE = 16
"""Number of images, or of covered copies of one image, per batch."""
PATCHES = 7
"""Number of patches per side of the image; the stride is half a patch."""


def visible_part(height: int, width: int, preprocess: Preprocess) -> RelativeBox:
    """Return the part of an image that the network reads, relative to the image's sides.

    Parameters
    ----------
    height, width : int
        Size of the upright image.
    preprocess : Preprocess
        Without a canvas.

    Returns
    -------
    (left, top, right, bottom)
        0 to 1.

    Examples
    --------
    >>> rgb = (0.5, 0.5, 0.5)
    >>> expects = Preprocess(resize=100, crop=80, interpolation="bilinear", mean=rgb, std=rgb)
    >>> visible_part(200, 400, expects)
    (0.3, 0.1, 0.7, 0.9)
    """
    short, intervals = min(height, width), []
    for length in (width, height):
        cut, resized = 0, preprocess.resize
        if preprocess.fit == "crop":
            cut = max(0, (length - LONGEST_SIDE * short) // 2)
            resized = int(preprocess.resize * (length - 2 * cut) / short)
        offset = round((resized - preprocess.crop) / 2)  # as ``central_square`` cuts
        scale = (length - 2 * cut) / resized
        intervals.append([(cut + x * scale) / length for x in (offset, offset + preprocess.crop)])
    (left, right), (top, bottom) = intervals
    return left, top, right, bottom


def draw_heat_map(
    image: Pixels, heat: NDArray[np.floating[Any]], part: RelativeBox, *, long_side: int = LONG_SIDE
) -> Pixels:
    """Draw an image next to a grey copy with the heat map.

    The part that the network does not read is dark. Colours are scaled to the maximum of each
    map, so they cannot be compared between images.

    Parameters
    ----------
    image : array, uint8, shape (H, W, 3)
        The upright image.
    heat : array, shape (rows, columns)
        Values below 0 are drawn as 0.
    part : (left, top, right, bottom)
        Position of the heat map, relative to the image's sides.
    long_side : int
        Longer side of the drawn image, in pixels.

    Returns
    -------
    array, uint8, shape (rows, 2 * columns + 8, 3)

    Examples
    --------
    >>> draw_heat_map(np.zeros((20, 40, 3), np.uint8), np.eye(7), (0.25, 0, 0.75, 1)).shape
    (240, 968, 3)
    """
    image, _ = resize_to_fit(image, long_side)
    height, width = image.shape[:2]
    left, right = round(part[0] * width), round(part[2] * width)
    top, bottom = round(part[1] * height), round(part[3] * height)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    overlay = 0.35 * grey
    relative_heat = _resize_heat(_scale_to_unit(heat), bottom - top, right - left)
    levels = np.linspace(0, 1, len(RAMP))
    colour = np.stack([np.interp(relative_heat, levels, channel) for channel in RAMP.T], axis=-1)
    share = 0.25 + 0.5 * relative_heat[..., None]
    overlay[top:bottom, left:right] = (1 - share) * grey[top:bottom, left:right] + share * colour
    gap = np.full((height, 8, 3), 255, dtype=np.uint8)
    return np.concatenate([image, gap, overlay.round().astype(np.uint8)], axis=1)


def _scale_to_unit(heat: NDArray[np.floating[Any]]) -> Floats:
    """Scale to 0 to 1; negative values become 0."""
    maximum = float(heat.max(initial=0.0))
    return (
        np.clip(heat / maximum, 0, 1)
        if maximum > 0 and math.isfinite(maximum)
        else np.zeros_like(heat)
    )


def _resize_heat(heat: Floats, height: int, width: int) -> Floats:
    from PIL import Image

    image = Image.fromarray(heat.astype(np.float32))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation:
    """Heat map of the evidence for a class in an image.

    Parameters
    ----------
    name : str
        Name of the image.
    label : str
        The explained class.
    probability : float
        Probability of this class.
    prediction : str
        Predicted class; for multilabel all predicted labels, separated by commas.
    method : {"grad-cam", "occlusion"}
    heat : array, shape (rows, columns)
        Heat map of the part that the network reads. Grad-CAM: 0 or more, without unit. Occlusion:
        loss of probability if the pixel is covered; negative if covering it helps.
    part : (left, top, right, bottom)
        Part of the upright image that the network reads, relative to its sides.
    """

    name: str
    label: str
    probability: float
    prediction: str
    method: ExplainMethod
    heat: Floats
    part: RelativeBox


def grad_cam(maps: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute Grad-CAM: the sum of a stage's maps, weighted by the gradient of the class score.

    Parameters
    ----------
    maps : tensor, shape (n, channels, h, w)
        Output of the stage for n images.
    score : callable
        Computes the class scores before softmax, (n,), from these maps. The score of an image
        must depend on its own maps only.

    Returns
    -------
    tensor, shape (n, h, w)
        0 or more.

    References
    ----------
    Selvaraju et al. (2017), "Grad-CAM: visual explanations from deep networks via gradient-based
    localization", equations 1 and 2.

    Examples
    --------
    >>> import torch
    >>> maps = torch.tensor([[[[0.0, 1.0]], [[2.0, 0.0]]]])
    >>> weights = torch.tensor([3.0, -1.0])
    >>> grad_cam(maps, lambda a: a.mean((2, 3)) @ weights)
    tensor([[[0.0000, 1.5000]]])
    """
    import torch

    # Copy the maps, because pooling may change them in place.
    gradients: Tensor = torch.func.grad(lambda a: score(a.clone()).sum())(maps)
    weights = gradients.mean((2, 3), keepdim=True)
    heat: Tensor = (weights * maps).sum(1).relu()
    return heat


def occlusion(
    class_probability: Callable[[Pixels], Floats],
    pixels: Pixels,
    *,
    patch: int,
    stride: int,
    fill: tuple[int, int, int] = (128, 128, 128),
) -> Floats:
    """Cover an image patch by patch, and measure the loss of probability.

    Parameters
    ----------
    class_probability : callable
        Computes the probability of the class, (m,), for images, uint8, (m, H, W, 3).
    pixels : array, uint8, shape (H, W, 3)
    patch, stride : int
        Side of the square patch and its stride, in pixels. The last patch of a row or column ends
        at the border of the image.
    fill : (int, int, int)
        Colour of the patch.

    Returns
    -------
    array, shape (H, W)
        Mean loss over the patches that cover a pixel, -1 to 1.

    Raises
    ------
    UsageError
        If the patch is larger than the image, or the stride is larger than the patch.

    References
    ----------
    Zeiler and Fergus (2014), "Visualizing and understanding convolutional networks", section 4.2.

    Examples
    --------
    >>> image = np.zeros((4, 4, 3), np.uint8)
    >>> image[:2, :2] = 200
    >>> bright = lambda batch: (batch.mean((1, 2, 3)) / 255).astype(float)
    >>> occlusion(bright, image, patch=2, stride=2, fill=(0, 0, 0)).round(2)
    array([[0.2, 0.2, 0. , 0. ],
           [0.2, 0.2, 0. , 0. ],
           [0. , 0. , 0. , 0. ],
           [0. , 0. , 0. , 0. ]])
    """
    height, width = pixels.shape[:2]
    if not 0 < stride <= patch <= min(height, width):
        raise UsageError(
            f"Expected 0 < `stride` <= `patch` <= the image's sides, got {stride} and {patch} "
            f"for {height} x {width}. Use a smaller patch, and a stride of at most its size."
        )
    full_probability = float(class_probability(pixels[None])[0])
    loss, counts = np.zeros((height, width)), np.zeros((height, width))
    rows, columns = _patch_starts(height, patch, stride), _patch_starts(width, patch, stride)
    positions = [(y, x) for y in rows for x in columns]
    for start in range(0, len(positions), BATCH_SIZE):
        places = positions[start : start + BATCH_SIZE]
        covered = np.repeat(pixels[None], len(places), axis=0)
        for image, (y, x) in zip(covered, places, strict=True):
            image[y : y + patch, x : x + patch] = fill
        for probability, (y, x) in zip(class_probability(covered), places, strict=True):
            loss[y : y + patch, x : x + patch] += full_probability - probability
            counts[y : y + patch, x : x + patch] += 1
    return loss / counts


def _patch_starts(length: int, patch: int, stride: int) -> list[int]:
    return sorted({*range(0, length - patch + 1, stride), length - patch})


def explain(
    model: TransferModel,
    samples: Sequence[Sample],
    *,
    method: ExplainMethod = "grad-cam",
    label: str | None = None,
    device_name: str = "auto",
) -> Iterator[Explanation]:
    """Compute a heat map of a class for every image.

    Parameters
    ----------
    model : TransferModel
        A classifier.
    samples : sequence of Sample
    method : {"grad-cam", "occlusion"}
        Grad-CAM needs one forward pass per image and a backbone whose last stage has maps.
        Occlusion needs about 170 passes, works with any backbone, and measures the probability.
    label : str, optional
        Class to explain; by default the most probable class of each image.
    device_name : str

    Raises
    ------
    UsageError
        If the model is not a classifier, or its last stage has no maps for Grad-CAM.
    UnknownNameError
        If the method or the class is unknown.
    UnreadableImageError
        If an image cannot be decoded.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    task = model.task
    if not isinstance(task, ClassificationTask):
        verb = "detects objects" if model.task.kind == "detection" else "segments images"
        raise UsageError(
            f"`explain` needs a classifier, but this model {verb}. Use `headstart predict "
            "--format overlay` to see its predictions."
        )
    classes = task.classes
    if label is not None and label not in classes:
        raise UnknownNameError("class", label, classes)
    network = _Network(model, device_name)
    explained_class = None if label is None else classes.index(label)
    for start in range(0, len(samples), BATCH_SIZE):
        batch = samples[start : start + BATCH_SIZE]
        pixels = np.stack([load_pixels(sample, network.preprocess) for sample in batch])
        maps = network.maps(pixels)
        probabilities = network.probabilities(maps)
        class_indices = (
            probabilities.argmax(axis=1)
            if explained_class is None
            else np.full(len(batch), explained_class)
        )
        if method == "grad-cam":
            heat_maps: Any = network.grad_cam(maps, class_indices)
        else:
            heat_maps = (
                network.occluded(*arguments)
                for arguments in zip(pixels, class_indices, strict=True)
            )
        predictions = task.labels(probabilities)
        for index, heat_map in enumerate(heat_maps):
            sample, prediction = batch[index], predictions[index]
            yield Explanation(
                name=sample.name,
                label=classes[class_indices[index]],
                probability=float(probabilities[index, class_indices[index]]),
                prediction=prediction if isinstance(prediction, str) else ", ".join(prediction),
                method=method,
                heat=np.asarray(heat_map, dtype=np.float64),
                part=visible_part(*upright_size(sample.image), network.preprocess),
            )


class _Network:
    """A classifier in float32 in two steps: pixels to maps, and maps to probabilities."""

    def __init__(self, model: TransferModel, device_name: str) -> None:
        import copy

        self.preprocess = model.backbone.spec.preprocess
        self._task = model.require_task(ClassificationTask)
        self._device = device(device_name)
        self._backbone = model.backbone.module  # constant, on the CPU
        if self._device != "cpu":
            self._backbone = freeze(copy.deepcopy(self._backbone)).to(self._device)
        self._head = freeze(model.linear_head().module()).to(self._device)

    def maps(self, pixels: Pixels) -> Tensor:
        """Return the output of the last stage for images (n, H, W, 3)."""
        import torch

        with torch.no_grad():
            x = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
            return self._backbone.run(self.preprocess.normalise(x))

    def logits(self, maps: Tensor) -> Tensor:
        logits: Tensor = self._head(self._backbone.pool(maps))
        return logits

    def probabilities(self, maps: Tensor) -> Floats:
        import torch

        with torch.no_grad():
            logits = self.logits(maps.clone()).double().cpu().numpy()
        probabilities: Floats = self._task.probabilities(logits)
        return probabilities

    def grad_cam(self, maps: Tensor, class_indices: NDArray[np.intp]) -> Floats:
        import torch

        last = self._backbone.stages[-1]
        is_channels_last = maps.ndim == 4 and maps.shape[1] != last.channels == maps.shape[3]
        if maps.ndim != 4:
            raise UsageError(
                f"Grad-CAM needs maps of shape (channels, height, width), but stage {last.name} "
                f"has outputs of shape {tuple(maps.shape[1:])}. Use --method occlusion."
            )
        rows = torch.arange(len(maps), device=maps.device)
        columns = torch.from_numpy(np.asarray(class_indices)).to(maps.device)

        def score(inputs: Tensor) -> Tensor:
            inputs = inputs.permute(0, 2, 3, 1) if is_channels_last else inputs
            return self.logits(inputs)[rows, columns]

        channels_first = maps.permute(0, 3, 1, 2) if is_channels_last else maps
        return np.asarray(grad_cam(channels_first, score).double().cpu().numpy())

    def occluded(self, pixels: Pixels, class_index: int) -> Floats:
        patch = max(1, round(min(pixels.shape[:2]) / PATCHES))

        def class_probability(batch: Pixels) -> Floats:
            return np.asarray(self.probabilities(self.maps(batch))[:, class_index])

        fill = self.preprocess.fill
        return occlusion(
            class_probability, pixels, patch=patch, stride=max(1, patch // 2), fill=fill
        )
