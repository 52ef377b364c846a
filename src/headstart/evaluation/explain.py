"""Heat laid over the image that it belongs to: pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.freezing import constant
from headstart.data.dataset import Sample
from headstart.data.draw import fitted
from headstart.data.images import shown_size
from headstart.data.loader import load_pixels
from headstart.data.transforms.preprocess import LONGEST_SIDE, Preprocess
from headstart.errors import UnknownNameError, UsageError
from headstart.models.transfer_model import TransferModel
from headstart.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LONG_SIDE",
    "METHODS",
    "Explanation",
    "Means",
    "Part",
    "draw_heat",
    "explain",
    "grad_cam",
    "occlusion",
    "seen_part",
]

LONG_SIDE = 480
"""Pixels of the longer side of a drawn image."""

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Part = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, in shares of its sides."""

# From black over violet and orange to pale yellow: its lightness rises all the way, so that it is
# read without colour vision, too.
RAMP = np.array(
    [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64
)


def seen_part(height: int, width: int, preprocess: Preprocess) -> Part:
    """What of an image the network reads, in shares of its sides.

    Parameters
    ----------
    height, width : int
        Of the image as it is shown.
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
    >>> seen_part(200, 400, expects)
    (0.3, 0.1, 0.7, 0.9)
    """
    short, ends = min(height, width), []
    for length in (width, height):
        far, resized = 0, preprocess.resize
        if preprocess.fit == "crop":
            far = max(0, (length - LONGEST_SIDE * short) // 2)
            resized = int(preprocess.resize * (length - 2 * far) / short)
        first = round((resized - preprocess.crop) / 2)  # as ``central_square`` cuts
        scale = (length - 2 * far) / resized
        ends.append([(far + x * scale) / length for x in (first, first + preprocess.crop)])
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def draw_heat(
    image: Pixels, heat: NDArray[np.floating[Any]], part: Part, *, long_side: int = LONG_SIDE
) -> Pixels:
    """Draw an image, and beside it the same one, grey, under what speaks for a class.

    What the network does not read is dark. The lightest place is the map's own highest; maps of
    two images cannot be compared by their colours.

    Parameters
    ----------
    image : array, uint8, shape (H, W, 3)
        As it is shown.
    heat : array, shape (rows, columns)
        What is below 0 is drawn as 0.
    part : (left, top, right, bottom)
        Where the heat lies on the image, in shares of its sides.
    long_side : int
        Of the drawn image, in pixels.

    Returns
    -------
    array, uint8, shape (rows, 2 * columns + 8, 3)

    Examples
    --------
    >>> draw_heat(np.zeros((20, 40, 3), np.uint8), np.eye(7), (0.25, 0, 0.75, 1)).shape
    (240, 968, 3)
    """
    image, _ = fitted(image, long_side)
    height, width = image.shape[:2]
    left, right = round(part[0] * width), round(part[2] * width)
    top, bottom = round(part[1] * height), round(part[3] * height)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    drawn = 0.35 * grey
    warm = _enlarged(_relative(heat), bottom - top, right - left)
    steps = np.linspace(0, 1, len(RAMP))
    colour = np.stack([np.interp(warm, steps, channel) for channel in RAMP.T], axis=-1)
    share = 0.25 + 0.5 * warm[..., None]
    drawn[top:bottom, left:right] = (1 - share) * grey[top:bottom, left:right] + share * colour
    gap = np.full((height, 8, 3), 255, dtype=np.uint8)
    return np.concatenate([image, gap, drawn.round().astype(np.uint8)], axis=1)


def _relative(heat: NDArray[np.floating[Any]]) -> Floats:
    """From 0 to 1; what speaks against the class is 0."""
    most = float(heat.max(initial=0.0))
    return np.clip(heat / most, 0, 1) if most > 0 and math.isfinite(most) else np.zeros_like(heat)


def _enlarged(heat: Floats, height: int, width: int) -> Floats:
    from PIL import Image

    values = Image.fromarray(heat.astype(np.float32))
    large = values.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(large, dtype=np.float64)


Means = Literal["grad-cam", "occlusion"]
METHODS = "grad-cam", "occlusion"

AT_ONCE = 16
"""Images, or covered copies of one, that the network reads at a time."""

PATCHES = 7
"""Patches that lie beside each other in an image's side; they move by half of one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation:
    """What in an image speaks for a class.

    Parameters
    ----------
    name : str
        The image's.
    label : str
        The class that is explained.
    probability : float
        That it has.
    answer : str
        What the model says; of several labels all that hold, with commas.
    method : {"grad-cam", "occlusion"}
    heat : array, shape (rows, columns)
        Over what the network reads. Grad-CAM: 0 or more, in no unit. Occlusion: how much of the
        probability is lost where a place is covered; below 0 where covering it helps.
    part : (left, top, right, bottom)
        What the network reads of the image as it is shown, in shares of its sides.
    """

    name: str
    label: str
    probability: float
    answer: str
    method: Means
    heat: Floats
    part: Part


def grad_cam(maps: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Weigh a stage's maps by how much the score rises with each, and add up what speaks for it.

    Parameters
    ----------
    maps : tensor, shape (n, channels, h, w)
        What the stage gave for n images.
    score : callable
        From these maps to (n,): of each image the class's score before softmax. An image's
        score may depend on its own maps alone.

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

    # A copy, since pooling may work in place.
    rises: Tensor = torch.func.grad(lambda a: score(a.clone()).sum())(maps)
    weights = rises.mean((2, 3), keepdim=True)
    found: Tensor = (weights * maps).sum(1).relu()
    return found


def occlusion(
    chance: Callable[[Pixels], Floats],
    pixels: Pixels,
    *,
    patch: int,
    stride: int,
    fill: tuple[int, int, int] = (128, 128, 128),
) -> Floats:
    """Cover one place after the other, and see how much of the probability is lost.

    Parameters
    ----------
    chance : callable
        From images, uint8, (m, H, W, 3), to the class's probability in each, (m,).
    pixels : array, uint8, shape (H, W, 3)
    patch, stride : int
        Side of the square that covers, and by how much it moves, in pixels; the last one in a
        row or column ends with the image.
    fill : (int, int, int)
        Its colour.

    Returns
    -------
    array, shape (H, W)
        The mean loss over the squares that cover a pixel, -1 to 1.

    Raises
    ------
    UsageError
        If the patch does not fit into the image, or a place would never be covered.

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
            f"for {height} x {width}; do give a smaller patch."
        )
    whole = float(chance(pixels[None])[0])
    lost, times = np.zeros((height, width)), np.zeros((height, width))
    rows, columns = _starts(height, patch, stride), _starts(width, patch, stride)
    every = [(y, x) for y in rows for x in columns]
    for at in range(0, len(every), AT_ONCE):
        places = every[at : at + AT_ONCE]
        covered = np.repeat(pixels[None], len(places), axis=0)
        for one, (y, x) in zip(covered, places, strict=True):
            one[y : y + patch, x : x + patch] = fill
        for left, (y, x) in zip(chance(covered), places, strict=True):
            lost[y : y + patch, x : x + patch] += whole - left
            times[y : y + patch, x : x + patch] += 1
    return lost / times


def _starts(length: int, patch: int, stride: int) -> list[int]:
    return sorted({*range(0, length - patch + 1, stride), length - patch})


def explain(
    model: TransferModel,
    samples: Sequence[Sample],
    *,
    method: Means = "grad-cam",
    label: str | None = None,
    wanted_device: str = "auto",
) -> Iterator[Explanation]:
    """Say of images, one after the other, where a classifier finds a class.

    Parameters
    ----------
    model : TransferModel
        A classifier.
    samples : sequence of Sample
    method : {"grad-cam", "occlusion"}
        Grad-CAM takes one run an image, of the maps of the backbone's last stage. Occlusion
        takes some 170, of any backbone, and is of the probability itself.
    label : str, optional
        The class; by default the likeliest one of each image.
    wanted_device : str

    Raises
    ------
    UsageError
        If the model finds boxes or masks, or its last stage gives no maps for Grad-CAM.
    UnknownNameError
        If there is no such method or class.
    UnreadableImageError
        If an image cannot be decoded.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    if model.task.kind not in {"multiclass", "multilabel"}:
        raise UsageError(
            f"Expected a model that names whole images, got one for {model.task.kind}; do look "
            "at what it found with `headstart predict --format overlay`."
        )
    classes = model.task.classes
    if label is not None and label not in classes:
        raise UnknownNameError("class", label, classes)
    network = _Network(model, wanted_device)
    chosen = None if label is None else classes.index(label)
    for at in range(0, len(samples), AT_ONCE):
        batch = samples[at : at + AT_ONCE]
        pixels = np.stack([load_pixels(sample, network.preprocess) for sample in batch])
        maps = network.maps(pixels)
        chances = network.probabilities(maps)
        wanted = chances.argmax(axis=1) if chosen is None else np.full(len(batch), chosen)
        if method == "grad-cam":
            heats: Any = network.grad_cam(maps, wanted)
        else:
            heats = (network.occluded(*one) for one in zip(pixels, wanted, strict=True))
        said = model.task.labels(chances)
        for i, heat in enumerate(heats):
            sample, answer = batch[i], said[i]
            yield Explanation(
                name=sample.name,
                label=classes[wanted[i]],
                probability=float(chances[i, wanted[i]]),
                answer=answer if isinstance(answer, str) else ", ".join(answer),
                method=method,
                heat=np.asarray(heat, dtype=np.float64),
                part=seen_part(*shown_size(sample.image), network.preprocess),
            )


class _Network:
    """A classifier in float32, from pixels to maps to probabilities."""

    def __init__(self, model: TransferModel, wanted_device: str) -> None:
        import copy

        self.preprocess = model.backbone.spec.preprocess
        self._task = model.task
        self._device = device(wanted_device)
        self._backbone = model.backbone.module  # constant, on the CPU
        if self._device != "cpu":
            self._backbone = constant(copy.deepcopy(self._backbone)).to(self._device)
        self._head = constant(model.linear_head().module()).to(self._device)

    def maps(self, pixels: Pixels) -> Tensor:
        """What the last stage gives for images (n, H, W, 3)."""
        import torch

        with torch.no_grad():
            x = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
            return self._backbone.run(self.preprocess.normalise(x))

    def logits(self, maps: Tensor) -> Tensor:
        found: Tensor = self._head(self._backbone.pool(maps))
        return found

    def probabilities(self, maps: Tensor) -> Floats:
        import torch

        with torch.no_grad():
            logits = self.logits(maps.clone()).double().cpu().numpy()
        found: Floats = self._task.probabilities(logits)
        return found

    def grad_cam(self, maps: Tensor, wanted: NDArray[np.intp]) -> Floats:
        import torch

        last = self._backbone.stages[-1]
        is_last = maps.ndim == 4 and maps.shape[1] != last.channels == maps.shape[3]
        if maps.ndim != 4:
            raise UsageError(
                f"Expected maps behind the stage {last.name} for Grad-CAM, got values of shape "
                f"{tuple(maps.shape[1:])}; do use --method occlusion."
            )
        rows = torch.arange(len(maps), device=maps.device)
        columns = torch.from_numpy(np.asarray(wanted)).to(maps.device)

        def score(given: Tensor) -> Tensor:
            given = given.permute(0, 2, 3, 1) if is_last else given
            return self.logits(given)[rows, columns]

        first = maps.permute(0, 3, 1, 2) if is_last else maps
        return np.asarray(grad_cam(first, score).double().cpu().numpy())

    def occluded(self, pixels: Pixels, wanted: int) -> Floats:
        patch = max(1, round(min(pixels.shape[:2]) / PATCHES))

        def chance(batch: Pixels) -> Floats:
            return np.asarray(self.probabilities(self.maps(batch))[:, wanted])

        fill = self.preprocess.fill
        return occlusion(chance, pixels, patch=patch, stride=max(1, patch // 2), fill=fill)
