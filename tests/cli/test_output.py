"""Printing: no traceback for any name, escapes are shown, lines end between words."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from headstart.cli.output import print_line, use_safe_streams, wrap
from headstart.cli.terminal import SafeConsole, Terminal
from headstart.files import printable
from headstart.workflows.events import Noted, Progressed

NAMES = ("日本🍕", "red\x1b[31m\x1b]0;title\x07")
"""A class outside every old encoding, and one that would colour and rename the terminal."""
ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "strict C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes that differ in brightness, with names that are hard to print."""
    root = tmp_path_factory.mktemp("output") / "photos"
    rng = np.random.default_rng(0)
    for base, name in zip((0, 128), NAMES, strict=True):
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(base, base + 128, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name[0]}{i}.png")
    return root


@pytest.fixture(scope="module")
def model(photos, tmp_path_factory):
    from headstart.cache import Cache
    from headstart.workflows.fit import fit
    from headstart.workflows.recipe import Recipe

    folder = tmp_path_factory.mktemp("output-run")
    recipe = Recipe(engine="fp32", device="cpu", budget=0)
    return fit(photos, recipe, out=folder / "run", cache=Cache(folder / "cache")).folder


def shell(arguments, environment, folder):
    """Run the program in a process of its own, with its output to files."""
    command = [sys.executable, "-m", "headstart", *map(str, arguments)]
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    keep.pop("LC_ALL", None)
    return subprocess.run(
        command, capture_output=True, env={**keep, **environment}, cwd=folder, check=False
    )


def require_clean(result, encoding):
    """No traceback, no control characters, and nothing that the encoding cannot hold."""
    for output in (result.stdout, result.stderr):
        text = output.decode(encoding)  # raises where a byte is not of the encoding
        assert "Traceback" not in text
        assert not {"\x1b", "\x07"} & set(text)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_no_name_ends_a_run_in_a_traceback(name, photos, tmp_path):
    encoding = "cp1252" if name == "cp1252" else "ascii"
    probe = ("--method", "linear-probe", "--engine", "fp32")
    result = shell(["fit", photos, "--out", tmp_path / "r", *probe], ENVIRONMENTS[name], tmp_path)
    assert result.returncode == 0, result.stderr
    require_clean(result, encoding)
    shown = result.stdout.decode(encoding)
    assert "\\u65e5\\u672c\\U0001f355" in shown
    assert "red\\x1b[31m\\x1b]0;title\\x07" in shown
    saved = json.loads((tmp_path / "r" / "model.json").read_text(encoding="utf-8"))
    assert "日本🍕" in json.dumps(saved, ensure_ascii=False)  # escaped on the screen only


@pytest.mark.parametrize("name", ["ascii", "C"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["predict", "{model}", "{photos}"], 0),
        (["predict", "{model}", "{photos}", "--format", "csv"], 0),
        (["predict", "{model}", "{photos}", "--json"], 0),
        (["evaluate", "{model}", "{photos}", "--allow-overlap"], 0),
        (["evaluate", "{model}", "{photos}"], 2),
        (["data", "check", "{photos}", "--json"], 0),
        (["fit", "no/日本🍕\x1b[2J"], 2),
        (["日本🍕\x1b[2J"], 1),
    ],
)
def test_every_verb_prints_every_name(name, words, code, photos, model, tmp_path):
    given = [word.format(model=model, photos=photos) for word in words]
    result = shell(given, ENVIRONMENTS[name], tmp_path)
    assert result.returncode == code, result.stderr
    require_clean(result, "ascii")
    if "--json" in words:
        assert "日本🍕" in json.dumps(json.loads(result.stdout), ensure_ascii=False)


def test_an_encoding_is_escaped_and_own_signs_are_spelled(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    use_safe_streams()
    print("3 × 4 … 日", file=stream)
    stream.flush()
    assert stream.buffer.getvalue() == b"3 x 4 ... \\u65e5\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("\x9b2J", "\\x9b2J"),  # one byte that starts an escape sequence, too
        ("gnp\u202e.exe", "gnp\\u202e.exe"),  # reads backwards
        ("line\rover", "line\\rover".replace("\\r", "\\x0d")),
        ("rows\r\nand\ttabs\n", "rows\r\nand\ttabs\n"),
        ("日本🍕 é", "日本🍕 é"),
    ],
)
def test_control_characters_are_shown(text, shown):
    assert printable(text) == shown


def test_escapes_of_the_console_itself_stay():
    console = SafeConsole(
        file=io.StringIO(), width=80, force_terminal=True, color_system="standard"
    )
    with Terminal(console) as terminal:
        terminal(Noted(text="class \x1b[2J"))
        terminal(Progressed(step="fold \x1b[2J [b]", done=1, total=2))
    output = console.file.getvalue()
    assert "\x1b[1mNote" in output
    assert "\x1b[2J" not in output
    assert "class \\x1b[2J" in output
    assert "fold \\x1b[2J [b]" in output


def lines(text, width=80, title="  "):
    console = SafeConsole(file=io.StringIO(), width=width)
    print_line(console, title, text)
    return console.file.getvalue().splitlines()


def test_lines_end_between_words_and_keep_what_belongs_together():
    whole = (
        "`headstart compare photos --seeds 5`",
        "runs/a-folder/with-a-long-name/report.html",
        "[+0.575, +0.798]",
        "147 s",
        "--budget 10m",
    )
    text = ("some words before it " + " and then ".join(whole) + ". ") * 3
    for width in (40, 60, 80):
        found = lines(text, width)
        assert all(any(part in line for line in found) for part in whole)
        assert sum(line.count(part) for line in found for part in whole) == 15
        assert " ".join(" ".join(found).split()) == " ".join(text.split())
        assert all(len(line) <= width or line.strip(" .") in whole for line in found)


def test_a_word_that_is_too_long_stays_whole():
    path = "/a" * 60
    assert lines(f"Wrote {path} and more") == ["  Wrote", f"  {path}", "  and more"]


def test_further_lines_start_below_the_text():
    assert lines("one two three four", width=12, title="Note  ") == [
        "Note  one",
        "      two",
        "      three",
        "      four",
    ]


def test_wide_characters_count_twice():
    assert wrap("日本 日本 日本", 9) == ["日本 日本", "日本"]


def test_own_line_ends_stay():
    assert wrap("a b\n\n  c d", 80) == ["a b", "", "  c d"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf8_is_written_as_an_escape(photos, tmp_path):
    root = tmp_path / "photos"
    for image, name in zip(sorted(photos.iterdir()), (b"caf\xe9", b"tea"), strict=True):
        folder = root / os.fsdecode(name)
        folder.mkdir(parents=True)
        for path in image.iterdir():
            (folder / f"{path.stem[1:]}.png").write_bytes(path.read_bytes())
    probe = ("--method", "linear-probe", "--engine", "fp32", "--out", tmp_path / "r")
    result = shell(["fit", root, *probe], {"PYTHONIOENCODING": "ascii"}, tmp_path)
    assert result.returncode == 0
    require_clean(result, "ascii")
    assert "caf\\udce9" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "caf\\udce9" in (tmp_path / "r" / "predictions.csv").read_text(encoding="utf-8")
