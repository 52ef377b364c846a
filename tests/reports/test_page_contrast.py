"""Contrast of the pages: WCAG 2.2, AA, computed from the colours of the style sheets."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

Colour = tuple[float, float, float]
TEMPLATES = files("headstart.reports") / "templates"
AA = 4.5
DARK = "@media (prefers-color-scheme: dark) {"

# (text, background) as they occur in the style sheets and templates.
PAIRS = [
    ("ink", "paper"), ("ink", "panel"), ("muted", "paper"), ("muted", "panel"), ("muted", "track"),
    ("accent", "paper"), ("accent", "panel"), ("paper", "ink"),
]  # fmt: skip
CURVES = [f"c{i}" for i in range(8)]


def style(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def root(css: str) -> dict[str, str]:
    """Custom properties of the first :root of a text."""
    block = re.search(r":root \{([^}]*)\}", css)
    assert block is not None
    return dict(re.findall(r"--([\w-]+): ([^;]+);", block[1]))


def colours(mode: str) -> dict[str, Colour]:
    """All colours of a mode, from 0 to 1."""
    values: dict[str, str] = {}
    for name in ("report.css", "compare.css"):
        css = style(name)
        values |= root(css)
        if mode == "dark":
            values |= root(css.partition(DARK)[2])
    if mode == "print":
        values |= root(style("report.css").partition("@media print {")[2])
    parsed = {name: parse(value) for name, value in values.items() if name != "accent"}
    found = {name: colour for name, colour in parsed.items() if colour is not None}
    return found | {"accent": found["accent-rgb"]}


def parse(value: str) -> Colour | None:
    if re.fullmatch(r"\d+ \d+ \d+", value):
        red, green, blue = (int(part) / 255 for part in value.split())
        return red, green, blue
    if not value.startswith("#"):
        return None
    digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def luminance(colour: Colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: Colour, second: Colour) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def over(colour: Colour, alpha: float, ground: Colour) -> Colour:
    red, green, blue = (alpha * c + (1 - alpha) * g for c, g in zip(colour, ground, strict=True))
    return red, green, blue


def test_contrast_agrees_with_published_values() -> None:
    black, white = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    assert contrast(black, white) == pytest.approx(21)
    grey = parse("#767676")  # the lightest grey that passes AA on white
    assert grey is not None
    assert contrast(grey, white) == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_text_is_readable_on_every_background(mode: str) -> None:
    value = colours(mode)
    ratios = {(a, b): contrast(value[a], value[b]) for a, b in PAIRS}
    # The chosen row of the candidates, and the legend of a point of a comparison.
    chosen = over(value["accent"], 0.1, value["paper"])
    ratios |= {(text, "chosen"): contrast(value[text], chosen) for text in ("ink", "muted")}
    ratios |= {(name, "panel"): contrast(value[name], value["panel"]) for name in CURVES}
    low = {pair: round(ratio, 2) for pair, ratio in ratios.items() if ratio < AA}
    assert not low


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_numbers_of_the_confusion_matrix_are_readable_in_its_darkest_cell(mode: str) -> None:
    share = re.search(r"\(([\d.]+) \+ ([\d.]+) \* share\)", style("parts.html.j2"))
    assert share is not None
    value, darkest = colours(mode), float(share[1]) + float(share[2])
    for tone in ("accent-rgb", "grey-rgb"):
        assert contrast(value["ink"], over(value[tone], darkest, value["paper"])) >= AA


def test_no_text_is_made_paler_by_opacity() -> None:
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", style("report.css") + style("compare.css"))
    faded = {selector.strip() for selector, body in rules if re.search(r"(?<!-)opacity", body)}
    assert faded == {
        ".axis .range", ".mine .range", "svg .whisker", "svg .share", "svg .band",
        ".map .training circle", ".series .range", ".run",
    }  # fmt: skip


def test_the_keyboard_shows_where_it_is() -> None:
    css = style("report.css")
    assert re.search(r":focus-visible \{ outline: 2px solid var\(--accent\)", css)
    assert re.search(r"\.skip:focus \{ top: \.5rem", css)
    for name in ("report.html.j2", "compare.html.j2"):
        page = style(name)
        assert page.index('class="skip" href="#content"') < page.index("<nav ")
        assert '<main id="content"' in page
