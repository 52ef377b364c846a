"""Hooks of the documentation's site: navigation, the project's own pages, the API reference.

mkdocs.yml names this file. The navigation is the tables of docs/README.md: a heading is a group,
the first link of a row is a page. The API reference has a page for each room of the package.
"""

from __future__ import annotations

import importlib
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "headstart"
# Pages beside docs/, by their names in the site.
OUTSIDE = {
    "start.md": "README.md",
    "architecture.md": "ARCHITECTURE.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
FIRST_RUN = "Install and first run"
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
REQUEST = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"'> ]+"
    r"|<link\b(?![^>]*rel=[\"']?canonical)[^>]*\bhref=[\"']?(?:https?:)?//[^\"'> ]+"
    r"|@import\s+(?:url\()?[\"']?(?:https?:)?//|url\([\"']?(?:https?:)?//"
)


def navigation(index: str) -> dict[str, list[str]]:
    """Groups of pages: the headings and the rows of the tables in docs/README.md.

    >>> navigation("## Start" + chr(10) + "| [a](a.md) | see [b](b.md) |")
    {'Start': ['a.md']}
    """
    groups: dict[str, list[str]] = {}
    listed: list[str] = []
    for line in index.splitlines():
        if line.startswith("## "):
            heading = line[3:].strip()
            listed = [] if heading.endswith("?") else groups.setdefault(heading, [])
        elif line.startswith("| "):
            links = LINK.findall(line.split("|")[1]) or []
            is_list = "(decisions)" in line
            listed += [site_path(t) for *_, t in (LINK.findall(line) if is_list else links)]
    return {
        group: pages
        for group, found in groups.items()
        if (pages := [page for page in found if page.endswith(".md")])
    }


def site_path(target: str) -> str:
    """The path in the site of a link in docs/README.md."""
    names = {f"../{path}": name for name, path in OUTSIDE.items()}
    return names.get(target, target)


def rooms() -> dict[str, list[str]]:
    """Modules of the package, by the name of their room."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE.parent).with_suffix("")
        parts = inside.parts[:-1] if inside.name == "__init__" else inside.parts
        if parts[-1] != "__main__":
            found.setdefault(".".join(inside.parts[:-1]), []).append(".".join(parts))
    return found


def reference_page(room: str, modules: list[str]) -> str:
    """Markdown of the reference of a room."""
    lines = [f"# {room}", ""]
    if room == "headstart":
        lines += ["## Public names", "", "| name | what it is |", "|---|---|"]
        lines += [f"| [`{name}`][{place}] | {text} |" for name, place, text in public_names()]
        lines += ["", "## Modules", ""]
    for module in sorted(modules, key=lambda name: (name != room, name)):
        lines += [f"::: {module}", ""]
    return "\n".join(lines)


def public_names() -> list[tuple[str, str, str]]:
    """Names of headstart.__all__: where each is defined, and the first sentence about it."""
    package = importlib.import_module("headstart")
    rows = []
    for name in sorted(package.__all__, key=str.casefold):
        value = getattr(package, name)
        module = getattr(value, "__module__", None)
        if module and module.startswith("headstart.") and hasattr(value, "__qualname__"):
            text = (value.__doc__ or "").strip().partition("\n")[0]
            rows.append((name, f"{module}.{value.__qualname__}", text))
    return rows


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    config.nav = [{"Home": "README.md"}]
    for group, pages in navigation(index).items():
        named = [{FIRST_RUN: p} if p == "start.md" else p for p in dict.fromkeys(pages)]
        config.nav.append({group: named})
    config.nav.append({"API reference": [{r: f"reference/{r}.md"} for r in sorted(rooms())]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand beside docs/, and those of the API reference."""
    for name, path in OUTSIDE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    for room, modules in rooms().items():
        page = reference_page(room, modules)
        files.append(File.generated(config, f"reference/{room}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's pages; a link to a file that has no page becomes its text."""
    here = page.file.src_uri
    folder = "" if here in OUTSIDE else posixpath.dirname(posixpath.join("docs", here))
    if here.startswith("reference/"):
        return markdown

    def convert(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match.group()
        path = posixpath.normpath(posixpath.join(folder, target))
        if not (ROOT / path).exists():
            return match.group()  # mkdocs reports it
        names = {path: name for name, path in OUTSIDE.items()}
        name = names.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if not name or (ROOT / path).is_dir():
            return match["text"]
        link = posixpath.relpath(name, posixpath.dirname(here) or ".")
        is_name = match["text"].endswith(".md")
        text = title(ROOT / path) if is_name and not match["image"] else match["text"]
        return f"{match['image']}[{text}]({link}{'#' + anchor if anchor else ''})"

    return outside_fences(markdown, convert)


def title(path: Path) -> str:
    """The first heading of a page; on GitHub the links show names of files instead."""
    if path.name == "README.md" and path.parent == ROOT:
        return FIRST_RUN
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else path.stem


def outside_fences(markdown: str, convert: Any) -> str:
    """Convert the links of a page, except in fenced blocks and in code."""
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`(?!\]))", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(p if k % 2 else LINK.sub(convert, p) for k, p in enumerate(parts))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would load anything from another host.

    Raises
    ------
    PluginError
        With the first such element.
    """
    if found := REQUEST.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {found.group()[:120]}")
    return output
