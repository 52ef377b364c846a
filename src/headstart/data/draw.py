"""Drawing of boxes and masks on images, in colours for all kinds of colour vision.

Pure functions from arrays to arrays. Lines have a dark edge, and labels a background in the class's
colour, so that both are visible on any image. Where there is room, the name of the class is written
beside its colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headstart.data.dataset import IGNORED
from headstart.errors import UsageError

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = [
    "class_colours",
    "draw_boxes",
    "draw_mask",
    "hex_colours",
    "is_background",
    "resize_to_fit",
]

Pixels = NDArray[np.uint8]
Rectangle = tuple[float, float, float, float]

# Okabe and Ito (2008), "Color universal design", without black; then "muted" of Tol (2021),
# "Colour schemes". Both were designed for all kinds of colour vision.
COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (51, 34, 136), (136, 34, 85), (153, 153, 51), (68, 170, 153),
    (204, 102, 119), (17, 119, 51), (221, 204, 119),
)  # fmt: skip

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
DARK, LIGHT = (20, 20, 20), (255, 255, 255)

BACKGROUND = "background"
"""Class of everything else; masks of it are not tinted."""


def class_colours(n_classes: int) -> Pixels:
    """Colours of classes by index: fourteen colours, then darker versions of them.

    Returns
    -------
    array, uint8, shape (n_classes, 3)
        Colours repeat from the 29th class on.

    Examples
    --------
    >>> class_colours(2)
    array([[230, 159,   0],
           [ 86, 180, 233]], dtype=uint8)
    """
    colours = np.asarray(COLOURS, dtype=np.float64)
    table = np.concatenate([colours, 0.55 * colours])
    return table[np.arange(n_classes) % len(table)].round().astype(np.uint8)


def hex_colours(n_classes: int) -> tuple[str, ...]:
    """Colours of classes in HTML notation.

    >>> hex_colours(1)
    ('#e69f00',)
    """
    return tuple("#{:02x}{:02x}{:02x}".format(*rgb) for rgb in class_colours(n_classes).tolist())


def is_background(name: str) -> bool:
    """Whether a class stands for everything else, so that masks of it are not tinted.

    >>> is_background("Background"), is_background("sky")
    (True, False)
    """
    return name.strip().lower() == BACKGROUND


def resize_to_fit(image: Pixels, long_side: int) -> tuple[Pixels, float]:
    """Resize an image so that its longer side has ``long_side`` pixels.

    Parameters
    ----------
    image : array, uint8, shape (height, width, 3)
    long_side : int

    Returns
    -------
    array, uint8, shape (rows, columns, 3)
    float
        Scale factor, also for boxes.

    Examples
    --------
    >>> small, scale = resize_to_fit(np.zeros((20, 40, 3), np.uint8), 10)
    >>> small.shape, scale
    ((5, 10, 3), 0.25)
    """
    from PIL import Image

    height, width = image.shape[:2]
    scale = long_side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    kernel = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size, kernel, reducing_gap=2.0)), scale


def draw_boxes(
    image: Pixels,
    boxes: ArrayLike,
    labels: ArrayLike,
    scores: ArrayLike | None = None,
    *,
    classes: Sequence[str],
) -> Pixels:
    """Draw boxes with the names of their classes, and with scores if given.

    Parameters
    ----------
    image : array, uint8, shape (height, width, 3)
    boxes : array, shape (n, 4)
        Left, top, right, bottom in the image's pixels.
    labels : array of int, shape (n,)
        Indices into ``classes``.
    scores : array, shape (n,), optional
        From 0 to 1. Labels are written in descending order; a label that would overlap another
        is left out, its box is not.
    classes : sequence of str

    Returns
    -------
    array, uint8, shape (height, width, 3)
        A new array.

    Raises
    ------
    UsageError
        If lengths differ, or a label is out of range.

    Examples
    --------
    >>> night = np.zeros((60, 80, 3), np.uint8)
    >>> image = draw_boxes(night, [[10, 20, 70, 50]], [0], classes=["cell"])
    >>> image[35, 10].tolist(), image[35, 40].tolist()
    ([230, 159, 0], [0, 0, 0])
    """
    from PIL import Image, ImageDraw

    corners, indices, confidences = _check_boxes(boxes, labels, scores, len(classes))
    canvas = Image.fromarray(_require_rgb(image))
    pen = ImageDraw.Draw(canvas)
    palette = [tuple(map(int, rgb)) for rgb in class_colours(len(classes))]
    if confidences is None:
        order = np.arange(len(indices))
    else:
        order = np.argsort(-confidences, kind="stable")
    line_width = max(1, round(min(canvas.size) / 160))
    for i in order[::-1]:  # the most confident box lies on top
        _draw_outline(pen, corners[i], palette[indices[i]], line_width)
    occupied: list[Rectangle] = []
    font = _load_font(canvas.size)
    for i in order:
        text = classes[indices[i]] + ("" if confidences is None else f" {confidences[i]:.2f}")
        _draw_label(pen, corners[i], text, palette[indices[i]], font, occupied)
    return np.asarray(canvas)


def draw_mask(
    image: Pixels, mask: NDArray[np.uint8], classes: Sequence[str], alpha: float = 0.55
) -> Pixels:
    """Tint the image, in grey, by the class of each pixel, with a line between classes.

    Parameters
    ----------
    image : array, uint8, shape (height, width, 3)
    mask : array, uint8, shape (height, width)
        Indices into ``classes``. Ignored pixels (255), and those of a class called
        ``background``, are unchanged.
    classes : sequence of str
    alpha : float
        Opacity of the tint, 0 to 1.

    Returns
    -------
    array, uint8, shape (height, width, 3)
        A new array.

    Raises
    ------
    UsageError
        If the sizes differ, or a value is out of range.

    Examples
    --------
    >>> grey = np.full((2, 2, 3), 100, np.uint8)
    >>> mask = np.array([[0, 0], [255, 255]], np.uint8)
    >>> draw_mask(grey, mask, ["leaf"], alpha=1.0)[:, 0].tolist()
    [[230, 159, 0], [100, 100, 100]]
    """
    pixels = _require_rgb(image)
    if pixels.shape[:2] != mask.shape or not 0 <= alpha <= 1:
        raise UsageError(
            f"Expected a mask of the image's size {pixels.shape[:2]} and `alpha` from 0 to 1, got "
            f"{mask.shape} and {alpha}."
        )
    if ((mask >= len(classes)) & (mask != IGNORED)).any():
        raise UsageError(
            f"Expected indices of {len(classes)} classes in the mask, got "
            f"{int(mask[mask != IGNORED].max())}. Pass the classes that the mask was made with."
        )
    colours, share = np.zeros((256, 3)), np.zeros((256, 1))
    colours[: len(classes)] = class_colours(len(classes))
    share[: len(classes), 0] = [0.0 if is_background(name) else alpha for name in classes]
    # The tinted image is grey, so that its own colours are not mistaken for classes.
    grey = np.where(share[mask] > 0, (pixels @ LUMINANCE)[..., None], pixels)
    mixed = grey * (1 - share[mask]) + colours[mask] * share[mask]
    edges = _find_edges(mask)
    mixed[edges] = (1 - alpha) * mixed[edges] + alpha * np.asarray(LIGHT)
    return mixed.round().astype(np.uint8)


def _find_edges(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels whose lower or right neighbour has another class; ignored pixels do not count."""
    edges = np.zeros(mask.shape, dtype=bool)
    edges[:-1] |= _differs(mask[:-1], mask[1:])
    edges[:, :-1] |= _differs(mask[:, :-1], mask[:, 1:])
    return edges


def _differs(mask: NDArray[np.uint8], neighbour: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((mask != neighbour) & (mask != IGNORED) & (neighbour != IGNORED))


def _require_rgb(image: Pixels) -> Pixels:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UsageError(
            f"Expected an image of shape (height, width, 3), uint8, got {image.shape}, "
            f"{image.dtype}. Decode it with headstart.data.images.decode."
        )
    return image


def _check_boxes(
    boxes: ArrayLike, labels: ArrayLike, scores: ArrayLike | None, n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64] | None]:
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    indices = np.asarray(labels, dtype=np.intp).reshape(-1)
    confidences = None if scores is None else np.asarray(scores, dtype=np.float64).reshape(-1)
    n_scores = len(corners) if confidences is None else len(confidences)
    if not len(indices) == len(corners) == n_scores:
        raise UsageError(
            f"Expected one label (and one score, if any) for each of {len(corners)} boxes, got "
            f"{len(indices)} labels and {'no' if confidences is None else n_scores} scores."
        )
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_classes:
        raise UsageError(
            f"Expected labels from 0 to {n_classes - 1}, got {indices.min()} to {indices.max()}. "
            "Pass the classes that the labels were made with."
        )
    return corners, indices, confidences


def _draw_outline(pen: ImageDraw, box: NDArray[np.float64], colour: Any, line_width: int) -> None:
    """Draw a line in the class's colour between two dark lines."""
    left, top, right, bottom = (round(float(side)) for side in box)
    right, bottom = max(right - 1, left), max(bottom - 1, top)  # the last pixel inside
    for margin, line_colour, width in ((1, DARK, line_width + 2), (0, colour, line_width)):
        sides = (left - margin, top - margin, right + margin, bottom + margin)
        pen.rectangle(sides, outline=line_colour, width=width)


def _draw_label(
    pen: ImageDraw,
    box: NDArray[np.float64],
    text: str,
    colour: Any,
    font: FreeTypeFont | ImageFont,
    occupied: list[Rectangle],
) -> None:
    """Write a label above, inside or below the box, where no other label lies; else not at all."""
    width, height = pen.textbbox((0, 0), text, font=font)[2:]
    width, height = width + 4, height + 3
    canvas_width, canvas_height = pen.im.size
    left = min(max(float(box[0]), 0.0), max(canvas_width - width, 0))
    for top in (box[1] - height, box[1] + 2, box[3] + 1):
        label = (left, float(top), left + width, float(top) + height)
        is_inside = label[1] >= 0 and label[3] <= canvas_height
        if is_inside and not any(_overlaps(label, other) for other in occupied):
            pen.rectangle(label, fill=colour)
            pen.text((left + 2, float(top) + 1), text, fill=_text_colour(colour), font=font)
            occupied.append(label)
            return


def _overlaps(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_colour(colour: Sequence[int]) -> tuple[int, int, int]:
    """Dark or light text, by the luminance of the label's background."""
    return DARK if float(np.asarray(colour) @ LUMINANCE) > 110 else LIGHT


def _load_font(size: tuple[int, int]) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(min(max(min(size) / 26, 10.0), 28.0))
