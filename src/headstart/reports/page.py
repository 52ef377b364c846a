"""Shared parts of all pages: templates, limits, examples and thumbnails."""

from __future__ import annotations

import base64
import io
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset, Sample, labels_of
from headstart.data.images import decode
from headstart.data.splits import evenly_spaced
from headstart.errors import UnreadableImageError
from headstart.files import printable
from headstart.reports import charts
from headstart.reports.glossary import link_term
from headstart.runtime import cores

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

__all__ = ["LARGE", "LIMITS", "THUMBNAIL", "examples", "image_uri", "page_template", "thumbnails"]

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
"""Maximum number of items on a page, so that its size is bounded for any dataset."""

THUMBNAIL = 112
"""Height of thumbnails in pixels; pages show them at 96 pixels or less."""

LARGE = 288
"""Height in pixels of images that are worth enlarging, such as mistakes; never above their own."""


def examples(
    data: Dataset, *, most: int = LIMITS["examples"], each: int = LIMITS["examples_each"]
) -> list[tuple[str, list[Sample]]]:
    """Choose images of each class, evenly spaced over the data and deterministic.

    Parameters
    ----------
    data : Dataset
    most, each : int
        Largest number of images in all, and of one class.
    """
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in data.samples:
        for label in labels_of(sample.target):
            by_class[label].append(sample)
    present = [name for name in data.classes if by_class[name]]
    chosen = [present[i] for i in evenly_spaced(len(present), most)]
    n_each = min(each, most // max(len(chosen), 1))
    return [(n, [by_class[n][i] for i in evenly_spaced(len(by_class[n]), n_each)]) for n in chosen]


def thumbnails(samples: Iterable[Sample], *, height: int = THUMBNAIL) -> list[str | None]:
    """Create small images as data URIs, in order; None for an image that cannot be decoded."""
    with ThreadPoolExecutor(cores()) as executor:
        return list(executor.map(partial(_thumbnail, height=height), samples))


def _thumbnail(sample: Sample, *, height: int) -> str | None:
    from PIL import Image

    try:
        pixels = decode(sample.image, at_least=height, options=sample.options)
    except UnreadableImageError:
        return None
    image = Image.fromarray(pixels)
    height = min(height, max(image.height, THUMBNAIL))  # more pixels would show nothing more
    max_width = 2 * height  # wider images are cropped to their centre
    width = min(max(round(image.width * height / image.height), height // 3), max_width)
    crop = image.width if width < max_width else round(image.height * max_width / height)
    left = (image.width - crop) // 2
    small = image.resize(
        (width, height),
        Image.Resampling.BILINEAR,
        box=(left, 0, left + crop, image.height),
        reducing_gap=2.0,
    )
    return image_uri(np.asarray(small), quality=75)


def image_uri(pixels: NDArray[np.uint8], *, quality: int) -> str:
    """Encode pixels as a data URI, to embed in a page: WebP, or JPEG if Pillow lacks WebP.

    Parameters
    ----------
    pixels : array, shape (height, width, 3), uint8
    quality : int
        From 1 to 95, as of JPEG.

    Examples
    --------
    >>> image_uri(np.zeros((8, 8, 3), np.uint8), quality=75).partition(";")[0]
    'data:image/webp'
    """
    from PIL import Image, features

    kind = "webp" if features.check("webp") else "jpeg"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=quality, optimize=True)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode("ascii")


@cache
def page_template(name: str) -> Template:
    """Load a template; text is escaped, and an undefined variable raises an error.

    Parameters
    ----------
    name : str
        File name in ``templates/``. ``*.html.j2`` is escaped automatically; in Markdown use the
        filter ``markdown``.

    Examples
    --------
    >>> page_template("card.md.j2").name
    'card.md.j2'
    """
    from urllib.parse import quote

    from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape

    class SafeTemplate(Template):
        """A template whose text does no harm in a terminal, whatever a name contains."""

        def render(self, *args: Any, **kwargs: Any) -> str:
            return printable(super().render(*args, **kwargs))

    environment = Environment(
        loader=PackageLoader("headstart.reports"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.template_class = SafeTemplate
    environment.filters.update(
        address=quote,
        amount=_format_count,
        count=lambda number: f"{number:,}",
        markdown=charts.markdown,
        percent=charts.percent,
        sentence=_format_sentence,
        term=link_term,
    )
    return environment.get_template(name)


def _format_count(number: int) -> str:
    r"""Format a count, in millions from one million on.

    >>> _format_count(0), _format_count(12810), _format_count(3_400_000)
    ('0', '12,810', '3.40\xa0M')
    """
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:.2f}\N{NO-BREAK SPACE}M"


def _format_sentence(text: str) -> Markup:
    r"""Escape a sentence, keep its intervals on one line, and show commands as code.

    >>> _format_sentence("Class <b> [0.8, 0.9]: try `--budget 2m`.")
    Markup('Class &lt;b&gt; [0.8,\xa00.9]: try <code>--budget 2m</code>.')
    """
    from markupsafe import Markup, escape

    escaped = str(escape(charts.unbroken(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))  # noqa: S704 - escaped above
