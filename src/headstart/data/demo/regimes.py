"""Generated sets with a known best method, to test the choice of a method.

======== ======= =========================== =====================================================
set      source  content                     best method, and the reason
======== ======= =========================== =====================================================
near     symbols 4 of the source's 8         a linear probe: the source's features separate
                 symbols, more noise; 48     these symbols, and 48 images are too few for more
shifted  symbols all 8 as outlines, a line   fine-tuning: the features fit in part; 800 images
                 across each; 800            adapt them, but are too few to learn them anew
hopeless blanks  the 8 symbols, more noise;  from scratch: 960 images are enough, and the
                 960                         source's weights are no better than random ones
======== ======= =========================== =====================================================

``headstart.methods.pretraining`` trains the weights on the source. Blanks are images of one colour:
a network that classifies them as light or dark has filters that cancel edges, and BatchNorm
statistics of images without edges; a symbol drives the later activations far out of range.
Fine-tuning keeps these statistics, and its learning rate is too small to correct the weights. A
strong weight decay in the pretraining adds to this. The set is an artificial extreme: published
weights are seldom worse than random ones.

Each set has a test part of 320 images. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset, Sample, SplitName
from headstart.data.demo.drawings import OVERSAMPLING, SYMBOL_KINDS, outline, rotate_points
from headstart.errors import UnknownNameError

__all__ = [
    "EXPECTED_METHOD",
    "SIDE",
    "SOURCES",
    "blanks",
    "hopeless",
    "make",
    "near",
    "shifted",
    "symbols",
]

SIDE = 32
"""Width and height of every image, in pixels."""

EXPECTED_METHOD = {"near": "linear-probe", "shifted": "finetune", "hopeless": "scratch"}
"""Best method of each set."""

SOURCES = {"near": "symbols", "shifted": "symbols", "hopeless": "blanks"}
"""Source that the backbone of each set is pretrained on."""

_Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Style:
    """Style of the symbols: largest rotation in radians, grey levels, lines across each image."""

    max_angle: float = 0.6
    contrast: tuple[float, float] = (60, 140)
    noise: float = 10
    lines: int = 0
    is_hollow: bool = False


def make(name: str, seed: int = 0) -> Dataset:
    """Generate a set, or a source, by its name.

    Raises
    ------
    UnknownNameError
        If there is no such set.

    Examples
    --------
    >>> make("shifted", seed=3).name
    'regime:shifted:3'
    """
    generators = {f.__name__: f for f in (near, shifted, hopeless, symbols, blanks)}
    if name not in generators:
        raise UnknownNameError("regime", name, generators)
    return generators[name](seed)


def near(seed: int = 0) -> Dataset:
    """Generate few images of the source's symbols: 48 for training, 320 for testing.

    Examples
    --------
    >>> {part: len(near().split(part)) for part in ("train", "test")}
    {'train': 48, 'test': 320}
    """
    return _generate_symbols(
        "near", ("cross", "heart", "square", "triangle"), (12, 80), seed, _Style(noise=16)
    )


def shifted(seed: int = 0) -> Dataset:
    """Generate many images in another style than the source: 800 for training, 320 for testing.

    Examples
    --------
    >>> {part: len(shifted().split(part)) for part in ("train", "test")}
    {'train': 800, 'test': 320}
    """
    return _generate_symbols(
        "shifted", SYMBOL_KINDS, (100, 40), seed, _Style(is_hollow=True, lines=1)
    )


def hopeless(seed: int = 0) -> Dataset:
    """Generate many images with a useless source: 960 for training, 320 for testing.

    Examples
    --------
    >>> {part: len(hopeless().split(part)) for part in ("train", "test")}
    {'train': 960, 'test': 320}
    """
    # Without noise, plain symbols would be near-duplicates in two splits, which ``fit`` refuses.
    return _generate_symbols(
        "hopeless", SYMBOL_KINDS, (120, 40), seed, _Style(contrast=(80, 140), noise=16)
    )


def symbols(seed: int = 0) -> Dataset:
    """Generate the source of near and shifted: 8 filled symbols, 1,600 images.

    Examples
    --------
    >>> len(symbols()), symbols().samples[0].image.shape
    (1600, (32, 32, 3))
    """
    return _generate_symbols("symbols", SYMBOL_KINDS, (200, 0), seed, _Style())


def blanks(seed: int = 0) -> Dataset:
    """Generate the source of hopeless: 300 dark and light images of one colour.

    Examples
    --------
    >>> [int(sample.image.std(axis=(0, 1)).max()) for sample in blanks().samples[:3]]
    [0, 0, 0]
    """
    levels = {"dark": (10, 110), "light": (145, 245)}

    def draw(kind: str, rng: np.random.Generator) -> _Pixels:
        colour = rng.uniform(*levels[kind]) + rng.uniform(-10, 10, size=3)
        return np.broadcast_to(colour, (SIDE, SIDE, 3)).astype(np.uint8)

    return _generate("blanks", tuple(levels), (150, 0), seed, draw)


def _generate_symbols(
    name: str, kinds: Sequence[str], sizes: tuple[int, int], seed: int, style: _Style
) -> Dataset:
    return _generate(name, kinds, sizes, seed, lambda kind, rng: _draw_symbol(kind, style, rng))


def _generate(
    name: str,
    kinds: Sequence[str],
    sizes: tuple[int, int],
    seed: int,
    draw: Callable[[str, np.random.Generator], _Pixels],
) -> Dataset:
    """Generate a set; ``sizes`` are the training and test images of each class."""
    rng = np.random.default_rng([seed, *name.encode()])
    parts: tuple[SplitName, SplitName] = ("train", "test")
    samples = [
        Sample(image=draw(kind, rng), target=kind, split=part, title=f"{part}/{kind}/{i:04d}.png")
        for part, n in zip(parts, sizes, strict=True)
        for i in range(n)
        for kind in kinds
    ]
    for sample in samples:
        sample.image.flags.writeable = False  # type: ignore[union-attr]
    return Dataset(
        samples=tuple(samples),
        classes=tuple(kinds),
        name=f"regime:{name}:{seed}",
        notes=(f"drawn set {name!r}, seed {seed}",),
    )


def _draw_symbol(kind: str, style: _Style, rng: np.random.Generator) -> _Pixels:
    """Draw a grey symbol at a random place and size, with lines across it and noise."""
    from PIL import Image, ImageDraw

    size = SIDE * OVERSAMPLING
    step = rng.uniform(*style.contrast)
    background = rng.uniform(20, 235 - step)
    image = Image.new("L", (size, size), int(background))
    pen: Any = ImageDraw.Draw(image)
    radius = rng.uniform(7, 13)
    place = rng.uniform(radius + 1, SIDE - radius - 1, size=2)
    points = (
        rotate_points(outline(kind), rng.uniform(-style.max_angle, style.max_angle)) * radius
        + place
    ) * OVERSAMPLING
    corners, paint = [tuple(point) for point in points.tolist()], int(background + step)
    if style.is_hollow:
        pen.line([*corners, corners[0]], fill=paint, width=2 * OVERSAMPLING)
    else:
        pen.polygon(corners, fill=paint)
    for _ in range(style.lines):
        ends, width = rng.uniform(0, size, size=4).tolist(), int(rng.integers(1, 3)) * OVERSAMPLING
        pen.line(ends, fill=int(rng.integers(256)), width=width)
    grey = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float)
    grey = grey + rng.normal(0, style.noise, size=grey.shape)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
