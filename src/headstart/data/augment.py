"""Seeded changes to a picture that leave what it shows: more to learn from than there is.

All chance comes from the generator that is given, never from a global state, so that a view is
a function of its numbers: the same in any order, thread or process, and worth keeping.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from headstart.data.policies import POLICIES, Policy, adjust_contrast, apply_policy, rotate
from headstart.data.transforms import Interpolation, central_square
from headstart.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PRESETS", "Augmentation", "augment"]

AUGMENT_VERSION = 1
"""Raised when the same settings give other pixels, so that kept views are not mixed up."""

ASPECTS = (3 / 4, 4 / 3)
"""Width to height of a random crop, before it is resized to a square."""

CROP_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How pictures may be changed while a network learns from them.

    Parameters
    ----------
    flip : bool
        Mirror left and right, every other time. Not for letters, or where sides have meaning.
    flip_vertical : bool
        Turn upside down, every other time; for pictures without an up, as from a microscope.
    rotation : float
        Largest angle in degrees, 0 to 180, to either side.
    brightness, contrast : float
        Largest relative change, 0 to 1: with 0.2 the factor is drawn from 0.8 to 1.2.
    crop : float
        Smallest share of the (resized) picture's area that a random crop keeps, above 0 to 1;
        1 takes the central square, as prediction does. On a canvas (boxes, masks): of the
        canvas's area, with its aspect; 1 takes all of it.
    policy : {"none", "randaugment", "trivialaugment"}
        Operations drawn from a table: two of middle strength, or one of any strength. Not where
        boxes or masks have to follow.
    views : int
        How many different views of a picture training cycles through, so that they can be
        kept; 0 for a new view every epoch.

    Raises
    ------
    UsageError
        If a value cannot be meant.

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

    def __post_init__(self) -> None:
        for name, value, top in (
            ("rotation", self.rotation, 180),
            ("brightness", self.brightness, 1),
            ("contrast", self.contrast, 1),
        ):
            if not 0 <= value <= top:
                raise UsageError(f"Expected `{name}` to be from 0 to {top}, got {value}.")
        if not 0 < self.crop <= 1:
            raise UsageError(
                f"Expected `crop` to be a share of the area above 0, at most 1, got {self.crop}; "
                "do give 1 for the central square."
            )
        if self.policy not in POLICIES:
            raise UnknownNameError("policy", self.policy, POLICIES)
        if self.views < 0:
            raise UsageError(
                f"Expected `views` to be 0 or more, got {self.views}; "
                "do give 0 for a new view every epoch."
            )

    @classmethod
    def named(cls, name: str) -> Self:
        """Return one of ``PRESETS``.

        Raises
        ------
        UnknownNameError
            If there is none of that name.
        """
        if name not in PRESETS:
            raise UnknownNameError("augmentation", name, PRESETS)
        return replace(cls(), **PRESETS[name])

    @property
    def is_off(self) -> bool:
        """Whether every view is the picture as prediction sees it."""
        return replace(self, views=0) == Augmentation()

    def fingerprint(self) -> str:
        """Hash of what a view's pixels depend on; how many views there are does not matter.

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


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "light": {"flip": True, "crop": 0.6},
    "medium": {"flip": True, "crop": 0.35, "rotation": 10.0, "brightness": 0.2, "contrast": 0.2},
    "strong": {"flip": True, "crop": 0.25, "policy": "trivialaugment"},
}
"""From nothing to much. Few pictures and few epochs gain from ``light``; ``strong`` needs many
epochs to pay."""


def augment(
    canvas: NDArray[np.uint8],
    *,
    to: int,
    interpolation: Interpolation,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Draw one view of a picture: rotate, crop, mirror, change light, apply the policy.

    Parameters
    ----------
    canvas : array, uint8, shape (H, W, 3)
        A whole picture as ``Preprocess.resize_only`` gives it; not changed.
    to : int
        Side of the view in pixels, at most H and W.
    interpolation : {"bilinear", "bicubic"}
        Of the crop's resizing, antialiased; rotations are bilinear.
    augmentation : Augmentation
    rng : numpy.random.Generator
        Where all chance comes from.

    Returns
    -------
    array, uint8, shape (to, to, 3)
        Own memory. What comes from outside the picture has the picture's mean colour. With
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
            f"{canvas.shape[0]} x {canvas.shape[1]} pixels; do resize the picture first."
        )
    if augmentation.is_off:
        return central_square(canvas, to).copy()
    import torch

    # torch warns of read-only arrays, such as those that Pillow gives.
    image = torch.from_numpy(np.require(canvas, requirements=["C", "W"])).permute(2, 0, 1)
    fill = [float(value) for value in canvas.reshape(-1, 3).mean(axis=0)]
    if most := augmentation.rotation:  # before the crop, which cuts off most foreign corners
        image = rotate(image, rng.uniform(-most, most), fill)
    image = _cropped(image, to, augmentation.crop, interpolation, rng)
    image = _mirrored(image, augmentation, rng)
    image = _relit(image, augmentation, rng)
    image = apply_policy(image, augmentation.policy, fill=fill, rng=rng)
    return np.array(image.permute(1, 2, 0).numpy(), order="C")


def _cropped(
    image: Tensor, to: int, smallest: float, interpolation: Interpolation, rng: np.random.Generator
) -> Tensor:
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    if smallest == 1:
        cut = central_square(image.permute(1, 2, 0).numpy(), to)  # one rule for where that is
        return torch.from_numpy(cut).permute(2, 0, 1)
    top, left, height, width = _box(image.shape[1], image.shape[2], smallest, rng)
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


def _box(
    height: int, width: int, smallest: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop: any share, any place, nearly square."""
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(smallest, 1)
        aspect = math.exp(rng.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            top = int(rng.integers(height - high + 1))
            left = int(rng.integers(width - wide + 1))
            return top, left, high, wide
    # A long picture, of which no nearly square box keeps so much: the largest one there is.
    high = min(height, round(width / ASPECTS[0]))
    wide = min(width, round(height * ASPECTS[1]))
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    return top, left, high, wide


def _mirrored(image: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    for wanted, axis in ((augmentation.flip, 2), (augmentation.flip_vertical, 1)):
        if wanted and rng.random() < 0.5:
            image = image.flip(axis)
    return image


def _relit(image: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> Tensor:
    from torchvision.transforms.v2 import functional

    for most, adjust in (
        (augmentation.brightness, functional.adjust_brightness),
        (augmentation.contrast, adjust_contrast),
    ):
        if most:
            image = adjust(image, 1 + rng.uniform(-most, most))
    return image
