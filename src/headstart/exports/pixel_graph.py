"""Preprocessing as an ONNX graph: an image of any size to the network's input.

The graph repeats `Preprocess.resize_and_crop` and `Preprocess.normalise`. ``Resize`` runs on uint8:
only there ONNX Runtime computes the antialiased filters of Pillow and torch, within 2 grey levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.data.transforms.preprocess import LONGEST_SIDE, Preprocess

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["IMAGE", "PLACEMENT", "pixel_graph"]

IMAGE = "image"
"""Name of the graph's input: uint8 (height, width, 3)."""
PLACEMENT = "placed"
"""Output of a graph with a canvas: rows and columns of the image on the canvas."""

_RESIZE = (
    'antialias = 1, coordinate_transformation_mode = "half_pixel", cubic_coeff_a = -0.5, '
    "exclude_outside = 1"
)
_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def pixel_graph(preprocess: Preprocess, pixels: str, *, opset: int, ir_version: int) -> ModelProto:
    """Build the graph from an image to normalised pixels of shape (1, 3, height, width).

    Parameters
    ----------
    preprocess : Preprocess
    pixels : str
        Name of the output: the input of the network that follows.
    opset, ir_version : int
        Those of the network.

    Examples
    --------
    >>> expects = Preprocess(
    ...     resize=2, crop=2, interpolation="bilinear", mean=(0.5,) * 3, std=(1.0,) * 3
    ... )
    >>> graph = pixel_graph(expects, "pixels", opset=20, ir_version=10).graph
    >>> [graph.input[0].name, graph.output[0].name]
    ['image', 'pixels']
    """
    import onnx

    height, width = preprocess.shape
    outputs = f"float[1, 3, {height}, {width}] {pixels}"
    if preprocess.canvas is not None:
        outputs += f", int64[2] {PLACEMENT}"
        body = _resize_lines(preprocess, "canvas") + _canvas_lines(preprocess)
    else:
        body = _resize_lines(preprocess, preprocess.fit) + _crop_lines(preprocess)
    text = (
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n'
        f"preprocessing (uint8[height, width, 3] {IMAGE}) => ({outputs}) {{\n"
        + "\n".join(body + _normalise_lines(preprocess, pixels))
        + "\n}"
    )
    return onnx.parser.parse_model(text)


def _ints(name: str, *values: int) -> str:
    numbers = ", ".join(map(str, values))
    return f"{name} = Constant <value = int64[{len(values)}] {{{numbers}}}> ()"


def _colours(name: str, values: tuple[float, float, float]) -> str:
    numbers = ", ".join(f"{value:.9g}" for value in values)
    return f"{name} = Constant <value = float[1, 3, 1, 1] {{{numbers}}}> ()"


def _resize_lines(preprocess: Preprocess, fit: str) -> list[str]:
    """Resize to ``target``, the new height and width; names ``trimmed`` and ``resized``."""
    sizes = {"crop": _crop_target, "squash": _squash_target, "canvas": _canvas_target}[fit]
    mode = _MODES[preprocess.interpolation]
    return [
        _ints("zero", 0),
        _ints("two", 2),
        _ints("image_axes", 0, 1),
        _ints("batch_and_colours", 1, 3),
        "image_shape = Shape (image)",
        "sides = Slice (image_shape, zero, two)",
        *sizes(preprocess),
        "channels_first = Transpose <perm = [2, 0, 1]> (trimmed)",
        "whole = Unsqueeze (channels_first, zero)",
        "resized_shape = Concat <axis = 0> (batch_and_colours, target)",
        f'resized = Resize <{_RESIZE}, mode = "{mode}"> (whole, , , resized_shape)',
    ]


def _crop_target(preprocess: Preprocess) -> list[str]:
    """Shorter side ``resize``; both ends of an image longer than 8 to 1 are cut."""
    return [
        _ints("ratio", LONGEST_SIDE),
        _ints("short_side", preprocess.resize),
        "shorter = ReduceMin <keepdims = 1> (sides)",
        "longest = Mul (shorter, ratio)",
        "excess = Sub (sides, longest)",
        "half_excess = Div (excess, two)",
        "start = Max (half_excess, zero)",
        "end = Sub (sides, start)",
        "trimmed = Slice (image, start, end, image_axes)",
        "trimmed_sides = Sub (end, start)",
        "scaled = Mul (trimmed_sides, short_side)",
        "target = Div (scaled, shorter)",
    ]


def _squash_target(preprocess: Preprocess) -> list[str]:
    return [
        _ints("target", preprocess.resize, preprocess.resize),
        "trimmed = Identity (image)",
    ]


def _canvas_target(preprocess: Preprocess) -> list[str]:
    """As large as possible on the canvas, as `Placement.of`, in double precision."""
    height, width = preprocess.shape
    return [
        _ints("canvas", height, width),
        _ints("one", 1),
        "canvas_numbers = Cast <to = 11> (canvas)",
        "side_numbers = Cast <to = 11> (sides)",
        "scales = Div (canvas_numbers, side_numbers)",
        "scale = ReduceMin <keepdims = 1> (scales)",
        "scaled = Mul (side_numbers, scale)",
        "rounded = Round (scaled)",
        "whole_sides = Cast <to = 7> (rounded)",
        "least_sides = Max (whole_sides, one)",
        "target = Min (least_sides, canvas)",
        "trimmed = Identity (image)",
    ]


def _crop_lines(preprocess: Preprocess) -> list[str]:
    """Cut the central square; halves are rounded to even, as in `central_square`."""
    return [
        _ints("side", preprocess.crop),
        _ints("pixel_axes", 2, 3),
        "half = Constant <value = float[1] {0.5}> ()",
        "spare = Sub (target, side)",
        "spare_number = Cast <to = 1> (spare)",
        "centre = Mul (spare_number, half)",
        "centre_rounded = Round (centre)",
        "corner = Cast <to = 7> (centre_rounded)",
        "opposite = Add (corner, side)",
        "square = Slice (resized, corner, opposite, pixel_axes)",
        "coloured = Cast <to = 1> (square)",
    ]


def _canvas_lines(preprocess: Preprocess) -> list[str]:
    """Put the image at the top left; the padding has the mean colour."""
    return [
        _ints("no_padding", 0, 0, 0, 0, 0, 0),
        _colours("fill", preprocess.fill),
        "padding = Sub (canvas, target)",
        "pads = Concat <axis = 0> (no_padding, padding)",
        "resized_number = Cast <to = 1> (resized)",
        "difference = Sub (resized_number, fill)",
        "padded = Pad (difference, pads)",
        "coloured = Add (padded, fill)",
        f"{PLACEMENT} = Identity (target)",
    ]


def _normalise_lines(preprocess: Preprocess, pixels: str) -> list[str]:
    red, green, blue = preprocess.mean
    deviations = preprocess.std
    return [
        _colours("mean", (255 * red, 255 * green, 255 * blue)),
        _colours("std", (255 * deviations[0], 255 * deviations[1], 255 * deviations[2])),
        "centred = Sub (coloured, mean)",
        f"{pixels} = Div (centred, std)",
    ]
