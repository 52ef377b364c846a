"""Drawn sets for which the right way to learn is known, to hold a choice of methods against.

======== ======= =========================== =====================================================
set      source  what it is                  what is right, and why
======== ======= =========================== =====================================================
near     symbols 4 of the source's 8         a linear probe: the source's features tell these
                 symbols, more noise; 48     symbols apart already, and 48 images teach no more
shifted  symbols all 8 as outlines, a line   fine-tuning: the features half fit, and 800 images
                 across each; 800            mend them, but are too few to find them anew
hopeless blanks  the 8 symbols, more noise;  from scratch: 960 images are enough, and the
                 960                         source's weights are no better than random ones
======== ======= =========================== =====================================================

A source is what ``headstart.pretraining`` makes weights from. Blanks are images of one colour:
a network that learned to tell light from dark ones has filters that cancel edges, and BatchNorm
statistics of images without any; a symbol drives what follows far out of range. Fine-tuning
keeps these statistics, and its small rate mends nothing. This is made to be hopeless, by a strong
weight decay too: weights that are usually published are seldom worse than none.

Each set has a part ``test`` of 320 images. Everything is drawn here; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset, Sample, SplitName
from headstart.data.demo.drawings import outline, turned
from headstart.errors import UnknownNameError

__all__ = ["RIGHT", "SIDE", "SOURCES", "blanks", "hopeless", "make", "near", "shifted", "symbols"]

SIDE = 32
"""Of every image, in pixels."""

RIGHT = {"near": "linear-probe", "shifted": "finetune", "hopeless": "scratch"}
"""The method that is right, by set."""

SOURCES = {"near": "symbols", "shifted": "symbols", "hopeless": "blanks"}
"""What the backbone of each set has learned from."""

_KINDS = ("arrow", "cross", "disc", "gear", "heart", "square", "star", "triangle")
_FINE = 4  # outlines are drawn this much larger and then reduced, which smooths their edges
_Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Look:
    """How symbols are drawn: greatest slant in radians, grey levels, lines over each image."""

    slant: float = 0.6
    contrast: tuple[float, float] = (60, 140)
    noise: float = 10
    lines: int = 0
    is_hollow: bool = False


def make(name: str, seed: int = 0) -> Dataset:
    """Draw a set, or a source, by its name.

    Raises
    ------
    UnknownNameError
        If there is none of that name.

    Examples
    --------
    >>> make("shifted", seed=3).name
    'regime:shifted:3'
    """
    known = {one.__name__: one for one in (near, shifted, hopeless, symbols, blanks)}
    if name not in known:
        raise UnknownNameError("regime", name, known)
    return known[name](seed)


def near(seed: int = 0) -> Dataset:
    """Few images of what the source knows: 48 to learn from, 320 to test on.

    Examples
    --------
    >>> {part: len(near().split(part)) for part in ("train", "test")}
    {'train': 48, 'test': 320}
    """
    return _drawn("near", ("cross", "heart", "square", "triangle"), (12, 80), seed, _Look(noise=16))


def shifted(seed: int = 0) -> Dataset:
    """Many images that look otherwise than the source's: 800 to learn from, 320 to test on.

    Examples
    --------
    >>> {part: len(shifted().split(part)) for part in ("train", "test")}
    {'train': 800, 'test': 320}
    """
    return _drawn("shifted", _KINDS, (100, 40), seed, _Look(is_hollow=True, lines=1))


def hopeless(seed: int = 0) -> Dataset:
    """Many plain images, whose source knows nothing: 960 to learn from, 320 to test on.

    Examples
    --------
    >>> {part: len(hopeless().split(part)) for part in ("train", "test")}
    {'train': 960, 'test': 320}
    """
    # The noise keeps plain symbols from being taken for near-duplicates, which ``fit`` refuses.
    return _drawn("hopeless", _KINDS, (120, 40), seed, _Look(contrast=(80, 140), noise=16))


def symbols(seed: int = 0) -> Dataset:
    """Draw the source of near and shifted: 8 filled symbols, 1,600 images.

    Examples
    --------
    >>> len(symbols()), symbols().samples[0].image.shape
    (1600, (32, 32, 3))
    """
    return _drawn("symbols", _KINDS, (200, 0), seed, _Look())


def blanks(seed: int = 0) -> Dataset:
    """Draw the source of hopeless: dark and light images of one colour, 300 of them.

    Examples
    --------
    >>> [int(sample.image.std(axis=(0, 1)).max()) for sample in blanks().samples[:3]]
    [0, 0, 0]
    """
    levels = {"dark": (10, 110), "light": (145, 245)}

    def draw(kind: str, rng: np.random.Generator) -> _Pixels:
        colour = rng.uniform(*levels[kind]) + rng.uniform(-10, 10, size=3)
        return np.broadcast_to(colour, (SIDE, SIDE, 3)).astype(np.uint8)

    return _set("blanks", tuple(levels), (150, 0), seed, draw)


def _drawn(
    name: str, kinds: Sequence[str], sizes: tuple[int, int], seed: int, look: _Look
) -> Dataset:
    return _set(name, kinds, sizes, seed, lambda kind, rng: _symbol(kind, look, rng))


def _set(
    name: str,
    kinds: Sequence[str],
    sizes: tuple[int, int],
    seed: int,
    draw: Callable[[str, np.random.Generator], _Pixels],
) -> Dataset:
    """Draw so many images of each class to learn from, and to test on."""
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


def _symbol(kind: str, look: _Look, rng: np.random.Generator) -> _Pixels:
    """Draw a symbol in grey at any place and size, lines across it, noise over all."""
    from PIL import Image, ImageDraw

    size = SIDE * _FINE
    step = rng.uniform(*look.contrast)
    ground = rng.uniform(20, 235 - step)
    image = Image.new("L", (size, size), int(ground))
    pen: Any = ImageDraw.Draw(image)
    radius = rng.uniform(7, 13)
    place = rng.uniform(radius + 1, SIDE - radius - 1, size=2)
    points = (turned(outline(kind), rng.uniform(-look.slant, look.slant)) * radius + place) * _FINE
    corners, paint = [tuple(point) for point in points.tolist()], int(ground + step)
    if look.is_hollow:
        pen.line([*corners, corners[0]], fill=paint, width=2 * _FINE)
    else:
        pen.polygon(corners, fill=paint)
    for _ in range(look.lines):
        ends, width = rng.uniform(0, size, size=4).tolist(), int(rng.integers(1, 3)) * _FINE
        pen.line(ends, fill=int(rng.integers(256)), width=width)
    grey = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float)
    grey = grey + rng.normal(0, look.noise, size=grey.shape)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
