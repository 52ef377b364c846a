"""What a run is pointed at, read as its recipe needs it, and the recipe as the data settle it."""

from __future__ import annotations

from pathlib import Path

from headstart.cache import Cache
from headstart.data.prepare import Prepared, prepare
from headstart.data.readers import read_dataset
from headstart.data.samples import DENSE, Dataset
from headstart.features import Progress
from headstart.heads.published import is_published, locate_head, split
from headstart.recipe import Recipe

__all__ = ["checked", "read", "settled"]


def read(source: str | Path | Dataset, recipe: Recipe) -> Dataset:
    """Read what the user points at, as the task that the recipe names needs it.

    Raises
    ------
    DataError
        If it cannot be read, or holds nothing for that task.

    Examples
    --------
    >>> read("demo:boxes", Recipe()).kind
    'detection'
    """
    if isinstance(source, Dataset):
        return source
    is_demo = str(source).startswith("demo:")  # which brings a kind of its own
    kind = next((k for k in DENSE if k == recipe.task and not is_demo), None)
    return read_dataset(source, task_kind=kind, group_by=recipe.group_by)


def settled(recipe: Recipe, data: Dataset) -> Recipe:
    """Decide by the data what a recipe leaves open; a published head has to be there.

    Raises
    ------
    UsageError
        If the data are of another task than was asked for.
    WeightsNotFoundError
        If a published head is in no place: said before anything is scanned.
    """
    recipe = recipe.settled(data)
    name, _ = split(recipe.head)
    if is_published(name) and (data.kind == "detection" or data.kind == "segmentation"):
        locate_head(name, data.kind, offline=recipe.offline)
    return recipe


def checked(data: Dataset, recipe: Recipe, cache: Cache, progress: Progress | None) -> Prepared:
    """Scan, check and split what was read, as the recipe says.

    Raises
    ------
    DataError
        If the pictures, boxes or masks cannot be used as they are.
    """
    return prepare(
        data,
        cache=cache,
        bad_files=recipe.bad_files,
        allow_overlap=recipe.allow_overlap,
        test_fraction=recipe.test_fraction,
        seed=recipe.seed,
        progress=progress,
    )
