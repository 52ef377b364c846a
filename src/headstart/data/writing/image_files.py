"""Names of the images of a written data set, and their copies."""

from __future__ import annotations

import io
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.data.dataset import Dataset, Sample, labels_of
from headstart.data.formats.annotations import split_from_path
from headstart.data.formats.layouts import is_image
from headstart.data.images import decode, read_header
from headstart.errors import UnreadableImageError, UsageError
from headstart.files import file_stems, output_path

__all__ = ["ImageFile", "copy_images", "image_bytes", "name_images"]

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
_PLAIN_FOLDERS = {"images", "image", "imgs", "img", "jpegimages", "photos", "data"}
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """An image and the path of its copy.

    Parameters
    ----------
    sample : Sample
    path : str
        Below the output folder, with forward slashes and a suffix.
    """

    sample: Sample
    path: str

    @property
    def stem(self) -> str:
        """The path without its suffix."""
        return self.path.rpartition(".")[0]


def name_images(
    data: Dataset, folders: Sequence[str], *, everywhere: bool = False
) -> tuple[ImageFile, ...]:
    """Name a file for each image: safe on every system, and unique in its folder.

    Folders above an image become part of its name, unless they name its split or its class, so that
    a patient's folder is not lost.

    Parameters
    ----------
    data : Dataset
    folders : sequence of str
        Folder of each image in the output.
    everywhere : bool
        Whether names must be unique in all folders together.

    Examples
    --------
    >>> paths = ("p/train/cat/ann/1.jpg", "p/train/dog/1.jpg", "p/train/dog/1.png")
    >>> samples = tuple(Sample(image=Path(p), target=p.split("/")[2]) for p in paths)
    >>> data = Dataset(samples=samples, classes=("cat", "dog"))
    >>> [file.path for file in name_images(data, ("cat", "dog", "dog"))]
    ['cat/ann_1.jpg', 'dog/1.jpg', 'dog/1-2.png']
    """
    used: dict[str, set[str]] = defaultdict(set)
    files = []
    stems = file_stems([sample.name for sample in data.samples])
    for sample, stem, folder in zip(data.samples, stems, folders, strict=True):
        name = base = _flat_name(sample, stem)
        taken, number = used["" if everywhere else folder], 1
        while name.casefold() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.casefold())
        path = f"{name}{_suffix(sample)}"
        files.append(ImageFile(sample=sample, path=f"{folder}/{path}" if folder else path))
    return tuple(files)


def _flat_name(sample: Sample, stem: str) -> str:
    *folders, name = stem.split("/")
    labels = set(labels_of(sample.target))
    own = [
        part
        for part in folders
        if part not in labels
        and part.lower() not in _PLAIN_FOLDERS
        and split_from_path(part) is None
    ]
    return "_".join([*own, name])[-150:].lstrip(".")


def _suffix(sample: Sample) -> str:
    if isinstance(sample.image, Path) and is_image(sample.image.name):
        return sample.image.suffix.lower()
    if not isinstance(sample.image, bytes | Path):
        return ".png"
    try:
        name = read_header(sample.image).format
    except UnreadableImageError:
        return ".jpg"
    return _SUFFIXES.get(name, f".{name.lower()}")


def copy_images(
    folder: Path,
    files: Sequence[ImageFile],
    *,
    link: bool = False,
    on_progress: OnProgress | None = None,
) -> None:
    """Copy the images to their new paths; arrays are written as PNG.

    Parameters
    ----------
    folder : Path
        The output folder.
    files : sequence of ImageFile
    link : bool
        Make hard links to files instead of copies.
    on_progress : callable, optional

    Raises
    ------
    UsageError
        If a file cannot be linked, as on another disk.
    """
    for done, file in enumerate(_with_progress(files, on_progress)):
        target, image = output_path(folder, file.path), file.sample.image
        if not isinstance(image, Path):
            target.write_bytes(image_bytes(file.sample))
        elif not link:
            shutil.copyfile(image, target)
        else:
            try:
                os.link(image.resolve(), target)
            except OSError as error:
                raise UsageError(
                    f"Cannot link {str(image)!r} after {done} images: {error.strerror}. Write to "
                    "the disk of the images, or remove --link to copy them."
                ) from error


def _with_progress(
    files: Sequence[ImageFile], on_progress: OnProgress | None
) -> Iterable[ImageFile]:
    for done, file in enumerate(files, start=1):
        yield file
        if on_progress is not None and (done % 100 == 0 or done == len(files)):
            on_progress("writing images", done, len(files))


def image_bytes(sample: Sample) -> bytes:
    """The bytes of an image file; an array or PIL image as PNG.

    Examples
    --------
    >>> import numpy as np
    >>> image_bytes(Sample(image=np.zeros((2, 2, 3), np.uint8)))[1:4]
    b'PNG'
    """
    from PIL import Image

    image = sample.image
    if isinstance(image, Path):
        return image.read_bytes()
    if isinstance(image, bytes):
        return image
    file = io.BytesIO()
    Image.fromarray(decode(image, options=sample.options)).save(file, "PNG")
    return file.getvalue()
