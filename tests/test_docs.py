"""The pages in docs/ as a whole: every option is documented, and the site is complete."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def load_script(name: str) -> ModuleType:
    """A script in docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OPTIONS = load_script("list_options")


def test_the_page_of_options_is_up_to_date() -> None:
    written = (DOCS / "options.md").read_text(encoding="utf-8")
    assert written == OPTIONS.page(), "run: python docs/list_options.py"


def test_every_option_of_every_command_is_on_its_page() -> None:
    page = OPTIONS.page()
    parts = {part.partition("\n")[0]: part for part in page.split("\n## headstart ")}
    found = {}
    for name, context, command in OPTIONS.commands():
        listed = [row for row in OPTIONS.rows(context, command) if name != "plan" or not row[0]]
        assert all(text for *_, text in listed), f"an option of {name} has no help"
        found[name] = len(listed)
        assert [row[1] for row in listed if row[1] not in parts[name]] == []
    assert {"fit", "plan", "cache clear", "data check"} <= set(found)
    assert found["fit"] > 50  # the methods' own options are among them
    assert "`--no-flip`" in parts["fit"]


# -------------------------------------------------------------------------------------- the site

HOOKS = load_script("site_hooks")
FORMULAS = load_script("site_formulas")


def test_the_navigation_has_every_page_once() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    groups = HOOKS.navigation(index)
    listed = [page for pages in groups.values() for page in dict.fromkeys(pages)]
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(listed) == sorted([*(set(pages) - {"README.md"}), *HOOKS.OUTSIDE])
    assert {"Start", "Data", "Models", "Methods"} <= set(groups)


def test_a_question_is_no_group_of_the_navigation() -> None:
    index = (
        "## Which page?\n| a goal | [a](a.md) |\n## Start\n| [b](../README.md) | see [a](a.md) |"
    )
    assert HOOKS.navigation(index) == {"Start": ["start.md"]}


def converted(markdown: str, page: str) -> str:
    file = SimpleNamespace(src_uri=page)
    return str(HOOKS.on_page_markdown(markdown, SimpleNamespace(file=file), None, None))


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("race.md", "[x](rank.md#cost)", "[x](rank.md#cost)"),
        ("methods/finetune.md", "[x](../../README.md)", "[x](../start.md)"),
        ("start.md", "![x](docs/images/report.png)", "![x](images/report.png)"),
        ("start.md", "[x](docs/race.md)", "[x](race.md)"),
        ("race.md", "[x](../src/headstart/cache.py)", "x"),
        ("README.md", "[decisions/](decisions)", "decisions/"),
        ("README.md", "[metrics.md](metrics.md)", "[Classification metrics](metrics.md)"),
        ("race.md", "[x](gone.md)", "[x](gone.md)"),
        ("race.md", "[x](https://example.org/a)", "[x](https://example.org/a)"),
        ("race.md", "`[x](../README.md)`", "`[x](../README.md)`"),
        ("race.md", "```text\n[x](../README.md)\n```", "```text\n[x](../README.md)\n```"),
    ],
)
def test_links_point_at_pages_of_the_site(page: str, link: str, expected: str) -> None:
    assert converted(link, page) == expected


def test_the_reference_has_every_module() -> None:
    rooms = HOOKS.rooms()
    modules = [module for listed in rooms.values() for module in listed]
    assert {"headstart.cache", "headstart.metrics", "headstart.metrics.detection"} <= set(modules)
    files = list((ROOT / "src" / "headstart").rglob("*.py"))
    assert len(modules) == len(set(modules)) == len(files) - 1  # without __main__.py
    page = HOOKS.reference_page("headstart", rooms["headstart"])
    assert "::: headstart.cache" in page
    assert "[`fit`][headstart.workflows.fit.fit]" in page


@pytest.mark.parametrize(
    "element",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<img src=//cdn.example/x.png>",
        '<link rel="stylesheet" href="https://fonts.example/css">',
        "<style>@import url(https://fonts.example/css)</style>",
    ],
)
def test_an_element_of_another_host_stops_the_build(element: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    with pytest.raises(PluginError, match=r"a\.md loads from another host"):
        HOOKS.on_post_page(f"<p>{element}</p>", page, None)
    harmless = '<a href="https://example.org">x</a><img src="images/x.png">'
    assert HOOKS.on_post_page(harmless, page, None) == harmless


def test_a_formula_is_drawn_and_a_wrong_one_stops_the_build() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    found = FORMULAS.on_page_content(
        r'<span class="arithmatex">\(\frac{1}{n} &lt; x^2\)</span>', page, None, None
    )
    assert '<span class="arithmatex"><svg class="formula"' in found
    assert r'aria-label="\frac{1}{n} &lt; x^2"' in found
    with pytest.raises(PluginError, match=r"a\.md: .*nosuch"):
        FORMULAS.on_page_content(r'<div class="arithmatex">\[\nosuch{x}\]</div>', page, None, None)


def test_examples_behind_a_sentence_get_their_heading() -> None:
    script = load_script("docstring_examples")
    assert script.with_heading("Add.\n\n>>> 1\n1").splitlines()[2:4] == ["Examples", "--------"]
    whole = "Add.\n\nExamples\n--------\n>>> 1\n1"
    assert script.with_heading(whole) == whole
    assert script.with_heading("Add.") == "Add."
