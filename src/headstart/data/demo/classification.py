"""Example sets made from scikit-learn's data: no download, the same images at every call.

======== ========================================================== ===========================
name     content                                                    expected result
======== ========================================================== ===========================
scenes   lake, leaves, petals, roof, sky, trees, wall: crops of two chance 14.3 %; mean colours
         photographs; 336 in 143 groups (one group is one place in  75 %; raw pixels 87 %;
         a photograph, with a gap to its neighbours)                ImageNet features about 97 %
symbols  8 symbols (disc, star, arrow, ...) at any place, size,     chance 12.5 %; raw pixels
         slant and colour on crops of two photographs; 480          are no better than chance;
                                                                    ImageNet features about 80 %
digits   10 handwritten digits, enlarged from 8 x 8 pixels; 600     chance 10 %; raw pixels 94 %;
                                                                    ImageNet features 90 %: no
                                                                    gain from transfer here
textures sky, leaves, petals, temple, tree: grey patches of two     chance 20 %; ImageNet
         photographs under noise; 400 in 100 groups (one group is   features about 75 % with
         one place in a photograph)                                 groups kept apart
shapes   disc, square, triangle on crops of photographs, any of     multilabel; each kind is in
         them or none in an image; 300                             half of the images
boxes    none to four crosses, discs and triangles on crops of      detection
         photographs of many sizes, with their boxes; 120
masks    none to five of the same, with a class for every pixel;    segmentation
         in a quarter of the images a region is ignored; 120
======== ========================================================== ===========================

The expectations were measured with a linear probe on EfficientNet-Lite0 in cross-validation.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Boxes, Dataset, Kind, Mask, Sample, Target, labels_of
from headstart.data.demo import dense as dense_demo
from headstart.data.demo.drawings import (
    SYMBOL_KINDS,
    DemoImage,
    coverage,
    outline,
    photos,
    rotate_points,
)
from headstart.data.demo.scenes import scenes
from headstart.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["load", "names", "write"]

_SIZE = 128
_TILE = 40
# Areas of each texture: index of the photograph, left, top, right, bottom.
_PLACES = {
    "leaves": ((1, 0, 0, 160, 427), (1, 460, 0, 640, 370)),
    "petals": ((1, 200, 110, 420, 330),),
    "sky": ((0, 330, 0, 640, 192), (0, 0, 0, 90, 130)),
    "temple": ((0, 100, 90, 310, 340),),
    "tree": ((0, 0, 345, 190, 427), (0, 345, 320, 560, 427), (0, 560, 150, 640, 427)),
}


def names() -> tuple[str, ...]:
    """Names of the example sets.

    Examples
    --------
    >>> names()
    ('boxes', 'digits', 'masks', 'scenes', 'shapes', 'symbols', 'textures')
    """
    return tuple(sorted(_generators()))


def load(name: str, *, folder: str | Path | None = None) -> Dataset:
    """Generate an example set.

    Parameters
    ----------
    name : str
        One of `names`.
    folder : path or None
        None: images are in memory, as uint8 arrays of shape (H, W, 3). Otherwise they are
        written to this folder, see `write`, and the samples contain paths.

    Returns
    -------
    Dataset
        Identical at every call.

    Raises
    ------
    UnknownNameError
        If there is no such set.
    UsageError
        If ``folder`` is not empty.

    Examples
    --------
    >>> data = load("digits")
    >>> len(data), data.samples[0].image.shape
    (600, (64, 64, 3))
    """
    if name not in _generators():
        raise UnknownNameError("demo", name, names())
    data = _generate(name)
    if folder is None:
        return data
    root = write(name, folder)
    samples = tuple(dense_demo.sample_on_disk(sample, root) for sample in data.samples)
    return replace(data, samples=samples)


def write(name: str, folder: str | Path) -> Path:
    r"""Write an example set as PNG files, to view it or to try the command line on it.

    Images are written to class folders, with groups in the file names
    (``--group-by 'place(\d+)'``). A multilabel set is a folder ``images`` with a manifest
    ``labels.csv``; boxes are in ``annotations.json``, in COCO format, masks in a folder ``masks``
    with ``classes.txt``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UnknownNameError
        If there is no such set.
    UsageError
        If ``folder`` is not empty.

    Examples
    --------
    >>> import tempfile
    >>> root = write("shapes", tempfile.mkdtemp())
    >>> sorted(path.name for path in root.iterdir())
    ['images', 'labels.csv']
    """
    from PIL import Image

    data, root = load(name), Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(
            f"Expected {str(root)!r} to be a new or empty folder, got a file or a folder with "
            "content. Choose another name."
        )
    for sample in data.samples:
        path = sample.name
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(sample.image)).save(root / path, compress_level=1)
    if data.kind == "multilabel":
        with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [(sample.name, "|".join(labels_of(sample.target))) for sample in data.samples]
            csv.writer(file).writerows([("path", "labels"), *rows])
    dense_demo.write_annotations(data, root)
    return root


def _image_path(number: int, sample: Sample) -> str:
    folder = sample.target if isinstance(sample.target, str) else "images"
    return f"{folder}/{sample.group or 'n'}_{number:04d}.png"


def _generators() -> dict[str, Callable[[np.random.Generator], list[DemoImage]]]:
    return {
        "boxes": dense_demo.boxes,
        "digits": _digits,
        "masks": dense_demo.masks,
        "scenes": scenes,
        "shapes": _shapes,
        "symbols": _symbols,
        "textures": _textures,
    }


@lru_cache(maxsize=4)
def _generate(name: str) -> Dataset:
    images = _generators()[name](np.random.default_rng(0))
    samples = []
    for image, target, group in images:
        pixels = np.asarray(image.convert("RGB")).copy()
        # The set is cached for the next call, so its pixels must not change.
        pixels.flags.writeable = False
        samples.append(Sample(image=pixels, target=target, group=group))
    kind, reason = _task_kind(samples[0].target)
    labels = {label for s in samples for label in labels_of(s.target)}
    notes = [f"example set {name!r}, made from scikit-learn's data", f"task: {kind} {reason}"]
    groups = len({s.group for s in samples if s.group})
    if groups:
        notes.append(f"groups: {groups}; each is one place in a photograph")
    return Dataset(
        samples=tuple(replace(s, title=_image_path(i, s)) for i, s in enumerate(samples)),
        classes=tuple(sorted(labels)),
        kind=kind,
        name=f"demo:{name}",
        notes=tuple(notes),
    )


def _task_kind(target: Target) -> tuple[Kind, str]:
    """Task of a set with such targets, and the reason."""
    if isinstance(target, Boxes):
        return "detection", "because images come with boxes"
    if isinstance(target, Mask):
        return "segmentation", "because images come with masks"
    if isinstance(target, tuple):
        return "multilabel", "because an image may show several kinds or none"
    return "multiclass", "because each image has one label"


def _digits(rng: np.random.Generator) -> list[DemoImage]:
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = (bunch.images * (255 / 16)).round().astype(np.uint8)
    rows = [rng.permutation(np.flatnonzero(bunch.target == digit))[:60] for digit in range(10)]
    return [
        (Image.fromarray(pixels[row]).resize((64, 64), Image.Resampling.BICUBIC), str(digit), None)
        for digit, chosen in enumerate(rows)
        for row in chosen
    ]


def _symbols(rng: np.random.Generator) -> list[DemoImage]:
    images: list[DemoImage] = []
    for kind in SYMBOL_KINDS:
        for _ in range(60):
            radius = rng.uniform(26, 54)
            place = rng.uniform(radius, _SIZE - radius, size=2)
            image = _paint_symbol(_crop_background(rng), kind, place, radius, rng)
            images.append((_add_noise(image, rng, 10), kind, None))
    return images


def _shapes(rng: np.random.Generator) -> list[DemoImage]:
    images: list[DemoImage] = []
    places = np.asarray([(36, 36), (92, 36), (36, 92), (92, 92)])
    for _ in range(300):
        image, free_places = _crop_background(rng), iter(rng.permutation(places))
        kinds = tuple(k for k in ("disc", "square", "triangle") if rng.random() < 0.5)
        for kind in kinds:
            image = _paint_symbol(image, kind, next(free_places), rng.uniform(16, 26), rng)
        images.append((image, kinds, None))
    return images


def _textures(rng: np.random.Generator) -> list[DemoImage]:
    images: list[DemoImage] = []
    group = 0
    for kind, boxes in _PLACES.items():
        tiles = [
            (photo, x, y)
            for photo, left, top, right, bottom in boxes
            for x in range(left, right - _TILE + 1, _TILE)
            for y in range(top, bottom - _TILE + 1, _TILE)
        ]
        for photo, x, y in rng.permutation(tiles)[:20].tolist():
            images += [(_patch(photo, x, y, rng), kind, f"place{group:03d}") for _ in range(4)]
            group += 1
    return images


def _patch(photo: int, x: int, y: int, rng: np.random.Generator) -> Image:
    """Cut a grey patch from a tile, with random brightness, contrast and noise."""
    from PIL import Image

    side = int(rng.integers(24, _TILE + 1))
    left, top = (np.asarray([x, y]) + rng.integers(0, _TILE - side + 1, size=2)).tolist()
    patch = photos()[photo].crop((left, top, left + side, top + side)).convert("L")
    grey = np.asarray(patch.resize((96, 96), Image.Resampling.BICUBIC)).astype(float)
    grey = (grey - grey.mean()) * rng.uniform(0.4, 1.2) + rng.uniform(70, 180)
    grey += rng.normal(0, rng.uniform(4, 16), size=grey.shape)
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


def _crop_background(rng: np.random.Generator) -> Image:
    """Cut a square with enough contrast from a photograph."""
    from PIL import Image

    while True:
        photo = photos()[int(rng.integers(2))]
        side = int(rng.integers(80, 240))
        x, y = (int(rng.integers(size - side)) for size in photo.size)
        crop = photo.crop((x, y, x + side, y + side))
        if np.asarray(crop.convert("L")).std() > 25:
            return crop.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)


def _paint_symbol(
    background: Image,
    kind: str,
    place: NDArray[np.float64],
    radius: float,
    rng: np.random.Generator,
) -> Image:
    from PIL import Image

    points = rotate_points(outline(kind), rng.uniform(-0.5, 0.5)) * radius + place
    mask = coverage(background.size, points, int(rng.integers(200, 256)))
    brightness = np.asarray(background.convert("L")).mean()
    colour = rng.integers(0, 256, size=3)
    while abs(colour @ [0.299, 0.587, 0.114] - brightness) < 50:
        colour = rng.integers(0, 256, size=3)
    paint = Image.new("RGB", background.size, tuple(colour.tolist()))
    return Image.composite(paint, background, mask)


def _add_noise(image: Image, rng: np.random.Generator, strength: float) -> Image:
    from PIL import Image, ImageFilter

    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2))), dtype=float)
    soft += rng.normal(0, rng.uniform(0, strength), size=(*soft.shape[:2], 1))
    return Image.fromarray(soft.clip(0, 255).astype(np.uint8))
