"""RandAugment and TrivialAugment: operations on a picture, drawn from one table.

torchvision's classes draw from torch's global generator, here the generator is an argument; the
operations themselves are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headstart.errors import UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "POLICIES", "STRENGTHS", "Policy",
    "adjust_contrast", "apply_policy", "draw", "operate", "rotate",
]  # fmt: skip

Policy = Literal["none", "randaugment", "trivialaugment"]
POLICIES: tuple[Policy, ...] = ("none", "randaugment", "trivialaugment")

STRENGTHS = 30
"""Steps of a policy's scale, 0 (no change) to 30 (its whole reach)."""

RANDAUGMENT_OPERATIONS = 2
RANDAUGMENT_STRENGTH = 9
"""Of 30. The paper's scale ends where ours has 10, but its reach is meant for a million pictures;
torchvision, too, takes 9 of 30."""


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """A row of the policies' table.

    ``reach`` is the amount at full strength for RandAugment and for TrivialAugment (its "wide"
    table); with ``signed`` it goes to either side. ``apply`` takes picture, amount and fill.
    """

    apply: Callable[[Tensor, float, list[float]], Tensor]
    reach: tuple[float, float] = (0.0, 0.0)
    signed: bool = False


def apply_policy(
    image: Tensor, policy: Policy, *, fill: list[float], rng: np.random.Generator
) -> Tensor:
    """Change a picture by operations that are drawn.

    Parameters
    ----------
    image : tensor, uint8, shape (3, H, W)
        Not changed.
    policy : {"none", "randaugment", "trivialaugment"}
    fill : list of three floats
        Colour, 0..255, of what comes from outside the picture.
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
    """Turn a picture (3, H, W) by degrees, counter-clockwise, about its centre; bilinear."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    rotated: Tensor = functional.rotate(image, amount, InterpolationMode.BILINEAR, fill=fill)
    return rotated


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Spread (above 1) or narrow a picture (3, H, W) about its mean grey."""
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
