"""Write the terms of docs/glossary.md for the reports: src/headstart/reports/templates/terms.json.

    python docs/list_terms.py

The glossary is the only source of the words. A test compares the file with what this script writes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "src/headstart/reports/templates/terms.json"


def plain(markdown: str) -> str:
    """Text of a paragraph: links keep their words, code and formulas their characters."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(markdown.split()))
    text = re.sub(r" \([\w/]+\.md\)", "", text)  # the pages are not in the report
    text = re.sub(r",? \$[^$]*\\[^$]*\$", "", text)  # formulas with commands of TeX
    text = re.sub(r" (?:For boxes, see|See) \S+?\.(?:md\.)?(?= |$)", "", text)
    return re.sub(r"[$`]", "", text).strip()


def terms(glossary: str) -> dict[str, str]:
    """Heading and text of every term; a formula of its own is left out."""
    found = {}
    for entry in re.split(r"^### ", glossary, flags=re.MULTILINE)[1:]:
        heading, _, body = re.split(r"^## ", entry, flags=re.MULTILINE)[0].partition("\n")
        # "..., also: <formula>": without the formula, the sentence ends at its last comma.
        body = re.sub(r"[,:]?\s*```math.*?```\s*", " ", body, flags=re.DOTALL)
        text = plain(re.sub(r"```.*?```", " ", body, flags=re.DOTALL))
        found[heading.strip()] = text if text.endswith((".", "!")) else f"{text}."
    return found


def content() -> str:
    """Content of terms.json."""
    glossary = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    return json.dumps(terms(glossary), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(content(), encoding="utf-8")
