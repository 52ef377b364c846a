"""Hook of the documentation's site: formulas become drawings in the page.

Matplotlib draws them, so that no script of another host is needed. A formula that it cannot read
stops the build.
"""

from __future__ import annotations

import html
import re
from functools import cache

import numpy as np
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from pymdownx import arithmatex

SIZE = 10.0  # points that are one em of the page
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[([](?P<formula>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
LETTERS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}


@cache
def drawing(formula: str) -> str:
    """Draw a formula as SVG in the colour of the text.

    >>> drawing("x^2")[:24]
    '<svg class="formula" rol'
    """
    path = TextPath((0, 0), f"${formula}$", size=SIZE)
    (left, bottom), (right, top) = path.get_extents().get_points() + np.array([[-0.3], [0.3]])
    width, height = right - left, top - bottom
    return (
        f'<svg class="formula" role="img" aria-label="{html.escape(formula)}" '
        f'viewBox="{left:.2f} {-top:.2f} {width:.2f} {height:.2f}" '
        f'style="width:{width / SIZE:.3f}em;height:{height / SIZE:.3f}em;'
        f'vertical-align:{bottom / SIZE:.3f}em"><path d="{outline(path)}"/></svg>'
    )


def outline(path: Outline) -> str:
    """An outline as the data of an SVG path; y points down there."""
    words = []
    for vertices, code in path.iter_segments(simplify=False, curves=True):
        if code == Outline.CLOSEPOLY:
            words.append("Z")
            continue
        letter = LETTERS[code]
        points = np.asarray(vertices).reshape(-1, 2) * (1, -1)
        words.append(letter + " ".join(f"{x:.2f} {y:.2f}" for x, y in points))
    return "".join(words)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Read blocks of the language `math` as formulas."""
    fence = {"name": "math", "class": "arithmatex", "format": arithmatex.arithmatex_fenced_format()}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the formulas of a page by drawings.

    Raises
    ------
    PluginError
        With the first formula that cannot be drawn.
    """

    def convert(match: re.Match[str]) -> str:
        formula = " ".join(html.unescape(match["formula"]).split())
        if match["tag"] == "div":  # a line of its own has room
            formula = formula.replace(r"\frac", r"\dfrac")
        try:
            picture = drawing(formula)
        except ValueError as error:
            raise PluginError(f"{page.file.src_uri}: {formula}: {error}") from error
        return f'<{match["tag"]} class="arithmatex">{picture}</{match["tag"]}>'

    return FORMULA.sub(convert, content)
