"""Annotation files of a folder: recognition of their format, and the data set that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from headstart.data.dataset import Boxes, Dataset, Sample
from headstart.data.formats.annotations import AnnotatedImage, Annotations, quick_header, to_upright
from headstart.data.formats.coco import read_coco
from headstart.data.formats.layouts import (
    Listing,
    find_coco_files,
    find_voc_file,
    find_yolo_file,
    format_list,
    list_folder,
)
from headstart.data.formats.table_files import tables_in
from headstart.data.formats.voc import read_voc
from headstart.data.formats.yolo import read_yolo
from headstart.errors import LayoutError

__all__ = [
    "BoxAnnotationFiles",
    "BoxFormat",
    "find_box_annotations",
    "no_boxes_error",
    "read_boxes",
    "to_detection",
]

BoxFormat = Literal["coco", "voc", "yolo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxAnnotationFiles:
    """Annotation files of detection data.

    Parameters
    ----------
    listing : Listing
        Of the folder that contains images and annotations.
    format : {"coco", "voc", "yolo"}
    files : tuple of str
        For COCO: the JSON files to read.
    """

    listing: Listing
    format: BoxFormat
    files: tuple[str, ...] = ()


def find_box_annotations(path: Path, listing: Listing) -> BoxAnnotationFiles | None:
    """Recognise detection data by the first bytes of its files; None if there are no boxes.

    Parameters
    ----------
    path : Path
        A folder, or a COCO file.
    listing : Listing
        Of the folder, or of the file alone.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name, text in (("1.jpg", ""), ("1.txt", "0 0.5 0.5 0.1 0.1")):
    ...     _ = (root / name).write_text(text)
    >>> find_box_annotations(root, list_folder(root)).format
    'yolo'
    """
    files = find_coco_files(listing)
    if files and not path.is_dir():
        image_listing = list_folder(path.parent)
        if not image_listing.images:  # annotations/train.json, with the images in train/
            image_listing = list_folder(path.absolute().parent.parent)
        files = (path.absolute().relative_to(image_listing.root.absolute()).as_posix(),)
        return BoxAnnotationFiles(listing=image_listing, format="coco", files=files)
    if files:
        return BoxAnnotationFiles(listing=listing, format="coco", files=files)
    if find_voc_file(listing):
        return BoxAnnotationFiles(listing=listing, format="voc")
    if find_yolo_file(listing):
        return BoxAnnotationFiles(listing=listing, format="yolo")
    return None


def no_boxes_error(path: Path) -> LayoutError:
    """Error for data without boxes when the task is detection.

    Examples
    --------
    >>> "COCO" in str(no_boxes_error(Path("photos")))
    True
    """
    return LayoutError(
        f"Expected boxes for detection in {str(path)!r}, got none. Add COCO annotations (a JSON "
        "file with `images`, `annotations` and `categories`), Pascal VOC annotations (1.xml for "
        "1.jpg) or YOLO labels (labels/1.txt for images/1.jpg), or remove --task detection."
    )


def read_boxes(box_files: BoxAnnotationFiles) -> tuple[Dataset, tuple[str, ...]]:
    """Read detection data.

    Parameters
    ----------
    box_files : BoxAnnotationFiles
        See `find_box_annotations`.

    Returns
    -------
    Dataset
        Examples sorted by relative path, each with `Boxes` in pixels of the upright image;
        classes in the order of the files, without those that have no object.
    tuple of str
        The relative path of each example.

    Raises
    ------
    DataError
        If an annotation is damaged or contradicts another one.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> head = "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    >>> tail = "<xmax>4</xmax><ymax>2</ymax></bndbox></object></annotation>"
    >>> for name, text in (("1.jpg", ""), ("1.xml", head + tail)):
    ...     _ = (root / name).write_text(text)
    >>> data, _ = read_boxes(find_box_annotations(root, list_folder(root)))
    >>> data.kind, data.samples[0].target.corners
    ('detection', ((0.0, 0.0, 4.0, 2.0),))
    """
    root = box_files.listing.root
    data, keys = to_detection(root, _read_annotations(box_files))
    unread_tables = tables_in(box_files.listing)
    if unread_tables:
        note = f"tables in the same folder not read: {format_list(unread_tables)}"
        data = replace(data, notes=(*data.notes, note))
    return data, keys


def to_detection(root: Path, annotations: Annotations) -> tuple[Dataset, tuple[str, ...]]:
    """Turn annotations into a data set, in pixels of the upright images.

    Parameters
    ----------
    root : Path
        Folder from which the paths of the images start.
    annotations : Annotations

    Returns
    -------
    Dataset
        Sorted by path; classes in the order of the annotations.
    tuple of str
        The relative path of each image.

    Examples
    --------
    >>> item = AnnotatedImage(key="1.jpg", boxes=Boxes(corners=((0, 0, 4, 2),), labels=("cat",)))
    >>> to_detection(Path("photos"), Annotations(items=(item,), names=("cat", "dog")))[0].classes
    ('cat',)
    """
    items = sorted(annotations.items, key=lambda item: item.key)
    converted = [_convert_boxes(root, item, annotations.relative) for item in items]
    samples = tuple(
        Sample(image=root / item.key, target=boxes, split=item.split, group=item.group)
        for item, (boxes, _) in zip(items, converted, strict=True)
    )
    used = {name for boxes, _ in converted for name in boxes.labels}
    classes = tuple(name for name in annotations.names if name in used)
    unused = [name for name in annotations.names if name not in used]
    notes = [
        *annotations.notes,
        "task: detection because the files contain boxes",
        *_box_notes([boxes for boxes, _ in converted], sum(rotated for _, rotated in converted)),
    ]
    if unused:
        notes.append(f"{len(unused)} classes without any object left out: {format_list(unused)}")
    data = Dataset(
        samples=samples,
        classes=classes,
        kind="detection",
        notes=tuple(notes),
        warnings=annotations.warnings,
    )
    return data, tuple(item.key for item in items)


def _read_annotations(box_files: BoxAnnotationFiles) -> Annotations:
    listing = box_files.listing
    if box_files.format == "coco":
        return read_coco(listing, box_files.files)
    return read_voc(listing) if box_files.format == "voc" else read_yolo(listing)


def _convert_boxes(root: Path, item: AnnotatedImage, relative: bool) -> tuple[Boxes, bool]:
    # Without boxes, or without a stated size, the image header is not needed.
    if not (item.boxes.labels if relative else item.boxes.size):
        return item.boxes, False
    return to_upright(item.boxes, quick_header(root / item.key), relative=relative)


def _box_notes(boxes_by_image: Sequence[Boxes], n_rotated: int) -> list[str]:
    n_objects = sum(len(boxes.labels) for boxes in boxes_by_image)
    n_hard = sum(sum(boxes.hard) for boxes in boxes_by_image)
    n_empty = sum(not boxes.labels for boxes in boxes_by_image)
    notes = [f"{n_objects} objects in {len(boxes_by_image)} images"]
    if n_empty:
        notes.append(f"{n_empty} images without objects: used as negatives in training")
    if n_hard:
        notes.append(
            f"{n_hard} objects are difficult or crowds: ignored in training and evaluation"
        )
    if n_rotated:
        notes.append(
            f"boxes of {n_rotated} images rotated by EXIF, because the files state the size before "
            "rotation"
        )
    return notes
