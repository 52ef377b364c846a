"""Reader of images with masks, and of the files that name the classes of masks.

Class maps are classes.txt, labelmap.txt, class_dict.csv and similar text, CSV and JSON files.
Masks are paired with images by the names of folders and files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from headstart.data.dataset import IGNORED, SPLITS, Code, Dataset, Mask, Palette, Sample, SplitName
from headstart.data.formats.layouts import Listing, format_list
from headstart.data.formats.tables import read_table, split_name
from headstart.data.masks import (
    MAX_CLASSES,
    RawMask,
    codes_to_indices,
    distinct_values,
    palette_codes,
    read_raw_mask,
)
from headstart.errors import DataError, LayoutError, UnreadableImageError
from headstart.runtime import cores

__all__ = [
    "ClassMap",
    "MaskPairs",
    "find_class_map",
    "find_mask_pairs",
    "is_other_rendering",
    "read_class_map",
    "read_mask_pairs",
    "to_palette",
]

_CLASS_MAP_STEMS = (
    "classes", "class_names", "class_map", "class_dict", "labelmap", "label_map", "label_colors",
    "labels", "codes", "palette", "colors", "colours",
)  # fmt: skip
_VOID_CLASSES = frozenset(("ignore", "ignored", "void", "unlabelled", "unlabeled"))
_COLOUR_LINE = re.compile(r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;:]+(\S.*)")
_CVAT_LINE = re.compile(r"([^:]+):\s*(\d{1,3}),\s*(\d{1,3}),\s*(\d{1,3})\s*(?::.*)?")
_HEX_LINE = re.compile(r"#([0-9a-fA-F]{6})[\s,;:]+(\S.*)")
_NUMBER_LINE = re.compile(r"(\d+)[\s,;:]+(\S.*)")

_CodesAndNames = list[tuple[Code | None, str]]
_MASK_FOLDER = re.compile(
    r"(?P<base>.*?)[ _-]?(?:masks?|labels?|annots?|annotations?|gt|gtfine|ground_?truths?"
    r"|segmentation(?:class|classraw|classaug)?|segmentations)(?:[ _-]?png)?",
    re.IGNORECASE,
)
_IMAGE_FOLDER = re.compile(
    r"(?P<base>.*?)[ _-]?(?:images?|imgs?|jpegimages|pictures?|photos?|frames|rgb|leftimg8bit)",
    re.IGNORECASE,
)
_MASK_SUFFIX = re.compile(
    r"[ _.-](?:masks?|labels?|l|gt|seg|segmentation|annot|annotation"
    r"|(?:gtfine_)?(?:labelids|labeltrainids))$",
    re.IGNORECASE,
)
_IMAGE_SUFFIX = re.compile(r"_(?:leftimg8bit|image|img|rgb)$", re.IGNORECASE)
_OTHER_RENDERING = re.compile(r"_(?:color|instanceids|instances?|polygons)$", re.IGNORECASE)
_VOC_SPLIT_LIST = re.compile(r"(?:^|/)ImageSets/Segmentation/(?:train|val|test)\.txt$")
_VOC_MASK_FOLDER = "segmentationclass"
_PairingKey = tuple[tuple[str, ...], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """Codes and their classes, as read from a file.

    Parameters
    ----------
    name : str
        The file it was read from.
    codes : tuple of (code, str)
    in_order : bool
        Whether the file has no codes, so that each code is the position of its class.
    """

    name: str
    codes: tuple[tuple[Code, str], ...]
    in_order: bool = False


def find_class_map(listing: Listing) -> tuple[str, ...]:
    """Find files whose names are usual for class maps, the most likely first.

    Examples
    --------
    >>> find_class_map(Listing(root=Path("p"), other_files=("a/classes.csv", "classes.txt")))
    ('classes.txt', 'a/classes.csv')
    """
    candidates = []
    for name in listing.other_files:
        stem, _, suffix = name.rsplit("/", 1)[-1].lower().rpartition(".")
        if stem in _CLASS_MAP_STEMS and suffix in {"txt", "csv", "json"}:
            candidates.append((name.count("/"), _CLASS_MAP_STEMS.index(stem), name))
    return tuple(name for *_, name in sorted(candidates))


def read_class_map(path: Path) -> ClassMap:
    r"""Read a class map.

    Parameters
    ----------
    path : Path
        Text with one class per line: ``name`` (its code is its position, from 0), ``code name``,
        ``r g b name``, ``#rrggbb name`` or ``name:r,g,b::``; CSV with a column of names and one
        of codes, three of colours or one of ``#rrggbb``; JSON: a list of names, or an object of
        code or ``#rrggbb`` to name.

    Raises
    ------
    DataError
        If the file has none of these formats, or has a code twice.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "classes.txt")
    >>> _ = path.write_text("128 0 0 leaf\n0 0 0 ground\n")
    >>> read_class_map(path).codes
    (((128, 0, 0), 'leaf'), ((0, 0, 0), 'ground'))
    """
    try:
        if path.suffix.lower() == ".csv":
            pairs = _parse_table(read_table(path).columns)
        elif path.suffix.lower() == ".json":
            pairs = _parse_json(json.loads(path.read_text(encoding="utf-8-sig")))
        else:
            pairs = _parse_lines(path.read_text(encoding="utf-8-sig").splitlines())
    except json.JSONDecodeError as error:
        raise _class_map_error(path, f"the file is not valid JSON ({error})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise _class_map_error(path, str(error)) from error
    in_order = all(code is None for code, _ in pairs)
    codes = [
        (position if code is None else code, normalize("NFC", name.strip()))
        for position, (code, name) in enumerate(pairs)
    ]
    duplicates = {code for i, (code, _) in enumerate(codes) if code in [c for c, _ in codes[:i]]}
    if duplicates:
        raise _class_map_error(path, f"the code {next(iter(duplicates))} occurs twice")
    if not codes or any(not name for _, name in codes):
        raise _class_map_error(path, "a class has no name" if codes else "the file has no names")
    return ClassMap(name=path.name, codes=tuple(codes), in_order=in_order)


def to_palette(codes: Sequence[tuple[Code, str]]) -> Palette:
    """Convert the codes of a class map to a palette.

    Classes called void, ignore or unlabelled are ignored. So is 255, unless it is the code of a
    class.

    Examples
    --------
    >>> to_palette([(0, "sky"), (1, "Unlabelled")])
    Palette(codes=((0, 'sky'),), ignored=(255, 1))
    """
    void = tuple(
        code for code, name in codes if name.casefold() in _VOID_CLASSES and code != IGNORED
    )
    named = tuple((code, name) for code, name in codes if name.casefold() not in _VOID_CLASSES)
    default = () if IGNORED in [code for code, _ in named] else (IGNORED,)
    return Palette(codes=named, ignored=default + void)


def _class_map_error(path: Path, problem: str) -> DataError:
    return DataError(
        f"Cannot read the classes of the masks from {str(path)!r}: {problem}. Write one class per "
        "line, as 'name', 'code name' or 'r g b name'."
    )


def _parse_lines(lines: Sequence[str]) -> _CodesAndNames:
    texts = [line.strip() for line in lines if line.strip()]
    # A line that starts with # is a comment, unless it is a hexadecimal colour.
    texts = [text for text in texts if text[0] != "#" or _HEX_LINE.fullmatch(text)]
    if fields := _match_all(_COLOUR_LINE, texts):
        return [(_parse_colour(r, g, b), name) for r, g, b, name in fields]
    if fields := _match_all(_CVAT_LINE, texts):
        return [(_parse_colour(r, g, b), name) for name, r, g, b in fields]
    if fields := _match_all(_HEX_LINE, texts):
        return [(_parse_hex_colour(code), name) for code, name in fields]
    if fields := _match_all(_NUMBER_LINE, texts):
        return [(int(code), name) for code, name in fields]
    coloured = [t for t in texts if _COLOUR_LINE.fullmatch(t) or _HEX_LINE.fullmatch(t)]
    if coloured:
        raise ValueError(
            f"some lines have a colour, such as {format_list(coloured, 1)}, and some have none"
        )
    return [(None, text) for text in texts]


def _match_all(pattern: re.Pattern[str], texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Fields of every line; none if a line does not match."""
    matches = [pattern.fullmatch(text) for text in texts]
    fields = [match.groups() for match in matches if match]
    return fields if len(fields) == len(texts) else []


def _parse_colour(*channels: Any) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in channels)
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise ValueError(f"the colour {red} {green} {blue} is not within 0 to 255")
    return red, green, blue


def _parse_hex_colour(text: str) -> tuple[int, int, int]:
    return _parse_colour(*bytes.fromhex(text.removeprefix("#")))


def _parse_table(columns: dict[str, list[Any]]) -> _CodesAndNames:
    by_name = {name.strip().lower(): cells for name, cells in columns.items()}

    def find_column(*names: str) -> list[Any] | None:
        return next((by_name[name] for name in names if name in by_name), None)

    names = find_column("name", "class", "label", "class_name", "category")
    if names is None:
        raise ValueError(f"none of the columns {format_list(columns)} is called 'name'")
    channels = [find_column("r", "red"), find_column("g", "green"), find_column("b", "blue")]
    colours = find_column("color", "colour", "hex", "rgb")
    numbers = find_column("code", "id", "index", "value", "pixel", "label_id", "class_id")
    codes: list[Code | None]
    if all(channel is not None for channel in channels):
        codes = [_parse_colour(*cells) for cells in zip(*(c or () for c in channels), strict=True)]
    elif colours is not None:
        codes = [_parse_code(str(cell)) for cell in colours]
    elif numbers is not None:
        codes = [int(cell) for cell in numbers]
    else:
        codes = [None] * len(names)
    return [(code, str(name or "")) for code, name in zip(codes, names, strict=True)]


def _parse_json(values: Any) -> _CodesAndNames:
    if isinstance(values, list):
        return [(None, _require_name(value)) for value in values]
    if not isinstance(values, dict):
        raise TypeError(f"the JSON value is a {type(values).__name__}, not a list or an object")
    if values and all(isinstance(value, str) for value in values.values()):
        return [(_parse_code(code), name) for code, name in values.items()]
    return [
        (_parse_colour(*value) if isinstance(value, list) else int(value), name)
        for name, value in values.items()
    ]


def _require_name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a class name")
    return value


def _parse_code(text: str) -> Code:
    numbers = re.findall(r"\d+", text)
    if text.strip().startswith("#"):
        return _parse_hex_colour(text.strip())
    if len(numbers) == 3:
        return _parse_colour(*numbers)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a whole number nor a colour") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPairs:
    """Pairs of image and mask, as posix paths relative to the folder.

    Parameters
    ----------
    masks : dict of str to str
        Mask by image.
    missing : tuple of str
        Images without a mask in folders where other images have one.
    unlabelled : tuple of str
        Images in folders without any mask.
    unused : tuple of str
        Masks without an image.
    """

    masks: dict[str, str]
    missing: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def find_mask_pairs(listing: Listing) -> MaskPairs | None:
    """Pair images with masks by the names of folders and files; None if there are no masks.

    Mask folders are called masks, labels, annotations, gt or SegmentationClass, and have the
    structure of the image folders (images/, or train/ with trainannot/).

    Raises
    ------
    DataError
        If an image has two masks.

    Examples
    --------
    >>> names = ("images/1.jpg", "images/2.jpg", "masks/1_mask.png", "masks/2_mask.png")
    >>> find_mask_pairs(Listing(root=Path("p"), images=names)).masks
    {'images/1.jpg': 'masks/1_mask.png', 'images/2.jpg': 'masks/2_mask.png'}
    """
    masks = [name for name in listing.images if _is_mask(name) and not is_other_rendering(name)]
    if not masks:
        return None
    images = {
        name: _pairing_key(name, _IMAGE_SUFFIX) for name in listing.images if not _is_mask(name)
    }
    # Masks named like their image go first; 1_mask.png for 1.jpg is accepted if there is none.
    same_name = {_pairing_key(name, _IMAGE_SUFFIX): name for name in masks}
    with_suffix: dict[_PairingKey, list[str]] = {}
    for name in masks:
        with_suffix.setdefault(_pairing_key(name, _MASK_SUFFIX), []).append(name)
    mask_by_image = {}
    for image, key in images.items():
        candidates = [same_name[key]] if key in same_name else with_suffix.get(key, [])
        if len(candidates) > 1:
            raise DataError(
                f"Expected one mask for {image!r}, got {format_list(candidates)}. Remove all masks "
                "of this image but one."
            )
        if candidates:
            mask_by_image[image] = candidates[0]
    # Folders called "labels" and the like may contain ordinary images.
    if 2 * len(set(mask_by_image.values())) < len(masks):
        return None
    return _to_mask_pairs(mask_by_image, images, masks)


def _to_mask_pairs(
    mask_by_image: dict[str, str], images: Iterable[str], masks: Sequence[str]
) -> MaskPairs:
    used = set(mask_by_image.values())
    folders = {_parent(name) for name in mask_by_image}
    # In Pascal VOC only a small part of the images has masks: a missing one is no error.
    is_voc = any(_VOC_MASK_FOLDER in mask.lower().split("/") for mask in used)
    without_mask = [name for name in images if name not in mask_by_image]
    missing = tuple(name for name in without_mask if _parent(name) in folders and not is_voc)
    return MaskPairs(
        masks=mask_by_image,
        missing=missing,
        unlabelled=tuple(name for name in without_mask if name not in set(missing)),
        unused=tuple(name for name in masks if name not in used),
    )


def is_other_rendering(name: str) -> bool:
    """Whether a file among masks is not a class mask: a coloured view, or instance ids.

    Examples
    --------
    >>> is_other_rendering("aachen_000000_gtFine_color.png"), is_other_rendering("aachen.png")
    (True, False)
    """
    return bool(_OTHER_RENDERING.search(name.rpartition(".")[0]))


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _folder_prefix(match: re.Match[str] | None) -> str | None:
    """Text before "masks" or "images" in a folder name: empty or a split; else None."""
    base = match["base"] if match else None
    return base if base is None or not base or split_name(base) else None


def _is_mask(name: str) -> bool:
    return any(
        _folder_prefix(_MASK_FOLDER.fullmatch(part)) is not None
        for part in _parent(name).split("/")
    )


def _pairing_key(name: str, suffix: re.Pattern[str]) -> _PairingKey:
    """Key that an image and its mask share: folders without "images" or "masks", and the stem."""
    folder, _, file = name.rpartition("/")
    folders = []
    for part in folder.split("/"):
        prefixes = [_folder_prefix(p.fullmatch(part)) for p in (_MASK_FOLDER, _IMAGE_FOLDER)]
        prefix = next((prefix for prefix in prefixes if prefix is not None), part)
        folders += [prefix.lower()] if prefix else []
    return tuple(folders), suffix.sub("", file.rpartition(".")[0])


def read_mask_pairs(
    listing: Listing, pairs: MaskPairs, *, labels_required: bool = True
) -> tuple[Dataset, tuple[str, ...]]:
    """Read images with masks. Every mask is opened once to find the classes that it contains.

    Parameters
    ----------
    listing : Listing
    pairs : MaskPairs
        See `find_mask_pairs`.
    labels_required : bool
        False: images in folders without any mask are read, too.

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
    values = dict(zip(names, _mask_values([listing.root / name for name in names]), strict=True))
    readable = [mask_values for mask_values in values.values() if mask_values is not None]
    if not readable:
        read_raw_mask(listing.root / names[0])  # raises the error that explains why
    maps = find_class_map(listing)
    class_map = read_class_map(listing.root / maps[0]) if maps else None
    palette, palette_notes = _find_palette(class_map, readable)
    splits, split_note = _find_splits(listing, keys)
    samples = tuple(
        Sample(
            image=listing.root / key,
            target=_mask_target(listing, pairs.masks.get(key), values, palette),
            split=splits[key],
        )
        for key in keys
    )
    notes = (
        f"{len(pairs.masks)} images with masks{split_note}",
        "task: segmentation because there are masks for the images",
        *palette_notes,
        *([f"class maps not read: {format_list(maps[1:])}"] if maps[1:] else []),
        *_unpaired_notes(pairs, labels_required),
    )
    data = Dataset(samples=samples, classes=palette.names, kind="segmentation", notes=notes)
    return data, tuple(keys)


def _mask_values(paths: Sequence[Path]) -> list[RawMask | None]:
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(_distinct_values_or_none, paths, chunksize=8))


def _distinct_values_or_none(path: Path) -> RawMask | None:
    try:
        return distinct_values(read_raw_mask(path))
    except UnreadableImageError:  # the data checks report it, with the name of the file
        return None


def _mask_target(
    listing: Listing, name: str | None, values: Mapping[str, RawMask | None], palette: Palette
) -> Mask | None:
    if name is None:
        return None
    mask_values = values[name]
    indices = set()
    if mask_values is not None:
        indices = set(codes_to_indices(mask_values, palette).ravel().tolist())
    present = tuple(label for i, label in enumerate(palette.names) if i in indices)
    return Mask(source=listing.root / name, palette=palette, present=present)


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
        text = (listing.root / name).read_text(encoding="utf-8-sig", errors="replace")
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
    for part in _parent(key).split("/"):
        prefix = _folder_prefix(_IMAGE_FOLDER.fullmatch(part))
        if split := split_name(prefix or part):
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
