"""Masks drawn from the outlines of annotation files, for segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.data.dataset import IGNORED, Dataset, Mask, Palette, Sample
from headstart.data.formats.annotations import AnnotatedImage, Annotations, quick_header
from headstart.data.images import MAX_PIXELS
from headstart.data.masks import MAX_CLASSES
from headstart.data.outlines import Outline, OutlineMask
from headstart.errors import DataError, LayoutError

__all__ = ["to_segmentation"]

_BACKGROUND = "background"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    """Region of an object and its value in the mask."""

    outline: Outline
    code: int


def to_segmentation(
    root: Path, annotations: Annotations, source: str
) -> tuple[Dataset, tuple[str, ...]]:
    """Turn annotations into images with masks; class 0 is the background.

    Crowds and difficult objects are ignored pixels. So are objects of which only the box is known,
    unless a tool drew them as rectangles.

    Parameters
    ----------
    root : Path
        Folder from which the paths of the images start.
    annotations : Annotations
    source : str
        Name of the format, for messages.

    Returns
    -------
    Dataset
        Sorted by path. Masks are drawn when they are used.
    tuple of str
        The relative path of each image.

    Raises
    ------
    DataError
        If there are too many classes, or an image is stated to be larger than the limit.
    LayoutError
        If there is no outline.

    Examples
    --------
    >>> from headstart.data.dataset import Boxes
    >>> boxes = Boxes(corners=((0, 0, 2, 1),), labels=("cat",), size=(3, 2))
    >>> item = AnnotatedImage(key="1.jpg", boxes=boxes)
    >>> labels = Annotations(items=(item,), names=("cat",), boxes_are_regions=True)
    >>> to_segmentation(Path("photos"), labels, "LabelMe")[0].samples[0].target.source.draw()
    array([[1, 1, 0],
           [0, 0, 0]], dtype=uint8)
    """
    items = sorted(annotations.items, key=lambda item: item.key)
    n_outlines = sum(bool(outline) for item in items for outline in item.outlines)
    n_boxes = sum(len(item.boxes.labels) for item in items) - n_outlines
    if not n_outlines and not (annotations.boxes_are_regions and n_boxes):
        raise LayoutError(
            f"Expected outlines or masks for segmentation in {str(root)!r}, got {n_boxes} objects "
            f"with boxes only ({source}). Add outlines, pass --masks FOLDER to name the folder of "
            "masks, or remove --task segmentation."
        )
    used = {name for item in items for name in item.boxes.labels}
    names = [name for name in annotations.names if name in used]
    if len(names) >= MAX_CLASSES:
        raise DataError(
            f"Expected at most {MAX_CLASSES - 1} classes in {str(root)!r}, got {len(names)}. Merge "
            "some classes."
        )
    palette = Palette(codes=tuple(enumerate((_BACKGROUND, *names))))
    samples = tuple(_to_sample(root, item, annotations, palette) for item in items)
    notes = (
        *annotations.notes,
        (
            f"task: segmentation as requested: masks drawn from {n_outlines} outlines; of "
            "overlapping objects the smaller one is on top"
        ),
        *_hard_note(items),
    )
    box_use = "drawn as rectangles" if annotations.boxes_are_regions else "ignored pixels"
    box_warning = f"{n_boxes} of {n_boxes + n_outlines} objects have only a box: {box_use}"
    data = Dataset(
        samples=samples,
        classes=palette.names,
        kind="segmentation",
        notes=notes,
        warnings=(*annotations.warnings, *([box_warning] if n_boxes else [])),
    )
    return data, tuple(item.key for item in items)


def _hard_note(items: list[AnnotatedImage]) -> tuple[str, ...]:
    n_hard = sum(sum(item.boxes.hard) for item in items)
    return (f"{n_hard} objects are difficult or crowds: ignored pixels",) if n_hard else ()


def _to_sample(
    root: Path, item: AnnotatedImage, annotations: Annotations, palette: Palette
) -> Sample:
    header = None
    if annotations.relative or item.boxes.size is None:
        header = quick_header(root / item.key)
    size = (header.width, header.height) if header is not None else item.boxes.size or (1, 1)
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"The image {item.key!r} in {str(root)!r} is stated to have {size[0]} x {size[1]} "
            f"pixels, which is above the limit of {MAX_PIXELS}. Correct the annotations."
        )
    objects = _objects(item, annotations, palette)
    if annotations.relative:
        objects = [_Object(outline=each.outline.scaled(*size), code=each.code) for each in objects]
    mask = OutlineMask(
        width=size[0],
        height=size[1],
        outlines=tuple(each.outline for each in objects),
        codes=tuple(each.code for each in objects),
    )
    present = np.unique(mask.draw()).tolist()
    target = Mask(
        source=mask,
        palette=palette,
        present=tuple(name for code, name in palette.codes if code in present),
    )
    return Sample(image=root / item.key, target=target, split=item.split, group=item.group)


def _objects(item: AnnotatedImage, annotations: Annotations, palette: Palette) -> list[_Object]:
    codes = {name: code for code, name in palette.codes if isinstance(code, int)}
    hard = item.boxes.is_hard().tolist()
    outlines = item.outlines or (None,) * len(item.boxes.labels)
    objects = []
    for corners, label, is_hard, outline in zip(
        item.boxes.corners, item.boxes.labels, hard, outlines, strict=True
    ):
        left, top, right, bottom = corners
        box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        is_ignored = is_hard or (outline is None and not annotations.boxes_are_regions)
        code = IGNORED if is_ignored else codes[label]
        objects.append(_Object(outline=outline or Outline(polygons=(box,)), code=code))
    return objects
