"""Reader of images with masks: their classes and splits.

Images and masks are paired in mask_pairs.py; class_maps.py reads the files that name the classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import IGNORED, SPLITS, Code, Dataset, Mask, Palette, Sample, SplitName
from headstart.data.formats.class_maps import ClassMap, find_class_map, read_class_map, to_palette
from headstart.data.formats.layouts import Listing, format_list
from headstart.data.formats.mask_pairs import MaskPairs, image_folder_prefix
from headstart.data.formats.mask_parts import MAX_BYTES, merge_masks
from headstart.data.formats.split_folders import split_and_rest
from headstart.data.formats.tables import split_name
from headstart.data.masks import (
    MAX_CLASSES,
    RawMask,
    codes_to_indices,
    distinct_values,
    palette_codes,
    read_raw_mask,
)
from headstart.data.pixel_values import MAX_PIXELS
from headstart.errors import DataError, LayoutError, UnreadableImageError
from headstart.files import read_text
from headstart.runtime import cores

__all__ = ["read_mask_pairs"]

MaskSource = Path | NDArray[np.uint8]
_NEAR = 32  # grey levels from 0 or 255 to which compression and smoothing move most pixels
_NEAR_ENDS = 0.9
_VOC_SPLIT_LIST = re.compile(r"(?:^|/)ImageSets/Segmentation/(?:train|val|test)\.txt$")


def read_mask_pairs(
    listing: Listing,
    pairs: MaskPairs,
    *,
    labels_required: bool = True,
    threshold: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Dataset, tuple[str, ...]]:
    """Read images with masks. Every mask is opened once to find the classes that it contains.

    Parameters
    ----------
    listing : Listing
    pairs : MaskPairs
        See `find_mask_pairs`.
    labels_required : bool
        False: images in folders without any mask are read, too.
    threshold : int or None
        Values of this and above are the object, all others the background.
    max_pixels : int
        Largest width times height of a mask.

    Returns
    -------
    Dataset
        Of kind "segmentation", sorted by path. An image whose mask is missing has no target; the
        target of an unreadable mask has no classes. The data checks report both.
    tuple of str
        The relative path of each image.

    Raises
    ------
    DataError
        If a class map, the list of a split, or every mask is damaged, or the masks have too many
        values.
    LayoutError
        If the list of a split names none of the images.
    """
    keys = sorted([*pairs.masks, *pairs.missing, *([] if labels_required else pairs.unlabelled)])
    names = sorted(set(pairs.masks.values()))
    sources = _mask_sources(listing, pairs, threshold, max_pixels)
    found = _mask_values([sources[name] for name in names], max_pixels)
    values = dict(zip(names, found, strict=True))
    readable = [mask_values for mask_values in values.values() if mask_values is not None]
    if not readable:
        read_raw_mask(listing.root / names[0], max_pixels)  # raises the error that explains why
    maps = find_class_map(listing)
    class_map = read_class_map(listing.root / maps[0]) if maps else None
    paths = [listing.root / name for name in names if values[name] is not None]
    if threshold is None:
        _refuse_altered_values(class_map, readable, paths, max_pixels)
        palette, palette_notes = _find_palette(class_map, readable)
    else:
        palette, palette_notes = _threshold_palette(class_map, threshold)
    splits, split_note = _find_splits(listing, keys)
    samples = tuple(
        Sample(
            image=listing.root / key,
            target=_mask_target(sources, pairs.masks.get(key), values, palette),
            split=splits[key],
        )
        for key in keys
    )
    n_parts = sum(map(len, pairs.parts.values()))
    notes = (
        f"{len(pairs.masks)} images with masks{split_note}",
        *([f"{n_parts} masks of {len(pairs.parts)} images merged"] if pairs.parts else []),
        "task: segmentation because there are masks for the images",
        *palette_notes,
        *([f"class maps not read: {format_list(maps[1:])}"] if maps[1:] else []),
        *_unpaired_notes(pairs, labels_required),
    )
    data = Dataset(samples=samples, classes=palette.names, kind="segmentation", notes=notes)
    return data, tuple(keys)


def _mask_sources(
    listing: Listing, pairs: MaskPairs, threshold: int | None, max_pixels: int
) -> dict[str, MaskSource]:
    """Files of the masks; if some images have several masks, the union for each image."""
    if not pairs.parts:
        return {name: listing.root / name for name in pairs.masks.values()}
    sources: dict[str, MaskSource] = {}
    n_bytes = 0
    for image, name in pairs.masks.items():
        paths = [listing.root / part for part in pairs.parts.get(image, (name,))]
        try:
            merged = merge_masks(paths, threshold, max_pixels)
        except UnreadableImageError:
            sources[name] = next((p for p in paths if not _is_readable(p, max_pixels)), paths[0])
            continue
        sources[name] = merged
        n_bytes += merged.nbytes
        if n_bytes > MAX_BYTES:
            raise DataError(
                f"The merged masks of {str(listing.root)!r} need more than {MAX_BYTES} bytes of "
                "memory. Save one mask file for each image."
            )
    return sources


def _is_readable(path: Path, max_pixels: int) -> bool:
    return _distinct_values_or_none(path, max_pixels) is not None


def _mask_values(paths: Sequence[MaskSource], max_pixels: int) -> list[RawMask | None]:
    with ThreadPoolExecutor(cores()) as pool:
        limits = repeat(max_pixels, len(paths))
        return list(pool.map(_distinct_values_or_none, paths, limits, chunksize=8))


def _distinct_values_or_none(path: MaskSource, max_pixels: int) -> RawMask | None:
    try:
        return distinct_values(read_raw_mask(path, max_pixels))
    except UnreadableImageError:  # the data checks report it, with the name of the file
        return None


def _mask_target(
    sources: Mapping[str, MaskSource],
    name: str | None,
    values: Mapping[str, RawMask | None],
    palette: Palette,
) -> Mask | None:
    if name is None:
        return None
    mask_values = values[name]
    indices = set()
    if mask_values is not None:
        indices = set(codes_to_indices(mask_values, palette).ravel().tolist())
    present = tuple(label for i, label in enumerate(palette.names) if i in indices)
    return Mask(source=sources[name], palette=palette, present=present)


def _threshold_palette(
    class_map: ClassMap | None, threshold: int
) -> tuple[Palette, tuple[str, ...]]:
    """Palette of two classes, which a threshold divides."""
    first, second = ("background", "object")
    if class_map is not None and len(class_map.codes) == 2:
        (_, first), (_, second) = class_map.codes
    palette = Palette(codes=((0, first), (IGNORED, second)), ignored=(), threshold=threshold)
    return palette, (f"values of {threshold} and above read as {second}, others as {first}",)


def _refuse_altered_values(
    class_map: ClassMap | None, values: Sequence[RawMask], paths: Sequence[Path], max_pixels: int
) -> None:
    """Refuse values that compression or smoothing made: they would become classes."""
    has_two_names = class_map is not None and class_map.in_order and len(class_map.codes) == 2
    codes = _all_codes(values)
    if len(codes) <= 2 or not (class_map is None or has_two_names):
        return
    share = _share_near_ends(paths, max_pixels) if _may_be_smoothed(codes) else 0.0
    lossy = next((path for v, path in zip(values, paths, strict=True) if v.lossy), None)
    if share >= _NEAR_ENDS:
        raise DataError(
            f"Expected masks of two values, got {len(codes)}, and {share:.1%} of the pixels are "
            f"near 0 or near 255 ({paths[0]}): the masks were saved as JPEG or resized with "
            "smoothing. Pass --mask-threshold 128 to read them as background and object, or export "
            "them as PNG without smoothing."
        )
    if lossy is not None and class_map is None:
        raise DataError(
            f"Expected masks that keep their values, got the JPEG {lossy} and {len(codes)} "
            "different values: JPEG alters values. Save the masks as PNG, or pass --mask-threshold "
            "128 if they have two classes, dark and bright."
        )


def _may_be_smoothed(codes: set[Code]) -> bool:
    """Whether grey values occur that no numbering of classes has: just below 255, or between."""
    greys = {code if isinstance(code, int) else max(code) for code in codes}
    if max(greys) > 255:
        return False
    between = {grey for grey in greys if _NEAR < grey < 255 - _NEAR}
    return any(255 - _NEAR <= grey < 255 for grey in greys) or (255 in greys and len(between) > 2)


def _share_near_ends(paths: Sequence[Path], max_pixels: int) -> float:
    """Share of the pixels near 0 and near 255 in the first masks; 0 if one of the ends is empty."""
    counts = np.zeros(256, dtype=np.intp)
    for path in paths[:20]:
        values = read_raw_mask(path, max_pixels).values
        grey = values if values.ndim == 2 else values.mean(axis=2)
        counts += np.bincount(np.clip(grey, 0, 255).astype(np.uint8).ravel(), minlength=256)
    low, high = counts[: _NEAR + 1].sum(), counts[255 - _NEAR :].sum()
    return float((low + high) / counts.sum()) if low and high else 0.0


def _find_palette(
    class_map: ClassMap | None, values: Sequence[RawMask]
) -> tuple[Palette, tuple[str, ...]]:
    """Palette of the masks, and notes on where it comes from."""
    codes = _all_codes(values)
    is_binary = codes == {0, IGNORED}
    if class_map is None:
        return _palette_without_map(codes, is_binary)
    palette = to_palette(class_map.codes)
    if class_map.in_order and is_binary and len(palette.codes) == 2:
        first, second = palette.names
        return Palette(codes=((0, first), (IGNORED, second)), ignored=()), (
            f"classes from {class_map.name}; 0/255 read as {first} and {second}",
        )
    void = [name for code, name in class_map.codes if code not in dict(palette.codes)]
    order = "by position" if class_map.in_order else "by code"
    notes = [f"classes from {class_map.name}, {order}: {format_list(palette.names, 12)}"]
    notes += [f"ignored in training and evaluation: {format_list(void)}"] if void else []
    return palette, tuple(notes)


def _all_codes(values: Sequence[RawMask]) -> set[Code]:
    codes = {code for mask_values in values for code in palette_codes(mask_values)}
    if any(isinstance(code, tuple) for code in codes):  # one mask in colours: read all as colours
        codes = {
            code for mask_values in values for code in palette_codes(mask_values, by_colour=True)
        }
    return codes


def _palette_without_map(mask_codes: set[Code], is_binary: bool) -> tuple[Palette, tuple[str, ...]]:
    advice = (
        "to name the classes, write classes.txt with one class per line: 'name', 'code name' or "
        "'r g b name'"
    )
    if is_binary:
        palette = Palette(codes=((0, "background"), (IGNORED, "object")), ignored=())
        return palette, ("0/255 read as background and object", advice)
    codes = sorted((code for code in mask_codes if code != IGNORED), key=str)
    codes.sort(key=lambda code: code if isinstance(code, int) else 0)
    if len(codes) > MAX_CLASSES:
        raise DataError(
            f"Expected masks with at most {MAX_CLASSES} values, one per class, got {len(codes)} "
            "different values. Save the masks as PNG without smoothing (JPEG alters values), and "
            "name the classes in classes.txt."
        )
    palette = Palette(codes=tuple((code, _code_name(code)) for code in codes))
    notes = [f"classes are the {len(codes)} values in the masks; {advice}"]
    notes += ["255 is ignored in training and evaluation"] if IGNORED in mask_codes else []
    return palette, tuple(notes)


def _code_name(code: Code) -> str:
    return str(code) if isinstance(code, int) else "#{:02x}{:02x}{:02x}".format(*code)


def _find_splits(listing: Listing, keys: Sequence[str]) -> tuple[dict[str, SplitName | None], str]:
    """Split of each image, from lists of names (as in Pascal VOC) or from folders."""
    from_lists = _read_split_lists(listing, keys)
    splits = {key: from_lists.get(key) if from_lists else _folder_split(key) for key in keys}
    present = [split for split in SPLITS if split in splits.values()]
    origin = "by lists" if from_lists else "by folders"
    return splits, f", {'/'.join(present)} {origin}" if present else ", no splits"


def _read_split_lists(listing: Listing, keys: Sequence[str]) -> dict[str, SplitName]:
    voc_lists = [name for name in listing.other_files if _VOC_SPLIT_LIST.search(name)]
    top_lists = [name for name in listing.other_files if name in {f"{s}.txt" for s in SPLITS}]
    lists = voc_lists or top_lists
    splits: dict[str, SplitName] = {}
    for name in lists:
        text = read_text(listing.root / name)
        entries = [Path(line.split()[0]) for line in text.splitlines() if line.strip()]
        stems = {entry.name for entry in entries} | {entry.stem for entry in entries}
        split = split_name(Path(name).stem)
        for key in [key for key in keys if split and Path(key).stem in stems]:
            if split is not None and splits.setdefault(key, split) != split:
                raise DataError(
                    f"Expected the image {key!r} in one split, got {splits[key]} and {split} "
                    f"({format_list(lists)}). Remove its name from one of these lists."
                )
    if lists and not splits:
        raise LayoutError(
            f"Expected names of images in {str(listing.root / lists[0])!r}, got names of none of "
            f"the {len(keys)} images. Write one image name per line, or remove the file."
        )
    return splits


def _folder_split(key: str) -> SplitName | None:
    for part in key.split("/")[:-1]:
        split, rest = split_and_rest(image_folder_prefix(part) or part)
        if split and not rest:
            return split
    return None


def _unpaired_notes(pairs: MaskPairs, labels_required: bool) -> tuple[str, ...]:
    notes = []
    if pairs.unlabelled and labels_required:
        notes.append(
            f"{len(pairs.unlabelled)} images without masks left out: "
            f"{format_list(pairs.unlabelled)}"
        )
    if pairs.unused:
        notes.append(f"{len(pairs.unused)} masks without an image: {format_list(pairs.unused)}")
    return tuple(notes)
