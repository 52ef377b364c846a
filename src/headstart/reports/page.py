"""What all pages share: how they are made, how much they show, small images inside them."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset, Sample, labels_of
from headstart.data.images import decode
from headstart.data.splits import evenly
from headstart.errors import UnreadableImageError
from headstart.reports import charts
from headstart.runtime import cores

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["LIMITS", "THUMBNAIL", "examples", "jpeg_uri", "page_template", "thumbnails"]

LIMITS = {
    "classes_in_table": 20,  # of the confusion matrix; above, the pairs confused most
    "classes_in_full": 30,  # above, classes are sorted and the rest is folded away
    "classes_at_all": 1000,
    "curves": 12,
    "examples": 40,
    "examples_each": 8,
    "examples_drawn": 6,
    "epochs": 200,
    "mistakes": 24,
    "mistakes_in_json": 200,
    "worst": 8,
    "label_errors": 24,
    "label_errors_at_once": 12,
    "outliers": 12,
    "neighbourhoods": 8,
    "slices": 20,
    "map_classes": 14,
    "candidates": 30,
    "findings_each": 20,
    "paths_each": 4,
}
"""How much the page shows: its size is bounded whatever the number of images and classes."""

THUMBNAIL = 112
"""Height in pixels; pages show it at 96 or less."""


def examples(data: Dataset) -> list[tuple[str, list[Sample]]]:
    """Some images of some classes, evenly spread over the data, always the same ones."""
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in data.samples:
        for label in labels_of(sample.target):
            by_class[label].append(sample)
    filled = [name for name in data.classes if by_class[name]]
    chosen = [filled[i] for i in evenly(len(filled), LIMITS["examples"])]
    each = min(LIMITS["examples_each"], LIMITS["examples"] // max(len(chosen), 1))
    return [(n, [by_class[n][i] for i in evenly(len(by_class[n]), each)]) for n in chosen]


def thumbnails(samples: Iterable[Sample]) -> list[str | None]:
    """Small images as data URIs, in order; None for one that cannot be decoded any more."""
    with ThreadPoolExecutor(cores()) as executor:
        return list(executor.map(_thumbnail, samples))


def _thumbnail(sample: Sample) -> str | None:
    from PIL import Image

    try:
        pixels = decode(sample.image, at_least=THUMBNAIL)
    except UnreadableImageError:
        return None
    image = Image.fromarray(pixels)
    longest = 2 * THUMBNAIL  # of a panorama only the middle is shown
    width = min(max(round(image.width * THUMBNAIL / image.height), THUMBNAIL // 3), longest)
    part = image.width if width < longest else round(image.height * longest / THUMBNAIL)
    left = (image.width - part) // 2
    small = image.resize(
        (width, THUMBNAIL),
        Image.Resampling.BILINEAR,
        box=(left, 0, left + part, image.height),
        reducing_gap=2.0,
    )
    return jpeg_uri(np.asarray(small), quality=75)


def jpeg_uri(pixels: NDArray[np.uint8], *, quality: int) -> str:
    """Pixels of shape (height, width, 3) as a JPEG that a page holds inside itself.

    >>> jpeg_uri(np.zeros((8, 8, 3), np.uint8), quality=75)[:23]
    'data:image/jpeg;base64,'
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


@cache
def page_template(name: str) -> Template:
    """Open a template, in which text is escaped and what is not there is an error.

    Parameters
    ----------
    name : str
        Of a file in ``templates/``; ``*.html.j2`` is escaped, Markdown has a filter of its own.

    Examples
    --------
    >>> page_template("card.md.j2").name
    'card.md.j2'
    """
    from urllib.parse import quote

    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("headstart.reports"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        address=quote,
        amount=_amount,
        count=lambda number: f"{number:,}",
        markdown=charts.markdown,
        percent=charts.percent,
        unbroken=charts.unbroken,
    )
    return environment.get_template(name)


def _amount(number: int) -> str:
    r"""A count as a person reads it.

    >>> _amount(0), _amount(12810), _amount(3_400_000)
    ('0', '12,810', '3.40\xa0M')
    """
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:.2f}\N{NO-BREAK SPACE}M"
