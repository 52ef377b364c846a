"""Command-line flags of the methods, generated from the fields of their dataclasses.

A field is defined once, with its meaning in the docstring; here it becomes a flag, and flags
become a method again. Nested settings are flattened, so every flag name belongs to one field of a
method. ``RENAMED`` gives a longer name to fields whose own name is not clear as a flag.
"""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from headstart.data.transforms.augment import PRESETS
from headstart.errors import UnknownNameError, UsageError
from headstart.methods import METHODS
from headstart.methods.plugin_methods import find_method, is_plugin

if TYPE_CHECKING:
    from headstart.methods.method import Method

__all__ = ["RENAMED", "Flag", "flags", "make_method", "record_values", "typed_values"]

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
"""Fields that are set by a flag of the run, not of the method."""

TAKEN = frozenset(
    [
        "allow_overlap",
        "as_json",
        "backbone",
        "backbones",
        "bad_files",
        "band_range",
        "bands",
        "bits",
        "budget",
        "cache",
        "callbacks",
        "class_agnostic_nms",
        "class_level",
        "command",
        "config",
        "device",
        "engine",
        "episodes",
        "group_by",
        "head",
        "help",
        "image_column",
        "images",
        "json",
        "label_column",
        "label_from",
        "label_separator",
        "mask_threshold",
        "masks",
        "max_boxes",
        "max_pixels",
        "max_risk",
        "method",
        "nms",
        "no_cache",
        "no_data",
        "observer",
        "offline",
        "on",
        "open",
        "open_report",
        "out",
        "progress",
        "prove",
        "quiet",
        "recipe",
        "require_lead",
        "resume",
        "rivals",
        "size",
        "source",
        "task",
        "test_fraction",
        "track",
        "verbose",
        "ways",
        "weight_column",
        "window",
    ]
)
"""Flags and keywords of a run, which no method of another package may use for a field."""

ValueKind = Literal["switch", "integer", "number", "numbers", "text", "number or text"]

FieldPath = tuple[str, ...]


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
        Default value as text, for the help.
    choices : tuple of str
        Allowed values; empty without such a list.
    group : str
        Heading in the help.
    methods : tuple of str
        Methods that have the field.
    """

    name: str
    kind: ValueKind
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


@cache
def flags(method: str = "") -> tuple[Flag, ...]:
    """List the flags of Headstart's methods, each once, in the order of METHODS and of the fields.

    Parameters
    ----------
    method : str
        Name of a method of another package, whose flags are listed too. Other names are ignored.

    Raises
    ------
    SetupError
        If that method cannot be used.
    UsageError
        If two fields of a method would get the same flag.
    """
    owners: dict[str, list[str]] = {}
    choices: dict[str, dict[str, None]] = {}  # in order, those of all methods
    first: dict[str, tuple[FieldPath, Field[Any], type]] = {}
    kinds = {**METHODS, **({method: find_method(method)} if is_plugin(method) else {})}
    for name, kind in kinds.items():
        for flag_name, (path, field, owner) in _fields(kind).items():
            source = first.setdefault(flag_name, (path, field, owner))
            if name not in METHODS:
                _require_free(kind, flag_name, (field, owner), source)
            owners.setdefault(flag_name, []).append(name)
            allowed = _kind(get_type_hints(owner)[field.name])[1]
            choices.setdefault(flag_name, {}).update(dict.fromkeys(allowed))
            if path[0] == "augmentation" and name not in owners.setdefault(PRESET, []):
                owners[PRESET].append(name)
    all_flags = [
        replace(_flag(name, *source, tuple(owners[name])), choices=tuple(choices[name]))
        for name, source in first.items()
    ]
    position = next(i for i, flag in enumerate(all_flags) if flag.group.startswith("Augmentation"))
    preset = Flag(
        name=PRESET,
        kind="text",
        help="Preset of all augmentation flags; the other flags change single values of it.",
        default="none",
        choices=tuple(PRESETS),
        group=all_flags[position].group,
        methods=tuple(owners[PRESET]),
    )
    return (*all_flags[:position], preset, *all_flags[position:])


def _require_free(
    kind: type, name: str, own: tuple[Field[Any], type], first: tuple[FieldPath, Field[Any], type]
) -> None:
    """Refuse a field whose flag is one of the run, or one of another type."""
    (field, owner), (_, first_field, first_owner) = own, first
    value_kind = _kind(get_type_hints(owner)[field.name])[0]
    other_kind = _kind(get_type_hints(first_owner)[first_field.name])[0]
    is_same = value_kind in {other_kind, *other_kind.split(" or ")}
    other = "" if is_same else f"{first_owner.__name__}, with the type {other_kind}"
    other = "the run" if name in TAKEN or name == PRESET else other
    if other:
        raise UsageError(
            f"The field `{name}` of {kind.__module__}.{kind.__name__}, with the type {value_kind}, "
            f"has the flag of {other}. Rename the field."
        )


def _fields(kind: Any, above: FieldPath = ()) -> dict[str, tuple[FieldPath, Field[Any], type]]:
    """Flag names with the path and class of their field, nested settings included."""
    hints = get_type_hints(kind)
    by_name: dict[str, tuple[FieldPath, Field[Any], type]] = {}
    for field in _own_first(kind):
        inner, path = hints[field.name], (*above, field.name)
        if (not above and field.name in RUN_FLAGS) or not field.metadata.get("flag", True):
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


def _flag(
    name: str, path: FieldPath, field: Field[Any], owner: type, methods: tuple[str, ...]
) -> Flag:
    kind, choices = _kind(get_type_hints(owner)[field.name])
    titles = ", ".join(methods)
    return Flag(
        name=name,
        kind=kind,
        help=_help(owner, field.name),
        default=_default(field),
        choices=choices,
        group=f"{path[0].replace('_', ' ').capitalize()} ({titles})"
        if len(path) > 1
        else f"Method {titles}",
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


def _kind(hint: Any) -> tuple[ValueKind, tuple[str, ...]]:
    if get_origin(hint) is Literal:
        return "text", tuple(get_args(hint))
    if get_origin(hint) in {Union, UnionType}:
        parts = {part for part in get_args(hint) if part is not NoneType}
        if parts == {float, str}:
            return "number or text", ()
        [hint] = parts
    if get_origin(hint) is tuple:
        return "numbers", ()
    kinds: dict[Any, ValueKind] = {bool: "switch", int: "integer", float: "number", str: "text"}
    if hint not in kinds:
        raise UsageError(
            f"No flag can have the type {hint} of a method's field. Use bool, int, float, str, a "
            "Literal or a tuple of numbers, or field(metadata={'flag': False})."
        )
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
        Flag values by their names in Python, as text or as values of the field's type (a switch
        as a bool); None is left out.
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
    method_class = find_method(name)
    by_name = {flag.name: flag for flag in flags(name)}
    typed = {key: _value(by_name[key], value) for key, value in values.items() if value is not None}
    _refuse_other_methods(name, [by_name[key] for key in typed])
    preset = typed.pop(PRESET, None)
    own = _fields(method_class)
    by_path: dict[FieldPath, Any] = {own[key][0]: value for key, value in typed.items()}
    if preset is not None:
        if preset not in PRESETS:
            raise UnknownNameError(PRESET, preset, PRESETS)
        defaults: dict[FieldPath, Any] = {
            ("augmentation", key): value for key, value in PRESETS[preset].items()
        }
        by_path = {**defaults, **by_path}
    method: Method = _build(method_class, {**by_path, ("seed",): seed})
    return method


def record_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flag values in the record of a method, as ``described`` makes it.

    Parameters
    ----------
    record : mapping
        With ``name``. None is left out.

    Raises
    ------
    UnknownNameError
        If there is no such method or setting; the message suggests the nearest name.
    UsageError
        If a group of settings is no mapping.

    Examples
    --------
    >>> record_values({"name": "finetune", "train_from": "all", "training": {"epochs": 5}})
    {'train_from': 'all', 'epochs': 5}
    """
    name = record["name"]
    kind = find_method(name)
    names = {path: flag for flag, (path, _, _) in _fields(kind).items()}
    hidden = {(f.name,): f.default for f in fields(kind) if not f.metadata.get("flag", True)}
    groups = {path[0] for path in names if len(path) > 1}
    values: dict[str, Any] = {}
    for key, value in record.items():
        if key in groups and not isinstance(value, Mapping):
            raise UsageError(
                f"`{key}` of method {name} must have settings of its own, got {value!r}. Remove "
                f"`{key}`, or write its settings below it."
            )
        if key == "loss" and "function" in value:
            raise UsageError(
                f"The settings use the loss {value['function']}, a Python function, which no file "
                "can hold. Train from Python: headstart.fit(..., loss=function)."
            )
        leaves = {(key, k): v for k, v in value.items()} if key in groups else {(key,): value}
        for path, leaf in leaves.items():
            if path in names:
                values[names[path]] = leaf
            elif path in hidden:
                _require_default(name, path[0], leaf, hidden[path])
            elif path not in {("name",), ("seed",)}:
                choices = [".".join(other) for other in names]
                raise UnknownNameError(
                    f"setting of method {name}", ".".join(map(str, path)), choices
                )
    return {flag: value for flag, value in values.items() if value is not None}


def _require_default(method: str, name: str, value: Any, default: Any) -> None:
    """Refuse another value than the default of a field that has no flag."""
    plain = list(default) if isinstance(default, tuple) else default
    if value not in (default, plain):
        raise UsageError(
            f"`{name}` of method {method} has no flag, so a file cannot set it to "
            f"{reprlib.repr(value)}. Remove it, or train from Python with method=..."
        )


def typed_values(values: Mapping[str, Any], method: str = "") -> dict[str, Any]:
    """Convert flag values to the types of their fields; None is left out.

    Parameters
    ----------
    values : mapping
    method : str
        As for `flags`.

    Raises
    ------
    UsageError
        If a value has another type.

    Examples
    --------
    >>> typed_values({"epochs": "3", "flip": True, "mixup": None})
    {'epochs': 3, 'flip': True}
    """
    by_name = {flag.name: flag for flag in flags(method)}
    return {key: _value(by_name[key], value) for key, value in values.items() if value is not None}


def _refuse_other_methods(method: str, used: list[Flag]) -> None:
    for flag in used:
        if method not in flag.methods:
            raise UsageError(
                f"{flag.option} belongs to method {' or '.join(flag.methods)}, but the method is "
                f"{method}. Pass --method {flag.methods[0]}, or remove the flag."
            )


def _build(kind: Any, by_path: Mapping[FieldPath, Any]) -> Any:
    """Make a dataclass from values by path, nested ones first."""
    hints = get_type_hints(kind)
    values = {path[0]: value for path, value in by_path.items() if len(path) == 1}
    for name in {path[0] for path in by_path if len(path) > 1}:
        inner = {path[1:]: value for path, value in by_path.items() if path[0] == name}
        values[name] = _build(hints[name], inner)
    return kind(**values)


def _value(flag: Flag, value: Any) -> Any:
    if not isinstance(value, str):
        return _typed_value(flag, value)
    if flag.kind == "text":
        return value
    if flag.kind == "switch":
        raise _type_error(flag, value)
    try:
        match flag.kind:
            case "integer":
                return int(value)
            case "number":
                return float(value)
            case "numbers":
                return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        expected = {"integer": "a whole number", "number": "a number"}
        raise UsageError(
            f"{flag.option} must be {expected.get(flag.kind, 'numbers separated by commas')}, got "
            f"{value!r}. See `headstart fit --help`."
        ) from error
    try:
        return float(value)
    except ValueError:  # stage=rate pairs, or a word such as auto
        return value


def _typed_value(flag: Flag, value: Any) -> Any:
    """Accept a value from Python, if it has the type of the field."""
    is_switch = isinstance(value, bool)
    with suppress(OverflowError):  # an integer above 1e308 is no float
        match flag.kind:
            case "switch" if is_switch:
                return value
            case "integer" if isinstance(value, Integral) and not is_switch:
                return int(value)
            case "number" | "number or text" if isinstance(value, Real) and not is_switch:
                return float(value)
            case "numbers" if isinstance(value, Iterable):
                numbers = tuple(value)
                if all(isinstance(n, Real) and not isinstance(n, bool) for n in numbers):
                    return tuple(float(number) for number in numbers)
    raise _type_error(flag, value)


def _type_error(flag: Flag, value: Any) -> UsageError:
    expected = {
        "switch": "True or False",
        "integer": "a whole number",
        "number": "a number",
        "numbers": "numbers, such as (0.1, 1.0)",
        "number or text": "a number or a text",
    }
    words = expected.get(flag.kind, "a text")
    if flag.choices:
        words += f" ({', '.join(flag.choices)})"
    elif flag.kind == "text" and flag.default:
        words += f" such as {flag.default!r}"
    return UsageError(
        f"`{flag.name}` must be {words}, got {reprlib.repr(value)} ({type(value).__name__}). "
        f"Pass {flag.name}=... with another value, or leave it out."
    )
