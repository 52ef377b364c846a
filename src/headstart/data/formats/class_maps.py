"""Reader of the files that name the classes of masks.

Class maps are classes.txt, labelmap.txt, class_dict.csv and similar text, CSV and JSON files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from headstart.data.dataset import IGNORED, Code, Palette
from headstart.data.formats.layouts import Listing, format_list
from headstart.data.formats.tables import read_table
from headstart.errors import DataError
from headstart.files import read_text

__all__ = ["ClassMap", "find_class_map", "read_class_map", "to_palette"]

_CLASS_MAP_STEMS = (
    "classes", "class_names", "class_map", "class_dict", "labelmap", "label_map", "label_colors",
    "labels", "codes", "palette", "colors", "colours",
)  # fmt: skip
_VOID_CLASSES = frozenset(("ignore", "ignored", "void", "unlabelled", "unlabeled"))
_COLOUR_LINE = re.compile(r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;:]+(\S.*)")
_CVAT_LINE = re.compile(r"([^:]+):\s*(\d{1,3}),\s*(\d{1,3}),\s*(\d{1,3})\s*(?::.*)?")
_HEX_LINE = re.compile(r"#([0-9a-fA-F]{6})[\s,;:]+(\S.*)")
_NUMBER_LINE = re.compile(r"(\d+)[\s,;:]+(\S.*)")

_CodesAndNames = list[tuple[Code | None, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """Codes and their classes, as read from a file.

    Parameters
    ----------
    name : str
        The file it was read from.
    codes : tuple of (code, str)
    in_order : bool
        Whether the file has no codes, so that each code is the position of its class.
    """

    name: str
    codes: tuple[tuple[Code, str], ...]
    in_order: bool = False


def find_class_map(listing: Listing) -> tuple[str, ...]:
    """Find files whose names are usual for class maps, the most likely first.

    Examples
    --------
    >>> find_class_map(Listing(root=Path("p"), other_files=("a/classes.csv", "classes.txt")))
    ('classes.txt', 'a/classes.csv')
    """
    candidates = []
    for name in listing.other_files:
        stem, _, suffix = name.rsplit("/", 1)[-1].lower().rpartition(".")
        if stem in _CLASS_MAP_STEMS and suffix in {"txt", "csv", "json"}:
            candidates.append((name.count("/"), _CLASS_MAP_STEMS.index(stem), name))
    return tuple(name for *_, name in sorted(candidates))


def read_class_map(path: Path) -> ClassMap:
    r"""Read a class map.

    Parameters
    ----------
    path : Path
        Text with one class per line: ``name`` (its code is its position, from 0), ``code name``,
        ``r g b name``, ``#rrggbb name`` or ``name:r,g,b::``; CSV with a column of names and one
        of codes, three of colours or one of ``#rrggbb``; JSON: a list of names, or an object of
        code or ``#rrggbb`` to name.

    Raises
    ------
    DataError
        If the file has none of these formats, or has a code twice.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "classes.txt")
    >>> _ = path.write_text("128 0 0 leaf\n0 0 0 ground\n")
    >>> read_class_map(path).codes
    (((128, 0, 0), 'leaf'), ((0, 0, 0), 'ground'))
    """
    try:
        if path.suffix.lower() == ".csv":
            pairs = _parse_table(read_table(path).columns)
        elif path.suffix.lower() == ".json":
            pairs = _parse_json(json.loads(read_text(path)))
        else:
            pairs = _parse_lines(read_text(path).splitlines())
    except json.JSONDecodeError as error:
        raise _class_map_error(path, f"the file is not valid JSON ({error})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise _class_map_error(path, str(error)) from error
    in_order = all(code is None for code, _ in pairs)
    codes = [
        (position if code is None else code, normalize("NFC", name.strip()))
        for position, (code, name) in enumerate(pairs)
    ]
    duplicates = {code for i, (code, _) in enumerate(codes) if code in [c for c, _ in codes[:i]]}
    if duplicates:
        raise _class_map_error(path, f"the code {next(iter(duplicates))} occurs twice")
    if not codes or any(not name for _, name in codes):
        raise _class_map_error(path, "a class has no name" if codes else "the file has no names")
    return ClassMap(name=path.name, codes=tuple(codes), in_order=in_order)


def to_palette(codes: Sequence[tuple[Code, str]]) -> Palette:
    """Convert the codes of a class map to a palette.

    Classes called void, ignore or unlabelled are ignored. So is 255, unless it is the code of a
    class.

    Examples
    --------
    >>> to_palette([(0, "sky"), (1, "Unlabelled")])
    Palette(codes=((0, 'sky'),), ignored=(255, 1))
    """
    void = tuple(
        code for code, name in codes if name.casefold() in _VOID_CLASSES and code != IGNORED
    )
    named = tuple((code, name) for code, name in codes if name.casefold() not in _VOID_CLASSES)
    default = () if IGNORED in [code for code, _ in named] else (IGNORED,)
    return Palette(codes=named, ignored=default + void)


def _class_map_error(path: Path, problem: str) -> DataError:
    return DataError(
        f"Cannot read the classes of the masks from {str(path)!r}: {problem}. Write one class per "
        "line, as 'name', 'code name' or 'r g b name'."
    )


def _parse_lines(lines: Sequence[str]) -> _CodesAndNames:
    texts = [line.strip() for line in lines if line.strip()]
    # A line that starts with # is a comment, unless it is a hexadecimal colour.
    texts = [text for text in texts if text[0] != "#" or _HEX_LINE.fullmatch(text)]
    if fields := _match_all(_COLOUR_LINE, texts):
        return [(_parse_colour(r, g, b), name) for r, g, b, name in fields]
    if fields := _match_all(_CVAT_LINE, texts):
        return [(_parse_colour(r, g, b), name) for name, r, g, b in fields]
    if fields := _match_all(_HEX_LINE, texts):
        return [(_parse_hex_colour(code), name) for code, name in fields]
    if fields := _match_all(_NUMBER_LINE, texts):
        return [(int(code), name) for code, name in fields]
    coloured = [t for t in texts if _COLOUR_LINE.fullmatch(t) or _HEX_LINE.fullmatch(t)]
    if coloured:
        raise ValueError(
            f"some lines have a colour, such as {format_list(coloured, 1)}, and some have none"
        )
    return [(None, text) for text in texts]


def _match_all(pattern: re.Pattern[str], texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Fields of every line; none if a line does not match."""
    matches = [pattern.fullmatch(text) for text in texts]
    fields = [match.groups() for match in matches if match]
    return fields if len(fields) == len(texts) else []


def _parse_colour(*channels: Any) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in channels)
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise ValueError(f"the colour {red} {green} {blue} is not within 0 to 255")
    return red, green, blue


def _parse_hex_colour(text: str) -> tuple[int, int, int]:
    return _parse_colour(*bytes.fromhex(text.removeprefix("#")))


def _parse_table(columns: dict[str, list[Any]]) -> _CodesAndNames:
    by_name = {name.strip().lower(): cells for name, cells in columns.items()}

    def find_column(*names: str) -> list[Any] | None:
        return next((by_name[name] for name in names if name in by_name), None)

    names = find_column("name", "class", "label", "class_name", "category")
    if names is None:
        raise ValueError(f"none of the columns {format_list(columns)} is called 'name'")
    channels = [find_column("r", "red"), find_column("g", "green"), find_column("b", "blue")]
    colours = find_column("color", "colour", "hex", "rgb")
    numbers = find_column("code", "id", "index", "value", "pixel", "label_id", "class_id")
    codes: list[Code | None]
    if all(channel is not None for channel in channels):
        codes = [_parse_colour(*cells) for cells in zip(*(c or () for c in channels), strict=True)]
    elif colours is not None:
        codes = [_parse_code(str(cell)) for cell in colours]
    elif numbers is not None:
        codes = [int(cell) for cell in numbers]
    else:
        codes = [None] * len(names)
    return [(code, str(name or "")) for code, name in zip(codes, names, strict=True)]


def _parse_json(values: Any) -> _CodesAndNames:
    if isinstance(values, list):
        return [(None, _require_name(value)) for value in values]
    if not isinstance(values, dict):
        raise TypeError(f"the JSON value is a {type(values).__name__}, not a list or an object")
    if values and all(isinstance(value, str) for value in values.values()):
        return [(_parse_code(code), name) for code, name in values.items()]
    return [
        (_parse_colour(*value) if isinstance(value, list) else int(value), name)
        for name, value in values.items()
    ]


def _require_name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a class name")
    return value


def _parse_code(text: str) -> Code:
    numbers = re.findall(r"\d+", text)
    if text.strip().startswith("#"):
        return _parse_hex_colour(text.strip())
    if len(numbers) == 3:
        return _parse_colour(*numbers)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a whole number nor a colour") from None
