"""Writer of mask folders: images, a mask with class indices for each, and names of classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset, Mask, Sample
from headstart.data.draw import class_colours
from headstart.data.image_sizes import upright_size
from headstart.data.masks import decode_mask, mask_orientation
from headstart.data.writing.image_files import ImageFile
from headstart.errors import DataError
from headstart.files import output_path, write_whole
from headstart.metrics.validation import json_text

__all__ = ["decode_for_image", "mask_folders", "write_mask_folders"]


def mask_folders(data: Dataset) -> list[str]:
    """Folder of each image: ``images/<split>``, or ``images``."""
    return [f"images/{sample.split}" if sample.split else "images" for sample in data.samples]


def write_mask_folders(folder: Path, data: Dataset, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Write ``masks/`` for ``images/`` as indexed PNG, and classes.json; 255 is ignored.

    Returns
    -------
    tuple of str
        Sentences about what was not kept: none.
    """
    from PIL import Image

    colours = class_colours(256).tobytes()  # a shorter palette would be saved with fewer bits
    for file in files:
        image = Image.fromarray(decode_for_image(file.sample, data.classes))
        image.putpalette(colours)
        content = io.BytesIO()
        image.save(content, "PNG")
        name = f"masks{file.stem.removeprefix('images')}.png"
        output_path(folder, name).write_bytes(content.getvalue())
    names = {str(code): name for code, name in enumerate(data.classes)}
    write_whole(output_path(folder, "classes.json"), json_text(names, indent=1))
    return ()


def decode_for_image(sample: Sample, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Decode a mask in the size of its displayed image.

    A mask with the aspect of its image and another size is scaled by nearest neighbour.

    Returns
    -------
    array, uint8, shape (height, width)
        Indices of ``classes``; 255 where ignored.

    Raises
    ------
    DataError
        If the sample has no mask, or one of another aspect.
    """
    if not isinstance(sample.target, Mask):
        raise DataError(f"{sample.name} has no mask. Add a mask, or remove the image.")
    orientation = mask_orientation(sample.target, sample.image)
    indices = decode_mask(sample.target, classes, orientation=orientation)
    height, width = upright_size(sample.image)
    if indices.shape == (height, width):
        return indices
    rows, columns = indices.shape
    if abs(rows * width - columns * height) > max(rows, columns, width, height):
        raise DataError(
            f"The mask of {sample.name} has {columns} x {rows} pixels, but the image has {width} x "
            f"{height}. Export both at the same size, or remove the image."
        )
    scaled = replace(sample.target, size=(width, height))
    return decode_mask(scaled, classes, orientation=orientation)
