"""Augmentation of images together with their boxes and masks.

The random parameters of a view are drawn once, as a `ViewTransform`. The same value is then applied
to pixels, boxes and masks, in any order, through torchvision's functions.
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
from headstart.data.transforms.preprocess import Interpolation, to_channels_first
from headstart.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MIN_CANVAS_SIDE",
    "MIN_VISIBLE_SHARE",
    "ViewTransform",
    "draw_transform",
    "transform_boxes",
    "transform_mask",
    "transform_pixels",
]

MIN_VISIBLE_SHARE = 0.2
"""Share of its area that a box must have on the canvas; less is not recognisable."""

MIN_CANVAS_SIDE = 2.0
"""Smallest side of a box, in pixels of the canvas; feature maps are too coarse for less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewTransform:
    """Parameters of one view of an image, in the order of application.

    Parameters
    ----------
    angle : float
        Rotation in degrees, counter-clockwise about the centre of the canvas.
    window : (int, int, int, int) or None
        Top, left, height and width of the part that is resized to the whole canvas.
    flip, flip_vertical : bool
        Whether to mirror left and right; up and down.
    brightness, contrast : float
        Factors, for pixels only.

    Examples
    --------
    >>> ViewTransform().is_identity, ViewTransform(flip=True).is_identity
    (True, False)
    """

    angle: float = 0.0
    window: tuple[int, int, int, int] | None = None
    flip: bool = False
    flip_vertical: bool = False
    brightness: float = 1.0
    contrast: float = 1.0

    @property
    def is_identity(self) -> bool:
        """Whether nothing is changed."""
        return self == ViewTransform()


def view_rng(seed: int, view: int, image: str) -> np.random.Generator:
    """Make the random generator of a view from the run's seed, the view's number and the image.

    Parameters
    ----------
    seed, view : int
        0 or more.
    image : str
        The image's digest, hexadecimal.

    Raises
    ------
    UsageError
        If ``seed`` or ``view`` is negative.
    """
    if seed < 0 or view < 0:
        raise UsageError(
            f"Expected `seed` and `view` to be 0 or more, got {seed} and {view}. Count from 0."
        )
    return np.random.default_rng([seed, view, int(image, 16)])


def draw_transform(
    augmentation: Augmentation, shape: tuple[int, int], rng: np.random.Generator
) -> ViewTransform:
    """Draw the parameters of a view.

    Parameters
    ----------
    augmentation : Augmentation
        ``crop`` is the smallest share of the canvas in the window, which has its aspect ratio.
    shape : (int, int)
        Height and width of the canvas.
    rng : numpy.random.Generator
        Source of all randomness.

    Raises
    ------
    UsageError
        If there is a policy: its geometric changes cannot be applied to boxes and masks.

    Examples
    --------
    >>> transform = draw_transform(Augmentation(crop=0.25), (64, 96), np.random.default_rng(0))
    >>> transform.window, transform.flip
    ((5, 4, 55, 82), False)
    """
    if augmentation.policy != "none":
        raise UsageError(
            "Expected no augmentation policy for detection and segmentation, got "
            f"{augmentation.policy!r}. Use flip, rotation, crop, brightness and contrast."
        )
    max_angle = augmentation.rotation
    angle = rng.uniform(-max_angle, max_angle) if max_angle else 0.0
    window = _draw_window(shape, augmentation.crop, rng) if augmentation.crop < 1 else None
    flips = [
        bool(is_enabled and rng.random() < 0.5)
        for is_enabled in (augmentation.flip, augmentation.flip_vertical)
    ]
    factors = [
        1 + rng.uniform(-max_change, max_change) if max_change else 1.0
        for max_change in (augmentation.brightness, augmentation.contrast)
    ]
    return ViewTransform(
        angle=angle,
        window=window,
        flip=flips[0],
        flip_vertical=flips[1],
        brightness=factors[0],
        contrast=factors[1],
    )


def transform_pixels(
    pixels: NDArray[np.uint8],
    transform: ViewTransform,
    *,
    interpolation: Interpolation = "bilinear",
    fill: Sequence[float] | None = None,
) -> NDArray[np.uint8]:
    """Apply a transform to an image.

    Parameters
    ----------
    pixels : array, uint8, shape (H, W, 3)
        Not changed.
    transform : ViewTransform
    interpolation : {"bilinear", "bicubic"}
        For resizing the window, antialiased; rotation is bilinear.
    fill : sequence of three floats, optional
        Colour, 0 to 255, of pixels from outside the image; by default the mean colour.

    Returns
    -------
    array, uint8, shape (H, W, 3)
        Own memory.
    """
    if transform.is_identity:
        return pixels.copy()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    colour = pixels.reshape(-1, 3).mean(axis=0) if fill is None else fill
    rotate_options = {
        "interpolation": InterpolationMode.BILINEAR,
        "fill": [float(v) for v in colour],
    }
    resize_options = {"interpolation": InterpolationMode(interpolation), "antialias": True}
    image = _apply_geometry(_to_image(pixels), transform, rotate_options, resize_options)
    if transform.brightness != 1:
        image = functional.adjust_brightness(image, transform.brightness)
    if transform.contrast != 1:
        image = adjust_contrast(image, transform.contrast)
    return np.array(image.permute(1, 2, 0).numpy(), order="C")


def transform_boxes(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    shape: tuple[int, int],
    transform: ViewTransform,
    *,
    min_share: float | NDArray[np.float64] = MIN_VISIBLE_SHARE,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Apply a transform to boxes; a rotated box becomes the box around its corners.

    Parameters
    ----------
    boxes : array, shape (n, 4)
        Left, top, right, bottom in pixels of the canvas.
    labels : array, shape (n,)
    shape : (int, int)
        Height and width of the canvas.
    transform : ViewTransform
    min_share : float or array, shape (n,)
        Share of a box's area that must be on the canvas.

    Returns
    -------
    boxes : array, float32, shape (k, 4)
        Clipped to the canvas.
    labels : array, shape (k,)
    visible : array of bool, shape (n,)
        Which boxes are returned: those with at least ``min_share`` of their area on the
        canvas and sides of at least ``MIN_CANVAS_SIDE``.

    Examples
    --------
    >>> boxes, labels = np.array([[0, 0, 30, 20], [50, 0, 51, 20]], np.float32), np.array([7, 8])
    >>> transform_boxes(boxes, labels, (40, 100), ViewTransform(flip=True))
    (array([[ 70.,   0., 100.,  20.]], dtype=float32), array([7]), array([ True, False]))
    """
    unclipped = _transform_unclipped(
        np.asarray(boxes, dtype=np.float32).reshape(-1, 4), shape, transform
    )
    clipped = np.clip(unclipped, 0, np.array([shape[1], shape[0]] * 2, dtype=np.float32))
    sides = clipped[:, 2:] - clipped[:, :2]
    area = (unclipped[:, 2:] - unclipped[:, :2]).prod(axis=1)
    visible = (sides >= MIN_CANVAS_SIDE).all(axis=1) & (sides.prod(axis=1) >= min_share * area)
    return clipped[visible], labels[visible], visible


def transform_mask(mask: NDArray[np.uint8], transform: ViewTransform) -> NDArray[np.uint8]:
    """Apply a transform to a mask; pixels from outside of it are 255, ignored.

    Parameters
    ----------
    mask : array, uint8, shape (H, W)
        Not changed.
    transform : ViewTransform

    Returns
    -------
    array, uint8, shape (H, W)
        Own memory; no new values except 255.

    Examples
    --------
    >>> transform_mask(np.array([[1, 2, 255]], dtype=np.uint8), ViewTransform(flip=True))
    array([[255,   2,   1]], dtype=uint8)
    """
    if transform.is_identity:
        return mask.copy()
    from torchvision.transforms import InterpolationMode

    rotate_options = {"interpolation": InterpolationMode.NEAREST, "fill": [float(IGNORED)]}
    # Transformed as an image: torchvision resizes masks with a shift of half a pixel.
    resize_options = {"interpolation": InterpolationMode.NEAREST_EXACT, "antialias": False}
    image = _apply_geometry(_to_image(mask[..., None]), transform, rotate_options, resize_options)
    return np.array(image[0].numpy(), order="C")


def _draw_window(
    shape: tuple[int, int], min_share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    scale = math.sqrt(rng.uniform(min_share, 1))
    height, width = (max(1, round(scale * length)) for length in shape)
    top, left = (
        int(rng.integers(length - part + 1))
        for length, part in zip(shape, (height, width), strict=True)
    )
    return top, left, height, width


def _to_image(pixels: NDArray[np.uint8]) -> Tensor:
    from torchvision import tv_tensors

    image: Tensor = tv_tensors.Image(to_channels_first(pixels))
    return image


def _transform_unclipped(
    boxes: NDArray[np.float32], shape: tuple[int, int], transform: ViewTransform
) -> NDArray[np.float32]:
    """Boxes after a transform, not clipped, so that their visible share can be computed."""
    if transform.is_identity or not len(boxes):
        return boxes
    import torch
    from torchvision import tv_tensors

    bounding_boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(boxes.copy()), format="XYXY", canvas_size=shape, clamping_mode=None
    )
    corners: NDArray[np.float32] = _apply_geometry(bounding_boxes, transform, {}, {}).numpy()
    return corners


def _apply_geometry(
    value: Tensor,
    transform: ViewTransform,
    rotate_options: Mapping[str, Any],
    resize_options: Mapping[str, Any],
) -> Tensor:
    """Rotate, crop and flip, in the same order for pixels, boxes and masks."""
    from torchvision.transforms.v2 import functional

    result: Any = value
    if transform.angle:
        result = functional.rotate(result, transform.angle, **rotate_options)
    if transform.window is not None:
        size = functional.get_size(result)
        cropped = functional.crop(result, *transform.window)
        result = functional.resize(cropped, size, **resize_options)
    if transform.flip:
        result = functional.horizontal_flip(result)
    if transform.flip_vertical:
        result = functional.vertical_flip(result)
    transformed: Tensor = result
    return transformed
