"""Small files that name the classes of masks: classes.txt, labelmap.txt, class_dict.csv, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from headstart.data.layouts import Listing, listed
from headstart.data.tables import read_table
from headstart.data.truths import IGNORED, Code, Palette
from headstart.errors import DataError

__all__ = ["ClassMap", "find_class_map", "palette_of", "read_class_map"]

_NAMES = (
    "classes", "class_names", "class_map", "class_dict", "labelmap", "label_map", "label_colors",
    "labels", "codes", "palette", "colors", "colours",
)  # fmt: skip
_VOID = frozenset(("ignore", "ignored", "void", "unlabelled", "unlabeled"))
_COLOUR = re.compile(r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;:]+(\S.*)")
_CVAT = re.compile(r"([^:]+):\s*(\d{1,3}),\s*(\d{1,3}),\s*(\d{1,3})\s*(?::.*)?")
_HEX = re.compile(r"#([0-9a-fA-F]{6})[\s,;:]+(\S.*)")
_NUMBER = re.compile(r"(\d+)[\s,;:]+(\S.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """Codes and the classes that they stand for.

    Parameters
    ----------
    name : str
        The file it was read from.
    codes : tuple of (code, str)
    in_order : bool
        Whether the file names no codes, so that these are the places in the file.
    """

    name: str
    codes: tuple[tuple[Code, str], ...]
    in_order: bool = False


def find_class_map(listing: Listing) -> tuple[str, ...]:
    """Files of a folder that are class maps by their name, the most likely first.

    Examples
    --------
    >>> find_class_map(Listing(root=Path("p"), others=("a/classes.csv", "classes.txt", "x.txt")))
    ('classes.txt', 'a/classes.csv')
    """
    found = []
    for name in listing.others:
        stem, _, suffix = name.rsplit("/", 1)[-1].lower().rpartition(".")
        if stem in _NAMES and suffix in {"txt", "csv", "json"}:
            found.append((name.count("/"), _NAMES.index(stem), name))
    return tuple(name for *_, name in sorted(found))


def read_class_map(path: Path) -> ClassMap:
    r"""Read the classes of masks.

    Parameters
    ----------
    path : Path
        Text of one class a line: ``name`` (its code is its place, from 0), ``code name``,
        ``r g b name``, ``#rrggbb name`` or ``name:r,g,b::``; CSV with a column of names and one
        of codes, three of colours or one of ``#rrggbb``; JSON, a list of names or an object of
        code or ``#rrggbb`` to name.

    Raises
    ------
    DataError
        If it is none of these, or names a code twice.

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
            pairs = _of_table(read_table(path).columns)
        elif path.suffix.lower() == ".json":
            pairs = _of_json(json.loads(path.read_text(encoding="utf-8-sig")))
        else:
            pairs = _of_lines(path.read_text(encoding="utf-8-sig").splitlines())
    except (ValueError, TypeError, KeyError) as error:
        raise _refused(path, f"something else ({error})") from error
    in_order = all(code is None for code, _ in pairs)
    codes = [
        (place if code is None else code, normalize("NFC", name.strip()))
        for place, (code, name) in enumerate(pairs)
    ]
    twice = {code for i, (code, _) in enumerate(codes) if code in [c for c, _ in codes[:i]]}
    if not codes or twice or any(not name for _, name in codes):
        raise _refused(path, f"the code {next(iter(twice))} twice" if twice else "no names")
    return ClassMap(name=path.name, codes=tuple(codes), in_order=in_order)


def palette_of(codes: Sequence[tuple[Code, str]]) -> Palette:
    """The palette of a class map: classes called void, ignore or unlabelled are ignored.

    255 is ignored, too, unless the map gives it to a class.

    Examples
    --------
    >>> palette_of([(0, "sky"), (1, "Unlabelled")])
    Palette(codes=((0, 'sky'),), ignored=(255, 1))
    """
    void = tuple(code for code, name in codes if name.casefold() in _VOID and code != IGNORED)
    kept = tuple((code, name) for code, name in codes if name.casefold() not in _VOID)
    always = () if IGNORED in [code for code, _ in kept] else (IGNORED,)
    return Palette(codes=kept, ignored=always + void)


def _refused(path: Path, got: str) -> DataError:
    return DataError(
        f"Expected {str(path)!r} to name the classes of masks, got {got}; do: write one class a "
        "line, as 'name', 'code name' or 'r g b name'."
    )


_Pairs = list[tuple[Code | None, str]]


def _of_lines(lines: Sequence[str]) -> _Pairs:
    texts = [line.strip() for line in lines if line.strip()]
    texts = [text for text in texts if text[0] != "#" or _HEX.fullmatch(text)]
    if found := _all(_COLOUR, texts):
        return [(_colour(r, g, b), name) for r, g, b, name in found]
    if found := _all(_CVAT, texts):
        return [(_colour(r, g, b), name) for name, r, g, b in found]
    if found := _all(_HEX, texts):
        return [(_of_hex(code), name) for code, name in found]
    if found := _all(_NUMBER, texts):
        return [(int(code), name) for code, name in found]
    if mixed := [text for text in texts if _COLOUR.fullmatch(text) or _HEX.fullmatch(text)]:
        raise ValueError(f"some lines with a colour, such as {listed(mixed, 1)}, some without")
    return [(None, text) for text in texts]


def _all(pattern: re.Pattern[str], texts: Sequence[str]) -> list[tuple[str, ...]]:
    matches = [pattern.fullmatch(text) for text in texts]
    found = [match.groups() for match in matches if match]
    return found if len(found) == len(texts) else []


def _colour(*parts: Any) -> tuple[int, int, int]:
    red, green, blue = (int(part) for part in parts)
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"the colour {red} {green} {blue}")
    return red, green, blue


def _of_hex(text: str) -> tuple[int, int, int]:
    return _colour(*bytes.fromhex(text.removeprefix("#")))


def _of_table(columns: dict[str, list[Any]]) -> _Pairs:
    known = {name.strip().lower(): cells for name, cells in columns.items()}

    def one_of(*names: str) -> list[Any] | None:
        return next((known[name] for name in names if name in known), None)

    names = one_of("name", "class", "label", "class_name", "category")
    if names is None:
        raise ValueError(f"the columns {listed(columns)}, none of which is called 'name'")
    channels = [one_of("r", "red"), one_of("g", "green"), one_of("b", "blue")]
    colours = one_of("color", "colour", "hex", "rgb")
    numbers = one_of("code", "id", "index", "value", "pixel", "label_id", "class_id")
    codes: list[Code | None]
    if all(channel is not None for channel in channels):
        codes = [_colour(*cells) for cells in zip(*(c or () for c in channels), strict=True)]
    elif colours is not None:
        codes = [_of_json_code(str(cell)) for cell in colours]
    elif numbers is not None:
        codes = [int(cell) for cell in numbers]
    else:
        codes = [None] * len(names)
    return [(code, str(name or "")) for code, name in zip(codes, names, strict=True)]


def _of_json(values: Any) -> _Pairs:
    if isinstance(values, list):
        return [(None, _name(value)) for value in values]
    if not isinstance(values, dict):
        raise TypeError(f"{type(values).__name__} in JSON")
    if values and all(isinstance(value, str) for value in values.values()):
        return [(_of_json_code(code), name) for code, name in values.items()]
    return [
        (_colour(*value) if isinstance(value, list) else int(value), name)
        for name, value in values.items()
    ]


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} for a name")
    return value


def _of_json_code(text: str) -> Code:
    parts = re.findall(r"\d+", text)
    if text.strip().startswith("#"):
        return _of_hex(text.strip())
    return _colour(*parts) if len(parts) == 3 else int(text)
