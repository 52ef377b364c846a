r"""Printing of text: safe in every encoding, without terminal escapes, wrapped at words.

Every line of the command line passes through this file. A character that the output cannot encode
and a control character in a name are printed as an escape such as ``\x1b``.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

from headstart.files import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "echo",
    "emit",
    "print_line",
    "say",
    "use_safe_streams",
    "use_utf8_names",
    "wrap",
]

HANDLER = "headstart.escape"
"""Name of the error handler for characters that the output cannot encode."""
SPELLINGS = {
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "±": "+/-",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "’": "'",
}
"""Signs that Headstart prints itself, and their spelling in ASCII."""

_UNITS = (
    "%|ms|s|min|m|h|B|kB|MB|GB|KiB|MiB|GiB|pixels?|images?|epochs?|steps?|points?|seconds?|"
    "minutes?|hours?|seeds?|folds?|classes|trainings?|parameters?|training|held-out|test"
)
# Spans whose spaces are no place for a line end: commands, paths in quotes, intervals, a flag and
# its value, a number and its unit.
_WHOLE = re.compile(
    r"`[^`\n]+`"
    r"|'[^'\n]*/[^'\n]*'"
    r"|\[[^\[\]\n]{1,40}\]"
    r"|\* best|\bbest: \d"
    r"|(?<!\S)--[a-z][\w-]*(?: (?!-|or |and |to |is |are |with |the |a |takes )[^\s,;]+)?"
    rf"|\d (?=(?:{_UNITS})(?![\w-]))"
)
_JOINT = "\0"


def use_safe_streams() -> None:
    """Escape what standard output and standard error cannot encode, instead of failing."""
    codecs.register_error(HANDLER, _escape_unencodable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def _escape_unencodable(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    first = error.object[error.start]
    if first in SPELLINGS:
        return SPELLINGS[first], error.start + 1
    single_character = UnicodeEncodeError(
        error.encoding, error.object, error.start, error.start + 1, error.reason
    )
    return codecs.backslashreplace_errors(single_character)


def use_utf8_names() -> None:
    """Start Python again in UTF-8 mode if it cannot read file names that are in UTF-8.

    This is so with ``LC_ALL=C`` and ``PYTHONUTF8=0``. The encoding of the output does not change.
    """
    is_utf8 = codecs.lookup(sys.getfilesystemencoding()).name == "utf-8"
    if os.name != "posix" or is_utf8 or os.environ.get("PYTHONUTF8") == "1":
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    environment = {"PYTHONIOENCODING": encoding, **os.environ, "PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606


def wrap(text: str, width: int, *, first: int = 0, hanging: int = 0) -> list[str]:
    """Break text into lines between words; a path, a command or a number with its unit stays whole.

    Parameters
    ----------
    text : str
        May have line ends of its own, which stay.
    width : int
        Columns. A word that is longer has a line of its own.
    first, hanging : int
        Columns in front of the first line, which the caller fills, and of the others, which are
        filled with spaces.

    Examples
    --------
    >>> wrap("Run `headstart doctor` for 30 s.", 22)
    ['Run `headstart doctor`', 'for 30 s.']
    >>> wrap("one two three", 9, first=2, hanging=2)
    ['one two', '  three']
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        column = hanging if lines else first
        lines += _wrap_paragraph(paragraph, width, column, hanging, is_first=not lines)
    return lines


def _wrap_paragraph(
    text: str, width: int, column: int, hanging: int, *, is_first: bool
) -> list[str]:
    from rich.cells import cell_len

    pad = " " * hanging
    joined = _WHOLE.sub(lambda match: match.group().replace(" ", _JOINT), text)
    lead = re.match(r" *", joined)
    line = ("" if is_first else pad) + (lead.group() if lead else "")
    column += len(line) - len("" if is_first else pad)
    lines, is_empty = [], True
    for space, word in re.findall(r"( *)([^ ]+)", joined.lstrip(" ")):
        size = cell_len(word.replace(_JOINT, " "))
        if not is_empty and column + len(space) + size > width:
            lines.append(line)
            line, column, is_empty = pad, hanging, True
        gap = "" if is_empty else space
        line, column, is_empty = line + gap + word, column + len(gap) + size, False
    return [part.replace(_JOINT, " ") for part in (*lines, line)]


def print_line(
    console: Console, title: str, text: str, *, style: str = "", keep: bool = False
) -> None:
    """Print a title with markup and a text without; the text wraps at words.

    Parameters
    ----------
    console : Console
    title : str
        Rich markup, printed as it is. Further lines of the text start below its end.
    text : str
    style : str
        Style of the text, such as ``dim``.
    keep : bool
        Print the text on one line, however long: it is there to be copied.
    """
    from rich.text import Text

    head, clean = Text.from_markup(title), printable(text)
    hanging = min(head.cell_len, 14)
    lines = [clean] if keep else wrap(clean, console.width, first=head.cell_len, hanging=hanging)
    for number, line in enumerate(lines):
        body = Text(line, style=style)
        console.print(head + body if number == 0 else body, highlight=False, soft_wrap=True)


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text as it is, but for control characters."""
    stream = sys.stderr if err else sys.stdout
    stream.write(printable(text) + "\n" * nl)
    stream.flush()


def emit(document: Any) -> None:
    """Print one JSON document."""
    from headstart.metrics.validation import json_text  # it imports NumPy: --help does not wait

    echo(json_text(document, indent=1))


def say(text: str, *, err: bool = False) -> None:
    """Print a sentence, wrapped at words; further lines are indented."""
    width = shutil.get_terminal_size().columns
    echo("\n".join(wrap(printable(text), width, hanging=2)), err=err)
