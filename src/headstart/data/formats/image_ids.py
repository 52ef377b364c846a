"""Ids of images in tables: names without a suffix, with the files in a folder such as train/."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from headstart.data.formats.annotations import split_from_path
from headstart.data.formats.layouts import is_image, list_folder

__all__ = ["find_by_id", "is_id_column"]


def is_id_column(name: str | None) -> bool:
    """Whether a column may hold ids of images, but may number the rows as well.

    >>> is_id_column("Id"), is_id_column("image_id")
    (True, False)
    """
    return name is not None and name.strip().lower() == "id"


def find_by_id(folder: Path, table: str, ids: Sequence[str]) -> dict[str, Path]:
    """Find the image of each id: the file with this name and any image suffix in the folder.

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
        Empty unless every id has exactly one image.

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
    if not ids or any(is_image(name) for name in ids):
        return {}
    by_stem: dict[str, list[str]] = defaultdict(list)
    for key in list_folder(folder).images:
        stem = key.rpartition(".")[0]
        by_stem[stem.rpartition("/")[2]].append(key)
    split = split_from_path(table) or "train"
    found = {}
    for name in dict.fromkeys(ids):
        keys = _matching(by_stem.get(name.rpartition("/")[2], ()), name)
        if len(keys) > 1:
            keys = [key for key in keys if split_from_path(key.rpartition("/")[0]) == split]
        if len(keys) != 1:
            return {}
        found[name] = folder / keys[0]
    return found


def _matching(keys: Iterable[str], name: str) -> list[str]:
    return [key for key in keys if f"/{key.rpartition('.')[0]}".endswith(f"/{name}")]
