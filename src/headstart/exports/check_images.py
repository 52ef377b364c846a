"""Images for a certificate: photographs in odd sizes, modes and orientations, as files."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from headstart.data.demo.drawings import photos

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["check_images"]

TURNED = 6
"""EXIF orientation of an image that is shown after a quarter turn."""


@lru_cache(maxsize=2)
def check_images(shape: tuple[int, int]) -> dict[str, bytes]:
    """Return image files by a name that says what is odd about them.

    The photographs are part of scikit-learn. They are cut and resized, so that a network's first
    layers get edges and textures.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the network's input; some images are larger, some smaller, one equal.

    Examples
    --------
    >>> list(check_images((64, 64)))[:3]
    ['photograph 640 x 427, JPEG', 'photograph 640 x 427, PNG', 'grey 500 x 375']
    """
    china, flower = photos()
    height, width = shape
    images: dict[str, Callable[[], bytes]] = {
        "photograph 640 x 427, JPEG": lambda: _encode(china, "JPEG"),
        "photograph 640 x 427, PNG": lambda: _encode(flower, "PNG"),
        "grey 500 x 375": lambda: _encode(china.convert("L").resize((500, 375)), "PNG"),
        "transparent 333 x 251": lambda: _encode(_transparent(flower.resize((333, 251))), "PNG"),
        "turned by EXIF 400 x 300": lambda: _encode(china.resize((400, 300)), "JPEG", turned=True),
        "palette 257 x 193": lambda: _encode(flower.resize((257, 193)).convert("P"), "PNG"),
        "16 bits grey 211 x 300": lambda: _encode(_sixteen_bits(china.resize((211, 300))), "PNG"),
        "strip 300 x 7": lambda: _encode(china.resize((300, 7)), "PNG"),
        "strip 7 x 300": lambda: _encode(flower.resize((7, 300)), "PNG"),
        "strip 640 x 71": lambda: _encode(china.crop((0, 200, 640, 271)), "PNG"),
        "small 31 x 23": lambda: _encode(flower.resize((31, 23)), "PNG"),
        "one pixel": lambda: _encode(china.resize((1, 1)), "PNG"),
        f"size of the input, {width} x {height}": lambda: _encode(
            flower.resize((width, height)), "PNG"
        ),
        f"one pixel more, {width + 1} x {height + 1}": lambda: _encode(
            china.resize((width + 1, height + 1)), "PNG"
        ),
        "large 1201 x 903": lambda: _encode(flower.resize((1201, 903)), "JPEG"),
    }
    return {name: draw() for name, draw in images.items()}


def _encode(image: Image, file_format: str, *, turned: bool = False) -> bytes:
    from PIL import Image as PillowImage

    exif = PillowImage.Exif()
    if turned:
        exif[0x0112] = TURNED
    file = io.BytesIO()
    image.save(file, format=file_format, **({"exif": exif} if turned else {}))
    return file.getvalue()


def _transparent(image: Image) -> Image:
    from PIL import Image as PillowImage

    copy = image.copy()
    copy.putalpha(PillowImage.linear_gradient("L").resize(image.size))
    return copy


def _sixteen_bits(image: Image) -> Image:
    import numpy as np
    from PIL import Image as PillowImage

    return PillowImage.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
