"""What a head for masks is built of, before there are any numbers: kinds, options, maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from headstart.backbones.spec import Stage
from headstart.data.dataset import IGNORED
from headstart.errors import UnknownNameError, UsageError

__all__ = ["KINDS", "MaskShape", "Option", "resolved", "taps_of"]

Option = int | float | tuple[int, ...]

# Narrower than the libraries' own, so that on a CPU a decoder costs less than a ResNet-18.
KINDS: dict[str, dict[str, Option]] = {
    "unet": {"widths": (128, 64, 32, 16), "widest": 512},
    "unetplusplus": {"widths": (64, 64, 32, 16), "widest": 64},
    "deeplabv3plus": {"width": 128, "rates": (), "dropout": 0.1},
    "fpn": {"pyramid": 128, "width": 64, "dropout": 0.2},
    "deeplabv3": {"rates": ()},
}
"""The kinds, with what each can be told and what it does when it is not told."""

RATE = 6 / 33
"""The first dilation by the side of the map, as DeepLab sets it: 6, 12, 18 on 33 places."""
MOST = {"channels": 65_536, "width": 4096, "side": 4096, "rate": 256, "taps": 8, "stride": 256}
"""A description that asks for more is a way to take memory."""


@dataclass(frozen=True, kw_only=True)
class MaskShape:
    """Everything of a head but its numbers.

    Parameters
    ----------
    kind : str
        A key of ``KINDS``.
    channels, strides : tuple of int
        Channels, and pixels of the canvas for one place, of every map that is read, from fine to
        coarse.
    n_classes : int
        2 to 255, a background included: 255 marks pixels that are ignored.
    canvas : (int, int)
        Height and width of what the backbone reads, and of the logits, in pixels.
    options : mapping
        All of ``KINDS[kind]``; ``resolved`` makes it.

    Raises
    ------
    UnknownNameError, UsageError
        If there is no such kind, or values do not fit together.

    Examples
    --------
    >>> strides = (4, 8, 16, 32)
    >>> options = resolved("unet", strides, (64, 90), {})
    >>> shape = MaskShape(
    ...     kind="unet",
    ...     channels=(64, 128, 256, 512),
    ...     strides=strides,
    ...     n_classes=3,
    ...     canvas=(64, 90),
    ...     options=options,
    ... )
    >>> shape.padded
    (64, 96)
    """

    kind: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    n_classes: int
    canvas: tuple[int, int]
    options: Mapping[str, Option]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("kind of head", self.kind, KINDS)
        _require_maps(self)
        _require_canvas(self)
        _require_options(self)

    @property
    def padded(self) -> tuple[int, int]:
        """The canvas, filled up so that every map has a whole number of places."""
        last = self.strides[-1]
        height, width = (-(-side // last) * last for side in self.canvas)
        return height, width


def taps_of(kind: str, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Choose what of a backbone a head reads: the last stage of each stride that it needs.

    Parameters
    ----------
    kind : str
        A key of ``KINDS``.
    stages : sequence of Stage
        All of the backbone's.

    Returns
    -------
    tuple of Stage
        From fine to coarse, which is the order in which they run.

    Raises
    ------
    UnknownNameError
        If there is no such kind.
    UsageError
        If the backbone has no maps of the strides needed.

    Examples
    --------
    >>> strides = {"stem": 4, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
    >>> stages = [Stage(name=k, channels=8, stride=v) for k, v in strides.items()]
    >>> [stage.name for stage in taps_of("deeplabv3plus", stages)]
    ['layer1', 'layer4']
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of head", kind, KINDS)
    last = {stage.stride: stage for stage in stages if stage.stride >= 2}
    found = tuple(last[stride] for stride in sorted(last))
    if len(found) < 2:  # tokens have one stride; so has a network that is not known in stages
        raise _unfit(kind, "two or more strides", stages)
    if kind == "unet":
        return found
    if kind == "deeplabv3":
        return found[-1:]
    coarse = tuple(stage for stage in found if stage.stride >= 4)
    if kind == "deeplabv3plus":
        if len(coarse) < 2:
            raise _unfit(kind, "two strides from 4 on", stages)
        return (coarse[0], coarse[-1])
    if kind == "fpn":
        coarse = coarse[-4:]
    doubles = all(b.stride == 2 * a.stride for a, b in pairwise(coarse))
    if not doubles or len(coarse) < (4 if kind == "fpn" else 2):
        raise _unfit(kind, "strides 4, 8, 16 and 32", stages)
    return coarse


def _unfit(kind: str, wanted: str, stages: Sequence[Stage]) -> UsageError:
    got = ", ".join(f"{stage.name} at {stage.stride}" for stage in stages)
    return UsageError(
        f"Expected a backbone that gives maps at {wanted} for {kind}, got {got}; do choose a "
        "convolutional backbone in stages, such as torchvision/resnet18, or another head."
    )


def resolved(
    kind: str, strides: Sequence[int], canvas: tuple[int, int], options: Mapping[str, Option]
) -> dict[str, Option]:
    """Say what a head is not told; ``MaskShape`` checks the values.

    Parameters
    ----------
    kind : str
        A key of ``KINDS``.
    strides : sequence of int
        Of the maps that are read.
    canvas : (int, int)
        Height and width.
    options : mapping
        Some of ``KINDS[kind]``.

    Raises
    ------
    UnknownNameError
        If there is no such option.

    Examples
    --------
    >>> resolved("deeplabv3plus", (4, 16), (512, 512), {"width": 64})
    {'width': 64, 'rates': (6, 12, 17), 'dropout': 0.1}
    """
    for name in options:
        if name not in KINDS[kind]:
            raise UnknownNameError(f"option of {kind}", name, KINDS[kind])
    found = KINDS[kind] | dict(options)
    if "widths" in found and "widths" not in options:
        steps = _steps(kind, strides)
        usual: Any = KINDS[kind]["widths"]
        found["widths"] = (*usual, *(usual[-1:] * steps))[:steps]
    if "rates" in found and not found["rates"]:
        first = RATE * min(canvas) / strides[-1]
        found["rates"] = tuple(max(k, round(k * first)) for k in (1, 2, 3))
    return found


def _steps(kind: str, strides: Sequence[int]) -> int:
    """Steps of a U-Net, up to stride 2: from there the logits are interpolated."""
    return len(strides) - 1 if kind == "unet" and strides[0] == 2 else len(strides)


def _require_maps(shape: MaskShape) -> None:
    strides, n_maps = shape.strides, len(shape.strides)
    whole = _whole(shape.channels, MOST["channels"]) and _whole(strides, MOST["stride"])
    if (
        not 1 <= n_maps <= MOST["taps"]
        or len(shape.channels) != n_maps
        or not whole
        or any(stride < 2 or stride & (stride - 1) for stride in strides)
        or list(strides) != sorted(set(strides))
    ):
        raise UsageError(
            "Expected maps of 1 channel or more at strides that are powers of 2, from fine to "
            f"coarse, got channels {shape.channels} at strides {strides}."
        )
    least = {"deeplabv3": 1, "fpn": 4}.get(shape.kind, 2)
    doubles = all(b == 2 * a for a, b in pairwise(strides))
    if n_maps < least or (shape.kind in {"unetplusplus", "fpn"} and not doubles):
        raise UsageError(f"Expected other maps for {shape.kind}, got strides {strides}.")


def _require_canvas(shape: MaskShape) -> None:
    canvas = shape.canvas
    if not _whole((shape.n_classes,), IGNORED) or shape.n_classes < 2:
        raise UsageError(f"Expected 2 to {IGNORED} classes, got {shape.n_classes}.")
    if not _whole(canvas, MOST["side"]) or len(canvas) != 2:
        raise UsageError(
            f"Expected a canvas of (height, width) from 1 to {MOST['side']} pixels a side, got "
            f"{canvas}; do choose another `--size`."
        )
    if shape.kind.startswith("deeplab") and shape.padded == (shape.strides[-1],) * 2:
        raise UsageError(
            f"Expected more than one place at stride {shape.strides[-1]} for {shape.kind}, got a "
            f"canvas of {canvas}; do take larger images, or the head 'unet'."
        )


def _require_options(shape: MaskShape) -> None:
    kind, options = shape.kind, shape.options
    if set(options) != set(KINDS[kind]):
        raise UsageError(
            f"Expected the options {sorted(KINDS[kind])} of {kind}, got {sorted(options)}."
        )
    for name, value in options.items():
        good, meant = _judged(shape, name, value)
        if not good:
            raise UsageError(f"Expected `{name}` of {kind} to be {meant}, got {value!r}.")


def _judged(shape: MaskShape, name: str, value: Any) -> tuple[bool, str]:
    """Whether a value can be meant, and what is expected."""
    if name == "dropout":
        return type(value) in {int, float} and 0 <= value < 1, "from 0 to below 1"
    if name in {"rates", "widths"}:
        n = 3 if name == "rates" else _steps(shape.kind, shape.strides)
        most = MOST["rate"] if name == "rates" else MOST["width"]
        meant = f"{n} whole numbers from 1 to {most}, for maps at strides {shape.strides}"
        return isinstance(value, tuple) and len(value) == n and _whole(value, most), meant
    if shape.kind == "fpn" and name == "width":  # its groups are 32
        return _whole((value,), MOST["width"]) and value % 32 == 0, "a multiple of 32"
    return _whole((value,), MOST["width"]), f"a whole number from 1 to {MOST['width']}"


def _whole(values: Sequence[Any], most: int) -> bool:
    return all(type(value) is int and 1 <= value <= most for value in values)
