"""Boxes and masks drawn on images, in colours that colour-blind people can tell apart.

Pure functions from arrays to arrays. Every line has a dark edge, and every label a plate in the
class's colour, so that they are seen on any image; no class is told by its colour alone where
there is room to write its name.
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

__all__ = ["class_colours", "draw_boxes", "draw_mask", "fitted", "hex_colours", "is_background"]

Pixels = NDArray[np.uint8]
Place = tuple[float, float, float, float]

# Okabe and Ito (2008), "Color universal design", without black; then "muted" of Tol (2021),
# "Colour schemes". Both are chosen to be told apart with any kind of colour vision.
COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (51, 34, 136), (136, 34, 85), (153, 153, 51), (68, 170, 153),
    (204, 102, 119), (17, 119, 51), (221, 204, 119),
)  # fmt: skip

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
DARK, LIGHT = (20, 20, 20), (255, 255, 255)

BACKGROUND = "background"
"""A class of this name is everything else: a mask leaves it as the image is."""


def class_colours(n_classes: int) -> Pixels:
    """Colours of classes by their place; beyond fourteen the same ones, darker.

    Returns
    -------
    array, uint8, shape (n_classes, 3)
        From the 29th class on colours come again.

    Examples
    --------
    >>> class_colours(2)
    array([[230, 159,   0],
           [ 86, 180, 233]], dtype=uint8)
    """
    plain = np.asarray(COLOURS, dtype=np.float64)
    table = np.concatenate([plain, 0.55 * plain])
    return table[np.arange(n_classes) % len(table)].round().astype(np.uint8)


def hex_colours(n_classes: int) -> tuple[str, ...]:
    """Colours of classes as a page writes them.

    >>> hex_colours(1)
    ('#e69f00',)
    """
    return tuple("#{:02x}{:02x}{:02x}".format(*one) for one in class_colours(n_classes).tolist())


def is_background(name: str) -> bool:
    """Whether a class stands for everything else, so that masks of it are not tinted.

    >>> is_background("Background"), is_background("sky")
    (True, False)
    """
    return name.strip().lower() == BACKGROUND


def fitted(image: Pixels, long_side: int) -> tuple[Pixels, float]:
    """Make an image's longer side ``long_side`` pixels, up or down, and say by how much.

    Parameters
    ----------
    image : array, uint8, shape (height, width, 3)
    long_side : int

    Returns
    -------
    array, uint8, shape (rows, columns, 3)
    float
        What to multiply boxes by.

    Examples
    --------
    >>> small, scale = fitted(np.zeros((20, 40, 3), np.uint8), 10)
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
    """Draw boxes with their classes, and scores where there are any.

    Parameters
    ----------
    image : array, uint8, shape (height, width, 3)
    boxes : array, shape (n, 4)
        Left, top, right, bottom in the image's pixels.
    labels : array of int, shape (n,)
        Places among ``classes``.
    scores : array, shape (n,), optional
        From 0 to 1. The highest are written first; a text that would lie on another is left
        out, its box is not.
    classes : sequence of str

    Returns
    -------
    array, uint8, shape (height, width, 3)
        A new one.

    Raises
    ------
    UsageError
        If lengths differ, or a label is no class.

    Examples
    --------
    >>> night = np.zeros((60, 80, 3), np.uint8)
    >>> drawn = draw_boxes(night, [[10, 20, 70, 50]], [0], classes=["cell"])
    >>> drawn[35, 10].tolist(), drawn[35, 40].tolist()
    ([230, 159, 0], [0, 0, 0])
    """
    from PIL import Image, ImageDraw

    corners, named, sure = _checked(boxes, labels, scores, len(classes))
    canvas = Image.fromarray(_rgb(image))
    pen = ImageDraw.Draw(canvas)
    palette = [tuple(map(int, one)) for one in class_colours(len(classes))]
    order = np.arange(len(named)) if sure is None else np.argsort(-sure, kind="stable")
    line = max(1, round(min(canvas.size) / 160))
    for i in order[::-1]:  # the surest lie on top
        _outline(pen, corners[i], palette[named[i]], line)
    taken: list[Place] = []
    font = _font(canvas.size)
    for i in order:
        text = classes[named[i]] + ("" if sure is None else f" {sure[i]:.2f}")
        _label(pen, corners[i], text, (palette[named[i]], font), taken)
    return np.asarray(canvas)


def draw_mask(
    image: Pixels, mask: NDArray[np.uint8], classes: Sequence[str], alpha: float = 0.55
) -> Pixels:
    """Tint every pixel by its class, with a line where classes meet; below it the image is grey.

    Parameters
    ----------
    image : array, uint8, shape (height, width, 3)
    mask : array, uint8, shape (height, width)
        Places among ``classes``. Ignored pixels (255), and those of a class called
        ``background``, stay as they are.
    classes : sequence of str
    alpha : float
        Share of the tint, 0 to 1.

    Returns
    -------
    array, uint8, shape (height, width, 3)
        A new one.

    Raises
    ------
    UsageError
        If the sizes differ, or a value is no class.

    Examples
    --------
    >>> grey = np.full((2, 2, 3), 100, np.uint8)
    >>> mask = np.array([[0, 0], [255, 255]], np.uint8)
    >>> draw_mask(grey, mask, ["leaf"], alpha=1.0)[:, 0].tolist()
    [[230, 159, 0], [100, 100, 100]]
    """
    shown = _rgb(image)
    if shown.shape[:2] != mask.shape or not 0 <= alpha <= 1:
        raise UsageError(
            f"Expected a mask of the image's size {shown.shape[:2]} and `alpha` from 0 to 1, got "
            f"{mask.shape} and {alpha}."
        )
    if ((mask >= len(classes)) & (mask != IGNORED)).any():
        raise UsageError(
            f"Expected places among {len(classes)} classes in the mask, got "
            f"{int(mask[mask != IGNORED].max())}; do give the classes that it was made with."
        )
    colours, share = np.zeros((256, 3)), np.zeros((256, 1))
    colours[: len(classes)] = class_colours(len(classes))
    share[: len(classes), 0] = [0.0 if is_background(name) else alpha for name in classes]
    # Under a tint the image is grey: colours of its own would be taken for classes.
    grey = np.where(share[mask] > 0, (shown @ LUMINANCE)[..., None], shown)
    mixed = grey * (1 - share[mask]) + colours[mask] * share[mask]
    mixed[_edges(mask)] = (1 - alpha) * mixed[_edges(mask)] + alpha * np.asarray(LIGHT)
    return mixed.round().astype(np.uint8)


def _edges(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels whose lower or right neighbour is of another class, ignored ones aside."""
    found = np.zeros(mask.shape, dtype=bool)
    found[:-1] |= _differ(mask[:-1], mask[1:])
    found[:, :-1] |= _differ(mask[:, :-1], mask[:, 1:])
    return found


def _differ(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((one != other) & (one != IGNORED) & (other != IGNORED))


def _rgb(image: Pixels) -> Pixels:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UsageError(
            f"Expected an image of shape (height, width, 3), uint8, got {image.shape}, "
            f"{image.dtype}; do decode it with headstart.data.images."
        )
    return image


def _checked(
    boxes: ArrayLike, labels: ArrayLike, scores: ArrayLike | None, n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64] | None]:
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    named = np.asarray(labels, dtype=np.intp).reshape(-1)
    sure = None if scores is None else np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(named) != len(corners) or (sure is not None and len(sure) != len(corners)):
        raise UsageError(
            f"Expected one label (and one score, if any) for each of {len(corners)} boxes, got "
            f"{len(named)} labels and {'no' if sure is None else len(sure)} scores."
        )
    if len(named) and not 0 <= named.min() <= named.max() < n_classes:
        raise UsageError(
            f"Expected labels from 0 to {n_classes - 1}, got {named.min()} to {named.max()}; do "
            "give the classes that the labels were made with."
        )
    return corners, named, sure


def _outline(pen: ImageDraw, box: NDArray[np.float64], colour: Any, line: int) -> None:
    """A line in the class's colour between two dark ones."""
    left, top, right, bottom = (round(float(side)) for side in box)
    right, bottom = max(right - 1, left), max(bottom - 1, top)  # the last pixel inside
    for grown, tone, width in ((1, DARK, line + 2), (0, colour, line)):
        sides = (left - grown, top - grown, right + grown, bottom + grown)
        pen.rectangle(sides, outline=tone, width=width)


def _label(
    pen: ImageDraw,
    box: NDArray[np.float64],
    text: str,
    look: tuple[Any, FreeTypeFont | ImageFont],
    taken: list[Place],
) -> None:
    """Write a text above the box, else inside or below it, where no other text lies."""
    colour, font = look
    width, height = pen.textbbox((0, 0), text, font=font)[2:]
    width, height = width + 4, height + 3
    across, down = pen.im.size
    left = min(max(float(box[0]), 0.0), max(across - width, 0))
    for top in (box[1] - height, box[1] + 2, box[3] + 1):
        place = (left, float(top), left + width, float(top) + height)
        inside = place[1] >= 0 and place[3] <= down
        if inside and not any(_overlap(place, other) for other in taken):
            pen.rectangle(place, fill=colour)
            pen.text((left + 2, float(top) + 1), text, fill=_readable(colour), font=font)
            taken.append(place)
            return


def _overlap(one: Place, other: Place) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _readable(colour: Sequence[int]) -> tuple[int, int, int]:
    """Dark or light text, by the plate's luminance."""
    return DARK if float(np.asarray(colour) @ LUMINANCE) > 110 else LIGHT


def _font(size: tuple[int, int]) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(min(max(min(size) / 26, 10.0), 28.0))
