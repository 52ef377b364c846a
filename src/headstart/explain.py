"""Where in a picture a classifier finds its answer: Grad-CAM and occlusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.loading import load_pixels
from headstart.data.samples import Sample
from headstart.data.sizes import shown_size
from headstart.errors import UnknownNameError, UsageError
from headstart.freezing import constant
from headstart.heat_maps import Part, seen_part
from headstart.model import TransferModel
from headstart.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "METHODS",
    "Explanation",
    "Means",
    "explain",
    "grad_cam",
    "occlusion",
]

Means = Literal["grad-cam", "occlusion"]
METHODS = "grad-cam", "occlusion"

AT_ONCE = 16
"""Pictures, or covered copies of one, that the network reads at a time."""

PATCHES = 7
"""Patches that lie beside each other in a picture's side; they move by half of one."""

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation:
    """What in a picture speaks for a class.

    Parameters
    ----------
    name : str
        The picture's.
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
        What the network reads of the picture as it is shown, in shares of its sides.
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
        What the stage gave for n pictures.
    score : callable
        From these maps to (n,): of each picture the class's score before softmax. A picture's
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
        From pictures, uint8, (m, H, W, 3), to the class's probability in each, (m,).
    pixels : array, uint8, shape (H, W, 3)
    patch, stride : int
        Side of the square that covers, and by how much it moves, in pixels; the last one in a
        row or column ends with the picture.
    fill : (int, int, int)
        Its colour.

    Returns
    -------
    array, shape (H, W)
        The mean loss over the squares that cover a pixel, -1 to 1.

    Raises
    ------
    UsageError
        If the patch does not fit into the picture, or a place would never be covered.

    References
    ----------
    Zeiler and Fergus (2014), "Visualizing and understanding convolutional networks", section 4.2.

    Examples
    --------
    >>> picture = np.zeros((4, 4, 3), np.uint8)
    >>> picture[:2, :2] = 200
    >>> bright = lambda batch: (batch.mean((1, 2, 3)) / 255).astype(float)
    >>> occlusion(bright, picture, patch=2, stride=2, fill=(0, 0, 0)).round(2)
    array([[0.2, 0.2, 0. , 0. ],
           [0.2, 0.2, 0. , 0. ],
           [0. , 0. , 0. , 0. ],
           [0. , 0. , 0. , 0. ]])
    """
    height, width = pixels.shape[:2]
    if not 0 < stride <= patch <= min(height, width):
        raise UsageError(
            f"Expected 0 < `stride` <= `patch` <= the picture's sides, got {stride} and {patch} "
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
    """Say of pictures, one after the other, where a classifier finds a class.

    Parameters
    ----------
    model : TransferModel
        A classifier.
    samples : sequence of Sample
    method : {"grad-cam", "occlusion"}
        Grad-CAM takes one run a picture, of the maps of the backbone's last stage. Occlusion
        takes some 170, of any backbone, and is of the probability itself.
    label : str, optional
        The class; by default the likeliest one of each picture.
    wanted_device : str

    Raises
    ------
    UsageError
        If the model finds boxes or masks, or its last stage gives no maps for Grad-CAM.
    UnknownNameError
        If there is no such method or class.
    UnreadableImageError
        If a picture cannot be decoded.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    if model.task.kind not in {"multiclass", "multilabel"}:
        raise UsageError(
            f"Expected a model that names whole pictures, got one for {model.task.kind}; do look "
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

        self.preprocess = model.trunk.spec.preprocess
        self._task = model.task
        self._device = device(wanted_device)
        self._backbone = model.trunk.backbone  # constant, on the CPU
        if self._device != "cpu":
            self._backbone = constant(copy.deepcopy(self._backbone)).to(self._device)
        self._head = constant(model.linear_head().module()).to(self._device)

    def maps(self, pixels: Pixels) -> Tensor:
        """What the last stage gives for pictures (n, H, W, 3)."""
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
