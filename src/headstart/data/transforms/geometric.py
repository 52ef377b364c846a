"""Changes of place that pixels, boxes and masks follow together.

What is drawn is a value: the same `Moves` are applied to whatever belongs to the image, in any
order and at any time, through torchvision's kernels with explicit numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED
from headstart.data.transforms.augment import Augmentation, adjust_contrast
from headstart.data.transforms.preprocess import Interpolation
from headstart.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LEAST_SHARE",
    "LEAST_SIDE",
    "Moves",
    "draw_moves",
    "move_boxes",
    "move_mask",
    "move_pixels",
]

LEAST_SHARE = 0.2
"""Of its area that a box has to keep in sight; less is a corner that nobody would recognise."""

LEAST_SIDE = 2.0
"""Pixels of the canvas; smaller boxes have no place on any map of a network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What happens to one view of an image; in this order.

    Parameters
    ----------
    angle : float
        Degrees, counter-clockwise about the centre of the canvas.
    window : (int, int, int, int) or None
        Top, left, height and width of the part that is enlarged to the whole canvas.
    flip, flip_vertical : bool
        Mirrored left and right; upside down.
    brightness, contrast : float
        Factors; of pixels only.

    Examples
    --------
    >>> Moves().is_still, Moves(flip=True).is_still
    (True, False)
    """

    angle: float = 0.0
    window: tuple[int, int, int, int] | None = None
    flip: bool = False
    flip_vertical: bool = False
    brightness: float = 1.0
    contrast: float = 1.0

    @property
    def is_still(self) -> bool:
        """Whether everything stays as it is."""
        return self == Moves()


def view_rng(seed: int, view: int, image: str) -> np.random.Generator:
    """Make the generator of a view: run, number and image (its digest) decide, nothing else.

    Raises
    ------
    UsageError
        If ``seed`` or ``view`` is negative.
    """
    if seed < 0 or view < 0:
        raise UsageError(
            f"Expected `seed` and `view` to be 0 or more, got {seed} and {view}; do count from 0."
        )
    return np.random.default_rng([seed, view, int(image, 16)])


def draw_moves(
    augmentation: Augmentation, shape: tuple[int, int], rng: np.random.Generator
) -> Moves:
    """Draw what happens to a view: places first, then light.

    Parameters
    ----------
    augmentation : Augmentation
        ``crop`` is the smallest share of the canvas that is kept; the part has its aspect.
    shape : (int, int)
        Height and width of the canvas.
    rng : numpy.random.Generator
        All chance comes from it.

    Raises
    ------
    UsageError
        If there is a policy: what it does to places is not known outside of it.

    Examples
    --------
    >>> moves = draw_moves(Augmentation(crop=0.25), (64, 96), np.random.default_rng(0))
    >>> moves.window, moves.flip
    ((5, 4, 55, 82), False)
    """
    if augmentation.policy != "none":
        raise UsageError(
            f"Expected no policy where boxes or masks move with the image, got "
            f"{augmentation.policy!r}; do use flip, rotation, crop, brightness and contrast."
        )
    most, light = augmentation.rotation, (augmentation.brightness, augmentation.contrast)
    angle = rng.uniform(-most, most) if most else 0.0
    window = _window(shape, augmentation.crop, rng) if augmentation.crop < 1 else None
    flips = [
        bool(wanted and rng.random() < 0.5)
        for wanted in (augmentation.flip, augmentation.flip_vertical)
    ]
    factors = [1 + rng.uniform(-reach, reach) if reach else 1.0 for reach in light]
    return Moves(
        angle=angle,
        window=window,
        flip=flips[0],
        flip_vertical=flips[1],
        brightness=factors[0],
        contrast=factors[1],
    )


def move_pixels(
    pixels: NDArray[np.uint8],
    moves: Moves,
    *,
    interpolation: Interpolation = "bilinear",
    fill: Sequence[float] | None = None,
) -> NDArray[np.uint8]:
    """Carry out moves on an image.

    Parameters
    ----------
    pixels : array, uint8, shape (H, W, 3)
        Not changed.
    moves : Moves
    interpolation : {"bilinear", "bicubic"}
        Of the enlarged window, antialiased; turning is bilinear.
    fill : sequence of three floats, optional
        Colour, 0 to 255, of corners that come from outside; by default the mean of the pixels.

    Returns
    -------
    array, uint8, shape (H, W, 3)
        Own memory.
    """
    if moves.is_still:
        return pixels.copy()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    colour = pixels.reshape(-1, 3).mean(axis=0) if fill is None else fill
    turning = {"interpolation": InterpolationMode.BILINEAR, "fill": [float(v) for v in colour]}
    resizing = {"interpolation": InterpolationMode(interpolation), "antialias": True}
    image = _moved(_image(pixels), moves, turning, resizing)
    if moves.brightness != 1:
        image = functional.adjust_brightness(image, moves.brightness)
    if moves.contrast != 1:
        image = adjust_contrast(image, moves.contrast)
    return np.array(image.permute(1, 2, 0).numpy(), order="C")


def move_boxes(
    boxes: NDArray[np.float32], labels: NDArray[np.int64], shape: tuple[int, int], moves: Moves
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Carry out moves on boxes; of a turned box, the box around its corners.

    Parameters
    ----------
    boxes : array, shape (n, 4)
        Left, top, right, bottom in pixels of the canvas.
    labels : array, shape (n,)
    shape : (int, int)
        Height and width of the canvas.
    moves : Moves

    Returns
    -------
    boxes : array, float32, shape (k, 4)
        Clipped to the canvas.
    labels : array, shape (k,)
    kept : array of bool, shape (n,)
        Not kept is what keeps less than ``LEAST_SHARE`` of its area on the canvas, or has a side
        of less than ``LEAST_SIDE``.

    Examples
    --------
    >>> boxes, labels = np.array([[0, 0, 30, 20], [50, 0, 51, 20]], np.float32), np.array([7, 8])
    >>> move_boxes(boxes, labels, (40, 100), Moves(flip=True))
    (array([[ 70.,   0., 100.,  20.]], dtype=float32), array([7]), array([ True, False]))
    """
    whole = _moved_boxes(np.asarray(boxes, dtype=np.float32).reshape(-1, 4), shape, moves)
    clipped = np.clip(whole, 0, np.array([shape[1], shape[0]] * 2, dtype=np.float32))
    sides = clipped[:, 2:] - clipped[:, :2]
    area = (whole[:, 2:] - whole[:, :2]).prod(axis=1)
    kept = (sides >= LEAST_SIDE).all(axis=1) & (sides.prod(axis=1) >= LEAST_SHARE * area)
    return clipped[kept], labels[kept], kept


def move_mask(mask: NDArray[np.uint8], moves: Moves) -> NDArray[np.uint8]:
    """Carry out moves on a mask; what comes from outside of it is 255, ignored.

    Parameters
    ----------
    mask : array, uint8, shape (H, W)
        Not changed.
    moves : Moves

    Returns
    -------
    array, uint8, shape (H, W)
        Own memory; no value that was not there, but for 255.

    Examples
    --------
    >>> move_mask(np.array([[1, 2, 255]], dtype=np.uint8), Moves(flip=True))
    array([[255,   2,   1]], dtype=uint8)
    """
    if moves.is_still:
        return mask.copy()
    from torchvision.transforms import InterpolationMode

    turning = {"interpolation": InterpolationMode.NEAREST, "fill": [float(IGNORED)]}
    # As an image: masks are resized by a rule that is off by half a pixel from that of pixels.
    resizing = {"interpolation": InterpolationMode.NEAREST_EXACT, "antialias": False}
    moved = _moved(_image(mask[..., None]), moves, turning, resizing)
    return np.array(moved[0].numpy(), order="C")


def _window(
    shape: tuple[int, int], smallest: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    side = math.sqrt(rng.uniform(smallest, 1))
    height, width = (max(1, round(side * length)) for length in shape)
    top, left = (
        int(rng.integers(length - part + 1))
        for length, part in zip(shape, (height, width), strict=True)
    )
    return top, left, height, width


def _image(pixels: NDArray[np.uint8]) -> Tensor:
    import torch
    from torchvision import tv_tensors

    # torch warns of read-only arrays, such as those that Pillow gives.
    given = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    image: Tensor = tv_tensors.Image(given.permute(2, 0, 1))
    return image


def _moved_boxes(
    boxes: NDArray[np.float32], shape: tuple[int, int], moves: Moves
) -> NDArray[np.float32]:
    """Boxes where they come to lie, not clipped: their share in sight is to be known."""
    if moves.is_still or not len(boxes):
        return boxes
    import torch
    from torchvision import tv_tensors

    given = tv_tensors.BoundingBoxes(
        torch.from_numpy(boxes.copy()), format="XYXY", canvas_size=shape, clamping_mode=None
    )
    found: NDArray[np.float32] = _moved(given, moves, {}, {}).numpy()
    return found


def _moved(
    value: Tensor, moves: Moves, turning: Mapping[str, Any], resizing: Mapping[str, Any]
) -> Tensor:
    """THE order of the moves, of pixels, boxes and masks alike."""
    from torchvision.transforms.v2 import functional

    found: Any = value
    if moves.angle:
        found = functional.rotate(found, moves.angle, **turning)
    if moves.window is not None:
        size = functional.get_size(found)
        found = functional.resize(functional.crop(found, *moves.window), size, **resizing)
    if moves.flip:
        found = functional.horizontal_flip(found)
    if moves.flip_vertical:
        found = functional.vertical_flip(found)
    moved: Tensor = found
    return moved
