"""RandAugment and TrivialAugment: operations on an image, drawn from one table.

torchvision's classes draw from torch's global generator, here the generator is an argument; the
operations themselves are torchvision's.
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

from headstart.data.transforms.preprocess import Interpolation, central_square
from headstart.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "POLICIES",
    "PRESETS",
    "STRENGTHS",
    "Augmentation",
    "Policy",
    "adjust_contrast",
    "apply_policy",
    "augment",
    "draw",
    "operate",
    "rotate",
]

Policy = Literal["none", "randaugment", "trivialaugment"]
POLICIES: tuple[Policy, ...] = ("none", "randaugment", "trivialaugment")

STRENGTHS = 30
"""Steps of a policy's scale, 0 (no change) to 30 (its whole reach)."""

RANDAUGMENT_OPERATIONS = 2
RANDAUGMENT_STRENGTH = 9
"""Of 30. The paper's scale ends where ours has 10, but its reach is meant for a million images;
torchvision, too, takes 9 of 30."""


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """A row of the policies' table.

    ``reach`` is the amount at full strength for RandAugment and for TrivialAugment (its "wide"
    table); with ``signed`` it goes to either side. ``apply`` takes image, amount and fill.
    """

    apply: Callable[[Tensor, float, list[float]], Tensor]
    reach: tuple[float, float] = (0.0, 0.0)
    signed: bool = False


def apply_policy(
    image: Tensor, policy: Policy, *, fill: list[float], rng: np.random.Generator
) -> Tensor:
    """Change an image by operations that are drawn.

    Parameters
    ----------
    image : tensor, uint8, shape (3, H, W)
        Not changed.
    policy : {"none", "randaugment", "trivialaugment"}
    fill : list of three floats
        Colour, 0..255, of what comes from outside the image.
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
    for name, amount in draw(policy, rng):
        image = operate(image, name, amount, fill)
    return image


def draw(policy: Policy, rng: np.random.Generator) -> list[tuple[str, float]]:
    """Draw operations and their amounts, each in the operation's own unit.

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
    >>> draw("none", np.random.default_rng(0))
    []
    >>> len(draw("randaugment", np.random.default_rng(0)))
    2
    """
    if policy not in POLICIES:
        raise UnknownNameError("policy", policy, POLICIES)
    if policy == "none":
        return []
    if policy == "randaugment":
        return [_drawn(0, RANDAUGMENT_STRENGTH, rng) for _ in range(RANDAUGMENT_OPERATIONS)]
    return [_drawn(1, int(rng.integers(STRENGTHS + 1)), rng)]


def _drawn(table: int, strength: int, rng: np.random.Generator) -> tuple[str, float]:
    operations = _operations()
    name = tuple(operations)[int(rng.integers(len(operations)))]
    amount = operations[name].reach[table] * strength / STRENGTHS
    backwards = rng.random() < 0.5 and operations[name].signed
    return name, -amount if backwards else amount


def operate(image: Tensor, name: str, amount: float, fill: list[float]) -> Tensor:
    """Carry out one operation of the table.

    Parameters
    ----------
    image : tensor, uint8, shape (3, H, W)
    name : str
    amount : float
        0 changes nothing (``autocontrast`` and ``equalize`` have no amount): degrees, shares of
        the side, slopes, relative changes, bits dropped, the share of greys that is inverted.
    fill : list of three floats

    Raises
    ------
    UnknownNameError
        If there is no such operation.

    Examples
    --------
    >>> import torch
    >>> image = torch.full((3, 1, 1), 200, dtype=torch.uint8)
    >>> operate(image, "brightness", -0.5, [0.0, 0.0, 0.0]).flatten().tolist()
    [100, 100, 100]
    """
    operations = _operations()
    if name not in operations:
        raise UnknownNameError("operation", name, operations)
    return operations[name].apply(image, amount, fill)


def rotate(image: Tensor, amount: float, fill: list[float]) -> Tensor:
    """Turn an image (3, H, W) by degrees, counter-clockwise, about its centre; bilinear."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    rotated: Tensor = functional.rotate(image, amount, InterpolationMode.BILINEAR, fill=fill)
    return rotated


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Spread (above 1) or narrow an image (3, H, W) about its mean grey."""
    # torchvision's mean of floats has other bits on other numbers of threads; of whole numbers
    # it has not.
    from torchvision.transforms.v2 import functional

    grey = functional.rgb_to_grayscale(image)
    mean = int(grey.sum()) / grey.numel()
    changed: Tensor = (image * factor + mean * (1 - factor)).clamp(0, 255).to(image.dtype)
    return changed


@cache
def _operations() -> Mapping[str, _Operation]:
    """Both papers' table: RandAugment's 14 operations (Cubuk et al., section 3)."""
    from torchvision.transforms.v2 import functional as f

    light: dict[str, Any] = {"reach": (0.9, 0.99), "signed": True}
    return {
        "identity": _Operation(apply=lambda x, a, fill: x),
        "autocontrast": _Operation(apply=lambda x, a, fill: f.autocontrast(x)),
        "equalize": _Operation(apply=lambda x, a, fill: f.equalize(x)),
        "rotate": _Operation(apply=rotate, reach=(30, 135), signed=True),
        "shear_x": _Operation(apply=_shear_x, reach=(0.3, 0.99), signed=True),
        "shear_y": _Operation(apply=_shear_y, reach=(0.3, 0.99), signed=True),
        # In shares of the side; TrivialAugment's 32 pixels are of 224.
        "translate_x": _Operation(apply=_translate_x, reach=(150 / 331, 32 / 224), signed=True),
        "translate_y": _Operation(apply=_translate_y, reach=(150 / 331, 32 / 224), signed=True),
        "brightness": _Operation(apply=lambda x, a, fill: f.adjust_brightness(x, 1 + a), **light),
        "colour": _Operation(apply=lambda x, a, fill: f.adjust_saturation(x, 1 + a), **light),
        "contrast": _Operation(apply=lambda x, a, fill: adjust_contrast(x, 1 + a), **light),
        "sharpness": _Operation(apply=lambda x, a, fill: f.adjust_sharpness(x, 1 + a), **light),
        "posterize": _Operation(
            apply=lambda x, a, fill: f.posterize(x, 8 - round(a)), reach=(4, 6)
        ),
        "solarize": _Operation(apply=lambda x, a, fill: f.solarize(x, 255 * (1 - a)), reach=(1, 1)),
    }


def _moved(image: Tensor, fill: list[float], **by: list[float]) -> Tensor:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    how: dict[str, Any] = {"translate": [0, 0], "shear": [0.0, 0.0], **by}
    moved: Tensor = functional.affine(
        image, angle=0.0, scale=1.0, interpolation=InterpolationMode.BILINEAR, fill=fill, **how
    )
    return moved


def _shear_x(image: Tensor, amount: float, fill: list[float]) -> Tensor:
    return _moved(image, fill, shear=[math.degrees(math.atan(amount)), 0.0], center=[0.0, 0.0])


def _shear_y(image: Tensor, amount: float, fill: list[float]) -> Tensor:
    return _moved(image, fill, shear=[0.0, math.degrees(math.atan(amount))], center=[0.0, 0.0])


def _translate_x(image: Tensor, amount: float, fill: list[float]) -> Tensor:
    return _moved(image, fill, translate=[int(amount * image.shape[2]), 0])


def _translate_y(image: Tensor, amount: float, fill: list[float]) -> Tensor:
    return _moved(image, fill, translate=[0, int(amount * image.shape[1])])


AUGMENT_VERSION = 1
"""Raised when the same settings give other pixels, so that kept views are not mixed up."""

ASPECTS = (3 / 4, 4 / 3)
"""Width to height of a random crop, before it is resized to a square."""

CROP_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How images may be changed while a network learns from them.

    Parameters
    ----------
    flip : bool
        Mirror left and right, every other time. Not for letters, or where sides have meaning.
    flip_vertical : bool
        Turn upside down, every other time; for images without an up, as from a microscope.
    rotation : float
        Largest angle in degrees, 0 to 180, to either side.
    brightness, contrast : float
        Largest relative change, 0 to 1: with 0.2 the factor is drawn from 0.8 to 1.2.
    crop : float
        Smallest share of the (resized) image's area that a random crop keeps, above 0 to 1;
        1 takes the central square, as prediction does. On a canvas (boxes, masks): of the
        canvas's area, with its aspect; 1 takes all of it.
    policy : {"none", "randaugment", "trivialaugment"}
        Operations drawn from a table: two of middle strength, or one of any strength. Not where
        boxes or masks have to follow.
    views : int
        How many different views of an image training cycles through, so that they can be
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
        """Whether every view is the image as prediction sees it."""
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
"""From nothing to much. Few images and few epochs gain from ``light``; ``strong`` needs many
epochs to pay."""


def augment(
    canvas: NDArray[np.uint8],
    *,
    to: int,
    interpolation: Interpolation,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Draw one view of an image: rotate, crop, mirror, change light, apply the policy.

    Parameters
    ----------
    canvas : array, uint8, shape (H, W, 3)
        A whole image as ``Preprocess.resize_only`` gives it; not changed.
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
        Own memory. What comes from outside the image has the image's mean colour. With
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
            f"{canvas.shape[0]} x {canvas.shape[1]} pixels; do resize the image first."
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
    # A long image, of which no nearly square box keeps so much: the largest one there is.
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
