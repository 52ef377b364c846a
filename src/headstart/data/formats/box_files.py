"""Annotation files of a folder: recognition of their format, and the data set that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headstart.data.dataset import Boxes, Dataset, Kind, Sample
from headstart.data.formats.annotations import AnnotatedImage, Annotations, quick_header, to_upright
from headstart.data.formats.coco import read_coco
from headstart.data.formats.layouts import (
    Listing,
    find_coco_files,
    find_voc_file,
    find_yolo_file,
    format_list,
    list_folder,
    natural_key,
)
from headstart.data.formats.outline_masks import to_segmentation
from headstart.data.formats.table_files import tables_in
from headstart.data.formats.tool_formats import TOOL_READERS, find_tool_files
from headstart.data.formats.voc import read_voc
from headstart.data.formats.yolo import read_yolo
from headstart.errors import DataError, LayoutError

__all__ = [
    "BoxAnnotationFiles",
    "find_box_annotations",
    "no_boxes_error",
    "read_boxes",
    "to_detection",
]

_SHOWN = {"coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxAnnotationFiles:
    """Annotation files of detection data.

    Parameters
    ----------
    listing : Listing
        Of the folder that contains images and annotations.
    format : str
        "coco", "voc", "yolo", or a name of `tool_formats.TOOL_READERS`.
    files : tuple of str
        The files to read; for VOC and YOLO empty.
    """

    listing: Listing
    format: str
    files: tuple[str, ...] = ()


def find_box_annotations(path: Path, listing: Listing) -> BoxAnnotationFiles | None:
    """Recognise annotations by the first bytes of their files; None if there are none.

    Parameters
    ----------
    path : Path
        A folder, or an annotation file.
    listing : Listing
        Of the folder, or of the file alone.

    Raises
    ------
    LayoutError
        If there are annotations of several formats.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name, text in (("1.jpg", ""), ("1.txt", "0 0.5 0.5 0.1 0.1")):
    ...     _ = (root / name).write_text(text)
    >>> find_box_annotations(root, list_folder(root)).format
    'yolo'
    """
    formats: dict[str, tuple[str, ...]] = dict(find_tool_files(listing))
    of_tools = {name for files in formats.values() for name in files}
    if coco := tuple(name for name in find_coco_files(listing) if name not in of_tools):
        formats["coco"] = coco
    if voc := find_voc_file(listing):
        formats["voc"] = (voc,)
    if yolo := find_yolo_file(listing):
        formats["yolo"] = (yolo,)
    if len(formats) > 1:
        sizes = ", ".join(
            f"{_SHOWN.get(name, name)} ({files[0]!r})" for name, files in formats.items()
        )
        raise LayoutError(
            f"Expected annotations of one format in {str(listing.root)!r}, got {sizes}. Move the "
            "files of the others to another folder."
        )
    if not formats:
        return None
    name, files = next(iter(formats.items()))
    if not path.is_dir():
        listing = list_folder(path.parent)
        if not listing.images:  # annotations/train.json, with the images in train/
            listing = list_folder(path.absolute().parent.parent)
        files = (path.absolute().relative_to(listing.root.absolute()).as_posix(),)
    is_listed = name not in {"voc", "yolo"}
    return BoxAnnotationFiles(listing=listing, format=name, files=files if is_listed else ())


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
        "1.jpg), YOLO labels (labels/1.txt for images/1.jpg), or the export of LabelMe, CVAT, VIA, "
        "Label Studio or Supervisely, or remove --task detection."
    )


def read_boxes(
    box_files: BoxAnnotationFiles, task_kind: Kind | None = None
) -> tuple[Dataset, tuple[str, ...]]:
    """Read boxes, masks drawn from outlines, or the classes of whole images that a tool stores.

    Parameters
    ----------
    box_files : BoxAnnotationFiles
        See `find_box_annotations`.
    task_kind : {"detection", "segmentation", "multiclass", "multilabel"} or None
        For segmentation, masks are drawn from outlines. None: classes if there are no boxes, only
        tags of images.

    Returns
    -------
    Dataset
        For boxes, examples sorted by relative path, each with `Boxes` in pixels of the upright
        image; classes in the order of the files, without those that have no object.
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
    annotations = _read_annotations(box_files, outlines=task_kind == "segmentation")
    shown = _SHOWN.get(box_files.format, box_files.format)
    if task_kind == "segmentation":
        return to_segmentation(root, annotations, shown)
    has_boxes = any(item.boxes.labels for item in annotations.items)
    has_tags = any(item.tags for item in annotations.items)
    if task_kind not in {None, "detection"} or (task_kind is None and has_tags and not has_boxes):
        return _to_classes(root, annotations, task_kind, shown)
    data, keys = to_detection(root, annotations)
    unread_tables = [name for name in tables_in(box_files.listing) if name not in box_files.files]
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
    n_outlines = sum(bool(outline) for item in items for outline in item.outlines)
    if n_outlines:
        notes.append(f"{n_outlines} objects are outlines, replaced by their bounding boxes")
    n_tagged = sum(bool(item.tags) for item in items)
    if n_tagged:
        notes.append(f"classes of {n_tagged} images not read: --task classification reads them")
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


def _read_annotations(box_files: BoxAnnotationFiles, *, outlines: bool) -> Annotations:
    listing = box_files.listing
    if box_files.format == "coco":
        return read_coco(listing, box_files.files, outlines=outlines)
    if reader := TOOL_READERS.get(box_files.format):
        return reader(listing, box_files.files)
    if box_files.format == "voc":
        return read_voc(listing)
    return read_yolo(listing, outlines=outlines)


def _to_classes(
    root: Path, annotations: Annotations, task_kind: Kind | None, shown: str
) -> tuple[Dataset, tuple[str, ...]]:
    """Turn the tags of images into classes; images without a tag are left out."""
    items = sorted((item for item in annotations.items if item.tags), key=lambda item: item.key)
    if not items:
        raise LayoutError(
            f"Expected images for classification in {str(root)!r}, got {shown} annotations without "
            "classes of images. Remove --task to read their objects, or pass --class-level 1 if "
            "the folders are the classes."
        )
    is_multilabel = task_kind == "multilabel" or any(len(set(item.tags)) > 1 for item in items)
    if is_multilabel and task_kind == "multiclass":
        first = next(item for item in items if len(set(item.tags)) > 1)
        raise DataError(
            f"Expected one class for the image {first.key!r} in {str(root)!r}, got "
            f"{format_list(first.tags)}. Remove --task, or keep one class."
        )
    kind: Kind = "multilabel" if is_multilabel else "multiclass"
    samples = tuple(
        Sample(
            image=root / item.key,
            target=tuple(sorted(set(item.tags), key=natural_key))
            if is_multilabel
            else item.tags[0],
            split=item.split,
            group=item.group,
        )
        for item in items
    )
    n_untagged = len(annotations.items) - len(items)
    notes = [*annotations.notes, f"task: {kind} because the {shown} files have classes of images"]
    if n_untagged:
        notes.append(f"{n_untagged} images without a class left out")
    names = {name for item in items for name in item.tags}
    data = Dataset(
        samples=samples,
        classes=tuple(sorted(names, key=natural_key)),
        kind=kind,
        notes=tuple(notes),
    )
    return data, tuple(item.key for item in items)


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
