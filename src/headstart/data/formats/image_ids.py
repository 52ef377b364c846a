"""Ids of images in tables: names with or without a suffix, with the files in a folder as train/."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from headstart.data.formats.annotations import split_from_path
from headstart.data.formats.layouts import Listing, list_folder

__all__ = ["find_by_id", "is_id_column", "share_of_ids"]


def is_id_column(name: str | None) -> bool:
    """Whether a column may hold ids of images, but may number the rows as well.

    >>> is_id_column("Id"), is_id_column("image_id")
    (True, False)
    """
    return name is not None and name.strip().lower() == "id"


def find_by_id(folder: Path, table: str, ids: Sequence[str]) -> dict[str, Path]:
    """Find the image of each id: the file with this name, or with an image suffix after it.

    Of several such files, the one in a folder of the table's split is taken (``train/7.jpg`` for
    an id 7 in train.csv, or in a table without a split).

    Parameters
    ----------
    folder : Path
    table : str
        File name of the table.
    ids : sequence of str

    Returns
    -------
    dict of str to Path
        The ids that have exactly one image.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("train", "test"):
    ...     (folder / name).mkdir()
    ...     (folder / name / "7.jpg").touch()
    >>> find_by_id(folder, "train_labels.csv", ["7"])["7"].relative_to(folder).as_posix()
    'train/7.jpg'
    """
    by_name = _by_name(list_folder(folder).images)
    split = split_from_path(table) or "train"
    found = {}
    for name in dict.fromkeys(ids):
        keys = _matching(by_name.get(_bare(name), ()), name)
        if len(keys) > 1:
            keys = [key for key in keys if split_from_path(key.rpartition("/")[0]) == split]
        if len(keys) == 1:
            found[name] = folder / keys[0]
    return found


def share_of_ids(listing: Listing, ids: Iterable[str]) -> float:
    """Share of ids that are names of images in a folder, with or without a suffix.

    >>> share_of_ids(Listing(root=Path("p"), images=("train/7.jpg",)), ["7", "8"])
    0.5
    """
    known, names = _by_name(listing.images), list(ids)
    return sum(_bare(name) in known for name in names) / max(len(names), 1)


def _by_name(keys: Iterable[str]) -> dict[str, list[str]]:
    """Images by file name, and by file name without suffix."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        name = _bare(key)
        by_name[name].append(key)
        by_name[name.rpartition(".")[0]].append(key)
    return by_name


def _bare(name: str) -> str:
    return name.rpartition("/")[2]


def _matching(keys: Iterable[str], name: str) -> list[str]:
    return [
        key
        for key in keys
        if any(f"/{path}".endswith(f"/{name}") for path in (key, key.rpartition(".")[0]))
    ]
