"""Parsing of annotation documents: JSON and XML files of limited size, without entities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from headstart.errors import DataError
from headstart.files import MOST_ANNOTATION_BYTES, MOST_TEXT_BYTES, read_bounded

__all__ = ["read_json", "read_xml"]


class _Builder(ElementTree.TreeBuilder):
    """Build a tree of elements and refuse entities: a few lines of them can fill the memory."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"a DOCTYPE ({name})")


def read_json(path: Path, kind: str) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : Path
    kind : str
        Words for the format in messages.

    Raises
    ------
    DataError
        If the file is not JSON, nested too deeply or too large.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "1.json")
    >>> _ = path.write_text('{"shapes": []}')
    >>> read_json(path, "LabelMe")
    {'shapes': []}
    """
    try:
        return json.loads(read_bounded(path, MOST_ANNOTATION_BYTES))
    except json.JSONDecodeError as error:
        problem, cause = f"{error.msg} in line {error.lineno}", error
    except (OSError, ValueError, RecursionError) as error:
        problem, cause = f"{type(error).__name__}: {error}", error  # type: ignore[assignment]
    raise DataError(
        f"Expected JSON in the {kind} file {str(path)!r}, got {problem}. Correct or remove the "
        "file."
    ) from cause


def read_xml(path: Path, kind: str, tag: str) -> tuple[ElementTree.Element, bytes]:
    """Read an XML file with a root element of one name; return it and the content of the file.

    Parameters
    ----------
    path : Path
    kind : str
        Words for the format in messages.
    tag : str
        Name of the root element.

    Raises
    ------
    DataError
        If the file is not XML, has a DOCTYPE or another root element.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "1.xml")
    >>> _ = path.write_text("<annotations><version>1.1</version></annotations>")
    >>> read_xml(path, "CVAT", "annotations")[0].findtext("version")
    '1.1'
    """
    try:
        content = read_bounded(path, MOST_TEXT_BYTES)
        parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314 - refuses entities
        parser.feed(content)
        root: ElementTree.Element = parser.close()
    except ElementTree.ParseError as error:
        problem = f"{error.msg.split(':')[0]} in line {error.position[0]}"
        raise _xml_error(path, kind, problem) from error
    except (OSError, ValueError, LookupError) as error:
        raise _xml_error(path, kind, str(error)) from error
    if root.tag != tag:
        raise _xml_error(path, kind, f"<{root.tag}> in line 1")
    return root, content


def _xml_error(path: Path, kind: str, got: str) -> DataError:
    return DataError(
        f"Expected {str(path)!r} to be a {kind} annotation, got {got}. Correct or remove the file."
    )
