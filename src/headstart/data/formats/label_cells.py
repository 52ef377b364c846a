"""Labels in the cells of a table: class names, lists of them, indicators, and missing labels."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import brief
from headstart.errors import DataError, UsageError

__all__ = ["WHOLE", "indicators", "is_missing", "split_labels"]

WHOLE = "none"
"""Value of ``--label-separator`` that keeps each cell as one label."""

_MISSING = frozenset(
    [
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-NaN",
        "-nan",
        "<NA>",
        "N/A",
        "NA",
        "NAN",
        "NULL",
        "NaN",
        "Nan",
        "NaT",
        "None",
        "Null",
        "n/a",
        "nan",
        "null",
    ]
)
_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")
_ADJACENT = re.compile(r"""['"]\s+['"]""")  # NumPy prints ['a' 'b'], which Python reads as 'ab'
_SEPARATORS = re.compile(r"[|;]")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_PLURAL = frozenset(("labels", "tags", "classes", "categories", "targets", "attributes", "genres"))


def is_missing(cell: Any) -> bool:
    """Whether a cell is empty, or has a word that tables use for an empty cell.

    The words are those of pandas; ``none`` in lower case is a class.

    Examples
    --------
    >>> is_missing("nan"), is_missing(None), is_missing("none"), is_missing(" ")
    (True, True, False, True)
    """
    return cell is None or (
        isinstance(cell, str) and (not cell.strip() or cell.strip() in _MISSING)
    )


def split_labels(
    cells: Sequence[Any],
    where: str,
    column: str,
    separator: str | None = None,
    *,
    hint: bool = True,
) -> list[Any]:
    """Return the labels of each cell: a class name, a list of names, or None.

    Parameters
    ----------
    cells : sequence of str, list or None
    where, column : str
        Words for the table and the name of its column, for messages.
    separator : str, optional
        Text between the labels of a cell; ``none`` keeps each cell as one label. By default ``|``
        and ``;``, and lists in brackets are recognised.
    hint : bool
        Whether a column name in the plural hints at several labels in a cell.

    Raises
    ------
    DataError
        If cells look like several labels in a form that is not certain, or mix two forms.
    UsageError
        If no cell contains ``separator``.

    Examples
    --------
    >>> split_labels(["['cat', 'dog']", "['dog']", "nan"], "'t.csv'", "label")
    [['cat', 'dog'], ['dog'], None]
    >>> split_labels(["cat,dog", "dog"], "'t.csv'", "label", ",")
    [['cat', 'dog'], ['dog']]
    """
    values = [None if is_missing(cell) else cell for cell in cells]
    texts = [value for value in values if isinstance(value, str)]
    if separator is not None:
        return _split_by_request(values, texts, where, column, separator)
    if any(isinstance(value, list) for value in values):
        return _name_indicators([_clean_list(value) for value in values], where)
    lists = [_parse_list(value) if isinstance(value, str) else None for value in values]
    n_lists = sum(parsed is not None for parsed in lists)
    # One name in brackets, such as [unknown] among other names, is a name.
    if (n_lists and n_lists == len(texts)) or any(
        parsed is not None and re.search(r"[,'\"]", text)
        for parsed, text in zip(lists, map(str, values), strict=True)
    ):
        _require_one_form(texts, lists, where, column)
        return _name_indicators(lists, where)
    if any(_SEPARATORS.search(text) for text in texts):
        return _split_texts(values, _SEPARATORS.split)
    _require_single(texts, where, column, is_plural=hint and column.strip().lower() in _PLURAL)
    return [normalize("NFC", value) if isinstance(value, str) else value for value in values]


def _split_by_request(
    values: Sequence[Any], texts: Sequence[str], where: str, column: str, separator: str
) -> list[Any]:
    if separator == WHOLE:
        return list(values)
    if not separator or not any(separator in text for text in texts):
        raise UsageError(
            f"Expected {separator!r} between the labels in column {column!r} of {where}, got "
            f"labels such as {brief(texts[0] if texts else None)}. Remove --label-separator, or "
            "pass the text that separates the labels."
        )
    return _split_texts(values, lambda text: text.split(separator))


def _split_texts(values: Sequence[Any], split: Callable[[str], list[str]]) -> list[Any]:
    return [_item_list(split(value)) if isinstance(value, str) else value for value in values]


def _clean_list(value: Any) -> Any:
    """Return the items of a list as texts without empty ones; other values as they are."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return value
    if value and all(type(item) in {int, bool} and item in {0, 1} for item in value):
        return value
    return _item_list(value)


def _item_list(items: Sequence[Any]) -> list[str]:
    return [_item_text(item) for item in items if not is_missing(item)]


def _item_text(item: Any) -> str:
    if isinstance(item, float) and item.is_integer():
        item = int(item)
    return normalize("NFC", str(item).strip())


def _parse_list(text: str) -> list[Any] | None:
    """Return the items of a list in brackets; None for other texts.

    A text in round or curly brackets is a list only if it has quotes or a comma, so that a class
    may be called ``(other)``.
    """
    text = text.strip()
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1]:
        return None
    inner = text[1:-1].strip()
    if text[0] != "[" and not re.search(r"[,'\"]", inner):
        return None
    items = _literal_items(text)
    if items is None:
        items = _bare_items(inner)
    return None if items is None else _clean_list(items)


def _literal_items(text: str) -> list[Any] | None:
    """Items of a list in JSON or Python; None if it is neither, or has items that are no labels."""
    if _ADJACENT.search(text):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | tuple | set):
            items = sorted(value, key=str) if isinstance(value, set) else list(value)
            simple = all(item is None or isinstance(item, str | int | float) for item in items)
            return items if simple else None
    return None


def _bare_items(inner: str) -> list[Any] | None:
    """Items of a list in the forms of NumPy (``['a' 'b']``, ``[0 1]``) and PostgreSQL (a,b)."""
    if "'" in inner or '"' in inner:
        rest = _QUOTED.sub("", inner)
        quoted = [first or second for first, second in _QUOTED.findall(inner)]
        return quoted if not rest.replace(",", "").strip() else None
    if "," in inner:
        return inner.split(",") if ":" not in inner else None
    if re.fullmatch(r"[\d.\s]+", inner):
        return [float(part) if "." in part[:-1] else int(part.strip(".")) for part in inner.split()]
    return [inner] if inner and not re.search(r"[\s:]", inner) else None


def _require_one_form(
    texts: Sequence[str], lists: Sequence[list[Any] | None], where: str, column: str
) -> None:
    plain = [text for text in texts if _parse_list(text) is None]
    if plain:
        example = next(text for text in texts if _parse_list(text) is not None)
        raise DataError(
            f"Expected labels of one form in column {column!r} of {where}, got the list "
            f"{brief(example)} and {brief(plain[0])} ({len(plain)} of {len(lists)} cells are no "
            f"lists). Write all of them as lists, or pass --label-separator {WHOLE} to keep each "
            "cell as one label."
        )


def _name_indicators(labels: Sequence[Any], where: str) -> list[Any]:
    """Convert lists of 0 and 1 for every class to lists of the classes' positions."""
    present = [label for label in labels if label is not None]
    table = indicators(present, where, is_table=False)
    if table is None:
        return [None if label is None else [_item_text(item) for item in label] for label in labels]
    rows = [[str(i) for i in np.flatnonzero(row)] for row in table]
    one_hot = all(len(row) == 1 for row in rows)
    named = iter([row[0] for row in rows] if one_hot else rows)
    return [None if label is None else next(named) for label in labels]


def indicators(labels: Sequence[Any], where: str, *, is_table: bool) -> NDArray[Any] | None:
    """Return labels that are 0 and 1 for every class as an array, or None for other labels.

    Raises
    ------
    DataError
        If the labels may also be lists of the classes 0 and 1.

    Examples
    --------
    >>> indicators([[1, 1, 0], [0, 1, 0]], "the list", is_table=False).tolist()
    [[True, True, False], [False, True, False]]
    >>> indicators([["cat"], ["dog"]], "the list", is_table=False) is None
    True
    """
    if not labels or not all(isinstance(label, list) and len(label) > 1 for label in labels):
        return None
    is_zero_one = all(type(v) in {int, bool} and v in {0, 1} for row in labels for v in row)
    if not is_zero_one or len({len(row) for row in labels}) > 1:
        return None
    if not is_table and all(len(set(row)) == len(row) for row in labels):  # only [0, 1] and [1, 0]
        raise DataError(
            f"The labels in {where} are ambiguous: {labels[0]} may name the classes 0 and 1, or be "
            "the numbers 0 and 1 for two classes. Pass lists of class names."
        )
    return np.asarray(labels, dtype=bool)


def _require_single(texts: Sequence[str], where: str, column: str, *, is_plural: bool) -> None:
    """Refuse labels that are probably combinations, with the flag that decides."""
    distinct = sorted({text.strip() for text in texts})
    for separator in (",", "/", "+", "&", " "):
        parts = [_tokens(text, separator) for text in distinct]
        combined = [text for text, tokens in zip(distinct, parts, strict=True) if len(tokens) > 1]
        if combined and _are_combinations(parts, separator, is_plural=is_plural):
            raise DataError(
                f"Labels in column {column!r} of {where} look like several labels in one cell, "
                f"such as {brief(combined[0])} ({len(combined)} of {len(distinct)} different "
                f'labels). Pass --label-separator "{separator}" to split them, or '
                f"--label-separator {WHOLE} to keep each as one class."
            )


def _tokens(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _are_combinations(parts: Sequence[list[str]], separator: str, *, is_plural: bool) -> bool:
    """Whether distinct labels, split by a separator, are combinations of fewer labels.

    Words are shared by many names ("red fox", "kit fox"), so that blanks need more evidence: names
    of classes that occur alone, or a column in the plural.
    """
    tokens = Counter(token for row in parts for token in set(row))
    n_repeated = sum(count > 1 for count in tokens.values())
    if all(token.isascii() and token.isdigit() for token in tokens):
        return True
    if separator == " ":
        alone = {row[0] for row in parts if len(row) == 1}
        if is_plural:
            return n_repeated > 0 and len(tokens) <= max(len(parts), 2)
        varied = len({len(row) for row in parts}) > 1
        return varied and len(tokens) < len(parts) and 3 * len(alone) >= len(tokens)
    if is_plural and separator == ",":
        return True
    together = {token for row in parts if len(row) > 1 for token in row}
    return 2 * sum(tokens[token] > 1 for token in together) >= len(together)
