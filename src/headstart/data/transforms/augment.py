"""Augmentation: its settings and presets, seeded random views, RandAugment and TrivialAugment.

The operations are torchvision's. torchvision's classes draw from torch's global generator; here the
generator is an argument, so that a view can be repeated.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import html_fields
from headstart.data.transforms.preprocess import Interpolation, central_square, to_channels_first
from headstart.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MAX_STRENGTH",
    "POLICIES",
    "PRESETS",
    "Augmentation",
    "Policy",
    "adjust_contrast",
    "apply_operation",
    "apply_policy",
    "augment",
    "draw_operations",
    "rotate",
]

Policy = Literal["none", "randaugment", "trivialaugment"]
POLICIES: tuple[Policy, ...] = ("none", "randaugment", "trivialaugment")

MAX_STRENGTH = 30
"""Largest strength of a policy's operation; 0 changes nothing."""

RANDAUGMENT_OPERATIONS = 2
RANDAUGMENT_STRENGTH = 9
"""Out of 30, as in torchvision. The paper's scale ends at 10 of ours, but its maximum amounts are
tuned for a million images."""

AUGMENT_VERSION = 1
"""Increased when the same settings produce other pixels, so that cached views are not mixed."""
ASPECTS = (3 / 4, 4 / 3)
"""Range of width / height of a random crop, before it is resized to a square."""
CROP_TRIES = 10
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "light": {"flip": True, "crop": 0.6},
    "medium": {"flip": True, "crop": 0.35, "rotation": 10.0, "brightness": 0.2, "contrast": 0.2},
    "strong": {"flip": True, "crop": 0.25, "policy": "trivialaugment"},
}
"""From no to strong augmentation. ``light`` helps with few images and few epochs; ``strong`` needs
many epochs."""


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """An operation of the policies.

    ``full_amounts`` are the amounts at full strength for RandAugment and for TrivialAugment (its
    "wide" table). With ``signed`` the amount may be negative. ``apply`` takes image, amount and
    fill.
    """

    apply: Callable[[Tensor, float, list[float]], Tensor]
    full_amounts: tuple[float, float] = (0.0, 0.0)
    signed: bool = False


def apply_policy(
    image: Tensor, policy: Policy, *, fill: list[float], rng: np.random.Generator
) -> Tensor:
    """Apply the random operations of a policy to an image.

    Parameters
    ----------
    image : tensor, uint8, shape (3, H, W)
        Not changed.
    policy : {"none", "randaugment", "trivialaugment"}
    fill : list of three floats
        Colour, 0..255, of pixels from outside the image.
    rng : numpy.random.Generator

    Returns
    -------
    tensor, uint8, shape (3, H, W)

    Examples
    --------
    >>> import torch
    >>> image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    >>> rng = np.random.default_rng(0)
    >>> apply_policy(image, "trivialaugment", fill=[0.0, 0.0, 0.0], rng=rng).shape
    torch.Size([3, 32, 32])
    """
    for name, amount in draw_operations(policy, rng):
        image = apply_operation(image, name, amount, fill)
    return image


def draw_operations(policy: Policy, rng: np.random.Generator) -> list[tuple[str, float]]:
    """Draw operations and their amounts; the unit depends on the operation.

    Raises
    ------
    UnknownNameError
        If there is no such policy.

    Reference
    ---------
    Cubuk et al., RandAugment, NeurIPS 2020, figure 2: two operations of one strength. Müller and
    Hutter, TrivialAugment, ICCV 2021, algorithm 1: one operation, its strength uniform.

    Examples
    --------
    >>> draw_operations("none", np.random.default_rng(0))
    []
    >>> len(draw_operations("randaugment", np.random.default_rng(0)))
    2
    """
    if policy not in POLICIES:
        raise UnknownNameError("policy", policy, POLICIES)
    if policy == "none":
        return []
    if policy == "randaugment":
        return [
            _draw_operation(0, RANDAUGMENT_STRENGTH, rng) for _ in range(RANDAUGMENT_OPERATIONS)
        ]
    return [_draw_operation(1, int(rng.integers(MAX_STRENGTH + 1)), rng)]


def _draw_operation(table: int, strength: int, rng: np.random.Generator) -> tuple[str, float]:
    operations = _operations()
    name = tuple(operations)[int(rng.integers(len(operations)))]
    amount = operations[name].full_amounts[table] * strength / MAX_STRENGTH
    is_negative = rng.random() < 0.5 and operations[name].signed
    return name, -amount if is_negative else amount


def apply_operation(image: Tensor, name: str, amount: float, fill: list[float]) -> Tensor:
    """Apply one operation to an image.

    Parameters
    ----------
    image : tensor, uint8, shape (3, H, W)
    name : str
    amount : float
        0 changes nothing. The unit depends on the operation: degrees, shares of the side,
        slopes, relative changes, dropped bits, the share of inverted grey levels.
        ``autocontrast`` and ``equalize`` ignore it.
    fill : list of three floats

    Raises
    ------
    UnknownNameError
        If there is no such operation.

    Examples
    --------
    >>> import torch
    >>> image = torch.full((3, 1, 1), 200, dtype=torch.uint8)
    >>> apply_operation(image, "brightness", -0.5, [0.0, 0.0, 0.0]).flatten().tolist()
    [100, 100, 100]
    """
    operations = _operations()
    if name not in operations:
        raise UnknownNameError("operation", name, operations)
    return operations[name].apply(image, amount, fill)


def rotate(image: Tensor, amount: float, fill: list[float]) -> Tensor:
    """Rotate an image (3, H, W) counter-clockwise about its centre, by degrees; bilinear."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    rotated: Tensor = functional.rotate(image, amount, InterpolationMode.BILINEAR, fill=fill)
    return rotated


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Increase (factor above 1) or reduce the contrast of an image (3, H, W)."""
    # torchvision's mean of floats depends on the number of threads; a mean of integers does not.
    from torchvision.transforms.v2 import functional

    grey = functional.rgb_to_grayscale(image)
    mean = int(grey.sum()) / grey.numel()
    adjusted: Tensor = (image * factor + mean * (1 - factor)).clamp(0, 255).to(image.dtype)
    return adjusted


@cache
def _operations() -> Mapping[str, _Operation]:
    """Table of both policies: RandAugment's 14 operations (Cubuk et al., section 3)."""
    from torchvision.transforms.v2 import functional as f

    light: dict[str, Any] = {"full_amounts": (0.9, 0.99), "signed": True}
    return {
        "identity": _Operation(apply=lambda x, a, fill: x),
        "autocontrast": _Operation(apply=lambda x, a, fill: f.autocontrast(x)),
        "equalize": _Operation(apply=lambda x, a, fill: f.equalize(x)),
        "rotate": _Operation(apply=rotate, full_amounts=(30, 135), signed=True),
        "shear_x": _Operation(apply=_shear_x, full_amounts=(0.3, 0.99), signed=True),
        "shear_y": _Operation(apply=_shear_y, full_amounts=(0.3, 0.99), signed=True),
        # In shares of the side; TrivialAugment's 32 pixels refer to a side of 224.
        "translate_x": _Operation(
            apply=_translate_x, full_amounts=(150 / 331, 32 / 224), signed=True
        ),
        "translate_y": _Operation(
            apply=_translate_y, full_amounts=(150 / 331, 32 / 224), signed=True
        ),
        "brightness": _Operation(apply=lambda x, a, fill: f.adjust_brightness(x, 1 + a), **light),
        "colour": _Operation(apply=lambda x, a, fill: f.adjust_saturation(x, 1 + a), **light),
        "contrast": _Operation(apply=lambda x, a, fill: adjust_contrast(x, 1 + a), **light),
        "sharpness": _Operation(apply=lambda x, a, fill: f.adjust_sharpness(x, 1 + a), **light),
        "posterize": _Operation(
            apply=lambda x, a, fill: f.posterize(x, 8 - round(a)), full_amounts=(4, 6)
        ),
        "solarize": _Operation(
            apply=lambda x, a, fill: f.solarize(x, 255 * (1 - a)), full_amounts=(1, 1)
        ),
    }


def _affine(image: Tensor, fill: list[float], **changes: list[float]) -> Tensor:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    arguments: dict[str, Any] = {"translate": [0, 0], "shear": [0.0, 0.0], **changes}
    moved: Tensor = functional.affine(
        image,
        angle=0.0,
        scale=1.0,
        interpolation=InterpolationMode.BILINEAR,
        fill=fill,
        **arguments,
    )
    return moved


def _shear_x(image: Tensor, amount: float, fill: list[float]) -> Tensor:
    return _affine(image, fill, shear=[math.degrees(math.atan(amount)), 0.0], center=[0.0, 0.0])


def _shear_y(image: Tensor, amount: float, fill: list[float]) -> Tensor:
    return _affine(image, fill, shear=[0.0, math.degrees(math.atan(amount))], center=[0.0, 0.0])


def _translate_x(image: Tensor, amount: float, fill: list[float]) -> Tensor:
    return _affine(image, fill, translate=[int(amount * image.shape[2]), 0])


def _translate_y(image: Tensor, amount: float, fill: list[float]) -> Tensor:
    return _affine(image, fill, translate=[0, int(amount * image.shape[1])])


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of training images.

    Parameters
    ----------
    flip : bool
        Mirror left and right with probability 0.5. Not for letters, or where sides have meaning.
    flip_vertical : bool
        Mirror up and down with probability 0.5; for images without an up, as from a microscope.
    rotation : float
        Largest angle in degrees, 0 to 180, in both directions.
    brightness, contrast : float
        Largest relative change, 0 to 1: with 0.2 the factor is drawn from 0.8 to 1.2.
    crop : float
        Smallest share of the resized image's area in a random crop, above 0 to 1; 1 takes the
        central square, as prediction does. On a canvas (boxes, masks): share of the canvas's
        area, with its aspect ratio; 1 takes all of it.
    policy : {"none", "randaugment", "trivialaugment"}
        Random operations: two of medium strength, or one of random strength. Not for detection
        and segmentation, where boxes and masks follow the image.
    views : int
        Number of different views of an image that training cycles through, so that they can be
        cached; 0 for a new view every epoch.

    Raises
    ------
    UsageError
        If a value is invalid.

    Reference
    ---------
    Cubuk et al., RandAugment, NeurIPS 2020; Müller and Hutter, TrivialAugment, ICCV 2021;
    the random crop: Szegedy et al., Going deeper with convolutions, CVPR 2015, section 6.

    Examples
    --------
    >>> Augmentation().is_off
    True
    >>> Augmentation.named("light")  # doctest: +ELLIPSIS
    Augmentation(flip=True, flip_vertical=False, ..., crop=0.6, policy='none', views=0)
    """

    flip: bool = False
    flip_vertical: bool = False
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    crop: float = 1.0
    policy: Policy = "none"
    views: int = 0

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        for name, value, maximum in (
            ("rotation", self.rotation, 180),
            ("brightness", self.brightness, 1),
            ("contrast", self.contrast, 1),
        ):
            if not 0 <= value <= maximum:
                raise UsageError(f"Expected `{name}` to be from 0 to {maximum}, got {value}.")
        if not 0 < self.crop <= 1:
            raise UsageError(
                f"Expected `crop` to be a share of the area above 0, at most 1, got {self.crop}. "
                "Pass 1 for the central square."
            )
        if self.policy not in POLICIES:
            raise UnknownNameError("policy", self.policy, POLICIES)
        if self.views < 0:
            raise UsageError(
                f"Expected `views` to be 0 or more, got {self.views}. "
                "Pass 0 for a new view every epoch."
            )

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the augmentation of a preset in ``PRESETS``.

        Raises
        ------
        UnknownNameError
            If there is no such preset.
        """
        if name not in PRESETS:
            raise UnknownNameError("augmentation", name, PRESETS)
        return replace(cls(), **PRESETS[name])

    @property
    def is_off(self) -> bool:
        """Whether every view is the unchanged image, as in prediction."""
        return replace(self, views=0) == Augmentation()

    def fingerprint(self) -> str:
        """Hash of the settings that a view's pixels depend on, all but the number of views.

        >>> Augmentation(flip=True).fingerprint() == Augmentation(flip=True, views=4).fingerprint()
        True
        """
        settings = {
            name: float(value) if isinstance(value, int) else value  # 10 and 10.0 are the same
            for name, value in asdict(self).items()
            if name != "views"
        }
        text = json.dumps([AUGMENT_VERSION, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def augment(
    canvas: NDArray[np.uint8],
    *,
    to: int,
    interpolation: Interpolation,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Draw a random view of an image: rotate, crop, mirror, change light, apply the policy.

    Parameters
    ----------
    canvas : array, uint8, shape (H, W, 3)
        A whole image as returned by ``Preprocess.resize_only``; not changed.
    to : int
        Side of the view in pixels, at most H and W.
    interpolation : {"bilinear", "bicubic"}
        For resizing the crop, antialiased; rotations are bilinear.
    augmentation : Augmentation
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    array, uint8, shape (to, to, 3)
        Own memory. Pixels from outside the image have the image's mean colour. With
        ``augmentation.is_off`` it is the central square.

    Raises
    ------
    UsageError
        If the canvas is not of that type, or smaller than the view.

    Examples
    --------
    >>> canvas = np.zeros((64, 80, 3), dtype=np.uint8)
    >>> view = augment(
    ...     canvas, to=48, interpolation="bilinear",
    ...     augmentation=Augmentation.named("strong"), rng=np.random.default_rng(0),
    ... )
    >>> view.shape
    (48, 48, 3)
    """
    if canvas.dtype != np.uint8 or canvas.ndim != 3 or canvas.shape[2] != 3:
        raise UsageError(
            "Expected `canvas` to be uint8 of shape (H, W, 3), "
            f"got {canvas.dtype} of shape {canvas.shape}."
        )
    if not 0 < to <= min(canvas.shape[:2]):
        raise UsageError(
            f"Expected `to` to be at most the canvas' shorter side, got {to} for "
            f"{canvas.shape[0]} x {canvas.shape[1]} pixels. Resize the image first."
        )
    if augmentation.is_off:
        return central_square(canvas, to).copy()
    image = to_channels_first(canvas)
    fill = [float(value) for value in canvas.reshape(-1, 3).mean(axis=0)]
    if max_angle := augmentation.rotation:  # before the crop, which removes most filled corners
        image = rotate(image, rng.uniform(-max_angle, max_angle), fill)
    image = _random_crop(image, to, augmentation.crop, interpolation, rng)
    image = _random_flip(image, augmentation, rng)
    image = _random_light(image, augmentation, rng)
    image = apply_policy(image, augmentation.policy, fill=fill, rng=rng)
    return np.array(image.permute(1, 2, 0).numpy(), order="C")


def _random_crop(
    image: Tensor,
    to: int,
    min_share: float,
    interpolation: Interpolation,
    rng: np.random.Generator,
) -> Tensor:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    if min_share == 1:
        # As in prediction, so that both cut the same square.
        square = central_square(image.permute(1, 2, 0).numpy(), to)
        return to_channels_first(square)
    top, left, height, width = _draw_crop(image.shape[1], image.shape[2], min_share, rng)
    resized: Tensor = functional.resized_crop(
        image,
        top,
        left,
        height,
        width,
        [to, to],
        interpolation=InterpolationMode(interpolation),
        antialias=True,
    )
    return resized


def _draw_crop(
    height: int, width: int, min_share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a nearly square crop."""
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(min_share, 1)
        aspect = math.exp(rng.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(rng.integers(height - rows + 1))
            left = int(rng.integers(width - columns + 1))
            return top, left, rows, columns
    # A long image: no nearly square crop has the minimum area. Take the largest one.
    rows = min(height, round(width / ASPECTS[0]))
    columns = min(width, round(height * ASPECTS[1]))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    return top, left, rows, columns


def _random_flip(image: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    for is_enabled, axis in ((augmentation.flip, 2), (augmentation.flip_vertical, 1)):
        if is_enabled and rng.random() < 0.5:
            image = image.flip(axis)
    return image


def _random_light(image: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    from torchvision.transforms.v2 import functional

    for max_change, adjust in (
        (augmentation.brightness, functional.adjust_brightness),
        (augmentation.contrast, adjust_contrast),
    ):
        if max_change:
            image = adjust(image, 1 + rng.uniform(-max_change, max_change))
    return image
