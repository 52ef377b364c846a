"""The pages in docs/ as a whole: every option is documented."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

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
