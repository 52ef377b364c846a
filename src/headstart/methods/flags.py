"""The flags of the methods: read off their dataclasses, and put together to a method again.

A field is defined once, with its meaning in the docstring; here it becomes a flag. Nested
settings are flattened. A name belongs to one field of a method, so that nothing has to be spelt
out; the few that would say too little alone are renamed in ``RENAMED``.
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
"""Fields whose own name would say too little among all the others."""

PRESET = "augment"
"""The one flag that is no field: where the augmentation's other flags start from."""

ELSEWHERE = {"seed"}
"""Flags of the run that the method follows."""

Kind = Literal["switch", "integer", "number", "numbers", "text", "number or text"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option of the command line, in the words of the methods that have it.

    Parameters
    ----------
    name : str
        As in Python; dashes stand for the underscores on the command line.
    kind : str
        What is given: switch, integer, number, numbers, text, or number or text.
    help : str
    default : str
        For people.
    choices : tuple of str
        Empty where anything goes.
    group : str
        The heading below which it stands.
    methods : tuple of str
        That have it.
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
        """The flag as it is typed.

        >>> next(flag.option for flag in flags() if flag.name == "train_from")
        '--train-from'
        """
        return "--" + self.name.replace("_", "-")


Path = tuple[str, ...]


@cache
def flags() -> tuple[Flag, ...]:
    """List every flag of every method, each once, in the order of the table and the fields.

    Raises
    ------
    UsageError
        If two fields of one method would have one name.
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
    found = [
        replace(_flag(name, *told, tuple(owners[name])), choices=tuple(choices[name]))
        for name, told in first.items()
    ]
    place = next(i for i, flag in enumerate(found) if flag.group.startswith("Augmentation"))
    preset = Flag(
        name=PRESET,
        kind="text",
        help="Changes to images, as a whole; the others are then changes to it.",
        default="none",
        choices=tuple(PRESETS),
        group=found[place].group,
        methods=tuple(owners[PRESET]),
    )
    return (*found[:place], preset, *found[place:])


def _fields(kind: Any, above: Path = ()) -> dict[str, tuple[Path, Field[Any], type]]:
    """Names of flags and where each goes, nested settings included."""
    hints = get_type_hints(kind)
    found: dict[str, tuple[Path, Field[Any], type]] = {}
    for field in fields(kind):
        inner, path = hints[field.name], (*above, field.name)
        if not above and field.name in ELSEWHERE:
            continue
        name = RENAMED.get(path, field.name)
        here = _fields(inner, path) if is_dataclass(inner) else {name: (path, field, kind)}
        if twice := sorted(here.keys() & found.keys()):
            raise UsageError(
                f"Expected one field for each flag of {kind.__name__}, got several for {twice}; "
                "do rename one in RENAMED."
            )
        found |= here
    return found


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
    """First sentence of what the docstring's Parameters section says of a field.

    >>> from headstart.data.transforms.augment import Augmentation
    >>> _help(Augmentation, "contrast")
    'Largest relative change, 0 to 1: with 0.2 the factor is drawn from 0.8 to 1.2.'
    """
    text = inspect.getdoc(owner) or ""
    section = text.partition("Parameters\n----------\n")[2]
    section = re.split(r"\n\n\w[\w ]*\n-+\n", section)[0]
    for entry in re.split(r"\n(?=\S)", section):
        head, _, body = entry.partition("\n")
        names, _, _ = head.partition(" : ")
        if field in names.split(", "):
            told = " ".join(body.split()).replace("``", "")
            return re.split(r"(?<=[.;]) (?=[A-Z]|``)", told)[0]
    return ""


def make_method(name: str, given: Mapping[str, Any], *, seed: int = 0) -> Method:
    """Put a method together from flags.

    Parameters
    ----------
    name : str
        Of the method.
    given : mapping
        Flags by their names in Python, as text (a switch as a bool); None is not given.
    seed : int

    Returns
    -------
    Method

    Raises
    ------
    UnknownNameError
        If there is no such method.
    UsageError
        If the method has no such flag, or a value cannot be meant.

    Examples
    --------
    >>> make_method("finetune", {"train_from": "layer4", "epochs": "3"}).training.epochs
    3
    >>> make_method("linear-probe", {"layer_decay": "0.7"})
    Traceback (most recent call last):
    headstart.errors.UsageError: Expected --layer-decay with method finetune, got linear-probe; \
do choose it with --method, or leave the flag out.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    known = {flag.name: flag for flag in flags()}
    wanted = {key: value for key, value in given.items() if value is not None}
    _refuse_foreign(name, [known[key] for key in wanted])
    preset = wanted.pop(PRESET, None)
    values = {key: _value(known[key], value) for key, value in wanted.items()}
    own = _fields(METHODS[name])
    places: dict[Path, Any] = {own[key][0]: value for key, value in values.items()}
    if preset is not None:
        if preset not in PRESETS:
            raise UnknownNameError(PRESET, preset, PRESETS)
        start: dict[Path, Any] = {
            ("augmentation", key): value for key, value in PRESETS[preset].items()
        }
        places = {**start, **places}
    made: Method = _build(METHODS[name], {**places, ("seed",): seed})
    return made


def _refuse_foreign(method: str, wanted: list[Flag]) -> None:
    foreign = [flag for flag in wanted if method not in flag.methods]
    if foreign:
        flag = foreign[0]
        raise UsageError(
            f"Expected {flag.option} with method {' or '.join(flag.methods)}, got {method}; "
            "do choose it with --method, or leave the flag out."
        )


def _build(kind: Any, places: Mapping[Path, Any]) -> Any:
    """Make a dataclass from values by path, inner ones first."""
    hints = get_type_hints(kind)
    here: dict[str, Any] = {path[0]: value for path, value in places.items() if len(path) == 1}
    for name in {path[0] for path in places if len(path) > 1}:
        inner = {path[1:]: value for path, value in places.items() if path[0] == name}
        here[name] = _build(hints[name], inner)
    return kind(**here)


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
        wanted = {"integer": "a whole number", "number": "a number"}
        raise UsageError(
            f"Expected {flag.option} to be {wanted.get(flag.kind, 'numbers with commas between')}, "
            f"got {text!r}; do see `headstart fit --help`."
        ) from error
    try:
        return float(text)
    except ValueError:  # pairs, or a word that the method knows
        return text
