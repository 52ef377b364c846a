"""Command-line flags of the methods, generated from the fields of their dataclasses.

A field is defined once, with its meaning in the docstring; here it becomes a flag, and flags
become a method again. Nested settings are flattened, so every flag name belongs to one field of a
method. ``RENAMED`` gives a longer name to fields whose own name is not clear as a flag.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from headstart.data.transforms.augment import PRESETS
from headstart.errors import UnknownNameError, UsageError
from headstart.methods import METHODS

if TYPE_CHECKING:
    from headstart.methods.method import Method

__all__ = ["RENAMED", "Flag", "flags", "make_method"]

RENAMED: Mapping[tuple[str, ...], str] = {
    ("augmentation", "policy"): "augment_policy",
    ("augmentation", "crop"): "random_crop",
    ("regularisation", "temperature"): "lwf_temperature",
    ("mask_loss", "kind"): "mask_loss",
    ("mask_loss", "class_weights"): "mask_class_weights",
    ("mask_loss", "label_smoothing"): "mask_label_smoothing",
    ("mask_loss", "focal_gamma"): "mask_focal_gamma",
}
"""Flags of nested fields whose own name is not clear enough."""

PRESET = "augment"
"""The only flag without a field: preset values for the other augmentation flags."""

RUN_FLAGS = {"seed"}
"""Fields that a flag of the run sets."""

Kind = Literal["switch", "integer", "number", "numbers", "text", "number or text"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option of the command line.

    Parameters
    ----------
    name : str
        Name of the field in Python; the command line has dashes for underscores.
    kind : str
        Kind of its value: switch, integer, number, numbers, text, or number or text.
    help : str
    default : str
        Default value as a text for people.
    choices : tuple of str
        Allowed values; empty without such a list.
    group : str
        Heading in the help.
    methods : tuple of str
        Methods that have the field.
    """

    name: str
    kind: Kind
    help: str
    default: str
    choices: tuple[str, ...]
    group: str
    methods: tuple[str, ...]

    @property
    def option(self) -> str:
        """The flag as typed on the command line.

        >>> next(flag.option for flag in flags() if flag.name == "train_from")
        '--train-from'
        """
        return "--" + self.name.replace("_", "-")


Path = tuple[str, ...]


@cache
def flags() -> tuple[Flag, ...]:
    """List the flags of all methods, each once, in the order of METHODS and of the fields.

    Raises
    ------
    UsageError
        If two fields of a method would get the same flag.
    """
    owners: dict[str, list[str]] = {}
    choices: dict[str, dict[str, None]] = {}  # in order, those of all methods
    first: dict[str, tuple[Path, Field[Any], type]] = {}
    for method, kind in METHODS.items():
        for name, (path, field, owner) in _fields(kind).items():
            owners.setdefault(name, []).append(method)
            allowed = _kind(get_type_hints(owner)[field.name])[1]
            choices.setdefault(name, {}).update(dict.fromkeys(allowed))
            first.setdefault(name, (path, field, owner))
            if path[0] == "augmentation" and method not in owners.setdefault(PRESET, []):
                owners[PRESET].append(method)
    every = [
        replace(_flag(name, *source, tuple(owners[name])), choices=tuple(choices[name]))
        for name, source in first.items()
    ]
    position = next(i for i, flag in enumerate(every) if flag.group.startswith("Augmentation"))
    preset = Flag(
        name=PRESET,
        kind="text",
        help="Preset of all augmentation flags; the other flags change single values of it.",
        default="none",
        choices=tuple(PRESETS),
        group=every[position].group,
        methods=tuple(owners[PRESET]),
    )
    return (*every[:position], preset, *every[position:])


def _fields(kind: Any, above: Path = ()) -> dict[str, tuple[Path, Field[Any], type]]:
    """Flag names with the path and class of their field, nested settings included."""
    hints = get_type_hints(kind)
    by_name: dict[str, tuple[Path, Field[Any], type]] = {}
    for field in _own_first(kind):
        inner, path = hints[field.name], (*above, field.name)
        if not above and field.name in RUN_FLAGS:
            continue
        name = RENAMED.get(path, field.name)
        nested = _fields(inner, path) if is_dataclass(inner) else {name: (path, field, kind)}
        if duplicates := sorted(nested.keys() & by_name.keys()):
            raise UsageError(
                f"{kind.__name__} has several fields for the flags {duplicates}. Add a name for "
                "one of them to RENAMED."
            )
        by_name |= nested
    return by_name


def _own_first(kind: Any) -> list[Field[Any]]:
    """Fields of a dataclass; those that a base class declares come last."""
    own = inspect.get_annotations(kind)
    return sorted(fields(kind), key=lambda field: field.name not in own)


def _flag(name: str, path: Path, field: Field[Any], owner: type, methods: tuple[str, ...]) -> Flag:
    kind, choices = _kind(get_type_hints(owner)[field.name])
    titles = ", ".join(methods)
    return Flag(
        name=name,
        kind=kind,
        help=_help(owner, field.name),
        default=_default(field),
        choices=choices,
        group=f"{path[0].capitalize()} ({titles})" if len(path) > 1 else f"Method {titles}",
        methods=methods,
    )


def _default(field: Field[Any]) -> str:
    value = field.default
    if value is None or value is MISSING:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return f"{len(value)} from {value[0]:g} to {value[-1]:g}" if len(value) > 4 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _kind(hint: Any) -> tuple[Kind, tuple[str, ...]]:
    if get_origin(hint) is Literal:
        return "text", tuple(get_args(hint))
    if get_origin(hint) in {Union, UnionType}:
        parts = {part for part in get_args(hint) if part is not NoneType}
        if parts == {float, str}:
            return "number or text", ()
        [hint] = parts
    if get_origin(hint) is tuple:
        return "numbers", ()
    kinds: dict[Any, Kind] = {bool: "switch", int: "integer", float: "number", str: "text"}
    return kinds[hint], ()


def _help(owner: type, field: str) -> str:
    """First sentence about a field in the Parameters section of the class or of a base class.

    >>> from headstart.data.transforms.augment import Augmentation
    >>> _help(Augmentation, "contrast")
    'Largest relative change, 0 to 1: with 0.2 the factor is drawn from 0.8 to 1.2.'
    """
    text = ""
    for kind in owner.__mro__:
        if text := _parameter_text(kind, field):
            break
    return re.split(r"(?<=[.;]) (?=[A-Z]|``)", text)[0]


def _parameter_text(kind: type, field: str) -> str:
    text = inspect.cleandoc(kind.__doc__ or "")
    section = text.partition("Parameters\n----------\n")[2]
    section = re.split(r"\n\n\w[\w ]*\n-+\n", section)[0]
    for entry in re.split(r"\n(?=\S)", section):
        head, _, body = entry.partition("\n")
        names, _, _ = head.partition(" : ")
        if field in names.split(", "):
            return " ".join(body.split()).replace("``", "")
    return ""


def make_method(name: str, values: Mapping[str, Any], *, seed: int = 0) -> Method:
    """Make a method from flags.

    Parameters
    ----------
    name : str
        Of the method.
    values : mapping
        Flag values by their names in Python, as text (a switch as a bool); None is left out.
    seed : int

    Returns
    -------
    Method

    Raises
    ------
    UnknownNameError
        If there is no such method.
    UsageError
        If the method has no such flag, or a value is invalid.

    Examples
    --------
    >>> make_method("finetune", {"train_from": "layer4", "epochs": "3"}).training.epochs
    3
    >>> make_method("linear-probe", {"layer_decay": "0.7"})
    Traceback (most recent call last):
    headstart.errors.UsageError: --layer-decay belongs to method finetune, but the method is \
linear-probe. Pass --method finetune, or remove the flag.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    by_name = {flag.name: flag for flag in flags()}
    texts = {key: value for key, value in values.items() if value is not None}
    _refuse_other_methods(name, [by_name[key] for key in texts])
    preset = texts.pop(PRESET, None)
    own = _fields(METHODS[name])
    by_path: dict[Path, Any] = {
        own[key][0]: _value(by_name[key], text) for key, text in texts.items()
    }
    if preset is not None:
        if preset not in PRESETS:
            raise UnknownNameError(PRESET, preset, PRESETS)
        defaults: dict[Path, Any] = {
            ("augmentation", key): value for key, value in PRESETS[preset].items()
        }
        by_path = {**defaults, **by_path}
    method: Method = _build(METHODS[name], {**by_path, ("seed",): seed})
    return method


def _refuse_other_methods(method: str, used: list[Flag]) -> None:
    for flag in used:
        if method not in flag.methods:
            raise UsageError(
                f"{flag.option} belongs to method {' or '.join(flag.methods)}, but the method is "
                f"{method}. Pass --method {flag.methods[0]}, or remove the flag."
            )


def _build(kind: Any, by_path: Mapping[Path, Any]) -> Any:
    """Make a dataclass from values by path, nested ones first."""
    hints = get_type_hints(kind)
    values = {path[0]: value for path, value in by_path.items() if len(path) == 1}
    for name in {path[0] for path in by_path if len(path) > 1}:
        inner = {path[1:]: value for path, value in by_path.items() if path[0] == name}
        values[name] = _build(hints[name], inner)
    return kind(**values)


def _value(flag: Flag, text: Any) -> Any:
    if isinstance(text, bool) or flag.kind == "text":
        return text
    try:
        match flag.kind:
            case "integer":
                return int(text)
            case "number":
                return float(text)
            case "numbers":
                return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        expected = {"integer": "a whole number", "number": "a number"}
        raise UsageError(
            f"{flag.option} must be {expected.get(flag.kind, 'numbers separated by commas')}, got "
            f"{text!r}. See `headstart fit --help`."
        ) from error
    try:
        return float(text)
    except ValueError:  # stage=rate pairs, or a word such as auto
        return text
