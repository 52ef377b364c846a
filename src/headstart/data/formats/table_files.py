"""Table files of a folder: which of them list its images and labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headstart.data.formats import box_tables, class_folders, layouts, tables
from headstart.data.formats.image_ids import is_id_column, share_of_ids
from headstart.data.formats.label_lists import (
    find_label_lists,
    is_label_list,
    read_label_file,
    read_label_lists,
)
from headstart.data.formats.layouts import Listing, format_list
from headstart.data.formats.manifests import ReadOptions
from headstart.data.formats.metadata import (
    METADATA_NAMES,
    find_metadata,
    object_column,
    read_metadata,
)
from headstart.data.formats.parquet_images import (
    find_image_parquet,
    has_images,
    read_image_parquet,
)
from headstart.data.formats.split_columns import with_flag_columns
from headstart.data.formats.split_folders import split_and_rest
from headstart.errors import HeadstartError, LayoutError

__all__ = ["find_manifest", "read_manifest_file", "tables_in"]

_NO_OPTIONS = ReadOptions()
_ARCHIVES = frozenset(
    (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
)
SHARE_OF_IDS = 0.5
"""Share of the cells of a column ``id`` that are names of files, so that it names images."""


def tables_in(listing: Listing) -> list[str]:
    """CSV, TSV and Parquet files directly in the folder; sample submissions are left out.

    >>> tables_in(Listing(root=Path(), other_files=("labels.csv", "a/b.csv", "notes.txt")))
    ['labels.csv']
    """
    return [
        name
        for name in listing.other_files
        if "/" not in name
        and Path(name).suffix.lower() in layouts.MANIFEST_SUFFIXES
        and not re.match(r"sample[ _-]?submission", name, re.IGNORECASE)
    ]


def read_manifest_file(path: Path, options: ReadOptions = _NO_OPTIONS) -> tables.Table:
    """Read the table at a path.

    Raises
    ------
    LayoutError
        If the file is no table.

    Examples
    --------
    >>> read_manifest_file(Path("photos.zip"))
    Traceback (most recent call last):
    headstart.errors.LayoutError: ... Unpack it and pass the folder.
    """
    if path.suffix.lower() in layouts.MANIFEST_SUFFIXES | {".txt", ".jsonl"}:
        if has_images(path):
            return read_image_parquet(
                path.parent, [path.name], options.image_column, options.label_column
            )
        return read_label_file(path) if is_label_list(path) else tables.read_table(path)
    listing = Listing(root=path.parent, other_files=(path.name,))
    if path.suffix.lower() in {".json", ".xml"} and (error := layouts.other_task_error(listing)):
        raise error
    advice = (
        "Unpack it and pass the folder"
        if path.suffix.lower() in _ARCHIVES
        else "Pass the folder that contains the class folders, or a CSV, TSV or Parquet file"
    )
    raise LayoutError(f"Expected a folder or a manifest, got the file {str(path)!r}. {advice}.")


def find_manifest(
    listing: Listing, options: ReadOptions, labels_required: bool
) -> tuple[tables.Table | None, tuple[str, ...]]:
    """Read the only manifest of a folder; without one return notes on tables that are not read.

    Raises
    ------
    LayoutError
        If there are several tables, or the only one cannot be read.
    """
    names = tables_in(listing)
    metadata = find_metadata(listing)
    shards = find_image_parquet(listing)
    if not names and not metadata and not shards:
        lists = find_label_lists(listing)
        return (read_label_lists(listing, lists) if lists else None), ()
    found = class_folders.group_by_class(listing).classes
    has_class_folders = bool(found)
    if shards and not has_class_folders:
        columns = options.image_column, options.label_column
        return read_image_parquet(listing.root, shards, *columns), ()
    if metadata:
        return _read_metadata(listing, metadata, options, labels_required and has_class_folders)
    if len(found) < 2 and labels_required:  # a single folder such as train/ is no class
        is_plain = all(split_and_rest(name)[1] == "" for name in found)
        chosen = _labelled_table(listing, names, options, is_plain=is_plain and has_class_folders)
        if chosen is not None:
            return chosen
    return _read_only_table(listing, names, options, labels_required, has_class_folders)


def _labelled_table(
    listing: Listing, names: Sequence[str], options: ReadOptions, *, is_plain: bool
) -> tuple[tables.Table, tuple[str, ...]] | None:
    """Read the only table with images and labels; None if there is none.

    Beside train.csv there is often a test.csv without labels. Numbers in a column ``id`` count as
    images if at least half of them are names of files. With ``is_plain``, where the only folder is
    one such as train/, a table of its images without labels is returned, too: it is an error.

    Raises
    ------
    LayoutError
        If there are several such tables.
    """
    labelled, unlabelled = {}, {}
    for name in names:
        try:
            table = tables.read_table(listing.root / name)
            columns = replace(options, group_by=None).columns_of(table)
            _, columns, _ = with_flag_columns(table, columns)
        except HeadstartError:
            continue
        if columns.image is None:
            continue
        ids = map(str, table.columns[columns.image])
        has_images = share_of_ids(listing, ids) >= SHARE_OF_IDS
        if columns.label or box_tables.box_columns(table):
            if has_images or not is_id_column(columns.image):
                labelled[name] = table
        elif has_images and is_plain:
            unlabelled[name] = table
    chosen = labelled or unlabelled
    if len(labelled) > 1:
        table = _join_splits(listing, labelled)
    elif len(chosen) == 1:
        ((_, table),) = chosen.items()
    else:
        return None
    others = [other for other in names if other not in chosen]
    return table, _note_unread(others)


def _note_unread(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"tables without images and labels not read: {format_list(names)}",)


def _join_splits(listing: Listing, named: Mapping[str, tables.Table]) -> tables.Table:
    """Join tables such as train.csv and test.csv.

    Raises
    ------
    LayoutError
        If two names do not stand for two splits, or if the tables have other columns, or one for
        splits.
    """
    parts = [split_and_rest(Path(name).stem) for name in named]
    splits = [split for split, _ in parts if split is not None]
    headers = {tuple(table.columns) for table in named.values()}
    has_own_splits = any(name.strip().lower() in {"split", "set"} for name in next(iter(headers)))
    are_splits = len(set(splits)) == len(named) and len({rest for _, rest in parts}) == 1
    if not are_splits or len(headers) > 1 or has_own_splits:
        raise _several_tables_error(listing, list(named))
    columns: dict[str, list[Any]] = {
        name: [value for table in named.values() for value in table.columns[name]]
        for name in next(iter(headers))
    }
    sizes = [len(table.lines) for table in named.values()]
    columns["split"] = [
        split for split, size in zip(splits, sizes, strict=True) for _ in range(size)
    ]
    lines = [f"{name}:{line}" for name, table in named.items() for line in table.lines]
    place = f"the tables {format_list(list(named))} of {str(listing.root)!r}"
    return tables.Table(
        path=listing.root / next(iter(named)), columns=columns, lines=lines, place=place
    )


def _several_tables_error(listing: Listing, names: Sequence[str]) -> LayoutError:
    return LayoutError(
        f"Expected one manifest in {str(listing.root)!r}, got {len(names)}: {format_list(names)}. "
        f"Pass the path of one of them, such as {str(listing.root / names[0])!r}. Tables that are "
        "named after splits, such as train.csv and test.csv, are joined if their columns agree."
    )


def _read_only_table(
    listing: Listing,
    names: Sequence[str],
    options: ReadOptions,
    labels_required: bool,
    has_class_folders: bool,
) -> tuple[tables.Table | None, tuple[str, ...]]:
    """Read the only table of a folder, unless class folders beside it have the labels."""
    if not names:
        return None, ()
    if len(names) > 1:
        if has_class_folders and not options.names_columns:
            return None, (
                f"tables in the folder of the class folders not read: {format_list(names)}",
            )
        raise _several_tables_error(listing, names)
    try:
        table = tables.read_table(listing.root / names[0])
        columns = replace(options, group_by=None).columns_of(table)
    except HeadstartError as error:
        if not has_class_folders or options.names_columns:
            raise
        return None, (f"table {names[0]!r} not read: {error}",)
    is_readable = columns.image and (columns.label or not labels_required)
    if is_readable and not (has_class_folders and is_id_column(columns.image)):
        return table, ()
    if has_class_folders and not options.names_columns:
        return None, (f"table {names[0]!r} not read: it has no columns for paths and labels",)
    return table, ()


def _read_metadata(
    listing: Listing, names: tuple[str, ...], options: ReadOptions, needs_labels: bool
) -> tuple[tables.Table | None, tuple[str, ...]]:
    """Read metadata files; without labels in them, the class folders beside them are read."""
    table = read_metadata(listing, names)
    columns = replace(options, group_by=None).columns_of(table)
    is_labelled = columns.label or object_column(table) or not names[0].endswith(METADATA_NAMES)
    if needs_labels and not is_labelled:
        return None, (f"{format_list(names)} not read: no column of labels or objects",)
    other_tables = [name for name in tables_in(listing) if name not in names]
    notes = [f"tables not read: {format_list(other_tables)}"] if other_tables else []
    listed = {str(path) for path in table.columns["file_name"]}
    n_unlisted = sum(key not in listed for key in listing.images)
    if n_unlisted:
        notes.append(f"{n_unlisted} images that the metadata do not list left out")
    return table, tuple(notes)
