"""Words of the glossary on a report page: a folded list of the terms that the page uses, and links.

The texts are those of docs/glossary.md; docs/list_terms.py writes them to templates/terms.json.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["MARK", "add_terms", "link_term", "term_id"]

MARK = "<!-- terms -->"
"""Place of the list in a page; text of the user cannot contain it, because it is escaped."""

OTHER_WORDS = {
    "log-loss": "Log loss",
    "calibration error": "ECE",
    "mean average precision": "Average precision",
    "confidence": "Calibration",
    "LogME": "Transferability score",
    "likely label errors": "Likely label error",
    "out-of-distribution": "Out-of-distribution image",
    "95 %": "Confidence interval",
}
"""Words of the pages that differ from the headings of the glossary."""


def term_id(heading: str) -> str:
    """Return the id of a term on the page.

    >>> term_id("F1 and macro F1")
    'term-f1-and-macro-f1'
    """
    return "term-" + re.sub(r"\W+", "-", heading.lower()).strip("-")


@cache
def _terms() -> dict[str, str]:
    text = files("headstart.reports").joinpath("templates/terms.json").read_text(encoding="utf-8")
    terms: dict[str, str] = json.loads(text)
    return terms


@cache
def _words() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Patterns of the words with their headings, the longest words first."""
    words = dict(OTHER_WORDS)
    for heading in _terms():
        parts = re.split(r", | and ", heading)
        words |= dict.fromkeys((heading, *(p for p in parts if " " not in p)), heading)
        words |= {part: heading for part in parts if part.startswith(("macro", "cross"))}
    ordered = sorted(words.items(), key=lambda pair: -len(pair[0]))
    return tuple((_pattern(word), heading) for word, heading in ordered)


def _pattern(word: str) -> re.Pattern[str]:
    """Match a whole word, with a plural; an abbreviation only in its own spelling."""
    is_abbreviation = " " not in word and sum(letter.isupper() for letter in word) > 1
    return re.compile(
        rf"(?<![\w-]){re.escape(word)}s?(?![\w-])", 0 if is_abbreviation else re.IGNORECASE
    )


def _heading_of(name: str) -> str | None:
    return next((heading for pattern, heading in _words() if pattern.search(name)), None)


def link_term(name: str) -> Markup:
    """Link the name of a score to its entry in the list; other names stay as they are.

    >>> link_term("AUROC")
    Markup('<a class="term" href="#term-auroc">AUROC</a>')
    >>> link_term("my own <score>")
    Markup('my own &lt;score&gt;')
    """
    from markupsafe import Markup, escape

    heading = _heading_of(name)
    if heading is None:
        return escape(name)
    return Markup('<a class="term" href="#{}">{}</a>').format(term_id(heading), name)


def add_terms(page: str) -> str:
    """Fill the list of a page: the terms of the glossary that its text uses, with their meaning."""
    from markupsafe import Markup

    style_free = re.sub(r"<(style|pre|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    text = " ".join(re.sub(r"<[^>]*>", " ", style_free).split())
    used = {heading for pattern, heading in _words() if pattern.search(text)}
    rows = [
        Markup('<dt id="{}">{}</dt><dd>{}</dd>').format(term_id(heading), heading, meaning)
        for heading, meaning in _terms().items()
        if heading in used
    ]
    return page.replace(MARK, "\n".join(rows), 1)
