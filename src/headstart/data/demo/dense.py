"""Example sets for detection and segmentation: symbols on crops of photographs."""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED, Boxes, Dataset, Mask, Palette, Sample
from headstart.data.demo.drawings import DemoImage, coverage, outline, photos, rotate_points

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["boxes", "masks", "sample_on_disk", "write_annotations"]

_KINDS = ("cross", "disc", "triangle")
# Each kind has its own range of hues, so that a short training is sufficient.
_HUES = {"cross": 0.58, "disc": 0.95, "triangle": 0.3}
_PALETTE = Palette(codes=tuple(enumerate(("background", *_KINDS))))
_COUNT = 120

_Symbol = tuple[str, NDArray[np.float64]]


def boxes(rng: np.random.Generator) -> list[DemoImage]:
    """Generate images with zero to four symbols and their boxes.

    Examples
    --------
    >>> image, target, _ = boxes(np.random.default_rng(0))[0]
    >>> image.size == target.size
    True
    """
    images: list[DemoImage] = []
    for _ in range(_COUNT):
        image = _crop_background(rng)
        count = int(rng.choice(5, p=(0.15, 0.2, 0.25, 0.25, 0.15)))
        symbols = _draw_symbols(image.size, count, rng, (11, 25))
        for kind, points in symbols:
            image = _paint_symbol(image, kind, points, rng)
        target = Boxes(
            corners=tuple(_bounding_box(points) for _, points in symbols),
            labels=tuple(kind for kind, _ in symbols),
            size=image.size,
        )
        images.append((image, target, None))
    return images


def masks(rng: np.random.Generator) -> list[DemoImage]:
    """Generate images with zero to five symbols and the class of every pixel.

    Examples
    --------
    >>> image, target, _ = masks(np.random.default_rng(0))[0]
    >>> image.size == target.source.shape[::-1]
    True
    """
    images: list[DemoImage] = []
    for number in range(_COUNT):
        image = _crop_background(rng)
        classes = np.zeros(image.size[::-1], dtype=np.uint8)
        count = int(rng.choice(6, p=(0.08, 0.12, 0.25, 0.25, 0.2, 0.1)))
        for kind, points in _draw_symbols(image.size, count, rng, (14, 32)):
            image = _paint_symbol(image, kind, points, rng)
            inside = np.asarray(coverage(image.size, points)) > 127
            classes[inside] = _PALETTE.names.index(kind)
        if number % 4 == 0:
            _mark_ignored_region(classes, rng)
        present = tuple(n for i, n in enumerate(_PALETTE.names) if (classes == i).any())
        classes.flags.writeable = False  # the set is cached for the next call
        images.append((image, Mask(source=classes, palette=_PALETTE, present=present), None))
    return images


def sample_on_disk(sample: Sample, root: Path) -> Sample:
    """Replace the image and mask of a sample by their paths in a written set.

    Examples
    --------
    >>> sample_on_disk(Sample(image=b"", title="images/1.png"), Path("set")).image.as_posix()
    'set/images/1.png'
    """
    target = sample.target
    if isinstance(target, Mask):
        target = replace(target, source=root / _mask_path(sample))
    return replace(sample, image=root / sample.name, target=target, title=None)


def write_annotations(data: Dataset, root: Path) -> None:
    """Write boxes as COCO JSON, masks as indexed PNG with ``classes.txt``.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> sample = Sample(image=b"", target=Boxes(size=(8, 8)), title="images/1.png")
    >>> write_annotations(Dataset(samples=(sample,), classes=(), kind="detection"), root)
    >>> [path.name for path in root.iterdir()]
    ['annotations.json']
    """
    if data.kind == "detection":
        text = json.dumps(_to_coco(data), indent=1)
        (root / "annotations.json").write_text(text, encoding="utf-8")
    if data.kind == "segmentation":
        (root / "masks").mkdir(parents=True, exist_ok=True)
        for sample in data.samples:
            if isinstance(sample.target, Mask):
                _write_mask(np.asarray(sample.target.source), root / _mask_path(sample))
        lines = "".join(f"{name}\n" for name in data.classes)
        (root / "classes.txt").write_text(lines, encoding="utf-8")


def _crop_background(rng: np.random.Generator) -> Image:
    """Cut a part with enough contrast from a photograph, about 128 x 128 pixels."""
    from PIL import Image

    size = _draw_size(rng)
    while True:
        photo = photos()[int(rng.integers(2))]
        scale = rng.uniform(0.8, 2.0)
        width, height = (round(side * scale) for side in size)
        x = int(rng.integers(photo.width - width))
        y = int(rng.integers(photo.height - height))
        crop = photo.crop((x, y, x + width, y + height))
        if np.asarray(crop.convert("L")).std() > 25:
            return crop.resize(size, Image.Resampling.BICUBIC)


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    aspect = math.exp(rng.uniform(-0.45, 0.45))
    side = rng.uniform(112, 144)
    return round(side * math.sqrt(aspect)), round(side / math.sqrt(aspect))


def _draw_symbols(
    size: tuple[int, int], count: int, rng: np.random.Generator, radii: tuple[int, int]
) -> list[_Symbol]:
    """Draw kinds and corners of symbols that lie inside the image and hardly overlap.

    There are fewer than ``count`` if space is short. Corners are multiples of a quarter of a
    pixel, so that no format rounds the boxes.
    """
    symbols: list[_Symbol] = []
    circles: list[tuple[NDArray[np.float64], float]] = []
    for _ in range(20 * count):
        radius = rng.uniform(*radii)
        margin = 1.2 * radius
        place = rng.uniform(margin, np.asarray(size) - margin)
        if all(math.dist(place, centre) > 0.9 * (radius + r) for centre, r in circles):
            kind = _KINDS[int(rng.integers(len(_KINDS)))]
            points = rotate_points(outline(kind), rng.uniform(-0.5, 0.5)) * radius + place
            symbols.append((kind, np.round(points * 4) / 4))
            circles.append((place, radius))
        if len(symbols) == count:
            break
    return symbols


def _paint_symbol(
    background: Image, kind: str, points: NDArray[np.float64], rng: np.random.Generator
) -> Image:
    from PIL import Image

    hue = (_HUES[kind] + rng.uniform(-0.05, 0.05)) % 1
    colour = colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), rng.uniform(0.6, 1))
    red, green, blue = (round(255 * channel) for channel in colour)
    paint = Image.new("RGB", background.size, (red, green, blue))
    return Image.composite(paint, background, coverage(background.size, points))


def _bounding_box(points: NDArray[np.float64]) -> tuple[float, float, float, float]:
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return left, top, right, bottom


def _mark_ignored_region(classes: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Mark a rectangle of about a tenth of the image as ignored."""
    height, width = classes.shape
    rows, columns = (round(side * rng.uniform(0.25, 0.4)) for side in (height, width))
    top, left = int(rng.integers(height - rows)), int(rng.integers(width - columns))
    classes[top : top + rows, left : left + columns] = IGNORED


def _mask_path(sample: Sample) -> str:
    return f"masks/{sample.name.rsplit('/', 1)[-1]}"


def _write_mask(classes: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    image = Image.fromarray(classes)
    image.putpalette(_palette_colours())
    image.save(path)


def _palette_colours() -> Sequence[int]:
    """Display colours of masks: black, one for each kind, and white for ignored."""
    table = np.zeros((256, 3), dtype=np.uint8)
    for index, kind in enumerate(_KINDS, 1):
        table[index] = [round(230 * channel) for channel in colorsys.hsv_to_rgb(_HUES[kind], 1, 1)]
    table[IGNORED] = 255
    return [int(value) for value in table.ravel()]


def _to_coco(data: Dataset) -> dict[str, Any]:
    category_ids = {name: number for number, name in enumerate(data.classes, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(data.samples, 1):
        target = sample.target
        if not isinstance(target, Boxes) or target.size is None:
            continue
        width, height = target.size
        name = sample.name
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for label, (left, top, right, bottom) in zip(target.labels, target.corners, strict=True):
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category_ids[label],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
