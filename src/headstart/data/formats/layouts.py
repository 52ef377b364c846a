"""What lies in a folder, and plain words for a layout that is not read.

Only names are looked at, never an image's content.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from headstart.errors import DataError, LayoutError

__all__ = [
    "IMAGE_SUFFIXES",
    "MANIFEST_SUFFIXES",
    "Listing",
    "coco_files",
    "foreign",
    "is_image",
    "listed",
    "missing",
    "natural_key",
    "no_masks",
    "unrecognised",
    "voc_file",
    "walk",
    "yolo_file",
]

# fmt: off
IMAGE_SUFFIXES = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff",
        ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga", ".avif", ".heic", ".heif",
    )
)
# fmt: on
MANIFEST_SUFFIXES = frozenset((".csv", ".tsv", ".parquet", ".pq"))

_IGNORED = frozenset(("thumbs.db", "desktop.ini", "__macosx"))
# Links to folders are followed this deep: enough for pools of linked classes, too little for
# folders that link to each other to multiply.
_LINKS = 2

_ACCEPTED = """
  class folders     photos/cat/1.jpg          with splits   photos/train/cat/1.jpg
                    photos/dog/2.jpg                        photos/test/dog/2.jpg
  a manifest        labels.csv (.tsv, .parquet), alone or beside the images:
                    path,label[,split][,group]
                    images/1.jpg,cat,train,patient7
  masks             images/1.jpg              with splits   train/images/1.jpg
                    masks/1.png                             train/masks/1.png
                    classes.txt (one name a line, or 'code name', or 'r g b name')
  boxes             COCO (*.json), Pascal VOC (*.xml) or YOLO (labels/*.txt) beside the images
  an example set    demo:digits"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What lies under a folder, as sorted posix paths relative to it.

    Parameters
    ----------
    root : Path
    images : tuple of str
        Files with the suffix of an image.
    others : tuple of str
        All other files, hidden ones left out.
    folders : tuple of str
    links : tuple of str
        Links to folders that were not followed, because they lead back or too deep.
    """

    root: Path
    images: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    links: tuple[str, ...] = ()

    @property
    def tops(self) -> tuple[str, ...]:
        """Folders directly under the root."""
        return tuple(folder for folder in self.folders if "/" not in folder)


def is_image(name: str) -> bool:
    """Whether a file's name has the suffix of an image.

    Examples
    --------
    >>> is_image("Cat.JPG"), is_image("cat.txt")
    (True, False)
    """
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def natural_key(text: str) -> tuple[object, ...]:
    """A sort key in which numbers count as numbers and case does not.

    Examples
    --------
    >>> sorted(["class10", "Class1", "class2"], key=natural_key)
    ['Class1', 'class2', 'class10']
    """
    parts = re.split(r"(\d+)", text)
    numbers = (int(part) if i % 2 else part.casefold() for i, part in enumerate(parts))
    return (tuple(numbers), text)


def listed(items: Iterable[object], limit: int = 5) -> str:
    """The first few items in words.

    Examples
    --------
    >>> listed(["a", "b", "c"], limit=2)
    "'a', 'b' and 1 more"
    """
    values = list(items)
    shown = ", ".join(repr(str(value)) for value in values[:limit])
    return shown + (f" and {len(values) - limit} more" if len(values) > limit else "")


def walk(root: Path) -> Listing:
    """List a folder and everything below it; hidden and system files are left out.

    Links to folders are followed, loops are not.

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
    >>> walk(folder).images
    ('cat/1.jpg',)
    """
    found: dict[str, list[str]] = {"images": [], "others": [], "folders": [], "links": []}
    open_folders: list[tuple[str, tuple[tuple[int, int], ...], int]] = [("", (_identity(root),), 0)]
    while open_folders:
        folder, chain, links = open_folders.pop()
        for entry in _entries(root / folder):
            name = f"{folder}{entry.name}"
            if not entry.is_dir():
                found["images" if is_image(name) else "others"].append(name)
                continue
            here, depth = _identity(Path(entry.path)), links + entry.is_symlink()
            if here in chain or depth > _LINKS:
                found["links"].append(name)
                continue
            found["folders"].append(name)
            open_folders.append((name + "/", (*chain, here), depth))
    return Listing(root=root, **{kind: tuple(sorted(names)) for kind, names in found.items()})


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if e.name[0] != "." and e.name.lower() not in _IGNORED]
    except OSError as error:
        raise DataError(
            f"Expected to be able to read the folder {str(folder)!r}, got {error.strerror}; "
            "do: change its permissions."
        ) from error


def missing(path: Path) -> LayoutError:
    """The error for a path that does not exist, with the nearest name that does.

    Examples
    --------
    >>> missing(Path("no-such-folder/photos")).args[0]
    "Expected a file or folder at 'no-such-folder/photos', got none there; ..."
    """
    start = path
    while not start.parent.is_dir() and start.parent != start:
        start = start.parent
    names = sorted(p.name for p in start.parent.iterdir()) if start.parent.is_dir() else []
    near = get_close_matches(start.name, names, n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {str(start.parent / near[0])!r}?"
    else:
        hint = f"do: look into {str(start.parent.absolute())!r}, which holds {listed(names)}."
    return LayoutError(f"Expected a file or folder at {str(path)!r}, got none there; {hint}")


def unrecognised(listing: Listing) -> LayoutError:
    """The error for a folder whose layout is not one of those that are read.

    Examples
    --------
    >>> "no images" in str(unrecognised(Listing(root=Path("photos"))))
    True
    """
    if not listing.images:
        reason = "no images"
    elif all("/" not in name for name in listing.images):
        reason = "images but no class folders and no manifest that says what they show"
    else:
        reason = "images in folders that are not classes"
    suffixes = Counter(
        Path(name).suffix.lower() or "(none)" for name in (*listing.images, *listing.others)
    )
    counts = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(6)) or "none"
    return LayoutError(
        f"Expected {str(listing.root)!r} to hold labelled images, got {reason}; "
        f"do: arrange them in one of these ways:{_ACCEPTED}\n"
        f"Found: {len(listing.folders)} folders ({listed(listing.folders) or 'none'}); "
        f"files by suffix: {counts}; "
        f"first files: {listed((*listing.images, *listing.others)) or 'none'}."
    )


def foreign(listing: Listing) -> LayoutError | None:
    """The error for data of another task (detection, segmentation); None where it is not that."""
    looks = _other_task(listing)
    if looks is None:
        return None
    return LayoutError(
        f"Expected {str(listing.root)!r} to hold images for classification, got what looks "
        f"like {looks}; do: leave the task to be inferred, or arrange the images in one of "
        f"these ways:{_ACCEPTED}"
    )


def _other_task(listing: Listing) -> str | None:
    if files := coco_files(listing):
        return f"detection data (COCO annotations in {files[0]!r})"
    if name := voc_file(listing):
        return f"detection data (Pascal VOC annotations such as {name!r})"
    if name := yolo_file(listing):
        return f"detection data (YOLO labels such as {name!r})"
    return _masks(listing)


def no_masks(listing: Listing) -> LayoutError:
    """The error for a folder that was said to hold masks and does not.

    Examples
    --------
    >>> "masks" in str(no_masks(Listing(root=Path("photos"))))
    True
    """
    return LayoutError(
        f"Expected {str(listing.root)!r} to hold images with masks of the same names beside "
        f"them, got {len(listing.images)} images in the folders "
        f"{listed(listing.folders) or 'none'}; do: arrange them as images/1.jpg and masks/1.png."
    )


def _head(path: Path, size: int = 65536) -> str:
    with path.open("rb") as file:
        return file.read(size).decode("utf-8", errors="replace")


def coco_files(listing: Listing) -> tuple[str, ...]:
    """JSON files that begin like COCO annotations.

    Examples
    --------
    >>> coco_files(Listing(root=Path("photos"), others=("readme.txt",)))
    ()
    """
    names = [name for name in listing.others if name.lower().endswith(".json")]
    if not any(_is_coco(listing.root / name) for name in names[:20]):  # of thousands, perhaps
        return ()
    return tuple(name for name in names if _is_coco(listing.root / name))


def _is_coco(path: Path) -> bool:
    text = _head(path)
    images = '"images"' in text and '"file_name"' in text
    return images or ('"annotations"' in text and '"image_id"' in text)


def voc_file(listing: Listing) -> str | None:
    """The first XML file that begins like a Pascal VOC annotation.

    Examples
    --------
    >>> voc_file(Listing(root=Path("photos"), others=("readme.txt",))) is None
    True
    """
    for name in [name for name in listing.others if name.lower().endswith(".xml")][:5]:
        if "<annotation" in _head(listing.root / name, 4096):
            return name
    return None


def yolo_file(listing: Listing) -> str | None:
    """The first text file of an image's name that begins like YOLO labels.

    Examples
    --------
    >>> yolo_file(Listing(root=Path("photos"), others=("readme.txt",))) is None
    True
    """
    texts = [name for name in listing.others if name.endswith(".txt")]
    stems = {name.rsplit("/", 1)[-1].rsplit(".", 1)[0] for name in listing.images}
    twins = (n for n in texts if n.rsplit("/", 1)[-1].removesuffix(".txt") in stems)
    # Files of images without objects are empty, and may be many.
    filled = (n for n in islice(twins, 1000) if (listing.root / n).stat().st_size)
    for name in islice(filled, 5):
        first = _head(listing.root / name, 4096).lstrip("\ufeff").split("\n", 1)[0]
        if re.match(r"[\d.]+(\s+-?[\d.eE+-]+){4,}\s*$", first):
            return name
    return None


def _masks(listing: Listing) -> str | None:
    tops = {top.lower(): top for top in listing.tops}
    images = next((tops[n] for n in ("images", "image", "imgs", "jpegimages") if n in tops), None)
    masks = next(
        (tops[n] for n in ("masks", "mask", "segmentationclass", "annotations") if n in tops), None
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
