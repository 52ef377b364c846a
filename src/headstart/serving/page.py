"""HTML pages of the server: one file each, which loads nothing from other hosts."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Page", "read_page"]

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page and the headers of its response."""

    html: str
    headers: Mapping[str, str]


def read_page(name: str, style: str) -> Page:
    """Read a page, put the shared style into it, and allow its own script only.

    Parameters
    ----------
    name : str
        File in templates/.
    style : str
        CSS.

    Examples
    --------
    >>> page = read_page("docs.html", "p { margin: 0 }")
    >>> "p { margin: 0 }" in page.html, "sha256-" in page.headers["Content-Security-Policy"]
    (True, True)
    """
    html = (TEMPLATES / name).read_text(encoding="utf-8").replace("/* style */", style)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    sources = " ".join(f"'sha256-{each}'" for each in hashes)
    policy = (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Page(html=html, headers=headers)
