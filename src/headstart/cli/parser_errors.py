"""Messages about a command line that cannot be parsed, in the form of all other messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["explain_parser_error"]

_VALUE_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "yes or no",
}


def explain_parser_error(error: Exception, arguments: Sequence[str] = ()) -> str:
    """Write what is wrong with the command line, and what to do.

    Parameters
    ----------
    error
        Error of the argument parser. Its class belongs to the parser's private modules, so only
        its name and attributes are read.
    arguments
        The command line without the name of the program.

    Returns
    -------
    str
        One message: what is wrong, the nearest name where there is one, and the help to open.

    Examples
    --------
    >>> explain_parser_error(ValueError("Option '--budget' requires an argument."), ["fit"])
    '--budget needs a value. See `headstart fit --help`.'
    """
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else _command_name(arguments)
    kind = type(error).__name__
    if kind == "NoSuchOption":
        message = _explain_option(error)
    elif kind == "MissingParameter":
        message = _explain_missing(error, command)
    else:
        message = _explain_text(_text_of(error), arguments)
    return f"{message} See `{command} --help`."


def _text_of(error: Exception) -> str:
    format_message = getattr(error, "format_message", None)
    return str(format_message() if format_message is not None else error).strip()


def _explain_option(error: Exception) -> str:
    name = str(error.option_name)  # type: ignore[attr-defined]
    nearest = list(error.possibilities or ())  # type: ignore[attr-defined]
    message = f"Unknown option: '{name}'."
    if nearest:
        message += f" Did you mean {' or '.join(repr(option) for option in nearest[:3])}?"
    return message


def _explain_missing(error: Exception, command: str) -> str:
    parameter = error.param  # type: ignore[attr-defined]
    if parameter is None or parameter.param_type_name == "option":
        return _explain_text(_text_of(error), ())
    arguments = [
        argument.name.upper()
        for argument in error.ctx.command.params  # type: ignore[attr-defined]
        if argument.param_type_name == "argument" and argument.required
    ]
    return f"{parameter.name.upper()} is missing. Run `{command} {' '.join(arguments)}`."


def _explain_text(text: str, arguments: Sequence[str]) -> str:
    """Reword a sentence of the parser; a sentence that is not known stays as it is."""
    if needs_value := re.fullmatch(r"Option '(.+)' requires (?:an|\d+) arguments?\.", text):
        return f"{needs_value[1]} needs a value."
    if is_switch := re.fullmatch(r"Option '(.+)' does not take a value\.", text):
        return f"{is_switch[1]} takes no value. Write it without `=`."
    if surplus := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", text, re.S):
        advice = "Remove it, or put a path that has spaces in quotation marks."
        return f"Unexpected argument: {surplus[1]}. {advice}"
    if command := re.fullmatch(r"No such command '(.*?)'\.(?: Did you mean '(.*)'\?)?", text, re.S):
        hint = f" Did you mean '{command[2]}'?" if command[2] else ""
        return f"Unknown command: '{command[1]}'.{hint}"
    if value := re.fullmatch(r"Invalid value for '(.+?)': (.*)", text, re.S):
        return _explain_value(value[1].split(" / ")[0], value[2], arguments)
    return text if text.endswith((".", "?")) else f"{text}."


def _explain_value(flag: str, reason: str, arguments: Sequence[str]) -> str:
    following = [value for name, value in pairwise(arguments) if name == flag]
    joined = [item.partition("=")[2] for item in arguments if item.startswith(f"{flag}=")]
    values = following + joined
    got = f", got '{values[-1]}'" if values else ""
    if kind := re.search(r"valid (integer|number|boolean)", reason):
        return f"{flag} must be {_VALUE_KINDS[kind[1]]}{got}."
    if bound := re.search(r"should be (greater|less) than( or equal to)? (\S+)$", reason):
        side = {"greater": "at least", "less": "at most"}[bound[1]]
        words = side if bound[2] else f"{bound[1]} than"
        return f"{flag} must be {words} {bound[3]}{got}."
    return f"Invalid value for {flag}: {reason.rstrip('.')}."


def _command_name(arguments: Sequence[str]) -> str:
    is_command = bool(arguments) and not arguments[0].startswith("-")
    return f"headstart {arguments[0]}" if is_command else "headstart"
