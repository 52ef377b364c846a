"""Every code block of README.md and of the pages in docs/ runs.

The blocks of a page run in order: Python in one namespace, commands in one folder with small drawn
sets. Comments in a page, which no reader sees, help a block to run:

    <!-- setup: some Python -->                            runs before the next block
    <!-- replace: "resnet18" => "file:tiny" -->            in the next block, before it runs
    <!-- no-run: downloads weights -->                     the next block is compiled or parsed only
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

import headstart
from headstart.cli.app import app
from headstart.cli.options import run_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"console", "python", "pycon", "yaml", "json", "text", "math"}
# Verbs that take seconds on a small set; of the others the flags and the recipe are checked.
QUICK = {"backbones", "data", "doctor", "evaluate", "explain", "plan", "predict"}
FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})(?P<language>.*)$")
COMMENT = re.compile(r"<!-- (?P<kind>setup|replace|no-run): *(?P<text>.*?)\s*-->", re.DOTALL)


# ------------------------------------------------------------------------------ reading a page


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and what the comments before it add."""

    language: str
    text: str
    line: int
    setup: str = ""
    replacements: tuple[tuple[str, str], ...] = ()
    reason: str = ""  # why it is not run

    @property
    def code(self) -> str:
        """The text with its replacements, each of which must occur."""
        text = self.text
        for old, new in self.replacements:
            assert old in text, f"line {self.line}: nothing to replace: {old}"
            text = text.replace(old, new)
        return text


@dataclass
class Notes:
    """Comments that wait for the next block."""

    setup: list[str] = field(default_factory=list)
    replacements: list[tuple[str, str]] = field(default_factory=list)
    reason: str = ""

    def add(self, kind: str, text: str) -> None:
        """Keep a comment."""
        if kind == "setup":
            self.setup.append(text)
        elif kind == "replace":
            old, _, new = text.partition(" => ")
            self.replacements.append((old, new))
        else:
            assert text, "no-run needs a reason"
            self.reason = text


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, notes = [], Notes()
    lines, k = page.splitlines(), 0
    while k < len(lines):
        if lines[k].startswith("<!-- "):
            first = k
            while "-->" not in lines[k]:
                k += 1
            if comment := COMMENT.fullmatch("\n".join(lines[first : k + 1])):
                notes.add(comment["kind"], comment["text"])
        elif fence := FENCE.match(lines[k]):
            first = k
            k = next(n for n in range(k + 1, len(lines)) if lines[n].rstrip() == fence["fence"])
            body = "\n".join(lines[first + 1 : k])
            language = (fence["language"].split() or [""])[0]
            found.append(
                Block(
                    language,
                    body,
                    first + 1,
                    "\n".join(notes.setup),
                    tuple(notes.replacements),
                    notes.reason,
                )
            )
            notes = Notes()
        k += 1
    return found


def commands_of(block: str) -> list[str]:
    """The commands of a console block: lines behind a prompt, with the lines that continue them."""
    joined = re.sub(r"\\\n\s*(?:> )?", " ", block)
    lines = [line[2:] for line in joined.splitlines() if line.startswith(("$ ", "> "))]
    return [line.replace("\\", "/") if ".venv\\" in line else line for line in lines]


# ------------------------------------------------------------------------------- running blocks


def shown_value(comment: str) -> Any:
    """The value that a comment states, or None if it is prose."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(comment)
    return None


def run_python(code: str, namespace: dict[str, Any], name: str, line: int) -> None:
    """Run a block; an expression with a value in its comment must have that value."""
    source = "\n" * line + code  # so that a traceback shows the lines of the page
    lines = source.splitlines()
    for node in ast.parse(source, name).body:
        comment = ""
        if isinstance(node, ast.Expr) and node.lineno == node.end_lineno:
            comment = lines[node.lineno - 1].encode()[node.end_col_offset :].decode()
        comment = comment.strip(" #")
        if not (isinstance(node, ast.Expr) and comment):
            exec(compile(ast.Module([node], []), name, "exec"), namespace)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            value = eval(compile(ast.Expression(node.value), name, "eval"), namespace)
        if (stated := shown_value(comment)) is not None and value is not None:
            assert value == stated, f"{name}:{node.lineno}: {value!r} is not {comment}"
        elif re.match(r"\d.*\]$", comment):
            assert printed.getvalue().strip() == comment, f"{name}:{node.lineno}"


def run_session(code: str, namespace: dict[str, Any], name: str) -> None:
    """Run a session of the interpreter; its output, or its error, must be as shown."""
    parts = [part for part in re.split(r"^>>> ", code, flags=re.MULTILINE) if part]
    for part in parts:
        statement, _, expected = part.partition("\n")
        try:
            value = eval(statement, namespace)
            shown = "" if value is None else repr(value)
        except headstart.HeadstartError as error:
            shown = f"{type(error).__name__}: {error}"
        assert shown == expected.strip(), f"{name}: {statement}"


def parse(arguments: list[str]) -> typer.Context:
    """Parse a command as typer does; an unknown command or flag is an error."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("headstart", list(arguments))
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return context
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context


def check_recipe(context: typer.Context) -> None:
    """Make the recipe of fit or plan, which checks the values of all flags."""
    made: list[Any] = []
    context.command.callback = lambda **_: made.append(run_recipe(context))
    context.command.invoke(context)
    assert made


def is_cheap(arguments: list[str], context: typer.Context) -> bool:
    """Whether a command runs within seconds, with the embedded weights."""
    named = " ".join(str(context.params.get(name) or "") for name in ("backbone", "backbones"))
    is_embedded = all("embedded" in name for name in re.split(r"[ ,]+", named.strip()) if name)
    is_probe = arguments[0] == "fit" and "linear-probe" in arguments
    return is_embedded and (arguments[0] in QUICK or is_probe)


def run_headstart(arguments: list[str], is_run: bool) -> None:
    """Parse a command, check its recipe, and run it if that is quick."""
    if arguments in (["--version"], ["--install-completion"], ["--show-completion"]):
        return
    if {"--help", "-h"} & set(arguments):
        assert CliRunner().invoke(app, arguments).exit_code == 0, arguments
        return
    context = parse(arguments)
    if arguments[0] in {"fit", "plan", "train"} and is_run:
        check_recipe(context)
    if is_run and is_cheap(arguments, context):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in {0, 2} if arguments[0] == "data" else result.exit_code == 0, (
            f"headstart {shlex.join(arguments)}: {result.output[-600:]} {result.exception!r}"
        )


def check_command(command: str, *, is_run: bool) -> None:
    """Check one line of a console block."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, arguments = words[0].rpartition("/")[2], words[1:]
    if program == "headstart":
        run_headstart(arguments, is_run)
    elif program == "make":
        text = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
        assert {word for word in arguments if "=" not in word} <= targets, command
    elif program in {"accelerate", "torchrun"}:
        rest = arguments[arguments.index("headstart") + 1 :]
        run_headstart(rest, is_run=False)
    elif program == "pip" or arguments[:2] == ["-m", "pip"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = set(re.findall(r"(?:headstart|\.)\[([a-z]+)\]", command))
        assert extras <= set(project["optional-dependencies"]), command
    elif program.startswith("python"):
        scripts = [a for a in arguments if a.endswith(".py") and "/" in a]
        assert all((ROOT / script).is_file() for script in scripts), command
    else:
        assert program in {"cd", "curl", "mlflow", "tensorboard"}, f"no check for: {command}"


# ------------------------------------------------------------------------- sets, models, folders


def draw(path: Path, shade: int, seed: int) -> None:
    """An image of noise that is dark or light."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(shade - 50, shade + 50, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def draw_classes(folder: Path, each: int, seed: int) -> None:
    """Class folders cat and dog."""
    for k in range(each):
        draw(folder / "cat" / f"{k}.png", 60, seed + 2 * k)
        draw(folder / "dog" / f"{k}.png", 190, seed + 2 * k + 1)


def draw_places(cells: Path, streets: Path, count: int) -> None:
    """A set with boxes as COCO writes them, and a set with masks: a red square on noise."""
    images, rows = [], []
    for k in range(count):
        rng = np.random.default_rng(k)
        pixels = rng.integers(90, 130, (64, 80, 3), dtype=np.uint8)
        left, top, side = int(rng.integers(2, 40)), int(rng.integers(2, 30)), 28
        pixels[top : top + side, left : left + side] = (220, 30, 30)
        mask = np.zeros((64, 80), np.uint8)
        mask[top : top + side, left : left + side] = 1
        for path, array in (
            (cells / "images" / f"{k}.png", pixels),
            (streets / "images" / f"{k}.png", pixels),
            (streets / "masks" / f"{k}.png", mask),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        images.append({"id": k, "file_name": f"{k}.png", "width": 80, "height": 64})
        box = {"bbox": [left, top, side, side], "area": side * side, "iscrowd": 0}
        rows.append({"id": k, "image_id": k, "category_id": 1, **box})
    document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "red"}]}
    (cells / "annotations.json").write_text(json.dumps(document), encoding="utf-8")
    (streets / "classes.txt").write_text("background\nred\n", encoding="utf-8")


def draw_sets(folder: Path) -> None:
    """All sets and images that the pages name."""
    for seed, name in enumerate(("photos", "new-photos", "labelled", "other", "test", "images")):
        draw_classes(folder / name, {"photos": 12, "images": 1}.get(name, 4), 1000 * seed)
    draw_classes(folder / "cats_dogs", 12, 50_000)
    draw_classes(folder / "holiday", 1, 60_000)
    draw(folder / "cat.jpg", 60, 7)
    draw(folder / "image.jpg", 190, 8)
    draw_places(folder / "cells", folder / "streets", 20)


def save_tiny_weights(folder: Path) -> None:
    """Random weights of a small network, for names whose weights would be downloaded."""
    from safetensors.torch import save_file

    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve

    backbone = load(resolve("timm/test_resnet"), pretrained=False, seed=1)
    tensors = {name: value.contiguous() for name, value in backbone.trunk.state_dict().items()}
    save_file(tensors, folder / "tiny.safetensors")


def fit_models(folder: Path, quick: Any) -> None:
    """The runs that the pages use."""
    recipes = {
        "photos": {"method": "linear-probe"},
        "cells": {"head": "ssdlite"},
        "streets": {"head": "fpn"},
    }
    dense = {"backbone": quick, "size": 64, "train_from": "head", "epochs": 1}
    for name, settings in recipes.items():
        extra = {} if name == "photos" else dense
        headstart.fit(folder / name, **extra, **settings, out=folder / "runs" / name, offline=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the sets, images and models that the pages name, and a cache for all pages."""
    folder = tmp_path_factory.mktemp("world")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    draw_sets(folder)
    save_tiny_weights(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(folder / ".cache"))
        fit_models(folder, f"file:{folder}/tiny.safetensors@timm/test_resnet")
    yield folder
    torch.set_num_threads(threads)


def enter(world: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a folder of the page's own that looks like the world, and work in it."""
    for path in world.iterdir():
        if path.name == "runs":
            shutil.copytree(path, folder / path.name)
        elif not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    patch.chdir(folder)
    patch.setenv("HEADSTART_CACHE", str(world / ".cache"))


def prepare(block: Block, namespace: dict[str, Any], name: str) -> None:
    """Run what a page sets up out of sight."""
    if block.setup:
        exec(compile(block.setup, f"{name}: setup of line {block.line}", "exec"), namespace)


def run_block(block: Block, namespace: dict[str, Any], name: str) -> None:
    """Run one block, or check it where it is marked."""
    prepare(block, namespace, name)
    is_run = not block.reason
    if block.language == "python":
        compile(block.code, name, "exec")
        if is_run:
            run_python(block.code, namespace, name, block.line)
    elif block.language == "pycon" and is_run:
        run_session(block.code, namespace, name)
    elif block.language == "console":
        commands = commands_of(block.code)
        assert commands, f"{name}:{block.line}: no line begins with a prompt"
        for command in commands:
            check_command(command, is_run=is_run)
    elif block.language == "yaml":
        yaml.safe_load(block.code)
    elif block.language == "json":
        json.loads(block.code)


NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
WITH_BLOCKS = [name for name in NAMES if blocks_of((ROOT / name).read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_the_blocks_of_a_page_run(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(world, tmp_path, monkeypatch)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of((ROOT / name).read_text(encoding="utf-8")):
        run_block(block, namespace, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_has_a_language_and_commands_are_fenced(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert {block.language for block in blocks_of(text)} <= LANGUAGES
    loose = re.findall(
        r"^(?: {4}|\t)(?:\$ )?(?:headstart \w.*|import headstart.*|from headstart.*)$", text, re.M
    )
    fenced = "\n".join(block.text for block in blocks_of(text))
    assert [line for line in loose if line.strip() not in fenced] == []


# ---------------------------------------------------------------------- the checks themselves


FAULTS = (AssertionError, headstart.HeadstartError, typer.BadParameter.__bases__[0])


def fails(check: Callable[[], Any]) -> bool:
    """Whether a check finds a fault."""
    try:
        check()
    except FAULTS:
        return True
    return False


@pytest.mark.parametrize(
    "command",
    [
        "headstart fitt photos/",
        "headstart fit photos/ --no-such-flag",
        "headstart fit photos/ --method finetune --epochs five",
        "headstart evaluate runs/photos",
        "make no-such-target",
        "pip install 'headstart[nothing]'",
        "no-such-program photos/",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    assert fails(lambda: check_command(command, is_run=True))


def test_blocks_are_read_with_their_comments() -> None:
    page = (
        "<!-- setup: x = 2 -->\n<!-- replace: 3 => x -->\n```python\n3 + 1   # 3\n```\n"
        "<!-- no-run: opens a browser -->\n```console\n$ headstart fit \\\n    photos/\nout\n```\n"
    )
    first, second = blocks_of(page)
    assert (first.code, first.setup, first.line) == ("x + 1   # x", "x = 2", 3)
    assert second.reason == "opens a browser"
    assert commands_of(second.code) == ["headstart fit  photos/"]


def test_a_wrong_value_in_a_comment_is_found() -> None:
    run_python("1 + 1   # 2\n1 + 1   # a sum", {}, "page", 0)
    assert fails(lambda: run_python("1 + 1   # 3", {}, "page", 0))
    assert fails(lambda: run_python("print('0.5 [0, 1]')   # 0.5 [0, 2]", {}, "page", 0))
    assert fails(lambda: run_session(">>> 1 + 1\n3", {}, "page"))


def test_no_page_is_forgotten() -> None:
    assert {"README.md", "docs/python.md", "docs/methods/finetune.md"} <= set(WITH_BLOCKS)
    assert os.environ["HEADSTART_OFFLINE"] == "1"
