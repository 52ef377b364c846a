"""Every flag that a finding, an error or a sentence of advice names exists."""

import ast
import re
from pathlib import Path

import pytest

import headstart

SOURCES = Path(headstart.__file__).parent
OPTIONS = Path(__file__).parents[2] / "docs" / "options.md"
FLAG = r"(?<![\w-])--[a-z][a-z0-9-]*"
OTHERS = {"--cpus", "--no-", "--help", "--version"}  # of Docker; a prefix; without a command
ROOMS = sorted(path.name for path in SOURCES.iterdir() if (path / "__init__.py").exists())


def flags_in(room: Path) -> dict[str, str]:
    """Flags in the texts of a room, each with its place."""
    found = {}
    for path in room.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for flag in re.findall(FLAG, node.value):
                    found[flag] = f"{path.relative_to(SOURCES)}:{node.lineno}"
    return found


def known_flags() -> set[str]:
    return set(re.findall(FLAG, OPTIONS.read_text(encoding="utf-8"))) | OTHERS


@pytest.mark.parametrize("room", ROOMS)
def test_every_flag_in_the_texts_of_a_room_exists(room):
    unknown = {
        flag: place
        for flag, place in flags_in(SOURCES / room).items()
        if flag not in known_flags() and flag.replace("--no-", "--", 1) not in known_flags()
    }
    assert unknown == {}


def test_the_flags_of_the_advice_are_found_at_all():
    flags = flags_in(SOURCES / "data")
    expected = {"--group-by", "--allow-overlap", "--bad-files", "--masks", "--class-level"}
    assert expected | {"--mask-threshold", "--label-separator"} <= flags.keys()
    assert "--no-such-flag" not in known_flags()
    assert {"--image-column", "--label-column"} <= known_flags()
