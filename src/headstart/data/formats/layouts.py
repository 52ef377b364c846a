"""Folder listing, recognition of data formats, and the errors for unsupported layouts.

Images are recognised by file name, and DICOM files without a suffix by their first bytes; of
annotation files the first bytes are read, too.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from headstart.data.dicom import is_dicom
from headstart.errors import DataError, LayoutError
from headstart.files import is_file

__all__ = [
    "IMAGE_SUFFIXES",
    "MANIFEST_SUFFIXES",
    "Listing",
    "find_coco_files",
    "find_voc_file",
    "find_yolo_file",
    "format_list",
    "is_dicom_file",
    "is_image",
    "list_folder",
    "natural_key",
    "no_masks_error",
    "other_task_error",
    "path_not_found_error",
    "unknown_layout_error",
]

# fmt: off
IMAGE_SUFFIXES = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff",
        ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga", ".avif", ".heic", ".heif",
        ".dcm", ".dicom",
    )
)
# fmt: on
_NO_SUFFIX = re.compile(r"|\.\d+")
MANIFEST_SUFFIXES = frozenset((".csv", ".tsv", ".parquet", ".pq"))

# Files and folders of operating systems, network disks and tools, in lower case.
_SYSTEM_FILES = frozenset(
    (
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "__macosx",
        "@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "@__thumb",
        "$recycle.bin", "recycler", "system volume information", "found.000", "lost+found",
        "network trash folder", "temporary items", "_vti_cnf", "__pycache__",
    )
)  # fmt: skip
# Nested links to folders are followed to this depth: enough for class folders that are links,
# and small enough that folders linking to each other do not multiply the listing.
_MAX_LINK_DEPTH = 2

_SUPPORTED_LAYOUTS = """
  class folders     photos/cat/1.jpg          with splits   photos/train/cat/1.jpg
                    photos/dog/2.jpg                        photos/test/dog/2.jpg
  manifest          labels.csv (or .tsv, .parquet): a table in the folder of the images,
                    with a header row; the columns split and group are optional:
                    path,label,split,group
                    images/1.jpg,cat,train,patient7
  masks             images/1.jpg              with splits   train/images/1.jpg
                    masks/1.png                             train/masks/1.png
                    classes.txt (one class per line: 'name', 'code name' or 'r g b name')
  boxes             COCO (annotations.json), Pascal VOC (1.xml for 1.jpg),
                    YOLO (labels/1.txt for images/1.jpg), or an export of LabelMe,
                    CVAT, VIA, Label Studio or Supervisely
  example data      demo:digits (no files needed)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Contents of a folder and its subfolders, as sorted posix paths relative to it.

    Parameters
    ----------
    root : Path
    images : tuple of str
        Files with an image suffix, and DICOM files without a suffix.
    other_files : tuple of str
        All other files, except hidden ones.
    folders : tuple of str
    skipped_links : tuple of str
        Symbolic links to folders that were not followed: they form a loop or are nested too deep.
    """

    root: Path
    images: tuple[str, ...] = ()
    other_files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    skipped_links: tuple[str, ...] = ()

    @property
    def top_folders(self) -> tuple[str, ...]:
        """Folders directly under the root."""
        return tuple(folder for folder in self.folders if "/" not in folder)


def is_image(name: str) -> bool:
    """Whether a file name has an image suffix.

    Examples
    --------
    >>> is_image("Cat.JPG"), is_image("cat.txt")
    (True, False)
    """
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_dicom_file(path: Path) -> bool:
    """Whether a file without a suffix, or with a number as in ``1.2.840``, has DICOM's mark.

    Examples
    --------
    >>> is_dicom_file(Path("notes.txt"))
    False
    """
    if not _NO_SUFFIX.fullmatch(path.suffix) or path.name.upper() == "DICOMDIR":
        return False
    if not is_file(path):  # a pipe might never end
        return False
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return False


def natural_key(text: str) -> tuple[object, ...]:
    """Sort key for natural order: numbers by value, letters without case.

    Examples
    --------
    >>> sorted(["class10", "Class1", "class2"], key=natural_key)
    ['Class1', 'class2', 'class10']
    >>> sorted(["8" * 5000, "7"], key=natural_key) == ["7", "8" * 5000]
    True
    """
    parts = re.split(r"(\d+)", text)
    # int() refuses more than 4,300 digits.
    numbers = (Decimal(part) if i % 2 else part.casefold() for i, part in enumerate(parts))
    return (tuple(numbers), text)


def format_list(items: Iterable[object], limit: int = 5) -> str:
    """Format the first few items as one line of text.

    Examples
    --------
    >>> format_list(["a", "b", "c"], limit=2)
    "'a', 'b' and 1 more"
    """
    values = list(items)
    text = ", ".join(repr(str(value)) for value in values[:limit])
    return text + (f" and {len(values) - limit} more" if len(values) > limit else "")


def list_folder(root: Path) -> Listing:
    """List a folder and all its subfolders; hidden and system files are left out.

    Links to folders are followed, except those that form a loop.

    Raises
    ------
    DataError
        If a folder cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "cat").mkdir()
    >>> (folder / "cat" / "1.jpg").touch()
    >>> list_folder(folder).images
    ('cat/1.jpg',)
    """
    images: list[str] = []
    other_files: list[str] = []
    folders: list[str] = []
    skipped_links: list[str] = []
    # Folders still to list, each with the identities of its parents and the links on the way.
    root_identity = _folder_identity(root)
    pending: list[tuple[str, tuple[tuple[int, int], ...], int]] = [("", (root_identity,), 0)]
    while pending:
        folder, parents, parent_link_depth = pending.pop()
        for entry in _folder_entries(root / folder):
            name = f"{folder}{entry.name}"
            if not _is_folder(entry):
                is_read = is_image(name) or is_dicom_file(Path(entry.path))
                (images if is_read else other_files).append(name)
                continue
            identity = _folder_identity(Path(entry.path))
            link_depth = parent_link_depth + entry.is_symlink()
            if identity in parents or link_depth > _MAX_LINK_DEPTH:
                skipped_links.append(name)
                continue
            folders.append(name)
            pending.append((name + "/", (*parents, identity), link_depth))
    return Listing(
        root=root,
        images=tuple(sorted(images)),
        other_files=tuple(sorted(other_files)),
        folders=tuple(sorted(folders)),
        skipped_links=tuple(sorted(skipped_links)),
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _folder_identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _folder_entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [
                entry
                for entry in entries
                if entry.name[0] != "." and entry.name.lower() not in _SYSTEM_FILES
            ]
    except OSError as error:
        raise DataError(
            f"Cannot read the folder {str(folder)!r}: {error.strerror}. Change its permissions, "
            "or move the images to a folder that you can read."
        ) from error


def path_not_found_error(path: Path) -> LayoutError:
    """Error for a path that does not exist; it names the most similar path that does.

    Examples
    --------
    >>> path_not_found_error(Path("no-such-folder/photos")).args[0]
    "'no-such-folder/photos' does not exist. ..."
    """
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", path.as_posix()):  # one letter is a drive
        return LayoutError(
            f"{str(path)!r} is an address, but only files on this machine are read. Download it, "
            "unpack it if it is an archive, and pass the folder."
        )
    # The topmost part of the path that does not exist: a typo may be in a parent folder.
    absent = path
    while not absent.parent.is_dir() and absent.parent != absent:
        absent = absent.parent
    parent = absent.parent
    names = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    similar = get_close_matches(absent.name, names, n=1, cutoff=0.5)
    if similar:
        hint = f"Did you mean {str(parent / similar[0])!r}?"
    else:
        hint = (
            f"Pass an existing file or folder: {str(parent.absolute())!r} contains "
            f"{format_list(names) or 'nothing'}."
        )
    return LayoutError(f"{str(path)!r} does not exist. {hint}")


def unknown_layout_error(listing: Listing) -> LayoutError:
    """Error for a folder whose layout is not supported.

    Examples
    --------
    >>> "no images" in str(unknown_layout_error(Listing(root=Path("photos"))))
    True
    """
    if not listing.images:
        reason = "no images"
    elif all("/" not in name for name in listing.images):
        reason = "images without class folders and without a manifest that lists their labels"
    else:
        reason = "images in folders that are not class folders"
    suffixes = Counter(
        Path(name).suffix.lower() or "(none)" for name in (*listing.images, *listing.other_files)
    )
    counts = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(6)) or "none"
    return LayoutError(
        f"Expected labelled images in {str(listing.root)!r}, got {reason}.\n"
        f"Contents: {len(listing.folders)} folders ({format_list(listing.folders) or 'none'}); "
        f"files by suffix: {counts}; "
        f"first files: {format_list((*listing.images, *listing.other_files)) or 'none'}.\n"
        f"Arrange the data in one of these layouts:{_SUPPORTED_LAYOUTS}"
    )


def other_task_error(listing: Listing) -> LayoutError | None:
    """Error for data of another task (detection, segmentation); None if there is no sign of it."""
    description = _describe_other_task(listing)
    if description is None:
        return None
    return LayoutError(
        f"Expected images for classification in {str(listing.root)!r}, got {description}. "
        f"Remove --task to use this task, or arrange the images in one of these "
        f"layouts:{_SUPPORTED_LAYOUTS}"
    )


def _describe_other_task(listing: Listing) -> str | None:
    if files := find_coco_files(listing):
        return f"detection data (COCO annotations in {files[0]!r})"
    if name := find_voc_file(listing):
        return f"detection data (Pascal VOC annotations such as {name!r})"
    if name := find_yolo_file(listing):
        return f"detection data (YOLO labels such as {name!r})"
    return _describe_masks(listing)


def no_masks_error(listing: Listing) -> LayoutError:
    """Error for a folder without masks when the task is segmentation.

    Examples
    --------
    >>> "masks" in str(no_masks_error(Listing(root=Path("photos"))))
    True
    """
    return LayoutError(
        f"Expected images and masks of the same names in {str(listing.root)!r}, got "
        f"{len(listing.images)} images without masks in {len(listing.folders)} folders "
        f"({format_list(listing.folders) or 'none'}). Arrange them as images/1.jpg and "
        "masks/1.png, pass --masks FOLDER to name the folder of the masks, or remove --task "
        "segmentation."
    )


def _read_start(path: Path, size: int = 65536) -> str:
    if not is_file(path):  # a pipe might never end
        return ""
    with path.open("rb") as file:
        return file.read(size).decode("utf-8", errors="replace")


def find_coco_files(listing: Listing) -> tuple[str, ...]:
    """Find the JSON files whose first bytes look like COCO annotations.

    Examples
    --------
    >>> find_coco_files(Listing(root=Path("photos"), other_files=("readme.txt",)))
    ()
    """
    names = [name for name in listing.other_files if name.lower().endswith(".json")]
    if not any(_is_coco(listing.root / name) for name in names[:20]):  # there may be thousands
        return ()
    return tuple(name for name in names if _is_coco(listing.root / name))


def _is_coco(path: Path) -> bool:
    text = _read_start(path)
    has_images = '"images"' in text and '"file_name"' in text
    return has_images or ('"annotations"' in text and '"image_id"' in text)


def find_voc_file(listing: Listing) -> str | None:
    """Find the first XML file that looks like a Pascal VOC annotation; None if there is none.

    Examples
    --------
    >>> find_voc_file(Listing(root=Path("photos"), other_files=("readme.txt",))) is None
    True
    """
    for name in [name for name in listing.other_files if name.lower().endswith(".xml")][:5]:
        if re.search(r"<annotation[\s>]", _read_start(listing.root / name, 4096)):
            return name
    return None


def find_yolo_file(listing: Listing) -> str | None:
    """Find the first text file that looks like YOLO labels of an image; None if there is none.

    Examples
    --------
    >>> find_yolo_file(Listing(root=Path("photos"), other_files=("readme.txt",))) is None
    True
    """
    texts = [name for name in listing.other_files if name.endswith(".txt")]
    stems = {name.rsplit("/", 1)[-1].rsplit(".", 1)[0] for name in listing.images}
    matching = (name for name in texts if name.rsplit("/", 1)[-1].removesuffix(".txt") in stems)
    # Label files of images without objects are empty, and there may be many of them.
    not_empty = (name for name in islice(matching, 1000) if (listing.root / name).stat().st_size)
    for name in islice(not_empty, 5):
        first_line = _read_start(listing.root / name, 4096).lstrip("\ufeff").split("\n", 1)[0]
        if re.match(r"[\d.]+(\s+-?[\d.eE+-]+){4,}\s*$", first_line):
            return name
    return None


def _describe_masks(listing: Listing) -> str | None:
    top_folders = {top.lower(): top for top in listing.top_folders}
    images = next(
        (top_folders[n] for n in ("images", "image", "imgs", "jpegimages") if n in top_folders),
        None,
    )
    masks = next(
        (
            top_folders[n]
            for n in ("masks", "mask", "segmentationclass", "annotations")
            if n in top_folders
        ),
        None,
    )
    if images is None or masks is None:
        return None
    stems = {
        top: {
            name.removeprefix(f"{top}/").rsplit(".", 1)[0]
            for name in listing.images
            if name.startswith(f"{top}/")
        }
        for top in (images, masks)
    }
    if stems[images] & stems[masks]:
        return f"segmentation data (images in {images!r}, masks in {masks!r})"
    return None
