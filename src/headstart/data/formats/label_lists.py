"""Lists of images and labels in text files: one path and one label in each line."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from headstart.data.formats.annotations import splits_by_folder
from headstart.data.formats.image_names import ImageNames
from headstart.data.formats.layouts import (
    IMAGE_SUFFIXES,
    Listing,
    format_list,
    is_image,
    list_folder,
    natural_key,
)
from headstart.data.formats.tables import Table
from headstart.errors import DataError, LayoutError
from headstart.files import MOST_TEXT_BYTES, is_file, read_bounded

__all__ = ["find_label_lists", "is_label_list", "read_label_file", "read_label_lists"]

_CLASS_LISTS = ("classes.txt", "class_names.txt", "names.txt")
_SUFFIXES = "|".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
_LINE = re.compile(rf"(.*\.(?:{_SUFFIXES}))\"?(\t|\s*[,;]\s*| +)(\S.*)", re.IGNORECASE)
_START = 65536  # bytes by which a list is recognised


def is_label_list(path: Path) -> bool:
    r"""Whether the beginning of a text file is lines of an image path and a label.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "train.txt")
    >>> _ = path.write_text("cats/1.jpg 0\ndogs/2.jpg 1\n")
    >>> is_label_list(path)
    True
    """
    if path.suffix.lower() != ".txt" or not is_file(path):
        return False
    with path.open("rb") as file:
        text = file.read(_START).decode("utf-8-sig", errors="replace")
    lines = [line for line in text.split("\n")[:20] if line.strip()]
    return bool(lines) and all(_parse(line) is not None for line in lines)


def _parse(line: str) -> tuple[str, str, str] | None:
    """Path, separator and label of a line; None if the line has another form."""
    match = _LINE.fullmatch(line.strip())
    if match is None or is_image(match[3].strip('"')):  # a pair of image and mask
        return None
    return match[1].lstrip('"'), match[2].strip(" ") or " ", match[3].strip().strip('"').strip()


def find_label_lists(listing: Listing) -> tuple[str, ...]:
    """Find the lists of images and labels of a folder.

    Examples
    --------
    >>> find_label_lists(Listing(root=Path(), other_files=("readme.md",)))
    ()
    """
    stems = {posixpath.splitext(posixpath.basename(name))[0] for name in listing.images}
    names = [
        name
        for name in listing.other_files
        if name.lower().endswith(".txt") and posixpath.basename(name)[:-4] not in stems
    ]
    if len(names) > len(stems) + 100:  # annotations, one file for each image
        return ()
    return tuple(name for name in names if is_label_list(listing.root / name))


def read_label_file(path: Path) -> Table:
    r"""Read one list; the images are in its folder, or in the one above it.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "1.jpg").touch()
    >>> _ = (root / "all.txt").write_text("1.jpg cat\n")
    >>> read_label_file(root / "all.txt").columns
    {'path': ['1.jpg'], 'label': ['cat']}
    """
    root = path.absolute().parent
    listing = list_folder(root)
    if not listing.images and root.parent != root:  # splits/train.txt, with the images in images/
        listing = list_folder(root.parent)
    return read_label_lists(listing, [path.absolute().relative_to(listing.root).as_posix()])


def read_label_lists(listing: Listing, names: Sequence[str]) -> Table:
    """Join lists to one table with the columns path, label and (of several splits) split.

    Parameters
    ----------
    listing : Listing
        Of the folder of the images.
    names : sequence of str
        See `find_label_lists`. Several lists must name splits.

    Raises
    ------
    DataError
        If a line is damaged, or a number has no name in the list of classes.
    LayoutError
        If several lists do not name splits.
    """
    splits = splits_by_folder(f"{name}/" for name in names)
    if len(names) > 1 and None in splits.values():
        raise LayoutError(
            f"Expected one list of images and labels in {str(listing.root)!r}, or lists named "
            f"after splits such as train.txt and test.txt, got {format_list(names)}. Pass the "
            "path of one of them, or rename them."
        )
    images = ImageNames(listing)
    keys: list[str | None] = []
    labels: list[str | None] = []
    lines: list[int | str] = []
    for name in names:
        for number, key, label in _read_list(listing.root / name, name, images):
            keys.append(key)
            labels.append(label)
            lines.append(number if len(names) == 1 else f"{name}:{number}")
    place = f"the lists {format_list(names)} of {str(listing.root)!r}"
    columns: dict[str, list[str | None]] = {"path": keys, "label": labels}
    columns["label"] = list(_named(listing, names, [str(label) for label in labels], place))
    if any(splits.values()):
        first = names[0]
        columns["split"] = [
            splits[f"{first if isinstance(line, int) else line.rpartition(':')[0]}/"]
            for line in lines
        ]
    return Table(path=listing.root / "lists", columns=columns, lines=lines, place=place)


def _read_list(path: Path, name: str, images: ImageNames) -> Iterable[tuple[int, str, str]]:
    """Yield line number, path of the image and label."""
    try:
        text = read_bounded(path, MOST_TEXT_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise LayoutError(
            f"Cannot read {str(path)!r} as text in UTF-8: {error}. Save it in the encoding UTF-8."
        ) from error
    folder = posixpath.dirname(name)
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {str(path)!r}"
        parts = _parse(line)
        if parts is None:
            raise DataError(
                f"Expected the path of an image and its label in {where}, got "
                f"{line.strip()!r:.80}. Correct the line."
            )
        stated, separator, label = parts
        if re.search(r"[\s,;]", label) and (
            separator == " " or re.fullmatch(r"[-\d.,;\s]+", label)
        ):
            raise DataError(
                f"Expected one label after the path in {where}, got {label!r:.80}, which may be "
                "several values. Write one label, and separate it by a tab if it contains blanks."
            )
        yield number, images.key_of(stated, folder, where), label


def _named(
    listing: Listing, names: Sequence[str], labels: Sequence[str], place: str
) -> Iterable[str]:
    """Replace numbers by the names in a list of classes, if there is one."""
    is_number = bool(labels) and all(re.fullmatch(r"\d{1,9}", label) for label in labels)
    folders = [posixpath.dirname(name) for name in names]
    candidates = sorted(
        (name for name in listing.other_files if posixpath.basename(name).lower() in _CLASS_LISTS),
        key=lambda name: (posixpath.dirname(name) not in folders, name.count("/"), name),
    )
    if not is_number or not candidates:
        return labels
    by_number = _read_classes(listing.root / candidates[0])
    numbers = [int(label) for label in labels]
    unknown = sorted(set(numbers) - by_number.keys(), key=int)
    if unknown:
        advice = "Correct the labels, or add the names of the classes"
        if unknown == [len(by_number)] and 0 not in numbers:
            advice = "The labels seem to start at 1: write 'number name' in each line of the list"
        raise DataError(
            f"Expected labels with a name in {candidates[0]!r} ({len(by_number)} classes, from 0) "
            f"in {place}, got {format_list(unknown)}. {advice}."
        )
    return [by_number[number] for number in numbers]


def _read_classes(path: Path) -> dict[int, str]:
    """Names by number: lines ``name`` (from 0 on), ``number name`` or ``name number``."""
    try:
        text = read_bounded(path, MOST_TEXT_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise LayoutError(f"Cannot read {str(path)!r}: {error}. Save it as UTF-8 text.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for pattern in (
        r"(?P<number>\d{1,9})[\s,:]+(?P<name>\S.*)",
        r"(?P<name>.*\S)[\s,:]+(?P<number>\d{1,9})",
    ):
        matches = [match for line in lines if (match := re.fullmatch(pattern, line))]
        if lines and len(matches) == len(lines):
            names = {int(match["number"]): match["name"] for match in matches}
            if len(names) == len(lines):
                return names
    if len(set(lines)) != len(lines):
        twice = sorted({line for line in lines if lines.count(line) > 1}, key=natural_key)
        raise DataError(
            f"Expected each class once in {str(path)!r}, got {format_list(twice)} several times. "
            "Rename or remove the duplicates."
        )
    return dict(enumerate(lines))
