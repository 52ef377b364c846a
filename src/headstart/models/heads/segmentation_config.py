"""Architecture of segmentation heads: kinds, options, and the backbone's stages they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from headstart.backbones.spec import Stage
from headstart.data.dataset import IGNORED
from headstart.errors import UnknownNameError, UsageError

__all__ = ["SEGMENTATION_HEADS", "MaskShape", "Option", "decoder_stages", "resolve_options"]

Option = int | float | tuple[int, ...]

# Narrower than the libraries' own, so that on a CPU a decoder costs less than a ResNet-18.
SEGMENTATION_HEADS: dict[str, dict[str, Option]] = {
    "unet": {"widths": (128, 64, 32, 16), "widest": 512},
    "unetplusplus": {"widths": (64, 64, 32, 16), "widest": 64},
    "deeplabv3plus": {"width": 128, "rates": (), "dropout": 0.1},
    "fpn": {"pyramid": 128, "width": 64, "dropout": 0.2},
    "deeplabv3": {"rates": ()},
}
"""Kinds of segmentation heads, with the options of each and their defaults."""

RATE = 6 / 33
"""The first dilation as a share of the map's side, as in DeepLab: 6, 12, 18 on 33 cells."""
MAX_VALUES = {
    "channels": 65_536,
    "width": 4096,
    "side": 4096,
    "rate": 256,
    "taps": 8,
    "stride": 256,
}
"""Largest values in a description: larger ones could exhaust the memory."""


@dataclass(frozen=True, kw_only=True)
class MaskShape:
    """Architecture of a segmentation head: everything but its tensors.

    Parameters
    ----------
    kind : str
        A key of ``SEGMENTATION_HEADS``.
    channels, strides : tuple of int
        Channels, and pixels of the canvas for one cell, of every map that the head reads, from
        fine to coarse.
    n_classes : int
        2 to 255, a background included; the value 255 marks ignored pixels.
    canvas : (int, int)
        Height and width of the backbone's input, and of the logits, in pixels.
    options : mapping
        All of ``SEGMENTATION_HEADS[kind]``, from ``resolve_options``.

    Raises
    ------
    UnknownNameError, UsageError
        If there is no such kind, or a value is invalid.

    Examples
    --------
    >>> strides = (4, 8, 16, 32)
    >>> options = resolve_options("unet", strides, (64, 90), {})
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
        if self.kind not in SEGMENTATION_HEADS:
            raise UnknownNameError("kind of head", self.kind, SEGMENTATION_HEADS)
        _require_map_sizes(self)
        _require_canvas(self)
        _require_options(self)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the canvas, padded to a multiple of the last stride."""
        last = self.strides[-1]
        height, width = (-(-side // last) * last for side in self.canvas)
        return height, width


def decoder_stages(kind: str, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Select the stages that a head reads: the last stage of each stride that it needs.

    Parameters
    ----------
    kind : str
        A key of ``SEGMENTATION_HEADS``.
    stages : sequence of Stage
        All stages of the backbone.

    Returns
    -------
    tuple of Stage
        From fine to coarse, in the order they run.

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
    >>> [stage.name for stage in decoder_stages("deeplabv3plus", stages)]
    ['layer1', 'layer4']
    """
    if kind not in SEGMENTATION_HEADS:
        raise UnknownNameError("kind of head", kind, SEGMENTATION_HEADS)
    last = {stage.stride: stage for stage in stages if stage.stride >= 2}
    available = tuple(last[stride] for stride in sorted(last))
    if len(available) < 2:  # a vision transformer has one stride; so has an unknown network
        raise _missing_strides(kind, "two or more strides", stages)
    if kind == "unet":
        return available
    if kind == "deeplabv3":
        return available[-1:]
    coarse = tuple(stage for stage in available if stage.stride >= 4)
    if kind == "deeplabv3plus":
        if len(coarse) < 2:
            raise _missing_strides(kind, "two strides from 4 on", stages)
        return (coarse[0], coarse[-1])
    if kind == "fpn":
        coarse = coarse[-4:]
    is_doubling = all(b.stride == 2 * a.stride for a, b in pairwise(coarse))
    if not is_doubling or len(coarse) < (4 if kind == "fpn" else 2):
        raise _missing_strides(kind, "strides 4, 8, 16 and 32", stages)
    return coarse


def _missing_strides(kind: str, expected: str, stages: Sequence[Stage]) -> UsageError:
    actual = ", ".join(f"{stage.name} at {stage.stride}" for stage in stages)
    return UsageError(
        f"Expected a backbone with maps at {expected} for {kind}, got {actual}. Choose a "
        "convolutional backbone, such as --backbone torchvision/resnet18, or another --head."
    )


def resolve_options(
    kind: str, strides: Sequence[int], canvas: tuple[int, int], options: Mapping[str, Option]
) -> dict[str, Option]:
    """Add the defaults to the options of a head; ``MaskShape`` checks the values.

    Parameters
    ----------
    kind : str
        A key of ``SEGMENTATION_HEADS``.
    strides : sequence of int
        Of the maps that the head reads.
    canvas : (int, int)
        Height and width.
    options : mapping
        Some of ``SEGMENTATION_HEADS[kind]``.

    Raises
    ------
    UnknownNameError
        If there is no such option.

    Examples
    --------
    >>> resolve_options("deeplabv3plus", (4, 16), (512, 512), {"width": 64})
    {'width': 64, 'rates': (6, 12, 17), 'dropout': 0.1}
    """
    for name in options:
        if name not in SEGMENTATION_HEADS[kind]:
            raise UnknownNameError(f"option of {kind}", name, SEGMENTATION_HEADS[kind])
    complete = SEGMENTATION_HEADS[kind] | dict(options)
    if "widths" in complete and "widths" not in options:
        n_steps = _decoder_steps(kind, strides)
        default: Any = SEGMENTATION_HEADS[kind]["widths"]
        complete["widths"] = (*default, *(default[-1:] * n_steps))[:n_steps]
    if "rates" in complete and not complete["rates"]:
        first_rate = RATE * min(canvas) / strides[-1]
        complete["rates"] = tuple(max(k, round(k * first_rate)) for k in (1, 2, 3))
    return complete


def _decoder_steps(kind: str, strides: Sequence[int]) -> int:
    """Number of a U-Net's steps: the last one ends at stride 2, then logits are interpolated."""
    return len(strides) - 1 if kind == "unet" and strides[0] == 2 else len(strides)


def _require_map_sizes(shape: MaskShape) -> None:
    strides, n_maps = shape.strides, len(shape.strides)
    are_counts = _are_counts(shape.channels, MAX_VALUES["channels"]) and _are_counts(
        strides, MAX_VALUES["stride"]
    )
    if (
        not 1 <= n_maps <= MAX_VALUES["taps"]
        or len(shape.channels) != n_maps
        or not are_counts
        # Powers of 2 have one bit set.
        or any(stride < 2 or stride & (stride - 1) for stride in strides)
        or list(strides) != sorted(set(strides))
    ):
        raise UsageError(
            "Expected maps of 1 channel or more at strides that are powers of 2, from fine to "
            f"coarse, got channels {shape.channels} at strides {strides}."
        )
    least = {"deeplabv3": 1, "fpn": 4}.get(shape.kind, 2)
    is_doubling = all(b == 2 * a for a, b in pairwise(strides))
    needs_doubling = shape.kind in {"unetplusplus", "fpn"}
    if n_maps < least or (needs_doubling and not is_doubling):
        expected = f"at least {least} maps" + ", each stride twice the one before" * needs_doubling
        raise UsageError(f"Expected {expected} for {shape.kind}, got strides {strides}.")


def _require_canvas(shape: MaskShape) -> None:
    canvas = shape.canvas
    if not _are_counts((shape.n_classes,), IGNORED) or shape.n_classes < 2:
        raise UsageError(f"Expected 2 to {IGNORED} classes, got {shape.n_classes}.")
    if not _are_counts(canvas, MAX_VALUES["side"]) or len(canvas) != 2:
        raise UsageError(
            f"Expected a canvas of (height, width) from 1 to {MAX_VALUES['side']} pixels a side, "
            f"got {canvas}. Pass another --size."
        )
    if shape.kind.startswith("deeplab") and shape.padded == (shape.strides[-1],) * 2:
        raise UsageError(
            f"Expected maps of more than one cell at stride {shape.strides[-1]} for {shape.kind}, "
            f"got a canvas of {canvas}. Use larger images, or pass --head unet."
        )


def _require_options(shape: MaskShape) -> None:
    kind, options = shape.kind, shape.options
    expected_names = sorted(SEGMENTATION_HEADS[kind])
    if sorted(options) != expected_names:
        raise UsageError(f"Expected the options {expected_names} of {kind}, got {sorted(options)}.")
    for name, value in options.items():
        is_valid, expected = _check_option(shape, name, value)
        if not is_valid:
            raise UsageError(f"Expected `{name}` of {kind} to be {expected}, got {value!r}.")


def _check_option(shape: MaskShape, name: str, value: Any) -> tuple[bool, str]:
    """Whether a value is valid, and what is expected."""
    if name == "dropout":
        return type(value) in {int, float} and 0 <= value < 1, "from 0 to below 1"
    if name in {"rates", "widths"}:
        n = 3 if name == "rates" else _decoder_steps(shape.kind, shape.strides)
        maximum = MAX_VALUES["rate"] if name == "rates" else MAX_VALUES["width"]
        expected = f"{n} whole numbers from 1 to {maximum}, for maps at strides {shape.strides}"
        is_valid = isinstance(value, tuple) and len(value) == n and _are_counts(value, maximum)
        return is_valid, expected
    is_valid = _are_counts((value,), MAX_VALUES["width"])
    if shape.kind == "fpn" and name == "width":  # its group normalisation has 32 groups
        return is_valid and value % 32 == 0, "a multiple of 32"
    return is_valid, f"a whole number from 1 to {MAX_VALUES['width']}"


def _are_counts(values: Sequence[Any], maximum: int) -> bool:
    return all(type(value) is int and 1 <= value <= maximum for value in values)
