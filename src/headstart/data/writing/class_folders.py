"""Writer of class folders: each image in the folder of its class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headstart.data.dataset import Dataset
from headstart.data.writing.image_files import ImageFile
from headstart.data.writing.plan import safe_class_names
from headstart.files import output_path

__all__ = ["class_folders", "write_class_folders"]


def class_folders(data: Dataset) -> list[str]:
    """Folder of each image: ``<split>/<class>``, or ``<class>``.

    >>> from headstart.data.dataset import Sample
    >>> sample = Sample(image=b"", target="cat", split="train")
    >>> class_folders(Dataset(samples=(sample,), classes=("cat",)))
    ['train/cat']
    """
    names = safe_class_names(data.classes)
    return [
        "/".join(filter(None, (sample.split, names[str(sample.target)]))) for sample in data.samples
    ]


def write_class_folders(folder: Path, data: Dataset, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Make the folders of the classes without images; the images are copied by the caller.

    Returns
    -------
    tuple of str
        Sentences about what was not kept: none.
    """
    splits = dict.fromkeys(file.sample.split for file in files)
    for split in splits:
        for name in safe_class_names(data.classes).values():
            inside = f"{split}/{name}" if split else name
            output_path(folder, f"{inside}/x")
    return ()
