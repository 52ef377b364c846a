"""Formats of annotations that are recognised and not read."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from headstart.data.formats.layouts import Listing
from headstart.errors import LayoutError
from headstart.files import is_file

__all__ = ["name_of_format", "unread_annotations_error"]

# Name of a format, suffix of its files, and patterns that all occur in the beginning of a file.
_FORMATS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Label Studio JSON-MIN", ".json", (r'"(?:rectangle|polygon|brush|ellipse)labels"',)),
    ("Datumaro", ".json", (r'"items"', r'"(?:dm_format_version|categories)"')),
    ("CreateML", ".json", (r'"coordinates"', r'"annotations"', r'"image(?:filename)?"')),
    ("Labelbox", ".json", (r'"(?:Labeled Data|data_row)"',)),
    ("BDD100K", ".json", (r'"labels"', r'"box2d"|"poly2d"')),
    ("Cityscapes polygons", ".json", (r'"objects"', r'"polygon"', r'"imgHeight"')),
    ("ImageJ or Imglab", ".xml", (r"<dataset>", r"<box\b")),
    ("KITTI", ".txt", (r"^\S+ -?[\d.]+ -?\d+ -?[\d.]+(?: -?[\d.]+){11}\s*$",)),
    ("DOTA", ".txt", (r"^(?:-?[\d.]+ ){8}\S+ \d\s*$",)),
    ("VisDrone", ".txt", (r"^(?:-?\d+,){7}-?\d+,?\s*$",)),
)


def name_of_format(path: Path) -> str | None:
    """Name of the format that the beginning of a file looks like; None for others.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "1.json")
    >>> _ = path.write_text('[{"image": "1.jpg", "annotations": [{"coordinates": {}}]}]')
    >>> name_of_format(path)
    'CreateML'
    """
    suffix = path.suffix.lower()
    if not is_file(path):  # a pipe might never end
        return None
    with path.open("rb") as file:
        text = file.read(65536).decode("utf-8", errors="replace").lstrip("\ufeff")
    for name, format_suffix, patterns in _FORMATS:
        if suffix == format_suffix and all(re.search(p, text, re.MULTILINE) for p in patterns):
            return name
    if suffix in {".csv", ".tsv"} and text.strip():
        return _table_of_boxes(text.splitlines()[0])
    return None


def _table_of_boxes(header: str) -> str | None:
    delimiter = max(",;\t", key=header.count)
    columns = {column.strip().lower() for column in next(csv.reader([header], delimiter=delimiter))}
    corners = ({"xmin", "ymin", "xmax", "ymax"}, {"x1", "y1", "x2", "y2"}, {"x_min", "y_min"})
    if any(names <= columns for names in corners) or columns & {"bbox", "bounding_box", "box"}:
        return "a table of boxes"
    if columns & {"encodedpixels", "rle", "rle_mask", "segmentation"}:
        return "a table of masks (run lengths)"
    return None


def unread_annotations_error(listing: Listing) -> LayoutError | None:
    """Error for a folder with annotation files of a format that is not read; None without them.

    Examples
    --------
    >>> unread_annotations_error(Listing(root=Path("p"), other_files=("readme.md",))) is None
    True
    """
    by_suffix: dict[str, list[str]] = {}
    for name in listing.other_files:
        by_suffix.setdefault(Path(name).suffix.lower(), []).append(name)
    records = [*by_suffix.get(".tfrecord", ()), *by_suffix.get(".tfrecords", ())]
    if records:
        return _unread_error(listing, records[0], "TFRecord")
    stems = {name.rpartition(".")[0].rpartition("/")[2] for name in listing.images}
    for suffix in (".json", ".xml", ".csv", ".tsv", ".txt"):
        names = by_suffix.get(suffix, [])
        beside = [name for name in names if name.rpartition("/")[2].rpartition(".")[0] in stems]
        for name in (names[:5] if suffix != ".txt" else []) + beside[:5]:
            if found := name_of_format(listing.root / name):
                return _unread_error(listing, name, found)
        if suffix in {".json", ".xml"} and beside and 2 * len(beside) >= len(listing.images):
            return _unread_error(listing, beside[0], "an unknown format, one file per image")
    return None


def _unread_error(listing: Listing, name: str, found: str) -> LayoutError:
    return LayoutError(
        f"{str(listing.root / name)!r} looks like annotations ({found}), which are not read. "
        "Export them as COCO, Pascal VOC or YOLO, or as PNG masks. Pass --class-level 1 "
        "if the folders are the classes and these files do not matter."
    )
