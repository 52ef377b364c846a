"""Files of annotation tools: recognition by their first bytes, and the reader of each format."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from headstart.data.formats.annotations import Annotations
from headstart.data.formats.cvat import read_cvat
from headstart.data.formats.label_studio import read_label_studio
from headstart.data.formats.labelme import read_labelme
from headstart.data.formats.layouts import Listing
from headstart.data.formats.supervisely import read_supervisely
from headstart.data.formats.via import read_via
from headstart.files import is_file

__all__ = ["TOOL_READERS", "find_tool_files"]

# Name of a format, suffix of its files, and patterns that all occur in the beginning of a file.
_PATTERNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("LabelMe", ".json", (r'"shapes"', r'"(?:imagePath|imageData|imageHeight|shape_type)"')),
    ("VIA", ".json", (r'"shape_attributes"|"_via_',)),
    ("VIA", ".csv", (r"region_shape_attributes",)),
    ("Label Studio", ".json", (r'"from_name"', r'"to_name"')),
    ("Supervisely", ".json", (r'"objects"', r'"classTitle"')),
    ("CVAT", ".xml", (r"<annotations>", r"<(?:image|track|meta|version)\b")),
)
_START = 65536  # bytes by which a file is recognised
_FIRST = 20  # files that decide whether the others are opened

TOOL_READERS: Mapping[str, Callable[[Listing, Sequence[str]], Annotations]] = {
    "LabelMe": read_labelme,
    "VIA": read_via,
    "Label Studio": read_label_studio,
    "Supervisely": read_supervisely,
    "CVAT": read_cvat,
}
"""Reader of each format by its name."""


def find_tool_files(listing: Listing) -> dict[str, tuple[str, ...]]:
    """Find the files of each annotation tool in a folder.

    Examples
    --------
    >>> find_tool_files(Listing(root=Path("photos"), other_files=("readme.txt",)))
    {}
    """
    by_format: dict[str, list[str]] = {}
    for suffix in (".json", ".csv", ".xml"):
        names = [name for name in listing.other_files if name.lower().endswith(suffix)]
        if not any(_format_of(listing.root / name, suffix) for name in _spread(names)):
            continue
        for name in names:
            if tool := _format_of(listing.root / name, suffix):
                by_format.setdefault(tool, []).append(name)
    if files := by_format.get("Supervisely"):  # an image without objects has no class in its file
        folders = {posixpath.dirname(name) for name in files}
        by_format["Supervisely"] = [
            name
            for name in listing.other_files
            if name.lower().endswith(".json")
            and (
                posixpath.dirname(name) in folders or f"/{posixpath.dirname(name)}".endswith("/ann")
            )
        ]
    return {name: tuple(files) for name, files in by_format.items()}


def _spread(names: Sequence[str]) -> Sequence[str]:
    """Choose some of many files, from all parts of the list."""
    return names if len(names) <= _FIRST else names[:: len(names) // _FIRST]


def _format_of(path: Path, suffix: str) -> str | None:
    if not is_file(path):  # a pipe might never end
        return None
    with path.open("rb") as file:
        text = file.read(_START).decode("utf-8", errors="replace")
    for name, format_suffix, patterns in _PATTERNS:
        if suffix == format_suffix and all(re.search(pattern, text) for pattern in patterns):
            return name
    return None
