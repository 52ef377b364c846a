"""Messages about a command line that cannot be parsed."""

from __future__ import annotations

import sys

import pytest

from headstart.cli import app
from headstart.cli.parser_errors import explain_parser_error


def _run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["headstart", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "SOURCE is missing. Run `headstart fit SOURCE`. See `headstart fit --help`."),
        (["predict", "m"], "IMAGES is missing. Run `headstart predict MODEL IMAGES`."),
        (["fit", "a", "b"], "Unexpected argument: b. Remove it, or put a path that has spaces"),
        (["fit", "a", "--budget"], "--budget needs a value. See `headstart fit --help`."),
        (["fit", "a", "--offline=3"], "--offline takes no value. Write it without `=`."),
        (["fit", "a", "--seed=1.5"], "--seed must be a whole number, got '1.5'."),
        (["fit", "a", "--seed", "x"], "--seed must be a whole number, got 'x'."),
        (["fit", "a", "--seed", "-1"], "--seed must be at least 0, got '-1'."),
        (["fit", "a", "--test-fraction", "half"], "--test-fraction must be a number, got 'half'."),
        (["fit", "a", "--bakbone", "b"], "Unknown option: '--bakbone'. Did you mean '--backbone'"),
        (["--foo"], "Unknown option: '--foo'. See `headstart --help`."),
        (["prdict", "a"], "Unknown command: 'prdict'. Did you mean 'predict'?"),
        (["data", "chek", "a"], "Unknown command: 'chek'. Did you mean 'check'?"),
        (["nothing-like-it"], "Unknown command: 'nothing-like-it'. See `headstart --help`."),
    ],
)
def test_a_wrong_command_line_is_named_with_what_to_do(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is wrong, its value, and the help to open; in the form of all other messages."""
    assert _run(arguments, monkeypatch) == 1

    printed = " ".join(capsys.readouterr().err.split())

    assert printed.startswith("headstart: ")
    assert message in printed
    assert "Usage:" not in printed


@pytest.mark.parametrize("arguments", [[], ["data"], ["cache"]])
def test_a_command_without_arguments_prints_its_help(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help, and nothing before it."""
    _run(arguments, monkeypatch)

    printed = capsys.readouterr()

    assert (printed.err + printed.out).startswith("Usage: headstart")


def test_a_sentence_that_is_not_known_stays() -> None:
    """A new version of the parser may have other sentences: none is lost."""
    message = explain_parser_error(ValueError("Something else"), ["fit", "x"])

    assert message == "Something else. See `headstart fit --help`."
