"""The figures of the concept pages: each page shows one, and the script makes all of them."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "concepts").glob("*.md"))
IMAGES = ROOT / "docs" / "images" / "concepts"
SCRIPT = (ROOT / "docs" / "make_figures.py").read_text(encoding="utf-8")


def figures_of(page: str) -> list[tuple[str, str]]:
    """Alternative texts and files of the images in a page."""
    return re.findall(r"!\[([^\]]*)\]\(\.\./images/concepts/([^)]+)\)", page)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_concept_page_shows_its_figure(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    ((alternative, file),) = figures_of(page)
    assert file == f"{path.stem}.svg"
    assert len(alternative) > 30
    assert f"`python docs/make_figures.py {path.stem}`" in page
    assert "## What Headstart does" in page or "## How it is measured" in page
    assert "## References" in page
    assert "@" not in page  # a number that was never filled in


def test_every_figure_is_made_by_the_script_and_small() -> None:
    names = re.findall(r'^    "(\w+)": draw_\w+,$', SCRIPT, re.MULTILINE)
    assert sorted(names) == [path.stem for path in PAGES]
    files = sorted(IMAGES.glob("*.svg"))
    assert sorted(path.stem for path in files) == sorted(names)
    assert all(path.stat().st_size < 150_000 for path in files)
    numbers = json.loads((IMAGES / "numbers.json").read_text(encoding="utf-8"))
    assert sorted(numbers) == sorted(names)


def test_a_page_without_a_figure_is_found() -> None:
    assert figures_of("![a](../images/concepts/x.svg) ![b](other.png)") == [("a", "x.svg")]
    assert figures_of("no figure") == []
