"""Detection data in one of three formats -> `Dataset` of boxes on the pictures as shown.

Of a picture only the header is read: it says how large it is and how EXIF turns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headstart.data import layouts
from headstart.data.annotations import Annotated, Annotations, as_shown, quick_header
from headstart.data.coco import read_coco
from headstart.data.layouts import Listing, listed
from headstart.data.samples import Dataset, Sample
from headstart.data.truths import Boxes
from headstart.data.voc import read_voc
from headstart.data.yolo import read_yolo
from headstart.errors import LayoutError

__all__ = ["BoxFiles", "Format", "find_boxes", "no_boxes", "read_boxes"]

Format = Literal["coco", "voc", "yolo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxFiles:
    """Detection data that was recognised.

    Parameters
    ----------
    listing : Listing
        Of the folder that holds pictures and annotations.
    format : {"coco", "voc", "yolo"}
    files : tuple of str
        Of COCO: the JSON files to read.
    """

    listing: Listing
    format: Format
    files: tuple[str, ...] = ()


def find_boxes(path: Path, listing: Listing) -> BoxFiles | None:
    """Recognise detection data by the beginnings of its files; None where it is not that.

    Parameters
    ----------
    path : Path
        What the person pointed at: a folder, or a COCO file.
    listing : Listing
        Of the folder, or of the file alone.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name, text in (("1.jpg", ""), ("1.txt", "0 0.5 0.5 0.1 0.1")):
    ...     _ = (root / name).write_text(text)
    >>> find_boxes(root, layouts.walk(root)).format
    'yolo'
    """
    files = layouts.coco_files(listing)
    if files and not path.is_dir():
        around = layouts.walk(path.parent)
        if not around.pictures:  # annotations/train.json beside train/
            around = layouts.walk(path.absolute().parent.parent)
        files = (path.absolute().relative_to(around.root.absolute()).as_posix(),)
        return BoxFiles(listing=around, format="coco", files=files)
    if files:
        return BoxFiles(listing=listing, format="coco", files=files)
    if layouts.voc_file(listing):
        return BoxFiles(listing=listing, format="voc")
    return BoxFiles(listing=listing, format="yolo") if layouts.yolo_file(listing) else None


def no_boxes(path: Path) -> LayoutError:
    """The error for data that are said to be for detection, and hold no boxes.

    Examples
    --------
    >>> "COCO" in str(no_boxes(Path("photos")))
    True
    """
    return LayoutError(
        f"Expected {str(path)!r} to hold boxes for detection, got none; do: add COCO annotations "
        "(a JSON file with images, annotations and categories), Pascal VOC annotations (an XML "
        "file for each picture) or YOLO labels (labels/ beside images/, a text file for each)."
    )


def read_boxes(found: BoxFiles) -> tuple[Dataset, tuple[str, ...]]:
    """Read detection data.

    Parameters
    ----------
    found : BoxFiles

    Returns
    -------
    Dataset
        Examples sorted by relative path, each with `Boxes` in pixels of the picture as shown;
        classes in the order that the files declare, those without any object left out.
    tuple of str
        The relative path of each example.

    Raises
    ------
    DataError
        If an annotation is damaged or contradicts another.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> head = "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    >>> tail = "<xmax>4</xmax><ymax>2</ymax></bndbox></object></annotation>"
    >>> for name, text in (("1.jpg", ""), ("1.xml", head + tail)):
    ...     _ = (root / name).write_text(text)
    >>> data, _ = read_boxes(find_boxes(root, layouts.walk(root)))
    >>> data.kind, data.samples[0].target.corners
    ('detection', ((0.0, 0.0, 4.0, 2.0),))
    """
    annotations = _read(found)
    items = sorted(annotations.items, key=lambda item: item.key)
    root = found.listing.root
    shown = [_shown(root, item, annotations.relative) for item in items]
    samples = tuple(
        Sample(image=root / item.key, target=boxes, split=item.split, group=item.group)
        for item, (boxes, _) in zip(items, shown, strict=True)
    )
    used = {name for boxes, _ in shown for name in boxes.labels}
    classes = tuple(name for name in annotations.names if name in used)
    notes = (
        *annotations.notes,
        "task: detection because the files hold boxes",
        *_remarks([boxes for boxes, _ in shown], sum(moved for _, moved in shown)),
        *_unused([name for name in annotations.names if name not in used]),
        *_tables(found.listing),
    )
    data = Dataset(samples=samples, classes=classes, kind="detection", notes=notes)
    return data, tuple(item.key for item in items)


def _read(found: BoxFiles) -> Annotations:
    if found.format == "coco":
        return read_coco(found.listing, found.files)
    return read_voc(found.listing) if found.format == "voc" else read_yolo(found.listing)


def _shown(root: Path, item: Annotated, relative: bool) -> tuple[Boxes, bool]:
    if not (item.boxes.labels if relative else item.boxes.size):
        return item.boxes, False
    return as_shown(item.boxes, quick_header(root / item.key), relative=relative)


def _remarks(boxes: Sequence[Boxes], turned: int) -> list[str]:
    objects, hard = sum(len(b.labels) for b in boxes), sum(sum(b.hard) for b in boxes)
    empty = sum(not b.labels for b in boxes)
    notes = [f"{objects} objects in {len(boxes)} pictures"]
    if empty:
        notes.append(f"{empty} pictures without objects: learned from as negatives")
    if hard:
        notes.append(f"{hard} objects are difficult or crowds: left out of training and judgement")
    if turned:
        notes.append(
            f"boxes of {turned} pictures turned as EXIF turns the picture, since the files state "
            "the size before"
        )
    return notes


def _unused(names: Sequence[str]) -> list[str]:
    return [f"{len(names)} classes without any object left out: {listed(names)}"] if names else []


def _tables(listing: Listing) -> list[str]:
    tables = [
        name
        for name in listing.others
        if "/" not in name and Path(name).suffix.lower() in layouts.MANIFEST_SUFFIXES
    ]
    return [f"tables beside the boxes not read: {listed(tables)}"] if tables else []
